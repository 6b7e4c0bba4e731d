//! The chart of times.

use std::fmt::Write;
use std::time::Duration;

use super::histogram::PERCENTILES;
use super::report::time;
use super::snapshot::{LayerSnapshot, MetricsSnapshot, OpSnapshot};

/// Widths and heights, in pixels.
const NAMES: f64 = 290.0;
const DECADE: f64 = 90.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 58.0;
/// One colour for each percentile, and one for the longest time.
const COLOURS: [&str; 4] = ["#1b7837", "#7fbf7b", "#e08214", "#b2182b"];

impl MetricsSnapshot {
    /// A chart of how long operations took, as SVG. It has a row for each operation of each layer, slowest first. On
    /// a logarithmic scale, marks show p50, p90, p99 and the longest time. `connection` and `streamed_body` are left
    /// out, because the client decides how long they last.
    pub fn to_svg(&self) -> String {
        let layers = self.layers.iter().map(|layer| (layer, shown(layer))).filter(|(_, shown)| !shown.is_empty());
        let layers: Vec<_> = layers.collect();
        let (mut shortest, mut longest) = (f64::INFINITY, 0f64);
        for times in layers.iter().flat_map(|(_, shown)| shown).map(|op| op.times()) {
            shortest = shortest.min(times.percentile(0.5).as_nanos().max(1) as f64);
            longest = longest.max(times.max().as_nanos().max(1) as f64);
        }
        let first = if shortest.is_finite() { shortest.log10().floor() } else { 0.0 };
        let decades = (longest.max(1.0).log10().ceil() - first).max(1.0);
        let place = |at: Duration| NAMES + (at.as_nanos().max(1) as f64).log10().max(first) * DECADE - first * DECADE;

        let rows: usize = layers.iter().map(|(_, shown)| shown.len() + 2).sum();
        let (width, height) = (NAMES + decades * DECADE + 90.0, HEAD + rows as f64 * ROW + 12.0);
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
             font-family='sans-serif' font-size='11'>\n<rect width='100%' height='100%' fill='white'/>\n"
        );
        let names = PERCENTILES.iter().map(|(name, _)| *name).chain(["max"]);
        for (position, (name, colour)) in names.zip(COLOURS).enumerate() {
            let x = NAMES + position as f64 * 60.0;
            put(&mut svg, format_args!("<circle cx='{x}' cy='16' r='4' fill='{colour}'/>"));
            put(&mut svg, format_args!("<text x='{}' y='20'>{name}</text>", x + 9.0));
        }
        for decade in 0..=decades as u32 {
            let x = NAMES + f64::from(decade) * DECADE;
            let label = time(Duration::from_nanos(10f64.powf(first + f64::from(decade)).round() as u64));
            let label = label.replace(".00", "").replace(".0", "");
            put(&mut svg, format_args!("<line x1='{x}' x2='{x}' y1='{HEAD}' y2='{}' stroke='#ddd'/>", height - 12.0));
            put(&mut svg, format_args!("<text x='{x}' y='{}' text-anchor='middle'>{label}</text>", HEAD - 8.0));
        }
        let mut y = HEAD + ROW;
        for (layer, shown) in layers {
            let name = escaped(layer.name());
            put(&mut svg, format_args!("<text x='12' y='{y}' font-weight='bold' font-size='13'>{name}</text>"));
            y = rows_of(&mut svg, &shown, y + ROW, place) + ROW;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn shown(layer: &LayerSnapshot) -> Vec<&OpSnapshot> {
    layer.slowest_first().into_iter().filter(|op| op.calls() > 0 && !op.lifetime).collect()
}

/// Returns the vertical position of the next row.
fn rows_of(svg: &mut String, shown: &[&OpSnapshot], mut y: f64, place: impl Fn(Duration) -> f64) -> f64 {
    for op in shown {
        let label = format_args!("<text x='{}' y='{y}' text-anchor='end'>{}", NAMES - 14.0, op.name());
        put(svg, format_args!("{label} <tspan fill='#999'>× {}</tspan></text>", op.calls()));
        let middle = y - 4.0;
        let [p50, p90, p99] = PERCENTILES.map(|(_, part)| op.times().percentile(part));
        let (from, to) = (place(p50), place(op.times().max()));
        put(
            svg,
            format_args!(
                "<line x1='{from:.1}' x2='{to:.1}' y1='{middle}' y2='{middle}' stroke='#bbb' stroke-width='3'/>"
            ),
        );
        // Drawn last, so that shorter times lie on top of longer ones.
        for (at, colour) in [p50, p90, p99, op.times().max()].into_iter().zip(COLOURS).rev() {
            put(svg, format_args!("<circle cx='{:.1}' cy='{middle}' r='4' fill='{colour}'/>", place(at)));
        }
        put(svg, format_args!("<text x='{:.1}' y='{y}' fill='#666'>{}</text>", to + 9.0, time(op.times().max())));
        y += ROW;
    }
    y
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{element}");
}

/// A layer name may contain any character. Operation names need no escaping.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
