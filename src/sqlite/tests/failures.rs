//! Failures under a running store.

use std::fs;
use std::time::Instant;

use rusqlite::Connection;
use wacore::store::traits::{ProtocolStore, SignalStore};

use super::*;

async fn limit_pages(store: &SqliteStore, pages: u32) {
    let limit = move |c: &Connection| Ok(c.pragma_update(None, "max_page_count", pages)?);
    store.database.write(WritePlan::MAINTENANCE, limit).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    for durability in [Durability::Full, Durability::Process] {
        let scratch = Scratch::with(config().durability(durability)).await;
        let store = &scratch.store;
        limit_pages(store, 60).await;
        let mut stored = 0;
        let refusal = loop {
            match store.put_session(&address(stored), &[stored as u8; 1500]).await {
                Ok(()) => stored += 1,
                result => break problem(result),
            }
        };
        assert_eq!(refusal, SqliteProblem::DiskFull);
        assert!(stored > 20, "{stored}");
        // A batch is refused as a whole, although its first rows would fit.
        let batch: Vec<_> = (stored..stored + 20).map(|number| (address(number), vec![1; 1500].into())).collect();
        assert_eq!(problem(store.put_sessions_batch(&batch).await), SqliteProblem::DiskFull);
        assert!(!store.has_session(&address(stored)).await.unwrap());
        // Deleting needs no space.
        store.delete_session(&address(0)).await.unwrap();
        limit_pages(store, 100_000).await;
        store.put_sessions_batch(&batch).await.unwrap();
        let scratch = scratch.reopen().await;
        for number in 1..stored {
            let found = scratch.store.get_session(&address(number)).await.unwrap();
            assert_eq!(found.unwrap(), vec![number as u8; 1500]);
        }
        assert_eq!(scratch.store.integrity_check().await.unwrap(), [] as [String; 0]);
    }
}

/// A call that cannot be stored does not fail the other calls of its group.
#[test]
fn calls_of_a_group_fail_alone() {
    for durability in [Durability::Full, Durability::Process] {
        single_threaded().block_on(async {
            let scratch = Scratch::with(config().durability(durability)).await;
            let store = scratch.store.clone();
            let fails = |c: &Connection| c.run("/* test */ INSERT INTO sessions VALUES (1, 'x', NULL)", ());
            let calls = (0..40).map(|number| {
                let store = store.clone();
                async move {
                    if number % 4 == 3 {
                        let half = move |c: &Connection| {
                            c.run("/* test */ DELETE FROM sessions WHERE address = '0'", ())?;
                            fails(c)
                        };
                        (number, store.write(WritePlan::RELAXED.transaction(), half).await.map(drop))
                    } else {
                        (number, store.put_session(&number.to_string(), b"x").await)
                    }
                }
            });
            for (number, result) in futures::future::join_all(calls).await {
                if number % 4 == 3 {
                    assert_eq!(problem(result), SqliteProblem::Other);
                } else {
                    result.unwrap();
                    assert!(store.has_session(&number.to_string()).await.unwrap(), "{number}");
                }
            }
        });
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_deleted_file_is_noticed_before_anything_is_acknowledged() {
    for (ending, durability) in [("", Durability::Process), ("", Durability::Full), ("-wal", Durability::Process)] {
        let scratch = Scratch::with(config().durability(durability)).await;
        let store = &scratch.store;
        store.put_session("a", b"1").await.unwrap();
        let path = PathBuf::from(format!("{}{ending}", scratch.path.display()));
        let aside = scratch.path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        let error = store.put_session("a", b"2").await.unwrap_err();
        assert!(matches!(Error::downcast_ref(&error), Some(Error::FileMoved)), "{error:?}");
        assert!(!error.is_database_busy_or_locked());
        // Another file in its place is not mistaken for it.
        fs::write(&path, "").unwrap();
        assert!(store.put_session("a", b"3").await.is_err());
        fs::rename(&aside, &path).unwrap();
        store.put_session("a", b"4").await.unwrap();
        let scratch = scratch.reopen().await;
        assert_eq!(scratch.store.get_session("a").await.unwrap().unwrap(), &b"4"[..]);
    }
}

/// The store of a file that was moved away does not harm the file in its place, in any closing
/// order.
#[cfg(unix)]
#[tokio::test]
async fn closing_a_moved_store_leaves_the_new_one_alone() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"old").await.unwrap();
    scratch.store.get_all_tc_token_jids().await.unwrap();
    let aside = scratch.path.with_file_name("aside.db");
    for ending in ["", "-wal", "-shm"] {
        let path = |path: &Path| format!("{}{ending}", path.display());
        fs::rename(path(&scratch.path), path(&aside)).unwrap();
    }
    let new = config().open(&scratch.path).await.unwrap();
    new.put_session("a", b"new").await.unwrap();
    let error = scratch.store.backup(scratch.path.with_file_name("copy.db")).await.unwrap_err();
    assert!(matches!(error, Error::FileMoved), "{error:?}");
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    new.put_session("b", b"new").await.unwrap();
    drop(new);
    let new = config().open(&path).await.unwrap();
    assert_eq!(new.get_session("a").await.unwrap().unwrap(), &b"new"[..]);
    assert!(new.has_session("b").await.unwrap());
    let old = config().open(&aside).await.unwrap();
    assert_eq!(old.get_session("a").await.unwrap().unwrap(), &b"old"[..]);
}

/// A process that opens the file twice keeps its locks, so that another process does not delete the
/// write-ahead log.
#[tokio::test]
async fn opening_twice_keeps_the_locks() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"1").await.unwrap();
    let again = config().account(2).open(&scratch.path).await.unwrap();
    again.put_session("b", b"2").await.unwrap();
    let second = scratch.store.account(2);
    // Uses another SQLite: the bundled one defends itself against lost locks since 3.51.
    let visit = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute('SELECT count(*) FROM sessions').fetchone()[0]); c.close()";
    for keep in [Some(again), None] {
        let output = Command::new("python3").args(["-c", visit]).arg(&scratch.path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2");
        scratch.store.put_session("a", b"3").await.unwrap();
        assert_eq!(second.get_session("b").await.unwrap().unwrap(), &b"2"[..]);
        drop(keep);
    }
    assert_eq!(scratch.store.integrity_check().await.unwrap(), [] as [String; 0]);
}

/// Words in the path are not mistaken for contention.
#[cfg(unix)]
#[tokio::test]
async fn paths_do_not_look_like_contention() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busybox").join("locked.db");
    fs::create_dir(path.parent().unwrap()).unwrap();
    let store = config().read_connections(1).open(&path).await.unwrap();
    store.put_session("a", b"1").await.unwrap();
    fs::rename(&path, folder.path().join("aside")).unwrap();
    // Needs a reader, which is not open yet.
    assert_eq!(problem(store.get_all_tc_token_jids().await), SqliteProblem::CannotOpen);
    let error = store.put_session("a", b"2").await.unwrap_err();
    assert!(!error.is_database_busy_or_locked());
}

/// Another process holds the file and is killed: contention while it lives, no damage afterwards.
#[tokio::test]
async fn a_killed_holder_is_no_obstacle() {
    let scratch = Scratch::with(config().busy_timeout(Duration::from_millis(150))).await;
    scratch.store.put_session("a", b"1").await.unwrap();
    let hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); \
                c.execute('BEGIN IMMEDIATE'); c.execute('DELETE FROM sessions'); print('held', flush=True); \
                sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", hold])
        .arg(&scratch.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said.trim(), "held");
    assert_eq!(problem(scratch.store.put_session("b", b"2").await), SqliteProblem::Contended);
    assert_eq!(problem(scratch.store.delete_expired_sent_messages(1).await), SqliteProblem::Contended);
    assert_eq!(scratch.store.get_session("a").await.unwrap().unwrap(), &b"1"[..]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    scratch.store.put_session("b", b"2").await.unwrap();
    assert!(scratch.store.has_session("a").await.unwrap());
}

/// Each call waits for another process for its own timeout, not for that of all earlier calls
/// together.
#[tokio::test]
async fn waiting_calls_do_not_add_up() {
    let scratch = Scratch::with(config().busy_timeout(Duration::from_millis(200))).await;
    let other = Connection::open(&scratch.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    let sweeps = (0..30).map(|_| scratch.store.delete_expired_sent_messages(1));
    let puts = (0..30).map(|number| {
        let store = scratch.store.clone();
        async move { store.put_session(&number.to_string(), b"x").await }
    });
    let (sweeps, puts) =
        futures::future::join(futures::future::join_all(sweeps), futures::future::join_all(puts)).await;
    for result in sweeps {
        assert_eq!(problem(result), SqliteProblem::Contended);
    }
    for result in puts {
        assert_eq!(problem(result), SqliteProblem::Contended);
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// Another process writes for longer than the timeout. The runtime's only thread does not block
/// while calls wait.
#[test]
fn contention_is_reported_as_such_and_waits_elsewhere() {
    single_threaded().block_on(async {
        let scratch = Scratch::with(config().busy_timeout(Duration::from_millis(150))).await;
        let store = &scratch.store;
        let other = Connection::open(&scratch.path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let start = Instant::now();
        assert_eq!(problem(store.put_session("a", b"1").await), SqliteProblem::Contended);
        assert_eq!(problem(store.store_sent_message("a", "b", b"1").await), SqliteProblem::Contended);
        assert!(start.elapsed() >= Duration::from_millis(300));
        // Reading still works.
        assert!(!store.has_session("a").await.unwrap());

        // The task that ends the contention runs on the same thread as the tasks that wait for it.
        let options = SqliteOptions::new().account(2).lease_when_writing();
        let store = &options.open(&scratch.path).await.unwrap();
        let release = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            other.execute_batch("COMMIT").unwrap();
        };
        let waiting = futures::future::join_all((0..20).map(|number| async move {
            store.put_session(&number.to_string(), b"1").await.unwrap();
            store.store_sent_message("chat", &number.to_string(), b"1").await.unwrap();
        }));
        futures::future::join(waiting, release).await;
        assert_eq!(store.take_sent_message("chat", "7").await.unwrap().unwrap(), b"1");
    });
}

/// The file size limit stops a write in the middle. SQLite sees an error of the disk.
#[cfg(unix)]
#[test]
fn a_write_that_the_system_cuts_short_loses_nothing() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let mut inner = child("failures::write_until_refused", "limited", &path);
    let mut command = Command::new("sh");
    // In blocks of 512 bytes.
    command.args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"]).arg(inner.get_program());
    command.args(inner.get_args()).envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inner = command;
    let mut running = inner.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    running.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(running.wait().unwrap().success(), "{said}");
    let stored: usize =
        said.lines().find_map(|line| line.split("stored ").nth(1)).expect(&said).trim().parse().unwrap();
    assert!(stored > 20, "{said}");
    futures::executor::block_on(async {
        let store = config().open(&path).await.unwrap();
        for number in 0..stored {
            assert!(store.has_session(&address(number)).await.unwrap(), "{number} of {stored}");
        }
        assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
    });
}

#[test]
fn write_until_refused() {
    let Some(path) = errand("limited") else { return };
    single_threaded().block_on(async {
        let store = config().open(&path).await.unwrap();
        for number in 0.. {
            if let Err(error) = store.put_session(&address(number), &[7; 1500]).await {
                assert!(!error.is_database_busy_or_locked());
                let problem = problem(Err::<(), _>(error));
                assert!(matches!(problem, SqliteProblem::Disk | SqliteProblem::DiskFull), "{problem:?}");
                // Reading existing rows still works.
                assert!(store.has_session(&address(number - 1)).await.unwrap());
                println!("stored {number}");
                return;
            }
        }
    });
}
