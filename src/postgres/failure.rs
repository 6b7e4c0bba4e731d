//! Why an attempt to run a call failed, and whether another attempt may succeed.

use tokio_postgres::error::{DbError, Severity};

use super::problem;
use crate::error::{Error, PostgresProblem};
use crate::method::Record;

/// The longest key that an index of PostgreSQL holds if it does not compress: a third of a page of 8 KiB.
const KEY_BYTES: usize = 2704;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The driver or the server says why.
    Driver(tokio_postgres::Error),
    /// No answer came in time.
    NoAnswer,
    /// The commit stopped to wait for its standby: it may be on this server only.
    NotSynced,
    /// The connection could not be made, or leads to the wrong server.
    Connect(Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

impl Failure {
    pub(super) fn no_server() -> Self {
        Self::Connect(problem::of_store(PostgresProblem::Unreachable))
    }

    pub(super) fn problem(&self) -> PostgresProblem {
        match self {
            Self::Driver(error) => problem::problem_of(error),
            Self::NoAnswer => PostgresProblem::Unreachable,
            Self::NotSynced => PostgresProblem::OutcomeUnknown,
            Self::Connect(Error::Postgres { problem, .. }) => *problem,
            Self::Connect(_) => PostgresProblem::Other,
        }
    }

    /// The SQLSTATE, or nothing.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Driver(error) => error.code().map_or("", |code| code.code()),
            _ => "",
        }
    }

    /// The connection is gone or of no use, and the outcome of what was sent is unknown.
    pub(super) fn breaks_connection(&self) -> bool {
        match self {
            Self::NoAnswer | Self::NotSynced | Self::Connect(_) => true,
            Self::Driver(error) => {
                let severity = error.as_db_error().and_then(DbError::parsed_severity);
                // The server ends the connection, whatever the code says. A panic may come after the commit was logged.
                matches!(severity, Some(Severity::Fatal | Severity::Panic))
                    || matches!(self.problem(), PostgresProblem::Unreachable | PostgresProblem::ReadOnly)
            }
        }
    }

    /// The server forgot a prepared statement, or its tables changed.
    pub(super) fn is_stale_statement(&self) -> bool {
        matches!(self.code(), "26000" | "0A000")
    }

    /// Another attempt may succeed.
    pub(super) fn is_passing(&self) -> bool {
        self.breaks_connection() || self.is_stale_statement() || self.problem() == PostgresProblem::Contended
    }

    /// The error for the caller.
    pub(super) fn into_error(self, record: Record) -> Error {
        match self {
            // `program_limit_exceeded`: the index cannot hold the key.
            failure if failure.code() == "54000" => Error::InputTooLong { record, what: "key", limit: KEY_BYTES },
            Self::Connect(error) => error,
            Self::Driver(error) => problem::error_of(&error),
            Self::NoAnswer | Self::NotSynced => problem::of_store(self.problem()),
        }
    }
}
