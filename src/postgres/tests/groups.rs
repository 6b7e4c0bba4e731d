//! Which calls become one statement, and which rows become one row.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::super::group::units;
use super::super::lane::Call;
use super::super::lease::Lease;
use super::super::signal::{DELETE_SESSIONS, PUT_SESSION};
use super::super::statement::{Cell, Fold, Kind, Row, row};
use super::*;
use crate::postgres::msg_secret::PUT as PUT_SECRET;

fn call(lease: &Arc<Lease>, statement: &'static Statement, rows: Vec<Row>) -> Call {
    let (account, lease) = (lease.account, Some(lease.clone()));
    let (reply, _) = oneshot::channel();
    Call {
        statement,
        account,
        lease,
        rows,
        durable: true,
        deadline: Instant::now(),
        unanswered: false,
        wait: None,
        reply,
    }
}

fn lease(account: i32) -> Arc<Lease> {
    Arc::new(Lease::new(account, Arc::new(Notify::new())))
}

/// The values of a unit's rows, as text.
fn rows(pieces: Vec<&[Row]>) -> Vec<String> {
    let text = |cell: &Cell| match cell {
        Cell::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Cell::Long(number) => number.to_string(),
        _ => "-".to_owned(),
    };
    pieces.concat().iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn neighbours_merge_and_the_last_value_of_a_key_stays() {
    let (one, two) = (lease(1), lease(2));
    let put = |lease, address: &str, session: &str| call(lease, &PUT_SESSION, vec![row![address, session]]);
    let calls = [
        put(&one, "a", "1"),
        put(&one, "b", "1"),
        put(&one, "a", "2"),
        call(&one, &DELETE_SESSIONS, vec![row!["a"]]),
        put(&one, "a", "3"),
        put(&two, "a", "4"),
    ];
    let units = units(&calls);
    let found: Vec<_> = units.iter().map(|unit| (unit.account, unit.calls.clone(), rows(unit.pieces()))).collect();
    let expected =
        [(1, 0..3, vec!["b 1", "a 2"]), (1, 3..4, vec!["a"]), (1, 4..5, vec!["a 3"]), (2, 5..6, vec!["a 4"])];
    let expected =
        expected.map(|(account, calls, rows)| (account, calls, rows.into_iter().map(str::to_owned).collect()));
    assert_eq!(found, expected);
}

#[test]
fn message_secrets_merge_as_the_statement_would() {
    let secret = |secret: &str, expiry: i64, time: i64| row!["chat", "sender", "id", secret, expiry, time];
    let folded = PUT_SECRET.fold(vec![secret("a", 10, 3), secret("b", 5, 7), secret("c", 7, 1)]);
    assert_eq!(rows(vec![&folded]), ["chat sender id c 10 7"]);
    let folded = PUT_SECRET.fold(vec![secret("a", 10, 3), secret("b", 0, 1), secret("c", 7, 2)]);
    assert_eq!(rows(vec![&folded]), ["chat sender id c 0 3"]);
}

#[test]
fn large_batches_are_split() {
    let lease = lease(1);
    let many = (0..5001).map(|number: i64| row![number.to_string(), "session"]).collect();
    let large = (0..3).map(|number: i64| row![number.to_string(), vec![0; 3 << 20]]).collect();
    let calls = [
        call(&lease, &PUT_SESSION, many),
        call(&lease, &DELETE_SESSIONS, vec![row!["a"]]),
        call(&lease, &PUT_SESSION, large),
    ];
    let sizes: Vec<Vec<usize>> =
        units(&calls).iter().map(|unit| unit.pieces().into_iter().map(<[Row]>::len).collect()).collect();
    assert_eq!(sizes, [vec![2000, 2000, 1001], vec![1], vec![1, 1, 1]]);
}

/// Statements whose outcome depends on the stored row are carried out one by one.
#[test]
fn statements_that_look_at_the_row_do_not_merge() {
    use crate::postgres::protocol_statements::{
        SAVE_BASE_KEY, STORE_RECEIVED_TC_TOKEN, TAKE_SENT_MESSAGE, TOUCH_TC_TOKEN,
    };
    for statement in [&SAVE_BASE_KEY, &STORE_RECEIVED_TC_TOKEN, &TAKE_SENT_MESSAGE, &TOUCH_TC_TOKEN] {
        assert!(!statement.merges(), "{statement:?}");
    }
    assert!(PUT_SESSION.merges() && PUT_SECRET.merges());
    assert_eq!(PUT_SESSION.kind, Kind::Upsert(Fold::Last));
}

#[test]
fn parameters_show_nothing_in_a_log() {
    let rows = vec![row!["15550001111@s.whatsapp.net", "CANARY"]];
    let parameters = PUT_SESSION.parameters(1, None, &rows);
    let text = format!("{parameters:?} {rows:?}");
    assert!(!text.contains("1555") && !text.contains("CANARY"), "{text}");
}
