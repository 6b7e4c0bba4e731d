//! The properties of a call that the writing connection needs before it runs the call.

use super::coop;

/// How much a call may do on the caller's thread: about 0.2 ms.
const INLINE_ROWS: usize = 128;
const INLINE_BYTES: usize = 256 * 1024;

/// The properties of a call that the queue needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct WritePlan {
    /// The commit has to survive a power cut under [`Durability::SignalState`](super::Durability).
    pub(super) signal: bool,
    /// More than one statement that writes.
    pub(super) multi_statement: bool,
    pub(super) blocking: bool,
    pub(super) outside_transactions: bool,
    /// The cost of the call on the thread where it runs.
    pub(super) cost: u32,
}

impl WritePlan {
    /// One statement on records that the client cannot fetch again.
    pub(super) const DURABLE: Self =
        Self { signal: true, multi_statement: false, blocking: false, outside_transactions: false, cost: coop::WRITE };
    /// One statement on records that the client can fetch again, or does without.
    pub(super) const RELAXED: Self = Self { signal: false, ..Self::DURABLE };
    /// Outside a transaction, on a blocking thread.
    pub(super) const MAINTENANCE: Self = Self { blocking: true, outside_transactions: true, ..Self::RELAXED };

    /// Several statements that belong together.
    pub(super) const fn transaction(self) -> Self {
        Self { multi_statement: true, ..self }
    }

    /// Too much work for a thread of the async runtime.
    pub(super) const fn blocking(self) -> Self {
        Self { blocking: true, ..self }
    }

    /// One statement per row, and `bytes` bytes in all.
    pub(super) const fn batch(self, rows: usize, bytes: usize) -> Self {
        let blocking = self.blocking || rows > INLINE_ROWS || bytes > INLINE_BYTES;
        // A larger call is blocking, so its cost does not matter.
        let cost = if blocking { 0 } else { rows as u32 * coop::ROW + bytes as u32 / coop::BYTES };
        Self { multi_statement: self.multi_statement || rows > 1, blocking, cost: self.cost + cost, ..self }
    }
}
