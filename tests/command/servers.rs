//! The command takes the URL of a server wherever it takes a path.

use std::process::{Child, Stdio};

use wastore::maintenance::open_account;
use wastore::{Layer, PostgresOptions, SqliteStore, VaultOptions};

use super::server::{available, shared};
use super::*;

/// A database that no other test has.
fn database(name: &str) -> String {
    shared().psql(&format!("CREATE DATABASE {name}"));
    shared().url_of(name)
}

fn session_on(url: &str, account: i32, secret: impl Into<Secret>) -> String {
    wait(async {
        let store = PostgresOptions::new(url).unwrap().open(account).await.unwrap();
        let vault = open_account(&store, &VaultOptions::new(), secret).await.unwrap();
        let layered = vault.layer().layer(Arc::new(store.clone()));
        let session = layered.get_session(ADDRESS).await.unwrap().unwrap();
        store.close().await.unwrap();
        String::from_utf8(session.to_vec()).unwrap()
    })
}

#[test]
fn a_bot_moves_to_a_server_and_is_kept_there() {
    if !available() {
        return;
    }
    let (desk, url) = (Desk::new(), database("command_kept"));
    desk.write("spare", SPARE_KEY);
    desk.upstream("whatsapp.db", &[1, 2]);
    let printed = desk.ok(&format!("import whatsapp.db {url} --all-accounts --new-key-file key"));
    assert!(printed.contains("postgres(command_kept.wastore) is complete"), "{printed}");
    assert!(printed.contains("account 2 opens with PostgresOptions::new(..)?.open(2).await?"), "{printed}");
    assert_eq!(session_on(&url, 1, key()), "account 1");
    assert_eq!(session_on(&url, 2, key()), "account 2");
    let (code, error) = desk.fails(&format!("import whatsapp.db {url} --all-accounts --new-key-file key"));
    assert!(code == 1 && error.contains("accounts delete"), "{code} {error}");

    let printed = desk.ok(&format!("verify {url} --key-file key"));
    assert!(printed.starts_with("account 1\n") && printed.ends_with("\nsound\n"), "{printed}");
    let json: serde_json::Value = serde_json::from_str(&desk.ok(&format!("inspect {url} --json"))).unwrap();
    assert_eq!(json["accounts"].as_array().unwrap().len(), 2);
    assert_eq!(desk.ok(&format!("accounts list {url}")), "account 1: has a vault\naccount 2: has a vault\n");
    desk.ok(&format!("keys add {url} --account 1 --key-file key --new-key-file spare --label spare"));
    assert!(desk.ok(&format!("keys list {url} --account 1")).contains("spare"));
    desk.ok(&format!("keys remove {url} --account 1 --key-file key 1"));
    desk.ok(&format!("header save {url} --account 1 --key-file key header"));
    desk.ok(&format!("header restore {url} --account 1 --key-file key header"));
    let printed = desk.ok(&format!("rotate {url} --key-file key"));
    assert!(printed.contains("account 2: ") && printed.contains("standbys and archives"), "{printed}");
    let printed = desk.ok(&format!("revoke {url} --key-file key --new-key-file spare"));
    assert!(printed.contains("account 1: ") && printed.contains("account 2: "), "{printed}");
    assert_eq!(desk.fails(&format!("verify {url} --key-file key")).0, 3);
    let printed = desk.ok(&format!("verify {url} --key-file spare"));
    assert!(printed.ends_with("\nsound\n"), "{printed}");
    let spare = || wastore::Key::from_bytes(&mut hex::decode(SPARE_KEY).unwrap().try_into().unwrap());
    assert_eq!(session_on(&url, 2, spare()), "account 2");

    desk.ok(&format!("export {url} back.db --account 1 --key-file spare --plaintext"));
    desk.ok(&format!("forget {url} --account 1 --key-file spare {ADDRESS}"));
    let refused = desk.fails(&format!("accounts delete {url} 1 --for-good"));
    assert!(refused.1.contains("account 2 opens with a key of account 1"), "{refused:?}");
    desk.ok(&format!("accounts delete {url} 2 --for-good"));
    assert_eq!(desk.ok(&format!("accounts list {url}")), "account 1: has a vault\n");
}

#[test]
fn accounts_are_copied_there_and_back() {
    if !available() {
        return;
    }
    let (desk, url) = (Desk::new(), database("command_copied"));
    desk.upstream("whatsapp.db", &[1, 2]);
    desk.ok("import whatsapp.db wa.db --all-accounts --new-key-file key");
    let printed = desk.ok(&format!("copy wa.db {url}"));
    assert!(printed.contains("account 2: ") && printed.contains("the source does not open any more"), "{printed}");
    assert_eq!(session_on(&url, 2, key()), "account 2");
    // Reading a source that is closed off is allowed, using it is not.
    desk.ok("verify wa.db --account 1 --key-file key");
    let (code, error) = desk.fails("rotate wa.db --account 1 --key-file key");
    assert!(code == 5 && error.contains("moved to another store"), "{code} {error}");
    // It is complete, so that one of several accounts does not stop the others.
    desk.ok(&format!("copy wa.db {url}"));

    let json = desk.ok(&format!("copy {url} back.db --account 2 --json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["account"], &json[0]["is_source_kept"]), (&2.into(), &false.into()));
    assert!(json[0]["rows"].as_u64().unwrap() > 20, "{json}");
    let (code, error) = desk.fails(&format!("keys add {url} --account 2 --key-file key --new-key-file key"));
    assert!(code == 5 && error.contains("account 2 moved to another store"), "{code} {error}");
    let printed = desk.ok(&format!("copy {url} kept.db --account 1 --as 7 --keep-source"));
    assert!(printed.contains("opens with the context `account 1`"), "{printed}");
    // Its key is that of account 1, which is not there.
    assert_eq!(desk.fails("verify back.db --account 2 --key-file key").0, 3);
    assert_eq!(desk.ok("accounts list back.db"), "account 2: has a vault\n");
    let session = wait(async {
        let store = SqliteStore::open(desk.path("kept.db")).await.unwrap().account(7);
        let options = VaultOptions::new().context(b"account 1");
        let vault = options.open(&store, key()).await.unwrap();
        vault.layer().layer(Arc::new(store)).get_session(ADDRESS).await.unwrap().unwrap()
    });
    assert_eq!(session, &b"account 1"[..]);
    // A secret that does not open it, or none that is used, moves nothing.
    for (arguments, says) in [
        ("--account 1 --as 8 --passphrase-file old", (3, "wrong secret")),
        ("--account 1 --key-file key", (2, "only needs a secret")),
        ("--account 1 --as 1 --key-file key", (2, "only needs a secret")),
        ("--account 1 --as 8 --key-file key --context text", (2, "--context")),
        ("--account 5 --as 8", (5, "no account 5")),
    ] {
        let (code, error) = desk.fails(&format!("copy {url} bound.db {arguments}"));
        assert!(code == says.0 && error.contains(says.1), "{arguments}: {code} {error}");
        assert!(!desk.path("bound.db").exists(), "{arguments}");
    }
    // With the secret, the vault is bound to the new number.
    let again = || desk.ok(&format!("copy {url} bound.db --account 1 --as 8 --key-file key"));
    assert_eq!((again(), again()).1.matches("is bound to account 8 now").count(), 1);
    assert!(desk.ok("verify bound.db --key-file key").ends_with("sound\n"));
    desk.ok("accounts reclaim wa.db 2 --other-is-gone");
    assert_eq!(desk.session("wa.db", 2, key()).as_deref(), Some("account 2"));
}

#[test]
fn commands_for_files_say_what_to_do_instead() {
    if !available() {
        return;
    }
    let (desk, url) = (Desk::new(), database("command_refused"));
    desk.ok(&format!("init {url} --new-key-file key"));
    assert_eq!(desk.fails(&format!("init {url} --new-key-file key")).0, 5);
    desk.ok(&format!("init {url} --account 4 --new-key-file key"));
    for arguments in ["vacuum {}", "shrink {}", "backup {} copy.db", "prune-snapshots {} --keep 3"] {
        let (code, error) = desk.fails(&arguments.replace("{}", &url));
        assert!(code == 5 && error.contains("works on a file, not on a server: "), "{code} {error}");
    }
    // Neither the host nor a password is printed.
    let wrong = url.replacen("postgres@", "postgres:hunter2@", 1).replace("command_refused", "no_such_database");
    let (code, error) = desk.fails(&format!("inspect {wrong}"));
    assert!(code == 1 && !error.contains("hunter2") && !error.contains("127.0.0.1"), "{code} {error}");
    let (code, error) = desk.fails("inspect postgres://db.example.com/wa?sslmode=disable");
    assert!(code == 1 && error.contains("sslmode=disable for another machine"), "{code} {error}");
}

/// The lease is free as soon as a command ends, however it ends.
#[test]
fn a_bot_need_not_wait_for_a_command() {
    if !available() {
        return;
    }
    let (desk, url) = (Desk::new(), database("command_leases"));
    desk.ok(&format!("init {url} --new-key-file key"));
    let opens_at_once = || {
        wait(async {
            let options = PostgresOptions::new(&url).unwrap().lease_wait(std::time::Duration::from_secs(3));
            options.open(1).await.unwrap().close().await.unwrap();
        });
    };
    desk.ok(&format!("rotate {url} --key-file key"));
    opens_at_once();
    wait(async {
        let store = PostgresOptions::new(&url).unwrap().open(1).await.unwrap();
        let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
        let layered = vault.layer().layer(Arc::new(store.clone()));
        for number in 0..3000 {
            layered.store_prekey(number, &[7; 100], false).await.unwrap();
        }
        store.close().await.unwrap();
    });
    let mut rotation = desk.command(&format!("rotate {url} --key-file key"));
    let mut rotation: Child = rotation.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let holds = "SELECT count(*) FROM wastore.leases WHERE expires_at > now()";
    while shared().psql_in("command_leases", holds) == "0" {
        assert!(rotation.try_wait().unwrap().is_none(), "the rotation ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let process = rustix::process::Pid::from_child(&rotation);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(rotation.wait().unwrap().code(), Some(130));
    opens_at_once();
    desk.ok(&format!("rotate {url} --key-file key"));
}
