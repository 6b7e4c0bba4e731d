//! The PostgreSQL store from the inside.

#[cfg(unix)]
mod connections;
mod options;
mod problems;
#[cfg(unix)]
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
#[allow(clippy::print_stderr, reason = "skipped tests say so")]
#[path = "../../../tests/postgres/proxy.rs"]
mod proxy;
#[cfg(unix)]
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
#[allow(clippy::print_stderr, reason = "skipped tests say so")]
#[path = "../../../tests/postgres/server.rs"]
mod server;
