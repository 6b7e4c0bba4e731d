//! The schema of the file is exactly the one that the migrations make.

use std::sync::atomic::Ordering;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use wacore::store::traits::{AppSyncStore, Backend, DeviceStore, MsgSecretStore, ProtocolStore, SignalStore};

use super::bad_files::refused;
use super::*;
use crate::method::{Method, Record};
use crate::sqlite::connection::{GUARDS, LIMITS};
use crate::testing::canaries;

/// Changes of the schema, and the object that the error names.
pub(super) const ALTERATIONS: &[(&str, &str)] = &[
    ("ALTER TABLE sessions ADD COLUMN rowid INTEGER", "table sessions"),
    ("ALTER TABLE mutation_macs ADD COLUMN more TEXT", "table mutation_macs"),
    (
        "ALTER TABLE sender_keys ADD COLUMN message INTEGER REFERENCES sent_messages (rowid) ON DELETE CASCADE",
        "table sender_keys",
    ),
    ("CREATE TRIGGER planted AFTER DELETE ON sent_messages BEGIN DELETE FROM sender_keys; END", "trigger planted"),
    ("CREATE VIEW planted AS SELECT 1", "view planted"),
    ("CREATE TABLE planted (x)", "table planted"),
    ("CREATE INDEX planted ON sessions (record)", "index planted"),
    ("CREATE INDEX planted ON devices (length(record))", "index planted"),
    ("DROP INDEX sessions_key", "index sessions_key"),
    ("DROP INDEX sessions_key; CREATE INDEX sessions_key ON sessions (account, address)", "index sessions_key"),
    ("DROP INDEX base_keys_created_at", "index base_keys_created_at"),
    ("DROP TABLE identities", "table identities"),
    ("ALTER TABLE prekeys RENAME TO others", "table others"),
    ("ALTER TABLE prekeys RENAME COLUMN id TO number", "table prekeys"),
    ("ANALYZE", "table sqlite_stat1"),
    ("CREATE VIRTUAL TABLE planted USING fts5(x)", "table planted"),
    ("CREATE TABLE \"a\u{1b}[2Jb\nc\" (x)", "table a\\u{1b}[2Jb\\nc"),
    ("CREATE VIEW \"database is locked\" AS SELECT 1", "an object with a misleading name"),
    (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema AS other
            WHERE other.name = 'prekeys') WHERE name = 'signed_prekeys'",
        "table signed_prekeys",
    ),
    ("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = sql || ' ' WHERE name = 'devices'", "table devices"),
    (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'devices'",
        "table devices",
    ),
    (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'payload BLOB NOT NULL',
            'payload BLOB NOT NULL CHECK (0)') WHERE name = 'sent_messages'",
        "table sent_messages",
    ),
    (
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'address TEXT NOT NULL',
            'address TEXT NOT NULL DEFAULT (randomblob(9)) COLLATE NOCASE') WHERE name = 'sessions'",
        "table sessions",
    ),
];

fn alter(path: &Path, sql: &str) {
    let connection = Connection::open(path).unwrap();
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false).unwrap();
    connection.execute_batch(sql).unwrap();
}

fn is_altered<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    let error = result.expect_err("the call should have failed");
    assert!(!error.is_database_busy_or_locked(), "{error:?}");
    let Some(Error::SchemaAltered { object }) = Error::downcast_ref(&error) else { panic!("{error:?}") };
    object.clone()
}

/// Includes the planted column `rowid`, which walks would read, and the foreign key whose action
/// would delete the header.
#[tokio::test]
async fn an_altered_schema_is_named_and_the_file_left_alone() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for (sql, expected) in ALTERATIONS {
        std::fs::write(&path, &whole).unwrap();
        alter(&path, sql);
        let error = refused(&path).await;
        let Error::SchemaAltered { object } = &error else { panic!("{sql}: {error:?}") };
        assert_eq!(object, expected, "{sql}");
    }
    std::fs::write(&path, &whole).unwrap();
    let store = config().open(&path).await.unwrap();
    assert!(store.exists().await.unwrap());
}

/// With the write-ahead log that a killed process leaves.
#[tokio::test]
async fn an_altered_schema_in_the_log_stays_there() {
    let scratch = Scratch::new().await;
    scratch.store.put_session("a", b"x").await.unwrap();
    alter(&scratch.path, "CREATE VIEW planted AS SELECT 1");
    let copy = scratch.path.with_file_name("copy.db");
    for ending in ["", "-wal"] {
        let path = |path: &Path| format!("{}{ending}", path.display());
        std::fs::copy(path(&scratch.path), path(&copy)).unwrap();
    }
    assert!(std::fs::metadata(format!("{}-wal", copy.display())).unwrap().len() > 0);
    assert!(matches!(refused(&copy).await, Error::SchemaAltered { .. }));
}

/// Every call of an open store notices, on the writer and on readers, and works again once the
/// schema is restored.
#[tokio::test]
async fn a_schema_that_changes_under_an_open_store_stops_every_call() {
    let scratch = Scratch::new().await;
    let store = &scratch.store;
    canaries::fill(store).await;
    let device = store.load().await.unwrap();
    // Prepare statements on every connection.
    for method in Method::ALL {
        canaries::call(store, *method).await.unwrap();
    }
    canaries::fill(store).await;
    let payload = store.get_session("x").await.unwrap();
    for (sql, undo) in [
        (
            "CREATE TRIGGER planted AFTER DELETE ON sent_messages BEGIN DELETE FROM sender_keys; END",
            "DROP TRIGGER planted",
        ),
        ("ALTER TABLE sessions ADD COLUMN rowid INTEGER", "ALTER TABLE sessions DROP COLUMN rowid"),
        (
            "ALTER TABLE sender_keys ADD COLUMN message INTEGER REFERENCES sent_messages (rowid) ON DELETE CASCADE",
            "ALTER TABLE sender_keys DROP COLUMN message",
        ),
        ("CREATE VIEW planted AS SELECT 1", "DROP VIEW planted"),
        ("CREATE INDEX planted ON tc_tokens (token)", "DROP INDEX planted"),
    ] {
        let count = || {
            let connection = Connection::open(&scratch.path).unwrap();
            let count = "SELECT (SELECT count(*) FROM sent_messages) + (SELECT count(*) FROM sender_keys)";
            connection.query_row(count, (), |row| row.get::<_, i64>(0)).unwrap()
        };
        let before = count();
        alter(&scratch.path, sql);
        let named = is_altered(store.get_session("x").await);
        for _ in 0..2 {
            assert_eq!(is_altered(store.put_session("y", b"1").await), named);
            assert_eq!(is_altered(store.take_sent_message("chat", "id").await), named);
            assert_eq!(is_altered(store.store_sent_message("chat", "new", b"1").await), named);
            assert_eq!(is_altered(store.get_all_lid_mappings().await), named);
            assert_eq!(is_altered(store.get_version("x").await), named);
            assert_eq!(is_altered(store.delete_expired_sent_messages(i64::MAX).await), named);
            assert_eq!(is_altered(store.get_msg_secret("a", "b", "c").await), named);
            let puts = (0..20).map(|number| {
                let store = store.clone();
                async move { store.put_session(&address(number), b"1").await }
            });
            for result in futures::future::join_all(puts).await {
                assert_eq!(is_altered(result), named);
            }
            let error = store.delete_account().await.unwrap_err();
            assert!(matches!(error, Error::SchemaAltered { .. }), "{error:?}");
            let error = store.backup(scratch.path.with_extension("copy")).await.unwrap_err();
            assert!(matches!(error, Error::SchemaAltered { .. }), "{error:?}");
            assert!(!scratch.path.with_extension("copy").exists());
            let error = store.integrity_check().await.unwrap_err();
            assert!(matches!(error, Error::SchemaAltered { .. }), "{error:?}");
            let error = store.accounts_in_use().await.unwrap_err();
            assert!(matches!(error, Error::SchemaAltered { .. }), "{error:?}");
        }
        assert_eq!(count(), before, "{sql}");
        alter(&scratch.path, undo);
        assert_eq!(store.get_session("x").await.unwrap(), payload);
        store.put_session("y", b"1").await.unwrap();
        assert!(store.take_sent_message("no", "such").await.unwrap().is_none());
    }
    assert_eq!(store.load().await.unwrap().is_some(), device.is_some());
}

/// A statement that was never prepared does not slip through after a refused one.
#[tokio::test]
async fn new_statements_are_not_prepared_against_a_changed_schema() {
    let scratch = Scratch::with(config().read_connections(1)).await;
    let store = &scratch.store;
    store.put_sender_key("a", b"1").await.unwrap();
    store.put_session("a", b"1").await.unwrap();
    alter(
        &scratch.path,
        "CREATE TRIGGER planted AFTER DELETE ON sessions BEGIN DELETE FROM sender_keys; END;
        ALTER TABLE sender_keys ADD COLUMN x TEXT",
    );
    is_altered(store.get_session("a").await);
    is_altered(store.delete_session("a").await);
    is_altered(store.delete_sender_key("a").await);
    is_altered(store.get_group_metadata("a").await);
    // In the middle of a transaction that ignores errors.
    let stubborn = |c: &Connection| {
        let _ = c.run("/* test */ DELETE FROM sessions", ());
        c.run("/* test */ DELETE FROM sender_keys WHERE account = 1", ())
    };
    is_altered(store.write(WritePlan::DURABLE.transaction(), stubborn).await);
    let connection = Connection::open(&scratch.path).unwrap();
    let count = |table: &str| {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((count("sessions"), count("sender_keys")), (1, 1));
}

/// A change of the schema's number alone is not noticed.
#[tokio::test]
async fn a_rewrite_by_others_disturbs_no_call() {
    let scratch = Scratch::new().await;
    let store = &scratch.store;
    let other = config().account(2).open(&scratch.path).await.unwrap();
    let first = other.account(1);
    let vacuum = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30); c.execute('VACUUM'); c.close()";
    for round in 0..6 {
        let mut rewriting = Command::new("python3").args(["-c", vacuum]).arg(&scratch.path).spawn().unwrap();
        for number in 0..40 {
            let name = format!("{round} {number}");
            store.put_session(&name, &[7; 600]).await.unwrap();
            assert!(first.has_session(&name).await.unwrap());
            other.store_sent_message("chat", &name, b"1").await.unwrap();
            assert!(other.take_sent_message("chat", &name).await.unwrap().is_some());
            assert!(store.get_all_tc_token_jids().await.unwrap().is_empty());
        }
        assert!(rewriting.wait().unwrap().success());
        other.vacuum().await.unwrap();
        assert!(store.has_session(&format!("{round} 1")).await.unwrap());
    }
    assert_eq!(store.integrity_check().await.unwrap(), [] as [String; 0]);
}

/// Statements are prepared once, and again only after a change of the schema. Runs in its own
/// process, where no other test changes the schema.
#[test]
fn statements_are_prepared_once() {
    let folder = tempfile::tempdir().unwrap();
    let output = child("schema::prepare_once", "prepare", &folder.path().join("wa.db")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn prepare_once() {
    let Some(path) = errand("prepare") else { return };
    single_threaded().block_on(async {
        let store = config().open(&path).await.unwrap();
        for _ in 0..3 {
            canaries::fill(&store).await;
            for method in Method::ALL {
                canaries::call(&store, *method).await.unwrap();
            }
        }
        store.checkpoint().await.unwrap();
        store.shrink(None).await.unwrap();
        store.integrity_check().await.unwrap();
        assert_eq!(DENIED.load(Ordering::Relaxed), 0);
    });
}

#[tokio::test]
async fn every_guard_is_set_on_every_connection() {
    let scratch = Scratch::new().await;
    let look = |c: &Connection| {
        for (guard, value) in GUARDS {
            // Reading this setting changes it.
            assert_eq!(c.db_config(*guard).unwrap(), *value, "{guard:?}");
        }
        for (limit, value) in LIMITS {
            assert_eq!(c.limit(*limit).unwrap(), *value, "{limit:?}");
        }
        let pragma = |name| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(
            ["foreign_keys", "cell_size_check", "ignore_check_constraints", "trusted_schema"].map(pragma),
            [0, 1, 1, 0]
        );
        assert_eq!(["writable_schema", "recursive_triggers"].map(pragma), [0, 0]);
        let denied = c.prepare("SELECT load_extension('x')").map(drop);
        assert!(denied.is_err());
        Ok(pragma("query_only"))
    };
    // A refused statement is not prepared by itself: the schema is checked again.
    assert_eq!(scratch.store.database.write(WritePlan::MAINTENANCE, look).await.unwrap(), 0);
    assert_eq!(scratch.store.database.read_long(look).await.unwrap(), 1);
    // The function stays disabled even if the statement may be prepared.
    let load = |c: &Connection| {
        let call = || c.query_row("SELECT load_extension('x')", (), |row| row.get::<_, String>(0));
        Ok(crate::sqlite::connection::permitted(call).unwrap_err().to_string())
    };
    let said = scratch.store.database.read_long(load).await.unwrap();
    assert!(said.contains("not authorized"), "{said}");
}

/// Names from an altered file are in no error, and values of a wrong type are damage of their row.
#[tokio::test]
async fn what_is_in_the_file_is_in_no_error() {
    let scratch = Scratch::new().await;
    canaries::fill(&scratch.store).await;
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for sql in [
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('view', 'CANARY', 'CANARY', 3, 'CREATE VIEW CANARY')",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CANARY database is locked' WHERE name = 'sessions'",
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('index', 'CANARY', 'sessions', 3,
            'CREATE INDEX CANARY ON sessions (canary(account))')",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 999999 WHERE name = 'sessions'",
    ] {
        std::fs::write(&path, &whole).unwrap();
        alter(&path, sql);
        let error = config().open(&path).await.unwrap_err();
        let mut chain: Option<&dyn std::error::Error> = Some(&error);
        while let Some(link) = chain {
            let text = format!("{link} {link:?}");
            let named = matches!(error, Error::SchemaAltered { .. });
            assert!(named || !text.to_lowercase().contains("canary"), "{sql}: {text}");
            assert!(!text.contains("locked") && !text.contains("busy"), "{sql}: {text}");
            chain = link.source();
        }
        assert!(!StoreError::from(error).is_database_busy_or_locked());
    }
}

#[tokio::test]
async fn values_of_a_wrong_type_are_damage_of_their_row() {
    let scratch = Scratch::new().await;
    let store: &dyn Backend = &scratch.store;
    store.put_session("session", b"CANARYCANARY").await.unwrap();
    store.store_prekey(7, b"CANARYCANARY", true).await.unwrap();
    store.put_sender_key("sender", b"CANARYCANARY").await.unwrap();
    let Scratch { store, path, _folder } = scratch;
    drop(store);
    // In the record's header, the type of a blob becomes the type of a text.
    let mut file = std::fs::read(&path).unwrap();
    let blob = (12 + 12 * 2) as u8;
    let mut changed = 0;
    for at in memchr::memmem::find_iter(&file.clone(), b"CANARYCANARY") {
        let header = (at.saturating_sub(40)..at).rev().find(|at| file[*at] == blob).unwrap();
        file[header] = blob + 1;
        file[at] = 0xff;
        changed += 1;
    }
    assert_eq!(changed, 3);
    std::fs::write(&path, &file).unwrap();
    let store = config().open(&path).await.unwrap();
    let malformed = |error: StoreError, expected| {
        let Some(Error::Malformed { record }) = Error::downcast_ref(&error) else { panic!("{error:?}") };
        assert_eq!(*record, expected);
        assert!(!format!("{error:?} {error}").contains("CANARY"));
    };
    malformed(store.get_session("session").await.unwrap_err(), Record::Session);
    malformed(store.load_prekey(7).await.unwrap_err(), Record::Prekey);
    malformed(store.get_sender_key("sender").await.unwrap_err(), Record::SenderKey);
}
