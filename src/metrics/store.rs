//! The layer over a store.

use std::fmt;
use std::sync::Arc;

use wacore::store::traits::Backend;

use super::call::observe;
use super::operation::{End, LayerKind, Operation};
use super::outcome::Outcome;
use super::stats::LayerStats;
use super::volume::{Answer, Arguments};
use crate::layer::Layer;
use crate::method::{Access, BoxFuture, Method, uniform_layer};

/// Counts the calls that pass. It measures how long each method takes, how it ends, how many rows and bytes it
/// carries, and how many of the requested rows exist. Made by [`Metrics::layer`](super::Metrics::layer).
///
/// A call is counted from its first poll until it ends or is dropped. Arguments, answers and errors pass unchanged.
#[derive(Clone)]
pub struct MetricsLayer {
    stats: Arc<LayerStats>,
}

impl MetricsLayer {
    pub(super) fn new(stats: Arc<LayerStats>) -> Self {
        Self { stats }
    }
}

impl Layer for MetricsLayer {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(MetricsStore { inner, stats: self.stats.clone() })
    }
}

/// The text that a stack prints, for example `metrics(client)`.
impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metrics({})", self.stats.name)
    }
}

/// A store whose calls are counted.
struct MetricsStore {
    inner: Arc<dyn Backend>,
    stats: Arc<LayerStats>,
}

impl MetricsStore {
    fn around<'a, A: Arguments + Send + 'a, T: Answer + Send + 'a>(
        &'a self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        let mut given = arguments.volume();
        if method.access() == Access::Maintenance {
            // The name of a snapshot is not a row.
            given.rows = 0;
        }
        Box::pin(observe(
            &*self.stats,
            StoreOp(method),
            given,
            move || call(arguments),
            move |answer| End { outcome: answer.outcome(), given: None, got: answer.volume(method) },
        ))
    }
}

uniform_layer!(MetricsStore);

/// A storage method.
#[derive(Clone, Copy)]
pub(super) struct StoreOp(pub(super) Method);

impl Operation for StoreOp {
    const KIND: LayerKind = LayerKind::Store;
    const ALL: &'static [Self] = &{
        let mut all = [StoreOp(Method::PutIdentity); Method::ALL.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = StoreOp(Method::ALL[at]);
            at += 1;
        }
        all
    };

    fn name(self) -> &'static str {
        self.0.name()
    }

    fn index(self) -> usize {
        self.0 as usize
    }

    fn looks_up(self) -> bool {
        matches!(self.0.access(), Access::Read | Access::Take)
    }

    fn outcomes(self) -> &'static [Outcome] {
        &[
            Outcome::Ok,
            Outcome::Busy,
            Outcome::Connection,
            Outcome::Validation,
            Outcome::Serialization,
            Outcome::Other,
            Outcome::Cancelled,
        ]
    }
}
