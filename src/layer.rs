//! Layers over a storage backend, and the stack they build.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use wacore::store::traits::Backend;

/// Something that wraps a [`Backend`] in another one: encryption, a cache, metrics.
///
/// A layer is a small value that can be applied several times. All slow and fallible work (deriving keys, checking a
/// header) happens when the value is made, so applying it cannot fail. Its [`fmt::Debug`] is what a [`Stack`] prints for
/// it, for example `encrypt(v1)`.
pub trait Layer: fmt::Debug + Send + Sync {
    /// Returns a backend that answers through `inner`.
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend>;
}

impl<L: Layer + ?Sized> Layer for Arc<L> {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        (**self).layer(inner)
    }
}

/// A backend under any number of [`Layer`]s.
///
/// Each [`Stack::layer`] wraps everything above it in the source, so the last layer is what the client talks to (as in
/// OpenDAL and axum; the opposite of `tower::ServiceBuilder`). `Debug` prints the stack in the order in which a call
/// passes through it.
///
/// ```
/// use std::sync::Arc;
/// use wacore::store::InMemoryBackend;
/// use wacore::store::traits::Backend;
/// use wastore::{Layer, Stack};
///
/// #[derive(Debug)]
/// struct Nothing;
///
/// impl Layer for Nothing {
///     fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
///         inner
///     }
/// }
///
/// let stack = Stack::new(Arc::new(InMemoryBackend::new())).layer(Nothing);
/// assert_eq!(format!("{stack:?}"), "Nothing > InMemoryBackend");
/// let backend: Arc<dyn Backend> = stack.into_backend();
/// # drop(backend);
/// ```
#[must_use = "a stack does nothing until its backend is used: call `into_backend`"]
pub struct Stack {
    backend: Arc<dyn Backend>,
    /// What `Debug` prints, innermost first.
    names: Vec<String>,
}

impl Stack {
    /// Starts a stack at `backend`: an `Arc` of any concrete store, or an `Arc<dyn Backend>`.
    pub fn new(backend: impl IntoBackend) -> Self {
        let (backend, name) = backend.into_backend();
        Self { backend, names: vec![name] }
    }

    /// Sets the text that `Debug` prints for the innermost backend. The default is the store's type name, `sqlite(wa.db)`
    /// for this crate's SQLite store, and `backend` for an `Arc<dyn Backend>`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        if let Some(innermost) = self.names.first_mut() {
            *innermost = name.into();
        }
        self
    }

    /// Wraps what the stack is so far in `layer`.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.names.push(format!("{layer:?}"));
        self.backend = layer.layer(self.backend);
        self
    }

    /// Returns the outermost backend, ready for `Bot::builder().with_backend_arc(..)`.
    pub fn into_backend(self) -> Arc<dyn Backend> {
        self.backend
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, name) in self.names.iter().rev().enumerate() {
            if position > 0 {
                f.write_str(" > ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// What a [`Stack`] can start from: `Arc<S>` of any store `S`, or `Arc<dyn Backend>`.
pub trait IntoBackend: private::Sealed {
    /// Returns the backend and the name that a stack prints for it.
    #[doc(hidden)]
    fn into_backend(self) -> (Arc<dyn Backend>, String);
}

impl<S: Backend + 'static> IntoBackend for Arc<S> {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        #[cfg(feature = "sqlite")]
        if let Some(store) = (&self as &dyn std::any::Any).downcast_ref::<Arc<crate::SqliteStore>>() {
            let name = format!("{store:?}");
            return (self, name);
        }
        let path = type_name::<S>();
        let name = path.split('<').next().and_then(|path| path.rsplit("::").next());
        (self, name.unwrap_or(path).to_owned())
    }
}

impl IntoBackend for Arc<dyn Backend> {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        (self, "backend".to_owned())
    }
}

mod private {
    use super::{Arc, Backend};

    pub trait Sealed {}
    impl<S: Backend + 'static> Sealed for Arc<S> {}
    impl Sealed for Arc<dyn Backend> {}
}
