//! The lease of an account: of all processes, and all stores of a process, only one writes it.
//!
//! A row of the table `leases` names the holder and its epoch, which grows with each holder. Every
//! transaction that changes records of an account looks at this row under the write lock. So safety
//! rests on no clock: a store that lost its lease writes nothing, however late it wakes up.
//!
//! The rest is about who may take a lease over, and only that looks at a clock. A store that wants
//! an account asks: it writes a time into the row. A living holder looks at its rows now and then,
//! and deletes the time. If the time passes, the holder is dead. Nothing is written while no one
//! asks, so the log of an idle database stays empty.

use std::collections::HashMap;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row};
use tokio::sync::Semaphore;

use super::connection::Statements;
use super::location::Location;
use super::options::SqliteOptions;
use crate::clock;
use crate::ended;
use crate::error::{Error, Result};
use crate::rows::mark::Mark;
use crate::rows::table::MARK_ADDRESS;
use crate::sync::IgnorePoison;

/// A holder looks this many times while another store waits for its sign of life.
const LOOKS: u32 = 3;

/// Who holds the leases of one opening of a database.
#[derive(Clone, Copy)]
struct Holder {
    /// Random, so that no two openings are the same.
    id: [u8; 16],
    process: u32,
}

impl Holder {
    /// `false` in a process that was forked off the holder.
    fn is_this_process(&self) -> bool {
        self.process == process::id()
    }
}

/// The lease of an account in one open database. The handles of the account share it.
pub(super) struct Lease {
    account: i32,
    /// `None` if no other process can write the database.
    holder: Option<Holder>,
    /// 0 while the lease is not held.
    epoch: AtomicI64,
    /// The lease may be taken whatever the mark of the account says.
    despite_mark: AtomicBool,
    is_lost: AtomicBool,
    /// This store has closed the account off: it moved, or its copy is not complete.
    is_closed: AtomicBool,
    closed: Mutex<Option<Mark>>,
    /// Closed once the lease is lost, and nothing answers from memory any more.
    lost: Semaphore,
}

impl Lease {
    /// # Errors
    /// [`Error::LeaseLost`], [`Error::AccountMoved`] and [`Error::CopyUnfinished`].
    pub(super) fn check(&self) -> Result<()> {
        if self.is_lost.load(Ordering::SeqCst) {
            return Err(Error::LeaseLost { account: self.account });
        }
        if !self.is_closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.closed.lock().ignore_poison().map_or(Ok(()), |mark| mark.refuse(self.account))
    }

    /// `true` if calls may write: they hold the lease, or need none.
    ///
    /// # Errors
    /// [`Error::LeaseLost`], also in a process that was forked off the holder: both would write
    /// under the same epoch.
    pub(super) fn is_ready(&self) -> Result<bool> {
        let Some(holder) = &self.holder else { return Ok(true) };
        if !holder.is_this_process() {
            self.lose();
        }
        self.check()?;
        Ok(self.epoch() != 0)
    }

    /// Allows this lease to be taken whatever the mark of the account says.
    pub(super) fn take_despite_mark(&self) {
        self.despite_mark.store(true, Ordering::Relaxed);
        self.is_closed.store(false, Ordering::Relaxed);
    }

    /// The mark counts again, and this one ends the handles of this store.
    pub(super) fn end_copy(&self, mark: Option<Mark>) {
        self.despite_mark.store(false, Ordering::Relaxed);
        *self.closed.lock().ignore_poison() = mark;
        self.is_closed.store(mark.is_some(), Ordering::Relaxed);
        if mark.is_some() {
            ended::note();
        }
    }

    /// # Errors
    /// [`Error::AccountMoved`] and [`Error::CopyUnfinished`] if the account is not the one to use.
    pub(super) fn refuse_mark(&self, connection: &Connection) -> Result<()> {
        match mark(connection, self.account)? {
            Some(mark) if !self.despite_mark.load(Ordering::Relaxed) => mark.refuse(self.account),
            _ => Ok(()),
        }
    }

    /// The lease, if calls that write have to hold it.
    pub(super) fn needed(self: &Arc<Self>) -> Option<Arc<Self>> {
        self.holder.is_some().then(|| self.clone())
    }

    /// Returns once the lease is lost.
    pub(super) async fn lost(&self) {
        // There are no permits, so this ends with an error when the semaphore is closed.
        drop(self.lost.acquire().await);
    }

    /// Checks that the lease is held. Run it under the write lock, or before a statement of the
    /// same snapshot.
    ///
    /// # Errors
    /// [`Error::LeaseLost`], and those of reading.
    pub(super) fn fence(&self, connection: &Connection) -> Result<()> {
        let Some(key) = self.key() else { return Ok(()) };
        if connection.first(HELD, key, |_| Ok(()))?.is_none() {
            self.lose();
        }
        self.check()
    }

    /// Runs a single statement that writes, if the lease is held.
    ///
    /// The query of the lease stays open meanwhile, so both see one snapshot. SQLite lets a
    /// statement write only if its snapshot is still the newest state, so no other store can take
    /// the lease over in between. This costs less than a transaction around both.
    ///
    /// # Errors
    /// [`Error::LeaseLost`], and those of the statement.
    pub(super) fn fence_statement<T>(
        &self,
        connection: &Connection,
        statement: &mut impl FnMut(&Connection) -> Result<T>,
    ) -> Result<T> {
        let Some(key) = self.key() else { return statement(connection) };
        if let Some(result) = connection.while_first(HELD, key, || statement(connection))? {
            return Ok(result);
        }
        self.lose();
        self.check()?;
        statement(connection)
    }

    /// The parameters of [`HELD`].
    fn key(&self) -> Option<(i32, i64, [u8; 16])> {
        self.holder.map(|holder| (self.account, self.epoch(), holder.id))
    }

    pub(super) fn account(&self) -> i32 {
        self.account
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn lose(&self) {
        if is_unfenced() || self.is_lost.swap(true, Ordering::SeqCst) {
            return;
        }
        // Caches must not go on answering.
        ended::note();
        self.lost.close();
        log::error!("account {} was taken over by another process: calls on it fail from now on", self.account);
    }
}

/// The leases of one open database.
pub(super) struct Leases {
    holder: Option<Holder>,
    name: String,
    length: Duration,
    all: Mutex<HashMap<i32, Arc<Lease>>>,
    /// SQLite's count of the commits of others at the last look.
    looked_at: AtomicI64,
}

/// The outcome of a look at the held leases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Quiet,
    /// Another store wants one of the accounts.
    Asked,
}

impl Leases {
    /// # Errors
    /// [`Error::Random`].
    pub(super) fn new(config: &SqliteOptions, location: &Location) -> Result<Self> {
        let holder = match location {
            Location::File(_) => {
                let mut id = [0; 16];
                getrandom::fill(&mut id)?;
                Some(Holder { id, process: process::id() })
            }
            Location::ReadOnly(_) | Location::Memory { .. } => None,
        };
        Ok(Self {
            holder,
            name: config.lease_name.clone(),
            length: config.lease_length,
            all: Mutex::default(),
            looked_at: AtomicI64::new(-1),
        })
    }

    /// The lease of an account, held or not.
    pub(super) fn of(&self, account: i32) -> Arc<Lease> {
        let new = || Lease {
            account,
            holder: self.holder,
            epoch: AtomicI64::new(0),
            despite_mark: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            closed: Mutex::default(),
            lost: Semaphore::new(0),
        };
        self.all.lock().ignore_poison().entry(account).or_insert_with(|| Arc::new(new())).clone()
    }

    /// How long a holder waits between two looks.
    pub(super) fn pause(&self) -> Duration {
        self.length / LOOKS
    }

    fn held(&self) -> Vec<Arc<Lease>> {
        let all = self.all.lock().ignore_poison();
        all.values().filter(|lease| lease.epoch() != 0 && lease.check().is_ok()).cloned().collect()
    }

    /// `true` if this process holds a lease.
    pub(super) fn are_held(&self) -> bool {
        self.holder.is_some_and(|holder| holder.is_this_process()) && !self.held().is_empty()
    }

    /// Looks whether the held leases are still held, and whether another store wants one. Notes
    /// those that are lost. Reads nothing if no other connection has written.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn look(&self, connection: &Connection) -> Result<Look> {
        let commits = connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0))?;
        if commits == self.looked_at.load(Ordering::SeqCst) {
            return Ok(Look::Quiet);
        }
        for lease in self.held() {
            let Some(key) = lease.key() else { continue };
            match connection.first(HELD, key, |row| Ok(row.get_ref(0)?.as_i64().is_ok()))? {
                Some(true) => return Ok(Look::Asked),
                Some(false) => {}
                None => lease.lose(),
            }
        }
        self.looked_at.store(commits, Ordering::SeqCst);
        Ok(Look::Quiet)
    }

    /// Tells stores that want an account that its holder lives. Run it in a write transaction.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn answer(&self, connection: &Connection) -> Result<()> {
        for lease in self.held() {
            let Some(key) = lease.key() else { continue };
            if connection.run(ANSWER, key)? == 0 && connection.first(HELD, key, |_| Ok(()))?.is_none() {
                lease.lose();
            }
        }
        Ok(())
    }

    /// Gives the held leases back. Run it in a write transaction, as the last one.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn release(&self, connection: &Connection) -> Result<()> {
        for lease in self.held() {
            let Some(key) = lease.key() else { continue };
            connection.run(RELEASE, key)?;
        }
        Ok(())
    }

    /// Takes a lease, unless another store holds it. Run it in a write transaction. Returns the
    /// epoch, which counts once the transaction has committed.
    ///
    /// # Errors
    /// [`Error::AccountMoved`], [`Error::CopyUnfinished`], and those of reading and writing.
    pub(super) fn take(&self, connection: &Connection, lease: &Lease, whose: &mut Whose<'_>) -> Result<Taken> {
        let Some(holder) = &self.holder else { return Ok(Taken::Epoch(0)) };
        lease.refuse_mark(connection)?;
        let found = connection.first(FIND, (lease.account, &holder.id, &self.name), Found::of)?;
        if let Some(found) = &found {
            let is_free = match whose {
                Whose::Dead => true,
                Whose::Willing => found.is_free(),
                Whose::Asked(waiting) => {
                    let is_free = found.is_free() || waiting.is_over(found, self.length);
                    if !is_free {
                        waiting.ask(connection, lease.account, found, self.length)?;
                    }
                    is_free
                }
            };
            if !is_free {
                return Ok(Taken::InUse { name: found.name.clone() });
            }
        }
        let last = found.map_or(0, |found| found.epoch.max(0));
        // The holder is random, so an epoch may occur twice.
        let epoch = last.checked_add(1).unwrap_or(1);
        connection.run(TAKE, (lease.account, epoch, &holder.id, &self.name))?;
        Ok(Taken::Epoch(epoch))
    }

    /// Notes that a lease was taken, and the transaction has committed.
    pub(super) fn hold(&self, lease: &Lease, epoch: i64) {
        lease.epoch.store(epoch, Ordering::SeqCst);
        self.looked_at.store(-1, Ordering::SeqCst);
    }
}

/// The mark of an account.
pub(super) fn mark(connection: &Connection, account: i32) -> Result<Option<Mark>> {
    let mark = |row: &Row<'_>| Ok(Mark::of(row.get_ref(0)?.as_bytes().unwrap_or_default()));
    connection.first(MARK, (account, MARK_ADDRESS), mark)
}

/// The leases that may be taken.
pub(super) enum Whose<'a> {
    /// Of those that gave it back, did not answer in time, or have the same name.
    Willing,
    /// Of the same. The others are asked.
    Asked(&'a mut Waiting),
    /// Of all: no other connection has the file open.
    Dead,
}

pub(super) enum Taken {
    Epoch(i64),
    /// The name of the holder.
    InUse {
        name: String,
    },
}

/// The row of a lease.
struct Found {
    epoch: i64,
    holder: Vec<u8>,
    /// Its beginning.
    name: String,
    expires_at: Option<i64>,
    is_own: bool,
    has_same_name: bool,
}

impl Found {
    /// `true` if its holder is this store or has the same name, gave it back, or did not answer.
    fn is_free(&self) -> bool {
        self.is_own || self.has_same_name || self.expires_at.is_some_and(|at| at <= now())
    }

    /// Values of a wrong type are those of a holder that no one knows.
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let bytes = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_bytes().unwrap_or_default());
        let number = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
        Ok(Self {
            epoch: number(0)?.unwrap_or(0),
            holder: bytes(1)?.to_vec(),
            name: String::from_utf8_lossy(bytes(2)?).into_owned(),
            expires_at: number(3)?,
            is_own: number(4)? == Some(1),
            has_same_name: number(5)? == Some(1),
        })
    }
}

/// A store that waits for an account.
#[derive(Default)]
pub(super) struct Waiting {
    /// The unanswered question, and when it was first seen. So a clock that was put back delays no
    /// takeover.
    asked: Option<(i64, Vec<u8>, i64, Instant)>,
}

impl Waiting {
    /// `true` if the question was not answered for the length of a lease.
    fn is_over(&mut self, found: &Found, length: Duration) -> bool {
        let Some(expires_at) = found.expires_at else { return false };
        match &self.asked {
            Some((epoch, holder, at, since)) if (*epoch, holder, *at) == (found.epoch, &found.holder, expires_at) => {
                since.elapsed() >= length
            }
            _ => {
                self.asked = Some((found.epoch, found.holder.clone(), expires_at, Instant::now()));
                false
            }
        }
    }

    /// Asks the holder for a sign of life.
    fn ask(&mut self, connection: &Connection, account: i32, found: &Found, length: Duration) -> Result<()> {
        if found.expires_at.is_none() {
            let expires_at = now().saturating_add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX));
            connection.run(ASK, (account, found.epoch, expires_at))?;
            self.asked = Some((found.epoch, found.holder.clone(), expires_at, Instant::now()));
        }
        Ok(())
    }
}

fn now() -> i64 {
    clock::now_millis()
}

/// `true` in the processes of a test that shows that the check is needed.
fn is_unfenced() -> bool {
    #[cfg(test)]
    return super::tests::is_unfenced();
    #[cfg(not(test))]
    false
}

const MARK: &str = "SELECT record FROM sender_keys WHERE account = ?1 AND address = ?2";
const HELD: &str = "SELECT expires_at FROM leases WHERE account = ?1 AND epoch = ?2 AND holder = ?3";
const ANSWER: &str = "UPDATE leases SET expires_at = NULL
    WHERE account = ?1 AND epoch = ?2 AND holder = ?3 AND expires_at IS NOT NULL";
const RELEASE: &str = "UPDATE leases SET expires_at = 0 WHERE account = ?1 AND epoch = ?2 AND holder = ?3";
const ASK: &str = "UPDATE leases SET expires_at = ?3 WHERE account = ?1 AND epoch = ?2 AND expires_at IS NULL";
/// Of a name, the first characters are enough for a message.
const FIND: &str = "SELECT epoch, substr(holder, 1, 16), substr(name, 1, 200), expires_at, holder = ?2,
    name = ?3 AND name <> '' FROM leases WHERE account = ?1";
const TAKE: &str = "INSERT INTO leases (account, epoch, holder, name) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (account) DO UPDATE
    SET epoch = excluded.epoch, holder = excluded.holder, name = excluded.name, expires_at = NULL";
