//! Recovery keys: how they are printed and typed in again.

use std::io::Read;
use std::ops::Deref;
use std::path::Path;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key::Key;
use super::read::invalid;
use super::read::{normalized, open, read_to_end};
use crate::error::Result;

/// A key to print and keep in a safe. It opens the vault if everything else is lost.
///
/// Its text is Crockford base32 (<https://www.crockford.com/base32.html>) in groups of four characters and ends in two
/// check characters. Letters may have any case; `O` reads as `0`, `I` and `L` read as `1`. Spaces, dashes and quotes of
/// any kind are ignored, and so are a label before or after the key and text on other lines.
pub struct RecoveryKey(pub(super) Key);

/// 256 bits in characters of five bits each.
const RECOVERY_CHARS: usize = 52;

const CHECK_CHARS: usize = 2;

/// A recovery key is shorter, however it is typed.
const MAX_RECOVERY_TEXT: usize = 1 << 10;

impl RecoveryKey {
    /// Returns a new recovery key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`Error::Random`](crate::Error::Random) if there is no such generator.
    pub fn generate() -> Result<Self> {
        Key::generate().map(Self)
    }

    /// Reads a recovery key as a person types it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if a character is missing or mistyped. The check characters
    /// find almost all such mistakes.
    pub fn parse(text: &str) -> Result<Self> {
        // The places are so few that the check characters still tell right from wrong.
        let places = [text].into_iter().chain(text.lines());
        let mut found = places.filter_map(|text| {
            let symbols = || text.chars().filter(|character| character.is_alphanumeric());
            Self::of_symbols(symbols().rev(), true).or_else(|| Self::of_symbols(symbols(), false))
        });
        found.next().ok_or(invalid(
            "recovery key",
            "is mistyped: it has 54 letters and digits, and the last two check the others",
        ))
    }

    /// The key in the first characters, or in the last ones if `typed` runs backwards.
    fn of_symbols(mut typed: impl Iterator<Item = char>, backwards: bool) -> Option<Self> {
        let mut symbols = Zeroizing::new([0; RECOVERY_CHARS + CHECK_CHARS]);
        for symbol in symbols.iter_mut() {
            *symbol = u8::try_from(typed.next()?).ok()?;
        }
        if backwards {
            symbols.reverse();
        }
        let (key_chars, check_chars) = symbols.split_at(RECOVERY_CHARS);
        // 52 characters hold 260 bits; the decoder requires that the last four are zero.
        let mut decoded = Zeroizing::new([0; 32]);
        if CROCKFORD.decode_mut(key_chars, &mut decoded[..]) != Ok(32) {
            return None;
        }
        let key = Key::from_bytes(&mut decoded);
        let normal = |byte: &u8| match byte.to_ascii_uppercase() {
            b'O' => b'0',
            b'I' | b'L' => b'1',
            other => other,
        };
        check_chars.iter().map(normal).eq(check_characters(&key)).then(|| Self(key))
    }

    /// Reads a recovery key from a file that holds nothing else, except a label before the key.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) as in [`Key::from_file`],
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) as in [`RecoveryKey::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "recovery key")?)
    }

    /// Reads a recovery key to the end of a pipe, a socket or a file.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be read, [`Error::InvalidInput`](crate::Error::InvalidInput) as in [`RecoveryKey::parse`].
    pub fn from_reader(reader: impl Read) -> Result<Self> {
        let bytes = read_to_end(reader, "recovery key", MAX_RECOVERY_TEXT)?;
        let bytes = normalized(&bytes).unwrap_or(bytes);
        Self::parse(std::str::from_utf8(&bytes).unwrap_or_default())
    }

    /// Returns the text to print: 13 groups of four characters and one of two, joined by dashes. The text is the secret
    /// itself.
    ///
    /// ```
    /// let key = wastore::RecoveryKey::generate()?;
    /// println!("Keep this in a safe place: {}", *key.expose());
    /// # Ok::<(), wastore::Error>(())
    /// ```
    pub fn expose(&self) -> impl Deref<Target = String> + use<> {
        let mut symbols = Zeroizing::new([0; RECOVERY_CHARS]);
        CROCKFORD.encode_mut(&self.0.expose()[..], &mut symbols[..]);
        let mut text = Zeroizing::new(String::with_capacity(RECOVERY_CHARS / 4 * 5 + CHECK_CHARS));
        for (position, symbol) in symbols.iter().copied().chain(check_characters(&self.0)).enumerate() {
            if position > 0 && position % 4 == 0 {
                text.push('-');
            }
            text.push(char::from(symbol));
        }
        text
    }

    pub(crate) fn key(&self) -> &Key {
        &self.0
    }

    pub(crate) fn into_key(self) -> Key {
        self.0
    }

    /// A second copy, for a key that is stored and shown at the same time.
    pub(crate) fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }
}

static CROCKFORD: LazyLock<Encoding> = LazyLock::new(|| {
    let mut crockford = Specification::new();
    crockford.symbols.push_str("0123456789ABCDEFGHJKMNPQRSTVWXYZ");
    crockford.translate.from.push_str("abcdefghjkmnpqrstvwxyzOoIiLl");
    crockford.translate.to.push_str("ABCDEFGHJKMNPQRSTVWXYZ001111");
    encoding(&crockford)
});

/// Builds an encoding from a specification that is fixed in the source, so a mistake shows in the first test.
#[allow(clippy::expect_used)]
pub(crate) fn encoding(specification: &Specification) -> Encoding {
    specification.encoding().expect("the alphabet is valid")
}

/// Ten bits of a hash over the key, as two characters.
fn check_characters(key: &Key) -> [u8; CHECK_CHARS] {
    let mut hash = Sha256::new();
    hash.update(b"wastore/v1/recovery-check\0");
    hash.update(key.expose());
    let mut digest = Zeroizing::new([0; 32]);
    digest.copy_from_slice(&hash.finalize());
    let mut symbols = Zeroizing::new([0; RECOVERY_CHARS]);
    CROCKFORD.encode_mut(&digest[..], &mut symbols[..]);
    [symbols[0], symbols[1]]
}
