//! A live connection to a server.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::future::{BoxFuture, maybe_done};
use futures_util::{FutureExt, TryStreamExt};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Row};

use super::connect::{self, Connection};
use super::core::Core;
use super::failure::Failure;
use super::problem;
use super::server::Server;
use super::statement::{Answer, Parameter, Statement};
use crate::error::PostgresProblem;
use crate::method::Record;
use crate::sync::IgnorePoison;

/// The routine of PostgreSQL that warns when a commit stops to wait for its standby. The text of the warning depends on
/// the server's language; the routine does not. The transactions that must hear of it ask for warnings, because a role
/// may have switched them off.
const STANDBY_WAIT: &str = "SyncRepWaitForLSN";

/// A connection and the task that drives it.
pub(super) struct Link {
    client: Client,
    driver: DriverTask,
    core: Arc<Core>,
    prepared: Mutex<HashMap<usize, tokio_postgres::Statement>>,
    /// How many commits stopped to wait for their standby.
    unsynced: Arc<AtomicU64>,
    pub(super) server: Server,
    /// The durability of commits that must survive: the server's default, or more.
    pub(super) durable: &'static str,
}

impl Link {
    /// A connection to the first host of the URL that is the server of the store.
    ///
    /// # Errors
    /// The failure of the host that came furthest.
    pub(super) async fn connect(core: &Arc<Core>) -> Result<Self, Failure> {
        let accept = |client, driver| async move {
            Self::to(core, client, driver).await.map_err(|failure| failure.into_error(Record::Store))
        };
        connect::connect(&core.options, accept).await.map_err(Failure::Connect)
    }

    /// # Errors
    /// The server is a standby, another database, or an older state of it.
    async fn to(core: &Arc<Core>, client: Client, driver: Connection) -> Result<Self, Failure> {
        let unsynced = Arc::new(AtomicU64::new(0));
        let driver = DriverTask(tokio::spawn(drive(driver, unsynced.clone())));
        let mut link = Self {
            client,
            driver,
            core: core.clone(),
            prepared: Mutex::default(),
            unsynced,
            server: Server::default(),
            durable: "on",
        };
        link.look_at_server().await?;
        core.check_server(&link.server)?;
        Ok(link)
    }

    async fn look_at_server(&mut self) -> Result<(), Failure> {
        const SQL: &str = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()),
            CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
            pg_postmaster_start_time()::text, current_setting('synchronous_commit')";
        let rows = self.ask(SQL, &[]).await?;
        let row = rows.first().ok_or_else(Failure::no_server)?;
        if row.try_get(0)? {
            return Err(Failure::Connect(problem::of_store(PostgresProblem::ReadOnly)));
        }
        let timeline: &str = row.try_get(2)?;
        self.server = Server {
            system: row.try_get(1)?,
            timeline: Server::timeline_in(timeline).ok_or_else(Failure::no_server)?,
            started: row.try_get(3)?,
        };
        self.durable = if row.try_get::<_, &str>(4)? == "remote_apply" { "remote_apply" } else { "on" };
        Ok(())
    }

    /// Runs a statement of the store to its end. The request is sent when the future is first polled, unless the
    /// statement must be prepared before.
    ///
    /// # Errors
    /// [`Failure::NoAnswer`] if the server is silent for longer than the answer timeout.
    pub(super) async fn run(
        &self,
        statement: &'static Statement,
        parameters: Vec<Parameter<'_>>,
    ) -> Result<Answer, Failure> {
        #[cfg(all(test, unix))]
        super::tests::record(statement);
        let rows = if self.core.options.prepared {
            let prepared = self.prepare(statement).await?;
            self.in_time(self.client.query_raw(&prepared, parameters)).await?
        } else {
            let sql = self.core.text(statement.sql);
            let parameters = parameters.into_iter().zip(statement.types());
            self.in_time(self.client.query_typed_raw(&sql, parameters)).await?
        };
        let mut rows = pin!(rows);
        let mut answer = Answer::default();
        while let Some(row) = self.in_time(rows.try_next()).await? {
            answer.rows.push(row);
        }
        answer.affected = rows.rows_affected().unwrap_or(0);
        Ok(answer)
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.core.options.answer_timeout, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::NoAnswer),
        }
    }

    /// The statement as the server knows it.
    pub(super) async fn prepare(&self, statement: &'static Statement) -> Result<tokio_postgres::Statement, Failure> {
        let key = std::ptr::from_ref(statement).addr();
        if let Some(prepared) = self.prepared.lock().ignore_poison().get(&key) {
            return Ok(prepared.clone());
        }
        let (sql, types) = (self.core.text(statement.sql), statement.types());
        let prepared = self.in_time(self.client.prepare_typed(&sql, &types)).await?;
        self.prepared.lock().ignore_poison().insert(key, prepared.clone());
        Ok(prepared)
    }

    /// Statements are prepared again.
    pub(super) fn forget_prepared(&self) {
        self.prepared.lock().ignore_poison().clear();
    }

    /// Runs a rare statement, in one round trip and without a name.
    pub(super) async fn ask(
        &self,
        sql: &'static str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Failure> {
        let sql = self.core.text(sql);
        self.in_time(self.client.query_typed(&sql, parameters)).await
    }

    /// Does the same for a statement that may take as long as it needs.
    pub(super) async fn ask_long(
        &self,
        sql: &'static str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Failure> {
        Ok(self.client.query_typed(&self.core.text(sql), parameters).await?)
    }

    /// Runs a command that may take as long as it needs.
    pub(super) async fn long_command(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Runs a command without parameters and without rows, such as `BEGIN`.
    pub(super) async fn command(&self, sql: &str) -> Result<(), Failure> {
        self.in_time(self.client.batch_execute(sql)).await
    }

    /// Sends all requests at once, in their order, and waits for all answers.
    pub(super) async fn pipeline<'a>(
        requests: impl IntoIterator<Item = BoxFuture<'a, Result<Answer, Failure>>>,
    ) -> Vec<Result<Answer, Failure>> {
        // A request is sent when its future is first polled. The answers come in the order of the requests, so it does
        // no harm that the later ones are not polled until then.
        let mut requests: Vec<_> = requests.into_iter().map(maybe_done).collect();
        std::future::poll_fn(|context| {
            for request in &mut requests {
                let _ = request.poll_unpin(context);
            }
            Poll::Ready(())
        })
        .await;
        let mut answers = Vec::with_capacity(requests.len());
        for mut request in requests {
            (&mut request).await;
            answers.push(Pin::new(&mut request).take_output().unwrap_or(Err(Failure::NoAnswer)));
        }
        answers
    }

    /// How many commits stopped to wait for their standby so far.
    pub(super) fn unsynced(&self) -> u64 {
        self.unsynced.load(Ordering::Acquire)
    }

    /// `true` if statements have names on the server.
    pub(super) fn prepares(&self) -> bool {
        self.core.options.prepared
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Takes leave of the server.
    pub(super) async fn close(self) {
        let Self { client, mut driver, core, .. } = self;
        drop(client);
        let _ = tokio::time::timeout(core.options.answer_timeout, &mut driver.0).await;
    }
}

/// Ends the driver with its connection.
struct DriverTask(JoinHandle<()>);

impl Drop for DriverTask {
    fn drop(&mut self) {
        // Closes the socket at once. The driver would wait for a server that does not answer.
        self.0.abort();
    }
}

/// Sends and receives until the connection ends.
async fn drive(mut driver: Connection, unsynced: Arc<AtomicU64>) {
    while let Some(message) = std::future::poll_fn(|context| driver.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) if notice.routine() == Some(STANDBY_WAIT) => {
                unsynced.fetch_add(1, Ordering::Release);
            }
            Ok(_) => {}
            // Calls learn of it from their own answers.
            Err(error) => {
                let code = error.code().map_or("no code", |code| code.code());
                log::debug!("a connection to PostgreSQL ended ({code})");
                return;
            }
        }
    }
}
