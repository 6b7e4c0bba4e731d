//! Copies the write-ahead log into databases that have become idle, so that the main file alone
//! soon holds everything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use crate::sync::IgnorePoison;

/// A database is idle after this many ticks without a commit.
const IDLE_TICKS: u32 = 2;
const TICK: Duration = Duration::from_secs(1);

/// Does work when a database is idle.
pub(super) trait Idle: Send + Sync {
    fn on_idle(self: Arc<Self>);
}

/// Counts the commits to a database.
#[derive(Default)]
pub(super) struct Activity {
    commits: AtomicU64,
    watched: AtomicBool,
}

impl Activity {
    /// Counts a commit, and starts to watch the database for idleness if it is not watched yet.
    pub(super) fn note(self: &Arc<Self>, database: impl FnOnce() -> Weak<dyn Idle>) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        if !self.watched.load(Ordering::Relaxed) && !self.watched.swap(true, Ordering::SeqCst) {
            watch(Watched { activity: self.clone(), database: database(), commits: 0, idle: 0 });
        }
    }
}

struct Watched {
    activity: Arc<Activity>,
    database: Weak<dyn Idle>,
    /// The number of commits at the last look, and for how many ticks it has stayed the same.
    commits: u64,
    idle: u32,
}

impl Watched {
    /// Returns the database if it has become idle.
    fn tick(&mut self) -> Option<Weak<dyn Idle>> {
        let commits = self.activity.commits.load(Ordering::Relaxed);
        self.idle = if commits == self.commits { self.idle + 1 } else { 0 };
        self.commits = commits;
        if self.idle < IDLE_TICKS {
            return None;
        }
        // Before the checkpoint, which sees every commit until now. A later commit starts a new
        // watch.
        self.activity.watched.store(false, Ordering::SeqCst);
        Some(self.database.clone())
    }
}

#[derive(Default)]
struct Watch {
    databases: Vec<Watched>,
    has_thread: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { databases: Vec::new(), has_thread: false });
static CAME: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().ignore_poison()
}

fn watch(watched: Watched) {
    let mut watch = lock();
    watch.databases.push(watched);
    if !watch.has_thread {
        let builder = thread::Builder::new().name("wastore-idle".to_owned());
        // If no thread starts, the log is still copied when it gets long and when the store is
        // closed.
        watch.has_thread = builder.spawn(run).is_ok();
    }
    CAME.notify_one();
}

/// One thread for all databases of the process.
fn run() {
    loop {
        let mut watch = lock();
        while watch.databases.is_empty() {
            watch = CAME.wait(watch).ignore_poison();
        }
        drop(watch);
        thread::sleep(TICK);
        let mut idle = vec![];
        lock().databases.retain_mut(|watched| match watched.tick() {
            Some(database) => {
                idle.push(database);
                false
            }
            None => watched.database.strong_count() > 0,
        });
        for database in idle.iter().filter_map(Weak::upgrade) {
            database.on_idle();
        }
    }
}
