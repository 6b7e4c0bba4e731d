//! Values that can be cached: their size in memory, and how to wipe them.

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::store::traits::{AppStateSyncKey, DeviceInfo, DeviceListRecord, LidPnMappingEntry, TcTokenEntry};
use zeroize::{Zeroize, Zeroizing};

/// A value in the cache.
pub(super) trait CacheValue: Clone + Send + Sync + 'static {
    /// The memory that the value has allocated, in bytes, without the value itself.
    fn heap_bytes(&self) -> usize;

    /// Overwrites the content.
    fn wipe(&mut self);
}

/// A byte string that is wiped when the last [`Bytes`] that shares it is dropped.
#[derive(Clone)]
pub(super) struct WipedBytes {
    bytes: Bytes,
    capacity: usize,
}

/// Takes over the memory.
impl From<Vec<u8>> for WipedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { capacity: bytes.capacity(), bytes: Bytes::from_owner(Zeroizing::new(bytes)) }
    }
}

impl WipedBytes {
    pub(super) fn copy(bytes: &[u8]) -> Self {
        Self::from(bytes.to_vec())
    }

    /// Shares the memory.
    pub(super) fn share(&self) -> Bytes {
        self.bytes.clone()
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }
}

impl CacheValue for WipedBytes {
    fn heap_bytes(&self) -> usize {
        // 64 bytes for the owner that `Bytes` allocates.
        self.capacity + 64
    }

    fn wipe(&mut self) {}
}

impl<V: CacheValue> CacheValue for Option<V> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, V::heap_bytes)
    }

    fn wipe(&mut self) {
        if let Some(value) = self {
            value.wipe();
        }
    }
}

impl CacheValue for [u8; 32] {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn wipe(&mut self) {
        self.zeroize();
    }
}

impl CacheValue for Vec<u8> {
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }

    fn wipe(&mut self) {
        self.zeroize();
    }
}

/// A message secret and the time of its message.
impl CacheValue for (Vec<u8>, i64) {
    fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }

    fn wipe(&mut self) {
        self.0.zeroize();
    }
}

impl CacheValue for AppStateSyncKey {
    fn heap_bytes(&self) -> usize {
        self.key_data.capacity() + self.fingerprint.capacity()
    }

    fn wipe(&mut self) {
        self.key_data.zeroize();
        self.fingerprint.zeroize();
    }
}

impl CacheValue for HashState {
    fn heap_bytes(&self) -> usize {
        // A hash table is at most seven eighths full, and has one control byte per slot.
        let table = self.index_value_map.capacity() * 8 / 7 * (size_of::<(String, Vec<u8>)>() + 1);
        let entries = self.index_value_map.iter();
        table + entries.map(|(name, value)| name.capacity() + value.capacity() + 2 * 16).sum::<usize>()
    }

    fn wipe(&mut self) {
        self.hash.zeroize();
        self.index_value_map.values_mut().for_each(Zeroize::zeroize);
    }
}

/// The devices of a group, and whether they have our sender key.
impl CacheValue for Vec<(String, bool)> {
    fn heap_bytes(&self) -> usize {
        // 16 bytes for the overhead of each string's allocation.
        self.capacity() * size_of::<(String, bool)>() + self.iter().map(|(jid, _)| jid.capacity() + 16).sum::<usize>()
    }

    fn wipe(&mut self) {
        self.iter_mut().for_each(|(jid, _)| jid.zeroize());
    }
}

impl CacheValue for LidPnMappingEntry {
    fn heap_bytes(&self) -> usize {
        self.lid.capacity() + self.phone_number.capacity() + self.learning_source.capacity() + 3 * 16
    }

    fn wipe(&mut self) {
        self.lid.zeroize();
        self.phone_number.zeroize();
    }
}

impl CacheValue for DeviceListRecord {
    fn heap_bytes(&self) -> usize {
        let phash = self.phash.as_ref().map_or(0, String::capacity);
        self.user.capacity() + phash + self.devices.capacity() * size_of::<DeviceInfo>() + 3 * 16
    }

    fn wipe(&mut self) {
        self.user.zeroize();
        self.phash.zeroize();
        self.devices.clear();
    }
}

impl CacheValue for TcTokenEntry {
    fn heap_bytes(&self) -> usize {
        self.token.capacity()
    }

    fn wipe(&mut self) {
        self.token.zeroize();
    }
}
