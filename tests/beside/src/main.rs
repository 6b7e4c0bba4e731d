//! Uses all three, so that all three are linked.

use std::sync::Arc;

use whatsapp_rust::bot::Bot;
use wacore::store::traits::DeviceStore;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("wastore-beside-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let used = use_all(&folder).await;
    std::fs::remove_dir_all(&folder)?;
    used
}

async fn use_all(folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(wastore::SqliteStore::open(folder.join("wa.db")).await?);
    let vault = wastore::Vault::open_or_create(store.clone(), wastore::Key::generate()?).await?;
    let backend = wastore::Stack::new(store).layer(vault.layer()).into_backend();
    backend.put_session("15550001111:2@s.whatsapp.net", b"a session").await?;

    let upstream = folder.join("whatsapp.db");
    let upstream = whatsapp_rust_sqlite_storage::SqliteStore::new(&upstream.to_string_lossy()).await?;
    upstream.create().await?;
    let own = rusqlite::Connection::open(folder.join("own.db"))?;
    own.execute_batch("CREATE TABLE notes (text TEXT)")?;

    // Not built and run, because that would connect to the server.
    let _bot = Bot::builder().with_backend_arc(backend);
    println!("SQLite {} serves all three", rusqlite::version());
    Ok(())
}
