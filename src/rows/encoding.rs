//! Writes a sealed value into fields of upstream's types that are not plain bytes.

use std::collections::HashMap;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroize;

use crate::error::{Error, Result};
use crate::method::Record;

/// Upstream's SQLite store treats a sync key as absent if its `key_data` has another length.
pub(crate) const KEY_DATA_BYTES: usize = 32;
/// The map entry that carries a sealed collection version.
pub(crate) const CARRIER: &str = "e";

/// An envelope for a text field.
pub(crate) fn encode_text(envelope: &[u8]) -> String {
    BASE64URL_NOPAD.encode(envelope)
}

/// The envelope in a text field.
///
/// # Errors
/// [`Error::Tampered`] if it is cut or altered, [`Error::Plaintext`] if the field holds other text.
pub(crate) fn decode_text(record: Record, text: &str) -> Result<Vec<u8>> {
    let mut envelope = Vec::new();
    decode_text_into(record, text, &mut envelope)?;
    Ok(envelope)
}

/// Does the same in a buffer that is used again and again, and leaves no copy of its earlier content behind.
pub(crate) fn decode_text_into(record: Record, text: &str, envelope: &mut Vec<u8>) -> Result<()> {
    /// The first characters of every envelope in base64: its magic and its version.
    const BEGIN: &str = "51cB";
    let damaged = || if text.starts_with(BEGIN) { Error::Tampered { record } } else { Error::Plaintext { record } };
    let length = BASE64URL_NOPAD.decode_len(text.len()).map_err(|_| damaged())?;
    if envelope.capacity() < length {
        envelope.zeroize();
    }
    envelope.resize(length, 0);
    BASE64URL_NOPAD.decode_mut(text.as_bytes(), envelope).map(drop).map_err(|_| damaged())
}

/// The entries one after the other: length of the name, name, length of the value, value. Lengths are u32,
/// little-endian.
pub(crate) fn encode_map(map: &HashMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(map.iter().map(|(name, value)| 8 + name.len() + value.len()).sum());
    for part in map.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
        let length = u32::try_from(part.len()).map_err(|_| Error::Encode { record: Record::CollectionVersion })?;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(part);
    }
    Ok(out)
}

pub(crate) fn decode_map(mut encoded: &[u8]) -> Result<HashMap<String, Vec<u8>>> {
    let mut map = HashMap::new();
    while !encoded.is_empty() {
        let (name, value) = (take_part(&mut encoded)?, take_part(&mut encoded)?);
        map.insert(String::from_utf8(name.to_vec()).map_err(|_| MALFORMED)?, value.to_vec());
    }
    Ok(map)
}

fn take_part<'a>(encoded: &mut &'a [u8]) -> Result<&'a [u8]> {
    let (length, rest) = encoded.split_first_chunk().ok_or(MALFORMED)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| MALFORMED)?;
    let (part, rest) = rest.split_at_checked(length).ok_or(MALFORMED)?;
    *encoded = rest;
    Ok(part)
}

const MALFORMED: Error = Error::Malformed { record: Record::CollectionVersion };
