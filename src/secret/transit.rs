//! Keys that a Transit engine of OpenBao or HashiCorp Vault encrypts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use wacore::net::{HttpClient, HttpRequest, HttpResponse};
use zeroize::Zeroizing;

use super::deadline::{on_a_thread, within};
use super::hint::transit_version;
use super::key::Key;
use super::provider::{KeyProvider, ProviderError, quoted};
use super::read::{invalid, is_plain_name, open, read_to_end};
use super::transit_url;
use crate::error::Result;
use crate::json::WipingBuffer;

/// Has the Transit engine of an OpenBao or HashiCorp Vault server encrypt the keys of vaults, so that a store opens only
/// while that server agrees (<https://openbao.org/docs/secrets/transit/>).
///
/// The hint of a slot is the server's ciphertext of a random key, `vault:v1:` and 80 characters for the first version of
/// the server's key. The associated data is `wastore/v1/transit`, a zero byte and the vault's id, so the ciphertext
/// opens for no other purpose and in no other vault. Therefore the server's key must be of an AEAD type, such as
/// `aes256-gcm96`, the engine's default, or `chacha20-poly1305`.
///
/// ```text
/// bao secrets enable transit
/// bao write -f transit/keys/wastore
/// bao policy write bot - <<'END'
/// path "transit/encrypt/wastore" { capabilities = ["update"] }
/// path "transit/decrypt/wastore" { capabilities = ["update"] }
/// END
/// ```
///
/// With `create` instead of `update`, a mistyped name would make a new key. Opening only needs `decrypt`.
///
/// The token is read from its file at every call, so an agent can renew it, and goes into the header `Authorization`.
///
/// A [`HttpClient`] carries the requests. A new key crosses it in plaintext, and so does a key that is opened. Give the
/// provider a client of its own:
///
/// * which trusts your CA, if the server's certificate is of a private one;
/// * which follows no redirects, because they lead to other hosts;
/// * which uses no proxy for `http`. ureq takes one from variables such as `HTTP_PROXY`;
/// * which has a time limit. [`TransitProvider::timeout`] ends the wait, but whatsapp-rust's `UreqHttpClient` waits on a
///   thread of tokio, for which tokio waits when the program ends.
///
/// The buffers of the client hold the key once, and most clients do not wipe them.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use wastore::vault::TransitProvider;
/// use wastore::{SqliteStore, Vault};
/// use whatsapp_rust::http::UreqHttpClient;
///
/// async fn open() -> wastore::Result<Vault> {
///     let config = ureq::Agent::config_builder().proxy(None).max_redirects(0).timeout_global(Some(Duration::from_secs(20)));
///     let http = Arc::new(UreqHttpClient::with_agent(config.build().into()));
///     let store = SqliteStore::open("bot.db").await?;
///     let transit = TransitProvider::new(http, "https://bao.example.org:8200", "wastore", "/run/bao/token")?;
///     Vault::open_or_create(&store, Arc::new(transit)).await
/// }
/// ```
pub struct TransitProvider {
    http: Arc<dyn HttpClient>,
    url: String,
    mount: String,
    key: String,
    token_file: PathBuf,
    limit: Duration,
}

impl TransitProvider {
    /// A provider for the key of this name, in the engine that is mounted at `transit`.
    ///
    /// `url` is the server's address, `https://HOST[:PORT]`. A path may follow. `http` is only accepted for an agent or
    /// proxy on this machine. `token_file` holds a token in at most 8 KiB of text; it has to be private, by the rule of
    /// [`Key::from_file`], and is read at every call.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if the URL or the name is not of this form.
    pub fn new(http: Arc<dyn HttpClient>, url: &str, key: &str, token_file: impl Into<PathBuf>) -> Result<Self> {
        let url = transit_url::base(url)?.to_owned();
        if !is_plain_name(key) {
            return Err(invalid("the name of the Transit key", "has letters, digits, `-`, `_` and `.`"));
        }
        let (mount, key, token_file) = ("transit".to_owned(), key.to_owned(), token_file.into());
        Ok(Self { http, url, mount, key, token_file, limit: Duration::from_secs(10) })
    }

    /// The path at which the engine is mounted, below its namespaces if there are any: `team/bots/transit`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if it is not names between slashes.
    pub fn mount(mut self, path: &str) -> Result<Self> {
        let path = path.trim_matches('/');
        if !transit_url::is_path(path) {
            return Err(invalid("the mount of the Transit engine", "has letters, digits, `-`, `_`, `.` and `/`"));
        }
        self.mount = path.to_owned();
        Ok(self)
    }

    /// The time for a request, including the reading of its token; ten seconds if it is not set. After it the request
    /// fails with [`TransitProblem::TooSlow`]. A vault sends one request for each slot that it tries, until one fails,
    /// and three for a new slot.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    async fn encrypt(&self, store_id: &[u8; 16], key: &Key) -> Result<String, ProviderError> {
        // An array would leave copies where the future is moved.
        let mut text = Zeroizing::new(vec![0; 44]);
        BASE64.encode_mut(key.expose(), &mut text);
        let answer = self.ask("encrypt", "plaintext", &text, store_id).await?;
        let ciphertext = Data::of(&answer)?.ciphertext.ok_or(TransitProblem::ForeignAnswer)?;
        let is_ciphertext = transit_version(ciphertext.as_bytes()).is_some();
        if is_ciphertext { Ok(ciphertext.to_owned()) } else { Err(TransitProblem::ForeignAnswer.into()) }
    }

    async fn decrypt(&self, store_id: &[u8; 16], ciphertext: &[u8]) -> Result<Key, ProviderError> {
        let answer = self.ask("decrypt", "ciphertext", ciphertext, store_id).await?;
        let plaintext = Data::of(&answer)?.plaintext.ok_or(TransitProblem::ForeignAnswer)?;
        // The decoder wants room for padding.
        let mut bytes = Zeroizing::new(vec![0; 33]);
        if plaintext.len() != 44 || BASE64.decode_mut(plaintext.as_bytes(), &mut bytes) != Ok(32) {
            return Err(TransitProblem::ForeignAnswer.into());
        }
        let mut key = Key::zeroed();
        key.bytes_mut().copy_from_slice(&bytes[..32]);
        Ok(key)
    }

    /// Sends one request, and returns the answer of a request that was granted.
    async fn ask(
        &self,
        operation: &str,
        field: &str,
        content: &[u8],
        store_id: &[u8; 16],
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let context = BASE64.encode(&[CONTEXT, store_id].concat());
        let mut body = WipingBuffer::new();
        for part in
            [b"{\"", field.as_bytes(), b"\":\"", content, b"\",\"associated_data\":\"", context.as_bytes(), b"\"}"]
        {
            body.push(part);
        }
        let request = HttpRequest::post(format!("{}/v1/{}/{operation}/{}", self.url, self.mount, self.key))
            .with_header("content-type", "application/json")
            .with_body(Bytes::from_owner(body.into_bytes()));
        let answer = within(self.limit, self.send(request)).await?.ok_or(TransitProblem::TooSlow)??;
        let body = Zeroizing::new(answer.body);
        match answer.status_code {
            200 if body.len() <= LONGEST_ANSWER => Ok(body),
            200 => Err(TransitProblem::ForeignAnswer.into()),
            status => Err(TransitProblem::of(status, &body[..body.len().min(LONGEST_ANSWER)]).failure()),
        }
    }

    /// Sends a request with the token of this moment.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, ProviderError> {
        let file = self.token_file.clone();
        // The file may be a pipe, or on a server that does not answer.
        let token = on_a_thread("transit token", move || read_token(&file)).await??;
        // A string that grows would leave a part of the token behind.
        let mut authorization = String::with_capacity("Bearer ".len() + token.len());
        authorization.extend(["Bearer ", &token]);
        let answer = self.http.execute(request.with_header("authorization", authorization)).await;
        Ok(answer.map_err(|error| TransitProblem::unreachable(&error, &token))?)
    }
}

fn read_token(file: &Path) -> Result<Zeroizing<String>> {
    const WHAT: &str = "Transit token";
    let bytes = read_to_end(open(file, WHAT)?, WHAT, LONGEST_TOKEN)?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(invalid(WHAT, "is empty: write it into its file, which is read again for each request"));
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(invalid(WHAT, "must be one word of text: write only the token into its file"));
    }
    let mut text = Zeroizing::new(String::with_capacity(token.len()));
    text.extend(token.iter().copied().map(char::from));
    Ok(text)
}

#[async_trait]
impl KeyProvider for TransitProvider {
    async fn wrap(&self, store_id: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError> {
        let ciphertext = self.encrypt(store_id, key).await?;
        // An engine that ignores associated data would open the ciphertext for other vaults and purposes as well.
        let other = store_id.map(|byte| !byte);
        match self.decrypt(&other, ciphertext.as_bytes()).await {
            Ok(_) => Err(TransitProblem::NotBound.into()),
            Err(ProviderError::NoKey(error)) if error.downcast_ref() == Some(&TransitProblem::WrongKey) => {
                Ok(ciphertext.into_bytes())
            }
            Err(failed) => Err(failed),
        }
    }

    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError> {
        match transit_version(hint) {
            Some(_) => self.decrypt(store_id, hint).await.map(Some),
            None => Ok(None),
        }
    }
}

/// Prints nothing of the server.
impl fmt::Debug for TransitProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransitProvider").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// The associated data is this and the vault's id.
const CONTEXT: &[u8] = b"wastore/v1/transit\0";

/// Answers have some 300 bytes.
const LONGEST_ANSWER: usize = 16 << 10;

/// Service tokens have some 100 bytes, batch tokens some 500.
const LONGEST_TOKEN: usize = 8 << 10;

/// The part of an answer that counts. Borrows, so that no copy of a key is left.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    ciphertext: Option<&'a str>,
    #[serde(borrow)]
    plaintext: Option<&'a str>,
}

impl<'a> Data<'a> {
    fn of(answer: &'a [u8]) -> Result<Self, TransitProblem> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            data: Data<'a>,
        }
        let answer: Answer<'_> = serde_json::from_slice(answer).map_err(|_| TransitProblem::ForeignAnswer)?;
        Ok(answer.data)
    }
}

/// The reason why a [`TransitProvider`] failed. It never carries a part of the server's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransitProblem {
    /// The request did not reach the server, or no answer came back.
    #[error("the Transit server cannot be reached ({text}): check its address, its certificate and the network")]
    Unreachable {
        /// The words of the HTTP client, at most 200 characters.
        text: String,
    },
    /// No answer came in time.
    #[error("the Transit server did not answer in time: check that it is well, and try again")]
    TooSlow,
    /// Status 503.
    #[error("the Transit server is sealed or not ready: unseal it, and try again")]
    Sealed,
    /// Status 401 or 403.
    #[error(
        "the Transit server denied the request: renew the token in its file, and let its policy `update` the paths `encrypt` and `decrypt` of the key"
    )]
    Denied,
    /// There is no such engine or key.
    #[error("the Transit server has no such key: check the mount of the engine and the name of the key")]
    NotFound,
    /// The server's key is not the one that encrypted this slot's key.
    #[error(
        "the Transit key does not open this slot: another key, or another vault, made it; give the name and the server of the key that did, or open with another secret"
    )]
    WrongKey,
    /// The ciphertext of this slot's key is not one.
    #[error("the Transit ciphertext in the header is damaged: restore a saved header, or open with another secret")]
    Damaged,
    /// The server no longer decrypts with the version of the key that encrypted this slot's key.
    #[error(
        "the Transit key does not allow its version that this slot was made with: lower its `min_decryption_version`, open the vault, and replace the slot"
    )]
    VersionTooOld,
    /// The server's key has no such version.
    #[error(
        "the Transit key lacks the version that this slot was made with: restore the server's newest backup, or open with another secret"
    )]
    VersionMissing,
    /// The engine ignores associated data.
    #[error(
        "the Transit engine does not bind ciphertexts to vaults: use a key of type `aes256-gcm96`, and a newer server"
    )]
    NotBound,
    /// Status 3xx.
    #[error("the Transit server redirects to another address: give the address of the active server")]
    Redirected,
    /// Another status.
    #[error("the Transit server refused the request with status {status}: its log says why")]
    Refused {
        /// The status of HTTP.
        status: u16,
    },
    /// The answer is not one of a Transit engine.
    #[error("the answer is not one of a Transit engine: check the URL, and that no gateway answers in its place")]
    ForeignAnswer,
}

impl TransitProblem {
    /// Only these concern one slot.
    fn failure(self) -> ProviderError {
        match self {
            Self::WrongKey | Self::Damaged | Self::VersionTooOld | Self::VersionMissing => {
                ProviderError::NoKey(self.into())
            }
            _ => ProviderError::Failed(self.into()),
        }
    }

    /// The meaning of a status. A status of 400 has many; the server's fixed words tell them apart.
    fn of(status: u16, body: &[u8]) -> Self {
        let says = |words: &str| body.windows(words.len()).any(|part| part == words.as_bytes());
        match status {
            401 | 403 => Self::Denied,
            300..=399 => Self::Redirected,
            404 => Self::NotFound,
            503 => Self::Sealed,
            400 if says("encryption key not found") => Self::NotFound,
            400 if says("disallowed by policy (too old)") => Self::VersionTooOld,
            400 if says("version is too new") => Self::VersionMissing,
            400 if says("message authentication failed") => Self::WrongKey,
            400 if says("invalid ciphertext") => Self::Damaged,
            400 if says("non-AEAD") => Self::NotBound,
            status => Self::Refused { status },
        }
    }

    /// Takes over the words of the client's innermost error, unless they hold the token.
    fn unreachable(error: &anyhow::Error, token: &str) -> Self {
        let text = Zeroizing::new(error.root_cause().to_string());
        let text = if text.contains(token) { "no connection" } else { &**text };
        Self::Unreachable { text: quoted(text) }
    }
}
