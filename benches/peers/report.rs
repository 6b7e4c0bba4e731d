//! Medians and ratios as a table, as JSON and as a picture, and the goals that are met.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use crate::workloads::{Measure, Scene};
use crate::{
    DURABLE, ENCRYPTED, FASTEST_CIPHER, FULL, LOOP, MEMORY, NAIVE, OWN_CIPHER, PLAIN, RUSTCRYPTO, SQLCIPHER, UPSTREAM,
};

/// The subjects in the order of the columns.
const COLUMNS: [&str; 12] = [
    UPSTREAM,
    "upstream, 4 readers",
    SQLCIPHER,
    NAIVE,
    PLAIN,
    ENCRYPTED,
    RUSTCRYPTO,
    FULL,
    DURABLE,
    MEMORY,
    "all layers, memory",
    LOOP,
];

#[derive(Default)]
pub(crate) struct Report {
    /// The lines of the table, in order: the title of the group, and the name.
    lines: Vec<(String, String)>,
    /// The figures of each round, by line and subject.
    figures: BTreeMap<(usize, &'static str), Vec<f64>>,
    /// The scenes that failed, with their subjects.
    failed: Vec<(String, &'static str)>,
    /// Sealing alone: size in bytes, name, and time in µs.
    sealing: Vec<(usize, String, f64)>,
}

const SIZE: &str = "bytes on the disk per row";
const REOPEN: &str = "open and unlock with a key, ms";
const MEMORY_MB: &str = "memory after filling and reading, MB";

impl Report {
    pub(crate) fn add(&mut self, scene: Scene, measure: Measure, subject: &'static str, micros: f64) {
        self.note(scene.name(), measure.name(), subject, micros);
    }

    pub(crate) fn size(&mut self, scene: Scene, subject: &'static str, per_row: f64, bytes: usize) {
        self.note(scene.name(), format!("{SIZE} ({bytes} of them content)"), subject, per_row);
    }

    pub(crate) fn reopened(&mut self, subject: &'static str, millis: f64) {
        self.note("opening".to_owned(), REOPEN.to_owned(), subject, millis);
    }

    pub(crate) fn memory(&mut self, scene: Scene, subject: &'static str, megabytes: f64) {
        self.note(scene.name(), MEMORY_MB.to_owned(), subject, megabytes);
    }

    pub(crate) fn fail(&mut self, scene: Scene, subject: &'static str) {
        self.failed.push((scene.name(), subject));
    }

    pub(crate) fn sealing(&mut self, size: usize, what: &str, micros: f64) {
        self.sealing.push((size, what.to_owned(), micros));
    }

    fn note(&mut self, group: String, name: String, subject: &'static str, figure: f64) {
        let line = (group, name);
        let at = self.lines.iter().position(|known| *known == line).unwrap_or_else(|| {
            // Next to the other lines of its group.
            let last = self.lines.iter().rposition(|(group, _)| *group == line.0);
            if let Some(last) = last.filter(|last| last + 1 < self.lines.len()) {
                self.insert(last + 1, line.clone());
                return last + 1;
            }
            self.lines.push(line.clone());
            self.lines.len() - 1
        });
        self.figures.entry((at, subject)).or_default().push(figure);
    }

    fn insert(&mut self, at: usize, line: (String, String)) {
        self.lines.insert(at, line);
        let moved = std::mem::take(&mut self.figures);
        self.figures = moved
            .into_iter()
            .map(|((line, subject), figures)| ((if line >= at { line + 1 } else { line }, subject), figures))
            .collect();
    }

    fn median(&self, line: usize, subject: &str) -> Option<f64> {
        let key = COLUMNS.iter().find(|column| **column == subject)?;
        let mut figures = self.figures.get(&(line, key))?.clone();
        figures.sort_by(f64::total_cmp);
        Some(figures[figures.len() / 2])
    }

    /// The median of a line, by its names.
    fn figure(&self, group: &str, name: &str, subject: &str) -> Option<f64> {
        let line = self.lines.iter().position(|(known, line)| {
            let rest = line.strip_prefix(name);
            known == group
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(", per ") || rest.starts_with(" ("))
        })?;
        self.median(line, subject)
    }

    fn seal(&self, size: usize, what: &str) -> Option<f64> {
        self.sealing.iter().find(|(known, name, _)| *known == size && name == what).map(|(.., micros)| *micros)
    }

    pub(crate) fn write(&self, keep: bool) {
        let mut text = self.table();
        text.push_str(&self.sealing_table());
        text.push_str(&self.goals());
        println!("{text}");
        if !keep {
            return;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("peers.md"), &text).unwrap();
        std::fs::write(folder.join("peers.json"), format!("{:#}\n", self.json())).unwrap();
        std::fs::write(folder.join("peers.svg"), self.plot()).unwrap();
        println!("written to target/bench/peers.md, peers.json and peers.svg");
    }

    /// Medians, and how many times as fast (or small) as upstream's plaintext store they are.
    fn table(&self) -> String {
        let columns: Vec<_> =
            COLUMNS.iter().filter(|column| self.figures.keys().any(|(_, subject)| subject == *column)).collect();
        let mut table = String::from(
            "µs per operation unless the line has another unit; in brackets, how many times as fast as upstream\n\n| |",
        );
        columns.iter().for_each(|column| write!(table, " {column} |").unwrap());
        writeln!(table, "\n|--|{}", "--|".repeat(columns.len())).unwrap();
        let mut group = "";
        for (line, (of, name)) in self.lines.iter().enumerate() {
            if group != of {
                group = of;
                writeln!(table, "| **{of}** |{}", " |".repeat(columns.len())).unwrap();
            }
            write!(table, "| {name} |").unwrap();
            let upstream = self.median(line, UPSTREAM);
            for column in &columns {
                match (self.median(line, column), upstream) {
                    (Some(figure), Some(upstream)) if **column != UPSTREAM => {
                        write!(table, " {} ({}×) |", short(figure), short(upstream / figure)).unwrap();
                    }
                    (Some(figure), _) => write!(table, " {} |", short(figure)).unwrap(),
                    (None, _) if self.failed.iter().any(|(scene, who)| scene == of && who == *column) => {
                        table.push_str(" failed |");
                    }
                    (None, _) => table.push_str(" |"),
                }
            }
            table.push('\n');
        }
        table.push('\n');
        table
    }

    fn sealing_table(&self) -> String {
        let mut table = String::new();
        if self.sealing.is_empty() {
            return table;
        }
        let mut sizes: Vec<usize> = self.sealing.iter().map(|(size, ..)| *size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        table.push_str("µs, one thread, nothing stored\n\n| |");
        sizes.iter().for_each(|size| write!(table, " {size} B |").unwrap());
        writeln!(table, "\n|--|{}", "--|".repeat(sizes.len())).unwrap();
        let mut names: Vec<&str> = vec![];
        for (_, name, _) in &self.sealing {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        for name in names {
            write!(table, "| {name} |").unwrap();
            for size in &sizes {
                match self.seal(*size, name) {
                    Some(micros) => write!(table, " {} |", short(micros)).unwrap(),
                    None => table.push_str(" |"),
                }
            }
            table.push('\n');
        }
        table.push('\n');
        table
    }

    /// The goals and the measured figures.
    fn goals(&self) -> String {
        let sessions = "2 000 sessions of 1.5 KB";
        let ratio = |group: &str, name: &str, slow: &str, fast: &str| {
            Some(self.figure(group, name, slow)? / self.figure(group, name, fast)?)
        };
        let mut text = String::from("| goal | wanted | measured | |\n|--|--|--|--|\n");
        let mut goal = |what: &str, wanted: f64, at_least: bool, measured: Option<f64>| {
            let Some(measured) = measured else { return };
            let met = if at_least { measured >= wanted } else { measured <= wanted };
            let bound = if at_least { "at least" } else { "at most" };
            let verdict = if met { "met" } else { "**missed**" };
            writeln!(text, "| {what} | {bound} {wanted}× | {measured:.2}× | {verdict} |").unwrap();
        };
        let client = "a client with 300 contacts";
        let what = format!("{FULL}, sent messages, against upstream's plaintext");
        goal(&what, 3.0, true, ratio(client, "sent message", UPSTREAM, FULL));
        for name in ["get", "put"].iter().flat_map(|name| [1, 4, 16, 64].map(|tasks| (*name, tasks))) {
            let name = if name.1 == 1 { name.0.to_owned() } else { format!("{}, {} tasks", name.0, name.1) };
            let what = format!("encrypted against SQLCipher, {name}");
            goal(&what, 3.0, true, ratio(sessions, &name, SQLCIPHER, ENCRYPTED));
        }
        for name in ["batch of 64", "batch of 1000"] {
            let what = format!("encrypted against SQLCipher, {name}");
            goal(&what, 1.6, true, ratio(sessions, name, SQLCIPHER, ENCRYPTED));
        }
        for (name, wanted) in [("get", 1.35), ("put", 1.2)] {
            let what = format!("encrypted, time of a {name} against plain");
            goal(&what, wanted, false, ratio(sessions, name, ENCRYPTED, PLAIN));
        }
        for (group, name, what, wanted) in [
            (sessions, "batch of 64", "batch of 64", 0.5),
            ("10 000 LID mappings", "what a start reads", "a start with 10 000 LID mappings", 1.5),
            ("5 000 mutation MACs", "app-state sync", "app-state sync of 5 000 mutation MACs", 1.2),
        ] {
            let what = format!("encrypted, time of {what} against upstream's plaintext");
            goal(&what, wanted, false, ratio(group, name, ENCRYPTED, UPSTREAM));
        }
        goal(
            "full stack, memory with 2 000 contacts, against upstream's",
            1.5,
            false,
            ratio("a client with 2 000 contacts", MEMORY_MB, FULL, UPSTREAM),
        );
        let own = self.seal(1500, OWN_CIPHER);
        let fastest = self.seal(1500, FASTEST_CIPHER);
        goal("sealing 1.5 KB, against ring's RFC 8439", 1.5, false, own.zip(fastest).map(|(own, best)| own / best));
        for name in ["get", "has_signal_state_for_user, miss", "has_signal_state_for_user, hit"] {
            let [few, many] =
                ["1 000", "500 000"].map(|rows| self.figure(&format!("{rows} sessions of 200 B"), name, ENCRYPTED));
            goal(
                &format!("encrypted, {name}, 500 000 against 1 000"),
                1.5,
                false,
                many.zip(few).map(|(many, few)| many / few),
            );
        }
        goal(
            "size on the disk, 1.5 KB, encrypted against upstream",
            1.5,
            false,
            ratio(sessions, SIZE, ENCRYPTED, UPSTREAM),
        );
        text
    }

    fn json(&self) -> serde_json::Value {
        let results = self.figures.iter().map(|((line, subject), figures)| {
            let (group, name) = &self.lines[*line];
            json!({ "scene": group, "measure": name, "subject": subject, "median": self.median(*line, subject), "rounds": figures })
        });
        let sealing =
            self.sealing.iter().map(|(size, name, micros)| json!({ "bytes": size, "what": name, "micros": micros }));
        json!({
            "unix_seconds": wacore::time::now_secs(),
            "results": results.collect::<Vec<_>>(),
            "sealing": sealing.collect::<Vec<_>>(),
            "failed": self.failed.iter().map(|(scene, subject)| json!([scene, subject])).collect::<Vec<_>>(),
        })
    }

    /// The speed relative to upstream's plaintext store, on a logarithmic scale.
    fn plot(&self) -> String {
        const SHOWN: [(&str, &str); 6] = [
            (SQLCIPHER, "#b2182b"),
            (NAIVE, "#f4a582"),
            (PLAIN, "#a6dba0"),
            (ENCRYPTED, "#1b7837"),
            (RUSTCRYPTO, "#00441b"),
            (FULL, "#762a83"),
        ];
        let lines = [
            ("2 000 sessions of 1.5 KB", "get", "get a session"),
            ("2 000 sessions of 1.5 KB", "put", "put a session"),
            ("2 000 sessions of 1.5 KB", "get, 16 tasks", "get, 16 tasks at once"),
            ("2 000 sessions of 1.5 KB", "put, 16 tasks", "put, 16 tasks at once"),
            ("2 000 sessions of 1.5 KB", "batch of 64", "batch of 64 sessions"),
            ("a client with 300 contacts", "sent message", "a sent message"),
            ("a client with 300 contacts", "received message", "a received message"),
            ("50 000 sessions of 200 B", "has_signal_state_for_user, miss", "is a user known, of 50 000"),
            ("10 000 LID mappings", "what a start reads", "a start with 10 000 mappings"),
            ("5 000 mutation MACs", "app-state sync", "app-state sync of 5 000"),
            ("50 000 message secrets", "sweep of 1000 expired ones", "sweep 1000 of 50 000 secrets"),
            ("100 accounts in one place", "get and put, each account in turn", "100 accounts in turn"),
        ];
        const LEFT: f64 = 220.0;
        const DECADE: f64 = 150.0;
        const BAR: f64 = 12.0;
        // The scale goes from 0.1 to 10 000 times.
        let x = |ratio: f64| LEFT + (ratio.log10().clamp(-1.0, 4.0) + 1.0) * DECADE;
        let height = lines.len() as f64 * (SHOWN.len() + 1) as f64 * BAR + 110.0;
        let mut svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='1020' height='{height}' font-family='sans-serif' font-size='11'>\
             <rect width='100%' height='100%' fill='white'/>\n\
             <text x='20' y='20' font-size='14'>How many times as fast as upstream's plaintext SQLite store (longer is faster)</text>\n"
        );
        let mut left = 20;
        for (subject, colour) in SHOWN {
            writeln!(svg, "<rect x='{left}' y='32' width='11' height='11' fill='{colour}'/>").unwrap();
            writeln!(svg, "<text x='{}' y='42'>{subject}</text>", left + 16).unwrap();
            left += 40 + 7 * subject.len();
        }
        for (ratio, label) in
            [(0.1, "0.1×"), (1.0, "upstream"), (10.0, "10×"), (100.0, "100×"), (1e3, "1000×"), (1e4, "10 000×")]
        {
            let (x, colour) = (x(ratio), if ratio == 1.0 { "#000000" } else { "#cccccc" });
            writeln!(svg, "<line x1='{x}' x2='{x}' y1='72' y2='{}' stroke='{colour}'/>", height - 20.0).unwrap();
            writeln!(svg, "<text x='{x}' y='66' text-anchor='middle'>{label}</text>").unwrap();
        }
        let mut y = 82.0;
        for (group, name, label) in lines {
            writeln!(svg, "<text x='{}' y='{}' text-anchor='end'>{label}</text>", LEFT - 10.0, y + 35.0).unwrap();
            for (subject, colour) in SHOWN {
                let figures = self.figure(group, name, UPSTREAM).zip(self.figure(group, name, subject));
                if let Some((upstream, own)) = figures {
                    let ratio = upstream / own;
                    let (from, to) = (x(1.0).min(x(ratio)), x(1.0).max(x(ratio)));
                    let width = (to - from).max(1.0);
                    writeln!(svg, "<rect x='{from:.1}' y='{y}' width='{width:.1}' height='10' fill='{colour}'/>")
                        .unwrap();
                    writeln!(svg, "<text x='{:.1}' y='{}'>{}×</text>", to + 4.0, y + 9.0, short(ratio)).unwrap();
                }
                y += BAR;
            }
            y += BAR;
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// Three digits, or more if the number is larger.
fn short(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}
