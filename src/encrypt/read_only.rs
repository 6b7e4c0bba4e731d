//! The guard of a vault that was opened read-only.

use std::sync::Arc;

use wacore::store::traits::Backend;

use crate::error::Error;
use crate::method::{BoxFuture, Method, Outcome, uniform_layer};

/// Refuses every method that would change a row.
pub(super) struct ReadOnly {
    pub(super) inner: Arc<dyn Backend>,
}

impl ReadOnly {
    fn around<'a, A, T: Outcome + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T>,
    ) -> BoxFuture<'a, T> {
        if !method.access().changes_rows() {
            return call(arguments);
        }
        Box::pin(async move { T::refused(Error::ReadOnly { method: method.name() }.into()) })
    }
}

uniform_layer!(ReadOnly);
