//! Values are wiped however they leave the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wacore::appstate::hash::HashState;
use wacore::store::traits::{AppStateSyncKey, TcTokenEntry};

use crate::cache::pool::Pool;
use crate::cache::region::Region;
use crate::cache::value::CacheValue;

/// Counts how often values were wiped.
#[derive(Clone)]
struct Counted(Arc<AtomicUsize>);

impl CacheValue for Counted {
    fn heap_bytes(&self) -> usize {
        100
    }

    fn wipe(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn values_that_leave_are_wiped() {
    let wiped = Arc::new(AtomicUsize::new(0));
    let value = || Counted(wiped.clone());
    let take = || wiped.swap(0, Ordering::Relaxed);
    let pool = Pool::new(1 << 16);
    let region = Region::new(pool.clone(), 1, None);
    let key = |number: u32| region.key([&number.to_le_bytes()]);
    let put = |number| region.write(std::iter::once(key(number))).end(Ok(()), |_| Some(value())).unwrap();

    put(1);
    assert_eq!(take(), 0);
    put(1);
    assert_eq!(take(), 1, "replaced");
    region.write(std::iter::once(key(1))).end(Ok(()), |_| None).unwrap();
    assert_eq!(take(), 1, "invalidated");
    put(1);
    drop(region.write(std::iter::once(key(1))));
    assert_eq!(take(), 1, "a write was dropped");
    put(2);
    let held = region.peek(&key(2)).unwrap();
    region.forget();
    assert_eq!(take(), 0, "it still has a holder");
    drop(held);
    assert_eq!(take(), 1, "forgotten");
    let entries = || pool.stats(crate::Record::TcToken).entries as usize;
    (100..1100).for_each(put);
    assert_eq!(take(), 1000 - entries(), "evicted");
    let left = entries();
    assert!(left > 10);
    drop(region);
    assert_eq!(take(), left, "dropped with the store");
}

#[test]
fn wiping_leaves_nothing() {
    let mut key = AppStateSyncKey { key_data: vec![1; 32], fingerprint: vec![2; 9], timestamp: 3 };
    key.wipe();
    assert!(key.key_data.is_empty() && key.fingerprint.is_empty());
    let mut token = TcTokenEntry { token: vec![1; 40], token_timestamp: 5, sender_timestamp: None };
    token.wipe();
    assert!(token.token.is_empty());
    let mut state = HashState { hash: [7; 128], ..HashState::default() };
    state.wipe();
    assert_eq!(state.hash, [0; 128]);
    let mut secret = (vec![1; 32], 5);
    secret.wipe();
    assert!(secret.0.is_empty());
    let mut identity = Some([1; 32]);
    identity.wipe();
    assert_eq!(identity, Some([0; 32]));
}
