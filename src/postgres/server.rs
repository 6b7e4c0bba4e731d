//! Telling servers apart.

/// The server behind a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) system: i64,
    /// Grows when a standby is promoted.
    pub(super) timeline: i64,
    pub(super) started: String,
}

impl Server {
    /// The timeline of a name of a log file, or of its beginning.
    pub(super) fn timeline_in(name: &str) -> Option<i64> {
        i64::from_str_radix(name.get(..8)?, 16).ok()
    }

    /// `true` if this one is the same database as `before` and not an older state of it.
    pub(super) fn follows(&self, before: &Self) -> bool {
        self.system == before.system && self.timeline >= before.timeline
    }
}
