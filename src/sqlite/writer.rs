//! The one writing connection, and how calls share it.
//!
//! A call that finds the connection free takes it and runs on the caller's thread: a thread hop
//! costs several times as much as SQLite. Other calls wait in a queue. The holder of the connection
//! runs them together in one transaction, because a commit costs more than a row. Calls that take
//! long, or may wait for the disk, run on a blocking thread.
//!
//! If a call of a group fails, the group is undone and its calls run one by one. So each gets the
//! outcome that it would have had alone. A call whose future is dropped still runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::backoff::{BusyBackoff, contended, retry_busy};
use super::connection::Statements;
use super::coop;
use super::lease::Lease;
use super::schema::SCHEMA_CHANGES;
use super::transaction::{BEGIN, COMMIT, fence_all, fenced_statement, in_transaction, rollback};
use super::wal::{self, Wal};
use super::write_plan::WritePlan;
use crate::background;
use crate::error::{Error, Result};
use crate::sync::IgnorePoison;

/// How many calls the queue holds. Further callers wait to enter it.
const WAITING_CALLS: usize = 1024;
/// How many calls share a transaction: on a blocking thread, and on the caller's thread.
const GROUP: usize = 256;
const INLINE_GROUP: usize = 32;
/// How long a caller runs the calls of others before a blocking thread takes over.
const INLINE_TIME: Duration = Duration::from_micros(500);
/// After this many lone calls, calls stop waiting for others.
const BATCH_HINT_CALLS: u8 = 8;

/// A queue in front of the writing connection.
pub(super) struct Writer {
    state: Mutex<State>,
    room: Arc<Semaphore>,
    pub(super) wal: Arc<Wal>,
}

struct State {
    /// `None` while a leader has it.
    connection: Option<Box<WriteConnection>>,
    waiting: VecDeque<Box<dyn Call>>,
    /// How many more calls wait for others, because a recent one shared its transaction.
    batch_hint: u8,
    closed: Closed,
}

/// Whether the connection serves further calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    No,
    /// New calls are refused; waiting calls are served.
    Closing,
    Yes,
}

struct WriteConnection {
    connection: Connection,
    /// The current `PRAGMA synchronous`, if known.
    full_sync: Option<bool>,
}

impl Writer {
    pub(super) fn new(connection: Connection, wal: Arc<Wal>) -> Self {
        wal::watch_pages(&connection);
        let connection = Some(Box::new(WriteConnection { connection, full_sync: None }));
        Self {
            state: Mutex::new(State { connection, waiting: VecDeque::new(), batch_hint: 0, closed: Closed::No }),
            room: Arc::new(Semaphore::new(WAITING_CALLS)),
            wal,
        }
    }

    /// Takes the connection for a call that need not wait, because no other call is ahead of it.
    fn try_lead(self: &Arc<Self>) -> Option<Leader> {
        let mut state = self.state();
        if !state.waiting.is_empty() || state.batch_hint > 0 || state.closed != Closed::No {
            return None;
        }
        let connection = state.connection.take()?;
        Some(Leader { writer: self.clone(), connection: Some(connection) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }
}

impl Writer {
    /// Runs a call that writes, and returns once it is committed. It writes only under the lease, if
    /// there is one.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]. The errors of `operation` and of SQLite's commit. The operation may run more than once, but
    /// only one run is committed.
    pub(super) async fn write<T, F>(
        self: &Arc<Self>,
        plan: WritePlan,
        lease: Option<Arc<Lease>>,
        mut operation: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let blocking = self.needs_blocking_thread(plan);
        let over_budget = !blocking && coop::over_budget();
        if !blocking
            && !over_budget
            && let Some(mut leader) = self.try_lead()
        {
            coop::charge(plan.cost);
            let result = leader.run_alone(plan, lease.as_ref(), &mut operation);
            // Only the blocking thread below waits for another process.
            if !result.as_ref().is_err_and(Error::is_contention) {
                leader.run_waiting_inline();
                return result;
            }
        }
        let room = self.room.clone().acquire_owned().await.map_err(|_| Error::WorkerGone)?;
        let (reply, mut outcome) = oneshot::channel();
        let mut call = self.pending(plan, lease, operation);
        (call.reply, call._room) = (Some(reply), Some(room));
        let mut queued = self.enqueue(Box::new(call));
        if !blocking && queued.unattended {
            // Other callers that are about to write join the queue in between.
            if over_budget {
                coop::yield_to_runtime().await;
            } else {
                coop::yield_once().await;
            }
            // Another leader may have run this call with its own.
            if let Ok(Some(result)) = outcome.try_recv() {
                queued.over = true;
                return result;
            }
            if let Some(leader) = Leader::take(self) {
                leader.run_waiting_inline();
            }
        }
        drop(queued);
        outcome.await.unwrap_or(Err(Error::WorkerGone))
    }

    /// Runs a long call in a transaction of its own. Runs `committed` after the commit, before the
    /// next call.
    ///
    /// # Errors
    /// Those of [`Writer::write`].
    pub(super) async fn write_and<T, F>(
        self: &Arc<Self>,
        plan: WritePlan,
        lease: Option<Arc<Lease>>,
        mut operation: F,
        committed: impl Fn() + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let whole = move |connection: &Connection| {
            in_transaction(connection, lease.as_ref(), &mut operation).inspect(|_| committed())
        };
        let done = self.write(WritePlan { blocking: true, outside_transactions: true, ..plan }, None, whole).await?;
        self.wal.check_files()?;
        Ok(done)
    }

    /// Refuses calls from now on.
    pub(super) fn refuse_calls(&self) {
        let mut state = self.state();
        if state.closed == Closed::No {
            state.closed = Closed::Closing;
        }
    }

    /// Takes the connection away for good once all waiting calls have run; `None` if it was already
    /// taken. Blocks its thread.
    ///
    /// # Errors
    /// Contention if the backoff ends first.
    pub(super) fn take_connection(self: &Arc<Self>, backoff: &mut BusyBackoff) -> Result<Option<Connection>> {
        loop {
            let mut state = self.state();
            if state.closed == Closed::Yes {
                return Ok(None);
            }
            if state.waiting.is_empty()
                && let Some(holder) = state.connection.take()
            {
                state.closed = Closed::Yes;
                return Ok(Some(holder.connection));
            }
            drop(state);
            thread::sleep(backoff.next().ok_or_else(contended)?);
        }
    }

    /// Runs a short query on the writing connection if it is free. Unlike a reader's, its page
    /// cache survives commits.
    pub(super) fn read<T>(self: &Arc<Self>, query: &mut impl FnMut(&Connection) -> Result<T>) -> Option<Result<T>> {
        let (leader, result) = self.lead_read(query)?;
        leader.run_waiting_inline();
        Some(result)
    }

    /// Does the same, and runs none of the waiting calls on this thread.
    pub(super) fn glance<T>(self: &Arc<Self>, query: &mut impl FnMut(&Connection) -> Result<T>) -> Option<Result<T>> {
        self.lead_read(query).map(|(_, result)| result)
    }

    fn lead_read<T>(self: &Arc<Self>, query: &mut impl FnMut(&Connection) -> Result<T>) -> Option<(Leader, Result<T>)> {
        if self.wal.is_closed() {
            return None;
        }
        let leader = Leader::take(self)?;
        let result = leader.connection().and_then(|connection| self.wal.run_checked(connection, || query(connection)));
        Some((leader, result))
    }

    /// Runs a call in its turn, with no caller waiting for it.
    pub(super) fn enqueue_detached<T, F>(self: &Arc<Self>, plan: WritePlan, operation: F)
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        drop(self.enqueue(Box::new(self.pending(plan, None, operation))));
    }

    fn pending<T, F>(&self, plan: WritePlan, lease: Option<Arc<Lease>>, operation: F) -> Pending<T, F> {
        let backoff = BusyBackoff::new(self.wal.config.busy_timeout);
        Pending { plan, lease, operation, backoff, result: None, reply: None, _room: None }
    }

    /// Queues a call. Once the guard is dropped, the call has run or will run.
    fn enqueue(self: &Arc<Self>, mut call: Box<dyn Call>) -> Queued<'_> {
        let mut state = self.state();
        if state.closed != Closed::No {
            drop(state);
            call.fail(Error::Closed { what: "store" });
            call.finish();
            return Queued { writer: self, unattended: false, over: true };
        }
        state.waiting.push_back(call);
        Queued { writer: self, unattended: state.connection.is_some(), over: false }
    }

    /// Runs a call at once if the connection is free, and otherwise in its turn. Blocks its thread.
    pub(super) fn run_soon<T, F>(self: &Arc<Self>, plan: WritePlan, mut operation: F)
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let done = Leader::take(self).map(|mut leader| leader.run_alone(plan, None, &mut operation));
        if done.is_none_or(|done| done.is_err_and(|error| error.is_contention())) {
            self.enqueue_detached(plan, operation);
        }
    }

    fn needs_blocking_thread(&self, plan: WritePlan) -> bool {
        plan.blocking || self.full_sync(plan) || self.wal.log_starts_over()
    }

    fn full_sync(&self, plan: WritePlan) -> bool {
        self.wal.config.durability.full_sync(plan.signal)
    }
}

/// A call in the queue.
trait Call: Send {
    fn plan(&self) -> WritePlan;
    fn lease(&self) -> Option<&Arc<Lease>>;
    /// The remaining time that the call may wait for another process.
    fn backoff(&mut self) -> &mut BusyBackoff;
    /// Runs the operation and keeps its outcome. `false` if it failed.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Runs the operation in a transaction of its own.
    fn run_alone(&mut self, leader: &mut Leader);
    /// Replaces a kept success by the error of its commit.
    fn fail(&mut self, error: Error);
    /// Tells the caller.
    fn finish(self: Box<Self>);
}

struct Pending<T, F> {
    plan: WritePlan,
    lease: Option<Arc<Lease>>,
    operation: F,
    backoff: BusyBackoff,
    result: Option<Result<T>>,
    reply: Option<oneshot::Sender<Result<T>>>,
    /// Its place in the queue.
    _room: Option<OwnedSemaphorePermit>,
}

impl<T, F> Call for Pending<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T> + Send,
{
    fn plan(&self) -> WritePlan {
        self.plan
    }

    fn lease(&self) -> Option<&Arc<Lease>> {
        self.lease.as_ref()
    }

    fn backoff(&mut self) -> &mut BusyBackoff {
        &mut self.backoff
    }

    fn run(&mut self, connection: &Connection) -> bool {
        let result = (self.operation)(connection);
        let succeeded = result.is_ok();
        self.result = Some(result);
        succeeded
    }

    fn run_alone(&mut self, leader: &mut Leader) {
        self.result = Some(retry_busy(&mut self.backoff, || {
            leader.run_alone(self.plan, self.lease.as_ref(), &mut self.operation)
        }));
    }

    fn fail(&mut self, error: Error) {
        self.result = Some(Err(error));
    }

    fn finish(mut self: Box<Self>) {
        if let (Some(reply), Some(result)) = (self.reply.take(), self.result.take()) {
            // If the call's future was dropped, no one receives the result.
            let _ = reply.send(result);
        }
    }
}

/// The holder of the writing connection. Dropping it returns the connection, or passes it on.
struct Leader {
    writer: Arc<Writer>,
    connection: Option<Box<WriteConnection>>,
}

impl Leader {
    /// Takes the connection if it is free.
    fn take(writer: &Arc<Writer>) -> Option<Self> {
        let connection = writer.state().connection.take()?;
        Some(Self { writer: writer.clone(), connection: Some(connection) })
    }

    fn connection(&self) -> Result<&Connection> {
        // `drop` takes the connection; until then it is set.
        self.connection.as_ref().map(|holder| &holder.connection).ok_or(Error::WorkerGone)
    }

    /// Runs one call and commits it. Fails with contention at once.
    fn run_alone<T>(
        &mut self,
        plan: WritePlan,
        lease: Option<&Arc<Lease>>,
        operation: &mut impl FnMut(&Connection) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..SCHEMA_CHANGES {
            match self.attempt(plan, lease, operation) {
                // The call has not run at all.
                Err(error) if error.is_changed_schema() => self.writer.wal.check_schema(self.connection()?)?,
                result => return result,
            }
        }
        self.attempt(plan, lease, operation)
    }

    fn attempt<T>(
        &mut self,
        plan: WritePlan,
        lease: Option<&Arc<Lease>>,
        operation: &mut impl FnMut(&Connection) -> Result<T>,
    ) -> Result<T> {
        self.set_sync(self.writer.full_sync(plan))?;
        let connection = self.connection()?;
        if plan.outside_transactions {
            return operation(connection);
        }
        let result = if plan.multi_statement {
            in_transaction(connection, lease, operation)?
        } else {
            fenced_statement(connection, lease, operation)?
        };
        self.writer.after_commit()?;
        Ok(result)
    }

    /// Runs waiting calls for a while, as far as they may run on this thread.
    fn run_waiting_inline(mut self) {
        let start = Instant::now();
        while start.elapsed() < INLINE_TIME {
            let fits = |writer: &Writer, plan| !writer.needs_blocking_thread(plan);
            let mut calls = self.next_group(INLINE_GROUP, coop::BUDGET, fits);
            if calls.is_empty() {
                return;
            }
            coop::charge(calls.iter().map(|call| call.plan().cost).sum());
            match self.run_together(&mut calls) {
                Ok(true) => calls.into_iter().for_each(Call::finish),
                // The calls run one by one, or after waiting for another process, on a blocking
                // thread.
                Ok(false) | Err(_) => return self.put_back(calls),
            }
        }
    }

    fn run_groups_on_blocking_thread(self) {
        background::detached(move || self.run_groups());
    }

    /// Runs all waiting calls, in groups.
    fn run_groups(mut self) {
        loop {
            let mut calls = self.next_group(GROUP, u32::MAX, |_, _| true);
            if calls.is_empty() {
                return;
            }
            match if calls.len() > 1 { self.run_together(&mut calls) } else { Ok(false) } {
                Ok(true) => {}
                Ok(false) => {
                    let last = calls.pop();
                    for mut call in calls {
                        call.run_alone(&mut self);
                        call.finish();
                    }
                    calls = last.into_iter().collect();
                    calls.iter_mut().for_each(|call| call.run_alone(&mut self));
                }
                Err(error) => calls = self.wait_or_fail(calls, &error),
            }
            if self.writer.state().waiting.is_empty() {
                // Releases the connection before the callers are told: one of them may drop the
                // store and expect it to be closed.
                drop(self);
                return calls.into_iter().for_each(Call::finish);
            }
            calls.into_iter().for_each(Call::finish);
            self.writer.wal.let_readers_in();
        }
    }

    /// Handles a transaction that could not begin: puts back the calls that have time left, and
    /// waits a little. Returns the calls that failed.
    fn wait_or_fail(&self, mut calls: Vec<Box<dyn Call>>, error: &Error) -> Vec<Box<dyn Call>> {
        let pauses: Vec<_> =
            calls.iter_mut().map(|call| call.backoff().next().filter(|_| error.is_contention())).collect();
        let (mut waiting, mut failed) = (Vec::new(), Vec::new());
        for (mut call, pause) in calls.into_iter().zip(&pauses) {
            if pause.is_some() {
                waiting.push(call);
            } else {
                call.fail(error.duplicate());
                failed.push(call);
            }
        }
        self.put_back(waiting);
        if let Some(pause) = pauses.into_iter().flatten().min() {
            thread::sleep(pause);
        }
        failed
    }

    /// Puts calls back at the front of the queue.
    fn put_back(&self, calls: Vec<Box<dyn Call>>) {
        let mut state = self.writer.state();
        calls.into_iter().rev().for_each(|call| state.waiting.push_front(call));
    }

    /// Takes calls from the front of the queue that may share a transaction, up to a number, a
    /// cost, and the first that does not fit.
    fn next_group(&self, most: usize, budget: u32, fits: impl Fn(&Writer, WritePlan) -> bool) -> Vec<Box<dyn Call>> {
        let mut state = self.writer.state();
        let (mut count, mut spent) = (0, 0u32);
        for plan in state.waiting.iter().take(most).map(|call| call.plan()) {
            let alone = plan.blocking || plan.outside_transactions;
            spent = spent.saturating_add(plan.cost);
            if !fits(&self.writer, plan) || (count > 0 && (alone || spent > budget)) {
                break;
            }
            count += 1;
            if alone {
                break;
            }
        }
        state.batch_hint = match count {
            0 => state.batch_hint,
            1 => state.batch_hint.saturating_sub(1),
            _ => BATCH_HINT_CALLS,
        };
        state.waiting.drain(..count).collect()
    }

    /// Runs calls in one transaction. `false` if it was undone.
    ///
    /// # Errors
    /// If the transaction could not begin; no call has run then.
    fn run_together(&mut self, calls: &mut [Box<dyn Call>]) -> Result<bool> {
        self.set_sync(calls.iter().any(|call| self.writer.full_sync(call.plan())))?;
        let connection = self.connection()?;
        connection.run(BEGIN, ())?;
        // If one does not hold, the calls run one by one, and only those of its account fail.
        let fenced = fence_all(connection, calls.iter().filter_map(|call| call.lease()));
        let run = fenced.is_ok() && calls.iter_mut().all(|call| call.run(connection));
        if !run || connection.run(COMMIT, ()).is_err() {
            rollback(connection);
            return Ok(false);
        }
        if let Err(error) = self.writer.after_commit() {
            calls.iter_mut().for_each(|call| call.fail(error.duplicate()));
        }
        Ok(true)
    }

    /// Sets whether the next commit waits for the disk.
    fn set_sync(&mut self, full: bool) -> Result<()> {
        let Some(holder) = &mut self.connection else { return Err(Error::WorkerGone) };
        if holder.full_sync != Some(full) {
            holder.full_sync = None;
            holder.connection.pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })?;
            holder.full_sync = Some(full);
        }
        Ok(())
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let Some(holder) = self.connection.take() else { return };
        rollback(&holder.connection);
        let mut state = self.writer.state();
        if state.waiting.is_empty() {
            state.connection = Some(holder);
        } else {
            drop(state);
            Leader { writer: self.writer.clone(), connection: Some(holder) }.run_groups_on_blocking_thread();
        }
    }
}

/// A call in the queue. Dropping it makes sure that a leader runs it.
struct Queued<'a> {
    writer: &'a Arc<Writer>,
    /// The connection was free when the call came.
    unattended: bool,
    /// The call has run. Calls that still wait have their own guards.
    over: bool,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut state = self.writer.state();
        if self.over || state.waiting.is_empty() {
            return;
        }
        if let Some(connection) = state.connection.take() {
            drop(state);
            Leader { writer: self.writer.clone(), connection: Some(connection) }.run_groups_on_blocking_thread();
        }
    }
}
