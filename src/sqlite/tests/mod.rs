//! The promises of the store, on real files and across processes.

#![allow(clippy::print_stdout, reason = "child processes report to the test that started them")]

mod accounts;
mod bad_files;
mod concurrency;
mod crash;
mod encrypted;
mod ended;
mod failures;
mod golden;
mod hostile_files;
mod key_model;
mod lease;
mod plans;
mod put_back;
mod repair;
mod rotate;
mod schema;
mod semantics;
mod snapshots;
mod verify;
mod walks;

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use wacore::store::error::StoreError;

use super::connection::Statements;
use super::write_plan::WritePlan;
use super::{Durability, SqliteOptions, SqliteStore};
use crate::encrypt::{HeaderCopy, HeaderStore};
use crate::error::{Error, SqliteProblem};

/// Marks the statements that only tests run.
const OF_TESTS: &str = "/* test */";

/// Every statement that a store has run in this process.
static STATEMENTS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// How many statements were not run because the schema had changed.
pub(super) static DENIED: AtomicUsize = AtomicUsize::new(0);

pub(super) fn record(sql: &'static str) {
    STATEMENTS.lock().unwrap().insert(sql);
}

/// `true` in a process that shows what happens if no lease is checked.
pub(super) fn is_unfenced() -> bool {
    static UNFENCED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("WASTORE_UNFENCED").is_some());
    *UNFENCED
}

/// A store in a file of its own.
struct Scratch {
    store: SqliteStore,
    path: PathBuf,
    _folder: TempDir,
}

impl Scratch {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wa.db");
        Self { store: config.open(&path).await.unwrap(), path, _folder: folder }
    }

    /// Closes the store and opens the file again.
    async fn reopen(mut self) -> Self {
        let memory = SqliteStore::in_memory().await.unwrap();
        drop(std::mem::replace(&mut self.store, memory));
        self.store = config().open(&self.path).await.unwrap();
        self
    }
}

/// Header copies in memory.
#[derive(Default)]
struct Elsewhere(Mutex<HashMap<HeaderCopy, Vec<u8>>>);

#[async_trait::async_trait]
impl HeaderStore for Elsewhere {
    async fn read(&self, copy: HeaderCopy) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().unwrap().get(&copy).cloned())
    }

    async fn write(&self, copy: HeaderCopy, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.lock().unwrap().insert(copy, bytes.to_vec());
        Ok(())
    }
}

/// Settings that fail quickly.
fn config() -> SqliteOptions {
    SqliteOptions::new().busy_timeout(Duration::from_secs(30))
}

/// The reason for which SQLite refused a call.
fn problem<T: std::fmt::Debug>(result: Result<T, StoreError>) -> SqliteProblem {
    let error = result.expect_err("the call should have failed");
    let Some(Error::Sqlite { problem, .. }) = Error::downcast_ref(&error) else {
        panic!("not an error of SQLite: {error:?}")
    };
    assert_eq!(error.is_database_busy_or_locked(), *problem == SqliteProblem::Contended, "{error:?}");
    *problem
}

fn single_threaded() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The errand of a child process. The test with its name returns at once if it has no errand.
fn errand(name: &str) -> Option<PathBuf> {
    (std::env::var("WASTORE_ERRAND").ok()? == name).then(|| std::env::var_os("WASTORE_FILE").unwrap().into())
}

/// Runs one test of this binary in its own process.
fn child(test: &str, errand: &str, file: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&format!("sqlite::tests::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env("WASTORE_ERRAND", errand)
        .env("WASTORE_FILE", file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// Processes that do the same at the same moment.
struct Companions(Vec<Child>, Vec<Lines<BufReader<ChildStdout>>>);

impl Companions {
    /// Starts the processes, and waits until each is ready.
    fn start(count: usize, test: &str, errand: &str, file: &Path) -> Self {
        let start =
            |number: usize| child(test, errand, file).env("WASTORE_NUMBER", number.to_string()).spawn().unwrap();
        let mut running: Vec<_> = (0..count).map(start).collect();
        let mut said: Vec<_> =
            running.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap()).lines()).collect();
        for lines in &mut said {
            assert!(lines.any(|line| line.unwrap().contains("ready")));
        }
        Self(running, said)
    }

    /// Releases the processes, and returns the output of each. Each must succeed.
    fn go(self) -> Vec<String> {
        let Self(mut running, said) = self;
        for child in &mut running {
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        let said = said.into_iter().map(|lines| lines.map(|line| line.unwrap() + "\n").collect()).collect();
        for child in &mut running {
            assert!(child.wait().unwrap().success());
        }
        said
    }
}

/// The start of such a process: reports that it is ready, and waits for the others.
fn ready() -> usize {
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    std::env::var("WASTORE_NUMBER").unwrap().parse().unwrap()
}

/// An SQL expression: the value of a column, whose last byte is another one.
fn with_another_end(column: &str) -> String {
    let end = format!("CASE substr({column}, -1) WHEN x'00' THEN x'01' ELSE x'00' END");
    format!("CAST(substr({column}, 1, length({column}) - 1) || {end} AS BLOB)")
}

fn address(number: usize) -> Arc<str> {
    format!("1555{number:07}:2@s.whatsapp.net").into()
}
