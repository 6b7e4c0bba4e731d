//! Settings of a store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::parameters::invalid;
use super::url::{self, Target};
use crate::durability::Durability;
use crate::error::Result;
use crate::printable::printable;

const SCHEMA: &str = "the schema of the PostgreSQL store";
const LEASE_NAME: &str = "the lease name of the PostgreSQL store";
const URL: &str = "the PostgreSQL URL";

/// The longest name that PostgreSQL keeps whole (`NAMEDATALEN` - 1).
const LONGEST_SCHEMA: usize = 63;
const LONGEST_LEASE_NAME: usize = 256;
const MOST_LANES: usize = 64;

/// Settings of a `PostgresStore`. The defaults suit a bot with one account.
///
/// # The URL
///
/// `postgres://user:password@host:port/database?name=value&name=value`, or `postgresql://`. The rules are those of
/// [libpq](https://www.postgresql.org/docs/current/libpq-connect.html), with these differences:
///
/// * TLS verifies the certificate and the name of the server. No connection goes on without TLS if the server has none.
/// * The URL has to name a host and a database. No environment variable and no service file is read.
/// * An unknown parameter, a parameter given twice and a doubtful place are errors, which repeat nothing of the URL.
///
/// Several hosts are tried in their order: `postgres://bot@db1,db2:5433/wa`. An IPv6 address stands in brackets. The
/// folder of a Unix socket is a parameter: `postgres://bot@/wa?host=/run/postgresql`. Special characters of a user or
/// password are written as `%` with two hexadecimal digits, for example `%40` for `@`.
///
/// | parameter | values | default |
/// |--|--|--|
/// | `sslmode` | `verify-full`, or `require` with the same meaning; `disable` only for Unix sockets and loopback addresses, see [`plaintext_network`](Self::plaintext_network) | `verify-full` |
/// | `sslrootcert` | a file with the CA of the server in PEM format; `system` | `system`: the certificates of the operating system |
/// | `sslcert`, `sslkey` | files with the certificate of the client and its key, in PEM format | none |
/// | `channel_binding` | `disable`, `prefer`, `require` | `prefer` |
/// | `passfile` | a file of passwords in libpq's format, see [`password_file`](Self::password_file) | none |
/// | `target_session_attrs` | `any`; `read-write`, or `primary` with the same meaning | `read-write` with several hosts, else `any` |
/// | `connect_timeout` | 1 to 3600 s, for one host: its name, the connection, TLS and the password together | 4 s |
/// | `application_name` | at most 63 bytes | `wastore` |
/// | `keepalives` | 0 or 1 | 1 |
/// | `keepalives_idle`, `keepalives_interval` | 1 to 3600 s | 5 s, 1 s |
/// | `keepalives_count` | 1 to 100 | 3 |
/// | `tcp_user_timeout` | 100 to 3 600 000 ms | 5000 ms |
/// | `host`, `port`, `user`, `password`, `dbname` | instead of the place in front of the `?` | none |
/// | `load_balance_hosts` | `disable` | `disable` |
///
/// `Debug` shows only the database and the schema.
#[derive(Clone)]
#[must_use = "settings do nothing until a store is opened with them"]
pub struct PostgresOptions {
    pub(super) target: Arc<Target>,
    pub(super) schema: String,
    pub(super) password_file: Option<PathBuf>,
    pub(super) plaintext_network: bool,
    pub(super) lease_name: String,
    pub(super) lease_wait: Duration,
    pub(super) lanes: usize,
    pub(super) durability: Durability,
    pub(super) deadline: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) prepared: bool,
    pub(super) migrate: bool,
    pub(super) base_key_retention: Option<Duration>,
    pub(super) require_synchronous_standby: bool,
}

impl PostgresOptions {
    /// The servers of a URL, with the defaults that each method below states. Connects to none of them.
    ///
    /// ```
    /// # fn main() -> wastore::Result<()> {
    /// use wastore::PostgresOptions;
    ///
    /// let options = PostgresOptions::new("postgres://bot@db1.example,db2.example/wa")?
    ///     .password_file("/run/secrets/wa-password")
    ///     .lease_name("bot-1");
    /// assert_eq!(format!("{options:?}"), "postgres(wa.wastore)");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) names the part of the URL that is not valid.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self {
            target: Arc::new(url::parse(url)?),
            schema: "wastore".to_owned(),
            password_file: None,
            plaintext_network: false,
            lease_name: String::new(),
            lease_wait: Duration::from_secs(20),
            lanes: 1,
            durability: Durability::default(),
            deadline: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(5),
            prepared: true,
            migrate: true,
            base_key_retention: Some(Duration::from_secs(30 * 24 * 3600)),
            require_synchronous_standby: false,
        })
    }

    /// Sets the schema of the tables, 1 to 63 bytes. Several stores can lie in one database, each in a schema of its
    /// own. Default: `wastore`.
    pub fn schema(mut self, name: &str) -> Self {
        name.clone_into(&mut self.schema);
        self
    }

    /// Reads the password from a file of at most 16 KiB, without its last line break. Only its owner may be able to
    /// read it, or a group that root chose. The file is read again for each connection, so a password that was rotated
    /// needs no restart. Default: the password of the URL, or none.
    ///
    /// The parameter `passfile` of the URL names a file in the format of
    /// [libpq](https://www.postgresql.org/docs/current/libpq-pgpass.html) instead, of at most 1 MiB, under the same
    /// rules.
    pub fn password_file(mut self, path: impl AsRef<Path>) -> Self {
        self.password_file = Some(path.as_ref().to_owned());
        self
    }

    /// Allows `sslmode=disable` for other machines. Everyone on the network can then read the names and times of
    /// records, read and alter those that are not encrypted, and ask the store for the password. Use it only inside a
    /// tunnel that encrypts. Default: not allowed.
    pub fn plaintext_network(mut self) -> Self {
        self.plaintext_network = true;
        self
    }

    /// Names the bot, in at most 256 bytes: a process with the same name takes its accounts over at once, without
    /// waiting until the lease of the old one ends. Give each bot a name of its own, for example the name of its pod or
    /// unit. Default: no name.
    pub fn lease_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.lease_name);
        self
    }

    /// Sets how long opening waits for an account that another process writes to. Default: 20 s, which is longer than
    /// the lease of a process that was killed.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.lease_wait = wait;
        self
    }

    /// Sets how many connections write, at least 1 and at most 64. The calls of one account share one connection.
    /// Default: 1, which is enough for a hundred accounts.
    pub fn lanes(mut self, count: usize) -> Self {
        self.lanes = count.clamp(1, MOST_LANES);
        self
    }

    /// Sets which calls survive a crash of the server. Default: [`Durability::SignalState`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how long a call is tried again while the server cannot be reached or refuses it for the moment, counted
    /// from the start of the call. Default: 10 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how long the store waits for an answer before it gives the connection up and makes another one. Default:
    /// 5 s.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// Sets whether statements are prepared once for each connection. PgBouncer before 1.21 needs `false`, and later
    /// ones without `max_prepared_statements`. Default: `true`.
    pub fn prepared(mut self, prepared: bool) -> Self {
        self.prepared = prepared;
        self
    }

    /// Sets whether opening creates missing tables and brings old ones up to date. With `false`, the role needs no
    /// right to create tables. Default: `true`.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Refuses to open on a server that waits for no standby (`synchronous_standby_names` is empty): a failover could take
    /// acknowledged writes back. Without this, such a server that has standbys is only warned of in the log. Default:
    /// `false`.
    pub fn require_synchronous_standby(mut self, required: bool) -> Self {
        self.require_synchronous_standby = required;
        self
    }

    /// Sets how long base keys are kept; `None` keeps them for ever. Upstream saves base keys to detect repeated
    /// retries, and deletes only some of them. Default: 30 days.
    pub fn base_key_retention(mut self, retention: Option<Duration>) -> Self {
        self.base_key_retention = retention;
        self
    }

    /// The schema as it stands in a statement.
    pub(super) fn quoted_schema(&self) -> String {
        format!("\"{}\"", self.schema.replace('"', "\"\""))
    }

    /// Checks the settings that the methods above took as they were, and whether they go together.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput).
    pub(super) fn check(&self) -> Result<()> {
        if self.schema.is_empty() || self.schema.len() > LONGEST_SCHEMA || self.schema.contains('\0') {
            return Err(invalid(SCHEMA, "has to have 1 to 63 bytes, none of them zero"));
        }
        if self.schema.starts_with("pg_") {
            return Err(invalid(SCHEMA, "begins with pg_, which is PostgreSQL's own: choose another name"));
        }
        if self.lease_name.len() > LONGEST_LEASE_NAME {
            return Err(invalid(LEASE_NAME, "has more than 256 bytes"));
        }
        if self.password_file.is_some() && (self.target.password.is_some() || self.target.passfile.is_some()) {
            return Err(invalid(URL, "has a password or a `passfile` beside the password file: remove one of them"));
        }
        if !self.target.verifies && !self.plaintext_network && !self.target.hosts.iter().all(url::Host::is_local) {
            return Err(invalid(
                URL,
                "has sslmode=disable for another machine: write verify-full, or allow it with `plaintext_network`",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres({}.{})", printable(&self.target.database), printable(&self.schema))
    }
}
