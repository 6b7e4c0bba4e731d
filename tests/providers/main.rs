//! The key providers of this crate as a program uses them.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a failure is a failed test")]

mod keyring;
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../services/openbao.rs"]
mod openbao;
#[allow(dead_code, clippy::print_stderr, reason = "other tests use the rest, and skipped ones say so")]
#[path = "../services/keyring.rs"]
mod session;
mod transit;

use wastore::vault::Argon2Cost;
use wastore::{Error, VaultOptions};

fn options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

/// The failure of a provider, as its own type.
fn problem<P: Clone + std::error::Error + 'static>(error: &Error) -> P {
    use std::error::Error as _;
    let problem = error.source().and_then(|source| source.downcast_ref::<P>());
    problem.unwrap_or_else(|| panic!("{error:?}")).clone()
}
