//! The series that go to the recorder of the `metrics` facade.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::executor::block_on;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use prometheus_parse::{Sample, Scrape, Value};
use wacore::net::{HttpClient, HttpRequest, HttpResponse, TransportFactory};
use wacore::store::InMemoryBackend;
use wacore::store::cache::CacheStore;
use wacore::store::error::StoreError;

use crate::metrics::{DURATION_BUCKETS, ExportedMetric, LayerKind, MetricKind, describe, exported};
use crate::testing::memory_cache::MemoryCache;
use crate::testing::{Effect, Fault, Operation, When};
use crate::{CacheLayer, Layer, Method, Metrics, Stack};

/// Counters and gauges by name and labels, and the number of samples of histograms.
pub(super) fn values(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let metrics = snapshotter.snapshot().into_vec().into_iter();
    let one = |(key, _, _, value): (metrics_util::CompositeKey, _, _, DebugValue)| {
        let labels: Vec<_> = key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(number) => number.0,
            DebugValue::Histogram(samples) => samples.len() as f64,
        };
        (format!("{} {}", key.key().name(), labels.join(" ")), value)
    };
    metrics.map(one).collect()
}

#[test]
fn everything_that_is_counted_is_exported() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (metrics, fault) = (Metrics::new(), Fault::new());
    metrics.log_slower_than(LayerKind::Store, Some(std::time::Duration::ZERO));
    let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(fault.clone()).layer(metrics.layer("memory"));
    let store = store.into_backend();
    ::metrics::with_local_recorder(&recorder, || {
        block_on(async {
            store.put_session("a", b"1234").await.unwrap();
            store.get_session("a").await.unwrap();
            store.get_session("bb").await.unwrap();
            fault.inject(When::Always, Effect::Fail(|| StoreError::Connection("gone".into())));
            store.get_session("a").await.unwrap_err();
            fault.clear();
            fault.inject(When::Always, Effect::Cancel { polls: 0 });
        });
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut stuck = store.get_session("a");
        assert!(stuck.as_mut().poll(&mut context).is_pending());
        assert_eq!(values(&snapshotter)["wa_store_op_in_flight layer=memory op=get_session"], 1.0);
        drop(stuck);
    });
    let values = values(&snapshotter);
    let get = |name: &str, more: &str| {
        let key = format!("{name} layer=memory op=get_session{more}");
        *values.get(&key).unwrap_or_else(|| panic!("{key} is not exported: {values:#?}"))
    };
    // This recorder returns the changes since the last look.
    let of = |outcome: &str| get("wa_store_op_total", &format!(" outcome={outcome}"));
    assert_eq!(
        (of("connection"), of("cancelled"), of("busy")),
        (0.0, 1.0, 0.0),
        "the snapshot before has all but the last"
    );
    assert_eq!(get("wa_store_op_in_flight", ""), -1.0);
    assert_eq!(get("wa_store_op_duration_seconds", ""), 1.0);
    assert_eq!(get("wa_store_op_slow_total", ""), 1.0);
    assert_eq!(get("wa_store_bytes_total", " direction=in"), 1.0);
    assert!(!values.keys().any(|key| key.starts_with("wa_store_lookups_total") && key.contains("put_session")));
}

/// All exported series of a whole run, as Prometheus sees them.
fn scrape_of_everything() -> (String, Scrape) {
    let recorder = PrometheusBuilder::new().set_buckets(DURATION_BUCKETS).unwrap().build_recorder();
    let handle = recorder.handle();
    let metrics = Metrics::new();
    let cache = CacheLayer::new(1 << 20);
    metrics.track_cache("cache", &cache);
    #[cfg(feature = "postgres")]
    let postgres = super::postgres::tracked(&metrics, "postgres");
    let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(cache).layer(metrics.layer("client"));
    let store = store.into_backend();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    ::metrics::with_local_recorder(&recorder, || {
        describe();
        #[cfg(feature = "postgres")]
        postgres.groups.add(1);
        for method in Method::ALL.iter().chain(Method::ALL).copied() {
            runtime.block_on(Operation::sample(method).run(&*store, 0)).unwrap();
        }
        runtime.block_on(async {
            let client = metrics.http_client("http", Arc::new(Web));
            client.execute(HttpRequest::get("https://secret.example")).await.unwrap();
            let factory = metrics.transport_factory("socket", Arc::new(Nothing), Arc::new(whatsapp_rust::TokioRuntime));
            factory.create_transport().await.err().unwrap();
            let cache = metrics.cache_store("redis", Arc::new(MemoryCache::default()));
            cache.get("group", "secret").await.unwrap();
        });
    });
    let text = handle.render();
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    (text, scrape)
}

struct Web;

#[async_trait::async_trait]
impl HttpClient for Web {
    async fn execute(&self, _: HttpRequest) -> anyhow::Result<HttpResponse> {
        Ok(HttpResponse { status_code: 200, body: vec![1] })
    }
}

struct Nothing;

#[async_trait::async_trait]
impl TransportFactory for Nothing {
    async fn create_transport(
        &self,
    ) -> anyhow::Result<(Arc<dyn wacore::net::Transport>, async_channel::Receiver<wacore::net::TransportEvent>)> {
        anyhow::bail!("no network")
    }
}

#[test]
fn what_is_exported_is_what_is_declared() {
    let (text, scrape) = scrape_of_everything();
    let mut declared: BTreeMap<&str, ExportedMetric> = exported().map(|metric| (metric.name, metric)).collect();
    assert_eq!(declared.len(), exported().count(), "every name once");
    let mut seen = BTreeSet::new();
    for Sample { metric, labels, .. } in &scrape.samples {
        // A histogram has samples with these suffixes.
        let name = metric.strip_suffix("_sum").or_else(|| metric.strip_suffix("_count")).unwrap_or(metric);
        let declared = declared.get(name).unwrap_or_else(|| panic!("{metric} is not declared"));
        seen.insert(declared.name);
        let names: BTreeSet<_> = labels.keys().map(String::as_str).collect();
        assert_eq!(names, declared.labels.iter().copied().collect(), "{metric}");
    }
    if !cfg!(feature = "postgres") {
        declared.retain(|_, metric| metric.labels != ["layer"]);
    }
    assert_eq!(seen, declared.keys().copied().collect(), "all are exported");
    for (name, metric) in &declared {
        let kind = match metric.kind {
            MetricKind::Counter(_) => "counter",
            MetricKind::Gauge(_) => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        assert!(text.contains(&format!("# HELP {name} {}\n", metric.help)), "{name} is not described");
    }

    let find = |name: &str, op: &str| {
        let sample = scrape.samples.iter().find(|s| s.metric == name && s.labels.get("op") == Some(op));
        sample.unwrap_or_else(|| panic!("{name} of {op}")).value.clone()
    };
    let Value::Histogram(buckets) = find("wa_store_op_duration_seconds", "get_session") else { panic!("no buckets") };
    assert_eq!(buckets.len(), DURATION_BUCKETS.len() + 1);
    assert_eq!(buckets.last().unwrap().count, 2.0);
    assert_eq!(find("wa_http_op_in_flight", "execute"), Value::Gauge(0.0));
}

/// The docs of the module that lists the exported metrics, in whichever file they are.
fn documented() -> String {
    let mut open = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = std::fs::read_to_string(path)
            && text.lines().any(|line| line.starts_with("//! | `wa_"))
        {
            return text;
        }
    }
    panic!("no module documents the exported metrics");
}

#[test]
fn the_documented_table_is_what_is_exported() {
    let documented = documented();
    let documented: Vec<_> = documented.lines().filter_map(|line| line.strip_prefix("//! | `wa_")).collect();
    let declared: Vec<_> = exported()
        .map(|metric| {
            let kind = match metric.kind {
                MetricKind::Counter(::metrics::Unit::Bytes) => "counter, bytes",
                MetricKind::Counter(_) if metric.name == "wa_store_lookups_total" => "counter, rows",
                MetricKind::Counter(_) => "counter",
                MetricKind::Gauge(_) => "gauge",
                MetricKind::Histogram(_) => "histogram, seconds",
            };
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("{}` | {kind} | {} |", metric.name.trim_start_matches("wa_"), labels.join(", "))
        })
        .collect();
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(documented.into_iter().map(str::to_owned).collect()), sorted(declared));
}

/// A bot that makes its stack first and installs an exporter later loses no later event.
#[test]
fn a_recorder_may_come_later() {
    let metrics = Metrics::new();
    let cache = CacheLayer::new(1 << 20);
    metrics.track_cache("cache", &cache);
    let store = metrics.layer("memory").layer(cache.layer(Arc::new(InMemoryBackend::new())));
    block_on(store.get_tc_token("a")).unwrap();
    let mut open = store.exists();

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    ::metrics::with_local_recorder(&recorder, || {
        block_on(store.get_tc_token("a")).unwrap();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(open.as_mut().poll(&mut context).is_ready());
    });
    let values = values(&snapshotter);
    assert_eq!(values["wa_store_op_total layer=memory op=get_tc_token outcome=ok"], 1.0);
    assert_eq!(values["wa_store_cache_hits_total layer=cache record=tc_token"], 1.0);
    assert_eq!(values["wa_store_cache_misses_total layer=cache record=tc_token"], 0.0);
    // Without a recorder at the end of the call.
    block_on(store.get_tc_token("a")).unwrap();
    assert_eq!(super::export::values(&snapshotter)["wa_store_op_total layer=memory op=get_tc_token outcome=ok"], 1.0);
}

/// A call that starts without a recorder and ends with one must not bring the gauge below zero.
#[test]
fn calls_in_flight_do_not_go_below_zero() {
    let (metrics, fault) = (Metrics::new(), Fault::new());
    let store = metrics.layer("memory").layer(fault.layer(Arc::new(InMemoryBackend::new())));
    fault.inject(When::Always, Effect::Cancel { polls: 0 });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut stuck = store.load();
    assert!(stuck.as_mut().poll(&mut context).is_pending());
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    ::metrics::with_local_recorder(&recorder, || drop(stuck));
    let values = values(&snapshotter);
    assert_eq!(values["wa_store_op_in_flight layer=memory op=load"], 0.0);
    assert_eq!(values["wa_store_op_total layer=memory op=load outcome=cancelled"], 1.0);
}

/// Every name and label in the dashboard exists.
#[test]
fn the_dashboard_asks_for_what_is_exported() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../examples/grafana-dashboard.json")).unwrap();
    let mut queries = vec![];
    collect(&dashboard, &mut queries);
    assert!(queries.len() >= 20, "{queries:#?}");
    let declared: BTreeMap<&str, ExportedMetric> = exported().map(|metric| (metric.name, metric)).collect();
    let mut asked = BTreeSet::new();
    for query in &queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let mut labels: BTreeSet<&str> = BTreeSet::new();
        for word in words.filter(|word| word.starts_with("wa_")) {
            let name = word.strip_suffix("_bucket").or_else(|| word.strip_suffix("_sum"));
            let name = name.or_else(|| word.strip_suffix("_count")).unwrap_or(word);
            let metric = declared.get(name).unwrap_or_else(|| panic!("{word} is not exported: {query}"));
            let histogram = matches!(metric.kind, MetricKind::Histogram(_));
            assert_eq!(histogram, word != name, "{query}: {word} has a suffix of histograms, or lacks one");
            asked.insert(metric.name);
            labels.extend(metric.labels);
        }
        assert!(!labels.is_empty(), "{query} uses none of our metrics");
        for used in labels_of(query) {
            assert!(used == "le" || labels.contains(used.as_str()), "{query}: there is no label {used}");
        }
    }
    let unused: Vec<_> = declared.keys().filter(|name| !asked.contains(*name)).collect();
    assert!(unused.is_empty(), "the dashboard does not show {unused:?}");
}

/// Collects the queries of panels and of variables.
fn collect(json: &serde_json::Value, queries: &mut Vec<String>) {
    match json {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(query) if name == "expr" || name == "query" && query.contains("wa_") => {
                        queries.push(query.to_owned());
                    }
                    _ => collect(value, queries),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
        _ => {}
    }
}

/// The labels that a query uses: in matchers, in `by (…)`, and in `label_values(…, label)`.
fn labels_of(query: &str) -> Vec<String> {
    let mut labels = vec![];
    for matchers in query.split('{').skip(1) {
        let inside = matchers.split('}').next().unwrap();
        labels.extend(inside.split(',').filter_map(|matcher| matcher.split(['=', '!']).next()));
    }
    for grouping in query.split("by (").skip(1) {
        labels.extend(grouping.split(')').next().unwrap().split(','));
    }
    if let Some(arguments) = query.strip_prefix("label_values(") {
        labels.extend(arguments.trim_end_matches(')').rsplit(',').next());
    }
    labels.into_iter().map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()
}
