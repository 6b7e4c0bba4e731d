//! Questions that this crate asks about an error.

use super::Error;

impl Error {
    /// `true` if the store failed, and not the row or the vault.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn is_of_the_store(&self) -> bool {
        match self {
            Error::Store(_)
            | Error::AccountInUse { .. }
            | Error::LeaseLost { .. }
            | Error::AccountMoved { .. }
            | Error::CopyUnfinished { .. } => true,
            #[cfg(feature = "postgres")]
            Error::Postgres { .. } => true,
            #[cfg(feature = "sqlite")]
            Error::Sqlite { .. } => true,
            _ => false,
        }
    }

    /// The same error for another call that shared the transaction.
    #[cfg(feature = "sqlite")]
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Error::Sqlite { problem, source } => Error::Sqlite { problem: *problem, source: source.clone() },
            Error::FileMoved => Error::FileMoved,
            Error::AccountDeleted => Error::AccountDeleted,
            Error::Closed { what } => Error::Closed { what },
            Error::LeaseLost { account } => Error::LeaseLost { account: *account },
            Error::AccountMoved { account } => Error::AccountMoved { account: *account },
            Error::CopyUnfinished { account } => Error::CopyUnfinished { account: *account },
            Error::SchemaAltered { object } => Error::SchemaAltered { object: object.clone() },
            _ => Error::WorkerGone,
        }
    }

    /// `true` if the rollback anchor prevents opening the vault.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn is_about_rollback(&self) -> bool {
        matches!(self, Error::RollbackDetected | Error::ForkDetected | Error::AnchorMissing | Error::Anchor(_))
    }

    /// `true` if the stored record is at fault, not the store, the vault or the caller.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Error::Tampered { .. } | Error::Plaintext { .. } | Error::UnknownEpoch { .. })
    }
}
