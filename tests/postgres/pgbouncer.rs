//! PgBouncer in transaction mode in front of a [`Server`].

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;

use super::server::{Guarded, Server, command, folder, free_port, hand_over, wait_until};

/// Where Debian has it, which is not in the `PATH` of every user.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// A running PgBouncer.
pub(crate) struct PgBouncer {
    folder: PathBuf,
    port: u16,
    process: Guarded,
}

impl PgBouncer {
    /// Starts one that keeps at most `connections` to the server.
    pub(crate) fn start(server: &Server, connections: u32) -> Self {
        Self::in_front_of(server.port(), connections)
    }

    /// The same for a port on 127.0.0.1, which may be that of a proxy.
    pub(crate) fn in_front_of(server_port: u16, connections: u32) -> Self {
        let (folder, port) = (folder(), free_port());
        let (settings, users) = (folder.join("pgbouncer.ini"), folder.join("users.txt"));
        let text = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={server_port}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = {}\n\
             admin_users = postgres\n\
             pool_mode = transaction\n\
             default_pool_size = {connections}\n\
             max_client_conn = 500\n\
             server_login_retry = 0\n",
            users.display()
        );
        fs::write(&settings, text).unwrap();
        fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        hand_over(&settings);
        hand_over(&users);
        let mut pgbouncer = command(PROGRAM);
        pgbouncer.arg(&settings);
        let process = Guarded::start(pgbouncer, &folder, "KILL");
        let started = Self { folder, port, process };
        wait_until("PgBouncer answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        started
    }

    /// Kills it and starts it again, on the same port.
    pub(crate) fn restart(&mut self) {
        self.process.end("KILL");
        let mut pgbouncer = command(PROGRAM);
        pgbouncer.arg(self.folder.join("pgbouncer.ini"));
        self.process = Guarded::start(pgbouncer, &self.folder, "KILL");
        let port = self.port;
        wait_until("PgBouncer answers again", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address of the server through it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.process.end("KILL");
        fs::remove_dir_all(&self.folder).ok();
    }
}
