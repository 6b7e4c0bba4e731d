//! The guard of a vault that is closed, or was opened read-only.

use std::sync::Arc;

use wacore::store::traits::Backend;

use super::vault::Shared;
use crate::method::{BoxFuture, Method, Outcome, uniform_layer};

/// Refuses every method of a closed vault, and every method that would change a row of a read-only one.
pub(super) struct Guard {
    pub(super) inner: Arc<dyn Backend>,
    pub(super) vault: Arc<Shared>,
}

impl Guard {
    fn around<'a, A, T: Outcome + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T>,
    ) -> BoxFuture<'a, T> {
        let allowed = match method.access().changes_rows() {
            true => self.vault.refuse_change(method.name()),
            false => self.vault.refuse_closed(),
        };
        match allowed {
            Ok(()) => call(arguments),
            Err(error) => Box::pin(async move { T::refused(error.into()) }),
        }
    }
}

uniform_layer!(Guard);
