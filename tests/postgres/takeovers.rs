//! Two processes that take one account from each other under load.
//!
//! Every process writes its number and a counter to each key, and says so after each acknowledgement. The checker needs
//! no common clock: a successor that reads a key before it writes must find everything that its predecessors ever got
//! acknowledged there, also later.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rand::RngExt;
use rustix::process::Signal;
use tokio::runtime::Builder;
use wacore::store::error::StoreError;
use wacore::store::traits::SignalStore;
use wastore::{Error, PostgresStore};

use super::common::{
    Direct, News, Other, PATIENCE, account, is_long, is_lost, is_unknown, millis, options, say, seconds,
};
use super::server::{available, shared};

const URL: &str = "WASTORE_TAKEOVER_URL";
const ACCOUNT: &str = "WASTORE_TAKEOVER_ACCOUNT";
const NUMBER: &str = "WASTORE_TAKEOVER_NUMBER";
const NAME: &str = "WASTORE_TAKEOVER_NAME";
const CHILD: &str = "takeovers::child_that_holds_the_account";

const KEYS: u32 = 6;

/// The number of a process, and the counter of its write.
type Version = (u32, u32);

fn address(key: u32) -> String {
    format!("1555000{key:04}:1@s.whatsapp.net")
}

fn bytes_of((process, counter): Version) -> Vec<u8> {
    let rest = (0..400u32).map(|position| (position ^ process ^ counter) as u8);
    [process.to_le_bytes(), counter.to_le_bytes()].into_iter().flatten().chain(rest).collect()
}

fn version_in(bytes: &[u8]) -> Version {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let version = (number(0), number(4));
    assert_eq!(bytes, bytes_of(version), "a value is not what was written");
    version
}

async fn read(store: &PostgresStore, key: u32) -> Result<Version, StoreError> {
    Ok(store.get_session(&address(key)).await?.map_or((0, 0), |session| version_in(&session)))
}

// The processes.

#[test]
fn child_that_holds_the_account() {
    let Ok(url) = std::env::var(URL) else { return };
    let variable = |name: &str| std::env::var(name).unwrap();
    let number: u32 = variable(NUMBER).parse().unwrap();
    let runtime = if number.is_multiple_of(2) {
        Builder::new_current_thread().enable_all().build().unwrap()
    } else {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    };
    runtime.block_on(async {
        let account: i32 = variable(ACCOUNT).parse().unwrap();
        let store = options(&url).lease_name(&variable(NAME)).open(account).await.unwrap();
        say("holds");
        let tasks: Vec<_> = (0..KEYS).map(|key| tokio::spawn(work(store.clone(), number, key))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        // Every task has ended because the lease is lost, so this is known at once.
        tokio::time::timeout(PATIENCE, store.lost()).await.unwrap();
        assert!(is_lost(&read(&store, 0).await.unwrap_err()));
        assert!(is_lost(&store.put_session("other", b"x").await.unwrap_err()));
        assert!(is_lost(&store.delete_session(&address(0)).await.unwrap_err()));
        assert_eq!(store.stats().leases_lost, 1);
        say("lost");
    });
}

/// Writes a key until the account is lost.
async fn work(store: PostgresStore, number: u32, key: u32) {
    let Ok(first) = read(&store, key).await.inspect_err(|error| assert!(is_lost(error), "{error:?}")) else { return };
    say(&format!("first {key} {} {}", first.0, first.1));
    let pause = rand::rng().random_range(0..4);
    tokio::time::sleep(millis(pause)).await;
    // A successor may have written meanwhile, but no predecessor.
    match read(&store, key).await {
        Ok(second) => assert!(second == first || second.0 > number, "{second:?} came after {first:?}"),
        Err(error) => return assert!(is_lost(&error), "{error:?}"),
    }
    for counter in 1.. {
        match store.put_session(&address(key), &bytes_of((number, counter))).await {
            Ok(()) => say(&format!("ok {key} {counter}")),
            Err(error) if is_lost(&error) => return,
            // A process that was stopped for longer than the deadline.
            Err(error) => assert!(is_unknown(&error), "{error:?}"),
        }
        match read(&store, key).await {
            Ok(found) => assert!(found == (number, counter) || found.0 > number, "{found:?} came after {counter}"),
            Err(error) if is_lost(&error) => return,
            Err(error) => panic!("{error:?}"),
        }
    }
}

// The checker.

#[derive(Default)]
struct Register {
    /// The highest acknowledged counter of each process, by key.
    acknowledged: HashMap<u32, BTreeMap<u32, u32>>,
    /// What each process read first: key, process, version.
    firsts: Vec<(u32, u32, Version)>,
    calls: u64,
    lost: Vec<u32>,
    ended: BTreeMap<u32, bool>,
}

impl Register {
    fn note(&mut self, process: u32, news: &News) {
        let said = match news {
            News::Ended(well) => {
                self.ended.insert(process, *well);
                return;
            }
            News::Said(said) => said,
        };
        let words: Vec<&str> = said.split(' ').collect();
        let number = |at: usize| -> u32 { words[at].parse().unwrap() };
        match words[0] {
            "first" => self.firsts.push((number(1), process, (number(2), number(3)))),
            "ok" => {
                self.calls += 1;
                let highest = self.acknowledged.entry(number(1)).or_default().entry(process).or_default();
                *highest = number(2).max(*highest);
            }
            "lost" => self.lost.push(process),
            _ => {}
        }
    }

    /// Notes news until a process says this.
    fn wait(&mut self, news: &Receiver<(u32, News)>, process: u32, awaited: &str) {
        loop {
            let (number, said) = news.recv_timeout(PATIENCE).unwrap();
            self.note(number, &said);
            match said {
                News::Said(said) if number == process && said == awaited => return,
                News::Ended(_) if number == process => panic!("process {number} ended before it said {awaited:?}"),
                _ => {}
            }
        }
    }

    /// The newest acknowledged version of a key by processes before this one.
    fn newest_before(&self, key: u32, process: u32) -> Option<Version> {
        let before = self.acknowledged.get(&key)?.range(..process).next_back()?;
        Some((*before.0, *before.1))
    }

    fn check(&self) {
        for &(key, process, first) in &self.firsts {
            // One that lost the account before its first read may find what its successor wrote.
            assert!(first.0 != process, "process {process} found {first:?} before it wrote");
            let newest = self.newest_before(key, process).unwrap_or_default();
            assert!(first >= newest, "process {process} found {first:?} in key {key}, {newest:?} was acknowledged");
        }
    }

    /// Checks the last state.
    async fn check_end(&self, url: &str, account: i32) {
        let direct = Direct::connect(url).await;
        for key in 0..KEYS {
            let stored = direct.session(account, &address(key)).await.map_or((0, 0), |session| version_in(&session));
            let newest = self.newest_before(key, u32::MAX).unwrap_or_default();
            assert!(stored >= newest, "{stored:?} is stored in key {key}, {newest:?} was acknowledged");
        }
    }
}

fn start(url: &str, account: i32, number: u32, name: &str, news: &std::sync::mpsc::Sender<(u32, News)>) -> Other {
    let settings =
        [(URL, url.to_owned()), (ACCOUNT, account.to_string()), (NUMBER, number.to_string()), (NAME, name.to_owned())];
    Other::start(CHILD, &settings, number, news.clone())
}

#[test]
fn no_takeover_lets_a_write_in_out_of_turn() {
    if !available() {
        return;
    }
    let takeovers = if is_long() { 1000 } else { 40 };
    let (url, account) = (shared().url(), account());
    let (sender, news) = channel();
    let (mut register, mut killed) = (Register::default(), 0);
    let mut rng = rand::rng();
    let mut holder = start(&url, account, 1, "bot", &sender);
    register.wait(&news, 1, "holds");
    for number in 2..takeovers + 2 {
        // Some lose the account before they write, most under load, and some end by a signal first.
        std::thread::sleep(millis(rng.random_range(0..90)));
        let is_killed = rng.random_bool(0.1);
        if is_killed {
            holder.signal(Signal::KILL);
            killed += 1;
        }
        let next = start(&url, account, number, "bot", &sender);
        register.wait(&news, number, "holds");
        if is_killed {
            register.lost.push(number - 1);
        } else {
            // It loses the account by itself, so it must not be killed by its handle.
            while !register.ended.contains_key(&(number - 1)) {
                let (process, said) = news.recv_timeout(PATIENCE).unwrap();
                register.note(process, &said);
            }
            assert!(register.ended[&(number - 1)], "process {} failed", number - 1);
        }
        holder = next;
    }
    holder.signal(Signal::KILL);
    while register.ended.len() <= takeovers as usize {
        let (process, said) = news.recv_timeout(PATIENCE).unwrap();
        register.note(process, &said);
    }
    register.check();
    register.lost.sort_unstable();
    assert_eq!(register.lost, (1..=takeovers).collect::<Vec<_>>(), "each but the last has lost the account");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(register.check_end(&url, account));
    let epoch: u32 =
        shared().psql(&format!("SELECT epoch FROM wastore.leases WHERE account = {account}")).parse().unwrap();
    assert!(epoch > takeovers, "{epoch}");
    assert!(register.calls > u64::from(takeovers), "only {} writes were acknowledged", register.calls);
    println!("{takeovers} takeovers ({killed} from killed processes), {} acknowledged writes", register.calls);
}

/// Stops a process for longer than its lease, and takes its account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_wakes_and_writes_nothing() {
    if !available() {
        return;
    }
    let (url, account) = (shared().url(), account());
    let (sender, news) = channel();
    let mut register = Register::default();
    let holder = start(&url, account, 1, "first", &sender);
    register.wait(&news, 1, "holds");
    while register.calls < 50 {
        let (process, said) = news.recv_timeout(PATIENCE).unwrap();
        register.note(process, &said);
    }
    let second = || options(&url).lease_name("second");
    let refused = second().lease_wait(Duration::ZERO).open(account).await.unwrap_err();
    assert!(matches!(&refused, Error::AccountInUse { name, .. } if name == "first"), "{refused:?}");
    holder.signal(Signal::STOP);
    let begun = Instant::now();
    let store = second().lease_wait(PATIENCE).open(account).await.unwrap();
    assert!(begun.elapsed() > seconds(5), "a lease that was just renewed has not run out");
    for key in 0..KEYS {
        register.firsts.push((key, 2, read(&store, key).await.unwrap()));
        store.put_session(&address(key), &bytes_of((2, 1))).await.unwrap();
    }
    holder.signal(Signal::CONT);
    register.wait(&news, 1, "lost");
    while register.ended.is_empty() {
        let (process, said) = news.recv_timeout(PATIENCE).unwrap();
        register.note(process, &said);
    }
    assert!(register.ended[&1]);
    register.check();
    for key in 0..KEYS {
        assert_eq!(read(&store, key).await.unwrap(), (2, 1), "the process that woke wrote key {key}");
    }
    assert_eq!(store.stats().leases_lost, 0);
}

/// A handle that was lost does not take the account back from its successor.
#[tokio::test]
async fn a_lost_handle_does_not_take_the_account_back() {
    if !available() {
        return;
    }
    let (url, account) = (shared().url(), account());
    let open = || options(&url).lease_name("bot").open(account);
    let first = open().await.unwrap();
    let second = open().await.unwrap();
    assert!(is_lost(&first.put_session("a", b"x").await.unwrap_err()));
    first.lost().await;
    let again = first.account(account).await;
    assert!(matches!(again, Err(Error::LeaseLost { .. })), "{again:?}");
    second.put_session("a", b"y").await.unwrap();
    // Another open takes it, as a process that is started again does.
    let third = open().await.unwrap();
    assert!(is_lost(&second.put_session("a", b"z").await.unwrap_err()));
    assert_eq!(third.get_session("a").await.unwrap().unwrap(), "y");
}
