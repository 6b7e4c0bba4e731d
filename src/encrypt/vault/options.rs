//! Settings for creating and opening vaults.

use std::fmt;
use std::sync::Arc;

use super::copies::HeaderStore;
#[cfg(feature = "import")]
use super::header::IMPORTING;
use super::kdf::{Argon2Cost, KdfLimits};
use super::rollback::{OptionalAnchor, RollbackAnchor};
use crate::encrypt::format::keys::StoreId;
use crate::encrypt::format::padding::Padding;

/// The reaction of a layer to a stored record that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDamage {
    /// Every such record is an error.
    #[default]
    Error,
    /// Records that the client can fetch again (LID mappings, device lists, group metadata, tc tokens) count as absent.
    /// Listings of them and of sender-key devices leave the record out.
    /// [`Vault::damaged_records`](crate::Vault::damaged_records) counts them. Damaged key material, messages and
    /// devices are still errors.
    TreatAsAbsent,
    /// The same, and altered or overwritten sessions, identities, sender keys and one-time prekeys count as absent too.
    /// The client negotiates or learns them again, and the messages that needed them come again.
    ///
    /// An attacker who can write to the store can cause this, but could also delete the records. Records under a data
    /// key that the header does not have are still errors: they are not damaged, the header is an older one.
    Renegotiate,
}

/// The mode in which a vault is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OpenMode {
    /// For reading and writing.
    #[default]
    ReadWrite,
    /// Nothing is written: damaged header copies are not repaired, and the vault's layer refuses every method that would
    /// change a row with [`Error::ReadOnly`](crate::Error::ReadOnly).
    ReadOnly,
    /// For reading and writing, whatever the [rollback anchor](VaultOptions::rollback_anchor) remembers. The anchor
    /// remembers this state of the store from then on, and every other copy of it is refused.
    ///
    /// A store that was put back uses message keys again, and its contacts have gone on without it. Accept it only if
    /// no newer state is left. Then make the client build its sessions again: log out and link the account again, or
    /// delete the sessions and sender keys.
    AcceptRollback,
}

/// Settings for creating and opening vaults. The defaults suit one bot on one machine.
#[derive(Clone, Default)]
pub struct VaultOptions {
    /// The cost that [`VaultOptions::kdf_cost`] asked for.
    pub(super) asked_cost: Option<Argon2Cost>,
    pub(super) limits: Option<KdfLimits>,
    pub(super) padding: Padding,
    pub(super) on_damage: OnDamage,
    pub(super) label: Option<String>,
    pub(super) headers: Option<Arc<dyn HeaderStore>>,
    pub(super) anchor: OptionalAnchor,
    pub(super) context: Option<Vec<u8>>,
    /// The context is that of an account number, which other stores have too.
    is_of_account: bool,
    pub(super) expected: Option<StoreId>,
    /// Accepts any context of a vault.
    pub(super) any_context: bool,
    /// The vault whose `account_key` opens a new one.
    pub(super) parent: Option<StoreId>,
    pub(super) mode: OpenMode,
    /// Flags of a new header.
    pub(super) flags: u32,
}

impl VaultOptions {
    /// The settings of [`Vault::create`](crate::Vault::create) and [`Vault::open`](crate::Vault::open).
    pub fn new() -> Self {
        Self::default()
    }

    /// The cost of a guess at the passphrase, for new slots; default [`Argon2Cost::DEFAULT`].
    ///
    /// If it is set, opening a slot of less work (memory times passes) with its passphrase raises the slot to this
    /// cost. Otherwise slots keep their cost, so a vault still opens in a container that is no larger than before.
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

    /// Binds a new vault to a context, and opens only a vault that is bound to the same one. The context can be any
    /// bytes that identify the bot. The header stores its hash.
    ///
    /// If a store was exchanged for another one with the same secret, opening fails with
    /// [`Error::WrongContext`](crate::Error::WrongContext).
    ///
    /// Over [`SqliteStore`](crate::SqliteStore) the default is `account N` with the number of the account, so one
    /// account cannot take the place of another one in its file. To move account 1 to number 2 on purpose, open it there
    /// with [`VaultOptions::context_of_account`] and call [`Vault::bind_context`](crate::Vault::bind_context) with
    /// `account 2`. A vault of an early build of 0.1.0 is not bound, and opens if no context is given here.
    ///
    /// With a [`VaultOptions::rollback_anchor`], the anchor also remembers which store opened under the context given
    /// here. Another store is refused with [`Error::WrongStore`](crate::Error::WrongStore).
    pub fn context(mut self, context: impl Into<Vec<u8>>) -> Self {
        self.context = Some(context.into());
        self.is_of_account = false;
        self
    }

    /// Opens a vault that is bound to another account number, `account N`. A [`VaultOptions::rollback_anchor`] does not
    /// remember which store that was, because many stores have an account of this number.
    pub fn context_of_account(mut self, number: i32) -> Self {
        self.context = Some(format!("account {number}").into_bytes());
        self.is_of_account = true;
        self
    }

    /// The context under which an anchor remembers the store.
    pub(super) fn remembered_context(&self) -> Option<&[u8]> {
        self.context.as_deref().filter(|_| !self.is_of_account)
    }

    /// Opens only the vault with this [`Vault::store_id`](crate::Vault::store_id). Another one is refused with
    /// [`Error::WrongStore`](crate::Error::WrongStore).
    pub fn expect_store(mut self, id: [u8; 16]) -> Self {
        self.expected = Some(id);
        self
    }

    /// How a vault is opened; default [`OpenMode::ReadWrite`]. In [`OpenMode::ReadOnly`] no vault is created and no header is
    /// restored.
    pub fn mode(mut self, mode: OpenMode) -> Self {
        self.mode = mode;
        self
    }

    /// The same settings for the vault that derives the key of the requested one.
    pub(crate) fn of_parent(&self) -> Self {
        Self { any_context: true, expected: None, mode: OpenMode::ReadOnly, ..self.clone() }
    }

    /// The most work that a header may ask for.
    pub(super) fn limits(&self) -> KdfLimits {
        self.limits.unwrap_or_else(|| KdfLimits::of_cost(self.cost()))
    }

    /// The way in which a new vault hides the length of its values; default [`Padding::None`]. An existing vault keeps
    /// its own.
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// The reaction to a record that does not verify; default [`OnDamage::Error`].
    pub fn on_damage(mut self, on_damage: OnDamage) -> Self {
        self.on_damage = on_damage;
        self
    }

    /// The label of a new vault's first slot, at most 32 bytes, stored in the clear; default `passphrase`, `key`,
    /// `recovery`, `keyring`, `transit` or `provider`.
    pub fn slot_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Keeps the header apart from the store. Without the header the store is only noise: no secret opens it.
    pub fn header_store(mut self, headers: Arc<dyn HeaderStore>) -> Self {
        self.headers = Some(headers);
        self
    }

    /// Detects a store that was put back to an earlier state, or that has a copy elsewhere that went on.
    /// [`RollbackAnchor`] says when.
    ///
    /// Every process that opens the vault for writing must use the same anchor; others are refused. A store that was
    /// used without an anchor before is accepted with [`OpenMode::AcceptRollback`]. Makes no sense with a
    /// [`VaultOptions::header_store`] that is not put back together with the store.
    pub fn rollback_anchor(mut self, anchor: Arc<dyn RollbackAnchor>) -> Self {
        self.anchor = OptionalAnchor(Some(anchor));
        self
    }

    /// The same settings for a vault that does not open before [`Vault::finish_import`](crate::Vault::finish_import).
    #[cfg(feature = "import")]
    pub(crate) fn importing(&self) -> Self {
        Self { flags: IMPORTING, ..self.clone() }
    }
}

impl fmt::Debug for VaultOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultOptions")
            .field("kdf_cost", &self.cost())
            .field("kdf_limits", &self.limits())
            .field("padding", &self.padding)
            .field("on_damage", &self.on_damage)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
