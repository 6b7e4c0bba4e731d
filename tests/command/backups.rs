//! Backups, and restoring them.

use super::*;
use wastore::maintenance::open_account;

fn sessions(desk: &Desk, store: &str) -> usize {
    let printed = desk.ok(&format!("verify {store} --key-file key"));
    let line = printed.lines().find(|line| line.starts_with("session ")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Opens the store as a bot does.
async fn bot(desk: &Desk) -> Arc<dyn Backend> {
    let store = Arc::new(SqliteStore::open(desk.path("wa.db")).await.unwrap());
    let vault = open_account(&store, &VaultOptions::new(), key()).await.unwrap();
    vault.layer().layer(store)
}

fn put(desk: &Desk, from: u32, count: u32) {
    wait(async {
        let rows: Vec<_> = (from..from + count)
            .map(|number| (Arc::from(format!("{number}@s")), bytes::Bytes::from(vec![number as u8; 500])))
            .collect();
        bot(desk).await.put_sessions_batch(&rows).await.unwrap();
    });
}

/// Leaves the three files of a killed bot, with a number of sessions in the log.
fn kill_a_bot_that_puts(desk: &Desk, from: u32, count: u32) {
    wait(async {
        let layered = bot(desk).await;
        for number in from..from + count {
            layered.put_session(&format!("{number}@s"), &[number as u8; 500]).await.unwrap();
        }
        std::fs::create_dir(desk.path("killed")).unwrap();
        for ending in ["", "-wal", "-shm"] {
            std::fs::copy(desk.path(&format!("wa.db{ending}")), desk.path(&format!("killed/wa.db{ending}"))).unwrap();
        }
    });
    for ending in ["", "-wal", "-shm"] {
        std::fs::rename(desk.path(&format!("killed/wa.db{ending}")), desk.path(&format!("wa.db{ending}"))).unwrap();
    }
    std::fs::remove_dir(desk.path("killed")).unwrap();
}

#[test]
fn a_backup_is_put_back_whatever_lies_beside_the_store() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 100);
    desk.ok("backup wa.db copy.db");
    let copy = std::fs::read(desk.path("copy.db")).unwrap();
    for (number, frames) in [1, 7, 60].into_iter().enumerate() {
        kill_a_bot_that_puts(&desk, 1000, frames);
        assert!(desk.path("wa.db-wal").metadata().unwrap().len() > 0);
        let printed = desk.ok("restore copy.db wa.db");
        let aside = format!("wa.db.before-restore-{}", number + 1);
        assert!(printed.contains("the previous store is now ") && printed.contains(&aside), "{printed}");
        assert_eq!(desk.files(|name| ["wa.db-wal", "wa.db-shm"].contains(&name)), Vec::<String>::new());
        assert_eq!(sessions(&desk, "wa.db"), 100);
        // The previous store has lost nothing.
        assert_eq!(sessions(&desk, &aside), 100 + frames as usize);
    }
    std::fs::write(desk.path("wa.db-journal"), "of another").unwrap();
    desk.ok("restore copy.db wa.db");
    assert_eq!(std::fs::read(desk.path("wa.db.before-restore-4-journal")).unwrap(), b"of another");
    // A missing or damaged store.
    std::fs::remove_file(desk.path("wa.db")).unwrap();
    desk.ok("restore copy.db wa.db");
    std::fs::write(desk.path("wa.db"), [7; 10_000]).unwrap();
    desk.ok("restore copy.db wa.db");
    assert_eq!(sessions(&desk, "wa.db"), 100);
    assert!(std::fs::read(desk.path("copy.db")).unwrap() == copy, "the backup was changed");
    assert_private(desk.path("wa.db"));
}

/// A backup was copied over the store by hand, beside the log of a killed bot.
#[test]
fn a_log_of_another_database_is_found_before_it_is_read() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 100);
    desk.ok("backup wa.db copy.db");
    for frames in [1, 7, 60] {
        kill_a_bot_that_puts(&desk, 1000, frames);
        std::fs::copy(desk.path("copy.db"), desk.path("wa.db")).unwrap();
        let before = ["wa.db", "wa.db-wal"].map(|name| std::fs::read(desk.path(name)).unwrap());
        for arguments in [
            "verify wa.db --key-file key",
            "inspect wa.db",
            "keys list wa.db",
            "backup wa.db new.db",
            "rotate wa.db --key-file key",
            "vacuum wa.db",
            "restore wa.db new.db",
        ] {
            let (code, error) = desk.fails(arguments);
            assert!(
                code == 5 && error.contains("log (-wal)") && error.contains("restore"),
                "{arguments}: {code}: {error}"
            );
        }
        let opened = wait(SqliteStore::open(desk.path("wa.db")));
        assert!(opened.is_err());
        assert!(before == ["wa.db", "wa.db-wal"].map(|name| std::fs::read(desk.path(name)).unwrap()), "it was touched");
        desk.ok("restore copy.db wa.db");
        assert_eq!(sessions(&desk, "wa.db"), 100);
    }
}

#[cfg(unix)]
#[test]
fn a_store_with_two_names_is_not_used() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    std::fs::hard_link(desk.path("wa.db"), desk.path("second.db")).unwrap();
    for name in ["wa.db", "second.db"] {
        let (code, error) = desk.fails(&format!("rotate {name} --key-file key"));
        assert!(code == 5 && error.contains("(hard link)"), "{code}: {error}");
        assert!(wait(SqliteStore::open(desk.path(name))).is_err());
        // Reading does no harm.
        desk.ok(&format!("verify {name} --key-file key"));
        desk.ok(&format!("backup {name} {name}.copy"));
    }
    std::fs::remove_file(desk.path("second.db")).unwrap();
    put(&desk, 0, 10);
}

#[test]
fn soon_after_the_last_write_the_main_file_holds_everything() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    wait(async {
        let layered = bot(&desk).await;
        for round in 0..3 {
            for number in 0..200 {
                layered.put_session(&format!("{round}-{number}@s"), &[7; 500]).await.unwrap();
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            loop {
                std::fs::copy(desk.path("wa.db"), desk.path("copy.db")).unwrap();
                // A copy that was made in the middle of writing may not be valid.
                let output = desk.run("verify copy.db --key-file key");
                let all = String::from_utf8_lossy(&output.stdout).lines().any(|line| {
                    line.starts_with("session ")
                        && line.split_whitespace().nth(1) == Some(&((round + 1) * 200).to_string())
                });
                if output.status.success() && all {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{output:?}");
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        }
    });
}

#[test]
fn the_main_file_of_a_new_vault_is_one_of_this_vault() {
    let desk = Desk::new();
    wait(async {
        let store = Arc::new(SqliteStore::open(desk.path("wa.db")).await.unwrap());
        let _vault = wastore::Vault::create(store.clone(), key()).await.unwrap();
        std::fs::copy(desk.path("wa.db"), desk.path("copy.db")).unwrap();
        desk.ok("verify copy.db --key-file key");
    });
}

#[test]
fn what_is_no_backup_is_not_put_back_and_a_store_in_use_stays() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 10);
    desk.ok("backup wa.db copy.db");
    let before = std::fs::read(desk.path("wa.db")).unwrap();
    desk.write("empty.db", "");
    desk.write("text.db", &"no database ".repeat(1000));
    let mut damaged = std::fs::read(desk.path("copy.db")).unwrap();
    damaged[8192 * 3..8192 * 4].fill(0xff);
    desk.write_bytes("damaged.db", &damaged);
    desk.upstream("whatsapp.db", &[1]);
    for (backup, code) in [("empty.db", 5), ("text.db", 5), ("damaged.db", 4), ("whatsapp.db", 5), ("nowhere.db", 5)] {
        assert_eq!(desk.fails(&format!("restore {backup} wa.db")).0, code, "{backup}");
    }
    let other = rusqlite::Connection::open(desk.path("wa.db")).unwrap();
    other.query_row("SELECT count(*) FROM sessions", (), |_| Ok(())).unwrap();
    let (code, error) = desk.fails("restore copy.db wa.db");
    assert!(code == 1 && error.contains("has the store open"), "{code}: {error}");
    drop(other);
    assert!(std::fs::read(desk.path("wa.db")).unwrap() == before);
    assert_eq!(desk.files(|name| name.contains("before-restore") || name.starts_with('.')), Vec::<String>::new());
}

#[test]
fn killed_anywhere_a_restoration_can_be_repeated() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 2000);
    desk.ok("backup wa.db copy.db");
    kill_a_bot_that_puts(&desk, 5000, 20);
    let start = std::time::Instant::now();
    desk.ok("backup wa.db trial.db");
    let whole = start.elapsed();
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 400 } else { 40 };
    for _ in 0..rounds {
        let mut running =
            desk.command("restore copy.db wa.db").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rand::random_range(0.0..1.5)));
        running.kill().unwrap();
        running.wait().unwrap();
        // A file of one database never lies beside a file of the other.
        if desk.path("wa.db").exists() {
            assert!([2000, 2020].contains(&sessions(&desk, "wa.db")));
        }
    }
    desk.ok("restore copy.db wa.db");
    assert_eq!(sessions(&desk, "wa.db"), 2000);
    let aside = desk.files(|name| name.starts_with("wa.db.before-restore-") && name.ends_with(char::is_numeric));
    assert!(
        aside
            .iter()
            .any(|name| desk.run(&format!("verify {name} --key-file key")).status.success()
                && sessions(&desk, name) == 2020),
        "the store that was there is lost: {aside:?}"
    );
}

#[test]
fn backups_in_a_folder_are_counted() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 10);
    std::fs::create_dir(desk.path("backups")).unwrap();
    let others = ["wa-notes.db", "wa-20260101T000000Z.db.gz", "other-20200101T000000Z.db", "wa-2020010aT000000Z.db"];
    for name in others {
        desk.write(&format!("backups/{name}"), "precious");
    }
    for year in 2021..2025 {
        desk.ok(&format!("backup wa.db backups/wa-{year}0101T000000Z.db"));
    }
    let printed = desk.ok("backup wa.db --to-folder backups --keep 3");
    assert_eq!(printed.matches(" was deleted").count(), 2, "{printed}");
    let mut left: Vec<_> = desk
        .path("backups")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left.len(), others.len() + 3, "{left:?}");
    for name in others.into_iter().chain(["wa-20230101T000000Z.db", "wa-20240101T000000Z.db"]) {
        assert!(left.iter().any(|left| left == name), "{name}: {left:?}");
    }
    let newest = left.iter().rfind(|name| name.starts_with("wa-2") && name.ends_with("Z.db")).unwrap();
    assert_eq!(sessions(&desk, &format!("backups/{newest}")), 10);
    assert_private(desk.path(&format!("backups/{newest}")));
    assert_eq!(desk.fails("backup wa.db --to-folder nowhere --keep 3").0, 5);
    assert_eq!(desk.fails("backup wa.db --to-folder backups").0, 2);
    assert_eq!(desk.fails("backup wa.db --to-folder backups --keep 0").0, 2);
}

/// Copies from a wrong clock, of another store with the same name, and files that are not stores.
#[test]
fn backups_of_others_are_neither_counted_nor_deleted() {
    let desk = Desk::new();
    for folder in ["one", "two", "backups"] {
        std::fs::create_dir(desk.path(folder)).unwrap();
    }
    desk.ok("init one/wa.db --new-key-file key");
    desk.ok("init two/wa.db --new-key-file key");
    let copies = || desk.path("backups").read_dir().unwrap().count();
    // In the same second, and more copies of one store than are kept.
    for round in 1..=3 {
        for store in ["one", "two"] {
            desk.ok(&format!("backup {store}/wa.db --to-folder backups --keep 2"));
        }
        assert_eq!(copies(), 2 * round.min(2));
    }
    let of_a_time_to_come = desk.path("backups/wa-20990101T000000Z.db");
    desk.ok("backup one/wa.db copy.db");
    for name in ["wa-20990101T000000Z.db", "wa-20980101T000000Z.db"] {
        std::fs::copy(desk.path("copy.db"), desk.path(&format!("backups/{name}"))).unwrap();
    }
    desk.write("backups/wa-20200101T000000Z.db", "");
    let output = desk.run("backup one/wa.db --to-folder backups --keep 2");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && told.contains("a time in the future") && told.contains("is not counted"),
        "{told}"
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    let new = printed.split_whitespace().next().unwrap();
    assert!(desk.path(new).exists() && of_a_time_to_come.exists(), "{printed}");
    assert!(desk.path("backups/wa-20200101T000000Z.db").exists());
    assert_eq!(copies(), 4 + 3);
}

/// A log that a later bot left belongs to no store that was renamed before.
#[test]
fn a_log_alone_is_not_put_beside_another_store() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 100);
    desk.ok("backup wa.db copy.db");
    desk.ok("restore copy.db wa.db");
    kill_a_bot_that_puts(&desk, 1000, 40);
    std::fs::remove_file(desk.path("wa.db")).unwrap();
    let printed = desk.ok("restore copy.db wa.db");
    assert!(printed.contains("wa.db.before-restore-2"), "{printed}");
    assert_eq!(sessions(&desk, "wa.db.before-restore-1"), 100);
    assert!(desk.path("wa.db.before-restore-2-wal").exists());
    assert_eq!(sessions(&desk, "wa.db"), 100);
    let (code, error) = desk.fails("restore wa.db wa.db");
    assert!(code == 1 && error.contains("is the store itself"), "{error}");
    std::fs::create_dir(desk.path("folder")).unwrap();
    let (code, error) = desk.fails("restore copy.db folder");
    assert!(code == 5 && error.contains("is a folder"), "{error}");
}

/// At any interruption there is a store: the previous one or the backup.
#[cfg(target_os = "linux")]
#[test]
fn a_restoration_that_is_told_to_end_leaves_a_store() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    put(&desk, 0, 50);
    desk.ok("backup wa.db copy.db");
    let folder = tempfile::tempdir().unwrap();
    let library = preload::compile("less", folder.path());
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 400 } else { 40 };
    for _ in 0..rounds {
        // Waiting for the disk takes a while, which leaves time for the signal.
        let mut command = desk.command("restore copy.db wa.db");
        command.env("LD_PRELOAD", &library).env("WASTORE_SLOW", "fsync").stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = command.spawn().unwrap();
        wait_until_it_listens(running.id());
        std::thread::sleep(std::time::Duration::from_millis(rand::random_range(0..200)));
        Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
        let code = running.wait().unwrap().code();
        assert!(matches!(code, Some(0 | 130)), "{code:?}");
        assert_eq!(sessions(&desk, "wa.db"), 50);
        assert_eq!(desk.files(|name| name.starts_with('.')), Vec::<String>::new());
    }
}

#[test]
fn a_passphrase_keeps_its_cost_unless_another_one_is_asked_for() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old --kdf-memory 19 --kdf-passes 2");
    let cost = || {
        let json: serde_json::Value = serde_json::from_str(&desk.ok("inspect wa.db --json")).unwrap();
        json["accounts"][0]["vault"]["slots"][0]["argon2id"]["memory_kib"].as_u64().unwrap()
    };
    assert_eq!(cost(), 19 * 1024);
    desk.ok("header save wa.db saved --passphrase-file old");
    desk.ok("keys add wa.db --passphrase-file old --new-key-file key");
    desk.ok("verify wa.db --passphrase-file old");
    desk.ok("rotate wa.db --passphrase-file old");
    desk.ok("passwd wa.db --passphrase-file old --new-passphrase-file new");
    assert_eq!(cost(), 19 * 1024);
    desk.ok("passwd wa.db --passphrase-file new --new-passphrase-file old --kdf-memory 32");
    assert_eq!(cost(), 32 * 1024);
    desk.ok("keys remove wa.db 1 --passphrase-file old --kdf-memory 48");
    assert_eq!(cost(), 48 * 1024, "opening with a higher one raises it");
    assert_eq!(desk.fails("init new.db --new-passphrase-file old --kdf-memory 1").0, 2);
}

#[test]
fn damaged_records_are_dropped_and_a_contact_is_forgotten() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    assert!(desk.ok("repair wa.db --key-file key --backup before.db").contains("every record is sound"));
    assert!(!desk.path("before.db").exists());

    let damage = "UPDATE sessions SET record = CAST(substr(record, 1, length(record) - 1) || x'00' AS BLOB)";
    rusqlite::Connection::open(desk.path("wa.db")).unwrap().execute(damage, ()).unwrap();
    assert_eq!(desk.fails("verify wa.db --key-file key").0, 4);
    assert_eq!(desk.fails("repair wa.db --key-file key").0, 2, "not without a copy");
    assert_eq!(desk.fails("repair wa.db --key-file key --backup old").0, 5, "not over another file");
    let printed = desk.ok("repair wa.db --key-file key --backup before.db");
    for line in ["of session: negotiated again", "before.db is a copy from before"] {
        assert!(printed.contains(line), "{printed}");
    }
    desk.ok("verify wa.db --key-file key");
    assert_eq!(desk.fails("verify before.db --key-file key").0, 4, "as it was");
    assert_eq!(desk.fails("repair wa.db --passphrase-file old --backup other.db").0, 3);

    desk.ok("restore before.db wa.db");
    let (code, error) = desk.fails("forget wa.db @lid --key-file key");
    assert!(code == 1 && error.contains("no name before the @"), "{error}");
    let user = ADDRESS.split(['@', ':']).next().unwrap();
    let bot = rusqlite::Connection::open(desk.path("wa.db")).unwrap();
    bot.query_row("SELECT count(*) FROM sessions", (), |_| Ok(())).unwrap();
    let (code, error) = desk.fails(&format!("forget wa.db {user} --key-file key"));
    assert!(code == 1 && error.contains("has the store open"), "{error}");
    drop(bot);
    let printed = desk.ok(&format!("forget wa.db +{user} --key-file key"));
    assert!(printed.starts_with("deleted: sessions 2") && !printed.contains(user), "{printed}");
    let (code, error) = desk.fails(&format!("forget wa.db {user}.0:5@lid --key-file key"));
    assert!(code == 5 && error.contains("nothing is stored about this contact") && !error.contains(user), "{error}");
    rusqlite::Connection::open(desk.path("wa.db")).unwrap().execute("DELETE FROM devices", ()).unwrap();
    let (code, error) = desk.fails("repair wa.db --key-file key --backup other.db");
    assert!(code == 4 && error.contains("device record is missing"), "{error}");
    assert_eq!(desk.session("wa.db", 1, key()), None);
}

#[test]
fn old_snapshots_are_deleted() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    for number in 1..=4 {
        for end in ["", ".extra"] {
            std::fs::write(desk.path(&format!("wa.db.snapshot-{number}-reason{end}")), "x").unwrap();
        }
    }
    // A snapshot that was opened, and one whose name ends like SQLite's files.
    for name in ["4-reason-wal", "4-reason-shm", "3-reason-wal", "5-a-wal"] {
        std::fs::write(desk.path(&format!("wa.db.snapshot-{name}")), "x").unwrap();
    }
    let printed = desk.ok("prune-snapshots wa.db --keep 2");
    assert_eq!(printed.lines().count(), 7, "{printed}");
    let mut left = desk.files(|name| name.contains("snapshot"));
    left.sort();
    let kept = ["4-reason", "4-reason-shm", "4-reason-wal", "4-reason.extra", "5-a-wal"];
    assert_eq!(left, kept.map(|name| format!("wa.db.snapshot-{name}")));
    assert_eq!(desk.fails("prune-snapshots wa.db --keep 0").0, 2);
}
