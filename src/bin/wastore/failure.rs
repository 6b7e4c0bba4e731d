//! A failure, in words and as an exit code.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use wastore::postgres::PostgresProblem;
use wastore::sqlite::SqliteProblem;
use wastore::{Error, printable_path};

pub(crate) const INTERRUPTED: u8 = 130;
pub(crate) const OTHER: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const WRONG_SECRET: u8 = 3;
pub(crate) const DAMAGED: u8 = 4;
pub(crate) const REFUSED: u8 = 5;

/// How a command ends.
pub(crate) type Done = Result<ExitCode, Failure>;
pub(crate) const DONE: Done = Ok(ExitCode::SUCCESS);

/// A failure: its message and its exit code.
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn usage(text: &str) -> Self {
        Self { text: text.to_owned(), code: USAGE }
    }

    pub(crate) fn other(error: impl std::error::Error) -> Self {
        Self { text: error.to_string(), code: OTHER }
    }

    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self { text: format!("{what}: {}: {error}", printable_path(path)), code: REFUSED }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let own = match &error {
            Error::Store(inner) => Error::downcast_ref(inner).unwrap_or(&error),
            error => error,
        };
        let code = code_of(own);
        // The sources hold the words of the operating system or SQLite.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            // Some errors already end with their source.
            let inner_text = inner.to_string();
            if !text.ends_with(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        // Four times the memory that is asked for.
        if let Error::KdfOutOfBounds { memory_kib: memory @ 0x4_0001..=0x10_0000, passes, lanes: ..=16, .. } = own
            && u64::from(*memory) * u64::from(*passes) <= 4 << 20
        {
            text.push_str("; with `--kdf-memory 256`, this command allows 1 GiB for a passphrase");
        }
        Self { text, code }
    }
}

/// The exit code of an error.
fn code_of(error: &Error) -> u8 {
    match error {
        Error::WrongSecret | Error::KeyNotKept(_) | Error::NoSlotOfProvider => WRONG_SECRET,
        Error::HeaderDamaged(_)
        | Error::HeaderMissing
        | Error::HeaderTampered
        | Error::HeaderRolledBack
        | Error::RollbackDetected
        | Error::ForkDetected
        | Error::DeviceMissing
        | Error::Tampered { .. }
        | Error::Plaintext { .. }
        | Error::PlaintextDevice
        | Error::UnknownEpoch { .. }
        | Error::DamagedRecords { .. }
        | Error::SchemaAltered { .. }
        | Error::RowsMissed { .. }
        | Error::Malformed { .. }
        | Error::Sqlite { problem: SqliteProblem::Damaged, .. }
        | Error::Postgres { problem: PostgresProblem::Damaged, .. } => DAMAGED,
        Error::NotUpstream { .. }
        | Error::UpstreamTooOld { .. }
        | Error::UpstreamTooNew { .. }
        | Error::NoSuchAccount(_)
        | Error::SeveralAccounts(_)
        | Error::SourceDamaged
        | Error::SourceHoldsMore { .. }
        | Error::TargetExists { .. }
        | Error::ForeignFile { .. }
        | Error::ForeignSchema { .. }
        | Error::AccountMoved { .. }
        | Error::CopyUnfinished { .. }
        | Error::UnsupportedVersion { .. }
        | Error::VaultExists
        | Error::NoVault
        | Error::OtherAccounts { .. }
        | Error::StoreVanished
        | Error::AnchorMissing
        | Error::WrongContext
        | Error::WrongStore
        | Error::AccountsNotCovered { .. }
        | Error::ImportIncomplete
        | Error::File { .. } => REFUSED,
        _ => OTHER,
    }
}
