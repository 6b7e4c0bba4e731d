//! The figures of all rounds, the table of their medians, and the goals that are met.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::plot;

pub(crate) const HERE: &str = "in memory, loopback";
pub(crate) const AWAY: &str = "in memory, 0.5 ms away";
pub(crate) const DISK: &str = "on a disk, loopback";
pub(crate) const WHOLE: &str = "whole stores";

pub(crate) const EMPTY: &str = "an empty `SELECT`";
pub(crate) const SYNC: &str = "the disk: 8 KiB and `fdatasync`";

const GROUPS: [&str; 3] = [HERE, AWAY, DISK];
const COLUMNS: [&str; 5] = ["driver", "PostgresStore", "encrypted", "naive", "SqliteStore"];

/// Group, line and column.
type Key = (String, String, String);

/// The figure of each round, and the latencies of all calls.
#[derive(Default)]
struct Figures {
    rounds: Vec<f64>,
    p99: f64,
    latencies: Vec<f64>,
}

#[derive(Default)]
pub(crate) struct Data {
    figures: BTreeMap<Key, Figures>,
    /// Groups and lines in the order in which they were measured.
    lines: Vec<(String, String)>,
    /// The load of the machine before and after.
    load: Vec<String>,
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|load| Some(load.split(' ').next()?.to_owned()))
        .unwrap_or_default()
}

impl Data {
    pub(crate) fn new() -> Self {
        Self { load: vec![load()], ..Self::default() }
    }

    pub(crate) fn add(&mut self, (group, line, column): (&str, &str, &str), figure: f64, latencies: &[f64]) {
        let place = (group.to_owned(), line.to_owned());
        if !self.lines.contains(&place) {
            self.lines.push(place.clone());
        }
        let figures = self.figures.entry((place.0, place.1, column.to_owned())).or_default();
        figures.rounds.push(figure);
        figures.latencies.extend(latencies);
    }

    pub(crate) fn end(&mut self) {
        self.load.push(load());
        for figures in self.figures.values_mut() {
            figures.latencies.sort_by(f64::total_cmp);
            figures.p99 = figures.latencies.get(figures.latencies.len() * 99 / 100).copied().unwrap_or(0.0);
        }
    }

    pub(crate) fn json(&self) -> String {
        let figures = self.figures.iter().map(|((group, line, column), figures)| {
            json!({ "group": group, "line": line, "column": column, "rounds": figures.rounds, "p99": figures.p99 })
        });
        let json = json!({ "load": self.load, "lines": self.lines, "figures": figures.collect::<Vec<_>>() });
        format!("{json:#}\n")
    }

    pub(crate) fn read(file: &Path) -> Option<Self> {
        let json: Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut data = Self::default();
        data.load.extend(json["load"].as_array().unwrap().iter().map(text));
        data.lines.extend(json["lines"].as_array().unwrap().iter().map(|line| (text(&line[0]), text(&line[1]))));
        for figures in json["figures"].as_array().unwrap() {
            let [group, line, column] = ["group", "line", "column"].map(|name| text(&figures[name]));
            let rounds = figures["rounds"].as_array().unwrap().iter().map(|round| round.as_f64().unwrap()).collect();
            let p99 = figures["p99"].as_f64().unwrap();
            data.figures.insert((group, line, column), Figures { rounds, p99, latencies: vec![] });
        }
        Some(data)
    }

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.figures.extend(other.figures);
        self.lines.extend(other.lines);
        self.load.extend(other.load);
        self
    }

    fn get(&self, group: &str, line: &str, column: &str) -> Option<&Figures> {
        self.figures.get(&(group.to_owned(), line.to_owned(), column.to_owned()))
    }

    pub(crate) fn median(&self, group: &str, line: &str, column: &str) -> Option<f64> {
        Some(median(self.get(group, line, column)?.rounds.clone()))
    }

    /// The median over the rounds of how many times as long `slow` takes as `fast`. Neighbours in time are compared.
    pub(crate) fn ratio(&self, group: &str, slow: (&str, &str), fast: (&str, &str)) -> Option<f64> {
        let (slow, fast) = (self.get(group, slow.0, slow.1)?, self.get(group, fast.0, fast.1)?);
        Some(median(slow.rounds.iter().zip(&fast.rounds).map(|(slow, fast)| slow / fast).collect()))
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints the tables, and writes them if all parts were measured.
pub(crate) fn write(data: &Data) {
    let text = format!("{}{}{}", table(data), whole_table(data), goals(data));
    println!("{text}");
    if !GROUPS.iter().chain(&[WHOLE]).all(|group| data.lines.iter().any(|(known, _)| known == group)) {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    std::fs::create_dir_all(&folder).unwrap();
    let title = "# A run of `cargo bench --bench postgres`\n\n![How many times as fast as a naive store]\
        (postgres.svg)\n\n";
    std::fs::write(folder.join("postgres.md"), format!("{title}{}\n{text}", conditions(data))).unwrap();
    std::fs::write(folder.join("postgres.svg"), plot::plot(data)).unwrap();
    println!("written to benches/results");
}

fn conditions(data: &Data) -> String {
    let line = |text: &str, start: &str| {
        Some(text.lines().find(|line| line.starts_with(start))?.split(':').nth(1)?.trim().to_owned())
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processor = line(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let date = wacore::time::now_utc().format("%Y-%m-%d");
    let rounds = data.get(HERE, "get", "PostgresStore").map_or(0, |figures| figures.rounds.len());
    let mut loads: Vec<f64> = data.load.iter().filter_map(|load| load.parse().ok()).collect();
    loads.sort_by(f64::total_cmp);
    let loads = format!("{} to {}", loads.first().unwrap_or(&0.0), loads.last().unwrap_or(&0.0));
    format!(
        "{date}, a virtual machine with {cores} cores ({processor}), Linux {}.\n\
         Client, server and proxy share the cores. Medians of {rounds} rounds. The load was {loads} before and after the \
         parts.\n\n\
         The columns: tokio-postgres with the statements of the store but no fence, over one connection; `PostgresStore`;\n\
         the same under the encrypting layer; a store as published ones are, with a pool of ten connections, a transaction\n\
         per batch and a statement per row; and `SqliteStore`. They keep Signal state on the disk before they answer, except\n\
         in the lines that say *relaxed*. 2 000 sessions of 1.5 KB.\n",
        kernel.trim()
    )
}

fn table(data: &Data) -> String {
    let mut table = String::from("µs a call; in brackets, of all calls the 99th percentile\n\n| |");
    COLUMNS.iter().for_each(|column| write!(table, " {column} |").unwrap());
    writeln!(table, "\n|--|{}", "--|".repeat(COLUMNS.len())).unwrap();
    for group in GROUPS {
        let mut lines = data.lines.iter().filter(|(known, _)| known == group).peekable();
        if lines.peek().is_some() {
            writeln!(table, "| **{group}** |{}", " |".repeat(COLUMNS.len())).unwrap();
        }
        for (_, line) in lines {
            write!(table, "| {line} |").unwrap();
            for column in COLUMNS {
                match data.get(group, line, column) {
                    Some(figures) => {
                        write!(table, " {} ({}) |", short(median(figures.rounds.clone())), short(figures.p99)).unwrap();
                    }
                    None => table.push_str(" |"),
                }
            }
            table.push('\n');
        }
    }
    table.push('\n');
    table
}

fn whole_table(data: &Data) -> String {
    let figures = || data.figures.iter().filter(|((group, ..), _)| group == WHOLE);
    if figures().next().is_none() {
        return String::new();
    }
    let mut table =
        String::from("µs a call, unless the line has another unit\n\n| | | median | worst round |\n|--|--|--|--|\n");
    for ((_, line, column), figures) in figures() {
        let worst = figures.rounds.iter().copied().fold(0.0, f64::max);
        writeln!(table, "| {line} | {column} | {} | {} |", short(median(figures.rounds.clone())), short(worst))
            .unwrap();
    }
    table.push('\n');
    table
}

/// A goal of the design, and what was measured.
struct Goal {
    what: &'static str,
    wanted: f64,
    at_least: bool,
    unit: &'static str,
    measured: Option<f64>,
}

fn goals(data: &Data) -> String {
    let mut text = String::from("| goal | wanted | measured | |\n|--|--|--|--|\n");
    for Goal { what, wanted, at_least, unit, measured } in all_goals(data) {
        let Some(measured) = measured else { continue };
        let met = if at_least { measured >= wanted } else { measured <= wanted };
        let bound = if at_least { "at least" } else { "at most" };
        let verdict = if met { "met" } else { "**missed**" };
        writeln!(text, "| {what} | {bound} {wanted}{unit} | {}{unit} | {verdict} |", short(measured)).unwrap();
    }
    if let Some(sync) = data.median(DISK, SYNC, "driver") {
        writeln!(text, "\n`fdatasync` of 8 KiB takes {} µs on this disk.", short(sync)).unwrap();
    }
    text
}

fn all_goals(data: &Data) -> Vec<Goal> {
    const OWN: &str = "PostgresStore";
    let at_most = |what, wanted, unit, measured| Goal { what, wanted, at_least: false, unit, measured };
    let naive = |what, wanted, line: &str| {
        let measured = data.ratio(AWAY, (line, "naive"), (line, OWN));
        Goal { what, wanted, at_least: true, unit: "×", measured }
    };
    let over = |group, line: &str, column: &str, under: &str| data.ratio(group, (line, column), (line, under));
    let state = |line: &str| data.ratio_of_columns(line);
    vec![
        at_most("get, over an empty `SELECT`", 1.5, "×", data.ratio(HERE, ("get", OWN), (EMPTY, "driver"))),
        at_most("get, 16 tasks", 30.0, " µs", data.median(HERE, "get, 16 tasks", OWN)),
        at_most("put, relaxed, over the same without a fence", 1.2, "×", over(HERE, "put, relaxed", OWN, "driver")),
        at_most("put, durable, over the same without a fence", 1.2, "×", over(DISK, "put", OWN, "driver")),
        at_most("put, durable, 16 tasks", 80.0, " µs", data.median(DISK, "put, 16 tasks", OWN)),
        at_most("batch of 64, per row", 30.0, " µs", data.median(DISK, "batch of 64, per row", OWN)),
        naive("batch of 64 at 0.5 ms, against naive", 10.0, "batch of 64, per row"),
        naive("burst of 200 sends at 0.5 ms, against naive", 5.0, "burst of 200 sends by 16 tasks, per send"),
        at_most("encryption, get at 0.5 ms", 1.05, "×", over(AWAY, "get", "encrypted", OWN)),
        at_most("encryption, put at 0.5 ms", 1.05, "×", over(AWAY, "put", "encrypted", OWN)),
        at_most(
            "`has_signal_state_for_user`, hit, 500 000 against 50 000",
            1.3,
            "×",
            state("has_signal_state_for_user, hit"),
        ),
        at_most(
            "`has_signal_state_for_user`, miss, 500 000 against 50 000",
            1.3,
            "×",
            state("has_signal_state_for_user, miss"),
        ),
        at_most(
            "500 idle accounts, statements a second",
            1.0,
            "",
            data.median(WHOLE, "statements a second of 500 idle accounts", OWN),
        ),
        at_most(
            "writes stand still in a failover",
            2.0,
            " s",
            data.median(WHOLE, "writes stand still in a failover, s", OWN),
        ),
    ]
}

impl Data {
    fn ratio_of_columns(&self, line: &str) -> Option<f64> {
        self.ratio(WHOLE, (line, "500 000 sessions"), (line, "50 000 sessions"))
    }
}

/// Three digits, or more if the number is larger.
pub(crate) fn short(figure: f64) -> String {
    match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    }
}
