//! Time limits and threads for work that may wait for long. They need no async runtime.

use std::io;
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, select};

/// Waits for `work`, and returns `None` if it takes longer than `limit`. A thread keeps the time.
///
/// # Errors
/// If there is no thread. The work has not begun then.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> io::Result<Option<T>> {
    let (running, over) = mpsc::channel::<()>();
    let (expires, expired) = oneshot::channel::<()>();
    thread::Builder::new().name("time limit".to_owned()).spawn(move || {
        // Returns early when the future is dropped or done, because `running` is dropped then.
        over.recv_timeout(limit).ok();
        drop(expires);
    })?;
    let done = match select(pin!(work), expired).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    };
    drop(running);
    Ok(done)
}

/// Does `work` on a thread of its own, which is abandoned when the future is dropped: it ends with the work, or with the
/// process.
///
/// # Errors
/// If there is no thread, or if the work panics.
pub(super) async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || tell.send(work()).ok())?;
    told.await.map_err(|_| io::Error::other("its thread has ended"))
}
