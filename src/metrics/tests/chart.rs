//! The chart shows the counts, in the right places.

use std::sync::Arc;
use std::time::Duration;

use wacore::store::InMemoryBackend;

use crate::testing::{Effect, Fault, When};
use crate::{Layer, Method, Metrics};

/// The values of an attribute of all elements with this name, in their order.
fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
    let (element, attribute) = (format!("<{element} "), format!("{attribute}='"));
    let value = |element: &str| element.split(&attribute).nth(1)?.split('\'').next()?.parse().ok();
    svg.split(&element).skip(1).filter_map(value).collect()
}

#[tokio::test]
async fn slower_operations_lie_farther_to_the_right() {
    let (metrics, fault) = (Metrics::new(), Fault::new());
    let store = metrics.layer("a & b").layer(fault.layer(Arc::new(InMemoryBackend::new())));
    fault.inject(When::Method(Method::Load), Effect::Delay(Duration::from_millis(30)));
    for _ in 0..3 {
        store.load().await.unwrap();
        store.exists().await.unwrap();
    }
    let svg = metrics.snapshot().to_svg();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains(">a &amp; b<"), "{svg}");
    assert!(svg.find(">load <").unwrap() < svg.find(">exists <").unwrap(), "slowest first");
    // Four in the legend. For each operation, the longest time and three percentiles, which are not longer.
    let marks = numbers(&svg, "circle", "cx");
    let (load, exists) = (&marks[4..8], &marks[8..]);
    assert_eq!(exists.len(), 4);
    assert!(load.is_sorted_by(|one, next| one >= next) && exists.is_sorted_by(|one, next| one >= next), "{marks:?}");
    assert!(load[3] > exists[0], "{marks:?}");
    let lines = numbers(&svg, "line", "x1");
    let width = numbers(&svg, "svg", "width")[0];
    assert!(lines.iter().chain(&marks).all(|x| (100.0..width).contains(x)), "a mark lies outside");
}

#[test]
fn an_empty_chart_is_a_chart() {
    let metrics = Metrics::new();
    metrics.layer("store");
    let svg = metrics.snapshot().to_svg();
    assert!(
        svg.starts_with("<svg ") && !svg.contains("store") && !svg.contains("NaN") && !svg.contains("inf"),
        "{svg}"
    );
}
