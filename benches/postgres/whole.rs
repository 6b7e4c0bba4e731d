//! Measurements of whole stores: large tables, idle accounts, and a failover.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use wacore::store::traits::SignalStore;
use wastore::{PostgresOptions, PostgresStore};

use crate::calls::micros;
use crate::report::{Data, WHOLE};
use crate::server::Server;

const FEW: &str = "50 000 sessions";
const MANY: &str = "500 000 sessions";

pub(crate) fn measure(runtime: &Runtime, data: &mut Data, rounds: u64) {
    signal_state(runtime, data, rounds);
    idle_accounts(runtime, data);
    for round in 1..=5 {
        eprint!("\r{:<70}", format!("failover {round} of 5"));
        failover(runtime, data);
    }
    eprintln!();
}

/// Whether a user is known, among few and among many. Each table has an index of its own.
fn signal_state(runtime: &Runtime, data: &mut Data, rounds: u64) {
    const CALLS: usize = 300;
    eprintln!("filling 550 000 sessions");
    let server = Server::with_settings(&[("shared_buffers", "512MB"), ("max_wal_size", "4GB")]);
    let mut stores = vec![];
    for (schema, rows, name) in [("few", 50_000, FEW), ("many", 500_000, MANY)] {
        let options = PostgresOptions::new(&server.url()).unwrap().schema(schema);
        let store = runtime.block_on(options.open(1)).unwrap();
        server.psql(&format!(
            "INSERT INTO {schema}.sessions SELECT 1,
                convert_to('1555' || lpad(n::text, 7, '0') || ':7@s.whatsapp.net', 'UTF8'), decode(repeat('5a', 200), 'hex')
            FROM generate_series(0, {rows} - 1) AS n"
        ));
        server.psql(&format!("VACUUM ANALYZE {schema}.sessions"));
        stores.push((store, rows, name));
    }
    for round in 0..rounds {
        eprint!("\r{:<70}", format!("signal state: round {} of {rounds}", round + 1));
        for (line, present) in [("has_signal_state_for_user, hit", true), ("has_signal_state_for_user, miss", false)] {
            for (store, rows, name) in &stores {
                let number = |call: usize| (call * 7919 + round as usize * 104_729) % rows;
                let users: Vec<String> = (0..CALLS)
                    .map(|call| format!("{}{:07}", if present { 1555 } else { 1666 }, number(call)))
                    .collect();
                let store = store.clone();
                let calls = runtime.spawn(async move {
                    let mut latencies = vec![];
                    for user in users {
                        let start = Instant::now();
                        assert_eq!(store.has_signal_state_for_user(&user).await.unwrap(), present);
                        latencies.push(micros(start.elapsed()));
                    }
                    latencies.sort_by(f64::total_cmp);
                    latencies
                });
                let latencies = runtime.block_on(calls).unwrap();
                data.add((WHOLE, line, name), latencies[CALLS / 2], &latencies);
            }
        }
    }
    eprintln!();
    close(runtime, stores.into_iter().map(|(store, ..)| store));
}

/// The statements of 500 accounts that do nothing, as the server logs them.
fn idle_accounts(runtime: &Runtime, data: &mut Data) {
    const TIME: Duration = Duration::from_secs(20);
    eprintln!("500 idle accounts");
    let server = Server::start();
    server.psql("CREATE DATABASE idle");
    server.psql("ALTER DATABASE idle SET log_statement = 'all'");
    let stores = runtime.block_on(async {
        let first = PostgresOptions::new(&server.url_of("idle")).unwrap().open(1).await.unwrap();
        let mut stores = vec![first];
        for account in 2..=500 {
            stores.push(stores[0].account(account).await.unwrap());
        }
        stores
    });
    let statements =
        || server.log().lines().filter(|line| line.contains("execute") || line.contains("statement:")).count();
    std::thread::sleep(Duration::from_millis(500));
    let before = statements();
    std::thread::sleep(TIME);
    let each_second = (statements() - before) as f64 / TIME.as_secs_f64();
    data.add((WHOLE, "statements a second of 500 idle accounts", "PostgresStore"), each_second, &[]);
    close(runtime, stores);
}

/// How long writes stand still when the primary is killed and its synchronous standby is promoted.
fn failover(runtime: &Runtime, data: &mut Data) {
    let primary = Server::start();
    let standby = primary.standby(true);
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable&target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let store = runtime.block_on(PostgresOptions::new(&url).unwrap().open(1)).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let writes = {
        let (store, ended) = (store.clone(), ended.clone());
        runtime.spawn(async move {
            let mut answered = vec![];
            while !ended.load(Ordering::Relaxed) {
                store.put_session("a", b"a session").await.unwrap();
                answered.push(Instant::now());
            }
            answered
        })
    };
    std::thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    primary.kill();
    standby.promote();
    let promoted = killed.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    ended.store(true, Ordering::Relaxed);
    let answered = runtime.block_on(writes).unwrap();
    let longest = answered.windows(2).map(|two| two[1] - two[0]).max().unwrap();
    data.add((WHOLE, "writes stand still in a failover, s", "PostgresStore"), longest.as_secs_f64(), &[]);
    data.add((WHOLE, "the kill and the promotion by themselves, s", "PostgresStore"), promoted.as_secs_f64(), &[]);
    close(runtime, [store]);
}

fn close(runtime: &Runtime, stores: impl IntoIterator<Item = PostgresStore>) {
    for store in stores {
        runtime.block_on(store.close()).unwrap();
    }
}
