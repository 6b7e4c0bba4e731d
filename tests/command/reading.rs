//! Commands that only read, on the files of real operators: they make and change nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use wastore::maintenance::create_encrypted;

/// Commands that only read. Their output files go to another folder.
const READING: [&str; 8] = [
    "inspect wa.db",
    "inspect wa.db --json",
    "keys list wa.db",
    "verify wa.db --passphrase-env SECRET",
    "verify wa.db --quick --passphrase-env SECRET",
    "export wa.db @/back.db --plaintext --passphrase-env SECRET",
    "backup wa.db @/copy.db",
    "header save wa.db @/saved --passphrase-env SECRET",
];
/// Commands that change a store, but must not mistake any other file for one.
const CHANGING: [&str; 6] = [
    "passwd wa.db --passphrase-env SECRET --new-passphrase-env SECRET",
    "keys remove wa.db 0 --passphrase-env SECRET",
    "rotate wa.db --passphrase-env SECRET",
    "revoke wa.db --passphrase-env SECRET --new-passphrase-env OTHER",
    "vacuum wa.db",
    "accept-rollback wa.db --passphrase-env SECRET --anchor .",
];
const SESSIONS: usize = 200;

/// The place of a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Medium {
    Folder,
    SealedFolder,
    ReadOnlyMount,
}

impl Medium {
    /// Without the mount if the user may not mount anything, as in most containers.
    fn all() -> impl Iterator<Item = Self> {
        static CAN_MOUNT: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            let folder = tempfile::tempdir().unwrap();
            let mut command = Command::new(mounting()[0]);
            command
                .args(&mounting()[1..])
                .args(["sh", "-c", MOUNT_READ_ONLY])
                .arg(folder.path())
                .args(["touch", "file"]);
            // It must fail, and for this reason.
            command
                .output()
                .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("Read-only file system"))
        });
        [Self::Folder, Self::SealedFolder, Self::ReadOnlyMount]
            .into_iter()
            .filter(|medium| *medium != Self::ReadOnlyMount || *CAN_MOUNT)
    }
}

/// The command prefix that gives a command its own mounts.
fn mounting() -> &'static [&'static str] {
    match rustix::process::geteuid().is_root() {
        true => &["unshare", "--mount"],
        false => &["unshare", "--map-root-user", "--mount"],
    }
}

const MOUNT_READ_ONLY: &str =
    "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && cd \"$0\" && exec \"$@\"";

/// A folder with a store, and another one for the output files.
struct Shelf {
    folder: tempfile::TempDir,
    made: tempfile::TempDir,
}

impl Shelf {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), made: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The content, mode and time of each file. Of the files that processes share only their
    /// existence, because they write to them.
    fn state(&self) -> BTreeMap<String, (Vec<u8>, u32, std::time::SystemTime)> {
        let entries = self.folder.path().read_dir().unwrap().map(|entry| entry.unwrap());
        let look = |entry: std::fs::DirEntry| {
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with("-shm") {
                return (name, (vec![], 0, std::time::UNIX_EPOCH));
            }
            let about =
                (std::fs::read(entry.path()).unwrap(), metadata.permissions().mode(), metadata.modified().unwrap());
            (name, about)
        };
        entries.map(look).collect()
    }

    /// Runs a command as a user who may only read, from a folder where every user may run it.
    fn run(&self, arguments: &str) -> Output {
        self.run_on(Medium::Folder, arguments)
    }

    fn run_on(&self, medium: Medium, arguments: &str) -> Output {
        static BINARY: std::sync::LazyLock<(tempfile::TempDir, PathBuf)> = std::sync::LazyLock::new(|| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("wastore");
            std::fs::copy(env!("CARGO_BIN_EXE_wastore"), &path).unwrap();
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
            (folder, path)
        });
        let binary = &BINARY.1;
        let made = self.made.path();
        for entry in made.read_dir().unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let arguments = arguments.replace('@', made.to_str().unwrap());
        let mut words: Vec<&str> = vec![];
        if medium == Medium::ReadOnlyMount {
            words.extend(mounting());
            words.extend(["sh", "-c", MOUNT_READ_ONLY, self.folder.path().to_str().unwrap()]);
        }
        if rustix::process::geteuid().is_root() {
            words.extend(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        }
        words.push(binary.to_str().unwrap());
        words.extend(arguments.split_whitespace());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("SECRET", "correct horse battery staple").env("OTHER", "quite another passphrase");
        command.output().unwrap()
    }

    /// Runs every command, checks its exit code, and checks that the folder has not changed.
    fn sweep(&self, what: &str, commands: &[&str], is_fine: impl Fn(&str, i32) -> bool) {
        std::fs::set_permissions(self.made.path(), PermissionsExt::from_mode(0o777)).unwrap();
        for medium in Medium::all() {
            let writable = medium != Medium::SealedFolder;
            let mode = if writable { 0o777 } else { 0o555 };
            std::fs::set_permissions(self.folder.path(), PermissionsExt::from_mode(mode)).unwrap();
            for entry in self.folder.path().read_dir().unwrap() {
                let mode = if writable { 0o666 } else { 0o444 };
                std::fs::set_permissions(entry.unwrap().path(), PermissionsExt::from_mode(mode)).unwrap();
            }
            let before = self.state();
            for arguments in commands {
                let output = self.run_on(medium, arguments);
                let told = format!(
                    "{what}, {medium:?}: wastore {arguments}: {:?}\n{}{}",
                    output.status,
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                assert!(output.status.code().is_some_and(|code| is_fine(arguments, code)), "{told}");
                let after = self.state();
                assert!(before.keys().eq(after.keys()), "{told}: {:?} became {:?}", before.keys(), after.keys());
                for (name, was) in &before {
                    assert!(after[name] == *was, "{told}: {name} was changed");
                }
            }
        }
    }
}

/// A store whose last sessions are in its log, as a killed bot leaves it.
fn left_by_a_bot(folder: &Path) {
    let bot = tempfile::tempdir().unwrap();
    let path = bot.path().join("wa.db");
    wait(async {
        let options = VaultOptions::new().kdf_cost(wastore::vault::Argon2Cost::MINIMUM);
        create_encrypted(&path, 1, &options, old()).await.unwrap();
        let store = Arc::new(SqliteStore::open(&path).await.unwrap());
        let vault = options.open(store.clone(), old()).await.unwrap();
        let layered = vault.layer().layer(store);
        let rows: Vec<_> = (0..SESSIONS)
            .map(|number| (Arc::from(format!("{number}@s")), bytes::Bytes::from(vec![number as u8; 500])))
            .collect();
        layered.put_sessions_batch(&rows).await.unwrap();
        let mut device = wacore::store::Device::new();
        device.push_name = "bot".to_owned();
        layered.save(&device).await.unwrap();
        for ending in ["", "-wal", "-shm"] {
            std::fs::copy(bot.path().join(format!("wa.db{ending}")), folder.join(format!("wa.db{ending}"))).unwrap();
        }
    });
}

#[test]
fn a_command_that_reads_changes_nothing() {
    let done = |_: &str, code: i32| code == 0;
    let shelf = Shelf::new();
    left_by_a_bot(shelf.folder.path());
    let log = std::fs::read(shelf.path("wa.db-wal")).unwrap();
    assert!(log.len() > 100_000);
    let sessions = |shelf: &Shelf| {
        let printed = String::from_utf8(shelf.run("verify wa.db --passphrase-env SECRET").stdout).unwrap();
        let line = printed.lines().find(|line| line.starts_with("session ")).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned))
    };

    shelf.sweep("as a killed bot left it", &READING, done);
    assert_eq!(sessions(&shelf), Some(SESSIONS.to_string()));
    // Without the file that processes share, it is read from a copy.
    std::fs::remove_file(shelf.path("wa.db-shm")).unwrap();
    shelf.sweep("with a log", &READING, done);
    assert_eq!(sessions(&shelf), Some(SESSIONS.to_string()));

    // A backup, which is not in WAL mode.
    let backup = Shelf::new();
    shelf.run("backup wa.db @/copy.db");
    std::fs::copy(shelf.made.path().join("copy.db"), backup.path("wa.db")).unwrap();
    backup.sweep("a backup", &READING, done);
    assert_eq!(sessions(&backup), Some(SESSIONS.to_string()));

    // The main file alone, without its log.
    let alone = Shelf::new();
    std::fs::copy(shelf.path("wa.db"), alone.path("wa.db")).unwrap();
    // It has the vault from the beginning, and no device.
    alone.sweep("the main file alone", &READING, |arguments, code| code == 0 || arguments.starts_with("export"));

    // A closed store.
    let closed = Shelf::new();
    std::fs::copy(backup.path("wa.db"), closed.path("wa.db")).unwrap();
    drop(wait(SqliteStore::open(closed.path("wa.db"))).unwrap());
    closed.sweep("a closed store", &READING, done);
}

#[test]
fn what_is_no_store_is_refused_by_every_command_and_left_alone() {
    // A file that cannot be written at all is refused for that reason.
    let refused = |arguments: &str, code: i32| matches!(code, 4 | 5) || code == 1 && CHANGING.contains(&arguments);
    let commands = [&READING[..], &CHANGING[..]].concat();
    let sweep = |what: &str, make: &dyn Fn(&Path)| {
        let shelf = Shelf::new();
        make(&shelf.path("wa.db"));
        shelf.sweep(what, &commands, refused);
    };
    let store = tempfile::tempdir().unwrap();
    left_by_a_bot(store.path());
    let store = store.path().join("wa.db");
    drop(wait(SqliteStore::open(&store)).unwrap());
    let altered = |sql: &'static str| {
        let store = store.clone();
        move |path: &Path| {
            std::fs::copy(&store, path).unwrap();
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.execute_batch(sql).unwrap();
        }
    };
    sweep("an empty file", &|path| std::fs::write(path, "").unwrap());
    sweep("a short file", &|path| std::fs::write(path, "SQLite format 3\0").unwrap());
    sweep("a text", &|path| std::fs::write(path, "no database ".repeat(1000)).unwrap());
    sweep("a database without tables", &|path| {
        rusqlite::Connection::open(path).unwrap().execute_batch("PRAGMA user_version = 0; VACUUM").unwrap();
        assert!(path.metadata().unwrap().len() > 0);
    });
    sweep("another program's", &|path| {
        rusqlite::Connection::open(path).unwrap().execute_batch("CREATE TABLE notes (text)").unwrap();
    });
    sweep("a later version's", &altered("PRAGMA user_version = 99"));
    sweep("an altered one", &altered("CREATE TABLE more (a)"));
    sweep("one without a vault", &altered("DELETE FROM sender_keys; DELETE FROM sessions; DELETE FROM devices"));
}

/// An empty file was truncated or never finished: a bot must not take it for a new store.
#[test]
fn an_empty_file_is_no_new_store_for_a_bot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    std::fs::write(&path, "").unwrap();
    let error = wait(SqliteStore::open(&path)).unwrap_err();
    assert!(error.to_string().contains("is empty: put a backup in its place"), "{error}");
    assert_eq!(path.metadata().unwrap().len(), 0);
    std::fs::remove_file(&path).unwrap();
    drop(wait(SqliteStore::open(&path)).unwrap());
    // Its tables are in the main file from the first moment.
    assert!(path.metadata().unwrap().len() > 8192);
}
