//! The client's external cache: the counts are right, and everything passes unchanged.

use std::sync::Arc;

use futures::executor::block_on;
use wacore::store::InMemoryBackend;
use wacore::store::cache::CacheStore;

use crate::metrics::{LayerKind, OpSnapshot, Outcome};
use crate::testing::memory_cache::MemoryCache;
use crate::{Key, Metrics, Vault};

fn op(metrics: &Metrics, name: &str) -> OpSnapshot {
    let snapshot = metrics.snapshot();
    let layer = snapshot.layer_of(LayerKind::CacheStore, "redis").unwrap();
    layer.op(name).unwrap_or_else(|| panic!("{name} was not called")).clone()
}

#[test]
fn each_namespace_has_its_own_counts() {
    let (metrics, inner) = (Metrics::new(), Arc::new(MemoryCache::default()));
    let cache = metrics.cache_store("redis", inner.clone());
    assert_eq!(format!("{cache:?}"), "metrics(redis)");
    block_on(async {
        inner.set("group", "known", &[7; 100], None).await.unwrap();
        assert_eq!(cache.get("group", "known").await.unwrap(), Some(vec![7; 100]));
        assert_eq!(cache.get("group", "other").await.unwrap(), None);
        assert_eq!(cache.get("lid_pn_by_pn", "other").await.unwrap(), None);
        cache.set("device_registry", "known", &[1; 50], None).await.unwrap();
        cache.delete("lid_pn_by_lid", "known").await.unwrap();
        cache.clear("a later one").await.unwrap();
        assert_eq!(cache.entry_count("group").await.unwrap(), 1);
        inner.break_down(true);
        assert_eq!(cache.get("group", "known").await.unwrap_err().to_string(), "the key is 15550001111@s.whatsapp.net");
        cache.set("group", "known", &[1], None).await.unwrap_err();
    });
    let get = op(&metrics, "get_group");
    assert_eq!((get.calls(), get.found(), get.absent(), get.count(Outcome::Error)), (3, 1, 1, 1));
    assert_eq!((get.bytes_in(), get.bytes_out(), get.rows_out()), (15, 100, 1));
    assert_eq!((op(&metrics, "get_lid_pn_by_pn").absent(), op(&metrics, "set_device_registry").bytes_in()), (1, 55));
    for name in ["delete_lid_pn_by_lid", "clear_other", "entry_count_group", "set_group"] {
        assert_eq!(op(&metrics, name).calls(), 1, "{name}");
    }
    let text = format!("{}{}", metrics.snapshot(), serde_json::to_string(&metrics.snapshot()).unwrap());
    assert!(text.contains("get_group") && text.contains("\"cache_store\""), "{text}");
    assert!(!text.contains("known") && !text.contains("1555"), "{text}");
}

#[test]
fn hits_and_errors_show_on_the_right_side_of_encryption() {
    let (metrics, inner) = (Metrics::new(), Arc::new(MemoryCache::default()));
    let vault = block_on(Vault::create(Arc::new(InMemoryBackend::new()), Key::generate().unwrap())).unwrap();
    let below = metrics.cache_store("below", inner.clone());
    let cache = metrics.cache_store("redis", vault.cache_store(below));
    inner.break_down(true);
    assert_eq!(block_on(cache.get("group", "known")).unwrap(), None);
    let get = op(&metrics, "get_group");
    assert_eq!((get.absent(), get.errors()), (1, 0));
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.layer("below").unwrap().op("get_other").unwrap().errors(), 1);
}

#[cfg(feature = "metrics")]
#[test]
fn calls_to_an_external_cache_are_exported() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let (metrics, snapshotter) = (Metrics::new(), recorder.snapshotter());
    ::metrics::with_local_recorder(&recorder, || {
        let cache = metrics.cache_store("redis", Arc::new(MemoryCache::default()));
        block_on(cache.set("group", "known", &[7; 100], None)).unwrap();
        block_on(cache.get("group", "known")).unwrap();
        block_on(cache.get("group", "other")).unwrap();
    });
    let values = super::export::values(&snapshotter);
    for (name, expected) in [
        ("wa_cache_store_op_total layer=redis op=get_group outcome=ok", 2.0),
        ("wa_cache_store_lookups_total layer=redis op=get_group outcome=found", 1.0),
        ("wa_cache_store_lookups_total layer=redis op=get_group outcome=absent", 1.0),
        ("wa_cache_store_bytes_total layer=redis op=get_group direction=out", 100.0),
        ("wa_cache_store_entries_total layer=redis op=get_group direction=in", 2.0),
        ("wa_cache_store_op_duration_seconds layer=redis op=get_group", 2.0),
        ("wa_cache_store_op_in_flight layer=redis op=get_group", 0.0),
        ("wa_cache_store_op_slow_total layer=redis op=get_group", 0.0),
    ] {
        assert_eq!(values.get(name), Some(&expected), "{name}: {values:#?}");
    }
}
