//! The parts of an open store that its lanes share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::failure::Failure;
use super::options::PostgresOptions;
use super::problem;
use super::server::Server;
use super::stats::Counters;
use crate::error::{PostgresProblem, Result};
use crate::sync::IgnorePoison;

pub(super) struct Core {
    pub(super) options: PostgresOptions,
    /// Identifies this open store in the leases: 16 random bytes.
    pub(super) holder: [u8; 16],
    pub(super) counters: Arc<Counters>,
    /// The server that the newest connection led to. All lanes move to it.
    server: Mutex<Option<Server>>,
    /// The texts of statements with the schema in its place.
    texts: Mutex<HashMap<usize, Arc<str>>>,
    schema: String,
}

impl Core {
    /// # Errors
    /// [`Error::Random`](crate::Error::Random).
    pub(super) fn new(options: PostgresOptions) -> Result<Self> {
        let mut holder = [0; 16];
        getrandom::fill(&mut holder)?;
        let schema = options.quoted_schema();
        Ok(Self {
            options,
            holder,
            counters: Arc::default(),
            server: Mutex::default(),
            texts: Mutex::default(),
            schema,
        })
    }

    /// `true` if the newest connection led to this server.
    pub(super) fn is_current(&self, server: &Server) -> bool {
        self.server.lock().ignore_poison().as_ref() == Some(server)
    }

    /// # Errors
    /// [`PostgresProblem::WrongServer`] if this is another database than before, or an older state of it.
    pub(super) fn check_server(&self, server: &Server) -> Result<(), Failure> {
        match &*self.server.lock().ignore_poison() {
            Some(before) if !server.follows(before) => {
                Err(Failure::Connect(problem::of_store(PostgresProblem::WrongServer)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn set_server(&self, server: &Server) {
        *self.server.lock().ignore_poison() = Some(server.clone());
    }

    /// The server that the newest connection led to.
    pub(super) fn server(&self) -> Option<Server> {
        self.server.lock().ignore_poison().clone()
    }

    /// Identifies the database cluster, which is the same on all its servers. `None` before the first connection.
    pub(super) fn system(&self) -> Option<i64> {
        self.server().map(|server| server.system)
    }

    /// The text of a statement. `@` stands for the schema.
    pub(super) fn text(&self, sql: &'static str) -> Arc<str> {
        let key = sql.as_ptr().addr();
        let mut texts = self.texts.lock().ignore_poison();
        texts.entry(key).or_insert_with(|| self.in_schema(sql).into()).clone()
    }

    pub(super) fn in_schema(&self, sql: &str) -> String {
        sql.replace('@', &self.schema)
    }
}
