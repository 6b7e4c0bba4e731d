//! Looks after the leases of open databases: whether they are still held, and whether another
//! store asks for one.

use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Instant;

use super::lease::{Leases, Look};
use super::write_plan::WritePlan;
use super::writer::Writer;
use crate::sync::IgnorePoison;

/// A database whose leases are looked after. Dropping it ends that.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<Arc<Target>>>);

struct Target {
    leases: Arc<Leases>,
    /// `None` once the database is about to be closed. It is not closed during a look.
    writer: Mutex<Option<Weak<Writer>>>,
}

impl Kept {
    /// Begins to look after the leases, if that has not begun.
    pub(super) fn begin(&self, leases: &Arc<Leases>, writer: &Arc<Writer>) {
        let mut kept = self.0.lock().ignore_poison();
        if kept.is_none() {
            let writer = Mutex::new(Some(Arc::downgrade(writer)));
            let target = Arc::new(Target { leases: leases.clone(), writer });
            *kept = Some(target.clone());
            watch(target);
        }
    }

    /// Waits for a look that is under way.
    pub(super) fn end(&self) {
        if let Some(target) = self.0.lock().ignore_poison().take() {
            target.writer.lock().ignore_poison().take();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

impl Target {
    /// `false` once the database is closed.
    fn look(&self) -> bool {
        let writer = self.writer.lock().ignore_poison();
        let Some(writer) = writer.as_ref().and_then(Weak::upgrade) else { return false };
        let looked = writer.glance(&mut |connection| self.leases.look(connection));
        // Without an answer there is a call that writes, and the look is made in its turn.
        if !matches!(looked, Some(Ok(Look::Quiet))) {
            let leases = self.leases.clone();
            writer.enqueue_detached(WritePlan::RELAXED.transaction(), move |connection| leases.answer(connection));
        }
        true
    }
}

#[derive(Default)]
struct Watch {
    targets: Vec<(Instant, Arc<Target>)>,
    /// The process that has the thread. A process that was forked off has none.
    process: Option<u32>,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { targets: Vec::new(), process: None });
static CAME: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().ignore_poison()
}

fn watch(target: Arc<Target>) {
    let mut watch = lock();
    if watch.process != Some(process::id()) {
        watch.targets.clear();
        match thread::Builder::new().name("wastore-lease".to_owned()).spawn(run) {
            Ok(_) => watch.process = Some(process::id()),
            Err(error) => log::warn!("no thread answers other processes, so they may take accounts over: {error}"),
        }
    }
    watch.targets.push((Instant::now() + target.leases.pause(), target));
    CAME.notify_one();
}

/// One thread for all databases of the process.
fn run() {
    let mut watch = lock();
    loop {
        let now = Instant::now();
        let Some(next) = watch.targets.iter().map(|(due, _)| *due).min() else {
            watch = CAME.wait(watch).ignore_poison();
            continue;
        };
        if next > now {
            watch = CAME.wait_timeout(watch, next - now).ignore_poison().0;
            continue;
        }
        let due: Vec<_> = watch.targets.extract_if(.., |(due, _)| *due <= now).map(|(_, target)| target).collect();
        drop(watch);
        let open: Vec<_> = due.into_iter().filter(|target| target.look()).collect();
        watch = lock();
        let again = open.into_iter().map(|target| (Instant::now() + target.leases.pause(), target));
        watch.targets.extend(again);
    }
}
