//! File systems with missing features: no way to wait for the disk, no renaming without replacing,
//! no links, no locks.

use super::*;

/// Every command that makes a file or changes a store.
const COMMANDS: [&str; 15] = [
    "init new.db --new-key-file key",
    "import whatsapp.db new.db --new-key-file key",
    "export wa.db new.db --plaintext --key-file key",
    "backup wa.db new.db",
    "backup wa.db --to-folder folder --keep 2",
    "restore copy.db wa.db",
    "header save wa.db new.db --key-file key",
    "keygen new.db",
    "keys add wa.db --key-file key --new-passphrase-file old --kdf-memory 19",
    "rotate wa.db --key-file key",
    "vacuum wa.db",
    "repair damaged.db --key-file key --backup new.db",
    "verify wa.db --key-file key",
    "inspect wa.db",
    "accept-rollback wa.db --key-file key --anchor anchors",
];

struct Less {
    library: PathBuf,
    _folder: tempfile::TempDir,
}

impl Less {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { library: preload::compile("less", folder.path()), _folder: folder }
    }

    fn run(&self, desk: &Desk, arguments: &str, variable: &str, abilities: &str) -> Output {
        let mut command = desk.command(arguments);
        command.env("LD_PRELOAD", &self.library).env(variable, abilities).output().unwrap()
    }
}

/// A desk with a store, a backup, a damaged store and a database of upstream's.
fn desk() -> Desk {
    static TEMPLATE: std::sync::LazyLock<Desk> = std::sync::LazyLock::new(template);
    let desk = Desk::new();
    for entry in std::fs::read_dir(TEMPLATE.folder.path()).unwrap() {
        let (from, to) =
            (entry.as_ref().unwrap().path(), desk.path(entry.as_ref().unwrap().file_name().to_str().unwrap()));
        match from.is_dir() {
            true => std::fs::create_dir(to).unwrap(),
            false => drop(std::fs::copy(from, to).unwrap()),
        }
    }
    desk
}

fn template() -> Desk {
    let desk = Desk::new();
    desk.upstream("whatsapp.db", &[1]);
    desk.ok("import whatsapp.db wa.db --new-key-file key");
    desk.ok("backup wa.db copy.db");
    desk.ok("backup wa.db damaged.db");
    let damage = "UPDATE sessions SET record = CAST(substr(record, 1, length(record) - 1) || x'00' AS BLOB)";
    rusqlite::Connection::open(desk.path("damaged.db")).unwrap().execute(damage, ()).unwrap();
    for folder in ["folder", "anchors"] {
        std::fs::create_dir(desk.path(folder)).unwrap();
    }
    desk
}

/// The new file is complete.
fn assert_complete(desk: &Desk, arguments: &str, without: &str) {
    if arguments.contains("new.db") {
        let made = desk.path("new.db");
        assert!(made.metadata().is_ok_and(|made| made.len() > 0), "{arguments} without {without}: nothing was made");
        match arguments.split_whitespace().next().unwrap() {
            "init" | "import" | "backup" => drop(desk.ok("verify new.db --key-file key")),
            "repair" => assert_eq!(desk.fails("verify new.db --key-file key").0, 4),
            _ => {}
        }
    }
    let sound = desk.ok("verify wa.db --key-file key");
    assert!(sound.ends_with("sound\n"), "{arguments} without {without}: {sound}");
    let left = desk.files(|name| name.starts_with('.'));
    assert!(left.is_empty(), "{arguments} without {without}: {left:?}");
}

#[test]
fn every_command_works_where_a_file_system_can_less() {
    let less = Less::new();
    for without in ["folder-fsync", "renameat2", "renameat2 link"] {
        for arguments in COMMANDS {
            let desk = desk();
            let output = less.run(&desk, arguments, "WASTORE_WITHOUT", without);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{arguments} without {without}: {error}");
            assert_complete(&desk, arguments, without);
            if without == "folder-fsync" && arguments.starts_with("keygen") {
                assert!(error.contains("cannot wait for the disk"), "{error}");
            }
        }
    }
}

#[test]
fn nothing_is_replaced_where_a_file_system_can_less() {
    let less = Less::new();
    for arguments in COMMANDS.iter().filter(|arguments| arguments.contains("new.db")) {
        let desk = desk();
        desk.write("new.db", "precious");
        let output = less.run(&desk, arguments, "WASTORE_WITHOUT", "renameat2 link");
        assert_eq!(output.status.code(), Some(5), "{arguments}");
        assert_eq!(std::fs::read(desk.path("new.db")).unwrap(), b"precious");
    }
}

#[test]
fn a_file_system_without_locks_is_named_at_once() {
    let less = Less::new();
    for arguments in COMMANDS.iter().filter(|arguments| !arguments.contains("keygen")) {
        let desk = desk();
        let start = std::time::Instant::now();
        let output = less.run(&desk, arguments, "WASTORE_WITHOUT", "locks");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // A database that no process has open is read without locks.
        if !output.status.success() {
            assert!(error.contains("has no file locks: use a local disk"), "{arguments}: {error}");
            assert!(start.elapsed() < std::time::Duration::from_secs(8), "{arguments}");
        }
        let left = desk.files(|name| name.starts_with('.'));
        assert!(left.is_empty(), "{arguments}: {left:?}");
        assert!(desk.ok("verify wa.db --key-file key").ends_with("sound\n"), "{arguments}");
    }
}

/// A file is not removed because the disk fails after it has its name.
#[test]
fn a_finished_copy_is_never_deleted() {
    let less = Less::new();
    let makes = |arguments: &&&str| arguments.contains("new.db") || arguments.starts_with("restore");
    for arguments in COMMANDS.iter().filter(makes) {
        let desk = desk();
        let output = less.run(&desk, arguments, "WASTORE_FAILING", "folder-fsync");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let made = if arguments.starts_with("restore") { "wa.db" } else { "new.db" };
        assert_eq!(output.status.code(), Some(5), "{arguments}: {error}");
        let text = format!("{made} is complete, but may not survive a power cut");
        assert!(error.contains(&text), "{arguments}: {error}");
        assert_complete(&desk, arguments, "a folder that can be synced");
    }
}
