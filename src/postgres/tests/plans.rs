//! No statement reads a whole table.

use super::*;
use crate::method::Method;
use crate::postgres::tables::{self, SqlTable};
use crate::postgres::whole_rows::WholeTable;
use crate::rows::table::TABLES;
use crate::testing::canaries;

/// How many rows each table has.
const ROWS: u32 = 100_000;

/// Fills every table: half of the rows belong to account 1. Values differ in their columns' types.
async fn fill(scratch: &Scratch, client: &Client) {
    const TABLES: &str = "SELECT c.relname, string_agg(CASE
            WHEN a.attname = 'account' THEN '1 + i % 2'
            WHEN a.atttypid = 'bytea'::regtype THEN 'int4send(i) || int4send(i)'
            WHEN a.atttypid = 'bigint'::regtype THEN 'i'
            WHEN a.atttypid = 'integer'::regtype THEN 'i'
            WHEN a.atttypid = 'boolean'::regtype THEN 'i % 2 = 0'
            ELSE 'now()' END, ', ' ORDER BY a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND c.relkind = 'r'
        AND c.relname NOT IN ('store', 'leases', 'devices') GROUP BY 1";
    for row in client.query(TABLES, &[&scratch.schema]).await.unwrap() {
        let (table, values): (String, String) = (row.get(0), row.get(1));
        scratch
            .run(client, &format!("INSERT INTO @.{table} SELECT {values} FROM generate_series(1000, {ROWS}) AS i"))
            .await;
    }
    scratch.run(client, "INSERT INTO @.devices SELECT i, int4send(i) FROM generate_series(10, 100000) AS i").await;
    scratch
        .run(
            client,
            "INSERT INTO @.leases SELECT i, 1, int4send(i), '', now(), now() FROM generate_series(10, 100000) AS i",
        )
        .await;
    client.batch_execute("ANALYZE").await.unwrap();
}

/// The plan that a prepared statement gets when the server no longer looks at its parameters.
async fn plan(scratch: &Scratch, client: &Client, sql: &str, types: &[Type]) -> String {
    let names: Vec<_> = types.iter().map(Type::name).map(|name| name.replace('_', "")).collect();
    let arrays: Vec<_> = types.iter().map(|ty| if ty.name().starts_with('_') { "[]" } else { "" }).collect();
    let declared: Vec<_> = names.iter().zip(&arrays).map(|(name, array)| format!("{name}{array}")).collect();
    let values = vec!["NULL"; types.len()].join(", ");
    let (declared, values) = if types.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("({})", declared.join(", ")), format!("({values})"))
    };
    let prepare = format!("PREPARE looked_at {declared} AS {}", scratch.sql(sql));
    client.batch_execute(&prepare).await.unwrap();
    let explained = client.simple_query(&format!("EXPLAIN (COSTS OFF) EXECUTE looked_at {values}")).await.unwrap();
    client.batch_execute("DEALLOCATE looked_at").await.unwrap();
    let lines = explained.into_iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A step that reads all rows of a table.
fn scans_a_table(plan: &str) -> bool {
    plan.contains("Seq Scan on")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_searches_an_index() {
    let Some(scratch) = scratch() else { return };
    let store = scratch.store().await;
    canaries::fill(&store).await;
    for method in Method::ALL {
        canaries::call(&store, *method).await.unwrap();
    }
    let client = scratch.client().await;
    fill(&scratch, &client).await;
    client.batch_execute("SET plan_cache_mode = force_generic_plan").await.unwrap();
    let mut statements = STATEMENTS.lock().unwrap().clone();
    assert!(statements.len() > 55, "{}", statements.len());
    statements.extend(tables::TABLES.iter().flat_map(SqlTable::statements));
    statements.extend(TABLES.iter().flat_map(|table| WholeTable::of(table).statements()));
    for statement in statements {
        let plan = plan(&scratch, &client, statement.sql, &statement.types()).await;
        // A sweep of tokens looks at all tokens of the account, and a listing reads all rows of one.
        let of_account = statement.sql.contains("length(token) = 0") || statement.sql.ends_with("WHERE account = $1");
        let of_account = of_account || statement.sql.contains("WHERE account = $1 OFFSET");
        let of_account = of_account || statement.sql.contains("WHERE account = $1 AND EXISTS (SELECT FROM fence)");
        assert!(of_account || !scans_a_table(&plan), "{}\n{plan}", statement.sql);
        let by_account_alone = plan.lines().any(|line| line.trim().ends_with("Cond: (account = $1)"));
        let is_ordered = statement.sql.contains("ORDER BY");
        let of_one_row = plan.contains("devices_pkey");
        assert!(of_account || is_ordered || of_one_row || !by_account_alone, "{}\n{plan}", statement.sql);
    }
}

/// The test above would notice a missing index.
#[tokio::test]
async fn a_missing_index_shows_in_the_plans() {
    let Some(scratch) = scratch() else { return };
    drop(scratch.store().await);
    let client = scratch.client().await;
    let insert =
        "INSERT INTO @.sent_messages SELECT 1, int4send(i), int4send(i), '', i FROM generate_series(1, 9999) i";
    scratch.run(&client, insert).await;
    client.batch_execute("ANALYZE; SET plan_cache_mode = force_generic_plan").await.unwrap();
    let sql = "DELETE FROM @.sent_messages WHERE account = $1 AND created_at < $2";
    let before = plan(&scratch, &client, sql, &[Type::INT4, Type::INT8]).await;
    scratch.run(&client, "DROP INDEX @.sent_messages_created_at").await;
    let after = plan(&scratch, &client, sql, &[Type::INT4, Type::INT8]).await;
    assert!(!scans_a_table(&before) && before.contains("created_at"), "{before}");
    assert!(scans_a_table(&after), "{after}");
}
