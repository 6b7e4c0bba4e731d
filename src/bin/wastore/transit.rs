//! The Transit server that opens a store, and the HTTP client that asks it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Args;
use rustls::crypto::ring;
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
        let provider = TransitProvider::new(Arc::new(HttpAgent::new()), url, key, token_file)?;
        Ok(provider.mount(&self.transit_mount)?)
    }
}

/// The provider gives a request up before. This ends the thread that waits for it.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends requests on threads, which are abandoned if the command ends.
struct HttpAgent(Agent);

impl HttpAgent {
    fn new() -> Self {
        // Unreadable certificates are left out, and the server's is not trusted then.
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
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
        Self(config.build().into())
    }
}

#[async_trait]
impl HttpClient for HttpAgent {
    async fn execute(&self, request: HttpRequest) -> anyhow::Result<HttpResponse> {
        let agent = self.0.clone();
        let send = move || {
            let mut post = agent.post(&request.url);
            for (name, value) in &request.headers {
                post = post.header(name, value);
            }
            let mut response = post.send(&request.body.unwrap_or_default()[..])?;
            let body = response.body_mut().with_config().limit(LONGEST_BODY).read_to_vec()?;
            Ok(HttpResponse { status_code: response.status().as_u16(), body })
        };
        on_a_thread(move || Ok(send())).await.map_err(|failure| anyhow::anyhow!(failure.text))?
    }
}

/// The answers that count are shorter.
const LONGEST_BODY: u64 = 64 << 10;
