//! The form of every statement, and its parameters.
//!
//! A write is one statement that names the account ($1), the epoch of its lease ($2), the durability of its commit ($3)
//! and the holder of the lease ($4), and takes its rows as one array per column from $5 on. So a batch is one statement,
//! and calls that wait together become one.
//!
//! The fence in front of it selects the row of the lease `FOR KEY SHARE`. Without that lock the statement would see the
//! lease as it was when the statement began: another process could take the account over in between, and the write
//! would be accepted after it. The holder stands beside the epoch because a failover to an asynchronous standby can
//! take an epoch back, which then exists twice.

use std::collections::{HashMap, HashSet};
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::method::Record;

/// An upsert under the fence. It changes no row if the lease is another process's.
macro_rules! upsert {
    ($rest:literal) => {
        concat!(
            "WITH fence AS MATERIALIZED (SELECT account, set_config('synchronous_commit', $3, true),
            set_config('client_min_messages', 'warning', true)
            FROM @.leases WHERE account = $1 AND epoch = $2 AND holder = $4 FOR KEY SHARE) ",
            $rest
        )
    };
}

/// A change under the fence that may rightly affect no row. It returns whether the fence held, and the number of rows or
/// something else about the change.
macro_rules! change {
    ($change:literal) => {
        change!($change, "(SELECT count(*) FROM change)")
    };
    ($change:literal, $second:literal) => {
        concat!(
            "WITH fence AS MATERIALIZED (SELECT account, set_config('synchronous_commit', $3, true),
            set_config('client_min_messages', 'warning', true)
            FROM @.leases WHERE account = $1 AND epoch = $2 AND holder = $4 FOR KEY SHARE), change AS (",
            $change,
            ") SELECT EXISTS (SELECT FROM fence), ",
            $second
        )
    };
}

pub(super) use {change, upsert};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Bytes,
    Long,
    Flag,
    /// A list of byte strings as one value. Only reads have it.
    BytesList,
    /// A list of numbers as one value. Only reads have it.
    LongList,
}

impl Column {
    pub(super) fn of_one(self) -> Type {
        match self {
            Self::Bytes => Type::BYTEA,
            Self::Long => Type::INT8,
            Self::Flag => Type::BOOL,
            Self::BytesList => Type::BYTEA_ARRAY,
            Self::LongList => Type::INT8_ARRAY,
        }
    }

    fn of_array(self) -> Type {
        match self {
            Self::Bytes | Self::BytesList => Type::BYTEA_ARRAY,
            Self::Long | Self::LongList => Type::INT8_ARRAY,
            Self::Flag => Type::BOOL_ARRAY,
        }
    }
}

/// How a statement is run, and how its answer is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads. The columns are single values.
    Read,
    /// Writes each row of the arrays: no affected row means that the fence did not hold.
    Upsert(Fold),
    /// Returns whether the fence held.
    Change(Fold),
    /// As `Change` with single values instead of arrays.
    Single,
    /// As `Single`, but a repetition would have another outcome.
    Once,
}

/// How rows of one key become one row. Several rows of one key are an error in an upsert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    /// The last row stays.
    Last,
    /// Message secrets: the last secret, the later expiry and time; an expiry of 0 means never.
    MessageSecret,
    /// The outcome depends on the stored row, so calls are not merged.
    Never,
}

/// The lease that a write relies on, and the durability of its commit.
#[derive(Clone, Copy)]
pub(super) struct Fence<'a> {
    pub(super) epoch: i64,
    pub(super) durability: &'static str,
    pub(super) holder: &'a [u8; 16],
}

/// The rows of an answer, and how many the statement changed.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) rows: Vec<tokio_postgres::Row>,
    pub(super) affected: u64,
}

/// A statement of the store.
#[derive(Debug)]
pub(super) struct Statement {
    /// Its text; `@` stands for the schema.
    pub(super) sql: &'static str,
    pub(super) record: Record,
    pub(super) kind: Kind,
    pub(super) columns: &'static [Column],
    /// How many of the first columns are the key.
    pub(super) key: usize,
    /// Selects whether a row is as this statement leaves it. Its parameters are the account and the columns of one row.
    /// Statements whose rows other calls change later have none.
    pub(super) proof: Option<&'static str>,
}

impl Statement {
    pub(super) const fn read(record: Record, columns: &'static [Column], sql: &'static str) -> Self {
        Self { sql, record, kind: Kind::Read, columns, key: 0, proof: None }
    }

    pub(super) const fn upsert(record: Record, key: usize, columns: &'static [Column], sql: &'static str) -> Self {
        Self { sql, record, kind: Kind::Upsert(Fold::Last), columns, key, proof: None }
    }

    pub(super) const fn change(record: Record, columns: &'static [Column], sql: &'static str) -> Self {
        Self { sql, record, kind: Kind::Change(Fold::Last), columns, key: columns.len(), proof: None }
    }

    pub(super) const fn single(record: Record, columns: &'static [Column], sql: &'static str) -> Self {
        Self { sql, record, kind: Kind::Single, columns, key: columns.len(), proof: None }
    }

    pub(super) const fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub(super) const fn proof(self, sql: &'static str) -> Self {
        Self { proof: Some(sql), ..self }
    }

    /// Waiting calls of this statement become one.
    pub(super) fn merges(&self) -> bool {
        matches!(self.kind, Kind::Upsert(fold) | Kind::Change(fold) if fold != Fold::Never)
    }

    /// The types of its parameters.
    pub(super) fn types(&self) -> Vec<Type> {
        const FENCE: [Type; 4] = [Type::INT4, Type::INT8, Type::TEXT, Type::BYTEA];
        let arrays = self.takes_arrays();
        let fence = if self.is_read() { &FENCE[..1] } else { &FENCE[..] };
        let columns = self.columns.iter().map(|column| if arrays { column.of_array() } else { column.of_one() });
        fence.iter().cloned().chain(columns).collect()
    }

    pub(super) fn is_read(&self) -> bool {
        self.kind == Kind::Read
    }

    pub(super) fn takes_arrays(&self) -> bool {
        matches!(self.kind, Kind::Upsert(_) | Kind::Change(_))
    }

    /// The parameters of the statement. Those of a write begin with its fence.
    pub(super) fn parameters<'a>(&self, account: i32, fence: Option<Fence<'a>>, rows: &'a [Row]) -> Vec<Parameter<'a>> {
        let mut parameters = Vec::with_capacity(4 + self.columns.len());
        parameters.push(Parameter::Account(account));
        if let Some(Fence { epoch, durability, holder }) = fence {
            parameters.extend([Parameter::Number(epoch), Parameter::Text(durability), Parameter::Bytes(holder)]);
        }
        if self.takes_arrays() {
            let columns = self.columns.iter().enumerate();
            parameters.extend(columns.map(|(column, &of)| Parameter::Array { rows, column, of }));
        } else if let Some(row) = rows.first() {
            parameters.extend(row.iter().map(Parameter::One));
        }
        parameters
    }

    /// `true` if the answer shows that the fence held.
    pub(super) fn held(&self, answer: &Answer) -> bool {
        match self.kind {
            Kind::Read => true,
            Kind::Upsert(_) => answer.affected > 0,
            Kind::Change(_) | Kind::Single | Kind::Once => {
                !answer.rows.is_empty() && answer.rows.iter().all(|row| row.try_get(0).unwrap_or(false))
            }
        }
    }

    fn keys_differ(&self, rows: &[Row]) -> bool {
        let mut keys = HashSet::with_capacity(rows.len());
        rows.iter().all(|row| keys.insert(&row[..self.key]))
    }

    /// One row per key. Rows keep the order of their last mention.
    pub(super) fn fold(&self, rows: Vec<Row>) -> Vec<Row> {
        let fold = match self.kind {
            Kind::Upsert(fold) | Kind::Change(fold) => fold,
            _ => return rows,
        };
        // Mostly no key is there twice, and nothing is copied.
        if rows.len() < 2 || self.keys_differ(&rows) {
            return rows;
        }
        let mut places: HashMap<Vec<Cell>, usize> = HashMap::with_capacity(rows.len());
        let mut kept: Vec<Option<Row>> = Vec::with_capacity(rows.len());
        for mut row in rows {
            let key = row[..self.key].to_vec();
            if let Some(before) = places.insert(key, kept.len())
                && let Some(before) = kept[before].take()
                && fold == Fold::MessageSecret
            {
                merge_secret(&before, &mut row);
            }
            kept.push(Some(row));
        }
        kept.into_iter().flatten().collect()
    }
}

/// Columns: chat, sender, id, secret, expiry, time.
fn merge_secret(before: &Row, row: &mut Row) {
    if let (Cell::Long(before), Cell::Long(expiry)) = (&before[4], &mut row[4]) {
        *expiry = if *before == 0 || *expiry == 0 { 0 } else { (*expiry).max(*before) };
    }
    if let (Cell::Long(before), Cell::Long(time)) = (&before[5], &mut row[5]) {
        *time = (*time).max(*before);
    }
}

/// The values of one row. The longest has six columns.
pub(super) type Row = SmallVec<[Cell; 6]>;

/// A value. Its text shows none of it, because the driver logs parameters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    Null,
    Bytes(Bytes),
    Long(i64),
    Flag(bool),
    BytesList(Vec<Bytes>),
    LongList(Vec<i64>),
}

impl Cell {
    /// Its approximate size, in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::BytesList(list) => list.iter().map(|bytes| 4 + bytes.len()).sum(),
            Self::LongList(list) => 12 * list.len(),
            _ => 8,
        }
    }

    /// Writes the value without its length.
    fn write(&self, out: &mut BytesMut) -> Result<IsNull, Failed> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Bytes(bytes) => out.put_slice(bytes),
            Self::Long(number) => out.put_i64(*number),
            Self::Flag(flag) => out.put_u8((*flag).into()),
            Self::BytesList(list) => {
                let cells: Vec<Self> = list.iter().cloned().map(Self::Bytes).collect();
                write_array(cells.iter(), Column::Bytes, out)?;
            }
            Self::LongList(list) => {
                let cells: Vec<Self> = list.iter().copied().map(Self::Long).collect();
                write_array(cells.iter(), Column::Long, out)?;
            }
        }
        Ok(IsNull::No)
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&[u8]> for Cell {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(Bytes::copy_from_slice(bytes))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<Vec<u8>> for Cell {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Bytes> for Cell {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Long(number)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Long(number.into())
    }
}

impl From<bool> for Cell {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row of values that convert.
macro_rules! row {
    ($($value:expr),* $(,)?) => {
        smallvec::smallvec![$($crate::postgres::statement::Cell::from($value)),*]
    };
}

pub(super) use row;

/// A parameter of a statement.
pub(super) enum Parameter<'a> {
    Account(i32),
    Number(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    One(&'a Cell),
    /// A column of the rows.
    Array {
        rows: &'a [Row],
        column: usize,
        of: Column,
    },
}

impl fmt::Debug for Parameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

type Failed = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Parameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Failed> {
        match self {
            Self::Account(number) => out.put_i32(*number),
            Self::Number(number) => out.put_i64(*number),
            Self::Text(text) => out.put_slice(text.as_bytes()),
            Self::Bytes(bytes) => out.put_slice(bytes),
            Self::One(cell) => return cell.write(out),
            Self::Array { rows, column, of } => write_array(rows.iter().map(|row| &row[*column]), *of, out)?,
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        // Statements are prepared with the types of their parameters.
        true
    }

    to_sql_checked!();
}

/// The binary form of an array of one dimension: the number of dimensions, whether there are NULLs, the type of the
/// elements, their number, the first index, and each element after its length (`array_send` in PostgreSQL's source).
fn write_array<'a>(
    cells: impl ExactSizeIterator<Item = &'a Cell> + Clone,
    of: Column,
    out: &mut BytesMut,
) -> Result<(), Failed> {
    let has_null = cells.clone().any(|cell| *cell == Cell::Null);
    out.put_i32(1);
    out.put_i32(has_null.into());
    out.put_u32(of.of_one().oid());
    out.put_i32(i32::try_from(cells.len())?);
    out.put_i32(1);
    for cell in cells {
        let length = match cell {
            Cell::Null => -1,
            Cell::Flag(_) => 1,
            _ => i32::try_from(cell.size())?,
        };
        out.put_i32(length);
        cell.write(out)?;
    }
    Ok(())
}
