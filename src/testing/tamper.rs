//! A layer that changes answers.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use wacore::store::traits::Backend;

use crate::layer::Layer;
use crate::method::{BoxFuture, Method, uniform_layer};
use crate::sync::IgnorePoison;

/// Simulates an attacker who controls a store while it is in use: changes the answers of the store, each in another
/// way if the test needs that. To change rows between two calls, use a handle to the store itself. A cheap handle;
/// clones share their alterations.
///
/// ```
/// use std::sync::Arc;
/// use bytes::Bytes;
/// use wacore::store::InMemoryBackend;
/// use wacore::store::error::Result;
/// use wastore::testing::Tamper;
/// use wastore::{Method, Stack};
///
/// # futures::executor::block_on(async {
/// let tamper = Tamper::new();
/// let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(tamper.clone()).into_backend();
/// store.put_session("a@s", b"1").await?;
///
/// tamper.alter(Method::GetSession, |answer: &mut Result<Option<Bytes>>| *answer = Ok(Some(Bytes::from_static(b"2"))));
/// assert_eq!(store.get_session("a@s").await?.as_deref(), Some(&b"2"[..]));
/// assert_eq!(tamper.altered(), 1);
/// tamper.clear();
/// assert_eq!(store.get_session("a@s").await?.as_deref(), Some(&b"1"[..]));
/// # Ok::<(), wacore::store::error::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct Tamper {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    alterations: Vec<(Method, Alteration)>,
    altered: u64,
}

type Alteration = Box<dyn FnMut(&mut dyn Any) + Send>;

impl Tamper {
    /// Makes a layer that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, passes every answer of `method` to `alteration`, which may change it. It may also turn an error
    /// into a success, or a success into an error. `T` is the return type of the method. Several alterations of one
    /// method apply in the order in which they were added.
    ///
    /// # Panics
    /// The call of the method panics if the method does not return a `T`, because the alteration would never apply.
    #[allow(clippy::panic, reason = "a test that tests nothing has to fail")]
    pub fn alter<T: 'static>(&self, method: Method, mut alteration: impl FnMut(&mut T) + Send + 'static) {
        let alteration = move |answer: &mut dyn Any| match answer.downcast_mut() {
            Some(answer) => alteration(answer),
            None => panic!("{} does not return {}", method.name(), type_name::<T>()),
        };
        self.lock().alterations.push((method, Box::new(alteration)));
    }

    /// Removes every alteration.
    pub fn clear(&self) {
        self.lock().alterations.clear();
    }

    /// The number of answers that were passed to an alteration so far.
    pub fn altered(&self) -> u64 {
        self.lock().altered
    }

    fn apply(&self, method: Method, answer: &mut dyn Any) {
        let mut state = self.lock();
        let State { alterations, altered } = &mut *state;
        for (_, alteration) in alterations.iter_mut().filter(|(about, _)| *about == method) {
            alteration(answer);
            *altered += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }
}

impl Layer for Tamper {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(TamperStore { inner, tamper: self.clone() })
    }
}

/// The text that a stack prints.
impl fmt::Debug for Tamper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tamper")
    }
}

struct TamperStore {
    inner: Arc<dyn Backend>,
    tamper: Tamper,
}

impl TamperStore {
    fn around<'a, A: Send + 'a, T: Send + 'static>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        let tamper = self.tamper.clone();
        Box::pin(async move {
            let mut answer = call(arguments).await;
            tamper.apply(method, &mut answer);
            answer
        })
    }
}

uniform_layer!(TamperStore);
