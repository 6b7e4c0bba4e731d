//! A listing so long that several threads open it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use wacore::store::traits::{Backend, LidPnMappingEntry};

use super::{options, raw_key};
use crate::method::Method;
use crate::testing::gate::{Gate, Side};
use crate::vault::OnDamage;
use crate::{Layer, SqliteStore};

const ROWS: u32 = 2000;
const DAMAGED: [u32; 4] = [0, 700, 701, ROWS - 1];

fn mapping(number: u32) -> LidPnMappingEntry {
    LidPnMappingEntry {
        lid: format!("{}", 100_000_000_000_000 + u64::from(number)),
        phone_number: format!("1555{number:07}"),
        created_at: number.into(),
        updated_at: 7,
        learning_source: format!("source {number}"),
    }
}

fn mappings(numbers: std::ops::Range<u32>) -> Vec<LidPnMappingEntry> {
    numbers.map(mapping).collect()
}

fn text(entry: &LidPnMappingEntry) -> String {
    format!("{entry:?}")
}

#[tokio::test]
async fn a_long_listing_is_whole_and_in_order() {
    let inner: Arc<dyn Backend> = Arc::new(SqliteStore::in_memory().await.unwrap());
    let vault = options().create(inner.clone(), raw_key()).await.unwrap();
    let lenient = options().on_damage(OnDamage::TreatAsAbsent).open(inner.clone(), raw_key()).await.unwrap();
    let gate = Gate::default();
    let store = lenient.layer().layer(gate.layer(inner.clone()));
    store.put_lid_mappings(&mappings(0..1500)).await.unwrap();

    // While the listing waits, the vault gets a newer data key, and some rows are under it.
    gate.close(Method::GetAllLidMappings, Side::Before);
    let listing = tokio::spawn({
        let store = store.clone();
        async move { store.get_all_lid_mappings().await.unwrap() }
    });
    tokio::task::yield_now().await;
    vault.rotate_data_key().await.unwrap();
    store.put_lid_mappings(&mappings(1500..ROWS)).await.unwrap();
    let state = lenient.shared().state();
    let token = |number: u32| state.cipher.lookup().lid(&mapping(number).lid).unwrap().to_string();
    for number in DAMAGED {
        let mut row = inner.get_lid_mapping(&token(number)).await.unwrap().unwrap();
        row.learning_source.replace_range(60..61, if &row.learning_source[60..61] == "A" { "B" } else { "A" });
        inner.put_lid_mapping(&row).await.unwrap();
    }
    let names: HashMap<String, u32> = (0..ROWS).map(|number| (token(number), number)).collect();
    let rows = inner.get_all_lid_mappings().await.unwrap();
    let damaged = HashSet::from(DAMAGED);
    let numbers = rows.iter().map(|row| names[&row.lid]).filter(|number| !damaged.contains(number));
    let expected: Vec<_> = numbers.map(|number| text(&mapping(number))).collect();

    gate.open(Method::GetAllLidMappings);
    let listed: Vec<_> = listing.await.unwrap().iter().map(text).collect();
    assert_eq!(listed, expected);
    assert_eq!(lenient.damaged_records(), DAMAGED.len() as u64);
    // Damage is an error by default.
    assert!(vault.layer().layer(inner).get_all_lid_mappings().await.is_err());
}
