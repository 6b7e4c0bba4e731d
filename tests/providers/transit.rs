//! Transit: a real OpenBao server with whatsapp-rust's own HTTP client, and answers that no server gives.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use data_encoding::BASE64;
use futures::executor::block_on;
use wacore::net::{HttpClient, HttpRequest, HttpResponse};
use wacore::store::InMemoryBackend;
use wastore::vault::{KeyProvider, ProviderError, SlotKind, TransitProblem, TransitProvider};
use wastore::{Error, Key};
use whatsapp_rust::http::UreqHttpClient;

use crate::openbao::{self, OpenBao};
use crate::{options, problem};

/// Keeps all that is logged, at every level.
struct Log(Mutex<String>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {:?} {}\n", record.target(), record.module_path(), record.args());
        self.0.lock().unwrap().push_str(&line);
    }

    fn flush(&self) {}
}

static LOG: Log = Log(Mutex::new(String::new()));

/// whatsapp-rust's client, as the docs of the provider have it.
fn client() -> Arc<UreqHttpClient> {
    let config =
        ureq::Agent::config_builder().proxy(None).max_redirects(0).timeout_global(Some(Duration::from_secs(20)));
    Arc::new(UreqHttpClient::with_agent(config.build().into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_opens_vaults() {
    let Some(server) = OpenBao::start() else { return };
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let token_file = server.token_file(&["encrypt", "decrypt"]);
    let new = || TransitProvider::new(client(), server.url(), openbao::KEY, &token_file).unwrap();
    let provider = Arc::new(Watched { inner: new(), keys: Mutex::default() });

    let store = Arc::new(InMemoryBackend::new());
    let vault = options().create(store.clone(), provider.clone()).await.unwrap();
    assert_eq!(vault.slots()[0].kind, SlotKind::Transit { version: 1 });
    options().open(store.clone(), Arc::new(new())).await.unwrap();
    let mistyped = TransitProvider::new(client(), server.url(), "mistyped", &token_file).unwrap();
    let error = options().open(store.clone(), Arc::new(mistyped)).await.unwrap_err();
    assert_eq!(problem::<TransitProblem>(&error), TransitProblem::Denied);

    // A ciphertext is bound to its vault.
    let key = Key::generate().unwrap();
    let hint = provider.wrap(&[1; 16], &key).await.unwrap();
    assert_eq!(hint.len(), 89);
    assert_eq!(provider.unwrap(&[1; 16], &hint).await.unwrap().unwrap().expose(), key.expose());
    let refused = provider.unwrap(&[2; 16], &hint).await.unwrap_err();
    assert_eq!(refused.into_inner().downcast_ref(), Some(&TransitProblem::WrongKey));
    // So is a damaged one, and one of a version that the server lacks.
    let mut damaged = hint.clone();
    damaged[30] = if damaged[30] == b'A' { b'B' } else { b'A' };
    let refused = provider.unwrap(&[1; 16], &damaged).await.unwrap_err();
    assert_eq!(refused.into_inner().downcast_ref(), Some(&TransitProblem::WrongKey));
    let later = [b"vault:v9:", &hint[9..]].concat();
    let refused = provider.unwrap(&[1; 16], &later).await.unwrap_err();
    assert_eq!(refused.into_inner().downcast_ref(), Some(&TransitProblem::VersionMissing));
    for none in ["vault:v1:", "vault:v1:AAAA", "vault:v1:===="] {
        let refused = provider.unwrap(&[1; 16], none.as_bytes()).await.unwrap_err();
        assert_eq!(refused.into_inner().downcast_ref(), Some(&TransitProblem::Damaged), "{none}");
    }
    // A client that trusts no such server.
    let refused = TransitProvider::new(client(), &server.url().replace("http", "https"), openbao::KEY, &token_file);
    let refused = refused.unwrap().unwrap(&[1; 16], &hint).await.unwrap_err();
    assert!(matches!(refused.into_inner().downcast_ref(), Some(TransitProblem::Unreachable { .. })));

    let logged = LOG.0.lock().unwrap().clone();
    assert!(logged.contains("/v1/transit/"), "the client logs its requests");
    let token = std::fs::read_to_string(&token_file).unwrap();
    assert!(!logged.contains(token.trim()), "the token is logged");
    let keys = provider.keys.lock().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys.iter() {
        for written in [BASE64.encode(key), hex::encode(key), format!("{key:?}")] {
            assert!(!logged.contains(&written), "a key is logged");
        }
    }
}

/// Notes the keys that a provider keeps.
struct Watched<P> {
    inner: P,
    keys: Mutex<Vec<[u8; 32]>>,
}

#[async_trait]
impl<P: KeyProvider> KeyProvider for Watched<P> {
    async fn wrap(&self, store_id: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError> {
        self.keys.lock().unwrap().push(*key.expose());
        self.inner.wrap(store_id, key).await
    }

    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError> {
        self.inner.unwrap(store_id, hint).await
    }
}

const TOKEN: &str = "s.TheTokenOfTheTest";
const BODY: &str = "words of the server";

/// What the client does with a request.
#[derive(Clone)]
enum Answer {
    Status(u16, String),
    Error(String),
    Never,
}

struct Fake {
    answer: Answer,
    requests: Mutex<Vec<HttpRequest>>,
}

#[async_trait]
impl HttpClient for Fake {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        self.requests.lock().unwrap().push(request);
        match self.answer.clone() {
            Answer::Status(status_code, body) => Ok(HttpResponse { status_code, body: body.into_bytes() }),
            Answer::Error(text) => Err(anyhow::Error::msg(text).context("the request failed")),
            Answer::Never => std::future::pending().await,
        }
    }
}

/// A provider whose requests are answered like this.
fn answered(folder: &tempfile::TempDir, answer: Answer) -> (Arc<Fake>, TransitProvider) {
    let token = folder.path().join("token");
    std::fs::write(&token, format!(" {TOKEN}\r\n")).unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let fake = Arc::new(Fake { answer, requests: Mutex::default() });
    let provider = TransitProvider::new(fake.clone(), "https://bao.example.org/", "bot", token).unwrap();
    (fake, provider.mount("/team/transit/").unwrap().timeout(Duration::from_millis(200)))
}

fn plaintext(text: &str) -> String {
    format!("{{\"data\":{{\"plaintext\":\"{text}\"}}}}")
}

#[test]
fn every_answer_but_a_key_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let errors = |words: &str| format!("{{\"errors\":[\"{words}: {BODY}\"]}}");
    let status = |status, words: &str| Answer::Status(status, errors(words));
    let granted = |body: String| Answer::Status(200, body);
    let unreachable = |text: &str| TransitProblem::Unreachable { text: text.to_owned() };
    for (answer, expected) in [
        (status(400, "encryption key not found"), TransitProblem::NotFound),
        (
            status(400, "ciphertext or signature version is disallowed by policy (too old)"),
            TransitProblem::VersionTooOld,
        ),
        (status(400, "invalid ciphertext: version is too new"), TransitProblem::VersionMissing),
        (status(400, "cipher: message authentication failed"), TransitProblem::WrongKey),
        (status(400, "'[0].associated_data' provided for non-AEAD cipher suite rsa-2048"), TransitProblem::NotBound),
        (status(400, "invalid ciphertext: could not decode base64"), TransitProblem::Damaged),
        (status(400, "something else"), TransitProblem::Refused { status: 400 }),
        (status(401, ""), TransitProblem::Denied),
        (status(403, ""), TransitProblem::Denied),
        (status(404, ""), TransitProblem::NotFound),
        (status(429, ""), TransitProblem::Refused { status: 429 }),
        (status(500, ""), TransitProblem::Refused { status: 500 }),
        (status(503, ""), TransitProblem::Sealed),
        (status(307, ""), TransitProblem::Redirected),
        (status(204, ""), TransitProblem::Refused { status: 204 }),
        (status(0, ""), TransitProblem::Refused { status: 0 }),
        (status(200, ""), TransitProblem::ForeignAnswer),
        (granted(BODY.to_owned()), TransitProblem::ForeignAnswer),
        (granted(String::new()), TransitProblem::ForeignAnswer),
        (granted("{\"data\":null}".to_owned()), TransitProblem::ForeignAnswer),
        (granted("{\"data\":{\"ciphertext\":\"vault:v1:AAAA\"}}".to_owned()), TransitProblem::ForeignAnswer),
        (granted(plaintext("")), TransitProblem::ForeignAnswer),
        (granted(plaintext("AAAA")), TransitProblem::ForeignAnswer),
        (granted(plaintext(&BASE64.encode(&[1; 31]))), TransitProblem::ForeignAnswer),
        (granted(plaintext(&BASE64.encode(&[1; 33]))), TransitProblem::ForeignAnswer),
        (granted(plaintext(&"*".repeat(44))), TransitProblem::ForeignAnswer),
        (granted(plaintext(&BASE64.encode(&[1; 64 << 10]))), TransitProblem::ForeignAnswer),
        (granted("[".repeat(1 << 20)), TransitProblem::ForeignAnswer),
        (Answer::Error("Connection refused".to_owned()), unreachable("Connection refused")),
        (Answer::Error(format!("bad header: Bearer {TOKEN}")), unreachable("no connection")),
        (Answer::Error("x".repeat(1 << 20)), unreachable(&"x".repeat(200))),
        (Answer::Error("\u{1b}[2J".to_owned()), unreachable("\\u{1b}[2J")),
        (Answer::Never, TransitProblem::TooSlow),
    ] {
        let (_, provider) = answered(&folder, answer);
        let start = Instant::now();
        let error = block_on(provider.unwrap(&[7; 16], b"vault:v1:AAAA")).map(|_| ()).unwrap_err();
        let is_of_this_slot = matches!(
            expected,
            TransitProblem::WrongKey
                | TransitProblem::Damaged
                | TransitProblem::VersionTooOld
                | TransitProblem::VersionMissing
        );
        assert_eq!(matches!(error, ProviderError::NoKey(_)), is_of_this_slot, "{error:?}");
        let error = error.into_inner();
        assert_eq!(error.downcast_ref(), Some(&expected));
        assert!(start.elapsed() < Duration::from_secs(10));
        let printed = format!("{error} {error:?} {provider:?}");
        for secret in [BODY, TOKEN, "bao.example.org", "team", "token"] {
            let advice = error.to_string().contains("renew the token");
            assert!(!printed.contains(secret) || advice && secret == "token", "{secret}: {printed}");
        }
    }
}

#[test]
fn a_request_binds_the_vault_and_carries_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let key = BASE64.encode(&[9; 32]);
    let (fake, provider) = answered(&folder, Answer::Status(200, plaintext(&key)));
    let kept = block_on(provider.unwrap(&[7; 16], b"vault:v12:A+/=")).unwrap().unwrap();
    assert_eq!(kept.expose(), &[9; 32]);
    let requests = fake.requests.lock().unwrap();
    let [request] = &requests[..] else { panic!("{}", requests.len()) };
    assert_eq!((&*request.method, &*request.url), ("POST", "https://bao.example.org/v1/team/transit/decrypt/bot"));
    assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
    let body: serde_json::Value = serde_json::from_slice(request.body.as_ref().unwrap()).unwrap();
    let bound = BASE64.encode(&[&b"wastore/v1/transit\0"[..], &[7; 16]].concat());
    assert_eq!(body, serde_json::json!({"ciphertext": "vault:v12:A+/=", "associated_data": bound}));
}

#[test]
fn foreign_hints_are_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, provider) = answered(&folder, Answer::Never);
    for hint in [
        &b""[..],
        b"keyring:0123456789abcdef0123456789abcdef",
        b"vault:v",
        b"vault:v1",
        b"vault:vx:AAAA",
        b"vault:v+1:AAAA",
        b"vault:v99999999999:AAAA",
        b"vault:v1:AA\",\"x\":\"",
        b"vault:v1:AA\n",
        b"vault:v1:\xff",
        &[0; 256],
    ] {
        assert!(block_on(provider.unwrap(&[7; 16], hint)).unwrap().is_none(), "{hint:?}");
    }
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[test]
fn an_engine_that_binds_nothing_gets_no_key() {
    /// Gives every key back, whatever the associated data is. Answers the second request with this status.
    struct Careless {
        second: u16,
        requests: AtomicUsize,
    }

    #[async_trait]
    impl HttpClient for Careless {
        async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
            let body: serde_json::Value = serde_json::from_slice(&request.body.unwrap())?;
            let data = match body.get("plaintext") {
                Some(plaintext) => {
                    serde_json::json!({"ciphertext": format!("vault:v1:{}", plaintext.as_str().unwrap())})
                }
                None => serde_json::json!({"plaintext": body["ciphertext"].as_str().unwrap()[9..]}),
            };
            let body = serde_json::to_vec(&serde_json::json!({"data": data}))?;
            let is_second = self.requests.fetch_add(1, Ordering::Relaxed) == 1;
            Ok(HttpResponse { status_code: if is_second { self.second } else { 200 }, body })
        }
    }

    let folder = tempfile::tempdir().unwrap();
    answered(&folder, Answer::Never);
    for (second, expected) in [
        (200, TransitProblem::NotBound),
        // A failure at this moment proves nothing.
        (400, TransitProblem::Refused { status: 400 }),
        (404, TransitProblem::NotFound),
        (429, TransitProblem::Refused { status: 429 }),
        (503, TransitProblem::Sealed),
    ] {
        let token = folder.path().join("token");
        let careless = Arc::new(Careless { second, requests: AtomicUsize::new(0) });
        let provider = TransitProvider::new(careless, "http://localhost:1", "bot", token).unwrap();
        let error = block_on(options().create(Arc::new(InMemoryBackend::new()), Arc::new(provider))).unwrap_err();
        assert_eq!(problem::<TransitProblem>(&error), expected);
    }
}

#[test]
fn a_token_file_is_private_and_holds_one_word() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, provider) = answered(&folder, Answer::Never);
    let token = folder.path().join("token");
    let unwrap = || block_on(provider.unwrap(&[7; 16], b"vault:v1:AAAA")).map(|_| ()).unwrap_err().into_inner();
    for (content, says) in [
        (&b""[..], "is empty"),
        (b" \n", "is empty"),
        (b"two words", "one word"),
        (b"two\nlines", "one word"),
        (b"word\r\nx-header: value", "one word"),
        (b"\xff\xfe", "one word"),
        (&[b'a'; 8193], "too long"),
    ] {
        std::fs::write(&token, content).unwrap();
        let error = unwrap().to_string();
        assert!(error.contains("Transit token") && error.contains(says), "{error}");
    }
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(matches!(unwrap().downcast_ref(), Some(Error::File { .. })));
    std::fs::remove_file(&token).unwrap();
    assert!(matches!(unwrap().downcast_ref(), Some(Error::File { .. })));
    // A pipe into which no one writes.
    rustix::fs::mknodat(rustix::fs::CWD, &token, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let provider = provider.timeout(Duration::from_millis(50));
    let late = block_on(provider.unwrap(&[7; 16], b"vault:v1:AAAA")).map(|_| ()).unwrap_err().into_inner();
    assert_eq!(late.downcast_ref(), Some(&TransitProblem::TooSlow));
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[test]
fn names_and_mounts_are_plain() {
    let new = |key: &str| TransitProvider::new(client(), "https://bao.example.org", key, "token");
    for key in ["", "..", "a/b", "a b", "a?b", "a%2fb", "ä"] {
        assert!(matches!(new(key), Err(Error::InvalidInput { .. })), "{key}");
    }
    for mount in ["", "/", "a//b", "a/../b", "a b", "a?b"] {
        assert!(matches!(new("bot").unwrap().mount(mount), Err(Error::InvalidInput { .. })), "{mount}");
    }
}
