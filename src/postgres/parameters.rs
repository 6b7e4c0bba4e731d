//! The parameters behind the `?` of a URL: which there are, and why the others are refused. How their values are
//! encoded.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// A value of the URL.
type Value = Zeroizing<Vec<u8>>;

/// Each name with the words of its errors.
macro_rules! named {
    ($($name:literal),+ $(,)?) => { &[$(($name, concat!("the parameter `", $name, "` of the PostgreSQL URL"))),+] };
}

/// The same with the reason why it is refused.
macro_rules! refused {
    ($($name:literal: $problem:literal),+ $(,)?) => {
        &[$(($name, concat!("the parameter `", $name, "` of the PostgreSQL URL"), $problem)),+]
    };
}

/// The parameters that are read. Names and meanings are those of libpq
/// (<https://www.postgresql.org/docs/current/libpq-connect.html>).
const KNOWN: &[(&str, &str)] = named![
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "passfile",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

const REFUSED: &[(&str, &str, &str)] = refused![
    "client_encoding": "is always UTF8: leave it out",
    "fallback_application_name": "is not used: write `application_name`",
    "gssencmode": "is not supported: leave it out, the connection uses TLS",
    "hostaddr": "is not supported: write the address as the host, and have it in the server's certificate",
    "options": "is refused by poolers: set the values at the role instead, with ALTER ROLE … SET",
    "replication": "is for standbys: leave it out",
    "require_auth": "is not supported: leave it out, and write channel_binding=require instead",
    "requiressl": "is obsolete: write sslmode=verify-full",
    "service": "is not supported: write the settings of the service into the URL",
    "servicefile": "is not supported: write the settings of the service into the URL",
    "ssl_max_protocol_version": "is not supported: leave it out",
    "ssl_min_protocol_version": "is not supported: leave it out, TLS 1.2 is the oldest version that is spoken",
    "sslcertmode": "is not supported: leave it out, and name a certificate with sslcert and sslkey",
    "sslcompression": "is not supported, because compression weakens TLS: leave it out",
    "sslcrl": "is not supported: leave it out",
    "sslcrldir": "is not supported: leave it out",
    "sslkeylogfile": "would reveal the connection: leave it out",
    "sslnegotiation": "is not supported: leave it out",
    "sslpassword": "is not supported: use a key without a passphrase that only its owner can read",
    "sslsni": "is not supported: leave it out, the name of the host is sent",
];

const URL: &str = "the PostgreSQL URL";

/// The parameters of a URL that were not read yet.
pub(super) struct Parameters(Vec<(&'static str, &'static str, Value)>);

impl Parameters {
    /// Reads `name=value&name=value`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a parameter is unknown, refused or there twice.
    pub(super) fn parse(query: &str) -> Result<Self> {
        let mut found = Self(vec![]);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(invalid(URL, "has a parameter without a value: write name=value"));
            };
            if value.contains('=') {
                return Err(invalid(URL, "has a parameter with a second `=`: write it as %3D in a value"));
            }
            if let Some((_, what, problem)) = REFUSED.iter().find(|(refused, ..)| *refused == name) {
                return Err(invalid(what, problem));
            }
            // The text does not repeat the name: a part of a password may stand in its place.
            let Some((name, what)) = KNOWN.iter().find(|(known, _)| *known == name) else {
                return Err(invalid(
                    URL,
                    "has a parameter that is not known: check its spelling; `&` in a password is written as %26",
                ));
            };
            found.add(name, what, decoded(value, what)?)?;
        }
        Ok(found)
    }

    fn add(&mut self, name: &'static str, what: &'static str, value: Value) -> Result<()> {
        if self.0.iter().any(|(other, ..)| *other == name) {
            return Err(invalid(what, "is there twice: remove one"));
        }
        self.0.push((name, what, value));
        Ok(())
    }

    /// Takes a parameter, with the words of its errors.
    pub(super) fn take(&mut self, name: &str) -> Option<(&'static str, Value)> {
        let place = self.0.iter().position(|(found, ..)| *found == name)?;
        let (_, what, value) = self.0.swap_remove(place);
        Some((what, value))
    }

    /// Takes one that is text.
    pub(super) fn take_text(&mut self, name: &str) -> Result<Option<(&'static str, String)>> {
        let Some((what, value)) = self.take(name) else { return Ok(None) };
        Ok(Some((what, text(value, what)?)))
    }

    /// Takes one that is a path.
    pub(super) fn take_path(&mut self, name: &str) -> Result<Option<PathBuf>> {
        match self.take_text(name)? {
            Some((what, path)) if path.is_empty() => Err(invalid(what, "is empty: name a file")),
            found => Ok(found.map(|(_, path)| PathBuf::from(path))),
        }
    }

    /// Takes one that is a number within bounds, which `problem` names.
    pub(super) fn take_number(
        &mut self,
        name: &str,
        bounds: std::ops::RangeInclusive<u32>,
        problem: &'static str,
    ) -> Result<Option<u32>> {
        let Some((what, value)) = self.take_text(name)? else { return Ok(None) };
        // `parse` alone would take a `+`.
        let number = value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten();
        match number {
            Some(number) if bounds.contains(&number) => Ok(Some(number)),
            _ => Err(invalid(what, problem)),
        }
    }

    /// Takes one that is one of some words.
    pub(super) fn take_word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, Result<T, &'static str>)],
        problem: &'static str,
    ) -> Result<Option<T>> {
        let Some((what, value)) = self.take_text(name)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, Ok(meaning))) => Ok(Some(*meaning)),
            Some((_, Err(reason))) => Err(invalid(what, reason)),
            None => Err(invalid(what, problem)),
        }
    }
}

pub(super) const fn invalid(what: &'static str, problem: &'static str) -> Error {
    Error::InvalidInput { what, problem }
}

/// Replaces each `%` and its two digits by their byte.
pub(super) fn decoded(encoded: &str, what: &'static str) -> Result<Zeroizing<Vec<u8>>> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).map(|digit| digit as u8);
    // Decoded text is not longer, so the buffer never grows and leaves no copy behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(encoded.len()));
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(invalid(what, "has a `%` without two hexadecimal digits: write %25 for a `%`")),
            },
            byte => byte,
        };
        if byte == 0 {
            return Err(invalid(what, "contains a zero byte"));
        }
        plain.push(byte);
    }
    Ok(plain)
}

/// Bytes that have to be text.
pub(super) fn text(mut bytes: Zeroizing<Vec<u8>>, what: &'static str) -> Result<String> {
    String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        invalid(what, "is not valid UTF-8")
    })
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(name, _)| *name).chain(REFUSED.iter().map(|(name, ..)| *name))
}
