//! Passphrases, and the rules for reading them.

use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::read::invalid;
use super::read::{normalized, open, open_credential, read_to_end, without_line_break};
use crate::error::Result;
use crate::printable::is_printable;

/// A passphrase.
///
/// The rules are the same for every constructor, and for every way in which the command reads a passphrase:
///
/// 1. UTF-16 with a byte order mark, which some editors on Windows write, is read as text.
/// 2. A byte order mark at the beginning is left out.
/// 3. One line break at the end is left out, LF or CR LF. Other white space stays.
/// 4. Text is brought into Unicode's normalization form C, as RFC 8265 requires. So a letter with an accent is the same
///    whether a keyboard sends it as one character or as two.
/// 5. Bytes that are not text stay as they are.
///
/// Earlier builds had other rules for each way, and vaults that they created still open. If the passphrase does not
/// open the vault, its bytes are tried as those builds read them, within the cost that
/// [`KdfLimits`](crate::vault::KdfLimits) allow.
pub struct Passphrase {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// The same bytes as earlier builds read them; empty for most passphrases.
    older: Vec<Zeroizing<Vec<u8>>>,
}

impl Passphrase {
    /// The longest passphrase: 1 MiB.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Takes over the passphrase and wipes it when dropped. Hand over the only copy, not a clone.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if it is empty or longer than [`Passphrase::MAX_BYTES`].
    pub fn new(passphrase: impl Into<Vec<u8>>) -> Result<Self> {
        let given = Zeroizing::new(passphrase.into());
        let (bytes, older) = match normalized(&given) {
            None if !given.iter().any(u8::is_ascii_control) => (given, vec![]),
            bytes => {
                let bytes = bytes.unwrap_or_else(|| given.clone());
                let differs = |older: &Zeroizing<Vec<u8>>| !older.is_empty() && *older != bytes;
                let older = older_readings(given).into_iter().filter(differs).collect();
                (bytes, older)
            }
        };
        match bytes.len() {
            0 => Err(invalid("passphrase", "must not be empty")),
            1..=Self::MAX_BYTES => Ok(Self { bytes, older }),
            _ => Err(invalid("passphrase", "must not be longer than 1 MiB")),
        }
    }

    /// Reads a passphrase from a file.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the file cannot be read, or if other users can read it, by the rule of
    /// [`Key::from_file`](crate::Key::from_file). [`Error::InvalidInput`](crate::Error::InvalidInput) as in
    /// [`Passphrase::new`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "passphrase")?)
    }

    /// Reads a passphrase from a credential of systemd, as [`Key::from_credential`](crate::Key::from_credential) does.
    ///
    /// # Errors
    /// Those of [`Key::from_credential`](crate::Key::from_credential) and of [`Passphrase::new`].
    pub fn from_credential(name: &str) -> Result<Self> {
        Self::from_reader(open_credential(name, "passphrase")?)
    }

    /// Reads a passphrase to the end of a pipe, a socket or a file.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be read, [`Error::InvalidInput`](crate::Error::InvalidInput) as in [`Passphrase::new`].
    pub fn from_reader(reader: impl Read) -> Result<Self> {
        let mut bytes = read_to_end(reader, "passphrase", Self::MAX_BYTES + 2)?;
        Self::new(std::mem::take(&mut *bytes))
    }

    /// Reads a passphrase from an environment variable.
    ///
    /// Other processes of the same user can read the variable too, and child processes inherit it. Prefer
    /// [`Passphrase::from_credential`].
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if the variable is not set, or as in [`Passphrase::new`].
    pub fn from_env(name: &str) -> Result<Self> {
        let value =
            std::env::var_os(name).ok_or(invalid("passphrase", "is not set in the given environment variable"))?;
        Self::new(value.into_encoded_bytes())
    }

    /// `true` if it is one line of text, which a person can type. For rules about new passphrases.
    pub fn can_be_typed(&self) -> bool {
        std::str::from_utf8(&self.bytes)
            .is_ok_and(|text| text.chars().all(|character| !character.is_control() || character == '\t'))
    }

    /// The number of visible characters; repeats in a row count once. The number of bytes if the passphrase is not
    /// text. For rules about new passphrases.
    pub fn characters(&self) -> usize {
        let Ok(text) = std::str::from_utf8(&self.bytes) else { return self.bytes.len() };
        let (mut count, mut last) = (0, None);
        for character in text
            .chars()
            .filter(|character| !character.is_whitespace() && is_printable(character.encode_utf8(&mut [0; 4])))
        {
            count += usize::from(last != Some(character));
            last = Some(character);
        }
        count
    }

    /// The decimal logarithm of the number of guesses after which a good guesser finds the passphrase, as zxcvbn
    /// estimates it from words, names, dates and keyboard patterns
    /// (<https://www.usenix.org/conference/usenixsecurity16/technical-sessions/presentation/wheeler>). Zero if it is
    /// not text. The estimate leaves pieces of the passphrase in memory, so it is only for a command that ends.
    #[cfg(feature = "cli")]
    #[doc(hidden)]
    pub fn guesses_log10(&self) -> f64 {
        let text = std::str::from_utf8(&self.bytes).unwrap_or_default();
        zxcvbn::zxcvbn(text, &["wastore", "whatsapp", "signal"]).guesses_log10().max(0.0)
    }

    /// The readings of the bytes: the right one first, then those of earlier builds.
    pub(crate) fn readings(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let count = 1 + self.older.len();
        (0..count).map(|number| number.checked_sub(1).map_or(&self.bytes[..], |older| &self.older[older]))
    }

    /// The passphrase as an earlier build read it.
    #[cfg(test)]
    pub(crate) fn as_read_earlier(bytes: &[u8]) -> Self {
        Self { bytes: Zeroizing::new(bytes.to_vec()), older: vec![] }
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn duplicate(&self) -> Self {
        Self { bytes: self.bytes.clone(), older: self.older.clone() }
    }
}

/// The readings of earlier builds: from a file, from a variable, and from a terminal, where control characters were
/// lost.
fn older_readings(given: Zeroizing<Vec<u8>>) -> Vec<Zeroizing<Vec<u8>>> {
    let line = without_line_break(&given);
    let mut typed = Zeroizing::new(Vec::with_capacity(line.len()));
    typed.extend(line.iter().filter(|byte| !byte.is_ascii_control()));
    let mut readings = vec![Zeroizing::new(line.to_vec()), typed, given];
    readings.dedup();
    readings
}
