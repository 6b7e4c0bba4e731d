//! Work that may wait for long.

use crate::failure::Failure;

/// Runs work that may wait for a person, a pipe or a server, so that a signal can still end the command.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (give, result) = tokio::sync::oneshot::channel();
    // The thread is abandoned if the command ends first.
    std::thread::Builder::new().spawn(move || give.send(work()).ok()).map_err(Failure::other)?;
    result.await.map_err(Failure::other)?
}
