//! Stub.
use std::sync::Arc;
use crate::error::{Error, PostgresProblem};
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ServerCode(String);
pub(super) fn error_of(problem: PostgresProblem) -> Error {
    Error::Postgres { problem, source: Arc::new(ServerCode("none".into())) }
}
pub(super) fn of_driver(error: &tokio_postgres::Error) -> Error {
    let code = error.as_db_error().map_or(format!("none"), |e| format!("{} {} {}", e.severity(), e.code().code(), e.message()));
    Error::Postgres { problem: problem_of(error), source: Arc::new(ServerCode(code)) }
}
pub(super) fn problem_of(error: &tokio_postgres::Error) -> PostgresProblem {
    use PostgresProblem::*;
    let Some(code) = error.code() else {
        return Unreachable;
    };
    match code.code() {
        "40001" | "40P01" | "55P03" | "57014" => Contended,
        "57P01" | "57P02" | "57P03" => Unreachable,
        c if c.starts_with("08") => Unreachable,
        "25006" => ReadOnly,
        "53300" => TooManyConnections,
        "53100" => DiskFull,
        "42P01" | "3F000" | "42703" => Schema,
        "26000" | "08P01" | "42P05" => Pooler,
        "42501" | "3D000" => NotAllowed,
        c if c.starts_with("28") => NotAllowed,
        _ => Other,
    }
}
