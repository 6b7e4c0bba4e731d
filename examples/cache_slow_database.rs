//! The effect of the cache on a bot whose database is across a network.
//!
//! Does the same work twice over a store whose calls take 1 to 5 ms: once without a cache, once under one.
//!
//! ```sh
//! cargo run --release --example cache_slow_database --features testing
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wacore::store::InMemoryBackend;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, Backend, LidPnMappingEntry, MsgSecretEntry, TcTokenEntry};
use wastore::testing::{Effect, Fault, When};
use wastore::{CacheLayer, Method, Stack};

const CONTACTS: u64 = 200;
const MESSAGES: u64 = 1500;

/// The number of calls of each method, and their total time.
type Times = BTreeMap<&'static str, (u32, Duration)>;

#[tokio::main]
async fn main() -> Result<()> {
    let (plain, _) = run(None).await?;
    let cache = CacheLayer::new(1 << 20);
    // Keeps the store, because its cached values are dropped with it.
    let (cached, _store) = run(Some(&cache)).await?;

    println!("{:<26} {:>6} {:>14} {:>14}", "method", "calls", "without cache", "with cache");
    for (method, (calls, without)) in &plain {
        let with = cached.get(method).map_or(Duration::ZERO, |(_, time)| *time);
        println!("{method:<26} {calls:>6} {:>14} {:>14}", each(*calls, *without), each(*calls, with));
    }
    let sum = |times: &Times| times.values().map(|(_, time)| *time).sum::<Duration>();
    println!("{:<26} {:>6} {:>12.1} s {:>12.1} s\n", "all", "", sum(&plain).as_secs_f64(), sum(&cached).as_secs_f64());
    println!("{}", cache.stats());
    Ok(())
}

fn each(calls: u32, time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6 / f64::from(calls.max(1)))
}

/// Sends messages and reacts to some, like a client.
async fn run(cache: Option<&CacheLayer>) -> Result<(Times, Arc<dyn Backend>)> {
    let database = Arc::new(InMemoryBackend::new());
    fill(&*database).await?;

    // Simulates a network: each method has its own latency between 1 and 5 ms.
    let network = Fault::new();
    for (number, method) in Method::ALL.iter().enumerate() {
        let latency = Duration::from_micros(1000 + number as u64 * 397 % 4000);
        network.inject(When::Method(*method), Effect::Delay(latency));
    }
    let stack = Stack::new(database).layer(network);
    let store = match cache {
        Some(cache) => stack.layer(cache.clone()).into_backend(),
        None => stack.into_backend(),
    };

    let mut times = Times::new();
    for message in 0..MESSAGES {
        // A few contacts receive most of the messages.
        let contact = (message * message * 7 + message) % CONTACTS * ((message % 5) / 2) % CONTACTS;
        let jid = format!("{}@lid", 100_000_000_000_000 + contact);
        let id = format!("3EB0{message:016X}");
        timed(&mut times, "get_tc_token", store.get_tc_token(&jid)).await?;
        timed(&mut times, "store_sent_message", store.store_sent_message(&jid, &id, &[1; 200])).await?;
        if message % 3 == 0 {
            let parent = format!("parent {}", message % 40);
            timed(&mut times, "get_msg_secret_with_ts", store.get_msg_secret_with_ts(&jid, &jid, &parent)).await?;
            timed(&mut times, "get_lid_mapping", store.get_lid_mapping(&jid)).await?;
        }
        if message % 20 == 0 {
            timed(&mut times, "get_latest_sync_key_id", store.get_latest_sync_key_id()).await?;
            timed(&mut times, "get_sync_key", store.get_sync_key(&[0, 1, 0, 0, 0, 1])).await?;
            timed(&mut times, "get_version", store.get_version("regular")).await?;
        }
        if message % 50 == 0 {
            let touch = store.touch_tc_token_sender_timestamp(&jid, 1_700_000_000 + message as i64);
            timed(&mut times, "touch_tc_token_sender_…", touch).await?;
        }
    }
    Ok((times, store))
}

async fn timed<T>(times: &mut Times, name: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let start = Instant::now();
    let result = call.await;
    let (calls, time) = times.entry(name).or_default();
    *calls += 1;
    *time += start.elapsed();
    result
}

/// The content of the database before the start.
async fn fill(store: &dyn Backend) -> Result<()> {
    let key = AppStateSyncKey { key_data: vec![1; 32], fingerprint: vec![], timestamp: 1_700_000_000 };
    store.set_sync_key(&[0, 1, 0, 0, 0, 1], key).await?;
    for contact in 0..CONTACTS {
        let lid = format!("{}@lid", 100_000_000_000_000 + contact);
        let token = TcTokenEntry { token: vec![7; 40], token_timestamp: 1_700_000_000, sender_timestamp: None };
        store.put_tc_token(&lid, &token).await?;
        let mapping = LidPnMappingEntry {
            lid: lid.clone(),
            phone_number: format!("1555{contact:07}"),
            created_at: 1_700_000_000,
            updated_at: 1_700_000_000,
            learning_source: "usync".to_owned(),
        };
        store.put_lid_mapping(&mapping).await?;
        let secret = |parent| MsgSecretEntry {
            chat: lid.as_str().into(),
            sender: lid.as_str().into(),
            msg_id: format!("parent {parent}").into(),
            secret: [3; 32],
            expires_at: 0,
            message_ts: 1_700_000_000,
        };
        store.put_msg_secrets((0..40).map(secret).collect()).await?;
    }
    Ok(())
}
