//! The names that the inner store sees: blinded tokens, and reversible ones where the trait lists names back.
//!
//! ```text
//! parts(d; p1..pn) = u8 d ‖ u8 n ‖ (u16 len(pi) ‖ pi)*                 little-endian, injective
//! token(d; parts)  = base32(HMAC-SHA-256(token key, parts)[..15])       24 characters `a-z2-7`, 120 bits
//! index(d; parts)  = HMAC-SHA-256(token key, parts)                     32 bytes
//! listed(d; name)  = base32(AES-256-SIV(siv key, ad = u8 d, u16 len ‖ name ‖ zeros up to a multiple of 16))
//! ```
//!
//! The alphabet is safe for `LIKE`, for case-insensitive collations and for stores that join keys with `:` or `-`.

use std::ops::Deref;
use std::sync::LazyLock;

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use data_encoding::{Encoding, Specification};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

use super::keys::LookupKeys;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::secret::encoding;

/// The meaning of a token. Numbers are part of the format and never reused.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Domain {
    User = 1,
    SessionAddress = 2,
    IdentityAddress = 3,
    BareSessionAddress = 4,
    SenderKey = 5,
    Collection = 6,
    MutationIndex = 7,
    Group = 8,
    Lid = 9,
    PhoneNumber = 10,
    BaseKeyRow = 11,
    BaseKeyValue = 12,
    DeviceListUser = 13,
    GroupMetadata = 14,
    SentMessage = 15,
    PendingInbound = 16,
    MessageSecret = 17,
    SnapshotName = 18,
    BareIdentityAddress = 19,
    DeviceJid = 20,
    TcTokenJid = 21,
    CacheNamespace = 22,
    CacheKey = 23,
    MessageSecretBlock = 30,
}

/// The longest part of a key, in bytes.
pub(crate) const MAX_PART_BYTES: usize = u16::MAX as usize;
/// The content of key columns whose part went into a merged token. Some databases forbid empty keys.
pub(in crate::encrypt) const UNUSED: &str = "x";
const TOKEN_CHARS: usize = 24;
const TOKEN_BYTES: usize = 15;
const SIV_TAG_BYTES: usize = 16;

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut base32 = Specification::new();
    base32.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    encoding(&base32)
});

/// A blinded lookup key, kept on the stack: one token, or `token@token` for a Signal address.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    text: [u8; 2 * TOKEN_CHARS + 1],
    len: usize,
}

impl Token {
    fn single(mac: &[u8; 32]) -> Self {
        let mut token = Self { text: [0; 2 * TOKEN_CHARS + 1], len: TOKEN_CHARS };
        BASE32.encode_mut(&mac[..TOKEN_BYTES], &mut token.text[..TOKEN_CHARS]);
        token
    }

    /// [`UNUSED`].
    pub(in crate::encrypt) fn unused() -> Self {
        let mut token = Self { text: [0; 2 * TOKEN_CHARS + 1], len: UNUSED.len() };
        token.text[..UNUSED.len()].copy_from_slice(UNUSED.as_bytes());
        token
    }

    fn joined(user: &[u8; 32], address: &[u8; 32]) -> Self {
        let mut token = Self::single(user);
        token.text[TOKEN_CHARS] = b'@';
        BASE32.encode_mut(&address[..TOKEN_BYTES], &mut token.text[TOKEN_CHARS + 1..]);
        token.len = token.text.len();
        token
    }
}

impl Deref for Token {
    type Target = str;

    fn deref(&self) -> &str {
        // The bytes come from an ASCII alphabet, so the default, an empty string, is never returned.
        std::str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

/// The part of a Signal address before the first `@` or `:`, and whether there was one. Addresses are `user@server` or
/// `user:device@server` (`wacore` 0.7.0, `SignalStore::has_signal_state_for_user`).
pub(crate) fn user_of(address: &str) -> (&str, bool) {
    match address.find(['@', ':']) {
        Some(end) => (&address[..end], true),
        None => (address, false),
    }
}

impl LookupKeys {
    /// `token(domain; parts)`.
    pub(crate) fn token(&self, record: Record, domain: Domain, parts: &[&str]) -> Result<Token> {
        Ok(Token::single(&self.mac(record, domain, parts.iter().map(|part| part.as_bytes()))?))
    }

    /// `index(domain; name, bytes)`.
    pub(crate) fn token_bytes(&self, record: Record, domain: Domain, parts: &[&[u8]]) -> Result<[u8; 32]> {
        self.mac(record, domain, parts.iter().copied())
    }

    /// The stored address of an identity, a session or a sender key.
    ///
    /// Sessions and identities get `token(user)@token(address)`, so that the inner store's prefix query still finds all
    /// of a user's. Both are in the session table, under domains of their own. The query never finds an address without
    /// a separator. Such an address gets one token, as sender keys do.
    pub(crate) fn address(&self, record: Record, address: &str) -> Result<Token> {
        let (full, bare) = match record {
            Record::Identity => (Domain::IdentityAddress, Domain::BareIdentityAddress),
            Record::Session => (Domain::SessionAddress, Domain::BareSessionAddress),
            _ => return self.token(record, Domain::SenderKey, &[address]),
        };
        match user_of(address) {
            (user, true) => {
                let user = self.mac(record, Domain::User, [user.as_bytes()].into_iter())?;
                let address = self.mac(record, full, [address.as_bytes()].into_iter())?;
                Ok(Token::joined(&user, &address))
            }
            (_, false) => self.token(record, bare, &[address]),
        }
    }

    /// `listed(domain; name)`: deterministic, and reversed by [`LookupKeys::decrypt_name`].
    pub(crate) fn encrypt_name(&self, record: Record, domain: Domain, name: &str) -> Result<String> {
        let length = u16::try_from(name.len()).map_err(|_| too_long(record))?;
        let padded = (2 + name.len()).next_multiple_of(16);
        let mut buffer = Vec::with_capacity(SIV_TAG_BYTES + padded);
        buffer.resize(SIV_TAG_BYTES, 0);
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(name.as_bytes());
        buffer.resize(SIV_TAG_BYTES + padded, 0);
        let (tag, body) = buffer.split_at_mut(SIV_TAG_BYTES);
        let sealed = Aes256Siv::new((&self.siv).into()).encrypt_inout_detached([[domain as u8]], body.into());
        tag.copy_from_slice(&sealed.map_err(|_| Error::Encode { record })?);
        Ok(BASE32.encode(&buffer))
    }

    /// The name behind a token of [`LookupKeys::encrypt_name`].
    ///
    /// # Errors
    /// [`Error::Tampered`] if this vault did not make the token for this domain.
    pub(crate) fn decrypt_name(&self, record: Record, domain: Domain, token: &str) -> Result<String> {
        let tampered = || Error::Tampered { record };
        // The length of a tag and the longest name, in base32.
        if token.len() > BASE32.encode_len(SIV_TAG_BYTES + (2 + MAX_PART_BYTES).next_multiple_of(16)) {
            return Err(tampered());
        }
        let mut sealed = BASE32.decode(token.as_bytes()).map_err(|_| tampered())?;
        let (tag, body) = sealed.split_first_chunk_mut::<SIV_TAG_BYTES>().ok_or_else(tampered)?;
        Aes256Siv::new((&self.siv).into())
            .decrypt_inout_detached([[domain as u8]], body.into(), (&*tag).into())
            .map_err(|_| tampered())?;
        let (length, rest) = body.split_first_chunk::<2>().ok_or_else(tampered)?;
        let name = rest.get(..usize::from(u16::from_le_bytes(*length))).ok_or_else(tampered)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| tampered());
        sealed.zeroize();
        name
    }

    fn mac<'p>(
        &self,
        record: Record,
        domain: Domain,
        parts: impl ExactSizeIterator<Item = &'p [u8]>,
    ) -> Result<[u8; 32]> {
        mac_parts(&self.token, record, domain, parts)
    }
}

/// HMAC over `parts(domain; parts)`.
pub(crate) fn mac_parts<'p>(
    key: &Hmac<Sha256>,
    record: Record,
    domain: Domain,
    parts: impl ExactSizeIterator<Item = &'p [u8]>,
) -> Result<[u8; 32]> {
    let mut mac = key.clone();
    // Every caller has one to three parts.
    mac.update(&[domain as u8, parts.len() as u8]);
    for part in parts {
        let length = u16::try_from(part.len()).map_err(|_| too_long(record))?;
        mac.update(&length.to_le_bytes());
        mac.update(part);
    }
    Ok(mac.finalize().into_bytes().into())
}

fn too_long(record: Record) -> Error {
    Error::InputTooLong { record, what: "key", limit: MAX_PART_BYTES }
}
