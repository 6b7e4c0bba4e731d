//! New data keys, and a new vault key after a secret has leaked.
//!
//! The header names several data keys by their epochs: the active one seals, the others only open. A new one is in use
//! as soon as the header has it. If a store can list its records, `maintenance/reseal.rs` seals them again. In other
//! stores each record moves to the new key at its next write.
//!
//! A new vault key wraps all keys again, and only one slot opens it. It comes before records are sealed again, so that
//! the old vault key never wrapped the new data key.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::handle::Vault;
use super::header::{Header, MAX_DATA_KEYS, ROTATING, WrappedDataKey};
use super::host::Claims;
use super::key_wrap::{VaultKeys, data_key_aad, wrap_again, wrap_key};
use super::open_vault::SLOT_STEP;
use super::slot::NewSlot;
use crate::clock;
use crate::encrypt::format::keys::VaultKey;
use crate::error::{Error, Result};
use crate::secret::{Key, Secret};

/// A new vault key with one key slot. It replaces a vault key whose secret has leaked; see [`Vault::revoke`].
pub struct Revocation {
    vault_keys: Arc<VaultKeys>,
    slot: NewSlot,
    store_id: [u8; 16],
    /// `true` if there was room for a new data key.
    new_data_key: AtomicBool,
}

impl Revocation {
    /// Makes a new vault key that only `secret` opens. The store is not changed; a key provider keeps a new key. Costs
    /// one key derivation for a passphrase.
    ///
    /// # Errors
    /// [`Error::KdfOutOfBounds`] if the cost of new slots is above the limits, [`Error::KeyProvider`],
    /// [`Error::KdfFailed`], [`Error::Random`].
    pub async fn prepare(vault: &Vault, secret: impl Into<Secret>) -> Result<Self> {
        let (store_id, options) = (vault.shared.state().header.store_id, &vault.options);
        let slot = NewSlot::prepare(&store_id, secret.into(), None, options.cost(), &options.limits()).await?;
        Ok(Self { vault_keys: VaultKeys::generate(&store_id)?, slot, store_id, new_data_key: AtomicBool::new(true) })
    }

    /// The key that [`Vault::account_key`] will return. Vaults of other accounts that open with such a key need a slot
    /// for the new one before the old one is gone.
    pub fn account_key(&self, label: &str) -> Key {
        self.vault_keys.vault_key.account_key(&self.store_id, label)
    }

    /// `false` if [`Vault::revoke`] found no room for a new data key. Until the records are sealed again, old secrets
    /// with an old header then read records that are written later.
    pub fn has_new_data_key(&self) -> bool {
        self.new_data_key.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation").finish_non_exhaustive()
    }
}

impl Vault {
    /// Seals new records under a new data key from now on. Existing records stay under their keys and can be read,
    /// until they are written again. The old data keys are kept. Over this crate's `SqliteStore` use `Rotate`, which
    /// seals all records again and forgets the old keys.
    ///
    /// Vaults that this process has open on the store follow at once. Other processes follow when they meet a new
    /// record. Except over this crate's `SqliteStore`, let no other process open or change the vault at the same time:
    /// it could put an older header back, without the new key.
    ///
    /// # Errors
    /// [`Error::DataKeysFull`] with sixteen data keys, and the errors of changing the header, as [`Vault::add_slot`].
    pub async fn rotate_data_key(&self) -> Result<()> {
        self.shared.refuse_change("rotate_data_key")?;
        let data_key = NewDataKey::after(&self.shared.refuse_older_header(false).await?)?;
        self.shared.update(SLOT_STEP, |header, vault_key| data_key.add(header, vault_key)).await?;
        self.refresh_all().await
    }

    /// Makes every secret useless that opens the vault now. Puts a new vault key and a new data key in place, which
    /// only the secret of `revocation` opens. This vault and others that this process has open on the store go on
    /// working.
    ///
    /// Existing records stay under the old data key. Old copies of the header give that key to anyone with an old
    /// secret. So over this crate's `SqliteStore` run `Rotate` next, or have it do both. A key that
    /// [`Vault::account_key`] gave before opens nothing that the new vault key derives: see
    /// [`Revocation::account_key`].
    ///
    /// Vaults in other processes stop with [`Error::HeaderTampered`] when they look at the header. Except over this
    /// crate's `SqliteStore`, let no other process open or change the vault at the same time.
    ///
    /// A vault with sixteen data keys has no room for another one. Then only the vault key and the slots are new, and
    /// records are sealed under the newest of the old data keys as before. [`Revocation::has_new_data_key`] and the log
    /// say so.
    ///
    /// If this fails or is dropped half-way, either the old secrets open the vault or the new one does. Call it again
    /// with the same revocation.
    ///
    /// # Powers that an old secret keeps
    /// With an old secret and a copy of the store an attacker can still
    /// * read everything in that copy, and in every older copy and backup;
    /// * tell which contacts, groups and messages a newer copy is about, by guessing their names;
    /// * read and forge two things in a newer copy: the secrets of messages whose ids they know, which decrypt
    ///   reactions, edits and polls, and the names of devices that got sender keys and of contacts that have tokens;
    /// * open vaults in other files, and vaults with labels of your own, whose keys an old vault key derived.
    ///
    /// They cannot read anything else in a newer copy. An export and an import into a new store end all of this.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the revocation is of another vault, and the errors of changing the header, as
    /// [`Vault::add_slot`].
    pub async fn revoke(&self, revocation: &Revocation) -> Result<()> {
        self.shared.refuse_change("revoke")?;
        let claims = self.shared.refuse_older_header(false).await?;
        let Revocation { vault_keys, slot, store_id, new_data_key } = revocation;
        if *store_id != self.shared.state().header.store_id {
            return Err(Error::InvalidInput { what: "the revocation", problem: "was prepared for another vault" });
        }
        let data_key = NewDataKey::after(&claims)?;
        let replace = |header: &mut Header, vault_key: &VaultKey| {
            if slot.find(header).is_some() {
                // An earlier try has done it.
                return Ok(());
            }
            wrap_again(header, vault_key, &vault_keys.vault_key)?;
            header.slots = vec![slot.seal(0, store_id, &vault_keys.vault_key)?];
            header.flags |= ROTATING;
            let room = header.data_keys.len() < MAX_DATA_KEYS;
            new_data_key.store(room, Ordering::Relaxed);
            if room { data_key.add(header, &vault_keys.vault_key) } else { Ok(()) }
        };
        self.shared.update_keys(vault_keys, replace).await?;
        if !revocation.has_new_data_key() {
            log::warn!("there is no room for another data key: records are sealed under one that the old secrets open");
        }
        self.refresh_all().await
    }

    /// Begins or continues sealing all records under one data key. Returns its epoch, and `false` if it may be an old
    /// one, because there was no room for another key before the old ones are gone.
    ///
    /// # Errors
    /// Those of changing the header. `unknown_rows` allows rows under unknown data keys, but never the device.
    pub(crate) async fn begin_rotation(&self, unknown_rows: bool) -> Result<(u32, bool)> {
        self.shared.refuse_change("begin_rotation")?;
        let data_key = NewDataKey::after(&self.shared.refuse_older_header(unknown_rows).await?)?;
        let begin = |header: &mut Header, vault_key: &VaultKey| {
            let (under_way, full) = (header.flags & ROTATING != 0, header.data_keys.len() >= MAX_DATA_KEYS);
            header.flags |= ROTATING;
            if !under_way && !full {
                data_key.add(header, vault_key)?;
            }
            Ok((active_epoch(header)?, !full))
        };
        let begun = self.shared.update(SLOT_STEP, begin).await?;
        self.refresh_all().await?;
        Ok(begun)
    }

    /// `true` if no call in this process can seal under an older data key any more.
    pub(crate) fn no_retired_state_in_use(&self) -> bool {
        self.shared.same_store().iter().all(|vault| vault.no_retired_state_in_use())
    }

    /// The epoch of new records, after a look at the stored header.
    pub(crate) async fn current_epoch(&self) -> Result<u32> {
        self.shared.refresh().await?;
        active_epoch(&self.shared.state().header)
    }

    /// Forgets all data keys except that of this epoch. Returns `false` and forgets nothing if that key is no longer
    /// the active one.
    pub(crate) async fn finish_rotation(&self, epoch: u32) -> Result<bool> {
        let finish = |header: &mut Header, _: &VaultKey| {
            if active_epoch(header)? != epoch {
                return Ok(false);
            }
            header.data_keys.retain(|key| key.active);
            header.flags &= !ROTATING;
            Ok(true)
        };
        let finished = self.shared.update(SLOT_STEP, finish).await?;
        self.refresh_all().await?;
        Ok(finished)
    }

    /// `true` while records are being sealed again.
    pub(crate) fn is_rotating(&self) -> bool {
        self.shared.state().header.flags & ROTATING != 0
    }

    /// Removes slots with this label, except the one that opened the vault.
    pub(crate) async fn remove_others_labelled(&self, label: &str) -> Result<()> {
        for slot in self.slots().into_iter().filter(|slot| slot.label == label && slot.id != self.slot) {
            self.remove_slot(slot.id).await?;
        }
        Ok(())
    }

    /// The header as it is stored now.
    pub(crate) async fn current_header(&self) -> Result<Vec<u8>> {
        self.shared.refresh().await?;
        Ok(self.save_header())
    }

    /// `true` if the header is kept apart from the store.
    pub(crate) fn keeps_header_elsewhere(&self) -> bool {
        self.options.headers.is_some()
    }

    /// Makes all vaults of this process on the same store read the header again.
    async fn refresh_all(&self) -> Result<()> {
        let mut told = Ok(());
        for vault in self.shared.same_store() {
            let followed = vault.refresh().await;
            told = told.and(followed);
        }
        told
    }
}

fn active_epoch(header: &Header) -> Result<u32> {
    header.data_keys.iter().find(|key| key.active).map(|key| key.epoch).ok_or(Error::HeaderTampered)
}

/// A data key that is not in a header yet.
struct NewDataKey {
    key: Key,
    /// The highest epoch that a row claims.
    above: u32,
}

impl NewDataKey {
    /// A new data key. Its epoch will be above all claims of rows: rows under a lost header must never pass for rows of
    /// this key.
    fn after(claims: &Claims) -> Result<Self> {
        Ok(Self { key: Key::generate()?, above: claims.newest_epoch() })
    }

    /// Adds the key to a header. All new records are sealed under it from then on.
    fn add(&self, header: &mut Header, vault_key: &VaultKey) -> Result<()> {
        if header.data_keys.len() >= MAX_DATA_KEYS {
            return Err(Error::DataKeysFull);
        }
        let newest = header.data_keys.iter().map(|key| key.epoch).fold(self.above, u32::max);
        let epoch = newest.checked_add(1).ok_or(Error::DataKeysFull)?;
        let store_id = &header.store_id;
        let wrapped = wrap_key(&vault_key.key_wrap(store_id), &self.key, &data_key_aad(store_id, epoch))?;
        for key in &mut header.data_keys {
            key.active = false;
        }
        let created = clock::now_secs();
        header.data_keys.push(WrappedDataKey { epoch, active: true, created, wrapped });
        Ok(())
    }
}
