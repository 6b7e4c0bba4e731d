//! The shortest example: encrypts the store that you already use.
//!
//! Run with `cargo run --example wrap_existing_store`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

use std::sync::Arc;

use wastore::{Passphrase, Stack, Vault};
use whatsapp_rust_sqlite_storage::SqliteStore;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("wa.db");

    let store = Arc::new(SqliteStore::new(&path.to_string_lossy()).await?);
    let vault = Vault::open_or_create(store.clone(), Passphrase::new("correct horse battery staple")?).await?;
    let stack = Stack::new(store).named("sqlite(wa.db)").layer(vault.layer());

    println!("{stack:?}");
    let backend = stack.into_backend(); // goes into `Bot::builder().with_backend_arc(backend)`
    backend.put_session("15550001111:2@s.whatsapp.net", b"a Signal session").await?;
    let session = backend.get_session("15550001111:2@s.whatsapp.net").await?;
    println!("read back: {:?}", session.as_deref().map(String::from_utf8_lossy));
    Ok(())
}
