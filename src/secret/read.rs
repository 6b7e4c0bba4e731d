//! Reads secrets and normalizes their text.

use std::io::Read;
use std::path::Path;

use unicode_normalization::{UnicodeNormalization, is_nfc};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::json::WipingBuffer;

/// The bytes by the rules of [`Passphrase`], or `None` if the rules change nothing.
pub(super) fn normalized(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
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
    let kept = &text[..without_line_break(text.as_bytes()).len()];
    let kept = kept.trim_start_matches(BYTE_ORDER_MARK);
    if !is_wide && kept.len() == bytes.len() && is_nfc(kept) {
        return None;
    }
    // Composed text is at most three times as long (https://www.unicode.org/faq/normalization.html), so the buffer
    // never grows and leaves no copy behind.
    let mut composed = Zeroizing::new(String::with_capacity(kept.len() * 3));
    composed.extend(kept.nfc());
    Some(Zeroizing::new(std::mem::take(&mut *composed).into_bytes()))
}

pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text of UTF-16 that begins with a byte order mark.
pub(super) fn from_utf16(bytes: &[u8]) -> Option<Zeroizing<String>> {
    let unit = match bytes.first_chunk()? {
        [0xff, 0xfe] => u16::from_le_bytes,
        [0xfe, 0xff] => u16::from_be_bytes,
        _ => return None,
    };
    let (units, []) = bytes.as_chunks() else { return None };
    // Two bytes of UTF-16 become at most three of UTF-8.
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for character in char::decode_utf16(units.iter().map(|bytes| unit(*bytes))) {
        text.push(character.ok()?);
    }
    Some(text)
}

pub(super) fn without_line_break(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// Opens a file with a secret, which may be a link or a pipe.
pub(super) fn open(path: &Path, what: &'static str) -> Result<std::fs::File> {
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

/// Opens a credential that systemd passes to a service.
pub(super) fn open_credential(name: &str, what: &'static str) -> Result<std::fs::File> {
    // systemd allows a few more characters, with which a name could lead out of the folder on other systems.
    if name.len() > 255 || !is_plain_name(name) {
        return Err(invalid("credential", "must be named as in `LoadCredential=`: letters, digits, `.`, `-` and `_`"));
    }
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| Path::new(folder).is_absolute());
    let folder = folder.ok_or(invalid(
        "credential",
        "was not passed to this process: set `LoadCredential=` in the unit of the service, and start it by systemd",
    ))?;
    open(&Path::new(&folder).join(name), what)
}

/// `true` for a name that leads nowhere else, in a folder or in a URL.
pub(super) fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.bytes().all(is_plain) && !matches!(name, "." | "..")
}

/// Reads a secret into memory that is wiped. Refuses a secret of more than `limit` bytes.
pub(super) fn read_to_end(reader: impl Read, what: &'static str, limit: usize) -> Result<Zeroizing<Vec<u8>>> {
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
    if bytes.len() > limit { Err(invalid(what, "is too long")) } else { Ok(bytes) }
}

pub(super) const fn invalid(what: &'static str, problem: &'static str) -> Error {
    Error::InvalidInput { what, problem }
}
