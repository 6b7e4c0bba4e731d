//! The store under the encrypting layer.

use std::fs;

use wacore::store::traits::{Backend, DeviceStore, SignalStore};

use super::*;
use crate::method::Method;
use crate::testing::canaries;
use crate::vault::Argon2Cost;
use crate::{Key, Layer, Vault, VaultOptions};

fn raw_key(number: u8) -> Key {
    Key::from_bytes(&mut [number; 32])
}

#[tokio::test]
async fn no_file_holds_a_canary_snapshots_and_backups_included() {
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let vault = Vault::create(store.clone(), raw_key(1)).await.unwrap();
    let layered = vault.layer().layer(store);
    canaries::fill(&*layered).await;
    for method in Method::ALL.iter().filter(|method| !method.access().changes_rows()) {
        canaries::call(&*layered, *method).await.unwrap();
    }
    layered.save(&canaries::device()).await.unwrap();
    let search = |store: &SqliteStore| {
        let store = store.clone();
        let folder = scratch.path.parent().unwrap().to_owned();
        async move {
            store.snapshot_db("by hand", Some(b"nothing")).await.unwrap();
            store.backup(folder.join("backup.db")).await.unwrap();
            let (mut files, mut found) = (0, Vec::new());
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let content = fs::read(&path).unwrap();
                files += 1;
                for (name, canary) in canaries::all() {
                    let text = std::str::from_utf8(&canary).is_ok();
                    let in_name = text && path.to_string_lossy().contains(&*String::from_utf8_lossy(&canary));
                    if memchr::memmem::find(&content, &canary).is_some() || in_name {
                        found.push(name);
                    }
                }
            }
            (files, found)
        }
    };
    let (files, found) = search(&scratch.store).await;
    assert!(files >= 7, "{files}");
    assert_eq!(found, [] as [String; 0]);

    // The same search over the same calls without the layer.
    let plain = Scratch::new().await;
    canaries::fill(&plain.store).await;
    plain.store.checkpoint().await.unwrap();
    let content = fs::read(&plain.path).unwrap();
    let seen = canaries::all().iter().filter(|(_, canary)| memchr::memmem::find(&content, canary).is_some()).count();
    assert!(seen > 30, "{seen}");
}

#[tokio::test]
async fn every_method_works_through_the_layer() {
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let vault = Vault::create(store.clone(), raw_key(1)).await.unwrap();
    let layered = vault.layer().layer(store);
    canaries::fill(&*layered).await;
    assert_eq!(layered.get_session(canaries::SESSION_ADDRESS).await.unwrap().unwrap(), canaries::SESSION);
    assert_eq!(layered.load_identity(canaries::IDENTITY_ADDRESS).await.unwrap(), Some(canaries::IDENTITY_KEY));
    assert_eq!(layered.get_version(canaries::COLLECTION).await.unwrap().version, 17);
    layered.save(&canaries::device()).await.unwrap();
    assert_eq!(layered.load().await.unwrap().unwrap().push_name, canaries::PUSH_NAME);
    for method in Method::ALL {
        canaries::call(&*layered, *method).await.unwrap();
    }
}

/// If many tasks create a vault at once, one succeeds, and its key opens the vault.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_one_task_creates_the_vault() {
    for _ in 0..20 {
        let scratch = Scratch::with(config().durability(Durability::Process)).await;
        let tasks = (0..8u8).map(|number| {
            let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
            tokio::spawn(async move { Vault::create(store, raw_key(number)).await })
        });
        let mut creators = Vec::new();
        for (number, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
            match task.await.unwrap() {
                Ok(vault) => creators.push((number as u8, vault)),
                Err(error) => {
                    assert!(matches!(error, Error::HeaderConflict | Error::VaultExists), "{error:?}");
                }
            }
        }
        let [(number, vault)] = creators.as_slice() else { panic!("{} creators", creators.len()) };
        let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
        vault.layer().layer(store.clone()).put_session("a@b", b"x").await.unwrap();
        let opened = Vault::open(store.clone(), raw_key(*number)).await.unwrap();
        assert_eq!(opened.layer().layer(store).get_session("a@b").await.unwrap().unwrap(), &b"x"[..]);
    }
}

/// If many tasks open or create a vault at once, all get the same one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everybody_opens_the_vault_that_one_created() {
    for _ in 0..20 {
        let scratch = Scratch::with(config().durability(Durability::Process)).await;
        let tasks = (0..6u8).map(|number| {
            let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
            tokio::spawn(async move {
                let vault = Vault::open_or_create(store.clone(), raw_key(1)).await.unwrap();
                let layered = vault.layer().layer(store);
                layered.put_session(&format!("{number}@s"), b"x").await.unwrap();
                layered
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            let layered = task.await.unwrap();
            assert!(layered.get_session("0@s").await.is_ok());
        }
        let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
        let layered = Vault::open(store.clone(), raw_key(1)).await.unwrap().layer().layer(store);
        for number in 0..6 {
            assert_eq!(layered.get_session(&format!("{number}@s")).await.unwrap().unwrap(), &b"x"[..]);
        }
    }
}

/// If several vaults add slots at the same moment, all slots exist afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_header_change_is_lost() {
    for _ in 0..10 {
        let scratch = Scratch::with(config().durability(Durability::Process)).await;
        let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
        Vault::create(store.clone(), raw_key(0)).await.unwrap();
        let tasks = (1..5u8).map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                // Opening changes the header too.
                let vault = Vault::open(store, raw_key(0)).await.unwrap();
                vault.add_slot(&number.to_string(), raw_key(number)).await.unwrap();
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        for number in 0..5 {
            let vault = Vault::open(store.clone(), raw_key(number)).await.unwrap();
            assert_eq!(vault.slots().len(), 5);
        }
    }
}

const PROCESSES: usize = 4;

#[test]
fn exactly_one_process_creates_the_vault() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wa.db");
        let said = Companions::start(PROCESSES, "encrypted::create_beside_others", "create", &path).go();
        let creators: Vec<usize> = (0..PROCESSES).filter(|number| said[*number].contains("created")).collect();
        let [creator] = creators[..] else { panic!("{creators:?}") };
        single_threaded().block_on(async {
            let store: Arc<dyn Backend> = Arc::new(config().open(&path).await.unwrap());
            let vault = Vault::open(store.clone(), raw_key(creator as u8)).await.unwrap();
            assert!(vault.layer().layer(store).has_session("a@b").await.unwrap());
        });
    }
}

#[test]
fn create_beside_others() {
    let Some(path) = errand("create") else { return };
    single_threaded().block_on(async {
        let store: Arc<dyn Backend> = Arc::new(config().lease_when_writing().open(&path).await.unwrap());
        let number = ready();
        match Vault::create(store.clone(), raw_key(number as u8)).await {
            Ok(vault) => {
                vault.layer().layer(store).put_session("a@b", b"x").await.unwrap();
                println!("created");
            }
            Err(error) => assert!(matches!(error, Error::HeaderConflict | Error::VaultExists), "{error:?}"),
        }
    });
}

/// Restoring a header replaces any existing one, also a planted one.
#[tokio::test]
async fn restoring_replaces_planted_and_damaged_headers() {
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let options = || VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM);
    let vault = options().create(store.clone(), raw_key(1)).await.unwrap();
    let layered = vault.layer().layer(store.clone());
    layered.create().await.unwrap();
    layered.put_session("a@b", b"x").await.unwrap();
    let saved = vault.save_header();

    let foreign = SqliteStore::in_memory().await.unwrap();
    options().create(Arc::new(foreign.clone()) as Arc<dyn Backend>, raw_key(2)).await.unwrap();
    for copy in crate::vault::HeaderCopy::BOTH {
        let planted = foreign.get_sender_key(copy.address()).await.unwrap().unwrap();
        // The store refuses it as an ordinary write.
        let error = store.put_sender_key(copy.address(), &planted).await.unwrap_err();
        assert!(matches!(Error::downcast_ref(&error), Some(Error::HeaderConflict)), "{error:?}");
        let batch = [("other".into(), bytes::Bytes::new()), (copy.address().into(), planted.into())];
        let error = store.put_sender_keys_batch(&batch).await.unwrap_err();
        assert!(matches!(Error::downcast_ref(&error), Some(Error::HeaderConflict)), "{error:?}");
        assert!(store.get_sender_key("other").await.unwrap().is_none());
        assert!(store.put_sender_key(copy.address(), b"rubbish").await.is_err());
    }
    let sql = "/* test */ INSERT OR REPLACE INTO sender_keys (account, address, record) VALUES (1, ?1, ?2)";
    for copy in crate::vault::HeaderCopy::BOTH {
        let planted = foreign.get_sender_key(copy.address()).await.unwrap().unwrap();
        scratch.store.write(WritePlan::DURABLE, move |c| c.run(sql, (copy.address(), &planted))).await.unwrap();
    }
    assert!(matches!(Vault::open(store.clone(), raw_key(1)).await, Err(Error::WrongSecret)));
    let vault = options().restore_header(store.clone(), &saved, raw_key(1)).await.unwrap();
    assert_eq!(vault.layer().layer(store.clone()).get_session("a@b").await.unwrap().unwrap(), &b"x"[..]);
    let vault = Vault::open(store.clone(), raw_key(1)).await.unwrap();

    // A damaged copy A is repaired from copy B; an old copy A is brought up to date from it.
    scratch
        .store
        .write(WritePlan::DURABLE, move |c| c.run(sql, (crate::vault::HeaderCopy::A.address(), &b"rubbish"[..])))
        .await
        .unwrap();
    Vault::open(store.clone(), raw_key(1)).await.unwrap();
    let old = store.get_sender_key(crate::vault::HeaderCopy::A.address()).await.unwrap().unwrap();
    Vault::open(store.clone(), raw_key(1)).await.unwrap();
    scratch
        .store
        .write(WritePlan::DURABLE, move |c| c.run(sql, (crate::vault::HeaderCopy::A.address(), &old)))
        .await
        .unwrap();
    Vault::open(store.clone(), raw_key(1)).await.unwrap();
    let copies = crate::vault::HeaderCopy::BOTH.map(|copy| store.get_sender_key(copy.address()));
    let [a, b] = copies;
    assert_eq!(a.await.unwrap(), b.await.unwrap());
    drop(vault);
}
