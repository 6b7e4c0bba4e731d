//! Secrets that open a vault. None of them can be cloned, printed or compared by accident; all are wiped when dropped.

use std::fmt;
use std::io::Read;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use data_encoding::{Encoding, Specification};
use sha2::{Digest, Sha256};
use unicode_normalization::{UnicodeNormalization, is_nfc};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::json::WipingBuffer;
use crate::printable::is_printable;

/// A passphrase.
///
/// It is the same whichever way it comes in. These are the rules, for every constructor and for every way that the command reads
/// one:
///
/// 1. UTF-16 with a byte order mark, as some editors of Windows write it, is read as the text that it is.
/// 2. A byte order mark at the beginning is left out.
/// 3. One line break at the end is left out, LF or CR LF. Any other white space stays.
/// 4. Text is brought into Unicode's normalization form C, as RFC 8265 has it, so that a letter with an accent is the same whether
///    a keyboard sends it as one character or as two.
/// 5. Bytes that are no text are taken as they are.
///
/// Earlier builds had other rules for each way. A vault that was created by those still opens: if the passphrase does not open
/// it, the same bytes are tried as they were read then, as long as that costs no more than [`KdfLimits`](crate::KdfLimits) allow.
pub struct Passphrase {
    bytes: Zeroizing<Vec<u8>>,
    /// As earlier builds read the same bytes; empty for most passphrases.
    older: Vec<Zeroizing<Vec<u8>>>,
}

impl Passphrase {
    /// The longest passphrase: 1 MiB.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Takes the passphrase over and wipes it when dropped. Hand over the only copy, not a clone.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it is empty or longer than [`Passphrase::MAX_BYTES`].
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
    /// [`Error::File`] if the file cannot be read, or if others than its owner can read it: the rule is that of [`Key::from_file`].
    /// [`Error::InvalidInput`] as in [`Passphrase::new`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "passphrase")?)
    }

    /// Reads a passphrase to the end of a pipe, a socket or a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::InvalidInput`] as in [`Passphrase::new`].
    pub fn from_reader(reader: impl Read) -> Result<Self> {
        let mut bytes = read_to_end(reader, "passphrase", Self::MAX_BYTES + 2)?;
        Self::new(std::mem::take(&mut *bytes))
    }

    /// Reads a passphrase from an environment variable.
    ///
    /// Other processes of the same user can read it as well, and children inherit it: prefer
    /// [`Passphrase::from_file`] with a file from `systemd`'s `LoadCredential=`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the variable is not set, or as in [`Passphrase::new`].
    pub fn from_env(name: &str) -> Result<Self> {
        let value = std::env::var_os(name).ok_or(invalid("passphrase", "is not in the environment variable given"))?;
        Self::new(value.into_encoded_bytes())
    }

    /// `true` if it is one line of text, which a person can type. For rules about new passphrases.
    pub fn can_be_typed(&self) -> bool {
        std::str::from_utf8(&self.bytes)
            .is_ok_and(|text| text.chars().all(|character| !character.is_control() || character == '\t'))
    }

    /// The number of visible characters, those that are repeated in a row once; of bytes, if it is no text. For rules about new
    /// passphrases.
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

    /// The ways to read it: the right one, and those of earlier builds.
    pub(crate) fn readings(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let count = 1 + self.older.len();
        (0..count).map(|number| number.checked_sub(1).map_or(&self.bytes[..], |older| &self.older[older]))
    }

    /// As an earlier build read it.
    #[cfg(test)]
    pub(crate) fn as_read_earlier(bytes: &[u8]) -> Self {
        Self { bytes: Zeroizing::new(bytes.to_vec()), older: vec![] }
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn duplicate(&self) -> Self {
        Self { bytes: self.bytes.clone(), older: self.older.clone() }
    }
}

/// A 32-byte key with full entropy: for machines, and for the further accounts of one process.
pub struct Key {
    bytes: Box<Zeroizing<[u8; 32]>>,
    /// Why it must not open anything from now on, if it came from a file that holds no random bytes.
    weakness: Option<&'static str>,
}

impl Key {
    /// Takes the key over and wipes `bytes`.
    pub fn from_bytes(bytes: &mut [u8; 32]) -> Self {
        let mut key = Self::zeroed();
        key.bytes.copy_from_slice(bytes);
        bytes.zeroize();
        key
    }

    /// Returns a new key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`Error::Random`] if there is no such generator.
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
    /// [`Error::File`] if the file cannot be read. Also if others can read it: a file must belong to the user of the process
    /// and have mode 0600 or less, or to root and have 0640 or less, which is the rule of PostgreSQL for the key of its server
    /// (<https://www.postgresql.org/docs/current/ssl-tcp.html>).
    ///
    /// [`Error::InvalidInput`] if it holds neither. A key of bytes that cannot be random, because they are text or a few values
    /// over and over, opens what it opened before, and [`Vault::create`](crate::Vault::create) and
    /// [`Vault::add_slot`](crate::Vault::add_slot) refuse it with the same error.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "key")?)
    }

    /// Reads a key to the end of a pipe, a socket or a file: 32 bytes, or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::InvalidInput`] as in [`Key::from_file`].
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
    /// [`Error::InvalidInput`] if it must not open anything from now on.
    pub(crate) fn refuse_weak(&self) -> Result<()> {
        self.weakness.map_or(Ok(()), |problem| Err(invalid("key file", problem)))
    }

    /// Why the bytes are not those of a random number generator, which makes such a key once in 10¹¹ times.
    fn find_weakness(&self) -> Option<&'static str> {
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

    /// Returns the bytes, for a [`KeyProvider`] that has to wrap them or a program that has to store them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) fn zeroed() -> Self {
        Self { bytes: Box::new(Zeroizing::new([0; 32])), weakness: None }
    }

    /// A second copy, for a key that goes two ways.
    pub(crate) fn duplicate(&self) -> Self {
        let mut key = Self { weakness: self.weakness, ..Self::zeroed() };
        key.bytes.copy_from_slice(self.expose());
        key
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 32] {
        &mut self.bytes
    }
}

/// Of 32 random bytes fewer are different once in 10²² times, and one is there more often once in 10¹¹ times.
const FEWEST_VALUES: usize = 13;
const MOST_REPEATED: u8 = 8;
/// More than a key has, also as UTF-16.
const MAX_KEY_TEXT: usize = 256;

/// A key to print and keep in a safe, which opens the vault when everything else is lost.
///
/// Its text is Crockford base32 (<https://www.crockford.com/base32.html>) in groups of four, ending in two check
/// characters: letters in any case, `O` reads as `0`, `I` and `L` as `1`. Anything else does not matter, be it spaces, dashes
/// or quotes of any kind, nor does a label before or after it, or text on other lines.
pub struct RecoveryKey(Key);

/// 256 bits in characters of five bits each.
const RECOVERY_CHARS: usize = 52;
const CHECK_CHARS: usize = 2;
/// More than a recovery key has, however it is typed.
const MAX_RECOVERY_TEXT: usize = 1 << 10;

impl RecoveryKey {
    /// Returns a new recovery key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`Error::Random`] if there is no such generator.
    pub fn generate() -> Result<Self> {
        Key::generate().map(Self)
    }

    /// Reads a recovery key as a person types it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a character is missing or mistyped; the check characters find almost all of these.
    pub fn parse(text: &str) -> Result<Self> {
        // Few enough that the check characters tell.
        let places = [text].into_iter().chain(text.lines());
        let mut found = places.filter_map(|text| {
            let symbols = || text.chars().filter(|character| character.is_alphanumeric());
            Self::of_symbols(symbols().rev(), true).or_else(|| Self::of_symbols(symbols(), false))
        });
        found
            .next()
            .ok_or(invalid("recovery key", "is mistyped: 54 letters and digits, of which the last two are a check"))
    }

    /// The key in the first characters, or, backwards, in the last ones.
    fn of_symbols(mut typed: impl Iterator<Item = char>, backwards: bool) -> Option<Self> {
        let mut symbols = Zeroizing::new([0; RECOVERY_CHARS + CHECK_CHARS]);
        for symbol in symbols.iter_mut() {
            *symbol = u8::try_from(typed.next()?).ok()?;
        }
        if backwards {
            symbols.reverse();
        }
        let (key_chars, check_chars) = symbols.split_at(RECOVERY_CHARS);
        // 52 characters hold 260 bits; the decoder insists that the last four are zero.
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

    /// Reads a recovery key from a file that holds nothing else but a label before it.
    ///
    /// # Errors
    /// [`Error::File`] as in [`Key::from_file`], [`Error::InvalidInput`] as in [`RecoveryKey::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_reader(open(path.as_ref(), "recovery key")?)
    }

    /// Reads a recovery key to the end of a pipe, a socket or a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::InvalidInput`] as in [`RecoveryKey::parse`].
    pub fn from_reader(reader: impl Read) -> Result<Self> {
        let bytes = read_to_end(reader, "recovery key", MAX_RECOVERY_TEXT)?;
        let bytes = normalized(&bytes).unwrap_or(bytes);
        Self::parse(std::str::from_utf8(&bytes).unwrap_or_default())
    }

    /// Returns the text to print: 13 groups of four characters and one of two, joined by dashes. It is the secret itself.
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

    /// A second copy, for a key that is stored and shown at once.
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

/// An external keeper of keys: a KMS, an operating system's keyring, a hardware token.
///
/// It is asked once when a slot is made, and at every open once per provider slot until one fits; never while records are
/// read or written. Whoever can write the vault header chooses the hints, so `unwrap` must only accept what `wrap` made: an
/// authenticated ciphertext, or the name of an entry of one's own. Under a public-key scheme that anybody can encrypt to, a
/// writer could put a whole vault of his own in the place of yours.
#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
pub trait KeyProvider: Send + Sync {
    /// Keeps `key` and returns what is needed to get it back: the ciphertext of a KMS, or the name of a keyring entry.
    /// At most 256 bytes, stored in the clear in the vault header.
    async fn wrap(&self, key: &Key) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

    /// Returns the key for which [`KeyProvider::wrap`] once returned `hint`.
    async fn unwrap(&self, hint: &[u8]) -> Result<Key, Box<dyn std::error::Error + Send + Sync>>;
}

/// What a vault is created or opened with.
#[non_exhaustive]
pub enum Secret {
    /// A passphrase, stretched with Argon2id.
    Passphrase(Passphrase),
    /// A raw key of 32 bytes.
    Key(Key),
    /// A printed recovery key.
    Recovery(RecoveryKey),
    /// A key kept elsewhere.
    Provider(Arc<dyn KeyProvider>),
}

impl Secret {
    /// A second copy, for a secret that opens several vaults. There is no `Clone`, so that copies are made on purpose only.
    pub fn duplicate(&self) -> Self {
        match self {
            Secret::Passphrase(passphrase) => Secret::Passphrase(passphrase.duplicate()),
            Secret::Key(key) => Secret::Key(key.duplicate()),
            Secret::Recovery(key) => Secret::Recovery(key.duplicate()),
            Secret::Provider(provider) => Secret::Provider(provider.clone()),
        }
    }
}

impl From<Passphrase> for Secret {
    fn from(passphrase: Passphrase) -> Self {
        Secret::Passphrase(passphrase)
    }
}

impl From<Key> for Secret {
    fn from(key: Key) -> Self {
        Secret::Key(key)
    }
}

impl From<RecoveryKey> for Secret {
    fn from(key: RecoveryKey) -> Self {
        Secret::Recovery(key)
    }
}

impl<P: KeyProvider + 'static> From<Arc<P>> for Secret {
    fn from(provider: Arc<P>) -> Self {
        Secret::Provider(provider)
    }
}

macro_rules! redacted_debug {
    ($($name:ident),+) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+ };
}
redacted_debug!(Passphrase, Key, RecoveryKey, Secret);

const fn invalid(what: &'static str, problem: &'static str) -> Error {
    Error::InvalidInput { what, problem }
}

/// What the rules of [`Passphrase`] make of bytes, or `None` if that is the bytes themselves.
fn normalized(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let wide = from_utf16(bytes);
    let (text, is_wide) = match &wide {
        Some(text) => (text.as_str(), true),
        None => match std::str::from_utf8(bytes) {
            Ok(text) => (text, false),
            Err(_) => {
                let kept = without_line_break(bytes);
                return (kept.len() < bytes.len()).then(|| Zeroizing::new(kept.to_vec()));
            }
        },
    };
    let kept = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    let kept = kept.trim_start_matches(BYTE_ORDER_MARK);
    if !is_wide && kept.len() == bytes.len() && is_nfc(kept) {
        return None;
    }
    // The factor is Unicode's bound (https://www.unicode.org/faq/normalization.html), so that nothing is left behind by growing.
    let mut composed = Zeroizing::new(String::with_capacity(kept.len() * 3));
    composed.extend(kept.nfc());
    Some(Zeroizing::new(std::mem::take(&mut *composed).into_bytes()))
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of UTF-16 that begins with a byte order mark.
fn from_utf16(bytes: &[u8]) -> Option<Zeroizing<String>> {
    let unit = match bytes.first_chunk()? {
        [0xff, 0xfe] => u16::from_le_bytes,
        [0xfe, 0xff] => u16::from_be_bytes,
        _ => return None,
    };
    let (units, []) = bytes.as_chunks() else { return None };
    // Of two bytes at most three are made.
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for character in char::decode_utf16(units.iter().map(|bytes| unit(*bytes))) {
        text.push(character.ok()?);
    }
    Some(text)
}

fn without_line_break(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The ways in which earlier builds read these bytes: from a file, from a variable, and from a terminal, where control characters
/// were lost.
fn older_readings(given: Zeroizing<Vec<u8>>) -> Vec<Zeroizing<Vec<u8>>> {
    let line = without_line_break(&given);
    let mut typed = Zeroizing::new(Vec::with_capacity(line.len()));
    typed.extend(line.iter().filter(|byte| !byte.is_ascii_control()));
    let mut readings = vec![Zeroizing::new(line.to_vec()), typed, given];
    readings.dedup();
    readings
}

/// Opens a file with a secret, which may be a link or a pipe.
fn open(path: &Path, what: &'static str) -> Result<std::fs::File> {
    let open = || {
        let file = std::fs::File::open(path)?;
        #[cfg(not(target_arch = "wasm32"))]
        crate::private::check_readers(&file, path)?;
        Ok(file)
    };
    open().map_err(|error| {
        #[cfg(not(target_arch = "wasm32"))]
        let error = crate::filesystem::named(path, error);
        Error::File { what, source: error }
    })
}

/// Reads a secret into memory that is wiped, and refuses one of more than `limit` bytes.
fn read_to_end(reader: impl Read, what: &'static str, limit: usize) -> Result<Zeroizing<Vec<u8>>> {
    let (mut buffer, mut chunk) = (WipingBuffer::new(), Zeroizing::new([0; 4096]));
    let mut reader = reader.take(limit as u64 + 1);
    loop {
        match reader.read(&mut chunk[..]) {
            Ok(0) => break,
            Ok(read) => buffer.push(&chunk[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::File { what, source }),
        }
    }
    let bytes = buffer.into_bytes();
    if bytes.len() > limit { Err(invalid(what, "file is too long")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_key_survives_being_typed() {
        let key = RecoveryKey::generate().unwrap();
        let text = key.expose();
        assert_eq!(text.len(), 54 + 13);
        assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [[4; 13].as_slice(), &[2]].concat());
        let typed = [
            text.to_string(),
            text.to_lowercase(),
            text.replace('-', " "),
            text.replace('0', "o").replace('1', "L"),
            format!("  {}\n", text.replace('-', "")),
            format!("recovery key: \"{}\"", text.replace('-', "\u{2013}")),
            format!("{} (bot 1)", *text),
            format!("wastore: a warning\n{}\nthis recovery key opens the store and is not shown again\n", *text),
            text.replace('-', "\u{a0}"),
        ];
        for text in typed {
            assert_eq!(RecoveryKey::parse(&text).unwrap().0.expose(), key.0.expose());
        }
    }

    #[test]
    fn recovery_key_refuses_typing_errors() {
        let text = RecoveryKey::generate().unwrap().expose();
        for problem in ["", "0000", &text[1..], &text.replace('-', "U")] {
            assert!(matches!(RecoveryKey::parse(problem), Err(Error::InvalidInput { .. })));
        }
        // One wrong character: ten check bits let about one in a thousand through.
        let mut accepted = 0;
        for position in (0..text.len()).filter(|&at| text.as_bytes()[at] != b'-') {
            for symbol in "0123456789ABCDEFGHJKMNPQRSTVWXYZ".chars() {
                let mut wrong = text.to_string();
                wrong.replace_range(position..=position, symbol.encode_utf8(&mut [0; 4]));
                accepted += u32::from(wrong != **text && RecoveryKey::parse(&wrong).is_ok());
            }
        }
        assert!(accepted < 20, "{accepted} of 1674 single typing errors were accepted");
    }

    #[test]
    fn passphrase_limits() {
        assert!(Passphrase::new("").is_err());
        assert!(Passphrase::new(vec![0xff; Passphrase::MAX_BYTES]).is_ok());
        assert!(Passphrase::new(vec![b'a'; Passphrase::MAX_BYTES + 1]).is_err());
    }

    /// A file that only its owner can read.
    fn write(path: &Path, content: impl AsRef<[u8]>) {
        std::fs::write(path, content).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    #[test]
    fn secrets_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (content, expected) in
            [("word\n", "word"), ("word\r\n", "word"), ("word", "word"), (" a b \n\n", " a b \n")]
        {
            write(&path, content);
            assert_eq!(Passphrase::from_file(&path).unwrap().as_bytes(), expected.as_bytes());
        }
        write(&path, "\n");
        assert!(matches!(Passphrase::from_file(&path), Err(Error::InvalidInput { .. })));
        write(&path, vec![b'a'; Passphrase::MAX_BYTES + 3]);
        assert!(matches!(Passphrase::from_file(&path), Err(Error::InvalidInput { .. })));
        assert!(matches!(Passphrase::from_file(folder.path().join("none")), Err(Error::File { .. })));

        let key: Vec<u8> = (0..32u8).map(|position| position.wrapping_mul(position).wrapping_mul(93)).collect();
        let hex = hex::encode(&key);
        for content in [key.clone(), hex.clone().into_bytes(), format!("{}\n", hex.to_uppercase()).into_bytes()] {
            write(&path, content);
            assert_eq!(Key::from_file(&path).unwrap().expose(), &key[..]);
        }
        for content in ["", "ab", &hex.replace('0', "g"), &format!("{hex}ab")] {
            write(&path, content);
            assert!(matches!(Key::from_file(&path), Err(Error::InvalidInput { .. })));
        }
        let recovery = RecoveryKey::generate().unwrap();
        write(&path, format!("{}\n", *recovery.expose()));
        assert_eq!(RecoveryKey::from_file(&path).unwrap().0.expose(), recovery.0.expose());
        write(&path, [b' '; 2000]);
        assert!(matches!(RecoveryKey::from_file(&path), Err(Error::InvalidInput { .. })));
        // A device that never ends.
        #[cfg(unix)]
        for error in [
            Passphrase::from_file("/dev/zero").unwrap_err(),
            Key::from_file("/dev/zero").unwrap_err(),
            RecoveryKey::from_file("/dev/zero").unwrap_err(),
        ] {
            assert!(matches!(error, Error::InvalidInput { problem: "file is too long", .. }), "{error:?}");
        }
    }

    #[test]
    fn generated_keys_are_not_taken_for_weak_ones() {
        for _ in 0..10_000 {
            assert_eq!(Key::generate().unwrap().find_weakness(), None);
        }
    }

    #[test]
    fn text_is_normalized_and_other_bytes_are_not() {
        let bytes = |passphrase: &[u8]| Passphrase::new(passphrase).unwrap().as_bytes().to_vec();
        assert_eq!(bytes(b"hunter2\n"), b"hunter2");
        assert_eq!(bytes(b"hunter2\n\n"), b"hunter2\n");
        assert_eq!(bytes(b"hunter2\r\n"), b"hunter2");
        assert_eq!(bytes(b"\xff\xfeh\0\xe4\0\n\0"), "hä".as_bytes());
        assert_eq!(bytes(b"\xfe\xff\0h\0\xe4"), "hä".as_bytes());
        // Half a pair, and half a unit.
        assert_eq!(bytes(b"\xff\xfe\0\xd8"), b"\xff\xfe\0\xd8");
        assert_eq!(bytes(b"\xff\xfeh"), b"\xff\xfeh");
        assert_eq!(bytes("Schlu\u{308}ssel".as_bytes()), "Schlüssel".as_bytes());
        assert_eq!(bytes("Ångström".as_bytes()), "Ångström".as_bytes());
        // Three times as long, which is Unicode's bound.
        assert_eq!(bytes("\u{1d160}".repeat(1000).as_bytes()).len(), 12_000);
        for other in [b"u\xcc\x88\xff".as_slice(), b"\xfe\xfd", &[0]] {
            assert_eq!(bytes(other), other);
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let passphrase = Passphrase::new("hunter2").unwrap();
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
        assert_eq!(format!("{:?}", Secret::from(passphrase)), "Secret(..)");
        assert_eq!(format!("{:?}", Key::generate().unwrap()), "Key(..)");
    }
}
