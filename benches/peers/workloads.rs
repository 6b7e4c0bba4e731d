//! The measured workloads, for any backend. `benches/sqlcipher` runs the same with another SQLite in another process.

use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::traits::{Backend, LidPnMappingEntry, MsgSecretEntry, TcTokenEntry};

pub(crate) type Store = Arc<dyn Backend>;

/// Opens or creates the stores of this many accounts in one folder.
pub(crate) type Open = fn(PathBuf, i32) -> Opened;
pub(crate) type Opened = Pin<Box<dyn Future<Output = Result<Vec<Store>, String>> + Send>>;

/// The total time of the operations, and their number.
pub(crate) type Measured = (Duration, u64);

/// The content of a store during a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scene {
    /// Sessions, by number and size in bytes.
    Sessions { rows: usize, bytes: usize },
    /// The records of a client that talks to this many contacts.
    Client(usize),
    /// This many LID mappings, and a device.
    Mappings(usize),
    /// A collection of the app state, of which this many mutation MACs are synchronised at a time.
    AppState(usize),
    /// This many message secrets that do not expire soon.
    Secrets(usize),
    /// This many accounts in one place, with a few sessions each.
    Accounts(i32),
}

/// An operation to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Measure {
    Get { tasks: usize },
    Put { tasks: usize },
    Batch(usize),
    HasUser { present: bool },
    SentPaced,
    SentBurst,
    Received,
    ReceivedGroup,
    Start,
    Sync,
    Sweep,
    RoundRobin,
}

/// All measurements, in their order.
pub(crate) fn scenes() -> Vec<(Scene, Vec<Measure>)> {
    let mut scenes = vec![];
    for bytes in [100, 1500, 8000] {
        let mut measures = vec![];
        for tasks in [1, 4, 16, 64] {
            measures.extend([Measure::Get { tasks }, Measure::Put { tasks }]);
        }
        if bytes == 1500 {
            measures.extend([Measure::Batch(64), Measure::Batch(1000)]);
        }
        scenes.push((Scene::Sessions { rows: 2000, bytes }, measures));
    }
    let client = [Measure::SentPaced, Measure::SentBurst, Measure::Received, Measure::ReceivedGroup];
    scenes.push((Scene::Client(300), client.to_vec()));
    scenes.push((Scene::Client(2000), vec![Measure::SentPaced]));
    for rows in [1000, 50_000, 500_000] {
        let measures =
            [Measure::Get { tasks: 1 }, Measure::HasUser { present: false }, Measure::HasUser { present: true }];
        scenes.push((Scene::Sessions { rows, bytes: 200 }, measures.to_vec()));
    }
    scenes.extend([1000, 10_000, 50_000].map(|rows| (Scene::Mappings(rows), vec![Measure::Start])));
    scenes.extend([500, 5000, 20_000].map(|rows| (Scene::AppState(rows), vec![Measure::Sync])));
    scenes.extend([5000, 50_000, 500_000].map(|rows| (Scene::Secrets(rows), vec![Measure::Sweep])));
    scenes.extend([1, 10, 100, 1000].map(|accounts| (Scene::Accounts(accounts), vec![Measure::RoundRobin])));
    scenes
}

impl Scene {
    pub(crate) fn name(self) -> String {
        match self {
            Scene::Sessions { rows, bytes } => format!("{} sessions of {}", thousands(rows), size(bytes)),
            Scene::Client(contacts) => format!("a client with {} contacts", thousands(contacts)),
            Scene::Mappings(rows) => format!("{} LID mappings", thousands(rows)),
            Scene::AppState(rows) => format!("{} mutation MACs", thousands(rows)),
            Scene::Secrets(rows) => format!("{} message secrets", thousands(rows)),
            Scene::Accounts(accounts) => format!("{accounts} accounts in one place"),
        }
    }

    /// The number of rows that determine the size on the disk, and the bytes of the client's content in them.
    pub(crate) fn rows(self) -> Option<(usize, usize)> {
        match self {
            Scene::Sessions { rows, bytes } => Some((rows, bytes)),
            Scene::Mappings(rows) => Some((rows, 45)),
            Scene::Secrets(rows) => Some((rows, 32)),
            _ => None,
        }
    }
}

impl Measure {
    pub(crate) fn name(self) -> String {
        let with =
            |what: &str, tasks: usize| if tasks == 1 { what.to_owned() } else { format!("{what}, {tasks} tasks") };
        match self {
            Measure::Get { tasks } => with("get", tasks),
            Measure::Put { tasks } => with("put", tasks),
            Measure::Batch(rows) => format!("batch of {rows}, per row"),
            Measure::HasUser { present } => {
                format!("has_signal_state_for_user, {}", if present { "hit" } else { "miss" })
            }
            Measure::SentPaced => "sent message".to_owned(),
            Measure::SentBurst => "sent message, in a burst".to_owned(),
            Measure::Received => "received message".to_owned(),
            Measure::ReceivedGroup => "received message of a group".to_owned(),
            Measure::Start => "what a start reads".to_owned(),
            Measure::Sync => "app-state sync, per MAC".to_owned(),
            Measure::Sweep => "sweep of 1000 expired ones".to_owned(),
            Measure::RoundRobin => "get and put, each account in turn".to_owned(),
        }
    }
}

fn thousands(number: usize) -> String {
    if number >= 1000 { format!("{} 000", number / 1000) } else { number.to_string() }
}

fn size(bytes: usize) -> String {
    if bytes >= 1000 { format!("{} KB", bytes as f64 / 1000.0) } else { format!("{bytes} B") }
}

/// A store that is filled with a scene.
pub(crate) struct Stage {
    scene: Scene,
    store: Store,
    accounts: Vec<Store>,
    /// Rises with every written value, so that each value differs from the one before. SQLite leaves an unchanged
    /// page alone.
    writes: AtomicU64,
}

/// The chats of message secrets.
const CHATS: usize = 300;

impl Stage {
    /// Fills a new store.
    pub(crate) async fn set(scene: Scene, folder: &Path, open: Open) -> Result<Self, String> {
        let accounts = open(folder.to_owned(), if let Scene::Accounts(number) = scene { number } else { 1 }).await?;
        let text = |error: wacore::store::error::StoreError| error.to_string();
        for account in &accounts {
            account.create().await.map_err(text)?;
        }
        let store = accounts.first().ok_or("there is no account")?.clone();
        let mut rng = StdRng::seed_from_u64(1);
        match scene {
            Scene::Sessions { rows, bytes } => {
                for start in (0..rows).step_by(2000) {
                    let chunk = start..rows.min(start + 2000);
                    let batch: Vec<_> =
                        chunk.map(|number| (address(number), Bytes::from(value(&mut rng, bytes)))).collect();
                    store.put_sessions_batch(&batch).await.map_err(text)?;
                }
            }
            Scene::Client(contacts) => {
                // A client never writes all of its sessions at once.
                for start in (0..contacts).step_by(50) {
                    let chunk = start..contacts.min(start + 50);
                    let batch: Vec<_> =
                        chunk.map(|number| (address(number), Bytes::from(value(&mut rng, 1500)))).collect();
                    store.put_sessions_batch(&batch).await.map_err(text)?;
                    store.put_sender_keys_batch(&batch).await.map_err(text)?;
                }
                for contact in 0..contacts {
                    let token = TcTokenEntry { token: value(&mut rng, 40), token_timestamp: 1, sender_timestamp: None };
                    store.put_tc_token(&lid(contact), &token).await.map_err(text)?;
                }
            }
            Scene::Mappings(rows) => {
                for start in (0..rows).step_by(1000) {
                    let mapping = |number| LidPnMappingEntry {
                        lid: lid(number),
                        phone_number: format!("1555{number:07}"),
                        created_at: 1_700_000_000,
                        updated_at: 1_700_000_000,
                        learning_source: "usync".to_owned(),
                    };
                    let batch: Vec<_> = (start..rows.min(start + 1000)).map(mapping).collect();
                    store.put_lid_mappings(&batch).await.map_err(text)?;
                }
            }
            Scene::AppState(rows) => {
                for patch in macs(rows, 0).chunks(1000) {
                    store.put_mutation_macs("regular", 1, patch).await.map_err(text)?;
                }
            }
            Scene::Secrets(rows) => {
                for start in (0..rows).step_by(2000) {
                    let batch = secrets("kept", start..rows.min(start + 2000), i64::MAX / 2);
                    store.put_msg_secrets(batch).await.map_err(text)?;
                }
            }
            Scene::Accounts(_) => {
                for account in &accounts {
                    account.put_session(&address(0), &value(&mut rng, 1500)).await.map_err(text)?;
                }
            }
        }
        Ok(Self { scene, store, accounts, writes: AtomicU64::new(1) })
    }

    /// Measures one round.
    pub(crate) fn measure(&self, runtime: &Runtime, measure: Measure, round: u64) -> Measured {
        let (store, scene) = (self.store.clone(), self.scene);
        let mut rng = StdRng::seed_from_u64(round);
        match (measure, scene) {
            (Measure::Get { tasks }, Scene::Sessions { rows, .. }) => {
                let mut numbers = some_of(rows, 2000, &mut rng);
                // The first pass warms the cache of every store, so that the measurement excludes the disk.
                let run = |numbers: &[usize]| {
                    concurrently(runtime, &store, tasks, numbers, |store, numbers| async move {
                        for number in numbers {
                            assert!(store.get_session(&address(number)).await.unwrap().is_some());
                        }
                    })
                };
                run(&numbers);
                numbers.shuffle(&mut rng);
                run(&numbers)
            }
            (Measure::Put { tasks }, Scene::Sessions { rows, bytes }) => {
                let numbers = some_of(rows, 1024, &mut rng);
                let value = value(&mut rng, bytes);
                let first = self.fresh(numbers.len());
                concurrently(runtime, &store, tasks, &numbers, move |store, numbers| {
                    let mut value = value.clone();
                    async move {
                        for number in numbers {
                            value[..8].copy_from_slice(&(first + number as u64).to_le_bytes());
                            store.put_session(&address(number), &value).await.unwrap();
                        }
                    }
                })
            }
            (Measure::Batch(size), Scene::Sessions { rows, bytes }) => {
                // Rows that were first stored together, as the devices of a group are, stay together.
                let mut groups: Vec<usize> = (0..rows / size).collect();
                groups.shuffle(&mut rng);
                groups.truncate(16);
                let mut rng = StdRng::seed_from_u64(self.fresh(1));
                let batches: Vec<Vec<(Arc<str>, Bytes)>> = groups
                    .into_iter()
                    .map(|group| group * size..(group + 1) * size)
                    .map(|numbers| numbers.map(|number| (address(number), value(&mut rng, bytes).into())).collect())
                    .collect();
                let rows = batches.len() * size;
                timed(runtime, rows as u64, async move {
                    for batch in &batches {
                        store.put_sessions_batch(batch).await.unwrap();
                    }
                })
            }
            (Measure::HasUser { present }, Scene::Sessions { rows, .. }) => {
                let users: Vec<String> = some_of(rows, 1000, &mut rng)
                    .into_iter()
                    .map(|number| format!("{}{number:07}", if present { 1555 } else { 1666 }))
                    .collect();
                // A slow store makes only a few calls.
                let (start, mut calls) = (Instant::now(), 0);
                runtime.block_on(async {
                    for user in &users {
                        assert_eq!(store.has_signal_state_for_user(user).await.unwrap(), present);
                        calls += 1;
                        if start.elapsed() > Duration::from_millis(150) && calls >= 2 {
                            break;
                        }
                    }
                });
                (start.elapsed(), calls)
            }
            (Measure::SentPaced | Measure::SentBurst, Scene::Client(contacts)) => {
                let burst = measure == Measure::SentBurst;
                let (mut session, first) = (value(&mut rng, 1500), self.fresh(MESSAGES as usize));
                timed(runtime, MESSAGES, async move {
                    // In a burst, the client writes the changed sessions from time to time.
                    let mut changed: HashMap<Arc<str>, Bytes> = HashMap::new();
                    for message in first..first + MESSAGES {
                        let contact = message as usize * 7 % contacts;
                        let (chat, id) = (lid(contact), format!("3EB0{message:016X}"));
                        session[..8].copy_from_slice(&message.to_le_bytes());
                        assert!(store.get_tc_token(&chat).await.unwrap().is_some());
                        store.store_sent_message(&chat, &id, &session[..200]).await.unwrap();
                        changed.insert(address(contact), Bytes::copy_from_slice(&session));
                        if !burst || message % 15 == 14 || message + 1 == first + MESSAGES {
                            let rows: Vec<_> = changed.drain().collect();
                            store.put_sessions_batch(&rows).await.unwrap();
                        }
                        store.put_msg_secrets(vec![secret(&chat, &id, i64::MAX / 2)]).await.unwrap();
                    }
                })
            }
            (Measure::Received | Measure::ReceivedGroup, Scene::Client(contacts)) => {
                let (mut session, first) = (value(&mut rng, 1500), self.fresh(MESSAGES as usize));
                timed(runtime, MESSAGES, async move {
                    for message in first..first + MESSAGES {
                        let contact = message as usize * 11 % contacts;
                        session[..8].copy_from_slice(&message.to_le_bytes());
                        let row = [(address(contact), Bytes::copy_from_slice(&session))];
                        if measure == Measure::Received {
                            store.put_sessions_batch(&row).await.unwrap();
                        } else {
                            store.put_sender_keys_batch(&row).await.unwrap();
                        }
                        let id = format!("3EB0{message:016X}");
                        store.put_msg_secrets(vec![secret(&lid(contact), &id, i64::MAX / 2)]).await.unwrap();
                    }
                })
            }
            (Measure::Start, Scene::Mappings(rows)) => timed(runtime, 1, async move {
                assert!(store.exists().await.unwrap());
                store.load().await.unwrap();
                assert_eq!(store.get_all_lid_mappings().await.unwrap().len(), rows);
            }),
            (Measure::Sync, Scene::AppState(rows)) => {
                let first = self.fresh(rows);
                let macs = macs(rows, first);
                timed(runtime, rows as u64, async move {
                    // Patches of a thousand: existing rows are looked up, then replaced.
                    for (version, patch) in (first..).zip(macs.chunks(1000)) {
                        let indexes: Vec<[u8; 32]> =
                            patch.iter().map(|mac| mac.index_mac[..].try_into().unwrap()).collect();
                        assert_eq!(store.get_mutation_macs("regular", &indexes).await.unwrap().len(), patch.len());
                        store.put_mutation_macs("regular", version, patch).await.unwrap();
                        store.set_version("regular", HashState { version, ..HashState::default() }).await.unwrap();
                    }
                })
            }
            (Measure::Sweep, Scene::Secrets(_)) => {
                runtime.block_on(async {
                    store.put_msg_secrets(secrets(&format!("swept {round}"), 0..1000, 1000)).await.unwrap();
                });
                timed(runtime, 1, async move {
                    assert_eq!(store.delete_expired_msg_secrets(2000).await.unwrap(), 1000);
                })
            }
            (Measure::RoundRobin, Scene::Accounts(_)) => {
                let accounts = self.accounts.clone();
                let (calls, first) = (1000, self.fresh(1000));
                let mut session = value(&mut rng, 1500);
                timed(runtime, 2 * calls as u64, async move {
                    for call in 0..calls {
                        session[..8].copy_from_slice(&(first + call as u64).to_le_bytes());
                        let account = &accounts[call % accounts.len()];
                        assert!(account.get_session(&address(0)).await.unwrap().is_some());
                        account.put_session(&address(0), &session).await.unwrap();
                    }
                })
            }
            (measure, scene) => unreachable!("{measure:?} on {scene:?}"),
        }
    }
}

impl Stage {
    /// The first of `count` numbers that were not used yet.
    fn fresh(&self, count: usize) -> u64 {
        // Addresses are added to these numbers.
        self.writes.fetch_add(count as u64 + 1_000_000, Ordering::Relaxed)
    }
}

/// The number of messages in a round.
const MESSAGES: u64 = 200;

/// The same names each time, with values derived from `number`.
fn macs(rows: usize, number: u64) -> Vec<AppStateMutationMAC> {
    let mut names = StdRng::seed_from_u64(7);
    let mut values = StdRng::seed_from_u64(number);
    let mac = |_| AppStateMutationMAC { index_mac: value(&mut names, 32), value_mac: value(&mut values, 32) };
    (0..rows).map(mac).collect()
}

fn timed(runtime: &Runtime, operations: u64, work: impl Future<Output = ()> + Send + 'static) -> Measured {
    let work = async move {
        let start = Instant::now();
        work.await;
        start.elapsed()
    };
    (runtime.block_on(async { tokio::spawn(work).await.unwrap() }), operations)
}

/// Runs the tasks, each with its share of the numbers.
fn concurrently<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    store: &Store,
    tasks: usize,
    numbers: &[usize],
    task: impl Fn(Store, Vec<usize>) -> F,
) -> Measured {
    let elapsed = runtime.block_on(async {
        let start = Instant::now();
        let shares = numbers.chunks(numbers.len().div_ceil(tasks));
        let tasks: Vec<_> = shares.map(|share| tokio::spawn(task(store.clone(), share.to_vec()))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        start.elapsed()
    });
    (elapsed, numbers.len() as u64)
}

/// Different rows, in random order.
fn some_of(rows: usize, count: usize, rng: &mut StdRng) -> Vec<usize> {
    rand::seq::index::sample(rng, rows, count.min(rows)).into_vec()
}

pub(crate) fn address(number: usize) -> Arc<str> {
    format!("1555{number:07}:7@s.whatsapp.net").into()
}

fn lid(number: usize) -> String {
    format!("{}@lid", 100_000_000_000_000 + number)
}

fn value(rng: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    rng.fill_bytes(&mut value);
    value
}

fn secret(chat: &str, id: &str, expires_at: i64) -> MsgSecretEntry {
    MsgSecretEntry {
        chat: chat.into(),
        sender: chat.into(),
        msg_id: id.into(),
        secret: [7; 32],
        expires_at,
        message_ts: 1,
    }
}

fn secrets(kind: &str, numbers: std::ops::Range<usize>, expires_at: i64) -> Vec<MsgSecretEntry> {
    numbers.map(|number| secret(&lid(number % CHATS), &format!("{kind} {number}"), expires_at)).collect()
}

/// Runs in a process that measures one subject. Each line is a request, and the process answers it with one line.
///
/// ```text
/// set <scene> <folder>      →  ok, or the error
/// measure <measure> <round> →  nanoseconds and operations
/// reopen <folder>           →  nanoseconds
/// memory                    →  resident bytes
/// strike                    →  ok; the store is closed
/// ```
pub(crate) fn obey(open: Open) {
    let runtime = runtime();
    let mut stage: Option<(usize, Stage)> = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let answer = match words[..] {
            ["set", scene, folder] => {
                let scene: usize = scene.parse().unwrap();
                match runtime.block_on(Stage::set(scenes()[scene].0, Path::new(folder), open)) {
                    Ok(set) => {
                        stage = Some((scene, set));
                        "ok".to_owned()
                    }
                    Err(error) => format!("failed: {}", error.replace('\n', " ")),
                }
            }
            ["measure", measure, round] => {
                let (scene, stage) = stage.as_ref().unwrap();
                let measure = scenes()[*scene].1[measure.parse::<usize>().unwrap()];
                let (elapsed, operations) = stage.measure(&runtime, measure, round.parse().unwrap());
                format!("{} {operations}", elapsed.as_nanos())
            }
            ["reopen", folder] => reopen(&runtime, open, Path::new(folder)).as_nanos().to_string(),
            ["memory"] => resident_bytes().unwrap_or_default().to_string(),
            ["strike"] => {
                stage = None;
                "ok".to_owned()
            }
            _ => "failed: what?".to_owned(),
        };
        println!("{answer}");
        std::io::stdout().flush().unwrap();
    }
}

/// The time to open an existing store, up to its first answer.
pub(crate) fn reopen(runtime: &Runtime, open: Open, folder: &Path) -> Duration {
    let folder = folder.to_owned();
    runtime.block_on(async move {
        let start = Instant::now();
        let stores = open(folder, 1).await.unwrap();
        stores[0].exists().await.unwrap();
        start.elapsed()
    })
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Only on Linux.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
