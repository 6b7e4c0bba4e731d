//! Records of every kind at once.

use wacore::store::traits::Backend;

use crate::method::{Access, Method};
use crate::testing::arguments::{Arguments, Key, call};
use crate::testing::value::Value;

/// Two rows, so that batches have several.
pub(crate) fn rows() -> [Arguments; 2] {
    let row = |id, text, number| Arguments { user: "1555".to_owned(), ..Arguments::numbered(Key { id, text }, number) };
    [row(4, "1555:4@s.whatsapp.net", 4), row(5, "1555:5@s.whatsapp.net", 5)]
}

/// Calls every method that writes. The device must exist already.
pub(crate) async fn store(store: &dyn Backend, rows: &[Arguments]) {
    each(store, rows, |method| method.access() == Access::Write && method != Method::Create).await;
}

/// Calls every method that deletes, takes or sweeps. Each removes everything that it can.
pub(crate) async fn delete(store: &dyn Backend, rows: &[Arguments]) {
    each(store, rows, |method| matches!(method.access(), Access::Delete | Access::Take)).await;
}

/// The answers of every method that reads. Leaves out sent messages, because reading removes them.
pub(crate) async fn read(store: &dyn Backend, rows: &[Arguments]) -> Vec<(Method, Value)> {
    each(store, rows, |method| matches!(method.access(), Access::Read | Access::Scan)).await
}

async fn each(store: &dyn Backend, rows: &[Arguments], wanted: fn(Method) -> bool) -> Vec<(Method, Value)> {
    let mut results = vec![];
    for method in Method::ALL.iter().copied().filter(|method| wanted(*method)) {
        for row in rows {
            match call(store, method, row, rows).await {
                Ok(value) => results.push((method, value.sorted())),
                Err(error) => panic!("{} failed: {error:?}", method.name()),
            }
        }
    }
    results
}

pub(crate) fn assert_same(before: &[(Method, Value)], after: &[(Method, Value)], when: &str) {
    assert_eq!(before.len(), after.len());
    for ((method, before), (_, after)) in before.iter().zip(after) {
        assert_eq!(before, after, "{} returns a different answer {when}", method.name());
    }
}
