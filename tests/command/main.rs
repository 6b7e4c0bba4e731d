//! The real command, on databases that upstream's own code wrote.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is a failed test")]
#![allow(clippy::print_stdout, reason = "long campaigns print their figures")]

#[cfg(unix)]
mod backups;
mod hostile;
#[cfg(target_os = "linux")]
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../services/keyring.rs"]
mod keyring;
#[cfg(target_os = "linux")]
mod less;
mod manual;
#[cfg(target_os = "linux")]
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../services/openbao.rs"]
mod openbao;
#[cfg(target_os = "linux")]
#[path = "../preload/mod.rs"]
mod preload;
#[cfg(target_os = "linux")]
mod providers;
#[cfg(target_os = "linux")]
mod reading;
mod secrets;
#[cfg(unix)]
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest")]
#[path = "../postgres/server.rs"]
mod server;
#[cfg(unix)]
mod server_kills;
#[cfg(unix)]
mod servers;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rand::RngExt;
use wacore::store::traits::{Backend, DeviceStore, SignalStore};
use wastore::maintenance::open_account;
use wastore::testing::Operation;
use wastore::vault::Argon2Cost;
use wastore::{Access, Layer, Method, Passphrase, Secret, SqliteStore, VaultOptions};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamStore;

const ADDRESS: &str = "15550001111@s.whatsapp.net";
/// The key in the file `key`, and one that is kept in reserve.
const KEY: &str = "8f1e0c5b7a94d2636e83b0f7154a29cdd8604e3b97fa125c41b6a07de9538c2f";
const SPARE_KEY: &str = "27c9b1405ed38f6a90174ce2fb85d63ab2e95f01c74d8a361fb07c92e4a8d65b";

/// A folder with secrets in files, in which the command runs.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        desk.write("old", "correct horse battery staple\n");
        desk.write("new", "quite another passphrase\n");
        desk.write("key", KEY);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        self.write_bytes(name, content.as_bytes());
    }

    fn write_bytes(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(self.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wastore"));
        command.args(arguments.split_whitespace()).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs the command without a terminal.
    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The output of a command that succeeds.
    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "wastore {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code and the error of a command that fails.
    fn fails(&self, arguments: &str) -> (i32, String) {
        let output = self.run(arguments);
        assert!(!output.status.success(), "wastore {arguments} succeeded");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Makes a database of upstream's with a record of every kind in each of these accounts.
    fn upstream(&self, name: &str, accounts: &[i32]) {
        wait(async {
            for account in accounts {
                let store = UpstreamStore::new_for_device(self.path(name).to_str().unwrap(), *account).await.unwrap();
                store.create().await.unwrap();
                for method in Method::ALL {
                    if method.access() == Access::Write && *method != Method::Create {
                        Operation::sample(*method).run(&store, 0).await.unwrap();
                    }
                }
                store.put_session(ADDRESS, format!("account {account}").as_bytes()).await.unwrap();
            }
        });
    }

    fn session(&self, name: &str, account: i32, secret: impl Into<Secret>) -> Option<String> {
        wait(async {
            let store = SqliteStore::open(self.path(name)).await.unwrap().account(account);
            let vault = open_account(&store, &VaultOptions::new(), secret).await.unwrap();
            let store: Arc<dyn Backend> = vault.layer().layer(Arc::new(store));
            let session = store.get_session(ADDRESS).await.unwrap();
            session.map(|session| String::from_utf8(session.to_vec()).unwrap())
        })
    }

    /// The files in the folder whose names match.
    fn files(&self, of: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| of(name)).collect()
    }

    /// Changes a database behind the command's back.
    fn change(&self, name: &str, sql: &str) {
        rusqlite::Connection::open(self.path(name)).unwrap().execute_batch(sql).unwrap();
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn old() -> Passphrase {
    Passphrase::new("correct horse battery staple").unwrap()
}

fn key() -> wastore::Key {
    wastore::Key::from_bytes(&mut hex::decode(KEY).unwrap().try_into().unwrap())
}

/// Waits until a process listens to `SIGTERM`.
#[cfg(target_os = "linux")]
fn wait_until_it_listens(process: u32) {
    let listens = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() >> 14 & 1 == 1
    };
    while !listens() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[cfg(unix)]
fn assert_private(path: PathBuf) {
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "{}", path.display());
}

#[test]
fn a_guard_that_would_not_be_checked_is_refused() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    std::fs::copy(desk.path("wa.db"), desk.path("copy.db")).unwrap();
    let other = "--expect-store 00000000000000000000000000000000";
    let before = desk.files(|_| true);
    for (command, guards) in [
        ("accounts delete wa.db 1 --for-good", &[other, "--context x", "--anchor ."][..]),
        ("restore copy.db wa.db", &[other, "--context x", "--anchor ."]),
        ("copy wa.db new.db", &[other, "--context x", "--anchor ."]),
        ("copy wa.db new.db --account 1 --as 1", &[other, "--anchor ."]),
        ("vacuum wa.db", &[other]),
        ("inspect wa.db", &[other]),
        ("keys list wa.db", &[other]),
        ("init new.db --new-key-file key", &[other]),
    ] {
        for guard in guards {
            let (code, error) = desk.fails(&format!("{command} {guard}"));
            assert!(code == 2 && error.contains("this command does not check"), "{command} {guard}: {code} {error}");
        }
    }
    assert_eq!(desk.files(|_| true), before);
    assert_eq!(desk.fails(&format!("rotate wa.db --key-file key {other}")).0, 5);
    desk.ok("rotate wa.db --key-file key");
}

#[test]
fn accounts_of_two_stores_move_into_one_under_one_anchor() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("anchor")).unwrap();
    for (from, number) in [("one.db", 8), ("two.db", 9)] {
        desk.ok(&format!("init {from} --new-key-file key --anchor anchor"));
        let copy = format!("copy {from} both.db --account 1 --as {number} --key-file key --anchor anchor");
        let printed = desk.ok(&copy);
        assert!(printed.contains(&format!("bound to account {number} now")), "{printed}");
    }
    desk.ok("init bots.db --new-key-file key --context bot");
    let (code, error) = desk.fails("copy bots.db both.db --account 1 --as 7 --key-file key --anchor anchor");
    assert!(code == 2 && error.contains("leave the secret out"), "{code} {error}");
    desk.ok("verify both.db --key-file key --anchor anchor");
}

#[cfg(target_os = "linux")]
#[test]
fn a_copy_is_bound_even_if_its_report_is_lost() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut copy = desk.command("copy wa.db new.db --account 1 --as 8 --key-file key");
    assert_eq!(copy.stdout(full).status().unwrap().code(), Some(1));
    desk.ok("verify new.db --key-file key");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_is_lost_is_not_work_that_is_lost() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut change = desk.command("passwd wa.db --passphrase-file old --new-passphrase-file new");
    let output = change.stdout(full).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && error.contains("the work that it would have reported is done"),
        "{error}"
    );
    desk.ok("verify wa.db --quick --passphrase-file new");
}

#[test]
fn a_bot_is_imported_checked_and_copied() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    let printed = desk.ok("import whatsapp.db wa.db --new-passphrase-file old");
    assert!(printed.contains("session                       3          0"), "{printed}");
    assert!(printed.contains("wa.db is complete, and was compared with the source record by record."), "{printed}");
    assert_eq!(desk.session("wa.db", 1, old()).as_deref(), Some("account 1"));
    assert_private(desk.path("wa.db"));

    let printed = desk.ok("verify wa.db --passphrase-file old");
    assert!(printed.ends_with("\nsound\n"), "{printed}");
    let json = desk.ok("verify wa.db --quick --json --passphrase-file old");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["account"], &json[0]["report"]["damaged_rows"]), (&1.into(), &0.into()));
    let printed = desk.ok("inspect wa.db");
    assert!(printed.contains("slot 0: passphrase (passphrase, Argon2id 65536 KiB, passes 3, lanes 4)"), "{printed}");
    let json: serde_json::Value = serde_json::from_str(&desk.ok("inspect wa.db --json")).unwrap();
    assert_eq!(json["accounts"][0]["vault"]["slots"][0]["argon2id"]["memory_kib"], 65536);
    let tables = json["tables"].as_array().unwrap();
    let rows = |name: &str| tables.iter().find(|table| table["table"] == name).unwrap()["rows"].as_u64().unwrap();
    assert_eq!((rows("sessions"), rows("identities")), (5, 0), "identities lie among the sessions");

    desk.ok("backup wa.db copy.db");
    assert_eq!(desk.session("copy.db", 1, old()).as_deref(), Some("account 1"));
    assert_private(desk.path("copy.db"));
}

#[test]
fn the_way_back_is_open() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    assert_eq!(desk.fails("export wa.db back.db --key-file key").0, 2, "only if it is said");
    let printed = desk.ok("export wa.db back.db --key-file key --plaintext");
    for line in ["of message secret: reactions", "back.db holds everything in plaintext"] {
        assert!(printed.contains(line), "{printed}");
    }
    let session = wait(async {
        let store = UpstreamStore::new(desk.path("back.db").to_str().unwrap()).await.unwrap();
        store.get_session(ADDRESS).await.unwrap().unwrap()
    });
    assert_eq!(session, &b"account 1"[..]);
    assert_private(desk.path("back.db"));
    assert_eq!(desk.fails("export wa.db back.db --key-file key --plaintext").0, 5);
}

#[test]
fn every_account_is_given_back() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1, 7]);
    desk.ok("import whatsapp.db wa.db --all-accounts --new-key-file key");
    let (code, error) = desk.fails("export wa.db back.db --key-file key --plaintext");
    assert!(code == 2 && error.contains("several accounts"), "{error}");
    let printed = desk.ok("export wa.db back.db --key-file key --plaintext --all-accounts");
    assert!(printed.contains("account 1\n") && printed.contains("account 7\n"), "{printed}");
    for account in [1, 7] {
        let session = wait(async {
            let path = desk.path("back.db");
            let store = UpstreamStore::new_for_device(path.to_str().unwrap(), account).await.unwrap();
            store.get_session(ADDRESS).await.unwrap().unwrap()
        });
        assert_eq!(session, format!("account {account}").as_bytes());
    }
    // And imported again.
    desk.ok("import back.db again.db --all-accounts --new-key-file key");
    desk.ok("verify again.db --key-file key");
}

#[test]
fn keys_are_changed() {
    let desk = Desk::new();
    let printed = desk.ok("init wa.db --new-passphrase-file old");
    assert!(printed.contains("an empty encrypted store was created"), "{printed}");
    desk.ok("passwd wa.db --passphrase-file old --new-passphrase-file new");
    assert_eq!(desk.fails("verify wa.db --passphrase-file old").0, 3);
    desk.ok("verify wa.db --passphrase-file new");

    let added = desk.ok("keys add wa.db --passphrase-file new --new-key-file key --label spare");
    assert_eq!(added, "slot 1 was added\n");
    desk.write("recovery", &desk.ok("keys add wa.db --key-file key --recovery"));
    let listed = desk.ok("keys list wa.db");
    for line in ["0     passphrase", "1     spare", "2     recovery"] {
        assert!(listed.contains(line), "{listed}");
    }
    desk.ok("verify wa.db --recovery-key-file recovery");
    assert!(desk.ok("keys remove wa.db 0 --recovery-key-file recovery").contains("slot 0 was removed"));
    assert_eq!(desk.fails("verify wa.db --passphrase-file new").0, 3);
    assert!(desk.fails("passwd wa.db --key-file key --new-passphrase-file old").1.contains("slot"));
    desk.ok("keys remove wa.db 1 --recovery-key-file recovery");
    let (code, error) = desk.fails("keys remove wa.db 2 --recovery-key-file recovery");
    assert!(code == 1 && error.contains("the last key slot cannot be removed"), "{code}: {error}");
}

#[test]
fn data_keys_are_changed_and_leaked_secrets_revoked() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1, 2]);
    desk.ok("import whatsapp.db wa.db --all-accounts --new-passphrase-file old");
    let printed = desk.ok("rotate wa.db --passphrase-file old");
    let sealed: Vec<_> = printed.lines().filter(|line| line.contains(" records were sealed again")).collect();
    assert!(sealed.len() == 2 && sealed[0].starts_with("account 1: 2"), "{printed}");
    desk.ok("rotate wa.db --account 2 --passphrase-file old");
    let epochs = || {
        let json: serde_json::Value = serde_json::from_str(&desk.ok("inspect wa.db --json")).unwrap();
        [0, 1].map(|account| json["accounts"][account]["vault"]["data_key_epochs"].to_string())
    };
    assert_eq!(epochs(), ["[2]", "[3]"]);
    assert!(desk.ok("verify wa.db --passphrase-file old").ends_with("sound\n"));

    desk.ok("keys add wa.db --account 1 --passphrase-file old --new-key-file key");
    let printed = desk.ok("revoke wa.db --passphrase-file old --new-passphrase-file new");
    for line in
        ["account 1: ", "account 2: ", "Anyone who had one of the old secrets and a copy of the store can still:"]
    {
        assert!(printed.contains(line), "{printed}");
    }
    assert_eq!(epochs(), ["[3]", "[4]"]);
    assert_eq!(desk.fails("verify wa.db --passphrase-file old").0, 3);
    assert_eq!(desk.fails("verify wa.db --account 1 --key-file key").0, 3, "every other secret is gone");
    assert_eq!(desk.fails("revoke wa.db --passphrase-file old --new-passphrase-file new").0, 3);
    assert!(desk.ok("verify wa.db --passphrase-file new").ends_with("sound\n"));
    let new = || Passphrase::new("quite another passphrase").unwrap();
    for account in [1, 2] {
        assert_eq!(desk.session("wa.db", account, new()), Some(format!("account {account}")));
        desk.ok(&format!("export wa.db back{account}.db --plaintext --account {account} --passphrase-file new"));
    }
}

#[test]
fn damaged_records_keep_the_old_key_unless_left_behind() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    desk.change("wa.db", "UPDATE prekeys SET record = CAST(substr(record, 1, 60) AS BLOB) WHERE rowid = 1");
    let (code, error) = desk.fails("rotate wa.db --key-file key");
    assert!(code == 4 && error.contains("1 records are damaged and could not be sealed"), "{code}: {error}");
    assert!(desk.ok("inspect wa.db").contains("change of data key not finished"));
    let printed = desk.ok("rotate wa.db --leave-damaged --key-file key");
    assert!(printed.contains("; 1 damaged records were left behind\n"), "{printed}");
    assert!(!desk.ok("inspect wa.db").contains("not finished"));
}

#[test]
fn keys_are_not_changed_while_another_process_has_the_store() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    let other = rusqlite::Connection::open(desk.path("wa.db")).unwrap();
    other.query_row("SELECT count(*) FROM sessions", (), |_| Ok(())).unwrap();
    desk.write("spare", SPARE_KEY);
    for command in ["rotate wa.db --key-file key", "revoke wa.db --key-file key --new-key-file spare"] {
        let (code, error) = desk.fails(command);
        assert!(code == 1 && error.contains("another process, or a backup, has the store open"), "{code}: {error}");
    }
    drop(other);
    desk.ok("rotate wa.db --key-file key");
    desk.ok("revoke wa.db --key-file key --new-key-file spare");
    desk.ok("verify wa.db --key-file spare");
}

/// A store with so many sessions that a change of its keys takes a while.
fn with_many_sessions(desk: &Desk) -> u32 {
    const SESSIONS: u32 = 4000;
    wait(async {
        let store = Arc::new(SqliteStore::open(desk.path("wa.db")).await.unwrap());
        let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| (Arc::from(format!("{number}@s")), bytes::Bytes::from(number.to_le_bytes().repeat(250))))
            .collect();
        vault.layer().layer(store).put_sessions_batch(&sessions).await.unwrap();
    });
    SESSIONS
}

/// Kills the command at random points until one run completes. Returns how often it was killed in
/// the middle.
fn kill_and_repeat(desk: &Desk, commands: [&str; 2], kills: u32, mut check: impl FnMut(u32)) -> u32 {
    let start = std::time::Instant::now();
    desk.ok(commands[0]);
    let whole = start.elapsed();
    let mut unfinished = 0;
    for number in 0..kills {
        let mut running = desk.command(commands[1]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rand::random_range(0.0..1.0)));
        running.kill().unwrap();
        running.wait().unwrap();
        let inspected = desk.ok("inspect wa.db");
        unfinished += u32::from(inspected.contains("change of data key not finished"));
        check(number);
    }
    unfinished
}

#[test]
fn a_killed_change_of_the_data_key_loses_nothing() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    let sessions = with_many_sessions(&desk);
    let kills = if std::env::var_os("WASTORE_LONG").is_some() { 1000 } else { 100 };
    let rotate = "rotate wa.db --key-file key";
    let unfinished = kill_and_repeat(&desk, [rotate, rotate], kills, |number| {
        assert_eq!(desk.session("wa.db", 1, key()).as_deref(), Some("account 1"));
        if number % 10 == 0 {
            let printed = desk.ok("verify wa.db --key-file key");
            assert!(printed.contains(&format!("session{:>24}", sessions + 3)), "{printed}");
            // Begin with a new data key.
            desk.ok(rotate);
        }
    });
    assert!(unfinished > kills / 10, "{unfinished} of {kills}");
    println!("{unfinished} of {kills} kills were in the middle of sealing");
    desk.ok(rotate);
    let printed = desk.ok("verify wa.db --key-file key");
    assert!(printed.ends_with("sound\n"), "{printed}");
    assert!(!desk.ok("inspect wa.db").contains("not finished"));
}

#[test]
fn a_killed_revocation_leaves_one_of_the_two_secrets() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    with_many_sessions(&desk);
    desk.write("spare", SPARE_KEY);
    let revoke =
        ["revoke wa.db --key-file key --new-key-file spare", "revoke wa.db --key-file spare --new-key-file key"];
    let mut current = "spare";
    let mut changed = 0;
    let start = std::time::Instant::now();
    desk.ok(revoke[0]);
    let whole = start.elapsed();
    for _ in 0..if std::env::var_os("WASTORE_LONG").is_some() { 400 } else { 40 } {
        let turn = usize::from(current == "spare");
        let other = ["spare", "key"][turn];
        let mut running = desk.command(revoke[turn]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rand::random_range(0.0..1.2)));
        running.kill().unwrap();
        running.wait().unwrap();
        let opens = |key: &str| desk.run(&format!("verify wa.db --quick --key-file {key}")).status.success();
        match (opens(current), opens(other)) {
            (true, false) => {}
            (false, true) => (current, changed) = (other, changed + 1),
            both => panic!("{both:?}"),
        }
    }
    assert!(changed > 2, "{changed}");
    desk.ok(&format!("rotate wa.db --key-file {current}"));
    assert!(desk.ok(&format!("verify wa.db --key-file {current}")).ends_with("sound\n"));
}

/// A file size limit has the same effect as a full disk.
#[cfg(unix)]
#[test]
fn without_space_nothing_is_made_and_nothing_is_lost() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    with_many_sessions(&desk);
    wait(async {
        let store = SqliteStore::open(desk.path("wa.db")).await.unwrap();
        store.checkpoint().await.unwrap();
    });
    let cramped = |blocks: u32, arguments: &str| {
        // The limit sends a signal, which ends a program that does not expect it.
        let script = format!("ulimit -f {blocks}; exec \"$0\" {arguments}");
        let mut command = Command::new("sh");
        let command = command.args(["-c", &script, env!("CARGO_BIN_EXE_wastore")]).current_dir(desk.folder.path());
        command.stdin(Stdio::null()).output().unwrap()
    };
    for (blocks, arguments) in [
        (100, "import whatsapp.db new.db --new-key-file key"),
        (2000, "rotate wa.db --key-file key"),
        (2000, "backup wa.db copy.db"),
        (2000, "export wa.db back.db --plaintext --key-file key"),
    ] {
        let output = cramped(blocks, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 5)), "{arguments}: {:?} {error}", output.status);
        assert!(error.contains("disk") || error.contains("file"), "{arguments}: {error}");
        let left = desk.files(|name| name.starts_with('.') || ["new.db", "copy.db", "back.db"].contains(&name));
        assert!(left.is_empty(), "{arguments}: {left:?}");
        assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"), "{arguments}");
    }
    desk.ok("rotate wa.db --key-file key");
    assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"));
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_named_as_the_reason() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    let folder = desk.path("sealed");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
    let mut folders = vec!["sealed"];
    if std::fs::write(folder.join("root"), "").is_ok() {
        // The user of this test may write everywhere, except where no one can.
        folders = vec!["/sys"];
    }
    for folder in folders.into_iter().filter(|folder| desk.path(folder).exists()) {
        for arguments in ["init", "import whatsapp.db", "backup wa.db", "export --plaintext wa.db"] {
            let secret = match arguments {
                "backup wa.db" => "",
                "export --plaintext wa.db" => "--key-file key",
                _ => "--new-key-file key",
            };
            let (code, error) = desk.fails(&format!("{arguments} {folder}/new.db {secret}"));
            assert!(code == 5 && error.contains("cannot use the "), "{arguments}: {code}: {error}");
        }
    }
}

#[test]
fn the_source_is_removed_if_that_is_asked_for() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1, 2]);
    desk.write("whatsapp.db.snapshot-1-x", "a snapshot");
    let content = || std::fs::read(desk.path("whatsapp.db")).unwrap();
    // In use, or not imported completely.
    assert_eq!(desk.fails("import whatsapp.db wa.db --account 1 --remove-source --new-key-file key").0, 2);
    let bot = rusqlite::Connection::open(desk.path("whatsapp.db")).unwrap();
    bot.query_row("SELECT count(*) FROM sessions", (), |_| Ok(())).unwrap();
    bot.execute("UPDATE sessions SET record = record", ()).unwrap();
    let before = content();
    let (code, error) = desk.fails("import whatsapp.db wa.db --all-accounts --remove-source --new-key-file key");
    assert!(code == 1 && error.contains("is in use, or was not closed"), "{code}: {error}");
    assert!(content() == before && !desk.path("wa.db").exists());
    drop(bot);
    // A second name for the file shows the rest of its content.
    std::fs::hard_link(desk.path("whatsapp.db"), desk.path("another name")).unwrap();
    let printed = desk.ok("import whatsapp.db wa.db --all-accounts --remove-source --new-key-file key");
    assert!(printed.contains("The source was overwritten and removed."), "{printed}");
    assert!(printed.ends_with("whatsapp.db.snapshot-1-x is still there, and readable\n"), "{printed}");
    let left = desk.files(|name| name.starts_with("whatsapp.db"));
    assert_eq!(left, ["whatsapp.db.snapshot-1-x"]);
    assert_eq!(std::fs::read(desk.path("another name")).unwrap(), b"");
    assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"));
}

#[test]
fn a_saved_header_cures_a_damaged_one() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    desk.ok("header save wa.db saved --key-file key");
    assert_private(desk.path("saved"));
    assert_eq!(desk.fails("header save wa.db saved --key-file key").0, 5, "never over another file");
    desk.change("wa.db", "UPDATE sender_keys SET record = x'00'");
    let (code, error) = desk.fails("verify wa.db --key-file key");
    assert!(code == 4 && error.contains("restore a saved header"), "{code}: {error}");
    desk.ok("header restore wa.db saved --key-file key");
    assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"));
}

#[test]
fn a_store_that_was_put_back_is_refused_until_it_is_accepted() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("anchors")).unwrap();
    desk.ok("init wa.db --new-key-file key --anchor anchors");
    desk.ok("backup wa.db copy.db");
    desk.ok("--anchor anchors keys add wa.db --key-file key --new-passphrase-file old");
    std::fs::rename(desk.path("copy.db"), desk.path("wa.db")).unwrap();
    for command in ["verify", "rotate", "header save"] {
        let file = if command == "header save" { " saved" } else { "" };
        let (code, error) = desk.fails(&format!("{command} wa.db{file} --key-file key --anchor anchors"));
        assert!(code == 4 && error.contains("put back to an earlier state"), "{command}: {code}: {error}");
    }
    let (code, error) = desk.fails("verify wa.db --key-file key --anchor elsewhere");
    assert!(code == 1 && error.contains("the rollback anchor cannot be used"), "{code}: {error}");
    desk.ok("accept-rollback wa.db --key-file key --anchor anchors");
    desk.ok("verify wa.db --key-file key --anchor anchors");
    // Without the anchor it opens as before, and the next process with the anchor notices.
    desk.ok("keys add wa.db --key-file key --new-passphrase-file old");
    desk.ok("keys remove wa.db 1 --key-file key");
    assert_eq!(desk.fails("verify wa.db --key-file key --anchor anchors").0, 4);
    assert_eq!(desk.fails("accept-rollback wa.db --key-file key").0, 1, "there is nothing to tell");
}

/// Any command line ends in an answer, and does not change the store.
#[cfg(unix)]
#[test]
fn inspect_takes_any_arguments() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    let files = || {
        let mut files = desk.files(|_| true);
        files.sort();
        files
    };
    let (before, names) = (std::fs::read(desk.path("wa.db")).unwrap(), files());
    let words = [
        "",
        "-",
        "--",
        "inspect",
        "wa.db",
        "--json",
        "--json=1",
        "--jso",
        "-h",
        "--help",
        "--anchor",
        "--anchor=x",
        "x",
        "/dev/null",
        ".",
        "..",
        "key",
        "--account",
        "-1",
        "99999999999999999999",
        "%s%n",
        "\u{202e}",
        "\n",
        "verify",
        "--version",
        "-V",
        "-vvvv",
        "--passphrase-file",
        "@key",
        "\u{0}",
    ];
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 20_000 } else { 300 };
    let mut rng: rand::rngs::StdRng = rand::make_rng();
    for _ in 0..rounds {
        let mut command = desk.command("");
        if rng.random_bool(0.9) {
            command.arg("inspect");
        }
        let mut shown = vec![];
        for _ in 0..rng.random_range(0..5) {
            let mut word = words[rng.random_range(0..words.len())].as_bytes().to_vec();
            match rng.random_range(0..4u8) {
                0 => word = (0..rng.random_range(0..300)).map(|_| rng.random_range(1..=255)).collect(),
                1 if !word.is_empty() => {
                    let at = rng.random_range(0..word.len());
                    word[at] = rng.random_range(1..=255);
                }
                _ => {}
            }
            // An argument cannot contain a NUL.
            word.retain(|byte| *byte != 0);
            command.arg(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&word));
            shown.push(String::from_utf8_lossy(&word).into_owned());
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0..=5)), "{shown:?}: {}: {error}", output.status);
        assert!(!error.contains("panicked"), "{shown:?}: {error}");
    }
    assert!(std::fs::read(desk.path("wa.db")).unwrap() == before);
    assert_eq!(files(), names, "a file was made");
    println!("{rounds} command lines");
}

#[test]
fn damage_is_listed_and_the_exit_code_says_so() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    desk.change("wa.db", "UPDATE prekeys SET record = CAST(substr(record, 1, 60) AS BLOB) WHERE rowid = 1");
    let output = desk.run("verify wa.db --key-file key");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(printed.contains("damaged: prekeys, row 1: a prekey record is damaged"), "{printed}");
    assert!(printed.ends_with("not sound\n"), "{printed}");
}

/// A page that the disk has altered.
#[test]
fn a_damaged_page_is_reported_and_not_the_end() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    wait(async {
        let store = UpstreamStore::new(desk.path("whatsapp.db").to_str().unwrap()).await.unwrap();
        let prekeys: Vec<_> = (1000..3000).map(|id| (id, bytes::Bytes::from(vec![1; 90]))).collect();
        store.store_prekeys_batch(&prekeys, true).await.unwrap();
    });
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    let connection = rusqlite::Connection::open(desk.path("wa.db")).unwrap();
    let of_the_table =
        "SELECT pageno FROM dbstat WHERE name = 'prekeys' AND pagetype = 'leaf' ORDER BY pageno LIMIT 1 OFFSET 5";
    let page: u64 = match connection.query_row(of_the_table, (), |row| row.get::<_, i64>(0)) {
        Ok(page) => page as u64,
        // The library was built without that table: most of the file is prekeys.
        Err(_) => connection.query_row("PRAGMA page_count", (), |row| row.get::<_, i64>(0)).unwrap() as u64 / 2,
    };
    drop(connection);
    let mut content = std::fs::read(desk.path("wa.db")).unwrap();
    let start = (page as usize - 1) * 8192;
    content[start..start + 8192].fill(0xff);
    std::fs::write(desk.path("wa.db"), content).unwrap();
    let output = desk.run("verify wa.db --key-file key");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("database: ") && printed.contains("session  "), "{printed}");
}

/// Accounts and rows with any number.
#[test]
fn numbers_below_one_are_numbers() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[0]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"));
    desk.ok("export wa.db back.db --plaintext --key-file key");
    let device = wait(async {
        let store = UpstreamStore::new_for_device(desk.path("back.db").to_str().unwrap(), 0).await.unwrap();
        store.load().await.unwrap()
    });
    assert!(device.is_some());
    desk.change("wa.db", "UPDATE prekeys SET rowid = -rowid, record = CAST(substr(record, 1, 60) AS BLOB)");
    assert_eq!(desk.run("verify wa.db --key-file key").status.code(), Some(4));
    desk.change("wa.db", "DELETE FROM prekeys; DELETE FROM devices");
    assert_eq!(desk.fails("export wa.db again.db --plaintext --account 0 --key-file key").0, 4, "without the device");
    assert!(!desk.path("again.db").exists());
}

#[test]
fn verifying_writes_nothing() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    let before = std::fs::read(desk.path("wa.db")).unwrap();
    desk.ok("verify wa.db --key-file key");
    desk.ok("inspect wa.db");
    assert!(std::fs::read(desk.path("wa.db")).unwrap() == before);
}

#[test]
fn accounts_are_chosen() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1, 2]);
    let (code, error) = desk.fails("import whatsapp.db wa.db --new-passphrase-file old");
    assert!(code == 5 && error.contains("the source has 2 accounts: choose one with `--account`, or all"), "{error}");
    assert_eq!(desk.fails("import whatsapp.db wa.db --account 3 --new-passphrase-file old").0, 5);
    desk.ok("import whatsapp.db second.db --account 2 --new-passphrase-file old");
    assert_eq!(desk.session("second.db", 2, old()).as_deref(), Some("account 2"));
    let printed = desk.ok("import whatsapp.db third.db --account 2 --new-passphrase-file old");
    assert!(printed.contains("account 2 opens with SqliteStore::open(..).await?.account(2)\n"), "{printed}");
    desk.ok("verify second.db --passphrase-file old");
    desk.ok("import whatsapp.db both.db --all-accounts --new-passphrase-file old");
    for account in [1, 2] {
        assert_eq!(desk.session("both.db", account, old()), Some(format!("account {account}")));
        assert!(desk.ok(&format!("verify both.db --account {account} --passphrase-file old")).ends_with("sound\n"));
    }
    let all = desk.ok("verify both.db --passphrase-file old");
    assert!(all.contains("account 1\n") && all.contains("account 2\n"), "{all}");
    let (code, error) = desk.fails("export both.db back.db --plaintext --passphrase-file old");
    assert!(code == 2 && error.contains("choose one with --account"), "{error}");
    let printed = desk.ok("export both.db back.db --plaintext --account 2 --passphrase-file old");
    assert!(printed.starts_with("account 2\n"), "{printed}");
    // A key slot of its own, and a header that is restored with the key that the first account
    // derives.
    desk.ok("header save both.db saved --account 2 --passphrase-file old");
    desk.change("both.db", "UPDATE sender_keys SET record = x'00' WHERE account = 2 AND address LIKE 'wastore%'");
    let inspected = desk.ok("inspect both.db");
    assert!(inspected.contains("account 2: the vault header is damaged"), "{inspected}");
    desk.ok("header restore both.db saved --account 2 --passphrase-file old");
    desk.ok("verify both.db --passphrase-file old");
    desk.ok("keys add both.db --account 2 --passphrase-file old --new-key-file key");
    desk.ok("verify both.db --account 2 --key-file key");
}

#[test]
fn accounts_are_listed_and_deleted() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1, 2]);
    desk.ok("import whatsapp.db wa.db --all-accounts --new-key-file key");
    assert_eq!(desk.ok("accounts list wa.db"), "account 1: has a vault\naccount 2: has a vault\n");
    assert_eq!(desk.fails("accounts delete wa.db 2").0, 2, "only if it is said");
    assert_eq!(desk.fails("accounts delete wa.db 3 --for-good").0, 5);
    let (code, error) = desk.fails("accounts delete wa.db 1 --for-good");
    assert!(code == 5 && error.contains("`keys add --account 2`"), "{code}: {error}");
    desk.ok("accounts delete wa.db 2 --for-good");
    desk.ok("shrink wa.db");
    assert_eq!(desk.ok("accounts list wa.db"), "account 1: has a vault\n");
    assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"));
}

#[test]
fn bad_input_is_refused_and_nothing_is_made() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("init own.db --new-key-file key");
    desk.write("text", &"no database at all ".repeat(200));
    let import = |source: &str, target: &str| desk.fails(&format!("import {source} {target} --new-key-file key"));
    for (source, why) in [
        ("nowhere.db", "cannot use the source file"),
        ("text", "is no SQLite database"),
        ("own.db", "is a store of wastore already"),
    ] {
        let (code, error) = import(source, "wa.db");
        assert!(code == 5 && error.contains(why), "{source}: {code}: {error}");
        assert!(!desk.path("wa.db").exists());
    }
    let (code, error) = import("whatsapp.db", "own.db");
    assert!(code == 5 && error.contains("own.db is there already"), "{error}");
    assert_eq!(import("whatsapp.db", "no/folder/wa.db").0, 5);
    assert_eq!(desk.fails("init own.db --new-key-file key").0, 5);
    for command in ["verify nowhere.db --key-file key", "inspect nowhere.db", "backup nowhere.db copy.db"] {
        let (code, error) = desk.fails(command);
        assert!(code == 5 && error.contains("nowhere.db"), "{command}: {code}: {error}");
    }
    let (code, error) = desk.fails("inspect whatsapp.db");
    assert!(code == 5 && error.contains("wastore import"), "{error}");
    assert_eq!(desk.fails("backup own.db text").0, 5);
    let left = desk.files(|name| name.starts_with('.'));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn no_output_says_what_is_in_the_store() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    for arguments in [
        "import whatsapp.db wa.db --new-passphrase-file old",
        "verify wa.db --passphrase-file old",
        "verify wa.db --passphrase-file new",
        "inspect wa.db",
        "keys list wa.db",
        "rotate wa.db --passphrase-file old",
        "revoke wa.db --passphrase-file old --new-passphrase-file new",
        "revoke wa.db --passphrase-file old --new-passphrase-file new",
    ] {
        let output = desk.run(arguments);
        let printed = [output.stdout, output.stderr].concat();
        for canary in ["15550001111", "@s.whatsapp.net", "@lid", "correct horse", "another passphrase"] {
            let found = memchr::memmem::find(&printed, canary.as_bytes());
            assert!(found.is_none(), "{canary}: {}", String::from_utf8_lossy(&printed));
        }
    }
}

#[test]
fn help_names_every_command_and_exit_code() {
    let help = Desk::new().ok("--help");
    for word in [
        "init",
        "import",
        "export",
        "passwd",
        "keys",
        "rotate",
        "revoke",
        "verify",
        "accept-rollback",
        "inspect",
        "backup",
        "restore",
        "vacuum",
        "keygen",
        "accounts",
        "shrink",
        "header",
        "completions",
        "man",
        "Exit codes:",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}
