//! Taking the lease of an account, and waiting for its holder to give it back.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::database::Database;
use super::lease::{Lease, Taken, Waiting, Whose};
use super::transaction::in_transaction;
use super::write_plan::WritePlan;
use crate::error::{Error, Result};
use crate::sync::IgnorePoison;

/// The pauses between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// How often a store with open readers closes them to see whether the holder is gone. Other calls
/// wait for that.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_millis(10);

/// The progress of a store that waits for an account.
#[derive(Default)]
struct Progress {
    waiting: Waiting,
    looked_for_others: Option<Instant>,
}

impl Database {
    /// Acquires the lease of an account, unless it is held already. Waits for another holder.
    ///
    /// # Errors
    /// [`Error::AccountInUse`] if another store keeps it until the waiting time is over.
    /// [`Error::LeaseLost`], and those of writing.
    pub(super) async fn acquire(self: &Arc<Self>, lease: &Arc<Lease>) -> Result<()> {
        if lease.is_ready()? {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(self.wal.config.lease_wait);
        let progress = Arc::new(Mutex::new(Progress::default()));
        let mut pause = FIRST_PAUSE;
        loop {
            let (database, lease, progress) = (Arc::downgrade(self), lease.clone(), progress.clone());
            let account = lease.account();
            let attempt = move |writer: &Connection| match database.upgrade() {
                Some(database) => database.try_acquire(writer, &lease, &mut progress.lock().ignore_poison()),
                None => Err(Error::WorkerGone),
            };
            let refusal = match self.write(WritePlan::MAINTENANCE, attempt).await {
                Ok(Taken::Epoch(_)) => return Ok(()),
                Ok(Taken::InUse { name }) => Error::AccountInUse { account, name },
                Err(error) if error.is_contention() => error,
                Err(error) => return Err(error),
            };
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(refusal);
            }
            let now = pause.min(left);
            blocking::unblock(move || thread::sleep(now)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Blocks its thread.
    fn try_acquire(&self, writer: &Connection, lease: &Arc<Lease>, progress: &mut Progress) -> Result<Taken> {
        if lease.is_ready()? {
            return Ok(Taken::Epoch(lease.epoch()));
        }
        let take = |mut whose: Whose<'_>| {
            in_transaction(writer, None, &mut |connection| self.leases.take(connection, lease, &mut whose))
        };
        let mut taken = take(Whose::Willing)?;
        let is_due = self.readers.open() == 0
            || progress.looked_for_others.is_none_or(|looked| looked.elapsed() >= LOOK_FOR_OTHERS);
        if matches!(taken, Taken::InUse { .. }) && is_due {
            progress.looked_for_others = Some(Instant::now());
            let alone = self.exclusively(writer, PATIENCE, |c| self.leases.take(c, lease, &mut Whose::Dead))?;
            taken = alone.unwrap_or(taken);
        }
        if matches!(taken, Taken::InUse { .. }) {
            taken = take(Whose::Asked(&mut progress.waiting))?;
        }
        if let Taken::Epoch(epoch) = taken {
            self.leases.hold(lease, epoch);
            self.keep();
        }
        self.writer.after_commit()?;
        Ok(taken)
    }
}
