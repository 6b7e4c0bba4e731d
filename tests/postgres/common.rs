//! Parts that several tests share: values, problems of errors, a connection beside the store, and other processes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls};
use wacore::store::error::StoreError;
use wacore::store::traits::SignalStore;
use wastore::postgres::PostgresProblem;
use wastore::{Error, PostgresOptions, PostgresStore};

/// The session that most tests write.
pub(crate) const ADDRESS: &str = "15550001111:2@s.whatsapp.net";

/// Longer than any stall of a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

pub(crate) const fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// `true` for the long campaigns.
pub(crate) fn is_long() -> bool {
    std::env::var_os("WASTORE_LONG").is_some_and(|value| value == "1")
}

/// An account that no other test has. Their stores share a schema.
pub(crate) fn account() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Settings of a store. Calls wait long enough for a loaded machine.
pub(crate) fn options(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).unwrap().deadline(PATIENCE)
}

/// The problem of a call that must fail.
pub(crate) fn problem<T>(result: Result<T, StoreError>) -> PostgresProblem {
    let Err(error) = result else { panic!("the call returned Ok") };
    match Error::downcast_ref(&error) {
        Some(Error::Postgres { problem, .. }) => *problem,
        _ => panic!("{error:?}"),
    }
}

/// The same for functions of the store itself.
pub(crate) fn own_problem<T>(result: wastore::Result<T>) -> PostgresProblem {
    match result {
        Ok(_) => panic!("the call returned Ok"),
        Err(Error::Postgres { problem, .. }) => problem,
        Err(error) => panic!("{error:?}"),
    }
}

pub(crate) fn is_lost(error: &StoreError) -> bool {
    matches!(Error::downcast_ref(error), Some(Error::LeaseLost { .. }))
}

pub(crate) fn is_unknown(error: &StoreError) -> bool {
    let error = Error::downcast_ref(error);
    matches!(error, Some(Error::Postgres { problem: PostgresProblem::OutcomeUnknown, .. }))
}

/// A number and bytes derived from it, so that a mix of two values is noticed.
pub(crate) fn value(number: u32, length: usize) -> Vec<u8> {
    let rest = (4..length).map(|position| (position as u32).wrapping_mul(31).wrapping_add(number) as u8);
    number.to_le_bytes().into_iter().chain(rest).collect()
}

pub(crate) fn number_in(found: &[u8]) -> u32 {
    let number = u32::from_le_bytes(found[..4].try_into().unwrap());
    assert_eq!(found, value(number, found.len()), "a value is not what was written");
    number
}

/// Writes a number to the session of the tests.
pub(crate) async fn put(store: &PostgresStore, number: u32) -> Result<(), StoreError> {
    store.put_session(ADDRESS, &value(number, 300)).await
}

/// The number that the store reads.
pub(crate) async fn get(store: &PostgresStore) -> Result<Option<u32>, StoreError> {
    Ok(store.get_session(ADDRESS).await?.map(|session| number_in(&session)))
}

/// Waits until `done` says so, without keeping the runtime from its other work.
pub(crate) async fn until(event: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {event}"));
}

/// A connection beside the store.
pub(crate) struct Direct {
    client: Client,
}

impl Direct {
    pub(crate) async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        Self { client }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Runs SQL that the server may refuse.
    pub(crate) async fn try_run(&self, sql: &str) {
        self.client.batch_execute(sql).await.ok();
    }

    /// The first column of the first row.
    pub(crate) async fn ask(&self, sql: &str) -> String {
        let messages = self.client.simple_query(sql).await.unwrap();
        let first = messages.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        first.unwrap_or_default()
    }

    /// The session as the server has it.
    pub(crate) async fn session(&self, account: i32, address: &str) -> Option<Vec<u8>> {
        const SQL: &str = "SELECT record FROM wastore.sessions WHERE account = $1 AND address = $2";
        let rows = self.client.query(SQL, &[&account, &address.as_bytes()]).await.unwrap();
        rows.first().map(|row| row.get(0))
    }

    /// The number in the session of the tests.
    pub(crate) async fn number(&self, account: i32) -> Option<u32> {
        self.session(account, ADDRESS).await.map(|session| number_in(&session))
    }
}

/// Tells the parent something. A line that a kill tears has no full stop.
pub(crate) fn say(what: &str) {
    // The test harness writes the beginning of the first line.
    std::io::stdout().lock().write_all(format!("\n!{what}.\n").as_bytes()).unwrap();
}

/// News of another process.
#[derive(Debug)]
pub(crate) enum News {
    Said(String),
    /// It has ended. `true` if it ended by itself and well.
    Ended(bool),
}

/// Another process of this test binary, which runs one test.
pub(crate) struct Other {
    process: Arc<Mutex<Child>>,
}

impl Other {
    /// Starts it. Its news go to the sender, beside its number.
    pub(crate) fn start(test: &str, settings: &[(&str, String)], number: u32, news: Sender<(u32, News)>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let process = Arc::new(Mutex::new(process));
        let listening = process.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(said) = line.strip_prefix('!').and_then(|line| line.strip_suffix('.')) {
                    news.send((number, News::Said(said.to_owned()))).ok();
                }
            }
            let ended_well = listening.lock().unwrap().wait().unwrap().success();
            news.send((number, News::Ended(ended_well))).ok();
        });
        Self { process }
    }

    /// Sends it a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut process = self.process.lock().unwrap();
        if process.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&process), signal).unwrap();
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
