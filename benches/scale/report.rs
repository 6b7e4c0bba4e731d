//! The table and the picture.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// What was measured with a number of accounts.
pub(crate) struct Step {
    pub(crate) accounts: usize,
    /// A second.
    pub(crate) messages: f64,
    /// The median, the 99th and the 99.9th percentile, in ms.
    pub(crate) durable: [f64; 3],
    pub(crate) relaxed: [f64; 3],
    /// The 99th percentile of how late a message began, in ms.
    pub(crate) late: f64,
    /// For each message.
    pub(crate) statements: f64,
    pub(crate) transactions: f64,
    pub(crate) calls_per_group: f64,
    /// Bytes for each message.
    pub(crate) wal: f64,
    /// Bytes for each account.
    pub(crate) disk: u64,
    pub(crate) memory: u64,
    pub(crate) connections: u64,
    pub(crate) server_cores: f64,
    pub(crate) process_cores: f64,
    pub(crate) load: f64,
}

impl Step {
    pub(crate) fn holds(&self, durable: Duration, late: Duration) -> bool {
        self.durable[1] <= durable.as_secs_f64() * 1000.0 && self.late <= late.as_secs_f64() * 1000.0
    }
}

/// Accounts that do nothing.
pub(crate) struct Idle {
    pub(crate) accounts: usize,
    /// Statements a second.
    pub(crate) renewals: f64,
    /// Bytes a second.
    pub(crate) wal: f64,
}

pub(crate) fn print(steps: &[Step], idle: &Idle) {
    println!("{}", table(steps, idle));
}

pub(crate) fn write(steps: &[Step], idle: &Idle, seconds: u64) {
    let text = table(steps, idle);
    let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let machine = machine.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown").to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let day =
        std::process::Command::new("date").arg("+%Y-%m-%d").output().map(|output| output.stdout).unwrap_or_default();
    let title = format!(
        "# A run of `cargo bench --bench scale`\n\n![Latency by number of accounts](scale.svg)\n\n{}, {cores} cores of a \
         virtual machine ({machine}), which the server and the process share. {seconds} s for each step. Each account has \
         a vault, 40 sessions of 1.5 KB, 100 prekeys and 40 tokens, and exchanges a message a second on average.\n\n",
        String::from_utf8_lossy(&day).trim()
    );
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    std::fs::write(folder.join("scale.md"), format!("{title}{text}")).unwrap();
    std::fs::write(folder.join("scale.svg"), plot(steps)).unwrap();
}

fn table(steps: &[Step], idle: &Idle) -> String {
    let mut text =
        "| accounts | messages a second | durable write, ms: median, p99, p99.9 | what a send waits for, ms: \
                    median, p99 | late, p99, ms | calls a transaction | cores: server, process | load |\n\
                    |--|--|--|--|--|--|--|--|\n"
            .to_owned();
    for step in steps {
        let ([d50, d99, d999], [r50, r99, _]) = (step.durable, step.relaxed);
        writeln!(
            text,
            "| {} | {:.0} | {d50:.2}, {d99:.2}, {d999:.2} | {r50:.2}, {r99:.2} | {:.1} | {:.2} | {:.2}, {:.2} | {:.2} |",
            step.accounts,
            step.messages,
            step.late,
            step.calls_per_group,
            step.server_cores,
            step.process_cores,
            step.load
        )
        .unwrap();
    }
    text.push_str(
        "\n| accounts | statements a message | transactions a message | WAL a message, bytes | disk an account, bytes | \
         memory an account, bytes | connections |\n|--|--|--|--|--|--|--|\n",
    );
    for step in steps {
        writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.0} | {} | {} | {} |",
            step.accounts, step.statements, step.transactions, step.wal, step.disk, step.memory, step.connections
        )
        .unwrap();
    }
    writeln!(
        text,
        "\n{} accounts that do nothing: {:.2} statements a second, {:.0} bytes of WAL a second.",
        idle.accounts, idle.renewals, idle.wal
    )
    .unwrap();
    text
}

const LEFT: f64 = 70.0;
const WIDTH: f64 = 620.0;
const TOP: f64 = 60.0;
const HEIGHT: f64 = 300.0;

fn plot(steps: &[Step]) -> String {
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='780' height='{}' font-family='sans-serif' font-size='11'>\
         <rect width='100%' height='100%' fill='white'/>\n<text x='20' y='22' font-size='14'>Time of a durable write by \
         the number of accounts, each with a message a second</text>\n",
        TOP + HEIGHT + 60.0
    );
    let (low, high) = (-1.0, 3.0);
    let y = |ms: f64| TOP + HEIGHT * (1.0 - (ms.max(0.1).log10() - low) / (high - low));
    for decade in [0.1, 1.0, 10.0, 100.0, 1000.0] {
        let y = y(decade);
        writeln!(svg, "<line x1='{LEFT}' x2='{}' y1='{y}' y2='{y}' stroke='#dddddd'/>", LEFT + WIDTH).unwrap();
        writeln!(svg, "<text x='{}' y='{}' text-anchor='end'>{decade} ms</text>", LEFT - 8.0, y + 4.0).unwrap();
    }
    let goal = y(50.0);
    writeln!(
        svg,
        "<line x1='{LEFT}' x2='{}' y1='{goal}' y2='{goal}' stroke='#b2182b' stroke-dasharray='5 4'/>",
        LEFT + WIDTH
    )
    .unwrap();
    writeln!(svg, "<text x='{}' y='{}' fill='#b2182b'>50 ms</text>", LEFT + WIDTH + 6.0, goal + 4.0).unwrap();
    let x = |at: usize| LEFT + WIDTH * (at as f64 + 0.5) / steps.len() as f64;
    for (at, step) in steps.iter().enumerate() {
        writeln!(svg, "<text x='{}' y='{}' text-anchor='middle'>{}</text>", x(at), TOP + HEIGHT + 18.0, step.accounts)
            .unwrap();
        writeln!(
            svg,
            "<text x='{}' y='{}' text-anchor='middle' fill='#666666'>{:.0} a second</text>",
            x(at),
            TOP + HEIGHT + 33.0,
            step.messages
        )
        .unwrap();
    }
    for (which, name, colour) in [(0, "median", "#1b7837"), (1, "p99", "#762a83"), (2, "p99.9", "#9970ab")] {
        let points: Vec<_> =
            steps.iter().enumerate().map(|(at, step)| format!("{:.1},{:.1}", x(at), y(step.durable[which]))).collect();
        writeln!(svg, "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>", points.join(" "))
            .unwrap();
        for point in &points {
            let (x, y) = point.split_once(',').unwrap();
            writeln!(svg, "<circle cx='{x}' cy='{y}' r='3' fill='{colour}'/>").unwrap();
        }
        let left = 20 + which * 90;
        writeln!(svg, "<rect x='{left}' y='34' width='11' height='11' fill='{colour}'/>").unwrap();
        writeln!(svg, "<text x='{}' y='44'>{name}</text>", left + 16).unwrap();
    }
    svg.push_str("</svg>\n");
    svg
}
