//! The errors of the PostgreSQL store.

/// The reason why PostgreSQL could not run a call of [`PostgresStore`](crate::PostgresStore).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresProblem {
    /// Other transactions stood in the way until the deadline. Waiting may help, but only with this problem.
    #[error("the rows stayed locked by other transactions until the deadline: try again, or raise the deadline")]
    Contended,
    /// No server answered until the deadline.
    #[error(
        "no PostgreSQL server of the URL answered until the deadline: check that one runs, its address, and the network"
    )]
    Unreachable,
    /// No server accepts writes: all are standbys or read-only.
    #[error("no PostgreSQL server of the URL accepts writes: promote a standby, or give the address of the primary")]
    ReadOnly,
    /// The store was opened read-only. Nothing was changed.
    #[error("the store was opened read-only: open it with `PostgresOptions::open` to change it")]
    OpenedReadOnly,
    /// The server has no connection left.
    #[error("the PostgreSQL server has no connection left: raise `max_connections`, or use fewer lanes")]
    TooManyConnections,
    /// The server's disk is full. Nothing of the call was stored. The store works again as soon as there is space.
    #[error("the disk of the PostgreSQL server is full, nothing of the call was stored: free some space and try again")]
    DiskFull,
    /// The server refused the user, the password, the database, or a statement for lack of rights.
    #[error(
        "the PostgreSQL server refused the user, its password, the database or the right to a table: check the URL, the password file, and the grants in the guide"
    )]
    NotAllowed,
    /// The TLS connection could not be made.
    #[error(
        "the TLS connection to the PostgreSQL server failed: check the server's certificate and its name, and name its CA with `sslrootcert`"
    )]
    Tls,
    /// The call may or may not have been stored, and repeating it could change its meaning.
    #[error("it is unknown whether the call was stored: read the record again before you rely on it")]
    OutcomeUnknown,
    /// The connections lead to different servers, or to an older one than before.
    #[error(
        "this is not the PostgreSQL server that the store was opened on: check that the address does not lead to two servers that accept writes"
    )]
    WrongServer,
    /// A failover took back what was acknowledged: the server that was promoted lacks it. The store does not go on, because
    /// the client would use message keys twice.
    #[error(
        "the PostgreSQL server lacks writes that were acknowledged, after a failover or a restore: put the right server back, or link the account again"
    )]
    AcknowledgedWriteLost,
    /// No standby has to confirm commits, so a failover could take them back.
    #[error(
        "the PostgreSQL server waits for no standby: set `synchronous_standby_names` on it, or open the store without `require_synchronous_standby`"
    )]
    NotReplicated,
    /// The queue of calls was full until the deadline.
    #[error("too many calls waited for the PostgreSQL server until the deadline: it is too slow or too far away")]
    Overloaded,
    /// The tables are not there, or they are not those of this version.
    #[error(
        "the tables of the store are not there or were altered: open the store once with a role that may create them, without `migrate(false)`"
    )]
    Schema,
    /// The server found damaged data.
    #[error("the PostgreSQL server found damaged data: restore a backup, and check its disk and its log")]
    Damaged,
    /// A connection pooler refused what the store sent.
    #[error(
        "a pooler in front of the PostgreSQL server refused a prepared statement: open the store with `prepared(false)`, or use PgBouncer 1.21 or later with `max_prepared_statements`"
    )]
    Pooler,
    /// Another problem; the source has the code.
    #[error("the PostgreSQL server refused the call")]
    Other,
}

/// The kind of a schema that [`PostgresStore`](crate::PostgresStore) refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignSchema {
    /// It holds objects, but not the table that marks a store of this crate.
    #[error("belongs to another program: choose another one with `PostgresOptions::schema`")]
    OtherProgram,
    /// The marks of a store are there, but they make no sense.
    #[error("has a table `store` that this crate did not write: choose another schema, or restore a backup")]
    Altered,
}
