//! Layers that watch and disturb calls.

use std::sync::{Arc, Mutex};

use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use crate::method::{BoxFuture, Method, Outcome, uniform_layer};

/// Notes every call.
pub(super) struct Spy {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) calls: Arc<Mutex<Vec<Method>>>,
}

impl Spy {
    fn around<'a, T>(&self, method: Method, call: impl FnOnce() -> BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        self.calls.lock().unwrap().push(method);
        call()
    }
}

uniform_layer!(Spy);

/// Fails every call with an error that no store gives by itself.
pub(super) struct Fault {
    pub(super) inner: Arc<dyn Backend>,
}

pub(super) const FAULT: i32 = 4242;

impl Fault {
    fn around<'a, T: Outcome + Send + 'a>(&self, _: Method, _: impl FnOnce() -> BoxFuture<'a, T>) -> BoxFuture<'a, T> {
        Box::pin(async { T::refused(StoreError::DeviceNotFound(FAULT)) })
    }
}

uniform_layer!(Fault);
