//! The store, its accounts, and how the methods of the traits run their statements.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wacore::store::error::StoreError;
use wacore::store::traits::Backend;

use super::core::Core;
use super::failure::Failure;
use super::header::{self, Change, Order};
use super::lane::{Acquired, Call, Job, Pauses, QUEUE, send};
use super::lease::{Lease, State};
use super::leases::Leases;
use super::link::Link;
use super::options::PostgresOptions;
use super::problem;
use super::reader::Reader;
use super::schema;
use super::statement::{Answer, Row, Statement};
use super::stats::{Counters, PostgresStats, Wait};
use super::writer::Writer;
use crate::clock;
use crate::ended;
use crate::error::{Error, PostgresProblem, Result};
use crate::layer::IntoBackend;
use crate::layer::sealed::Sealed;
use crate::method::Record;
use crate::sync::IgnorePoison;

/// How many reads are under way at once on the reading lane, and on the lane for long work.
const READS: usize = 256;
const LONG_WORK: usize = 4;

/// The time between attempts to take a lease that another process holds.
const LEASE_ATTEMPTS: Duration = Duration::from_millis(500);

/// How many rows a step of a sweep deletes, about.
const SWEEP_ROWS: i64 = 1000;

/// A [`Backend`](wacore::store::traits::Backend) in a PostgreSQL database: one of possibly many accounts in it.
///
/// ```no_run
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use wacore::store::traits::SignalStore;
/// use wastore::PostgresOptions;
///
/// let options = PostgresOptions::new("postgres://bot@db.example.com/wa")?.password_file("/run/secrets/db");
/// let store = options.lease_name("bot-1").open(1).await?;     // takes the lease of account 1
/// let second = store.account(2).await?;                       // the same connections, a lease of its own
/// store.put_session("15550001111:2@s.whatsapp.net", b"a session").await?;
/// second.close().await?;
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// # One writer per account
/// A store holds the lease of each of its accounts. Every write carries the epoch of the lease and is refused if another
/// process has taken the account over. Then every call fails with [`Error::LeaseLost`], and [`lost`](Self::lost)
/// returns: disconnect the client.
///
/// # Connections
/// Clones and accounts are cheap: they share a few connections, which tasks of the tokio runtime drive. Calls that wait
/// together become one statement or one transaction, in one round trip. A call may still run after its future was
/// dropped.
///
/// The store repeats calls whose connection broke, and connects to the next server of the URL, until the deadline
/// ([`PostgresOptions::deadline`]). A repetition never undoes a later write: the epoch grows with every connection.
///
/// # What survives
/// See [`Durability`](crate::Durability). A call that has returned `Ok` survives a killed process in any case.
///
/// # Errors
/// The methods of the storage traits fail with [`StoreError::Database`] or [`StoreError::Connection`].
/// [`Error::downcast_ref`] gets from them an [`Error::Postgres`] that says what is wrong, or [`Error::LeaseLost`].
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
    pub(super) account: i32,
    lease: Arc<Lease>,
}

/// The lanes of an open store.
pub(super) struct Shared {
    core: Arc<Core>,
    /// `None` after `close`.
    lanes: RwLock<Option<Lanes>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    leases: Arc<Leases>,
    dropped: Vec<Arc<Notify>>,
    /// The highest order that a LID mapping was put with.
    put_order: AtomicI64,
    mode: Mode,
}

struct Lanes {
    writers: Vec<mpsc::Sender<Job>>,
    reader: mpsc::Sender<Call>,
    long: mpsc::Sender<Call>,
    headers: mpsc::Sender<Order>,
}

impl PostgresOptions {
    /// Opens an account, and takes its lease. Makes the schema and its tables if they are not there.
    ///
    /// Waits up to [`lease_wait`](Self::lease_wait) if another process holds the lease.
    ///
    /// # Errors
    /// * [`Error::AccountInUse`] if another process still holds the lease after the waiting time;
    /// * [`Error::ForeignSchema`] and [`Error::UnsupportedVersion`] if the schema belongs to another program or to a
    ///   later version of this crate; neither is changed;
    /// * [`Error::Postgres`] if the server cannot be used;
    /// * [`Error::InvalidInput`] outside a tokio runtime.
    pub async fn open(self, account: i32) -> Result<PostgresStore> {
        let store = PostgresStore::start(self, account, Mode::Write).await?;
        store.acquire().await?;
        Ok(store)
    }

    /// Opens an account for operators' work beside a running bot: reads and changes of the vault's header need no lease.
    /// The first call that changes a record takes the lease.
    ///
    /// # Errors
    /// As [`open`](Self::open), without [`Error::AccountInUse`].
    pub async fn open_without_lease(self, account: i32) -> Result<PostgresStore> {
        PostgresStore::start(self, account, Mode::LeaseWhenWriting).await
    }

    /// Opens an account for reading, without a lease. Calls that would change a row fail with
    /// [`PostgresProblem::OpenedReadOnly`]. The schema must be there.
    ///
    /// # Errors
    /// As [`open`](Self::open), without [`Error::AccountInUse`].
    pub async fn open_read_only(mut self, account: i32) -> Result<PostgresStore> {
        self.migrate = false;
        PostgresStore::start(self, account, Mode::ReadOnly).await
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Write,
    LeaseWhenWriting,
    ReadOnly,
}

impl PostgresStore {
    async fn start(options: PostgresOptions, account: i32, mode: Mode) -> Result<Self> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::InvalidInput {
                what: "the runtime",
                problem: "must be tokio: the PostgreSQL driver needs it",
            });
        }
        options.check()?;
        let core = Arc::new(Core::new(options)?);
        let deadline = Instant::now() + core.options.deadline;
        let link = prepared_link(&core, deadline).await?;
        let shared = Shared::start(core, link, mode);
        Ok(Self::of(Arc::new(shared), account))
    }

    /// A handle on an account of an open store. It has no lease yet, unless another handle of the store has it.
    pub(super) fn of(shared: Arc<Shared>, account: i32) -> Self {
        let lease = shared.lease(account);
        Self { shared, account, lease }
    }

    /// Another account of the same database over the same connections. Takes its lease as [`PostgresOptions::open`]
    /// does; a store that was opened without a lease takes it with the first write.
    ///
    /// # Errors
    /// [`Error::AccountInUse`], [`Error::Postgres`] and [`Error::Closed`].
    pub async fn account(&self, number: i32) -> Result<Self> {
        let store = Self::of(self.shared.clone(), number);
        if self.shared.mode == Mode::Write {
            store.acquire().await?;
        }
        Ok(store)
    }

    /// The number of this account.
    pub fn account_number(&self) -> i32 {
        self.account
    }

    /// Returns when another process has taken the account over; at once if it already has. Disconnect the client then.
    ///
    /// ```no_run
    /// # async fn run(store: wastore::PostgresStore, bot: impl Future<Output = ()>) {
    /// tokio::select! {
    ///     () = bot => {}
    ///     () = store.lost() => eprintln!("another process runs this bot now"),
    /// }
    /// # }
    /// ```
    pub async fn lost(&self) {
        self.lease.lost().await;
    }

    /// Counts of connections, groups and leases, of all accounts together.
    pub fn stats(&self) -> PostgresStats {
        self.shared.core.counters.read()
    }

    /// The counters behind [`stats`](Self::stats), for observers. They do not keep the store open.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.core.counters
    }

    /// Carries out the calls that wait, lets other processes have the accounts at once, and closes the connections. From
    /// now on every handle on any of the accounts fails with [`Error::Closed`]. Closing twice is no error.
    ///
    /// Dropping the last handle does the same in the background, as long as the runtime runs.
    ///
    /// # Errors
    /// None at present.
    pub async fn close(&self) -> Result<()> {
        drop(self.shared.lanes.write().ignore_poison().take());
        ended::note();
        let tasks = std::mem::take(&mut *self.shared.tasks.lock().ignore_poison());
        for task in tasks {
            // A task ends early only with its runtime.
            let _ = task.await;
        }
        Ok(())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.shared.mode == Mode::ReadOnly
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.shared.core
    }

    /// # Errors
    /// [`Error::LeaseLost`].
    pub(super) fn check(&self) -> Result<()> {
        self.lease.check()
    }

    /// Takes the lease, or waits for it.
    async fn acquire(&self) -> Result<()> {
        // A lost handle does not take the account back from its successor.
        self.lease.check()?;
        let options = &self.shared.core.options;
        let begun = Instant::now();
        let (until, deadline) = (begun + options.lease_wait, begun + options.deadline);
        let mut pauses = Pauses::between_connections();
        loop {
            let queue = self.shared.writer(self.account)?;
            let (reply, answer) = oneshot::channel();
            send(&queue, until.max(deadline), Job::Acquire(self.lease.clone(), reply)).await?;
            drop(queue);
            match answer.await.unwrap_or(Err(Error::Closed { what: "store" })) {
                Ok(Acquired::Held) => return Ok(()),
                Ok(Acquired::Marked(mark)) => return mark.refuse(self.account),
                Ok(Acquired::InUse(name)) if Instant::now() >= until => {
                    return Err(Error::AccountInUse { account: self.account, name });
                }
                Ok(Acquired::InUse(_)) => {
                    let left = until.saturating_duration_since(Instant::now());
                    tokio::time::sleep(LEASE_ATTEMPTS.min(left)).await;
                }
                Err(error) if Instant::now() >= deadline || !is_passing(&error) => return Err(error),
                Err(_) => pauses.pause().await,
            }
        }
    }

    /// Runs a statement that reads.
    pub(super) async fn read(&self, statement: &'static Statement, row: Row) -> Result<Vec<tokio_postgres::Row>> {
        let (call, answer) = self.call(statement, vec![row], false)?;
        let queue = self.shared.queue(|lanes| lanes.reader.clone())?;
        answer_of(queue, (call.deadline, call), answer).await.map(|answer| answer.rows)
    }

    /// Runs a statement that may return many rows, where no short read waits for it.
    pub(super) async fn read_long(&self, statement: &'static Statement, row: Row) -> Result<Vec<tokio_postgres::Row>> {
        let (call, answer) = self.call(statement, vec![row], false)?;
        let queue = self.shared.queue(|lanes| lanes.long.clone())?;
        answer_of(queue, (call.deadline, call), answer).await.map(|answer| answer.rows)
    }

    /// Writes records that the client cannot fetch again.
    pub(super) async fn write_durable(&self, statement: &'static Statement, rows: Vec<Row>) -> Result<(), StoreError> {
        let durable = self.shared.core.options.durability.full_sync(true);
        Ok(self.write(statement, rows, durable).await.map(drop)?)
    }

    /// Writes records that the client can fetch again, or does without.
    pub(super) async fn write_relaxed(&self, statement: &'static Statement, rows: Vec<Row>) -> Result<(), StoreError> {
        let durable = self.shared.core.options.durability.full_sync(false);
        Ok(self.write(statement, rows, durable).await.map(drop)?)
    }

    /// Runs a statement of a single row whose answer matters.
    pub(super) async fn change(&self, statement: &'static Statement, row: Row) -> Result<Vec<tokio_postgres::Row>> {
        let durable = self.shared.core.options.durability.full_sync(false);
        self.write(statement, vec![row], durable).await.map(|answer| answer.rows)
    }

    pub(super) async fn write(&self, statement: &'static Statement, rows: Vec<Row>, durable: bool) -> Result<Answer> {
        self.ready_to_write().await?;
        if rows.is_empty() {
            return Ok(Answer::default());
        }
        let (call, answer) = self.call(statement, statement.fold(rows), durable)?;
        let queue = self.shared.writer(self.account)?;
        answer_of(queue, (call.deadline, Job::Call(call)), answer).await
    }

    /// Refuses to write with a read-only store, and takes the lease if that was not done.
    pub(super) async fn ready_to_write(&self) -> Result<()> {
        if self.is_read_only() {
            return Err(problem::of_store(PostgresProblem::OpenedReadOnly));
        }
        if self.lease.state() == State::Idle {
            self.acquire().await?;
        }
        Ok(())
    }

    /// Runs a step of a sweep until it deletes less than it may. Returns the number of deleted rows.
    pub(super) async fn sweep(&self, statement: &'static Statement, cutoff: i64) -> Result<u32, StoreError> {
        let mut total = 0u32;
        loop {
            let deleted = self.sweep_step(statement, super::statement::row![cutoff]).await?;
            total = total.saturating_add(u32::try_from(deleted).unwrap_or(u32::MAX));
            if deleted < SWEEP_ROWS {
                return Ok(total);
            }
        }
    }

    /// One change on the lane for long work. Returns how many rows it changed.
    pub(super) async fn sweep_step(&self, statement: &'static Statement, row: Row) -> Result<i64> {
        self.ready_to_write().await?;
        let (call, answer) = self.call(statement, vec![row], false)?;
        let queue = self.shared.queue(|lanes| lanes.long.clone())?;
        let answer = answer_of(queue, (call.deadline, call), answer).await?;
        let count = answer.rows.first().map(|row| row.try_get(1)).transpose();
        count.map(Option::unwrap_or_default).map_err(|error| Failure::from(error).into_error(statement.record))
    }

    /// Changes copies of the vault's header, and other sender keys in the same transaction.
    pub(super) async fn change_header(&self, mut change: Change) -> Result<()> {
        let queue = self.shared.queue(|lanes| lanes.headers.clone())?;
        self.lease.check()?;
        if !change.others.1.is_empty() {
            self.ready_to_write().await?;
            change.lease = Some(self.lease.clone());
        } else if self.is_read_only() {
            return Err(problem::of_store(PostgresProblem::OpenedReadOnly));
        }
        let (reply, outcome) = oneshot::channel();
        queue.send((change, reply)).await.map_err(|_| Error::Closed { what: "store" })?;
        // The transaction goes on if the caller is dropped.
        outcome.await.unwrap_or(Err(Error::Closed { what: "store" }))
    }

    /// An order above all earlier ones of this store: microseconds since 1970, or one more than the last.
    pub(super) fn put_orders(&self, count: usize) -> i64 {
        let (now, count) = (clock::now_millis().saturating_mul(1000), i64::try_from(count).unwrap_or(i64::MAX));
        let order = &self.shared.put_order;
        let update = |last: i64| Some(now.max(last).saturating_add(count));
        let last = order.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).unwrap_or(now);
        now.max(last)
    }

    /// `true` once in a period of so many seconds, for this account in this process.
    pub(super) fn is_due(&self, now: i64, period: i64) -> bool {
        let is_due = |last: i64| (now.saturating_sub(last) >= period).then_some(now);
        self.lease.swept_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
    }

    pub(super) fn base_key_retention(&self) -> Option<Duration> {
        self.shared.core.options.base_key_retention
    }

    fn call(
        &self,
        statement: &'static Statement,
        rows: Vec<Row>,
        durable: bool,
    ) -> Result<(Call, oneshot::Receiver<Result<Answer>>)> {
        self.lease.check()?;
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.shared.core.options.deadline;
        let (account, lease) = (self.account, Some(self.lease.clone()));
        let wait = Some(Wait::begin(self.shared.core.counters.clone()));
        Ok((Call { statement, account, lease, rows, durable, deadline, unanswered: false, wait, reply }, answer))
    }
}

/// Puts a call into a queue, and waits for its answer.
async fn answer_of<T>(
    queue: mpsc::Sender<T>,
    (deadline, call): (Instant, T),
    answer: oneshot::Receiver<Result<Answer>>,
) -> Result<Answer> {
    send(&queue, deadline, call).await?;
    drop(queue);
    // A lane ends early only with its runtime.
    answer.await.unwrap_or(Err(Error::Closed { what: "store" }))
}

/// The first connection of a store, to a schema that is up to date.
///
/// # Errors
/// As [`first_link`], [`check_standbys`] and [`schema::prepare`].
async fn prepared_link(core: &Arc<Core>, deadline: Instant) -> Result<Link> {
    loop {
        let link = first_link(core, deadline).await?;
        core.set_server(&link.server);
        let prepared = async {
            check_standbys(core, &link).await?;
            schema::prepare(core, &link, deadline).await
        };
        match prepared.await {
            Ok(()) => return Ok(link),
            Err(error) if !is_passing(&error) || Instant::now() >= deadline => return Err(error),
            Err(_) => Pauses::between_connections().pause().await,
        }
    }
}

/// # Errors
/// [`PostgresProblem::NotReplicated`].
async fn check_standbys(core: &Core, link: &Link) -> Result<()> {
    const SQL: &str =
        "SELECT current_setting('synchronous_standby_names') <> '', EXISTS (SELECT FROM pg_stat_replication)";
    let failed = |failure: Failure| failure.into_error(Record::Store);
    let rows = link.ask(SQL, &[]).await.map_err(failed)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let read = |column| row.try_get::<_, bool>(column).map_err(|error| failed(error.into()));
    let (waits, has_standbys) = (read(0)?, read(1)?);
    if !waits && core.options.require_synchronous_standby {
        return Err(problem::of_store(PostgresProblem::NotReplicated));
    }
    if !waits && has_standbys {
        log::warn!(
            "the PostgreSQL server has standbys, but waits for none: a failover may take acknowledged writes back"
        );
    }
    Ok(())
}

/// A connection for a store that has none yet.
///
/// # Errors
/// At once if the server refuses the store, and after the deadline if it does not answer.
async fn first_link(core: &Arc<Core>, deadline: Instant) -> Result<Link> {
    let mut pauses = Pauses::between_connections();
    loop {
        let failure = match Link::connect(core).await {
            Ok(link) => return Ok(link),
            Err(failure) => failure,
        };
        let error = failure.into_error(Record::Device);
        if Instant::now() >= deadline || !is_passing(&error) {
            return Err(error);
        }
        pauses.pause().await;
    }
}

/// Another attempt to connect may succeed.
fn is_passing(error: &Error) -> bool {
    let Error::Postgres { problem, .. } = error else { return false };
    matches!(
        problem,
        PostgresProblem::Contended
            | PostgresProblem::Unreachable
            | PostgresProblem::ReadOnly
            | PostgresProblem::TooManyConnections
            | PostgresProblem::OutcomeUnknown
    )
}

impl Shared {
    /// Starts the lanes. The first connection becomes that of the first lane that needs one.
    fn start(core: Arc<Core>, link: Link, mode: Mode) -> Self {
        let mut tasks = vec![];
        let (mut writers, mut dropped) = (vec![], vec![]);
        let leases = Arc::new(Leases::default());
        let mut link = Some(link);
        for _ in 0..core.options.lanes {
            let ((queue, jobs), notify) = (mpsc::channel(QUEUE), Arc::new(Notify::new()));
            let link = if mode == Mode::ReadOnly { None } else { link.take() };
            tasks.push(tokio::spawn(Writer::new(core.clone(), leases.clone(), jobs, notify.clone(), link).run()));
            writers.push(queue);
            dropped.push(notify);
        }
        let (reader, calls) = mpsc::channel(QUEUE);
        tasks.push(tokio::spawn(Reader::new(core.clone(), leases.clone(), calls, READS, link).run()));
        let (long, calls) = mpsc::channel(QUEUE);
        tasks.push(tokio::spawn(Reader::new(core.clone(), leases.clone(), calls, LONG_WORK, None).run()));
        let (headers, orders) = mpsc::channel(QUEUE);
        tasks.push(tokio::spawn(header::run(core.clone(), orders)));
        Self {
            core,
            lanes: RwLock::new(Some(Lanes { writers, reader, long, headers })),
            tasks: Mutex::new(tasks),
            leases,
            dropped,
            put_order: AtomicI64::new(0),
            mode,
        }
    }

    /// # Errors
    /// [`Error::Closed`].
    fn queue<T>(&self, which: impl FnOnce(&Lanes) -> T) -> Result<T> {
        self.lanes.read().ignore_poison().as_ref().map(which).ok_or(Error::Closed { what: "store" })
    }

    /// The queue of all writes of an account. One lane keeps their order.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(super) fn writer(&self, account: i32) -> Result<mpsc::Sender<Job>> {
        self.queue(|lanes| lanes.writers[lane_of(account, lanes.writers.len())].clone())
    }

    /// The lease that all handles on an account share.
    fn lease(&self, account: i32) -> Arc<Lease> {
        let lane = lane_of(account, self.dropped.len());
        self.leases.of(account, || Lease::new(account, self.dropped.get(lane).cloned().unwrap_or_default()))
    }
}

/// The place of an account's lane among `count` lanes, of which there is at least one.
fn lane_of(account: i32, count: usize) -> usize {
    account.unsigned_abs() as usize % count.max(1)
}

impl Sealed for PostgresStore {}

impl IntoBackend for PostgresStore {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        let name = format!("{self:?}");
        (Arc::new(self), name)
    }
}

impl Sealed for &PostgresStore {}

impl IntoBackend for &PostgresStore {
    fn into_backend(self) -> (Arc<dyn Backend>, String) {
        self.clone().into_backend()
    }
}

/// No host and no user.
impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.account {
            1 => write!(f, "{:?}", self.shared.core.options),
            account => write!(f, "{:?}, account {account}", self.shared.core.options),
        }
    }
}
