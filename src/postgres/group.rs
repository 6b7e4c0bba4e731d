//! Makes one transaction of the calls that wait together.

use std::borrow::Cow;

use super::lane::Call;
use super::statement::{Cell, Row, Statement};

/// How many calls form a group, and how many bytes they may have together.
pub(super) const GROUP_CALLS: usize = 256;
pub(super) const GROUP_BYTES: usize = 1 << 20;

/// How many rows and bytes a statement takes. Larger batches are split within their transaction.
const STATEMENT_ROWS: usize = 2000;
const STATEMENT_BYTES: usize = 4 << 20;

/// Calls that one statement carries out: neighbours with the same statement and account.
pub(super) struct Unit<'a> {
    pub(super) statement: &'static Statement,
    /// The places of its calls in the group.
    pub(super) calls: std::ops::Range<usize>,
    pub(super) account: i32,
    pub(super) epoch: i64,
    rows: Cow<'a, [Row]>,
}

/// Merges neighbours. The order of different statements stays, because they may concern the same rows.
pub(super) fn units(calls: &[Call]) -> Vec<Unit<'_>> {
    let mut units: Vec<Unit<'_>> = Vec::new();
    for (place, call) in calls.iter().enumerate() {
        if let Some(last) = units.last_mut()
            && std::ptr::eq(last.statement, call.statement)
            && last.account == call.account
            && call.statement.merges()
        {
            last.rows.to_mut().extend_from_slice(&call.rows);
            last.calls.end = place + 1;
            continue;
        }
        units.push(Unit {
            statement: call.statement,
            calls: place..place + 1,
            account: call.account,
            epoch: call.lease.as_ref().map_or(0, |lease| lease.epoch()),
            rows: Cow::Borrowed(&call.rows),
        });
    }
    for unit in &mut units {
        if let Cow::Owned(rows) = &mut unit.rows {
            *rows = unit.statement.fold(std::mem::take(rows));
        }
    }
    units
}

impl Unit<'_> {
    /// The rows of each of its statements: one, unless there are too many.
    pub(super) fn pieces(&self) -> Vec<&[Row]> {
        let mut pieces = vec![];
        let (mut begin, mut bytes) = (0, 0);
        for (place, row) in self.rows.iter().enumerate() {
            let size: usize = row.iter().map(Cell::size).sum();
            if place > begin && (place - begin == STATEMENT_ROWS || bytes + size > STATEMENT_BYTES) {
                pieces.push(&self.rows[begin..place]);
                (begin, bytes) = (place, 0);
            }
            bytes += size;
        }
        pieces.push(&self.rows[begin..]);
        pieces
    }
}
