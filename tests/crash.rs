//! The whole stack, as a bot runs it, through kills and failing disks: everything that was
//! acknowledged is there.

#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a failure is a failed test")]
#![allow(clippy::print_stdout, reason = "long campaigns print their figures")]

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod preload;

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::StoreError;
use wacore::store::traits::{AppStateSyncKey, Backend, MsgSecretEntry};
use wastore::maintenance::Verify;
use wastore::sqlite::SqliteProblem;
use wastore::vault::OpenMode;
use wastore::{
    CacheLayer, Durability, Error, Key, Metrics, Record, SqliteOptions, SqliteStore, Stack, Vault, VaultOptions,
};

const TASKS: usize = 6;
/// How long a child works that is not killed.
const WORK: Duration = Duration::from_millis(150);

/// One file goes through all kills, so that every start recovers the state that the previous
/// process left.
#[test]
fn the_full_stack_loses_nothing_acknowledged_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let runtime = single_threaded();
    let mut rng: StdRng = rand::make_rng();
    let kills = if is_long() { 1000 } else { 100 };
    let mut acknowledged = Acknowledged::default();
    for kill in 0..kills {
        // Before the first acknowledgement as well as after it.
        let after_first = rng.random_bool(0.9);
        let delay = Duration::from_micros(rng.random_range(0..25_000));
        acknowledged.listen_to(child(&path, kill), Some(Kill { after_first, delay }));
        runtime.block_on(check(&path, &acknowledged, kill % 20 == 0));
    }
    runtime.block_on(verify(&path));
    assert!(acknowledged.calls > u64::from(kills), "{}", acknowledged.calls);
    println!("{kills} kills survived, {} calls were acknowledged", acknowledged.calls);
}

/// Below SQLite, writes are cut short or refused, and syncs and truncations fail. A failed call was
/// not acknowledged, and everything else continues.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn failing_disks_lose_nothing_acknowledged() {
    const ONE_IN: [u32; 4] = [5, 20, 100, 500];
    // Without symbolic links, because the library compares paths with the kernel's.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (path, log) = (root.join("wa.db"), root.join("failures"));
    let library = preload::compile("failing_io", &root);
    let runtime = single_threaded();
    let mut rng: StdRng = rand::make_rng();
    // The file and its vault exist before the disk begins to fail.
    runtime.block_on(async { drop(Bot::open(&path, Durability::Full).await.unwrap()) });
    let children = if is_long() { 1000 } else { 60 };
    let (mut acknowledged, mut refused) = (Acknowledged::default(), 0);
    for number in 0..children {
        let mut child = child(&path, number);
        // Each rate meets both runtimes and all durabilities.
        let one_in = ONE_IN[number as usize / 2 % ONE_IN.len()];
        child
            .env("LD_PRELOAD", &library)
            .env("WASTORE_FAIL_PATH", &path)
            .env("WASTORE_FAIL_ONE_IN", one_in.to_string())
            .env("WASTORE_FAIL_SEED", rng.random_range(0..u64::MAX).to_string())
            .env("WASTORE_FAIL_LOG", &log);
        // Some are also killed before they can roll anything back.
        let delay = Duration::from_micros(rng.random_range(0..150_000));
        let kill = rng.random_bool(0.3).then_some(Kill { after_first: true, delay });
        acknowledged.listen_to(child, kill);
        if acknowledged.highest.remove(REFUSED).is_some() {
            acknowledged.calls -= 1;
            refused += 1;
        }
        runtime.block_on(check(&path, &acknowledged, true));
    }
    runtime.block_on(verify(&path));
    let failures = std::fs::metadata(&log).unwrap().len();
    assert!(failures > u64::from(children), "only {failures} calls were made to fail");
    assert!(acknowledged.calls > u64::from(children), "{}", acknowledged.calls);
    assert!(refused < children, "no child got to write");
    println!(
        "{failures} failures survived by {children} processes, of which {refused} could not open the store; \
         {} calls were acknowledged",
        acknowledged.calls
    );
}

// The child processes.

const FILE: &str = "WASTORE_CRASH_FILE";
const NUMBER: &str = "WASTORE_CRASH_NUMBER";
/// The message of a child that could not open the store.
const REFUSED: &str = "refused";

/// Runs in its own process, for the tests above: writes until it is killed or, on a failing disk,
/// until it has worked for a while.
#[test]
fn write_as_told() {
    let Some(path) = std::env::var_os(FILE).map(PathBuf::from) else { return };
    let number: u32 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let faults = std::env::var_os("WASTORE_FAIL_PATH").is_some();
    let durability = [Durability::Process, Durability::SignalState, Durability::Full][number as usize % 3];
    let runtime = if number.is_multiple_of(2) {
        single_threaded()
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    };
    runtime.block_on(async {
        let bot = match Bot::open(&path, durability).await {
            Ok(bot) => bot,
            Err(error) => {
                assert!(faults, "{error:?}");
                return acknowledge(REFUSED, number);
            }
        };
        let until = faults.then(|| Instant::now() + WORK);
        // Above all numbers of earlier children.
        let first = number * 100_000 + 1;
        let writers = (0..TASKS).map(|task| tokio::spawn(write(Rows { store: bot.store.clone(), task }, first, until)));
        let writers = futures::future::try_join_all(writers.collect::<Vec<_>>());
        let upkeep = async {
            keep_up(&bot, first, number.is_multiple_of(5), until).await;
            Ok::<(), tokio::task::JoinError>(())
        };
        futures::future::try_join(writers, upkeep).await.unwrap();
    });
}

/// Writes rows of every kind, with rising numbers.
async fn write(rows: Rows, first: u32, until: Option<Instant>) {
    let faults = until.is_some();
    let (mut acknowledged, mut sent) = ([None::<u32>; Kind::ALL.len()], None::<u32>);
    for number in first.. {
        if is_over(until) {
            return;
        }
        for (kind, known) in Kind::ALL.into_iter().zip(&mut acknowledged) {
            if succeeded(rows.put(kind, number).await, faults).is_some() {
                acknowledge(&rows.label(kind), number);
                *known = Some(number);
            }
            // The cache does not know more than the store either.
            if let Some(stored) = succeeded(rows.stored(kind).await, faults) {
                assert!(stored >= *known, "{}: {known:?} was acknowledged, {stored:?} is read", rows.label(kind));
            }
        }
        // A message is taken when a later one is stored.
        if succeeded(rows.send(number).await, faults).is_some() {
            acknowledge(&rows.label("sent"), number);
            if let Some(before) = sent.replace(number)
                && let Some(taken) = succeeded(rows.take(before).await, faults)
            {
                assert_eq!(taken, Some(before), "{}", rows.label("sent"));
                acknowledge(&rows.label("taken"), before);
            }
        }
        // A session that comes and goes.
        let address = rows.passing(number);
        if succeeded(rows.store.put_session(&address, &value(number, 200)).await, faults).is_some()
            && succeeded(rows.store.delete_session(&address).await, faults).is_some()
        {
            acknowledge(&rows.label("gone"), number);
        }
    }
}

/// Folds the write-ahead log into the database, and changes the header of the vault, while other
/// tasks write.
async fn keep_up(bot: &Bot, first: u32, slots: bool, until: Option<Instant>) {
    for number in first.. {
        if is_over(until) {
            return;
        }
        if slots {
            match change_slots(&bot.vault, number).await {
                Ok(()) => acknowledge("slots", number),
                Err(error) => assert!(until.is_some(), "{error:?}"),
            }
        }
        if number.is_multiple_of(4)
            && let Err(error) = bot.sqlite.checkpoint().await
        {
            assert!(until.is_some(), "{error:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Adds a spare slot and removes the earlier ones.
async fn change_slots(vault: &Vault, number: u32) -> wastore::Result<()> {
    // Slots from failed attempts would fill the header. The newest stays until there is another
    // one.
    let before = spares(vault);
    for (_, id) in before.iter().rev().skip(1) {
        vault.remove_slot(*id).await?;
    }
    vault.add_slot(&format!("{SPARE}{number}"), spare_key(number)).await?;
    for (_, id) in spares(vault).into_iter().filter(|(spare, _)| *spare < number) {
        vault.remove_slot(id).await?;
    }
    Ok(())
}

const SPARE: &str = "spare ";

/// The numbers of the spare slots in ascending order, with their ids.
fn spares(vault: &Vault) -> Vec<(u32, u8)> {
    let slots = vault.slots().into_iter();
    let mut spares: Vec<(u32, u8)> =
        slots.filter_map(|slot| Some((slot.label.strip_prefix(SPARE)?.parse::<u32>().ok()?, slot.id))).collect();
    spares.sort_unstable();
    spares
}

fn spare_key(number: u32) -> Key {
    Key::from_bytes(&mut block(number))
}

/// The result of a call, or `None` if it failed. Only a fault of the disk may fail a call, and it
/// never looks like damage.
fn succeeded<T>(result: Result<T, StoreError>, faults: bool) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    assert!(faults, "{error:?}");
    let source = Error::downcast_ref(&error);
    assert!(matches!(source, Some(Error::Sqlite { problem, .. }) if *problem != SqliteProblem::Damaged), "{error:?}");
    None
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// Tells the parent that a call has returned. A line that a kill tears has no full stop.
fn acknowledge(what: &str, number: u32) {
    std::io::stdout().lock().write_all(format!("{what} {number}.\n").as_bytes()).unwrap();
}

// The parent.

/// When to kill a child.
struct Kill {
    /// Only after its first acknowledgement.
    after_first: bool,
    delay: Duration,
}

/// The acknowledgements of the children so far.
#[derive(Default)]
struct Acknowledged {
    /// The highest number of each kind of call of each task.
    highest: HashMap<String, u32>,
    calls: u64,
}

impl Acknowledged {
    /// Starts a child and reads its output until it has ended or is killed.
    fn listen_to(&mut self, mut child: Command, kill: Option<Kill>) {
        let mut running = child.spawn().unwrap();
        let lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        let listening = thread::spawn(move || {
            for heard in lines.map_while(Result::ok).filter_map(|line| acknowledgement(&line)) {
                sender.send(heard).unwrap();
            }
        });
        if let Some(Kill { after_first, delay }) = kill {
            if after_first && let Ok((what, number)) = receiver.recv() {
                self.note(what, number);
            }
            thread::sleep(delay);
            running.kill().unwrap();
        }
        for (what, number) in receiver {
            self.note(what, number);
        }
        listening.join().unwrap();
        let status = running.wait().unwrap();
        assert!(status.success() || status.signal() == Some(9), "the child failed: {status}");
    }

    fn note(&mut self, what: String, number: u32) {
        self.calls += 1;
        let highest = self.highest.entry(what).or_default();
        *highest = number.max(*highest);
    }

    fn number(&self, what: &str) -> Option<u32> {
        self.highest.get(what).copied()
    }
}

/// Parses a line of [`acknowledge`].
fn acknowledgement(line: &str) -> Option<(String, u32)> {
    // The test harness writes the beginning of the first line.
    let mut words = line.strip_suffix('.')?.rsplit(' ');
    let (number, what) = (words.next()?, words.next()?);
    Some((what.to_owned(), number.parse().ok()?))
}

/// Another process of this test binary.
fn child(path: &Path, number: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["write_as_told", "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .env(NUMBER, number.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// Opens the store as a bot does after a crash, and checks everything that was acknowledged.
async fn check(path: &Path, acknowledged: &Acknowledged, integrity: bool) {
    let bot = Bot::open(path, Durability::default()).await.unwrap();
    for task in 0..TASKS {
        let rows = Rows { store: bot.store.clone(), task };
        for kind in Kind::ALL {
            let (number, stored) = (acknowledged.number(&rows.label(kind)), rows.stored(kind).await.unwrap());
            assert!(stored >= number, "{}: {number:?} was acknowledged, {stored:?} is stored", rows.label(kind));
        }
        if let Some(number) = acknowledged.number(&rows.label("sent")) {
            assert_eq!(rows.take(number).await.unwrap(), Some(number), "{} is gone", rows.label("sent"));
            rows.send(number).await.unwrap();
        }
        if let Some(number) = acknowledged.number(&rows.label("taken")) {
            assert_eq!(rows.take(number).await.unwrap(), None, "{} is back", rows.label("taken"));
        }
        if let Some(number) = acknowledged.number(&rows.label("gone")) {
            assert!(!rows.store.has_session(&rows.passing(number)).await.unwrap(), "{} is back", rows.label("gone"));
        }
    }
    let spares = spares(&bot.vault);
    if let Some(number) = acknowledged.number("slots") {
        // The slot that was added or a later one, and none of the removed ones.
        assert!(!spares.is_empty(), "slot {number} is gone");
        assert!(spares.iter().all(|(spare, _)| *spare >= number), "slot {number} was the oldest, not {spares:?}");
    }
    for (number, _) in spares {
        VaultOptions::new()
            .mode(OpenMode::ReadOnly)
            .open(Arc::new(bot.sqlite.clone()), spare_key(number))
            .await
            .unwrap();
    }
    if integrity {
        assert_eq!(bot.sqlite.integrity_check().await.unwrap(), [] as [String; 0]);
    }
}

/// Checks every row, also rows that no call reads.
async fn verify(path: &Path) {
    let bot = Bot::open(path, Durability::default()).await.unwrap();
    let report = Verify::new().run(&bot.sqlite, &bot.vault).await.unwrap();
    assert!(report.is_sound(), "{report}");
    assert!(report.checked(Record::Session) >= 2 * TASKS as u64, "{report}");
}

// Parts that both share.

/// A store with every layer on top of it.
struct Bot {
    sqlite: SqliteStore,
    vault: Vault,
    store: Arc<dyn Backend>,
}

impl Bot {
    async fn open(path: &Path, durability: Durability) -> wastore::Result<Self> {
        let config = SqliteOptions::new().durability(durability).busy_timeout(Duration::from_secs(30));
        let sqlite = config.open(path).await?;
        let lowest = Arc::new(sqlite.clone());
        let vault = Vault::open_or_create(lowest.clone(), Key::from_bytes(&mut [0x5a; 32])).await?;
        let chosen = [Record::Session, Record::Identity, Record::SenderKey];
        let cache = chosen.into_iter().fold(CacheLayer::new(16 << 20), CacheLayer::with);
        let metrics = Metrics::new();
        metrics.track_cache("cache", &cache);
        let stack = Stack::new(lowest)
            .layer(metrics.layer("sqlite"))
            .layer(vault.layer())
            .layer(metrics.layer("vault"))
            .layer(cache)
            .layer(metrics.layer("client"));
        Ok(Self { sqlite, vault, store: stack.into_backend() })
    }
}

/// The content of a call: one row, or several with the same number.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Sessions,
    Identity,
    SenderKey,
    SyncKey,
    Version,
    Macs,
    Secrets,
    Pending,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Sessions,
        Self::Identity,
        Self::SenderKey,
        Self::SyncKey,
        Self::Version,
        Self::Macs,
        Self::Secrets,
        Self::Pending,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

const LEFT: u32 = 1;
const RIGHT: u32 = 2;
const COLLECTION: &str = "regular";
const SECRETS: [&str; 2] = ["3EB0AA01", "3EB0AA02"];
const PENDING: &str = "3EB0BB01";
const MACS: [[u8; 32]; 3] = [[1; 32], [2; 32], [3; 32]];

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
                store.put_sessions_batch(&[row(LEFT), row(RIGHT)]).await
            }
            Kind::Identity => store.put_identity(&self.address(LEFT), block(number)).await,
            Kind::SenderKey => store.put_sender_key(&self.group_sender(), &value(number, 300)).await,
            Kind::SyncKey => {
                let (key_data, fingerprint) = (value(number, 32), value(number, 12));
                let key = AppStateSyncKey { key_data, fingerprint, timestamp: i64::from(number) };
                store.set_sync_key(&self.key_id(), key).await
            }
            Kind::Version => {
                let state = HashState { version: u64::from(number), hash: block(number), ..HashState::default() };
                store.set_version(&self.collection(), state).await
            }
            Kind::Macs => {
                let mac =
                    |index: [u8; 32]| AppStateMutationMAC { index_mac: index.to_vec(), value_mac: value(number, 32) };
                store.put_mutation_macs(&self.collection(), u64::from(number), &MACS.map(mac)).await
            }
            Kind::Secrets => {
                let entry = |id: &str| MsgSecretEntry {
                    chat: Arc::from(self.chat()),
                    sender: Arc::from(self.chat()),
                    msg_id: Arc::from(id),
                    secret: block(number),
                    expires_at: 0,
                    message_ts: i64::from(number),
                };
                store.put_msg_secrets(SECRETS.map(entry).to_vec()).await.map(drop)
            }
            Kind::Pending => {
                store.store_pending_inbound(&self.chat(), &self.chat(), PENDING, &value(number, 400)).await
            }
        }
    }

    /// The number in the rows of a kind. All must hold the same one: a call runs completely or not
    /// at all.
    async fn stored(&self, kind: Kind) -> Result<Option<u32>, StoreError> {
        let numbers = self.numbers(kind).await?;
        let is_whole = numbers.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(is_whole, "{} is torn: {numbers:?}", self.label(kind));
        Ok(numbers[0])
    }

    /// The numbers in each row, and in each part of a row.
    async fn numbers(&self, kind: Kind) -> Result<Vec<Option<u32>>, StoreError> {
        let store = &self.store;
        let mut numbers = vec![];
        match kind {
            Kind::Sessions => {
                for device in [LEFT, RIGHT] {
                    let session = store.get_session(&self.address(device)).await?;
                    numbers.push(session.map(|session| number_in(&session)));
                }
            }
            Kind::Identity => {
                let key = store.load_identity(&self.address(LEFT)).await?;
                numbers.push(key.map(|key| number_in(&key)));
            }
            Kind::SenderKey => {
                let record = store.get_sender_key(&self.group_sender()).await?;
                numbers.push(record.map(|record| number_in(&record)));
            }
            Kind::SyncKey => match store.get_sync_key(&self.key_id()).await? {
                Some(key) => {
                    numbers.extend([number_in(&key.key_data), number_in(&key.fingerprint)].map(Some));
                    numbers.push(u32::try_from(key.timestamp).ok());
                }
                None => numbers.push(None),
            },
            // A missing one has version 0.
            Kind::Version => match store.get_version(&self.collection()).await? {
                HashState { version: 0, .. } => numbers.push(None),
                state => numbers.extend([u32::try_from(state.version).ok(), Some(number_in(&state.hash))]),
            },
            Kind::Macs => {
                let found = store.get_mutation_macs(&self.collection(), &MACS).await?;
                numbers.extend(MACS.iter().map(|index| found.get(index).map(|mac| number_in(mac))));
            }
            Kind::Secrets => {
                for id in SECRETS {
                    match store.get_msg_secret_with_ts(&self.chat(), &self.chat(), id).await? {
                        Some((secret, time)) => {
                            numbers.extend([Some(number_in(&secret)), u32::try_from(time).ok()]);
                        }
                        None => numbers.push(None),
                    }
                }
            }
            Kind::Pending => {
                let message = store.get_pending_inbound(&self.chat(), &self.chat(), PENDING).await?;
                numbers.push(message.map(|message| number_in(&message)));
            }
        }
        Ok(numbers)
    }

    async fn send(&self, number: u32) -> Result<(), StoreError> {
        self.store.store_sent_message(&self.chat(), &message_id(number), &value(number, 500)).await
    }

    /// Returns the number in the message.
    async fn take(&self, number: u32) -> Result<Option<u32>, StoreError> {
        let message = self.store.take_sent_message(&self.chat(), &message_id(number)).await?;
        Ok(message.map(|message| number_in(&message)))
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

    /// The address of a session that does not stay.
    fn passing(&self, number: u32) -> String {
        format!("1666{:04}{number:09}:1@s.whatsapp.net", self.task)
    }

    fn group_sender(&self) -> String {
        format!("12036300000000{:04}@g.us:{}", self.task, self.address(LEFT))
    }

    fn collection(&self) -> String {
        format!("{COLLECTION}_{}", self.task)
    }

    fn key_id(&self) -> [u8; 6] {
        [0, 0, 0, 0, 0, self.task as u8]
    }
}

fn message_id(number: u32) -> String {
    format!("3EB0{number:012X}")
}

/// A number and bytes derived from it, so that a mix of two values is noticed.
fn value(number: u32, length: usize) -> Vec<u8> {
    let rest = (4..length).map(|position| (position as u32).wrapping_mul(31).wrapping_add(number) as u8);
    number.to_le_bytes().into_iter().chain(rest).collect()
}

fn block<const LENGTH: usize>(number: u32) -> [u8; LENGTH] {
    value(number, LENGTH).try_into().unwrap()
}

fn number_in(found: &[u8]) -> u32 {
    let number = u32::from_le_bytes(found[..4].try_into().unwrap());
    assert_eq!(found, value(number, found.len()), "a value is not what was written");
    number
}

fn single_threaded() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn is_long() -> bool {
    std::env::var_os("WASTORE_LONG").is_some()
}
