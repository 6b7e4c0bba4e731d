//! A layer that records every call.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use wacore::store::traits::Backend;

use super::value::{ToValues, Value, write_fields};
use crate::layer::Layer;
use crate::method::{BoxFuture, Method, uniform_layer};
use crate::sync::IgnorePoison;

/// Records the method and the arguments of every call that passes. A cheap handle; clones share their record.
///
/// It keeps them in plaintext and without limit, so use it only in tests.
///
/// ```
/// use std::sync::Arc;
/// use wacore::store::InMemoryBackend;
/// use wastore::testing::Spy;
/// use wastore::{Method, Stack};
///
/// # futures::executor::block_on(async {
/// let spy = Spy::new();
/// let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(spy.clone()).into_backend();
/// store.put_session("15550001111@s.whatsapp.net", b"record").await?;
///
/// let calls = spy.take();
/// assert_eq!(calls[0].method, Method::PutSession);
/// assert_eq!(calls[0].to_string(), r#"put_session(address: "15550001111@s.whatsapp.net", session: x"7265636f7264")"#);
/// assert!(spy.calls().is_empty());
/// # Ok::<(), wacore::store::error::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct Spy {
    calls: Arc<Mutex<Vec<Call>>>,
}

/// A call that a [`Spy`] recorded. `Debug` and `Display` print it like a call in code, with the names of the
/// arguments.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// The method that was called.
    pub method: Method,
    /// Its arguments, in the order and with the names of [`Method::arguments`].
    pub arguments: Vec<Value>,
}

impl Spy {
    /// Makes a spy that has recorded nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The calls so far, oldest first. A call is recorded when its future is made, before it is awaited.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    /// Returns the calls so far, oldest first, and forgets them.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.lock())
    }

    /// Returns the methods of the calls so far, oldest first, and forgets them.
    pub fn take_methods(&self) -> Vec<Method> {
        self.take().into_iter().map(|call| call.method).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().ignore_poison()
    }
}

impl Layer for Spy {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(SpyStore { inner, spy: self.clone() })
    }
}

/// The text that a stack prints, without the calls.
impl fmt::Debug for Spy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("spy")
    }
}

impl Call {
    /// The argument of this name; `None` if the method has no such argument.
    pub fn argument(&self, name: &str) -> Option<&Value> {
        self.named_arguments().find_map(|(argument, value)| (argument == name).then_some(value))
    }

    fn named_arguments(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.method.arguments().iter().copied().zip(&self.arguments)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.method.name())?;
        write_fields(f, self.named_arguments())?;
        f.write_str(")")
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct SpyStore {
    inner: Arc<dyn Backend>,
    spy: Spy,
}

impl SpyStore {
    fn around<'a, A: ToValues, T>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T>,
    ) -> BoxFuture<'a, T> {
        self.spy.lock().push(Call { method, arguments: arguments.to_values() });
        call(arguments)
    }
}

uniform_layer!(SpyStore);
