//! The pool of reading connections.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::{Semaphore, SemaphoreGuard, SemaphoreGuardArc};
use rusqlite::Connection;

use super::database::Database;
use crate::error::{Error, Result};

/// As many slots as there may be readers, filled when they are first needed.
pub(super) struct Readers {
    slots: Box<[Mutex<Slot>]>,
    /// One per slot.
    permits: Arc<Semaphore>,
}

enum Slot {
    Free(Option<Connection>),
    Lent,
}

impl Readers {
    pub(super) fn new(count: usize) -> Self {
        let slots = (0..count).map(|_| Mutex::new(Slot::Free(None))).collect();
        Self { slots, permits: Arc::new(Semaphore::new(count)) }
    }

    /// Takes a free slot; whoever has a permit finds one. Threads prefer slots of their own, whose pages and memory lie in
    /// their processor's caches.
    fn take(&self) -> Option<(usize, Option<Connection>)> {
        let preferred = preferred_slot();
        (0..self.slots.len()).map(|distance| (preferred + distance) % self.slots.len()).find_map(|number| {
            let mut slot = self.slot(number)?;
            match std::mem::replace(&mut *slot, Slot::Lent) {
                Slot::Free(connection) => Some((number, connection)),
                Slot::Lent => None,
            }
        })
    }

    fn slot(&self, number: usize) -> Option<MutexGuard<'_, Slot>> {
        // Nothing panics while holding the guard.
        self.slots.get(number).map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn preferred_slot() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PREFERRED: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
    }
    PREFERRED.get()
}

/// A reading connection on loan from `D`, with the permit `P`.
pub(super) struct Reader<D: Deref<Target = Database>, P> {
    database: D,
    slot: usize,
    connection: Option<Connection>,
    _permit: P,
}

impl<D: Deref<Target = Database>, P> Reader<D, P> {
    async fn new(database: D, permit: P, owner: &Arc<Database>) -> Result<Self> {
        let (slot, connection) = database.readers.take().ok_or(Error::Stopped)?;
        let mut reader = Self { database, slot, connection, _permit: permit };
        if reader.connection.is_none() {
            let owner = owner.clone();
            reader.connection = Some(blocking::unblock(move || owner.open_reader()).await?);
        }
        Ok(reader)
    }

    pub(super) fn run<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        // It is there until `drop`.
        query(self.connection.as_ref().ok_or(Error::Stopped)?)
    }
}

impl<D: Deref<Target = Database>, P> Drop for Reader<D, P> {
    fn drop(&mut self) {
        if let Some(mut slot) = self.database.readers.slot(self.slot) {
            *slot = Slot::Free(self.connection.take());
        }
    }
}

impl Database {
    /// A reader for this task, as soon as one is free.
    pub(super) async fn reader(self: &Arc<Self>) -> Result<Reader<&Database, SemaphoreGuard<'_>>> {
        let permits = &self.readers.permits;
        let permit = match permits.try_acquire() {
            Some(permit) => permit,
            None => permits.acquire().await,
        };
        Reader::new(&**self, permit, self).await
    }

    /// A reader that can be taken to another thread.
    pub(super) async fn reader_to_go(self: &Arc<Self>) -> Result<Reader<Arc<Database>, SemaphoreGuardArc>> {
        let permit = self.readers.permits.acquire_arc().await;
        Reader::new(self.clone(), permit, self).await
    }
}
