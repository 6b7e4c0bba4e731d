//! Layers over a storage backend, and the stack that they form.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use wacore::store::traits::Backend;

use crate::error::Result;
#[cfg(feature = "sqlite")]
use crate::rows::below::own_store_below;

/// A layer wraps a [`Backend`] in another one: encryption, a cache, metrics.
///
/// A layer is a small value, and you can apply it several times. All slow and fallible work (deriving keys, checking a
/// header) happens when you make the value, so applying it cannot fail. A [`Stack`] prints its [`fmt::Debug`], for
/// example `encrypt(v1)`.
pub trait Layer: fmt::Debug + Send + Sync {
    /// Returns a backend that answers through `inner`.
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend>;

    /// Ends the layer's state in memory, in every store that it is applied to; see [`Closer`]. The default does
    /// nothing.
    fn close(&self) {}
}

impl<L: Layer + ?Sized> Layer for Arc<L> {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        (**self).layer(inner)
    }

    fn close(&self) {
        (**self).close();
    }
}

/// A backend under any number of [`Layer`]s.
///
/// Each [`Stack::layer`] wraps everything above it in the source, so the client talks to the last layer. OpenDAL and
/// axum have the same order; `tower::ServiceBuilder` has the opposite one. `Debug` prints the layers in the order in
/// which a call passes through them.
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
    /// The texts that `Debug` prints, innermost first.
    names: Vec<String>,
    closer: Closer,
}

impl Stack {
    /// Starts a stack at `backend`: an `SqliteStore`, a reference to one, an `Arc` of any other store, or an `Arc<dyn Backend>`.
    pub fn new(backend: impl IntoBackend) -> Self {
        let (backend, name) = backend.into_backend();
        Self { backend: backend.clone(), names: vec![name], closer: Closer::of(backend) }
    }

    /// Sets the text that `Debug` prints for the innermost backend. The default is the name of the store's type, `backend`
    /// for an `Arc<dyn Backend>`, and `sqlite(wa.db)` for an `SqliteStore` that is given without an `Arc`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        if let Some(innermost) = self.names.first_mut() {
            *innermost = name.into();
        }
        self
    }

    /// Wraps the stack in `layer`.
    pub fn layer(mut self, layer: impl Layer + 'static) -> Self {
        self.names.push(format!("{layer:?}"));
        self.backend = layer.layer(self.backend);
        self.closer.layers.push(Arc::new(layer));
        self
    }

    /// Returns a handle that ends the stack. Keep it when you give the backend away.
    pub fn closer(&self) -> Closer {
        self.closer.clone()
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

/// Ends a stack whose backend may still be in use elsewhere.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("wa.db");
/// use wastore::{CacheLayer, SqliteStore, Stack};
///
/// let stack = Stack::new(SqliteStore::open(&path).await?).layer(CacheLayer::new(1 << 20));
/// let closer = stack.closer();
/// let backend = stack.into_backend();
/// // ... the client stops, but may hold its backend for longer ...
/// closer.close().await?;
/// assert!(backend.get_session("15550001111:2@s.whatsapp.net").await.is_err());
/// std::fs::rename(&path, folder.path().join("moved.db")).unwrap();
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Closer {
    #[cfg(feature = "sqlite")]
    base: Arc<dyn Backend>,
    layers: Vec<Arc<dyn Layer>>,
}

impl Closer {
    fn of(base: Arc<dyn Backend>) -> Self {
        #[cfg(not(feature = "sqlite"))]
        drop(base);
        Self {
            #[cfg(feature = "sqlite")]
            base,
            layers: vec![],
        }
    }

    /// Ends every layer, the outermost first, and then this crate's own store: see
    /// [`SqliteStore::close`](crate::SqliteStore::close). Other stores stay as they are.
    ///
    /// # Errors
    /// As [`SqliteStore::close`](crate::SqliteStore::close). Also fails with an error of the store at the base of the
    /// stack, which is asked whether it is this crate's own. The layers are ended in any case.
    pub async fn close(&self) -> Result<()> {
        self.layers.iter().rev().for_each(|layer| layer.close());
        #[cfg(feature = "sqlite")]
        if let Some(store) = own_store_below(&*self.base).await? {
            store.close_database().await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("layers", &self.layers).finish_non_exhaustive()
    }
}

/// A store for a [`Stack`] or a [`Vault`](crate::Vault): `Arc<S>` of any store `S`, `Arc<dyn Backend>`, `SqliteStore`, or a reference
/// to one.
pub trait IntoBackend: sealed::Sealed {
    /// Returns the backend and the name that a stack prints for it.
    #[doc(hidden)]
    fn into_backend(self) -> (Arc<dyn Backend>, String);
}

impl<S: Backend + 'static> IntoBackend for Arc<S> {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
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

pub(crate) mod sealed {
    use super::{Arc, Backend};

    pub trait Sealed {}
    impl<S: Backend + 'static> Sealed for Arc<S> {}
    impl Sealed for Arc<dyn Backend> {}
}
