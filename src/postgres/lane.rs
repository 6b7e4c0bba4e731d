//! Lanes: tasks with a queue and one connection each.
//!
//! Calls never use a connection themselves. A caller that is dropped or not polled would stall the connection for all
//! others, and a call whose connection breaks must be repeated whether or not its caller still waits. So a call goes
//! into the queue of a lane, and the lane sends back the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::lease::Lease;
use super::problem;
use super::statement::{Answer, Cell, Row, Statement};
use super::stats::Wait;
use crate::error::{Error, PostgresProblem, Result};
use crate::rows::mark::Mark;
use crate::sync::IgnorePoison;

/// How many calls a queue holds. Further callers wait until there is room.
pub(super) const QUEUE: usize = 1024;

/// A call in a queue.
pub(super) struct Call {
    pub(super) statement: &'static Statement,
    /// The account of a read, and the lease of a write.
    pub(super) account: i32,
    pub(super) lease: Option<Arc<Lease>>,
    /// At least one; reads have one.
    pub(super) rows: Vec<Row>,
    pub(super) durable: bool,
    pub(super) deadline: Instant,
    /// It was sent over a connection that broke before the answer came.
    pub(super) unanswered: bool,
    /// Until a lane takes the call out of its queue.
    pub(super) wait: Option<Wait>,
    pub(super) reply: oneshot::Sender<Result<Answer>>,
}

impl Call {
    pub(super) fn size(&self) -> usize {
        self.rows.iter().flatten().map(Cell::size).sum()
    }

    /// The call is acknowledged. A failover must not take it back unnoticed.
    pub(super) fn note_acknowledged(&self) {
        if let Some(lease) = &self.lease {
            lease.written.lock().ignore_poison().acknowledge(self.statement, &self.rows, self.durable);
        }
    }

    /// The call is about to be sent.
    pub(super) fn note_sent(&self) {
        if let Some(lease) = &self.lease {
            lease.written.lock().ignore_poison().note_sent(self.statement, &self.rows);
        }
    }

    /// Answers the call with the problem that stood in its way until its deadline.
    pub(super) fn expire(self, problem: PostgresProblem) {
        let problem = if self.unanswered { PostgresProblem::OutcomeUnknown } else { problem };
        self.answer(Err(problem::of_store(problem)));
    }

    pub(super) fn answer(self, answer: Result<Answer>) {
        // The caller may be gone.
        let _ = self.reply.send(answer);
    }
}

/// Work of a writing lane.
pub(super) enum Job {
    Call(Call),
    /// Takes the lease of an account once, and says which name has it otherwise.
    Acquire(Arc<Lease>, oneshot::Sender<Result<Acquired>>),
    /// Answers when all jobs before it are done.
    Barrier(oneshot::Sender<()>),
}

/// The outcome of one attempt to take a lease.
#[derive(Debug)]
pub(super) enum Acquired {
    Held,
    /// The lease name of the other holder.
    InUse(String),
    /// The account is not the one to use.
    Marked(Mark),
}

/// Waits for room in a queue, at most until the deadline.
///
/// # Errors
/// [`PostgresProblem::Overloaded`], and [`Error::Closed`] if the lane has ended.
pub(super) async fn send<T>(queue: &mpsc::Sender<T>, deadline: Instant, job: T) -> Result<()> {
    match timeout_at(deadline, queue.reserve()).await {
        Ok(Ok(room)) => {
            room.send(job);
            Ok(())
        }
        Ok(Err(_)) => Err(Error::Closed { what: "store" }),
        Err(_) => Err(problem::of_store(PostgresProblem::Overloaded)),
    }
}

/// The problem of a call whose deadline passed while a connection was made: that of the attempts before, if there is one.
pub(super) fn at_deadline(before: PostgresProblem) -> PostgresProblem {
    match before {
        PostgresProblem::Overloaded => PostgresProblem::Unreachable,
        known => known,
    }
}

/// Growing pauses between attempts, with jitter so that lanes and processes do not meet again.
pub(super) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// Between attempts over one connection: 2 ms to 200 ms.
    pub(super) fn between_attempts() -> Self {
        Self { next: Duration::from_millis(2), longest: Duration::from_millis(200) }
    }

    /// For connections: 20 ms to 1 s.
    pub(super) fn between_connections() -> Self {
        Self { next: Duration::from_millis(20), longest: Duration::from_secs(1) }
    }

    pub(super) async fn pause(&mut self) {
        let mut random = [0; 2];
        // Without random bytes the pause is only less random.
        let _ = getrandom::fill(&mut random);
        let part = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
        tokio::time::sleep(self.next.mul_f64(0.5 + 0.5 * part)).await;
        self.next = (self.next * 2).min(self.longest);
    }
}
