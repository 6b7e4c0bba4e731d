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
use super::rows::{Found, Pages, Replace, TABLES, Table};
use super::writer::Plan;
use crate::encrypt::stored::StoredRow;
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
/// afterwards. Calls that are under way are waited for, so one whose future is kept and never polled keeps this from ending.
#[must_use = "nothing is sealed anew before it is run"]
pub struct Rotate {
    leave_damaged: bool,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RotateReport {
    resealed: u64,
    left_behind: u64,
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
        Self { leave_damaged: false, progress: Arc::new(|_| {}) }
    }

    /// Forgets the old data keys even if there are records that do not verify, which [`Verify`](crate::Verify) lists. They
    /// stay as they are, and unreadable.
    pub fn leave_damaged(mut self) -> Self {
        self.leave_damaged = true;
        self
    }

    /// Is told after every few hundred rows how far the change is.
    pub fn on_progress(mut self, progress: impl Fn(RotateProgress) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    /// Changes the data key of the vault of this account, or goes on with a change that was interrupted. Unless this
    /// process alone has the database open, nothing is done.
    ///
    /// # Errors
    /// The old data keys are kept in any of these cases, and everything stays readable. [`Error::NotAlone`] if somebody
    /// else has the database open; [`Error::InvalidInput`] if the vault was not opened on this account of this database;
    /// [`Error::NotResealed`] if records are damaged; [`Error::ReadOnly`], [`Error::Sqlite`], and the errors of changing the
    /// header, as [`Vault::add_slot`].
    pub async fn run(&self, store: &SqliteStore, vault: &Vault) -> Result<RotateReport> {
        let mut report = RotateReport::default();
        loop {
            // Before anything is changed, and again when everybody who opens the vault finds the new key.
            store.database.refuse_others().await?;
            let is_new = vault.begin_rotation().await?;
            store.database.refuse_others().await?;
            let keeps_header = self.keeps_header(store, vault).await?;
            while !vault.is_settled() {
                blocking::unblock(|| thread::sleep(Duration::from_millis(1))).await;
            }
            // What was stored by a call whose future is gone is in the table when the queue has been worked off.
            store.database.write(Plan::UPKEEP, |_| Ok(())).await?;
            self.reseal(store, vault, &mut report).await?;
            if !keeps_header {
                // The header cannot tell whose it is, but the device can.
                vault.layer().layer(Arc::new(store.clone())).load().await?;
            }
            if report.left_behind > 0 && !self.leave_damaged {
                return Err(Error::NotResealed { count: report.left_behind });
            }
            vault.finish_rotation().await?;
            if is_new {
                break;
            }
        }
        if let Err(error) = store.checkpoint().await {
            log::warn!("the write-ahead log still holds records under the old data key: {error}");
        }
        Ok(report)
    }

    /// Makes a secret useless that has leaked, for every account that it opens, or that opens with a key that the vault of
    /// the lowest account derives: gives each vault a new vault key, which only `new` opens, and a new data key, and seals
    /// every record anew. Vaults that this process has open go on working.
    ///
    /// All other slots of these vaults are gone, and backups and saved headers are as they were:
    /// [`Revocation::REMAINS`] says what an old secret is still good for. If this is interrupted, either the old secret or
    /// the new one opens each vault: call it again with the secret that opens the lowest account.
    ///
    /// # Errors
    /// [`Error::WrongSecret`] if `secret` opens none of the vaults, [`Error::SlotsFull`] if there is no room in one for the
    /// key that the lowest derives; nothing was changed then, but for slots that open nothing yet. The errors of
    /// [`Vault::revoke`] and [`Rotate::run`].
    pub async fn revoke(
        &self,
        store: &SqliteStore,
        options: &VaultOptions,
        secret: impl Into<Secret>,
        new: impl Into<Secret>,
    ) -> Result<RevokeReport> {
        let (secret, new) = (secret.into(), new.into());
        store.database.refuse_others().await?;
        let mut report = RevokeReport { revoked: vec![], others: vec![] };
        let (mut own, mut derived) = (vec![], vec![]);
        for number in store.accounts_in_use().await? {
            let account = store.account(number);
            match options.open(Arc::new(account.clone()), secret.duplicate()).await {
                Ok(vault) => own.push((account, vault)),
                Err(Error::WrongSecret) => match account.open_vault(options, secret.duplicate()).await {
                    Ok(vault) => derived.push((account, vault)),
                    Err(Error::WrongSecret) => report.others.push(number),
                    Err(error) => return Err(error),
                },
                Err(Error::NoVault) => report.others.push(number),
                Err(error) => return Err(error),
            }
        }
        if own.is_empty() {
            return Err(Error::WrongSecret);
        }
        let mut revocations = vec![];
        for (account, vault) in own {
            let revocation = Revocation::prepare(&vault, new.duplicate()).await?;
            revocations.push((account, vault, revocation));
        }
        let lowest = store.accounts().await?.first().copied();
        let lowest = revocations.iter().position(|(account, ..)| Some(account.account) == lowest);
        for (account, vault) in derived {
            let (_, _, lowest) = lowest.and_then(|at| revocations.get(at)).ok_or(Error::WrongSecret)?;
            let key = lowest.account_key(&account.key_label());
            // From when the lowest account has its new key until this one has, both the old and the new key open this one.
            vault.add_slot("account key", key.duplicate()).await?;
            let revocation = Revocation::prepare(&vault, key).await?;
            revocations.push((account, vault, revocation));
        }
        // All secrets first: what takes long comes after.
        for (_, vault, revocation) in &revocations {
            vault.revoke(revocation).await?;
        }
        for (account, vault, _) in &revocations {
            report.revoked.push((account.account, self.run(account, vault).await?));
        }
        Ok(report)
    }

    /// `true` if the store has the header of this vault, `false` if the vault keeps it elsewhere.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the store has another header, be it an older one of this vault, as in a copy.
    async fn keeps_header(&self, store: &SqliteStore, vault: &Vault) -> Result<bool> {
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

    /// Goes through all rows until none is left under an old data key.
    async fn reseal(&self, store: &SqliteStore, vault: &Vault, report: &mut RotateReport) -> Result<()> {
        /// The second pass finds nothing, unless somebody has altered the tables.
        const PASSES: usize = 3;
        let state = vault.state();
        let rows = store.count_rows(|table| table.replace.is_some()).await?;
        let mut passed = 0;
        for _ in 0..PASSES {
            let mut pass = Pass::default();
            for (table, replace) in TABLES.iter().filter_map(|table| Some((table, table.replace.as_ref()?))) {
                let tell = |done: u64| {
                    passed += done;
                    let done = (passed / 2).min(rows);
                    (self.progress)(RotateProgress { done, total: rows });
                };
                pass.table(store, &state, table, replace, tell).await?;
            }
            report.resealed += pass.replaced;
            // What is not as it was read, three times, cannot be replaced.
            report.left_behind = pass.left + (pass.sealed - pass.replaced);
            if pass.sealed == 0 {
                break;
            }
        }
        (self.progress)(RotateProgress { done: rows, total: rows });
        Ok(())
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
}

impl fmt::Display for RotateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records were sealed anew, the old data key is forgotten", self.resealed)?;
        match self.left_behind {
            0 => Ok(()),
            count => write!(f, "; {count} damaged records were left behind"),
        }
    }
}

impl RevokeReport {
    /// The accounts whose secrets were replaced, and what was done to their records.
    pub fn revoked(&self) -> &[(i32, RotateReport)] {
        &self.revoked
    }

    /// The accounts that the secret does not open: they are as they were.
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
            writeln!(f, "account {account}: does not open with the old secret and is as it was")?;
        }
        write!(f, "\n{}", Revocation::REMAINS)
    }
}

/// One time through all tables.
#[derive(Default)]
struct Pass {
    /// Rows that do not verify.
    left: u64,
    /// Rows that were under an old data key.
    sealed: u64,
    /// Those of them that were still the same when they were written.
    replaced: u64,
}

impl Pass {
    /// Seals the rows of a table. A page is read and sealed while the one before is written.
    async fn table(
        &mut self,
        store: &SqliteStore,
        state: &Arc<State>,
        table: &'static Table,
        replace: &'static Replace,
        mut tell: impl FnMut(u64),
    ) -> Result<()> {
        let mut pages = Pages::of(table);
        let mut sealed = Page::default();
        loop {
            let (state, account) = (state.clone(), store.account);
            let seal = move |rows| Page::seal(&state, account, table, replace, rows);
            (self.left, self.sealed) = (self.left + sealed.left, self.sealed + sealed.replacements.len() as u64);
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
    left: u64,
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
                Ok(Some((Ok(Some(new)), row))) => page.replacements.push(Replacement {
                    new: (replace.carry)(new)?,
                    row: table.row(account, id, &row)?,
                    old: (replace.carry)(row.value)?,
                }),
                Ok(None | Some((Ok(None), _))) => {}
                // The store, not the row.
                Err(error @ (Error::Store(_) | Error::Sqlite { .. })) => return Err(error),
                Err(_) | Ok(Some((Err(_), _))) => page.left += 1,
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
