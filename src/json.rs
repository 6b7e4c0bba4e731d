//! Typed records as JSON.

use serde::Serialize;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::method::Record;

/// Encodes a typed record as JSON, which carries every field that upstream serializes now or adds later, and leaves no
/// copies of it behind.
pub(crate) fn encode<T: Serialize>(record: Record, value: &T) -> Result<Zeroizing<Vec<u8>>> {
    let mut encoding = WipingBuffer(Zeroizing::new(Vec::with_capacity(2048)));
    serde_json::to_writer(&mut encoding, value).map_err(|_| Error::Encode { record })?;
    Ok(encoding.0)
}

/// A buffer that grows without leaving copies of its content behind.
struct WipingBuffer(Zeroizing<Vec<u8>>);

impl std::io::Write for WipingBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Vec::with_capacity((self.0.len() + bytes.len()).next_power_of_two());
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
