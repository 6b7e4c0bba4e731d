//! A cluster that Patroni manages, with etcd: its leader is killed again and again. Only in long runs, and only if both
//! programs are installed (Debian's packages `patroni` and `etcd-server`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::common::{is_long, options, seconds};
use super::failures::Load;
use super::server::{Guarded, available, command, folder, free_port, hand_over, wait_until};

const TTL: u32 = 20;

struct Node {
    name: String,
    port: u16,
    api: u16,
    settings: PathBuf,
    folder: PathBuf,
    process: Option<Guarded>,
}

impl Node {
    fn new(folder: &Path, number: u32, etcd: u16) -> Self {
        let (name, port, api) = (format!("node{number}"), free_port(), free_port());
        let home = folder.join(&name);
        fs::create_dir(&home).unwrap();
        hand_over(&home);
        let settings = home.join("patroni.yml");
        let (data, home_text) = (home.join("data"), home.display());
        let text = format!(
            "scope: wastore
name: {name}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}
etcd3: {{host: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
    ttl: {TTL}
    loop_wait: 2
    retry_timeout: 5
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql: {{use_pg_rewind: true, parameters: {{wal_log_hints: 'on'}}}}
  initdb: [{{encoding: UTF8}}, {{locale: C.UTF-8}}, {{auth: trust}}]
  pg_hba: ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: '{}'
  bin_dir: '{}'
  pgpass: '{home_text}/pgpass'
  authentication:
    superuser: {{username: postgres, password: postgres}}
    replication: {{username: replicator, password: replicator}}
    rewind: {{username: postgres, password: postgres}}
  parameters: {{unix_socket_directories: '{home_text}', max_connections: 50}}
",
            data.display(),
            programs().display(),
        );
        fs::write(&settings, text).unwrap();
        hand_over(&settings);
        Self { name, port, api, settings, folder: home, process: None }
    }

    fn start(&mut self) {
        let mut patroni = command("patroni");
        patroni.arg(&self.settings);
        self.process = Some(Guarded::start(patroni, &self.folder, "TERM"));
    }

    /// `true` if it accepts writes.
    fn leads(&self) -> bool {
        let mut psql = Command::new("psql");
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-Atc", "SELECT pg_is_in_recovery()", "postgres"]);
        let output = psql.args(["-p", &self.port.to_string()]).output().unwrap();
        output.stdout.starts_with(b"f")
    }

    /// `true` if the cluster may promote it: it has every acknowledged write, and etcd says so.
    fn may_be_promoted(&self) -> bool {
        let mut answer = [0; 12];
        let ask = |mut api: TcpStream| {
            api.write_all(b"GET /sync HTTP/1.0\r\n\r\n")?;
            api.read_exact(&mut answer)
        };
        TcpStream::connect(("127.0.0.1", self.api)).and_then(ask).is_ok() && answer.ends_with(b" 200")
    }

    /// Kills Patroni and its server with all processes.
    fn kill(&mut self) {
        let name = self.folder.to_str().unwrap();
        Command::new("pkill").args(["-KILL", "-f", &format!("patroni {name}")]).status().unwrap();
        Command::new("pkill").args(["-KILL", "-f", &format!("{name}/data")]).status().unwrap();
        if let Some(mut process) = self.process.take() {
            process.end("KILL");
        }
        // The children of the server have other names, and end with it.
        wait_until("the server is gone", || !self.leads());
    }
}

fn programs() -> PathBuf {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found.pop().unwrap().join("bin")
}

fn are_installed() -> bool {
    ["patroni", "etcd"].iter().all(|name| Command::new("which").arg(name).output().unwrap().status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_patroni_loses_no_acknowledged_write() {
    if !available() || !is_long() || !are_installed() {
        return;
    }
    let folder = folder();
    let (client, peer) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let mut etcd = command("etcd");
    etcd.args(["--data-dir", folder.join("etcd").to_str().unwrap(), "--name", "one"])
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("one={}", url(peer))]);
    let _etcd = Guarded::start(etcd, &folder, "TERM");
    let mut nodes = [Node::new(&folder, 1, client), Node::new(&folder, 2, client)];
    nodes[0].start();
    wait_until("the first node leads", || nodes[0].leads());
    nodes[1].start();
    wait_until("the second node follows", || nodes[1].may_be_promoted());
    let servers = format!("127.0.0.1:{},127.0.0.1:{}", nodes[0].port, nodes[1].port);
    let store = options(&format!("postgres://postgres@{servers}/postgres?sslmode=disable"))
        .require_synchronous_standby(true)
        .deadline(seconds(120))
        .open(1)
        .await
        .unwrap();
    let load = Load::start(&store);
    let mut leader = 0;
    for round in 1..=5 {
        load.goes_on().await;
        let other = 1 - leader;
        let killed = Instant::now();
        nodes[leader].kill();
        wait_until("the other node leads", || nodes[other].leads());
        let promoted = killed.elapsed();
        nodes[leader].start();
        wait_until("the old leader follows", || nodes[leader].may_be_promoted());
        load.goes_on().await;
        println!(
            "round {round}: {} leads after {:.1} s, writes are confirmed again after {:.1} s",
            nodes[other].name,
            promoted.as_secs_f64(),
            killed.elapsed().as_secs_f64()
        );
        leader = other;
    }
    load.end().await;
    assert_eq!(store.stats().leases_lost, 0);
    for node in &mut nodes {
        node.kill();
    }
    fs::remove_dir_all(&folder).ok();
}
