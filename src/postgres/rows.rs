//! The rows of a PostgreSQL store, for maintenance.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::decode::{first, get};
use super::lane::{Job, send};
use super::lease::State;
use super::link::Link;
use super::statement::{Cell, Row};
use super::store::{PostgresStore, Shared};
use super::tables::{DELETE_ACCOUNT, SqlTable, TABLES};
use super::walk::{LiveReader, Snapshot, failed};
use super::whole_rows::WholeTable;
use crate::ended;
use crate::error::{Error, PostgresProblem, Result};
use crate::method::Record;
use crate::rows::SealedRow;
use crate::rows::below::OwnDatabase;
use crate::rows::mark::Mark;
use crate::rows::store::{
    CountedRows, OwnRows, OwnStore, Remains, Replacement, RowAsFound, RowPrefix, RowReader, Rows, TableFilter,
    UserAddresses,
};
use crate::rows::table::{MARK_ADDRESS, Table, TableSize, WholeRow};

impl OwnStore for PostgresStore {
    fn own_rows(&self) -> OwnRows {
        OwnRows(Arc::new(self.clone()))
    }
}

impl OwnDatabase for Shared {
    fn rows_of(self: Arc<Self>, account: i32, _: bool) -> Arc<dyn Rows> {
        Arc::new(PostgresStore::of(self, account))
    }
}

#[async_trait]
impl Rows for PostgresStore {
    fn account_number(&self) -> i32 {
        self.account
    }

    fn account(&self, number: i32) -> Arc<dyn Rows> {
        Arc::new(Self::of(self.shared().clone(), number))
    }

    /// The caller names the account when it opens a store.
    fn is_chosen(&self) -> bool {
        true
    }

    fn identity(&self) -> (usize, i32) {
        (Arc::as_ptr(self.shared()) as usize, self.account)
    }

    /// The database cluster, which is the same on all its servers, and the database and the schema in it.
    fn place(&self) -> Option<Vec<u8>> {
        let (core, account) = (self.core(), self.account.to_le_bytes());
        let system = core.system()?.to_le_bytes();
        let (database, schema) = (core.options.target.database.as_bytes(), core.options.schema.as_bytes());
        Some([b"postgres\0", &system[..], database, b"\0", schema, b"\0", &account].concat())
    }

    async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        PostgresStore::accounts_in_use(self).await
    }

    fn rows(&self) -> Box<dyn RowReader> {
        Box::new(LiveReader::new(self.clone()))
    }

    async fn snapshot(&self) -> Result<Box<dyn RowReader>> {
        self.check()?;
        Ok(Box::new(Snapshot::open(self.core(), self.account).await?))
    }

    async fn count(&self, which: TableFilter) -> Result<u64> {
        self.count_rows(which).await
    }

    async fn sizes(&self) -> Result<Vec<TableSize>> {
        // Reads all rows of all accounts, which takes long in a large database.
        let link = Link::connect(self.core()).await.map_err(failed)?;
        let mut sizes = vec![];
        for table in TABLES.iter() {
            let (name, record) = (table.table.name, table.table.record);
            let rows = link.ask_long(table.size, &[]).await.map_err(failed)?;
            let size = first(&rows, |row| Ok((get::<i64>(row, 0, record)?, get::<i64>(row, 1, record)?)))?;
            let (rows, bytes) = size.unwrap_or_default();
            sizes.push(TableSize { name, rows: rows.unsigned_abs(), bytes: bytes.unsigned_abs() });
        }
        link.close().await;
        Ok(sizes)
    }

    async fn sealed_prefixes(&self, mut each: Box<dyn FnMut(RowPrefix) + Send>) -> Result<Vec<CountedRows>> {
        self.check()?;
        Snapshot::open(self.core(), self.account).await?.prefixes(&mut *each).await
    }

    async fn replace(&self, table: &'static Table, rows: Vec<Replacement>) -> Result<u64> {
        let sql = SqlTable::of(table);
        let Some(statement) = &sql.replace else { return Ok(0) };
        let rows = rows.into_iter().map(|Replacement { columns, old, new, .. }| {
            let (old, new) = (sql.carriers(old)?, sql.carriers(new)?);
            Ok(sql.key_of(columns)?.into_iter().chain(old).chain(new).collect())
        });
        // The header is changed afterwards, and it must not reach the disk before these rows.
        let answer = self.write(statement, rows.collect::<Result<_>>()?, true).await?;
        answer.rows.iter().map(|row| get::<i64>(row, 1, table.record).map(i64::unsigned_abs)).sum()
    }

    async fn delete(&self, rows: Vec<RowAsFound>) -> Result<Vec<bool>> {
        let mut keys = vec![];
        // Before any row is deleted, because the ids are places in the order of the keys.
        for row in &rows {
            keys.push(self.key_at_place(row).await?);
        }
        let mut deleted = vec![];
        for (row, key) in rows.iter().zip(keys) {
            deleted.push(match key {
                Some(parameters) => self.delete_row(row.table, parameters).await?,
                None => false,
            });
        }
        ended::note();
        Ok(deleted)
    }

    async fn delete_all(&self, records: Vec<Record>) -> Result<Vec<(Record, u64)>> {
        let mut deleted = vec![];
        for table in TABLES.iter().filter(|table| records.contains(&table.table.record)) {
            let record = table.table.record;
            let answer = self.write(&table.delete_all, vec![Row::new()], true).await?;
            deleted.push((record, first(&answer.rows, |row| get::<i64>(row, 1, record))?.unwrap_or(0).unsigned_abs()));
        }
        ended::note();
        Ok(deleted)
    }

    async fn delete_sessions(
        &self,
        of: Vec<UserAddresses>,
        rows: Vec<RowAsFound>,
    ) -> Result<(Vec<Option<Vec<u8>>>, u64)> {
        let mut sessions = vec![];
        for address in self.addresses_of(of).await? {
            let Some(found) = self.session_at(&address).await? else { continue };
            let key = Row::from_iter([Cell::from(address), found.clone().map_or(Cell::Null, Cell::from)]);
            if self.delete_row(table_of(Record::Session), key).await? {
                sessions.push(found);
            }
        }
        let deleted = Rows::delete(self, rows).await?;
        Ok((sessions, deleted.into_iter().map(u64::from).sum()))
    }

    /// Takes the lease: then no other process writes this account.
    async fn refuse_others(&self) -> Result<()> {
        self.ready_to_write().await
    }

    async fn drain(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.core().options.deadline;
        send(&self.shared().writer(self.account)?, deadline, Job::Barrier(reply)).await?;
        answer.await.map_err(|_| Error::Closed { what: "store" })
    }

    /// The server does this by itself.
    async fn settle(&self) {}

    /// The server does this by itself.
    async fn checkpoint(&self) -> Result<()> {
        Ok(())
    }

    /// Lets the server reuse the space of replaced rows. It rewrites no table: that would lock all accounts out.
    async fn rewrite(&self) -> Result<Remains> {
        let link = Link::connect(self.core()).await.map_err(failed)?;
        let tables = TABLES.iter().filter(|table| table.table.is_sealed);
        let names: Vec<_> = tables.map(|table| format!("@.{}", table.table.name)).collect();
        let vacuum = self.core().in_schema(&format!("VACUUM {}", names.join(", ")));
        link.long_command(&vacuum).await.map_err(failed)?;
        link.close().await;
        Ok(Remains::OnTheServer)
    }

    /// Compares each index with its table, if the server has the extension `amcheck` and the role may use it.
    async fn check_database(&self, quick: bool) -> Result<Vec<String>> {
        const INDEXES: &str = "SELECT i.indexrelid::bigint, c.relname::text FROM pg_catalog.pg_index i
            JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND to_regprocedure('bt_index_check(regclass, boolean)') IS NOT NULL ORDER BY 2";
        const CHECK: &str = "SELECT bt_index_check($1::bigint::oid::regclass, $2)";
        let link = Link::connect(self.core()).await.map_err(failed)?;
        let schema = &self.core().options.schema;
        let mut problems = vec![];
        for row in link.ask(INDEXES, &[(schema, Type::TEXT)]).await.map_err(failed)? {
            let (index, name) = (get::<i64>(&row, 0, Record::Store)?, get::<String>(&row, 1, Record::Store)?);
            let whole = !quick;
            match link.ask_long(CHECK, &[(&index, Type::INT8), (&whole, Type::BOOL)]).await {
                Ok(_) => {}
                Err(failure) if failure.problem() == PostgresProblem::Damaged => {
                    problems.push(format!("the index {name} does not agree with its table: run REINDEX"));
                }
                // The role may not use it.
                Err(failure) if failure.problem() == PostgresProblem::NotAllowed => break,
                Err(failure) => return Err(failed(failure)),
            }
        }
        link.close().await;
        Ok(problems)
    }

    /// The server finds damage when it reads the rows.
    async fn refuse_damage(&self) -> Result<()> {
        Ok(())
    }

    fn check_place(&self) -> Result<()> {
        Ok(())
    }

    async fn acquire_for_copy(&self) -> Result<()> {
        self.lease().take_despite_mark();
        if Rows::is_read_only(self) { Ok(()) } else { self.ready_to_write().await }
    }

    fn end_copy(&self, mark: Option<Mark>) {
        self.lease().end_despite_mark();
        match mark {
            Some(Mark::Moved(_)) => self.lease().end(State::Moved),
            Some(Mark::Unfinished(_)) => self.lease().end(State::Unfinished),
            Some(Mark::Complete(_)) | None => {}
        }
    }

    fn is_read_only(&self) -> bool {
        PostgresStore::is_read_only(self)
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        let table = SqlTable::of(table_of(Record::SenderKey));
        let rows = self.read_long(&table.one, Row::from_iter([Cell::from(MARK_ADDRESS)])).await?;
        first(&rows, |row| get::<&[u8]>(row, 0, Record::SenderKey).map(Mark::of))
    }

    async fn set_mark(&self, mark: Option<Mark>) -> Result<()> {
        let (address, table) = (Cell::from(MARK_ADDRESS), table_of(Record::SenderKey));
        let (statement, row) = match mark {
            Some(mark) => (&WholeTable::of(table).put, Row::from_iter([address, Cell::from(mark.encode())])),
            None => (&WholeTable::of(table).delete, Row::from_iter([address])),
        };
        self.write(statement, vec![row], true).await.map(drop)
    }

    async fn whole_rows(&self, table: &'static Table, behind: Option<WholeRow>, limit: usize) -> Result<Vec<WholeRow>> {
        let table = WholeTable::of(table);
        let (statement, parameters) = table.page(behind.as_ref(), i64::try_from(limit).unwrap_or(i64::MAX))?;
        self.read_long(statement, parameters).await?.iter().map(|row| table.read(row)).collect()
    }

    async fn put_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()> {
        let table = WholeTable::of(table);
        let rows = rows.iter().map(|row| table.put_row(row)).collect::<Result<_>>()?;
        self.write(&table.put, rows, false).await.map(drop)
    }

    async fn delete_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()> {
        let table = WholeTable::of(table);
        for row in &rows {
            self.write(&table.delete, vec![table.key_of(row)?], false).await?;
        }
        Ok(())
    }

    async fn back_up(&self, _: &Path) -> Result<bool> {
        Ok(false)
    }

    async fn close_database(&self) -> Result<()> {
        self.close().await
    }
}

/// The table of a kind of record.
fn table_of(record: Record) -> &'static Table {
    let table = TABLES.iter().find(|table| table.table.record == record);
    table.map_or(&crate::rows::table::TABLES[0], |table| table.table)
}

impl PostgresStore {
    /// The numbers of all accounts that have a device, the header of a vault or sessions, in ascending order.
    ///
    /// # Errors
    /// [`Error::Postgres`] and [`Error::Closed`].
    pub async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        let rows = self.read_long(&super::device::ACCOUNTS, Row::new()).await?;
        rows.iter().map(|row| get(row, 0, Record::Store)).collect()
    }

    /// Deletes every record of this account in one transaction. Other accounts stay. The server's log, its standbys and
    /// its archives still have the records.
    ///
    /// From then on, every call on this handle, its clones, and the vaults and layers above them fails with
    /// [`Error::AccountDeleted`]. To use the account again, open it again.
    ///
    /// # Errors
    /// [`Error::AccountInUse`] if another process writes the account, [`Error::LeaseLost`], [`Error::Postgres`] and
    /// [`Error::Closed`].
    pub async fn delete_account(&self) -> Result<()> {
        self.lease().take_despite_mark();
        self.write(&DELETE_ACCOUNT, vec![Row::new()], true).await?;
        self.lease().end(State::Deleted);
        Ok(())
    }

    pub(super) async fn count_rows(&self, which: TableFilter) -> Result<u64> {
        let mut count = 0;
        for table in TABLES.iter().filter(|table| which(table.table)) {
            let rows = self.read_long(&table.count, Row::new()).await?;
            count += first(&rows, |row| get::<i64>(row, 0, table.table.record))?.unwrap_or(0).unsigned_abs();
        }
        Ok(count)
    }

    /// The session at an address: `Some(None)` if the server finds damage in it.
    async fn session_at(&self, address: &[u8]) -> Result<Option<Option<Vec<u8>>>> {
        let table = SqlTable::of(table_of(Record::Session));
        match self.read_long(&table.one, Row::from_iter([Cell::from(address)])).await {
            Ok(rows) => first(&rows, |row| super::decode::blob(row, 0, Record::Session)).map(|found| found.map(Some)),
            Err(Error::Postgres { problem: PostgresProblem::Damaged, .. }) => Ok(Some(None)),
            Err(error) => Err(error),
        }
    }

    /// The parameters that delete a row, if it is unchanged since it was found.
    async fn key_at_place(&self, row: &RowAsFound) -> Result<Option<Row>> {
        let sql = SqlTable::of(row.table);
        let rows = self.read_long(&sql.at, Row::from_iter([Cell::from(row.id - 1)])).await?;
        let Some(at_place) = rows.first() else { return Ok(None) };
        let found: Result<Option<SealedRow>> = sql.stored(at_place);
        if !row.is(&found) {
            return Ok(None);
        }
        let key = sql.key(at_place, sql.key_at())?;
        Ok(Some(match found {
            Ok(Some(found)) => key.into_iter().chain(sql.carriers(found.value)?).collect(),
            _ => key.into_iter().chain(sql.no_carriers()).collect(),
        }))
    }

    async fn delete_row(&self, table: &'static Table, parameters: Row) -> Result<bool> {
        let answer = self.write(&SqlTable::of(table).delete, vec![parameters], true).await?;
        Ok(first(&answer.rows, |row| get::<i64>(row, 1, table.record))?.is_some_and(|count| count > 0))
    }
}
