//! A layer that lies.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wacore::store::traits::Backend;

use crate::layer::Layer;
use crate::method::{BoxFuture, Method, uniform_layer};

/// Stands for somebody who controls a store while it is in use: changes what it answers, differently each time if it
/// likes. What somebody does to a store's rows between two calls, a test does through a handle on the store itself. A
/// cheap handle; clones share their lies.
///
/// ```
/// use std::sync::Arc;
/// use bytes::Bytes;
/// use wacore::store::InMemoryBackend;
/// use wacore::store::error::Result;
/// use wastore::testing::Evil;
/// use wastore::{Method, Stack};
///
/// # futures::executor::block_on(async {
/// let evil = Evil::new();
/// let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(evil.clone()).into_backend();
/// store.put_session("a@s", b"1").await?;
///
/// evil.lie(Method::GetSession, |answer: &mut Result<Option<Bytes>>| *answer = Ok(Some(Bytes::from_static(b"2"))));
/// assert_eq!(store.get_session("a@s").await?.as_deref(), Some(&b"2"[..]));
/// assert_eq!(evil.lies_told(), 1);
/// evil.repent();
/// assert_eq!(store.get_session("a@s").await?.as_deref(), Some(&b"1"[..]));
/// # Ok::<(), wacore::store::error::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct Evil {
    lies: Arc<Mutex<Lies>>,
}

#[derive(Default)]
struct Lies {
    lies: Vec<(Method, Lie)>,
    told: u64,
}

type Lie = Box<dyn FnMut(&mut dyn Any) + Send>;

impl Evil {
    /// A layer that tells the truth so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on passes every answer of `method` to `lie`, which may change it, also from an error to none and back. `T` is
    /// what the method returns. Several lies about one method are told in the order in which they were made up.
    ///
    /// # Panics
    /// When the method is called, if it does not return a `T`: the lie would never be told.
    #[allow(clippy::panic, reason = "a test that tests nothing has to fail")]
    pub fn lie<T: 'static>(&self, method: Method, mut lie: impl FnMut(&mut T) + Send + 'static) {
        let lie = move |answer: &mut dyn Any| match answer.downcast_mut() {
            Some(answer) => lie(answer),
            None => panic!("{} does not return {}", method.name(), type_name::<T>()),
        };
        self.lock().lies.push((method, Box::new(lie)));
    }

    /// Takes back every lie.
    pub fn repent(&self) {
        self.lock().lies.clear();
    }

    /// How many answers were passed to a lie so far.
    pub fn lies_told(&self) -> u64 {
        self.lock().told
    }

    fn tell(&self, method: Method, answer: &mut dyn Any) {
        let mut lies = self.lock();
        let Lies { lies, told } = &mut *lies;
        for (_, lie) in lies.iter_mut().filter(|(about, _)| *about == method) {
            lie(answer);
            *told += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lies> {
        self.lies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for Evil {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(EvilStore { inner, evil: self.clone() })
    }
}

/// How a stack prints it.
impl fmt::Debug for Evil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evil")
    }
}

struct EvilStore {
    inner: Arc<dyn Backend>,
    evil: Evil,
}

impl EvilStore {
    fn around<'a, A: Send + 'a, T: Send + 'static>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        let evil = self.evil.clone();
        Box::pin(async move {
            let mut answer = call(arguments).await;
            evil.tell(method, &mut answer);
            answer
        })
    }
}

uniform_layer!(EvilStore);
