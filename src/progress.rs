//! The progress of a long operation.

use std::fmt;
use std::sync::Arc;

/// The progress of a long operation: an import, an export, a check, a repair or a change of the data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The current step.
    pub phase: Phase,
    /// The number of rows that this step has finished.
    pub done: u64,
    /// The number of all rows, counted at the beginning. Never less than `done`.
    pub total: u64,
}

/// A step of a long operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Rows are written to the target.
    Copying,
    /// The written rows are read again and compared.
    Comparing,
    /// Rows are opened, and nothing is written.
    Checking,
    /// Rows are sealed again under a new data key. Each row is looked at twice.
    Resealing,
}

impl Phase {
    /// The name of the step: `copying`, `comparing`, `checking` or `resealing`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Copying => "copying",
            Phase::Comparing => "comparing",
            Phase::Checking => "checking",
            Phase::Resealing => "resealing",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Passes progress to the caller's function, if there is one.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl Observer {
    pub(crate) fn new(observer: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observer)))
    }

    pub(crate) fn tell(&self, phase: Phase, done: u64, total: u64) {
        if let Some(observer) = &self.0 {
            observer(Progress { phase, done, total: total.max(done) });
        }
    }
}
