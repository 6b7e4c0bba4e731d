//! The counts of a PostgreSQL store. No server is needed, because only its counters are observed.

use std::sync::Arc;

use crate::Metrics;
use crate::postgres::{Counters, Wait};

/// The counters of a store that is tracked under this name.
pub(super) fn tracked(metrics: &Metrics, name: &'static str) -> Arc<Counters> {
    let counters = Arc::default();
    metrics.track_counters(name, &counters);
    counters
}

#[test]
fn a_snapshot_has_the_counts_of_a_postgres_store() {
    let metrics = Metrics::new();
    let store = tracked(&metrics, "database");
    store.groups.add(2);
    store.grouped_calls.add(7);
    store.statements.add(3);
    store.reads.add(11);
    let before = metrics.snapshot();
    store.leases_lost.add(1);
    store.renewals.add(4);
    store.retries.add(5);
    store.reconnects.add(6);
    let waits = [Wait::begin(store.clone()), Wait::begin(store.clone())];

    let now = metrics.snapshot();
    let stats = now.postgres("database").unwrap();
    assert_eq!((stats.groups, stats.grouped_calls, stats.statements, stats.reads), (2, 7, 3, 11));
    assert_eq!((stats.leases_lost, stats.renewals, stats.retries, stats.reconnects), (1, 4, 5, 6));
    assert_eq!((stats.queued, stats.calls_per_group()), (2, Some(3.5)));
    let since = *now.since(&before).postgres("database").unwrap();
    assert_eq!((since.groups, since.leases_lost, since.queued, since.calls_per_group()), (0, 1, 2, None));
    assert!(now.postgres("other").is_none());

    let json = serde_json::to_value(&now).unwrap();
    assert_eq!((&json["postgres"][0]["name"], &json["postgres"][0]["queued"]), (&"database".into(), &2.into()));
    assert_eq!(json["postgres"][0]["leases_lost"], 1);
    let text = now.to_string();
    let lines: Vec<_> = text.lines().skip_while(|line| *line != "postgres database").collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[1].len(), lines[2].len(), "{text}");
    drop(waits);
    assert_eq!(metrics.snapshot().postgres("database").unwrap().queued, 0);
}

#[test]
fn a_store_replaces_the_one_before_it_in_snapshots() {
    let metrics = Metrics::new();
    tracked(&metrics, "database").groups.add(1);
    let second = tracked(&metrics, "database");
    second.groups.add(5);
    let snapshot = metrics.snapshot();
    assert_eq!(snapshot.postgres_stores().map(|(_, stats)| stats.groups).collect::<Vec<_>>(), [5]);
}

/// The observer must not keep the store open, whose connections end with its last handle.
#[test]
fn tracking_keeps_the_counters_and_nothing_else() {
    let metrics = Metrics::new();
    let store = tracked(&metrics, "database");
    assert_eq!(Arc::strong_count(&store), 2, "the caller and the snapshots");
    drop(metrics);
    assert_eq!(Arc::strong_count(&store), 1);
}

#[cfg(feature = "metrics")]
mod exported {
    use metrics_util::debugging::DebuggingRecorder;

    use super::super::export::values;
    use super::*;

    #[test]
    fn every_count_of_a_postgres_store_is_exported() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let metrics = Metrics::new();
        let store = tracked(&metrics, "database");
        ::metrics::with_local_recorder(&recorder, || {
            let counters = [&store.groups, &store.grouped_calls, &store.statements, &store.reads, &store.retries];
            let others = [&store.reconnects, &store.renewals, &store.leases_lost];
            for (number, counter) in counters.into_iter().chain(others).enumerate() {
                counter.add(number as u64 + 1);
            }
            drop(Wait::begin(store.clone()));
            let waits = [Wait::begin(store.clone()), Wait::begin(store.clone())];
            let values = values(&snapshotter);
            let names = [
                "groups_total",
                "group_calls_total",
                "group_statements_total",
                "read_statements_total",
                "retries_total",
                "reconnects_total",
                "lease_renewals_total",
                "lease_lost_total",
            ];
            for (number, name) in names.iter().enumerate() {
                assert_eq!(values[&format!("wa_store_{name} layer=database")], number as f64 + 1.0, "{name}");
            }
            assert_eq!(values["wa_store_queue_length layer=database"], 2.0);
            drop(waits);
        });
    }

    /// The first event makes all series, so that a rate shows even the first lost lease.
    #[test]
    fn the_first_event_exports_all_series_at_zero() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let metrics = Metrics::new();
        let store = tracked(&metrics, "database");
        ::metrics::with_local_recorder(&recorder, || store.reads.add(1));
        let values = values(&snapshotter);
        assert_eq!(values["wa_store_lease_lost_total layer=database"], 0.0);
        assert_eq!(values.len(), 9);
    }

    /// A call that begins to wait without a recorder and ends with one must not bring the gauge below zero.
    #[test]
    fn the_queue_is_never_shorter_than_nothing() {
        let metrics = Metrics::new();
        let store = tracked(&metrics, "database");
        let wait = Wait::begin(store.clone());
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        ::metrics::with_local_recorder(&recorder, || {
            store.reads.add(1);
            drop(wait);
        });
        assert_eq!(values(&snapshotter)["wa_store_queue_length layer=database"], 0.0);
    }

    #[test]
    fn stores_of_the_same_name_are_exported_together() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let metrics = Metrics::new();
        let stores = [tracked(&metrics, "database"), tracked(&metrics, "database")];
        ::metrics::with_local_recorder(&recorder, || {
            stores.iter().for_each(|store| store.leases_lost.add(1));
            let waits = stores.each_ref().map(|store| Wait::begin(store.clone()));
            let values = values(&snapshotter);
            assert_eq!(values["wa_store_lease_lost_total layer=database"], 2.0);
            assert_eq!(values["wa_store_queue_length layer=database"], 2.0);
            drop(waits);
        });
    }
}
