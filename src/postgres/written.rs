//! Finds out whether a failover took acknowledged writes back.
//!
//! A standby that did not wait for its primary may lack the last commits when it is promoted. The client would go on from
//! older sessions then, and use message keys twice. The server's log is a prefix of the old one: if the newest
//! acknowledged commit is there, all earlier ones are. So the store remembers one row of the newest durable call of each
//! account, and looks for it whenever a connection leads to a server that was started again or promoted.

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

/// The newest durable writes of an account.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    acknowledged: Option<Proof>,
    /// Rows of the same key that were sent later and got no answer. One of them may stand in its place.
    unanswered: Vec<Proof>,
}

impl Written {
    /// Notes a call that is acknowledged. Call this before the caller learns of it.
    pub(super) fn acknowledge(&mut self, statement: &'static Statement, rows: &[Row], durable: bool) {
        if durable
            && statement.proof.is_some()
            && let Some(row) = rows.last()
        {
            self.acknowledged = Some(Proof { statement, row: row.clone() });
            self.unanswered.clear();
        } else if self.is_touched_by(statement, rows) {
            *self = Self::default();
        }
    }

    /// Notes a call that was sent and got no answer, so it may have been carried out.
    pub(super) fn leave_unanswered(&mut self, statement: &'static Statement, rows: &[Row]) {
        if !self.is_touched_by(statement, rows) {
            return;
        }
        match (statement.proof, rows.last()) {
            (Some(_), Some(row)) => self.unanswered.push(Proof { statement, row: row.clone() }),
            _ => *self = Self::default(),
        }
    }

    fn is_touched_by(&self, statement: &Statement, rows: &[Row]) -> bool {
        self.acknowledged.as_ref().is_some_and(|proof| proof.is_touched_by(statement, rows))
    }

    /// `true` if the server has what was acknowledged last, or what may have been written over it.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn is_on(&self, link: &Link, account: i32) -> Result<bool, Failure> {
        let Some(acknowledged) = &self.acknowledged else { return Ok(true) };
        for proof in std::iter::once(acknowledged).chain(&self.unanswered) {
            if proof.holds(account, link).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
