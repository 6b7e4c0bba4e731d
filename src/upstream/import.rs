//! Imports an existing database of whatsapp-rust into a new encrypted store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_channel::Receiver;
use futures_util::stream::{FuturesUnordered, StreamExt};
use wacore::store::traits::Backend;

use super::remove::{self, RemovedSource};
use super::schema::TABLES;
use super::source::{Accounts, BATCHES_AHEAD, Message, next, read_source};
use crate::background;
use crate::encrypt::{OpenMode, Vault, VaultOptions};
use crate::error::{Error, NotRead, Result};
use crate::layer::Layer;
use crate::maintenance::open_account;
use crate::method::Record;
use crate::private;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::store::{OwnRows, OwnStore, Rows};
use crate::secret::Secret;
use crate::sqlite::files::{cannot_write, publish, refuse_taken};
use crate::sqlite::read_only::Quiet;
use crate::sqlite::{Durability, SqliteOptions};

/// Copies a database of whatsapp-rust's own SQLite store into a new encrypted [`SqliteStore`](crate::SqliteStore).
///
/// The source is only read, at one moment, and a bot may use it. But the copy misses what that bot
/// writes afterwards, and its Signal sessions advance without the copy: stop the bot first.
///
/// The target appears under its name when it is complete, was compared with the source record by
/// record, and is on the disk. Until then everything is in a folder `.wastore-import-…` beside it,
/// encrypted. A killed process leaves that folder behind; you may delete it.
///
/// ```no_run
/// # async fn import() -> Result<(), wastore::Error> {
/// use wastore::{Passphrase, SqliteStore, Vault};
/// use wastore::import::Import;
///
/// let secret = Passphrase::from_file("passphrase")?;
/// let report = Import::new().run("whatsapp.db", "wa.db", secret).await?;
/// println!("{report}");
///
/// let store = SqliteStore::open("wa.db").await?;
/// let vault = Vault::open(&store, Passphrase::from_file("passphrase")?).await?;
/// # drop(vault);
/// # Ok(())
/// # }
/// ```
///
/// Everything is copied except for what upstream's store does not read itself: sync keys and
/// collection versions in the format of its first releases, which the client asks for again, and
/// rows of accounts without a device. The age of sent messages, pending messages and base keys
/// counts from the import.
#[must_use = "an import does nothing until it is run"]
pub struct Import {
    accounts: Accounts,
    options: VaultOptions,
    remove_source: bool,
    progress: Observer,
}

/// Where an import goes.
enum Target {
    /// A new file.
    File(PathBuf),
    Store(Arc<dyn Rows>),
}

impl Target {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Store(_) => None,
        }
    }
}

impl Import {
    /// Imports the only account of the source.
    pub fn new() -> Self {
        Self {
            accounts: Accounts::Only,
            options: VaultOptions::new(),
            remove_source: false,
            progress: Observer::default(),
        }
    }

    /// Imports this account, which upstream calls the device id. It keeps its number:
    /// `SqliteStore::open(..).await?.account(number)`.
    pub fn account(mut self, number: i32) -> Self {
        self.accounts = Accounts::One(number);
        self
    }

    /// Imports all accounts into one file. The secret opens the vault of the lowest number. The
    /// other vaults open with `vault.account_key("account 2")` and so on, see
    /// [`Vault::account_key`]: without the lowest account they cannot be opened. Give each its own
    /// key slot with [`Vault::add_slot`] before you delete the lowest account.
    pub fn all_accounts(mut self) -> Self {
        self.accounts = Accounts::All;
        self
    }

    /// Settings of the new vaults.
    pub fn vault_options(mut self, options: VaultOptions) -> Self {
        self.options = options;
        self
    }

    /// Removes the source when the new store is complete: overwrites and deletes it and the files
    /// that SQLite keeps beside it. The report names other files that are left.
    ///
    /// Some copies cannot be reached. Flash memory, and file systems that copy on write, write new
    /// content elsewhere, so the disk may keep the old content. Backups, and copies in synced
    /// folders, do not change. Other names of the same file are empty afterwards.
    ///
    /// The source must not be open in any process, must have been closed properly, and must be
    /// imported completely. Nothing is removed if one of SQLite's files beside it is a link or has
    /// a second name.
    ///
    /// While it is overwritten, its name ends with `.removing-` and the id of the new store. If the
    /// process is killed then, run the same import again: with the source gone and the target
    /// complete, it finishes the removal. Its report then has no accounts and no records.
    pub fn remove_source(mut self) -> Self {
        self.remove_source = true;
        self
    }

    /// Calls `progress` after each batch of a few hundred records.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Imports the database at `source` into a new file at `target`, whose first key slot opens
    /// with `secret`.
    ///
    /// # Errors
    /// After an error there is no file at `target`, and the source is unchanged. The exceptions are
    /// [`Error::SourceNotRemoved`], and waiting for the disk that failed at the very end.
    ///
    /// * [`Error::NotUpstream`], [`Error::UpstreamTooOld`], [`Error::UpstreamTooNew`] if the source
    ///   cannot be imported; [`Error::NoSuchAccount`], [`Error::SeveralAccounts`] as they say;
    /// * [`Error::InvalidInput`] if the source is to be removed, but is in use or not imported
    ///   completely;
    /// * [`Error::SourceChanged`] if a bot began to use the source during the import, or used it
    ///   before it could be removed;
    /// * [`Error::SourceDamaged`]; [`Error::SourceHoldsMore`] if the source is to be removed, but
    ///   holds data that is not read;
    /// * [`Error::UnreadableRecord`] if a record of the source cannot be read,
    ///   [`Error::ImportUnequal`] if one came out differently;
    /// * [`Error::TargetExists`]; [`Error::File`] if the target's folder does not exist or cannot
    ///   be written;
    /// * [`Error::Sqlite`] if the source cannot be read, or there is no space for the target;
    /// * those of [`Vault::create`] about the secret.
    pub async fn run(
        &self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        secret: impl Into<Secret>,
    ) -> Result<ImportReport> {
        let (source, target) = (source.as_ref().to_owned(), target.as_ref().to_owned());
        if self.remove_source
            && target.symlink_metadata().is_ok()
            && let Some(file) = remove::interrupted(&source)
        {
            let store = SqliteOptions::new().lease_when_writing().open(&target).await?;
            return self.finish_removal(source, file, &store, secret.into()).await;
        }
        refuse_taken(&target)?;
        if self.remove_source && remove::uses(&source, &target) {
            return Err(Error::InvalidInput {
                what: "the target",
                problem: "has a name that SQLite or the removal uses for the source",
            });
        }
        self.read_and_write(source, Target::File(target), secret.into()).await
    }

    /// Imports the database at `source` into an open store, such as a `PostgresStore`. Each account keeps its number. The
    /// accounts of the store must hold nothing.
    ///
    /// If this is interrupted, the accounts do not open. Delete them, and import again.
    ///
    /// # Errors
    /// As [`Import::run`]. [`Error::InvalidInput`] if an account of the target holds something. [`Error::AccountInUse`],
    /// and those of the target's engine.
    pub async fn run_into(
        &self,
        source: impl AsRef<Path>,
        target: &impl OwnStore,
        secret: impl Into<Secret>,
    ) -> Result<ImportReport> {
        let (source, OwnRows(target)) = (source.as_ref().to_owned(), target.own_rows());
        if self.remove_source
            && let Some(file) = remove::interrupted(&source)
        {
            return self.finish_removal(source, file, &*target, secret.into()).await;
        }
        self.read_and_write(source, Target::Store(target), secret.into()).await
    }

    async fn read_and_write(&self, source: PathBuf, target: Target, secret: Secret) -> Result<ImportReport> {
        let quiet = Quiet::look(&source);
        if self.remove_source {
            self.check_removal(quiet.as_ref())?;
        }
        let still = quiet.clone();
        let changed = {
            let source = source.clone();
            move || quiet.as_ref().is_some_and(|quiet| !quiet.is_still(&source))
        };
        // Make nothing before the source is known to be one.
        let (to_writer, messages) = async_channel::bounded(BATCHES_AHEAD);
        let (accounts, is_to_be_removed, imported_from) = (self.accounts, self.remove_source, source.clone());
        let reader = background::unblock(move || {
            // If the writer is gone, no one needs the error.
            if let Err(error) = read_source(&source, accounts, is_to_be_removed, &to_writer) {
                to_writer.send_blocking(Message::Failed(error)).ok();
            }
        });
        let copy = target.path().map(Path::to_owned);
        let written = self.write(&messages, target, secret).await;
        messages.close();
        reader.await;
        // Rows that were read while another process wrote make no sense.
        let written = written.map_err(|error| if changed() { Error::SourceChanged } else { error });
        let (mut report, store_id) = written?;
        if self.remove_source {
            let remove = move || {
                let is_still = |file: &Path| still.is_some_and(|still| still.has_content_of(file));
                remove::remove(&imported_from, &store_id, is_still).inspect_err(|error| {
                    if matches!(error, Error::SourceChanged) {
                        // The new store misses the latest changes of the source.
                        copy.map(std::fs::remove_file);
                    }
                })
            };
            report.removed = Some(background::unblock(remove).await?);
        }
        Ok(report)
    }

    /// # Errors
    /// [`Error::InvalidInput`] if the source does not allow the removal.
    fn check_removal(&self, quiet: Option<&Quiet>) -> Result<()> {
        if quiet.is_none() {
            return Err(cannot_remove(
                "is in use, or was not closed properly: start and stop the bot, or remove it yourself",
            ));
        }
        if matches!(self.accounts, Accounts::One(_)) {
            return Err(cannot_remove("cannot be removed if only one of its accounts is imported: import all"));
        }
        Ok(())
    }

    /// Finishes the removal of a source whose import is complete.
    async fn finish_removal(
        &self,
        path: PathBuf,
        file: PathBuf,
        store: &dyn Rows,
        secret: Secret,
    ) -> Result<ImportReport> {
        // The secret proves that the store was made from this source. A server may hold accounts of others.
        let options = self.options.clone().mode(OpenMode::ReadOnly);
        let (mut id, mut refusal) = (None, Error::NoVault);
        for number in store.accounts_in_use().await? {
            match open_account(&OwnRows(store.account(number)), &options, secret.duplicate()).await {
                Ok(vault) => {
                    id = Some(vault.store_id());
                    break;
                }
                Err(error) => refusal = error,
            }
        }
        let id = id.ok_or(refusal)?;
        let removed = background::unblock(move || remove::finish(&path, &file, &id)).await?;
        Ok(ImportReport { accounts: vec![], records: vec![], not_read: vec![], removed: Some(removed) })
    }

    /// Also returns the id of the first vault.
    async fn write(
        &self,
        messages: &Receiver<Message>,
        target: Target,
        secret: Secret,
    ) -> Result<(ImportReport, [u8; 16])> {
        let Message::Accounts(accounts, not_read) = next(messages).await? else { return Err(Error::WorkerGone) };
        let target = match target {
            Target::Store(store) => {
                for (account, _) in &accounts {
                    let account = store.account(*account);
                    account.refuse_others().await?;
                    if account.count(|_| true).await? > 0 {
                        return Err(Error::InvalidInput {
                            what: "the target account",
                            problem: "holds something: delete it with `wastore accounts delete`, then import again",
                        });
                    }
                }
                return Ok(self.fill(messages, (accounts, not_read), &store, secret).await?.0);
            }
            Target::File(target) => target,
        };
        let unfinished = private::unfinished_folder(&target, ".wastore-import-").map_err(cannot_write)?;
        let (file, unfinished) = (unfinished.path().join("store.db"), Arc::new(unfinished));
        // Nothing syncs until `publish`, which syncs once at the end.
        let options =
            SqliteOptions::new().durability(Durability::Process).unfinished_in(&unfinished).lease_when_writing();
        let first: Arc<dyn Rows> = Arc::new(options.open(&file).await?);
        let (result, vaults) = self.fill(messages, (accounts, not_read), &first, secret).await?;
        first.checkpoint().await?;
        publish((vaults, first), unfinished, file, target).await?;
        Ok(result)
    }

    /// Copies and compares all accounts. Returns the vaults as well.
    async fn fill(
        &self,
        messages: &Receiver<Message>,
        (accounts, not_read): (Vec<(i32, u64)>, Vec<NotRead>),
        first: &Arc<dyn Rows>,
        secret: Secret,
    ) -> Result<((ImportReport, [u8; 16]), Vec<Vault>)> {
        let total = accounts.iter().map(|(_, records)| records).sum::<u64>();
        let mut vaults: Vec<Vault> = vec![];
        let mut secret = Some(secret);
        for (account, _) in &accounts {
            let store = first.account(*account);
            let secret = match (vaults.first(), secret.take()) {
                (Some(vault), _) => vault.account_key(&store.key_label()).into(),
                (None, Some(secret)) => secret,
                (None, None) => return Err(Error::WorkerGone),
            };
            let options = match vaults.first() {
                Some(first) => self.options.importing().derived_from(first),
                None => self.options.importing(),
            };
            vaults.push(options.create_in_backend(store, secret).await?);
        }
        let numbers = accounts.iter().map(|(account, _)| *account);
        let stores: Vec<(i32, Arc<dyn Backend>)> = numbers
            .zip(&vaults)
            .map(|(account, vault)| (account, vault.layer().layer(first.account(account))))
            .collect();
        let mut report = ImportReport {
            accounts: accounts.iter().map(|(account, _)| *account).collect(),
            records: vec![],
            not_read,
            removed: None,
        };
        for phase in [Phase::Copying, Phase::Comparing] {
            self.pass(phase, total, messages, &stores, &mut report).await?;
        }
        for vault in &vaults {
            vault.finish_import().await?;
        }
        let store_id = vaults.first().ok_or(Error::WorkerGone)?.store_id();
        Ok(((report, store_id), vaults))
    }

    /// Reads the source once.
    async fn pass(
        &self,
        phase: Phase,
        total: u64,
        messages: &Receiver<Message>,
        stores: &[(i32, Arc<dyn Backend>)],
        report: &mut ImportReport,
    ) -> Result<()> {
        let mut done = 0;
        let mut under_way = FuturesUnordered::new();
        loop {
            let message = next(messages).await?;
            match message {
                Message::Batch(account, batch) => {
                    let (record, rows) = (batch.record(), batch.len());
                    // Upstream's order of these rows may decide which one is the newest.
                    while record == Record::LidMapping && !under_way.is_empty() {
                        self.one_done(phase, total, &mut done, under_way.next().await, report)?;
                    }
                    let store = stores.iter().find(|(number, _)| *number == account);
                    let store = store.map(|(_, store)| store.clone()).ok_or(Error::WorkerGone)?;
                    under_way.push(async move {
                        let equal = match phase {
                            Phase::Comparing => batch.equals(&*store).await,
                            _ => batch.store(&*store).await.map(|()| true),
                        };
                        if equal? { Ok((record, rows)) } else { Err(Error::ImportUnequal { record }) }
                    });
                }
                Message::LeftOut(record, rows) => report.add(record, 0, rows),
                Message::EndOfPass => break,
                Message::Accounts(..) => return Err(Error::WorkerGone),
                Message::Failed(error) => return Err(error),
            }
            // Seals the next batch while this one is written.
            while under_way.len() >= BATCHES_AHEAD {
                self.one_done(phase, total, &mut done, under_way.next().await, report)?;
            }
        }
        while let Some(ended) = under_way.next().await {
            self.one_done(phase, total, &mut done, Some(ended), report)?;
        }
        Ok(())
    }

    fn one_done(
        &self,
        phase: Phase,
        total: u64,
        done: &mut u64,
        ended: Option<Result<(Record, u64)>>,
        report: &mut ImportReport,
    ) -> Result<()> {
        let Some((record, rows)) = ended.transpose()? else { return Ok(()) };
        if phase == Phase::Copying {
            report.add(record, rows, 0);
        }
        *done += rows;
        self.progress.tell(phase, *done, total);
        Ok(())
    }
}

impl Default for Import {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The result of an import. `Display` prints a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportReport {
    accounts: Vec<i32>,
    records: Vec<(Record, u64, u64)>,
    not_read: Vec<NotRead>,
    removed: Option<RemovedSource>,
}

impl ImportReport {
    /// The result of [`Import::remove_source`]; `None` if the source was not removed.
    pub fn removed_source(&self) -> Option<&RemovedSource> {
        self.removed.as_ref()
    }

    /// The content of the source beside the imported accounts: rows of other accounts, and tables
    /// that are not upstream's.
    pub fn not_read(&self) -> &[NotRead] {
        &self.not_read
    }

    /// The numbers of the imported accounts.
    pub fn accounts(&self) -> &[i32] {
        &self.accounts
    }

    /// How many records of a kind were copied, over all accounts.
    pub fn copied(&self, record: Record) -> u64 {
        self.find(record).0
    }

    /// How many records of a kind were left out, because upstream's store does not read them
    /// either.
    pub fn left_out(&self, record: Record) -> u64 {
        self.find(record).1
    }

    fn find(&self, record: Record) -> (u64, u64) {
        let found = self.records.iter().find(|(found, ..)| *found == record);
        found.map_or((0, 0), |(_, copied, left_out)| (*copied, *left_out))
    }

    fn add(&mut self, record: Record, copied: u64, left_out: u64) {
        match self.records.iter_mut().find(|(found, ..)| *found == record) {
            Some((_, sum, left)) => {
                *sum += copied;
                *left += left_out;
            }
            None => self.records.push((record, copied, left_out)),
        }
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>10} {:>10}", "record", "copied", "left out")?;
        let mut total = (0, 0);
        for (record, _) in TABLES {
            let (copied, left_out) = self.find(record);
            total = (total.0 + copied, total.1 + left_out);
            writeln!(f, "{:<20} {copied:>10} {left_out:>10}", record.name())?;
        }
        writeln!(f, "{:<20} {:>10} {:>10}", "all", total.0, total.1)?;
        self.not_read.iter().try_for_each(|not_read| writeln!(f, "not read: {not_read}"))
    }
}

const fn cannot_remove(problem: &'static str) -> Error {
    Error::InvalidInput { what: "the source", problem }
}
