//! Many tasks, runtimes and processes at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Waker};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use wacore::store::traits::{MsgSecretEntry, MsgSecretStore, ProtocolStore, SignalStore};

use super::*;
use crate::testing::canaries;

fn multi_threaded() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

/// Tasks write, read back and delete their own rows, with every durability and under both kinds of
/// runtime.
#[test]
fn every_task_reads_what_it_wrote() {
    for runtime in [single_threaded(), multi_threaded()] {
        for durability in [Durability::Process, Durability::SignalState, Durability::Full] {
            runtime.block_on(async {
                let scratch = Scratch::with(config().durability(durability).read_connections(2)).await;
                let tasks = (0..16).map(|task| {
                    let store = scratch.store.clone();
                    tokio::spawn(async move {
                        let mut rng = StdRng::seed_from_u64(task);
                        let mut rows = BTreeMap::new();
                        for step in 0..60u32 {
                            let key = format!("{task} {}", rng.random_range(0..10));
                            let value = [task as u8; 100].repeat(step as usize % 9);
                            match rng.random_range(0..4) {
                                0 => {
                                    store.delete_session(&key).await.unwrap();
                                    rows.remove(&key);
                                }
                                1 => {
                                    let batch: Vec<_> =
                                        (0..300).map(|row| (format!("{task} b{row}").into(), Bytes::new())).collect();
                                    store.put_sessions_batch(&batch).await.unwrap();
                                    assert!(store.has_session(&format!("{task} b299")).await.unwrap());
                                }
                                2 => {
                                    store.store_sent_message(&key, "id", &value).await.unwrap();
                                    assert_eq!(store.take_sent_message(&key, "id").await.unwrap(), Some(value));
                                }
                                _ => {
                                    store.put_session(&key, &value).await.unwrap();
                                    rows.insert(key.clone(), value);
                                }
                            }
                            assert_eq!(
                                store.get_session(&key).await.unwrap().as_deref(),
                                rows.get(&key).map(|v| &v[..])
                            );
                        }
                        rows
                    })
                });
                for task in tasks.collect::<Vec<_>>() {
                    for (key, value) in task.await.unwrap() {
                        assert_eq!(scratch.store.get_session(&key).await.unwrap().unwrap(), value);
                    }
                }
                assert_eq!(scratch.store.integrity_check().await.unwrap(), [] as [String; 0]);
            });
        }
    }
}

/// The values of `PRAGMA synchronous`: 1 waits for the operating system, 2 for the disk.
#[tokio::test]
async fn commits_wait_for_the_disk_as_configured() {
    for (durability, signal, cache) in
        [(Durability::Full, 2, 2), (Durability::SignalState, 2, 1), (Durability::Process, 1, 1)]
    {
        let scratch = Scratch::with(config().durability(durability)).await;
        let sync = |c: &Connection| Ok(c.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))?);
        for _ in 0..3 {
            assert_eq!(scratch.store.write(WritePlan::DURABLE, sync).await.unwrap(), signal, "{durability:?}");
            assert_eq!(scratch.store.write(WritePlan::RELAXED, sync).await.unwrap(), cache, "{durability:?}");
        }
        // The strictest durability of a group counts.
        let calls = (0..40).map(|number| {
            let plan = if number & 1 == 0 { WritePlan::DURABLE } else { WritePlan::RELAXED };
            let store = scratch.store.clone();
            async move { (plan.signal, store.write(plan, sync).await.unwrap()) }
        });
        for (is_signal, found) in futures::future::join_all(calls).await {
            assert!(found >= if is_signal { signal } else { cache }, "{durability:?}");
        }
    }
}

#[test]
fn concurrent_calls_share_commits() {
    static COMMITS: AtomicU32 = AtomicU32::new(0);
    for (runtime, durability) in [
        (single_threaded(), Durability::Process),
        (single_threaded(), Durability::Full),
        (multi_threaded(), Durability::Full),
    ] {
        runtime.block_on(async {
            let scratch = Scratch::with(config().durability(durability)).await;
            let count = |c: &Connection| {
                c.commit_hook(Some(|| {
                    COMMITS.fetch_add(1, Ordering::Relaxed);
                    false
                }))?;
                Ok(())
            };
            scratch.store.database.write(WritePlan::MAINTENANCE, count).await.unwrap();
            COMMITS.store(0, Ordering::Relaxed);
            let tasks = (0..32).map(|task| {
                let store = scratch.store.clone();
                tokio::spawn(async move {
                    for step in 0..50 {
                        store.put_session(&format!("{task} {step}"), b"x").await.unwrap();
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            let commits = COMMITS.load(Ordering::Relaxed);
            assert!(commits < 32 * 50 / 2, "{commits} commits for 1600 calls, {durability:?}");
        });
    }
}

/// A task that never waits leaves time for timers on the only thread.
#[test]
fn a_busy_task_does_not_starve_the_runtime() {
    single_threaded().block_on(async {
        let scratch = Scratch::with(config().durability(Durability::Process)).await;
        let done = Arc::new(AtomicBool::new(false));
        let ticks = tokio::spawn({
            let done = done.clone();
            async move {
                let mut ticks = 0;
                while !done.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    ticks += 1;
                }
                ticks
            }
        });
        for number in 0..3000 {
            scratch.store.put_session(&address(number % 100), &[1; 1500]).await.unwrap();
            scratch.store.get_session(&address(number % 100)).await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let ticks = ticks.await.unwrap();
        assert!(ticks > 10, "{ticks}");
    });
}

/// Futures that are dropped at any point leave the store working and each row whole.
#[test]
fn dropped_calls_leave_the_store_working() {
    for durability in [Durability::Process, Durability::Full] {
        single_threaded().block_on(async {
            let scratch = Scratch::with(config().durability(durability).read_connections(1)).await;
            let store = &scratch.store;
            let mut rng = StdRng::seed_from_u64(7);
            for round in 0..300u32 {
                let value = |side: &str| (Arc::from(side), Bytes::copy_from_slice(&round.to_le_bytes()));
                let batch = [value("left"), value("right")];
                {
                    let mut put = pin!(store.put_sessions_batch(&batch));
                    let mut get = pin!(store.get_session("left"));
                    let mut list = pin!(store.get_all_lid_mappings());
                    let mut context = Context::from_waker(Waker::noop());
                    let polls = rng.random_range(0..4);
                    // A future that has completed must not be polled again.
                    let _ = (0..polls).any(|_| put.as_mut().poll(&mut context).is_ready());
                    if rng.random_bool(0.5) {
                        let _ = get.as_mut().poll(&mut context);
                        let _ = list.as_mut().poll(&mut context);
                    }
                }
                if rng.random_bool(0.3) {
                    let left = store.get_session("left").await.unwrap();
                    // Both rows or none, if one query reads them.
                    let pair = |c: &Connection| {
                        let sql = "/* test */ SELECT record FROM sessions WHERE address IN ('left', 'right')";
                        c.all(sql, (), |row| row.get::<_, Vec<u8>>(0))
                    };
                    let pair = store.database.read(pair).await.unwrap();
                    assert!(pair.is_empty() || pair[0] == pair[1], "{left:?} {pair:?}");
                }
            }
            store.put_session("after", b"x").await.unwrap();
            assert!(store.has_session("after").await.unwrap());
        });
    }
}

/// A waiting call whose task is no longer polled does not block others.
#[test]
fn a_sleeping_task_does_not_hold_up_others() {
    single_threaded().block_on(async {
        for durability in [Durability::Process, Durability::Full] {
            let scratch = Scratch::with(config().durability(durability)).await;
            let store = &scratch.store;
            // Make the store expect company, so that calls queue first.
            futures::future::join_all((0..200).map(|number| async move {
                store.put_session(&number.to_string(), b"x").await.unwrap();
            }))
            .await;
            let mut sleeping: Vec<_> = (0..50).map(|_| Box::pin(store.put_session("sleeping", b"x"))).collect();
            // Futures that complete at once must not be polled again.
            sleeping.retain_mut(|call| call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert!(sleeping.len() > 20, "{}", sleeping.len());
            for number in 0..200 {
                store.put_session(&number.to_string(), b"y").await.unwrap();
            }
            for call in sleeping {
                call.await.unwrap();
            }
            assert!(store.has_session("sleeping").await.unwrap());
        }
    });
}

/// More calls than the queue holds, some of which are no longer polled.
#[test]
fn crowds_are_let_in_one_after_the_other() {
    single_threaded().block_on(async {
        for durability in [Durability::Process, Durability::Full] {
            let scratch = Scratch::with(config().durability(durability).read_connections(1)).await;
            let store = &scratch.store;
            let mut sleeping: Vec<_> = (0..300).map(|_| Box::pin(store.put_session("sleeping", b"x"))).collect();
            for call in &mut sleeping {
                let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            let mut listing: Vec<_> = (0..20).map(|_| Box::pin(store.get_all_tc_token_jids())).collect();
            for call in &mut listing {
                let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            futures::future::join_all((0..3000).map(|number| async move {
                store.put_session(&number.to_string(), b"x").await.unwrap();
                if number % 100 == 0 {
                    store.get_all_lid_mappings().await.unwrap();
                }
            }))
            .await;
            drop((sleeping, listing));
            assert!(store.has_session("2999").await.unwrap());
        }
    });
}

#[tokio::test]
async fn one_reader_serves_many_long_queries() {
    let scratch = Scratch::with(config().read_connections(1)).await;
    canaries::fill(&scratch.store).await;
    let queries = (0..50).map(|_| {
        let store = scratch.store.clone();
        tokio::spawn(async move { store.get_all_lid_mappings().await.unwrap().len() })
    });
    for query in queries.collect::<Vec<_>>() {
        assert_eq!(query.await.unwrap(), 1);
    }
    assert_eq!(scratch.store.database.open_connections(), 2);
}

/// Each connection has a page cache of its own.
#[test]
fn threads_that_take_turns_share_one_reader() {
    let scratch = futures::executor::block_on(Scratch::new());
    let (occupied, wait) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let database = scratch.store.database.clone();
    let writer = std::thread::spawn(move || {
        let occupy = move |_: &rusqlite::Connection| {
            occupied.send(()).unwrap();
            released.recv().unwrap();
            Ok(())
        };
        futures::executor::block_on(database.write(WritePlan::MAINTENANCE, occupy)).unwrap();
    });
    wait.recv().unwrap();
    for _ in 0..8 {
        // Each thread prefers a slot of its own.
        let store = scratch.store.clone();
        let read = move || futures::executor::block_on(store.has_session("a")).unwrap();
        assert!(!std::thread::spawn(read).join().unwrap());
    }
    assert_eq!(scratch.store.database.open_connections(), 2);
    release.send(()).unwrap();
    writer.join().unwrap();
}

/// Exactly one of many takers gets a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_message_has_one_taker() {
    let scratch = Scratch::new().await;
    for number in 0..50 {
        scratch.store.store_sent_message("chat", &number.to_string(), b"x").await.unwrap();
    }
    let takers = (0..8).map(|_| {
        let store = scratch.store.clone();
        tokio::spawn(async move {
            let mut taken = 0;
            for number in 0..50 {
                taken += usize::from(store.take_sent_message("chat", &number.to_string()).await.unwrap().is_some());
            }
            taken
        })
    });
    let mut taken = 0;
    for taker in takers.collect::<Vec<_>>() {
        taken += taker.await.unwrap();
    }
    assert_eq!(taken, 50);
}

const PROCESSES: usize = 3;
const MESSAGES: usize = 100;

/// Processes write an account each: no row is lost, merges are merged, and each message is taken
/// once.
#[test]
fn processes_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let runtime = single_threaded();
    // The file does not exist yet: the processes also race to create it.
    let companions = Companions::start(PROCESSES, "concurrency::work_beside_others", "share", &path);
    runtime.block_on(async {
        let store = config().account(PROCESSES as i32).open(&path).await.unwrap();
        for number in 0..MESSAGES {
            store.store_sent_message("chat", &number.to_string(), b"x").await.unwrap();
        }
        let taken = |said: String| -> usize {
            said.split("taken ").nth(1).and_then(|rest| rest.lines().next()).unwrap().parse().unwrap()
        };
        let taken: usize = companions.go().into_iter().map(taken).sum();
        assert_eq!(taken, MESSAGES * PROCESSES);
        for process in 0..PROCESSES {
            let account = store.account(process as i32);
            for number in 0..MESSAGES {
                let found = account.get_session(&number.to_string()).await.unwrap();
                assert_eq!(found.as_deref(), Some(&[process as u8; 1500][..]), "{process} {number}");
            }
            let token = account.get_tc_token("merged").await.unwrap().unwrap();
            assert_eq!(token.sender_timestamp, Some(MESSAGES as i64 - 1));
            let (_, ts) = account.get_msg_secret_with_ts("c", "s", "m").await.unwrap().unwrap();
            assert_eq!(ts, MESSAGES as i64 - 1);
        }
        for number in 0..MESSAGES {
            assert!(store.take_sent_message("chat", &number.to_string()).await.unwrap().is_some());
        }
        assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
    });
}

#[test]
fn work_beside_others() {
    let Some(path) = errand("share") else { return };
    multi_threaded().block_on(async {
        let options = config().durability(Durability::Process).lease_when_writing();
        let store = options.open(&path).await.unwrap();
        let process = ready();
        let store = store.account(process as i32);
        let mut taken = 0;
        for number in 0..MESSAGES {
            let name = number.to_string();
            store.put_session(&name, &[process as u8; 1500]).await.unwrap();
            store.store_sent_message("chat", &name, b"x").await.unwrap();
            taken += usize::from(store.take_sent_message("chat", &name).await.unwrap().is_some());
            let time = number as i64;
            store.touch_tc_token_sender_timestamp("merged", time).await.unwrap();
            let (chat, sender, msg_id) = ("c".into(), "s".into(), "m".into());
            let entry = MsgSecretEntry { chat, sender, msg_id, secret: [1; 32], expires_at: 0, message_ts: time };
            store.put_msg_secrets(vec![entry]).await.unwrap();
        }
        println!("taken {taken}");
    });
}
