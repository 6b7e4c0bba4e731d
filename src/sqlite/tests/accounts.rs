//! Accounts in one file do not see each other's records.

use wacore::store::traits::{Backend, DeviceStore, MsgSecretStore, ProtocolStore, SignalStore};

use super::*;
use crate::method::{Access, Method};
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::{Key, Stack, Vault, VaultOptions};

/// Every row of every table with records, without the account number.
async fn rows(store: &SqliteStore) -> Vec<String> {
    let account = store.account;
    let dump = move |c: &rusqlite::Connection| {
        let tables = "/* test */ SELECT name FROM sqlite_schema
            WHERE type = 'table' AND name <> 'leases' ORDER BY name";
        let mut out = Vec::new();
        for table in c.all(tables, (), |row| row.get::<_, String>(0))? {
            let sql = format!("SELECT * FROM {table} WHERE account = ?1");
            let mut statement = crate::sqlite::connection::permitted(|| c.prepare(&sql))?;
            let columns = statement.column_count();
            let mut rows = statement.query((account,))?;
            while let Some(row) = rows.next()? {
                let values = (1..columns).map(|at| row.get::<_, rusqlite::types::Value>(at));
                out.push(format!("{table} {:?}", values.collect::<rusqlite::Result<Vec<_>>>()?));
            }
        }
        Ok(out)
    };
    store.read_long(dump).await.unwrap()
}

#[tokio::test]
async fn no_method_touches_another_account() {
    let scratch = Scratch::new().await;
    let (first, second) = (scratch.store.clone(), scratch.store.account(-7));
    canaries::fill(&first).await;
    let before = rows(&first).await;
    assert!(before.len() > 18, "every table has a row: {before:?}");
    // No read of the other account finds a row.
    assert!(second.get_session(canaries::SESSION_ADDRESS).await.unwrap().is_none());
    assert!(!second.has_signal_state_for_user(canaries::PHONE).await.unwrap());
    assert!(second.get_all_lid_mappings().await.unwrap().is_empty());
    assert!(second.get_all_tc_token_jids().await.unwrap().is_empty());
    assert!(!second.exists().await.unwrap());
    // No write of the other account changes a row.
    canaries::fill(&second).await;
    assert_eq!(rows(&second).await.len(), before.len());
    for method in Method::ALL.iter().filter(|method| method.access().changes_rows()) {
        canaries::call(&second, *method).await.unwrap();
        assert_eq!(rows(&first).await, before, "{}", method.name());
    }
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Delete) {
        canaries::call(&second, *method).await.unwrap();
    }
    second.delete_expired_msg_secrets(i64::MAX).await.unwrap();
    second.delete_expired_sent_messages(i64::MAX).await.unwrap();
    assert_eq!(rows(&first).await, before);
    assert_eq!(first.accounts().await.unwrap(), [-7, 1]);

    second.delete_account().await.unwrap();
    assert_eq!(rows(&scratch.store.account(-7)).await, [] as [String; 0]);
    assert_eq!(rows(&first).await, before);
    assert_eq!(first.accounts().await.unwrap(), [1]);
}

#[tokio::test]
async fn five_hundred_accounts_share_the_connections() {
    let scratch = Scratch::new().await;
    for number in 1..=500 {
        let account = scratch.store.account(number);
        assert_eq!(account.account_number(), number);
        account.put_session("a", &number.to_le_bytes()).await.unwrap();
        assert_eq!(account.get_session("a").await.unwrap().unwrap(), &number.to_le_bytes()[..]);
    }
    assert!(scratch.store.database.open_connections() <= 5);
    assert_eq!(scratch.store.account(77).create().await.unwrap(), 77);
    let backend: Arc<dyn Backend> = Arc::new(scratch.store.account(500));
    assert!(backend.has_session("a").await.unwrap());
}

#[tokio::test]
async fn the_first_account_is_not_begun_in_a_file_of_others() {
    let scratch = Scratch::new().await;
    let key = || Key::from_bytes(&mut [0x5a; 32]);
    let seventh = Arc::new(scratch.store.account(7));
    assert!(Vault::open_or_create(seventh.clone(), key()).await.unwrap().was_created());
    assert!(!Vault::open_or_create(seventh, key()).await.unwrap().was_created());

    let first: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    for opened in [
        Vault::open_or_create(first.clone(), key()).await,
        Vault::open(first.clone(), key()).await,
        VaultOptions::new()
            .mode(OpenMode::ReadOnly)
            .open(Stack::new(first).named("a layer between").into_backend(), key())
            .await,
    ] {
        let error = opened.unwrap_err();
        assert!(matches!(&error, Error::OtherAccounts { account: 1, others } if *others == [7]), "{error:?}");
        assert!(error.to_string().contains("no account 1, but [7]"), "{error}");
    }
    assert_eq!(scratch.store.accounts_in_use().await.unwrap(), [7]);
    // An account that the caller chose is started.
    let chosen = Arc::new(scratch.store.account(1));
    assert!(matches!(Vault::open(chosen.clone(), key()).await, Err(Error::NoVault)));
    assert!(Vault::open_or_create(chosen, key()).await.unwrap().was_created());
    assert!(!Vault::open_or_create(Arc::new(scratch.store.clone()), key()).await.unwrap().was_created());
}
