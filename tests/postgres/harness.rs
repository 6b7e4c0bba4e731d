//! The throwaway servers and the proxy do what they say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::pgbouncer::PgBouncer;
use super::proxy::{Direction, Mode, Proxy};
use super::server::{Server, available, shared, wait_until};

/// Runs SQL in one conversation with a server.
async fn ask(url: &str, sql: &str) -> Result<String, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    let messages = client.simple_query(sql).await?;
    drop(client);
    connection.await.unwrap()?;
    let rows = messages.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(rows.collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn a_server_answers_over_tcp_and_its_socket() {
    if !available() {
        return;
    }
    let server = shared();
    assert_eq!(server.psql("SELECT 1 + 1"), "2");
    assert_eq!(ask(&server.url(), "SELECT 1 + 1").await.unwrap(), "2");
    assert_eq!(ask(&server.socket_url(), "SELECT 1 + 1").await.unwrap(), "2");
    assert!(server.port() > 0 && server.folder().is_dir());
}

#[tokio::test]
async fn settings_hold_after_start_and_reload() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off"), ("application_name", "it's")]);
    assert_eq!(server.psql("SHOW fsync"), "off");
    assert_eq!(ask(&server.url(), "SHOW application_name").await.unwrap(), "it's");
    server.setting("statement_timeout", "7s");
    server.reload();
    assert_eq!(server.psql("SHOW statement_timeout"), "7s");
}

#[test]
fn a_killed_server_keeps_committed_rows() {
    if !available() {
        return;
    }
    let server = Server::start();
    server.psql("CREATE TABLE t (n integer)");
    let port = server.port();
    for n in 1..=3 {
        server.psql(&format!("INSERT INTO t VALUES ({n})"));
        server.kill();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        server.restart();
        assert_eq!((server.psql("SELECT count(*) FROM t"), server.port()), (n.to_string(), port));
        assert!(server.log().contains("not properly shut down"), "{}", server.log());
    }
    server.stop();
    server.restart();
    assert_eq!(server.psql("SELECT count(*) FROM t"), "3");
}

#[tokio::test]
async fn a_paused_server_answers_after_it_resumed() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off")]);
    server.pause();
    let url = server.url();
    let answer = tokio::spawn(async move { ask(&url, "SELECT 5").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!answer.is_finished());
    server.resume();
    assert_eq!(answer.await.unwrap().unwrap(), "5");
}

#[test]
fn a_promoted_standby_has_every_acknowledged_row() {
    if !available() {
        return;
    }
    let server = Server::start();
    let standby = server.standby(true);
    server.psql("CREATE TABLE t AS SELECT 7 AS n");
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
    server.kill();
    standby.promote();
    assert_eq!(standby.psql("SELECT n FROM t"), "7");
    standby.psql("INSERT INTO t VALUES (8)");
}

#[tokio::test]
async fn pgbouncer_answers_and_refuses_options() {
    if !available() {
        return;
    }
    let pgbouncer = PgBouncer::start(shared(), 2);
    assert!(pgbouncer.port() > 0);
    assert_eq!(ask(&pgbouncer.url(), "SELECT 3").await.unwrap(), "3");
    let refused = ask(&format!("{}&options=-cgeqo%3Doff", pgbouncer.url()), "SELECT 3").await;
    assert!(refused.is_err(), "the tests rely on it");
    assert!(pgbouncer.log().contains("options"), "{}", pgbouncer.log());
}

const GUARDED: &str = "WASTORE_TEST_GUARDED";

/// Run by the next test in a process of its own.
#[test]
fn child_with_a_server() {
    if std::env::var_os(GUARDED).is_some() {
        let server = shared();
        println!("\nserver {} {}", server.port(), server.folder().display());
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_server_ends_with_a_killed_test_process() {
    if !available() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness::child_with_a_server", "--nocapture"])
        .env(GUARDED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("server ")).unwrap();
    let [_, port, folder] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let port: u16 = port.parse().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the server has ended", || TcpStream::connect(("127.0.0.1", port)).is_err());
    wait_until("its folder is gone", || !std::path::Path::new(folder).exists());
}

/// A server that sends back what it gets, and the two ends of a connection to it through a proxy.
fn echo() -> (Proxy, TcpListener) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port());
    (proxy, listener)
}

fn connect(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    // The proxy may have accepted it, but not yet have counted it.
    wait_until("the proxy knows the connection", || proxy.open() > 0);
    (client, server)
}

fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// `true` if nothing arrives for a while.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let result = stream.read(&mut [0]);
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    result.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The bytes that arrive until the end.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_proxy_passes_and_counts_bytes() {
    let (proxy, listener) = echo();
    let (mut client, mut server) = connect(&proxy, &listener);
    client.write_all(b"request").unwrap();
    assert_eq!(read(&mut server, 7), b"request");
    server.write_all(b"answer").unwrap();
    assert_eq!(read(&mut client, 6), b"answer");
    assert_eq!((proxy.bytes(Direction::Up), proxy.bytes(Direction::Down)), (7, 6));
    assert_eq!((proxy.accepted(), proxy.open()), (1, 1));
    client.shutdown(Shutdown::Both).unwrap();
    assert_eq!(rest(&mut server), b"");
    wait_until("the proxy has closed", || proxy.open() == 0);
}

#[test]
fn the_proxy_cuts_at_every_byte() {
    let (proxy, listener) = echo();
    for after in 0..=7 {
        let (mut client, mut server) = connect(&proxy, &listener);
        proxy.set(Mode::Cut { direction: Direction::Up, after });
        client.write_all(b"requests").unwrap();
        assert_eq!(rest(&mut server), b"requests"[..after as usize]);
        assert_eq!((rest(&mut client), proxy.since_set(Direction::Up)), (vec![], after));
        wait_until("the proxy has closed", || proxy.open() == 0);
        let (mut client, mut server) = connect(&proxy, &listener);
        proxy.set(Mode::Cut { direction: Direction::Down, after });
        client.write_all(b"request").unwrap();
        assert_eq!(read(&mut server, 7), b"request");
        server.write_all(b"answers!").unwrap();
        assert_eq!(rest(&mut client), b"answers!"[..after as usize]);
        wait_until("the proxy has closed", || proxy.open() == 0);
    }
}

#[test]
fn the_proxy_delays_each_direction_by_its_time() {
    let (proxy, listener) = echo();
    let (mut client, mut server) = connect(&proxy, &listener);
    let (up, down) = (Duration::from_millis(80), Duration::from_millis(30));
    proxy.set(Mode::Delay { up, down });
    let start = Instant::now();
    for _ in 0..10 {
        client.write_all(b"x").unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    read(&mut server, 10);
    let elapsed = start.elapsed();
    assert!(elapsed >= up && elapsed < up * 8, "the delays of ten bytes overlap: {elapsed:?}");
    let start = Instant::now();
    server.write_all(b"x").unwrap();
    read(&mut client, 1);
    assert!(start.elapsed() >= down);
}

#[test]
fn the_proxy_swallows_answers_and_cuts() {
    let (proxy, listener) = echo();
    for then_cut in [true, false] {
        let (mut client, mut server) = connect(&proxy, &listener);
        proxy.set(Mode::Swallow { then_cut });
        client.write_all(b"request").unwrap();
        assert_eq!(read(&mut server, 7), b"request");
        let before = proxy.swallowed();
        server.write_all(b"answer").unwrap();
        wait_until("the answer is gone", || proxy.swallowed() == before + 6);
        if !then_cut {
            assert!(is_silent(&mut client));
            proxy.cut();
        }
        assert_eq!((rest(&mut client), rest(&mut server)), (vec![], vec![]));
        wait_until("the proxy has closed", || proxy.open() == 0);
    }
}

#[test]
fn the_proxy_delivers_held_requests_after_their_client() {
    let (proxy, listener) = echo();
    let (mut client, mut server) = connect(&proxy, &listener);
    proxy.set(Mode::Hold);
    client.write_all(b"first ").unwrap();
    wait_until("the first is held", || proxy.held() == 6);
    client.write_all(b"second").unwrap();
    wait_until("both are held", || proxy.held() == 12);
    drop(client);
    // A later connection passes, in this mode as well.
    let (mut other, mut other_server) = connect(&proxy, &listener);
    other.write_all(b"x").unwrap();
    assert_eq!(read(&mut other_server, 1), b"x");
    proxy.set(Mode::Pass);
    assert!(is_silent(&mut server));
    proxy.deliver();
    assert_eq!(read(&mut server, 12), b"first second");
    server.write_all(b"late").unwrap();
    wait_until("the late answer is there", || proxy.late_answers() == b"late");
    proxy.cut();
    assert_eq!((rest(&mut server), rest(&mut other)), (vec![], vec![]));
}

#[test]
fn a_cut_leaves_held_requests_to_be_delivered() {
    let (proxy, listener) = echo();
    let (mut client, mut server) = connect(&proxy, &listener);
    proxy.set(Mode::Hold);
    client.write_all(b"request").unwrap();
    wait_until("the request is held", || proxy.held() == 7);
    proxy.cut();
    assert_eq!(rest(&mut client), b"");
    proxy.deliver();
    assert_eq!(read(&mut server, 7), b"request");
}

#[test]
fn the_proxy_stalls_old_or_all_connections() {
    let (proxy, listener) = echo();
    for new_too in [false, true] {
        let (mut client, mut server) = connect(&proxy, &listener);
        proxy.set(Mode::Stall { new_too });
        client.write_all(b"up").unwrap();
        server.write_all(b"down").unwrap();
        let (mut new_client, mut new_server) = connect(&proxy, &listener);
        new_client.write_all(b"x").unwrap();
        assert!(is_silent(&mut server) && is_silent(&mut client));
        assert_eq!(is_silent(&mut new_server), new_too);
        proxy.set(Mode::Pass);
        assert_eq!((read(&mut server, 2), read(&mut client, 4)), (b"up".to_vec(), b"down".to_vec()));
    }
}

#[test]
fn the_proxy_refuses_and_accepts_again() {
    let (proxy, listener) = echo();
    let (mut client, mut server) = connect(&proxy, &listener);
    proxy.set(Mode::Refuse);
    let refused = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    client.write_all(b"x").unwrap();
    assert_eq!(read(&mut server, 1), b"x", "the old connection goes on");
    proxy.set(Mode::Pass);
    connect(&proxy, &listener);
    let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    proxy.lead_to(other.local_addr().unwrap().port());
    connect(&proxy, &other);
}

#[tokio::test]
async fn a_server_answers_through_the_proxy() {
    if !available() {
        return;
    }
    let proxy = Proxy::start(shared().port());
    assert_eq!(ask(&proxy.url(), "SELECT 4").await.unwrap(), "4");
    let up = proxy.bytes(Direction::Up);
    assert!(up > 0 && proxy.bytes(Direction::Down) > up);
    for after in 0..up {
        // The goodbye of the connection before is not what is cut.
        wait_until("the proxy has closed", || proxy.open() == 0);
        proxy.set(Mode::Cut { direction: Direction::Up, after });
        // The last bytes say goodbye, behind the answer.
        let answer = ask(&proxy.url(), "SELECT 4").await;
        assert!(answer.is_err() || after + 5 >= up, "cut after {after} of {up} bytes");
    }
}
