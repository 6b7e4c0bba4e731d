//! The sealed value, version 1: encode, decode, nothing else.
//!
//! ```text
//!  0   2  magic E7 57: not UTF-8, not a protobuf tag, not JSON
//!  2   1  envelope version = 1
//!  3   1  suite = 1, XChaCha20-Poly1305
//!  4   1  flags: bit 0 padded, bit 1 self-describing
//!  5   1  kind of record
//!  6   4  data-key epoch
//! 10   4  generation of the header at the time of writing, at most 2^32 − 1
//! 14  24  nonce
//! 38   n  ciphertext of: [u16 L ‖ L bytes of (u16 len ‖ part)*] if self-describing ‖ payload ‖ [80 00*] if padded
//! 38+n 16 tag
//!
//! associated data = "wastore/v1/aad\0" ‖ envelope[0..14] ‖ u8 n ‖ (u16 len ‖ stored key column)*
//! ```
//!
//! Integers are little-endian. "Stored key columns" are the columns that the inner store got as the row's key. Columns that
//! the inner store merges or computes on are never bound.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use zeroize::Zeroize;

use super::aead::{self, NONCE_BYTES, TAG_BYTES};
use super::keys::DataKeys;
use super::kind::{Kind, SUITE};
use super::padding::Padding;
use crate::error::{Error, Result};
use crate::method::Record;

/// The bytes that an envelope adds to a payload, without self-description and padding.
pub(crate) const OVERHEAD_BYTES: usize = BODY_AT + TAG_BYTES;

const MAGIC: [u8; 2] = [0xE7, 0x57];
const VERSION: u8 = 1;
const PADDED: u8 = 1;
const SELF_DESCRIBING: u8 = 2;
const HEADER_BYTES: usize = 14;
const BODY_AT: usize = HEADER_BYTES + NONCE_BYTES;
const AAD_LABEL: &[u8] = b"wastore/v1/aad\0";
/// Associated data up to this length needs no allocation.
const AAD_BYTES: usize = 128;

pub(crate) type Nonce = [u8; NONCE_BYTES];

/// One nonce for one value.
pub(crate) fn nonce() -> Result<Nonce> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

/// Nonces for a batch, from one call to the operating system.
pub(crate) fn nonces(count: usize) -> Result<Vec<Nonce>> {
    let mut nonces = vec![Nonce::default(); count];
    getrandom::fill(nonces.as_flattened_mut())?;
    Ok(nonces)
}

/// The place that a sealed value is bound to.
#[derive(Clone, Copy)]
pub(crate) struct RowBinding<'a> {
    pub(crate) kind: Kind,
    columns: Parts<'a>,
    original: Parts<'a>,
}

/// Up to three parts of a key.
#[derive(Clone, Copy)]
struct Parts<'a> {
    parts: [&'a [u8]; 3],
    count: usize,
}

impl<'a> Parts<'a> {
    const fn new<const N: usize>(given: [&'a [u8]; N]) -> Self {
        const { assert!(N <= 3) };
        let mut parts: [&[u8]; 3] = [&[]; 3];
        let mut at = 0;
        while at < N {
            parts[at] = given[at];
            at += 1;
        }
        Self { parts, count: N }
    }

    fn as_slice(&self) -> &[&'a [u8]] {
        &self.parts[..self.count]
    }
}

impl<'a> RowBinding<'a> {
    /// `columns` are the key columns that the inner store gets, in the order of the trait's parameters. `original` is
    /// the key that the sealed body keeps, empty for kinds that are not self-describing.
    pub(crate) const fn new<const C: usize, const O: usize>(
        kind: Kind,
        columns: [&'a [u8]; C],
        original: [&'a [u8]; O],
    ) -> Self {
        Self { kind, columns: Parts::new(columns), original: Parts::new(original) }
    }

    /// The record for errors.
    pub(crate) const fn record(&self) -> Record {
        self.kind.record()
    }

    /// The number of bytes that the original key takes in the body.
    fn described_bytes(&self) -> Result<usize> {
        let limit = usize::from(u16::MAX);
        let original = self.original.as_slice();
        let bytes: usize = original.iter().map(|part| 2 + part.len()).sum();
        if bytes > limit || self.columns.as_slice().iter().any(|column| column.len() > limit) {
            return Err(Error::InputTooLong { record: self.record(), what: "key", limit });
        }
        Ok(if original.is_empty() { 0 } else { 2 + bytes })
    }

    fn aad(&self, header: &[u8; HEADER_BYTES]) -> SmallVec<[u8; AAD_BYTES]> {
        let columns = self.columns.as_slice();
        let length = AAD_LABEL.len() + HEADER_BYTES + 1 + columns.iter().map(|column| 2 + column.len()).sum::<usize>();
        let mut aad = match length {
            ..=AAD_BYTES => SmallVec::from_buf_and_len([0; AAD_BYTES], length),
            _ => SmallVec::from_vec(vec![0; length]),
        };
        let mut at = 0;
        let mut append = |part: &[u8]| {
            aad[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        append(AAD_LABEL);
        append(header);
        append(&[self.columns.count as u8]);
        for column in columns {
            append(&(column.len() as u16).to_le_bytes());
            append(column);
        }
        aad
    }
}

/// Seals `payload` for `binding` in one exactly sized allocation.
///
/// # Errors
/// [`Error::InputTooLong`] if the key or the payload does not fit the format.
pub(crate) fn seal(
    keys: &DataKeys,
    generation: u32,
    padding: Padding,
    nonce: &Nonce,
    binding: RowBinding<'_>,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let described = binding.described_bytes()?;
    let unpadded = described + payload.len();
    let body = padding.padded(unpadded);
    let mut envelope = Vec::with_capacity(BODY_AT + body + TAG_BYTES);

    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = VERSION;
    header[3] = SUITE;
    header[4] = if padding == Padding::None { 0 } else { PADDED } | if described > 0 { SELF_DESCRIBING } else { 0 };
    header[5] = binding.kind.number();
    header[6..10].copy_from_slice(&keys.epoch.to_le_bytes());
    header[10..].copy_from_slice(&generation.to_le_bytes());
    envelope.extend_from_slice(&header);
    envelope.extend_from_slice(nonce);

    if described > 0 {
        envelope.extend_from_slice(&((described - 2) as u16).to_le_bytes());
        for part in binding.original.as_slice() {
            envelope.extend_from_slice(&(part.len() as u16).to_le_bytes());
            envelope.extend_from_slice(part);
        }
    }
    envelope.extend_from_slice(payload);
    if padding != Padding::None {
        envelope.push(0x80);
        envelope.resize(BODY_AT + body, 0);
    }

    let key = keys.record(binding.kind);
    let tag = aead::seal(key, nonce, &binding.aad(&header), &mut envelope[BODY_AT..]).ok_or(Error::InputTooLong {
        record: binding.record(),
        what: "value",
        limit: u32::MAX as usize,
    })?;
    envelope.extend_from_slice(&tag);
    Ok(envelope)
}

/// Seals a value again as it is, in the same place and under other keys. For the arguments see [`open`] and [`seal`].
///
/// # Errors
/// As [`open`].
pub(crate) fn reseal(
    under: &DataKeys,
    keys: &DataKeys,
    generation: u32,
    prefix: Prefix,
    nonce: &Nonce,
    binding: RowBinding<'_>,
    value: &[u8],
) -> Result<Vec<u8>> {
    let mut value = zeroize::Zeroizing::new(value.to_vec());
    open(under, prefix, binding, &mut value)?;
    let mut header = prefix.bytes;
    header[6..10].copy_from_slice(&keys.epoch.to_le_bytes());
    header[10..].copy_from_slice(&generation.to_le_bytes());
    value[..HEADER_BYTES].copy_from_slice(&header);
    value[HEADER_BYTES..BODY_AT].copy_from_slice(nonce);

    let tampered = || Error::Tampered { record: binding.record() };
    let key = keys.record(binding.kind);
    let (sealed, tag) = value.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(tampered)?;
    *tag = aead::seal(key, nonce, &binding.aad(&header), &mut sealed[BODY_AT..]).ok_or_else(tampered)?;
    Ok(std::mem::take(&mut *value))
}

/// The clear part of an envelope. Everything that needs no key has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Prefix {
    bytes: [u8; HEADER_BYTES],
}

impl Prefix {
    /// Reads the front of a stored value.
    ///
    /// # Errors
    /// [`Error::Plaintext`] if the value was never an envelope; [`Error::Tampered`] if it is truncated, of another kind
    /// of record, or of a version or suite that no header of this version allows.
    pub(crate) fn read(kind: Kind, value: &[u8]) -> Result<Self> {
        let fixed = [MAGIC[0], MAGIC[1], VERSION, SUITE];
        let matching = fixed.iter().zip(value).filter(|(expected, found)| expected == found).count();
        // A damaged envelope still matches most of its fixed bytes. A value that matches fewer was never an envelope.
        if !value.is_empty() && matching < value.len().min(3) {
            return Err(Error::Plaintext { record: kind.record() });
        }
        match value.first_chunk::<HEADER_BYTES>() {
            Some(bytes) if value.len() >= OVERHEAD_BYTES && bytes[..4] == fixed && bytes[5] == kind.number() => {
                Ok(Self { bytes: *bytes })
            }
            _ => Err(Error::Tampered { record: kind.record() }),
        }
    }

    /// The front of a stored value of any kind of record; `None` if it was never an envelope of this version.
    pub(crate) fn of(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        (bytes[..4] == [MAGIC[0], MAGIC[1], VERSION, SUITE]).then_some(Self { bytes: *bytes })
    }

    /// The kind of record that it claims to hold.
    pub(crate) fn record(&self) -> Option<Record> {
        Kind::with_number(self.bytes[5]).map(Kind::record)
    }

    pub(crate) fn epoch(&self) -> u32 {
        u32::from_le_bytes([self.bytes[6], self.bytes[7], self.bytes[8], self.bytes[9]])
    }

    pub(crate) fn generation(&self) -> u32 {
        u32::from_le_bytes([self.bytes[10], self.bytes[11], self.bytes[12], self.bytes[13]])
    }
}

/// A verified, decrypted body.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The parts of the original key, as ranges of the buffer; empty if the envelope is not self-describing.
    parts: SmallVec<[(usize, usize); 3]>,
    /// The place of the payload in the buffer.
    start: usize,
    end: usize,
}

impl Opened {
    /// The original key's parts.
    pub(crate) fn parts<'b>(&self, buffer: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        self.parts.iter().map(move |&(start, end)| &buffer[start..end])
    }

    pub(crate) fn payload<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        &buffer[self.start..self.end]
    }

    /// Cuts the payload out of its buffer.
    pub(crate) fn into_payload(self, mut buffer: Vec<u8>) -> Vec<u8> {
        buffer.truncate(self.end);
        buffer.drain(..self.start);
        buffer
    }
}

/// Verifies and decrypts `value` in place.
///
/// `prefix` is the result of [`Prefix::read`] for it; `keys` are those of its epoch. If `binding` has an original key,
/// the envelope must be self-describing and name exactly that key.
///
/// # Errors
/// [`Error::Tampered`] if the value was not sealed by this vault for this binding; [`Error::UnsupportedVersion`] if it
/// verifies but carries a flag of a later version.
pub(crate) fn open(keys: &DataKeys, prefix: Prefix, binding: RowBinding<'_>, value: &mut [u8]) -> Result<Opened> {
    let record = binding.record();
    let tampered = || Error::Tampered { record };
    let (sealed, tag) = value.split_last_chunk_mut::<TAG_BYTES>().ok_or_else(tampered)?;
    let (front, body) = sealed.split_at_mut_checked(BODY_AT).ok_or_else(tampered)?;
    let nonce: &Nonce = front.last_chunk().ok_or_else(tampered)?;
    let key = keys.record(binding.kind);
    aead::open(key, nonce, &binding.aad(&prefix.bytes), body, tag).map_err(|_| tampered())?;

    let opened = parse_body(prefix.bytes[4], record, body);
    let accepted = opened.and_then(|opened| {
        let described = opened.parts.iter().map(|&(start, end)| &body[start - BODY_AT..end - BODY_AT]);
        let original = binding.original.as_slice();
        let expected = original.is_empty() || described.eq(original.iter().copied());
        if expected { Ok(opened) } else { Err(tampered()) }
    });
    if accepted.is_err() {
        body.zeroize();
    }
    accepted
}

fn parse_body(flags: u8, record: Record, body: &[u8]) -> Result<Opened> {
    // The flags are authenticated, so an unknown one comes from a later version, not from damage.
    if flags & !(PADDED | SELF_DESCRIBING) != 0 {
        let (what, newest) = ("envelope flags", u32::from(PADDED | SELF_DESCRIBING));
        return Err(Error::UnsupportedVersion { what, found: u32::from(flags), newest });
    }
    let tampered = || Error::Tampered { record };
    let mut end = body.len();
    if flags & PADDED != 0 {
        end = body.iter().rposition(|&byte| byte != 0).filter(|&at| body[at] == 0x80).ok_or_else(tampered)?;
    }
    let mut parts = SmallVec::new();
    let mut at = 0;
    let length = |at: usize| -> Option<usize> {
        let bytes = body[..end].get(at..)?.first_chunk::<2>()?;
        Some(usize::from(u16::from_le_bytes(*bytes)))
    };
    if flags & SELF_DESCRIBING != 0 {
        let described_end = 2 + length(0).ok_or_else(tampered)?;
        if described_end > end {
            return Err(tampered());
        }
        at = 2;
        while at < described_end {
            let start = at + 2;
            at = start + length(at).ok_or_else(tampered)?;
            if at > described_end {
                return Err(tampered());
            }
            parts.push((BODY_AT + start, BODY_AT + at));
        }
    }
    Ok(Opened { parts, start: BODY_AT + at, end: BODY_AT + end })
}

/// [`open`] for a value that may be shared. Decrypts it in place if it is not shared, in a copy if it is.
pub(crate) fn open_bytes(keys: &DataKeys, prefix: Prefix, binding: RowBinding<'_>, value: Bytes) -> Result<Bytes> {
    let mut buffer = value.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let opened = open(keys, prefix, binding, &mut buffer)?;
    Ok(buffer.freeze().slice(opened.start..opened.end))
}
