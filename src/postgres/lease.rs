//! The lease of an account: who may write it.
//!
//! A row per account has an epoch, which only grows, and the holder. Every write names both, and locks the row until it
//! commits. So a takeover waits for writes that passed the fence, and turns away those that come later. Only this
//! protects: the times in the row decide when another process may try, never whether a write is accepted.
//!
//! The epoch also grows at every reconnect. Otherwise a statement that the server still works on, and that the store has
//! repeated over a new connection, could be carried out after a later write.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_postgres::types::Type;

use super::core::Core;
use super::failure::Failure;
use super::link::Link;
use super::problem;
use super::stats::{Counters, add};
use super::written::Written;
use crate::ended;
use crate::error::{Error, PostgresProblem, Result};
use crate::sync::IgnorePoison;

/// How long others wait after the last renewal before they take an account over.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// The time between renewals.
pub(super) const RENEWAL: Duration = Duration::from_secs(5);

/// A takeover must not be lost in a crash of the server, because the epoch would exist twice then. So these two wait for
/// the disk whatever the role's default is.
pub(super) const ACQUIRE: &str = "WITH durable AS MATERIALIZED (SELECT set_config('synchronous_commit', $5, true),
        set_config('client_min_messages', 'warning', true))
    INSERT INTO @.leases AS l (account, epoch, holder, name, renewed_at, expires_at)
    SELECT $1, 1, $2, $3, now(), now() + $4 * interval '1 second' FROM durable
    ON CONFLICT (account) DO UPDATE SET epoch = l.epoch + 1, holder = excluded.holder, name = excluded.name,
        renewed_at = excluded.renewed_at, expires_at = excluded.expires_at
    WHERE l.expires_at < now() OR l.holder = excluded.holder OR (l.name <> '' AND l.name = excluded.name)
    RETURNING epoch";
pub(super) const RAISE: &str =
    "WITH durable AS MATERIALIZED (SELECT set_config('synchronous_commit', $4, true) AS level)
    UPDATE @.leases SET epoch = epoch + 1, renewed_at = now(), expires_at = now() + $3 * interval '1 second'
    FROM durable WHERE account = ANY($1) AND holder = $2 RETURNING account, epoch";
pub(super) const RENEW: &str =
    "WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS level)
    UPDATE @.leases l SET renewed_at = now(), expires_at = now() + $4 * interval '1 second'
    FROM relaxed, unnest($1, $2) AS m(account, epoch)
    WHERE l.account = m.account AND l.epoch = m.epoch AND l.holder = $3
    RETURNING l.account, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
pub(super) const RELEASE: &str =
    "UPDATE @.leases l SET expires_at = '-infinity' FROM unnest($1, $2) AS m(account, epoch)
    WHERE l.account = m.account AND l.epoch = m.epoch AND l.holder = $3";
pub(super) const LOOK: &str = "SELECT epoch, holder FROM @.leases WHERE account = $1";
/// The mark of an account, see [`crate::rows::mark`].
pub(super) const MARK: &str = "SELECT record FROM @.sender_keys WHERE account = $1 AND address = $2";
pub(super) const LOOK_AT_NAME: &str = "SELECT name FROM @.leases WHERE account = $1";

/// The state of a lease in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was written yet, and no lease is held.
    Idle,
    Held,
    /// Another process took the account over.
    Lost,
    /// A failover took back what was acknowledged.
    Undone,
    /// This process deleted the account.
    Deleted,
    /// This process closed the account off: it moved to another store.
    Moved,
    /// This process has begun to copy the account from another store.
    Unfinished,
}

/// The lease of one account, shared by all handles on it.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) account: i32,
    /// Shared with the lane, which releases the lease when this value is gone.
    pub(super) epoch: Arc<AtomicI64>,
    state: Mutex<State>,
    /// Closed once the lease is lost, and nothing answers from memory any more.
    lost: Semaphore,
    /// The lease may be taken whatever the mark of the account says.
    despite_mark: AtomicBool,
    /// The newest durable writes.
    pub(super) written: Mutex<Written>,
    /// When base keys past their retention were deleted last, in seconds since 1970.
    pub(super) swept_at: AtomicI64,
    /// Tells the lane that this value is gone, or has ended.
    dropped: Arc<Notify>,
}

impl Lease {
    pub(super) fn new(account: i32, dropped: Arc<Notify>) -> Self {
        Self {
            account,
            epoch: Arc::default(),
            despite_mark: AtomicBool::new(false),
            written: Mutex::default(),
            swept_at: AtomicI64::new(0),
            state: Mutex::new(State::Idle),
            lost: Semaphore::new(0),
            dropped,
        }
    }

    pub(super) fn state(&self) -> State {
        *self.state.lock().ignore_poison()
    }

    /// Changes the state, if it is one of these. `true` if it was.
    fn change(&self, from: &[State], to: State) -> bool {
        let mut state = self.state.lock().ignore_poison();
        let changes = from.contains(&state);
        if changes {
            *state = to;
        }
        changes
    }

    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The lease is held with this epoch.
    pub(super) fn hold(&self, epoch: i64) {
        self.epoch.store(epoch, Ordering::Release);
        self.change(&[State::Idle], State::Held);
    }

    /// The server lacks what it had acknowledged. This never changes again.
    pub(super) fn undo(&self, counters: &Counters) {
        if self.change(&[State::Idle, State::Held], State::Undone) {
            log::error!("a failover took acknowledged writes of account {} back: disconnect its client", self.account);
            // The lane gives the lease back.
            self.dropped.notify_one();
            self.tell_lost(counters);
        }
    }

    /// Another process has the account. This never changes again.
    pub(super) fn lose(&self, counters: &Counters) {
        if self.change(&[State::Idle, State::Held], State::Lost) {
            log::error!("another process took account {} over: its client must disconnect", self.account);
            self.tell_lost(counters);
        }
    }

    fn tell_lost(&self, counters: &Counters) {
        add(&counters.leases_lost, 1);
        // Caches must not go on answering.
        ended::note();
        self.lost.close();
    }

    /// Allows this lease to be taken whatever the mark of the account says.
    pub(super) fn take_despite_mark(&self) {
        self.despite_mark.store(true, Ordering::Relaxed);
        // A lease that was given back has to be taken again.
        self.change(&[State::Moved, State::Unfinished], State::Idle);
    }

    /// The mark counts again.
    pub(super) fn end_despite_mark(&self) {
        self.despite_mark.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_taken_despite_mark(&self) -> bool {
        self.despite_mark.load(Ordering::Relaxed)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state(), State::Undone | State::Deleted | State::Moved | State::Unfinished)
    }

    /// The account is gone, or lives in another store: the handles of this store end.
    pub(super) fn end(&self, state: State) {
        self.change(&[State::Idle, State::Held], state);
        // The lane gives the lease back.
        self.dropped.notify_one();
        ended::note();
    }

    /// Finds out why a fence did not hold: another process has the account, or this store has raised its epoch without
    /// learning of it.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn look(&self, link: &Link, core: &Core) -> Result<(), Failure> {
        let rows = link.ask(LOOK, &[(&self.account, Type::INT4)]).await?;
        let Some(row) = rows.first() else {
            self.undo(&core.counters);
            return Ok(());
        };
        let (epoch, holder): (i64, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        match holder == core.holder {
            true => self.hold(epoch),
            // Epochs only grow, unless a failover takes them back.
            false if epoch < self.epoch() => self.undo(&core.counters),
            false => self.lose(&core.counters),
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::LeaseLost`].
    pub(super) fn check(&self) -> Result<()> {
        match self.state() {
            State::Lost => Err(Error::LeaseLost { account: self.account }),
            State::Undone => Err(problem::of_store(PostgresProblem::AcknowledgedWriteLost)),
            State::Deleted => Err(Error::AccountDeleted),
            State::Moved => Err(Error::AccountMoved { account: self.account }),
            State::Unfinished => Err(Error::CopyUnfinished { account: self.account }),
            State::Idle | State::Held => Ok(()),
        }
    }

    /// Returns when the lease is lost, or what was written under it; at once if it already is.
    pub(super) async fn lost(&self) {
        // There are no permits, so this ends with an error when the semaphore is closed.
        drop(self.lost.acquire().await);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.dropped.notify_one();
    }
}
