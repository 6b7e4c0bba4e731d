//! Reads the database to import from, on a thread of its own.

use std::path::Path;

use async_channel::{Receiver, Sender};
use rusqlite::{Connection, OpenFlags};

use super::records::{self, Batch};
use super::schema;
use crate::error::{Error, NotRead, Result, SqliteProblem};
use crate::method::Record;
use crate::progress::Phase;
use crate::sqlite::files::refuse_pipes;
use crate::sqlite::read_only::{Quiet, connect_immutable};
use crate::sqlite::snapshot::STEPS_BETWEEN_LOOKS;

/// The accounts to import.
#[derive(Clone, Copy)]
pub(super) enum Accounts {
    Only,
    One(i32),
    All,
}

/// How many batches may be read and stored ahead of the one that is waited for.
pub(super) const BATCHES_AHEAD: usize = 4;

/// A message of the thread that reads the source.
pub(super) enum Message {
    /// The accounts with the number of their records, and the data that is not read.
    Accounts(Vec<(i32, u64)>, Vec<NotRead>),
    Batch(i32, Batch),
    LeftOut(Record, u64),
    EndOfPass,
    Failed(Error),
}

pub(super) async fn next(messages: &Receiver<Message>) -> Result<Message> {
    match messages.recv().await {
        Ok(Message::Failed(error)) => Err(error),
        Ok(message) => Ok(message),
        Err(_) => Err(Error::WorkerGone),
    }
}

/// Reads the source twice, both times at the same moment. Blocks its thread.
///
/// # Errors
/// [`Error::SourceDamaged`], [`Error::SourceHoldsMore`], and those of [`Import::run`](super::Import::run) about the source.
pub(super) fn read_source(
    path: &Path,
    accounts: Accounts,
    is_to_be_removed: bool,
    writer: &Sender<Message>,
) -> Result<()> {
    let read = || read_twice(path, accounts, is_to_be_removed, writer);
    read().map_err(|error| match error {
        // This error's advice is about an own store.
        Error::Sqlite { problem: SqliteProblem::Damaged, .. } => Error::SourceDamaged,
        error => error,
    })
}

fn read_twice(path: &Path, accounts: Accounts, is_to_be_removed: bool, writer: &Sender<Message>) -> Result<()> {
    let send = |message| writer.send_blocking(message).map_err(|_| Error::WorkerGone);
    let Source { connection, quiet } = Source::open(path)?;
    schema::restrict(&connection)?;
    // A long query ends when the writer is gone.
    let gone = writer.clone();
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || gone.is_closed()))?;
    let source = connection.unchecked_transaction()?;
    schema::check(&source, path)?;
    schema::check_integrity(&source, is_to_be_removed)?;
    let there = records::accounts(&source)?;
    let chosen = match accounts {
        Accounts::All => there,
        Accounts::One(number) if there.contains(&number) => vec![number],
        Accounts::One(number) => return Err(Error::NoSuchAccount(number)),
        Accounts::Only if there.len() > 1 => return Err(Error::SeveralAccounts(there.len())),
        Accounts::Only => there,
    };
    if chosen.is_empty() {
        return Err(Error::NotUpstream { path: path.to_owned(), found: "a database without an account" });
    }
    let counted = chosen.iter().map(|account| Ok((*account, records::count(&source, *account)?)));
    let counted = counted.collect::<Result<Vec<_>>>()?;
    let not_read = records::not_read(&source, &counted)?;
    if is_to_be_removed && !not_read.is_empty() {
        return Err(Error::SourceHoldsMore { not_read });
    }
    send(Message::Accounts(counted.clone(), not_read))?;
    for pass in [Phase::Copying, Phase::Comparing] {
        for (account, rows) in &counted {
            let emit = &mut |batch| send(Message::Batch(*account, batch));
            let left_out = records::read(&source, (*account, *rows), emit)?;
            if pass == Phase::Copying {
                left_out.into_iter().try_for_each(|(record, rows)| send(Message::LeftOut(record, rows)))?;
            }
        }
        if quiet.as_ref().is_some_and(|quiet| !quiet.is_still(path)) {
            return Err(Error::SourceChanged);
        }
        send(Message::EndOfPass)?;
    }
    Ok(())
}

/// The database to import from.
struct Source {
    connection: Connection,
    /// Set if no process had the source open at the beginning.
    quiet: Option<Quiet>,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let cannot_read = |source| Error::File { what: "source", source };
        let path = path.canonicalize().map_err(cannot_read)?;
        if path.is_dir() {
            return Err(Error::InvalidInput { what: "the source", problem: "is a folder" });
        }
        refuse_pipes(&path).map_err(cannot_read)?;
        let quiet = Quiet::look(&path);
        let connection = match quiet {
            Some(_) => connect_immutable(&path)?,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                Connection::open_with_flags(&path, flags)?
            }
        };
        Ok(Self { connection, quiet })
    }
}
