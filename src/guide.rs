//! How to use this crate, page by page.
//!
//! | page | for |
//! |--|--|
//! | [`moving_in`] | importing an existing bot, and going back |
//! | [`encryption`] | secrets, key slots, rollback anchors, new keys |
//! | [`sqlite`] | the own store, in a file |
//! | [`postgres`] | the own store over PostgreSQL: leases, roles, failover, Kubernetes |
//! | [`cache`] | the cache over a slow store; the client's external cache |
//! | [`metrics`] | how long calls take, and why |
//! | [`command`] | the command `wastore` |
//! | [`operations`] | backups, restoring, containers, Kubernetes, upgrades |
//! | [`errors`] | each error, and the way out |
//! | [`limits`] | known limits |

#[doc = include_str!("../docs/guide/cache.md")]
pub mod cache {}

#[doc = include_str!("../docs/guide/command.md")]
pub mod command {}

#[doc = include_str!("../docs/guide/encryption.md")]
pub mod encryption {}

#[doc = include_str!("../docs/guide/errors.md")]
pub mod errors {}

#[doc = include_str!("../docs/guide/limits.md")]
pub mod limits {}

#[doc = include_str!("../docs/guide/metrics.md")]
pub mod metrics {}

#[doc = include_str!("../docs/guide/moving_in.md")]
pub mod moving_in {}

#[doc = include_str!("../docs/guide/operations.md")]
pub mod operations {}

#[cfg(feature = "postgres")]
#[doc = include_str!("../docs/guide/postgres.md")]
pub mod postgres {}

#[doc = include_str!("../docs/guide/sqlite.md")]
pub mod sqlite {}
