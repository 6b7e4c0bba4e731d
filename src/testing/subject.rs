//! The store that the rules are checked on.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;

use crate::layer::Stack;
use crate::method::BoxFuture;

/// A store under test. The constructor of [`backend_tests!`](super::backend_tests) returns it.
///
/// It dereferences to the store.
pub struct Subject {
    backend: Arc<dyn Backend>,
    pub(super) second_account: Option<Arc<dyn Backend>>,
    reopen: Option<Reopen>,
    /// Values that are dropped after the store.
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

type Reopen = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Backend>> + Send + Sync>;

impl Subject {
    /// A subject for an empty store.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, second_account: None, reopen: None, kept: vec![] }
    }

    /// Adds another empty account in the same place, for the rules on two accounts. Without it they construct a
    /// second store.
    #[must_use]
    pub fn second_account(mut self, backend: Arc<dyn Backend>) -> Self {
        self.second_account = Some(backend);
        self
    }

    /// Sets how to open the same store again after it was dropped completely, as after a restart of the process. The
    /// optional feature `durable` needs it.
    #[must_use]
    pub fn reopen_with<F>(mut self, reopen: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Backend>> + Send + 'static,
    {
        self.reopen = Some(Box::new(move || Box::pin(reopen())));
        self
    }

    /// Keeps a value until the test has ended, such as the temporary folder that contains the store.
    #[must_use]
    pub fn keeping(mut self, value: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(value));
        self
    }

    /// Applies `wrap` to the store, to its second account, and to the store that is opened again.
    #[must_use]
    pub async fn wrapped<F>(mut self, wrap: impl Fn(Arc<dyn Backend>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Backend>> + Send + 'static,
    {
        self.backend = wrap(self.backend).await;
        if let Some(second) = self.second_account.take() {
            self.second_account = Some(wrap(second).await);
        }
        if let Some(reopen) = self.reopen.take() {
            let wrap = Arc::new(wrap);
            self.reopen = Some(Box::new(move || {
                let (opening, wrap) = (reopen(), wrap.clone());
                Box::pin(async move { wrap(opening.await).await })
            }));
        }
        self
    }

    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    /// Drops the store, and opens it again.
    pub(super) async fn restart(&mut self) {
        let Some(reopen) = &self.reopen else { panic!("the feature `durable` needs `Subject::reopen_with`") };
        self.second_account = None;
        // The store is closed before it opens again.
        self.backend = Arc::new(InMemoryBackend::new());
        self.backend = reopen().await;
    }
}

impl Deref for Subject {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.backend
    }
}

impl<S: Backend + 'static> From<Arc<S>> for Subject {
    fn from(store: Arc<S>) -> Self {
        Self::new(store)
    }
}

impl From<Arc<dyn Backend>> for Subject {
    fn from(store: Arc<dyn Backend>) -> Self {
        Self::new(store)
    }
}

impl From<Stack> for Subject {
    fn from(stack: Stack) -> Self {
        Self::new(stack.into_backend())
    }
}

/// Prints the fields of the subject, not the content of the store.
impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("second_account", &self.second_account.is_some())
            .field("reopen", &self.reopen.is_some())
            .finish_non_exhaustive()
    }
}
