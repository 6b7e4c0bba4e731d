//! How far a long operation is.

use std::fmt;
use std::sync::Arc;

/// How far a long operation is: an import, an export, a check, a repair or a change of the data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The step that it is at.
    pub phase: Phase,
    /// The rows that this step is done with.
    pub done: u64,
    /// The rows that there are, as they were counted at the beginning. Never less than `done`.
    pub total: u64,
}

/// A step of a long operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Rows are written to the target.
    Copying,
    /// What was written is read again and compared.
    Comparing,
    /// Rows are opened, and nothing is written.
    Checking,
    /// Rows are sealed again, under a new data key. Each of them is looked at twice.
    Resealing,
}

impl Phase {
    /// The word for it: `copying`, `comparing`, `checking` or `resealing`.
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

/// Hears of progress, if the caller wants to.
#[cfg(feature = "sqlite")]
#[derive(Clone, Default)]
pub(crate) struct Observer(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

#[cfg(feature = "sqlite")]
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
