//! Copies accounts from store to store, whichever engines they are, without any key.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
#[cfg(feature = "sqlite")]
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join;
use sha2::{Digest, Sha256};

use crate::encrypt::{HeaderCopy, HeaderInfo};
use crate::error::{Error, Result};
use crate::method::Record;
#[cfg(feature = "sqlite")]
use crate::private;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::mark::{CopyId, Mark};
use crate::rows::store::{OwnRows, OwnStore, Rows};
use crate::rows::table::{MARK_ADDRESS, StoredValue, TABLES, Table, WholeRow};
#[cfg(feature = "sqlite")]
use crate::sqlite::{SqliteOptions, files};

/// Copies accounts from one store of this crate to another: between SQLite files, between PostgreSQL databases, or from
/// one engine to the other. Everything is copied as it is, so no key is needed, and the copy opens with the same
/// secrets.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use wastore::maintenance::StoreCopy;
/// use wastore::{Key, SqliteOptions, SqliteStore, Vault};
///
/// let old = SqliteStore::open(folder.path().join("old.db")).await?;
/// let key = Key::generate()?;
/// let secret = key.expose().to_vec();
/// # let mut secret: [u8; 32] = secret.try_into().unwrap();
/// Vault::create(&old, key).await?;
///
/// let new = SqliteOptions::new().lease_when_writing().open(folder.path().join("new.db")).await?;
/// StoreCopy::new().run(&old, &new).await?;
/// # new.close().await?;
///
/// let new = SqliteStore::open(folder.path().join("new.db")).await?;
/// Vault::open(&new, Key::from_bytes(&mut secret)).await?;
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// # One live account
/// Two live copies of an account use its message keys twice. So both accounts are held while the copy runs: stop the bot
/// first. (A source that was opened read-only is not held.) The target cannot be opened until the copy is complete and was compared with the source row by row. Before
/// that, the source is closed off: opening it fails with [`Error::AccountMoved`]. [`StoreCopy::keep_source`] leaves it
/// open.
///
/// A copy that was killed at any point continues if it is run again, also if the source changed in between.
#[must_use = "nothing is copied before it is run"]
pub struct StoreCopy {
    keep_source: bool,
    plaintext: bool,
    progress: Observer,
}

impl StoreCopy {
    /// A copy of encrypted accounts that closes their source off.
    pub fn new() -> Self {
        Self { keep_source: false, plaintext: false, progress: Observer::default() }
    }

    /// Does not close the source off. Delete one of the two before a client runs on the other.
    pub fn keep_source(mut self) -> Self {
        self.keep_source = true;
        self
    }

    /// Also copies accounts without a vault, whose keys are in plaintext. Otherwise they are refused.
    pub fn plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// Calls `progress` every few hundred rows.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Copies the account of `from` to that of `to`, which must hold nothing.
    ///
    /// If the two have different numbers, the vault stays bound to the old one: open the copy with
    /// [`VaultOptions::context`](crate::VaultOptions::context) `account N`.
    ///
    /// Open the target so that it takes no account by itself: with
    /// [`SqliteOptions::lease_when_writing`](crate::SqliteOptions::lease_when_writing) or
    /// `PostgresOptions::open_without_lease`.
    ///
    /// # Errors
    /// Until the source is closed off, an error leaves it as it was. Run the copy again to continue.
    ///
    /// * [`Error::NoSuchAccount`] if the source account holds nothing;
    /// * [`Error::InvalidInput`] if both are the same account, if the source has no vault and
    ///   [`plaintext`](Self::plaintext) was not called, if the target holds something else, or if the source was opened
    ///   read-only and [`keep_source`](Self::keep_source) was not called;
    /// * [`Error::AccountInUse`] if another process writes one of the two;
    /// * [`Error::AccountMoved`] and [`Error::CopyUnfinished`] if one of them is not the account to use;
    /// * [`Error::ImportIncomplete`] if the source is an unfinished import;
    /// * [`Error::CopyUnequal`] if the rows differ in the end: a bot wrote the source, or the target is faulty;
    /// * those of the two engines.
    pub async fn run(&self, from: &impl OwnStore, to: &impl OwnStore) -> Result<CopyReport> {
        let (OwnRows(from), OwnRows(to)) = (from.own_rows(), to.own_rows());
        self.copy(&from, &to).await
    }

    /// Copies every account of `from`, each to the same number in `to`. Returns a report for each.
    ///
    /// # Errors
    /// Those of [`StoreCopy::run`]. The accounts before the one that failed are complete.
    pub async fn run_all(&self, from: &impl OwnStore, to: &impl OwnStore) -> Result<Vec<CopyReport>> {
        let (OwnRows(from), OwnRows(to)) = (from.own_rows(), to.own_rows());
        let mut reports = vec![];
        for number in from.accounts_in_use().await? {
            reports.push(self.copy(&from.account(number), &to.account(number)).await?);
        }
        Ok(reports)
    }

    async fn copy(&self, from: &Arc<dyn Rows>, to: &Arc<dyn Rows>) -> Result<CopyReport> {
        let (account, target_account) = (from.account_number(), to.account_number());
        if from.identity() == to.identity() || (from.place().is_some() && from.place() == to.place()) {
            return Err(Error::InvalidInput { what: "the target", problem: "is the source: name another store" });
        }
        if from.is_read_only() && !self.keep_source {
            return Err(Error::InvalidInput {
                what: "the source",
                problem: "was opened read-only, so it cannot be closed off: keep it, or open it for writing",
            });
        }
        let (mut source, mut target) = (Held::take(&**from).await?, Held::take(&**to).await?);
        let report = |rows| CopyReport { account, target_account, rows, is_source_kept: self.keep_source };
        let Some(id) = self.begin(&source, &target).await? else { return Ok(report(target.rows().await?)) };
        target.set_mark(Mark::Unfinished(id)).await?;
        let (rows, mut done) = (source.rows().await?, 0);
        for table in &TABLES {
            let tell = |page| self.tell(Phase::Copying, &mut done, page, rows);
            Pair::of(&source, &target, table).make_equal(tell).await?;
        }
        // Everything before this call is on the disk then, and on the standby that the server waits for.
        target.set_mark(Mark::Unfinished(id)).await?;
        done = 0;
        self.are_equal(&source, &target, |page| self.tell(Phase::Comparing, &mut done, page, rows)).await?;
        // In this order, so that at no moment both accounts can be opened.
        if !self.keep_source {
            source.set_mark(Mark::Moved(id)).await?;
            // The header may have changed since it was compared, because that needs no lease. Now it does not any more.
            for table in TABLES.iter().filter(|table| table.record == Record::SenderKey) {
                let pair = Pair::of(&source, &target, table);
                pair.make_equal(|_| ()).await?;
                if !pair.is_equal(|_| ()).await? {
                    return Err(Error::CopyUnequal { record: table.record });
                }
            }
        }
        target.set_mark(Mark::Complete(id)).await?;
        Ok(report(done))
    }

    /// The id of the copy, which is new or goes on; `None` if it is complete.
    async fn begin(&self, source: &Held<'_>, target: &Held<'_>) -> Result<Option<CopyId>> {
        let identity = self.look_at_source(source.account).await?;
        match (source.mark, target.mark) {
            // For example one of several accounts whose copies were interrupted.
            (Some(Mark::Moved(moved)), Some(Mark::Complete(id))) if moved == id => return Ok(None),
            (_, Some(Mark::Complete(id)))
                if self.keep_source && id.is_of(&identity) && self.are_equal(source, target, |_| ()).await.is_ok() =>
            {
                return Ok(None);
            }
            // It was interrupted at the very end.
            (Some(Mark::Moved(moved)), Some(Mark::Unfinished(id))) if moved == id => return Ok(Some(id)),
            (Some(mark), _) => mark.refuse(source.account.account_number())?,
            (None, _) => {}
        }
        match target.mark {
            Some(Mark::Unfinished(id)) if id.is_of(&identity) => Ok(Some(id)),
            Some(mark @ (Mark::Moved(_) | Mark::Unfinished(_))) => {
                mark.refuse(target.account.account_number()).map(|()| None)
            }
            _ if target.rows().await? > 0 => Err(Error::InvalidInput {
                what: "the target account",
                problem: "holds something: delete it with `wastore accounts delete`, or choose another number",
            }),
            _ => CopyId::new(identity).map(Some),
        }
    }

    /// # Errors
    /// [`Error::CopyUnequal`] if the two accounts differ.
    async fn are_equal(&self, source: &Held<'_>, target: &Held<'_>, mut tell: impl FnMut(u64)) -> Result<()> {
        for table in &TABLES {
            if !Pair::of(source, target, table).is_equal(&mut tell).await? {
                return Err(Error::CopyUnequal { record: table.record });
            }
        }
        Ok(())
    }

    fn tell(&self, phase: Phase, done: &mut u64, page: u64, rows: u64) {
        *done += page;
        self.progress.tell(phase, (*done).min(rows), rows);
    }

    /// Identifies the source, if it may be copied: by its vault, or else by the key of its device. Both stay the same
    /// while a bot runs.
    async fn look_at_source(&self, from: &dyn Rows) -> Result<[u8; 16]> {
        let mut hash = Sha256::new();
        match HeaderInfo::read(from).await {
            Ok(Some(header)) if header.importing => return Err(Error::ImportIncomplete),
            Ok(Some(header)) => hash.update(header.store_id),
            // A damaged header is copied as it is: a saved one can be restored over it.
            Err(Error::HeaderDamaged(_)) => {
                for copy in HeaderCopy::BOTH {
                    hash.update(from.get_sender_key(copy.address()).await?.unwrap_or_default());
                }
            }
            Ok(None) if from.count(|_| true).await? == 0 => return Err(Error::NoSuchAccount(from.account_number())),
            Ok(None) if !self.plaintext => {
                return Err(Error::InvalidInput {
                    what: "the source account",
                    problem: "has no vault, so its keys would be copied in plaintext: allow it, or make a vault first",
                });
            }
            Ok(None) => {
                hash.update(from.account_number().to_le_bytes());
                if let Some(device) = from.load().await? {
                    hash.update(device.noise_key.public_key.serialize());
                }
            }
            Err(error) => return Err(error),
        }
        let hash: [u8; 32] = hash.finalize().into();
        let mut identity = [0; 16];
        identity.copy_from_slice(&hash[..16]);
        Ok(identity)
    }
}

impl Default for StoreCopy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for StoreCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keep_source, plaintext, .. } = self;
        f.debug_struct("StoreCopy")
            .field("keep_source", keep_source)
            .field("plaintext", plaintext)
            .finish_non_exhaustive()
    }
}

/// An account that is held for a copy.
struct Held<'a> {
    account: &'a dyn Rows,
    mark: Option<Mark>,
}

impl<'a> Held<'a> {
    async fn take(account: &'a dyn Rows) -> Result<Self> {
        let mut held = Self { account, mark: None };
        account.acquire_for_copy().await?;
        // If the mark cannot be read, the account counts as one not to use.
        held.mark = Some(Mark::Unfinished(CopyId::default()));
        held.mark = account.mark().await?;
        Ok(held)
    }

    async fn set_mark(&mut self, mark: Mark) -> Result<()> {
        // It may be set in spite of an error.
        if matches!(mark, Mark::Moved(_) | Mark::Unfinished(_)) {
            self.mark = Some(mark);
        }
        self.account.set_mark(Some(mark)).await?;
        self.mark = Some(mark);
        Ok(())
    }

    /// The number of its rows without its mark.
    async fn rows(&self) -> Result<u64> {
        let rows = self.account.count(|_| true).await?;
        Ok(rows.saturating_sub(u64::from(self.mark.is_some())))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.account.end_copy(self.mark);
    }
}

/// The largest number of rows on a page, and about how many bytes it has.
const PAGE_ROWS: usize = 500;
const PAGE_BYTES: usize = 1 << 20;

/// Reads the rows of a table, page by page. `read` counts the rows of the pages.
struct Walk<'a> {
    rows: &'a dyn Rows,
    table: &'static Table,
    page: VecDeque<WholeRow>,
    last: Option<WholeRow>,
    limit: usize,
    read: u64,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn new(rows: &'a dyn Rows, table: &'static Table) -> Self {
        Self { rows, table, page: VecDeque::new(), last: None, limit: PAGE_ROWS / 10, read: 0, ended: false }
    }

    /// Reads the next page if none is at hand.
    async fn fill(&mut self) -> Result<()> {
        while self.page.is_empty() && !self.ended {
            let page = self.rows.whole_rows(self.table, self.last.clone(), self.limit).await?;
            self.ended = page.len() < self.limit;
            if let Some(last) = page.last() {
                self.last = Some(last.clone());
                let each = page.iter().map(size_of).sum::<usize>() / page.len();
                self.limit = (PAGE_BYTES / each.max(1)).clamp(1, PAGE_ROWS);
            }
            // The mark belongs to the store, not to the account.
            self.page.extend(page.into_iter().filter(|row| !is_mark(self.table, row)));
            self.read += self.page.len() as u64;
        }
        Ok(())
    }

    /// How many rows were read since the last call.
    fn take_read(&mut self) -> u64 {
        std::mem::take(&mut self.read)
    }
}

fn is_mark(table: &Table, row: &WholeRow) -> bool {
    let is_address = |value: &StoredValue| matches!(value, StoredValue::Bytes(at) if at == MARK_ADDRESS.as_bytes());
    table.record == Record::SenderKey && row.values.first().is_some_and(is_address)
}

fn size_of(row: &WholeRow) -> usize {
    let sizes = row.values.iter().map(|value| match value {
        StoredValue::Bytes(bytes) => 24 + bytes.len(),
        _ => 24,
    });
    sizes.sum()
}

/// A table in both stores.
struct Pair<'a> {
    from: &'a dyn Rows,
    to: &'a dyn Rows,
    table: &'static Table,
}

impl<'a> Pair<'a> {
    fn of(source: &Held<'a>, target: &Held<'a>, table: &'static Table) -> Self {
        Self { from: source.account, to: target.account, table }
    }

    /// Makes the target's rows those of the source. Most copies begin with an empty table; one that was interrupted goes
    /// on where it ended.
    async fn make_equal(&self, mut tell: impl FnMut(u64)) -> Result<()> {
        if self.table.record == Record::LidMapping && !self.is_equal(|_| ()).await? {
            // The order in which they were put matters, so they are all put again.
            self.to.delete_all(vec![Record::LidMapping]).await?;
        }
        let (mut source, mut target) = (Walk::new(self.from, self.table), Walk::new(self.to, self.table));
        let (mut puts, mut bytes, mut deletes) = (vec![], 0, vec![]);
        loop {
            source.fill().await?;
            target.fill().await?;
            match source.take_read() {
                0 => {}
                read => tell(read),
            }
            let order = match (source.page.front(), target.page.front()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(source), Some(target)) => self.order(source, target),
            };
            let (row, old) = match order {
                Ordering::Less => (source.page.pop_front(), None),
                Ordering::Equal => (source.page.pop_front(), target.page.pop_front()),
                Ordering::Greater => (None, target.page.pop_front()),
            };
            match (row, old) {
                (Some(row), old) => {
                    if old.is_none_or(|old| old.values != row.values) {
                        bytes += size_of(&row);
                        puts.push(row);
                    }
                }
                (None, Some(old)) => deletes.push(old),
                (None, None) => {}
            }
            if puts.len() >= PAGE_ROWS || bytes >= PAGE_BYTES {
                // The next page is read meanwhile.
                let put = self.to.put_whole_rows(self.table, std::mem::take(&mut puts));
                let (put, filled) = join(put, source.fill()).await;
                put.and(filled)?;
                bytes = 0;
            }
            if deletes.len() >= PAGE_ROWS {
                self.to.delete_whole_rows(self.table, std::mem::take(&mut deletes)).await?;
            }
        }
        if !puts.is_empty() {
            self.to.put_whole_rows(self.table, puts).await?;
        }
        if !deletes.is_empty() {
            self.to.delete_whole_rows(self.table, deletes).await?;
        }
        Ok(())
    }

    /// The order of two rows in a walk.
    fn order(&self, source: &WholeRow, target: &WholeRow) -> Ordering {
        let places = self.table.copy_order();
        let key = |row: &WholeRow| places.iter().map(|place| row.values.get(*place).cloned()).collect::<Vec<_>>();
        key(source).cmp(&key(target))
    }

    /// `true` if both have the same rows, in the same order.
    async fn is_equal(&self, mut tell: impl FnMut(u64)) -> Result<bool> {
        let (mut source, mut target) = (Walk::new(self.from, self.table), Walk::new(self.to, self.table));
        loop {
            let (filled, other) = join(source.fill(), target.fill()).await;
            filled.and(other)?;
            match source.take_read() {
                0 => {}
                read => tell(read),
            }
            match (source.page.pop_front(), target.page.pop_front()) {
                (None, None) => return Ok(true),
                (Some(row), Some(other)) if row.values == other.values => {}
                _ => return Ok(false),
            }
        }
    }
}

/// Copies an account into a new file, which appears when it is complete. The source goes on as it is.
#[cfg(feature = "sqlite")]
pub(super) async fn back_up_account(account: &Arc<dyn Rows>, target: &Path) -> Result<()> {
    let target = target.to_owned();
    files::refuse_taken(&target)?;
    let folder = private::unfinished_folder(&target, ".wastore-backup-").map_err(files::cannot_write)?;
    let (file, folder) = (folder.path().join("store.db"), Arc::new(folder));
    let store = SqliteOptions::new().unfinished_in(&folder).lease_when_writing().open(&file).await?;
    let copy: Arc<dyn Rows> = Arc::new(store.account(account.account_number()));
    StoreCopy::new().keep_source().plaintext().copy(account, &copy).await?;
    store.checkpoint().await?;
    files::publish((copy, store), folder, file, target).await
}

#[cfg(not(feature = "sqlite"))]
pub(super) async fn back_up_account(_: &Arc<dyn Rows>, _: &std::path::Path) -> Result<()> {
    Err(Error::InvalidInput { what: "the backup", problem: "is a file of SQLite: compile with the feature `sqlite`" })
}

/// Opens an account again that a copy closed off. Only do this if the copy is gone and no client ran on it: two copies of
/// an account use its message keys twice.
///
/// # Errors
/// [`Error::InvalidInput`] if the account was not closed off. [`Error::CopyUnfinished`] if it is the beginning of a copy.
/// [`Error::AccountInUse`], and those of the engine.
pub async fn reclaim_account(store: &impl OwnStore) -> Result<()> {
    let OwnRows(store) = store.own_rows();
    let mut held = Held::take(&*store).await?;
    match held.mark {
        Some(Mark::Moved(_)) => {
            store.set_mark(None).await?;
            held.mark = None;
            Ok(())
        }
        Some(mark @ Mark::Unfinished(_)) => mark.refuse(store.account_number()),
        Some(Mark::Complete(_)) | None => {
            Err(Error::InvalidInput { what: "the account", problem: "did not move: it opens as it is" })
        }
    }
}

/// The result of a copy of an account. `Display` says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CopyReport {
    account: i32,
    target_account: i32,
    rows: u64,
    is_source_kept: bool,
}

impl CopyReport {
    /// The number of the account in the source.
    pub fn account(&self) -> i32 {
        self.account
    }

    /// The number of the account in the target.
    pub fn target_account(&self) -> i32 {
        self.target_account
    }

    /// How many rows were copied and compared.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// `true` if the source was not closed off.
    pub fn is_source_kept(&self) -> bool {
        self.is_source_kept
    }
}

impl fmt::Display for CopyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, target_account, rows, is_source_kept } = self;
        write!(f, "account {account}: {rows} rows were copied and compared")?;
        if account != target_account {
            write!(f, "; it is account {target_account} now, and opens with the context `account {account}`")?;
        }
        match is_source_kept {
            true => f.write_str("; the source still opens: use only one of the two, and delete the other"),
            false => f.write_str("; the source does not open any more"),
        }
    }
}
