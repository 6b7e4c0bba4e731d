//! Settings of a store.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::durability::Durability;

/// After this long without a sign of life, a store loses its accounts to another one that waits.
const LEASE_LENGTH: Duration = Duration::from_secs(15);

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
    pub(super) account: Option<i32>,
    pub(super) lease_wait: Duration,
    pub(super) lease_name: String,
    pub(super) lease_when_writing: bool,
    pub(super) lease_length: Duration,
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
            account: None,
            lease_wait: Duration::from_secs(20),
            lease_name: String::new(),
            lease_when_writing: false,
            lease_length: LEASE_LENGTH,
        }
    }

    /// Opens this account. It counts as chosen, as one of
    /// [`SqliteStore::account`](crate::SqliteStore::account) does. Default: account 1, which does
    /// not count as chosen.
    pub fn account(mut self, number: i32) -> Self {
        self.account = Some(number);
        self
    }

    /// Sets how long opening waits while another process writes the account, and how long the first
    /// write of a further account waits. Default: 20 s, longer than the 15 s after which a process
    /// that gives no sign of life loses its accounts.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.lease_wait = wait;
        self
    }

    /// Names the bot. A store takes over at once what another one of the same name holds: the
    /// successor of a bot that was restarted need not wait until its predecessor is gone. The name
    /// is stored in the file in the clear. Give two bots that run at the same time two names, or
    /// each ends the other. Default: empty, which is the same as no other name.
    pub fn lease_name(mut self, name: impl Into<String>) -> Self {
        self.lease_name = name.into();
        self
    }

    /// Does not wait for the account when the store is opened, but at the first call that writes a
    /// record. Reading, backups and changes of the vault's key slots need no account, so they work
    /// beside a running bot. Default: opening acquires the account.
    pub fn lease_when_writing(mut self) -> Self {
        self.lease_when_writing = true;
        self
    }

    /// Sets after how long without a sign of life a store loses its accounts.
    #[cfg(test)]
    pub(crate) fn lease_length(mut self, length: Duration) -> Self {
        self.lease_length = length;
        self
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
