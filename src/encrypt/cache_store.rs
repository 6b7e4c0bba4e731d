//! The client's other cache, sealed: a store of the bot's choice behind whatsapp-rust's caches of groups, device lists
//! and LID mappings.
//!
//! | given | in the inner store |
//! |--|--|
//! | namespace | token(namespace) |
//! | key | token(namespace, key) |
//! | value | sealed, bound to both tokens: u64 time of expiry in seconds since 1970, or 0 ‖ value |
//!
//! Tokens and keys are those of one vault, so accounts that share a store never see each other's entries.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use wacore::store::cache::CacheStore;
use zeroize::Zeroizing;

use super::format::envelope::{self, Prefix, RowBinding, nonce};
use super::format::kind::Kind;
use super::format::token::Token;
use super::vault::handle::Vault;
use super::vault::open_vault::{OpenVault, VaultState};
use crate::clock;
use crate::error::Error;

/// An external cache whose entries are sealed and whose names are blinded. Made by [`Vault::cache_store`].
///
/// Every call makes one call to the inner store. It never returns an error, because whatsapp-rust logs the key of a
/// failed call: a JID or a phone number. A call that fails is a miss, or does nothing, and is counted in
/// [`EncryptedCacheStore::stats`]. An entry that could not be deleted or replaced stays until it expires.
///
/// An entry is a miss if another vault or another data key than the current one sealed it, if it was altered or moved to
/// another key, or if it has expired. It stays in the inner store until it is replaced or deleted. An attacker who can
/// write there can put an entry back to an earlier content until that content expires.
///
/// whatsapp-rust gives groups and device lists an hour, and LID mappings no time of expiry. It fills the cache of LID
/// mappings at its start. So after a change of the data key, clear the inner store and restart the client.
///
/// Over a read-only vault it only reads.
///
/// The inner store sees how many entries there are in each of four namespaces, their sizes (see
/// [`Padding`](crate::vault::Padding)), their times of expiry, and which entries are read and written when.
pub struct EncryptedCacheStore {
    inner: Arc<dyn CacheStore>,
    vault: Arc<OpenVault>,
    failed: AtomicU64,
    refused: AtomicU64,
}

/// Events that [`EncryptedCacheStore`] hides from the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptedCacheStats {
    /// Calls that the inner store failed, calls after the vault was closed, and changes over a read-only vault.
    pub failed: u64,
    /// Entries that were found and not trusted: damaged, expired, under another data key, or not of this vault.
    pub refused: u64,
}

impl Vault {
    /// Seals what whatsapp-rust keeps in an external cache, for example Redis. Pass the result to
    /// `Bot::builder().with_cache_config(..)`, in the `CacheStores` of a `CacheConfig`.
    ///
    /// Without it, the groups, device lists and LID mappings lie there in the clear, and two accounts that share the
    /// cache read each other's.
    ///
    /// whatsapp-rust sends more slowly with an external cache for device lists or LID mappings: it switches off its own
    /// memory of devices.
    pub fn cache_store(&self, inner: Arc<dyn CacheStore>) -> Arc<EncryptedCacheStore> {
        let vault = self.shared.clone();
        Arc::new(EncryptedCacheStore { inner, vault, failed: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }
}

impl EncryptedCacheStore {
    /// The events since the cache was made.
    pub fn stats(&self) -> EncryptedCacheStats {
        EncryptedCacheStats { failed: self.failed.load(Relaxed), refused: self.refused.load(Relaxed) }
    }

    /// The result of a call, or the default, which is a miss, if it failed.
    fn or_counted<T: Default>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|Failed| {
            self.failed.fetch_add(1, Relaxed);
            T::default()
        })
    }

    // No state is held while the inner store works: a change of the data key would wait for a store that does not answer.

    async fn look_up(&self, namespace: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let place = self.place(namespace, key)?;
        let Some(value) = self.inner.get(&place.namespace, &place.key).await? else { return Ok(None) };
        self.vault.refuse_closed()?;
        let opened = place.open(&self.vault.state(), value);
        // It is not deleted: another task may just have replaced it.
        self.refused.fetch_add(u64::from(opened.is_none()), Relaxed);
        Ok(opened)
    }

    async fn store(&self, namespace: &str, key: &str, value: &[u8], ttl: Option<Duration>) -> Result<()> {
        self.vault.refuse_change("set")?;
        let place = self.place(namespace, key)?;
        let sealed = place.seal(&self.vault.state(), value, ttl)?;
        Ok(self.inner.set(&place.namespace, &place.key, &sealed, ttl).await?)
    }

    async fn remove(&self, namespace: &str, key: &str) -> Result<()> {
        self.vault.refuse_change("delete")?;
        let place = self.place(namespace, key)?;
        Ok(self.inner.delete(&place.namespace, &place.key).await?)
    }

    async fn remove_all(&self, namespace: &str) -> Result<()> {
        self.vault.refuse_change("clear")?;
        let namespace = self.namespace(namespace)?;
        Ok(self.inner.clear(&namespace).await?)
    }

    async fn count(&self, namespace: &str) -> Result<u64> {
        let namespace = self.namespace(namespace)?;
        Ok(self.inner.entry_count(&namespace).await?)
    }

    fn namespace(&self, name: &str) -> Result<Token> {
        self.vault.refuse_closed()?;
        Ok(self.vault.state().cipher.lookup().cache_namespace(name)?)
    }

    pub(super) fn place(&self, namespace: &str, key: &str) -> Result<Place> {
        self.vault.refuse_closed()?;
        let state = self.vault.state();
        let lookup = state.cipher.lookup();
        Ok(Place { namespace: lookup.cache_namespace(namespace)?, key: lookup.cache_key(namespace, key)? })
    }
}

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for EncryptedCacheStore {
    async fn get(&self, namespace: &str, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(self.or_counted(self.look_up(namespace, key).await))
    }

    async fn set(&self, namespace: &str, key: &str, value: &[u8], ttl: Option<Duration>) -> anyhow::Result<()> {
        self.or_counted(self.store(namespace, key, value, ttl).await);
        Ok(())
    }

    async fn delete(&self, namespace: &str, key: &str) -> anyhow::Result<()> {
        self.or_counted(self.remove(namespace, key).await);
        Ok(())
    }

    async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        self.or_counted(self.remove_all(namespace).await);
        Ok(())
    }

    async fn entry_count(&self, namespace: &str) -> anyhow::Result<u64> {
        Ok(self.or_counted(self.count(namespace).await))
    }
}

impl fmt::Debug for EncryptedCacheStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("encrypted cache store(v1)")
    }
}

/// The place of an entry in the inner store.
pub(super) struct Place {
    pub(super) namespace: Token,
    pub(super) key: Token,
}

impl Place {
    fn binding(&self) -> RowBinding<'_> {
        RowBinding::new(Kind::CacheEntry, [self.namespace.as_bytes(), self.key.as_bytes()], [])
    }

    fn seal(&self, state: &VaultState, value: &[u8], ttl: Option<Duration>) -> Result<Vec<u8>> {
        let expires_at = ttl.map_or(0, |ttl| clock::now_secs().saturating_add(ttl.as_secs()).saturating_add(1));
        let mut payload = Zeroizing::new(Vec::with_capacity(EXPIRY_BYTES + value.len()));
        payload.extend_from_slice(&expires_at.to_le_bytes());
        payload.extend_from_slice(value);
        Ok(state.cipher.seal(&nonce()?, self.binding(), &payload)?)
    }

    /// The value of an entry; `None` if it is not to be trusted.
    fn open(&self, state: &VaultState, mut value: Vec<u8>) -> Option<Vec<u8>> {
        let prefix = Prefix::read(Kind::CacheEntry, &value).ok()?;
        let keys = state.cipher.current_keys(&prefix).filter(|keys| keys.epoch == state.cipher.ring.active().epoch)?;
        let opened = envelope::open(keys, prefix, self.binding(), &mut value).ok()?;
        let mut payload = Zeroizing::new(opened.into_payload(value));
        let expires_at = u64::from_le_bytes(*payload.first_chunk::<EXPIRY_BYTES>()?);
        if expires_at != 0 && expires_at <= clock::now_secs() {
            return None;
        }
        payload.drain(..EXPIRY_BYTES);
        Some(std::mem::take(&mut *payload))
    }
}

const EXPIRY_BYTES: usize = 8;

/// A call that the client does not hear of. The error is dropped, because its text may name a key.
#[derive(Debug)]
pub(super) struct Failed;

impl From<Error> for Failed {
    fn from(_: Error) -> Self {
        Self
    }
}

impl From<anyhow::Error> for Failed {
    fn from(_: anyhow::Error) -> Self {
        Self
    }
}

type Result<T> = std::result::Result<T, Failed>;
