//! Connections to real servers: TLS, passwords, several hosts.

use std::error::Error as _;
use std::fs;
use std::future::ready;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::proxy::{Direction, Proxy};
use super::server::{self, Server, available, hand_over, run, shared};
use crate::error::{Error, PostgresProblem, Result};
use crate::postgres::PostgresOptions;
use crate::postgres::connect::{self, Connection};

const PASSWORD: &str = "correct:horse\\battery";
const ENCODED: &str = "correct%3Ahorse%5Cbattery";

/// A server with TLS for the name `localhost`, and roles that have to prove who they are.
struct Secured {
    server: Server,
    /// The certificates and keys, which the tests may read.
    keys: TempDir,
}

impl Secured {
    fn get() -> &'static Self {
        static SECURED: OnceLock<Secured> = OnceLock::new();
        SECURED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let keys = tempfile::tempdir().unwrap();
        certificate_authority(keys.path(), "ca");
        certificate_authority(keys.path(), "other-ca");
        certificate(keys.path(), "server", "/CN=server", "subjectAltName=DNS:localhost");
        certificate(keys.path(), "client", "/CN=by_certificate", "basicConstraints=CA:FALSE");
        let server = Server::with_settings(&[("fsync", "off")]);
        for name in ["server.crt", "server.key", "ca.crt"] {
            let copy = server.data().join(name);
            fs::copy(keys.path().join(name), &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
            hand_over(&copy);
        }
        let settings =
            [("ssl", "on"), ("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.crt")];
        for (name, value) in settings {
            server.setting(name, value);
        }
        let quoted = format!("'{PASSWORD}'");
        server.psql(&format!(
            "CREATE ROLE scram LOGIN PASSWORD {quoted}; CREATE ROLE clear LOGIN PASSWORD {quoted};
             CREATE ROLE by_certificate LOGIN; CREATE ROLE full LOGIN CONNECTION LIMIT 0;
             CREATE ROLE read_only LOGIN; ALTER ROLE read_only SET default_transaction_read_only = on"
        ));
        server.access(
            "local all all trust\n\
             host all scram 127.0.0.1/32 scram-sha-256\n\
             host all clear 127.0.0.1/32 password\n\
             hostssl all by_certificate 127.0.0.1/32 cert\n\
             host all all 127.0.0.1/32 trust\n",
        );
        server.restart();
        Self { server, keys }
    }

    /// The address with its certificate authority.
    fn url(&self, login: &str, more: &str) -> String {
        let root = self.keys.path().join("ca.crt");
        format!("postgres://{login}@localhost:{}/postgres?sslrootcert={}{more}", self.server.port(), root.display())
    }
}

fn openssl(folder: &Path, arguments: &str) {
    run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder));
}

fn certificate_authority(folder: &Path, name: &str) {
    openssl(
        folder,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.crt \
             -subj /CN={name} -days 2"
        ),
    );
}

fn certificate(folder: &Path, name: &str, subject: &str, extension: &str) {
    fs::write(folder.join("extension"), extension).unwrap();
    openssl(
        folder,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr \
             -subj {subject}"
        ),
    );
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 \
             -extfile extension"
        ),
    );
}

fn options(url: &str) -> PostgresOptions {
    PostgresOptions::new(url).unwrap()
}

async fn connect(options: &PostgresOptions) -> Result<(Client, Connection)> {
    connect::connect(options, |client, connection| ready(Ok((client, connection)))).await
}

/// The first value of a statement on a new connection.
async fn ask(options: &PostgresOptions, sql: &str) -> Result<String> {
    let (client, connection) = connect(options).await?;
    let connection = tokio::spawn(connection);
    let messages = client.simple_query(sql).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}

/// The problem of a refused connection, and all its texts.
async fn refusal(options: &PostgresOptions) -> (PostgresProblem, String) {
    let error = connect(options).await.map(drop).unwrap_err();
    let source = error.source().map(|source| format!("{source} {source:?}")).unwrap_or_default();
    let text = format!("{error} {error:?} {source}");
    match error {
        Error::Postgres { problem, .. } => (problem, text),
        error => panic!("{error:?}"),
    }
}

const IS_ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[tokio::test]
async fn a_named_ca_verifies_the_server() {
    if !available() {
        return;
    }
    let secured = Secured::get();
    for more in ["", "&sslmode=require", "&sslmode=verify-full", "&target_session_attrs=read-write"] {
        assert_eq!(ask(&options(&secured.url("postgres", more)), IS_ENCRYPTED).await.unwrap(), "t");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    if !available() {
        return;
    }
    let url = Secured::get().url("postgres", "").replace("localhost", "127.0.0.1");
    let (problem, text) = refusal(&options(&url)).await;
    assert!(problem == PostgresProblem::Tls && text.contains("for another name"), "{text}");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    if !available() {
        return;
    }
    let url = Secured::get().url("postgres", "").replace("ca.crt", "other-ca.crt");
    let (problem, text) = refusal(&options(&url)).await;
    assert!(problem == PostgresProblem::Tls && text.contains("CA"), "{text}");
}

/// The server gets to see a question for TLS of 8 bytes, and no name and no password.
#[tokio::test]
async fn no_connection_falls_back_to_plaintext() {
    if !available() {
        return;
    }
    let proxy = Proxy::start(shared().port());
    let root = Secured::get().keys.path().join("ca.crt");
    for mode in ["", "&sslmode=require", "&sslmode=verify-full"] {
        let before = proxy.bytes(Direction::Up);
        let url = format!(
            "postgres://postgres:{ENCODED}@localhost:{}/postgres?sslrootcert={}{mode}",
            proxy.port(),
            root.display()
        );
        let (problem, text) = refusal(&options(&url)).await;
        assert!(problem == PostgresProblem::Tls && text.contains("does not support TLS"), "{text}");
        assert_eq!(proxy.bytes(Direction::Up) - before, 8);
    }
}

#[tokio::test]
async fn channel_binding_works_where_it_is_required() {
    if !available() {
        return;
    }
    let (secured, login) = (Secured::get(), format!("scram:{ENCODED}"));
    for binding in ["require", "prefer", "disable"] {
        let url = secured.url(&login, &format!("&channel_binding={binding}"));
        assert_eq!(ask(&options(&url), "SELECT current_user").await.unwrap(), "scram");
    }
    // A server that asks for the password itself could be any.
    let clear = format!("clear:{ENCODED}");
    assert_eq!(ask(&options(&secured.url(&clear, "")), "SELECT current_user").await.unwrap(), "clear");
    for login in [&*clear, "postgres"] {
        let (problem, text) = refusal(&options(&secured.url(login, "&channel_binding=require"))).await;
        assert!(problem == PostgresProblem::NotAllowed && text.contains("login failed"), "{text}");
    }
}

#[tokio::test]
async fn a_client_certificate_opens_the_server() {
    if !available() {
        return;
    }
    let secured = Secured::get();
    let keys = secured.keys.path();
    let more = format!("&sslcert={0}/client.crt&sslkey={0}/client.key", keys.display());
    let url = secured.url("by_certificate", &more);
    assert_eq!(ask(&options(&url), "SELECT current_user").await.unwrap(), "by_certificate");
    let (problem, text) = refusal(&options(&secured.url("by_certificate", ""))).await;
    assert_eq!(problem, PostgresProblem::NotAllowed, "{text}");
    let url = url.replace("client.key", "server.key");
    let error = connect(&options(&url)).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("sslkey"), "{error}");
}

fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_rotated_password_file_is_read_again() {
    if !available() {
        return;
    }
    let secured = Secured::get();
    secured.server.psql("CREATE ROLE rotated LOGIN; GRANT scram TO rotated; ALTER ROLE rotated PASSWORD 'first'");
    secured.server.access(&format!(
        "host all rotated 127.0.0.1/32 scram-sha-256\n{}",
        fs::read_to_string(secured.server.data().join("pg_hba.conf")).unwrap()
    ));
    secured.server.reload();
    let folder = tempfile::tempdir().unwrap();
    // The secrets of a container are links.
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    symlink(&file, &link).unwrap();
    let options = options(&secured.url("rotated", "")).password_file(&link);
    write_private(&file, "first\n");
    assert_eq!(ask(&options, "SELECT 1").await.unwrap(), "1");
    secured.server.psql("ALTER ROLE rotated PASSWORD 'second'");
    assert_eq!(refusal(&options).await.0, PostgresProblem::NotAllowed);
    write_private(&file, "second");
    assert_eq!(ask(&options, "SELECT 1").await.unwrap(), "1");
}

#[tokio::test]
async fn bad_password_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let url = "postgres://bot@localhost:1/wa?sslmode=disable";
    let with_file = options(url).password_file(&file);
    let with_passfile = options(&format!("{url}&passfile={}", file.display()));
    let refused = async |options: &PostgresOptions| connect(options).await.map(drop).unwrap_err();
    for options in [&with_file, &with_passfile] {
        assert!(matches!(refused(options).await, Error::File { .. }), "there is none");
        write_private(&file, "*:*:*:*:secret");
        assert!(matches!(refused(options).await, Error::Postgres { problem: PostgresProblem::Unreachable, .. }));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o660)).unwrap();
        let Error::File { source, .. } = refused(options).await else { panic!("others can read it") };
        assert!(source.to_string().contains("chmod 600"), "{source}");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let Error::File { source, .. } = refused(options).await else { panic!("it is a folder") };
        assert!(source.to_string().contains("not a regular file"), "{source}");
        fs::remove_dir(&file).unwrap();
        write_private(&file, &"x".repeat((1 << 20) + 1));
        assert!(matches!(refused(options).await, Error::File { .. }), "it is too long");
        fs::remove_file(&file).unwrap();
    }
    for content in ["", "\n", "a\0b"] {
        write_private(&file, content);
        assert!(matches!(refused(&with_file).await, Error::InvalidInput { .. }));
    }
}

/// Files in the format of libpq, as its documentation and its code have it.
#[tokio::test]
async fn a_passfile_gives_the_password_of_its_first_line_that_fits() {
    if !available() {
        return;
    }
    let secured = Secured::get();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passfile");
    let options = options(&secured.url("scram", &format!("&passfile={}", file.display())));
    let (port, escaped) = (secured.server.port(), "correct\\:horse\\\\battery");
    for line in [
        format!("localhost:{port}:postgres:scram:{escaped}"),
        format!("*:*:*:*:{escaped}\n*:*:*:*:wrong"),
        format!("# a comment\n\nlocalhost:1:*:*:wrong\n*:*:other:*:wrong\nlocalhost:*:postgres:*:{escaped}\r\n"),
        format!("\\*:*:*:*:wrong\nlocal\\host:*:*:scram:{escaped}:ignored"),
        // libpq takes `\` in front of any character.
        format!("too:few\n*:*:*:*:{}", escaped.replace('h', "\\h")),
    ] {
        write_private(&file, &line);
        assert_eq!(ask(&options, "SELECT current_user").await.unwrap(), "scram", "{line}");
    }
    for line in [String::new(), format!("*:*:*:bot:{escaped}"), format!("*:*:*:*:wrong\n*:*:*:*:{escaped}")] {
        write_private(&file, &line);
        assert_eq!(refusal(&options).await.0, PostgresProblem::NotAllowed, "{line}");
    }
}

/// Everything that the crates log, at every level.
struct Logged;

static LOGGED: Mutex<Vec<String>> = Mutex::new(vec![]);

impl log::Log for Logged {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn no_text_and_no_log_contains_a_password() {
    if !available() {
        return;
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| log::set_logger(&Logged).unwrap());
    log::set_max_level(log::LevelFilter::Trace);
    let (secured, folder) = (Secured::get(), tempfile::tempdir().unwrap());
    let file = folder.path().join("password");
    write_private(&file, "a-wrong-password-file");
    let right = options(&secured.url(&format!("scram:{ENCODED}"), ""));
    assert_eq!(ask(&right, "SELECT 1").await.unwrap(), "1");
    let wrong = options(&secured.url("scram:a-wrong-password", ""));
    let of_file = options(&secured.url("scram", "")).password_file(&file);
    let no_user = options(&secured.url("the-missing-user:a-wrong-password", "").replace("/postgres?", "/missing?"));
    let mut texts = vec![];
    for options in [&wrong, &of_file, &no_user] {
        let (problem, text) = refusal(options).await;
        assert_eq!(problem, PostgresProblem::NotAllowed);
        texts.push(text);
    }
    for options in [&right, &wrong, &of_file, &no_user] {
        texts.push(format!("{options:?}"));
    }
    log::set_max_level(log::LevelFilter::Off);
    let logged = std::mem::take(&mut *LOGGED.lock().unwrap());
    assert!(logged.iter().any(|line| line.contains("executing simple query")), "the driver logs: {logged:?}");
    for text in texts {
        let private = [PASSWORD, ENCODED, "wrong-password", "scram", "missing-user", "localhost"];
        assert!(!private.iter().any(|part| text.contains(part)), "{text}");
    }
    // The names of hosts may stand there, the secrets may not.
    for line in logged {
        assert!(![PASSWORD, ENCODED, "a-wrong-password"].iter().any(|part| line.contains(part)), "{line}");
    }
}

#[tokio::test]
async fn servers_say_why_they_refuse() {
    if !available() {
        return;
    }
    let secured = Secured::get();
    let missing = secured.url("postgres", "").replace("/postgres?", "/missing?");
    for (url, problem, code) in [
        (missing, PostgresProblem::NotAllowed, "FATAL 3D000"),
        (secured.url("the_missing", ""), PostgresProblem::NotAllowed, "FATAL 28000"),
        (secured.url("scram:wrong", ""), PostgresProblem::NotAllowed, "FATAL 28P01"),
        (secured.url("full", ""), PostgresProblem::TooManyConnections, "FATAL 53300"),
        (secured.url("read_only", "&target_session_attrs=primary"), PostgresProblem::ReadOnly, "read-only"),
    ] {
        let (found, text) = refusal(&options(&url)).await;
        assert!(found == problem && text.contains(code), "{text}");
    }
    assert_eq!(ask(&options(&secured.url("read_only", "")), "SELECT 1").await.unwrap(), "1");
}

#[tokio::test]
async fn a_socket_needs_no_tls() {
    if !available() {
        return;
    }
    let server = shared();
    let folder = server.folder().display();
    let named = format!("postgres://postgres@/postgres?host={folder}&port={}&sslmode=verify-full", server.port());
    for url in [server.socket_url(), named] {
        assert_eq!(ask(&options(&url), IS_ENCRYPTED).await.unwrap(), "f");
    }
    let missing = "postgres://postgres@/postgres?host=/nonexistent";
    assert_eq!(refusal(&options(missing)).await.0, PostgresProblem::Unreachable);
}

#[tokio::test]
async fn the_next_host_is_tried_in_its_order() {
    if !available() {
        return;
    }
    // It accepts connections, because the kernel does, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let (port, refusing) = (shared().port(), server::free_port());
    let url = |hosts: &str| options(&format!("postgres://postgres@{hosts}/postgres?sslmode=disable&connect_timeout=1"));
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let answer =
        ask(&url(&format!("127.0.0.1:{refusing},{silent},127.0.0.1:{port}")), "SELECT inet_server_port()").await;
    assert_eq!(answer.unwrap(), port.to_string());
    assert!(start.elapsed() >= second && start.elapsed() < 20 * second);
    let (problem, text) = refusal(&url(&silent.to_string())).await;
    assert!(problem == PostgresProblem::Unreachable && text.contains("too long"), "{text}");
    // The host that came furthest tells the most.
    let hosts = format!("127.0.0.1:{port},127.0.0.1:{refusing}");
    let full = url(&hosts.clone()).schema("wa");
    assert_eq!(ask(&full, "SELECT 1").await.unwrap(), "1");
    let missing = options(&format!("postgres://postgres@{hosts}/missing?sslmode=disable"));
    assert_eq!(refusal(&missing).await.0, PostgresProblem::NotAllowed);
    assert_eq!(refusal(&url(&format!("127.0.0.1:{refusing}"))).await.0, PostgresProblem::Unreachable);
}

#[tokio::test]
async fn settings_are_checked_before_anything_is_sent() {
    let proxy = Proxy::start(1);
    let remote = format!("postgres://bot@localhost:{},db1.example/wa?sslmode=disable", proxy.port());
    let error = connect(&options(&remote)).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }) && proxy.accepted() == 0);
}

#[tokio::test]
async fn bad_certificate_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| -> PathBuf {
        let path = folder.path().join(name);
        write_private(&path, content);
        path
    };
    let empty = file("empty", "");
    let broken = file("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (path, is_missing) in [(folder.path().join("missing"), true), (empty, false), (broken, false)] {
        let url = format!("postgres://bot@localhost:1/wa?sslrootcert={}", path.display());
        let error = connect(&options(&url)).await.map(drop).unwrap_err();
        assert_eq!(matches!(error, Error::File { .. }), is_missing, "{error:?}");
        assert_eq!(matches!(error, Error::InvalidInput { .. }), !is_missing, "{error:?}");
    }
}
