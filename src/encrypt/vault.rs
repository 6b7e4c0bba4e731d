//! Creating, opening and changing vaults.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use async_trait::async_trait;
use hmac::Hmac;
use sha2::Sha256;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::envelope::{self, Place, Prefix};
use super::freshness::{Freshness, FreshnessAnchor};
use super::header::{DEVICE_SEALED, Header, IMPORTING, MAX_SLOTS, ROTATING, Wrapped, WrappedDataKey};
use super::host::Host;
use super::kdf::{Argon2Cost, KdfLimits};
use super::keys::{DataKeys, KeyRing, LookupKeys, StoreId, VaultKey};
use super::slot::{self, NewSlot, SlotInfo, Unlocked};
#[cfg(feature = "sqlite")]
use super::stored::{Checked, OpenedRow, StoredRow};
use super::{EncryptLayer, Padding, device, residue};
use crate::clock;
use crate::ended;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::secret::{Key, Passphrase, RecoveryKey, Secret};

/// An opened vault: the keys of one encrypted store, and the way to change who can open it.
///
/// The vault writes its header into the store that it was opened on. [`Vault::layer`] gives the layer that encrypts and
/// decrypts records; it may sit anywhere above that store in a [`Stack`](crate::Stack).
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
    pub(super) shared: Arc<Shared>,
    /// The slot that opened the vault, which `change_passphrase` replaces.
    pub(super) slot: u8,
    pub(super) options: VaultOptions,
    created: bool,
}

/// What a layer does with a stored record that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDamage {
    /// Every such record is an error.
    #[default]
    Error,
    /// Records that the client can fetch again (LID mappings, device lists, group metadata, tc tokens) count as absent;
    /// listings of them and of sender-key devices leave the record out. [`Vault::damaged_records`] counts them. Key
    /// material, messages and the device are errors all the same.
    TreatAsAbsent,
    /// The same, and sessions, identities, sender keys and one-time prekeys that were altered or overwritten count as absent as well: the client
    /// negotiates or learns them anew, and the messages that needed them come again. Whoever can write to the store can bring
    /// that about, which he could also by deleting them. Records under a data key that the header does not have are errors all
    /// the same: they are not damaged, the header is an older one.
    Renegotiate,
}

/// Settings for creating and opening vaults. The defaults suit one bot on one machine.
#[derive(Clone, Default)]
pub struct VaultOptions {
    /// What [`VaultOptions::kdf_cost`] asked for.
    asked_cost: Option<Argon2Cost>,
    limits: Option<KdfLimits>,
    padding: Padding,
    on_damage: OnDamage,
    label: Option<String>,
    pub(super) headers: Option<Arc<dyn HeaderStore>>,
    pub(super) freshness: Freshness,
    context: Option<Vec<u8>>,
    expected: Option<StoreId>,
    /// Whatever context a vault is bound to will do.
    any_context: bool,
    /// The vault whose `account_key` opens a new one.
    parent: Option<StoreId>,
    /// Flags of a new header.
    flags: u32,
}

impl VaultOptions {
    /// The settings of [`Vault::create`] and [`Vault::open`].
    pub fn new() -> Self {
        Self::default()
    }

    /// The cost of a guess at the passphrase, for new slots; default [`Argon2Cost::DEFAULT`]. If it is given, opening a slot of
    /// less work (memory times passes) with its passphrase raises it to this cost; otherwise slots keep theirs, so that a vault
    /// goes on opening in a container that is no larger than before.
    pub fn kdf_cost(mut self, cost: Argon2Cost) -> Self {
        self.asked_cost = Some(cost);
        self
    }

    /// The cost of new slots.
    pub(super) fn cost(&self) -> Argon2Cost {
        self.asked_cost.unwrap_or(Argon2Cost::DEFAULT)
    }

    /// The most work that a header may ask for; default [`KdfLimits::default`], with four times the memory of
    /// [`VaultOptions::kdf_cost`] if that is more.
    pub fn kdf_limits(mut self, limits: KdfLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Binds a new vault to a context, any bytes that say which bot it is, and opens only a vault that is bound to the same:
    /// a store that was exchanged for another one with the same secret is refused with [`Error::WrongContext`]. Its hash is
    /// stored in the header.
    ///
    /// Over [`SqliteStore`](crate::SqliteStore) the default is `account N` with the number of the account, so that one
    /// account cannot take the place of another one in its file. To move account 1 to number 2 on purpose, open it there with
    /// `context("account 1")` and call [`Vault::bind_context`] with `account 2`. A vault of version 0.1.0 is bound to nothing,
    /// and opens if no context is given here.
    ///
    /// With a [`VaultOptions::freshness_anchor`], the anchor also remembers which store opened under the context that is
    /// given here, and another one is refused with [`Error::WrongStore`].
    pub fn context(mut self, context: impl Into<Vec<u8>>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Opens only the vault with this [`Vault::store_id`]; another one is refused with [`Error::WrongStore`].
    pub fn expect_store(mut self, id: [u8; 16]) -> Self {
        self.expected = Some(id);
        self
    }

    /// Notes in a new vault that it opens with a key that `parent` gives by [`Vault::account_key`], so that
    /// `SqliteStore::open_vault` finds the parent among any other accounts.
    pub fn derived_from(mut self, parent: &Vault) -> Self {
        self.parent = Some(parent.store_id());
        self
    }

    /// The same settings for a vault that gives the key of the one that is asked for.
    #[cfg(feature = "sqlite")]
    pub(crate) fn of_parent(&self) -> Self {
        Self { any_context: true, expected: None, ..self.clone() }
    }

    /// The most work that a header may ask for.
    pub(super) fn limits(&self) -> KdfLimits {
        self.limits.unwrap_or_else(|| KdfLimits::of_cost(self.cost()))
    }

    /// How a new vault hides the length of its values; default [`Padding::None`]. An existing vault keeps its own.
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// What happens to a record that does not verify; default [`OnDamage::Error`].
    pub fn on_damage(mut self, on_damage: OnDamage) -> Self {
        self.on_damage = on_damage;
        self
    }

    /// The label of a new vault's first slot, at most 32 bytes, stored in the clear; default `passphrase`, `key`,
    /// `recovery` or `provider`.
    pub fn slot_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Keeps the header elsewhere than in the store: without it, the store alone is noise for ever.
    pub fn header_store(mut self, headers: Arc<dyn HeaderStore>) -> Self {
        self.headers = Some(headers);
        self
    }

    /// Notices a store that was put back to an earlier state, or that has a copy elsewhere that went on, by what the anchor
    /// remembers of it; [`FreshnessAnchor`] says when. Everybody who opens the vault for writing must use the same anchor, or
    /// the others are refused; a store that was used without one before is taken over with [`VaultOptions::accept_rollback`].
    /// Makes no sense with a [`VaultOptions::header_store`] that is not put back together with the store.
    pub fn freshness_anchor(mut self, anchor: Arc<dyn FreshnessAnchor>) -> Self {
        self.freshness = Freshness(Some(anchor));
        self
    }

    /// The same settings for a vault that does not open before [`Vault::finish_import`].
    #[cfg(feature = "upstream")]
    pub(crate) fn importing(&self) -> Self {
        Self { flags: IMPORTING, ..self.clone() }
    }

    /// As [`Vault::create`].
    ///
    /// # Errors
    /// As [`Vault::create`].
    pub async fn create(&self, store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Vault> {
        self.create_vault(store, secret.into()).await
    }

    /// As [`Vault::open`].
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub async fn open(&self, store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Vault> {
        match self.find(&store).await? {
            Some(copies) => self.unlock(store, copies, secret.into(), Access::ReadWrite).await,
            None => Err(no_vault(store).await),
        }
    }

    /// As [`Vault::open`], but writes nothing: damaged header copies are not repaired, and the vault's layer refuses
    /// every method that would change a row with [`Error::ReadOnly`].
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub async fn open_read_only(&self, store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Vault> {
        match self.find(&store).await? {
            Some(copies) => self.unlock(store, copies, secret.into(), Access::ReadOnly).await,
            None => Err(no_vault(store).await),
        }
    }

    /// As [`Vault::open_or_create`].
    ///
    /// # Errors
    /// As [`Vault::open_or_create`].
    pub async fn open_or_create(&self, store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Vault> {
        let secret = secret.into();
        let Some(copies) = self.find(&store).await? else {
            let host = Host::of(store.clone()).await?;
            host.refuse_account_of_chance().await?;
            self.freshness.refuse_vanished(self.place(&host).as_deref()).await?;
            return match self.create_vault(store.clone(), secret.duplicate()).await {
                // Somebody else created one at the same moment.
                Err(error @ (Error::VaultExists | Error::HeaderConflict)) => {
                    let copies = self.find(&store).await?.ok_or(error)?;
                    self.unlock(store, copies, secret, Access::ReadWrite).await
                }
                created => created,
            };
        };
        self.unlock(store, copies, secret, Access::ReadWrite).await
    }

    /// Opens the vault of a store as it is, whatever the freshness anchor remembers, and makes the anchor remember this state
    /// of it. Every other copy of the store is refused from then on.
    ///
    /// A store that was put back re-uses message keys, and its contacts have gone on without it. Accept it when nothing newer is
    /// left, and then make the client build its sessions anew: log out and link the account again, or delete the
    /// sessions and sender keys.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is no [`VaultOptions::freshness_anchor`], and those of [`Vault::open`].
    pub async fn accept_rollback(&self, store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Vault> {
        if self.freshness.0.is_none() {
            return Err(Error::InvalidInput { what: "freshness anchor", problem: "is not set" });
        }
        match self.find(&store).await? {
            Some(copies) => self.unlock(store, copies, secret.into(), Access::AcceptRollback).await,
            None => Err(no_vault(store).await),
        }
    }

    /// Reads both header copies, or explains why there are none.
    async fn find(&self, store: &Arc<dyn Backend>) -> Result<Option<Copies>> {
        let copies = Copies::read(&*self.headers(store)).await?;
        if copies.is_absent() {
            refuse_occupied(&**store).await?;
            if residue::holds_sealed_records(&**store).await? {
                return Err(Error::HeaderMissing);
            }
            return Ok(None);
        }
        Ok(Some(copies))
    }

    async fn create_vault(&self, store: Arc<dyn Backend>, secret: Secret) -> Result<Vault> {
        let headers = self.headers(&store);
        let host = Host::of(store.clone()).await?;
        let padding = self.padding.check()?;
        refuse_existing(&*headers).await?;
        refuse_occupied(&*store).await?;
        // What an older vault left behind may stay, plaintext may not.
        residue::holds_sealed_records(&*store).await?;

        let new_slot = NewSlot::prepare(secret, self.label.as_deref(), self.cost(), &self.limits()).await?;
        let mut store_id = [0; 16];
        getrandom::fill(&mut store_id)?;
        let root = Root::generate(&store_id)?;
        let (lookup_key, data_key) = (Key::generate()?, Key::generate()?);
        let key_wrap = root.vault_key.key_wrap(&store_id);
        let created = clock::now_secs();
        let (padding_policy, padding_parameter) = padding.to_header();
        let mut header = Header {
            store_id,
            generation: 1,
            created,
            record_suite: envelope::SUITE,
            token_suite: 1,
            block_suite: 1,
            padding: padding_policy,
            padding_parameter,
            flags: self.flags,
            slots: vec![new_slot.seal(0, &store_id, &root.vault_key)?],
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
        let opened = OpenedHeader::new(header, root, 0)?;
        let bytes = opened.header.serialize(&opened.root.mac_key);
        // So that as a rule nothing is written if it cannot be used.
        self.freshness.load(&store_id).await?;
        self.freshness.check_store(self.context.as_deref(), &store_id, Access::ReadWrite).await?;

        // The key derivation took a while: look again, so that only a true tie is left to the reading back.
        refuse_existing(&*headers).await?;
        write_header(&*headers, &bytes).await?;
        // So that a copy of the main file alone is one of this vault.
        host.settle().await;
        match self.freshness.advance(None, &opened.header, &bytes).await {
            // Somebody has opened the vault since, and did it.
            Ok(()) | Err(Error::HeaderConflict) => {}
            Err(error) => return Err(error),
        }
        // Only now there is such a store.
        self.freshness.remember_store(self.context.as_deref(), &store_id).await?;
        self.remember_place(&host, &store_id).await?;
        Ok(Vault { created: true, ..self.vault(headers, host, opened, false) })
    }

    /// Where the store is, unless the caller names it by a context.
    fn place(&self, host: &Host) -> Option<Vec<u8>> {
        if self.context.is_some() { None } else { host.place() }
    }

    async fn remember_place(&self, host: &Host, store: &StoreId) -> Result<()> {
        self.freshness.remember_store(self.place(host).as_deref(), store).await
    }

    async fn unlock(&self, store: Arc<dyn Backend>, copies: Copies, secret: Secret, access: Access) -> Result<Vault> {
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
            log::warn!("a change of the data key has not finished: some records may still be under the old one");
        }
        let store_id = opened.header.store_id;
        self.freshness.check_store(self.context.as_deref(), &store_id, access).await?;
        if access != Access::ReadOnly {
            self.freshness.remember_store(self.context.as_deref(), &store_id).await?;
            self.remember_place(&host, &store_id).await?;
        }
        let vault = self.vault(self.headers(&store), host, opened, access == Access::ReadOnly);
        match access {
            // Nothing is written that would ask the anchor.
            Access::ReadOnly if self.freshness.0.is_some() => {
                vault.shared.reload(Holder::Opening).await?;
            }
            Access::ReadOnly => {}
            Access::ReadWrite => vault.note_opening(&*store, passphrase).await?,
            Access::AcceptRollback => {
                vault.shared.update_as(Holder::Accepting, None, RESTORE_STEP, |_, _| Ok(())).await?;
                vault.note_opening(&*store, passphrase).await?;
            }
        }
        Ok(vault)
    }

    /// Opens a header with a secret and checks all of it. Gives a passphrase back.
    pub(super) async fn open_header(
        &self,
        header: Header,
        bytes: &[u8],
        secret: Secret,
        host: &Host,
    ) -> Result<(OpenedHeader, Option<Passphrase>)> {
        let Unlocked { vault_key, slot, passphrase } = slot::unlock(&header, secret, &self.limits()).await?;
        let root = Root::new(vault_key, &header.store_id);
        header.verify(bytes, &root.mac_key)?;
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
        Ok((OpenedHeader::new(header, root, slot)?, passphrase))
    }

    /// Checks that a header with these slots would be opened again.
    fn check_costs(&self, header: &Header) -> Result<()> {
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
        let OpenedHeader { header, root, ring, slot } = opened;
        let store_id = header.store_id;
        let shared = Arc::new(Shared {
            headers,
            host,
            freshness: self.freshness.clone(),
            state: RwLock::new(Arc::new(State::new(header, root, ring))),
            superseded: Mutex::default(),
            next_root: Mutex::default(),
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

/// What there is to say of a store without a vault.
async fn no_vault(store: Arc<dyn Backend>) -> Error {
    let looked = async { Host::of(store).await?.refuse_account_of_chance().await };
    looked.await.err().unwrap_or(Error::NoVault)
}

/// What a vault is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
    /// Also to write, whatever the freshness anchor remembers.
    AcceptRollback,
}

/// A header that a secret opened, and what came out.
pub(super) struct OpenedHeader {
    pub(super) header: Header,
    pub(super) root: Arc<Root>,
    ring: Arc<KeyRing>,
    /// The slot that opened.
    pub(super) slot: u8,
}

impl OpenedHeader {
    pub(super) fn new(header: Header, root: Arc<Root>, slot: u8) -> Result<Self> {
        let ring = Arc::new(unwrap_ring(&header, &root.vault_key)?);
        Ok(Self { header, root, ring, slot })
    }
}

impl fmt::Debug for VaultOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultOptions")
            .field("kdf_cost", &self.cost())
            .field("kdf_limits", &self.limits())
            .field("padding", &self.padding)
            .field("on_damage", &self.on_damage)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Creates a vault with one key slot on a store that has none.
    ///
    /// Two processes that create a vault on the same store at once are told apart by reading the header back: the one
    /// whose header did not stay gets [`Error::HeaderConflict`] and has written no record. Without a compare-and-swap, which
    /// upstream's traits do not have, there is a gap: a process that looked before the other one began, and writes after
    /// it finished, takes its place unnoticed. This crate's `SqliteStore` has no such gap; over other stores, create vaults
    /// from one process.
    ///
    /// # Errors
    /// [`Error::VaultExists`] if there is a header, [`Error::HeaderDamaged`] if there is what is left of one,
    /// [`Error::HeaderMissing`] if there is a sealed device without a header, [`Error::PlaintextDevice`] if there is a
    /// paired plaintext device, [`Error::Plaintext`] if there are other records in plaintext; [`Error::KdfOutOfBounds`] if
    /// the cost is above the limits; [`Error::KeyProvider`], [`Error::Random`], [`Error::KdfFailed`]; and [`Error::Store`]
    /// with an error of the store. Nothing was written unless it is [`Error::HeaderConflict`] or [`Error::Store`]. With a
    /// freshness anchor also [`Error::Anchor`], after which there may be a vault; open it then.
    pub async fn create(store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().create(store, secret).await
    }

    /// Opens the vault of a store. Writes the header with the next generation.
    ///
    /// # Errors
    /// Nothing was written in any of these cases:
    /// * [`Error::NoVault`] if the store has no vault and holds nothing that needs one;
    /// * [`Error::PlaintextDevice`] if it holds a paired plaintext device, [`Error::Plaintext`] if it has no header and
    ///   other records in plaintext;
    /// * [`Error::HeaderMissing`] if the header is gone, but sealed records are there;
    /// * [`Error::HeaderDamaged`] if neither header copy is intact, [`Error::UnsupportedVersion`] if a later version of
    ///   this crate wrote it;
    /// * [`Error::KdfOutOfBounds`] before any work, if the header asks for more than the limits;
    /// * [`Error::WrongSecret`] if no slot opens, [`Error::HeaderTampered`] if one does, but the rest was altered;
    /// * [`Error::ImportIncomplete`] if an import into the store was interrupted;
    /// * with a freshness anchor, [`Error::RollbackDetected`], [`Error::ForkDetected`] and [`Error::AnchorMissing`], and
    ///   [`Error::Anchor`], after which the header may have been written;
    /// * [`Error::KeyProvider`], [`Error::KdfFailed`] and [`Error::Random`] as they say.
    ///
    /// [`Error::HeaderConflict`] means that other processes kept writing the header at the same moment, [`Error::Store`]
    /// that the store failed; one header copy may have been written then, and both the old and the new one open.
    pub async fn open(store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().open(store, secret).await
    }

    /// Opens the vault of a store, or creates it if the store has no header, nothing sealed and no paired device;
    /// [`Vault::was_created`] tells which of the two. If somebody else creates it at the same moment, opens theirs.
    ///
    /// # Errors
    /// As [`Vault::open`] without [`Error::NoVault`], or as [`Vault::create`]. [`Error::OtherAccounts`] if this is the account of
    /// [`SqliteStore::open`](crate::SqliteStore::open), without another one having been chosen, and the file only holds others;
    /// [`Error::StoreVanished`] if a freshness anchor remembers a store at this place.
    pub async fn open_or_create(store: Arc<dyn Backend>, secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().open_or_create(store, secret).await
    }

    /// Puts a header back that [`Vault::save_header`] gave, over damaged, missing or older copies, and opens the vault.
    ///
    /// Key slots that were removed after saving are back, and those added are gone: `saved` opens with the secrets of its
    /// day. Records written in between stay readable: the restored generation is above theirs. Save the header again
    /// afterwards, and after every change of the data key. If there is an intact header of the same vault, the device and the
    /// records decide whose data keys are the right ones, and if they do not, all are kept; if there is none, those of `saved`
    /// are all there are.
    ///
    /// # Errors
    /// [`Error::HeaderDamaged`], [`Error::UnsupportedVersion`], [`Error::WrongSecret`], [`Error::HeaderTampered`] if
    /// `saved` is not an intact header that opens with `secret`; [`Error::ImportIncomplete`], [`Error::PlaintextDevice`] as
    /// in [`Vault::open`]; [`Error::VaultExists`] or [`Error::UnsupportedVersion`] if the store has the header of another
    /// vault or of a later version, and no sealed device that proves it to be planted, or that of this vault after
    /// [`Vault::revoke`]; [`Error::UnknownEpoch`] if no header is left and the device is under a data key that `saved` does not
    /// have. Nothing was written in these cases. [`Error::HeaderConflict`], [`Error::Store`] and [`Error::Anchor`] can come after
    /// the header was written.
    pub async fn restore_header(store: Arc<dyn Backend>, saved: &[u8], secret: impl Into<Secret>) -> Result<Self> {
        VaultOptions::new().restore_header(store, saved, secret).await
    }

    /// `true` if the store had no vault, and this one was created: there is nothing in it, and the account is to be paired.
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// The layer that encrypts what goes down and decrypts what comes up.
    pub fn layer(&self) -> EncryptLayer {
        EncryptLayer::new(self.shared.clone())
    }

    /// Ends the vault: its layers fail with [`Error::Closed`] from now on, and so does what would change the header. Caches above
    /// give nothing out any more. Calls under way end as they would have. The keys are wiped when the vault and the last of its
    /// layers are dropped.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Returns the header as this vault last read or wrote it, at most 16 KiB, for [`Vault::restore_header`]. It opens with
    /// every secret that opens the vault now, also after that secret is removed: keep it like a key.
    pub fn save_header(&self) -> Vec<u8> {
        let state = self.shared.state();
        state.header.serialize(&state.root.mac_key)
    }

    /// The random id of this vault, for [`VaultOptions::expect_store`]: no secret, stored in the header, and never the same
    /// for two vaults that were created.
    pub fn store_id(&self) -> [u8; 16] {
        self.shared.state().header.store_id
    }

    /// Binds the vault to another context, or one of version 0.1.0 to its first; see [`VaultOptions::context`]. Later versions
    /// than 0.1.0 are needed to open it then.
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
    /// A process with many accounts stretches one passphrase for the first vault and opens the others with
    /// `vault.account_key("account 2")` and so on, which costs microseconds. Whoever has the vault key of this vault can
    /// open those, not the other way round.
    pub fn account_key(&self, label: &str) -> Key {
        let state = self.shared.state();
        state.root.vault_key.account_key(&state.header.store_id, label)
    }

    /// From now on the vault can be opened.
    #[cfg(feature = "upstream")]
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
        self.shared.state().header.slots.iter().map(|slot| slot.info()).collect()
    }

    /// Adds a key slot and returns its number. Costs one key derivation for a passphrase, whatever the size of the store.
    ///
    /// `label` is stored in the clear, at most 32 bytes.
    ///
    /// # Errors
    /// [`Error::SlotsFull`] with eight slots, [`Error::InvalidInput`] if the label is too long, [`Error::KdfOutOfBounds`] if
    /// all passphrase slots together would ask for more work than the limits allow, and the errors of
    /// changing the header: [`Error::HeaderConflict`], [`Error::HeaderMissing`], [`Error::HeaderDamaged`],
    /// [`Error::HeaderTampered`], [`Error::HeaderRolledBack`] and [`Error::UnknownEpoch`] if a record is newer than the
    /// header or under a data key that it lacks, [`Error::ReadOnly`], [`Error::Store`]; with a freshness anchor
    /// also [`Error::RollbackDetected`] and [`Error::ForkDetected`], if a copy of the store comes first, and
    /// [`Error::Anchor`], after which the change may have been made: look at [`Vault::slots`] before trying again.
    pub async fn add_slot(&self, label: &str, secret: impl Into<Secret>) -> Result<u8> {
        self.shared.refuse_change("add_slot")?;
        if self.shared.state().header.slots.len() >= MAX_SLOTS {
            return Err(Error::SlotsFull);
        }
        let options = &self.options;
        let new_slot = NewSlot::prepare(secret.into(), Some(label), options.cost(), &options.limits()).await?;
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

    /// Removes a key slot. Its secret does not open the vault any more once this returns, unless another process, which
    /// had looked before, writes the header after it finished: change slots from one process, except over this crate's
    /// `SqliteStore`, which refuses such a write.
    ///
    /// An older copy of the header, in a backup or on worn flash, still opens with it, and whoever opened the vault with it
    /// may have kept its keys.
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
                    // A try before this one removed it, and another process wrote the header since.
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
    /// If the process dies in between, either the old or the new passphrase opens the vault. An older copy of the header
    /// still opens with the old one.
    ///
    /// # Errors
    /// [`Error::AmbiguousPassphrase`] if the vault was opened by something else and has no passphrase or several, and
    /// the errors of changing the header, as [`Vault::add_slot`].
    pub async fn change_passphrase(&self, new: Passphrase) -> Result<()> {
        self.shared.refuse_change("change_passphrase")?;
        // Without holding the state while the key is derived.
        let (id, label, kept) = {
            let state = self.shared.state();
            let id = self.passphrase_slot(&state.header)?;
            let replaced = state.header.slots.iter().find(|slot| slot.id == id);
            (id, replaced.map(|slot| slot.label.clone()), replaced.and_then(|slot| slot.cost()))
        };
        let options = &self.options;
        let cost = options.asked_cost.or(kept).unwrap_or(Argon2Cost::DEFAULT);
        let new_slot = NewSlot::prepare(new.into(), label.as_deref(), cost, &options.limits()).await?;
        self.shared
            .change(SLOT_STEP, |header, vault_key| {
                if new_slot.find(header).is_some() {
                    return Ok(());
                }
                let store_id = header.store_id;
                let slot = header.slots.iter_mut().find(|slot| slot.id == id && slot.cost().is_some());
                *slot.ok_or(Error::NoSuchSlot(id))? = new_slot.seal(id, &store_id, vault_key)?;
                options.check_costs(header)
            })
            .await
    }

    /// What opening leaves in the header: the next generation, the mark of a sealed device that a crash kept from being
    /// set, and a slot of the cost that is asked for now.
    async fn note_opening(&self, store: &dyn Backend, passphrase: Option<Passphrase>) -> Result<()> {
        let opened = self.shared.state();
        let by = opened.header.slots.iter().find(|slot| slot.id == self.slot).ok_or(Error::HeaderTampered)?;
        let device = !self.shared.device_is_sealed() && device::holds_sealed_device(store).await?;
        let options = &self.options;
        let raised = match (passphrase, by.cost()) {
            (Some(passphrase), Some(cost)) if options.asked_cost.is_some_and(|asked| cost.work() < asked.work()) => {
                match NewSlot::prepare(passphrase.into(), Some(&by.label), options.cost(), &options.limits()).await {
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
            .update_as(Holder::Opening, None, 1, |header, vault_key| {
                if device {
                    header.flags |= DEVICE_SEALED;
                }
                if raised.as_ref().is_some_and(|raised| raised.find(header).is_some()) {
                    return Ok(());
                }
                // Somebody may have removed the secret while its key was being derived.
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

    fn passphrase_slot(&self, header: &Header) -> Result<u8> {
        let passphrases: Vec<u8> =
            header.slots.iter().filter(|slot| slot.cost().is_some()).map(|slot| slot.id).collect();
        match passphrases.as_slice() {
            ids if ids.contains(&self.slot) => Ok(self.slot),
            [only] => Ok(*only),
            ids => Err(Error::AmbiguousPassphrase(ids.len())),
        }
    }

    /// What to hold while rows are read that are opened then.
    #[cfg(feature = "sqlite")]
    pub(crate) fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    /// Checks the highest stamp of rows that opened.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if a row is newer than the stored header.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn check_stamp(&self, state: &State, stamp: u32) -> Result<()> {
        self.shared.check_stamp(state, stamp).await
    }

    /// Checks a row that was read from a table.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn check_stored(&self, held: &Arc<State>, row: StoredRow) -> Result<Checked> {
        self.shared.check(held, row).await
    }

    /// Opens a row that was read from a table.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn open_stored(&self, held: &Arc<State>, row: StoredRow) -> Result<OpenedRow> {
        self.shared.open_stored(held, row).await
    }

    /// `true` if the absence of a device is an error.
    #[cfg(feature = "sqlite")]
    pub(crate) fn device_is_sealed(&self) -> bool {
        self.shared.device_is_sealed()
    }

    /// Raises the header's generation and makes the freshness anchor remember it, so that older copies of the store are
    /// refused from then on. Call it after every backup and snapshot, and once in a while. Does nothing more than write the
    /// header if there is no [`VaultOptions::freshness_anchor`].
    ///
    /// # Errors
    /// Those of changing the header, as [`Vault::add_slot`].
    pub async fn renew_anchor(&self) -> Result<()> {
        self.shared.change(1, |_, _| Ok(())).await
    }

    /// How many damaged records were treated as absent so far, under [`OnDamage::TreatAsAbsent`] and
    /// [`OnDamage::Renegotiate`].
    pub fn damaged_records(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The padding policy of the vault.
    pub fn padding(&self) -> Padding {
        self.shared.state().padding
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("slots", &self.slots().len()).finish_non_exhaustive()
    }
}

/// Where a vault keeps its two header copies. The default is the store itself.
///
/// Implement it to keep them apart from the store: on a token, in a keyring, on another disk. A write must replace the
/// copy as a whole and be durable when it returns.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait HeaderStore: Send + Sync {
    /// Returns the bytes last written to this copy, or `None` if there are none.
    async fn read(&self, copy: HeaderCopy) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces this copy by `bytes`, at most 16 KiB.
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

    /// The address of the copy among the sender keys: the one slot that every backend keeps opaque, unlisted and
    /// unpruned. Blinded addresses have 24 characters, so none can be equal.
    pub(crate) const fn address(self) -> &'static str {
        match self {
            HeaderCopy::A => "wastorevaultheaderv1a",
            HeaderCopy::B => "wastorevaultheaderv1b",
        }
    }

    /// The copy that is kept at an address.
    #[cfg(feature = "sqlite")]
    pub(crate) fn of(address: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|copy| copy.address() == address)
    }

    /// Whether this copy may become `new`, for a store that can look at both copies and write in one step. Copy A goes on
    /// from what it is, or catches up with a newer copy B; copy B follows copy A. What is not intact may be replaced, but
    /// does not replace what is.
    #[cfg(feature = "sqlite")]
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
struct InBackend(Arc<dyn Backend>);

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

/// What a vault and its layers have in common.
pub(crate) struct Shared {
    headers: Arc<dyn HeaderStore>,
    pub(super) host: Host,
    freshness: Freshness,
    state: RwLock<Arc<State>>,
    /// Older states that calls may still hold.
    superseded: Mutex<Vec<Weak<State>>>,
    /// The vault key that the header is being put under.
    next_root: Mutex<Option<Arc<Root>>>,
    /// Held while header copies are read and written, never while records are.
    header_io: async_lock::Mutex<()>,
    pub(crate) on_damage: OnDamage,
    pub(crate) damaged: AtomicU64,
    pub(crate) read_only: bool,
    closed: AtomicBool,
}

/// The vaults that this process has open, so that all of a store hear of a new data key.
static OPEN_VAULTS: Mutex<Vec<(StoreId, Weak<Shared>)>> = Mutex::new(Vec::new());

fn open_vaults() -> MutexGuard<'static, Vec<(StoreId, Weak<Shared>)>> {
    // Nothing panics while holding the guard.
    OPEN_VAULTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The vault key, and the key that authenticates the header.
pub(crate) struct Root {
    pub(crate) vault_key: VaultKey,
    pub(super) mac_key: Hmac<Sha256>,
}

impl Root {
    fn new(vault_key: VaultKey, store_id: &StoreId) -> Arc<Self> {
        let mac_key = vault_key.header_mac(store_id);
        Arc::new(Self { vault_key, mac_key })
    }

    /// A new vault key.
    pub(super) fn generate(store_id: &StoreId) -> Result<Arc<Self>> {
        Ok(Self::new(VaultKey(Key::generate()?), store_id))
    }
}

/// What records need to know of the header.
pub(crate) struct State {
    pub(crate) header: Header,
    pub(crate) root: Arc<Root>,
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) padding: Padding,
    pub(crate) stamp: u32,
}

impl State {
    fn new(header: Header, root: Arc<Root>, ring: Arc<KeyRing>) -> Self {
        let (padding, stamp) = (header.padding(), header.stamp());
        Self { header, root, ring, padding, stamp }
    }

    pub(super) fn unwrapped(header: Header, root: Arc<Root>) -> Result<Self> {
        let ring = Arc::new(unwrap_ring(&header, &root.vault_key)?);
        Ok(Self::new(header, root, ring))
    }

    /// The keys that opened values of this epoch need.
    pub(crate) fn keys(&self, prefix: &Prefix, record: Record) -> Result<&DataKeys> {
        self.ring.epoch(prefix.epoch()).ok_or(Error::UnknownEpoch { record })
    }

    /// Seals a value with a nonce of its own.
    pub(crate) fn seal(&self, nonce: &envelope::Nonce, place: Place<'_>, payload: &[u8]) -> Result<Vec<u8>> {
        envelope::seal(self.ring.active(), self.stamp, self.padding, nonce, place, payload)
    }
}

impl Shared {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        ended::note();
    }

    /// # Errors
    /// [`Error::Closed`] if the vault was closed.
    pub(crate) fn refuse_closed(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::Closed { what: "vault" }) } else { Ok(()) }
    }

    pub(crate) fn state(&self) -> Arc<State> {
        // Nothing panics while holding the guard, and the state is replaced as a whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state that knows an epoch: the one that was held while the record was read, the newest one, or the one after
    /// reading the header again, because another process may have rotated keys.
    ///
    /// # Errors
    /// [`Error::UnknownEpoch`] if the stored header does not know it either.
    pub(crate) async fn state_for(&self, held: &Arc<State>, record: Record, epoch: u32) -> Result<Arc<State>> {
        let knows = |state: &Arc<State>| state.ring.epoch(epoch).is_some();
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

    /// Checks the stamp of a record that verified against the state it was opened with, or, because another process may
    /// have opened the vault since, against the stored header.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if the record is newer than the stored header.
    pub(crate) async fn check_stamp(&self, state: &State, stamp: u32) -> Result<()> {
        if stamp > state.stamp && stamp > self.state().stamp {
            self.refresh().await?;
            if stamp > self.state().stamp {
                return Err(Error::HeaderRolledBack);
            }
        }
        Ok(())
    }

    /// Reads the header again.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let _header_io = self.header_io.lock().await;
        self.reload(Holder::Open).await?;
        Ok(())
    }

    fn next_root(&self) -> MutexGuard<'_, Option<Arc<Root>>> {
        // Nothing panics while holding the guard.
        self.next_root.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vault key that a header is under, if one of the vaults of this process that are on the same store has it, or is
    /// putting it in place. One that is on a copy of this crate's own store does not count: its header may have been planted.
    fn root_of(&self, header: &Header, bytes: &[u8]) -> Option<Arc<Root>> {
        let here = self.siblings().into_iter().filter(|vault| self.host.may_be(&vault.host));
        let roots = here.flat_map(|vault| [Some(vault.state().root.clone()), vault.next_root().clone()]);
        roots.flatten().find(|root| header.verify(bytes, &root.mac_key).is_ok())
    }

    /// This and every other vault that this process has open on the same store, or on a copy of it.
    pub(super) fn siblings(&self) -> Vec<Arc<Shared>> {
        let store_id = self.state().header.store_id;
        open_vaults().iter().filter(|(id, _)| *id == store_id).filter_map(|(_, vault)| vault.upgrade()).collect()
    }

    /// `true` if no call holds a state from before the last change of the header.
    #[cfg(feature = "sqlite")]
    pub(super) fn is_settled(&self) -> bool {
        let mut superseded = self.superseded.lock().unwrap_or_else(PoisonError::into_inner);
        superseded.retain(|state| state.upgrade().is_some());
        superseded.is_empty()
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
    /// [`Error::ReadOnly`], and [`Error::Closed`] once the vault is closed.
    pub(super) fn refuse_change(&self, method: &'static str) -> Result<()> {
        self.refuse_closed()?;
        if self.read_only { Err(Error::ReadOnly { method }) } else { Ok(()) }
    }

    /// Changes the header: reads the newest copy, applies `change`, and writes it with a generation higher by `step`. If
    /// another process writes at the same time, starts again, so `change` must do no harm when it finds its work done.
    /// If this future is dropped in between, the newer copy counts.
    pub(super) async fn update<T>(
        &self,
        step: u64,
        change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        self.update_as(Holder::Open, None, step, change).await
    }

    /// The same for what somebody asks for, after a look at the rows: a header that was put back must not be washed by it.
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

    /// The same, after which the header is under another vault key. `change` gets the one it is under at that time, which
    /// is the new one if its work is done.
    pub(super) async fn update_root<T>(
        &self,
        root: &Arc<Root>,
        change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        self.update_as(Holder::Open, Some(root), SLOT_STEP, change).await
    }

    async fn update_as<T>(
        &self,
        holder: Holder,
        next: Option<&Arc<Root>>,
        step: u64,
        mut change: impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        if self.read_only {
            return Err(Error::ReadOnly { method: "header update" });
        }
        let _header_io = self.header_io.lock().await;
        if let Some(next) = next {
            // Before it is written, so that whoever reads it knows it.
            *self.next_root() = Some(next.clone());
        }
        for _ in 0..UPDATE_TRIES {
            match self.update_once(holder, next, step, &mut change).await {
                Err(Error::HeaderConflict) => {}
                result => return result,
            }
        }
        Err(Error::HeaderConflict)
    }

    /// # Errors
    /// [`Error::HeaderConflict`] if another process writes at the same time.
    async fn update_once<T>(
        &self,
        holder: Holder,
        next: Option<&Arc<Root>>,
        step: u64,
        change: &mut impl FnMut(&mut Header, &VaultKey) -> Result<T>,
    ) -> Result<T> {
        let current = self.reload(holder).await?;
        // Both copies hold the newest header before one of them is written, so that a torn write loses nothing.
        for copy in HeaderCopy::BOTH {
            if self.headers.read(copy).await?.as_ref() != Some(&current) {
                write_copy(&*self.headers, copy, &current).await?;
            }
        }
        let state = self.state();
        let mut header = state.header.clone();
        let result = change(&mut header, &state.root.vault_key)?;
        let known = match holder {
            Holder::Accepting => self.freshness.load(&header.store_id).await?,
            _ => self.freshness.known(&header, &current)?,
        };
        // Above what is remembered, which is higher only if that is to be given up.
        let newest = known.map_or(0, |known| known.generation()).max(header.generation);
        header.generation = newest.saturating_add(step);
        header.set_previous(Header::checksum(&current));
        self.freshness.distinguish(&mut header)?;
        let root = next.unwrap_or(&state.root);
        let bytes = header.serialize(&root.mac_key);
        // Two processes that only open write the same bytes, which is no conflict.
        let found = self.headers.read(HeaderCopy::A).await?;
        if found.as_ref() != Some(&current) && found.as_ref() != Some(&bytes) {
            return Err(Error::HeaderConflict);
        }
        write_header(&*self.headers, &bytes).await?;
        let remembered = self.freshness.advance(known, &header, &bytes).await;
        self.install(header, root)?;
        if next.is_some() {
            *self.next_root() = None;
        }
        if matches!(remembered, Err(Error::HeaderConflict)) {
            // Somebody has gone on from this header, which is as good, or from another one.
            self.reload(Holder::Opening).await?;
        } else {
            remembered?;
        }
        Ok(result)
    }

    #[cfg(test)]
    pub(crate) fn root(&self) -> Arc<Root> {
        self.state().root.clone()
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

    /// Takes over the stored header if it is another one than that in use, and returns its bytes.
    async fn reload(&self, holder: Holder) -> Result<Vec<u8>> {
        let mut doubted = None;
        for _ in 0..UPDATE_TRIES {
            let (bytes, header, root) = self.stored(holder).await?;
            let fresh = match holder {
                Holder::Accepting => Ok(()),
                _ => self.freshness.check(&header, &bytes, self.read_only).await,
            };
            match fresh {
                // Another process may have written and remembered a newer one meanwhile.
                Err(Error::RollbackDetected | Error::ForkDetected) if doubted.as_ref() != Some(&bytes) => {
                    doubted = Some(bytes);
                    continue;
                }
                Err(Error::HeaderConflict) => continue,
                fresh => fresh?,
            }
            // At the same generation it is what a process wrote that met this one; the stored header is the one that counts.
            let state = self.state();
            if bytes != state.header.serialize(&state.root.mac_key) {
                self.install(header, &root)?;
            }
            return Ok(bytes);
        }
        Err(Error::HeaderConflict)
    }

    /// Reads and verifies the stored header.
    async fn stored(&self, holder: Holder) -> Result<(Vec<u8>, Header, Arc<Root>)> {
        let Candidate { bytes, header, stale } = Copies::read(&*self.headers).await?.candidate()?;
        let state = self.state();
        let root = match header.verify(&bytes, &state.root.mac_key) {
            Err(Error::HeaderTampered) => self.root_of(&header, &bytes).ok_or(Error::HeaderTampered)?,
            verified => verified.map(|()| state.root.clone())?,
        };
        if stale == Stale::Fork || header.store_id != state.header.store_id {
            return Err(Error::HeaderTampered);
        }
        // A vault that is being opened has no records yet that could be newer.
        if header.generation < state.header.generation && holder == Holder::Open {
            return Err(Error::HeaderRolledBack);
        }
        Ok((bytes, header, root))
    }

    fn install(&self, header: Header, root: &Arc<Root>) -> Result<()> {
        let state = self.state();
        let same_keys = header.data_keys == state.header.data_keys && header.lookup_key == state.header.lookup_key;
        let new = if same_keys {
            State::new(header, root.clone(), state.ring.clone())
        } else {
            State::unwrapped(header, root.clone())?
        };
        // Noted before anybody can find out that it is over.
        let mut superseded = self.superseded.lock().unwrap_or_else(PoisonError::into_inner);
        superseded.retain(|state| state.strong_count() > 0);
        superseded.push(Arc::downgrade(&state));
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }
}

/// Who reads the header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A vault on its way to being opened.
    Opening,
    /// The same, whatever the freshness anchor remembers.
    Accepting,
    /// An open vault.
    Open,
}

/// How far the generation jumps when slots change, so that a header from before the change, put back, is noticed at the
/// first record written after it, however often (up to this number) the vault is opened in between.
pub(super) const SLOT_STEP: u64 = 1 << 10;
/// How often a change of the header is tried while other processes write it as well.
const UPDATE_TRIES: usize = 8;
/// How far a restored header jumps ahead, to be above the generation of every record.
pub(super) const RESTORE_STEP: u64 = 1 << 20;

/// One header copy as it was found.
enum Found {
    Absent,
    Damaged(Error),
    Intact(Intact),
}

struct Intact {
    bytes: Vec<u8>,
    header: Header,
}

impl Found {
    /// # Errors
    /// [`Error::Store`], and [`Error::UnsupportedVersion`], which must not be mistaken for damage and overwritten.
    async fn read(headers: &dyn HeaderStore, copy: HeaderCopy) -> Result<Self> {
        let Some(bytes) = headers.read(copy).await? else { return Ok(Found::Absent) };
        match Header::parse(&bytes) {
            Ok(header) => Ok(Found::Intact(Intact { bytes, header })),
            Err(error @ Error::HeaderDamaged(_)) => Ok(Found::Damaged(error)),
            Err(error) => Err(error),
        }
    }
}

/// Both header copies as they were found.
struct Copies {
    a: Found,
    b: Found,
}

/// The one header to open: the intact copy of the higher generation. There is no falling back to the other one when the
/// secret does not fit, or a removed secret would open what a crash left behind.
struct Candidate {
    bytes: Vec<u8>,
    header: Header,
    stale: Stale,
}

/// The state of the other copy.
#[derive(PartialEq, Eq)]
enum Stale {
    /// The same, or older: what a crash between the two writes leaves.
    No,
    /// Damaged or gone.
    Damaged,
    /// Of the same generation, but with other content.
    Fork,
}

impl Copies {
    /// Reads both copies; again, if they look like two processes that are just settling whose header it is.
    async fn read(headers: &dyn HeaderStore) -> Result<Self> {
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
    fn is_fork(&self) -> bool {
        match (&self.a, &self.b) {
            (Found::Intact(a), Found::Intact(b)) => a.header.generation == b.header.generation && a.bytes != b.bytes,
            _ => false,
        }
    }

    fn is_absent(&self) -> bool {
        matches!((&self.a, &self.b), (Found::Absent, Found::Absent))
    }

    fn candidate(self) -> Result<Candidate> {
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

/// Writes a header to both copies and reads them back. With several writers at once copy A decides whose header it is:
/// whoever finds another one there makes copy B follow. (Two processes cannot agree for certain by reading and writing
/// alone; making A follow as well was tried, and ends with the copies exchanged.)
///
/// # Errors
/// [`Error::HeaderConflict`] if something else is read than was written.
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
/// [`Error::HeaderConflict`] if the store can tell that another header is there than the one that `bytes` was made from.
async fn write_copy(headers: &dyn HeaderStore, copy: HeaderCopy, bytes: &[u8]) -> Result<()> {
    match headers.write(copy, bytes).await {
        Err(error) if matches!(Error::of(&error), Some(Error::HeaderConflict)) => Err(Error::HeaderConflict),
        written => Ok(written?),
    }
}

/// Makes copy B hold what copy A does, until they agree or A is not worth copying.
async fn follow_a(headers: &dyn HeaderStore, mut found: Option<Vec<u8>>) -> Result<()> {
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
/// [`Error::VaultExists`] or [`Error::HeaderDamaged`] if there is a header or what is left of one.
async fn refuse_existing(headers: &dyn HeaderStore) -> Result<()> {
    for copy in HeaderCopy::BOTH {
        match Found::read(headers, copy).await? {
            Found::Absent => {}
            Found::Damaged(error) => return Err(error),
            Found::Intact(_) => return Err(Error::VaultExists),
        }
    }
    Ok(())
}

/// Refuses a store without header whose device row says that it is in use.
///
/// # Errors
/// [`Error::HeaderMissing`] if the device is sealed, [`Error::PlaintextDevice`] if it is paired and not sealed.
async fn refuse_occupied(store: &dyn Backend) -> Result<()> {
    if store.exists().await? && device::holds_sealed_device(store).await? {
        return Err(Error::HeaderMissing);
    }
    Ok(())
}

pub(super) fn data_key_aad(store_id: &StoreId, epoch: u32) -> Vec<u8> {
    [b"wastore/v1/dk\0", &store_id[..], &epoch.to_le_bytes()].concat()
}

pub(super) fn lookup_key_aad(store_id: &StoreId) -> Vec<u8> {
    [b"wastore/v1/lk\0", &store_id[..]].concat()
}

pub(super) fn wrap_key(key_wrap: &[u8; 32], key: &Key, aad: &[u8]) -> Result<Wrapped> {
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce)?;
    slot::wrap(key_wrap, nonce, key, aad)
}

/// Unwraps and expands all keys of a verified header.
fn unwrap_ring(header: &Header, vault_key: &VaultKey) -> Result<KeyRing> {
    let store_id = &header.store_id;
    let key_wrap = vault_key.key_wrap(store_id);
    let lookup_key = slot::unwrap(&key_wrap, &header.lookup_key, &lookup_key_aad(store_id))?;
    let (mut active, mut older) = (None, Vec::new());
    for wrapped in &header.data_keys {
        let key = slot::unwrap(&key_wrap, &wrapped.wrapped, &data_key_aad(store_id, wrapped.epoch))?;
        let keys = DataKeys::new(store_id, wrapped.epoch, &key);
        if wrapped.active {
            active = Some(keys);
        } else {
            older.push(keys);
        }
    }
    // Parsing made sure of exactly one.
    let active = active.ok_or(Error::HeaderTampered)?;
    Ok(KeyRing::new(LookupKeys::new(store_id, &lookup_key), active, older))
}
