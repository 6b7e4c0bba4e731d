//! The leases of an open store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use futures_util::stream::{self, StreamExt};

use super::core::Core;
use super::failure::Failure;
use super::lease::Lease;
use super::link::Link;
use super::server::Server;
use crate::sync::IgnorePoison;

/// How many accounts are looked at at once.
const AT_ONCE: usize = 64;

/// Looks for what an account wrote last.
async fn check(lease: &Lease, link: &Link, core: &Core) -> Result<(), Failure> {
    loop {
        let written = lease.written.lock().ignore_poison().clone();
        if written.is_on(link, lease.account).await? {
            return Ok(());
        }
        // Another lane may have written meanwhile.
        if lease.written.lock().ignore_poison().version == written.version {
            break;
        }
    }
    // A successor may have written over it.
    lease.look(link, core).await?;
    lease.undo(&core.counters);
    Ok(())
}

/// The leases of the accounts that have a handle.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<i32, Weak<Lease>>>);

impl Leases {
    /// The lease that all handles on an account share.
    pub(super) fn of(&self, account: i32, new: impl FnOnce() -> Lease) -> Arc<Lease> {
        let mut leases = self.0.lock().ignore_poison();
        if let Some(lease) = leases.get(&account).and_then(Weak::upgrade) {
            return lease;
        }
        leases.retain(|_, lease| lease.strong_count() > 0);
        let lease = Arc::new(new());
        leases.insert(account, Arc::downgrade(&lease));
        lease
    }

    /// Looks for the newest acknowledged write of each account, if this is not the server of the lane's connection
    /// before. Accounts whose write is not there are lost.
    ///
    /// # Errors
    /// Those of the connection.
    pub(super) async fn check_written(&self, before: Option<&Server>, link: &Link, core: &Core) -> Result<(), Failure> {
        if before.is_none_or(|before| *before == link.server) {
            return Ok(());
        }
        let leases: Vec<Arc<Lease>> = self.0.lock().ignore_poison().values().filter_map(Weak::upgrade).collect();
        let checks = leases.into_iter().map(|lease| async move { check(&lease, link, core).await });
        let mut checks = stream::iter(checks).buffer_unordered(AT_ONCE);
        while let Some(checked) = checks.next().await {
            checked?;
        }
        Ok(())
    }
}
