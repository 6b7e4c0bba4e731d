//! No key stays in memory that the operating system's keyring or a Transit engine keeps.

#![allow(clippy::print_stdout, reason = "the child process reports to the test that started it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use wacore::net::{HttpClient, HttpRequest, HttpResponse};
use zeroize::Zeroizing;

use super::keyring_service::Session;
use super::memory::{Needle, child, find, keys, runs_without_remains};
use super::openbao::{self, OpenBao};
use super::options;
use crate::vault::{KeyProvider, KeyringProvider, ProviderError, TransitProvider};
use crate::{Key, Passphrase, SqliteStore};

/// Notes every key that a provider keeps, and its notations on the way.
struct Watched<P> {
    inner: P,
    needles: Mutex<Vec<Needle>>,
}

#[async_trait]
impl<P: KeyProvider> KeyProvider for Watched<P> {
    async fn wrap(&self, store_id: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError> {
        let (base64, hex) = (data_encoding::BASE64.encode(key.expose()), hex::encode(key.expose()));
        let written = [Zeroizing::new(base64), Zeroizing::new(hex)];
        let mut needles = vec![Needle::new("provider's key", key.expose())];
        needles.extend(written.iter().map(|text| Needle::new("provider's key as text", text.as_bytes())));
        self.needles.lock().unwrap().append(&mut needles);
        self.inner.wrap(store_id, key).await
    }

    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError> {
        self.inner.unwrap(store_id, hint).await
    }
}

/// Sends requests over connections of their own, and wipes all that it held.
struct WipingClient;

#[async_trait]
impl HttpClient for WipingClient {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let (host, path) = request.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let body = request.body.unwrap();
        let mut stream = TcpStream::connect(host)?;
        write!(stream, "POST /{path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: {}\r\n", body.len())?;
        for (name, value) in request.headers {
            let value = Zeroizing::new(value);
            for part in [&name, ": ", &value, "\r\n"] {
                stream.write_all(part.as_bytes())?;
            }
        }
        stream.write_all(b"\r\n")?;
        stream.write_all(&body)?;
        let mut answer = Zeroizing::new(Vec::with_capacity(1 << 16));
        stream.read_to_end(&mut answer)?;
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let status_code = std::str::from_utf8(&answer[9..12])?.parse()?;
        Ok(HttpResponse { status_code, body: answer[head + 4..].to_vec() })
    }
}

/// Creates and opens vaults, and lets everything go.
async fn live(provider: impl KeyProvider + 'static, mut needles: Vec<Needle>) {
    let watched = Arc::new(Watched { inner: provider, needles: Mutex::default() });
    let store = Arc::new(SqliteStore::in_memory().await.unwrap());
    let vault = options().create(store.clone(), watched.clone()).await.unwrap();
    vault.add_slot("again", watched.clone()).await.unwrap();
    needles.extend(keys(&vault));
    drop(vault);
    let vault = options().open(store.clone(), watched.clone()).await.unwrap();
    let wrong = Passphrase::new("a wrong passphrase").unwrap();
    options().open(store.clone(), wrong).await.unwrap_err();
    drop(vault);
    needles.append(&mut watched.needles.lock().unwrap());
    drop((store, watched));
    let found = find(&needles);
    println!("needles: {}, afterwards: {found:?}", needles.len());
}

/// Runs in the child process.
#[test]
fn a_keyring_lets_go() {
    if std::env::var_os("WASTORE_MEMORY").is_some() {
        futures::executor::block_on(live(KeyringProvider::new(), vec![]));
    }
}

/// Runs in the child process.
#[test]
fn a_transit_engine_lets_go() {
    let (Ok(url), Ok(token_file)) = (std::env::var("WASTORE_TEST_URL"), std::env::var("WASTORE_TEST_TOKEN")) else {
        return;
    };
    let token = Zeroizing::new(std::fs::read_to_string(&token_file).unwrap());
    let needles = vec![Needle::new("token", token.trim().as_bytes())];
    drop(token);
    let provider = TransitProvider::new(Arc::new(WipingClient), &url, openbao::KEY, token_file).unwrap();
    futures::executor::block_on(live(provider, needles));
}

#[test]
fn a_keyring_leaves_no_key_in_memory() {
    let Some(session) = Session::start() else { return };
    runs_without_remains(session.enter(&mut child("provider_memory::a_keyring_lets_go")));
}

#[test]
fn a_transit_engine_leaves_no_key_in_memory() {
    let Some(server) = OpenBao::start() else { return };
    let token = server.token_file(&["encrypt", "decrypt"]);
    let mut child = child("provider_memory::a_transit_engine_lets_go");
    runs_without_remains(child.env("WASTORE_TEST_URL", server.url()).env("WASTORE_TEST_TOKEN", token));
}
