//! A reading lane: many statements under way at once, over one connection.
//!
//! Sweeps and long listings have a lane of this kind for themselves, so that no short call waits behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout_at};

use super::core::Core;
use super::failure::Failure;
use super::lane::{Call, Pauses, at_deadline};
use super::leases::Leases;
use super::link::Link;
use super::server::Server;
use super::statement::{Answer, Fence};
use super::stats::add;
use crate::error::{PostgresProblem, Result};
use crate::sync::IgnorePoison;

/// A lane for statements that may overtake each other.
pub(super) struct Reader {
    core: Arc<Core>,
    queue: mpsc::Receiver<Call>,
    connection: Connection,
    /// How many statements are under way at once.
    width: usize,
}

impl Reader {
    pub(super) fn new(
        core: Arc<Core>,
        leases: Arc<Leases>,
        queue: mpsc::Receiver<Call>,
        width: usize,
        link: Option<Link>,
    ) -> Self {
        let connected_before = AtomicBool::new(link.is_some());
        let server = std::sync::Mutex::new(link.as_ref().map(|link| link.server.clone()));
        let link = Mutex::new(link.map(Arc::new));
        let connection = Connection { core: core.clone(), leases, link, server, connected_before };
        Self { core, queue, connection, width }
    }

    /// Works until the last handle of the store is gone and the queue is empty.
    pub(super) async fn run(self) {
        let Self { core, mut queue, connection, width } = self;
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                call = queue.recv(), if open && under_way.len() < width => match call {
                    Some(call) => under_way.push(carry_out(&core, &connection, call)),
                    None => open = false,
                },
            }
        }
        drop(under_way);
        if let Some(link) = connection.link.into_inner().and_then(Arc::into_inner) {
            link.close().await;
        }
    }
}

/// The connection of the lane; one call at a time makes it.
struct Connection {
    core: Arc<Core>,
    leases: Arc<Leases>,
    link: Mutex<Option<Arc<Link>>>,
    /// The server of the last connection.
    server: std::sync::Mutex<Option<Server>>,
    connected_before: AtomicBool,
}

impl Connection {
    /// A connection to the same server as the other lanes. Otherwise reads could come from one that was demoted.
    async fn link(&self) -> Result<Arc<Link>, Failure> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.is_closed() && self.core.is_current(&link.server)) {
            return Ok(link.clone());
        }
        *current = None;
        let link = Arc::new(Link::connect(&self.core).await?);
        if self.connected_before.swap(true, Ordering::Relaxed) {
            add(&self.core.counters.reconnects, 1);
        }
        // The other lanes may have moved on before this lane had a connection.
        let before = self.server.lock().ignore_poison().clone().or_else(|| self.core.server());
        self.leases.check_written(before.as_ref(), &link, &self.core).await?;
        *self.server.lock().ignore_poison() = Some(link.server.clone());
        // A newer server than that of the other lanes: they follow.
        self.core.set_server(&link.server);
        *current = Some(link.clone());
        Ok(link)
    }

    async fn give_up(&self, broken: &Arc<Link>) {
        let mut current = self.link.lock().await;
        if current.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *current = None;
        }
    }
}

/// Carries out a call, and answers it.
async fn carry_out(core: &Core, connection: &Connection, mut call: Call) {
    call.wait = None;
    let (mut pauses, mut connections) = (Pauses::between_attempts(), Pauses::between_connections());
    let mut problem = PostgresProblem::Overloaded;
    loop {
        if call.deadline <= Instant::now() {
            return call.expire(problem);
        }
        let link = match timeout_at(call.deadline, connection.link()).await {
            Ok(Ok(link)) => link,
            Ok(Err(failure)) => {
                problem = failure.problem();
                connections.pause().await;
                continue;
            }
            Err(_) => {
                problem = at_deadline(problem);
                continue;
            }
        };
        // The new connection may have shown that the account is lost.
        if let Some(Err(error)) = call.lease.as_ref().map(|lease| lease.check()) {
            return call.answer(Err(error));
        }
        add(&core.counters.reads, 1);
        let failure = match attempt(core, &link, &call).await {
            Ok(Some(answer)) => return call.answer(Ok(answer)),
            Ok(None) => {
                pauses.pause().await;
                continue;
            }
            Err(failure) => failure,
        };
        problem = failure.problem();
        add(&core.counters.retries, 1);
        if failure.breaks_connection() {
            call.unanswered |= !call.statement.is_read();
            connection.give_up(&link).await;
        } else if failure.is_stale_statement() {
            link.forget_prepared();
        } else if !failure.is_passing() {
            let record = call.statement.record;
            return call.answer(Err(failure.into_error(record)));
        }
        pauses.pause().await;
    }
}

/// `None` if the fence of a change did not hold, but may hold with another epoch.
async fn attempt(core: &Core, link: &Link, call: &Call) -> Result<Option<Answer>, Failure> {
    let fence = call.lease.as_ref().filter(|_| !call.statement.is_read()).map(|lease| Fence {
        epoch: lease.epoch(),
        durability: if call.durable { link.durable } else { "off" },
        holder: &core.holder,
    });
    let answer = link.run(call.statement, call.statement.parameters(call.account, fence, &call.rows)).await?;
    if call.statement.held(&answer) {
        return Ok(Some(answer));
    }
    if let Some(lease) = &call.lease {
        lease.look(link, core).await?;
    }
    Ok(None)
}
