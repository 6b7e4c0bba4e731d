//! The live vault: its current keys and header, and how the header is changed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};

use super::copies::{Candidate, Copies, HeaderCopy, HeaderStore, Stale, UPDATE_TRIES, write_copy, write_header};
use super::header::{DEVICE_SEALED, Header};
use super::host::Host;
use super::key_wrap::{VaultKeys, unwrap_ring};
use super::options::OnDamage;
use super::rollback::OptionalAnchor;
use crate::encrypt::cipher::RecordCipher;
use crate::encrypt::format::keys::{KeyRing, StoreId, VaultKey};
use crate::ended;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::sync::IgnorePoison;

/// The state that a vault and its layers share.
pub(crate) struct OpenVault {
    pub(super) headers: Arc<dyn HeaderStore>,
    pub(super) host: Host,
    pub(super) anchor: OptionalAnchor,
    pub(super) state: RwLock<Arc<VaultState>>,
    /// Older states that calls may still hold.
    pub(super) retired_states: Mutex<Vec<Weak<VaultState>>>,
    /// The next vault key, while the header is being put under it.
    pub(super) pending_keys: Mutex<Option<Arc<VaultKeys>>>,
    /// Held while header copies are read and written, never while records are.
    pub(super) header_io: async_lock::Mutex<()>,
    pub(crate) on_damage: OnDamage,
    pub(crate) damaged: AtomicU64,
    pub(crate) read_only: bool,
    pub(super) closed: AtomicBool,
}

/// The vaults that this process has open. All vaults of a store learn of a new data key this way.
pub(super) static OPEN_VAULTS: Mutex<Vec<(StoreId, Weak<OpenVault>)>> = Mutex::new(Vec::new());

pub(super) fn open_vaults() -> MutexGuard<'static, Vec<(StoreId, Weak<OpenVault>)>> {
    OPEN_VAULTS.lock().ignore_poison()
}

/// The current header and its keys.
pub(crate) struct VaultState {
    pub(crate) header: Header,
    pub(crate) vault_keys: Arc<VaultKeys>,
    pub(crate) cipher: RecordCipher,
}

impl VaultState {
    pub(super) fn new(header: Header, vault_keys: Arc<VaultKeys>, ring: Arc<KeyRing>) -> Self {
        let cipher = RecordCipher { ring, padding: header.padding(), generation: header.record_generation() };
        Self { header, vault_keys, cipher }
    }

    pub(super) fn unwrapped(header: Header, vault_keys: Arc<VaultKeys>) -> Result<Self> {
        let ring = Arc::new(unwrap_ring(&header, &vault_keys.vault_key)?);
        Ok(Self::new(header, vault_keys, ring))
    }
}

impl OpenVault {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        ended::note();
    }

    /// # Errors
    /// [`Error::Closed`] if the vault was closed.
    pub(crate) fn refuse_closed(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed { what: "vault" }) } else { Ok(()) }
    }

    pub(crate) fn state(&self) -> Arc<VaultState> {
        self.state.read().ignore_poison().clone()
    }

    /// The state that knows an epoch: the state held while the record was read, the newest one, or the one after
    /// reading the header again. Another process may have rotated keys.
    ///
    /// # Errors
    /// [`Error::UnknownEpoch`] if the stored header does not know it either.
    pub(crate) async fn state_for(
        &self,
        held: &Arc<VaultState>,
        record: Record,
        epoch: u32,
    ) -> Result<Arc<VaultState>> {
        let knows = |state: &Arc<VaultState>| state.cipher.ring.epoch(epoch).is_some();
        if knows(held) {
            return Ok(held.clone());
        }
        let mut state = self.state();
        if !knows(&state) {
            self.refresh().await?;
            state = self.state();
        }
        if knows(&state) { Ok(state) } else { Err(Error::UnknownEpoch { record }) }
    }

    /// Checks the generation of a record that verified against the state that opened it. If the record is newer, checks
    /// it against the stored header, because another process may have opened the vault since.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if the record is newer than the stored header.
    pub(crate) async fn check_generation(&self, state: &VaultState, generation: u32) -> Result<()> {
        if generation > state.cipher.generation && generation > self.state().cipher.generation {
            self.refresh().await?;
            if generation > self.state().cipher.generation {
                return Err(Error::HeaderRolledBack);
            }
        }
        Ok(())
    }

    /// Reads the header again.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let _header_io = self.header_io.lock().await;
        self.reload(ReloadPolicy::Open).await?;
        Ok(())
    }

    pub(super) fn pending_keys(&self) -> MutexGuard<'_, Option<Arc<VaultKeys>>> {
        self.pending_keys.lock().ignore_poison()
    }

    /// The vault key of a header, if one of this process's vaults on the same store has it or is putting it in place. A
    /// vault on a copy of this crate's own store does not count: its header may have been planted.
    pub(super) fn keys_of(&self, header: &Header, bytes: &[u8]) -> Option<Arc<VaultKeys>> {
        let here = self.same_store().into_iter().filter(|vault| self.host.may_be(&vault.host));
        let keys = here.flat_map(|vault| [Some(vault.state().vault_keys.clone()), vault.pending_keys().clone()]);
        keys.flatten().find(|vault_keys| header.verify(bytes, &vault_keys.mac_key).is_ok())
    }

    /// This vault and every other one that this process has open on the same store, or on a copy of it.
    pub(super) fn same_store(&self) -> Vec<Arc<OpenVault>> {
        let store_id = self.state().header.store_id;
        open_vaults().iter().filter(|(id, _)| *id == store_id).filter_map(|(_, vault)| vault.upgrade()).collect()
    }

    /// `true` if no call holds a state from before the last change of the header.
    pub(super) fn no_retired_state_in_use(&self) -> bool {
        let mut retired_states = self.retired_states.lock().ignore_poison();
        retired_states.retain(|state| state.upgrade().is_some());
        retired_states.is_empty()
    }

    /// Notes that a sealed device was written, so that its absence is an error from now on.
    pub(crate) async fn note_sealed_device(&self) -> Result<()> {
        if self.state().header.flags & DEVICE_SEALED != 0 {
            return Ok(());
        }
        self.update(1, |header, _| {
            header.flags |= DEVICE_SEALED;
            Ok(())
        })
        .await
    }

    pub(crate) fn device_is_sealed(&self) -> bool {
        self.state().header.flags & DEVICE_SEALED != 0
    }

    /// # Errors
    /// [`Error::ReadOnly`], and [`Error::Closed`] after the vault is closed.
    pub(in crate::encrypt) fn refuse_change(&self, method: &'static str) -> Result<()> {
        self.refuse_closed()?;
        if self.read_only { Err(Error::ReadOnly { method }) } else { Ok(()) }
    }

    /// Changes the header: reads the newest copy, applies `change`, and writes the result with a generation higher by
    /// `step`.
    ///
    /// Starts again if another process writes at the same time, so `change` must do no harm if its work is already
    /// done. If this future is dropped in between, the newer copy counts.
    pub(super) async fn update<T>(
        &self,
        step: u64,
        change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        self.update_as(ReloadPolicy::Open, None, step, change).await
    }

    /// The same for a change that the caller asks for, after a look at the rows. Otherwise the change would hide that
    /// the header was put back.
    ///
    /// # Errors
    /// Also [`Error::HeaderRolledBack`] and [`Error::UnknownEpoch`].
    pub(super) async fn change<T>(
        &self,
        step: u64,
        change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        self.refuse_change("header update")?;
        self.refuse_older_header(false).await?;
        self.update(step, change).await
    }

    /// The same, and puts the header under another vault key. `change` gets the current vault key, which is the new one
    /// if its work is already done.
    pub(super) async fn update_keys<T>(
        &self,
        vault_keys: &Arc<VaultKeys>,
        change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        self.update_as(ReloadPolicy::Open, Some(vault_keys), SLOT_STEP, change).await
    }

    pub(super) async fn update_as<T>(
        &self,
        policy: ReloadPolicy,
        next: Option<&Arc<VaultKeys>>,
        step: u64,
        mut change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        if self.read_only {
            return Err(Error::ReadOnly { method: "header update" });
        }
        let _header_io = self.header_io.lock().await;
        if let Some(next) = next {
            // Set before the header is written, so that every vault that reads it knows the key.
            *self.pending_keys() = Some(next.clone());
        }
        for _ in 0..UPDATE_TRIES {
            match self.update_once(policy, next, step, &mut change).await {
                Err(Error::HeaderConflict) => {}
                result => return result,
            }
        }
        Err(Error::HeaderConflict)
    }

    /// # Errors
    /// [`Error::HeaderConflict`] if another process writes at the same time.
    pub(super) async fn update_once<T>(
        &self,
        policy: ReloadPolicy,
        next: Option<&Arc<VaultKeys>>,
        step: u64,
        change: &mut impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        let current = self.reload(policy).await?;
        // Both copies hold the newest header before one of them is written, so a torn write loses nothing.
        for copy in HeaderCopy::BOTH {
            if self.headers.read(copy).await?.as_ref() != Some(&current) {
                write_copy(&*self.headers, copy, &current).await?;
            }
        }
        let state = self.state();
        let mut header = state.header.clone();
        let result = change(&mut header, &state.vault_keys.vault_key)?;
        let known = match policy {
            ReloadPolicy::Accepting => self.anchor.load(&header.store_id).await?,
            _ => self.anchor.known(&header, &current)?,
        };
        // Above the remembered generation. That one is higher only if the rollback is accepted.
        let newest = known.map_or(0, |known| known.generation()).max(header.generation);
        header.generation = newest.saturating_add(step);
        header.set_previous(Header::checksum(&current));
        self.anchor.distinguish(&mut header)?;
        let vault_keys = next.unwrap_or(&state.vault_keys);
        let bytes = header.serialize(&vault_keys.mac_key);
        // Two processes that only open write the same bytes, which is no conflict.
        let found = self.headers.read(HeaderCopy::A).await?;
        if found.as_ref() != Some(&current) && found.as_ref() != Some(&bytes) {
            return Err(Error::HeaderConflict);
        }
        write_header(&*self.headers, &bytes).await?;
        let remembered = self.anchor.advance(known, &header, &bytes).await;
        self.install(header, vault_keys)?;
        if next.is_some() {
            *self.pending_keys() = None;
        }
        if matches!(remembered, Err(Error::HeaderConflict)) {
            // Another process has gone on from this header, which is as good, or from another one.
            self.reload(ReloadPolicy::Opening).await?;
        } else {
            remembered?;
        }
        Ok(result)
    }

    #[cfg(test)]
    pub(crate) fn vault_keys(&self) -> Arc<VaultKeys> {
        self.state().vault_keys.clone()
    }

    /// Writes a header that the public functions would not write.
    #[cfg(test)]
    pub(crate) async fn rewrite_header(&self, change: impl Fn(&mut Header)) -> Result<()> {
        self.update(1, |header, _| {
            change(header);
            Ok(())
        })
        .await
    }

    /// Takes over the stored header if it differs from the current one, and returns its bytes.
    pub(super) async fn reload(&self, policy: ReloadPolicy) -> Result<Vec<u8>> {
        let mut doubted = None;
        for _ in 0..UPDATE_TRIES {
            let (bytes, header, vault_keys) = self.stored(policy).await?;
            let fresh = match policy {
                ReloadPolicy::Accepting => Ok(()),
                _ => self.anchor.check(&header, &bytes, self.read_only).await,
            };
            match fresh {
                // Another process may have written and remembered a newer one in between.
                Err(Error::RollbackDetected | Error::ForkDetected) if doubted.as_ref() != Some(&bytes) => {
                    doubted = Some(bytes);
                    continue;
                }
                Err(Error::HeaderConflict) => continue,
                fresh => fresh?,
            }
            // At the same generation, another process wrote it at the same time. The stored header counts.
            let state = self.state();
            if bytes != state.header.serialize(&state.vault_keys.mac_key) {
                self.install(header, &vault_keys)?;
            }
            return Ok(bytes);
        }
        Err(Error::HeaderConflict)
    }

    /// Reads and verifies the stored header.
    pub(super) async fn stored(&self, policy: ReloadPolicy) -> Result<(Vec<u8>, Header, Arc<VaultKeys>)> {
        let Candidate { bytes, header, stale } = Copies::read(&*self.headers).await?.candidate()?;
        let state = self.state();
        let vault_keys = match header.verify(&bytes, &state.vault_keys.mac_key) {
            Err(Error::HeaderTampered) => self.keys_of(&header, &bytes).ok_or(Error::HeaderTampered)?,
            verified => verified.map(|()| state.vault_keys.clone())?,
        };
        if stale == Stale::Fork || header.store_id != state.header.store_id {
            return Err(Error::HeaderTampered);
        }
        // A vault that is being opened has no newer records yet.
        if header.generation < state.header.generation && policy == ReloadPolicy::Open {
            return Err(Error::HeaderRolledBack);
        }
        Ok((bytes, header, vault_keys))
    }

    pub(super) fn install(&self, header: Header, vault_keys: &Arc<VaultKeys>) -> Result<()> {
        let state = self.state();
        let same_keys = header.data_keys == state.header.data_keys && header.lookup_key == state.header.lookup_key;
        let new = if same_keys {
            VaultState::new(header, vault_keys.clone(), state.cipher.ring.clone())
        } else {
            VaultState::unwrapped(header, vault_keys.clone())?
        };
        // Noted before any call can find out that the state was replaced.
        let mut retired_states = self.retired_states.lock().ignore_poison();
        retired_states.retain(|state| state.strong_count() > 0);
        retired_states.push(Arc::downgrade(&state));
        *self.state.write().ignore_poison() = Arc::new(new);
        Ok(())
    }
}

/// The kind of vault that reads the header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReloadPolicy {
    /// A vault that is being opened.
    Opening,
    /// The same, whatever the rollback anchor remembers.
    Accepting,
    /// An open vault.
    Open,
}

/// The jump of the generation when slots change. If a header from before the change is put back, the first record
/// written after the change reveals it. That holds even if the vault is opened up to this number of times in between.
pub(super) const SLOT_STEP: u64 = 1 << 10;

/// The jump of the generation of a restored header, to be above the generation of every record.
pub(super) const RESTORE_STEP: u64 = 1 << 20;
