//! The rows of an SQLite store, for maintenance.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::connection::{Statements, permitted};
use super::database::Database;
use super::lease::mark;
use super::pages::count;
use super::store::{SqliteStore, numbers};
use super::tables::{SqlTable, TABLES};
use super::walk::{LiveReader, Snapshot};
use super::whole_rows::WholeTable;
use super::write_plan::WritePlan;
use crate::ended;
use crate::error::Result;
use crate::method::Record;
use crate::rows::below::OwnDatabase;
use crate::rows::mark::Mark;
use crate::rows::store::{
    CountedRows, OwnRows, OwnStore, Remains, Replacement, RowAsFound, RowPrefix, RowReader, Rows, TableFilter,
    UserAddresses,
};
use crate::rows::table::{MARK_ADDRESS, Table, TableSize, WholeRow};

impl OwnStore for SqliteStore {
    fn own_rows(&self) -> OwnRows {
        OwnRows(Arc::new(self.clone()))
    }
}

impl OwnDatabase for Database {
    fn rows_of(self: Arc<Self>, account: i32, chosen: bool) -> Arc<dyn Rows> {
        Arc::new(SqliteStore { chosen, ..SqliteStore::new(self, account) })
    }
}

#[async_trait]
impl Rows for SqliteStore {
    fn account_number(&self) -> i32 {
        self.account
    }

    fn account(&self, number: i32) -> Arc<dyn Rows> {
        Arc::new(SqliteStore::account(self, number))
    }

    fn is_chosen(&self) -> bool {
        self.chosen
    }

    fn identity(&self) -> (usize, i32) {
        (Arc::as_ptr(&self.database) as usize, self.account)
    }

    fn place(&self) -> Option<Vec<u8>> {
        let path = self.path().filter(|_| self.database.wal.config.unfinished.is_none())?;
        let account = self.account.to_le_bytes();
        Some([b"sqlite\0", path.as_os_str().as_encoded_bytes(), b"\0", &account].concat())
    }

    async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        SqliteStore::accounts_in_use(self).await
    }

    fn rows(&self) -> Box<dyn RowReader> {
        Box::new(LiveReader::new(self.clone()))
    }

    async fn snapshot(&self) -> Result<Box<dyn RowReader>> {
        self.lease.check()?;
        Ok(Box::new(Snapshot::open(self).await?))
    }

    async fn count(&self, which: TableFilter) -> Result<u64> {
        self.lease.check()?;
        let account = self.account;
        self.database.read_long(move |c| count(c, account, which)).await
    }

    async fn sizes(&self) -> Result<Vec<TableSize>> {
        let sizes = self.database.read_long(|c| TABLES.iter().map(|table| table.size(c)).collect()).await?;
        self.database.check_files()?;
        Ok(sizes)
    }

    async fn sealed_prefixes(&self, mut each: Box<dyn FnMut(RowPrefix) + Send>) -> Result<Vec<CountedRows>> {
        self.lease.check()?;
        let mut snapshot = Snapshot::open(self).await?;
        let account = self.account;
        let scan = move |c: &Connection| {
            let sealed = TABLES.iter().filter(|table| table.table.is_sealed);
            sealed.map(|table| table.prefixes(c, account, &mut *each)).collect()
        };
        snapshot.run(scan).await
    }

    async fn replace(&self, table: &'static Table, rows: Vec<Replacement>) -> Result<u64> {
        let Some(sql) = &SqlTable::of(table).replace else { return Ok(0) };
        let account = self.account;
        let parameters = rows.into_iter().map(|row| SqlTable::of(table).replacement(account, row));
        let rows = parameters.collect::<Result<Vec<Vec<Value>>>>()?;
        if rows.is_empty() {
            return Ok(0);
        }
        let write = move |c: &Connection| {
            Ok(c.run_each(sql, &rows, |statement, row| statement.execute(params_from_iter(row)))? as u64)
        };
        self.database.write_records(WritePlan::RELAXED.transaction().blocking(), &self.lease, write).await
    }

    async fn delete(&self, rows: Vec<RowAsFound>) -> Result<Vec<bool>> {
        let account = self.account;
        let delete = move |c: &Connection| rows.iter().map(|row| delete_row(c, account, row)).collect();
        let deleted =
            self.database.write_records(WritePlan::DURABLE.transaction().blocking(), &self.lease, delete).await?;
        ended::note();
        Ok(deleted)
    }

    async fn delete_all(&self, records: Vec<Record>) -> Result<Vec<(Record, u64)>> {
        let account = self.account;
        let delete = move |c: &Connection| {
            let tables = TABLES.iter().filter(|table| records.contains(&table.table.record));
            tables.map(|table| Ok((table.table.record, c.run(&table.delete_all, (account,))? as u64))).collect()
        };
        let deleted =
            self.database.write_records(WritePlan::DURABLE.transaction().blocking(), &self.lease, delete).await?;
        ended::note();
        Ok(deleted)
    }

    async fn delete_sessions(
        &self,
        of: Vec<UserAddresses>,
        rows: Vec<RowAsFound>,
    ) -> Result<(Vec<Option<Vec<u8>>>, u64)> {
        let account = self.account;
        let delete = move |c: &Connection| {
            let (mut sessions, mut deleted) = (vec![], 0);
            for addresses in &of {
                sessions.extend(delete_sessions(c, account, addresses)?);
            }
            for row in &rows {
                deleted += u64::from(delete_row(c, account, row)?);
            }
            Ok((sessions, deleted))
        };
        let deleted =
            self.database.write_records(WritePlan::DURABLE.transaction().blocking(), &self.lease, delete).await?;
        ended::note();
        Ok(deleted)
    }

    async fn refuse_others(&self) -> Result<()> {
        self.database.refuse_others().await
    }

    async fn drain(&self) -> Result<()> {
        self.database.write(WritePlan::MAINTENANCE, |_| Ok(())).await
    }

    async fn settle(&self) {
        SqliteStore::settle(self).await;
    }

    async fn checkpoint(&self) -> Result<()> {
        SqliteStore::checkpoint(self).await
    }

    async fn rewrite(&self) -> Result<Remains> {
        SqliteStore::rewrite(self).await.map(|()| Remains::Nowhere)
    }

    async fn check_database(&self, quick: bool) -> Result<Vec<String>> {
        SqliteStore::check_database(self, quick).await
    }

    async fn refuse_damage(&self) -> Result<()> {
        SqliteStore::refuse_damage(self).await
    }

    fn check_place(&self) -> Result<()> {
        self.database.check_files()
    }

    async fn acquire_for_copy(&self) -> Result<()> {
        self.lease.take_despite_mark();
        self.acquire().await
    }

    fn end_copy(&self, mark: Option<Mark>) {
        self.lease.end_copy(mark.filter(|mark| mark.refuse(self.account).is_err()));
    }

    fn is_read_only(&self) -> bool {
        self.database.wal.location.is_read_only()
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        let account = self.account;
        self.database.read(move |c| mark(c, account)).await
    }

    async fn set_mark(&self, mark: Option<Mark>) -> Result<()> {
        const SET: &str = "INSERT INTO sender_keys (account, address, record) VALUES (?1, ?2, ?3)
            ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";
        const DELETE: &str = "DELETE FROM sender_keys WHERE account = ?1 AND address = ?2";
        let account = self.account;
        let set = move |c: &Connection| match mark {
            Some(mark) => c.run(SET, (account, MARK_ADDRESS, mark.encode())).map(drop),
            None => c.run(DELETE, (account, MARK_ADDRESS)).map(drop),
        };
        self.database.write_records(WritePlan::DURABLE, &self.lease, set).await
    }

    async fn whole_rows(&self, table: &'static Table, behind: Option<WholeRow>, limit: usize) -> Result<Vec<WholeRow>> {
        self.lease.check()?;
        let (account, limit) = (self.account, i64::try_from(limit).unwrap_or(i64::MAX));
        self.database.read_long(move |c| WholeTable::of(table).rows(c, account, behind.as_ref(), limit)).await
    }

    async fn put_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()> {
        let account = self.account;
        let put = move |c: &Connection| WholeTable::of(table).put(c, account, &rows);
        self.database.write_records(WritePlan::RELAXED.transaction().blocking(), &self.lease, put).await
    }

    async fn delete_whole_rows(&self, table: &'static Table, rows: Vec<WholeRow>) -> Result<()> {
        let account = self.account;
        let delete = move |c: &Connection| WholeTable::of(table).delete(c, account, &rows);
        self.database.write_records(WritePlan::RELAXED.transaction().blocking(), &self.lease, delete).await
    }

    async fn back_up(&self, target: &Path) -> Result<bool> {
        self.backup(target).await.map(|()| true)
    }

    async fn close_database(&self) -> Result<()> {
        self.close().await
    }
}

/// Deletes a row, unless it has changed since it was found.
fn delete_row(c: &Connection, account: i32, row: &RowAsFound) -> Result<bool> {
    let table = SqlTable::of(row.table);
    let Some(found) = table.row_by_id(c, row.id, account)? else { return Ok(false) };
    if !row.is(&found) {
        return Ok(false);
    }
    let sql = format!("DELETE FROM {} WHERE rowid = ?1 AND account = ?2", row.table.name);
    Ok(permitted(|| c.prepare(&sql))?.execute((row.id, account))? > 0)
}

/// Deletes the sessions of a user, and returns their values.
fn delete_sessions(c: &Connection, account: i32, of: &UserAddresses) -> Result<Vec<Option<Vec<u8>>>> {
    const WITH_PREFIX: &str = "SELECT rowid, record FROM sessions WHERE account = ?1
        AND address > ?2 || '@' AND address < ?2 || 'A'";
    const BARE: &str = "SELECT rowid, record FROM sessions WHERE account = ?1 AND address = ?2";
    let found = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get_ref(1)?.as_bytes().ok().map(<[u8]>::to_vec)));
    let mut rows = c.all(WITH_PREFIX, (account, &of.prefix), found)?;
    for address in &of.bare {
        rows.extend(c.all(BARE, (account, address), found)?);
    }
    let delete = |(id, value)| c.run("DELETE FROM sessions WHERE rowid = ?1", (id,)).map(|_| value);
    rows.into_iter().map(delete).collect()
}

impl SqliteStore {
    /// The numbers of all accounts that have a device, the header of a vault or sessions, in
    /// ascending order. Skips rows whose account is not a 32-bit number;
    /// [`integrity_check`](Self::integrity_check) reports those whose account is not an integer.
    ///
    /// # Errors
    /// [`Error::Sqlite`](crate::Error::Sqlite).
    pub async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        const SQL: &str = "SELECT account FROM devices UNION SELECT account FROM sender_keys
            UNION SELECT account FROM sessions ORDER BY account";
        self.database.read_long(|c| numbers(c, SQL)).await
    }
}
