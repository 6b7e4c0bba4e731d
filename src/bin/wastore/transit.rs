//! The Transit server that opens a store, and the HTTP client that asks it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use rustls::crypto::ring;
use rustls_native_certs::{CertificateResult, load_native_certs};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use wacore::net::{HttpClient, HttpRequest, HttpResponse};
use wastore::vault::TransitProvider;

use crate::failure::Failure;
use crate::threads::on_a_thread;

/// Where the server is, and how it knows this program.
#[derive(Args, Clone)]
pub(crate) struct TransitServer {
    /// The OpenBao or Vault server for `--transit-key` and `--new-transit-key`:
    /// `https://HOST[:PORT]`. The operating system's certificates are trusted, or those in the file
    /// of $SSL_CERT_FILE
    #[arg(long, global = true, value_name = "URL")]
    transit_url: Option<String>,
    /// The file with the token for that server; it is read for each request
    #[arg(long, global = true, value_name = "FILE")]
    transit_token_file: Option<PathBuf>,
    /// The path of the Transit engine on that server, after its namespaces
    #[arg(long, global = true, value_name = "PATH", default_value = "transit")]
    transit_mount: String,
}

impl TransitServer {
    pub(crate) fn provider(&self, key: &str) -> Result<TransitProvider, Failure> {
        let (Some(url), Some(token_file)) = (&self.transit_url, &self.transit_token_file) else {
            return Err(Failure::usage("a Transit key needs `--transit-url` and `--transit-token-file`"));
        };
        let provider = TransitProvider::new(Arc::new(HttpAgent::default()), url, key, token_file);
        provider
            .and_then(|provider| provider.mount(&self.transit_mount))
            .map_err(|error| Failure::usage(&error.to_string()))
    }
}

/// The provider gives a request up before. This ends the thread that waits for it.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends requests on threads, which are abandoned if the command ends.
#[derive(Default)]
struct HttpAgent(Arc<OnceLock<Trusting>>);

#[async_trait]
impl HttpClient for HttpAgent {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let agent = self.0.clone();
        // The certificates may lie on a file system that does not answer.
        let send = move || Ok(agent.get_or_init(|| Trusting::for_server(&request.url)).send(request));
        on_a_thread(send).await.map_err(|failure| anyhow::anyhow!(failure.text))?
    }
}

/// An HTTP client, and the certificates that it trusts.
struct Trusting {
    agent: Agent,
    /// The problem of a certificate that could not be read.
    unread: Option<String>,
}

impl Trusting {
    fn for_server(url: &str) -> Self {
        let found = if url.starts_with("https:") { load_native_certs() } else { CertificateResult::default() };
        let roots: Vec<_> = found.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
        // A redirect or a proxy would take the token and the key to another host.
        let config = Agent::config_builder()
            .proxy(None)
            .tls_config(tls.build())
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(LIMIT));
        Self { agent: config.build().into(), unread: found.errors.first().map(ToString::to_string) }
    }

    fn send(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let mut post = self.agent.post(&request.url);
        for (name, value) in &request.headers {
            post = post.header(name, value);
        }
        let response = post.send(&request.body.unwrap_or_default()[..]);
        let mut response = response.map_err(|error| match &self.unread {
            Some(unread) => anyhow::anyhow!("{error}; {unread}"),
            None => error.into(),
        })?;
        let body = response.body_mut().with_config().limit(LONGEST_BODY).read_to_vec()?;
        Ok(HttpResponse { status_code: response.status().as_u16(), body })
    }
}

/// The answers that count are shorter.
const LONGEST_BODY: u64 = 64 << 10;
