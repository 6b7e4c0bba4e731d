//! Slow calls are counted, and reported without a flood.

use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use wacore::store::InMemoryBackend;

use crate::metrics::LayerKind;
use crate::{Layer, Metrics};

#[test]
fn slow_calls_are_counted_from_the_threshold_on() {
    let metrics = Metrics::new();
    let store = metrics.layer("store").layer(Arc::new(InMemoryBackend::new()));
    let slow = || metrics.snapshot().layer("store").unwrap().total().slow();
    block_on(store.load()).unwrap();
    assert_eq!(slow(), 0, "no call is slow without a threshold");
    metrics.log_slower_than(LayerKind::Store, Some(Duration::ZERO));
    block_on(store.load()).unwrap();
    assert_eq!(slow(), 1);
    metrics.log_slower_than(LayerKind::Store, Some(Duration::from_secs(3600)));
    block_on(store.load()).unwrap();
    metrics.log_slower_than(LayerKind::Store, None);
    block_on(store.load()).unwrap();
    assert_eq!(slow(), 1);
    assert!(metrics.snapshot().to_string().contains("load: 1 slow"));
}

#[cfg(feature = "tracing")]
#[test]
fn a_flood_of_slow_calls_is_one_event_a_second() {
    let metrics = Metrics::new();
    let store = metrics.layer("store").layer(Arc::new(InMemoryBackend::new()));
    metrics.log_slower_than(LayerKind::Store, Some(Duration::ZERO));
    let events = super::privacy::captured(|| {
        for _ in 0..100 {
            block_on(store.load()).unwrap();
        }
        block_on(store.exists()).unwrap();
        std::thread::sleep(Duration::from_millis(1010));
        block_on(store.load()).unwrap();
    });
    let slow: Vec<_> = events.lines().filter(|line| line.contains("slow call")).collect();
    let of = |op: &str| slow.iter().copied().filter(|line| line.contains(&format!("op=\"{op}\""))).collect::<Vec<_>>();
    assert_eq!((of("load").len(), of("exists").len()), (2, 1), "{events}");
    assert!(of("load")[0].contains("suppressed=0") && of("load")[1].contains("suppressed=99"), "{slow:?}");
    assert!(slow.iter().all(|line| line.contains("layer=\"store\"") && line.contains("outcome=\"ok\"")), "{slow:?}");
    assert_eq!(metrics.snapshot().layer("store").unwrap().total().slow(), 102);
}
