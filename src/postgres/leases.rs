//! The leases of an open store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::failure::Failure;
use super::lease::Lease;
use super::link::Link;
use super::server::Server;
use super::stats::Counters;
use crate::sync::IgnorePoison;

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
    pub(super) async fn check_written(
        &self,
        before: Option<&Server>,
        link: &Link,
        counters: &Counters,
    ) -> Result<(), Failure> {
        if before.is_none_or(|before| *before == link.server) {
            return Ok(());
        }
        let leases: Vec<Arc<Lease>> = self.0.lock().ignore_poison().values().filter_map(Weak::upgrade).collect();
        for lease in leases {
            let written = lease.written.lock().ignore_poison().clone();
            if !written.is_on(link, lease.account).await? {
                lease.undo(counters);
            }
        }
        Ok(())
    }
}
