//! The promises of the store that only its inside can test, on a real server.

#![cfg(unix)]

#[allow(dead_code, unreachable_pub, clippy::print_stderr, reason = "other tests use the rest of it")]
#[path = "../../../tests/postgres/proxy.rs"]
mod proxy;
#[allow(dead_code, unreachable_pub, clippy::print_stderr, reason = "other tests use the rest of it")]
#[path = "../../../tests/postgres/server.rs"]
mod server;

mod connections;
mod fence;
mod groups;
mod header;
#[cfg(feature = "sqlite")]
mod maintenance;
mod options;
mod plans;
mod problems;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls};

use super::statement::Statement;
use super::{PostgresOptions, PostgresStore};

/// Every statement that a store has run in this process.
static STATEMENTS: Mutex<Vec<&'static Statement>> = Mutex::new(Vec::new());

pub(super) fn record(statement: &'static Statement) {
    let mut statements = STATEMENTS.lock().unwrap();
    if !statements.iter().any(|known| std::ptr::eq(*known, statement)) {
        statements.push(statement);
    }
}

/// A schema of its own on the server that all tests share. `None` if the caller asked for no tests with a server.
pub(crate) fn scratch() -> Option<Scratch> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    server::available().then(|| {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Both must be quoted.
        Scratch { schema: format!("Scratch \"{number}\""), application: format!("scratch-{number}") }
    })
}

pub(crate) struct Scratch {
    schema: String,
    /// The name under which its store connects.
    application: String,
}

impl Scratch {
    fn options(&self) -> PostgresOptions {
        let url = format!("{}&application_name={}", server::shared().url(), self.application);
        PostgresOptions::new(&url).unwrap().schema(&self.schema)
    }

    pub(crate) async fn store(&self) -> PostgresStore {
        self.options().open(1).await.unwrap()
    }

    /// A connection beside the store.
    async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&server::shared().url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The statement in this schema.
    fn sql(&self, sql: &str) -> String {
        sql.replace('@', &format!("\"{}\"", self.schema.replace('"', "\"\"")))
    }

    /// Runs SQL without parameters. Returns the first column of the last row, or nothing.
    async fn run(&self, client: &Client, sql: &str) -> String {
        let mut value = String::new();
        for message in client.simple_query(&self.sql(sql)).await.unwrap() {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                value = row.get(0).unwrap_or_default().to_owned();
            }
        }
        value
    }

    /// Cuts the connections of the store.
    async fn cut(&self, client: &Client) {
        const SQL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        assert!(client.execute(SQL, &[&self.application]).await.unwrap() > 0);
    }

    /// The epoch and the holder of account 1.
    async fn lease(&self, client: &Client) -> (i64, Vec<u8>) {
        let sql = self.sql("SELECT epoch, holder FROM @.leases WHERE account = 1");
        let row = client.query_one(&sql, &[]).await.unwrap();
        (row.get(0), row.get(1))
    }
}

/// Runs a statement with typed parameters. Returns how many rows it affected.
async fn execute(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<u64, tokio_postgres::Error> {
    client.execute_typed(sql, parameters).await
}
