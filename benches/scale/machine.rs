//! What the machine says of the processes.

use std::fs;

use crate::server::Server;

/// Clock ticks a second, which Linux reports to programs as 100 everywhere.
const TICKS: f64 = 100.0;

/// The resident memory of this process, in bytes.
pub(crate) fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The time that processes have had a core, in seconds.
pub(crate) struct Usage {
    pub(crate) own: f64,
    pub(crate) server: f64,
}

impl Usage {
    pub(crate) fn now(server: &Server) -> Self {
        let postmaster = fs::read_to_string(server.data().join("postmaster.pid")).unwrap_or_default();
        let postmaster = postmaster.lines().next().unwrap_or_default().to_owned();
        let mut of_server = 0.0;
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            let is_postmaster = process.file_name().to_str() == Some(&postmaster);
            // The parent is the second field behind the name.
            if is_postmaster || fields(&stat).nth(1) == Some(&postmaster) {
                of_server += ticks(&stat);
            }
        }
        let own = ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default());
        Self { own: own / TICKS, server: of_server / TICKS }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self { own: self.own - before.own, server: self.server - before.server }
    }
}

/// The fields behind the name of the program, which may have spaces: state, parent, and so on (`man 5 proc`).
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ')
}

/// User and system time.
fn ticks(stat: &str) -> f64 {
    fields(stat).skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}
