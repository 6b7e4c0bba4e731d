//! How a call ended.

use std::fmt;

/// How a call ended: one list for stores, connections and HTTP, of which each uses a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The call gave what it was asked for, or said that it is not there.
    Ok,
    /// A store was contended: [`StoreError::is_database_busy_or_locked`], or upstream's store gave up trying again.
    ///
    /// [`StoreError::is_database_busy_or_locked`]: wacore::store::error::StoreError::is_database_busy_or_locked
    Busy,
    /// A store could not reach its database (`StoreError::Connection`).
    Connection,
    /// A store refused what it was given (`StoreError::Validation`, `InvalidConfig`).
    Validation,
    /// A record could not be encoded or decoded (`StoreError::Serialization`); under encryption also one that does not
    /// verify.
    Serialization,
    /// Any other error of a store, or an HTTP status that is none.
    Other,
    /// Connecting, sending or an HTTP exchange failed, so that there is no answer. What network traits give has no classes.
    Error,
    /// The call was dropped before it ended: a timeout, a `select!`, a shutdown, a panic. A streamed body that was not read
    /// to its end.
    Cancelled,
    /// The server closed a connection as it does routinely: close code 1000, 1001 or none.
    ServerClose,
    /// The server closed a connection with another close code.
    ServerError,
    /// A connection ended without a close frame, which is routine as well.
    StreamEnded,
    /// Reading from a connection failed.
    ReadError,
    /// This side closed a connection, or dropped it. The client also closes a connection on which sending failed.
    LocalClose,
    /// A connection ended and its transport did not say why.
    Unknown,
    /// HTTP status 100 to 199.
    Status1xx,
    /// HTTP status 200 to 299.
    Status2xx,
    /// HTTP status 300 to 399.
    Status3xx,
    /// HTTP status 400 to 499.
    Status4xx,
    /// HTTP status 500 to 599.
    Status5xx,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: &'static [Outcome] = &[
        Outcome::Ok,
        Outcome::Busy,
        Outcome::Connection,
        Outcome::Validation,
        Outcome::Serialization,
        Outcome::Other,
        Outcome::Error,
        Outcome::Cancelled,
        Outcome::ServerClose,
        Outcome::ServerError,
        Outcome::StreamEnded,
        Outcome::ReadError,
        Outcome::LocalClose,
        Outcome::Unknown,
        Outcome::Status1xx,
        Outcome::Status2xx,
        Outcome::Status3xx,
        Outcome::Status4xx,
        Outcome::Status5xx,
    ];

    /// The value of the label `outcome`, for example `busy` or `4xx`.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Busy => "busy",
            Outcome::Connection => "connection",
            Outcome::Validation => "validation",
            Outcome::Serialization => "serialization",
            Outcome::Other => "other",
            Outcome::Error => "error",
            Outcome::Cancelled => "cancelled",
            Outcome::ServerClose => "server_close",
            Outcome::ServerError => "server_error",
            Outcome::StreamEnded => "stream_ended",
            Outcome::ReadError => "read_error",
            Outcome::LocalClose => "local_close",
            Outcome::Unknown => "unknown",
            Outcome::Status1xx => "1xx",
            Outcome::Status2xx => "2xx",
            Outcome::Status3xx => "3xx",
            Outcome::Status4xx => "4xx",
            Outcome::Status5xx => "5xx",
        }
    }

    /// `true` if something failed. Being cancelled is not failing, and neither are the routine ends of a connection.
    pub const fn is_error(self) -> bool {
        match self {
            Outcome::Busy
            | Outcome::Connection
            | Outcome::Validation
            | Outcome::Serialization
            | Outcome::Other
            | Outcome::Error
            | Outcome::ServerError
            | Outcome::ReadError
            | Outcome::Status4xx
            | Outcome::Status5xx => true,
            Outcome::Ok
            | Outcome::Cancelled
            | Outcome::ServerClose
            | Outcome::StreamEnded
            | Outcome::LocalClose
            | Outcome::Unknown
            | Outcome::Status1xx
            | Outcome::Status2xx
            | Outcome::Status3xx => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_where_their_outcome_says() {
        for (position, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, position, "{outcome}");
        }
    }
}
