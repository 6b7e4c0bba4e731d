//! A throwaway PostgreSQL server: its files lie in a temporary folder, and it ends with the test process.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Servers start in a tenth of a second. Machines under load take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The name under which a standby connects.
const STANDBY: &str = "wastore_standby";

const HOW_TO_INSTALL: &str = "no PostgreSQL server was found: install one (on Debian: `apt-get install \
    --no-install-recommends postgresql pgbouncer`), name its folder of programs in WASTORE_POSTGRES_BIN, or skip its \
    tests with WASTORE_NO_POSTGRES=1";

/// `false` if the caller asked for no tests with a server.
///
/// # Panics
/// If there is no server and the caller did not ask for that: tests must not pass because a package is missing.
pub(crate) fn available() -> bool {
    if std::env::var_os("WASTORE_NO_POSTGRES").is_some_and(|value| value == "1") {
        eprintln!("skipped: WASTORE_NO_POSTGRES is set");
        return false;
    }
    assert!(programs().is_some(), "{HOW_TO_INSTALL}");
    true
}

/// The server that all tests of this process share. It ends with the process, although a static is never dropped. It does
/// not wait for the disk, because no one cuts its power.
pub(crate) fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::with_settings(&[("fsync", "off")]))
}

/// The folder of the server's programs. A `postgres` in `PATH` may be a wrapper, so `initdb` counts.
fn programs() -> Option<PathBuf> {
    let is_whole = |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).is_file());
    let named = std::env::var_os("WASTORE_POSTGRES_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).filter_map(|folder| folder.join("initdb").canonicalize().ok());
    let in_path = in_path.filter_map(|initdb| Some(initdb.parent()?.to_owned()));
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin"))))
        .collect();
    versions.sort();
    let installed = versions.into_iter().rev().map(|(_, folder)| folder);
    named.into_iter().chain(in_path).chain(installed).find(is_whole)
}

/// User and group of the servers: they refuse to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    // The last one is the number of the user without rights.
    let find = |place: usize, wanted: &str| {
        let user: Vec<&str> = users
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|user| user.get(place) == Some(&wanted))?;
        Some((user.get(2)?.parse().ok()?, user.get(3)?.parse().ok()?))
    };
    Some(find(0, "postgres").or_else(|| find(2, "65534")).expect("a user for the server, which refuses to run as root"))
}

/// A program that runs as the user of the servers.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    // The current folder may not be readable to that user.
    command.current_dir("/").env_remove("PGOPTIONS").env_remove("PGSERVICE").env("LC_ALL", "C.UTF-8");
    command
}

/// Where Linux has memory as a file system. A disk that other programs keep busy stalls a server for seconds.
const MEMORY: &str = "/dev/shm";
/// More than the servers of all tests together need.
const MEMORY_BYTES: u64 = 4 << 30;

/// A folder that belongs to the user of the servers: in memory if there is room for many servers.
pub(crate) fn folder() -> PathBuf {
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("wastore-pg-");
    let made = if room >= MEMORY_BYTES { builder.tempdir_in(MEMORY) } else { builder.tempdir() };
    let folder = made.unwrap().keep();
    hand_over(&folder);
    folder
}

/// Gives a file to the user of the servers.
pub(crate) fn hand_over(path: &Path) {
    if let Some((user, group)) = unprivileged() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// A free port below those that the kernel gives to clients, so that it is still free when a server starts again. No
/// two tests of a process get the same.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(RandomState::new().hash_one(0) as u16));
    (0..1000)
        .map(|_| 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Runs a program to its end.
///
/// # Panics
/// If it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().trim_end().to_owned()
}

/// Waits until `done` says so.
///
/// # Panics
/// If that takes longer than a minute.
pub(crate) fn wait_until(event: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {event}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// A program that ends with this process, even if a signal kills that: it runs under a shell that waits for the end of
/// its input.
pub(crate) struct Guarded {
    shell: Child,
}

impl Guarded {
    /// Starts a program that logs to `folder/log`. If this process ends first, the shell sends the program a signal and
    /// deletes the folder. A program under a shell ignores `INT` and `QUIT` unless it handles them itself.
    pub(crate) fn start(mut program: Command, folder: &Path, at_the_end: &str) -> Self {
        const SCRIPT: &str = r#"folder=$1; at_the_end=$2; shift 2
            "$@" >>"$folder/log" 2>&1 & pid=$!
            if read -r signal; then kill -s "$signal" $pid; wait $pid
            else kill -s CONT $pid; kill -s "$at_the_end" $pid; wait $pid; rm -rf "$folder"; fi"#;
        let mut shell = command("/bin/sh");
        shell
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .arg(at_the_end)
            .arg(program.get_program())
            .args(program.get_args());
        program.stdin(Stdio::null());
        // A group of its own: the terminal's Ctrl-C is for the tests.
        let shell = shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { shell: shell.spawn().unwrap() }
    }

    /// Sends the program a signal and waits for its end.
    pub(crate) fn end(&mut self, signal: &str) {
        if let Some(mut input) = self.shell.stdin.take() {
            writeln!(input, "{signal}").ok();
        }
        self.shell.wait().unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.shell.try_wait().unwrap().is_some()
    }
}

/// A running or stopped server.
pub(crate) struct Server {
    folder: PathBuf,
    port: u16,
    process: std::sync::Mutex<Option<Guarded>>,
}

impl Server {
    /// Creates and starts a server with the user `postgres`, who needs no password.
    pub(crate) fn start() -> Self {
        Self::with_settings(&[])
    }

    /// The same with lines for its `postgresql.conf`.
    pub(crate) fn with_settings(settings: &[(&str, &str)]) -> Self {
        let server = Self::new();
        let mut initdb = command(server.program("initdb"));
        run(initdb.arg("-D").arg(server.data()).args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--locale=C.UTF-8",
            "--encoding=UTF8",
        ]));
        let defaults = [("max_connections", "100"), ("shared_buffers", "64MB"), ("log_min_messages", "warning")];
        for (name, value) in defaults.iter().chain(settings) {
            server.setting(name, value);
        }
        server.launch();
        server
    }

    fn new() -> Self {
        Self { folder: folder(), port: free_port(), process: None.into() }
    }

    fn program(&self, name: &str) -> PathBuf {
        programs().expect(HOW_TO_INSTALL).join(name)
    }

    /// The folder of the server's socket, its log and its data.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its address over TCP, without TLS.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The same for another database.
    pub(crate) fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Its address over the Unix socket.
    pub(crate) fn socket_url(&self) -> String {
        let host = self.folder.to_str().unwrap().replace('%', "%25").replace('/', "%2F");
        format!("postgres://postgres@{host}:{}/postgres", self.port)
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Adds a line to its `postgresql.conf`, which holds from the next [`reload`](Self::reload) or start on.
    pub(crate) fn setting(&self, name: &str, value: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
    }

    /// Writes its `pg_hba.conf`.
    pub(crate) fn access(&self, lines: &str) {
        fs::write(self.data().join("pg_hba.conf"), lines).unwrap();
    }

    /// Has it read its settings again. New connections have them; existing ones have them a moment later.
    pub(crate) fn reload(&self) {
        let before = self.psql("SELECT pg_conf_load_time()");
        kill_process(self.postmaster().unwrap(), Signal::HUP).unwrap();
        wait_until("the server has read its settings", || self.psql("SELECT pg_conf_load_time()") != before);
    }

    /// Runs SQL over the Unix socket, and returns the rows, their columns joined by `|`.
    ///
    /// # Panics
    /// If a statement fails.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// The same in another database.
    pub(crate) fn psql_in(&self, database: &str, sql: &str) -> String {
        run(self.psql_command(database).args(["-c", sql]))
    }

    fn psql_command(&self, database: &str) -> Command {
        let mut psql = command(self.program("psql"));
        psql.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string(), "-U", "postgres", "-d", database]);
        psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1"]);
        psql
    }

    /// Starts it and waits until it answers.
    fn launch(&self) {
        let mut process = self.process.lock().unwrap();
        assert!(process.is_none(), "the server runs already");
        let mut postgres = command(self.program("postgres"));
        postgres.arg("-D").arg(self.data()).args(["-c", "listen_addresses=127.0.0.1"]);
        postgres.arg("-c").arg(format!("port={}", self.port));
        postgres.arg("-c").arg(format!("unix_socket_directories={}", self.folder.display()));
        let mut started = Guarded::start(postgres, &self.folder, "QUIT");
        wait_until("the server is ready", || {
            assert!(!started.has_ended(), "the server did not start: {}", self.log());
            // The last line of the file is the state, with spaces behind it.
            let state = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            matches!(state.lines().nth(7).map(str::trim_end), Some("ready" | "standby"))
        });
        // A standby may be ready before it lets clients read.
        wait_until("the server answers", || {
            self.psql_command("postgres").args(["-c", "SELECT 1"]).output().unwrap().status.success()
        });
        *process = Some(started);
    }

    /// Ends its connections and shuts it down.
    pub(crate) fn stop(&self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            process.end("INT");
        }
    }

    /// Kills it with all its processes, as a power cut of a machine whose disk survives.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap().take().expect("a running server");
        // While the postmaster stands still, it starts no other process.
        let postmaster = self.postmaster().unwrap();
        kill_process(postmaster, Signal::STOP).unwrap();
        let all = self.processes();
        for pid in &all {
            // An unknown process has ended already.
            kill_process(*pid, Signal::KILL).ok();
        }
        process.end("KILL");
        wait_until("the processes of the server have ended", || !all.iter().any(|pid| is_alive(*pid)));
        fs::remove_file(self.data().join("postmaster.pid")).ok();
    }

    /// Starts it again, on the same folder and port, and stops it first if it runs.
    pub(crate) fn restart(&self) {
        self.stop();
        self.launch();
    }

    /// Stops the work of all its processes, as a machine that hangs.
    pub(crate) fn pause(&self) {
        // The postmaster first, so that no process joins.
        kill_process(self.postmaster().unwrap(), Signal::STOP).unwrap();
        for pid in self.processes() {
            kill_process(pid, Signal::STOP).ok();
        }
    }

    /// Has a paused server go on.
    pub(crate) fn resume(&self) {
        for pid in self.processes() {
            kill_process(pid, Signal::CONT).ok();
        }
    }

    fn postmaster(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        Pid::from_raw(file.lines().next()?.parse().ok()?)
    }

    /// The postmaster and its children. Each child has a process group of its own, so the groups do not tell.
    fn processes(&self) -> Vec<Pid> {
        let Some(postmaster) = self.postmaster() else { return vec![] };
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let mut found: Vec<Pid> = all
            .filter(|pid| status(*pid).is_some_and(|(_, parent)| parent == postmaster.as_raw_nonzero().get()))
            .filter_map(Pid::from_raw)
            .collect();
        found.push(postmaster);
        found
    }

    /// Starts a standby that follows this server, which waits for the standby at each commit if it is `synchronous`.
    pub(crate) fn standby(&self, synchronous: bool) -> Server {
        let standby = Self::new();
        let source = format!(
            "host={} port={} user=postgres application_name={STANDBY}",
            self.folder.to_str().unwrap(),
            self.port
        );
        let mut copy = command(self.program("pg_basebackup"));
        copy.arg("-D").arg(standby.data()).args(["-d", &source, "-R", "-X", "stream"]);
        run(copy.args(["--checkpoint=fast", "--no-sync"]));
        standby.launch();
        wait_until("the standby follows", || {
            self.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != "0"
        });
        if synchronous {
            self.setting("synchronous_standby_names", STANDBY);
            self.reload();
            wait_until("the standby is synchronous", || {
                self.psql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "0"
            });
        }
        standby
    }

    /// Makes a standby a primary, which waits for no standby.
    pub(crate) fn promote(&self) {
        self.setting("synchronous_standby_names", "");
        self.reload();
        assert_eq!(self.psql("SELECT pg_promote()"), "t");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.lock().unwrap().take() {
            // A paused server hears no signal.
            self.resume();
            process.end("QUIT");
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// The state of a process and its parent.
fn status(pid: i32) -> Option<(char, i32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = status.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// A zombie holds no memory any more.
fn is_alive(pid: Pid) -> bool {
    status(pid.as_raw_nonzero().get()).is_some_and(|(state, _)| state != 'Z')
}
