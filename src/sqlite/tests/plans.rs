//! No statement reads a whole table.

use super::*;
use crate::maintenance::Rotate;
use crate::method::Method;
use crate::sqlite::connection::permitted;
use crate::testing::canaries;
use crate::{Key, Layer, Vault};

/// The beginnings of statements on whole tables: of accounts, and of checks. Other tests run them
/// at the same time.
const WHOLE_TABLE: [&str; 5] = [
    "SELECT account FROM devices ",
    "SELECT count(*), ",
    "/* every row */",
    "PRAGMA integrity_check",
    "PRAGMA quick_check",
];

/// The plan of a statement, one line per step.
fn plan(c: &rusqlite::Connection, sql: &str) -> crate::Result<Vec<String>> {
    let mut statement = permitted(|| c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")))?;
    let parameters = rusqlite::params_from_iter((0..statement.parameter_count()).map(|_| 1));
    let steps = statement.query_map(parameters, |row| row.get(3))?.collect::<rusqlite::Result<_>>()?;
    Ok(steps)
}

#[tokio::test]
async fn every_statement_searches_an_index() {
    let scratch = Scratch::new().await;
    let store = &scratch.store;
    canaries::fill(store).await;
    for method in Method::ALL {
        canaries::call(store, *method).await.unwrap();
    }
    store.delete_account().await.unwrap();
    let store = &store.account(1);
    let sealed = Scratch::new().await;
    let inner = Arc::new(sealed.store.clone());
    let vault = Vault::create(inner.clone(), Key::generate().unwrap()).await.unwrap();
    canaries::fill(&*vault.layer().layer(inner)).await;
    assert!(Rotate::new().run(&sealed.store, &vault).await.unwrap().resealed() > 0);
    let statements = STATEMENTS.lock().unwrap().clone();
    let mut looked_at = 0;
    for sql in statements {
        if sql.contains(OF_TESTS)
            || WHOLE_TABLE.iter().any(|begin| sql.starts_with(begin))
            || ["BEGIN", "COMMIT", "ROLLBACK"].iter().any(|word| sql.starts_with(word))
        {
            continue;
        }
        // Every key begins with the account, so a search for the account alone scans all of its
        // rows.
        let of_account = sql.ends_with("WHERE account = ?1") || sql.contains("ORDER BY");
        for step in store.read(|c| plan(c, sql)).await.unwrap() {
            assert!(step == "SCAN CONSTANT ROW" || !step.contains("SCAN "), "{sql}\n{step}");
            assert!(!step.contains("TEMP B-TREE"), "{sql}\n{step}");
            assert!(of_account || !step.ends_with("(account=?)"), "{sql}\n{step}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 70, "{looked_at}");
}

/// The test above would notice a missing index.
#[tokio::test]
async fn a_missing_index_shows_in_the_plans() {
    let store = SqliteStore::in_memory().await.unwrap();
    let plans = |c: &rusqlite::Connection| {
        let sql = "SELECT rowid FROM sent_messages WHERE account = ?1 AND created_at < ?2";
        let before = plan(c, sql)?;
        permitted(|| c.execute("DROP INDEX sent_messages_created_at", ()))?;
        Ok((before, plan(c, sql)?))
    };
    let (before, after) = store.database.write(WritePlan::DURABLE, plans).await.unwrap();
    assert!(before.concat().ends_with("(account=? AND created_at<?)"));
    assert!(after.concat().ends_with("(account=?)"));
}
