//! No statement reads a table from end to end.

use super::*;
use crate::method::Method;
use crate::sample;

/// Statements that are about a whole table.
const WHOLE_TABLE: [&str; 2] = ["SELECT account FROM devices ORDER BY account", "PRAGMA integrity_check"];

/// The plan of a statement, a line per step.
async fn plan(store: &SqliteStore, sql: &'static str) -> Vec<String> {
    store
        .read_long(move |c| {
            let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let parameters = rusqlite::params_from_iter((0..statement.parameter_count()).map(|_| 1));
            let steps = statement.query_map(parameters, |row| row.get(3))?.collect::<rusqlite::Result<_>>()?;
            Ok(steps)
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn every_statement_searches_an_index() {
    let scratch = Scratch::new().await;
    let store = &scratch.store;
    sample::fill(store).await;
    for method in Method::ALL {
        sample::call(store, *method).await.unwrap();
    }
    store.delete_account().await.unwrap();
    let statements = STATEMENTS.lock().unwrap().clone();
    let mut looked_at = 0;
    for sql in statements {
        if sql.contains(OF_TESTS)
            || WHOLE_TABLE.contains(&sql)
            || ["BEGIN", "COMMIT", "ROLLBACK"].iter().any(|word| sql.starts_with(word))
        {
            continue;
        }
        for step in plan(store, sql).await {
            assert!(step == "SCAN CONSTANT ROW" || !step.contains("SCAN "), "{sql}\n{step}");
            assert!(!step.contains("TEMP B-TREE"), "{sql}\n{step}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 70, "{looked_at}");
}
