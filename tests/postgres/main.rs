//! The PostgreSQL store against real servers. The harness is tested first: a test is worth as much as its server.

#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a failure is a failed test, and campaigns print their figures"
)]

#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod pgbouncer;
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod proxy;
#[allow(dead_code, reason = "other tests include it as well, and each uses a part")]
mod server;

mod common;
mod conversations;
mod copies;
mod cuts;
mod failures;
mod harness;
mod kills;
mod limits;
mod patroni;
mod secrets;
mod standby;
mod takeovers;
