//! The measured calls, and the rounds in which the peers take turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use wacore::store::traits::MsgSecretEntry;

use crate::peers::Peer;
use crate::report::Data;

pub(crate) const SESSIONS: usize = 2000;
pub(crate) const BATCH: usize = 64;
const SESSION_BYTES: usize = 1500;
const CONTACTS: usize = 200;
const SENDS: usize = 200;
const TASKS: usize = 16;

/// What a round measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Get {
        tasks: usize,
    },
    Put {
        tasks: usize,
    },
    /// A put that survives a killed process, and maybe no power cut.
    PutRelaxed,
    Batch,
    /// Many messages at once. A message takes two calls. Every 64th also writes the sessions that changed, and the
    /// secrets of its predecessors beside the others' calls.
    Burst,
}

pub(crate) const MEASURES: [Measure; 7] = [
    Measure::Get { tasks: 1 },
    Measure::Get { tasks: TASKS },
    Measure::PutRelaxed,
    Measure::Put { tasks: 1 },
    Measure::Put { tasks: TASKS },
    Measure::Batch,
    Measure::Burst,
];

impl Measure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get { tasks: 1 } => "get",
            Self::Get { .. } => "get, 16 tasks",
            Self::Put { tasks: 1 } => "put",
            Self::Put { .. } => "put, 16 tasks",
            Self::PutRelaxed => "put, relaxed",
            Self::Batch => "batch of 64, per row",
            Self::Burst => "burst of 200 sends by 16 tasks, per send",
        }
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// How many calls a round makes. A distant server gets fewer.
    fn calls(self, far: bool) -> usize {
        let near = match self {
            Self::Get { tasks: 1 } => 400,
            Self::Put { tasks: 1 } | Self::PutRelaxed => 200,
            Self::Get { .. } | Self::Put { .. } => 1600,
            Self::Batch => 8,
            Self::Burst => SENDS,
        };
        match self {
            Self::Get { tasks: 1 } | Self::Put { tasks: 1 } | Self::PutRelaxed | Self::Batch if far => near / 2,
            _ => near,
        }
    }
}

/// A peer, and where it stands in the table.
pub(crate) struct Subject {
    pub(crate) column: &'static str,
    /// The line of the table instead of the measure's name.
    pub(crate) line: Option<&'static str>,
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) measures: Vec<Measure>,
}

pub(crate) fn address(number: usize) -> Arc<str> {
    format!("1555{number:07}:7@s.whatsapp.net").into()
}

fn chat(number: usize) -> String {
    format!("{}@lid", 100_000_000_000_000 + number)
}

fn values(rng: &mut StdRng) -> Vec<Bytes> {
    let value = |_| {
        let mut value = vec![0; SESSION_BYTES];
        rng.fill_bytes(&mut value);
        Bytes::from(value)
    };
    (0..128).map(value).collect()
}

/// The records that a store holds before it is measured.
pub(crate) async fn fill(peer: &dyn Peer, tokens: bool) {
    let values = values(&mut StdRng::seed_from_u64(1));
    let rows: Vec<_> = (0..SESSIONS).map(|number| (address(number), values[number % values.len()].clone())).collect();
    for rows in rows.chunks(500) {
        peer.batch(rows).await;
    }
    for number in 0..if tokens { CONTACTS } else { 0 } {
        peer.put_token(&chat(number), &values[0][..40]).await;
    }
}

/// Measures in rounds. All subjects of a measure take turns within each round, in another order each time.
pub(crate) fn rounds(runtime: &Runtime, data: &mut Data, group: &'static str, subjects: &[Subject], rounds: u64) {
    let far = group.ends_with("away");
    let mut rng = StdRng::seed_from_u64(7);
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    for round in 0..rounds {
        for measure in MEASURES {
            eprint!("\r{:<70}", format!("{group}: round {} of {rounds}, {}", round + 1, measure.name()));
            order.shuffle(&mut rng);
            for subject in order.iter().map(|at| &subjects[*at]).filter(|subject| subject.measures.contains(&measure)) {
                let (figure, latencies) = measured(runtime, &subject.peer, measure, far, round);
                data.add((group, subject.line.unwrap_or(measure.name()), subject.column), figure, &latencies);
                std::thread::sleep(Duration::from_millis(3));
            }
        }
    }
    eprintln!();
}

/// The time of a call, in µs: of the median one if they come one after the other, else of all divided by their number.
/// Then the time of each.
fn measured(runtime: &Runtime, peer: &Arc<dyn Peer>, measure: Measure, far: bool, round: u64) -> (f64, Vec<f64>) {
    let mut rng = StdRng::seed_from_u64(round);
    let values = Arc::new(values(&mut rng));
    let mut numbers: Vec<usize> = (0..SESSIONS).collect();
    numbers.shuffle(&mut rng);
    numbers.truncate(measure.calls(far));
    let peer = peer.clone();
    match measure {
        Measure::Get { tasks } => each(runtime, tasks, &numbers, move |number| {
            let peer = peer.clone();
            async move { assert!(peer.get(&address(number)).await) }
        }),
        Measure::Put { .. } | Measure::PutRelaxed => {
            let tasks = if let Measure::Put { tasks } = measure { tasks } else { 1 };
            each(runtime, tasks, &numbers, move |number| {
                let (peer, value) = (peer.clone(), values[number % values.len()].clone());
                async move { peer.put(&address(number), &value).await }
            })
        }
        Measure::Batch => {
            let batches: Vec<_> = numbers.iter().map(|number| batch(*number, &values)).collect();
            let places: Vec<usize> = (0..batches.len()).collect();
            let batches = Arc::new(batches);
            let (figure, latencies) = each(runtime, 1, &places, move |place| {
                let (peer, batches) = (peer.clone(), batches.clone());
                async move { peer.batch(&batches[place]).await }
            });
            (figure / BATCH as f64, latencies.into_iter().map(|micros| micros / BATCH as f64).collect())
        }
        Measure::Burst => burst(runtime, &peer, &values, round),
    }
}

/// Neighbours, as they were first stored.
fn batch(number: usize, values: &[Bytes]) -> Vec<(Arc<str>, Bytes)> {
    let first = number % (SESSIONS / BATCH) * BATCH;
    (first..first + BATCH).map(|number| (address(number), values[number % values.len()].clone())).collect()
}

/// Makes the calls with these numbers, divided among tasks.
fn each<F>(
    runtime: &Runtime,
    tasks: usize,
    numbers: &[usize],
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> (f64, Vec<f64>)
where
    F: Future<Output = ()> + Send,
{
    let start = Instant::now();
    let running: Vec<_> = numbers
        .chunks(numbers.len().div_ceil(tasks))
        .map(|numbers| {
            let (numbers, call) = (numbers.to_vec(), call.clone());
            runtime.spawn(async move {
                let mut latencies = Vec::with_capacity(numbers.len());
                for number in numbers {
                    let start = Instant::now();
                    call(number).await;
                    latencies.push(micros(start.elapsed()));
                }
                latencies
            })
        })
        .collect();
    let mut latencies: Vec<f64> = runtime
        .block_on(async { futures::future::join_all(running).await })
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    let elapsed = micros(start.elapsed());
    if tasks > 1 {
        return (elapsed / numbers.len() as f64, latencies);
    }
    latencies.sort_by(f64::total_cmp);
    (latencies[latencies.len() / 2], latencies)
}

fn burst(runtime: &Runtime, peer: &Arc<dyn Peer>, values: &Arc<Vec<Bytes>>, round: u64) -> (f64, Vec<f64>) {
    let next = Arc::new(AtomicUsize::new(0));
    let (peer, values) = (peer.clone(), values.clone());
    let task = move |_| {
        let (next, peer, values) = (next.clone(), peer.clone(), values.clone());
        async move {
            let mut beside = vec![];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SENDS {
                    break;
                }
                peer.send(&chat(number % CONTACTS), &id(round, number), &values[0][..200]).await;
                if number % BATCH == BATCH - 1 || number == SENDS - 1 {
                    let (peer, secrets) = (peer.clone(), secrets(round, number));
                    let writer = peer.clone();
                    beside.push(tokio::spawn(async move { writer.put_secrets(secrets).await }));
                    peer.batch(&batch(number / BATCH, &values)).await;
                }
            }
            for secrets in beside {
                secrets.await.unwrap();
            }
        }
    };
    let start = Instant::now();
    let (_, latencies) = each(runtime, TASKS, &(0..TASKS).collect::<Vec<_>>(), task);
    (micros(start.elapsed()) / SENDS as f64, latencies)
}

fn id(round: u64, number: usize) -> String {
    format!("3EB0{round:08X}{number:08X}")
}

/// The secrets of a message and of those before it.
fn secrets(round: u64, number: usize) -> Vec<MsgSecretEntry> {
    let secret = |number| {
        let chat: Arc<str> = chat(number % CONTACTS).into();
        let (sender, msg_id) = (chat.clone(), id(round, number).into());
        MsgSecretEntry { chat, sender, msg_id, secret: [7; 32], expires_at: i64::MAX / 2, message_ts: 1 }
    };
    (number / BATCH * BATCH..=number).map(secret).collect()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
