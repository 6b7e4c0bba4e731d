//! Key slots: the ways to get from a secret to the vault key.
//!
//! ```text
//! prk             = Argon2id(passphrase, salt, cost), or the raw, recovery or provider key itself
//! kek ‖ commitment = HK(prk, "slot", slot public bytes, 64)
//! wrapped key     = XChaCha20-Poly1305(kek, nonce, vault key;
//!                   "wastore/v1/slot-wrap\0" ‖ store id ‖ slot public bytes ‖ commitment)
//! ```
//!
//! The commitment is compared before the AEAD is touched, so that an attacker cannot make a header that opens under many
//! passphrases (partitioning oracle, <https://www.usenix.org/conference/usenixsecurity21/presentation/len>). It also covers
//! the cost, the salt and the label, so that editing them gives another key.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::header::{Header, Kdf, MAX_HINT_BYTES, MAX_LABEL_BYTES, Slot, Wrapped};
use super::kdf::{self, Argon2Cost, Job, KdfLimits};
use super::key_wrap::{unwrap, wrap};
use crate::encrypt::format::envelope::{Nonce, nonce};
use crate::encrypt::format::keys::{StoreId, VaultKey, derive};
use crate::error::{Error, Result};
use crate::printable::is_printable;
use crate::secret::{Key, KeyProvider, Passphrase, ProviderError, Secret, hint};

/// The kind of secret that opens a key slot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotKind {
    /// A passphrase, with the cost of one guess.
    Passphrase(Argon2Cost),
    /// A raw key or a recovery key.
    Key,
    /// An entry in the keyring of the operating system's user, which `KeyringProvider` made.
    Keyring {
        /// The user name of the entry. Its service is `wastore`.
        entry: String,
    },
    /// A key of a Transit engine, through `TransitProvider`.
    Transit {
        /// The version of the engine's key.
        version: u32,
    },
    /// Another [`KeyProvider`].
    Provider,
}

impl SlotKind {
    fn of_provider(store_id: &StoreId, hint: &[u8]) -> Self {
        match (hint::keyring_entry(store_id, hint), hint::transit_version(hint)) {
            (Some(entry), _) => Self::Keyring { entry },
            (None, Some(version)) => Self::Transit { version },
            (None, None) => Self::Provider,
        }
    }
}

/// For example `passphrase, Argon2id 65536 KiB, passes 3, lanes 4`.
impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotKind::Passphrase(cost) => {
                let (memory, passes, lanes) = (cost.memory_kib(), cost.passes(), cost.lanes());
                write!(f, "passphrase, Argon2id {memory} KiB, passes {passes}, lanes {lanes}")
            }
            SlotKind::Key => f.write_str("key"),
            SlotKind::Keyring { entry } => write!(f, "keyring entry {entry}"),
            SlotKind::Transit { version } => write!(f, "Transit key, version {version}"),
            SlotKind::Provider => f.write_str("key provider"),
        }
    }
}

/// A key slot as it is listed; holds no secret. As JSON, the cost of a passphrase stands beside its kind, as
/// `argon2id`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotInfo {
    /// The slot's number, for `Vault::remove_slot`.
    pub id: u8,
    /// The slot's label, at most 32 bytes. It is stored in the clear.
    pub label: String,
    /// The kind of secret that opens the slot.
    pub kind: SlotKind,
}

impl Serialize for SlotInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Cost {
            memory_kib: u32,
            passes: u32,
            lanes: u32,
        }
        let cost = match self.kind {
            SlotKind::Passphrase(cost) => {
                Some(Cost { memory_kib: cost.memory_kib(), passes: cost.passes(), lanes: cost.lanes() })
            }
            _ => None,
        };
        let mut fields = serializer.serialize_struct("SlotInfo", 4)?;
        fields.serialize_field("id", &self.id)?;
        fields.serialize_field("label", &self.label)?;
        fields.serialize_field("kind", &self.kind.to_string())?;
        fields.serialize_field("argon2id", &cost)?;
        fields.end()
    }
}

impl Header {
    pub(crate) fn slot_infos(&self) -> Vec<SlotInfo> {
        self.slots.iter().map(|slot| slot.info(&self.store_id)).collect()
    }
}

impl Slot {
    fn info(&self, store_id: &StoreId) -> SlotInfo {
        let kind = match &self.kdf {
            Kdf::Argon2id(cost) => SlotKind::Passphrase(*cost),
            Kdf::RawKey => SlotKind::Key,
            Kdf::Provider { hint } => SlotKind::of_provider(store_id, hint),
        };
        SlotInfo { id: self.id, label: self.label.clone(), kind }
    }

    /// The cost of a passphrase slot.
    pub(crate) fn cost(&self) -> Option<Argon2Cost> {
        match self.kdf {
            Kdf::Argon2id(cost) => Some(cost),
            _ => None,
        }
    }
}

/// A secret on its way into a new slot. The slow work is done; the rest is cheap and cannot be interrupted.
pub(crate) struct NewSlot {
    pub(in crate::encrypt) label: String,
    pub(in crate::encrypt) kdf: Kdf,
    pub(in crate::encrypt) salt: [u8; 32],
    pub(in crate::encrypt) prk: Key,
}

impl NewSlot {
    /// Stretches, generates or wraps the key for a new slot.
    ///
    /// # Errors
    /// * [`Error::InvalidInput`] for a label of more than 32 bytes or with control or format characters;
    /// * [`Error::KeyProvider`] if the provider fails, or does not give back the key that it was given;
    /// * [`Error::KdfOutOfBounds`] if the cost is above the limits that `open` applies.
    pub(crate) async fn prepare(
        store_id: &StoreId,
        secret: Secret,
        label: Option<&str>,
        cost: Argon2Cost,
        limits: &KdfLimits,
    ) -> Result<Self> {
        label.map_or(Ok(()), check_label)?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)?;
        let (usual, kdf, prk) = match secret {
            Secret::Passphrase(passphrase) => {
                limits.check([cost].into_iter())?;
                ("passphrase", Kdf::Argon2id(cost), stretch(passphrase, salt, cost).await?)
            }
            Secret::Key(key) => {
                key.refuse_weak()?;
                ("key", Kdf::RawKey, key)
            }
            Secret::Recovery(recovery) => ("recovery", Kdf::RawKey, recovery.into_key()),
            Secret::Provider(provider) => {
                let key = Key::generate()?;
                let hint = keep(&*provider, store_id, &key).await?;
                let usual = match SlotKind::of_provider(store_id, &hint) {
                    SlotKind::Keyring { .. } => "keyring",
                    SlotKind::Transit { .. } => "transit",
                    _ => "provider",
                };
                (usual, Kdf::Provider { hint }, key)
            }
        };
        let label = label.unwrap_or(usual).to_owned();
        Ok(Self { label, kdf, salt, prk })
    }

    /// The slot that was made of this secret, if the header has it. Its random salt identifies it.
    pub(crate) fn find<'h>(&self, header: &'h Header) -> Option<&'h Slot> {
        header.slots.iter().find(|slot| slot.salt == self.salt)
    }

    /// Wraps the vault key for this slot.
    pub(crate) fn seal(&self, id: u8, store_id: &StoreId, vault_key: &VaultKey) -> Result<Slot> {
        self.seal_with(id, store_id, vault_key, nonce()?)
    }

    pub(in crate::encrypt) fn seal_with(
        &self,
        id: u8,
        store_id: &StoreId,
        vault_key: &VaultKey,
        nonce: Nonce,
    ) -> Result<Slot> {
        let mut slot = Slot {
            id,
            label: self.label.clone(),
            kdf: self.kdf.clone(),
            salt: self.salt,
            commitment: [0; 32],
            vault_key: Wrapped { nonce, sealed: [0; 48] },
        };
        let keys = SlotKeys::new(store_id, &self.prk, &slot);
        slot.commitment = *keys.commitment();
        slot.vault_key = wrap(keys.kek(), nonce, &vault_key.0, &slot_aad(store_id, &slot))?;
        Ok(slot)
    }
}

fn check_label(label: &str) -> Result<()> {
    let problem = match label.len() {
        ..=MAX_LABEL_BYTES if is_printable(label) => return Ok(()),
        ..=MAX_LABEL_BYTES => "must not contain control or format characters",
        _ => "must not be longer than 32 bytes",
    };
    Err(Error::InvalidInput { what: "slot label", problem })
}

/// Has a provider keep the key of a new slot, and makes sure that it gives it back.
async fn keep(provider: &dyn KeyProvider, store_id: &StoreId, key: &Key) -> Result<Vec<u8>> {
    let failed = |error: ProviderError| Error::KeyProvider(error.into_inner());
    let hint = provider.wrap(store_id, key).await.map_err(failed)?;
    if hint.len() > MAX_HINT_BYTES {
        let problem = "must not be longer than 256 bytes";
        return Err(Error::InvalidInput { what: "key provider's hint", problem });
    }
    let kept = provider.unwrap(store_id, &hint).await.map_err(failed)?;
    match kept {
        Some(kept) if bool::from(kept.expose().ct_eq(key.expose())) => Ok(hint),
        _ => Err(Error::KeyProvider("it does not give back the key that it was given: choose another one".into())),
    }
}

/// Stretches a passphrase once.
async fn stretch(passphrase: Passphrase, salt: [u8; 32], cost: Argon2Cost) -> Result<Key> {
    let (_, key) = kdf::derive_until(passphrase, 1, vec![Job { salt, cost }], |_, key| Some(key.duplicate())).await?;
    key.ok_or(Error::KdfFailed { memory_kib: cost.memory_kib() })
}

/// A header opened by one of its slots.
pub(crate) struct Unlocked {
    pub(crate) vault_key: VaultKey,
    /// The slot that opened.
    pub(crate) slot: u8,
    /// The passphrase, if one opened it.
    pub(crate) passphrase: Option<Passphrase>,
}

/// Tries `secret` in every slot of its kind.
///
/// # Errors
/// [`Error::KdfOutOfBounds`] before any work; [`Error::WrongSecret`] if no slot commits to the secret;
/// [`Error::HeaderTampered`] if one does but does not open; [`Error::KeyNotKept`] if the provider has no key of a slot,
/// [`Error::NoSlotOfProvider`] if none is its own, [`Error::KeyProvider`] if it fails.
pub(crate) async fn unlock(header: &Header, secret: Secret, limits: &KdfLimits) -> Result<Unlocked> {
    let store_id = header.store_id;
    match secret {
        Secret::Passphrase(passphrase) => {
            let slots: Vec<(Slot, Argon2Cost)> =
                header.slots.iter().filter_map(|slot| slot.cost().map(|cost| (slot.clone(), cost))).collect();
            let costs: Vec<_> = slots.iter().map(|(_, cost)| *cost).collect();
            let work = |readings| limits.check((0..readings).flat_map(|_| costs.iter().copied()));
            work(1)?;
            let readings =
                (1..=passphrase.readings().len()).rev().find(|readings| work(*readings).is_ok()).unwrap_or(1);
            let jobs = slots.iter().map(|(slot, cost)| Job { salt: slot.salt, cost: *cost }).collect();
            let accept = move |position: usize, prk: &Key| {
                let (slot, _): &(Slot, _) = slots.get(position)?;
                try_slot(&store_id, slot, prk).map(|opened| (slot.id, opened))
            };
            let (passphrase, opened) = kdf::derive_until(passphrase, readings, jobs, accept).await?;
            let (slot, vault_key) = opened.ok_or(Error::WrongSecret)?;
            Ok(Unlocked { vault_key: vault_key?, slot, passphrase: Some(passphrase) })
        }
        Secret::Key(key) => try_raw(header, &key),
        Secret::Recovery(recovery) => try_raw(header, recovery.key()),
        Secret::Provider(provider) => try_provider(header, &provider).await,
    }
}

fn try_raw(header: &Header, key: &Key) -> Result<Unlocked> {
    for slot in header.slots.iter().filter(|slot| slot.kdf == Kdf::RawKey) {
        if let Some(vault_key) = try_slot(&header.store_id, slot, key) {
            return Ok(Unlocked { vault_key: vault_key?, slot: slot.id, passphrase: None });
        }
    }
    Err(Error::WrongSecret)
}

async fn try_provider(header: &Header, provider: &Arc<dyn KeyProvider>) -> Result<Unlocked> {
    let (mut missing, mut is_asked) = (None, false);
    for slot in &header.slots {
        let Kdf::Provider { hint } = &slot.kdf else { continue };
        // The provider may have lost the key of one slot, and have that of another.
        match provider.unwrap(&header.store_id, hint).await {
            Ok(None) => {}
            Ok(Some(key)) => {
                is_asked = true;
                if let Some(vault_key) = try_slot(&header.store_id, slot, &key) {
                    return Ok(Unlocked { vault_key: vault_key?, slot: slot.id, passphrase: None });
                }
            }
            Err(ProviderError::NoKey(error)) => missing = missing.or(Some(error)),
            Err(ProviderError::Failed(error)) => return Err(Error::KeyProvider(error)),
        }
    }
    Err(match missing {
        Some(missing) => Error::KeyNotKept(missing),
        None if is_asked => Error::WrongSecret,
        None => Error::NoSlotOfProvider,
    })
}

/// `None` if the slot does not commit to this key. An error if it does, but its content was exchanged.
pub(in crate::encrypt) fn try_slot(store_id: &StoreId, slot: &Slot, prk: &Key) -> Option<Result<VaultKey>> {
    let keys = SlotKeys::new(store_id, prk, slot);
    if !bool::from(keys.commitment().ct_eq(&slot.commitment)) {
        return None;
    }
    Some(unwrap(keys.kek(), &slot.vault_key, &slot_aad(store_id, slot)).map(VaultKey))
}

/// `kek ‖ commitment` of a slot.
struct SlotKeys(Zeroizing<[u8; 64]>);

impl SlotKeys {
    fn new(store_id: &StoreId, prk: &Key, slot: &Slot) -> Self {
        let mut keys = Zeroizing::new([0; 64]);
        derive(store_id, prk.expose(), "slot", &slot.public_bytes(), &mut keys);
        Self(keys)
    }

    fn kek(&self) -> &[u8; 32] {
        &self.0.as_chunks().0[0]
    }

    fn commitment(&self) -> &[u8; 32] {
        &self.0.as_chunks().0[1]
    }
}

fn slot_aad(store_id: &StoreId, slot: &Slot) -> Vec<u8> {
    [b"wastore/v1/slot-wrap\0", &store_id[..], &slot.public_bytes(), &slot.commitment].concat()
}
