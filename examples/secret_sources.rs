//! Opens a store with a secret that the machine keeps, so that no person types one at a start.
//!
//! ```sh
//! cargo run --example secret_sources --features keyring,transit -- wa.db keyring
//! cargo run --example secret_sources --features keyring,transit -- wa.db transit https://bao.example.org:8200 wastore token
//! ```
//!
//! In a unit of systemd with `LoadCredential=wa-key:/etc/bot/key`, the arguments are `wa.db credential wa-key`.
//! `wastore keys list wa.db` shows what opens the store.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::sync::Arc;
use std::time::Duration;

use wastore::vault::{KeyringProvider, TransitProvider};
use wastore::{Key, Secret, SqliteStore, Vault};
use whatsapp_rust::http::UreqHttpClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (path, secret): (_, Secret) = match arguments[..] {
        [path, "credential", name] => (path, Key::from_credential(name)?.into()),
        [path, "keyring"] => (path, Arc::new(KeyringProvider::new()).into()),
        [path, "transit", url, key, token_file] => {
            let config = ureq::Agent::config_builder().proxy(None).max_redirects(0);
            let config = config.timeout_global(Some(Duration::from_secs(20)));
            let http = Arc::new(UreqHttpClient::with_agent(config.build().into()));
            (path, Arc::new(TransitProvider::new(http, url, key, token_file)?).into())
        }
        _ => return Err("usage: secret_sources STORE (credential NAME | keyring | transit URL KEY TOKEN_FILE)".into()),
    };
    let store = SqliteStore::open(path).await?;
    let vault = Vault::open_or_create(&store, secret).await?;
    println!("{} {path}; these open it:", if vault.was_created() { "created" } else { "opened" });
    for slot in vault.slots() {
        println!("{}: {}", slot.id, slot.kind);
    }
    Ok(())
}
