//! Connections that break, servers that restart, hang or are gone, and what the caller sees of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::join_all;
use tokio::task::JoinHandle;
use wacore::store::error::StoreError;
use wacore::store::traits::{ProtocolStore, SignalStore};
use wastore::postgres::PostgresProblem;
use wastore::{Error, PostgresStore};

use super::common::{
    Direct, account, get, is_unknown, millis, number_in, options, own_problem, problem, put, seconds, until, value,
};
use super::pgbouncer::PgBouncer;
use super::proxy::{Direction, Mode, Proxy};
use super::server::{Server, available, shared};

const CHAT: &str = "15550001111@s.whatsapp.net";

/// A store behind a proxy, and a connection past it.
async fn behind_proxy() -> (Proxy, PostgresStore, Direct, i32) {
    let (proxy, account) = (Proxy::start(shared().port()), account());
    let store = options(&proxy.url()).open(account).await.unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(1));
    (proxy, store, Direct::connect(&shared().url()).await, account)
}

/// Bots that write and read until they are told to stop, and fail if a call does.
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    acknowledged: Arc<Vec<AtomicU32>>,
    tasks: Vec<JoinHandle<Result<(), StoreError>>>,
    store: PostgresStore,
}

impl Load {
    pub(crate) fn start(store: &PostgresStore) -> Self {
        let (ends, acknowledged): (Arc<AtomicBool>, Arc<Vec<AtomicU32>>) =
            (Arc::default(), Arc::new((0..4).map(|_| AtomicU32::new(0)).collect()));
        let tasks = (0..acknowledged.len()).map(|task| {
            let (store, ends, acknowledged) = (store.clone(), ends.clone(), acknowledged.clone());
            tokio::spawn(async move {
                for number in 1.. {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                    store.put_session(&Self::address(task), &value(number, 500)).await?;
                    acknowledged[task].store(number, Ordering::Relaxed);
                    assert_eq!(Self::read(&store, task).await?, number, "the only writer reads what it wrote");
                }
                Ok(())
            })
        });
        Self { tasks: tasks.collect(), ends, acknowledged, store: store.clone() }
    }

    pub(crate) fn address(task: usize) -> String {
        format!("1555000{task:04}:1@s.whatsapp.net")
    }

    async fn read(store: &PostgresStore, task: usize) -> Result<u32, StoreError> {
        Ok(store.get_session(&Self::address(task)).await?.map_or(0, |session| number_in(&session)))
    }

    pub(crate) fn acknowledged(&self) -> Vec<u32> {
        self.acknowledged.iter().map(|number| number.load(Ordering::Relaxed)).collect()
    }

    /// Waits until each task has gone on by some calls.
    pub(crate) async fn goes_on(&self) {
        let before = self.acknowledged();
        until("the store goes on", async || {
            assert!(!self.tasks.iter().any(JoinHandle::is_finished), "a call has failed");
            self.acknowledged().iter().zip(&before).all(|(now, before)| *now > before + 3)
        })
        .await;
    }

    /// Ends the bots, and checks that each call returned `Ok` and is stored.
    pub(crate) async fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        for (task, number) in self.acknowledged.iter().enumerate() {
            assert_eq!(Self::read(&self.store, task).await.unwrap(), number.load(Ordering::Relaxed));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_before_the_request_ends_in_ok() {
    if !available() {
        return;
    }
    let (proxy, store, direct, account) = behind_proxy().await;
    proxy.set(Mode::Cut { direction: Direction::Up, after: 0 });
    put(&store, 2).await.unwrap();
    assert_eq!(direct.number(account).await, Some(2));
    proxy.set(Mode::Cut { direction: Direction::Up, after: 0 });
    assert_eq!(get(&store).await.unwrap(), Some(2));
    assert!(store.stats().reconnects >= 2, "{:?}", store.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_after_the_commit_ends_in_ok() {
    if !available() {
        return;
    }
    let (proxy, store, direct, account) = behind_proxy().await;
    proxy.set(Mode::Swallow { then_cut: true });
    put(&store, 2).await.unwrap();
    assert!(proxy.swallowed() > 0);
    assert_eq!(direct.number(account).await, Some(2));
    proxy.set(Mode::Swallow { then_cut: true });
    store.delete_session(super::common::ADDRESS).await.unwrap();
    assert_eq!(direct.number(account).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_message_without_answer_is_unknown() {
    if !available() {
        return;
    }
    let (proxy, store, ..) = behind_proxy().await;
    store.store_sent_message(CHAT, "3EB0", &value(7, 100)).await.unwrap();
    // The statement is prepared, so that the first answer is that of the call.
    assert_eq!(store.take_sent_message(CHAT, "other").await.unwrap(), None);
    let before = proxy.swallowed();
    proxy.set(Mode::Swallow { then_cut: true });
    let error = store.take_sent_message(CHAT, "3EB0").await.unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
    assert!(proxy.swallowed() > before);
    assert_eq!(store.take_sent_message(CHAT, "3EB0").await.unwrap(), None, "it was taken");
    // Cut before it reaches the server, it is as unknown, and the message is there.
    store.store_sent_message(CHAT, "3EB1", &value(8, 100)).await.unwrap();
    proxy.set(Mode::Cut { direction: Direction::Up, after: 3 });
    let error = store.take_sent_message(CHAT, "3EB1").await.unwrap_err();
    assert!(is_unknown(&error), "{error:?}");
    assert_eq!(store.take_sent_message(CHAT, "3EB1").await.unwrap(), Some(value(8, 100)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_over_restarts_of_the_server() {
    if !available() {
        return;
    }
    let server = Server::start();
    let store = options(&server.url()).open(1).await.unwrap();
    let load = Load::start(&store);
    for restart in 0..6 {
        load.goes_on().await;
        match restart % 3 {
            0 => server.restart(),
            // Crash recovery.
            1 => {
                server.kill();
                server.restart();
            }
            // An administrator ends all connections.
            _ => drop(server.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
            )),
        }
    }
    load.goes_on().await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_after_a_backend_of_the_server_crashed() {
    if !available() {
        return;
    }
    let server = Server::start();
    let store = options(&server.url()).open(1).await.unwrap();
    let load = Load::start(&store);
    for _ in 0..3 {
        load.goes_on().await;
        // The server ends all its processes and recovers, with 57P02 and 57P03.
        let backends =
            server.psql("SELECT pid FROM pg_stat_activity WHERE query LIKE '%sessions%' AND pid <> pg_backend_pid()");
        let backend = rustix::process::Pid::from_raw(backends.lines().next().unwrap().parse().unwrap()).unwrap();
        rustix::process::kill_process(backend, rustix::process::Signal::KILL).unwrap();
    }
    load.goes_on().await;
    load.end().await;
    assert!(server.log().contains("was terminated by signal 9"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_down_ends_calls_at_the_deadline() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off")]);
    let short = || options(&server.url()).deadline(seconds(2)).answer_timeout(seconds(1));
    let store = short().open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    server.stop();
    let begun = Instant::now();
    let (written, read, swept) = tokio::join!(put(&store, 2), get(&store), store.delete_expired_sent_messages(1));
    assert!(begun.elapsed() >= seconds(2) && begun.elapsed() < seconds(30), "{:?}", begun.elapsed());
    for problem in [problem(written), problem(read), problem(swept)] {
        assert!(matches!(problem, PostgresProblem::Unreachable | PostgresProblem::OutcomeUnknown), "{problem:?}");
    }
    let begun = Instant::now();
    assert_eq!(own_problem(short().open(2).await), PostgresProblem::Unreachable);
    assert!(begun.elapsed() >= seconds(2) && begun.elapsed() < seconds(30), "{:?}", begun.elapsed());
    server.restart();
    put(&store, 3).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_ends_calls_as_unknown() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off")]);
    let store = options(&server.url()).deadline(seconds(3)).answer_timeout(seconds(1)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    // The next renewal, which the call would wait for without being sent, is seconds away.
    until("the lease was renewed", async || store.stats().renewals > 0).await;
    server.pause();
    let begun = Instant::now();
    let (written, read) = tokio::join!(put(&store, 2), get(&store));
    let elapsed = begun.elapsed();
    server.resume();
    assert_eq!(problem(written), PostgresProblem::OutcomeUnknown);
    assert_eq!(problem(read), PostgresProblem::Unreachable);
    assert!(elapsed >= seconds(3) && elapsed < seconds(40), "{elapsed:?}");
    put(&store, 3).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_dropped() {
    if !available() {
        return;
    }
    let (proxy, account) = (Proxy::start(shared().port()), account());
    let store = options(&proxy.url()).answer_timeout(seconds(1)).open(account).await.unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(1));
    let before = proxy.accepted();
    // Nothing tells the client that the other side is gone.
    proxy.set(Mode::Stall { new_too: false });
    let begun = Instant::now();
    put(&store, 2).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(2));
    assert!(begun.elapsed() >= seconds(1) && begun.elapsed() < seconds(30), "{:?}", begun.elapsed());
    assert!(proxy.accepted() >= before + 2, "a new connection for writes and one for reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_ends_calls_as_overloaded() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off")]);
    let store = options(&server.url()).deadline(seconds(2)).answer_timeout(seconds(1)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    server.pause();
    // More than the queue and a group hold.
    let calls = (0..2000).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { store.put_session(&format!("address {number}"), b"x").await })
    });
    let mut overloaded = 0;
    for call in join_all(calls.collect::<Vec<_>>()).await {
        overloaded += u32::from(problem(call.unwrap()) == PostgresProblem::Overloaded);
    }
    assert!(overloaded > 500, "{overloaded}");
    server.resume();
    put(&store, 2).await.unwrap();
    assert_eq!((get(&store).await.unwrap(), store.stats().queued), (Some(2), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_over_restarts_of_pgbouncer() {
    if !available() {
        return;
    }
    let mut pgbouncer = PgBouncer::start(shared(), 5);
    let store = options(&pgbouncer.url()).prepared(false).open(account()).await.unwrap();
    let load = Load::start(&store);
    for _ in 0..3 {
        load.goes_on().await;
        pgbouncer.restart();
    }
    load.goes_on().await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_call_of_a_dropped_future_runs() {
    if !available() {
        return;
    }
    let (_proxy, store, direct, account) = behind_proxy().await;
    let mut call = put(&store, 2).boxed();
    assert!((&mut call).now_or_never().is_none());
    drop(call);
    until("the call has run", async || direct.number(account).await == Some(2)).await;
}

#[tokio::test]
async fn a_lease_of_another_is_in_use_after_the_wait() {
    if !available() {
        return;
    }
    let (url, account) = (shared().url(), account());
    let open = |name: &str, wait: Duration| options(&url).lease_name(name).lease_wait(wait).open(account);
    let first = open("first", Duration::ZERO).await.unwrap();
    let begun = Instant::now();
    let refused = open("second", millis(1200)).await.unwrap_err();
    assert!(matches!(&refused, Error::AccountInUse { name, .. } if name == "first"), "{refused:?}");
    assert!(begun.elapsed() >= millis(1200));
    // The waiting process has it as soon as the holder is gone.
    let (waiting, closed) = tokio::join!(open("second", seconds(60)), async {
        tokio::time::sleep(millis(300)).await;
        first.close().await
    });
    closed.unwrap();
    put(&waiting.unwrap(), 1).await.unwrap();
    assert!(matches!(Error::downcast_ref(&put(&first, 2).await.unwrap_err()), Some(Error::Closed { .. })));
}

#[tokio::test]
async fn a_closed_or_dropped_store_lets_others_in_at_once() {
    if !available() {
        return;
    }
    let (url, account) = (shared().url(), account());
    let open = |name: &str, wait: Duration| options(&url).lease_name(name).lease_wait(wait).open(account);
    let first = open("first", Duration::ZERO).await.unwrap();
    first.close().await.unwrap();
    first.close().await.unwrap();
    let second = open("second", Duration::ZERO).await.unwrap();
    put(&second, 2).await.unwrap();
    let clone = second.clone();
    drop(second);
    assert!(matches!(open("third", Duration::ZERO).await, Err(Error::AccountInUse { .. })), "a handle is left");
    // The last handle: it is released in the background, long before the lease would run out.
    drop(clone);
    let begun = Instant::now();
    let third = open("third", seconds(60)).await.unwrap();
    assert!(begun.elapsed() < seconds(10), "{:?}", begun.elapsed());
    assert_eq!(get(&third).await.unwrap(), Some(2));
    // One account of several.
    let other = third.account(super::common::account()).await.unwrap();
    let number = other.account_number();
    drop(other);
    let elsewhere = options(&url).lease_wait(seconds(60));
    let begun = Instant::now();
    elsewhere.open(number).await.unwrap();
    assert!(begun.elapsed() < seconds(10), "{:?}", begun.elapsed());
}
