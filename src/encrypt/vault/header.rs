//! The vault header: key slots, wrapped keys and settings, in a blob of at most 16 KiB.
//!
//! ```text
//!   0  8  magic 89 77 61 73 74 6F 72 65
//!   8  2  format version = 1
//!  10  2  minimum reader version: an older reader refuses
//!  12  4  total length, equal to the blob's
//!  16 16  store id
//!  32  8  generation, rises with every write
//!  40  8  created, unix seconds
//!  48  1  record suite, 49 1 token suite, 50 1 block suite
//!  51  1  padding: 0 none, 1 Padmé, 2 multiple of N    52 4 padding parameter
//!  56  4  flags: bit 0 device sealed, 1 rotating, 2 importing
//!  60  4  counts: slots 1..=8, data keys 1..=16, lookup keys = 1, 0
//!  64  …  slots, data keys, lookup key, u16 extension length ≤ 4096 ‖ (u16 type, bit 15 critical ‖ u16 length ‖ value)*
//! −48 16  checksum: SHA-256(all above)[..16], distinguishes damage from attack
//! −32 32  HMAC(header-mac key, all above)
//!
//! slot       u8 id ‖ u8 type ‖ u8 label length ≤ 32 ‖ label ‖ kdf ‖ 32 commitment ‖ 24 nonce ‖ 48 wrapped vault key
//!   type 1   u32 memory KiB ‖ u32 passes ‖ u32 lanes ‖ 32 salt       passphrase, Argon2id
//!   type 2   32 salt                                                  raw or recovery key
//!   type 3   u16 length ≤ 256 ‖ hint ‖ 32 salt                        external provider
//! data key   u32 epoch ‖ u8 state (1 active, 2 open-only) ‖ u64 created ‖ 24 nonce ‖ 48 wrapped key
//! lookup key 24 nonce ‖ 48 wrapped key
//! extension  type 1, not critical: 16 checksum of the header that this one replaced
//!            type 2, not critical: 16 random bytes, new with every write under a rollback anchor
//!            type 3, critical: 32 SHA-256("wastore/v1/context" ‖ 00 ‖ store id ‖ context), the context the vault is bound to
//!            type 4, not critical: 16 store id of the vault whose `account_key` opens this one
//! ```
//!
//! Integers are little-endian. This file only encodes and decodes; the files around it give the fields their meaning. The
//! first 16 and the last 48 bytes keep their place in every future version.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::kdf::Argon2Cost;
use crate::encrypt::format::keys::StoreId;
use crate::encrypt::format::padding::Padding;
use crate::error::{Error, Result};
use crate::printable::is_printable;

pub(crate) const MAX_HEADER_BYTES: usize = 16 * 1024;
pub(crate) const MAX_SLOTS: usize = 8;
pub(crate) const MAX_DATA_KEYS: usize = 16;
pub(crate) const MAX_LABEL_BYTES: usize = 32;
pub(crate) const MAX_HINT_BYTES: usize = 256;
pub(crate) const NEWEST_VERSION: u16 = 1;

const MIN_HEADER_BYTES: usize = 200;
const MAX_EXTENSION_BYTES: usize = 4096;
const CRITICAL: u16 = 1 << 15;
/// The checksum of the replaced header.
const PREVIOUS: u16 = 1;
/// Extension: random bytes, new with every write of a vault that has a rollback anchor. Not critical.
const DISTINCT: u16 = 2;
/// The hash of the context of the vault. An older reader would not compare it, so it must refuse the header.
const CONTEXT: u16 = 3 | CRITICAL;
/// The store id of the vault that derives the key of this one.
const PARENT: u16 = 4;
const MAGIC: [u8; 8] = *b"\x89wastore";
pub(super) const CHECKSUM_BYTES: usize = 16;
const CONTEXT_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// A sealed device was written once, so its absence is an error.
pub(crate) const DEVICE_SEALED: u32 = 1;
/// Records are being sealed again under another data key.
pub(crate) const ROTATING: u32 = 1 << 1;
/// An import into this store has not finished.
pub(crate) const IMPORTING: u32 = 1 << 2;

/// A header whose bytes are undamaged. Its content is not trusted before [`Header::verify`].
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) store_id: StoreId,
    pub(crate) generation: u64,
    pub(crate) created: u64,
    pub(crate) record_suite: u8,
    pub(crate) token_suite: u8,
    pub(crate) block_suite: u8,
    pub(crate) padding: u8,
    pub(crate) padding_parameter: u32,
    pub(crate) flags: u32,
    pub(crate) slots: Vec<Slot>,
    pub(crate) data_keys: Vec<WrappedDataKey>,
    pub(crate) lookup_key: Wrapped,
    /// Type–length–value fields, also those of later versions, kept as they are.
    pub(crate) extensions: Vec<u8>,
}

/// A key under another key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wrapped {
    pub(crate) nonce: [u8; 24],
    pub(crate) sealed: [u8; 48],
}

/// A wrapped data key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrappedDataKey {
    pub(crate) epoch: u32,
    pub(crate) active: bool,
    pub(crate) created: u64,
    pub(crate) wrapped: Wrapped,
}

/// One way from a secret to the vault key.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) id: u8,
    pub(crate) label: String,
    pub(crate) kdf: Kdf,
    pub(crate) salt: [u8; 32],
    pub(crate) commitment: [u8; 32],
    pub(crate) vault_key: Wrapped,
}

/// The way from a secret to the key of a slot.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kdf {
    Argon2id(Argon2Cost),
    RawKey,
    Provider { hint: Vec<u8> },
}

impl Slot {
    /// The slot's public bytes: the context of its key derivation and the associated data of its wrapping. An edit of
    /// any of them gives another key and another commitment.
    pub(crate) fn public_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(3 + self.label.len() + 2 + MAX_HINT_BYTES + 32);
        let kind = match self.kdf {
            Kdf::Argon2id(_) => 1,
            Kdf::RawKey => 2,
            Kdf::Provider { .. } => 3,
        };
        bytes.extend_from_slice(&[self.id, kind, self.label.len() as u8]);
        bytes.extend_from_slice(self.label.as_bytes());
        match &self.kdf {
            Kdf::Argon2id(cost) => {
                for number in [cost.memory_kib(), cost.passes(), cost.lanes()] {
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
            }
            Kdf::RawKey => {}
            Kdf::Provider { hint } => {
                bytes.extend_from_slice(&(hint.len() as u16).to_le_bytes());
                bytes.extend_from_slice(hint);
            }
        }
        bytes.extend_from_slice(&self.salt);
        bytes
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.public_bytes());
        out.extend_from_slice(&self.commitment);
        self.vault_key.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let [id, kind, label_bytes] = *input.array::<3>()?;
        if usize::from(label_bytes) > MAX_LABEL_BYTES {
            return Err(DAMAGED_SLOT);
        }
        let label = input.take(usize::from(label_bytes))?;
        let label = std::str::from_utf8(label).map_err(|_| DAMAGED_SLOT)?.to_owned();
        if !is_printable(&label) {
            return Err(DAMAGED_SLOT);
        }
        let kdf = match kind {
            1 => Kdf::Argon2id(Argon2Cost::unchecked(input.u32()?, input.u32()?, input.u32()?)),
            2 => Kdf::RawKey,
            3 => {
                let length = usize::from(input.u16()?);
                if length > MAX_HINT_BYTES {
                    return Err(DAMAGED_SLOT);
                }
                Kdf::Provider { hint: input.take(length)?.to_vec() }
            }
            _ => return Err(DAMAGED_SLOT),
        };
        let (salt, commitment) = (*input.array()?, *input.array()?);
        Ok(Self { id, label, kdf, salt, commitment, vault_key: Wrapped::read(input)? })
    }
}

impl Wrapped {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.sealed);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { nonce: *input.array()?, sealed: *input.array()? })
    }
}

impl Header {
    /// Decodes a header. Every length and count is bounded before it is used; nothing is computed from the content.
    ///
    /// # Errors
    /// [`Error::HeaderDamaged`] if the bytes are not an intact header; [`Error::UnsupportedVersion`] if they are an
    /// intact header of a later version.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let (version, content) = readable_content(bytes)?;
        let mut input = Reader(content);
        let store_id = *input.array()?;
        let (generation, created) = (input.u64()?, input.u64()?);
        let [record_suite, token_suite, block_suite, padding] = *input.array()?;
        let (padding_parameter, flags) = (input.u32()?, input.u32()?);
        let [slots, data_keys, lookup_keys, reserved] = *input.array()?;
        let counts_fit = (1..=MAX_SLOTS).contains(&usize::from(slots))
            && (1..=MAX_DATA_KEYS).contains(&usize::from(data_keys))
            && lookup_keys == 1
            && reserved == 0;
        if version == 0 || !counts_fit {
            return Err(Error::HeaderDamaged("its counts are out of range"));
        }
        let slots = (0..slots).map(|_| Slot::read(&mut input)).collect::<Result<Vec<_>>>()?;
        let data_keys = (0..data_keys).map(|_| WrappedDataKey::read(&mut input)).collect::<Result<Vec<_>>>()?;
        let lookup_key = Wrapped::read(&mut input)?;
        let extension_bytes = usize::from(input.u16()?);
        if extension_bytes > MAX_EXTENSION_BYTES || extension_bytes != input.0.len() {
            return Err(Error::HeaderDamaged("its parts do not add up to its length"));
        }
        let unique_ids = slots.iter().enumerate().all(|(at, slot)| slots[..at].iter().all(|other| other.id != slot.id));
        let unique_epochs =
            data_keys.iter().enumerate().all(|(at, key)| data_keys[..at].iter().all(|other| other.epoch != key.epoch));
        if !unique_ids || !unique_epochs || data_keys.iter().filter(|key| key.active).count() != 1 {
            return Err(Error::HeaderDamaged("its slots or data keys contradict each other"));
        }
        Ok(Self {
            store_id,
            generation,
            created,
            record_suite,
            token_suite,
            block_suite,
            padding,
            padding_parameter,
            flags,
            slots,
            data_keys,
            lookup_key,
            extensions: input.0.to_vec(),
        })
    }

    /// Encodes the header and authenticates it. The same header gives the same bytes.
    pub(crate) fn serialize(&self, mac_key: &Hmac<Sha256>) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.store_id);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&[self.record_suite, self.token_suite, self.block_suite, self.padding]);
        out.extend_from_slice(&self.padding_parameter.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&[self.slots.len() as u8, self.data_keys.len() as u8, 1, 0]);
        for slot in &self.slots {
            slot.write(&mut out);
        }
        for key in &self.data_keys {
            key.write(&mut out);
        }
        self.lookup_key.write(&mut out);
        out.extend_from_slice(&(self.extensions.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.extensions);
        let total = (out.len() + CHECKSUM_BYTES + MAC_BYTES) as u32;
        out[12..16].copy_from_slice(&total.to_le_bytes());
        let checksum = Sha256::digest(&out);
        out.extend_from_slice(&checksum[..CHECKSUM_BYTES]);
        let mac = mac_key.clone().chain_update(&out).finalize().into_bytes();
        out.extend_from_slice(&mac);
        out
    }

    /// Checks the MAC of `bytes`, from which this header was parsed, and then that this version knows every setting.
    ///
    /// # Errors
    /// [`Error::HeaderTampered`] if the MAC does not fit; [`Error::UnsupportedVersion`] if it fits, but a later version
    /// set something that this one does not know.
    pub(crate) fn verify(&self, bytes: &[u8], mac_key: &Hmac<Sha256>) -> Result<()> {
        let (authenticated, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(Error::HeaderTampered)?;
        let expected = mac_key.clone().chain_update(authenticated).finalize().into_bytes();
        if !bool::from(expected.as_slice().ct_eq(mac)) {
            return Err(Error::HeaderTampered);
        }
        for (what, found) in
            [("record suite", self.record_suite), ("token suite", self.token_suite), ("block suite", self.block_suite)]
        {
            if found != 1 {
                return Err(unsupported(what, u32::from(found), 1));
            }
        }
        let known = DEVICE_SEALED | ROTATING | IMPORTING;
        if self.flags & !known != 0 {
            return Err(unsupported("header flags", self.flags, known));
        }
        if Padding::from_header(self.padding, self.padding_parameter).is_none() {
            return Err(unsupported("padding policy", u32::from(self.padding), 2));
        }
        let mut extensions = Reader(&self.extensions);
        while !extensions.0.is_empty() {
            let (kind, length) = (extensions.u16()?, extensions.u16()?);
            let value = extensions.take(usize::from(length))?;
            if kind & CRITICAL != 0 && !(kind == CONTEXT && value.len() == CONTEXT_BYTES) {
                return Err(unsupported("header extension", u32::from(kind), u32::from(CONTEXT)));
            }
        }
        Ok(())
    }

    /// The padding policy. [`Header::verify`] has checked that this version knows it.
    pub(crate) fn padding(&self) -> Padding {
        Padding::from_header(self.padding, self.padding_parameter).unwrap_or_default()
    }

    /// Notes the checksum of the header that this one replaces. A store can then tell whether it still holds that one.
    pub(crate) fn set_previous(&mut self, previous: Option<[u8; CHECKSUM_BYTES]>) {
        self.set_extension(PREVIOUS, previous.as_ref().map(|previous| &previous[..]));
    }

    /// Makes this header different from every other one of its generation. Copies of a store that were opened equally
    /// often then differ.
    pub(crate) fn set_distinct(&mut self, random: &[u8; 16]) {
        self.set_extension(DISTINCT, Some(random));
    }

    fn set_extension(&mut self, changed: u16, value: Option<&[u8]>) {
        let mut extensions = Vec::with_capacity(self.extensions.len() + 4 + value.map_or(0, <[u8]>::len));
        for (kind, value) in self.extensions().filter(|(kind, _)| *kind != changed) {
            push_extension(&mut extensions, kind, value);
        }
        if let Some(value) = value {
            push_extension(&mut extensions, changed, value);
        }
        self.extensions = extensions;
    }

    /// The checksum of the header that this one replaces.
    pub(crate) fn previous(&self) -> Option<[u8; CHECKSUM_BYTES]> {
        self.extension(PREVIOUS)?.try_into().ok()
    }

    /// Binds the vault to a context, or to none.
    pub(crate) fn set_context(&mut self, context: Option<&[u8]>) {
        let hash = context.map(|context| self.context_hash(context));
        self.set_extension(CONTEXT, hash.as_ref().map(|hash| &hash[..]));
    }

    /// `true` if the vault is bound to a context.
    pub(crate) fn is_bound(&self) -> bool {
        self.extension(CONTEXT).is_some()
    }

    /// `true` if the vault is bound to this context.
    pub(crate) fn is_bound_to(&self, context: &[u8]) -> bool {
        self.extension(CONTEXT) == Some(&self.context_hash(context)[..])
    }

    fn context_hash(&self, context: &[u8]) -> [u8; CONTEXT_BYTES] {
        let hash = Sha256::new().chain_update(b"wastore/v1/context\0").chain_update(self.store_id);
        hash.chain_update(context).finalize().into()
    }

    /// Notes the vault whose `account_key` opens this one.
    pub(crate) fn set_parent(&mut self, parent: Option<&StoreId>) {
        self.set_extension(PARENT, parent.map(|parent| &parent[..]));
    }

    /// The store id of the vault whose `account_key` opens this one, if that was noted.
    pub(crate) fn parent(&self) -> Option<StoreId> {
        self.extension(PARENT)?.try_into().ok()
    }

    fn extension(&self, wanted: u16) -> Option<&[u8]> {
        self.extensions().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    /// The extensions, up to the first that is not well formed.
    fn extensions(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = Reader(&self.extensions);
        std::iter::from_fn(move || {
            let (kind, length) = (rest.u16().ok()?, rest.u16().ok()?);
            Some((kind, rest.take(usize::from(length)).ok()?))
        })
    }

    /// The checksum of an intact header of any version; `None` for other bytes.
    pub(crate) fn checksum(bytes: &[u8]) -> Option<[u8; CHECKSUM_BYTES]> {
        let stated: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
        if !bytes.starts_with(&MAGIC) || usize::try_from(u32::from_le_bytes(stated)) != Ok(bytes.len()) {
            return None;
        }
        checked_content(bytes).map(|(_, checksum)| *checksum)
    }

    /// The part of the generation that records carry.
    pub(crate) fn record_generation(&self) -> u32 {
        u32::try_from(self.generation).unwrap_or(u32::MAX)
    }
}

impl WrappedDataKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.push(if self.active { 1 } else { 2 });
        out.extend_from_slice(&self.created.to_le_bytes());
        self.wrapped.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let epoch = input.u32()?;
        let active = match *input.array()? {
            [1] => true,
            [2] => false,
            _ => return Err(Error::HeaderDamaged("a data key has no valid state")),
        };
        Ok(Self { epoch, active, created: input.u64()?, wrapped: Wrapped::read(input)? })
    }
}

const DAMAGED_SLOT: Error = Error::HeaderDamaged("a key slot is not well formed");

/// The content that the checksum covers, and the checksum, if it fits.
fn checked_content(bytes: &[u8]) -> Option<(&[u8], &[u8; CHECKSUM_BYTES])> {
    let (content, checksum) = bytes.split_last_chunk::<MAC_BYTES>()?.0.split_last_chunk()?;
    (Sha256::digest(content)[..CHECKSUM_BYTES] == *checksum).then_some((content, checksum))
}

/// The version of an intact header that this version can read, and its content after the lengths.
///
/// # Errors
/// As [`Header::parse`].
fn readable_content(bytes: &[u8]) -> Result<(u16, &[u8])> {
    if bytes.len() < MIN_HEADER_BYTES || bytes.len() > MAX_HEADER_BYTES {
        return Err(Error::HeaderDamaged("its length is out of range"));
    }
    let mut input = Reader(bytes);
    if *input.array::<8>()? != MAGIC {
        return Err(Error::HeaderDamaged("it does not begin like a header"));
    }
    let (version, minimum_reader) = (input.u16()?, input.u16()?);
    if usize::try_from(input.u32()?) != Ok(bytes.len()) {
        return Err(Error::HeaderDamaged("its length is not the one it states"));
    }
    let Some((content, _)) = checked_content(bytes) else {
        return Err(Error::HeaderDamaged("its checksum does not fit"));
    };
    let needed = version.max(minimum_reader);
    if needed > NEWEST_VERSION {
        return Err(unsupported("header format version", u32::from(needed), u32::from(NEWEST_VERSION)));
    }
    Ok((version, &content[16..]))
}

fn push_extension(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
}

fn unsupported(what: &'static str, found: u32, newest: u32) -> Error {
    Error::UnsupportedVersion { what, found, newest }
}

/// Takes fields off the front of a slice. Every step is checked.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(*self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(*self.array()?))
    }
}

const TRUNCATED: Error = Error::HeaderDamaged("it ends in the middle of a field");
