//! Calls that pause on their way, for tests of concurrent calls.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use tokio::sync::Semaphore;
use wacore::store::traits::Backend;

use crate::layer::Layer;
use crate::method::{BoxFuture, Method, uniform_layer};

/// The place where a call pauses.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    Before,
    After,
}

/// Pauses calls of some methods until the test lets them through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
    pub(crate) closed: Arc<Mutex<HashMap<Method, Closed>>>,
}

pub(crate) type Closed = (Side, Arc<Semaphore>);

impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Side::Before { "before" } else { "after" })
    }
}

impl Gate {
    pub(crate) fn close(&self, method: Method, side: Side) {
        self.closed.lock().unwrap().insert(method, (side, Arc::new(Semaphore::new(0))));
    }

    /// Lets through all waiting calls, and all later ones.
    pub(crate) fn open(&self, method: Method) {
        if let Some((_, gate)) = self.closed.lock().unwrap().remove(&method) {
            gate.add_permits(Semaphore::MAX_PERMITS);
        }
    }
}

impl Layer for Gate {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(GateStore { inner, gate: self.clone() })
    }
}

struct GateStore {
    inner: Arc<dyn Backend>,
    gate: Gate,
}

impl GateStore {
    fn around<'a, A: Send + 'a, T: Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        let closed = self.gate.closed.lock().unwrap().get(&method).cloned();
        Box::pin(async move {
            let Some((side, gate)) = closed else { return call(arguments).await };
            if side == Side::Before {
                let _passed = gate.acquire().await;
                return call(arguments).await;
            }
            let result = call(arguments).await;
            let _passed = gate.acquire().await;
            result
        })
    }
}

uniform_layer!(GateStore);

/// Makes every call wait once before it reaches the store, and once after the store has answered.
#[derive(Debug)]
pub(crate) struct Pauses;

impl Layer for Pauses {
    fn layer(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(PausesStore { inner })
    }
}

struct PausesStore {
    inner: Arc<dyn Backend>,
}

impl PausesStore {
    fn around<'a, A: Send + 'a, T: Send + 'a>(
        &self,
        _: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T> + Send + 'a,
    ) -> BoxFuture<'a, T> {
        Box::pin(async move {
            pause().await;
            let answer = call(arguments).await;
            pause().await;
            answer
        })
    }
}

uniform_layer!(PausesStore);

async fn pause() {
    let mut paused = false;
    poll_fn(|context| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
