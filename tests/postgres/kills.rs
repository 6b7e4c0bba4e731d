//! The whole stack, as a bot runs it, through kills of the bot and of the server: every durable call that was
//! acknowledged is there, and the bot goes on by itself when its server is back.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use wacore::appstate::hash::HashState;
use wacore::store::error::StoreError;
use wacore::store::traits::{AppStateSyncKey, Backend, MsgSecretEntry};
use wastore::vault::OpenMode;
use wastore::{CacheLayer, Durability, Key, Metrics, PostgresStore, Record, Stack, Vault, VaultOptions};

use super::common::{News, Other, PATIENCE, is_long, is_unknown, millis, number_in, options, say, seconds, value};
use super::server::{Server, available};

const URL: &str = "WASTORE_KILLS_URL";
const NUMBER: &str = "WASTORE_KILLS_NUMBER";
const CHILD: &str = "kills::child_that_works";

const TASKS: usize = 4;
/// How many numbers each process has for itself.
const NUMBERS: u32 = 1_000_000;
/// In normal runs, the campaign ends after this time, whatever the machine managed until then.
const NORMAL_TIME: Duration = seconds(100);
const FEWEST_KILLS: u32 = 60;

/// A bot with every layer over the store.
struct Bot {
    store: Arc<dyn Backend>,
}

fn key() -> Key {
    Key::from_bytes(&mut [0x5a; 32])
}

impl Bot {
    async fn open(url: &str, durability: Durability) -> Self {
        let postgres = options(url).lease_name("bot").durability(durability).open(1).await.unwrap();
        let vault = Vault::open_or_create(Arc::new(postgres.clone()), key()).await.unwrap();
        let chosen = [Record::Session, Record::Identity, Record::SenderKey];
        let cache = chosen.into_iter().fold(CacheLayer::new(16 << 20), CacheLayer::with);
        Self::stack(postgres, &vault, Some(cache))
    }

    /// Reads beside the bot that runs.
    async fn observe(url: &str) -> Self {
        let postgres = options(url).open_read_only(1).await.unwrap();
        let lowest = Arc::new(postgres.clone());
        let vault = VaultOptions::new().mode(OpenMode::ReadOnly).open(lowest, key()).await.unwrap();
        Self::stack(postgres, &vault, None)
    }

    fn stack(postgres: PostgresStore, vault: &Vault, cache: Option<CacheLayer>) -> Self {
        let metrics = Metrics::new();
        let stack = Stack::new(postgres).layer(metrics.layer("postgres")).layer(vault.layer());
        let stack = match cache {
            Some(cache) => stack.layer(cache).layer(metrics.layer("client")),
            None => stack,
        };
        Self { store: stack.into_backend() }
    }
}

/// The content of a call: one row, or several with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sessions,
    Identity,
    SenderKey,
    SyncKey,
    Pending,
    /// These two wait for the disk only with `Durability::Full`.
    Version,
    Secret,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Sessions, Self::Identity, Self::SenderKey, Self::SyncKey, Self::Pending, Self::Version, Self::Secret];

    fn is_durable(self) -> bool {
        !matches!(self, Self::Version | Self::Secret)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The rows that belong to one task.
struct Rows {
    store: Arc<dyn Backend>,
    task: usize,
}

impl Rows {
    async fn put(&self, kind: Kind, number: u32) -> Result<(), StoreError> {
        let store = &self.store;
        match kind {
            Kind::Sessions => {
                let session = Bytes::from(value(number, 1400));
                let row = |device: u32| (Arc::from(self.address(device)), session.clone());
                store.put_sessions_batch(&[row(1), row(2)]).await
            }
            Kind::Identity => store.put_identity(&self.address(1), value(number, 32).try_into().unwrap()).await,
            Kind::SenderKey => store.put_sender_key(&self.group_sender(), &value(number, 300)).await,
            Kind::SyncKey => {
                let (key_data, fingerprint) = (value(number, 32), value(number, 12));
                let key = AppStateSyncKey { key_data, fingerprint, timestamp: i64::from(number) };
                store.set_sync_key(&self.key_id(), key).await
            }
            Kind::Pending => {
                store.store_pending_inbound(&self.chat(), &self.chat(), "3EB0BB01", &value(number, 400)).await
            }
            Kind::Version => {
                let hash = value(number, 128).try_into().unwrap();
                let state = HashState { version: u64::from(number), hash, ..HashState::default() };
                store.set_version(&self.collection(), state).await
            }
            Kind::Secret => {
                let entry = MsgSecretEntry {
                    chat: Arc::from(self.chat()),
                    sender: Arc::from(self.chat()),
                    msg_id: Arc::from("3EB0AA01"),
                    secret: value(number, 32).try_into().unwrap(),
                    expires_at: 0,
                    message_ts: i64::from(number),
                };
                store.put_msg_secrets(vec![entry]).await.map(drop)
            }
        }
    }

    /// The number in the rows of a kind. A call is stored completely or not at all.
    async fn stored(&self, kind: Kind) -> Result<Option<u32>, StoreError> {
        let store = &self.store;
        let number = |bytes: &[u8]| Some(number_in(bytes));
        Ok(match kind {
            Kind::Sessions => store.get_session(&self.address(1)).await?.as_deref().and_then(number),
            Kind::Identity => store.load_identity(&self.address(1)).await?.and_then(|key| number(&key)),
            Kind::SenderKey => store.get_sender_key(&self.group_sender()).await?.and_then(|record| number(&record)),
            Kind::SyncKey => store.get_sync_key(&self.key_id()).await?.and_then(|key| {
                assert_eq!(key.timestamp, i64::from(number_in(&key.fingerprint)), "a torn row");
                number(&key.key_data)
            }),
            Kind::Pending => {
                let message = store.get_pending_inbound(&self.chat(), &self.chat(), "3EB0BB01").await?;
                message.and_then(|message| number(&message))
            }
            // A missing one has version 0.
            Kind::Version => match store.get_version(&self.collection()).await? {
                HashState { version: 0, .. } => None,
                state => number(&state.hash),
            },
            Kind::Secret => {
                let secret = store.get_msg_secret(&self.chat(), &self.chat(), "3EB0AA01").await?;
                secret.and_then(|secret| number(&secret))
            }
        })
    }

    /// The name of such a call in the acknowledgements.
    fn label(&self, what: impl fmt::Display) -> String {
        format!("{}-{what}", self.task)
    }

    fn chat(&self) -> String {
        format!("1555000{:04}@s.whatsapp.net", self.task)
    }

    fn address(&self, device: u32) -> String {
        format!("1555000{:04}:{device}@s.whatsapp.net", self.task)
    }

    fn passing(&self, number: u32) -> String {
        format!("1666{:04}{number:09}:1@s.whatsapp.net", self.task)
    }

    fn group_sender(&self) -> String {
        format!("12036300000000{:04}@g.us:{}", self.task, self.address(1))
    }

    fn collection(&self) -> String {
        format!("regular_{}", self.task)
    }

    fn key_id(&self) -> [u8; 6] {
        [0, 0, 0, 0, 0, self.task as u8]
    }
}

// The bot's process.

/// Full durability for every second process, so that all kinds must survive kills of the server.
fn is_full(number: u32) -> bool {
    number.is_multiple_of(2)
}

#[test]
fn child_that_works() {
    let Ok(url) = std::env::var(URL) else { return };
    let number: u32 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let runtime = match number % 3 {
        0 => Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        _ => single_threaded(),
    };
    runtime.block_on(async {
        let durability = if is_full(number) { Durability::Full } else { Durability::SignalState };
        let bot = Bot::open(&url, durability).await;
        let rows = (0..TASKS).map(|task| Rows { store: bot.store.clone(), task });
        let tasks: Vec<_> = rows.map(|rows| tokio::spawn(work(rows, number))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Writes rows of every kind with rising numbers, until the process is killed.
async fn work(rows: Rows, process: u32) {
    let mut sent = None;
    // Above all numbers of earlier processes.
    for number in process * NUMBERS + 1.. {
        for kind in Kind::ALL {
            rows.put(kind, number).await.unwrap();
            if kind.is_durable() || is_full(process) {
                say(&format!("{} {number}", rows.label(kind)));
            }
            // The only writer reads its own writes, in the cache and below it.
            let stored = rows.stored(kind).await.unwrap();
            let is_own = stored == Some(number) || !kind.is_durable() && !is_full(process);
            assert!(is_own, "{}: {number} was acknowledged, {stored:?} is read", rows.label(kind));
        }
        exchange(&rows, process, number, &mut sent).await;
        let address = rows.passing(number);
        rows.store.put_session(&address, &value(number, 200)).await.unwrap();
        rows.store.delete_session(&address).await.unwrap();
        say(&format!("{} {number}", rows.label("gone")));
    }
}

/// Stores a message and takes the one before.
async fn exchange(rows: &Rows, process: u32, number: u32, sent: &mut Option<u32>) {
    rows.store.store_sent_message(&rows.chat(), &format!("3EB0{number:012X}"), &value(number, 500)).await.unwrap();
    let Some(before) = sent.replace(number) else { return };
    match rows.store.take_sent_message(&rows.chat(), &format!("3EB0{before:012X}")).await {
        Ok(Some(taken)) => assert_eq!(number_in(&taken), before),
        // The server may have lost a message that did not wait for its disk.
        Ok(None) => assert!(!is_full(process), "message {before} is gone"),
        Err(error) => assert!(is_unknown(&error), "{error:?}"),
    }
}

// The parent.

/// The acknowledgements of all bots so far, and what was read of them.
#[derive(Default)]
struct Acknowledged {
    highest: HashMap<String, u32>,
    seen: HashMap<String, u32>,
    calls: u64,
}

impl Acknowledged {
    fn note(&mut self, news: &News) {
        let News::Said(said) = news else { return };
        let (what, number) = said.split_once(' ').unwrap();
        self.calls += 1;
        let number: u32 = number.parse().unwrap();
        let highest = self.highest.entry(what.to_owned()).or_default();
        *highest = number.max(*highest);
    }

    /// Reads everything that was acknowledged, while the bot may go on.
    async fn check(&mut self, observer: &Bot) {
        for task in 0..TASKS {
            let rows = Rows { store: observer.store.clone(), task };
            for kind in Kind::ALL {
                let label = rows.label(kind);
                let stored = rows.stored(kind).await.unwrap();
                let number = self.highest.get(&label).copied();
                assert!(stored >= number, "{label}: {number:?} was acknowledged, {stored:?} is stored");
                if let Some(stored) = stored.filter(|_| kind.is_durable()) {
                    let seen = self.seen.insert(label, stored).unwrap_or_default();
                    assert!(stored >= seen, "{kind}: {stored} was read after {seen}");
                }
            }
            if let Some(number) = self.highest.get(&rows.label("gone")) {
                assert!(!rows.store.has_session(&rows.passing(*number)).await.unwrap(), "{number} is back");
            }
        }
    }
}

struct Campaign {
    server: Server,
    bot: Other,
    number: u32,
    sender: Sender<(u32, News)>,
    news: Receiver<(u32, News)>,
    acknowledged: Acknowledged,
}

impl Campaign {
    fn begin() -> Self {
        let server = Server::start();
        let (sender, news) = channel();
        let bot = Self::bot(&server, 1, &sender);
        Self { server, bot, number: 1, sender, news, acknowledged: Acknowledged::default() }
    }

    fn bot(server: &Server, number: u32, news: &Sender<(u32, News)>) -> Other {
        Other::start(CHILD, &[(URL, server.url()), (NUMBER, number.to_string())], number, news.clone())
    }

    /// Waits for a call of the bot that runs now.
    fn wait_for_call(&mut self) {
        // Earlier news are all there: nothing was acknowledged for a while.
        while let Ok((_, news)) = self.news.try_recv() {
            self.acknowledged.note(&news);
        }
        loop {
            let (number, news) = self.news.recv_timeout(PATIENCE).unwrap();
            self.acknowledged.note(&news);
            match news {
                News::Said(_) if number == self.number => return,
                News::Ended(_) if number == self.number => panic!("bot {number} ended by itself"),
                _ => {}
            }
        }
    }

    fn kill_bot(&mut self) {
        self.bot.signal(Signal::KILL);
        loop {
            let (number, news) = self.news.recv_timeout(PATIENCE).unwrap();
            self.acknowledged.note(&news);
            if let News::Ended(by_itself) = news {
                assert!(number == self.number && !by_itself, "a bot ended by itself");
                break;
            }
        }
    }

    fn start_bot(&mut self) {
        self.number += 1;
        self.bot = Self::bot(&self.server, self.number, &self.sender);
    }
}

/// One server goes through all kills, so that every start recovers what the previous kill left.
#[test]
fn the_full_stack_survives_kills_of_bot_and_server() {
    if !available() {
        return;
    }
    let (wanted, begun) = (if is_long() { 1000 } else { 200 }, Instant::now());
    let (runtime, mut rng) = (single_threaded(), rand::rng());
    let mut campaign = Campaign::begin();
    campaign.wait_for_call();
    let observer = runtime.block_on(Bot::observe(&campaign.server.url()));
    let (mut of_bot, mut of_server) = (0, 0);
    while of_bot + of_server < wanted && (is_long() || begun.elapsed() < NORMAL_TIME) {
        std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
        let (bot, server) = [(true, false), (false, true), (true, true)][rng.random_range(0..3)];
        if server {
            campaign.server.kill();
            of_server += 1;
        }
        if bot {
            campaign.kill_bot();
            of_bot += 1;
        }
        // Some bots meet a server that is not there yet.
        let is_early = bot && rng.random_bool(0.3);
        if is_early {
            campaign.start_bot();
        }
        if server {
            std::thread::sleep(millis(rng.random_range(0..30)));
            campaign.server.restart();
        }
        if bot && !is_early {
            campaign.start_bot();
        }
        // Some are killed before they write again.
        if rng.random_bool(0.9) {
            campaign.wait_for_call();
        }
        runtime.block_on(campaign.acknowledged.check(&observer));
    }
    campaign.wait_for_call();
    campaign.kill_bot();
    runtime.block_on(campaign.acknowledged.check(&observer));
    let calls = campaign.acknowledged.calls;
    println!("{of_bot} kills of the bot and {of_server} of the server survived, {calls} calls acknowledged");
    assert!(of_bot + of_server >= FEWEST_KILLS, "the machine managed {of_bot} and {of_server} kills");
    assert!(calls > u64::from(of_bot + of_server), "{calls}");
}

fn single_threaded() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}
