//! What the writing connection has to know about a call before it runs.

use super::coop;

/// What a call may do where the caller is: about 0.2 ms.
const INLINE_ROWS: usize = 128;
const INLINE_BYTES: usize = 256 * 1024;

/// What the queue has to know about a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The commit is to survive a power cut under [`Durability::SignalState`](super::Durability).
    pub(super) signal: bool,
    /// More than one statement that changes something.
    pub(super) several: bool,
    pub(super) long: bool,
    pub(super) outside_transactions: bool,
    /// What the call costs where it runs.
    pub(super) cost: u32,
}

impl Plan {
    /// One statement on records that the client cannot fetch again.
    pub(super) const SIGNAL: Self =
        Self { signal: true, several: false, long: false, outside_transactions: false, cost: coop::WRITE };
    /// One statement on records that the client can fetch again, or does without.
    pub(super) const CACHE: Self = Self { signal: false, ..Self::SIGNAL };
    /// Not in a transaction, on a blocking thread.
    pub(super) const UPKEEP: Self = Self { long: true, outside_transactions: true, ..Self::CACHE };

    /// Several statements that belong together.
    pub(super) const fn transaction(self) -> Self {
        Self { several: true, ..self }
    }

    /// Too much to run on a thread of the async runtime.
    pub(super) const fn long(self) -> Self {
        Self { long: true, ..self }
    }

    /// One statement per row, and so many bytes in all.
    pub(super) const fn batch(self, rows: usize, bytes: usize) -> Self {
        let long = self.long || rows > INLINE_ROWS || bytes > INLINE_BYTES;
        // Beyond that it is long, and its cost not asked for.
        let cost = if long { 0 } else { rows as u32 * coop::ROW + bytes as u32 / coop::BYTES };
        Self { several: self.several || rows > 1, long, cost: self.cost + cost, ..self }
    }
}
