//! Detects an older or a second copy of the whole store.
//!
//! Seals and generations cannot do that, because a copy is complete. It takes a memory elsewhere of the newest header.
//! A header is written first and remembered second, and it names the header that it replaced. So after a crash in
//! between, the header is one step ahead of the memory, and is recognised by the name of its predecessor.

use std::error::Error as StdError;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::header::Header;
use crate::encrypt::format::keys::StoreId;
use crate::error::{Error, Result};

/// Remembers the newest header of each store, in a place that is not copied or restored together with the store:
/// another disk, another machine, a TPM's counter. Set it with
/// [`VaultOptions::rollback_anchor`](crate::VaultOptions::rollback_anchor). [`FileAnchor`](crate::vault::FileAnchor) is
/// one.
///
/// With it, opening a copy from before the last write of the header fails with [`Error::RollbackDetected`]. Opening a
/// copy that went on by itself since then fails with [`Error::ForkDetected`].
///
/// The header is written when a vault is opened, when its secrets or data keys change, and by
/// [`Vault::renew_anchor`](crate::Vault::renew_anchor). **Call that after every backup**, because a copy that is as new
/// as the header passes for the store. The anchor is asked whenever the header is read or written. If a store and its
/// copy are both in use with one anchor, the second one to ask it gets the error.
///
/// An anchor does not detect
///
/// * a single row that was put back;
/// * a store whose header is kept elsewhere ([`VaultOptions::header_store`](crate::VaultOptions::header_store)).
///
/// It also remembers that there was a store at a path. If the file is gone,
/// [`Vault::open_or_create`](crate::Vault::open_or_create) fails with [`Error::StoreVanished`]. It does not begin from
/// nothing, because the account would be paired again. Machines that share an anchor therefore need different paths, or
/// a [`VaultOptions::context`](crate::VaultOptions::context) each, which takes the place of the path.
///
/// A header has to be on the disk before it is remembered. Otherwise a power cut takes the store back behind its
/// anchor. Over [`SqliteStore`](crate::SqliteStore) use any durability but `Process`. Other stores cannot compare and
/// swap: there let one process at a time open or change the vault.
///
/// ```
/// # use std::sync::Arc;
/// # use wacore::store::InMemoryBackend;
/// use wastore::{Error, Passphrase, VaultOptions};
/// use wastore::vault::FileAnchor;
///
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// # let (store, passphrase) = (Arc::new(InMemoryBackend::new()), || Passphrase::new("correct horse battery staple"));
/// let options = VaultOptions::new().rollback_anchor(Arc::new(FileAnchor::new(folder.path())));
/// options.create(store.clone(), passphrase()?).await?;
/// options.open(store, passphrase()?).await?;
/// # Ok::<(), Error>(())
/// # }).unwrap();
/// ```
///
/// Kept in a database or a key-value store that can compare and swap:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
/// use wastore::vault::{Anchor, RollbackAnchor};
///
/// /// Stands for a table with the columns `store` and `anchor`.
/// #[derive(Default)]
/// struct Table(Mutex<HashMap<[u8; 16], [u8; Anchor::BYTES]>>);
///
/// #[async_trait::async_trait]
/// impl RollbackAnchor for Table {
///     async fn load(&self, store: &[u8; 16]) -> Result<Option<Anchor>, Box<dyn std::error::Error + Send + Sync>> {
///         // SELECT anchor FROM anchors WHERE store = ?
///         Ok(self.0.lock().unwrap().get(store).map(Anchor::from_bytes))
///     }
///
///     async fn advance(
///         &self,
///         store: &[u8; 16],
///         from: Option<Anchor>,
///         to: Anchor,
///     ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
///         // UPDATE anchors SET anchor = ? WHERE store = ? AND anchor = ?, or INSERT if there is no `from`.
///         let mut table = self.0.lock().unwrap();
///         let same = table.get(store).map(Anchor::from_bytes) == from;
///         if same {
///             table.insert(*store, to.to_bytes());
///         }
///         Ok(same)
///     }
/// }
/// # futures::executor::block_on(async {
/// # let store = std::sync::Arc::new(wacore::store::InMemoryBackend::new());
/// # let options = wastore::VaultOptions::new().rollback_anchor(std::sync::Arc::new(Table::default()));
/// # options.create(store, wastore::Key::generate()?).await?;
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait RollbackAnchor: Send + Sync {
    /// Returns the remembered anchor of the store with this id, or `None` if there never was one.
    async fn load(&self, store: &[u8; 16]) -> Result<Option<Anchor>, AnchorError>;

    /// Replaces `from` by `to`, in one step and durably, and returns `true`. Returns `false` and changes nothing if the
    /// remembered anchor is not `from`. After an error either may be remembered, but it should be `from`.
    async fn advance(&self, store: &[u8; 16], from: Option<Anchor>, to: Anchor) -> Result<bool, AnchorError>;
}

/// The reason why an anchor failed.
pub(super) type AnchorError = Box<dyn StdError + Send + Sync>;

/// Identifies the newest header of a store. Holds nothing secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Anchor {
    pub(super) generation: u64,
    /// The checksum in the header. The next header names its predecessor by it.
    pub(super) checksum: [u8; 16],
}

impl Anchor {
    /// The length of [`Anchor::to_bytes`].
    pub const BYTES: usize = 24;

    /// The anchor as bytes: the header's generation, little-endian, and its checksum, as `docs/format.md` describes them.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum);
        bytes
    }

    /// The anchor that [`Anchor::to_bytes`] returned.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (mut generation, mut checksum) = ([0; 8], [0; 16]);
        generation.copy_from_slice(&bytes[..8]);
        checksum.copy_from_slice(&bytes[8..]);
        Self { generation: u64::from_le_bytes(generation), checksum }
    }

    /// The generation of the header.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// # Errors
    /// [`Error::HeaderDamaged`] if `bytes` are not those of the header.
    fn of(header: &Header, bytes: &[u8]) -> Result<Self> {
        let checksum = Header::checksum(bytes).ok_or(Error::HeaderDamaged("its checksum is wrong"))?;
        Ok(Self { generation: header.generation, checksum })
    }
}

/// The anchor of a vault, if it has one.
#[derive(Clone, Default)]
pub(super) struct OptionalAnchor(pub(in crate::encrypt) Option<Arc<dyn RollbackAnchor>>);

impl OptionalAnchor {
    /// The remembered anchor of a store. Also shows whether the anchor works at all.
    pub(super) async fn load(&self, store: &StoreId) -> Result<Option<Anchor>> {
        match &self.0 {
            Some(anchor) => match anchor.load(store).await {
                // No store gets there, and one that did could not go on.
                Ok(Some(known)) if known.generation > u64::MAX / 2 => {
                    Err(Error::Anchor("its generation is impossibly high".into()))
                }
                loaded => loaded.map_err(Error::Anchor),
            },
            None => Ok(None),
        }
    }

    /// Checks a verified header. If it is one step ahead, remembers it, unless `read_only` forbids that.
    ///
    /// # Errors
    /// [`Error::RollbackDetected`], [`Error::ForkDetected`], [`Error::AnchorMissing`], [`Error::Anchor`];
    /// [`Error::HeaderConflict`] if another process writes the header at the same time.
    pub(super) async fn check(&self, header: &Header, bytes: &[u8], read_only: bool) -> Result<()> {
        if self.0.is_none() {
            return Ok(());
        }
        let known = self.load(&header.store_id).await?;
        let found = Anchor::of(header, bytes)?;
        if known == Some(found) {
            return Ok(());
        }
        match known {
            Some(known) if found.generation < known.generation => return Err(Error::RollbackDetected),
            // The process that wrote it had not seen the remembered header.
            Some(known) if header.previous() != Some(known.checksum) => return Err(Error::ForkDetected),
            // At generation 1 its creator has died, or is about to remember it.
            None if header.generation > 1 => return Err(Error::AnchorMissing),
            _ => {}
        }
        if read_only { Ok(()) } else { self.advance(known, header, bytes).await }
    }

    /// Remembers a header that was written in place of the one of `known`.
    ///
    /// # Errors
    /// [`Error::HeaderConflict`] if another anchor is remembered by now, [`Error::Anchor`].
    pub(super) async fn advance(&self, known: Option<Anchor>, header: &Header, bytes: &[u8]) -> Result<()> {
        let Some(anchor) = &self.0 else { return Ok(()) };
        match anchor.advance(&header.store_id, known, Anchor::of(header, bytes)?).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::HeaderConflict),
            Err(error) => Err(Error::Anchor(error)),
        }
    }

    /// Checks that the store is the one that was opened under this context before, if there was one, unless another one
    /// is accepted.
    ///
    /// # Errors
    /// [`Error::WrongStore`], [`Error::Anchor`].
    pub(super) async fn check_store(&self, context: Option<&[u8]>, store: &StoreId, accepted: bool) -> Result<()> {
        let Some(context) = context else { return Ok(()) };
        match self.load(&address_of(context)).await? {
            Some(known) if known != anchor_of(store) && !accepted => Err(Error::WrongStore),
            _ => Ok(()),
        }
    }

    /// Remembers which store was opened under a context, or at a place.
    ///
    /// # Errors
    /// [`Error::Anchor`]; [`Error::HeaderConflict`] if another process remembers another one at the same time.
    pub(super) async fn remember_store(&self, context: Option<&[u8]>, store: &StoreId) -> Result<()> {
        let (Some(anchor), Some(context)) = (&self.0, context) else { return Ok(()) };
        let (address, this) = (address_of(context), anchor_of(store));
        let known = self.load(&address).await?;
        if known == Some(this) {
            return Ok(());
        }
        match anchor.advance(&address, known, this).await {
            Ok(true) => Ok(()),
            // Another process has opened the same store.
            Ok(false) if self.load(&address).await? == Some(this) => Ok(()),
            Ok(false) => Err(Error::HeaderConflict),
            Err(error) => Err(Error::Anchor(error)),
        }
    }

    /// # Errors
    /// [`Error::StoreVanished`] if there was a store at this place.
    pub(super) async fn refuse_vanished(&self, place: Option<&[u8]>) -> Result<()> {
        match place {
            Some(place) if self.load(&address_of(place)).await?.is_some() => Err(Error::StoreVanished),
            _ => Ok(()),
        }
    }

    /// Makes a header that is about to be written different from the one that a copy of the store would write.
    pub(super) fn distinguish(&self, header: &mut Header) -> Result<()> {
        if self.0.is_some() {
            let mut random = [0; 16];
            getrandom::fill(&mut random)?;
            header.set_distinct(&random);
        }
        Ok(())
    }

    /// The remembered anchor of a header that was checked or written before.
    pub(super) fn known(&self, header: &Header, bytes: &[u8]) -> Result<Option<Anchor>> {
        self.0.as_ref().map(|_| Anchor::of(header, bytes)).transpose()
    }
}

/// The form in which an anchor keeps the id of a store.
fn anchor_of(store: &StoreId) -> Anchor {
    Anchor { generation: 0, checksum: *store }
}

/// The id under which an anchor keeps the store of a context or a place.
fn address_of(context: &[u8]) -> StoreId {
    let hash = Sha256::new().chain_update(b"wastore/v1/anchor-context\0").chain_update(context).finalize();
    let mut address = StoreId::default();
    address.copy_from_slice(&hash[..16]);
    address
}
