//! Makes a connection: the hosts in their order, each within one timeout.

use tokio::task;
use tokio::time;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::PostgresOptions;
use super::password::Passwords;
use super::problem::{error_of, with_code};
use super::url::Host;
use super::{tls, url};
use crate::error::{Error, PostgresProblem, Result};

/// The task of a connection, which its owner polls. With and without TLS it is of the same type.
pub(super) type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// The content of the files now: certificates and passwords may have changed since the last connection.
struct Files {
    verified: MakeRustlsConnect,
    plain: MakeRustlsConnect,
    passwords: Passwords,
}

/// Connects to the first host that lets the store in and that `accept` takes.
///
/// # Errors
/// [`Error::Postgres`] with the problem of the host that came furthest; [`Error::InvalidInput`] or [`Error::File`] if
/// the settings or files cannot be used.
pub(super) async fn connect<T, F: Future<Output = Result<T>>>(
    options: &PostgresOptions,
    accept: impl Fn(Client, Connection) -> F,
) -> Result<T> {
    options.check()?;
    let files = files_of(options).await?;
    let target = &options.target;
    let mut furthest = with_code(PostgresProblem::Unreachable, "there is no host");
    for host in &target.hosts {
        let attempt = time::timeout(target.connect_timeout, connect_to(options, host, &files));
        let accepted = match attempt.await {
            Ok(Ok((client, connection))) => accept(client, connection).await,
            Ok(Err(error)) => Err(error_of(&error)),
            Err(_) => Err(with_code(PostgresProblem::Unreachable, "the connection took too long")),
        };
        let error = match accepted {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        if progress(&error) >= progress(&furthest) {
            furthest = error;
        }
    }
    Err(furthest)
}

/// How far a host let the store come: of several errors, the last of these tells the most.
fn progress(error: &Error) -> u8 {
    match error {
        Error::Postgres { problem: PostgresProblem::Unreachable, .. } => 0,
        Error::Postgres { problem: PostgresProblem::ReadOnly, .. } => 1,
        Error::Postgres { problem: PostgresProblem::TooManyConnections, .. } => 2,
        _ => 3,
    }
}

/// Reads the files on a thread that may wait for the disk.
async fn files_of(options: &PostgresOptions) -> Result<Files> {
    let options = options.clone();
    let read = move || {
        let is_verified = options.target.hosts.iter().any(|host| is_verified(&options, host));
        let verified = if is_verified { tls::settings(&options.target)? } else { tls::unused()? };
        Ok(Files {
            verified: MakeRustlsConnect::new(verified),
            plain: MakeRustlsConnect::new(tls::unused()?),
            passwords: Passwords::read(&options)?,
        })
    };
    let read = task::spawn_blocking(read).await;
    read.unwrap_or_else(|_| Err(with_code(PostgresProblem::Unreachable, "the runtime shuts down")))
}

fn is_verified(options: &PostgresOptions, host: &Host) -> bool {
    options.target.verifies && matches!(host, Host::Tcp { .. })
}

async fn connect_to(
    options: &PostgresOptions,
    host: &Host,
    files: &Files,
) -> Result<(Client, Connection), tokio_postgres::Error> {
    let is_verified = is_verified(options, host);
    let settings = config(options, host, files, is_verified);
    // The driver keeps the password in memory that is not wiped, but not longer than this call.
    settings.connect(if is_verified { files.verified.clone() } else { files.plain.clone() }).await
}

fn config(options: &PostgresOptions, host: &Host, files: &Files, is_verified: bool) -> Config {
    let target = &options.target;
    let mut config = Config::new();
    match host {
        Host::Tcp { name, port } => config.host(name).port(*port),
        #[cfg(unix)]
        Host::Socket { folder, port } => config.host_path(folder).port(*port),
        // Such a URL is refused.
        #[cfg(not(unix))]
        Host::Socket { .. } => &mut config,
    };
    if let Some(user) = &target.user {
        config.user(user);
    }
    if let Some(password) = files.passwords.for_host(target, host) {
        config.password(&*password);
    }
    // Never `Prefer`, which goes on without TLS.
    config.ssl_mode(if is_verified { SslMode::Require } else { SslMode::Disable });
    config.channel_binding(target.channel_binding);
    config.dbname(&target.database).application_name(&target.application_name);
    if target.must_write {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    // A name may have an address that does not answer beside one that does.
    config.connect_timeout(target.connect_timeout / 2).tcp_user_timeout(target.tcp_user_timeout);
    keep_alive(&mut config, target.keepalives);
    config
}

fn keep_alive(config: &mut Config, keepalives: Option<url::Keepalives>) {
    config.keepalives(keepalives.is_some());
    if let Some(url::Keepalives { idle, interval, count }) = keepalives {
        config.keepalives_idle(idle).keepalives_interval(interval).keepalives_retries(count);
    }
}
