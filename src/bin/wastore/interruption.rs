//! Signals: cleaning up and reporting when one ends the command.

use std::fs;
use std::path::PathBuf;

use wastore::printable_path;

use crate::cli::{Command, Header, ImportArgs};

/// Lets other threads finish their current work and remove their files. A second signal ends the
/// program at once.
pub(crate) fn end_background_work() {
    let (ended, wait) = std::sync::mpsc::channel::<&str>();
    let second = ended.clone();
    let on_a_thread = |work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().spawn(work).is_ok();
    on_a_thread(Box::new(move || {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            runtime.block_on(async { interrupted().await });
            second.send("interrupted twice: delete the files whose names begin with .wastore-, if any are left").ok();
        }
    }));
    let finishes = on_a_thread(Box::new(move || {
        wastore::finish_background_work();
        ended.send("").ok();
    }));
    if !finishes {
        return wastore::finish_background_work();
    }
    if let Ok(text) = wait.recv()
        && !text.is_empty()
    {
        tell!("wastore: {text}");
    }
}

/// The files that a command makes or removes. After an interruption, tells which of them are done.
pub(crate) struct Makes {
    target: Option<PathBuf>,
    source: Option<PathBuf>,
    /// The file that is replaced, and its identity.
    replaced: Option<(PathBuf, Option<u64>)>,
}

impl Makes {
    pub(crate) fn of(command: &Command) -> Self {
        let (target, source) = match command {
            Command::Init { store, .. } => (store.path(), None),
            Command::Import(ImportArgs { store, source, remove_source, .. }) => {
                (store.path(), remove_source.then_some(source))
            }
            Command::Export { target, .. } => (Some(target), None),
            Command::Backup { file, .. } => (file.as_ref(), None),
            Command::Repair { backup, .. } => (Some(backup), None),
            Command::Keygen { file } | Command::Header { command: Header::Save { file, .. } } => (Some(file), None),
            _ => (None, None),
        };
        let replaced = match command {
            Command::Restore { store, .. } => store.path().map(|store| (store.clone(), file_number(store))),
            _ => None,
        };
        Self {
            replaced,
            target: target.filter(|path| path.symlink_metadata().is_err()).cloned(),
            source: source.filter(|path| path.symlink_metadata().is_ok()).cloned(),
        }
    }

    pub(crate) fn tell_what_is_done(self) {
        if let Some(path) = self.target.filter(|path| path.symlink_metadata().is_ok()) {
            tell!("wastore: {} is complete", printable_path(&path));
        }
        if let Some((path, number)) = self.replaced
            && file_number(&path) != number
        {
            tell!("wastore: {} was restored from the backup", printable_path(&path));
        }
        if let Some(path) = self.source.filter(|path| path.symlink_metadata().is_err()) {
            tell!("wastore: {} was removed", printable_path(&path));
        }
    }
}

/// Distinguishes a file from another one of the same name.
fn file_number(path: &std::path::Path) -> Option<u64> {
    #[cfg(unix)]
    return path.metadata().ok().map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
    #[cfg(not(unix))]
    return path.metadata().ok().map(|metadata| metadata.len());
}

/// A future that ends when the program gets a signal to end, from now on.
pub(crate) fn interrupted() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let heeded = kinds.into_iter().filter(|kind| !is_ignored(kind.as_raw_value()));
        let mut signals: Vec<_> = heeded.filter_map(|kind| signal(kind).ok()).collect();
        // A file that grows beyond its limit is then a write error, after which unfinished files
        // are removed.
        let limit = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).ok();
        std::future::poll_fn(move |context| {
            let _kept = &limit;
            let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
    }
    #[cfg(not(unix))]
    async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals there is nothing to wait for.
            std::future::pending().await
        }
    }
}

/// `true` if the caller of the program has switched the signal off, as `nohup` does.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    static IGNORED: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        // On other systems than Linux this needs a system call that would need unsafe code.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    });
    *IGNORED >> (signal - 1) & 1 == 1
}
