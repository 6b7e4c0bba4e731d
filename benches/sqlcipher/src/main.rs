//! Upstream's SQLite store with SQLCipher, set up as its documentation tells. It uses a raw key, so no passphrase is
//! stretched.

#![forbid(unsafe_code)]

#[path = "../../peers/workloads.rs"]
#[allow(dead_code)]
mod workloads;

use std::path::Path;
use std::sync::Arc;

use diesel::prelude::*;
use whatsapp_rust_sqlite_storage::{SqliteStore, SqliteStoreConfig};

fn main() {
    workloads::obey(|folder, accounts| {
        Box::pin(async move {
            let mut stores = vec![];
            for account in 1..=accounts {
                stores.push(keyed(&folder.join("sqlcipher.db"), account).await?);
            }
            Ok(stores)
        })
    });
}

async fn keyed(path: &Path, account: i32) -> Result<workloads::Store, String> {
    let config = SqliteStoreConfig::default().with_connection_init(|connection| {
        let key = format!("PRAGMA key = \"x'{}'\"", "5a".repeat(32));
        diesel::sql_query(key).execute(connection)?;
        // Without SQLCipher, SQLite ignores the key, and the benchmark would measure plaintext.
        let version = diesel::sql_query("PRAGMA cipher_version").load::<CipherVersion>(connection)?;
        if version.is_empty() {
            return Err("this SQLite is not SQLCipher".into());
        }
        diesel::sql_query("SELECT count(*) FROM sqlite_master").execute(connection)?;
        Ok(())
    });
    let store = SqliteStore::with_config_for_device(path.to_str().unwrap_or_default(), account, config).await;
    Ok(Arc::new(store.map_err(|error| error.to_string())?))
}

#[derive(QueryableByName)]
struct CipherVersion {
    #[diesel(sql_type = diesel::sql_types::Text)]
    #[allow(dead_code)]
    cipher_version: String,
}
