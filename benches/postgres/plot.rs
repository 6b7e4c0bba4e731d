//! The picture: how many times as fast as a naive store.

use std::fmt::Write;

use crate::report::{AWAY, DISK, Data, HERE, short};

const SHOWN: [(&str, &str); 3] = [("PostgresStore", "#1b7837"), ("encrypted", "#762a83"), ("SqliteStore", "#a6dba0")];

const LINES: [(&str, &str, &str); 11] = [
    (HERE, "get", "get a session"),
    (HERE, "get, 16 tasks", "get, 16 tasks at once"),
    (DISK, "put", "put a session, on a disk"),
    (DISK, "put, 16 tasks", "put, 16 tasks, on a disk"),
    (DISK, "batch of 64, per row", "batch of 64 sessions, on a disk"),
    (AWAY, "get", "get, 0.5 ms away"),
    (AWAY, "put", "put, 0.5 ms away"),
    (AWAY, "get, 16 tasks", "get, 16 tasks, 0.5 ms away"),
    (AWAY, "put, 16 tasks", "put, 16 tasks, 0.5 ms away"),
    (AWAY, "batch of 64, per row", "batch of 64, 0.5 ms away"),
    (AWAY, "burst of 200 sends by 16 tasks, per send", "a burst of sends, 0.5 ms away"),
];

const LEFT: f64 = 250.0;
const DECADE: f64 = 220.0;
const BAR: f64 = 12.0;

/// The place of a ratio on the scale, which goes from 0.1 to 100 times.
fn x(ratio: f64) -> f64 {
    LEFT + (ratio.log10().clamp(-1.0, 2.0) + 1.0) * DECADE
}

pub(crate) fn plot(data: &Data) -> String {
    let bars: f64 = LINES.iter().map(|line| shown(data, line).len() as f64 + 1.0).sum();
    let height = bars * BAR + 110.0;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='980' height='{height}' font-family='sans-serif' font-size='11'>\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='20' y='20' font-size='14'>How many times as fast as a PostgreSQL store with a pool and a statement per row \
         (longer is faster)</text>\n"
    );
    for (position, (column, colour)) in SHOWN.iter().enumerate() {
        let left = 20 + position * 170;
        writeln!(svg, "<rect x='{left}' y='32' width='11' height='11' fill='{colour}'/>").unwrap();
        writeln!(svg, "<text x='{}' y='42'>{column}</text>", left + 16).unwrap();
    }
    for (ratio, label) in [(0.1, "0.1×"), (1.0, "naive"), (10.0, "10×"), (100.0, "100×")] {
        let (x, colour) = (x(ratio), if ratio == 1.0 { "#000000" } else { "#cccccc" });
        writeln!(svg, "<line x1='{x}' x2='{x}' y1='72' y2='{}' stroke='{colour}'/>", height - 20.0).unwrap();
        writeln!(svg, "<text x='{x}' y='66' text-anchor='middle'>{label}</text>").unwrap();
    }
    let mut y = 82.0;
    for line in LINES {
        let bars = shown(data, &line);
        let middle = y + bars.len() as f64 * BAR / 2.0 + 3.0;
        writeln!(svg, "<text x='{}' y='{middle}' text-anchor='end'>{}</text>", LEFT - 10.0, line.2).unwrap();
        for (ratio, colour) in bars {
            let (from, to) = (x(1.0).min(x(ratio)), x(1.0).max(x(ratio)));
            let width = (to - from).max(1.0);
            writeln!(svg, "<rect x='{from:.1}' y='{y}' width='{width:.1}' height='10' fill='{colour}'/>").unwrap();
            writeln!(svg, "<text x='{:.1}' y='{}'>{}×</text>", to + 4.0, y + 9.0, short(ratio)).unwrap();
            y += BAR;
        }
        y += BAR;
    }
    svg.push_str("</svg>\n");
    svg
}

/// The bars of a line: ratio and colour.
fn shown(data: &Data, (group, line, _): &(&str, &str, &str)) -> Vec<(f64, &'static str)> {
    let bar =
        |(column, colour): (&str, &'static str)| Some((data.ratio(group, (line, "naive"), (line, column))?, colour));
    SHOWN.into_iter().filter_map(bar).collect()
}
