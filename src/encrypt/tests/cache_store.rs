//! The client's external cache under a vault.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use wacore::store::cache::CacheStore;

use super::{memory, options, raw_key};
use crate::testing::memory_cache::{MemoryCache, name};
use crate::vault::EncryptedCacheStore;
use crate::{Key, Vault};

const GROUP: &str = "120363021033254949@g.us";
const MEMBERS: &[u8] = b"15550001111@s.whatsapp.net and 100000012345678@lid";

async fn sealed() -> (Arc<MemoryCache>, Vault, Arc<EncryptedCacheStore>) {
    let vault = options().create(memory(), raw_key()).await.unwrap();
    let inner = Arc::new(MemoryCache::default());
    let cache = vault.cache_store(inner.clone());
    (inner, vault, cache)
}

async fn get(cache: &EncryptedCacheStore, namespace: &str, key: &str) -> Option<Vec<u8>> {
    cache.get(namespace, key).await.unwrap()
}

async fn set(cache: &EncryptedCacheStore, namespace: &str, key: &str, value: &[u8]) {
    cache.set(namespace, key, value, Some(Duration::from_secs(3600))).await.unwrap();
}

#[tokio::test]
async fn a_cache_answers_as_without_encryption() {
    let (inner, _vault, cache) = sealed().await;
    assert_eq!(get(&cache, "group", GROUP).await, None);
    set(&cache, "group", GROUP, MEMBERS).await;
    cache.set("group", "without time", b"", None).await.unwrap();
    set(&cache, "device_registry", GROUP, b"other").await;
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(MEMBERS));
    assert_eq!(get(&cache, "group", "without time").await.as_deref(), Some(&b""[..]));
    assert_eq!(get(&cache, "device_registry", GROUP).await.as_deref(), Some(&b"other"[..]));
    assert_eq!(cache.entry_count("group").await.unwrap(), 2);
    cache.delete("group", GROUP).await.unwrap();
    assert_eq!(get(&cache, "group", GROUP).await, None);
    cache.clear("group").await.unwrap();
    assert_eq!((cache.entry_count("group").await.unwrap(), inner.len()), (0, 1));
    assert_eq!(cache.stats(), Default::default());
}

#[tokio::test]
async fn the_inner_cache_holds_no_names_and_no_values() {
    let (inner, _vault, cache) = sealed().await;
    set(&cache, "group", GROUP, MEMBERS).await;
    for ((namespace, key), value) in &*inner.entries.lock().unwrap() {
        let everything = [namespace.as_bytes(), key.as_bytes(), value].concat();
        for secret in [&b"group"[..], GROUP.as_bytes(), b"120363021033254949", b"15550001111", b"lid"] {
            assert!(!everything.windows(secret.len()).any(|window| window == secret));
        }
        assert_eq!((namespace.len(), key.len()), (24, 24));
    }
    assert!(!format!("{cache:?}").contains("group"));
}

#[tokio::test]
async fn accounts_that_share_a_cache_never_meet() {
    let (inner, _vault, cache) = sealed().await;
    let other = options().create(memory(), Key::from_bytes(&mut [0x5a; 32])).await.unwrap();
    let others = other.cache_store(inner.clone());
    set(&cache, "group", GROUP, b"one").await;
    assert_eq!(get(&others, "group", GROUP).await, None);
    set(&others, "group", GROUP, b"two").await;
    others.clear("lid_pn_by_lid").await.unwrap();
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(&b"one"[..]));
    others.clear("group").await.unwrap();
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(&b"one"[..]));
    assert_eq!((inner.len(), others.stats()), (1, Default::default()));
}

#[tokio::test]
async fn foreign_moved_and_altered_entries_are_misses() {
    let (inner, _vault, cache) = sealed().await;
    set(&cache, "group", "a", b"of a").await;
    set(&cache, "group", "b", b"of b").await;
    let place = |key: &str| cache.place("group", key).map(|place| name(&place.namespace, &place.key)).unwrap();
    let of_b = inner.entries.lock().unwrap()[&place("b")].clone();
    let whole = inner.entries.lock().unwrap()[&place("a")].clone();
    let altered = (0..whole.len()).map(|at| {
        let mut altered = whole.clone();
        altered[at] ^= 1;
        altered
    });
    let cut = (0..whole.len()).map(|end| whole[..end].to_vec());
    let mut refused = 0;
    for value in altered.chain(cut).chain([of_b, b"{\"plain\":true}".to_vec()]) {
        inner.entries.lock().unwrap().insert(place("a"), value);
        assert_eq!(get(&cache, "group", "a").await, None);
        refused += 1;
        assert_eq!(cache.stats().refused, refused);
    }
    inner.entries.lock().unwrap().insert(place("a"), whole);
    assert_eq!(get(&cache, "group", "a").await.as_deref(), Some(&b"of a"[..]));
    assert_eq!(cache.stats().failed, 0);
}

#[tokio::test]
async fn a_new_data_key_makes_entries_misses() {
    let (inner, vault, cache) = sealed().await;
    set(&cache, "group", GROUP, b"old").await;
    vault.rotate_data_key().await.unwrap();
    assert_eq!(get(&cache, "group", GROUP).await, None);
    assert_eq!((inner.len(), cache.stats().refused), (1, 1));
    set(&cache, "group", GROUP, b"new").await;
    assert_eq!(inner.len(), 1);
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(&b"new"[..]));
}

#[tokio::test]
async fn a_read_only_vault_only_reads_its_cache() {
    let (store, inner) = (memory(), Arc::new(MemoryCache::default()));
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    set(&vault.cache_store(inner.clone()), "group", GROUP, b"kept").await;
    let reading = options().mode(crate::vault::OpenMode::ReadOnly).open(store, raw_key()).await.unwrap();
    let cache = reading.cache_store(inner.clone());
    let before = inner.entries.lock().unwrap().clone();
    set(&cache, "group", GROUP, b"replaced").await;
    cache.delete("group", GROUP).await.unwrap();
    cache.clear("group").await.unwrap();
    assert_eq!(*inner.entries.lock().unwrap(), before);
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(&b"kept"[..]));
    assert_eq!(cache.stats().failed, 3);
}

#[tokio::test]
async fn entries_outlive_a_restart() {
    let store = memory();
    let inner = Arc::new(MemoryCache::default());
    let vault = options().create(store.clone(), raw_key()).await.unwrap();
    set(&vault.cache_store(inner.clone()), "group", GROUP, b"kept").await;
    drop(vault);
    let vault = options().open(store, raw_key()).await.unwrap();
    assert_eq!(get(&vault.cache_store(inner), "group", GROUP).await.as_deref(), Some(&b"kept"[..]));
}

#[tokio::test]
async fn an_entry_that_is_put_back_has_expired() {
    let (inner, _vault, cache) = sealed().await;
    cache.set("group", GROUP, b"short", Some(Duration::ZERO)).await.unwrap();
    let kept = inner.entries.lock().unwrap().clone();
    let start = std::time::Instant::now();
    while get(&cache, "group", GROUP).await.is_some() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *inner.entries.lock().unwrap() = kept;
    assert_eq!(get(&cache, "group", GROUP).await, None);
    assert_eq!(cache.stats().refused, 2);
}

#[tokio::test]
async fn a_failing_cache_is_a_miss_and_never_an_error() {
    let (inner, vault, cache) = sealed().await;
    set(&cache, "group", GROUP, MEMBERS).await;
    inner.break_down(true);
    assert_eq!(get(&cache, "group", GROUP).await, None);
    set(&cache, "group", GROUP, MEMBERS).await;
    cache.delete("group", GROUP).await.unwrap();
    cache.clear("group").await.unwrap();
    assert_eq!(cache.entry_count("group").await.unwrap(), 0);
    assert_eq!(cache.stats().failed, 5);
    inner.break_down(false);
    assert_eq!(get(&cache, "group", GROUP).await.as_deref(), Some(MEMBERS));
    vault.close();
    assert_eq!(get(&cache, "group", GROUP).await, None);
    cache.clear("group").await.unwrap();
    assert_eq!((cache.stats().failed, inner.len()), (7, 1));
    let (_, _vault, cache) = sealed().await;
    set(&cache, "group", &"x".repeat(70_000), b"a key that is too long").await;
    assert_eq!(cache.stats().failed, 1);
}

/// Otherwise a change of the data key would wait for a cache that does not answer.
#[tokio::test]
async fn a_hanging_cache_holds_up_no_change_of_the_key() {
    struct Hanging;
    #[async_trait]
    impl CacheStore for Hanging {
        async fn get(&self, _: &str, _: &str) -> anyhow::Result<Option<Vec<u8>>> {
            std::future::pending().await
        }
        async fn set(&self, _: &str, _: &str, _: &[u8], _: Option<Duration>) -> anyhow::Result<()> {
            std::future::pending().await
        }
        async fn delete(&self, _: &str, _: &str) -> anyhow::Result<()> {
            std::future::pending().await
        }
        async fn clear(&self, _: &str) -> anyhow::Result<()> {
            std::future::pending().await
        }
    }
    let vault = options().create(memory(), raw_key()).await.unwrap();
    let cache = vault.cache_store(Arc::new(Hanging));
    let reading = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get("group", GROUP).await }
    });
    let writing = tokio::spawn(async move { cache.set("group", GROUP, b"x", None).await });
    tokio::task::yield_now().await;
    vault.rotate_data_key().await.unwrap();
    assert!(vault.no_retired_state_in_use());
    assert!(!reading.is_finished() && !writing.is_finished());
    reading.abort();
    writing.abort();
}
