//! Two processes, and two stores of a process, never write one account.

use std::process::ChildStdin;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use wacore::store::traits::{DeviceStore, SignalStore};

use super::*;
use crate::method::Method;
use crate::testing::canaries;
use crate::{CacheLayer, Key, Record, Stack, Vault, VaultOptions};

/// Settings under which a silent holder is soon followed.
fn short() -> SqliteOptions {
    config().lease_length(SHORT).lease_wait(Duration::from_secs(20))
}

const SHORT: Duration = Duration::from_millis(900);

fn impatient() -> SqliteOptions {
    config().lease_wait(Duration::from_millis(300))
}

/// A store in another process, which does what it is told.
struct Bot {
    child: Child,
    /// `None` once it was told to end.
    stdin: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Bot {
    fn start(path: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = child("lease::do_as_told", "bot", path);
        let mut child = command.envs(settings.iter().copied()).spawn().unwrap();
        let stdin = child.stdin.take();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut bot = Self { child, stdin, said };
        bot.hears("ready");
        bot
    }

    fn hears(&mut self, word: &str) -> String {
        self.said.by_ref().map(Result::unwrap).find(|line| line.contains(word)).expect(word)
    }

    /// Has a command carried out, and returns the answer.
    fn told(&mut self, command: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.hears("answer: ").split_once("answer: ").unwrap().1.to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends(&mut self) {
        self.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        self.kill();
    }
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
fn do_as_told() {
    let Some(path) = errand("bot") else { return };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let mut options = config().lease_name(setting("LEASE_NAME").unwrap_or_default());
        if let Some(account) = setting("ACCOUNT") {
            options = options.account(account.parse().unwrap());
        }
        if setting("SHORT").is_some() {
            options = options.lease_length(SHORT);
        }
        let store = match setting("READ_ONLY") {
            Some(_) => options.open_read_only(&path).await.unwrap(),
            None => options.open(&path).await.unwrap(),
        };
        // A reader holds the file as well.
        store.has_session("a").await.unwrap();
        if setting("LOAD").is_some() {
            return under_load(&store).await;
        }
        println!("ready");
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match words[..] {
                ["put", key, value] => done(store.put_session(key, value.as_bytes()).await),
                ["batch", key, value] => {
                    let row = |end: &str| (format!("{key}{end}").into(), value.to_owned().into());
                    done(store.put_sessions_batch(&[row(""), row("2")]).await)
                }
                ["get", key] => done(store.get_session(key).await.map(drop)),
                ["lost"] => {
                    store.lost().await;
                    "told".to_owned()
                }
                _ => panic!("{line}"),
            };
            println!("answer: {answer}");
        }
    });
}

fn done(result: Result<(), StoreError>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?}", Error::downcast_ref(&error)),
    }
}

const LOST: &str = "Some(LeaseLost { account: 1 })";

fn refused<T>(result: Result<T, Error>, lost: bool) -> String {
    match result.map(drop).unwrap_err() {
        Error::AccountInUse { account: 1, name } if !lost => name,
        Error::LeaseLost { account: 1 } if lost => String::new(),
        error => panic!("{error:?}"),
    }
}

fn is_lost<T>(result: Result<T, StoreError>) {
    refused(result.map_err(|error| Error::downcast_ref(&error).unwrap().duplicate()), true);
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    (folder, path)
}

#[tokio::test]
async fn two_processes_do_not_write_one_account() {
    let (_folder, path) = folder();
    let mut bot = Bot::start(&path, &[("LEASE_NAME", "pod-1")]);
    let start = Instant::now();
    assert_eq!(refused(impatient().lease_name("pod-2").open(&path).await, false), "pod-1");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(bot.told("put a 1"), "done");
    // Another account of the file is free. This one can be read, and not written.
    let second = impatient().account(2).open(&path).await.unwrap();
    second.put_session("a", b"2").await.unwrap();
    let first = second.account(1);
    assert_eq!(first.get_session("a").await.unwrap().unwrap(), &b"1"[..]);
    let error = first.put_session("a", b"2").await.unwrap_err();
    assert!(matches!(Error::downcast_ref(&error), Some(Error::AccountInUse { account: 1, .. })), "{error:?}");
    assert!(!error.is_database_busy_or_locked());
    assert_eq!(refused(first.acquire().await, false), "pod-1");
    assert_eq!(refused(first.delete_account().await, false), "pod-1");
    assert_eq!(bot.told("put a 3"), "done");
    // Once it is closed, the account is free at once.
    bot.ends();
    first.put_session("a", b"4").await.unwrap();
}

#[tokio::test]
async fn the_name_of_a_holder_does_not_look_like_contention() {
    let (_folder, path) = folder();
    let _store = config().lease_name("Busybox").open(&path).await.unwrap();
    let error: StoreError = impatient().open(&path).await.unwrap_err().into();
    assert!(!error.is_database_busy_or_locked(), "{error}");
}

/// A holder that only answers keeps its account, and nothing is written while no one asks.
#[tokio::test]
async fn an_idle_holder_keeps_its_account() {
    let (_folder, path) = folder();
    let mut bot = Bot::start(&path, &[("SHORT", "")]);
    assert_eq!(bot.told("put a 1"), "done");
    let opened = short().lease_wait(4 * SHORT).open(&path).await;
    assert_eq!(refused(opened, false), "");
    let watching = config().open_read_only(&path).await.unwrap();
    let version =
        |c: &rusqlite::Connection| Ok(c.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0))?);
    // The last question is answered, and the log copied.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = watching.database.read(version).await.unwrap();
    tokio::time::sleep(3 * SHORT).await;
    assert_eq!(watching.database.read(version).await.unwrap(), before);
    assert_eq!(bot.told("put a 2"), "done");
}

#[tokio::test]
async fn a_killed_holder_is_followed_at_once() {
    let (_folder, path) = folder();
    for _ in 0..3 {
        let mut bot = Bot::start(&path, &[]);
        assert_eq!(bot.told("put a 1"), "done");
        bot.kill();
        let start = Instant::now();
        let store = config().open(&path).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        store.put_session("a", b"2").await.unwrap();
        // Without being closed in between, also of another account.
        store.account(2).acquire().await.unwrap();
    }
}

/// As long as a third process has the file open, a dead holder cannot be told from a silent one.
#[tokio::test]
async fn a_killed_holder_is_followed_beside_a_third_process() {
    for third in [("READ_ONLY", ""), ("ACCOUNT", "2")] {
        let (_folder, path) = folder();
        let mut bot = Bot::start(&path, &[]);
        let mut third = Bot::start(&path, &[third]);
        assert_eq!(bot.told("put a 1"), "done");
        bot.kill();
        let start = Instant::now();
        let store = short().open(&path).await.unwrap();
        assert!(start.elapsed() >= SHORT && start.elapsed() < 10 * SHORT, "{:?}", start.elapsed());
        store.put_session("a", b"2").await.unwrap();
        assert_eq!(third.told("get a"), "done");
    }
}

/// The time in the row of a holder that was put back is far away, and still does not count.
#[tokio::test]
async fn a_clock_that_was_put_back_delays_no_takeover() {
    let (_folder, path) = folder();
    drop(config().open(&path).await.unwrap());
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute("UPDATE leases SET holder = x'00', expires_at = 1 << 62", ()).unwrap();
    let start = Instant::now();
    let store = short().open(&path).await.unwrap();
    assert!(start.elapsed() >= SHORT && start.elapsed() < 10 * SHORT, "{:?}", start.elapsed());
    store.put_session("a", b"2").await.unwrap();
}

/// The old holder sleeps in the middle of nothing, and wakes when another one has the account.
async fn wake_after_a_takeover(unfenced: bool, by_name: bool) -> (Vec<String>, Vec<u8>) {
    let (_folder, path) = folder();
    let mut settings = vec![("SHORT", "")];
    settings.extend(by_name.then_some(("LEASE_NAME", "bot")));
    settings.extend(unfenced.then_some(("WASTORE_UNFENCED", "")));
    let mut bot = Bot::start(&path, &settings);
    assert_eq!(bot.told("put a 1"), "done");
    bot.signal(Signal::STOP);
    let options = if by_name { impatient().lease_name("bot") } else { short() };
    let store = options.open(&path).await.unwrap();
    assert_eq!(store.get_session("a").await.unwrap().unwrap(), &b"1"[..]);
    store.put_session("a", b"2").await.unwrap();
    bot.signal(Signal::CONT);
    let mut answers = vec![bot.told("put a 3"), bot.told("batch a 4"), bot.told("get a"), bot.told("put a 5")];
    if !unfenced {
        answers.push(bot.told("lost"));
    }
    (answers, store.get_session("a").await.unwrap().unwrap().to_vec())
}

#[tokio::test]
async fn a_holder_that_wakes_late_writes_nothing() {
    for by_name in [true, false] {
        let (answers, left) = wake_after_a_takeover(false, by_name).await;
        assert_eq!(answers, [LOST, LOST, LOST, LOST, "told"]);
        assert_eq!(left, b"2");
    }
}

/// The test above would notice a missing check.
#[tokio::test]
async fn without_the_check_a_late_holder_writes() {
    let (answers, left) = wake_after_a_takeover(true, true).await;
    assert_eq!(answers, ["done"; 4]);
    assert_eq!(left, b"5");
}

const TASKS: usize = 6;

async fn under_load(store: &SqliteStore) {
    let tasks = (0..TASKS).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 1u32.. {
                let value = number.to_le_bytes();
                let rows = [(format!("{task}").into(), value.to_vec().into())];
                // Alone, in a transaction, and in groups.
                let put = match number % 2 {
                    0 => store.put_session(&format!("{task}"), &value).await,
                    _ => store.put_sessions_batch(&rows).await,
                };
                if let Err(error) = put {
                    is_lost(Err::<(), _>(error));
                    return number - 1;
                }
            }
            0
        })
    });
    let tasks: Vec<_> = tasks.collect();
    println!("ready");
    let mut said = String::from("acknowledged");
    for task in tasks {
        said += &format!(" {}", task.await.unwrap());
    }
    store.lost().await;
    println!("{said}");
}

/// From the successor's first read on, no write of its predecessor counts, and none that was
/// acknowledged is missing.
#[tokio::test]
async fn a_takeover_under_load_is_one_moment() {
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 200 } else { 12 };
    let mut written = 0;
    for round in 0..rounds {
        let (_folder, path) = folder();
        let mut bot = Bot::start(&path, &[("LEASE_NAME", "bot"), ("LOAD", "")]);
        tokio::time::sleep(Duration::from_millis(7 * round % 60)).await;
        let store = config().lease_name("bot").open(&path).await.unwrap();
        let read = async || {
            let mut numbers = vec![];
            for task in 0..TASKS {
                let value = store.get_session(&format!("{task}")).await.unwrap();
                numbers.push(value.map_or(0, |value| u32::from_le_bytes(value[..].try_into().unwrap())));
            }
            numbers
        };
        let first = read().await;
        let said = bot.hears("acknowledged");
        let acknowledged = said.split(' ').skip(1).map(|number| number.parse::<u32>().unwrap());
        for (stored, acknowledged) in first.iter().zip(acknowledged) {
            assert!(*stored == acknowledged || *stored == acknowledged + 1, "{stored} after {acknowledged}");
        }
        assert_eq!(read().await, first);
        written += first.iter().sum::<u32>();
    }
    assert!(written > 100, "{written}");
}

/// Two stores of one process are two holders.
#[tokio::test]
async fn two_stores_of_a_process_exclude_each_other() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"1").await.unwrap();
    refused(impatient().open(&scratch.path).await, false);
    let watching = config().open_read_only(&scratch.path).await.unwrap();
    assert!(watching.has_session("a").await.unwrap());
    let Scratch { store, path, _folder } = scratch;
    // Given back when it is dropped, and when it is closed.
    drop(store);
    let store = impatient().open(&path).await.unwrap();
    let _ = store.close().await;
    let store = impatient().open(&path).await.unwrap();
    store.put_session("a", b"2").await.unwrap();
    assert!(watching.has_session("a").await.unwrap());
}

/// Every call on a lost account fails, whatever is in a cache above it. Other accounts stay.
#[tokio::test]
async fn a_lost_account_answers_nothing() {
    let (_folder, path) = folder();
    let store = short().lease_name("bot").open(&path).await.unwrap();
    let vault = Vault::create(&store, Key::generate().unwrap()).await.unwrap();
    let cache = CacheLayer::new(1 << 20).with(Record::Session).with(Record::Identity);
    let layered = Stack::new(&store).layer(vault.layer()).layer(cache).into_backend();
    canaries::fill(&*layered).await;
    layered.get_session(canaries::SESSION_ADDRESS).await.unwrap();
    let second = store.account(2);
    second.put_session("a", b"1").await.unwrap();
    let next = config().lease_name("bot").open(&path).await.unwrap();
    // Without any call, in one look.
    tokio::time::timeout(Duration::from_secs(10), store.lost()).await.unwrap();
    is_lost(layered.get_session(canaries::SESSION_ADDRESS).await);
    for method in Method::ALL.iter().filter(|method| **method != Method::ResourceReport) {
        is_lost(canaries::call(&*layered, *method).await);
        is_lost(canaries::call(&store.account(1), *method).await);
        canaries::call(&second, *method).await.unwrap();
    }
    refused(store.acquire().await, true);
    refused(store.delete_account().await, true);
    refused(
        vault.add_slot("late", Key::generate().unwrap()).await.map_err(|error| match error {
            Error::Store(inner) => Error::downcast_ref(&inner).unwrap().duplicate(),
            error => error,
        }),
        true,
    );
    assert!(next.exists().await.unwrap());
    canaries::fill(&next).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), next.lost()).await.is_err());
    let _ = store.close().await;
    next.put_session("a", b"1").await.unwrap();
}

/// A group of calls is one transaction, and only the calls of the lost account fail.
#[tokio::test]
async fn a_lost_lease_fails_only_the_calls_of_its_account() {
    let (_folder, path) = folder();
    let first = config().lease_name("bot").open(&path).await.unwrap();
    let second = first.account(2);
    second.acquire().await.unwrap();
    let next = config().lease_name("bot").open(&path).await.unwrap();
    let calls = (0..60).map(|number| {
        let store = if number % 3 == 0 { first.clone() } else { second.clone() };
        async move { (number, store.put_session(&number.to_string(), b"1").await) }
    });
    for (number, put) in futures::future::join_all(calls).await {
        if number % 3 == 0 { is_lost(put) } else { put.unwrap() }
    }
    for number in 0..60 {
        assert!(!next.has_session(&number.to_string()).await.unwrap());
        assert_eq!(second.has_session(&number.to_string()).await.unwrap(), number % 3 != 0);
    }
}

/// Commands that read, copy, or change the vault's header run beside a bot.
#[tokio::test]
async fn keys_are_added_beside_a_running_bot() {
    let (_folder, path) = folder();
    let key = || Key::from_bytes(&mut [7; 32]);
    drop(Vault::create(&config().open(&path).await.unwrap(), key()).await.unwrap());
    let mut bot = Bot::start(&path, &[]);
    let store = impatient().lease_when_writing().open(&path).await.unwrap();
    let vault = VaultOptions::new().open(&store, key()).await.unwrap();
    vault.add_slot("another", Key::generate().unwrap()).await.unwrap();
    store.backup(path.with_file_name("copy.db")).await.unwrap();
    let reading = SqliteStore::open_read_only(&path).await.unwrap();
    assert!(!reading.has_session("a").await.unwrap());
    reading.acquire().await.unwrap();
    assert!(store.put_session("a", b"1").await.is_err());
    assert_eq!(bot.told("put a 1"), "done");
    assert!(reading.has_session("a").await.unwrap());
    // The row of the lease in the copy is that of a process that does not have the copy open.
    let copy = impatient().open(path.with_file_name("copy.db")).await.unwrap();
    copy.put_session("a", b"2").await.unwrap();
}

/// As long as an account is taken over from the dead, no other process can open the file.
#[tokio::test]
async fn no_process_comes_in_while_a_dead_holder_is_followed() {
    let scratch = Scratch::new().await;
    let (database, path) = (Arc::downgrade(&scratch.store.database), scratch.path.clone());
    let visit = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT count(*) FROM leases').fetchone()[0])";
    let visit = move || Command::new("python3").args(["-c", visit]).arg(&path).output().unwrap();
    let from_outside = visit.clone();
    let alone = move |writer: &rusqlite::Connection| {
        let database = database.upgrade().unwrap();
        let visited = database.exclusively(writer, Duration::ZERO, |c| {
            c.run("/* test */ UPDATE leases SET name = 'x'", ())?;
            Ok(visit())
        });
        Ok(visited?.unwrap())
    };
    let output = scratch.store.database.write(WritePlan::MAINTENANCE, alone).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("locked"), "{output:?}");
    assert_eq!(from_outside().stdout, b"1\n");
    scratch.store.put_session("a", b"1").await.unwrap();
}

#[tokio::test]
async fn a_deleted_account_can_be_used_again() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"1").await.unwrap();
    scratch.store.delete_account().await.unwrap();
    let again = scratch.store.account(1);
    again.put_session("b", b"1").await.unwrap();
    assert!(scratch.store.acquire().await.is_err());
    drop(scratch.store);
    refused(impatient().open(&scratch.path).await, false);
}
