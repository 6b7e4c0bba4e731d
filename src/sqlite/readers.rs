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
use super::schema::{self, run_checked};
use super::wal::Wal;
use super::writer::Writer;
use crate::background;
use crate::error::{Error, Result};
use crate::sync::IgnorePoison;

/// Connections for short queries, which run where the caller is and never wait for one another, and long ones, which run
/// on as many blocking threads at most as there are slots. No call waits for another one's future to be polled.
pub(super) struct Readers {
    slots: Box<[Mutex<Slot>]>,
    long: Mutex<LongQueries>,
    /// Connections that are open, in slots or on loan.
    open: AtomicUsize,
    /// How many calls have a connection on loan, or are about to open one.
    lent: AtomicUsize,
    /// No connection may be opened.
    closed: AtomicBool,
    wal: Arc<Wal>,
    // Its connection is closed last.
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

/// Runs a query, and gives what tells its caller.
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

    /// How many connections there are.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Closes the connections for good. Nothing may open another one any more. `false` if the timeout is over.
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

    /// Closes the connections, waiting for those on loan, and keeps them closed as long as the guard lives. `None` if
    /// the timeout is over. Blocks its thread.
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

    /// Takes a free slot. Threads prefer slots of their own, whose pages and memory lie in their processor's caches.
    fn take(&self) -> (Option<usize>, Option<Connection>) {
        if self.are_closed() {
            return (None, None);
        }
        let preferred = preferred_slot();
        for number in (0..self.slots.len()).map(|distance| (preferred + distance) % self.slots.len()) {
            let Some(mut slot) = self.slot(number) else { continue };
            if let Slot::Free(connection) = mem::replace(&mut *slot, Slot::Lent) {
                return (Some(number), connection);
            }
        }
        (None, None)
    }

    fn slot(&self, number: usize) -> Option<MutexGuard<'_, Slot>> {
        self.slots.get(number).map(|slot| slot.lock().ignore_poison())
    }

    // Nothing panics while holding one of the guards.
    fn long(&self) -> MutexGuard<'_, LongQueries> {
        self.long.lock().ignore_poison()
    }
}

/// The readers are closed as long as this lives.
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

/// A reading connection on loan. One without a slot, because more threads read than there are slots, is closed afterwards.
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
        // It is there until `drop`.
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

/// Counts a connection that is being opened on another thread.
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
            // The connection is closed before the database if nobody waits for it any more.
            // Counted also if nobody waits for it any more.
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
        schema::check(&connection, schema::NEWEST)?;
        Ok(connection)
    }

    /// Runs a query of many rows on a blocking thread.
    ///
    /// # Errors
    /// As `Database::read`.
    pub(super) async fn run_long<T, F>(self: &Arc<Self>, mut query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let (reply, outcome) = oneshot::channel();
        let mut backoff = self.wal.backoff_of_readers();
        let run: LongQuery = Box::new(move |connection| {
            let result = connection
                .and_then(|connection| retry_busy(&mut backoff, || run_checked(connection, || query(connection))));
            // Nobody waits any more for a call whose future was dropped.
            Box::new(move || drop(reply.send(result)))
        });
        self.enqueue_long(run);
        outcome.await.unwrap_or(Err(Error::WorkerGone))
    }

    /// Puts a query into the queue, and starts a thread for it unless there are enough.
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
        // Before the caller knows: it may drop the store and expect it to be closed.
        drop(reader);
        drop(self);
        if let Some(tell) = tell {
            tell();
        }
    }
}
