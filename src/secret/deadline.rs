//! A time limit that needs no async runtime.

use std::io;
use std::pin::pin;
use std::sync::mpsc;
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
    std::thread::Builder::new().name("time limit".to_owned()).spawn(move || {
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
