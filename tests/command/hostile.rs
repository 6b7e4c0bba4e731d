//! Files from an attacker, and signals at any moment.

use super::*;

/// Every kind of text that a terminal would act on.
const HOSTILE: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\r\u{8}\u{7f}\u{85}\u{202e}\u{2066}\u{2028}\u{200b}x";

/// Neither output contains a character that a terminal acts on, except the end of a line.
#[track_caller]
fn assert_harmless(arguments: &str, output: &Output) {
    for printed in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(printed.clone()).unwrap();
        let acts = |character: char| {
            character != '\n' && character.escape_debug().len() > 1 && !matches!(character, '\'' | '"' | '\\')
        };
        assert!(!text.contains(acts), "{arguments}: {text:?}");
    }
}

#[test]
fn no_text_of_a_file_acts_on_the_terminal() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    desk.ok("header save wa.db saved --key-file key");
    let on_a_store = [
        "inspect wa.db",
        "inspect wa.db --json",
        "keys list wa.db",
        "verify wa.db --key-file key",
        "verify wa.db --json --key-file key",
        "rotate wa.db --key-file key",
        "revoke wa.db --key-file key --new-passphrase-file old",
        "passwd wa.db --key-file key --new-passphrase-file old",
        "export wa.db back.db --plaintext --key-file key",
        "backup wa.db copy.db",
        "vacuum wa.db",
        "header restore wa.db saved --key-file key",
        "accept-rollback wa.db --key-file key --anchor .",
    ];
    let (store, source) =
        (std::fs::read(desk.path("wa.db")).unwrap(), std::fs::read(desk.path("whatsapp.db")).unwrap());
    let name = HOSTILE.replace('\'', "''");
    let planted = [
        format!("CREATE TABLE \"{name}\" (a)"),
        format!("CREATE INDEX \"{name}\" ON sessions (record)"),
        format!("CREATE VIEW \"{name}\" AS SELECT 1"),
        format!("CREATE TRIGGER \"{name}\" AFTER INSERT ON sessions BEGIN SELECT 1; END"),
        format!("ALTER TABLE sessions ADD COLUMN \"{name}\" BLOB"),
        // SQLite's own words about a schema that it cannot read.
        format!("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{name}' WHERE name = 'sessions'"),
        format!("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET name = '{name}' WHERE name = 'prekeys'"),
        // Rows.
        format!("UPDATE sessions SET record = CAST('{name}' AS BLOB)"),
        format!("UPDATE sessions SET address = address || '{name}'"),
        format!("UPDATE devices SET record = CAST('{name}' AS BLOB)"),
        format!("INSERT INTO sessions (address, account, record) VALUES ('{name}', 77, x'00')"),
        // Labels in headers that are not authenticated.
        "UPDATE sender_keys SET record = CAST(replace(CAST(record AS TEXT), 'key', char(27, 91, 109)) AS BLOB)"
            .to_owned(),
        format!("UPDATE sender_keys SET record = CAST('{name}' AS BLOB)"),
    ];
    for planted in &planted {
        for arguments in on_a_store {
            std::fs::write(desk.path("wa.db"), &store).unwrap();
            for name in ["wa.db-wal", "wa.db-shm", "back.db", "copy.db"] {
                std::fs::remove_file(desk.path(name)).ok();
            }
            desk.change("wa.db", planted);
            assert_harmless(arguments, &desk.run(arguments));
        }
    }
    for planted in [
        format!("UPDATE __diesel_schema_migrations SET version = '{name}' WHERE version LIKE '20260703000001%'"),
        format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{name}')"),
        format!("UPDATE device SET pn = '{name}'"),
        format!("UPDATE device SET push_name = '{name}'"),
        format!("UPDATE device_registry SET devices_json = '{name}'"),
        format!("UPDATE sessions SET record = '{name}'"),
        format!("CREATE TABLE \"{name}\" (a)"),
        format!("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{name}' WHERE name = 'sessions'"),
    ] {
        std::fs::write(desk.path("whatsapp.db"), &source).unwrap();
        desk.change("whatsapp.db", &planted);
        let arguments = "import whatsapp.db new.db --new-key-file key";
        assert_harmless(arguments, &desk.run(arguments));
        std::fs::remove_file(desk.path("new.db")).ok();
    }
    // Names of files.
    std::fs::write(desk.path("whatsapp.db"), &source).unwrap();
    std::fs::write(desk.path(&format!("whatsapp.db.snapshot-{HOSTILE}")), "").unwrap();
    std::fs::write(desk.path(HOSTILE), "no database").unwrap();
    for arguments in [
        "inspect @",
        "verify @ --key-file key",
        "verify wa.db --key-file @",
        "verify wa.db --passphrase-file @",
        "verify wa.db --recovery-key-file @",
        "init @ --new-key-file key",
        "init no/@ --new-key-file key",
        "import @ new.db --new-key-file key",
        "backup wa.db @",
        "header save wa.db @ --key-file key",
        "header restore wa.db @ --key-file key",
        "export wa.db @ --plaintext --key-file key",
        "verify wa.db --key-file key --anchor @",
        "import whatsapp.db new.db --remove-source --new-key-file key",
    ] {
        let mut command = desk.command("");
        command.args(arguments.split_whitespace().map(|word| word.replace('@', HOSTILE)));
        assert_harmless(arguments, &command.output().unwrap());
    }
    assert!(desk.path("new.db").exists() && !desk.path("whatsapp.db").exists());
}

#[cfg(unix)]
#[test]
fn warnings_of_the_library_are_shown() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    std::fs::set_permissions(desk.path("wa.db"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let output = desk.run("verify wa.db --key-file key");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && error.starts_with("wastore: warning: other users"), "{error}");
}

#[cfg(unix)]
#[test]
fn without_standard_error_the_exit_code_is_the_same() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    std::fs::set_permissions(desk.path("wa.db"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    desk.write("spare", SPARE_KEY);
    for (arguments, code) in
        [("verify wa.db --key-file key", 0), ("rotate wa.db --key-file key", 0), ("verify wa.db --key-file spare", 3)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = desk.command(arguments).stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_the_caller_switched_off_ends_nothing() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-passphrase-file old");
    assert!(Command::new("mkfifo").arg(desk.path("pipe")).status().unwrap().success());
    let mut command = Command::new("nohup");
    command.args([env!("CARGO_BIN_EXE_wastore"), "verify", "wa.db", "--passphrase-file", "pipe"]);
    command.current_dir(desk.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = command.spawn().unwrap();
    wait_until_it_listens(running.id());
    Command::new("kill").args(["-HUP", &running.id().to_string()]).status().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    std::fs::write(desk.path("pipe"), "correct horse battery staple\n").unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn a_damaged_store_is_not_rewritten() {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    let connection = rusqlite::Connection::open(desk.path("wa.db")).unwrap();
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'sessions'";
    let page = connection.query_row(root, (), |row| row.get::<_, i64>(0)).unwrap() as usize;
    drop(connection);
    let mut content = std::fs::read(desk.path("wa.db")).unwrap();
    // The number of cells.
    content[(page - 1) * 8192 + 4] -= 1;
    std::fs::write(desk.path("wa.db"), &content).unwrap();
    for arguments in ["vacuum wa.db", "export wa.db back.db --plaintext --key-file key", "backup wa.db copy.db"] {
        assert_eq!(desk.fails(arguments).0, 4, "{arguments}");
    }
    assert!(std::fs::read(desk.path("wa.db")).unwrap() == content);
}

#[test]
fn labels_are_shown_as_they_are_or_refused() {
    let desk = Desk::new();
    desk.ok("init wa.db --new-key-file key");
    desk.write("spare", SPARE_KEY);
    for label in ["a\u{202e}b", "\u{200b}", "\u{1b}[2J", "two\nlines"] {
        let mut command = desk.command("keys add wa.db --key-file key --new-key-file spare --label");
        let output = command.arg(label).output().unwrap();
        assert!(!output.status.success(), "{label:?}");
        assert_harmless("keys add", &output);
    }
    let mut command = desk.command("keys add wa.db --key-file key --new-key-file spare --label");
    assert!(command.arg("Ersatzschlüssel").output().unwrap().status.success());
    assert!(desk.ok("inspect wa.db --json").contains("Ersatzschlüssel"));
}

/// One command, the files that it may make or remove, and the ones that may contain plaintext.
#[cfg(unix)]
struct Interrupted {
    arguments: &'static str,
    makes: Option<&'static str>,
    takes: Option<&'static str>,
}

#[cfg(unix)]
#[test]
fn a_signal_at_any_moment_leaves_no_unnamed_file() {
    const CANARY: &[u8] = b"a session that no one may read";
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    wait(async {
        let store = UpstreamStore::new(desk.path("whatsapp.db").to_str().unwrap()).await.unwrap();
        let record = bytes::Bytes::from(CANARY.repeat(30));
        let sessions: Vec<_> = (0..3000).map(|number| (Arc::from(format!("{number}@s")), record.clone())).collect();
        store.put_sessions_batch(&sessions).await.unwrap();
    });
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    desk.write("spare", SPARE_KEY);
    desk.ok("header save wa.db saved --key-file key");
    let pristine = desk.files(|_| true);
    let content: Vec<_> = pristine.iter().map(|name| (name, std::fs::read(desk.path(name)).unwrap())).collect();
    let command = |arguments, makes, takes| Interrupted { arguments, makes, takes };
    let commands = [
        command("init new.db --new-key-file key", Some("new.db"), None),
        command("import whatsapp.db new.db --new-key-file key", Some("new.db"), None),
        command("import whatsapp.db new.db --remove-source --new-key-file key", Some("new.db"), Some("whatsapp.db")),
        command("export wa.db back.db --plaintext --key-file key", Some("back.db"), None),
        command("backup wa.db new.db", Some("new.db"), None),
        command("header save wa.db again --key-file key", Some("again"), None),
        command("header restore wa.db saved --key-file key", None, None),
        command("keys add wa.db --key-file key --new-key-file spare", None, None),
        command("passwd wa.db --key-file key --new-passphrase-file old", None, None),
        command("rotate wa.db --key-file key", None, None),
        command("revoke wa.db --key-file key --new-key-file spare", None, None),
        command("vacuum wa.db", None, None),
        command("verify wa.db --key-file key", None, None),
    ];
    let rounds = if std::env::var_os("WASTORE_LONG").is_some() { 25 } else { 1 };
    let mut ended = std::collections::BTreeMap::<_, u32>::new();
    for Interrupted { arguments, makes, takes } in commands {
        let reset = || {
            for name in desk.files(|_| true) {
                std::fs::remove_file(desk.path(&name)).unwrap();
            }
            for (name, content) in &content {
                desk.write_bytes(name, content);
            }
        };
        reset();
        let start = std::time::Instant::now();
        // `passwd` fails, because there is no passphrase slot.
        let whole = desk.run(arguments).status.code();
        let takes_so_long = start.elapsed();
        for signal in ["INT", "TERM", "HUP", "QUIT"].into_iter().cycle().take(4 * rounds) {
            reset();
            let running = desk.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            std::thread::sleep(takes_so_long.mul_f64(rand::random_range(0.0..1.1)));
            Command::new("kill").args([format!("-{signal}"), running.id().to_string()]).status().unwrap();
            let output = running.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let code = output.status.code();
            *ended.entry(code).or_default() += 1;
            let context = format!("{arguments}, {signal}, {code:?}: {told}");
            // The command makes nothing before it listens to signals.
            assert!(code.is_none() || code == Some(130) || code == whole, "{context}");
            let left = desk.files(|_| true);
            let allowed =
                |name: &String| pristine.contains(name) || makes == Some(name) || told.contains(name.as_str());
            assert!(left.iter().all(allowed), "{context}: {left:?}");
            assert!(pristine.iter().all(|name| left.contains(name) || takes == Some(name)), "{context}: {left:?}");
            for name in left.iter().filter(|name| !["whatsapp.db", "back.db"].contains(&name.as_str())) {
                let content = std::fs::read(desk.path(name)).unwrap();
                assert!(memchr::memmem::find(&content, CANARY).is_none(), "{context}: {name}");
            }
            // The command can be repeated, unless it is done.
            let again = desk.run(arguments).status.code();
            let done = match (makes, arguments.starts_with("revoke")) {
                (Some(_), _) => Some(5),
                (_, true) => Some(3),
                _ => whole,
            };
            assert!(again == whole || again == done, "{context}, and again: {again:?}");
            let opens =
                ["key", "spare"].map(|key| desk.run(&format!("verify wa.db --key-file {key}")).status.success());
            assert!(opens.contains(&true), "{context}");
            if arguments.contains(" new.db") && !arguments.starts_with("backup") {
                desk.ok("verify new.db --key-file key");
            }
        }
    }
    println!("exit codes: {ended:?}");
    assert!(ended.get(&Some(130)).is_some_and(|count| *count > 5), "{ended:?}");
}
