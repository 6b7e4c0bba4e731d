//! Limits of the server and of the role, schemas of others, and idle accounts.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use futures::future::{join_all, try_join_all};
use rand::Rng;
use wacore::store::traits::{ProtocolStore, SignalStore};
use wastore::postgres::{ForeignSchema, PostgresProblem};
use wastore::{Error, PostgresOptions, PostgresStore};

use super::common::{ADDRESS, Direct, get, millis, options, own_problem, problem, put, seconds, until, value};
use super::failures::Load;
use super::server::{Server, available, folder, hand_over, shared};

/// A new database on the shared server, and its URL for a role.
fn database(role: &str) -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("limits_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    shared().psql(&format!("CREATE DATABASE {name}"));
    let url = shared().url_of(&name).replace("postgres://postgres@", &format!("postgres://{role}@"));
    (name, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_at_serializable_isolation() {
    if !available() {
        return;
    }
    let (name, url) = database("postgres");
    shared().psql(&format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    let first = options(&url).open(1).await.unwrap();
    let second = options(&url).open(2).await.unwrap();
    let loads = [Load::start(&first), Load::start(&second)];
    // Other transactions that change the same rows make the server refuse some.
    let direct = Direct::connect(&url).await;
    until("the server has refused some calls", async || {
        // It is refused as well at times.
        direct
            .try_run("UPDATE wastore.leases SET renewed_at = now(); UPDATE wastore.sessions SET record = record")
            .await;
        first.delete_expired_sent_messages(1).await.unwrap();
        first.stats().retries + second.stats().retries > 10
    })
    .await;
    for load in loads {
        load.goes_on().await;
        load.end().await;
    }
}

/// A row that another transaction holds, under a limit of the role on waiting.
async fn contended(limit: &str) {
    let (name, url) = database("postgres");
    let store = options(&url).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    store.close().await.unwrap();
    shared().psql(&format!("ALTER DATABASE {name} SET {limit} = '150ms'"));
    let direct = Direct::connect(&url).await;
    direct.run("SET statement_timeout = 0; BEGIN; UPDATE wastore.sessions SET record = record").await;
    let short = options(&url).deadline(seconds(3)).open(1).await.unwrap();
    let error = put(&short, 2).await.unwrap_err();
    assert!(error.is_database_busy_or_locked(), "upstream tries again: {error:?}");
    assert_eq!(problem::<()>(Err(error)), PostgresProblem::Contended);
    // Other rows are free, and a call that waits long enough is carried out.
    short.put_session("other", b"x").await.unwrap();
    short.close().await.unwrap();
    let store = options(&url).open(1).await.unwrap();
    let call = tokio::spawn({
        let store = store.clone();
        async move { put(&store, 3).await }
    });
    until("it was tried several times", async || store.stats().retries > 2).await;
    assert!(!call.is_finished());
    direct.run("COMMIT").await;
    call.await.unwrap().unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_timeout_ends_as_contended() {
    if !available() {
        return;
    }
    contended("statement_timeout").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_timeout_ends_as_contended() {
    if !available() {
        return;
    }
    contended("lock_timeout").await;
}

/// One statement of a group fails. It fails alone, and the others are stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_does_not_fail_its_group() {
    if !available() {
        return;
    }
    let (_, url) = database("postgres");
    let store = options(&url).deadline(seconds(2)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    let direct = Direct::connect(&url).await;
    direct.run("DROP TABLE wastore.identities").await;
    for number in 2..20 {
        let [first, second, third]: [String; 3] = [1, 2, 3].map(|key| format!("{key}-{number}"));
        let session = value(number, 100);
        let (a, b, c, d) = tokio::join!(
            store.put_session(&first, &session),
            store.put_session(&second, &session),
            store.put_identity(&third, [7; 32]),
            store.put_sender_key(&third, &session),
        );
        assert_eq!(problem(c), PostgresProblem::Schema);
        for result in [a, b, d] {
            result.unwrap();
        }
        assert_eq!(store.get_session(&first).await.unwrap().unwrap(), session);
        assert_eq!(store.get_session(&second).await.unwrap().unwrap(), session);
        assert_eq!(store.get_sender_key(&third).await.unwrap().unwrap(), session);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_connections_is_named() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off"), ("max_connections", "12")]);
    let store = options(&server.url()).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    get(&store).await.unwrap();
    store.delete_expired_sent_messages(1).await.unwrap();
    let mut taken = vec![];
    while let Ok((client, connection)) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await {
        taken.push((client, tokio::spawn(connection)));
    }
    assert!(taken.len() > 2, "{}", taken.len());
    let short = || options(&server.url()).deadline(seconds(1));
    assert_eq!(own_problem(short().open(2).await), PostgresProblem::TooManyConnections);
    // A store that has its connections keeps them.
    for number in 2..50 {
        put(&store, number).await.unwrap();
        assert_eq!(get(&store).await.unwrap(), Some(number));
    }
    let waiting = tokio::spawn(options(&server.url()).open(3));
    tokio::time::sleep(millis(200)).await;
    assert!(!waiting.is_finished());
    drop(taken);
    waiting.await.unwrap().unwrap();
}

/// A file system of a few megabytes, which a test may fill. Mounting one needs the right to.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let disk = Self(folder());
        let mounted = disk.command("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=700"), "tmpfs"]);
        if !mounted {
            eprintln!("skipped: mounting a small disk needs root");
            std::fs::remove_dir(&disk.0).unwrap();
            return None;
        }
        hand_over(&disk.0);
        Some(disk)
    }

    fn grow(&self, megabytes: u32) {
        assert!(self.command("mount", &["-o", &format!("remount,size={megabytes}m")]));
    }

    fn command(&self, program: &str, arguments: &[&str]) -> bool {
        let output = Command::new(program).args(arguments).arg(&self.0).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.command("umount", &["-l"]) {
            std::fs::remove_dir(&self.0).ok();
        }
    }
}

/// Writes megabytes until a call fails. Returns its key and its problem.
async fn fill(store: &PostgresStore) -> (String, PostgresProblem) {
    let mut megabyte = vec![0; 1 << 20];
    for number in 0..200 {
        rand::rng().fill_bytes(&mut megabyte);
        let key = format!("filler {number}");
        let result = store.put_session(&key, &megabyte).await;
        if result.is_err() {
            return (key, problem(result));
        }
    }
    panic!("the disk is not full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_goes_on_after_its_disk_was_full() {
    if !available() {
        return;
    }
    let Some(disk) = SmallDisk::mount(12) else { return };
    let server = Server::with_settings(&[("fsync", "off")]);
    let store = options(&server.url()).open(1).await.unwrap();
    server.psql(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.0.display()));
    server.psql("ALTER TABLE wastore.sessions SET TABLESPACE small");
    put(&store, 1).await.unwrap();
    let (key, reason) = fill(&store).await;
    assert_eq!(reason, PostgresProblem::DiskFull);
    assert!(!store.has_session(&key).await.unwrap(), "nothing of the call is stored");
    // Reads go on, and writes to other disks.
    assert_eq!(get(&store).await.unwrap(), Some(1));
    store.put_identity(ADDRESS, [7; 32]).await.unwrap();
    disk.grow(40);
    store.put_session(&key, &vec![7; 1 << 20]).await.unwrap();
    assert_eq!(store.get_session(&key).await.unwrap().unwrap().len(), 1 << 20);
    drop(store);
    drop(server);
}

/// The server ends when it cannot log a change. Nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_goes_on_after_the_disk_of_the_log_was_full() {
    if !available() {
        return;
    }
    let Some(disk) = SmallDisk::mount(80) else { return };
    let server = Server::with_settings(&[("fsync", "off")]);
    server.stop();
    let (log, moved) = (server.data().join("pg_wal"), disk.0.join("pg_wal"));
    assert!(Command::new("cp").arg("-a").args([&log, &moved]).status().unwrap().success());
    std::fs::remove_dir_all(&log).unwrap();
    std::os::unix::fs::symlink(&moved, &log).unwrap();
    server.restart();
    let store = options(&server.url()).deadline(seconds(4)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    // All but a few megabytes of the rest of the disk.
    let room = rustix::fs::statvfs(&disk.0).map(|disk| disk.f_bavail * disk.f_frsize).unwrap();
    std::fs::write(disk.0.join("ballast"), vec![0; room as usize - (20 << 20)]).unwrap();
    let (_, reason) = fill(&store).await;
    // Not `DiskFull`, which says that nothing was stored.
    let possible = [PostgresProblem::Unreachable, PostgresProblem::OutcomeUnknown];
    assert!(possible.contains(&reason), "{reason:?}");
    assert!(server.log().contains("PANIC"), "{}", server.log());
    std::fs::remove_file(disk.0.join("ballast")).unwrap();
    disk.grow(400);
    server.restart();
    assert_eq!(get(&store).await.unwrap(), Some(1));
    assert!(store.has_session("filler 0").await.unwrap());
    put(&store, 2).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(2));
    drop(server);
}

/// All objects of a schema, and the rows of its mark.
async fn content(direct: &Direct, schema: &str) -> String {
    let sql = format!(
        "SELECT string_agg(relname::text || relkind::text, ',' ORDER BY relname) ||
            coalesce((SELECT string_agg(s::text, ',') FROM {schema}.store s), '')
        FROM pg_class WHERE relnamespace = '{schema}'::regnamespace"
    );
    direct.ask(&sql).await
}

#[tokio::test]
async fn schemas_of_others_are_refused_and_not_changed() {
    if !available() {
        return;
    }
    let (_, url) = database("postgres");
    let direct = Direct::connect(&url).await;
    let mark = "CREATE TABLE store (application text PRIMARY KEY, version integer NOT NULL)";
    let cases: [(&str, String, Option<ForeignSchema>); 9] = [
        ("other_table", "CREATE TABLE invoices (n integer)".into(), Some(ForeignSchema::OtherProgram)),
        (
            "other_function",
            "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'".into(),
            Some(ForeignSchema::OtherProgram),
        ),
        ("other_store", "CREATE TABLE store (name text)".into(), Some(ForeignSchema::OtherProgram)),
        (
            "other_types",
            "CREATE TABLE store AS SELECT 1 AS application, 'x' AS version".into(),
            Some(ForeignSchema::OtherProgram),
        ),
        ("other_program", format!("{mark}; INSERT INTO store VALUES ('shop', 1)"), Some(ForeignSchema::OtherProgram)),
        ("no_mark", mark.into(), Some(ForeignSchema::Altered)),
        (
            "two_marks",
            format!("{mark}; INSERT INTO store VALUES ('wastore', 1), ('shop', 1)"),
            Some(ForeignSchema::Altered),
        ),
        ("version_zero", format!("{mark}; INSERT INTO store VALUES ('wastore', 0)"), Some(ForeignSchema::Altered)),
        ("newer", format!("{mark}; INSERT INTO store VALUES ('wastore', 999)"), None),
    ];
    for (schema, sql, expected) in cases {
        direct.run(&format!("CREATE SCHEMA {schema}; SET search_path = {schema}; {sql}; RESET search_path")).await;
        let has_mark = !direct.ask(&format!("SELECT to_regclass('{schema}.store')")).await.is_empty();
        let before = if has_mark { content(&direct, schema).await } else { String::new() };
        let opened = options(&url).schema(schema).open(1).await;
        match (opened, expected) {
            (Err(Error::ForeignSchema { schema: named, found, .. }), Some(expected)) => {
                assert_eq!((&named[..], found), (schema, expected));
            }
            (Err(Error::UnsupportedVersion { found: 999, .. }), None) => {}
            (opened, _) => panic!("{schema}: {opened:?}"),
        }
        let after = if has_mark { content(&direct, schema).await } else { String::new() };
        assert_eq!(before, after, "{schema} was changed");
        let leases = direct.ask(&format!("SELECT to_regclass('{schema}.leases')")).await;
        assert_eq!(leases, "", "{schema} was changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_make_the_schema_at_the_same_time() {
    if !available() {
        return;
    }
    for isolation in ["read committed", "serializable"] {
        let (name, url) = database("postgres");
        shared().psql(&format!("ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'"));
        let stores = try_join_all((1..=8).map(|account| options(&url).open(account))).await.unwrap();
        try_join_all(stores.iter().map(|store| put(store, 1))).await.unwrap();
        let marks = shared().psql_in(&name, "SELECT application || version FROM wastore.store");
        assert_eq!(marks, "wastore1");
    }
}

#[tokio::test]
async fn a_role_needs_only_the_grants_to_rows() {
    if !available() {
        return;
    }
    let (name, url) = database("limits_bot");
    shared().psql("DO $$ BEGIN CREATE ROLE limits_bot LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$");
    let bot = |account: i32| options(&url).migrate(false).deadline(seconds(2)).open(account);
    assert_eq!(own_problem(bot(1).await), PostgresProblem::Schema);
    let owner = PostgresOptions::new(&shared().url_of(&name)).unwrap().open(1).await.unwrap();
    owner.close().await.unwrap();
    assert_eq!(own_problem(bot(1).await), PostgresProblem::NotAllowed);
    let grants = "GRANT USAGE ON SCHEMA wastore TO limits_bot;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA wastore TO limits_bot";
    shared().psql_in(&name, grants);
    let store = bot(1).await.unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(1));
    store.store_sent_message("chat", "id", b"x").await.unwrap();
    assert_eq!(store.take_sent_message("chat", "id").await.unwrap(), Some(b"x".to_vec()));
    store.delete_expired_sent_messages(i64::MAX).await.unwrap();
    store.close().await.unwrap();
    shared().psql_in(&name, "REVOKE INSERT ON wastore.sessions FROM limits_bot");
    let store = bot(1).await.unwrap();
    assert_eq!(problem(put(&store, 2).await), PostgresProblem::NotAllowed);
}

/// A lane renews all its leases with one statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_accounts_cost_less_than_a_statement_a_second() {
    if !available() {
        return;
    }
    const ACCOUNTS: i32 = 500;
    let server = Server::with_settings(&[("fsync", "off"), ("autovacuum", "off")]);
    server.psql("CREATE DATABASE idle");
    let store = options(&server.url_of("idle")).open(1).await.unwrap();
    let stores = join_all((2..=ACCOUNTS).map(|number| store.account(number))).await;
    let stores: Vec<PostgresStore> = stores.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(stores.len(), ACCOUNTS as usize - 1);
    // A connection reports its counts after a transaction, but not twice a second.
    let count = || -> u64 {
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'idle'";
        server.psql(sql).parse().unwrap()
    };
    let renewed = async |times: u64| {
        let before = store.stats().renewals;
        until("leases were renewed", async || store.stats().renewals >= before + times).await;
        tokio::time::sleep(seconds(1)).await;
    };
    // The first renewal reports the opening of the accounts.
    renewed(1).await;
    let (before, begun) = (count(), Instant::now());
    renewed(3).await;
    let (after, elapsed) = (count(), begun.elapsed());
    let statements = after - before;
    assert!(statements >= 3, "the renewals are counted: {statements}");
    assert!(statements <= elapsed.as_secs(), "{statements} statements in {elapsed:?}");
    let sql = "SELECT count(*) FROM wastore.leases WHERE expires_at > now()";
    assert_eq!(server.psql_in("idle", sql), ACCOUNTS.to_string());
    drop(stores);
    println!("{ACCOUNTS} idle accounts: {statements} statements in {elapsed:?}");
}
