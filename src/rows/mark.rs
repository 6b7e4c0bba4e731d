//! The mark of an account that was copied: it says where the account lives.

use crate::error::{Error, Result};

/// The copy that a mark is about: 16 bytes of a hash of the account, and 16 random bytes of this copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CopyId([u8; 32]);

impl CopyId {
    /// A new copy of an account.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub(crate) fn new(source: [u8; 16]) -> Result<Self> {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&source);
        getrandom::fill(&mut id[16..])?;
        Ok(Self(id))
    }

    /// `true` if this is a copy of that account.
    pub(crate) fn is_of(&self, source: &[u8; 16]) -> bool {
        self.0.starts_with(source)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The account lives in another store.
    Moved(CopyId),
    /// The account lives in another store, of which this is the beginning of a copy.
    Unfinished(CopyId),
    /// The account came from another store, and lives here.
    Complete(CopyId),
}

const MOVED: &[u8] = b"moved\0";
const UNFINISHED: &[u8] = b"copying\0";
const COMPLETE: &[u8] = b"copied\0";

impl Mark {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Self::Moved(id) => [MOVED, &id.0].concat(),
            Self::Unfinished(id) => [UNFINISHED, &id.0].concat(),
            Self::Complete(id) => [COMPLETE, &id.0].concat(),
        }
    }

    /// A mark that makes no sense is that of a copy that no source belongs to.
    pub(crate) fn of(stored: &[u8]) -> Self {
        let id = |rest: &[u8]| CopyId(rest.try_into().unwrap_or_default());
        if let Some(rest) = stored.strip_prefix(MOVED) {
            return Self::Moved(id(rest));
        }
        match stored.strip_prefix(COMPLETE) {
            Some(rest) => Self::Complete(id(rest)),
            None => Self::Unfinished(id(stored.strip_prefix(UNFINISHED).unwrap_or_default())),
        }
    }

    /// # Errors
    /// [`Error::AccountMoved`] and [`Error::CopyUnfinished`] if the account is not the one to use.
    pub(crate) fn refuse(self, account: i32) -> Result<()> {
        match self {
            Self::Moved(_) => Err(Error::AccountMoved { account }),
            Self::Unfinished(_) => Err(Error::CopyUnfinished { account }),
            Self::Complete(_) => Ok(()),
        }
    }
}
