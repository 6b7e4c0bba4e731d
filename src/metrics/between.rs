//! The cost of the layers between two metrics layers.

use std::fmt;
use std::time::Duration;

use super::outcome::Outcome;
use super::report::time;
use super::snapshot::{MetricsSnapshot, OpSnapshot};
use crate::method::Method;

impl MetricsSnapshot {
    /// The cost of the layers between two metrics layers of a stack. `above` is the name of the metrics layer nearer
    /// to the client, `below` of the one nearer to the database. `None` if a name is unknown.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use wacore::store::InMemoryBackend;
    /// # use wastore::{Key, Metrics, Stack, VaultOptions};
    /// # futures::executor::block_on(async {
    /// # let memory = Arc::new(InMemoryBackend::new());
    /// # let vault = VaultOptions::new().create(memory.clone(), Key::from_bytes(&mut [7; 32])).await?;
    /// let metrics = Metrics::new();
    /// let store = Stack::new(memory)
    ///     .layer(metrics.layer("memory"))
    ///     .layer(vault.layer())
    ///     .layer(metrics.layer("client"))
    ///     .into_backend();
    /// store.put_session("15550001111@s.whatsapp.net", b"record").await?;
    /// store.get_session("15550001111@s.whatsapp.net").await?;
    ///
    /// let cost = metrics.snapshot().between("client", "memory").unwrap().with_label("encrypt");
    /// println!("{cost}");      // encrypt adds 4.1 µs to get_session p50 …
    /// assert_eq!(cost.op("get_session").unwrap().answered_share(), Some(0.0));
    /// # Ok::<(), wastore::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn between(&self, above: &str, below: &str) -> Option<LayerCost> {
        let (above, below) = (self.layer(above)?, self.layer(below)?);
        let mut operations: Vec<OpCost> = vec![];
        for op in above.ops().iter().filter(|op| op.calls() > 0) {
            let arrives_as = arrives_as(op.name()).and_then(|name| below.op(name));
            let below = below.op(op.name()).or(arrives_as);
            let name = below.map_or(op.name(), OpSnapshot::name);
            // Operations that reach the lower layer under the same name are compared together.
            match operations.iter_mut().find(|cost| cost.below.name() == name) {
                Some(cost) => cost.add(op),
                None => {
                    let below = below.cloned().unwrap_or_else(|| OpSnapshot::new(op.name()));
                    operations.push(OpCost::new(op.clone(), below));
                }
            }
        }
        operations.sort_by_key(|cost| std::cmp::Reverse(cost.time_between()));
        Some(LayerCost { label: format!("between {} and {}", above.name(), below.name()), operations })
    }
}

/// The method as which a call of `op` reaches the layers below. `None` if this crate's layers do not change it.
fn arrives_as(op: &str) -> Option<&'static str> {
    const TRANSLATED: [(Method, Method); 6] = [
        // Encryption stores identities as sessions. In an encrypted store the device already exists below when the
        // client creates it.
        (Method::PutIdentity, Method::PutSession),
        (Method::PutIdentitiesBatch, Method::PutSessionsBatch),
        (Method::LoadIdentity, Method::GetSession),
        (Method::DeleteIdentity, Method::DeleteSession),
        (Method::Create, Method::Exists),
        // The cache has one entry for both methods.
        (Method::GetMsgSecret, Method::GetMsgSecretWithTs),
    ];
    TRANSLATED.iter().find(|(above, _)| above.name() == op).map(|(_, below)| below.name())
}

/// The cost of the layers between two metrics layers, from [`MetricsSnapshot::between`]. `Display` prints a sentence
/// for each operation; operations that took the most time come first.
#[derive(Debug, Clone)]
pub struct LayerCost {
    label: String,
    operations: Vec<OpCost>,
}

/// The cost of the layers between two metrics layers for one operation. `Display` prints a sentence, for example
/// `adds 4.1 µs to get_session p50`.
#[derive(Debug, Clone)]
pub struct OpCost {
    /// The operations above. Several names if they reach the layer below as one.
    name: String,
    above: OpSnapshot,
    below: OpSnapshot,
}

impl LayerCost {
    /// Names the layers in between, for example `encrypt`. Each printed sentence starts with this name.
    #[must_use]
    pub fn with_label(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Every operation that the layer above counted.
    pub fn ops(&self) -> &[OpCost] {
        &self.operations
    }

    /// An operation by its name above; `None` if it was not called. Operations that reach the layer below as one,
    /// such as `put_session` and `put_identity` under encryption, are compared together.
    pub fn op(&self, name: &str) -> Option<&OpCost> {
        self.operations.iter().find(|cost| cost.name.split(" + ").any(|op| op == name))
    }
}

impl OpCost {
    pub(super) fn new(above: OpSnapshot, below: OpSnapshot) -> Self {
        Self { name: above.name().to_owned(), above, below }
    }

    /// The calls above the layers.
    pub fn above(&self) -> &OpSnapshot {
        &self.above
    }

    /// The calls below the layers.
    pub fn below(&self) -> &OpSnapshot {
        &self.below
    }

    /// The fraction of calls that the layers in between answered themselves, from 0 to 1. `None` if the layer below
    /// answered many more calls than the layer above, because another caller made them.
    ///
    /// Failed and cancelled calls do not count. Calls in flight at the beginning or the end of the period do not
    /// distort the result: they may have ended below and not yet above.
    pub fn answered_share(&self) -> Option<f64> {
        let (above, below) = (self.above.count(Outcome::Ok), self.below.count(Outcome::Ok));
        let in_flight = self.above.in_flight + self.above.in_flight_before;
        // The counters of the two layers are not read at the same instant.
        let tolerance = in_flight.max(above / 1000);
        match above.checked_sub(below) {
            None if below - above > tolerance => None,
            Some(answered) if answered > tolerance => Some(answered as f64 / above as f64),
            _ => Some(0.0),
        }
    }

    /// The time in seconds that the layers in between add to a percentile; negative if they make it shorter. The
    /// number means little if the layers answer some of the calls themselves.
    pub fn added_to_percentile(&self, part: f64) -> f64 {
        let [above, below] = [&self.above, &self.below].map(|op| op.times().percentile(part).as_secs_f64());
        above - below
    }

    /// The total time that calls spent between the two metrics layers; zero if other callers spent more time below.
    pub fn time_between(&self) -> Duration {
        self.above.times().sum().saturating_sub(self.below.times().sum())
    }

    fn add(&mut self, op: &OpSnapshot) {
        self.name = format!("{} + {}", self.name, op.name());
        self.above.add(op);
    }
}

impl fmt::Display for LayerCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cost in &self.operations {
            writeln!(f, "{} {cost}", self.label)?;
        }
        Ok(())
    }
}

impl fmt::Display for OpCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, above, below } = self;
        let Some(answered) = self.answered_share() else {
            let more = below.calls().saturating_sub(above.calls());
            return write!(f, "passed on {} calls of {name}; other callers made {more} more", above.calls());
        };
        let nanos = self.time_between().as_nanos() / u128::from(above.calls().max(1));
        let each = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        if answered == 1.0 {
            return write!(f, "answers all calls of {name}, in {} per call", time(each));
        }
        if answered >= 0.01 {
            let saved = below.times().mean().mul_f64(answered).saturating_sub(each);
            write!(f, "answers {:.0} % of {name}", answered * 100.0)?;
            return write!(f, ", takes {} per call and saves {}", time(each), time(saved));
        }
        let signed = |part| {
            let added = self.added_to_percentile(part);
            let sign = if added < 0.0 { "-" } else { "" };
            format!("{sign}{}", time(Duration::from_secs_f64(added.abs())))
        };
        write!(f, "adds {} to {name} p50, {} to p99 ({} per call)", signed(0.5), signed(0.99), time(each))
    }
}
