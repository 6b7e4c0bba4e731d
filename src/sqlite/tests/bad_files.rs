//! Files at the path that are not a store.

use std::fs;

use rusqlite::Connection;
use wacore::store::traits::SignalStore;

use super::*;
use crate::error::ForeignFile;
use crate::sqlite::schema::NEWEST;
use crate::testing::canaries;

/// Opening fails, and changes no file of the folder.
pub(super) async fn refused(path: &Path) -> Error {
    let files = || {
        let mut files: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // A reader of an open database registers there; this does not last.
            .filter(|path| !path.to_string_lossy().ends_with("-shm"))
            .map(|path| (fs::read(&path).unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let error = config().open(path).await.expect_err("the file should have been refused");
    assert!(files() == before, "something was changed");
    let text = error.to_string().to_lowercase();
    assert!(!text.contains("locked") && !text.contains("busy"), "{text}");
    error
}

#[tokio::test]
async fn foreign_files_are_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let found = |error| match error {
        Error::ForeignFile { found, path: named } => {
            assert_eq!(named, path.canonicalize().unwrap());
            found
        }
        error => panic!("{error:?}"),
    };

    fs::write(&path, "dear diary").unwrap();
    assert_eq!(found(refused(&path).await), ForeignFile::NotSqlite);
    fs::write(&path, [0x5a; 8192]).unwrap();
    assert_eq!(found(refused(&path).await), ForeignFile::NotSqlite);
    fs::remove_file(&path).unwrap();

    let other = Connection::open(&path).unwrap();
    other
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE notes (text); INSERT INTO notes VALUES ('x')")
        .unwrap();
    // Closing must not fold its write-ahead log in.
    let error = refused(&path).await;
    assert_eq!(found(error), ForeignFile::OtherProgram);
    drop(other);
    fs::remove_file(&path).unwrap();

    let upstream = whatsapp_rust_sqlite_storage::SqliteStore::new(path.to_str().unwrap()).await.unwrap();
    upstream.put_session("a", b"x").await.unwrap();
    let error = refused(&path).await;
    assert!(error.to_string().contains("wastore import"), "{error}");
    assert_eq!(found(error), ForeignFile::Upstream);
    assert_eq!(upstream.get_session("a").await.unwrap().unwrap(), &b"x"[..]);
}

#[tokio::test]
async fn later_versions_are_refused() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"x").await.unwrap();
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = refused(&path).await;
    assert!(matches!(error, Error::UnsupportedVersion { found: 99, newest: NEWEST, .. }), "{error:?}");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", NEWEST).unwrap();
    assert!(config().open(&path).await.unwrap().has_session("a").await.unwrap());
}

#[tokio::test]
async fn empty_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    fs::write(&path, "").unwrap();
    let error = config().open(&path).await.unwrap_err();
    assert!(matches!(error, Error::ForeignFile { found: ForeignFile::Empty, .. }), "{error:?}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(config().must_exist().open(&path).await, Err(Error::File { .. })));
    config().open(&path).await.unwrap().put_session("a", b"x").await.unwrap();
    assert!(config().open(&path).await.unwrap().has_session("a").await.unwrap());

    let missing = folder.path().join("no such folder").join("wa.db");
    let error = config().open(&missing).await.unwrap_err();
    assert!(error.to_string().contains("folder that does not exist"), "{error}");
    let error = config().open(folder.path()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
}

/// A truncated file and overwritten pages lead to errors, never to wrong answers.
#[tokio::test]
async fn damaged_files_are_noticed() {
    let scratch = Scratch::new().await;
    let rows: Vec<_> = (0..500).map(|number| (address(number), vec![number as u8; 1500].into())).collect();
    scratch.store.put_sessions_batch(&rows).await.unwrap();
    canaries::fill(&scratch.store).await;
    assert_eq!(scratch.store.integrity_check().await.unwrap(), [] as [String; 0]);
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    let whole = fs::read(&path).unwrap();
    assert!(whole.len() > 120 * 8192);

    let mut holes = whole.clone();
    holes[100 * 8192..130 * 8192].fill(0x5a);
    fs::write(&path, &holes).unwrap();
    let store = config().open(&path).await.unwrap();
    let mut damaged = 0;
    for number in 0..500 {
        match store.get_session(&address(number)).await {
            Ok(found) => assert_eq!(found.unwrap(), vec![number as u8; 1500]),
            result => {
                assert_eq!(problem(result), SqliteProblem::Damaged);
                damaged += 1;
            }
        }
    }
    assert!(damaged > 100, "{damaged}");
    assert!(!store.integrity_check().await.unwrap().is_empty());
    assert_eq!(problem(store.put_sessions_batch(&rows).await), SqliteProblem::Damaged);
    drop(store);

    fs::write(&path, &whole[..30 * 8192]).unwrap();
    match config().open(&path).await {
        Err(Error::Sqlite { problem: SqliteProblem::Damaged, .. }) => {}
        Err(error) => panic!("{error:?}"),
        Ok(store) => assert_eq!(problem(store.put_sessions_batch(&rows).await), SqliteProblem::Damaged),
    }

    fs::write(&path, &whole).unwrap();
    let store = config().open(&path).await.unwrap();
    assert_eq!(store.get_session(&address(77)).await.unwrap().unwrap(), vec![77; 1500]);
}

/// A file with added triggers and views is refused, and they do not run.
#[tokio::test]
async fn nothing_runs_that_a_changed_file_brings_along() {
    let scratch = Scratch::new().await;
    scratch.store.put_session(&address(1), b"kept").await.unwrap();
    scratch.store.put_identity("identity", [7; 32]).await.unwrap();
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    let change = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let altered = |error| {
        let Error::SchemaAltered { object } = error else { panic!("{error:?}") };
        object
    };
    change(
        "CREATE TRIGGER evil AFTER INSERT ON sessions BEGIN DELETE FROM identities; END;
         CREATE TRIGGER worse AFTER DELETE ON sessions BEGIN DELETE FROM identities; END;",
    );
    assert_eq!(altered(refused(&path).await), "trigger evil");
    change(
        "DROP TRIGGER evil; DROP TRIGGER worse; ALTER TABLE identities RENAME TO hidden;
         CREATE VIEW identities AS SELECT account, address, zeroblob(32) AS key FROM hidden;",
    );
    assert_eq!(altered(refused(&path).await), "table hidden");
    assert_eq!(store_of(&path, "hidden"), [7; 32]);
}

/// The value in the only row of a table of identities.
fn store_of(path: &Path, table: &str) -> [u8; 32] {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row(&format!("SELECT key FROM {table}"), (), |row| row.get(0)).unwrap()
}

#[cfg(unix)]
#[tokio::test]
async fn files_are_private_and_existing_modes_stay() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"x").await.unwrap();
    for ending in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{ending}", scratch.path.display()));
        assert_eq!(mode(&path), 0o600, "{ending}");
    }
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let store = config().open(&path).await.unwrap();
    store.put_session("a", b"y").await.unwrap();
    assert_eq!(mode(&path), 0o640);
}

/// A user without write access. The child drops root's rights first if it has them.
#[cfg(unix)]
#[test]
fn missing_permissions_are_named() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    const UNPRIVILEGED: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    let (path, program) = (folder.path().join("wa.db"), folder.path().join("test"));
    futures::executor::block_on(async {
        config().open(&path).await.unwrap().put_session("a", b"x").await.unwrap();
    });
    let own = fs::metadata(&path).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (errand, file_mode, folder_mode) in
        [("read-only file", 0o444, 0o777), ("unreadable file", 0o000, 0o777), ("read-only folder", 0o666, 0o555)]
    {
        fs::set_permissions(&path, fs::Permissions::from_mode(file_mode)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(folder_mode)).unwrap();
        let mut command = child("bad_files::without_permission", errand, &path);
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_owned()).collect();
        let variables: Vec<_> =
            command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
        command = Command::new(&program);
        command.args(arguments).envs(variables);
        if own.uid() == 0 {
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{errand}: {}", String::from_utf8_lossy(&said));
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn without_permission() {
    let expected = ["read-only file", "unreadable file", "read-only folder"];
    let Some((errand, path)) = expected.iter().find_map(|name| Some((*name, errand(name)?))) else { return };
    single_threaded().block_on(async {
        let error = match config().open(&path).await {
            Err(error) => error,
            Ok(store) => match store.put_session("a", b"y").await.unwrap_err() {
                StoreError::Database(source) | StoreError::Connection(source) => *source.downcast().unwrap(),
                error => panic!("{error:?}"),
            },
        };
        let text = match &error {
            Error::File { source, .. } => source.to_string(),
            error => error.to_string(),
        };
        let names = text.contains("Permission denied") && text.contains("with mode ") && text.contains("as user 65534");
        assert!(names || text.contains("permissions"), "{errand}: {text}");
        assert!(!text.contains("locked") && !text.contains("busy"), "{text}");
    });
}
