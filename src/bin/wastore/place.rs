//! Where a store is: a path, or the URL of a server.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser, ValueParserFactory};
use wastore::{PostgresOptions, printable_path};
use zeroize::Zeroizing;

use crate::failure::{Failure, REFUSED};

/// Where a store is, as the caller names it.
#[derive(Clone)]
pub(crate) enum Place {
    File(PathBuf),
    /// A URL, which may have a password in it.
    Server(Arc<Zeroizing<String>>),
}

impl Place {
    fn of(text: OsString) -> Self {
        match text.into_string() {
            Ok(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Self::Server(Arc::new(Zeroizing::new(url)))
            }
            Ok(path) => Self::File(path.into()),
            Err(path) => Self::File(path.into()),
        }
    }

    /// The path, for a command that works on files.
    ///
    /// # Errors
    /// `instead` says what to do with a server.
    pub(crate) fn file(&self, instead: &str) -> Result<&Path, Failure> {
        match self {
            Self::File(path) => Ok(path),
            Self::Server(_) => Err(Failure {
                text: format!("this command works on a file, not on a server: {instead}"),
                code: REFUSED,
            }),
        }
    }

    /// The path, if it is one.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) => None,
        }
    }
}

impl ValueParserFactory for Place {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        OsStringValueParser::new().map(Self::of).into()
    }
}

/// Shows no host and no user.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", printable_path(path)),
            Self::Server(url) => match PostgresOptions::new(url) {
                Ok(options) => write!(f, "{options:?}"),
                Err(_) => f.write_str("the server"),
            },
        }
    }
}
