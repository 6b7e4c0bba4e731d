//! Stub.
use std::fmt;
use std::time::Duration;
use crate::Durability;
use crate::error::{Error, Result};

/// Settings.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(super) url: String,
    pub(super) schema: String,
    pub(super) lease_name: String,
    pub(super) lease_wait: Duration,
    pub(super) lanes: usize,
    pub(super) durability: Durability,
    pub(super) deadline: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) prepared: bool,
    pub(super) migrate: bool,
    pub(super) base_key_retention: Option<Duration>,
}

impl PostgresOptions {
    /// Stub.
    pub fn new(url: &str) -> Result<Self> {
        if url.is_empty() {
            return Err(Error::InvalidInput { what: "url", problem: "is empty" });
        }
        Ok(Self {
            url: url.into(),
            schema: "wastore".into(),
            lease_name: String::new(),
            lease_wait: Duration::from_secs(20),
            lanes: 1,
            durability: Durability::default(),
            deadline: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(5),
            prepared: true,
            migrate: true,
            base_key_retention: Some(Duration::from_secs(30 * 24 * 3600)),
        })
    }
    pub(super) fn quoted_schema(&self) -> String {
        format!("\"{}\"", self.schema.replace('"', "\"\""))
    }
    /// Stub.
    pub fn schema(mut self, schema: &str) -> Result<Self> {
        self.schema = schema.into();
        Ok(self)
    }
    /// Stub.
    pub fn lease_name(mut self, name: impl Into<String>) -> Self {
        self.lease_name = name.into();
        self
    }
    /// Stub.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.lease_wait = wait;
        self
    }
    /// Stub.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }
    /// Stub.
    pub fn prepared(mut self, prepared: bool) -> Self {
        self.prepared = prepared;
        self
    }
    /// Stub.
    pub fn password_file(self, _: &str) -> Self {
        self
    }
}
impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres({})", self.schema)
    }
}
