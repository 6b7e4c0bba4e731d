//! A real client object on the encrypted stack, without a network. After a restart it loads the device that it saved.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test or measurement")]

use std::path::Path;
use std::sync::Arc;

use wacore::store::traits::Backend;
use wastore::vault::Argon2Cost;
use wastore::{Passphrase, Stack, VaultOptions};
use whatsapp_rust::anyhow::{Result, bail};
use whatsapp_rust::bot::Bot;
use whatsapp_rust::http::{HttpClient, HttpRequest, HttpResponse};
use whatsapp_rust::transport::{Transport, TransportEvent, TransportFactory};
use whatsapp_rust::types::durability_hook::{InboundDurabilityHook, InboundMessage};
use whatsapp_rust::{Client, async_channel, async_trait};
use whatsapp_rust_sqlite_storage::SqliteStore;

struct Offline;

#[async_trait]
impl TransportFactory for Offline {
    async fn create_transport(&self) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
        bail!("there is no network in this test")
    }
}

#[async_trait]
impl HttpClient for Offline {
    async fn execute(&self, _: HttpRequest) -> Result<HttpResponse> {
        bail!("there is no network in this test")
    }
}

/// Makes the client probe the pending-inbound buffer with its own row when it is built.
struct Hook;

#[async_trait]
impl InboundDurabilityHook for Hook {
    async fn on_messages(&self, _: Arc<Client>, _: &[InboundMessage]) -> Result<()> {
        Ok(())
    }
}

/// The SQLite store below the encryption.
#[derive(Clone, Copy)]
enum Below {
    Upstream,
    Own,
}

async fn stack(path: &Path, below: Below) -> Arc<dyn Backend> {
    let store: Arc<dyn Backend> = match below {
        Below::Upstream => Arc::new(SqliteStore::new(path.to_str().unwrap()).await.unwrap()),
        // Tasks of the client that has ended may still hold its store. One of the same name follows it.
        Below::Own => Arc::new(wastore::SqliteOptions::new().lease_name("bot").open(path).await.unwrap()),
    };
    let options = VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM);
    let vault = options.open_or_create(store.clone(), Passphrase::new("a passphrase").unwrap()).await.unwrap();
    Stack::new(store).layer(vault.layer()).into_backend()
}

async fn start(path: &Path, below: Below) -> (Bot, Arc<Client>) {
    let bot = Bot::builder()
        .with_backend_arc(stack(path, below).await)
        .with_transport_factory(Offline)
        .with_http_client(Offline)
        .with_inbound_durability_hook(Hook)
        .build()
        .await
        .unwrap();
    let client = bot.client();
    (bot, client)
}

#[tokio::test]
async fn the_device_survives_a_restart_over_upstreams_store() {
    the_device_survives_a_restart(Below::Upstream).await;
}

#[tokio::test]
async fn the_device_survives_a_restart_over_the_own_store() {
    the_device_survives_a_restart(Below::Own).await;
}

async fn the_device_survives_a_restart(below: Below) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");

    let (bot, client) = start(&path, below).await;
    let persistence = client.persistence_manager();
    persistence
        .modify_device(|device| {
            device.pn = Some("15550109921:5@s.whatsapp.net".parse().unwrap());
            device.lid = Some("100000099887766:5@lid".parse().unwrap());
            device.push_name = "Canary Push Name".into();
            device.login_counter = 41;
        })
        .await;
    persistence.flush().await.unwrap();
    let before = persistence.get_device_snapshot();
    client.disconnect().await;
    drop((bot, client, persistence));

    let (_bot, client) = start(&path, below).await;
    let after = client.persistence_manager().get_device_snapshot();
    assert_eq!(
        serde_json::to_value(&after.core).unwrap(),
        serde_json::to_value(&before.core).unwrap(),
        "the client is the same device after the restart"
    );
    assert!(after.is_registered());
    assert_eq!(after.device_props, before.device_props);

    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for canary in [&b"15550109921"[..], b"100000099887766", b"Canary Push Name"] {
            assert!(memchr::memmem::find(&bytes, canary).is_none());
        }
        for key in [&before.noise_key, &before.identity_key, &before.signed_pre_key] {
            assert!(memchr::memmem::find(&bytes, key.private_key.serialize()).is_none());
        }
    }
}
