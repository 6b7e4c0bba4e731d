//! Checks every row of a store: whether it is as the vault sealed it, and how many there are.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::encrypt::cipher::record_of;
use crate::encrypt::sealed_row::RowCheck;
use crate::encrypt::vault::open_vault::VaultState;
use crate::encrypt::{HeaderCopy, HeaderInfo, Vault};
#[cfg(feature = "postgres")]
use crate::error::PostgresProblem;
#[cfg(feature = "sqlite")]
use crate::error::SqliteProblem;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::printable::printable;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::SealedRow;
use crate::rows::store::{OwnRows, OwnStore, RowReader};
use crate::rows::table::{TABLES, Table};

/// Checks every record of an account (its seal, place, name and carrier) and the database around
/// it. Changes nothing, and reports nothing of the records' content.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use wastore::{Key, SqliteStore, Vault};
/// use wastore::maintenance::Verify;
///
/// let store = SqliteStore::open(folder.path().join("wa.db")).await?;
/// let vault = Vault::create(&store, Key::generate()?).await?;
/// let report = Verify::new().run(&store, &vault).await?;
/// assert!(report.is_sound());
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// Message secrets, base keys and sender-key devices carry little or nothing that could be
/// verified; only their form is checked. The names of mutation MACs are bound to their rows, but
/// the rows do not carry them.
///
/// The check sees the database at one moment, so it does not see rows that are stored while it
/// runs. A row that exists in a table, but is missing in the order of its keys or in the index of
/// its key, is damage.
#[must_use = "nothing is checked before it is run"]
pub struct Verify {
    quick: bool,
    progress: Observer,
}

impl Verify {
    /// Checks everything.
    pub fn new() -> Self {
        Self { quick: false, progress: Observer::default() }
    }

    /// Checks only the header, the first fifty rows of each table, and the database without
    /// comparing its indexes with its tables.
    pub fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    /// Calls `progress` every few hundred rows.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Checks the records of this account with its vault.
    ///
    /// # Errors
    /// [`Error::Sqlite`] if the database cannot be read. Damage is no error; the report lists it.
    pub async fn run(&self, store: &impl OwnStore, vault: &Vault) -> Result<VerifyReport> {
        let OwnRows(store) = store.own_rows();
        let mut report = VerifyReport::default();
        let header = HeaderInfo::read(&*store).await?;
        let copies = header.map_or(0, |header| header.intact_copies);
        if copies < HeaderCopy::BOTH.len() as u8 {
            report.damaged("sender_keys", 0, format!("{copies} of 2 copies of the vault header are intact"));
        }
        // Before the rows are read, so that a change of the data key waits until they are opened.
        let held = vault.state();
        let mut snapshot = store.snapshot().await?;
        let (total, mut done) = (if self.quick { 0 } else { snapshot.count().await.or_else(if_damaged)? }, 0);
        let tell = |rows: u64| {
            done += rows;
            self.progress.tell(Phase::Checking, done, total);
        };
        self.check_rows(&mut *snapshot, (vault, &held), &mut report, tell).await?;
        drop(snapshot);
        if vault.device_is_sealed() && report.checked(Record::Device) == 0 && !report.has_damaged("devices") {
            report.damaged("devices", 0, Error::DeviceMissing.to_string());
        }
        report.database = store.check_database(self.quick).await?;
        store.check_place()?;
        Ok(report)
    }

    /// Looks at the rows of every table.
    async fn check_rows(
        &self,
        snapshot: &mut dyn RowReader,
        (vault, held): (&Vault, &Arc<VaultState>),
        report: &mut VerifyReport,
        mut tell: impl FnMut(u64),
    ) -> Result<()> {
        for table in &TABLES {
            snapshot.begin(table);
            loop {
                let page = match snapshot.next().await {
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
                tell(page.len() as u64);
                for (row, found) in page {
                    report.look_at(vault, held, table, row, found).await?;
                }
                if self.quick {
                    break;
                }
            }
        }
        Ok(())
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

/// The result of a check. `Display` prints a table and the damage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    records: Vec<CheckedRecords>,
    damaged: Vec<DamagedRow>,
    /// May exceed the number of listed rows.
    damaged_rows: u64,
    #[serde(rename = "sqlite")]
    database: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CheckedRecords {
    #[serde(serialize_with = "label")]
    record: Record,
    sealed: u64,
    unauthenticated: u64,
}

/// A damaged row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DamagedRow {
    /// The table of the row.
    pub table: &'static str,
    /// The row id. Where rows have none, as in `mutation_macs` and `sender_key_devices` of a
    /// [`SqliteStore`](crate::SqliteStore), the position in the order of the keys, from 1. 0 for a
    /// missing record, and for a table as a whole.
    pub row: i64,
    /// The problem of the row.
    pub problem: String,
}

impl VerifyReport {
    /// `true` if the check found no damage.
    pub fn is_sound(&self) -> bool {
        self.damaged_rows == 0 && self.database.is_empty()
    }

    /// How many records of a kind are sound.
    pub fn checked(&self, record: Record) -> u64 {
        let found = self.records.iter().find(|checked| checked.record == record);
        found.map_or(0, |checked| checked.sealed + checked.unauthenticated)
    }

    /// The damaged rows, at most 1000 of them.
    pub fn damaged_rows(&self) -> &[DamagedRow] {
        &self.damaged
    }

    /// How many rows are damaged.
    pub fn damaged_count(&self) -> u64 {
        self.damaged_rows
    }

    /// The problems of the database, in SQLite's words.
    pub fn database_problems(&self) -> &[String] {
        &self.database
    }

    async fn look_at(
        &mut self,
        vault: &Vault,
        held: &Arc<VaultState>,
        table: &Table,
        row: i64,
        found: Result<Option<SealedRow>>,
    ) -> Result<()> {
        let checked = match found {
            Ok(None) => Ok(None),
            Ok(Some(found)) => {
                let record = record_of(&found);
                vault.check_row(held, found).await.map(|checked| Some((record, checked)))
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
                    RowCheck::Sealed => self.records[position].sealed += 1,
                    RowCheck::Unauthenticated => self.records[position].unauthenticated += 1,
                }
            }
            // The store failed, not the row.
            Err(error) if error.is_of_the_store() => return Err(error),
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
        for problem in &self.database {
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

/// Turns damage of the database into a result, because a check reports it.
fn if_damaged<T: Default>(error: Error) -> Result<T> {
    match error {
        #[cfg(feature = "sqlite")]
        Error::Sqlite { problem: SqliteProblem::Damaged, .. } => Ok(T::default()),
        #[cfg(feature = "postgres")]
        Error::Postgres { problem: PostgresProblem::Damaged, .. } => Ok(T::default()),
        error => Err(error),
    }
}
