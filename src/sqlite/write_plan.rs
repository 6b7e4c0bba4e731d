//! What the writing connection has to know about a call before it runs.

use super::coop;

/// What a call may do where the caller is: about 0.2 ms.
const INLINE_ROWS: usize = 128;
const INLINE_BYTES: usize = 256 * 1024;

/// What the queue has to know about a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct WritePlan {
    /// The commit is to survive a power cut under [`Durability::SignalState`](super::Durability).
    pub(super) signal: bool,
    /// More than one statement that changes something.
    pub(super) multi_statement: bool,
    pub(super) blocking: bool,
    pub(super) outside_transactions: bool,
    /// What the call costs where it runs.
    pub(super) cost: u32,
}

impl WritePlan {
    /// One statement on records that the client cannot fetch again.
    pub(super) const DURABLE: Self =
        Self { signal: true, multi_statement: false, blocking: false, outside_transactions: false, cost: coop::WRITE };
    /// One statement on records that the client can fetch again, or does without.
    pub(super) const RELAXED: Self = Self { signal: false, ..Self::DURABLE };
    /// Not in a transaction, on a blocking thread.
    pub(super) const MAINTENANCE: Self = Self { blocking: true, outside_transactions: true, ..Self::RELAXED };

    /// Several statements that belong together.
    pub(super) const fn transaction(self) -> Self {
        Self { multi_statement: true, ..self }
    }

    /// Too much to run on a thread of the async runtime.
    pub(super) const fn blocking(self) -> Self {
        Self { blocking: true, ..self }
    }

    /// One statement per row, and so many bytes in all.
    pub(super) const fn batch(self, rows: usize, bytes: usize) -> Self {
        let blocking = self.blocking || rows > INLINE_ROWS || bytes > INLINE_BYTES;
        // Beyond that it is blocking, and its cost not asked for.
        let cost = if blocking { 0 } else { rows as u32 * coop::ROW + bytes as u32 / coop::BYTES };
        Self { multi_statement: self.multi_statement || rows > 1, blocking, cost: self.cost + cost, ..self }
    }
}
