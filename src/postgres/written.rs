//! Finds out whether a failover took acknowledged writes back.
//!
//! A standby that did not wait for its primary may lack the last commits when it is promoted. The client would go on from
//! older sessions then, and use message keys twice. The server's log is a prefix of the old one: if the newest
//! acknowledged commit is there, all earlier ones are. So the store remembers a row of each of the newest durable calls of an
//! account, and looks for them whenever a connection leads to a server that was started again or promoted.

use std::collections::VecDeque;

use tokio_postgres::types::{ToSql, Type};

use super::failure::Failure;
use super::link::Link;
use super::statement::{Parameter, Row, Statement};
/// A row as a statement left it.
#[derive(Debug, Clone)]
struct Proof {
    statement: &'static Statement,
    row: Row,
}

impl Proof {
    /// `true` if a row of another statement may stand in the place of this one.
    fn is_touched_by(&self, statement: &Statement, rows: &[Row]) -> bool {
        let keys = self.statement.key.min(statement.key);
        let touches = |row: &Row| self.row.iter().take(keys).eq(row.iter().take(keys));
        self.statement.record == statement.record && rows.iter().any(touches)
    }

    /// `true` if the server has the row.
    async fn holds(&self, account: i32, link: &Link) -> Result<bool, Failure> {
        let Some(sql) = self.statement.proof else { return Ok(true) };
        let parameters: Vec<Parameter<'_>> = self.row.iter().map(Parameter::One).collect();
        let types = self.statement.columns.iter().map(|column| column.of_one());
        let of_account: (&(dyn ToSql + Sync), Type) = (&account, Type::INT4);
        let rest = parameters.iter().map(|parameter| parameter as &(dyn ToSql + Sync)).zip(types);
        let all: Vec<_> = std::iter::once(of_account).chain(rest).collect();
        let rows = link.ask(sql, &all).await?;
        Ok(rows.first().map_or(Ok(false), |row| row.try_get(0))?)
    }
}

/// How many rows are remembered. The newest call may have changed nothing, or deleted what was not there.
const REMEMBERED: usize = 4;

/// The newest durable writes of an account.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    /// The oldest one first.
    acknowledged: VecDeque<Proof>,
    /// Rows of the same keys that were sent later and are not acknowledged. One of them may stand in the place of such a
    /// row.
    sent: Vec<Proof>,
    /// Counts the changes of this value.
    pub(super) version: u64,
}

impl Written {
    /// Notes a call that is about to be sent, and may be carried out.
    pub(super) fn note_sent(&mut self, statement: &'static Statement, rows: &[Row]) {
        for row in rows {
            let row = std::slice::from_ref(row);
            if !self.acknowledged.iter().any(|proof| proof.is_touched_by(statement, row)) {
                continue;
            }
            self.version += 1;
            if statement.proof.is_none() {
                self.forget(statement, row);
            } else if !self.sent.iter().any(|sent| std::ptr::eq(sent.statement, statement) && sent.row == row[0]) {
                self.sent.push(Proof { statement, row: row[0].clone() });
            }
        }
    }

    /// Notes a call that is acknowledged. Call this before the caller learns of it.
    pub(super) fn acknowledge(&mut self, statement: &'static Statement, rows: &[Row], durable: bool) {
        self.forget(statement, rows);
        if durable
            && statement.proof.is_some()
            && let Some(row) = rows.last()
        {
            self.version += 1;
            self.acknowledged.push_back(Proof { statement, row: row.clone() });
            if self.acknowledged.len() > REMEMBERED {
                self.acknowledged.pop_front();
            }
        }
    }

    /// Forgets the rows that others may stand in the place of.
    fn forget(&mut self, statement: &Statement, rows: &[Row]) {
        self.acknowledged.retain(|proof| !proof.is_touched_by(statement, rows));
        self.sent.retain(|proof| !proof.is_touched_by(statement, rows));
    }

    /// `true` if the server has what was acknowledged last, or what may have been written over it.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn is_on(&self, link: &Link, account: i32) -> Result<bool, Failure> {
        'rows: for proof in &self.acknowledged {
            let row = std::slice::from_ref(&proof.row);
            let later = self.sent.iter().filter(|sent| sent.is_touched_by(proof.statement, row));
            for proof in std::iter::once(proof).chain(later) {
                if proof.holds(account, link).await? {
                    continue 'rows;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }
}
