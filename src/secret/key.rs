//! Keys with full entropy.

use std::io::Read;
use std::path::Path;

use zeroize::{Zeroize, Zeroizing};

use super::read::invalid;
use super::read::{normalized, open, open_credential, read_to_end};
use crate::error::Result;

/// A 32-byte key with full entropy: for machines, and for the further accounts of one process.
pub struct Key {
    bytes: Box<Zeroizing<[u8; 32]>>,
    /// The reason why the key must not be used for a new vault or slot: its file holds no random bytes.
    weakness: Option<&'static str>,
}

impl Key {
    /// Takes over the key and wipes `bytes`.
    pub fn from_bytes(bytes: &mut [u8; 32]) -> Self {
        let mut key = Self::zeroed();
        key.bytes.copy_from_slice(bytes);
        bytes.zeroize();
        key
    }

    /// Returns a new key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`Error::Random`](crate::Error::Random) if there is no such generator.
    pub fn generate() -> Result<Self> {
        let mut key = Self::zeroed();
        getrandom::fill(&mut key.bytes[..])?;
        Ok(key)
    }

    /// Reads a key from a file of 32 bytes, or of 64 hexadecimal digits with or without a trailing line break.
    ///
    /// Nothing stretches a key, so its bytes have to be random: `head -c 32 /dev/urandom > key`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the file cannot be read, or if other users can read it. The file must
    /// belong to the user of the process and have mode 0600 or less, or to root and have mode 0640 or less. PostgreSQL
    /// has the same rule for the key of its server (<https://www.postgresql.org/docs/current/ssl-tcp.html>).
    ///
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if it holds neither. [`Vault::create`](crate::Vault::create)
    /// and [`Vault::add_slot`](crate::Vault::add_slot) return the same error for bytes that cannot be random: text, or
    /// a few values over and over. Such a key still opens an existing vault.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "key")?)
    }

    /// Reads a key from a credential of systemd, which `LoadCredential=` or `LoadCredentialEncrypted=` passes to a
    /// service: the file of this name in the folder `$CREDENTIALS_DIRECTORY` (<https://systemd.io/CREDENTIALS>). An
    /// encrypted credential can be bound to the machine's TPM.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if systemd passed no credentials, or if `name` is not a plain
    /// name. Those of [`Key::from_file`].
    pub fn from_credential(name: &str) -> Result<Self> {
        Self::from_reader(open_credential(name, "key")?)
    }

    /// Reads a key to the end of a pipe, a socket or a file: 32 bytes, or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be read, [`Error::InvalidInput`](crate::Error::InvalidInput) as in [`Key::from_file`].
    pub fn from_reader(reader: impl Read) -> Result<Self> {
        let bytes = read_to_end(reader, "key", MAX_KEY_TEXT)?;
        let mut key = Self::zeroed();
        if bytes.len() == 32 {
            key.bytes.copy_from_slice(&bytes);
        } else {
            let text = normalized(&bytes).unwrap_or(bytes);
            let digits = text.trim_ascii();
            if digits.len() != 64 || data_encoding::HEXLOWER_PERMISSIVE.decode_mut(digits, &mut key.bytes[..]) != Ok(32)
            {
                return Err(invalid("key file", "must hold 32 bytes or 64 hexadecimal digits"));
            }
        }
        key.weakness = key.find_weakness();
        Ok(key)
    }

    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if the key must not be used for a new vault or slot.
    pub(crate) fn refuse_weak(&self) -> Result<()> {
        self.weakness.map_or(Ok(()), |problem| Err(invalid("key file", problem)))
    }

    /// The reason why the bytes cannot come from a random number generator. Refuses one in 10¹¹ random keys.
    pub(super) fn find_weakness(&self) -> Option<&'static str> {
        let bytes = self.expose();
        let is_of_text = |character: char| !character.is_control() || character.is_whitespace();
        let trimmed = &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)];
        if std::str::from_utf8(trimmed).is_ok_and(|text| text.chars().all(is_of_text)) {
            return Some("holds text instead of random bytes: use it as a passphrase, or make a random key");
        }
        let steps: Vec<u8> = bytes.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        let repeats = |bytes: &[u8]| {
            let mut counts = [0; 256];
            bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            counts.into_iter().any(|count| count > MOST_REPEATED)
                || counts.into_iter().filter(|count| *count > 0).count() < FEWEST_VALUES
        };
        (repeats(bytes) || repeats(&steps)).then_some("holds the same few bytes over and over: make a random key")
    }

    /// Returns the bytes, for a [`KeyProvider`](crate::vault::KeyProvider) that wraps them or a program that stores
    /// them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) fn zeroed() -> Self {
        Self { bytes: Box::new(Zeroizing::new([0; 32])), weakness: None }
    }

    /// A second copy, for a key that is used in two places.
    pub(crate) fn duplicate(&self) -> Self {
        let mut key = Self { weakness: self.weakness, ..Self::zeroed() };
        key.bytes.copy_from_slice(self.expose());
        key
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        &mut self.bytes
    }
}

/// Fewer different values occur once in 10²² times among 32 random bytes. More repeats of one value occur once in 10¹¹
/// times.
const FEWEST_VALUES: usize = 13;

const MOST_REPEATED: u8 = 8;

/// A key is shorter, also as UTF-16.
const MAX_KEY_TEXT: usize = 256;
