//! Copies of a vault's header: written by compare-and-swap.
//!
//! They are outside the lease, because `wastore keys add` must work while the bot runs. Instead, a copy replaces only
//! the header that it was made from. Both copies are read and one is written in one `SERIALIZABLE` transaction: row
//! locks would not do, because rows that are absent cannot be locked, and two creators would both succeed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::types::{ToSql, Type};

use super::core::Core;
use super::failure::Failure;
use super::lane::Pauses;
use super::lease::Lease;
use super::link::Link;
use super::problem;
use super::statement::{Fence, Row, Statement};
use crate::encrypt::HeaderCopy;
use crate::error::{Error, PostgresProblem, Result};
use crate::method::Record;
use crate::rows::mark::Mark;
use crate::rows::table::MARK_ADDRESS;
use crate::sync::IgnorePoison;

const READ: &str = "SELECT record FROM @.sender_keys WHERE account = $1 AND address = $2";
const WRITE: &str = "INSERT INTO @.sender_keys (account, address, record) VALUES ($1, $2, $3)
    ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";
const DELETE: &str = "DELETE FROM @.sender_keys WHERE account = $1 AND address = $2";

/// Changes of header copies, and sender keys that belong to the same call.
pub(super) struct Change {
    pub(super) account: i32,
    /// `None` deletes the copy.
    pub(super) copies: Vec<(HeaderCopy, Option<Bytes>)>,
    pub(super) lease: Option<Arc<Lease>>,
    /// Other sender keys, and the statement that puts them. They need the lease.
    pub(super) others: (&'static Statement, Vec<Row>),
}

/// A change, and where its outcome goes.
pub(super) type Order = (Change, oneshot::Sender<Result<()>>);

/// The connection of the last change, for the next one: creating a vault makes several.
type Kept = Arc<Mutex<Option<Link>>>;

/// How long it is kept.
const KEPT: Duration = Duration::from_secs(1);

/// Makes changes at once, on connections that no other calls use.
pub(super) async fn run(core: Arc<Core>, mut orders: mpsc::Receiver<Order>) {
    let (kept, mut changes) = (Kept::default(), JoinSet::new());
    loop {
        while changes.try_join_next().is_some() {}
        let is_idle = changes.is_empty() && kept.lock().ignore_poison().is_none();
        let order = if is_idle { Ok(orders.recv().await) } else { timeout(KEPT, orders.recv()).await };
        match order {
            Ok(Some((change, reply))) => {
                let (core, kept) = (core.clone(), kept.clone());
                changes.spawn(async move {
                    // If the caller is gone, no one receives the outcome.
                    let _ = reply.send(make(&core, &change, &kept).await);
                });
            }
            Ok(None) => break,
            Err(_) => keep(&kept, None).await,
        }
    }
    changes.join_all().await;
    keep(&kept, None).await;
}

/// Puts a connection or none in the place of the kept one.
async fn keep(kept: &Kept, link: Option<Link>) {
    let before = std::mem::replace(&mut *kept.lock().ignore_poison(), link);
    if let Some(before) = before {
        before.close().await;
    }
}

/// Why a change was not made.
enum Refused {
    Failure(Failure),
    Conflict,
    FenceOpen,
    /// The account is not the one to use.
    Marked(Mark),
}

impl<F: Into<Failure>> From<F> for Refused {
    fn from(failure: F) -> Self {
        Self::Failure(failure.into())
    }
}

/// Makes a change in a transaction, on the kept connection or on a new one.
///
/// # Errors
/// [`Error::HeaderConflict`] if another process wrote the header at the same time, and [`Error::Postgres`].
async fn make(core: &Arc<Core>, change: &Change, kept: &Kept) -> Result<()> {
    let deadline = Instant::now() + core.options.deadline;
    let mut pauses = Pauses::between_connections();
    let unknown = || problem::of_store(PostgresProblem::OutcomeUnknown);
    // A commit was sent, and its answer never came.
    let mut unanswered = false;
    loop {
        let mut committing = false;
        let attempt = timeout_at(deadline, attempt(core, change, kept, &mut committing)).await;
        let failure = match attempt {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Refused::Conflict)) if !unanswered => return Err(Error::HeaderConflict),
            // The other process may have begun with this very change.
            Ok(Err(Refused::Conflict)) => return Err(unknown()),
            Ok(Err(Refused::Marked(mark))) => return mark.refuse(change.account),
            Ok(Err(Refused::FenceOpen)) => {
                change.lease.as_ref().map_or(Ok(()), |lease| lease.check())?;
                Failure::NoAnswer
            }
            Ok(Err(Refused::Failure(failure))) => failure,
            Err(_) => Failure::NoAnswer,
        };
        unanswered |= committing && failure.breaks_connection();
        if !failure.is_passing() || Instant::now() >= deadline {
            return Err(if unanswered { unknown() } else { failure.into_error(Record::SenderKey) });
        }
        pauses.pause().await;
    }
}

async fn attempt(core: &Arc<Core>, change: &Change, kept: &Kept, committing: &mut bool) -> Result<(), Refused> {
    let last = kept.lock().ignore_poison().take();
    let link = match last {
        Some(link) if !link.is_closed() && core.is_current(&link.server) => link,
        _ => Link::connect(core).await?,
    };
    let unsynced = link.unsynced();
    // The role's defaults may be lower. A lost header makes the store unreadable.
    let begin = format!(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL synchronous_commit = {}; SET LOCAL client_min_messages = warning",
        link.durable
    );
    link.command(&begin).await?;
    if let Some(mark) = read(&link, change.account, MARK_ADDRESS).await? {
        let mark = Mark::of(&mark);
        if mark.refuse(change.account).is_err() {
            return Err(Refused::Marked(mark));
        }
    }
    for (copy, new) in &change.copies {
        write(&link, change.account, *copy, new.as_ref()).await?;
    }
    let (put, others) = (change.others.0, &change.others.1);
    if let Some(lease) = change.lease.as_ref().filter(|_| !others.is_empty()) {
        let fence = Fence { epoch: lease.epoch(), durability: link.durable, holder: &core.holder };
        let answer = link.run(put, put.parameters(change.account, Some(fence), others)).await?;
        if !put.held(&answer) {
            link.command("ROLLBACK").await?;
            lease.look(&link, core).await?;
            return Err(Refused::FenceOpen);
        }
    }
    *committing = true;
    link.command("COMMIT").await?;
    if link.unsynced() != unsynced {
        return Err(Refused::Failure(Failure::NotSynced));
    }
    keep(kept, Some(link)).await;
    Ok(())
}

async fn write(link: &Link, account: i32, copy: HeaderCopy, new: Option<&Bytes>) -> Result<(), Refused> {
    let address = copy.address().as_bytes();
    let Some(new) = new else {
        link.ask(DELETE, &[(&account, Type::INT4), (&address, Type::BYTEA)]).await?;
        return Ok(());
    };
    let [a, b] = HeaderCopy::BOTH.map(HeaderCopy::address);
    let (a, b) = (read(link, account, a).await?, read(link, account, b).await?);
    if !copy.may_become(new, a.as_deref(), b.as_deref()) {
        return Err(Refused::Conflict);
    }
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&account, Type::INT4), (&address, Type::BYTEA), (&&new[..], Type::BYTEA)];
    link.ask(WRITE, &parameters).await?;
    Ok(())
}

async fn read(link: &Link, account: i32, address: &str) -> Result<Option<Vec<u8>>, Failure> {
    let address = address.as_bytes();
    let rows = link.ask(READ, &[(&account, Type::INT4), (&address, Type::BYTEA)]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}
