//! Many tasks under random schedules. No task ever reads a value older than one acknowledged before, and in the end
//! cache and store agree.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use shuttle::future::{self, yield_now};
use shuttle::rand::{Rng, thread_rng};
use wacore::store::InMemoryBackend;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::SHUTTLE;
use crate::CacheLayer;
use crate::cache::pool::Pool;
use crate::cache::region::Region;
use crate::cache::value::CacheValue;
use crate::layer::Layer;
use crate::method::{BoxFuture, Method, Record, Refuse, uniform_layer};
use crate::testing::arguments::{Arguments, Key, call};
use crate::testing::{Fault, Value};

fn schedules(usual: usize, long: usize) -> usize {
    if std::env::var_os("WASTORE_LONG").is_some() { long } else { usual }
}

fn under_shuttle(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(
        move || {
            SHUTTLE.set(true);
            test();
            SHUTTLE.set(false);
        },
        schedules,
    );
}

/// Polls a future `polls` times, whether or not it was woken, then drops it.
async fn some_polls<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

impl CacheValue for u64 {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn wipe(&mut self) {}
}

/// A store of numbers. Each write of any task writes a higher number.
#[derive(Clone, Default)]
struct Numbers {
    last: Arc<AtomicU64>,
    rows: Arc<Mutex<HashMap<u8, u64>>>,
    acknowledged: Arc<Mutex<HashMap<u8, u64>>>,
}

impl Numbers {
    fn write(&self, row: u8) -> u64 {
        let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        self.rows.lock().unwrap().insert(row, number);
        number
    }

    fn read(&self, row: u8) -> u64 {
        self.rows.lock().unwrap().get(&row).copied().unwrap_or(0)
    }

    fn acknowledge(&self, row: u8, number: u64) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        let last = acknowledged.entry(row).or_default();
        *last = number.max(*last);
    }

    fn floor(&self, row: u8) -> u64 {
        self.acknowledged.lock().unwrap().get(&row).copied().unwrap_or(0)
    }
}

const ROWS: u8 = 2;

async fn read(region: &Arc<Region<u64>>, store: &Numbers, row: u8) -> u64 {
    let load = || {
        let store = store.clone();
        async move {
            yield_now().await;
            let number = store.read(row);
            yield_now().await;
            if thread_rng().gen_bool(0.1) { Err(Fault::error()) } else { Ok(number) }
        }
    };
    loop {
        if let Ok(found) = region.get(region.key([&[row]]), load).await {
            return found.value;
        }
    }
}

/// One step of a task: usually an acknowledged write, sometimes one that fails or is dropped.
async fn write(region: &Arc<Region<u64>>, store: &Numbers) {
    let row = thread_rng().gen_range(0..ROWS);
    let write = region.write(std::iter::once(region.key([&[row]])));
    yield_now().await;
    match thread_rng().gen_range(0..8) {
        0 => {
            // Dropped; the store carries it out at some later time.
            drop(write);
            let late = store.clone();
            future::spawn(async move {
                yield_now().await;
                late.write(row);
            });
        }
        1 => {
            store.write(row);
            yield_now().await;
            let _ = write.end(Err::<(), _>(Fault::error()), |_| None);
        }
        _ => {
            let number = store.write(row);
            yield_now().await;
            let keep = thread_rng().gen_bool(0.7);
            write.end(Ok(()), |_| keep.then_some(number)).unwrap();
            store.acknowledge(row, number);
        }
    }
}

async fn clear(region: &Arc<Region<u64>>, store: &Numbers) {
    let clear = region.clear();
    yield_now().await;
    if thread_rng().gen_bool(0.2) {
        drop(clear);
        let late = store.clone();
        future::spawn(async move {
            yield_now().await;
            for row in 0..ROWS {
                late.write(row);
            }
        });
        return;
    }
    let numbers: Vec<_> = (0..ROWS).map(|row| store.write(row)).collect();
    yield_now().await;
    clear.end(Ok(()), |()| true).unwrap();
    (0..ROWS).zip(numbers).for_each(|(row, number)| store.acknowledge(row, number));
}

#[test]
fn a_region_is_never_behind_what_was_acknowledged() {
    under_shuttle(schedules(6000, 200_000), || {
        future::block_on(async {
            let (store, region) = (Numbers::default(), Region::new(Pool::new(1 << 16), 1, None));
            let mut tasks = vec![];
            for task in 0..5 {
                let (region, store) = (region.clone(), store.clone());
                tasks.push(future::spawn(async move {
                    for _ in 0..4 {
                        match task {
                            0 | 1 => write(&region, &store).await,
                            2 if thread_rng().gen_bool(0.5) => clear(&region, &store).await,
                            _ => {
                                let row = thread_rng().gen_range(0..ROWS);
                                let floor = store.floor(row);
                                let polls = thread_rng().gen_range(1..12);
                                if let Some(found) = some_polls(polls, read(&region, &store, row)).await {
                                    assert!(found >= floor, "read {found} after {floor} was acknowledged");
                                }
                            }
                        }
                        yield_now().await;
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            // The store may still carry out a dropped write; this waits for it.
            for _ in 0..50 {
                yield_now().await;
            }
            for row in 0..ROWS {
                assert_eq!(read(&region, &store, row).await, store.read(row), "cache and store disagree");
            }
        });
    });
}

/// A store whose calls take turns with other tasks and fail now and then. It carries calls out even if they are
/// dropped.
struct Rough {
    inner: Arc<dyn Backend>,
}

impl Rough {
    fn around<'a, A: Send + 'a, T: Refuse + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        Box::pin(async move {
            yield_now().await;
            let rough = method.access().changes_rows();
            if rough && thread_rng().gen_bool(0.1) {
                return T::refused(Fault::error());
            }
            let result = call(arguments).await;
            yield_now().await;
            if rough && thread_rng().gen_bool(0.1) { T::refused(Fault::error()) } else { result }
        })
    }
}

uniform_layer!(Rough);

/// The records that are written with rising numbers and read back, by the methods that write and read them.
const RECORDS: [(Method, Method); 12] = [
    (Method::PutSession, Method::GetSession),
    (Method::PutSessionsBatch, Method::GetSession),
    (Method::PutIdentity, Method::LoadIdentity),
    (Method::PutSenderKeysBatch, Method::GetSenderKey),
    (Method::StoreSignedPrekey, Method::LoadSignedPrekey),
    (Method::SetSyncKey, Method::GetSyncKey),
    (Method::SetVersion, Method::GetVersion),
    (Method::PutLidMapping, Method::GetPnMapping),
    (Method::UpdateDeviceLists, Method::GetDevices),
    (Method::PutGroupMetadata, Method::GetGroupMetadata),
    (Method::PutTcToken, Method::GetTcToken),
    (Method::PutMsgSecrets, Method::GetMsgSecretWithTs),
];

const FIRST: u8 = 4;

fn arguments(number: u8) -> Arguments {
    Arguments::numbered(Key { id: 7, text: "15550001111@lid" }, number)
}

/// The answers of a read after each number was written.
fn expected(put: Method, get: Method) -> Vec<Value> {
    futures::executor::block_on(async {
        let store = InMemoryBackend::new();
        let mut values = vec![call(&store, get, &arguments(FIRST), &[]).await.unwrap()];
        for number in FIRST..FIRST + 8 {
            let row = arguments(number);
            call(&store, put, &row, std::slice::from_ref(&row)).await.unwrap();
            values.push(call(&store, get, &row, &[]).await.unwrap());
        }
        values
    })
}

#[test]
fn the_layer_is_never_behind_what_was_acknowledged() {
    let records: Vec<_> = RECORDS.iter().map(|(put, get)| (*put, *get, expected(*put, *get))).collect();
    let records = Arc::new(records);
    under_shuttle(schedules(4000, 100_000), move || {
        let (put, get, values) = records[thread_rng().gen_range(0..records.len())].clone();
        future::block_on(async move {
            let below: Arc<dyn Backend> = Arc::new(InMemoryBackend::new());
            let signal = [Record::Session, Record::Identity, Record::SenderKey, Record::SignedPrekey];
            let cache = signal.into_iter().fold(CacheLayer::new(1 << 20), CacheLayer::with);
            let store = cache.layer(Arc::new(Rough { inner: below.clone() }));
            let acknowledged = Arc::new(AtomicU64::new(0));
            let position = move |value: Value| values.iter().position(|known| *known == value).map(|at| at as u64);

            let writer = future::spawn({
                let (store, acknowledged) = (store.clone(), acknowledged.clone());
                async move {
                    for number in FIRST..FIRST + 6 {
                        let row = arguments(number);
                        let write = call(&*store, put, &row, std::slice::from_ref(&row));
                        let polls = if thread_rng().gen_bool(0.2) { thread_rng().gen_range(0..4) } else { 1000 };
                        if let Some(Ok(_)) = some_polls(polls, write).await {
                            acknowledged.store(u64::from(number - FIRST) + 1, Ordering::SeqCst);
                        }
                        yield_now().await;
                    }
                }
            });
            let readers: Vec<_> = (0..3)
                .map(|reader| {
                    let (store, acknowledged, position) = (store.clone(), acknowledged.clone(), position.clone());
                    future::spawn(async move {
                        for _ in 0..6 {
                            if reader == 0 && thread_rng().gen_bool(0.3) {
                                // A call that concerns every row, and changes none of these.
                                let _: Result<u32, StoreError> = store.delete_expired_tc_tokens(1, 1).await;
                                let _ = store.delete_sender_key_device_rows(&["absent"]).await;
                            }
                            let floor = acknowledged.load(Ordering::SeqCst);
                            let row = arguments(FIRST);
                            let polls = if thread_rng().gen_bool(0.2) { 2 } else { 1000 };
                            if let Some(Ok(value)) = some_polls(polls, call(&*store, get, &row, &[])).await {
                                let found = position(value).expect("no task wrote that");
                                assert!(found >= floor, "{}: {found} after {floor}", get.name());
                            }
                        }
                    })
                })
                .collect();
            writer.await.unwrap();
            for reader in readers {
                reader.await.unwrap();
            }
            let row = arguments(FIRST);
            let (cached, stored) = (call(&*store, get, &row, &[]).await, call(&*below, get, &row, &[]).await);
            assert_eq!(cached.unwrap(), stored.unwrap(), "{}: cache and store disagree", get.name());
        });
    });
}
