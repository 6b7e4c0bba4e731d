//! A layer that makes calls fail, wait or hang.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use crate::layer::Layer;
use crate::method::{BoxFuture, Method, Refuse, uniform_layer};
use crate::sync::IgnorePoison;

/// Disturbs calls on demand. A cheap handle; clones share their faults and their counters.
///
/// ```
/// use std::sync::Arc;
/// use wacore::store::InMemoryBackend;
/// use wastore::testing::{Effect, Fault, When};
/// use wastore::{Method, Stack};
///
/// # futures::executor::block_on(async {
/// let fault = Fault::new();
/// let store = Stack::new(Arc::new(InMemoryBackend::new())).layer(fault.clone()).into_backend();
///
/// fault.inject(When::NthOf(Method::PutSession, 2), Effect::Fail(Fault::error));
/// store.put_session("a@s", b"1").await?;
/// let failed = store.put_session("a@s", b"2").await.unwrap_err();
/// assert!(Fault::is_injected(&failed));
/// store.put_session("a@s", b"3").await?;
/// # Ok::<(), wacore::store::error::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct Fault {
    faults: Arc<Mutex<Vec<Injected>>>,
}

/// The calls that a fault affects. Calls are counted from 1, starting when the fault is injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// Every call.
    Always,
    /// Every call of this method.
    Method(Method),
    /// Only the n-th call of any method.
    Nth(u64),
    /// The n-th call and all later ones.
    From(u64),
    /// Only the n-th call of this method.
    NthOf(Method, u64),
}

/// The effect of a fault on a call.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Effect {
    /// Returns this error without calling the inner store. [`Fault::error`] makes one that no store returns by
    /// itself. `resource_report`, which cannot fail, returns an empty report.
    Fail(fn() -> StoreError),
    /// Calls the inner store, then returns this error regardless of the result. It simulates a lost acknowledgement.
    FailAfter(fn() -> StoreError),
    /// Waits this long before the call to the inner store. Needs a tokio runtime with timers.
    Delay(Duration),
    /// Simulates a dropped call: the inner call is polled at most this many times and then dropped, and the outer
    /// call never ends. With 0 the inner store is not called at all.
    Cancel {
        /// How often the inner call is polled.
        polls: usize,
    },
}

struct Injected {
    when: When,
    effect: Effect,
    seen: u64,
}

impl Fault {
    /// Makes a layer that disturbs nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Disturbs calls from now on. If several faults match a call, the one that was injected first applies.
    pub fn inject(&self, when: When, effect: Effect) {
        self.lock().push(Injected { when, effect, seen: 0 });
    }

    /// Removes every fault.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// An error for [`Effect::Fail`] that no store returns by itself. [`Fault::is_injected`] recognizes it.
    pub fn error() -> StoreError {
        StoreError::DeviceNotFound(INJECTED)
    }

    /// Returns whether [`Fault::error`] made this error.
    pub fn is_injected(error: &StoreError) -> bool {
        matches!(error, StoreError::DeviceNotFound(INJECTED))
    }

    fn effect(&self, method: Method) -> Option<Effect> {
        let mut effect = None;
        for fault in self.lock().iter_mut() {
            let counted = match fault.when {
                When::Always | When::Nth(_) | When::From(_) => true,
                When::Method(struck) | When::NthOf(struck, _) => struck == method,
            };
            fault.seen += u64::from(counted);
            let strikes = match fault.when {
                When::Always | When::Method(_) => counted,
                When::From(number) => fault.seen >= number,
                When::Nth(number) | When::NthOf(_, number) => counted && fault.seen == number,
            };
            if strikes && effect.is_none() {
                effect = Some(fault.effect);
            }
        }
        effect
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Injected>> {
        self.faults.lock().ignore_poison()
    }
}

/// No device number comes near this one.
const INJECTED: i32 = i32::MIN + 4242;

impl Layer for Fault {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(FaultStore { inner, fault: self.clone() })
    }
}

/// The text that a stack prints.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fault")
    }
}

struct FaultStore {
    inner: Arc<dyn Backend>,
    fault: Fault,
}

impl FaultStore {
    fn around<'a, A: Send + 'a, T: Refuse + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        match self.fault.effect(method) {
            None => call(arguments),
            Some(Effect::Fail(error)) => Box::pin(async move { T::refused(error()) }),
            Some(Effect::FailAfter(error)) => Box::pin(async move {
                call(arguments).await;
                T::refused(error())
            }),
            Some(Effect::Delay(time)) => Box::pin(async move {
                tokio::time::sleep(time).await;
                call(arguments).await
            }),
            Some(Effect::Cancel { polls }) => Box::pin(async move {
                if polls > 0 {
                    polled(polls, call(arguments)).await;
                }
                std::future::pending().await
            }),
        }
    }
}

uniform_layer!(FaultStore);

/// Polls a future at most `times` times, each time after it was woken, and then drops it. Returns its output if it
/// completed.
pub(crate) async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
