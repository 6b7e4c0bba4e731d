//! Creates and opens vaults.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use wacore::store::traits::Backend;

use super::copies::{Candidate, Copies, HeaderStore, InBackend, Stale, refuse_existing, write_header};
use super::handle::Vault;
use super::header::{DEVICE_SEALED, Header, IMPORTING, ROTATING, WrappedDataKey};
use super::host::Host;
use super::key_wrap::{VaultKeys, data_key_aad, lookup_key_aad, unwrap_ring, wrap_key};
use super::occupancy::{self, holds_sealed_device};
use super::open_vault::{OpenVault, RESTORE_STEP, ReloadPolicy, VaultState, open_vaults};
use super::options::{OpenMode, VaultOptions};
use super::slot::{self, NewSlot, Unlocked};
use crate::clock;
use crate::encrypt::format::keys::{KeyRing, StoreId};
use crate::encrypt::format::kind::SUITE;
use crate::encrypt::format::padding::Padding;
use crate::error::{Error, Result};
use crate::layer::IntoBackend;
use crate::secret::{Key, Passphrase, Secret};

impl VaultOptions {
    /// Creates the vault of an empty store, whose first key slot opens with `secret`.
    ///
    /// # Errors
    /// As [`Vault::create`]; [`Error::InvalidInput`] in another [mode](VaultOptions::mode) than
    /// [`OpenMode::ReadWrite`].
    pub async fn create(&self, store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Vault> {
        self.create_in_backend(store.into_backend().0, secret.into()).await
    }

    /// Opens the vault of a store.
    ///
    /// # Errors
    /// As [`Vault::open`]. In [`OpenMode::AcceptRollback`] also [`Error::InvalidInput`] if there is no
    /// [`VaultOptions::rollback_anchor`].
    pub async fn open(&self, store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Vault> {
        self.open_backend(store.into_backend().0, secret.into()).await
    }

    /// Opens the vault of a store, or creates it as [`Vault::open_or_create`] does. In another
    /// [mode](VaultOptions::mode) than [`OpenMode::ReadWrite`] it only opens.
    ///
    /// # Errors
    /// As [`Vault::open_or_create`] and [`VaultOptions::open`].
    pub async fn open_or_create(&self, store: impl IntoBackend, secret: impl Into<Secret>) -> Result<Vault> {
        let (store, secret) = (store.into_backend().0, secret.into());
        if self.mode != OpenMode::ReadWrite {
            return self.open_backend(store, secret).await;
        }
        if let Some(copies) = self.find(&store).await? {
            return self.unlock(store, copies, secret).await;
        }
        let host = Host::of(store.clone()).await?;
        host.refuse_account_of_chance().await?;
        self.anchor.refuse_vanished(self.place(&host).as_deref()).await?;
        match self.create_in_backend(store.clone(), secret.duplicate()).await {
            // Another process created one at the same time.
            Err(error @ (Error::VaultExists | Error::HeaderConflict)) => {
                let copies = self.find(&store).await?.ok_or(error)?;
                self.unlock(store, copies, secret).await
            }
            created => created,
        }
    }

    pub(crate) async fn open_backend(&self, store: Arc<dyn Backend>, secret: Secret) -> Result<Vault> {
        if self.mode == OpenMode::AcceptRollback && self.anchor.0.is_none() {
            return Err(Error::InvalidInput {
                what: "the rollback anchor",
                problem: "is not set: give its folder with `--anchor`",
            });
        }
        match self.find(&store).await? {
            Some(copies) => self.unlock(store, copies, secret).await,
            None => Err(no_vault(store).await),
        }
    }

    /// Reads both header copies, or explains why there are none.
    pub(super) async fn find(&self, store: &Arc<dyn Backend>) -> Result<Option<Copies>> {
        let copies = Copies::read(&*self.headers(store)).await?;
        if copies.is_absent() {
            refuse_occupied(&**store).await?;
            if occupancy::holds_sealed_records(&**store).await? {
                return Err(Error::HeaderMissing);
            }
            return Ok(None);
        }
        Ok(Some(copies))
    }

    pub(crate) async fn create_in_backend(&self, store: Arc<dyn Backend>, secret: Secret) -> Result<Vault> {
        if self.mode != OpenMode::ReadWrite {
            return Err(Error::InvalidInput {
                what: "the mode",
                problem: "creates no vault: choose OpenMode::ReadWrite",
            });
        }
        let headers = self.headers(&store);
        let host = Host::of(store.clone()).await?;
        let padding = self.padding.check()?;
        refuse_existing(&*headers).await?;
        refuse_occupied(&*store).await?;
        // Sealed records of an older vault may stay, plaintext may not.
        occupancy::holds_sealed_records(&*store).await?;

        let mut store_id = [0; 16];
        getrandom::fill(&mut store_id)?;
        let slot = NewSlot::prepare(&store_id, secret, self.label.as_deref(), self.cost(), &self.limits()).await?;
        let opened = self.new_header(store_id, &slot, padding, &host)?;
        let bytes = opened.header.serialize(&opened.vault_keys.mac_key);
        // Usually nothing is written then if the anchor cannot be used.
        self.anchor.load(&store_id).await?;
        self.anchor.check_store(self.remembered_context(), &store_id, false).await?;

        // The key derivation took a while, so look again. Only a true tie is then left for the reading back.
        refuse_existing(&*headers).await?;
        write_header(&*headers, &bytes).await?;
        // So that a copy of the main file alone has this vault.
        host.settle().await;
        match self.anchor.advance(None, &opened.header, &bytes).await {
            // Another process has opened the vault since, and has advanced the anchor.
            Ok(()) | Err(Error::HeaderConflict) => {}
            Err(error) => return Err(error),
        }
        // The store exists only from here on.
        self.anchor.remember_store(self.remembered_context(), &store_id).await?;
        self.remember_place(&host, &store_id).await?;
        Ok(Vault { created: true, ..self.vault(headers, host, opened, false) })
    }

    /// The header of a new vault, with new keys.
    fn new_header(&self, store_id: StoreId, slot: &NewSlot, padding: Padding, host: &Host) -> Result<OpenedHeader> {
        let vault_keys = VaultKeys::generate(&store_id)?;
        let (lookup_key, data_key) = (Key::generate()?, Key::generate()?);
        let key_wrap = vault_keys.vault_key.key_wrap(&store_id);
        let created = clock::now_secs();
        let (padding_policy, padding_parameter) = padding.to_header();
        let mut header = Header {
            store_id,
            generation: 1,
            created,
            record_suite: SUITE,
            token_suite: 1,
            block_suite: 1,
            padding: padding_policy,
            padding_parameter,
            flags: self.flags,
            slots: vec![slot.seal(0, &store_id, &vault_keys.vault_key)?],
            data_keys: vec![WrappedDataKey {
                epoch: 1,
                active: true,
                created,
                wrapped: wrap_key(&key_wrap, &data_key, &data_key_aad(&store_id, 1))?,
            }],
            lookup_key: wrap_key(&key_wrap, &lookup_key, &lookup_key_aad(&store_id))?,
            extensions: Vec::new(),
        };
        header.set_context(self.context.clone().or_else(|| host.context()).as_deref());
        header.set_parent(self.parent.as_ref());
        OpenedHeader::new(header, vault_keys, 0)
    }

    /// The place of the store, unless the caller names it by a context.
    pub(super) fn place(&self, host: &Host) -> Option<Vec<u8>> {
        if self.context.is_some() { None } else { host.place() }
    }

    pub(super) async fn remember_place(&self, host: &Host, store: &StoreId) -> Result<()> {
        self.anchor.remember_store(self.place(host).as_deref(), store).await
    }

    async fn unlock(&self, store: Arc<dyn Backend>, copies: Copies, secret: Secret) -> Result<Vault> {
        let Candidate { bytes, header, stale } = copies.candidate()?;
        let host = Host::of(store.clone()).await?;
        let (opened, passphrase) = self.open_header(header, &bytes, secret, &host).await?;
        if stale == Stale::Fork {
            return Err(Error::HeaderTampered);
        }
        if stale == Stale::Damaged {
            log::warn!("one of the two vault header copies is damaged; the other one is intact");
        }
        if opened.header.flags & ROTATING != 0 {
            log::warn!("a change of the data key has not finished: some records may still be under the old key");
        }
        let store_id = opened.header.store_id;
        self.anchor.check_store(self.remembered_context(), &store_id, self.mode == OpenMode::AcceptRollback).await?;
        if self.mode != OpenMode::ReadOnly {
            self.anchor.remember_store(self.remembered_context(), &store_id).await?;
            self.remember_place(&host, &store_id).await?;
        }
        let vault = self.vault(self.headers(&store), host, opened, self.mode == OpenMode::ReadOnly);
        match self.mode {
            // Nothing is written here, so the anchor would not be asked otherwise.
            OpenMode::ReadOnly if self.anchor.0.is_some() => {
                vault.shared.reload(ReloadPolicy::Opening).await?;
            }
            OpenMode::ReadOnly => {}
            OpenMode::ReadWrite => vault.note_opening(&*store, passphrase).await?,
            OpenMode::AcceptRollback => {
                vault.shared.update_as(ReloadPolicy::Accepting, None, RESTORE_STEP, |_, _| Ok(())).await?;
                vault.note_opening(&*store, passphrase).await?;
            }
        }
        Ok(vault)
    }

    /// Opens a header with a secret and checks all of it. Returns a passphrase to the caller.
    pub(super) async fn open_header(
        &self,
        header: Header,
        bytes: &[u8],
        secret: Secret,
        host: &Host,
    ) -> Result<(OpenedHeader, Option<Passphrase>)> {
        let Unlocked { vault_key, slot, passphrase } = slot::unlock(&header, secret, &self.limits()).await?;
        let vault_keys = VaultKeys::new(vault_key, &header.store_id);
        header.verify(bytes, &vault_keys.mac_key)?;
        if self.expected.is_some_and(|expected| expected != header.store_id) {
            return Err(Error::WrongStore);
        }
        let fits = self.any_context
            || match (&self.context, host.context()) {
                (Some(given), _) => header.is_bound_to(given),
                (None, Some(usual)) => !header.is_bound() || header.is_bound_to(&usual),
                (None, None) => !header.is_bound(),
            };
        if !fits {
            return Err(Error::WrongContext);
        }
        if header.flags & IMPORTING != 0 {
            return Err(Error::ImportIncomplete);
        }
        Ok((OpenedHeader::new(header, vault_keys, slot)?, passphrase))
    }

    /// Checks that a header with these slots can be opened again.
    pub(super) fn check_costs(&self, header: &Header) -> Result<()> {
        self.limits().check(header.slots.iter().filter_map(|slot| slot.cost()))
    }

    pub(super) fn headers(&self, store: &Arc<dyn Backend>) -> Arc<dyn HeaderStore> {
        self.headers.clone().unwrap_or_else(|| Arc::new(InBackend(store.clone())))
    }

    pub(super) fn vault(
        &self,
        headers: Arc<dyn HeaderStore>,
        host: Host,
        opened: OpenedHeader,
        read_only: bool,
    ) -> Vault {
        let OpenedHeader { header, vault_keys, ring, slot } = opened;
        let store_id = header.store_id;
        let shared = Arc::new(OpenVault {
            headers,
            host,
            anchor: self.anchor.clone(),
            state: RwLock::new(Arc::new(VaultState::new(header, vault_keys, ring))),
            retired_states: Mutex::default(),
            pending_keys: Mutex::default(),
            header_io: async_lock::Mutex::new(()),
            on_damage: self.on_damage,
            damaged: AtomicU64::new(0),
            read_only,
            closed: AtomicBool::new(false),
        });
        let mut open = open_vaults();
        open.retain(|(_, vault)| vault.strong_count() > 0);
        open.push((store_id, Arc::downgrade(&shared)));
        Vault { shared, slot, options: self.clone(), created: false }
    }
}

/// The error for a store without a vault.
pub(super) async fn no_vault(store: Arc<dyn Backend>) -> Error {
    let looked = async { Host::of(store).await?.refuse_account_of_chance().await };
    looked.await.err().unwrap_or(Error::NoVault)
}

/// A header that a secret opened, and its keys.
pub(super) struct OpenedHeader {
    pub(super) header: Header,
    pub(super) vault_keys: Arc<VaultKeys>,
    pub(super) ring: Arc<KeyRing>,
    /// The slot that opened the header.
    pub(super) slot: u8,
}

impl OpenedHeader {
    pub(super) fn new(header: Header, vault_keys: Arc<VaultKeys>, slot: u8) -> Result<Self> {
        let ring = Arc::new(unwrap_ring(&header, &vault_keys.vault_key)?);
        Ok(Self { header, vault_keys, ring, slot })
    }
}

impl Vault {
    /// Writes the changes that every opening makes to the header: the next generation, the mark of a sealed device if a
    /// crash prevented it, and a slot of the requested cost.
    pub(super) async fn note_opening(&self, store: &dyn Backend, passphrase: Option<Passphrase>) -> Result<()> {
        let opened = self.shared.state();
        let by = opened.header.slots.iter().find(|slot| slot.id == self.slot).ok_or(Error::HeaderTampered)?;
        let device = !self.shared.device_is_sealed() && holds_sealed_device(store).await?;
        let options = &self.options;
        let raised = match (passphrase, by.cost()) {
            (Some(passphrase), Some(cost)) if options.asked_cost.is_some_and(|asked| cost.work() < asked.work()) => {
                let (store_id, label) = (&opened.header.store_id, Some(&*by.label));
                match NewSlot::prepare(store_id, passphrase.into(), label, options.cost(), &options.limits()).await {
                    Ok(slot) => Some(slot),
                    Err(error) => {
                        log::warn!("the passphrase slot keeps its cost: {error}");
                        None
                    }
                }
            }
            _ => None,
        };
        self.shared
            .update_as(ReloadPolicy::Opening, None, 1, |header, vault_key| {
                if device {
                    header.flags |= DEVICE_SEALED;
                }
                if raised.as_ref().is_some_and(|raised| raised.find(header).is_some()) {
                    return Ok(());
                }
                // Another process may have removed the secret while its key was being derived.
                let at =
                    header.slots.iter().position(|slot| slot.commitment == by.commitment).ok_or(Error::WrongSecret)?;
                if let Some(raised) = &raised {
                    let raised = raised.seal(header.slots[at].id, &header.store_id, vault_key)?;
                    let kept = std::mem::replace(&mut header.slots[at], raised);
                    if self.options.check_costs(header).is_err() {
                        header.slots[at] = kept;
                    }
                }
                Ok(())
            })
            .await
    }
}

/// Refuses a store without a header if its device row shows that it is in use.
///
/// # Errors
/// [`Error::HeaderMissing`] if the device is sealed, [`Error::PlaintextDevice`] if it is paired and not sealed.
pub(super) async fn refuse_occupied(store: &dyn Backend) -> Result<()> {
    if store.exists().await? && holds_sealed_device(store).await? {
        return Err(Error::HeaderMissing);
    }
    Ok(())
}
