//! The promises of the store, on real servers.
