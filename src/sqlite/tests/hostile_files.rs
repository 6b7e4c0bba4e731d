//! Random edits of a file between calls: no call reports success after losing a row, no call
//! panics, and no error contains text of the file.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::schema::ALTERATIONS;
use super::walks::{Closed, counts, key, loosely, without_index};
use super::*;
use crate::Layer;
use crate::encrypt::VaultOptions;
use crate::maintenance::Verify;
use crate::method::{Method, Record};
use crate::rows::store::Rows;
use crate::testing::canaries;
use crate::vault::OpenMode;

const TABLES: [&str; 18] = [
    "sessions",
    "sessions",
    "sessions",
    "prekeys",
    "signed_prekeys",
    "sender_keys",
    "sync_keys",
    "collection_versions",
    "mutation_macs",
    "mutation_macs",
    "sender_key_devices",
    "lid_mappings",
    "base_keys",
    "device_lists",
    "tc_tokens",
    "sent_messages",
    "pending_inbound",
    "message_secrets",
];

/// Edits a file that no process has open.
fn edit_closed(path: &Path, rng: &mut StdRng) -> String {
    let mut file = std::fs::read(path).unwrap();
    let pages = file.len() / 8192;
    let page = rng.random_range(0..pages) * 8192;
    match rng.random_range(0..10) {
        // Bytes anywhere in a page, in its header and cell pointers, and in the schema's page.
        0 | 1 => {
            for _ in 0..rng.random_range(1..8) {
                file[page + rng.random_range(0..8192)] = rng.random();
            }
        }
        2 | 3 => {
            let from = if page == 0 { 100 } else { page };
            for _ in 0..rng.random_range(1..4) {
                file[from + rng.random_range(0..200)] = rng.random();
            }
        }
        4 => {
            // Two cells are swapped, or one is duplicated.
            let (one, two) = (rng.random_range(0..20) * 2, rng.random_range(0..20) * 2);
            let kind = file[page];
            let at = page + if kind == 5 || kind == 2 { 12 } else { 8 };
            for byte in 0..2 {
                file[at + one + byte] = file[at + two + byte];
            }
        }
        5 => {
            // The page claims fewer cells than it has.
            file[page + 4] = file[page + 4].saturating_sub(rng.random_range(0..3));
            file[page + 3] = 0;
        }
        6 => {
            let other = rng.random_range(0..pages) * 8192;
            let copy = file[other..other + 8192].to_vec();
            if page > 0 {
                file[page..page + 8192].copy_from_slice(&copy);
            }
        }
        7 => file[page.max(100)..page + 8192].fill(0),
        8 => file.truncate(rng.random_range(1..=pages) * 8192),
        _ => {
            let length = rng.random_range(1..60);
            let from = page + rng.random_range(0..8192 - 60);
            let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            file[from..from + length].copy_from_slice(&bytes);
        }
    }
    std::fs::write(path, file).unwrap();
    format!("page {}", page / 8192 + 1)
}

/// Edits a file by SQL. A store may have it open.
fn edit_with_sql(path: &Path, rng: &mut StdRng) -> String {
    let table = TABLES[rng.random_range(0..TABLES.len())];
    let value =
        ["5", "2.5", "'CANARY'", "x'ff'", "NULL", "CAST(x'ff41' AS TEXT)", "zeroblob(70)"][rng.random_range(0..7)];
    let chosen = format!("abs(random()) % {} = 0", rng.random_range(1..40));
    match rng.random_range(0..6) {
        0 | 1 => {
            let (sql, _) = ALTERATIONS[rng.random_range(0..ALTERATIONS.len())];
            let done = Connection::open(path).and_then(|connection| {
                connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
                connection.execute_batch(&sql.replace("planted", "CANARY"))
            });
            format!("{sql}: {done:?}")
        }
        2 => {
            let sql = format!("DELETE FROM {table} WHERE {chosen}");
            let done = Connection::open(path).and_then(|connection| connection.execute_batch(&sql));
            format!("{sql}: {done:?}")
        }
        3 => {
            let sql = format!("UPDATE {table} SET account = {} WHERE {chosen}", rng.random_range(0..3));
            let done = Connection::open(path).and_then(|connection| connection.execute_batch(&sql));
            format!("{sql}: {done:?}")
        }
        4 => {
            let column: rusqlite::Result<String> = Connection::open(path).and_then(|connection| {
                let sql = format!("SELECT name FROM pragma_table_info('{table}') ORDER BY random() LIMIT 1");
                connection.query_row(&sql, (), |row| row.get(0))
            });
            let sql = format!("UPDATE {table} SET {} = {value} WHERE {chosen}", column.unwrap_or_default());
            let done = loosely(path, table, &sql);
            format!("loosely {sql}: {done:?}")
        }
        _ => {
            let index = format!("{table}_key");
            let sql = format!("DELETE FROM {table} WHERE {chosen}");
            let done = without_index(path, &index, &sql);
            format!("without {index} {sql}: {done:?}")
        }
    }
}

/// No error of the chain contains text of the file, or makes a caller retry for ever.
fn tame(error: &(dyn std::error::Error + 'static), edits: &[String]) {
    let mut chain = Some(error);
    let mut contended = false;
    let mut named = false;
    while let Some(link) = chain {
        contended |=
            matches!(link.downcast_ref::<Error>(), Some(Error::Sqlite { problem: SqliteProblem::Contended, .. }));
        named |= format!("{link:?}").contains("SchemaAltered");
        let text = format!("{link} {link:?}");
        assert!(named || contended || !text.contains("CANARY"), "{edits:?}: {text}");
        let text = link.to_string();
        assert!(contended || !(text.contains("locked") || text.contains("busy")), "{edits:?}: {text}");
        assert!(!text.chars().any(char::is_control), "{edits:?}: {text}");
        chain = link.source();
    }
}

/// Runs every call on the file, with edits in between.
async fn try_everything(closed: &Closed, rng: &mut StdRng, edits: &mut Vec<String>) -> (bool, bool) {
    let store = match config().open(&closed.path).await {
        Ok(store) => store,
        Err(error) => {
            tame(&error, edits);
            return (false, false);
        }
    };
    let vault = match VaultOptions::new().mode(OpenMode::ReadOnly).open(Arc::new(store.clone()), key()).await {
        Ok(vault) => vault,
        Err(error) => {
            tame(&error, edits);
            return (true, false);
        }
    };
    let between = |rng: &mut StdRng, edits: &mut Vec<String>| {
        if rng.random_range(0..4) == 0 {
            edits.push(edit_with_sql(&closed.path, rng));
        }
    };
    between(rng, edits);
    let counted = counts(&closed.path);
    let sum = |counts: &BTreeMap<&str, u64>| counts.values().sum::<u64>();
    let mut sound = false;
    match Verify::new().run(&store, &vault).await {
        Ok(report) => {
            let text = format!("{report} {report:?}");
            assert!(!text.contains("CANARY"), "{edits:?}: {text}");
            let checked: u64 = Record::ALL.iter().map(|record| report.checked(*record)).sum();
            sound = report.is_sound();
            if sound {
                // The check also counts both copies of the header. A device without a carrier does
                // not count.
                let counted =
                    counted.as_ref().unwrap_or_else(|_| panic!("{edits:?}: sound, but SQLite counts nothing"));
                assert_eq!(checked + 2, sum(counted), "{edits:?}: {report}");
            }
        }
        Err(error) => tame(&error, edits),
    }
    between(rng, edits);
    #[cfg(feature = "import")]
    {
        let (counted, target) = (counts(&closed.path), closed.folder.path().join("export.db"));
        match crate::import::Export::new().run(&store, &vault, &target).await {
            Ok(report) => {
                let given: u64 =
                    Record::ALL.iter().map(|record| report.exported(*record) + report.dropped(*record)).sum();
                let headers = HEADERS.min(counted.as_ref().map_or(0, |counted| counted["sender_keys"]));
                let counted = counted.unwrap_or_else(|_| panic!("{edits:?}: exported, but SQLite counts nothing"));
                assert!(given + headers >= sum(&counted), "{edits:?}: {report} {counted:?}");
            }
            Err(error) => tame(&error, edits),
        }
        std::fs::remove_file(&target).ok();
    }
    between(rng, edits);
    let (counted, copy) = (counts(&closed.path), closed.folder.path().join("copy.db"));
    match store.backup(&copy).await {
        Ok(()) => {
            let counted = counted.unwrap_or_else(|_| panic!("{edits:?}: copied, but SQLite counts nothing"));
            assert_eq!(counts(&copy).unwrap(), counted, "{edits:?}");
        }
        Err(error) => tame(&error, edits),
    }
    std::fs::remove_file(&copy).ok();
    match store.sealed_prefixes(Box::new(|_| {})).await {
        Ok(prefixes) => {
            if let Ok(counted) = counts(&closed.path) {
                assert!(prefixes.iter().all(|table| counted[table.table] == table.rows), "{edits:?}: {prefixes:?}");
            }
        }
        Err(error) => tame(&error, edits),
    }
    let layered = vault.layer().layer(Arc::new(store.clone()));
    for method in Method::ALL.iter().filter(|method| !method.access().changes_rows()) {
        if let Err(error) = canaries::call(&*layered, *method).await {
            tame(&error, edits);
        }
    }
    between(rng, edits);
    for method in Method::ALL {
        if let Err(error) = canaries::call(&store, *method).await {
            tame(&error, edits);
        }
    }
    for outcome in [store.vacuum().await, store.delete_account().await, store.checkpoint().await] {
        if let Err(error) = outcome {
            tame(&error, edits);
        }
    }
    (true, sound)
}

#[cfg(feature = "import")]
const HEADERS: u64 = 2;

#[tokio::test]
async fn nothing_reports_success_after_losing_a_row() {
    let long = std::env::var_os("WASTORE_LONG").is_some();
    let cases = if long { 1000 } else { 60 };
    let closed = Closed::new(90).await;
    let (mut opened, mut sound) = (0, 0);
    for case in 0..cases {
        let mut rng = StdRng::seed_from_u64(case);
        closed.reset();
        let mut edits = vec![];
        for _ in 0..rng.random_range(0..3) {
            edits.push(match rng.random_range(0..3) {
                0 => edit_with_sql(&closed.path, &mut rng),
                _ => edit_closed(&closed.path, &mut rng),
            });
        }
        edits.push(format!("case {case}"));
        let outcome = try_everything(&closed, &mut rng, &mut edits).await;
        opened += u64::from(outcome.0);
        sound += u64::from(outcome.1);
        for entry in std::fs::read_dir(closed.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path != closed.path {
                std::fs::remove_file(path).ok();
            }
        }
    }
    println!("{cases} cases, {opened} were opened, {sound} were sound");
    // Some edits, but not all, are noticed at once; some, but not all, are harmless.
    assert!(opened > cases / 4 && sound > 0 && sound < opened, "{cases} {opened} {sound}");
}
