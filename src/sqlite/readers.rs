//! The reading connections.

use std::cell::Cell;
use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use futures_channel::oneshot;
use rusqlite::Connection;

use super::backoff::{BusyBackoff, contended, retry_busy};
use super::connection::{Role, configure};
use super::wal::Wal;
use super::writer::Writer;
use crate::background;
use crate::error::{Error, Result};
use crate::sync::IgnorePoison;

/// The reading connections. Short queries run on the caller's thread and never wait for one
/// another. Long queries run on blocking threads, at most as many as there are slots. No call
/// depends on the polling of another call's future.
pub(super) struct Readers {
    slots: Box<[Mutex<Slot>]>,
    long: Mutex<LongQueries>,
    /// How many connections are open, in slots or on loan.
    open: AtomicUsize,
    /// How many calls have a connection on loan, or are about to open one.
    lent: AtomicUsize,
    /// `true` while no connection may be opened.
    closed: AtomicBool,
    wal: Arc<Wal>,
    // Keeps the writer's connection open until the readers are gone.
    _writer: Arc<Writer>,
}

enum Slot {
    Free(Option<Connection>),
    Lent,
}

#[derive(Default)]
struct LongQueries {
    waiting: VecDeque<LongQuery>,
    threads: usize,
}

/// Runs a query, and returns the function that tells its caller.
type LongQuery = Box<dyn FnOnce(Result<&Connection>) -> Box<dyn FnOnce() + Send> + Send>;

impl Readers {
    pub(super) fn new(writer: Arc<Writer>, wal: Arc<Wal>) -> Self {
        let slots = (0..wal.config.readers).map(|_| Mutex::new(Slot::Free(None))).collect();
        Self {
            slots,
            long: Mutex::default(),
            open: AtomicUsize::new(0),
            lent: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            wal,
            _writer: writer,
        }
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Closes the connections for good; no call opens one afterwards. Returns `false` if the
    /// backoff ends first.
    pub(super) fn close_for_good(&self, backoff: &mut BusyBackoff) -> bool {
        loop {
            let Some(closed) = self.close(backoff) else { return false };
            mem::forget(closed);
            if self.lent.load(Ordering::SeqCst) == 0 && self.open() == 0 {
                return true;
            }
            let Some(pause) = backoff.next() else { return false };
            thread::sleep(pause);
        }
    }

    pub(super) fn are_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes the connections, waits for those on loan, and keeps them closed as long as the guard
    /// lives. Returns `None` if the backoff ends first. Blocks its thread.
    pub(super) fn close(&self, backoff: &mut BusyBackoff) -> Option<ReadersClosed<'_>> {
        self.closed.store(true, Ordering::Release);
        let closed = ReadersClosed(self);
        loop {
            for mut slot in (0..self.slots.len()).filter_map(|number| self.slot(number)) {
                if let Slot::Free(connection) = &mut *slot
                    && connection.take().is_some()
                {
                    self.open.fetch_sub(1, Ordering::Relaxed);
                }
            }
            if self.open() == 0 {
                return Some(closed);
            }
            thread::sleep(backoff.next()?);
        }
    }

    /// Takes a free slot, if possible one with a connection: each has a page cache of its own. Each
    /// thread prefers its own slot, whose pages are in its processor's caches.
    fn take(&self) -> (Option<usize>, Option<Connection>) {
        if self.are_closed() {
            return (None, None);
        }
        let preferred = preferred_slot();
        let slots = || (0..self.slots.len()).map(|distance| (preferred + distance) % self.slots.len());
        let open = slots().find_map(|number| self.lend(number, true));
        let (slot, connection) = open.or_else(|| slots().find_map(|number| self.lend(number, false))).unzip();
        (slot, connection.flatten())
    }

    /// Takes a slot if it is free, and if it has a connection where that is asked for.
    fn lend(&self, number: usize, open: bool) -> Option<(usize, Option<Connection>)> {
        let mut slot = self.slot(number)?;
        match &mut *slot {
            Slot::Free(connection) if connection.is_some() || !open => {
                let connection = connection.take();
                *slot = Slot::Lent;
                Some((number, connection))
            }
            _ => None,
        }
    }

    fn slot(&self, number: usize) -> Option<MutexGuard<'_, Slot>> {
        self.slots.get(number).map(|slot| slot.lock().ignore_poison())
    }

    // No code panics while it holds one of the guards.
    fn long(&self) -> MutexGuard<'_, LongQueries> {
        self.long.lock().ignore_poison()
    }
}

/// Keeps the readers closed as long as it lives.
pub(super) struct ReadersClosed<'a>(&'a Readers);

impl Drop for ReadersClosed<'_> {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::Release);
    }
}

fn preferred_slot() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PREFERRED: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
    }
    PREFERRED.get()
}

/// A reading connection on loan. It has no slot if more threads read than there are slots; then it
/// is closed afterwards.
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    slot: Option<usize>,
    connection: Option<Connection>,
}

impl<'a> Reader<'a> {
    fn take(readers: &'a Readers) -> Self {
        readers.lent.fetch_add(1, Ordering::SeqCst);
        let (slot, connection) = readers.take();
        Self { readers, slot, connection }
    }

    fn close(&mut self) {
        if self.connection.take().is_some() {
            self.readers.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn fill(&mut self, connection: Connection) {
        self.readers.open.fetch_add(1, Ordering::Relaxed);
        self.connection = Some(connection);
    }

    pub(super) fn run<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        // `drop` takes the connection; until then it is set.
        query(self.connection.as_ref().ok_or(Error::WorkerGone)?)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if self.readers.are_closed() {
            self.close();
        }
        let connection = self.connection.take();
        match self.slot.and_then(|number| self.readers.slot(number)) {
            Some(mut slot) => *slot = Slot::Free(connection),
            None if connection.is_some() => {
                self.readers.open.fetch_sub(1, Ordering::Relaxed);
            }
            None => {}
        }
        self.readers.lent.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a connection that another thread is opening.
struct Opening(Arc<Readers>);

impl Opening {
    fn of(readers: &Arc<Readers>) -> Self {
        readers.lent.fetch_add(1, Ordering::SeqCst);
        Self(readers.clone())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Readers {
    /// A reader for a short query.
    pub(super) async fn reader(self: &Arc<Self>) -> Result<Reader<'_>> {
        let mut reader = Reader::take(self);
        if reader.connection.is_none() {
            let readers = self.clone();
            // If the caller gives up, the connection is still counted, and closed before the
            // database.
            let opening = Opening::of(self);
            let open = move || Ok::<_, Error>((readers.open_reader()?, opening, readers));
            let (connection, _opening, _readers) = background::unblock(open).await?;
            reader.fill(connection);
        }
        Ok(reader)
    }

    /// Opens a reader. Blocks its thread.
    ///
    /// # Errors
    /// Contention while readers are closed, and the errors of opening.
    fn open_reader(&self) -> Result<Connection> {
        let connection = self.wal.connect()?;
        if self.are_closed() {
            return Err(contended());
        }
        configure(&connection, &self.wal.config, Role::Reader)?;
        self.wal.check_files()?;
        self.wal.check_schema(&connection)?;
        Ok(connection)
    }

    /// Runs a query that may return many rows on a blocking thread.
    ///
    /// # Errors
    /// Those of `Database::read`.
    pub(super) async fn run_long<T, F>(self: &Arc<Self>, mut query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let (reply, outcome) = oneshot::channel();
        let (wal, mut backoff) = (self.wal.clone(), self.wal.backoff_of_readers());
        let run: LongQuery = Box::new(move |connection| {
            let result = connection
                .and_then(|connection| retry_busy(&mut backoff, || wal.run_checked(connection, || query(connection))));
            // If the call's future was dropped, no one receives the result.
            Box::new(move || drop(reply.send(result)))
        });
        self.enqueue_long(run);
        outcome.await.unwrap_or(Err(Error::WorkerGone))
    }

    /// Queues a query. Starts a thread for it unless enough threads run.
    fn enqueue_long(self: &Arc<Self>, query: LongQuery) {
        let mut long = self.long();
        long.waiting.push_back(query);
        if long.threads < self.slots.len() {
            long.threads += 1;
            let readers = self.clone();
            background::detached(move || readers.run_long_queries());
        }
    }

    /// Runs long queries until none wait.
    fn run_long_queries(self: Arc<Self>) {
        let mut reader = Reader::take(&self);
        let mut tell: Option<Box<dyn FnOnce() + Send>> = None;
        loop {
            let mut long = self.long();
            let Some(query) = long.waiting.pop_front() else {
                long.threads -= 1;
                break;
            };
            drop(long);
            if let Some(tell) = tell.take() {
                tell();
            }
            if self.are_closed() {
                reader.close();
            }
            if reader.connection.is_none() {
                match retry_busy(&mut self.wal.backoff_of_readers(), || self.open_reader()) {
                    Ok(connection) => reader.fill(connection),
                    Err(error) => {
                        tell = Some(query(Err(error)));
                        continue;
                    }
                }
            }
            tell = Some(query(reader.connection.as_ref().ok_or(Error::WorkerGone)));
        }
        // Closes the reader before the caller is told: the caller may drop the store and expect it
        // to be closed.
        drop(reader);
        drop(self);
        if let Some(tell) = tell {
            tell();
        }
    }
}
