//! Opening the store and choosing its accounts.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use wastore::maintenance::{OwnRows, OwnStore};
use wastore::vault::HeaderInfo;
use wastore::{Error, PostgresOptions, PostgresStore, Secret, SqliteOptions, SqliteStore, Vault, VaultOptions};

use crate::cli::Store;
use crate::failure::{Failure, OTHER};
use crate::place::Place;

/// An open store of either engine: one of its accounts.
#[derive(Clone)]
pub(crate) enum AnyStore {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
}

impl OwnStore for AnyStore {
    fn own_rows(&self) -> OwnRows {
        match self {
            Self::Sqlite(store) => store.own_rows(),
            Self::Postgres(store) => store.own_rows(),
        }
    }
}

impl AnyStore {
    pub(crate) async fn account(&self, number: i32) -> Result<Self, Error> {
        Ok(match self {
            Self::Sqlite(store) => Self::Sqlite(store.account(number)),
            Self::Postgres(store) => Self::Postgres(store.account(number).await?),
        })
    }

    pub(crate) fn account_number(&self) -> i32 {
        match self {
            Self::Sqlite(store) => store.account_number(),
            Self::Postgres(store) => store.account_number(),
        }
    }

    pub(crate) async fn accounts_in_use(&self) -> Result<Vec<i32>, Error> {
        match self {
            Self::Sqlite(store) => store.accounts_in_use().await,
            Self::Postgres(store) => store.accounts_in_use().await,
        }
    }

    pub(crate) async fn create_vault(&self, options: &VaultOptions, secret: Secret) -> Result<Vault, Error> {
        match self {
            Self::Sqlite(store) => options.create(store, secret).await,
            Self::Postgres(store) => options.create(store, secret).await,
        }
    }

    pub(crate) async fn header(&self) -> Result<Option<HeaderInfo>, Error> {
        match self {
            Self::Sqlite(store) => HeaderInfo::read(store).await,
            Self::Postgres(store) => HeaderInfo::read(store).await,
        }
    }

    pub(crate) async fn delete_account(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.delete_account().await,
            Self::Postgres(store) => store.delete_account().await,
        }
    }
}

impl Store {
    pub(crate) async fn open(&self) -> Result<AnyStore, Failure> {
        self.choose(open(&self.store).await?).await
    }

    pub(crate) async fn open_read_only(&self) -> Result<AnyStore, Failure> {
        self.choose(open_read_only(&self.store).await?).await
    }

    pub(crate) async fn choose(&self, store: AnyStore) -> Result<AnyStore, Failure> {
        let number = match self.account {
            Some(number) => number,
            None => match store.accounts_in_use().await?[..] {
                [only] => only,
                [] => 1,
                _ => return Err(Failure::usage("the store has several accounts: choose one with --account")),
            },
        };
        Ok(store.account(number).await?)
    }

    /// The chosen account, or all accounts.
    pub(crate) async fn accounts(&self, opened: &AnyStore) -> Result<Vec<i32>, Failure> {
        match self.account {
            Some(number) => Ok(vec![number]),
            None => Ok(opened.accounts_in_use().await?),
        }
    }
}

/// The stores on servers that the command opened.
static ON_SERVERS: Mutex<Vec<PostgresStore>> = Mutex::new(Vec::new());

fn on_server(store: PostgresStore) -> AnyStore {
    ON_SERVERS.lock().unwrap_or_else(PoisonError::into_inner).push(store.clone());
    AnyStore::Postgres(store)
}

/// Gives the accounts back, so that a bot need not wait for them.
pub(crate) async fn leave_servers() {
    let stores = std::mem::take(&mut *ON_SERVERS.lock().unwrap_or_else(PoisonError::into_inner));
    for store in stores {
        // Otherwise they are free when their leases have run out.
        tokio::time::timeout(Duration::from_secs(5), store.close()).await.ok();
    }
}

/// The settings of a server. Its answer may take long: a command deletes whole accounts.
fn server(url: &str) -> Result<PostgresOptions, Error> {
    const ANSWER: Duration = Duration::from_secs(600);
    Ok(PostgresOptions::new(url)?.answer_timeout(ANSWER))
}

/// Opens an existing store. Only commands that write records need the bot to be stopped.
pub(crate) async fn open(place: &Place) -> Result<AnyStore, Failure> {
    match place {
        Place::File(path) => Ok(AnyStore::Sqlite(open_file(path).await?)),
        Place::Server(url) => Ok(on_server(server(url)?.migrate(false).open_without_lease(1).await?)),
    }
}

/// Opens a store for a new account, and makes it if it is not there.
pub(crate) async fn open_or_make(place: &Place) -> Result<AnyStore, Failure> {
    match place {
        Place::File(path) => Ok(AnyStore::Sqlite(SqliteOptions::new().lease_when_writing().open(path).await?)),
        Place::Server(url) => Ok(on_server(server(url)?.open_without_lease(1).await?)),
    }
}

/// Opens an existing file.
pub(crate) async fn open_file(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteOptions::new().must_exist().lease_when_writing().open(path).await?)
}

/// # Errors
/// [`Error::NoVault`] if no account of the store has any records.
pub(crate) async fn in_use(store: AnyStore) -> Result<AnyStore, Failure> {
    if store.accounts_in_use().await?.is_empty() { Err(Error::NoVault.into()) } else { Ok(store) }
}

/// The same for a file.
pub(crate) async fn file_in_use(store: SqliteStore) -> Result<SqliteStore, Failure> {
    in_use(AnyStore::Sqlite(store.clone())).await.map(|_| store)
}

/// Opens an existing store without changing it.
pub(crate) async fn open_read_only(place: &Place) -> Result<AnyStore, Failure> {
    match place {
        Place::File(path) => Ok(AnyStore::Sqlite(open_file_read_only(path).await?)),
        Place::Server(url) => Ok(on_server(server(url)?.open_read_only(1).await?)),
    }
}

/// Opens an existing file without changing it.
pub(crate) async fn open_file_read_only(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteStore::open_read_only(path).await?)
}

/// Works on the chosen account, or on all accounts, and continues with the others if one fails. If a key provider fails,
/// it is not asked for the others. Returns the exit code of the first failure, or 0.
pub(crate) async fn each_account<T>(
    store: &Store,
    opened: &AnyStore,
    work: impl AsyncFn(AnyStore) -> Result<T, Error>,
    mut tell: impl FnMut(i32, Result<T, String>) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut first = 0;
    let numbers = store.accounts(opened).await?;
    if numbers.is_empty() {
        return Err(Error::NoVault.into());
    }
    let mut is_provider_gone = false;
    for number in numbers {
        let done = match is_provider_gone {
            true => Err(Failure { text: "not opened, because the key provider failed".to_owned(), code: OTHER }),
            false => async { work(opened.account(number).await?).await }.await.map_err(|error| {
                is_provider_gone = matches!(error, Error::KeyProvider(_));
                error.into()
            }),
        };
        let done = done.map_err(|Failure { text, code }| {
            tell!("wastore: account {number}: {text}");
            first = if first == 0 { code } else { first };
            text
        });
        tell(number, done)?;
    }
    Ok(first)
}
