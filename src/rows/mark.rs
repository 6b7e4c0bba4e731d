//! The mark of an account that is not the one to use: it moved to another store, or its copy is not complete.

use crate::error::{Error, Result};

/// The account whose copy a mark is about: a hash of the id of its vault, or of the key of its device.
pub(crate) type CopyId = [u8; 32];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The account lives in another store.
    Moved(CopyId),
    /// The account lives in another store, of which this is the beginning of a copy.
    Unfinished(CopyId),
}

const MOVED: &[u8] = b"moved\0";
const UNFINISHED: &[u8] = b"copying\0";

impl Mark {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Self::Moved(id) => [MOVED, &id].concat(),
            Self::Unfinished(id) => [UNFINISHED, &id].concat(),
        }
    }

    /// A mark that makes no sense is that of a copy that no source belongs to.
    pub(crate) fn of(stored: &[u8]) -> Self {
        let id = |rest: &[u8]| CopyId::try_from(rest).unwrap_or_default();
        match stored.strip_prefix(MOVED) {
            Some(rest) => Self::Moved(id(rest)),
            None => Self::Unfinished(id(stored.strip_prefix(UNFINISHED).unwrap_or_default())),
        }
    }

    /// # Errors
    /// [`Error::AccountMoved`] and [`Error::CopyUnfinished`].
    pub(crate) fn refuse(self, account: i32) -> Result<()> {
        Err(match self {
            Self::Moved(_) => Error::AccountMoved { account },
            Self::Unfinished(_) => Error::CopyUnfinished { account },
        })
    }
}
