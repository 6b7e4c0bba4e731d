//! Every race on its own: the store pauses in the middle of one call while another one runs.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::poll;
use tokio::sync::Semaphore;
use wacore::store::InMemoryBackend;
use wacore::store::traits::{Backend, LidPnMappingEntry, MsgSecretEntry, TcTokenEntry};

use crate::CacheLayer;
use crate::cache::RecordStats;
use crate::cache::pool::Pool;
use crate::cache::region::Region;
use crate::layer::Layer;
use crate::method::{Method, Record};
use crate::testing::gate::{Gate, Side};
use crate::testing::{Effect, Fault, Spy, When};

/// A cache over a gate over a store, with a spy and a fault layer in between.
struct Bench {
    store: Arc<dyn Backend>,
    /// The store without the cache.
    below: Arc<dyn Backend>,
    cache: CacheLayer,
    gate: Gate,
    spy: Spy,
    fault: Fault,
}

fn bench_of(cache: CacheLayer) -> Bench {
    let (gate, spy, fault) = (Gate::default(), Spy::new(), Fault::new());
    let below: Arc<dyn Backend> = Arc::new(InMemoryBackend::new());
    let store = cache.layer(spy.layer(gate.layer(fault.layer(below.clone()))));
    Bench { store, below, cache, gate, spy, fault }
}

fn bench() -> Bench {
    bench_of(CacheLayer::new(1 << 20).with(Record::Session))
}

impl Bench {
    fn of(&self, record: Record) -> RecordStats {
        *self.cache.stats().record(record).unwrap()
    }

    /// The number of calls to the store since the last time.
    fn asked(&self) -> usize {
        self.spy.take().len()
    }

    async fn put(&self, version: i64) {
        self.store.put_tc_token(JID, &token(version)).await.unwrap();
    }

    async fn get(&self) -> i64 {
        version(self.store.get_tc_token(JID).await.unwrap())
    }
}

const JID: &str = "100000000000001@lid";

fn token(version: i64) -> TcTokenEntry {
    TcTokenEntry { token: vec![1], token_timestamp: version, sender_timestamp: None }
}

fn version(entry: Option<TcTokenEntry>) -> i64 {
    entry.map_or(0, |entry| entry.token_timestamp)
}

#[tokio::test]
async fn what_is_cached_is_not_asked_for_again() {
    let bench = bench();
    assert_eq!((bench.get().await, bench.asked()), (0, 1));
    assert_eq!((bench.get().await, bench.asked()), (0, 0), "absence is cached too");
    bench.put(1).await;
    bench.asked();
    assert_eq!((bench.get().await, bench.asked()), (1, 0), "the written value is cached");
    bench.store.touch_tc_token_sender_timestamp(JID, 9).await.unwrap();
    bench.asked();
    assert_eq!((bench.get().await, bench.asked()), (1, 1), "only the store knows the merged value");
    let stats = bench.of(Record::TcToken);
    assert_eq!((stats.hits, stats.misses, stats.loads, stats.entries), (2, 2, 2, 1));
    assert!(stats.bytes > 0 && stats.hit_rate() == Some(0.5));
    bench.cache.invalidate_all();
    bench.asked();
    assert_eq!((bench.get().await, bench.asked()), (1, 1));
    let table = bench.cache.stats().to_string();
    assert!(table.lines().any(|line| line.starts_with("tc token")), "{table}");
}

#[tokio::test]
async fn a_read_that_began_before_a_write_is_not_kept() {
    let bench = bench();
    bench.put(1).await;
    bench.cache.invalidate_all();
    bench.gate.close(Method::GetTcToken, Side::After);
    let mut read = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut read).is_pending());
    bench.put(2).await;
    bench.cache.invalidate_all();
    bench.gate.open(Method::GetTcToken);
    assert_eq!(version(read.await.unwrap()), 1, "it began before");
    assert_eq!(bench.get().await, 2);

    // The same with a write whose value is not cached.
    bench.cache.invalidate_all();
    bench.gate.close(Method::GetTcToken, Side::After);
    let mut read = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut read).is_pending());
    bench.store.store_received_tc_token(JID, b"3", 3).await.unwrap();
    bench.gate.open(Method::GetTcToken);
    assert_eq!(version(read.await.unwrap()), 2, "it began before");
    assert_eq!(bench.get().await, 3);
}

#[tokio::test]
async fn no_call_joins_a_read_that_began_before_a_write() {
    let bench = bench();
    bench.put(1).await;
    bench.cache.invalidate_all();
    bench.gate.close(Method::GetTcToken, Side::After);
    let mut early = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut early).is_pending());
    bench.store.store_received_tc_token(JID, b"2", 2).await.unwrap();
    let mut late = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut late).is_pending());
    bench.gate.open(Method::GetTcToken);
    assert_eq!(version(late.await.unwrap()), 2, "the write was acknowledged before");
    assert_eq!(version(early.await.unwrap()), 1);
    assert_eq!(bench.get().await, 2);
}

#[tokio::test]
async fn reads_during_a_write_see_what_the_store_shows() {
    let bench = bench();
    bench.put(1).await;
    bench.gate.close(Method::PutTcToken, Side::After);
    let second = token(2);
    let mut write = pin!(bench.store.put_tc_token(JID, &second));
    assert!(poll!(&mut write).is_pending());
    assert_eq!(bench.get().await, 2, "the store has it already, so another row of the batch may be new as well");
    bench.gate.close(Method::GetTcToken, Side::After);
    let mut read = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut read).is_pending());
    bench.gate.open(Method::PutTcToken);
    write.await.unwrap();
    bench.put(3).await;
    bench.gate.open(Method::GetTcToken);
    assert_eq!(version(read.await.unwrap()), 2);
    assert_eq!(bench.get().await, 3);
}

#[tokio::test]
async fn a_read_during_a_write_is_not_kept() {
    let bench = bench();
    bench.put(1).await;
    bench.gate.close(Method::StoreReceivedTcToken, Side::Before);
    let mut write = pin!(bench.store.store_received_tc_token(JID, b"2", 2));
    assert!(poll!(&mut write).is_pending());
    // The read begins during the write, ends after it, and returns the value from before it.
    bench.gate.close(Method::GetTcToken, Side::After);
    let mut read = pin!(bench.store.get_tc_token(JID));
    assert!(poll!(&mut read).is_pending());
    bench.gate.open(Method::StoreReceivedTcToken);
    write.await.unwrap();
    bench.gate.open(Method::GetTcToken);
    assert_eq!(version(read.await.unwrap()), 1);
    assert_eq!(bench.get().await, 2);
}

#[tokio::test]
async fn of_two_writes_at_once_neither_is_kept() {
    let bench = bench();
    let (first, second) = (token(1), token(2));
    bench.gate.close(Method::PutTcToken, Side::After);
    let mut one = pin!(bench.store.put_tc_token(JID, &first));
    assert!(poll!(&mut one).is_pending());
    // The second write is carried out after the first, and acknowledged before it.
    bench.gate.closed.lock().unwrap().clear();
    bench.store.put_tc_token(JID, &second).await.unwrap();
    assert_eq!(bench.get().await, 2);

    let bench = self::bench();
    let gate = Arc::new(Semaphore::new(0));
    bench.gate.closed.lock().unwrap().insert(Method::PutTcToken, (Side::After, gate.clone()));
    let mut one = pin!(bench.store.put_tc_token(JID, &first));
    assert!(poll!(&mut one).is_pending());
    bench.gate.closed.lock().unwrap().clear();
    bench.store.put_tc_token(JID, &second).await.unwrap();
    gate.add_permits(1);
    one.await.unwrap();
    assert_eq!(bench.get().await, 2, "the write that ends last did not necessarily come last");
}

#[tokio::test]
async fn a_write_that_failed_drops_the_value() {
    let bench = bench();
    bench.put(1).await;
    for effect in [Effect::Fail(Fault::error), Effect::FailAfter(Fault::error)] {
        bench.fault.inject(When::Method(Method::PutTcToken), effect);
        assert!(Fault::is_injected(&bench.store.put_tc_token(JID, &token(2)).await.unwrap_err()));
        bench.fault.clear();
        assert_eq!(bench.get().await, version(bench.below.get_tc_token(JID).await.unwrap()));
    }
    assert_eq!(bench.get().await, 2);
    // For example after a timeout: the store carries the write out after it returned an error.
    bench.below.put_tc_token(JID, &token(3)).await.unwrap();
    assert_eq!(bench.get().await, 3);
}

#[tokio::test]
async fn a_write_that_was_dropped_may_be_carried_out_later() {
    let bench = bench();
    bench.put(1).await;
    bench.gate.close(Method::PutTcToken, Side::Before);
    let second = token(2);
    {
        let mut write = pin!(bench.store.put_tc_token(JID, &second));
        assert!(poll!(&mut write).is_pending());
    }
    assert_eq!(bench.get().await, 1, "the write has not reached the store yet");
    bench.below.put_tc_token(JID, &second).await.unwrap();
    assert_eq!(bench.get().await, 2, "a value that was read during the doubt must not be kept");
    // Neither may a value that another task writes during the doubt.
    bench.gate.open(Method::PutTcToken);
    bench.put(3).await;
    bench.below.put_tc_token(JID, &token(4)).await.unwrap();
    assert_eq!(bench.get().await, 4);
}

#[tokio::test]
async fn a_read_that_began_before_a_clear_is_not_kept() {
    let bench = bench();
    let group = "120363000000000001@g.us";
    bench.store.set_sender_key_status(group, &[("a", true), ("b", true)]).await.unwrap();
    bench.gate.close(Method::GetSenderKeyDevices, Side::After);
    let mut read = pin!(bench.store.get_sender_key_devices(group));
    assert!(poll!(&mut read).is_pending());
    bench.store.delete_sender_key_device_rows(&["a"]).await.unwrap();
    bench.gate.open(Method::GetSenderKeyDevices);
    assert_eq!(read.await.unwrap().len(), 2);
    assert_eq!(bench.store.get_sender_key_devices(group).await.unwrap(), [("b".to_owned(), true)]);

    // The same with a read that began during the call.
    bench.store.set_sender_key_status(group, &[("a", true)]).await.unwrap();
    bench.gate.close(Method::DeleteSenderKeyDeviceRows, Side::Before);
    let mut clear = pin!(bench.store.delete_sender_key_device_rows(&["a"]));
    assert!(poll!(&mut clear).is_pending());
    assert_eq!(bench.store.get_sender_key_devices(group).await.unwrap().len(), 2);
    bench.gate.open(Method::DeleteSenderKeyDeviceRows);
    clear.await.unwrap();
    assert_eq!(bench.store.get_sender_key_devices(group).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_write_during_a_clear_is_not_kept() {
    let bench = bench();
    bench.gate.close(Method::ClearSenderKeyDevices, Side::After);
    let mut write = pin!(bench.store.clear_sender_key_devices("g"));
    assert!(poll!(&mut write).is_pending());
    bench.below.set_sender_key_status("g", &[("a", true), ("b", true)]).await.unwrap();
    bench.store.delete_sender_key_device_rows(&["a"]).await.unwrap();
    bench.gate.open(Method::ClearSenderKeyDevices);
    write.await.unwrap();
    assert_eq!(bench.store.get_sender_key_devices("g").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_clear_that_was_dropped_may_be_carried_out_later() {
    let bench = bench();
    bench.store.set_sender_key_status("g", &[("a", true)]).await.unwrap();
    bench.gate.close(Method::DeleteSenderKeyDeviceRows, Side::Before);
    {
        let mut clear = pin!(bench.store.delete_sender_key_device_rows(&["a"]));
        assert!(poll!(&mut clear).is_pending());
    }
    assert_eq!(bench.store.get_sender_key_devices("g").await.unwrap().len(), 1);
    bench.below.delete_sender_key_device_rows(&["a"]).await.unwrap();
    assert_eq!(bench.store.get_sender_key_devices("g").await.unwrap().len(), 0);
}

#[tokio::test]
async fn callers_that_miss_together_share_one_call() {
    let bench = bench();
    bench.below.put_tc_token(JID, &token(1)).await.unwrap();
    bench.gate.close(Method::GetTcToken, Side::Before);
    let mut reads: Vec<_> = (0..20).map(|_| Box::pin(bench.store.get_tc_token(JID))).collect();
    for read in &mut reads {
        assert!(poll!(read).is_pending());
    }
    assert_eq!(bench.asked(), 1);
    // The read that asked the store is dropped; the others do not wait for it.
    drop(reads.remove(0));
    bench.gate.open(Method::GetTcToken);
    // A read that is not polled does not block the others.
    let asleep = reads.remove(0);
    for read in reads {
        assert_eq!(version(read.await.unwrap()), 1);
    }
    assert_eq!(version(asleep.await.unwrap()), 1);
    assert_eq!(bench.asked(), 0);
    let stats = bench.of(Record::TcToken);
    assert_eq!((stats.misses, stats.loads), (20, 1));
}

#[tokio::test]
async fn a_load_without_waiters_is_dropped() {
    let bench = bench();
    bench.gate.close(Method::GetTcToken, Side::Before);
    for _ in 0..3 {
        let mut read = pin!(bench.store.get_tc_token(JID));
        assert!(poll!(&mut read).is_pending());
    }
    assert_eq!(bench.asked(), 3, "each read began again");
    bench.gate.open(Method::GetTcToken);
    assert_eq!(bench.get().await, 0);
}

#[tokio::test]
async fn a_failed_load_is_not_cached_and_waiting_readers_retry() {
    let bench = bench();
    bench.below.put_tc_token(JID, &token(1)).await.unwrap();
    bench.gate.close(Method::GetTcToken, Side::Before);
    bench.fault.inject(When::NthOf(Method::GetTcToken, 1), Effect::Fail(Fault::error));
    let mut reads: Vec<_> = (0..5).map(|_| Box::pin(bench.store.get_tc_token(JID))).collect();
    for read in &mut reads {
        assert!(poll!(read).is_pending());
    }
    bench.gate.open(Method::GetTcToken);
    let mut results = vec![];
    for read in reads {
        results.push(read.await);
    }
    assert_eq!(results.iter().filter(|result| result.as_ref().is_err_and(Fault::is_injected)).count(), 1);
    assert_eq!(results.into_iter().filter_map(Result::ok).map(version).collect::<Vec<_>>(), [1; 4]);
    assert_eq!(bench.asked(), 5, "one for all, and then each by itself");
}

#[tokio::test]
async fn a_warm_up_keeps_nothing_written_while_it_ran() {
    let bench = bench();
    let mapping = |phone: &str| LidPnMappingEntry {
        lid: "1".to_owned(),
        phone_number: phone.to_owned(),
        created_at: 1,
        updated_at: 1,
        learning_source: String::new(),
    };
    bench.below.put_lid_mapping(&mapping("555")).await.unwrap();
    bench.below.put_tc_token(JID, &token(1)).await.unwrap();
    assert_eq!(bench.cache.warm_up().await.unwrap(), 2);
    bench.asked();
    assert_eq!(bench.store.get_lid_mapping("1").await.unwrap().unwrap().phone_number, "555");
    assert_eq!((bench.get().await, bench.asked()), (1, 0));

    bench.cache.invalidate_all();
    bench.gate.close(Method::GetAllLidMappings, Side::After);
    let mut warming = pin!(bench.cache.warm_up());
    assert!(poll!(&mut warming).is_pending());
    bench.store.put_lid_mapping(&mapping("666")).await.unwrap();
    bench.gate.open(Method::GetAllLidMappings);
    warming.await.unwrap();
    assert_eq!(bench.store.get_lid_mapping("1").await.unwrap().unwrap().phone_number, "666");

    // A dropped write may still change the listed value, so it is not kept either.
    bench.gate.close(Method::PutLidMapping, Side::Before);
    {
        let moved = mapping("777");
        let mut write = pin!(bench.store.put_lid_mapping(&moved));
        assert!(poll!(&mut write).is_pending());
    }
    bench.cache.warm_up().await.unwrap();
    bench.below.put_lid_mapping(&mapping("777")).await.unwrap();
    assert_eq!(bench.store.get_lid_mapping("1").await.unwrap().unwrap().phone_number, "777");
}

#[tokio::test]
async fn a_store_that_panics_hangs_no_caller() {
    let region = Region::<u64>::new(Pool::new(1 << 16), 1, None);
    let key = region.key([b"a"]);
    let panics = || async { panic!("the store panics") };
    let one = tokio::spawn({
        let (region, key) = (region.clone(), key.clone());
        async move { region.get(key, panics).await.map(|found| found.value) }
    });
    assert!(one.await.is_err(), "the panic is the caller's");
    assert_eq!(region.get(key, || async { Ok(7) }).await.unwrap().value, 7);
}

/// Keys in doubt take memory, so their number has a limit. Beyond it everything is in doubt.
#[tokio::test]
async fn many_dropped_writes_put_the_whole_region_in_doubt() {
    let region = Region::<u64>::new(Pool::new(1 << 20), 1, None);
    let key = |number: u32| region.key([&number.to_le_bytes()]);
    let loads = async |number| {
        let asked = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 {
            let load = || {
                asked.fetch_add(1, Ordering::Relaxed);
                async { Ok(7) }
            };
            assert_eq!(region.get(key(number), load).await.unwrap().value, 7);
        }
        asked.load(Ordering::Relaxed)
    };
    assert_eq!(loads(1_000_000).await, 1);
    for number in 0..10_000 {
        drop(region.write(std::iter::once(key(number))));
    }
    assert_eq!(loads(0).await, 2, "its own write was dropped");
    assert_eq!(loads(2_000_000).await, 2);
    assert_eq!(region.fill([(key(3_000_000), 7)].into_iter(), region.snapshot()), 0);
}

#[tokio::test]
async fn calls_that_concern_other_rows_clear_them() {
    let bench = bench();
    let mapping = |lid: &str, phone: &str| LidPnMappingEntry {
        lid: lid.to_owned(),
        phone_number: phone.to_owned(),
        created_at: 1,
        updated_at: 1,
        learning_source: String::new(),
    };
    // A LID that moves away from a number.
    bench.store.put_lid_mapping(&mapping("1", "555")).await.unwrap();
    assert!(bench.store.get_pn_mapping("555").await.unwrap().is_some());
    bench.store.put_lid_mappings(&[mapping("1", "666")]).await.unwrap();
    assert!(bench.store.get_pn_mapping("555").await.unwrap().is_none());
    // The latest one of all sync keys.
    let key = |id| wacore::store::traits::AppStateSyncKey { key_data: vec![id; 32], fingerprint: vec![], timestamp: 1 };
    for id in 1..3u8 {
        bench.store.set_sync_key(&[id], key(id)).await.unwrap();
        assert_eq!(bench.store.get_latest_sync_key_id().await.unwrap(), Some(vec![id]));
    }
    // Sweeps that delete rows.
    bench.put(5).await;
    bench.store.delete_expired_tc_tokens(5, 5).await.unwrap();
    bench.asked();
    assert_eq!((bench.get().await, bench.asked()), (5, 0), "nothing was deleted");
    bench.store.delete_expired_tc_tokens(6, 6).await.unwrap();
    assert_eq!(bench.get().await, 0);
    let secret = MsgSecretEntry {
        chat: "c".into(),
        sender: "s".into(),
        msg_id: "m".into(),
        secret: [1; 32],
        expires_at: 5,
        message_ts: 6,
    };
    bench.store.put_msg_secrets(vec![secret]).await.unwrap();
    assert_eq!(bench.store.get_msg_secret("c", "s", "m").await.unwrap(), Some(vec![1; 32]));
    bench.asked();
    assert_eq!(bench.store.get_msg_secret_with_ts("c", "s", "m").await.unwrap(), Some((vec![1; 32], 6)));
    assert_eq!(bench.asked(), 0, "one entry answers both questions");
    bench.store.delete_expired_msg_secrets(5).await.unwrap();
    assert_eq!(bench.store.get_msg_secret("c", "s", "m").await.unwrap(), None);
    // A cached session answers whether there is one.
    bench.store.put_session("a@s", b"x").await.unwrap();
    bench.asked();
    assert!(bench.store.has_session("a@s").await.unwrap());
    assert_eq!(bench.asked(), 0);
}

#[tokio::test]
async fn values_grow_old_if_they_are_told_to() {
    let bench = bench_of(CacheLayer::new(1 << 20).time_to_live(Duration::from_millis(200)));
    bench.put(1).await;
    bench.below.put_tc_token(JID, &token(2)).await.unwrap();
    assert_eq!(bench.get().await, 1, "the value is not old yet");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(bench.get().await, 2, "another process wrote it");
}

#[tokio::test]
async fn stores_under_one_layer_are_kept_apart_and_share_the_budget() {
    let cache = CacheLayer::new(1 << 20);
    let stores: Vec<_> = (0..3).map(|_| cache.layer(Arc::new(InMemoryBackend::new()))).collect();
    for (number, store) in stores.iter().enumerate() {
        store.put_tc_token(JID, &token(number as i64 + 1)).await.unwrap();
    }
    for (number, store) in stores.iter().enumerate() {
        assert_eq!(version(store.get_tc_token(JID).await.unwrap()), number as i64 + 1);
    }
    let of = || *cache.stats().record(Record::TcToken).unwrap();
    assert_eq!((of().entries, of().hits), (3, 3));
    let mut stores = stores;
    drop(stores.pop());
    assert_eq!(of().entries, 2, "the values of a dropped store go with it");
    let capacity: u64 = cache.stats().records().iter().map(|stats| stats.capacity).sum();
    assert!(capacity.abs_diff(1 << 20) <= 64, "{capacity}");
}

#[tokio::test]
async fn what_is_not_cached_passes_through() {
    let bench = bench_of(CacheLayer::new(0));
    bench.put(1).await;
    for _ in 0..3 {
        assert_eq!(bench.get().await, 1);
    }
    assert_eq!(bench.asked(), 4);
    assert!(bench.cache.stats().records().is_empty());
    let some = CacheLayer::new(1000).without(Record::TcToken).with(Record::Session).with(Record::Prekey);
    let stats = some.stats();
    assert!(stats.record(Record::TcToken).is_none() && stats.record(Record::Prekey).is_none());
    assert!(stats.record(Record::Session).is_some());
    for (bytes, name) in [(16 << 20, "cache(16 MiB)"), (3 << 10, "cache(3 KiB)"), (1001, "cache(1001 bytes)")] {
        assert_eq!(format!("{:?}", CacheLayer::new(bytes)), name);
    }
}
