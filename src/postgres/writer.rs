//! The writing lane: in the order of its queue, one group at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};
use tokio_postgres::types::{ToSql, Type};

use super::core::Core;
use super::failure::Failure;
use super::group::{GROUP_BYTES, GROUP_CALLS, Unit, units};
use super::lane::{Acquired, Call, Job, Pauses, at_deadline};
use super::lease::{self, LEASE, Lease, RENEWAL};
use super::leases::Leases;
use super::link::Link;
use super::server::Server;
use super::statement::{Answer, Fence, Kind, Row};
use super::stats::add;
use crate::error::{PostgresProblem, Result};
use crate::method::Record;
use crate::rows::mark::Mark;
use crate::rows::table::MARK_ADDRESS;

/// A lease that this lane keeps.
struct Kept {
    account: i32,
    epoch: Arc<AtomicI64>,
    lease: Weak<Lease>,
}

pub(super) struct Writer {
    core: Arc<Core>,
    leases: Arc<Leases>,
    queue: mpsc::Receiver<Job>,
    /// A job that did not fit the last group.
    next: Option<Job>,
    kept: Vec<Kept>,
    /// Tells of leases whose last handle is gone, or whose account is.
    dropped: Arc<Notify>,
    link: Option<Link>,
    /// The server of the last connection.
    server: Option<Server>,
    connected_before: bool,
    /// The last group had several calls.
    crowded: bool,
}

/// How often a group lets callers run that may join it. Each time but the last one does.
const WAITS: usize = 8;

/// The calls that one statement carried out, by their places in the group, and its answer.
type Carried = (Range<usize>, Answer);

impl Writer {
    pub(super) fn new(
        core: Arc<Core>,
        leases: Arc<Leases>,
        queue: mpsc::Receiver<Job>,
        dropped: Arc<Notify>,
        link: Option<Link>,
    ) -> Self {
        let (connected_before, server) = (link.is_some(), link.as_ref().map(|link| link.server.clone()));
        Self { core, leases, queue, next: None, kept: vec![], dropped, link, server, connected_before, crowded: false }
    }

    /// Works until the last handle of the store is gone and the queue is empty.
    pub(super) async fn run(mut self) {
        // A lease that was just acquired needs no renewal.
        let mut renewal = interval_at(Instant::now() + RENEWAL, RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let dropped = self.dropped.clone();
        loop {
            if let Some(job) = self.next.take() {
                self.work(job).await;
                continue;
            }
            tokio::select! {
                job = self.queue.recv() => match job {
                    Some(job) => self.work(job).await,
                    None => break,
                },
                _ = renewal.tick(), if !self.kept.is_empty() => self.renew().await,
                () = dropped.notified() => self.release(|kept| kept.lease.upgrade().is_none_or(|it| it.has_ended())).await,
            }
        }
        self.release(|_| true).await;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    async fn work(&mut self, job: Job) {
        match job {
            Job::Acquire(lease, reply) => {
                let acquired = self.acquire(&lease).await;
                // The caller may be gone.
                let _ = reply.send(acquired);
            }
            Job::Barrier(reply) => {
                let _ = reply.send(());
            }
            Job::Call(call) => {
                let group = self.group(call).await;
                self.write(group).await;
            }
        }
    }

    /// The call and those that wait behind it.
    ///
    /// The callers that the last group answered may be about to call again. They run first: otherwise the fastest of
    /// them would be a group by itself, and the others would wait for its round trip.
    async fn group(&mut self, mut first: Call) -> VecDeque<Call> {
        first.wait = None;
        let mut bytes = first.size();
        let mut group = VecDeque::from([first]);
        self.gather(&mut group, &mut bytes);
        for _ in 0..if self.crowded { WAITS } else { 0 } {
            let before = group.len();
            tokio::task::yield_now().await;
            self.gather(&mut group, &mut bytes);
            if group.len() == before {
                break;
            }
        }
        self.crowded = group.len() > 1;
        group
    }

    /// Adds the calls that wait in the queue, up to the limits of a group.
    fn gather(&mut self, group: &mut VecDeque<Call>, bytes: &mut usize) {
        while self.next.is_none() && group.len() < GROUP_CALLS && *bytes < GROUP_BYTES {
            match self.queue.try_recv() {
                Ok(Job::Call(mut call)) => {
                    call.wait = None;
                    *bytes += call.size();
                    group.push_back(call);
                }
                Ok(job) => self.next = Some(job),
                Err(_) => break,
            }
        }
    }

    /// Carries out the calls, and answers each.
    async fn write(&mut self, mut calls: VecDeque<Call>) {
        let (mut pauses, mut connections) = (Pauses::between_attempts(), Pauses::between_connections());
        let mut problem = PostgresProblem::Overloaded;
        while self.prune(&mut calls, problem) {
            let last = calls.iter().map(|call| call.deadline).max().unwrap_or_else(Instant::now);
            // What is left half-way is done again by the next connection.
            match timeout_at(last, self.connected()).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    problem = failure.problem();
                    connections.pause().await;
                    continue;
                }
                Err(_) => {
                    problem = at_deadline(problem);
                    continue;
                }
            }
            // The new connection may have shown that accounts are lost.
            if !self.prune(&mut calls, problem) {
                return;
            }
            let failure = match self.attempt(calls.make_contiguous()).await {
                Ok(carried) => {
                    calls = self.answer(calls, carried).await;
                    if !calls.is_empty() {
                        pauses.pause().await;
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            problem = failure.problem();
            add(&self.core.counters.retries, calls.len() as u64);
            if failure.breaks_connection() {
                self.link = None;
                calls = unanswered(calls);
                continue;
            }
            if failure.is_stale_statement() {
                self.link.iter().for_each(Link::forget_prepared);
            }
            if calls.len() > 1 {
                // One of them is at fault.
                for call in calls {
                    self.write_alone(call).await;
                }
                return;
            }
            if !failure.is_passing() {
                if let Some(call) = calls.pop_front() {
                    let record = call.statement.record;
                    call.answer(Err(failure.into_error(record)));
                }
                return;
            }
            pauses.pause().await;
        }
    }

    fn write_alone(&mut self, call: Call) -> BoxFuture<'_, ()> {
        Box::pin(self.write(VecDeque::from([call])))
    }

    /// Answers the calls that need no attempt: their account is lost, or their deadline has passed. `true` if any
    /// remain.
    fn prune(&self, calls: &mut VecDeque<Call>, problem: PostgresProblem) -> bool {
        let now = Instant::now();
        for call in std::mem::take(calls) {
            match call.lease.as_ref().map_or(Ok(()), |lease| lease.check()) {
                Err(error) => call.answer(Err(error)),
                Ok(()) if call.deadline <= now => call.expire(problem),
                Ok(()) => calls.push_back(call),
            }
        }
        !calls.is_empty()
    }

    /// Sends the calls as one transaction, in one round trip.
    ///
    /// # Errors
    /// Nothing was stored, unless the connection broke.
    async fn attempt(&self, calls: &[Call]) -> Result<Vec<Carried>, Failure> {
        let link = self.link.as_ref().ok_or_else(Failure::no_server)?;
        calls.iter().for_each(Call::note_sent);
        let (counters, units) = (&self.core.counters, units(calls));
        let durability = if calls.iter().any(|call| call.durable) { link.durable } else { "off" };
        let pieces: Vec<Piece<'_>> =
            units.iter().flat_map(|unit| unit.pieces().into_iter().map(move |rows| (unit, rows))).collect();
        add(&counters.groups, 1);
        add(&counters.grouped_calls, calls.len() as u64);
        add(&counters.statements, pieces.len() as u64);
        let sender = Sender { link, durability, holder: &self.core.holder };
        let unsynced = link.unsynced();
        let answers = match pieces[..] {
            [only] => vec![sender.send(only).await?],
            _ => sender.transaction(&pieces).await?,
        };
        if link.unsynced() != unsynced {
            return Err(Failure::NotSynced);
        }
        let mut answers = answers.into_iter();
        let carried = units.iter().map(|unit| {
            let mut all = Answer::default();
            for answer in answers.by_ref().take(unit.pieces().len()) {
                all.affected += answer.affected;
                all.rows.extend(answer.rows);
            }
            (unit.calls.clone(), all)
        });
        Ok(carried.collect())
    }

    /// Answers the calls whose fence held. Returns those that must be repeated with another epoch.
    async fn answer(&mut self, calls: VecDeque<Call>, carried: Vec<Carried>) -> VecDeque<Call> {
        let mut again = VecDeque::new();
        let mut calls = calls.into_iter();
        for (range, answer) in carried {
            let mut members = calls.by_ref().take(range.len());
            let Some(first) = members.next() else { continue };
            if first.statement.held(&answer) {
                first.note_acknowledged();
                first.answer(Ok(answer));
                for call in members {
                    call.note_acknowledged();
                    call.answer(Ok(Answer::default()));
                }
                continue;
            }
            let lease = first.lease.clone();
            again.push_back(first);
            again.extend(members);
            if let Some(lease) = lease {
                self.look(&lease).await;
            }
        }
        again
    }

    /// Makes a connection if there is none, and raises the epochs of all leases over it.
    async fn connected(&mut self) -> Result<(), Failure> {
        if self.link.as_ref().is_some_and(|link| !link.is_closed() && self.core.is_current(&link.server)) {
            return Ok(());
        }
        self.link = None;
        let link = Link::connect(&self.core).await?;
        if self.connected_before {
            add(&self.core.counters.reconnects, 1);
        }
        self.connected_before = true;
        self.raise(&link).await?;
        let before = self.server.clone().or_else(|| self.core.server());
        self.leases.check_written(before.as_ref(), &link, &self.core).await?;
        self.server = Some(link.server.clone());
        self.core.set_server(&link.server);
        self.link = Some(link);
        Ok(())
    }

    /// Raises the epochs, so that what the server still does for older connections is either done before, or not at
    /// all.
    async fn raise(&self, link: &Link) -> Result<(), Failure> {
        let accounts: Vec<i32> = self.kept.iter().map(|kept| kept.account).collect();
        if accounts.is_empty() {
            return Ok(());
        }
        let seconds = LEASE.as_secs_f64();
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&accounts, Type::INT4_ARRAY),
            (&&self.core.holder[..], Type::BYTEA),
            (&seconds, Type::FLOAT8),
            (&link.durable, Type::TEXT),
        ];
        let rows = link.ask(lease::RAISE, &parameters).await?;
        let mut raised = HashMap::new();
        for row in rows {
            raised.insert(row.try_get::<_, i32>(0)?, row.try_get::<_, i64>(1)?);
        }
        for kept in &self.kept {
            match (raised.get(&kept.account), kept.lease.upgrade()) {
                (Some(epoch), _) => kept.epoch.store(*epoch, Ordering::Release),
                (None, Some(lease)) => lease.look(link, &self.core).await?,
                (None, None) => {}
            }
        }
        Ok(())
    }

    async fn look(&mut self, lease: &Lease) {
        let Some(link) = &self.link else { return };
        // After a failure the next attempt looks again.
        if lease.look(link, &self.core).await.is_err_and(|failure| failure.breaks_connection()) {
            self.link = None;
        }
    }

    /// Tries once to take the lease.
    async fn acquire(&mut self, lease: &Arc<Lease>) -> Result<Acquired> {
        let failed = |failure: Failure| failure.into_error(Record::Device);
        self.connected().await.map_err(failed)?;
        // The connection may just have shown it.
        lease.check()?;
        let acquired = self.try_acquire(lease).await;
        if acquired.as_ref().is_err_and(Failure::breaks_connection) {
            self.link = None;
        }
        acquired.map_err(failed)
    }

    async fn try_acquire(&mut self, lease: &Arc<Lease>) -> Result<Acquired, Failure> {
        let Some(link) = &self.link else { return Err(Failure::no_server()) };
        let (name, seconds) = (self.core.options.lease_name.as_bytes(), LEASE.as_secs_f64());
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&lease.account, Type::INT4),
            (&&self.core.holder[..], Type::BYTEA),
            (&name, Type::BYTEA),
            (&seconds, Type::FLOAT8),
            (&link.durable, Type::TEXT),
        ];
        let unsynced = link.unsynced();
        let rows = link.ask(lease::ACQUIRE, &parameters).await?;
        if link.unsynced() != unsynced {
            return Err(Failure::NotSynced);
        }
        if let Some(row) = rows.first() {
            let epoch = row.try_get(0)?;
            if let Some(mark) = mark(link, lease).await?.filter(|mark| mark.refuse(lease.account).is_err()) {
                let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
                    (&vec![lease.account], Type::INT4_ARRAY),
                    (&vec![epoch], Type::INT8_ARRAY),
                    (&&self.core.holder[..], Type::BYTEA),
                ];
                link.ask(lease::RELEASE, &parameters).await?;
                return Ok(Acquired::Marked(mark));
            }
            lease.hold(epoch);
            self.kept.retain(|kept| kept.account != lease.account);
            self.kept.push(Kept { account: lease.account, epoch: lease.epoch.clone(), lease: Arc::downgrade(lease) });
            return Ok(Acquired::Held);
        }
        let rows = link.ask(lease::LOOK_AT_NAME, &[(&lease.account, Type::INT4)]).await?;
        let name: &[u8] = rows.first().map_or(Ok(&[][..]), |row| row.try_get(0))?;
        Ok(Acquired::InUse(String::from_utf8_lossy(name).into_owned()))
    }

    /// Renews the leases of all accounts of the lane, in one statement.
    async fn renew(&mut self) {
        if let Err(failure) = self.try_renew().await
            && failure.breaks_connection()
        {
            self.link = None;
        }
    }

    async fn try_renew(&mut self) -> Result<(), Failure> {
        self.connected().await?;
        let Some(link) = &self.link else { return Ok(()) };
        let (accounts, epochs) = self.accounts_and_epochs(|_| true);
        let seconds = LEASE.as_secs_f64();
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&accounts, Type::INT4_ARRAY),
            (&epochs, Type::INT8_ARRAY),
            (&&self.core.holder[..], Type::BYTEA),
            (&seconds, Type::FLOAT8),
        ];
        let rows = link.ask(lease::RENEW, &parameters).await?;
        add(&self.core.counters.renewals, 1);
        // A pooler may lead to another server now, over the same connection.
        let timeline = rows.first().map(|row| row.try_get::<_, &str>(1)).transpose()?;
        if timeline.is_some_and(|timeline| Server::timeline_in(timeline) != Some(link.server.timeline)) {
            self.link = None;
            return Ok(());
        }
        let renewed = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<i32>, _>>()?;
        let missing: Vec<_> = self
            .kept
            .iter()
            .filter(|kept| !renewed.contains(&kept.account))
            .filter_map(|kept| kept.lease.upgrade())
            .collect();
        for lease in missing {
            self.look(&lease).await;
        }
        // Those that have ended are given back soon.
        let is_needed = |lease: &Lease| lease.check().is_ok() || lease.has_ended();
        self.kept.retain(|kept| kept.lease.upgrade().is_some_and(|lease| is_needed(&lease)));
        Ok(())
    }

    fn accounts_and_epochs(&self, which: impl Fn(&Kept) -> bool) -> (Vec<i32>, Vec<i64>) {
        let kept = self.kept.iter().filter(|kept| which(kept));
        kept.map(|kept| (kept.account, kept.epoch.load(Ordering::Acquire))).unzip()
    }

    /// Lets others have the accounts at once. If that fails, they wait until the lease has run out.
    async fn release(&mut self, which: impl Fn(&Kept) -> bool) {
        let (accounts, epochs) = self.accounts_and_epochs(&which);
        self.kept.retain(|kept| !which(kept));
        if accounts.is_empty() || self.connected().await.is_err() {
            return;
        }
        let Some(link) = &self.link else { return };
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&accounts, Type::INT4_ARRAY), (&epochs, Type::INT8_ARRAY), (&&self.core.holder[..], Type::BYTEA)];
        if let Err(failure) = link.ask(lease::RELEASE, &parameters).await {
            log::debug!("the leases were not released: {}", failure.problem());
        }
    }
}

/// The mark of the account, unless the lease may be taken in spite of it.
async fn mark(link: &Link, lease: &Lease) -> Result<Option<Mark>, Failure> {
    if lease.is_taken_despite_mark() {
        return Ok(None);
    }
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&lease.account, Type::INT4), (&MARK_ADDRESS.as_bytes(), Type::BYTEA)];
    let rows = link.ask(lease::MARK, &parameters).await?;
    rows.first().map(|row| Ok(Mark::of(row.try_get(0)?))).transpose()
}

/// A piece of a unit: the rows of one statement.
type Piece<'a> = (&'a Unit<'a>, &'a [Row]);

/// Sends the statements of one group.
#[derive(Clone, Copy)]
struct Sender<'a> {
    link: &'a Link,
    durability: &'static str,
    holder: &'a [u8; 16],
}

impl<'a> Sender<'a> {
    async fn send(self, (unit, rows): Piece<'a>) -> Result<Answer, Failure> {
        let fence = Fence { epoch: unit.epoch, durability: self.durability, holder: self.holder };
        self.link.run(unit.statement, unit.statement.parameters(unit.account, Some(fence), rows)).await
    }

    /// Sends all statements between `BEGIN` and `COMMIT` at once.
    ///
    /// `COMMIT` answers OK even if it ended a failed transaction, so every statement must have succeeded.
    async fn transaction(self, pieces: &[Piece<'a>]) -> Result<Vec<Answer>, Failure> {
        let link = self.link;
        if link.prepares() {
            for (unit, _) in pieces {
                link.prepare(unit.statement).await?;
            }
        }
        let begin = link.command("BEGIN").map_ok(|()| Answer::default()).boxed();
        let commit = link.command("COMMIT").map_ok(|()| Answer::default()).boxed();
        let statements = pieces.iter().map(|piece| self.send(*piece).boxed());
        let answers = Link::pipeline(iter::once(begin).chain(statements).chain(iter::once(commit))).await;
        let mut answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        answers.pop();
        answers.remove(0);
        Ok(answers)
    }
}

/// Notes that the calls may have been carried out. Those that must not be repeated are answered.
fn unanswered(calls: VecDeque<Call>) -> VecDeque<Call> {
    let mut again = VecDeque::new();
    for mut call in calls {
        call.unanswered = true;
        if call.statement.kind == Kind::Once {
            call.expire(PostgresProblem::OutcomeUnknown);
        } else {
            again.push_back(call);
        }
    }
    again
}
