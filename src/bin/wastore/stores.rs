//! Opening the store and choosing its accounts.

use std::fs;
use std::path::Path;

use wastore::{Error, SqliteOptions, SqliteStore};

use crate::cli::Store;
use crate::failure::Failure;

impl Store {
    pub(crate) async fn open(&self) -> Result<SqliteStore, Failure> {
        self.choose(open(&self.store).await?).await
    }

    pub(crate) async fn open_read_only(&self) -> Result<SqliteStore, Failure> {
        self.choose(open_read_only(&self.store).await?).await
    }

    pub(crate) async fn choose(&self, store: SqliteStore) -> Result<SqliteStore, Failure> {
        let number = match self.account {
            Some(number) => number,
            None => match accounts(&store).await?[..] {
                [only] => only,
                [] => 1,
                _ => return Err(Failure::usage("the store has several accounts: choose one with --account")),
            },
        };
        Ok(store.account(number))
    }

    /// The chosen account, or all accounts.
    pub(crate) async fn accounts(&self, opened: &SqliteStore) -> Result<Vec<i32>, Failure> {
        match self.account {
            Some(number) => Ok(vec![number]),
            None => accounts(opened).await,
        }
    }
}

pub(crate) async fn accounts(store: &SqliteStore) -> Result<Vec<i32>, Failure> {
    Ok(store.accounts_in_use().await?)
}

/// Opens an existing store. Only commands that write records need the bot to be stopped.
pub(crate) async fn open(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteOptions::new().must_exist().lease_when_writing().open(path).await?)
}

/// # Errors
/// [`Error::NoVault`] if no account of the store has any records.
pub(crate) async fn in_use(store: SqliteStore) -> Result<SqliteStore, Failure> {
    if store.accounts_in_use().await?.is_empty() { Err(Error::NoVault.into()) } else { Ok(store) }
}

/// Opens an existing store without changing it.
pub(crate) async fn open_read_only(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteStore::open_read_only(path).await?)
}

/// Works on the chosen account, or on all accounts, and continues with the others if one fails.
/// Returns the exit code of the first failure, or 0.
pub(crate) async fn each_account<T>(
    store: &Store,
    opened: &SqliteStore,
    work: impl AsyncFn(SqliteStore) -> Result<T, Error>,
    mut tell: impl FnMut(i32, Result<T, String>) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut first = 0;
    let numbers = store.accounts(opened).await?;
    if numbers.is_empty() {
        return Err(Error::NoVault.into());
    }
    for number in numbers {
        let done = work(opened.account(number)).await.map_err(|error| {
            let Failure { text, code } = error.into();
            tell!("wastore: account {number}: {text}");
            first = if first == 0 { code } else { first };
            text
        });
        tell(number, done)?;
    }
    Ok(first)
}
