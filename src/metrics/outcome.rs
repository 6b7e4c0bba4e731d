//! How a call ended.

use std::fmt;

const ERROR: bool = true;
const NO_ERROR: bool = false;

macro_rules! define_outcomes {
    ($($(#[$docs:meta])* $variant:ident = $label:literal, $is_error:ident;)*) => {
        /// How a call ended. Stores, connections and HTTP each use a part of this list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Outcome {
            $($(#[$docs])* $variant,)*
        }

        impl Outcome {
            /// Every outcome.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$variant),*];

            /// The value of the label `outcome`, for example `busy` or `4xx`.
            pub const fn label(self) -> &'static str {
                match self { $(Outcome::$variant => $label,)* }
            }

            /// Returns whether the call failed. A cancelled call has not failed, and neither has a connection that
            /// ended routinely.
            pub const fn is_error(self) -> bool {
                match self { $(Outcome::$variant => $is_error,)* }
            }
        }
    };
}

define_outcomes! {
    /// The call returned a result, which may be that a row is absent.
    Ok = "ok", NO_ERROR;
    /// The database of a store was contended: [`StoreError::is_database_busy_or_locked`], or upstream's store
    /// exhausted its retries.
    ///
    /// [`StoreError::is_database_busy_or_locked`]: wacore::store::error::StoreError::is_database_busy_or_locked
    Busy = "busy", ERROR;
    /// A store could not reach its database (`StoreError::Connection`).
    Connection = "connection", ERROR;
    /// A store refused its arguments (`StoreError::Validation`, `InvalidConfig`).
    Validation = "validation", ERROR;
    /// A record could not be encoded or decoded (`StoreError::Serialization`), or failed verification under
    /// encryption.
    Serialization = "serialization", ERROR;
    /// Any other error of a store, or an HTTP status outside of 100 to 599.
    Other = "other", ERROR;
    /// Connecting, sending or an HTTP exchange failed, so there is no answer. The network traits do not classify errors.
    Error = "error", ERROR;
    /// The call was dropped before it ended, for example by a timeout, a `select!`, a shutdown or a panic. Or a
    /// streamed body was not read to its end.
    Cancelled = "cancelled", NO_ERROR;
    /// The server closed a connection routinely: close code 1000, 1001 or none.
    ServerClose = "server_close", NO_ERROR;
    /// The server closed a connection with another close code.
    ServerError = "server_error", ERROR;
    /// A connection ended without a close frame, which is routine as well.
    StreamEnded = "stream_ended", NO_ERROR;
    /// Reading from a connection failed.
    ReadError = "read_error", ERROR;
    /// This side closed a connection, or dropped it. The client also closes a connection on which sending failed.
    LocalClose = "local_close", NO_ERROR;
    /// A connection ended and its transport gave no reason.
    Unknown = "unknown", NO_ERROR;
    /// HTTP status 100 to 199.
    Status1xx = "1xx", NO_ERROR;
    /// HTTP status 200 to 299.
    Status2xx = "2xx", NO_ERROR;
    /// HTTP status 300 to 399.
    Status3xx = "3xx", NO_ERROR;
    /// HTTP status 400 to 499.
    Status4xx = "4xx", ERROR;
    /// HTTP status 500 to 599.
    Status5xx = "5xx", ERROR;
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
