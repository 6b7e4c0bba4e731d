//! The errors of the SQLite store.

/// The kind of a file that [`SqliteStore`](crate::SqliteStore) refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignFile {
    /// An empty file or a database without tables: a truncated store, or one that was never finished.
    #[error("is empty: put a backup in its place, or remove it if it never held a store")]
    Empty,
    /// Not an SQLite database, or one that is encrypted as a whole.
    #[error("is not an SQLite database, or is encrypted as a whole: choose another file")]
    NotSqlite,
    /// The file took the place of another store, whose log is still there. SQLite would mix the two.
    #[error(
        "took the place of another database, whose log (-wal) is still beside it: restore backups with `wastore restore`, which also repairs this"
    )]
    ForeignLog,
    /// A file with a hard link. SQLite would not find its log under its other name.
    #[error("has another name as well (hard link), under which SQLite would not find its log: remove one of the two")]
    SecondName,
    /// The database of upstream's own store.
    #[error("is a database of whatsapp-rust's own SQLite store: import it into a new file with `wastore import`")]
    Upstream,
    /// The database of another program.
    #[error("is the database of another program: choose another file")]
    OtherProgram,
}

/// The reason why SQLite could not run a call of [`SqliteStore`](crate::SqliteStore).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteProblem {
    /// Another process holds the database. Waiting may help, but only with this problem.
    #[error("the database stayed locked by another process until the timeout: try again, or raise the busy timeout")]
    Contended,
    /// The disk is full. Nothing of the call was stored. The store works again as soon as there is space.
    #[error("the disk is full, nothing of the call was stored: free some space and try again")]
    DiskFull,
    /// The content of the file is not a valid database.
    #[error("the database is damaged: keep a copy of the file, then restore a backup")]
    Damaged,
    /// The file, its folder or its file system cannot be written.
    #[error("the database cannot be written: check the permissions of the file and of its folder")]
    ReadOnly,
    /// The file is gone or may not be opened.
    #[error("the database cannot be opened: check that the file is there and that it and its folder may be written")]
    CannotOpen,
    /// A read or a write failed.
    #[error("the disk failed to read or write the database: check its health and the system's log")]
    Disk,
    /// A record is longer than SQLite's limit, 1 GB by default.
    #[error("a record is too large for the database")]
    TooLarge,
    /// SQLite got no memory.
    #[error("there is not enough memory for the database")]
    OutOfMemory,
    /// Another problem; the source has the code.
    #[error("the database refused the call")]
    Other,
}
