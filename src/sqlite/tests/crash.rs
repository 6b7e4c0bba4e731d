//! Killed processes lose nothing that was acknowledged.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::thread;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use wacore::store::traits::{ProtocolStore, SignalStore};

use super::*;

const KILLS: u64 = 200;
const TASKS: usize = 6;

/// One file goes through all kills, so that every start recovers the state that the previous
/// process left.
#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let runtime = single_threaded();
    let mut rng: StdRng = rand::make_rng();
    let kills = if std::env::var_os("WASTORE_LONG").is_some() { 5 * KILLS } else { KILLS };
    let (mut acknowledged, mut highest) = (0usize, HashMap::<String, u32>::new());
    for kill in 0..kills {
        let mut running =
            child("crash::write_until_killed", "write", &path).env("WASTORE_NUMBER", kill.to_string()).spawn().unwrap();
        let lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let (first_line, reader) = {
            let (sender, receiver) = std::sync::mpsc::channel();
            let reader = thread::spawn(move || {
                let mut heard = HashMap::<String, u32>::new();
                // The last line may be torn. It has no full stop then.
                for line in lines.map_while(Result::ok) {
                    // The test harness writes the beginning of the first line.
                    let Some(line) = line.strip_suffix('.') else { continue };
                    let mut words = line.rsplit(' ');
                    let (Some(number), Some(task)) = (words.next(), words.next()) else { continue };
                    let _ = sender.send(());
                    heard.insert(task.to_owned(), number.parse().unwrap());
                }
                heard
            });
            (receiver, reader)
        };
        // Before the first acknowledgement as well as after it.
        if rng.random_bool(0.9) {
            first_line.recv().unwrap();
        }
        thread::sleep(Duration::from_micros(rng.random_range(0..25_000)));
        running.kill().unwrap();
        running.wait().unwrap();
        let heard = reader.join().unwrap();
        acknowledged += heard.len();
        for (task, number) in heard {
            let seen = highest.entry(task).or_default();
            *seen = number.max(*seen);
        }
        runtime.block_on(async {
            let store = config().open(&path).await.unwrap();
            for (task, &number) in &highest {
                let stored =
                    |value: Option<Bytes>| value.map(|value| u32::from_le_bytes(value[..4].try_into().unwrap()));
                let left = stored(store.get_session(&format!("{task} left")).await.unwrap());
                let right = stored(store.get_session(&format!("{task} right")).await.unwrap());
                assert!(
                    left >= Some(number),
                    "kill {kill}, task {task}: {number} was acknowledged, {left:?} is stored"
                );
                assert_eq!(left, right, "a batch is stored as a whole");
                let sent = store.take_sent_message("chat", &format!("{task} {number}")).await.unwrap();
                if let Some(sent) = sent {
                    store.store_sent_message("chat", &format!("{task} {number}"), &sent).await.unwrap();
                } else {
                    panic!("kill {kill}, task {task}: sent message {number} was acknowledged and is gone");
                }
            }
            if kill % 20 == 0 {
                assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
            }
        });
    }
    assert!(acknowledged as u64 > kills, "{acknowledged}");
}

#[test]
fn write_until_killed() {
    let Some(path) = errand("write") else { return };
    let kill: u32 = std::env::var("WASTORE_NUMBER").unwrap().parse().unwrap();
    let durability = [Durability::Process, Durability::SignalState, Durability::Full][kill as usize % 3];
    let runtime = if kill.is_multiple_of(2) {
        single_threaded()
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    };
    runtime.block_on(async {
        let store = config().durability(durability).open(&path).await.unwrap();
        let tasks = (0..TASKS).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in kill * 100_000.. {
                    let value = Bytes::from([&number.to_le_bytes()[..], &[7; 1400]].concat());
                    let row = |side| (Arc::from(format!("{task} {side}")), value.clone());
                    store.put_sessions_batch(&[row("left"), row("right")]).await.unwrap();
                    store.store_sent_message("chat", &format!("{task} {number}"), b"x").await.unwrap();
                    let line = format!("{task} {number}.\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}
