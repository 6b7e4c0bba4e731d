//! The forms of the hints of this crate's own key providers.

use data_encoding::HEXLOWER;

/// Before the random part of the name of a keyring's entry.
const KEYRING: &[u8] = b"keyring:";

/// The random part of the name of an entry.
pub(super) const NAME_BYTES: usize = 16;

#[cfg(feature = "keyring")]
pub(super) fn of_keyring(name: &[u8; NAME_BYTES]) -> Vec<u8> {
    [KEYRING, HEXLOWER.encode(name).as_bytes()].concat()
}

/// The user name of the keyring's entry to which a hint leads.
pub(crate) fn keyring_entry(store_id: &[u8; 16], hint: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(hint.strip_prefix(KEYRING)?).ok()?;
    let is_name = name.len() == 2 * NAME_BYTES && name.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    is_name.then(|| format!("{}/{name}", HEXLOWER.encode(store_id)))
}

/// The version of the Transit key with which a hint was encrypted. Other characters than those of such a hint would
/// need escapes in JSON.
pub(crate) fn transit_version(hint: &[u8]) -> Option<u32> {
    let is_plain = |byte: char| byte.is_ascii_alphanumeric() || matches!(byte, '+' | '/' | '=');
    let (version, ciphertext) = std::str::from_utf8(hint.strip_prefix(b"vault:v")?).ok()?.split_once(':')?;
    let is_number = version.bytes().all(|digit| digit.is_ascii_digit());
    version.parse().ok().filter(|_| is_number && ciphertext.chars().all(is_plain))
}
