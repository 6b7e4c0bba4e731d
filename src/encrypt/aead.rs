//! The authenticated cipher of every sealed byte: XChaCha20-Poly1305
//! (<https://datatracker.ietf.org/doc/html/draft-irtf-cfrg-xchacha-03>), used in place.
//!
//! All of the crate's AEAD goes through these two functions, so that an implementation with identical bytes can take the
//! place of the `chacha20poly1305` crate here and nowhere else.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305};

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const NONCE_BYTES: usize = 24;
pub(crate) const TAG_BYTES: usize = 16;

/// The tag did not fit; the buffer is as it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forged;

/// Encrypts `buffer` in place and returns the tag, or `None` if the buffer is longer than the cipher allows (256 GiB).
pub(crate) fn seal(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    aad: &[u8],
    buffer: &mut [u8],
) -> Option<[u8; TAG_BYTES]> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.encrypt_inout_detached(nonce.into(), aad, buffer.into()).ok().map(Into::into)
}

/// Verifies the tag and then decrypts `buffer` in place. On failure nothing is decrypted.
pub(crate) fn open(
    key: &[u8; KEY_BYTES],
    nonce: &[u8; NONCE_BYTES],
    aad: &[u8],
    buffer: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Result<(), Forged> {
    let cipher = XChaCha20Poly1305::new(key.into());
    let tag: &Tag = tag.into();
    cipher.decrypt_inout_detached(nonce.into(), aad, buffer.into(), tag).map_err(|_| Forged)
}
