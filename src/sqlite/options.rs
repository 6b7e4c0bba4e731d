//! Settings of a store.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::durability::Durability;

/// Settings of an [`SqliteStore`](crate::SqliteStore). The defaults suit a bot with one account.
///
/// For hundreds of accounts in one file, give all of them more cache and more readers:
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("wa.db");
/// use wastore::SqliteOptions;
///
/// let first = SqliteOptions::new().read_connections(8).page_cache_bytes(16 << 20).open(&path).await?;
/// let stores: Vec<_> = (1..=500).map(|number| first.account(number)).collect();
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
#[must_use = "settings do nothing until a store is opened with them"]
pub struct SqliteOptions {
    pub(super) durability: Durability,
    pub(super) readers: usize,
    pub(super) page_cache: usize,
    pub(super) mmap: u64,
    pub(super) busy_timeout: Duration,
    pub(super) base_key_retention: Option<Duration>,
    pub(super) unfinished: Option<Arc<TempDir>>,
    pub(super) must_exist: bool,
    pub(super) snapshots_kept: Option<NonZeroUsize>,
}

impl SqliteOptions {
    /// The defaults that each method below states.
    pub fn new() -> Self {
        Self {
            durability: Durability::default(),
            readers: 4,
            page_cache: 4 << 20,
            mmap: 0,
            busy_timeout: Duration::from_secs(10),
            base_key_retention: Some(Duration::from_secs(30 * 24 * 3600)),
            unfinished: None,
            must_exist: false,
            snapshots_kept: None,
        }
    }

    /// Keeps only this many snapshots beside the database. The rest are deleted when the client
    /// makes another one, as by [`prune_snapshots`](crate::SqliteStore::prune_snapshots). Default:
    /// all are kept.
    pub fn snapshots_kept(mut self, count: NonZeroUsize) -> Self {
        self.snapshots_kept = Some(count);
        self
    }

    /// Opens only an existing database. Default: creates one if the file does not exist.
    pub fn must_exist(mut self) -> Self {
        self.must_exist = true;
        self
    }

    /// Keeps the folder of an unfinished database until all work on it has ended, on other threads
    /// too.
    pub(crate) fn unfinished_in(mut self, folder: &Arc<TempDir>) -> Self {
        self.unfinished = Some(folder.clone());
        self
    }

    /// Sets which calls survive a power cut. Default: [`Durability::SignalState`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how many reading connections are kept, at least 1, and how many long queries run at the
    /// same time. Connections are opened when needed; there are more for a moment if more threads
    /// read at once. Default: 4.
    pub fn read_connections(mut self, count: usize) -> Self {
        self.readers = count.max(1);
        self
    }

    /// Sets the size of each connection's page cache, in bytes. It fills when needed. Other pages
    /// come from the operating system's cache, which takes a few microseconds each. Default: 4 MiB.
    pub fn page_cache_bytes(mut self, bytes: usize) -> Self {
        self.page_cache = bytes;
        self
    }

    /// Sets how many bytes of the file are read through a memory map instead of the page cache.
    /// This is faster for large files, but a disk error kills the process instead of failing a call
    /// (<https://www.sqlite.org/mmap.html>). Default: 0.
    pub fn mmap_bytes(mut self, bytes: u64) -> Self {
        self.mmap = bytes;
        self
    }

    /// Sets how long a call waits for another process that writes to the same file, counted from
    /// the start of the call. Default: 10 s.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Sets how long base keys are kept; `None` keeps them for ever. Upstream saves base keys to
    /// detect repeated retries, and deletes only some of them. Default: 30 days.
    pub fn base_key_retention(mut self, retention: Option<Duration>) -> Self {
        self.base_key_retention = retention;
        self
    }
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self::new()
    }
}
