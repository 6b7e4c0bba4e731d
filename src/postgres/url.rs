//! The URL of the servers. It is read strictly: a doubtful one is refused, because a guess could send the password to
//! another host, or without encryption.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio_postgres::config::ChannelBinding;
use zeroize::Zeroizing;

use super::parameters::{Parameters, decoded, invalid, text};
use crate::error::Result;

const URL: &str = "the PostgreSQL URL";
const HOST: &str = "the host of the PostgreSQL URL";
const PORT: &str = "the port of the PostgreSQL URL";
const USER: &str = "the user of the PostgreSQL URL";
const PASSWORD: &str = "the password of the PostgreSQL URL";
const DATABASE: &str = "the database of the PostgreSQL URL";

/// The port that PostgreSQL has by default.
const DEFAULT_PORT: u16 = 5432;

/// The longest name that PostgreSQL keeps whole (`NAMEDATALEN` - 1).
const LONGEST_NAME: usize = 63;

type Password = Zeroizing<Vec<u8>>;

/// The content of a URL. Nothing prints it, because nearly all of it is private.
pub(super) struct Target {
    pub(super) hosts: Vec<Host>,
    /// Without one, the driver takes the name of the operating system's user.
    pub(super) user: Option<String>,
    pub(super) password: Option<Password>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) database: String,
    /// The server's certificate is verified. It does not concern Unix sockets.
    pub(super) verifies: bool,
    /// The file with the CA, if it is not one of the operating system's.
    pub(super) root: Option<PathBuf>,
    /// The files with the certificate of the client and its key.
    pub(super) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(super) channel_binding: ChannelBinding,
    /// Only a server that accepts writes is used.
    pub(super) must_write: bool,
    /// For one host: its name, the connection, TLS and the password together.
    pub(super) connect_timeout: Duration,
    pub(super) application_name: String,
    pub(super) keepalives: Option<Keepalives>,
    pub(super) tcp_user_timeout: Duration,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) enum Host {
    Tcp { name: String, port: u16 },
    Socket { folder: PathBuf, port: u16 },
}

/// How the operating system finds out that the other machine is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Keepalives {
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
}

impl Host {
    /// `true` if no other machine sees the bytes.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Host::Socket { .. } => true,
            Host::Tcp { name, .. } => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

/// Reads a URL.
///
/// # Errors
/// [`Error::InvalidInput`](crate::Error::InvalidInput) names the part, never its content.
pub(super) fn parse(url: &str) -> Result<Target> {
    let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let rest = rest.ok_or(invalid(URL, "has to begin with postgres:// or postgresql://"))?;
    if rest.contains(|character: char| character.is_control() || character == ' ') {
        return Err(invalid(URL, "contains a space or a control character: write %20 for a space"));
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut parameters = Parameters::parse(query)?;
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    if path.contains(['@', '/']) || query.contains('@') || authority.matches('@').count() > 1 {
        return Err(invalid(URL, "has an `@` or `/` in the wrong place: write %40 and %2F for those of a password"));
    }
    let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login_of(login, &mut parameters)?;
    let hosts = hosts_of(places, &mut parameters)?;
    let database = database_of(path, &mut parameters)?;
    finish(hosts, user, password, database, &mut parameters)
}

/// The parts of a URL that are not its place, from its parameters.
fn finish(
    hosts: Vec<Host>,
    user: Option<String>,
    password: Option<Password>,
    database: String,
    parameters: &mut Parameters,
) -> Result<Target> {
    let target = Target {
        must_write: must_write(parameters)?.unwrap_or(hosts.len() > 1),
        user,
        password,
        passfile: parameters.take_path("passfile")?,
        database,
        verifies: verifies(parameters)?,
        root: parameters.take_path("sslrootcert")?.filter(|path| path.as_os_str() != "system"),
        client_certificate: client_certificate(parameters)?,
        channel_binding: channel_binding(parameters)?,
        connect_timeout: seconds(parameters, "connect_timeout", 4)?,
        application_name: application_name(parameters)?,
        keepalives: keepalives(parameters)?,
        tcp_user_timeout: parameters
            .take_number("tcp_user_timeout", 100..=3_600_000, "is not a number of milliseconds from 100 to 3600000")?
            .map_or(Duration::from_secs(5), |milliseconds| Duration::from_millis(milliseconds.into())),
        hosts,
    };
    load_balance(parameters)?;
    if target.password.is_some() && target.passfile.is_some() {
        return Err(invalid(PASSWORD, "is there beside a `passfile`: remove one of them"));
    }
    let has_tls = target.verifies && target.hosts.iter().any(|host| matches!(host, Host::Tcp { .. }));
    if target.channel_binding == ChannelBinding::Require && !has_tls {
        return Err(invalid(URL, "has channel_binding=require, which needs TLS, but no host with TLS: remove it"));
    }
    Ok(target)
}

fn login_of(login: &str, parameters: &mut Parameters) -> Result<(Option<String>, Option<Password>)> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let user = one_of(decoded(user, USER)?, parameters.take("user"))?;
    let password = one_of(decoded(password, PASSWORD)?, parameters.take("password"))?;
    Ok((user.map(|user| text(user, USER)).transpose()?, password))
}

/// The value of the place or of the parameter, if it is not empty.
fn one_of(
    place: Zeroizing<Vec<u8>>,
    parameter: Option<(&'static str, Zeroizing<Vec<u8>>)>,
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    match parameter {
        Some((what, _)) if !place.is_empty() => {
            Err(invalid(what, "is there a second time in front of the `?`: remove one"))
        }
        Some((_, value)) => Ok(Some(value).filter(|value| !value.is_empty())),
        None => Ok(Some(place).filter(|value| !value.is_empty())),
    }
}

fn database_of(path: &str, parameters: &mut Parameters) -> Result<String> {
    let name = one_of(decoded(path, DATABASE)?, parameters.take("dbname"))?;
    let name = name.ok_or(invalid(DATABASE, "is missing: write it behind the host, as in postgres://bot@db1/wa"))?;
    let name = text(name, DATABASE)?;
    if name.len() > LONGEST_NAME { Err(invalid(DATABASE, "has more than 63 bytes")) } else { Ok(name) }
}

fn hosts_of(places: &str, parameters: &mut Parameters) -> Result<Vec<Host>> {
    let (hosts, ports) = (parameters.take_text("host")?, parameters.take_text("port")?);
    let hosts: Vec<Host> = match (places, hosts) {
        ("", None) => {
            return Err(invalid(HOST, "is missing: name a server, or the folder of its Unix socket with host=/folder"));
        }
        ("", Some((_, names))) => names.split(',').map(|name| host(name, DEFAULT_PORT)).collect::<Result<_>>()?,
        (_, Some((what, _))) => return Err(invalid(what, "is there a second time in front of the `?`: remove one")),
        (places, None) => places.split(',').map(host_with_port).collect::<Result<_>>()?,
    };
    let Some((what, ports)) = ports else { return Ok(hosts) };
    if hosts.iter().any(|host| host.port() != DEFAULT_PORT) {
        return Err(invalid(what, "is there a second time in front of the `?`: remove one"));
    }
    let ports = ports.split(',').map(port).collect::<Result<Vec<_>>>()?;
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(invalid(what, "has to be one number, or one for each host"));
    }
    Ok(hosts.into_iter().zip(ports.into_iter().cycle()).map(|(host, port)| host.with_port(port)).collect())
}

impl Host {
    fn port(&self) -> u16 {
        let (Host::Tcp { port, .. } | Host::Socket { port, .. }) = self;
        *port
    }

    fn with_port(self, port: u16) -> Self {
        match self {
            Host::Tcp { name, .. } => Host::Tcp { name, port },
            Host::Socket { folder, .. } => Host::Socket { folder, port },
        }
    }
}

/// Reads `name:port`, `[address]:port` or either without a port.
fn host_with_port(place: &str) -> Result<Host> {
    if let Some(rest) = place.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(invalid(HOST, "has a `[` without its `]`"))?;
        let address = address.parse::<Ipv6Addr>();
        let address = address.map_err(|_| invalid(HOST, "has no IPv6 address between `[` and `]`"))?;
        let number = match (rest, rest.strip_prefix(':')) {
            ("", _) => DEFAULT_PORT,
            (_, Some(number)) => port(number)?,
            _ => return Err(invalid(HOST, "has text behind its `]`")),
        };
        return Ok(Host::Tcp { name: address.to_string(), port: number });
    }
    let (name, number) = match place.split_once(':') {
        Some((_, number)) if number.contains(':') => {
            return Err(invalid(HOST, "has several `:`: write an IPv6 address as [::1]"));
        }
        Some((name, number)) => (name, port(number)?),
        None => (place, DEFAULT_PORT),
    };
    host(&text(decoded(name, HOST)?, HOST)?, number)
}

fn host(name: &str, port: u16) -> Result<Host> {
    if name.starts_with('/') {
        return if cfg!(unix) {
            Ok(Host::Socket { folder: PathBuf::from(name), port })
        } else {
            Err(invalid(HOST, "is the folder of a Unix socket, which this system does not have"))
        };
    }
    // The same rule with and without TLS.
    match ServerName::try_from(name) {
        Ok(_) => Ok(Host::Tcp { name: name.to_owned(), port }),
        Err(_) => Err(invalid(HOST, "is not the name of a host, an IP address or the folder of a Unix socket")),
    }
}

fn port(number: &str) -> Result<u16> {
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| number.parse().ok()).flatten().filter(|number| *number > 0);
    number.ok_or(invalid(PORT, "is not a number from 1 to 65535; a `:` in a password is written as %3A"))
}

fn verifies(parameters: &mut Parameters) -> Result<bool> {
    let verifies = parameters.take_word(
        "sslmode",
        &[
            ("verify-full", Ok(true)),
            // libpq would check no certificate. Here it means the same.
            ("require", Ok(true)),
            ("disable", Ok(false)),
            ("verify-ca", Err("would accept the certificate of any host of the CA: write verify-full")),
            ("prefer", Err("would continue without encryption: write verify-full")),
            ("allow", Err("would begin without encryption: write verify-full")),
        ],
        "is none of verify-full, require and disable",
    )?;
    Ok(verifies.unwrap_or(true))
}

fn client_certificate(parameters: &mut Parameters) -> Result<Option<(PathBuf, PathBuf)>> {
    match (parameters.take_path("sslcert")?, parameters.take_path("sslkey")?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        _ => Err(invalid(URL, "has one of `sslcert` and `sslkey`: name the two files, or none")),
    }
}

fn channel_binding(parameters: &mut Parameters) -> Result<ChannelBinding> {
    let binding = parameters.take_word(
        "channel_binding",
        &[
            ("disable", Ok(ChannelBinding::Disable)),
            ("prefer", Ok(ChannelBinding::Prefer)),
            ("require", Ok(ChannelBinding::Require)),
        ],
        "is none of disable, prefer and require",
    )?;
    Ok(binding.unwrap_or(ChannelBinding::Prefer))
}

fn must_write(parameters: &mut Parameters) -> Result<Option<bool>> {
    const STANDBY: &str = "leads to standbys, but the store has to write: write read-write";
    parameters.take_word(
        "target_session_attrs",
        &[
            ("any", Ok(false)),
            ("read-write", Ok(true)),
            ("primary", Ok(true)),
            ("read-only", Err(STANDBY)),
            ("standby", Err(STANDBY)),
            ("prefer-standby", Err(STANDBY)),
        ],
        "is none of any, read-write and primary",
    )
}

fn load_balance(parameters: &mut Parameters) -> Result<()> {
    let words = [
        ("disable", Ok(())),
        ("random", Err("would lead the connections of one store to several servers: leave it out")),
    ];
    parameters.take_word("load_balance_hosts", &words, "has to be disable")?;
    Ok(())
}

fn application_name(parameters: &mut Parameters) -> Result<String> {
    match parameters.take_text("application_name")? {
        None => Ok("wastore".to_owned()),
        Some((what, name)) if name.len() > LONGEST_NAME => Err(invalid(what, "has more than 63 bytes")),
        Some((_, name)) => Ok(name),
    }
}

fn keepalives(parameters: &mut Parameters) -> Result<Option<Keepalives>> {
    let keepalives = Keepalives {
        idle: seconds(parameters, "keepalives_idle", 5)?,
        interval: seconds(parameters, "keepalives_interval", 1)?,
        count: parameters.take_number("keepalives_count", 1..=100, "is not a number from 1 to 100")?.unwrap_or(3),
    };
    let are_on = parameters.take_number("keepalives", 0..=1, "is neither 0 nor 1")?.unwrap_or(1) == 1;
    Ok(are_on.then_some(keepalives))
}

fn seconds(parameters: &mut Parameters, name: &str, default: u32) -> Result<Duration> {
    let seconds = parameters.take_number(name, 1..=3600, "is not a number of seconds from 1 to 3600")?;
    Ok(Duration::from_secs(seconds.unwrap_or(default).into()))
}
