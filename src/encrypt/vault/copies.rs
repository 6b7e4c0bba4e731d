//! The two copies of a header: their addresses, and how they are read and written one after the other.

use std::sync::Arc;

use async_trait::async_trait;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::header::Header;
use crate::error::{Error, Result};
use crate::rows::table::HEADER_ADDRESSES;

/// The place of a vault's two header copies. The default is the store itself.
///
/// Implement it to keep the copies apart from the store: on a token, in a keyring, on another disk. A write must
/// replace the copy as a whole and be durable when it returns.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait HeaderStore: Send + Sync {
    /// Returns the bytes last written to this copy, or `None` if there are none.
    async fn read(&self, copy: HeaderCopy) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces this copy with `bytes`, at most 16 KiB.
    async fn write(&self, copy: HeaderCopy, bytes: &[u8]) -> Result<(), StoreError>;
}

/// One of the two copies of a vault header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderCopy {
    /// The first copy.
    A,
    /// The second copy.
    B,
}

impl HeaderCopy {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The address of the copy among the sender keys.
    pub(crate) const fn address(self) -> &'static str {
        match self {
            HeaderCopy::A => HEADER_ADDRESSES[0],
            HeaderCopy::B => HEADER_ADDRESSES[1],
        }
    }

    /// The copy with this address.
    pub(crate) fn of(address: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|copy| copy.address() == address)
    }

    /// `true` if this copy may become `new`. For a store that can look at both copies and write in one step.
    ///
    /// Copy A changes only to a successor of itself, or it catches up with a newer copy B. Copy B follows copy A. A
    /// damaged copy may be replaced, but never replaces an intact one.
    pub(crate) fn may_become(self, new: &[u8], a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
        let Some((a, checksum)) = a.and_then(|a| Some((a, Header::checksum(a)?))) else { return true };
        let Ok(header) = Header::parse(new) else { return false };
        let generation = |bytes: &[u8]| Header::parse(bytes).map_or(0, |header| header.generation);
        match self {
            HeaderCopy::A => {
                a == new || header.previous() == Some(checksum) || (b == Some(new) && header.generation > generation(a))
            }
            HeaderCopy::B => a == new,
        }
    }
}

/// Headers among the sender keys of the store itself.
pub(super) struct InBackend(pub(super) Arc<dyn Backend>);

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
impl HeaderStore for InBackend {
    async fn read(&self, copy: HeaderCopy) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get_sender_key(copy.address()).await
    }

    async fn write(&self, copy: HeaderCopy, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.put_sender_key(copy.address(), bytes).await
    }
}

/// One header copy as it was found.
pub(super) enum Found {
    Absent,
    Damaged(Error),
    Intact(Intact),
}

pub(super) struct Intact {
    pub(super) bytes: Vec<u8>,
    pub(super) header: Header,
}

impl Found {
    /// # Errors
    /// [`Error::Store`], and [`Error::UnsupportedVersion`], which must not be mistaken for damage and overwritten.
    pub(super) async fn read(headers: &dyn HeaderStore, copy: HeaderCopy) -> Result<Self> {
        let Some(bytes) = headers.read(copy).await? else { return Ok(Found::Absent) };
        match Header::parse(&bytes) {
            Ok(header) => Ok(Found::Intact(Intact { bytes, header })),
            Err(error @ Error::HeaderDamaged(_)) => Ok(Found::Damaged(error)),
            Err(error) => Err(error),
        }
    }
}

/// Both header copies as they were found.
pub(super) struct Copies {
    pub(super) a: Found,
    pub(super) b: Found,
}

/// The one header to open: the intact copy of the higher generation. There is no fallback to the other copy if the
/// secret does not fit. Otherwise a removed secret would open an old copy that a crash left behind.
pub(super) struct Candidate {
    pub(super) bytes: Vec<u8>,
    pub(super) header: Header,
    pub(super) stale: Stale,
}

/// The state of the other copy.
#[derive(PartialEq, Eq)]
pub(super) enum Stale {
    /// The same or older, as a crash between the two writes leaves it.
    No,
    /// Damaged or gone.
    Damaged,
    /// Of the same generation, but with other content.
    Fork,
}

impl Copies {
    /// Reads both copies. Reads again if they look as if two processes are just writing them.
    pub(super) async fn read(headers: &dyn HeaderStore) -> Result<Self> {
        let mut tries = 0..UPDATE_TRIES;
        loop {
            let (a, b) = (Found::read(headers, HeaderCopy::A).await?, Found::read(headers, HeaderCopy::B).await?);
            let copies = Self { a, b };
            if !copies.is_fork() || tries.next().is_none() {
                return Ok(copies);
            }
        }
    }

    /// Two intact headers of the same generation with different content.
    pub(super) fn is_fork(&self) -> bool {
        match (&self.a, &self.b) {
            (Found::Intact(a), Found::Intact(b)) => a.header.generation == b.header.generation && a.bytes != b.bytes,
            _ => false,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!((&self.a, &self.b), (Found::Absent, Found::Absent))
    }

    pub(super) fn candidate(self) -> Result<Candidate> {
        let fork = self.is_fork();
        let (Intact { bytes, header }, stale) = match (self.a, self.b) {
            (Found::Intact(a), Found::Intact(b)) => {
                let newer = if b.header.generation > a.header.generation { b } else { a };
                (newer, if fork { Stale::Fork } else { Stale::No })
            }
            (Found::Intact(intact), _) | (_, Found::Intact(intact)) => (intact, Stale::Damaged),
            (Found::Damaged(error), _) | (_, Found::Damaged(error)) => return Err(error),
            (Found::Absent, Found::Absent) => return Err(Error::HeaderMissing),
        };
        Ok(Candidate { bytes, header, stale })
    }
}

/// Writes a header to both copies and reads them back. With several writers at once copy A decides: a process that
/// finds another header there makes copy B follow. (Two processes cannot agree for certain only by reading and writing.
/// Letting A follow as well was tried, and ends with the copies exchanged.)
///
/// # Errors
/// [`Error::HeaderConflict`] if the copies read back differ from `bytes`.
pub(super) async fn write_header(headers: &dyn HeaderStore, bytes: &[u8]) -> Result<()> {
    write_copy(headers, HeaderCopy::A, bytes).await?;
    if headers.read(HeaderCopy::A).await?.as_deref() != Some(bytes) {
        return Err(Error::HeaderConflict);
    }
    for _ in 0..UPDATE_TRIES {
        write_copy(headers, HeaderCopy::B, bytes).await?;
        let decisive = headers.read(HeaderCopy::A).await?;
        if decisive.as_deref() != Some(bytes) {
            follow_a(headers, decisive).await?;
            return Err(Error::HeaderConflict);
        }
        if headers.read(HeaderCopy::B).await?.as_deref() == Some(bytes) {
            return Ok(());
        }
    }
    Err(Error::HeaderConflict)
}

/// # Errors
/// [`Error::HeaderConflict`] if the store can tell that it holds another header than the one that `bytes` was made
/// from.
pub(super) async fn write_copy(headers: &dyn HeaderStore, copy: HeaderCopy, bytes: &[u8]) -> Result<()> {
    match headers.write(copy, bytes).await {
        Err(error) if matches!(Error::downcast_ref(&error), Some(Error::HeaderConflict)) => Err(Error::HeaderConflict),
        written => Ok(written?),
    }
}

/// Copies A to B, until they agree or A is not worth copying.
pub(super) async fn follow_a(headers: &dyn HeaderStore, mut found: Option<Vec<u8>>) -> Result<()> {
    for _ in 0..UPDATE_TRIES {
        let Some(header) = found.filter(|found| Header::parse(found).is_ok()) else { break };
        write_copy(headers, HeaderCopy::B, &header).await?;
        found = headers.read(HeaderCopy::A).await?;
        if found.as_ref() == Some(&header) {
            break;
        }
    }
    Ok(())
}

/// # Errors
/// [`Error::VaultExists`] or [`Error::HeaderDamaged`] if there is a header or the rest of one.
pub(super) async fn refuse_existing(headers: &dyn HeaderStore) -> Result<()> {
    for copy in HeaderCopy::BOTH {
        match Found::read(headers, copy).await? {
            Found::Absent => {}
            Found::Damaged(error) => return Err(error),
            Found::Intact(_) => return Err(Error::VaultExists),
        }
    }
    Ok(())
}

/// The number of tries to change the header while other processes write it too.
pub(super) const UPDATE_TRIES: usize = 8;
