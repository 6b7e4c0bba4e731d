//! Typed records as JSON.

use std::fmt;

use serde::Serialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::method::Record;

/// Encodes a typed record as JSON, and leaves no copies of it behind. JSON carries every field that upstream serializes
/// now or adds later.
pub(crate) fn encode<T: Serialize>(record: Record, value: &T) -> Result<Zeroizing<Vec<u8>>> {
    let mut encoding = WipingBuffer::new();
    serde_json::to_writer(&mut encoding, value).map_err(|_| Error::Encode { record })?;
    Ok(encoding.into_bytes())
}

/// Reads an array of bytes. JSON does not announce the length of an array, and a growing buffer would leave copies
/// behind.
pub(crate) fn secret_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Bytes;

    impl<'de> Visitor<'de> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of bytes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<u8>, A::Error> {
            let mut buffer = WipingBuffer(Zeroizing::new(Vec::with_capacity(64)));
            while let Some(byte) = array.next_element::<u8>()? {
                buffer.push(&[byte]);
            }
            Ok(std::mem::take(&mut *buffer.0))
        }
    }

    deserializer.deserialize_seq(Bytes)
}

/// A buffer that grows without leaving copies of its content behind.
pub(crate) struct WipingBuffer(Zeroizing<Vec<u8>>);

impl WipingBuffer {
    pub(crate) fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(2048)))
    }

    pub(crate) fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Vec::with_capacity((self.0.len() + bytes.len()).next_power_of_two());
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
    }
}

impl std::io::Write for WipingBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
