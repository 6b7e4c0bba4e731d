//! Commands on a server, killed at random moments, and the server with them.

use std::time::{Duration, Instant};

use wastore::{Layer, PostgresOptions, VaultOptions};

use super::server::{Server, available};
use super::*;

fn kills(normal: u32, long: u32) -> u32 {
    if std::env::var_os("WASTORE_LONG").is_some_and(|value| value == "1") { long } else { normal }
}

/// A server with a vault on it, and so many sessions that a change of keys takes a while.
struct Campaign {
    desk: Desk,
    server: Server,
    url: String,
}

impl Campaign {
    const SESSIONS: usize = 1000;

    fn start() -> Self {
        let (desk, server) = (Desk::new(), Server::start());
        let url = server.url();
        desk.write("spare", SPARE_KEY);
        desk.ok(&format!("init {url} --new-key-file key"));
        wait(async {
            let store = PostgresOptions::new(&url).unwrap().open(1).await.unwrap();
            let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
            let layered = vault.layer().layer(Arc::new(store.clone()));
            let sessions: Vec<_> = (0..Self::SESSIONS)
                .map(|number| (Arc::from(format!("{number}@s")), bytes::Bytes::from(number.to_le_bytes().repeat(125))))
                .collect();
            layered.put_sessions_batch(&sessions).await.unwrap();
            store.close().await.unwrap();
        });
        Self { desk, server, url }
    }

    /// Starts a command, and kills it or the server after a random part of the time that a whole run takes.
    fn kill(&self, arguments: &str, whole: Duration) {
        let mut running = self.desk.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rand::random_range(0.0..1.1)));
        if rand::random_bool(0.3) {
            self.server.kill();
            self.server.restart();
        }
        running.kill().ok();
        running.wait().unwrap();
        // As if the lease of the killed process had run out.
        self.server.psql("UPDATE wastore.leases SET expires_at = '-infinity'");
    }

    /// How long a whole run takes.
    fn time(&self, arguments: &str) -> Duration {
        let start = Instant::now();
        self.desk.ok(arguments);
        start.elapsed()
    }

    fn verify(&self, secret: &str) {
        let printed = self.desk.ok(&format!("verify {} --key-file {secret}", self.url));
        let sessions = format!("session{:>24}", Self::SESSIONS);
        assert!(printed.contains(&sessions) && printed.ends_with("sound\n"), "{printed}");
    }
}

#[test]
fn a_killed_rotation_on_a_server_loses_nothing() {
    if !available() {
        return;
    }
    let campaign = Campaign::start();
    let rotate = format!("rotate {} --key-file key", campaign.url);
    let whole = campaign.time(&rotate);
    let (kills, mut unfinished) = (kills(100, 1000), 0);
    for number in 0..kills {
        campaign.kill(&rotate, whole);
        let inspected = campaign.desk.ok(&format!("inspect {}", campaign.url));
        unfinished += u32::from(inspected.contains("change of data key not finished"));
        if number % 10 == 9 {
            campaign.verify("key");
            campaign.desk.ok(&rotate);
        }
    }
    println!("{unfinished} of {kills} kills were in the middle of sealing");
    assert!(unfinished > kills / 10, "{unfinished} of {kills}");
    campaign.desk.ok(&rotate);
    campaign.verify("key");
    assert!(!campaign.desk.ok(&format!("inspect {}", campaign.url)).contains("not finished"));
}

#[test]
fn a_killed_revocation_on_a_server_leaves_one_secret() {
    if !available() {
        return;
    }
    let campaign = Campaign::start();
    let revoke = |from: &str, to: &str| format!("revoke {} --key-file {from} --new-key-file {to}", campaign.url);
    let whole = campaign.time(&revoke("key", "spare"));
    let (mut current, mut other, mut changed) = ("spare", "key", 0);
    for _ in 0..kills(100, 1000) {
        campaign.kill(&revoke(current, other), whole);
        let opens = |secret: &str| {
            let verify = format!("verify {} --quick --key-file {secret}", campaign.url);
            campaign.desk.run(&verify).status.success()
        };
        match (opens(current), opens(other)) {
            (true, false) => {}
            (false, true) => {
                (current, other) = (other, current);
                changed += 1;
            }
            both => panic!("{both:?}"),
        }
    }
    println!("{changed} revocations got through before the kill");
    assert!(changed > 2, "{changed}");
    campaign.desk.ok(&format!("rotate {} --key-file {current}", campaign.url));
    campaign.verify(current);
}

#[test]
fn a_killed_copy_goes_on_in_both_directions() {
    if !available() {
        return;
    }
    let campaign = Campaign::start();
    let mut killed = 0;
    for round in 0..kills(2, 30) {
        let (file, back) = (format!("to{round}.db"), format!("copy to{round}.db {}", campaign.url));
        for arguments in [format!("copy {} {file}", campaign.url), back] {
            let start = Instant::now();
            loop {
                let mut running = campaign.desk.command(&arguments);
                let mut running = running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
                // Each attempt gets a little further.
                let time = Duration::from_millis(rand::random_range(5..120)) + start.elapsed().mul_f64(0.02);
                let deadline = Instant::now() + time;
                while running.try_wait().unwrap().is_none() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let ended = running.try_wait().unwrap();
                running.kill().ok();
                let output = running.wait_with_output().unwrap();
                campaign.server.psql("UPDATE wastore.leases SET expires_at = '-infinity'");
                if ended.is_some_and(|status| status.success()) {
                    break;
                }
                let error = String::from_utf8_lossy(&output.stderr);
                // Killed between the end of the copy and its report.
                if error.contains("moved to another store") {
                    break;
                }
                assert!(ended.is_none(), "{arguments}: {error}");
                killed += 1;
            }
            // The account is gone where it was, so that the next round has room for it.
            let from = arguments.split(' ').nth(1).unwrap();
            let refused = campaign.desk.fails(&format!("rotate {from} --key-file key"));
            assert!(refused.1.contains("moved to another store"), "{refused:?}");
            campaign.desk.ok(&format!("accounts delete {from} 1 --for-good"));
        }
        campaign.verify("key");
    }
    println!("{killed} kills");
    assert!(killed > 5, "{killed}");
}
