//! How an error of this crate travels through the storage traits.

use wacore::store::error::StoreError;

use super::Error;
#[cfg(feature = "postgres")]
use super::PostgresProblem;
#[cfg(feature = "sqlite")]
use super::SqliteProblem;

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(inner) => inner,
            // Upstream looks for words in the reasons of errors. The anchor chose the words of this one, so it goes to
            // the log.
            Error::Anchor(reason) => {
                log::warn!("the rollback anchor cannot be used: {reason}");
                StoreError::Serialization(Box::new(Error::Anchor("the reason is in the log".into())))
            }
            Error::AccountMoved { .. } | Error::CopyUnfinished { .. } => StoreError::Database(Box::new(error)),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            Error::AccountInUse { .. } | Error::LeaseLost { .. } => StoreError::Database(Box::new(error)),
            #[cfg(feature = "postgres")]
            Error::Postgres { problem: PostgresProblem::Unreachable | PostgresProblem::TooManyConnections, .. } => {
                StoreError::Connection(Box::new(error))
            }
            #[cfg(feature = "postgres")]
            Error::Postgres { .. } | Error::ForeignSchema { .. } => StoreError::Database(Box::new(error)),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            Error::WorkerGone => StoreError::Database(Box::new(error)),
            #[cfg(feature = "sqlite")]
            Error::Sqlite { problem: SqliteProblem::CannotOpen, .. } => StoreError::Connection(Box::new(error)),
            #[cfg(feature = "sqlite")]
            Error::Sqlite { .. } | Error::SchemaAltered { .. } | Error::FileMoved | Error::StoreInUse => {
                StoreError::Database(Box::new(error))
            }
            own => StoreError::Serialization(Box::new(own)),
        }
    }
}
