//! Standbys: commits that wait for one, failover, and servers that are not the one before.

use std::sync::Arc;

use wacore::store::error::StoreError;
use wacore::store::traits::{ProtocolStore, SignalStore};
use wastore::postgres::PostgresProblem;
use wastore::{Error, Key, PostgresOptions, PostgresStore, Vault};

use super::common::{ADDRESS, PATIENCE, get, millis, number_in, options, own_problem, problem, put, seconds, until};
use super::failures::Load;
use super::proxy::{Mode, Proxy};
use super::server::{Server, available, shared};

/// Two servers, of which the second is a standby that the first waits for.
fn pair() -> (Server, Server) {
    let server = Server::with_settings(&[("fsync", "off")]);
    let standby = server.standby(true);
    (server, standby)
}

fn url_of_both(first: &Server, second: &Server) -> String {
    let (first, second) = (first.port(), second.port());
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?sslmode=disable")
}

/// The problem of a session that is written, after a cut that the store may not have noticed yet: the outcome of a call
/// that was sent into the cut connection is unknown.
async fn refusal(store: &PostgresStore) -> PostgresProblem {
    match problem(store.put_session("refused", b"x").await) {
        PostgresProblem::OutcomeUnknown => problem(store.put_session("refused", b"x").await),
        other => other,
    }
}

/// How many commits wait for the standby.
fn waiting(server: &Server) -> u32 {
    server.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_without_the_standby() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let store = options(&server.url()).deadline(seconds(3)).answer_timeout(seconds(1)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    standby.stop();
    let before = std::time::Instant::now();
    assert_eq!(problem(put(&store, 2).await), PostgresProblem::OutcomeUnknown);
    assert!(before.elapsed() >= seconds(3) && before.elapsed() < seconds(40), "{:?}", before.elapsed());
    // The connection was dropped, and the next one waits for the standby as well.
    assert!(put(&store, 3).await.is_err());
    assert!(store.store_sent_message("chat", "id", b"x").await.is_err());
    assert!(get(&store).await.unwrap() >= Some(1), "reads need no standby");
    // No other process gets in: its lease could be lost.
    let other = options(&server.url()).deadline(seconds(2)).answer_timeout(seconds(1));
    let refused = own_problem(other.clone().open(2).await);
    assert!(matches!(refused, PostgresProblem::Unreachable | PostgresProblem::OutcomeUnknown), "{refused:?}");
    standby.restart();
    until("the store goes on", async || put(&store, 4).await.is_ok()).await;
    assert_eq!(get(&store).await.unwrap(), Some(4));
    other.open(2).await.unwrap();
}

/// Cancels the wait of commits until the standby is back. The standby then becomes the primary.
async fn cancelled_wait(setup: &str) {
    let (server, standby) = pair();
    server.psql(setup);
    let store = options(&server.url()).answer_timeout(PATIENCE).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    standby.stop();
    let call = tokio::spawn({
        let store = store.clone();
        async move { put(&store, 2).await }
    });
    for _ in 0..4 {
        until("a commit waits for the standby", async || waiting(&server) > 0).await;
        server.psql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        tokio::time::sleep(millis(300)).await;
        assert!(!call.is_finished(), "a call was acknowledged that no standby has");
    }
    standby.restart();
    call.await.unwrap().unwrap();
    server.kill();
    standby.promote();
    let sql = "SELECT encode(record, 'hex') FROM wastore.sessions";
    assert_eq!(number_in(&hex::decode(standby.psql(sql)).unwrap()), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_for_the_standby_is_not_ok() {
    if !available() {
        return;
    }
    cancelled_wait("SELECT 1").await;
}

/// The warning is the only sign of it, so the store asks for warnings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_warnings_does_not_hide_the_cancelled_wait() {
    if !available() {
        return;
    }
    cancelled_wait("ALTER ROLE postgres SET client_min_messages = 'error'").await;
}

/// An open that is not on the standby could be undone by a failover, and its epoch would exist twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_opens_no_account() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    options(&server.url()).open(1).await.unwrap();
    standby.stop();
    let url = server.url();
    let opening = tokio::spawn(async move { options(&url).answer_timeout(PATIENCE).open(2).await });
    for _ in 0..3 {
        until("a commit waits for the standby", async || waiting(&server) > 0).await;
        server.psql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        tokio::time::sleep(millis(300)).await;
        assert!(!opening.is_finished(), "an account was opened that no standby knows of");
    }
    standby.restart();
    opening.await.unwrap().unwrap();
}

/// Without its header, nothing in a store can be read any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_of_a_vault_waits_for_the_standby() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    server.psql("ALTER ROLE postgres SET synchronous_commit = 'off'");
    let store = options(&server.url()).answer_timeout(PATIENCE).open(1).await.unwrap();
    standby.stop();
    let creating = tokio::spawn({
        let store = Arc::new(store.clone());
        async move { Vault::create(store, Key::from_bytes(&mut [7; 32])).await }
    });
    until("the header waits for the standby", async || {
        assert!(!creating.is_finished(), "the vault was created without the standby");
        waiting(&server) > 0
    })
    .await;
    standby.restart();
    creating.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_commit_got_no_answer_may_be_there() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let proxy = Proxy::start(server.port());
    let store = options(&proxy.url()).deadline(seconds(2)).answer_timeout(PATIENCE).open(1).await.unwrap();
    standby.stop();
    let store = Arc::new(store);
    let header = b"no header, so that every copy may replace it";
    let writing = tokio::spawn(async move { store.put_sender_key("wastorevaultheaderv1a", header).await });
    until("the header waits for the standby", async || waiting(&server) > 0).await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    assert_eq!(problem(writing.await.unwrap()), PostgresProblem::OutcomeUnknown);
    standby.restart();
    let stored = "SELECT count(*) FROM wastore.sender_keys";
    until("the commit is through", async || server.psql(stored) == "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_loses_nothing_that_was_acknowledged() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let store = options(&url_of_both(&server, &standby)).open(1).await.unwrap();
    let load = Load::start(&store);
    load.goes_on().await;
    server.kill();
    // Everything that was acknowledged by now must be on the standby.
    let acknowledged = load.acknowledged();
    for (task, number) in acknowledged.into_iter().enumerate() {
        let sql = format!(
            "SELECT encode(record, 'hex') FROM wastore.sessions WHERE address = '{}'::bytea",
            Load::address(task)
        );
        let stored = number_in(&hex::decode(standby.psql(&sql)).unwrap());
        assert!(stored >= number, "{number} was acknowledged, the standby has {stored}");
    }
    standby.promote();
    load.goes_on().await;
    load.end().await;
    // The old primary comes back, in front of the new one. The store does not return to it.
    server.restart();
    let before = server.psql("SELECT md5(string_agg(record, '' ORDER BY address)) FROM wastore.sessions");
    standby.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%wastore%' AND pid <> pg_backend_pid()");
    until("the store goes on", async || put(&store, u32::MAX).await.is_ok()).await;
    assert_eq!(get(&store).await.unwrap(), Some(u32::MAX));
    let after = server.psql("SELECT md5(string_agg(record, '' ORDER BY address)) FROM wastore.sessions");
    assert_eq!(before, after, "the old primary was written");
}

/// Makes a failover to a standby that lacks what `lost` wrote.
async fn asynchronous_failover(lost: impl AsyncFnOnce(&PostgresStore)) -> (PostgresStore, Server, Server) {
    let server = Server::with_settings(&[("fsync", "off")]);
    let standby = server.standby(false);
    let store = options(&url_of_both(&server, &standby)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    let caught_up = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()";
    until("the standby has everything", async || server.psql(caught_up) == "1").await;
    standby.stop();
    lost(&store).await;
    server.kill();
    standby.restart();
    standby.promote();
    (store, server, standby)
}

fn is_undone(error: &StoreError) -> bool {
    let problem = Error::downcast_ref(error);
    matches!(problem, Some(Error::Postgres { problem: PostgresProblem::AcknowledgedWriteLost, .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_acknowledged_writes_is_never_silent() {
    if !available() {
        return;
    }
    // Of a put, of a deletion, of a put behind which others change nothing.
    let cases: [&str; 4] = ["put", "delete", "mixed", "message"];
    for case in cases {
        let (store, _server, standby) = asynchronous_failover(async |store: &PostgresStore| match case {
            "put" => put(store, 2).await.unwrap(),
            "delete" => store.delete_session(ADDRESS).await.unwrap(),
            _ => {
                put(store, 2).await.unwrap();
                store.store_sent_message("chat", "id", b"relaxed").await.unwrap();
            }
        })
        .await;
        // Reading must not show the older session either.
        let error = get(&store).await.unwrap_err();
        assert!(is_undone(&error), "{case}: {error:?}");
        let error = put(&store, 3).await.unwrap_err();
        assert!(is_undone(&error), "{case}: {error:?}");
        tokio::time::timeout(seconds(1), store.lost()).await.unwrap();
        assert_eq!(store.stats().leases_lost, 1);
        // A client that links the account again may use the server.
        drop(store);
        let again = options(&standby.url()).open(1).await.unwrap();
        assert_eq!(get(&again).await.unwrap(), Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_lost_nothing_acknowledged_goes_on() {
    if !available() {
        return;
    }
    let (store, _server, _standby) = asynchronous_failover(async |store: &PostgresStore| {
        // The client fetches it again, so its loss is allowed.
        store.store_sent_message("chat", "id", b"relaxed").await.unwrap();
    })
    .await;
    assert_eq!(get(&store).await.unwrap(), Some(1));
    put(&store, 2).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(2));
}

/// A later value that got no answer may stand in the place of the last acknowledged one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_write_is_no_lost_one() {
    if !available() {
        return;
    }
    let server = Server::with_settings(&[("fsync", "off")]);
    let proxy = Proxy::start(server.port());
    let store = options(&proxy.url()).deadline(seconds(2)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    proxy.set(Mode::Swallow { then_cut: false });
    let error = tokio::spawn({
        let store = store.clone();
        async move { put(&store, 2).await }
    });
    let stored = "SELECT left(encode(record, 'hex'), 8) FROM wastore.sessions";
    until("the server has it", async || server.psql(stored) == "02000000").await;
    // The server starts again, so its content is looked at.
    server.stop();
    server.restart();
    proxy.set(Mode::Pass);
    proxy.cut();
    drop(error.await);
    until("the store goes on", async || put(&store, 3).await.is_ok()).await;
    assert_eq!(get(&store).await.unwrap(), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_waits_for_no_standby_is_refused_on_request() {
    if !available() {
        return;
    }
    let (server, _standby) = pair();
    let careful = options(&server.url()).require_synchronous_standby(true);
    careful.clone().open(1).await.unwrap().close().await.unwrap();
    server.setting("synchronous_standby_names", "");
    server.reload();
    until("the setting is in force", async || server.psql("SHOW synchronous_standby_names").is_empty()).await;
    assert_eq!(own_problem(careful.open(1).await), PostgresProblem::NotReplicated);
    options(&server.url()).open(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_or_an_older_one_is_refused() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let proxy = Proxy::start(server.port());
    let store = options(&proxy.url()).deadline(seconds(2)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    let lead_to = |port: u16| {
        proxy.lead_to(port);
        proxy.cut();
    };
    lead_to(shared().port());
    assert_eq!(refusal(&store).await, PostgresProblem::WrongServer);
    assert_eq!(problem(get(&store).await), PostgresProblem::WrongServer);
    lead_to(server.port());
    put(&store, 3).await.unwrap();
    // The standby becomes the primary, and the address leads back to the old one later.
    server.stop();
    standby.promote();
    lead_to(standby.port());
    until("the store goes on", async || put(&store, 4).await.is_ok()).await;
    assert_eq!(get(&store).await.unwrap(), Some(4));
    server.setting("synchronous_standby_names", "");
    server.restart();
    lead_to(server.port());
    assert_eq!(refusal(&store).await, PostgresProblem::WrongServer);
    assert_eq!(problem(get(&store).await), PostgresProblem::WrongServer);
    let stored = server.psql("SELECT encode(record, 'hex') FROM wastore.sessions");
    assert_eq!(number_in(&hex::decode(stored).unwrap()), 3, "one session, and it is the old one");
    lead_to(standby.port());
    put(&store, 6).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_read_only() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let store = options(&server.url()).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    let short = |url: &str| -> PostgresOptions { options(url).deadline(seconds(1)) };
    assert_eq!(own_problem(short(&standby.url()).open(2).await), PostgresProblem::ReadOnly);
    // A store that is led to a standby stays where it is writable, or fails.
    let proxy = Proxy::start(server.port());
    let other = short(&proxy.url()).open(3).await.unwrap();
    other.put_session("a", b"x").await.unwrap();
    proxy.lead_to(standby.port());
    proxy.cut();
    assert_eq!(refusal(&other).await, PostgresProblem::ReadOnly);
    assert_eq!(problem(other.get_session("a").await), PostgresProblem::ReadOnly);
    proxy.lead_to(server.port());
    other.put_session("a", b"z").await.unwrap();
    // A primary that turns read-only.
    server.setting("default_transaction_read_only", "on");
    server.reload();
    let error = other.put_session("a", b"w").await.unwrap_err();
    assert!(problem::<()>(Err(error)) != PostgresProblem::Other);
    server.setting("default_transaction_read_only", "off");
    server.reload();
    other.put_session("a", b"v").await.unwrap();
    assert_eq!(other.get_session("a").await.unwrap().unwrap(), "v");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_in_front_of_the_primary_is_skipped() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let store = options(&url_of_both(&standby, &server)).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(1));
    store.delete_expired_sent_messages(1).await.unwrap();
    // They change places.
    server.stop();
    standby.promote();
    put(&store, 2).await.unwrap();
    assert_eq!(get(&store).await.unwrap(), Some(2));
}

/// Relaxed calls do not wait for the standby, unless a durable one shares their transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_durable_calls_wait_for_the_standby() {
    if !available() {
        return;
    }
    let (server, standby) = pair();
    let proxy = Proxy::start(server.port());
    let store = options(&proxy.url()).answer_timeout(PATIENCE).open(1).await.unwrap();
    put(&store, 1).await.unwrap();
    standby.stop();
    store.store_sent_message("chat", "id", b"x").await.unwrap();
    assert_eq!(waiting(&server), 0);
    let call = tokio::spawn({
        let store = store.clone();
        async move { store.put_session("a", b"y").await }
    });
    until("a commit waits for the standby", async || waiting(&server) > 0).await;
    assert!(!call.is_finished());
    // The client side is gone; the statement still waits, and the reconnect waits behind it.
    proxy.set(Mode::Pass);
    proxy.cut();
    tokio::time::sleep(millis(300)).await;
    assert!(!call.is_finished());
    standby.restart();
    call.await.unwrap().unwrap();
    assert_eq!(store.get_session("a").await.unwrap().unwrap(), "y");
}
