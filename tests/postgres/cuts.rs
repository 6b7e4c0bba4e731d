//! A conversation that is cut at every byte, and requests that the server carries out too late.
//!
//! Every call that is acknowledged is stored, every other call is stored or not, and no older value ever replaces a
//! newer one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rand::RngExt;
use wacore::store::error::StoreError;
use wacore::store::traits::{ProtocolStore, SignalStore};
use wastore::PostgresStore;

use super::common::{
    ADDRESS, Direct, account, is_long, is_unknown, millis, number_in, options, put, seconds, until, value,
};
use super::proxy::{Direction, Mode, Proxy};
use super::server::{available, shared};

const CHAT: &str = "15550001111@s.whatsapp.net";
const GROUP_SENDER: &str = "120363000000000001@g.us:15550001111:1@s.whatsapp.net";
const BATCH: [&str; 2] = ["15550002222:1@s.whatsapp.net", "15550002222:2@s.whatsapp.net"];

/// How many conversations run at the same time.
const LINES: u64 = 3;
/// In normal runs, the opening of a store is cut at every so many bytes.
const STRIDE: u64 = if cfg!(debug_assertions) { 29 } else { 11 };

/// A store behind a proxy of its own, and a connection past the proxy.
struct Line {
    proxy: Proxy,
    direct: Direct,
    account: i32,
}

impl Line {
    async fn new() -> Self {
        let (url, account) = (shared().url(), account());
        // The schema is there.
        options(&url).open(account).await.unwrap().close().await.unwrap();
        Self { proxy: Proxy::start(shared().port()), direct: Direct::connect(&url).await, account }
    }

    async fn open(&self) -> wastore::Result<PostgresStore> {
        options(&self.proxy.url()).lease_name("bot").open(self.account).await
    }

    async fn number_of(&self, address: &str) -> Option<u32> {
        self.direct.session(self.account, address).await.map(|session| number_in(&session))
    }

    /// Every call of the conversation with one number. Returns how many outcomes are unknown.
    async fn talk(&self, store: &PostgresStore, number: u32) -> u32 {
        let session = value(number, 300);
        store.put_session(ADDRESS, &session).await.unwrap();
        assert_eq!(self.number_of(ADDRESS).await, Some(number), "it was acknowledged");
        assert_eq!(store.get_session(ADDRESS).await.unwrap().unwrap(), session);
        // Calls that wait together become one transaction of several statements.
        let row = |address: &str| (Arc::from(address), Bytes::from(session.clone()));
        let batch = BATCH.map(row);
        let key: [u8; 32] = value(number, 32).try_into().unwrap();
        let (first, second, third, fourth) = tokio::join!(
            store.put_sessions_batch(&batch),
            store.put_identity(ADDRESS, key),
            store.put_sender_key(GROUP_SENDER, &session),
            store.store_sent_message(CHAT, "3EB0", &session),
        );
        [first, second, third, fourth].into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        for address in BATCH {
            assert_eq!(self.number_of(address).await, Some(number), "it was acknowledged");
        }
        assert_eq!(store.load_identity(ADDRESS).await.unwrap(), Some(key));
        assert_eq!(store.get_sender_key(GROUP_SENDER).await.unwrap(), Some(session.clone()));
        let unknown = taken(store.take_sent_message(CHAT, "3EB0").await, number);
        // Nothing is older than that.
        assert_eq!(store.delete_expired_sent_messages(1).await.unwrap(), 0);
        unknown
    }
}

/// A message that is taken is there, or the outcome is unknown.
fn taken(result: Result<Option<Vec<u8>>, StoreError>, number: u32) -> u32 {
    match result {
        Ok(message) => assert_eq!(message.map(|message| number_in(&message)), Some(number), "the message is gone"),
        Err(error) => {
            assert!(is_unknown(&error), "{error:?}");
            return 1;
        }
    }
    0
}

/// Cuts the conversation of a store that is open at every byte, on several lines at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_survive_a_cut_at_every_byte() {
    if !available() {
        return;
    }
    let begun = Instant::now();
    let lines = (0..LINES).map(|line| {
        tokio::spawn(async move {
            let mut figures = [0; 3];
            let this = Line::new().await;
            let store = this.open().await.unwrap();
            let mut number = 0;
            for direction in [Direction::Up, Direction::Down] {
                for after in (0..).skip(line as usize).step_by(LINES as usize) {
                    number += 2;
                    // All statements are prepared on all connections before each cut.
                    this.talk(&store, number).await;
                    this.proxy.set(Mode::Cut { direction, after });
                    let unknown = this.talk(&store, number + 1).await;
                    // Nothing passes behind a cut that is as long as the conversation.
                    let is_cut = this.proxy.since_set(direction) > after;
                    figures = [figures[0] + 1, figures[1] + u64::from(unknown), figures[2].max(after)];
                    this.proxy.set(Mode::Pass);
                    if !is_cut {
                        break;
                    }
                }
            }
            assert!(store.stats().reconnects > figures[0] * 9 / 10, "{:?} after {figures:?}", store.stats());
            figures
        })
    });
    let figures = futures::future::try_join_all(lines.collect::<Vec<_>>()).await.unwrap();
    let sum = |place: usize| figures.iter().map(|line| line[place]).sum::<u64>();
    let last = figures.iter().map(|line| line[2]).max().unwrap();
    assert!(last > 500 && sum(1) > 0, "{figures:?}");
    println!("{} cuts, the last after {last} bytes, {} unknown outcomes, {:?}", sum(0), sum(1), begun.elapsed());
}

/// Cuts everything from the first byte of the first connection on: opening, preparing, calls, closing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_opens_survives_a_cut_at_any_byte() {
    if !available() {
        return;
    }
    let stride = if is_long() { 1 } else { STRIDE };
    let (cuts, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let offset = rand::rng().random_range(0..stride);
    let lines = (0..LINES).map(|line| {
        let (cuts, refused) = (cuts.clone(), refused.clone());
        tokio::spawn(async move {
            let this = Line::new().await;
            let mut number = 0;
            for direction in [Direction::Up, Direction::Down] {
                for after in (offset..).step_by(stride as usize).skip(line as usize).step_by(LINES as usize) {
                    number += 2;
                    this.proxy.set(Mode::Cut { direction, after });
                    let store = match this.open().await {
                        Ok(store) => store,
                        // It is not promised that one cut does not reach the caller of `open`.
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            this.open().await.unwrap()
                        }
                    };
                    this.talk(&store, number).await;
                    store.close().await.unwrap();
                    let is_cut = this.proxy.since_set(direction) > after;
                    this.proxy.set(Mode::Pass);
                    let again = this.open().await.unwrap();
                    assert_eq!(this.number_of(ADDRESS).await, Some(number));
                    put(&again, number + 1).await.unwrap();
                    assert_eq!(this.number_of(ADDRESS).await, Some(number + 1));
                    again.close().await.unwrap();
                    if !is_cut {
                        break;
                    }
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    futures::future::try_join_all(lines.collect::<Vec<_>>()).await.unwrap();
    let (cuts, refused) = (cuts.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    println!("{cuts} cuts of opening stores at every byte of {stride}, {refused} of them reached the caller of `open`");
    assert!(cuts > 10_000 / stride, "{cuts}");
}

/// A store whose request is held back: it has repeated the call, and written a newer value. Returns the line and the
/// epoch under which the held request was made.
async fn held_back() -> (Line, PostgresStore, i64) {
    let line = Line::new().await;
    let store = line.open().await.unwrap();
    put(&store, 1).await.unwrap();
    let epoch = epoch_of(&line).await;
    line.proxy.set(Mode::Hold);
    let writing = tokio::spawn({
        let store = store.clone();
        async move { put(&store, 2).await }
    });
    until("the request is held", async || line.proxy.held() > 300).await;
    line.proxy.cut();
    writing.await.unwrap().unwrap();
    line.proxy.set(Mode::Pass);
    put(&store, 3).await.unwrap();
    (line, store, epoch)
}

async fn epoch_of(line: &Line) -> i64 {
    let sql = format!("SELECT epoch FROM wastore.leases WHERE account = {}", line.account);
    line.direct.ask(&sql).await.parse().unwrap()
}

/// Delivers the request, and waits until the server has answered it.
async fn deliver(line: &Line) {
    line.proxy.deliver();
    // `ReadyForQuery`: Z, the length 5, and idle.
    until("the server has answered", async || line.proxy.late_answers().ends_with(b"Z\0\0\0\x05I")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_duplicate_does_not_replace_a_newer_value() {
    if !available() {
        return;
    }
    let (line, store, epoch) = held_back().await;
    assert!(epoch_of(&line).await > epoch, "a reconnect raises the epoch");
    deliver(&line).await;
    assert_eq!(line.number_of(ADDRESS).await, Some(3));
    put(&store, 4).await.unwrap();
    assert_eq!(line.number_of(ADDRESS).await, Some(4));
}

/// The epoch is the protection: with the old one put back by hand, the late request wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_raised_epoch_a_late_duplicate_wins() {
    if !available() {
        return;
    }
    let (line, store, epoch) = held_back().await;
    line.direct.run(&format!("UPDATE wastore.leases SET epoch = {epoch} WHERE account = {}", line.account)).await;
    deliver(&line).await;
    assert_eq!(line.number_of(ADDRESS).await, Some(2), "the older value has replaced the newer one");
    // The store finds out which epoch it has.
    put(&store, 4).await.unwrap();
    assert_eq!(line.number_of(ADDRESS).await, Some(4));
}

/// A request that has passed its fence stalls in the server, while its connection is cut. Returns the last number that
/// was acknowledged before the request went on, and the number that is stored in the end.
async fn stalled(schema: &str, with_key: bool) -> (u32, u32) {
    let (url, proxy, account) = (shared().url(), Proxy::start(shared().port()), account());
    let direct = Direct::connect(&url).await;
    let options = options(&proxy.url()).schema(schema).answer_timeout(seconds(1));
    let store = options.open(account).await.unwrap();
    put(&store, 1).await.unwrap();
    // The first insert after this waits for a lock that the test holds.
    let stall = format!(
        "CREATE SEQUENCE {schema}.turns;
        CREATE FUNCTION {schema}.stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('{schema}.turns') = 1 THEN PERFORM pg_advisory_xact_lock(4711, {account}); END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER stall BEFORE INSERT ON {schema}.sessions FOR EACH ROW EXECUTE FUNCTION {schema}.stall();
        SELECT pg_advisory_lock(4711, {account});"
    );
    if !with_key {
        direct.run(&format!("ALTER TABLE {schema}.leases DROP CONSTRAINT leases_account_epoch_key")).await;
    }
    direct.run(&stall).await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            put(&store, 2).await.unwrap();
            put(&store, 3).await.unwrap();
        }
    });
    let waiting =
        format!("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {account} AND NOT granted");
    until("the request stalls", async || direct.ask(&waiting).await == "1").await;
    proxy.cut();
    let mut acknowledged = 0;
    if with_key {
        // Longer than several attempts to connect again.
        tokio::time::sleep(millis(2500)).await;
        assert!(!writing.is_finished(), "the store waits for the request that stalls");
    } else {
        until("the store has gone on", async || writing.is_finished()).await;
        acknowledged = 3;
    }
    direct.run(&format!("SELECT pg_advisory_unlock(4711, {account})")).await;
    writing.await.unwrap();
    until("the request has gone on", async || direct.ask(&waiting).await == "0").await;
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE '%INSERT INTO%' AND pid <> pg_backend_pid()";
    until("no request is under way", async || direct.ask(backends).await == "0").await;
    let sql = format!("SELECT encode(record, 'hex') FROM {schema}.sessions WHERE account = {account}");
    let stored = hex::decode(direct.ask(&sql).await).unwrap();
    (acknowledged, number_in(&stored))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_waits_for_a_request_that_stalls() {
    if !available() {
        return;
    }
    assert_eq!(stalled("stalls_with_key", true).await, (0, 3));
}

/// The unique key on the epoch is the protection: without it, the reconnect does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_unique_key_a_stalled_request_wins() {
    if !available() {
        return;
    }
    assert_eq!(stalled("stalls_without_key", false).await, (3, 2), "the older value has replaced the newer one");
}
