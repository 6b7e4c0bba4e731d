//! Sealing every record of a store anew, under a new data key.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::future::join;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use smallvec::{SmallVec, smallvec};
use wacore::store::traits::SignalStore;

use super::SqliteStore;
use super::connection::Statements;
use super::rows::{Found, Pages, Snapshot};
use super::tables::{Replace, TABLES, Table};
use super::writer::Plan;
use crate::encrypt::sealed_row::{Resealed, StoredRow};
use crate::encrypt::{HeaderCopy, Revocation, State, Vault, VaultOptions, nonces};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::secret::Secret;

/// Gives a vault a new data key, seals every record of its account anew under it, and forgets the old keys. The account can be
/// read and written meanwhile, in this process.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use wastore::{Key, Rotate, SqliteStore, Vault};
///
/// let store = Arc::new(SqliteStore::open(folder.path().join("wa.db")).await?);
/// let vault = Vault::create(store.clone(), Key::generate()?).await?;
/// let report = Rotate::new().run(&store, &vault).await?;
/// assert_eq!(report.resealed(), 0);
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// It may be killed at any moment: every record is under the old key or the new one, the header has both, and the next run
/// goes on. A copy of the store from before opens with the secrets of its day and the old data key; if one of those has
/// leaked, use [`Rotate::revoke`].
///
/// Message secrets, base keys and the names of sender-key devices and tc tokens are under the lookup key, which stays: rows
/// are found by it. Export the account and import it into a new store to change it.
///
/// A [`CacheLayer`](crate::CacheLayer) *below* the encrypting layer keeps records as they were: call its `invalidate_all`
/// afterwards. Calls that are under way are waited for, so one whose future is kept and never polled keeps this from ending. A
/// layer of your own below the encrypting one must not write on when a call was dropped.
#[must_use = "nothing is sealed anew before it is run"]
pub struct Rotate {
    leave_damaged: bool,
    except: Vec<i32>,
    progress: Arc<dyn Fn(RotateProgress) + Send + Sync>,
}

/// How far a change of the data key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RotateProgress {
    /// The rows that are done.
    pub done: u64,
    /// The rows that there are, as they were counted at the beginning. They are looked at twice.
    pub total: u64,
}

/// What a change of the data key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotateReport {
    resealed: u64,
    left_behind: u64,
    is_in_log: bool,
    is_rewritten: bool,
}

/// What [`Rotate::revoke`] did. `Display` prints it, and what an old secret is still good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeReport {
    revoked: Vec<(i32, RotateReport)>,
    others: Vec<i32>,
}

impl Rotate {
    /// A change that stops at the end if records are damaged.
    pub fn new() -> Self {
        Self { leave_damaged: false, except: vec![], progress: Arc::new(|_| {}) }
    }

    /// Forgets the old data keys even if there are records that do not verify, which [`Verify`](crate::Verify) lists. They
    /// stay as they are, and unreadable.
    pub fn leave_damaged(mut self) -> Self {
        self.leave_damaged = true;
        self
    }

    /// Leaves this account as it is in [`Rotate::revoke`], which otherwise refuses to begin if it cannot cover one.
    pub fn except(mut self, account: i32) -> Self {
        self.except.push(account);
        self
    }

    /// Is told after every few hundred rows how far the change is.
    pub fn on_progress(mut self, progress: impl Fn(RotateProgress) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    /// Changes the data key of the vault of this account, or goes on with a change that was interrupted. Save the header
    /// again afterwards: an older one has not the key of any record.
    ///
    /// If the header is kept elsewhere than in the store, a copy of the store cannot be told from it: take care which one
    /// this is.
    ///
    /// # Errors
    /// The old data keys are kept in any of these cases, and everything stays readable. [`Error::NotAlone`] if somebody
    /// else has the database open; [`Error::InvalidInput`] if the vault was not opened on this account of this database;
    /// [`Error::NotResealed`] if records are damaged; [`Error::ReadOnly`], [`Error::Sqlite`], and the errors of changing the
    /// header, as [`Vault::add_slot`].
    pub async fn run(&self, store: &SqliteStore, vault: &Vault) -> Result<RotateReport> {
        self.refuse_damage(store).await?;
        let mut report = self.change(store, vault).await?;
        Rewritten::of(store).await.note_in(&mut report);
        Ok(report)
    }

    /// Puts a new data key in place and forgets the old ones.
    async fn change(&self, store: &SqliteStore, vault: &Vault) -> Result<RotateReport> {
        let mut report = RotateReport { resealed: 0, left_behind: 0, is_in_log: false, is_rewritten: true };
        loop {
            // Before anything is changed, and again when everybody who opens the vault finds the new key.
            store.database.refuse_others().await?;
            let (epoch, is_new) = vault.begin_rotation(self.leave_damaged).await?;
            store.database.refuse_others().await?;
            let keeps_header = keeps_header(store, vault).await?;
            while !vault.is_settled() {
                blocking::unblock(|| thread::sleep(Duration::from_millis(1))).await;
            }
            // What was stored by a call whose future is gone is in the table when the queue has been worked off.
            store.database.write(Plan::UPKEEP, |_| Ok(())).await?;
            self.reseal(store, vault, &mut report).await?;
            if vault.current_epoch().await? != epoch {
                // Another call has changed it meanwhile: once more, under the newest.
                continue;
            }
            if !keeps_header {
                // The header cannot tell whose it is, but the device can. And it is on the disk at once, so that the
                // records must be before it.
                let device = vault.layer().layer(Arc::new(store.clone())).load().await?;
                device.ok_or(Error::DeviceMissing)?;
                store.checkpoint().await?;
            }
            if report.left_behind > 0 && !self.leave_damaged {
                return Err(Error::NotResealed { count: report.left_behind });
            }
            let finished = vault.finish_rotation(epoch).await;
            if matches!(finished, Err(Error::Anchor(_))) {
                // The header may be without the old key already; then the log must not have it either.
                store.checkpoint().await?;
            }
            if finished? && is_new {
                return Ok(report);
            }
        }
    }

    /// Makes a secret useless that has leaked, for every account that it opens, or that opens with the key that one of their
    /// vaults derives for `account N`: gives each vault a new vault key, which only `new` opens, and a new data key, and seals
    /// every record anew. Vaults that this process has open go on working.
    ///
    /// All other slots of these vaults are gone, and backups and saved headers are as they were:
    /// [`Revocation::REMAINS`] says what an old secret is still good for. If this is interrupted, either the old secret or
    /// the new one opens each vault: call it again with the secret that opens the store then.
    ///
    /// # Errors
    /// [`Error::WrongSecret`] if `secret` opens none of the vaults, [`Error::AccountsNotCovered`] if there are accounts that it
    /// does not open and that are not excepted with [`Rotate::except`], [`Error::InvalidInput`] if `new` opens one already;
    /// nothing was changed then. [`Error::SlotsFull`] if there is no room in one. The errors of [`Vault::revoke`] and
    /// [`Rotate::run`].
    pub async fn revoke(
        &self,
        store: &SqliteStore,
        options: &VaultOptions,
        secret: impl Into<Secret>,
        new: impl Into<Secret>,
    ) -> Result<RevokeReport> {
        let (secret, new) = (secret.into(), new.into());
        store.database.refuse_others().await?;
        self.refuse_damage(store).await?;
        let mut report = RevokeReport { revoked: vec![], others: self.except.clone() };
        let covered = self.cover(store, options, &secret, &new).await?;
        let mut opened: Vec<(SqliteStore, Vault)> = vec![];
        for (account, opens_with) in &covered {
            let secret = match opens_with {
                OpensWith::Old => secret.duplicate(),
                OpensWith::New => new.duplicate(),
                OpensWith::KeyOf(parent) => opened[*parent].1.account_key(&account.key_label()).into(),
            };
            opened.push((account.clone(), options.open(Arc::new(account.clone()), secret).await?));
        }
        let mut revocations: Vec<Option<Revocation>> = vec![];
        for ((account, vault), (_, opens_with)) in opened.iter().zip(&covered) {
            revocations.push(match opens_with {
                OpensWith::Old => Some(Revocation::prepare(vault, new.duplicate()).await?),
                // An interrupted revocation has got that far.
                OpensWith::New => None,
                OpensWith::KeyOf(parent) => {
                    let Some(Some(parent)) = revocations.get(*parent) else { return Err(Error::WrongSecret) };
                    let key = parent.account_key(&account.key_label());
                    // From when the parent has its new key until this one has, both the old and the new key open this one.
                    vault.remove_others_labelled(DERIVED).await?;
                    vault.add_slot(DERIVED, key.duplicate()).await?;
                    Some(Revocation::prepare(vault, key).await?)
                }
            });
        }
        // All secrets first: the rows take long, and come after.
        for ((_, vault), revocation) in opened.iter().zip(&revocations) {
            if let Some(revocation) = revocation {
                vault.revoke(revocation).await?;
            }
        }
        let mut changed = Ok(());
        for (account, vault) in &opened {
            match self.change(account, vault).await {
                Ok(done) => report.revoked.push((account.account, done)),
                Err(error) => {
                    changed = Err(error);
                    break;
                }
            }
        }
        // Once for all accounts, also for those that came before one that failed.
        if !report.revoked.is_empty() {
            let rewritten = Rewritten::of(store).await;
            report.revoked.iter_mut().for_each(|(_, done)| rewritten.note_in(done));
        }
        changed.map(|()| report)
    }

    /// Finds how each account opens, and changes nothing.
    ///
    /// # Errors
    /// [`Error::WrongSecret`] if the secret opens no account, [`Error::AccountsNotCovered`] if there are others that are not
    /// excepted, [`Error::InvalidInput`] if the new secret opens one already.
    async fn cover(
        &self,
        store: &SqliteStore,
        options: &VaultOptions,
        secret: &Secret,
        new: &Secret,
    ) -> Result<Vec<(SqliteStore, OpensWith)>> {
        let try_open = async |account: &SqliteStore, secret: Secret| match options
            .open_read_only(Arc::new(account.clone()), secret)
            .await
        {
            Ok(vault) => Ok(Some(vault)),
            Err(error) if error.is_about_freshness() => Err(error),
            Err(_) => Ok(None),
        };
        let (mut parents, mut closed, mut covered, mut uncovered) = (vec![], vec![], vec![], vec![]);
        for number in store.accounts_in_use().await? {
            if self.except.contains(&number) {
                continue;
            }
            let account = store.account(number);
            match try_open(&account, secret.duplicate()).await? {
                Some(vault) => {
                    parents.push(vault);
                    covered.push((account, OpensWith::Old));
                }
                None => closed.push(account),
            }
        }
        if parents.is_empty() {
            return Err(Error::WrongSecret);
        }
        for (position, (account, _)) in covered.iter().enumerate() {
            let known = try_open(account, new.duplicate()).await?.is_some();
            // Unless it is with what an interrupted one has begun.
            if known && !parents[position].is_rotating() {
                return Err(Error::InvalidInput {
                    what: "the new secret",
                    problem: "opens the store already: choose another",
                });
            }
        }
        'accounts: for account in closed {
            for (position, parent) in parents.iter().enumerate() {
                let key = parent.account_key(&account.key_label());
                if try_open(&account, key.into()).await?.is_some() {
                    covered.push((account, OpensWith::KeyOf(position)));
                    continue 'accounts;
                }
            }
            match try_open(&account, new.duplicate()).await? {
                Some(vault) if vault.is_rotating() => covered.push((account, OpensWith::New)),
                _ => uncovered.push(account.account),
            }
        }
        if uncovered.is_empty() { Ok(covered) } else { Err(Error::AccountsNotCovered { accounts: uncovered }) }
    }

    /// # Errors
    /// [`Error::Sqlite`] as damaged, unless damage may be left behind.
    async fn refuse_damage(&self, store: &SqliteStore) -> Result<()> {
        if self.leave_damaged { Ok(()) } else { store.refuse_damage().await }
    }

    /// Seals rows anew until a look at one moment of the store finds every row open under the active data key, and counts those
    /// that are not.
    async fn reseal(&self, store: &SqliteStore, vault: &Vault, report: &mut RotateReport) -> Result<()> {
        /// The first finds nothing to do again, unless the tables are altered meanwhile.
        const PASSES: usize = 3;
        let rows = store.count_rows(Table::is_sealed).await?;
        let mut passed = 0;
        let mut tell = |done: u64| {
            passed += done;
            (self.progress)(RotateProgress { done: (passed / 2).min(rows), total: rows });
        };
        for _ in 0..PASSES {
            let state = vault.state();
            let mut pass = Pass::default();
            for (table, replace) in TABLES.iter().filter_map(|table| Some((table, table.replace.as_ref()?))) {
                pass.table(store, &state, table, replace, &mut tell).await?;
            }
            vault.check_stamp(&state, pass.newest_stamp).await?;
            report.resealed += pass.replaced;
            let proof = Proof::of(store, vault, &mut tell).await?;
            report.left_behind = proof.damaged;
            if proof.older == 0 {
                (self.progress)(RotateProgress { done: rows, total: rows });
                return Ok(());
            }
            // As long as they are not as they were read, they cannot be replaced.
            report.left_behind += proof.older;
        }
        Ok(())
    }
}

/// `true` if the store has the header of this vault, `false` if the vault keeps it elsewhere.
///
/// # Errors
/// [`Error::InvalidInput`] if the store has another header, be it an older one of this vault, as in a copy.
pub(super) async fn keeps_header(store: &SqliteStore, vault: &Vault) -> Result<bool> {
    /// Others may be opening the vault at this moment.
    const TRIES: usize = 8;
    for _ in 0..TRIES {
        let header = vault.current_header().await?;
        match store.get_sender_key(HeaderCopy::A.address()).await? {
            Some(stored) if stored == header => return Ok(true),
            Some(_) => {}
            None if vault.keeps_header_elsewhere() => return Ok(false),
            None => break,
        }
    }
    Err(Error::InvalidInput { what: "the vault", problem: "was opened on another store" })
}

/// How all rows of an account open at one moment.
#[derive(Default)]
struct Proof {
    /// Rows that open under an older data key.
    older: u64,
    /// Rows that open under none.
    damaged: u64,
    newest_stamp: u32,
}

impl Proof {
    /// Opens every sealed row.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if one is newer than the header.
    async fn of(store: &SqliteStore, vault: &Vault, mut tell: impl FnMut(u64)) -> Result<Self> {
        let (state, mut proof) = (vault.state(), Self::default());
        let mut snapshot = Snapshot::open(store).await?;
        for table in TABLES.iter().filter(|table| table.is_sealed()) {
            let mut pages = Pages::of(table);
            loop {
                let state = state.clone();
                let judge = move |rows: Vec<Found>| {
                    let count = rows.len() as u64;
                    rows.into_iter()
                        .try_fold(Self::default(), |proof, (_, row)| proof.and(&state, row))
                        .map(|p| (count, p))
                };
                let Some(page) = snapshot.next_then(&mut pages, judge).await? else { break };
                let (count, page) = page?;
                proof.older += page.older;
                proof.damaged += page.damaged;
                proof.newest_stamp = proof.newest_stamp.max(page.newest_stamp);
                tell(count);
            }
        }
        vault.check_stamp(&state, proof.newest_stamp).await?;
        Ok(proof)
    }

    fn and(mut self, state: &State, row: Result<Option<StoredRow>>) -> Result<Self> {
        match row.and_then(|row| row.map_or(Ok(None), |row| state.opens(&row))) {
            Ok(None) => {}
            Ok(Some(under)) => {
                self.older += u64::from(!under.active);
                self.newest_stamp = self.newest_stamp.max(under.stamp);
            }
            // The store, not the row.
            Err(error @ (Error::Store(_) | Error::Sqlite { .. })) => return Err(error),
            Err(_) => self.damaged += 1,
        }
        Ok(self)
    }
}

impl Default for Rotate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Rotate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotate").field("leave_damaged", &self.leave_damaged).finish_non_exhaustive()
    }
}

impl RotateReport {
    /// How many records were sealed anew. Those that somebody stored meanwhile do not count.
    pub fn resealed(&self) -> u64 {
        self.resealed
    }

    /// How many damaged records were left behind, unreadable as before.
    pub fn left_behind(&self) -> u64 {
        self.left_behind
    }

    /// `false` if the file could not be rewritten at the end, for want of space, say. Unused parts of its pages may hold pieces of
    /// records under the old key until [`SqliteStore::vacuum`] succeeds.
    pub fn is_rewritten(&self) -> bool {
        self.is_rewritten
    }

    /// `true` if the write-ahead log could not be emptied, because somebody reads an older state of the database. It holds the
    /// old header and records under the old key until a later [`SqliteStore::checkpoint`].
    pub fn is_in_log(&self) -> bool {
        self.is_in_log
    }
}

impl fmt::Display for RotateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records were sealed anew, the old data key is forgotten", self.resealed)?;
        if self.left_behind > 0 {
            write!(f, "; {} damaged records were left behind", self.left_behind)?;
        }
        if !self.is_rewritten {
            f.write_str("; the file could not be rewritten and may hold pieces of old records: run `wastore vacuum`")?;
        }
        if self.is_in_log {
            f.write_str("; the write-ahead log still holds what is under it: close and open the store to empty it")?;
        }
        Ok(())
    }
}

impl RevokeReport {
    /// The accounts whose secrets were replaced, and what was done to their records.
    pub fn revoked(&self) -> &[(i32, RotateReport)] {
        &self.revoked
    }

    /// The accounts that were excepted: they are as they were.
    pub fn others(&self) -> &[i32] {
        &self.others
    }
}

impl fmt::Display for RevokeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (account, report) in &self.revoked {
            writeln!(f, "account {account}: {report}")?;
        }
        for account in &self.others {
            writeln!(f, "account {account}: was left as it was")?;
        }
        write!(f, "\n{}", Revocation::REMAINS)
    }
}

/// How the rewriting of a file ended.
struct Rewritten {
    is_rewritten: bool,
    is_in_log: bool,
}

impl Rewritten {
    /// Rewrites the file: pieces of rows that SQLite moved long ago are in the unused parts of pages, and open with the old
    /// header.
    async fn of(store: &SqliteStore) -> Self {
        match store.rewrite().await {
            Ok(()) => Self { is_rewritten: true, is_in_log: false },
            Err(error) => {
                log::warn!("the file could not be rewritten after its data key was changed: {error}");
                Self { is_rewritten: false, is_in_log: store.checkpoint().await.is_err() }
            }
        }
    }

    fn note_in(&self, report: &mut RotateReport) {
        (report.is_rewritten, report.is_in_log) = (self.is_rewritten, self.is_in_log);
    }
}

/// How an account opens.
enum OpensWith {
    /// With the secret that has leaked.
    Old,
    /// With the new one, because a revocation was interrupted.
    New,
    /// With the key that the vault at this position derives for it.
    KeyOf(usize),
}

/// The label of a slot for a key that another account's vault derives.
const DERIVED: &str = "account key";

/// One time through all tables.
#[derive(Default)]
struct Pass {
    /// Rows that were under an old data key, and still the same when they were written.
    replaced: u64,
    /// The highest stamp of a row that opened.
    newest_stamp: u32,
}

impl Pass {
    /// Seals the rows of a table. A page is read and sealed while the one before is written.
    async fn table(
        &mut self,
        store: &SqliteStore,
        state: &Arc<State>,
        table: &'static Table,
        replace: &'static Replace,
        tell: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut pages = Pages::of(table);
        let mut sealed = Page::default();
        loop {
            let (state, account) = (state.clone(), store.account);
            let seal = move |rows| Page::seal(&state, account, table, replace, rows);
            self.newest_stamp = self.newest_stamp.max(sealed.newest_stamp);
            let (written, next) = join(sealed.write(store, replace), pages.next_then(store, seal)).await;
            self.replaced += written?;
            let Some(page) = next? else { return Ok(()) };
            sealed = page?;
            tell(sealed.rows);
        }
    }
}

/// Rows that were sealed anew and are to be written.
#[derive(Default)]
struct Page {
    rows: u64,
    newest_stamp: u32,
    replacements: Vec<Replacement>,
}

struct Replacement {
    new: Value,
    old: Value,
    /// The row id, or the account and the key columns.
    row: SmallVec<[Value; 3]>,
}

impl Page {
    fn seal(state: &State, account: i32, table: &Table, replace: &Replace, rows: Vec<Found>) -> Result<Self> {
        let mut page = Self { rows: rows.len() as u64, ..Self::default() };
        for ((id, found), nonce) in rows.into_iter().zip(nonces(page.rows as usize)?) {
            let sealed = found.map(|row| row.map(|row| (state.reseal(&row, &nonce), row)));
            match sealed {
                Ok(Some((Ok(Resealed::Anew { value, stamp }), row))) => {
                    page.newest_stamp = page.newest_stamp.max(stamp);
                    page.replacements.push(Replacement {
                        new: (replace.carry)(value)?,
                        row: table.row(account, id, &row)?,
                        old: (replace.carry)(row.value)?,
                    });
                }
                Ok(Some((Ok(Resealed::Already { stamp }), _))) => page.newest_stamp = page.newest_stamp.max(stamp),
                Ok(None | Some((Ok(Resealed::Unsealed), _))) => {}
                // The store, not the row.
                Err(error @ (Error::Store(_) | Error::Sqlite { .. })) => return Err(error),
                // The proof counts it.
                Err(_) | Ok(Some((Err(_), _))) => {}
            }
        }
        Ok(page)
    }

    /// Replaces what is still as it was read, in one transaction. Gives the number of rows.
    async fn write(self, store: &SqliteStore, replace: &'static Replace) -> Result<u64> {
        if self.replacements.is_empty() {
            return Ok(0);
        }
        let write = move |c: &Connection| {
            let replaced = c.run_each(replace.sql, &self.replacements, |statement, Replacement { new, old, row }| {
                statement.execute(params_from_iter([new, old].into_iter().chain(row)))
            });
            Ok(replaced? as u64)
        };
        store.database.write(Plan::CACHE.transaction().long(), write).await
    }
}

impl Table {
    /// What says which row it is in the statement that replaces its value.
    fn row(&self, account: i32, id: i64, row: &StoredRow) -> Result<SmallVec<[Value; 3]>> {
        if self.has_row_ids {
            return Ok(smallvec![Value::Integer(id)]);
        }
        let [name, index] = &row.columns[..] else { return Err(Error::Tampered { record: row.record }) };
        let name = String::from_utf8(name.clone()).map_err(|_| Error::Tampered { record: row.record })?;
        Ok(smallvec![Value::Integer(account.into()), Value::Text(name), Value::Blob(index.clone())])
    }
}
