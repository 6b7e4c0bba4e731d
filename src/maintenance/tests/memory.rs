//! An engine in memory, as unlike SQLite as possible: a row's id is its position, and pages follow
//! the order of the keys.

mod backend;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use wacore::store::error::StoreError;

use crate::error::{Error, Result};
use crate::method::{BoxFuture, Record};
use crate::rows::SealedRow;
use crate::rows::below::OwnDatabase;
use crate::rows::mark::Mark;
use crate::rows::store::{
    CountedRows, Found, OwnRows, OwnStore, Remains, Replacement, RowAsFound, RowPrefix, RowReader, Rows, TableFilter,
    UserAddresses,
};
use crate::rows::table::{ColumnKind, KeyPart, RawRow, TABLES, Table, TableSize, WholeRow};

/// How many rows a page has: few, so that every table of a test has several pages.
pub(super) const PAGE_ROWS: usize = 3;

/// The parts of a key. A number is 4 bytes, little-endian.
pub(super) type Key = Vec<Vec<u8>>;

/// All rows of all accounts.
pub(super) type Map = BTreeMap<(i32, &'static str, Key), Row>;

/// A hook that runs at a moment that a test chooses.
type Hook = Arc<dyn Fn(&'static Table) -> BoxFuture<'static, ()> + Send + Sync>;

/// A row: the columns that [`Table`] names, and the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    /// Empty where SQLite has NULL.
    pub(super) carrier: Vec<Vec<u8>>,
    pub(super) numbers: Vec<Option<i64>>,
    pub(super) rest: serde_json::Value,
    /// The engine has the row, but cannot read it.
    pub(super) is_lost: bool,
}

/// One account.
#[derive(Clone)]
pub(super) struct Memory {
    pub(super) database: Arc<Database>,
    account: i32,
    chosen: bool,
}

#[derive(Default)]
pub(super) struct Database {
    map: Mutex<Map>,
    /// Another process has it open.
    pub(super) is_shared: AtomicBool,
    /// Reading fails, as with a server that is gone.
    pub(super) is_gone: AtomicBool,
    before_change: Mutex<Option<Hook>>,
    before_count: Mutex<Option<BoxFuture<'static, ()>>>,
    /// The calls of maintenance that change no row.
    upkeep: Mutex<Vec<&'static str>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { database: Arc::default(), account: 1, chosen: false }
    }

    pub(super) fn account(&self, account: i32) -> Self {
        Self { database: self.database.clone(), account, chosen: true }
    }

    pub(super) fn map(&self) -> MutexGuard<'_, Map> {
        self.database.map.lock().unwrap()
    }

    /// Runs `hook` before maintenance changes rows of a table, and again for every page.
    pub(super) fn before_change(
        &self,
        hook: impl Fn(&'static Table) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) {
        *self.database.before_change.lock().unwrap() = Some(Arc::new(hook));
    }

    /// Has `first` run before the rows of a snapshot are counted the next time.
    pub(super) fn before_count(&self, first: BoxFuture<'static, ()>) {
        *self.database.before_count.lock().unwrap() = Some(first);
    }

    /// The calls of maintenance since the last time that change no row.
    pub(super) fn take_upkeep(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.database.upkeep.lock().unwrap())
    }

    async fn run_hook(&self, table: &'static Table) {
        let hook = self.database.before_change.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(table).await;
        }
    }

    fn note(&self, upkeep: &'static str) {
        self.database.upkeep.lock().unwrap().push(upkeep);
    }

    fn in_map(&self, table: &'static Table, key: Key) -> (i32, &'static str, Key) {
        (self.account, table.name, key)
    }

    /// The keys of the rows that have not changed since they were found. All positions count before
    /// the first row is removed.
    fn still_there(&self, map: &Map, rows: Vec<RowAsFound>) -> Vec<Option<(i32, &'static str, Key)>> {
        let find = |row: RowAsFound| {
            let place = usize::try_from(row.id - 1).ok()?;
            let (key, stored) = rows_of(map, self.account, row.table).nth(place)?;
            row.is(&stored.read(row.table, key)).then(|| self.in_map(row.table, key.clone()))
        };
        rows.into_iter().map(find).collect()
    }
}

impl Row {
    fn read(&self, table: &Table, key: &Key) -> Result<Option<SealedRow>> {
        if self.is_lost {
            return Err(Error::Malformed { record: table.record });
        }
        let part = |(bytes, kind): (&Vec<u8>, ColumnKind)| match kind {
            ColumnKind::Number => KeyPart::Number(number_in(bytes).into()),
            ColumnKind::Text | ColumnKind::Bytes => KeyPart::Bytes(bytes.clone()),
        };
        let key = key.iter().zip(table.key.iter().map(|column| column.kind)).map(part).collect();
        table.stored(RawRow { key, carrier: self.carrier.clone(), numbers: self.numbers.clone() })
    }
}

fn number_in(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

/// The rows of a table, in the order of their keys.
pub(super) fn rows_of<'m>(
    map: &'m Map,
    account: i32,
    table: &'static Table,
) -> impl Iterator<Item = (&'m Key, &'m Row)> {
    map.range((account, table.name, vec![])..)
        .take_while(move |((of, name, _), _)| (*of, *name) == (account, table.name))
        .map(|((_, _, key), row)| (key, row))
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory(account {})", self.account)
    }
}

impl OwnStore for Memory {
    fn own_rows(&self) -> OwnRows {
        OwnRows(Arc::new(self.clone()))
    }
}

impl OwnDatabase for Database {
    fn rows_of(self: Arc<Self>, account: i32, chosen: bool) -> Arc<dyn Rows> {
        Arc::new(Memory { database: self, account, chosen })
    }
}

/// Reads the current rows, or a copy of them.
struct Reader {
    store: Memory,
    copy: Option<Map>,
    table: Option<&'static Table>,
    /// The last key that was read.
    behind: Option<Key>,
}

#[async_trait]
impl RowReader for Reader {
    fn begin(&mut self, table: &'static Table) {
        (self.table, self.behind) = (Some(table), None);
    }

    async fn next(&mut self) -> Result<Option<Vec<Found>>> {
        let Some(table) = self.table else { return Ok(None) };
        if self.store.database.is_gone.load(Ordering::Relaxed) {
            return Err(Error::Store(StoreError::Connection("the engine is gone".into())));
        }
        let live;
        let map = match &self.copy {
            Some(copy) => copy,
            None => {
                live = self.store.map();
                &live
            }
        };
        let mut page = vec![];
        for (place, (key, row)) in (1..).zip(rows_of(map, self.store.account, table)) {
            if page.len() < PAGE_ROWS && self.behind.as_ref().is_none_or(|behind| key > behind) {
                page.push((place, row.read(table, key)));
                self.behind = Some(key.clone());
            }
        }
        Ok(Some(page).filter(|page| !page.is_empty()))
    }

    async fn count(&mut self) -> Result<u64> {
        let first = self.store.database.before_count.lock().unwrap().take();
        if let Some(first) = first {
            first.await;
        }
        match &self.copy {
            Some(copy) => Ok(count(copy, self.store.account, |_| true)),
            None => Ok(count(&self.store.map(), self.store.account, |_| true)),
        }
    }
}

/// Copies are tested over the engines that have files and servers.
const NOT_COPIED: Error = Error::InvalidInput { what: "the engine", problem: "is not copied" };

fn count(map: &Map, account: i32, which: TableFilter) -> u64 {
    TABLES.iter().filter(|table| which(table)).map(|table| rows_of(map, account, table).count() as u64).sum()
}

#[async_trait]
impl Rows for Memory {
    fn account_number(&self) -> i32 {
        self.account
    }

    fn account(&self, number: i32) -> Arc<dyn Rows> {
        Arc::new(Memory::account(self, number))
    }

    fn is_chosen(&self) -> bool {
        self.chosen
    }

    fn identity(&self) -> (usize, i32) {
        (Arc::as_ptr(&self.database) as usize, self.account)
    }

    fn place(&self) -> Option<Vec<u8>> {
        None
    }

    async fn accounts_in_use(&self) -> Result<Vec<i32>> {
        let mut accounts: Vec<_> = self.map().keys().map(|(account, ..)| *account).collect();
        accounts.dedup();
        Ok(accounts)
    }

    fn rows(&self) -> Box<dyn RowReader> {
        Box::new(Reader { store: self.clone(), copy: None, table: None, behind: None })
    }

    async fn snapshot(&self) -> Result<Box<dyn RowReader>> {
        let copy = Some(self.map().clone());
        Ok(Box::new(Reader { store: self.clone(), copy, table: None, behind: None }))
    }

    async fn count(&self, which: TableFilter) -> Result<u64> {
        Ok(count(&self.map(), self.account, which))
    }

    async fn sizes(&self) -> Result<Vec<TableSize>> {
        let map = self.map();
        let size = |table: &Table| {
            let rows = map.iter().filter(|((_, name, _), _)| *name == table.name);
            let bytes = rows.clone().flat_map(|(_, row)| &row.carrier).map(|column| column.len() as u64).sum();
            TableSize { name: table.name, rows: rows.count() as u64, bytes }
        };
        Ok(TABLES.iter().map(size).collect())
    }

    async fn sealed_prefixes(&self, mut each: Box<dyn FnMut(RowPrefix) + Send>) -> Result<Vec<CountedRows>> {
        let (map, mut counted) = (self.map(), vec![]);
        for table in TABLES.iter().filter(|table| table.is_sealed) {
            let mut rows = 0;
            for (key, row) in rows_of(&map, self.account, table) {
                rows += 1;
                let prefix = match row.read(table, key) {
                    Ok(None) => continue,
                    Ok(Some(row)) if table.is_placeholder(&row.value) => continue,
                    Ok(Some(row)) => row.value.first_chunk().copied(),
                    Err(_) => None,
                };
                each(RowPrefix { table: table.name, row: rows, prefix });
            }
            counted.push(CountedRows { table: table.name, rows: rows.unsigned_abs() });
        }
        Ok(counted)
    }

    async fn replace(&self, table: &'static Table, rows: Vec<Replacement>) -> Result<u64> {
        if rows.is_empty() {
            return Ok(0);
        }
        self.run_hook(table).await;
        let (mut map, mut replaced) = (self.map(), 0);
        for Replacement { columns, old, new, .. } in rows {
            let (old, new) = (table.carry(old)?, table.carry(new)?);
            if let Some(row) = map.get_mut(&self.in_map(table, columns)).filter(|row| row.carrier == old) {
                row.carrier = new;
                replaced += 1;
            }
        }
        Ok(replaced)
    }

    async fn delete(&self, rows: Vec<RowAsFound>) -> Result<Vec<bool>> {
        if let Some(first) = rows.first() {
            self.run_hook(first.table).await;
        }
        let mut map = self.map();
        let there = self.still_there(&map, rows);
        Ok(there.into_iter().map(|key| key.is_some_and(|key| map.remove(&key).is_some())).collect())
    }

    async fn delete_all(&self, records: Vec<Record>) -> Result<Vec<(Record, u64)>> {
        let (mut map, mut deleted) = (self.map(), vec![]);
        for table in TABLES.iter().filter(|table| records.contains(&table.record)) {
            deleted.push((table.record, rows_of(&map, self.account, table).count() as u64));
            map.retain(|(account, name, _), _| (*account, *name) != (self.account, table.name));
        }
        Ok(deleted)
    }

    async fn delete_sessions(
        &self,
        of: Vec<UserAddresses>,
        rows: Vec<RowAsFound>,
    ) -> Result<(Vec<Option<Vec<u8>>>, u64)> {
        let (mut map, mut values) = (self.map(), vec![]);
        let rows = self.still_there(&map, rows);
        let is_meant = |address: &str| {
            let of_user = |of: &UserAddresses| {
                let rest = address.strip_prefix(&of.prefix);
                rest.is_some_and(|rest| rest.starts_with('@')) || of.bare.iter().any(|bare| bare == address)
            };
            of.iter().any(of_user)
        };
        map.retain(|(account, name, key), row| {
            let is_session = (*account, *name) == (self.account, "sessions");
            if !is_session || !is_meant(&String::from_utf8_lossy(&key[0])) {
                return true;
            }
            values.push(Some(std::mem::take(row)).filter(|row| !row.is_lost).map(|row| row.carrier.concat()));
            false
        });
        let deleted = rows.into_iter().flatten().filter(|key| map.remove(key).is_some()).count();
        Ok((values, deleted as u64))
    }

    async fn refuse_others(&self) -> Result<()> {
        self.note("refuse_others");
        if self.database.is_shared.load(Ordering::Relaxed) { Err(Error::StoreInUse) } else { Ok(()) }
    }

    async fn drain(&self) -> Result<()> {
        self.note("drain");
        Ok(())
    }

    async fn settle(&self) {
        self.note("settle");
    }

    async fn checkpoint(&self) -> Result<()> {
        self.note("checkpoint");
        Ok(())
    }

    async fn rewrite(&self) -> Result<Remains> {
        self.note("rewrite");
        Ok(Remains::Nowhere)
    }

    async fn check_database(&self, _quick: bool) -> Result<Vec<String>> {
        self.note("check_database");
        Ok(vec![])
    }

    async fn refuse_damage(&self) -> Result<()> {
        self.note("refuse_damage");
        Ok(())
    }

    fn check_place(&self) -> Result<()> {
        Ok(())
    }

    async fn acquire_for_copy(&self) -> Result<()> {
        Err(NOT_COPIED)
    }

    fn end_copy(&self, _mark: Option<Mark>) {}

    fn is_read_only(&self) -> bool {
        false
    }

    async fn mark(&self) -> Result<Option<Mark>> {
        Err(NOT_COPIED)
    }

    async fn set_mark(&self, _mark: Option<Mark>) -> Result<()> {
        Err(NOT_COPIED)
    }

    async fn whole_rows(
        &self,
        _table: &'static Table,
        _behind: Option<WholeRow>,
        _limit: usize,
    ) -> Result<Vec<WholeRow>> {
        Err(NOT_COPIED)
    }

    async fn put_whole_rows(&self, _table: &'static Table, _rows: Vec<WholeRow>) -> Result<()> {
        Err(NOT_COPIED)
    }

    async fn delete_whole_rows(&self, _table: &'static Table, _rows: Vec<WholeRow>) -> Result<()> {
        Err(NOT_COPIED)
    }

    async fn back_up(&self, target: &Path) -> Result<bool> {
        self.note("back_up");
        let content = format!("{:?}", self.map());
        std::fs::write(target, content).map(|()| true).map_err(|source| Error::File { what: "backup", source })
    }

    async fn close_database(&self) -> Result<()> {
        Ok(())
    }
}
