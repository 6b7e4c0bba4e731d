//! The picture: which part of the puts takes longer than a time.

use std::fmt::Write;

use super::Scene;

const COLOURS: [&str; 5] = ["#000000", "#1b7837", "#762a83", "#e08214", "#2166ac"];
const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 320.0;
/// The decades of the scales: 1 ms to 1 s, and all to one of 100,000.
const DECADES: (f64, f64) = (3.0, 5.0);

fn x(millis: f64) -> f64 {
    LEFT + millis.max(1.0).log10().min(DECADES.0) * WIDTH / DECADES.0
}

fn y(part: f64) -> f64 {
    TOP + (-part.log10()).clamp(0.0, DECADES.1) * HEIGHT / DECADES.1
}

pub(crate) fn plot(scenes: &[Scene], alone: f64) -> String {
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{}' height='{}' font-family='sans-serif' font-size='11'>\
         <rect width='100%' height='100%' fill='white'/>\n\
         <text x='20' y='20' font-size='14'>Which part of the power-safe puts takes longer (further left is better)</text>\n",
        right + 30.0,
        bottom + 60.0
    );
    for millis in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0] {
        let at = x(millis);
        writeln!(svg, "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{bottom}' stroke='#dddddd'/>").unwrap();
        writeln!(svg, "<text x='{at:.1}' y='{}' text-anchor='middle'>{millis} ms</text>", bottom + 16.0).unwrap();
    }
    for (part, label) in
        [(1.0, "all"), (0.1, "10 %"), (0.01, "1 %"), (1e-3, "0.1 %"), (1e-4, "0.01 %"), (1e-5, "0.001 %")]
    {
        let at = y(part);
        writeln!(svg, "<line x1='{LEFT}' x2='{right}' y1='{at:.1}' y2='{at:.1}' stroke='#dddddd'/>").unwrap();
        writeln!(svg, "<text x='{}' y='{:.1}' text-anchor='end'>{label}</text>", LEFT - 6.0, at + 4.0).unwrap();
    }
    let two = x(2.0 * alone);
    writeln!(svg, "<line x1='{two:.1}' x2='{two:.1}' y1='{TOP}' y2='{bottom}' stroke='#b2182b' stroke-dasharray='4'/>")
        .unwrap();
    writeln!(svg, "<text x='{:.1}' y='{}' fill='#b2182b'>two commits</text>", two + 4.0, TOP + 12.0).unwrap();
    for (number, (scene, colour)) in scenes.iter().zip(COLOURS).enumerate() {
        let count = scene.millis.len();
        // Points at equal distances on the scale.
        let mut line = String::new();
        let mut behind = count as f64;
        while behind >= 1.0 {
            let millis = scene.millis[count - behind as usize];
            write!(line, "{:.1},{:.1} ", x(millis), y(behind / count as f64)).unwrap();
            behind *= 0.93;
        }
        writeln!(svg, "<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='1.5'/>").unwrap();
        let left = 20 + number * 170;
        writeln!(svg, "<rect x='{left}' y='32' width='11' height='11' fill='{colour}'/>").unwrap();
        writeln!(svg, "<text x='{}' y='42'>beside {}</text>", left + 16, scene.name).unwrap();
    }
    svg.push_str("</svg>\n");
    svg
}
