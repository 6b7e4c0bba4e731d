//! Looking at every row of a store: whether it is what the vault sealed, and how much there is.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::SqliteStore;
use super::rows::{Pages, Snapshot};
use super::store::numbers;
use super::tables::{TABLES, Table};
use crate::encrypt::sealed_row::{Checked, StoredRow};
use crate::encrypt::{HeaderCopy, HeaderInfo, State, Vault};
use crate::error::{Error, Result, SqliteProblem};
use crate::method::Record;
use crate::printable::printable;

/// Checks every record of an account: its seal, its place, its name and what carries it, and the database around it. Nothing
/// is changed, and nothing of what is in the records is reported.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use wastore::{Key, SqliteStore, Vault, Verify};
///
/// let store = Arc::new(SqliteStore::open(folder.path().join("wa.db")).await?);
/// let vault = Vault::create(store.clone(), Key::generate()?).await?;
/// let report = Verify::new().run(&store, &vault).await?;
/// assert!(report.is_sound());
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// Message secrets, base keys and sender-key devices carry nothing, or little, that could be verified; of them the form is
/// looked at. The names of mutation MACs are bound to their rows, but are not carried by them. What is stored while the check
/// runs is
/// not looked at: the check sees the database at one moment. Rows that a table has and that are not found in the order of its
/// keys, or in the index of its key, are damage.
#[must_use = "nothing is checked before it is run"]
pub struct Verify {
    quick: bool,
    progress: Box<dyn Fn(VerifyProgress) + Send + Sync>,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// The rows that were looked at.
    pub done: u64,
    /// The rows that there are to look at, as they were counted at the beginning.
    pub total: u64,
}

impl Verify {
    /// Checks everything.
    pub fn new() -> Self {
        Self { quick: false, progress: Box::new(|_| {}) }
    }

    /// Checks the header, the first fifty rows of each table, and the database without comparing its indexes with its
    /// tables.
    pub fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// Is told after every few hundred rows how far the check is.
    pub fn on_progress(mut self, progress: impl Fn(VerifyProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Checks the records of this account with its vault.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if the database cannot be read. Damage is no error; it is in the report.
    pub async fn run(&self, store: &SqliteStore, vault: &Vault) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let header = HeaderInfo::read(store).await?;
        let copies = header.map_or(0, |header| header.intact_copies);
        if copies < HeaderCopy::BOTH.len() as u8 {
            report.damaged("sender_keys", 0, format!("{copies} of 2 copies of the vault header are intact"));
        }
        let held = vault.state();
        let mut snapshot = Snapshot::open(store).await?;
        let (total, mut done) = (if self.quick { 0 } else { snapshot.count_rows().await.or_else(if_damaged)? }, 0);
        for table in &TABLES {
            let mut pages = Pages::of(table);
            loop {
                let page = match snapshot.next(&mut pages).await {
                    Ok(Some(page)) => page,
                    Ok(None) => break,
                    Err(error @ Error::RowsMissed { .. }) => {
                        report.damaged(table.name, 0, error.to_string());
                        break;
                    }
                    Err(error) => {
                        // SQLite itself cannot read on in this table.
                        if_damaged::<()>(error)?;
                        report.damaged(table.name, 0, "the table cannot be read to its end".to_owned());
                        break;
                    }
                };
                done += page.len() as u64;
                for (row, found) in page {
                    report.look_at(vault, &held, table, row, found).await?;
                }
                (self.progress)(VerifyProgress { done, total: total.max(done) });
                if self.quick {
                    break;
                }
            }
        }
        drop(snapshot);
        if vault.device_is_sealed() && report.checked(Record::Device) == 0 && !report.has_damaged("devices") {
            report.damaged("devices", i64::from(store.account_number()), Error::DeviceMissing.to_string());
        }
        report.sqlite = store.check_database(self.quick).await?;
        store.database.check_files()?;
        Ok(report)
    }
}

impl Default for Verify {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify").field("quick", &self.quick).finish_non_exhaustive()
    }
}

/// What a check found. `Display` prints a table and the damage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    records: Vec<CheckedRecords>,
    damaged: Vec<DamagedRow>,
    /// More than are listed.
    damaged_rows: u64,
    sqlite: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CheckedRecords {
    #[serde(serialize_with = "label")]
    record: Record,
    sealed: u64,
    unauthenticated: u64,
}

/// A row that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DamagedRow {
    /// Its table.
    pub table: &'static str,
    /// Its row id; in `mutation_macs` and `sender_key_devices`, which have none, its place in the order of their keys, from 1.
    pub row: i64,
    /// What is wrong with it.
    pub problem: String,
}

impl VerifyReport {
    /// `true` if nothing was found.
    pub fn is_sound(&self) -> bool {
        self.damaged_rows == 0 && self.sqlite.is_empty()
    }

    /// How many records of a kind are as they should be.
    pub fn checked(&self, record: Record) -> u64 {
        let found = self.records.iter().find(|checked| checked.record == record);
        found.map_or(0, |checked| checked.sealed + checked.unauthenticated)
    }

    /// Rows that are not as they should be, a thousand of them at most.
    pub fn damaged_rows(&self) -> &[DamagedRow] {
        &self.damaged
    }

    /// How many rows are not as they should be.
    pub fn damaged_count(&self) -> u64 {
        self.damaged_rows
    }

    /// What SQLite says of the database, in its words.
    pub fn database_problems(&self) -> &[String] {
        &self.sqlite
    }

    async fn look_at(
        &mut self,
        vault: &Vault,
        held: &Arc<State>,
        table: &Table,
        row: i64,
        found: Result<Option<StoredRow>>,
    ) -> Result<()> {
        let checked = match found {
            Ok(None) => Ok(None),
            Ok(Some(found)) => {
                let record = found.record;
                vault.check_stored(held, found).await.map(|checked| Some((record, checked)))
            }
            Err(error) => Err(error),
        };
        match checked {
            Ok(None) => {}
            Ok(Some((record, checked))) => {
                let position = self.records.iter().position(|entry| entry.record == record).unwrap_or_else(|| {
                    self.records.push(CheckedRecords { record, sealed: 0, unauthenticated: 0 });
                    self.records.len() - 1
                });
                match checked {
                    Checked::Sealed => self.records[position].sealed += 1,
                    Checked::Unauthenticated => self.records[position].unauthenticated += 1,
                }
            }
            // The store, not the row.
            Err(error @ (Error::Store(_) | Error::Sqlite { .. })) => return Err(error),
            Err(error) => self.damaged(table.name, row, error.to_string()),
        }
        Ok(())
    }

    fn damaged(&mut self, table: &'static str, row: i64, problem: String) {
        const LISTED: usize = 1000;
        self.damaged_rows += 1;
        if self.damaged.len() < LISTED {
            self.damaged.push(DamagedRow { table, row, problem });
        }
    }

    fn has_damaged(&self, table: &str) -> bool {
        self.damaged.iter().any(|damaged| damaged.table == table)
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>10} {:>16}", "record", "verified", "form only")?;
        for CheckedRecords { record, sealed, unauthenticated } in &self.records {
            writeln!(f, "{:<20} {sealed:>10} {unauthenticated:>16}", record.name())?;
        }
        for DamagedRow { table, row, problem } in &self.damaged {
            writeln!(f, "damaged: {table}, row {row}: {problem}")?;
        }
        let listed = self.damaged.len() as u64;
        if self.damaged_rows > listed {
            writeln!(f, "and {} more", self.damaged_rows - listed)?;
        }
        for problem in &self.sqlite {
            writeln!(f, "database: {}", printable(problem))?;
        }
        match self.is_sound() {
            true => writeln!(f, "sound"),
            false => writeln!(f, "not sound"),
        }
    }
}

fn label<S: serde::Serializer>(record: &Record, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(record.label())
}

/// What a database holds, as far as anybody can see who has the file. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The accounts.
    pub accounts: Vec<InspectedAccount>,
    /// The tables, all accounts together.
    pub tables: Vec<TableSize>,
}

/// How much is in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableSize {
    /// Its name.
    #[serde(rename = "table")]
    pub name: &'static str,
    /// How many rows it has.
    pub rows: u64,
    /// The bytes of their contents.
    pub bytes: u64,
}

/// An account in an [`Inspection`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedAccount {
    /// Its number.
    #[serde(rename = "account")]
    pub number: i32,
    /// What the header of its vault says; `None` if it has no vault, or one whose header cannot be read.
    #[serde(rename = "vault")]
    pub header: Option<HeaderInfo>,
    /// Why the header cannot be read.
    pub problem: Option<String>,
}

impl SqliteStore {
    /// Says what the database holds without any key: accounts, the headers of their vaults, rows and bytes of each table.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if the database cannot be read.
    pub async fn inspect(&self) -> Result<Inspection> {
        let mut accounts = vec![];
        for number in self.accounts_in_use().await? {
            let (header, problem) = match HeaderInfo::read(&self.account(number)).await {
                Ok(header) => (header, None),
                Err(error @ (Error::HeaderDamaged(_) | Error::UnsupportedVersion { .. })) => {
                    (None, Some(error.to_string()))
                }
                Err(error) => return Err(error),
            };
            accounts.push(InspectedAccount { number, header, problem });
        }
        let tables = self.database.read_long(|c| TABLES.iter().map(|table| table.size(c)).collect()).await?;
        self.database.check_files()?;
        Ok(Inspection { accounts, tables })
    }

    /// The numbers of all accounts that have a device, the header of a vault or sessions, in ascending order. A row whose account
    /// is no number of 32 bits is left out; [`integrity_check`](Self::integrity_check) finds those that are no whole numbers.
    ///
    /// # Errors
    /// [`Error::Sqlite`].
    pub async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        const SQL: &str = "SELECT account FROM devices UNION SELECT account FROM sender_keys
            UNION SELECT account FROM sessions ORDER BY account";
        self.database.read_long(|c| numbers(c, SQL)).await
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for InspectedAccount { number, header, problem } in &self.accounts {
            let Some(header) = header else {
                writeln!(f, "account {number}: {}", printable(problem.as_deref().unwrap_or("no vault")))?;
                continue;
            };
            let state = match header {
                HeaderInfo { importing: true, .. } => ", import not finished",
                HeaderInfo { rotating: true, .. } => ", change of data key not finished",
                _ => "",
            };
            writeln!(
                f,
                "account {number}: vault format {}, generation {}, {} of 2 header copies intact, padding {:?}{state}",
                header.version, header.generation, header.intact_copies, header.padding
            )?;
            writeln!(f, "  store id {}", data_encoding::HEXLOWER.encode(&header.store_id))?;
            for slot in &header.slots {
                writeln!(f, "  slot {}: {} ({})", slot.id, printable(&slot.label), slot.kind)?;
            }
        }
        writeln!(f, "\n{:<20} {:>10} {:>14}", "table", "rows", "bytes")?;
        for TableSize { name, rows, bytes } in &self.tables {
            writeln!(f, "{name:<20} {rows:>10} {bytes:>14}")?;
        }
        Ok(())
    }
}

/// Damage of the database is what a check reports.
fn if_damaged<T: Default>(error: Error) -> Result<T> {
    match error {
        Error::Sqlite { problem: SqliteProblem::Damaged, .. } => Ok(T::default()),
        error => Err(error),
    }
}
