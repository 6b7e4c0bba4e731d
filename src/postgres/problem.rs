//! Errors of the driver, reduced to what no data can choose: texts and details of a server contain values of rows.

use std::borrow::Cow;
use std::error;
use std::io;
use std::sync::Arc;

use rustls::CertificateError;
use tokio_postgres::error::{DbError, Severity};

use crate::error::{Error, PostgresProblem};

/// The driver tells the kinds of its errors apart in their texts only. A test fails if these texts change.
const OF_TLS: &str = "error performing TLS handshake";
const OF_LOGIN: [&str; 2] = ["authentication error", "invalid configuration"];
const OF_OTHERS: [&str; 5] = [
    "unexpected message from server",
    "error parsing response from server",
    "error encoding message to server",
    "error serializing parameter",
    "error deserializing column",
];

/// The code of a server, for example `ERROR 40001`, or the words for a failed connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ServerCode(Cow<'static, str>);

/// The error of a call that ended with an error of the driver.
pub(super) fn error_of(error: &tokio_postgres::Error) -> Error {
    let (problem, code) = reduced(error);
    with_code(problem, code)
}

/// The problem behind an error of the driver.
pub(super) fn problem_of(error: &tokio_postgres::Error) -> PostgresProblem {
    reduced(error).0
}

/// An error with its words, for problems that no error of the driver stands for.
pub(super) fn with_code(problem: PostgresProblem, code: impl Into<Cow<'static, str>>) -> Error {
    Error::Postgres { problem, source: Arc::new(ServerCode(code.into())) }
}

/// The error of TLS settings that cannot be used.
pub(super) fn tls_problem(error: &rustls::Error) -> Error {
    with_code(PostgresProblem::Tls, words_of_tls(error))
}

/// The problem behind an error or a notice of the server.
pub(super) fn problem_of_server(error: &DbError) -> PostgresProblem {
    problem_of_code(error.code().code(), error.message())
}

fn reduced(error: &tokio_postgres::Error) -> (PostgresProblem, Cow<'static, str>) {
    if let Some(error) = error.as_db_error() {
        return (problem_of_server(error), code_of(error).into());
    }
    let text = error.to_string();
    let is = |kind: &&str| text.starts_with(*kind);
    let cause = error::Error::source(error).and_then(<dyn error::Error>::downcast_ref::<io::Error>);
    let (problem, words) = match cause {
        _ if OF_LOGIN.iter().any(is) => (PostgresProblem::NotAllowed, "the login failed"),
        _ if OF_OTHERS.iter().any(is) => (PostgresProblem::Other, "the messages of the server are not understood"),
        Some(cause) => of_network(cause),
        None if is(&OF_TLS) => (PostgresProblem::Tls, "the server does not support TLS"),
        None if error.is_closed() => (PostgresProblem::Unreachable, "the connection was closed"),
        None if text.starts_with("timeout") => (PostgresProblem::Unreachable, "the answer took too long"),
        None => (PostgresProblem::Other, "the driver failed"),
    };
    (problem, words.into())
}

/// An error of the connection. The driver reports its own findings as such errors, too.
pub(super) fn of_network(error: &io::Error) -> (PostgresProblem, &'static str) {
    let inner = error.get_ref();
    if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return (PostgresProblem::Tls, words_of_tls(error));
    }
    let words = match error.kind() {
        // The driver's word for a server that is read-only; the operating system's has a number.
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => {
            return (PostgresProblem::ReadOnly, "the server is read-only");
        }
        io::ErrorKind::ConnectionRefused => "the connection was refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            "the connection was cut"
        }
        io::ErrorKind::TimedOut => "the connection took too long",
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::PermissionDenied => "the operating system forbids the connection",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "there is no way to the server",
        _ => "the connection failed",
    };
    (PostgresProblem::Unreachable, words)
}

/// Words for an error of TLS, whose own text contains names.
pub(super) fn words_of_tls(error: &rustls::Error) -> &'static str {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => "the CA of the server's certificate is not known",
        Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the server's certificate is for another name",
        Tls::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the server's certificate has expired"
        }
        Tls::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the server's certificate is not valid yet"
        }
        Tls::InvalidCertificate(_) => "the server's certificate is not valid",
        Tls::AlertReceived(_) => "the server refused TLS",
        Tls::PeerIncompatible(_) => "the server speaks no version of TLS that is safe",
        _ => "TLS failed",
    }
}

/// `ERROR 40001`. A server could send any text as its code.
fn code_of(error: &DbError) -> String {
    let code = error.code().code();
    let is_code = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let severity = match error.parsed_severity() {
        Some(Severity::Fatal) => "FATAL",
        Some(Severity::Panic) => "PANIC",
        Some(Severity::Error) | None => "ERROR",
        Some(_) => "WARNING",
    };
    format!("{severity} {}", if is_code { code } else { "without a code" })
}

/// The problem behind an SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(super) fn problem_of_code(code: &str, message: &str) -> PostgresProblem {
    match code {
        "40001" | "40P01" | "55P03" | "57014" => PostgresProblem::Contended,
        "25006" => PostgresProblem::ReadOnly,
        "53300" => PostgresProblem::TooManyConnections,
        "53100" => PostgresProblem::DiskFull,
        "42501" | "3D000" => PostgresProblem::NotAllowed,
        "42P01" | "3F000" | "42703" => PostgresProblem::Schema,
        "XX001" | "XX002" => PostgresProblem::Damaged,
        // A pooler exchanges the connections under the statements that were prepared on them.
        "26000" | "42P05" => PostgresProblem::Pooler,
        "08P01" => of_pooler(message),
        _ if code.starts_with("28") => PostgresProblem::NotAllowed,
        _ if code.starts_with("08") || code.starts_with("57P0") => PostgresProblem::Unreachable,
        _ => PostgresProblem::Other,
    }
}

/// PgBouncer has one code for everything. Its words are its own, none comes from data (`src/client.c` and
/// `src/objects.c` of PgBouncer 1.18).
fn of_pooler(message: &str) -> PostgresProblem {
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if says(&["startup parameter", "prepared statement"]) {
        PostgresProblem::Pooler
    } else if says(&["no more connections allowed", "too many connections"]) {
        PostgresProblem::TooManyConnections
    } else if says(&["authentication failed", "no such user", "no such database", "auth failed", "login rejected"]) {
        PostgresProblem::NotAllowed
    } else {
        PostgresProblem::Unreachable
    }
}
