//! Operations, whose calls layers count, and the end of such a call.

use std::time::Duration;

use serde::Serialize;

use super::outcome::Outcome;
use super::volume::Volume;

/// The target of events and spans.
pub(super) const TARGET: &str = "wastore::metrics";

/// The kind of component that a layer wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LayerKind {
    /// A storage backend.
    Store,
    /// The connections to the server.
    Transport,
    /// HTTP exchanges.
    Http,
    /// The client's external cache.
    CacheStore,
}

impl LayerKind {
    /// Every kind.
    pub const ALL: &'static [LayerKind] =
        &[LayerKind::Store, LayerKind::Transport, LayerKind::Http, LayerKind::CacheStore];
}

/// An operation whose calls a layer counts.
pub(super) trait Operation: Copy + 'static {
    const KIND: LayerKind;
    /// Every operation, in the order of `index`.
    const ALL: &'static [Self];

    /// The value of the label `op`.
    fn name(self) -> &'static str;
    fn index(self) -> usize;
    /// Returns whether it asks for rows that may be absent.
    fn looks_up(self) -> bool {
        false
    }
    /// Returns whether the client decides how long it lasts, so that its time is no measure of speed.
    fn is_lifetime(self) -> bool {
        false
    }
    /// All outcomes it can have.
    fn outcomes(self) -> &'static [Outcome];
}

/// How a call ended, and how much it carried.
pub(super) struct End {
    pub(super) outcome: Outcome,
    /// The volume of the arguments, if it is known only at the end.
    pub(super) given: Option<Volume>,
    pub(super) got: Volume,
}

impl From<Outcome> for End {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, given: None, got: Volume::default() }
    }
}

/// A call that ended, with all its counts.
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) given: Volume,
    pub(super) got: Volume,
    /// The number of rows asked for that exist, and the number of those that do not.
    pub(super) lookups: Option<[u64; 2]>,
    pub(super) time: Duration,
}
