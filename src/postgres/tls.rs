//! TLS to the server. Its certificate and its name are always verified.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use super::parameters::invalid;
use super::password::read_key;
use super::problem::tls_problem;
use super::url::Target;
use crate::error::{Error, Result};
use crate::filesystem;

const ROOT: &str = "the file of `sslrootcert`";
const CERTIFICATE: &str = "the file of `sslcert`";
const KEY: &str = "the file of `sslkey`";
const NO_CERTIFICATE: &str = "holds no certificate in PEM format";

/// The settings of TLS, from the files as they are now.
///
/// # Errors
/// [`Error::File`] or [`Error::InvalidInput`] if a file cannot be used.
pub(super) fn settings(target: &Target) -> Result<ClientConfig> {
    let builder = builder(roots(target)?)?;
    let Some((certificate, key)) = &target.client_certificate else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate, "client certificate", CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_slice(&read_key(key)?)
        .map_err(|_| invalid(KEY, "holds no key in PEM format, or one with a passphrase"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|_| invalid(KEY, "holds a key that does not belong to the certificate, or of an unknown kind"))
}

/// Settings for connections without TLS, which ask for a type all the same. No certificate passes them.
pub(super) fn unused() -> Result<ClientConfig> {
    Ok(builder(RootCertStore::empty())?.with_no_client_auth())
}

/// With `ring`, as whatsapp-rust. It is named, so that the program needs no default of its own.
fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| tls_problem(&error))?;
    Ok(builder.with_root_certificates(roots))
}

fn roots(target: &Target) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &target.root {
        for certificate in certificates(path, "CA certificate", ROOT)? {
            roots.add(certificate).map_err(|_| invalid(ROOT, "holds a certificate that is not valid"))?;
        }
        return Ok(roots);
    }
    // A store of the operating system often contains some that cannot be read.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(invalid(
            "the certificates of the operating system",
            "are missing: install them, or name the CA of the server with `sslrootcert`",
        ));
    }
    Ok(roots)
}

fn certificates(path: &Path, file: &'static str, what: &'static str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Err(pem::Error::Io(error)) => Err(Error::File { what: file, source: filesystem::named(path, error) }),
        _ => Err(invalid(what, NO_CERTIFICATE)),
    }
}
