//! Copies of a vault's header are written by compare-and-swap, without the lease.

use std::sync::Arc;

use futures_util::future::join_all;

use super::*;
use crate::error::Error;
use crate::vault::VaultOptions;
use crate::{Key, Vault};

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creators_one_succeeds() {
    let Some(scratch) = scratch() else { return };
    let _holder = scratch.store().await;
    let create = |number: u8| {
        let options = scratch.options();
        async move {
            let store = Arc::new(options.open_without_lease(1).await.unwrap());
            Vault::create(store, Key::from_bytes(&mut [number; 32])).await
        }
    };
    let created = join_all((0..16).map(create)).await;
    let winners = created.iter().filter(|created| created.is_ok()).count();
    for error in created.into_iter().filter_map(Result::err) {
        let conflict = match &error {
            Error::Store(inner) => matches!(Error::downcast_ref(inner), Some(Error::HeaderConflict)),
            error => matches!(error, Error::HeaderConflict | Error::VaultExists),
        };
        assert!(conflict, "{error:?}");
    }
    assert_eq!(winners, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_changes_none_is_lost() {
    let Some(scratch) = scratch() else { return };
    let bot = Arc::new(scratch.store().await);
    let vault = Vault::create(bot.clone(), Key::from_bytes(&mut [1; 32])).await.unwrap();
    let add = |number: u8| {
        let options = scratch.options();
        async move {
            let store = Arc::new(options.open_without_lease(1).await.unwrap());
            let vault = VaultOptions::new().open(store, Key::from_bytes(&mut [1; 32])).await?;
            vault.add_slot("another", Key::from_bytes(&mut [number; 32])).await
        }
    };
    let added = join_all((10..16).map(add)).await;
    let successes = added.iter().filter(|added| added.is_ok()).count();
    assert!(successes > 0, "{added:?}");
    drop(vault);
    let mut opening = 0;
    for number in 10..16 {
        opening += usize::from(Vault::open(bot.clone(), Key::from_bytes(&mut [number; 32])).await.is_ok());
    }
    assert_eq!(opening, successes, "a slot that was added opens the vault, and no other");
}
