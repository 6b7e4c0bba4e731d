//! The key tree below the vault key. All subkeys are expanded once, when the vault is opened.
//!
//! ```text
//! HK(key, label, context, L) = HKDF-SHA-256(salt = store id, ikm = key, info = "wastore/v1/" ‖ label ‖ 0x00 ‖ context)
//!
//! vault key ├─ HK("header-mac")  authenticates the header
//!           ├─ HK("key-wrap")    wraps the lookup key and the data keys
//!           └─ HK("account-key", label)  raw keys for the vaults of further accounts
//! lookup key ├─ HK("token")      tokens and indices
//!            ├─ HK("siv", 64)    listed names
//!            └─ HK("block")      32-byte blocks
//! data key of an epoch ── HK("record", u8 suite ‖ u8 kind)   one AEAD key per kind of record
//! ```

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::aead::KEY_BYTES;
use super::kind::{KINDS, Kind, SUITE};
use crate::secret::Key;

/// Identifies a vault; random, not secret, the salt of every derivation.
pub(crate) type StoreId = [u8; 16];

/// `HK(key, label, context, N)`.
pub(crate) fn derive<const N: usize>(
    store_id: &StoreId,
    key: &[u8; 32],
    label: &str,
    context: &[u8],
    output: &mut [u8; N],
) {
    const { assert!(N <= 255 * 32, "HKDF gives at most 255 hashes, so the expansion below cannot fail") };
    let hkdf = Hkdf::<Sha256>::new(Some(store_id), key);
    let expanded = hkdf.expand_multi_info(&[b"wastore/v1/", label.as_bytes(), &[0], context], output);
    debug_assert!(expanded.is_ok());
}

/// The root of the tree, random, wrapped once per key slot.
pub(crate) struct VaultKey(pub(crate) Key);

impl VaultKey {
    /// The key that authenticates the header.
    pub(crate) fn header_mac(&self, store_id: &StoreId) -> Hmac<Sha256> {
        hmac(&self.subkey(store_id, "header-mac"))
    }

    /// The key that wraps lookup and data keys.
    pub(crate) fn key_wrap(&self, store_id: &StoreId) -> Zeroizing<[u8; 32]> {
        self.subkey(store_id, "key-wrap")
    }

    /// A raw key for the vault of another account.
    pub(crate) fn account_key(&self, store_id: &StoreId, label: &str) -> Key {
        let mut key = Key::zeroed();
        derive(store_id, self.0.expose(), "account-key", label.as_bytes(), key.bytes_mut());
        key
    }

    fn subkey(&self, store_id: &StoreId, label: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        derive(store_id, self.0.expose(), label, b"", &mut key);
        key
    }
}

/// Keys for names and 32-byte blocks. They live as long as the vault, because they find its rows.
pub(crate) struct LookupKeys {
    /// Keyed once and cloned for each token, so the key is not hashed each time. The `hmac` crate wipes it on drop.
    pub(crate) token: Hmac<Sha256>,
    pub(crate) siv: [u8; 64],
    pub(crate) block: Hmac<Sha256>,
}

impl LookupKeys {
    /// Expands the lookup key; boxed, so that the keys are never moved.
    pub(crate) fn new(store_id: &StoreId, key: &Key) -> Box<Self> {
        let mut subkey = Zeroizing::new([0; 32]);
        let mut expand = |label| {
            derive(store_id, key.expose(), label, b"", &mut subkey);
            hmac(&subkey)
        };
        let mut keys = Box::new(Self { token: expand("token"), block: expand("block"), siv: [0; 64] });
        derive(store_id, key.expose(), "siv", b"", &mut keys.siv);
        keys
    }
}

impl Drop for LookupKeys {
    fn drop(&mut self) {
        self.siv.zeroize();
    }
}

/// The AEAD keys of one epoch, by kind of record.
pub(crate) struct DataKeys {
    pub(crate) epoch: u32,
    records: Box<[[u8; KEY_BYTES]; KINDS]>,
}

impl DataKeys {
    /// Expands the data key of an epoch.
    pub(crate) fn new(store_id: &StoreId, epoch: u32, key: &Key) -> Self {
        let mut records = Box::new([[0; KEY_BYTES]; KINDS]);
        for (kind, record) in (1u8..).zip(records.iter_mut()) {
            derive(store_id, key.expose(), "record", &[SUITE, kind], record);
        }
        Self { epoch, records }
    }

    /// The key for a kind of record.
    pub(crate) fn record(&self, kind: Kind) -> &[u8; KEY_BYTES] {
        // Kinds count from 1.
        &self.records[usize::from(kind.number()) - 1]
    }
}

impl Drop for DataKeys {
    fn drop(&mut self) {
        self.records.zeroize();
    }
}

/// All keys that records need.
pub(crate) struct KeyRing {
    pub(crate) lookup: Box<LookupKeys>,
    /// One or more, the active one first.
    data: Vec<DataKeys>,
}

impl KeyRing {
    /// `active` seals new records; `older` epochs are only opened.
    pub(crate) fn new(lookup: Box<LookupKeys>, active: DataKeys, older: Vec<DataKeys>) -> Self {
        let mut data = vec![active];
        data.extend(older);
        Self { lookup, data }
    }

    /// The keys that seal new records.
    pub(crate) fn active(&self) -> &DataKeys {
        &self.data[0]
    }

    /// The keys of an epoch, if the vault has them.
    pub(crate) fn epoch(&self, epoch: u32) -> Option<&DataKeys> {
        self.data.iter().find(|keys| keys.epoch == epoch)
    }
}

fn hmac(key: &[u8; 32]) -> Hmac<Sha256> {
    // HMAC pads its key with zeros to the hash's block size (RFC 2104 §2). With a padded key the constructor cannot
    // fail.
    let mut padded = Zeroizing::new([0; 64]);
    padded[..32].copy_from_slice(key);
    Hmac::new((&*padded).into())
}
