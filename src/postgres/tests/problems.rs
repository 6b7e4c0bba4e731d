//! Errors of the driver and of servers: the problem that they stand for, and that their texts stay behind.

use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::error::{Error, PostgresProblem};
use crate::postgres::problem::{of_network, problem_of_code, tls_problem, with_code, words_of_tls};

#[test]
fn each_code_stands_for_its_problem() {
    use PostgresProblem::*;
    for (codes, problem) in [
        (&["40001", "40P01", "55P03", "57014"][..], Contended),
        (&["08000", "08006", "57P01", "57P02", "57P03", "57P05"], Unreachable),
        (&["25006"], ReadOnly),
        (&["53300"], TooManyConnections),
        (&["53100"], DiskFull),
        (&["42501", "28000", "28P01", "3D000"], NotAllowed),
        (&["42P01", "3F000", "42703"], Schema),
        (&["XX001", "XX002"], Damaged),
        (&["26000", "42P05"], Pooler),
        (&["23505", "22021", "XX000", "", "no code"], Other),
    ] {
        for code in codes {
            assert_eq!(problem_of_code(code, "any text"), problem, "{code}");
        }
    }
}

/// PgBouncer has one code for all its problems.
#[test]
fn texts_of_pgbouncer_stand_for_their_problems() {
    use PostgresProblem::*;
    for (text, problem) in [
        ("unsupported startup parameter: options", Pooler),
        ("prepared statement \"s0\" does not exist", Pooler),
        ("no more connections allowed (max_client_conn)", TooManyConnections),
        ("no such user: bot", NotAllowed),
        ("no such database: wa", NotAllowed),
        ("server login failed: FATAL password authentication failed for user \"bot\"", NotAllowed),
        ("query_wait_timeout", Unreachable),
        ("pgbouncer cannot connect to server", Unreachable),
    ] {
        assert_eq!(problem_of_code("08P01", text), problem, "{text}");
    }
}

#[test]
fn errors_of_the_network_are_told_apart() {
    let named = |error| of_network(&io::Error::new(io::ErrorKind::InvalidData, error)).0;
    assert_eq!(named(rustls::Error::DecryptError), PostgresProblem::Tls);
    // The driver's own, and one of the operating system.
    let read_only = io::Error::new(io::ErrorKind::PermissionDenied, "database does not allow writes");
    assert_eq!(of_network(&read_only).0, PostgresProblem::ReadOnly);
    for number in [13, 104, 110, 111, 113] {
        assert_eq!(of_network(&io::Error::from_raw_os_error(number)).0, PostgresProblem::Unreachable);
    }
    assert_eq!(of_network(&io::ErrorKind::UnexpectedEof.into()).0, PostgresProblem::Unreachable);
}

#[test]
fn words_of_tls_contain_no_name() {
    let name = rustls::pki_types::ServerName::try_from("db1.example").unwrap();
    let presented = vec!["db2.example".to_owned()];
    let wrong = CertificateError::NotValidForNameContext { expected: name, presented };
    for error in [
        rustls::Error::InvalidCertificate(wrong),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
        rustls::Error::InvalidCertificate(CertificateError::Expired),
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet),
        rustls::Error::InvalidCertificate(CertificateError::BadSignature),
        rustls::Error::AlertReceived(AlertDescription::UnknownCA),
        rustls::Error::General("db1.example".to_owned()),
    ] {
        assert!(!words_of_tls(&error).contains("example"));
        assert!(matches!(tls_problem(&error), Error::Postgres { problem: PostgresProblem::Tls, .. }));
    }
}

/// Upstream tries a call again if its error contains one of these words.
#[test]
fn only_contention_is_tried_again_by_upstream() {
    for problem in [PostgresProblem::Contended, PostgresProblem::Unreachable, PostgresProblem::Other] {
        let error = wacore::store::error::StoreError::from(with_code(problem, "ERROR 40001"));
        assert_eq!(error.is_database_busy_or_locked(), problem == PostgresProblem::Contended, "{problem:?}");
    }
    for kind in [io::ErrorKind::ResourceBusy, io::ErrorKind::ExecutableFileBusy, io::ErrorKind::WouldBlock] {
        let (problem, words) = of_network(&kind.into());
        let error = wacore::store::error::StoreError::from(with_code(problem, words));
        assert!(!error.is_database_busy_or_locked());
    }
}
