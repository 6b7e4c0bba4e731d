//! The password of a connection, and the files that it comes from.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::options::PostgresOptions;
use super::parameters::invalid;
use super::url::{Host, Target};
use crate::error::{Error, Result};
use crate::json::WipingBuffer;
use crate::{filesystem, private};

const PASSWORD: &str = "PostgreSQL password";
const KEY: &str = "PostgreSQL client key";
const LONGEST_PASSWORD: u64 = 16 << 10;
const LONGEST_FILE: u64 = 1 << 20;

/// Where libpq looks for a server if no host is named. A file of passwords names these `localhost`.
const DEFAULT_FOLDERS: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

type Bytes = Zeroizing<Vec<u8>>;

/// The passwords for the hosts of a URL, as the files have them now.
pub(super) enum Passwords {
    /// In the URL, or nowhere.
    OfUrl,
    /// One for all hosts.
    Same(Bytes),
    /// The lines of a file in libpq's format.
    Lines(Bytes),
}

impl Passwords {
    /// Reads the file again, because a password may have been rotated since the last connection.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or others can read it. [`Error::InvalidInput`] if it holds no password.
    pub(super) fn read(options: &PostgresOptions) -> Result<Self> {
        if let Some(path) = &options.password_file {
            let content = read(path, PASSWORD, LONGEST_PASSWORD)?;
            let password = without_line_break(&content);
            if password.is_empty() || password.contains(&0) {
                return Err(invalid("the PostgreSQL password file", "is empty or contains a zero byte"));
            }
            return Ok(Self::Same(Zeroizing::new(password.to_vec())));
        }
        match &options.target.passfile {
            Some(path) => Ok(Self::Lines(read(path, PASSWORD, LONGEST_FILE)?)),
            None => Ok(Self::OfUrl),
        }
    }

    /// The password for a host, or `None` if there is none.
    pub(super) fn for_host(&self, target: &Target, host: &Host) -> Option<Bytes> {
        match self {
            Self::OfUrl => target.password.clone(),
            Self::Same(password) => Some(password.clone()),
            Self::Lines(content) => {
                let (host, port) = match host {
                    Host::Tcp { name, port } => (name.as_str(), port),
                    Host::Socket { folder, port } => (folder.to_str()?, port),
                };
                let host = if DEFAULT_FOLDERS.contains(&host) { "localhost" } else { host };
                let user = target.user.as_deref().unwrap_or_default();
                password_of(content, [host, &port.to_string(), &target.database, user])
            }
        }
    }
}

/// The password of the first line of a file in libpq's format whose four fields fit.
fn password_of(content: &[u8], wanted: [&str; 4]) -> Option<Bytes> {
    let lines = content.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for line in lines.filter(|line| !line.starts_with(b"#")) {
        let mut rest = line;
        let fits = wanted.iter().all(|wanted| {
            let Some((field, behind)) = field(rest) else { return false };
            rest = behind;
            field == b"*" || *unescaped(field) == wanted.as_bytes()
        });
        // A password may end at a `:` as well, and what stands behind it is ignored.
        let password = field(rest).map_or(rest, |(password, _)| password);
        if fits && !password.is_empty() {
            return Some(unescaped(password));
        }
    }
    None
}

/// A field, as it stands in the file, and what stands behind its `:`.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (place, byte) in line.iter().enumerate() {
        match byte {
            b':' if !escaped => return Some((&line[..place], &line[place + 1..])),
            byte => escaped = *byte == b'\\' && !escaped,
        }
    }
    None
}

/// A field without the `\` in front of its `:` and `\`.
fn unescaped(field: &[u8]) -> Bytes {
    let mut plain = Zeroizing::new(Vec::with_capacity(field.len()));
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            byte => plain.push(*byte),
        }
    }
    plain
}

/// Reads a file with the key of a client certificate, under the rules of password files.
pub(super) fn read_key(path: &Path) -> Result<Bytes> {
    read(path, KEY, LONGEST_FILE)
}

/// Reads a file that only its owner can read. A link may lead to it, as to the secrets of a container.
fn read(path: &Path, what: &'static str, limit: u64) -> Result<Bytes> {
    let open = || {
        // Opening a pipe would wait for its other end.
        if !path.metadata()?.is_file() {
            return Err(private::refused(path, "is not a regular file"));
        }
        let file = File::open(path)?;
        private::check_readers(&file, path)?;
        Ok(file)
    };
    let failed = |error| Error::File { what, source: filesystem::named(path, error) };
    let mut file = open().map_err(failed)?.take(limit + 1);
    let (mut content, mut chunk) = (WipingBuffer::new(), Zeroizing::new([0; 4096]));
    loop {
        match file.read(&mut chunk[..]) {
            Ok(0) => break,
            Ok(length) => content.push(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let content = content.into_bytes();
    if content.len() as u64 > limit { Err(failed(io::ErrorKind::FileTooLarge.into())) } else { Ok(content) }
}

fn without_line_break(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line))
}
