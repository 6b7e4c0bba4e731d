//! The own device. It is never cached: there is one, and the client holds it.

use wacore::store::traits::DeviceStore;

use super::CacheStore;
use crate::method::{forward, signature::*};

#[deny(clippy::missing_trait_methods)]
impl DeviceStore for CacheStore {
    forward!(save, load, exists, create, snapshot_db, resource_report);
}
