//! The handle of an opened vault: its secrets, and the keys derived from it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[cfg(feature = "import")]
use super::header::IMPORTING;
use super::header::{Header, MAX_SLOTS};
use super::kdf::Argon2Cost;
use super::open_vault::{OpenVault, SLOT_STEP, VaultState};
use super::options::VaultOptions;
use super::slot::{NewSlot, SlotInfo};
use crate::encrypt::format::padding::Padding;
use crate::error::{Error, Result};
use crate::layer::IntoBackend;
use crate::secret::{Key, Passphrase, RecoveryKey, Secret};

/// An opened vault: the keys of one encrypted store, and the methods that change which secrets open it.
///
/// The vault writes its header into the store that it was opened on. [`Vault::layer`] returns the layer that encrypts
/// and decrypts records. The layer may sit anywhere above that store in a [`Stack`](crate::Stack).
///
/// ```
/// # use std::sync::Arc;
/// # use wacore::store::InMemoryBackend;
/// use wastore::{Passphrase, Stack, Vault};
///
/// # futures::executor::block_on(async {
/// let store = Arc::new(InMemoryBackend::new());
/// let vault = Vault::open_or_create(store.clone(), Passphrase::new("correct horse battery staple")?).await?;
/// let backend = Stack::new(store).layer(vault.layer()).into_backend();
/// backend.put_session("15550001111:2@s.whatsapp.net", b"a session").await?;
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
pub struct Vault {
    pub(in crate::encrypt) shared: Arc<OpenVault>,
    /// The slot that opened the vault; `change_passphrase` replaces it.
    pub(super) slot: u8,
    pub(super) options: VaultOptions,
    pub(super) created: bool,
}

impl Vault {
    /// Creates a vault with one key slot on a store that has none.
    ///
    /// Two processes may create a vault on the same store at once. Each reads the header back. The process whose header
    /// was overwritten gets [`Error::HeaderConflict`] and has written no record.
    ///
    /// Upstream's traits have no compare-and-swap, so a gap remains: a process that looked before another one began,
    /// and that writes after it finished, replaces its vault unnoticed. This crate's `SqliteStore` has no such gap.
    /// Over other stores, create vaults from one process.
    ///
    /// # Errors
    /// Nothing was written in any of these cases:
    /// * [`Error::VaultExists`] if there is a header, [`Error::HeaderDamaged`] if there is the rest of one;
    /// * [`Error::HeaderMissing`] if there is a sealed device without a header;
    /// * [`Error::PlaintextDevice`] if there is a paired plaintext device, [`Error::Plaintext`] if there are other
    ///   records in plaintext;
    /// * [`Error::KdfOutOfBounds`] if the cost is above the limits;
    /// * [`Error::KeyProvider`], [`Error::Random`] and [`Error::KdfFailed`] as they say.
    ///
    /// After [`Error::HeaderConflict`], and after [`Error::Store`] with an error of the store, something may have been
    /// written. With a rollback anchor also [`Error::Anchor`]: there may be a vault then, so open it.
    pub async fn create(store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().create(store, secret).await
    }

    /// Opens the vault of a store. Writes the header with the next generation.
    ///
    /// # Errors
    /// Nothing was written in any of these cases:
    /// * [`Error::NoVault`] if the store has no vault and holds nothing that needs one;
    /// * [`Error::PlaintextDevice`] if it holds a paired plaintext device, [`Error::Plaintext`] if it has no header and
    ///   other records in plaintext;
    /// * [`Error::HeaderMissing`] if the header is gone, but the store holds sealed records;
    /// * [`Error::HeaderDamaged`] if neither header copy is intact, [`Error::UnsupportedVersion`] if a later version of
    ///   this crate wrote it;
    /// * [`Error::KdfOutOfBounds`] before any work, if the header asks for more than the limits;
    /// * [`Error::WrongSecret`] if no slot opens, [`Error::HeaderTampered`] if one does, but the rest was altered;
    /// * [`Error::ImportIncomplete`] if an import into the store was interrupted;
    /// * with a rollback anchor, [`Error::RollbackDetected`], [`Error::ForkDetected`], [`Error::AnchorMissing`], and
    ///   [`Error::Anchor`], after which the header may have been written;
    /// * [`Error::KeyNotKept`], [`Error::NoSlotOfProvider`], [`Error::KeyProvider`], [`Error::KdfFailed`] and
    ///   [`Error::Random`] as they say.
    ///
    /// [`Error::HeaderConflict`] means that other processes kept writing the header at the same time. [`Error::Store`]
    /// means that the store failed. One header copy may have been written then; both the old and the new one open.
    pub async fn open(store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().open(store, secret).await
    }

    /// Opens the vault of a store, or creates it if the store has no header, nothing sealed and no paired device.
    /// [`Vault::was_created`] tells which of the two. If another process creates the vault at the same time, opens that
    /// one.
    ///
    /// # Errors
    /// As [`Vault::open`] without [`Error::NoVault`], or as [`Vault::create`]. [`Error::OtherAccounts`] if
    /// [`SqliteStore::open`](crate::SqliteStore::open) opened the default account, no other one was chosen, and the
    /// file holds only other accounts. [`Error::StoreVanished`] if a rollback anchor remembers a store at this place.
    pub async fn open_or_create(store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().open_or_create(store, secret).await
    }

    /// `true` if the store had no vault and this one was created. It is empty, so the account has to be paired.
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Ends the vault. From now on its layers and all changes of the header fail with [`Error::Closed`], and caches
    /// above return nothing of it. Calls under way end as usual. The keys are wiped when the vault and the last of its
    /// layers are dropped.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Returns the header as this vault last read or wrote it, at most 16 KiB, for [`VaultOptions::restore_header`].
    ///
    /// Every secret that opens the vault now opens this header, even after that secret is removed from the vault. Keep
    /// it like a key.
    pub fn save_header(&self) -> Vec<u8> {
        let state = self.shared.state();
        state.header.serialize(&state.vault_keys.mac_key)
    }

    /// The random id of this vault, for [`VaultOptions::expect_store`]. It is not secret and is stored in the header.
    /// Two vaults that were created never have the same one.
    pub fn store_id(&self) -> [u8; 16] {
        self.shared.state().header.store_id
    }

    /// Binds the vault to another context, or a vault of an early build to its first; see [`VaultOptions::context`].
    /// After that, those builds cannot open it.
    ///
    /// # Errors
    /// The errors of changing the header, as [`Vault::add_slot`].
    pub async fn bind_context(&self, context: impl Into<Vec<u8>>) -> Result<()> {
        let context = context.into();
        self.shared
            .change(SLOT_STEP, |header, _| {
                header.set_context(Some(&context));
                Ok(())
            })
            .await
    }

    /// Returns a raw key for the vault of another account, always the same for the same label.
    ///
    /// A process with many accounts stretches one passphrase for the first vault. It opens the others with
    /// `vault.account_key("account 2")` and so on, which costs microseconds each. The vault key of this vault opens all
    /// of them. Their vault keys do not open this one.
    pub fn account_key(&self, label: &str) -> Key {
        let state = self.shared.state();
        state.vault_keys.vault_key.account_key(&state.header.store_id, label)
    }

    /// Ends an import. From now on the vault can be opened.
    #[cfg(feature = "import")]
    pub(crate) async fn finish_import(&self) -> Result<()> {
        self.shared
            .update(1, |header, _| {
                header.flags &= !IMPORTING;
                Ok(())
            })
            .await
    }

    /// Lists the key slots.
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.shared.state().header.slot_infos()
    }

    /// Adds a key slot and returns its number. Costs one key derivation for a passphrase, whatever the size of the
    /// store.
    ///
    /// `label` is stored in the clear, at most 32 bytes.
    ///
    /// # Errors
    /// * [`Error::SlotsFull`] with eight slots;
    /// * [`Error::InvalidInput`] if the label is too long;
    /// * [`Error::KdfOutOfBounds`] if all passphrase slots together would ask for more work than the limits allow;
    /// * [`Error::KeyProvider`] if the provider fails, or does not give the new key back.
    ///
    /// Also the errors of changing the header: [`Error::HeaderConflict`], [`Error::HeaderMissing`],
    /// [`Error::HeaderDamaged`], [`Error::HeaderTampered`], [`Error::ReadOnly`] and [`Error::Store`].
    /// [`Error::HeaderRolledBack`] and [`Error::UnknownEpoch`] if a record is newer than the header or under a data key
    /// that the header lacks.
    ///
    /// With a rollback anchor also [`Error::RollbackDetected`] and [`Error::ForkDetected`] if a copy of the store comes
    /// first, and [`Error::Anchor`]. The change may have been made after the last one: look at [`Vault::slots`] before
    /// you try again.
    pub async fn add_slot(&self, label: &str, secret: impl Into<Secret>) -> Result<u8> {
        self.shared.refuse_change("add_slot")?;
        if self.shared.state().header.slots.len() >= MAX_SLOTS {
            return Err(Error::SlotsFull);
        }
        let (store_id, options) = (self.store_id(), &self.options);
        let new_slot =
            NewSlot::prepare(&store_id, secret.into(), Some(label), options.cost(), &options.limits()).await?;
        self.shared
            .change(SLOT_STEP, |header, vault_key| {
                if let Some(there) = new_slot.find(header) {
                    return Ok(there.id);
                }
                let free = (0..=u8::MAX).find(|id| header.slots.iter().all(|slot| slot.id != *id));
                let Some(id) = free.filter(|_| header.slots.len() < MAX_SLOTS) else { return Err(Error::SlotsFull) };
                header.slots.push(new_slot.seal(id, &header.store_id, vault_key)?);
                options.check_costs(header)?;
                Ok(id)
            })
            .await
    }

    /// Adds a slot labelled `recovery` for a new recovery key and returns the key: print it and keep it in a safe.
    ///
    /// # Errors
    /// As [`Vault::add_slot`].
    pub async fn add_recovery_key(&self) -> Result<RecoveryKey> {
        let key = RecoveryKey::generate()?;
        self.add_slot("recovery", key.duplicate()).await?;
        Ok(key)
    }

    /// Removes a key slot. Its secret no longer opens the vault after this returns.
    ///
    /// There is one exception: another process that read the header before may write it back afterwards. This crate's
    /// `SqliteStore` refuses such a write. Over other stores, change slots from one process.
    ///
    /// The removed secret still opens an older copy of the header, in a backup or on worn flash. A process that opened
    /// the vault with it may have kept its keys.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`], [`Error::LastSlot`], and the errors of changing the header, as [`Vault::add_slot`].
    pub async fn remove_slot(&self, id: u8) -> Result<()> {
        let mut removed = None;
        self.shared
            .change(SLOT_STEP, |header, _| {
                let position = header.slots.iter().position(|slot| slot.id == id);
                match position.map(|at| header.slots[at].salt) {
                    Some(salt) if removed.is_none_or(|removed| removed == salt) => removed = Some(salt),
                    // An earlier try removed it, and another process has written the header since.
                    _ if removed.is_some() => return Ok(()),
                    _ => return Err(Error::NoSuchSlot(id)),
                }
                if header.slots.len() == 1 {
                    return Err(Error::LastSlot);
                }
                header.slots.retain(|slot| slot.id != id);
                Ok(())
            })
            .await
    }

    /// Replaces the passphrase that opened the vault, or the only one it has. Costs one key derivation, whatever the
    /// size of the store; records are not touched.
    ///
    /// If the process dies in between, either the old or the new passphrase opens the vault. The old one still opens
    /// older copies of the header.
    ///
    /// # Errors
    /// [`Error::AmbiguousPassphrase`] if another kind of secret opened the vault and it has no passphrase or several,
    /// and the errors of changing the header, as [`Vault::add_slot`].
    pub async fn change_passphrase(&self, new: Passphrase) -> Result<()> {
        self.shared.refuse_change("change_passphrase")?;
        // The state is not held while the key is derived.
        let (id, label, kept) = {
            let state = self.shared.state();
            let id = self.passphrase_slot(&state.header)?;
            let replaced = state.header.slots.iter().find(|slot| slot.id == id);
            (id, replaced.map(|slot| slot.label.clone()), replaced.and_then(|slot| slot.cost()))
        };
        let (store_id, options) = (self.store_id(), &self.options);
        let cost = options.asked_cost.or(kept).unwrap_or(Argon2Cost::DEFAULT);
        let new_slot = NewSlot::prepare(&store_id, new.into(), label.as_deref(), cost, &options.limits()).await?;
        self.shared
            .change(SLOT_STEP, |header, vault_key| {
                if new_slot.find(header).is_some() {
                    return Ok(());
                }
                let slot = header.slots.iter_mut().find(|slot| slot.id == id && slot.cost().is_some());
                *slot.ok_or(Error::NoSuchSlot(id))? = new_slot.seal(id, &store_id, vault_key)?;
                options.check_costs(header)
            })
            .await
    }

    pub(super) fn passphrase_slot(&self, header: &Header) -> Result<u8> {
        let passphrases: Vec<u8> =
            header.slots.iter().filter(|slot| slot.cost().is_some()).map(|slot| slot.id).collect();
        match passphrases.as_slice() {
            ids if ids.contains(&self.slot) => Ok(self.slot),
            [only] => Ok(*only),
            ids => Err(Error::AmbiguousPassphrase(ids.len())),
        }
    }

    /// The state of the keys. Hold it from before rows are read until they are opened.
    pub(crate) fn state(&self) -> Arc<VaultState> {
        self.shared.state()
    }

    /// Checks the highest generation of the rows that opened.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if a row is newer than the stored header.
    pub(crate) async fn check_generation(&self, state: &VaultState, generation: u32) -> Result<()> {
        self.shared.check_generation(state, generation).await
    }

    /// `true` if the absence of a device is an error.
    pub(crate) fn device_is_sealed(&self) -> bool {
        self.shared.device_is_sealed()
    }

    /// Raises the header's generation and makes the rollback anchor remember it. Older copies of the store are refused
    /// from then on. Call it after every backup and snapshot, and once in a while. Without a
    /// [`VaultOptions::rollback_anchor`] it only writes the header.
    ///
    /// # Errors
    /// Those of changing the header, as [`Vault::add_slot`].
    pub async fn renew_anchor(&self) -> Result<()> {
        self.shared.change(1, |_, _| Ok(())).await
    }

    /// The number of damaged records treated as absent so far, under
    /// [`OnDamage::TreatAsAbsent`](crate::vault::OnDamage::TreatAsAbsent) and
    /// [`OnDamage::Renegotiate`](crate::vault::OnDamage::Renegotiate).
    pub fn damaged_records(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &OpenVault {
        &self.shared
    }

    /// The padding policy of the vault.
    pub fn padding(&self) -> Padding {
        self.shared.state().cipher.padding
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("slots", &self.slots().len()).finish_non_exhaustive()
    }
}

impl VaultOptions {
    /// Notes in a new vault that `parent` gives its key by [`Vault::account_key`]. `maintenance::open_account` then
    /// finds the parent among any other accounts.
    pub fn derived_from(mut self, parent: &Vault) -> Self {
        self.parent = Some(parent.store_id());
        self
    }
}
