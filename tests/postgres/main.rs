//! The PostgreSQL store against real servers. The harness is tested first: a test is worth as much as its server.

#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failure is a failed test"
)]

#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod pgbouncer;
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod proxy;
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod server;

mod harness;
