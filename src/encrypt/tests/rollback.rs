//! Stores that were put back, or copied and used elsewhere, are refused. Crashes and other processes are not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;

use super::{Headers, Scratch, headers, memory, options, put_headers, raw_key};
use crate::testing::canaries::{SESSION, SESSION_ADDRESS};
use crate::testing::fault::polled;
use crate::testing::gate::Pauses;
use crate::testing::{Effect, Fault, When};
use crate::vault::OpenMode;
use crate::vault::{Anchor, FileAnchor, Revocation, RollbackAnchor};
use crate::{Error, Key, Layer, VaultOptions};

/// An anchor in memory, which can be switched off.
#[derive(Default)]
struct Table {
    anchors: Mutex<HashMap<[u8; 16], Anchor>>,
    fails: AtomicBool,
    /// The remembered anchors stay as they are.
    is_stuck: AtomicBool,
}

impl Table {
    fn check(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.fails.load(Ordering::Relaxed) { Err("it is switched off".into()) } else { Ok(()) }
    }
}

#[async_trait]
impl RollbackAnchor for Table {
    async fn load(&self, store: &[u8; 16]) -> Result<Option<Anchor>, Box<dyn std::error::Error + Send + Sync>> {
        self.check()?;
        Ok(self.anchors.lock().unwrap().get(store).copied())
    }

    async fn advance(
        &self,
        store: &[u8; 16],
        from: Option<Anchor>,
        to: Anchor,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        tokio::task::yield_now().await;
        self.check()?;
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err("it is stuck".into());
        }
        let mut anchors = self.anchors.lock().unwrap();
        let same = anchors.get(store).copied() == from;
        if same {
            anchors.insert(*store, to);
        }
        Ok(same)
    }
}

fn anchored(anchor: &Arc<impl RollbackAnchor + 'static>) -> VaultOptions {
    options().rollback_anchor(anchor.clone())
}

/// Opening fails with this error, for writing as well as for reading, and writes nothing.
async fn assert_refused(options: &VaultOptions, store: &Arc<dyn Backend>, expected: &str) {
    let before = headers(store).await;
    for result in [
        options.open(store.clone(), raw_key()).await,
        options.clone().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await,
        options.open_or_create(store.clone(), raw_key()).await,
    ] {
        let error = result.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    }
    assert!(headers(store).await == before, "something was written");
}

#[tokio::test]
async fn a_store_that_was_put_back_is_refused_until_it_is_accepted() {
    for scratch in Scratch::all().await {
        let (store, anchor) = (scratch.store.clone(), Arc::new(Table::default()));
        let options = anchored(&anchor);
        options.create(store.clone(), raw_key()).await.unwrap();
        let older = headers(&store).await;
        let vault = options.open(store.clone(), raw_key()).await.unwrap();
        vault.layer().layer(store.clone()).put_session(SESSION_ADDRESS, SESSION).await.unwrap();
        drop(vault);
        let newer = headers(&store).await;
        put_headers(&store, &older).await;
        assert_refused(&options, &store, "RollbackDetected").await;
        // A wrong secret does not reveal it.
        let wrong = options.open(store.clone(), Key::from_bytes(&mut [1; 32])).await;
        assert!(matches!(wrong, Err(Error::WrongSecret)), "{wrong:?}");

        let vault = options.clone().mode(OpenMode::AcceptRollback).open(store.clone(), raw_key()).await.unwrap();
        vault.layer().layer(store.clone()).get_session(SESSION_ADDRESS).await.unwrap();
        options.open(store.clone(), raw_key()).await.unwrap();
        // The abandoned store is the older one now.
        put_headers(&store, &newer).await;
        assert_refused(&options, &store, "RollbackDetected").await;
    }
}

#[tokio::test]
async fn a_copy_that_went_on_is_refused() {
    for scratch in Scratch::all().await {
        let (store, anchor) = (scratch.store.clone(), Arc::new(Table::default()));
        let options = anchored(&anchor);
        options.create(store.clone(), raw_key()).await.unwrap();
        let copied = headers(&store).await;
        // The copy is opened as often as the store, without an anchor or with another one.
        for with_an_anchor in [false, true] {
            for times in [1, 2, 5] {
                let elsewhere = if with_an_anchor { anchored(&Arc::new(Table::default())) } else { super::options() };
                options.open(store.clone(), raw_key()).await.unwrap();
                let own = headers(&store).await;
                put_headers(&store, &copied).await;
                elsewhere.open(store.clone(), raw_key()).await.unwrap();
                while generation(&store).await < generation_of(&own) + times - 1 {
                    elsewhere.open(store.clone(), raw_key()).await.unwrap();
                }
                assert_refused(&options, &store, "ForkDetected").await;
                put_headers(&store, &own).await;
                options.open(store.clone(), raw_key()).await.unwrap();
            }
        }
        // Both with the same anchor: the second one gets the error, even if it is open already.
        let first = options.open(store.clone(), raw_key()).await.unwrap();
        let own = headers(&store).await;
        let second = options.open(store.clone(), raw_key()).await.unwrap();
        put_headers(&store, &own).await;
        let refused = first.add_slot("late", Key::from_bytes(&mut [2; 32])).await;
        assert!(matches!(refused, Err(Error::RollbackDetected)), "{refused:?}");
        drop(second);
    }
}

async fn generation(store: &Arc<dyn Backend>) -> u64 {
    generation_of(&headers(store).await)
}

fn generation_of(headers: &Headers) -> u64 {
    u64::from_le_bytes(headers[0].as_ref().unwrap()[32..40].try_into().unwrap())
}

/// The header is written first. If the anchor fails or the process dies in between, the store is one step ahead and
/// opens, whatever the step was. It is never two steps ahead.
#[tokio::test]
async fn one_step_that_the_anchor_has_not_heard_of_is_a_crash() {
    let (store, anchor) = (memory(), Arc::new(Table::default()));
    let options = anchored(&anchor);
    anchor.fails.store(true, Ordering::Relaxed);
    let refused = options.create(store.clone(), raw_key()).await;
    assert!(matches!(refused, Err(Error::Anchor(_))), "{refused:?}");
    assert_eq!(headers(&store).await, [None, None], "nothing is written if the anchor cannot be used");
    anchor.fails.store(false, Ordering::Relaxed);

    let (mut covered, mut steps_without_anchor) = (0, 0);
    for steps in 1.. {
        let fault = Fault::new();
        let failing: Arc<dyn Backend> = fault.layer(Arc::new(InMemoryBackend::new()));
        let options = options.clone();
        let vault = options.create(failing.clone(), raw_key()).await.unwrap();
        let revocation = Revocation::prepare(&vault, raw_key()).await.unwrap();
        // Fails at any call after the first write of the header. The anchor hears nothing from then on.
        fault.inject(When::From(steps), Effect::Fail(Fault::error));
        let changes = async {
            options.open(failing.clone(), raw_key()).await?;
            vault.add_slot("second", Key::from_bytes(&mut [2; 32])).await?;
            vault.rotate_data_key().await?;
            vault.revoke(&revocation).await
        };
        let done = changes.await;
        fault.clear();
        // The header is written and cannot be remembered: one step, and no second one.
        anchor.is_stuck.store(true, Ordering::Relaxed);
        let before = headers(&failing).await;
        let unusable = vault.add_slot("third", Key::from_bytes(&mut [3; 32])).await;
        assert!(matches!(unusable, Err(Error::Anchor(_))), "{unusable:?}");
        let written = headers(&failing).await;
        if vault.slots().iter().any(|slot| slot.label == "third") {
            assert_ne!(written, before);
        }
        for label in ["fourth", "fifth"] {
            let again = vault.add_slot(label, Key::from_bytes(&mut [4; 32])).await;
            assert!(matches!(again, Err(Error::Anchor(_))), "{again:?}");
            assert!(headers(&failing).await == written, "a second step was taken");
        }
        steps_without_anchor += usize::from(written != before);
        anchor.fails.store(true, Ordering::Relaxed);
        let unusable = options.open(failing.clone(), raw_key()).await;
        assert!(matches!(unusable, Err(Error::Anchor(_))), "{unusable:?}");
        anchor.fails.store(false, Ordering::Relaxed);
        anchor.is_stuck.store(false, Ordering::Relaxed);
        options.open(failing.clone(), raw_key()).await.unwrap();
        vault.add_slot("sixth", Key::from_bytes(&mut [5; 32])).await.unwrap();
        covered += 1;
        if done.is_ok() {
            break;
        }
    }
    assert!(covered > 30 && steps_without_anchor > 10, "{covered} {steps_without_anchor}");

    // A header that the store wrote, while the anchor hears nothing.
    let vault = options.create(store.clone(), raw_key()).await.unwrap();
    let known = anchor.anchors.lock().unwrap().clone();
    vault.add_slot("second", Key::from_bytes(&mut [2; 32])).await.unwrap();
    *anchor.anchors.lock().unwrap() = known.clone();
    options.clone().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await.unwrap();
    options.open(store.clone(), raw_key()).await.unwrap();
    *anchor.anchors.lock().unwrap() = known;
    assert_refused(&options, &store, "ForkDetected").await;
}

/// Changes of the header are dropped wherever they wait, the anchor included. The vault opens, and an open vault goes
/// on.
#[tokio::test]
async fn changes_under_an_anchor_are_dropped_anywhere() {
    let anchor = Arc::new(Table::default());
    let options = anchored(&anchor);
    let new_key = || Key::from_bytes(&mut [9; 32]);
    let mut finished = false;
    for polls in 1.. {
        let inner = memory();
        let store = Pauses.layer(inner.clone());
        let vault = options.create(inner.clone(), raw_key()).await.unwrap();
        let saved = vault.save_header();
        drop(vault);
        let change = async {
            let vault = options.open(store.clone(), raw_key()).await.unwrap();
            vault.add_slot("second", Key::from_bytes(&mut [2; 32])).await.unwrap();
            vault.renew_anchor().await.unwrap();
            drop(options.restore_header(store.clone(), &saved, raw_key()).await.unwrap());
            drop(options.clone().mode(OpenMode::AcceptRollback).open(store.clone(), raw_key()).await.unwrap());
            let revocation = Revocation::prepare(&vault, new_key()).await.unwrap();
            vault.rotate_data_key().await.unwrap();
            vault.revoke(&revocation).await.unwrap();
        };
        finished |= polled(polls, change).await.is_some();
        let vault = match options.open(inner.clone(), raw_key()).await {
            Err(Error::WrongSecret) => options.open(inner.clone(), new_key()).await.unwrap(),
            // A header that was put back and dropped half-way has to be accepted again.
            Err(Error::ForkDetected) => {
                options.clone().mode(OpenMode::AcceptRollback).open(inner.clone(), raw_key()).await.unwrap()
            }
            opened => opened.unwrap(),
        };
        vault.add_slot("last", Key::from_bytes(&mut [3; 32])).await.unwrap();
        options.open(inner, Key::from_bytes(&mut [3; 32])).await.unwrap();
        if finished {
            assert!(polls > 100, "{polls}");
            break;
        }
    }
}

/// A copy that is as new as the header passes for the store. Raising the header after each copy prevents that.
#[tokio::test]
async fn a_copy_is_refused_from_the_next_header_on() {
    let (store, anchor) = (memory(), Arc::new(Table::default()));
    let options = anchored(&anchor);
    let vault = options.create(store.clone(), raw_key()).await.unwrap();
    let copied = headers(&store).await;
    put_headers(&store, &copied).await;
    options.clone().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await.unwrap();
    vault.renew_anchor().await.unwrap();
    put_headers(&store, &copied).await;
    assert_refused(&options, &store, "RollbackDetected").await;
    let open = vault.add_slot("late", Key::from_bytes(&mut [2; 32])).await;
    assert!(matches!(open, Err(Error::HeaderRolledBack)), "{open:?}");
}

#[tokio::test]
async fn a_store_without_an_anchor_is_taken_over_on_purpose() {
    let (store, anchor) = (memory(), Arc::new(Table::default()));
    let options = anchored(&anchor);
    super::options().create(store.clone(), raw_key()).await.unwrap();
    super::options().open(store.clone(), raw_key()).await.unwrap();
    assert_refused(&options, &store, "AnchorMissing").await;
    let unset = super::options().mode(OpenMode::AcceptRollback).open(store.clone(), raw_key()).await;
    assert!(matches!(unset, Err(Error::InvalidInput { .. })), "{unset:?}");
    options.clone().mode(OpenMode::AcceptRollback).open(store.clone(), raw_key()).await.unwrap();
    let vault = options.open(store.clone(), raw_key()).await.unwrap();
    // Restoring a saved header on purpose is a step of its own.
    let saved = vault.save_header();
    vault.add_slot("second", Key::from_bytes(&mut [2; 32])).await.unwrap();
    let before = headers(&store).await;
    options.restore_header(store.clone(), &saved, raw_key()).await.unwrap();
    options.open(store.clone(), raw_key()).await.unwrap();
    put_headers(&store, &before).await;
    assert_refused(&options, &store, "RollbackDetected").await;
}

#[tokio::test]
async fn a_folder_keeps_the_anchors_of_many_stores() {
    let folder = tempfile::tempdir().unwrap();
    let anchor = Arc::new(FileAnchor::new(folder.path()));
    let options = anchored(&anchor);
    let stores: Vec<_> = (0..3).map(|_| memory()).collect();
    for store in &stores {
        options.create(store.clone(), raw_key()).await.unwrap();
        options.open(store.clone(), raw_key()).await.unwrap();
    }
    let older = headers(&stores[1]).await;
    for store in &stores {
        options.open(store.clone(), raw_key()).await.unwrap();
    }
    put_headers(&stores[1], &older).await;
    assert_refused(&options, &stores[1], "RollbackDetected").await;
    options.open(stores[0].clone(), raw_key()).await.unwrap();

    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let anchors: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|e| e == "anchor")).collect();
    assert_eq!(anchors.len(), 3, "{files:?}");
    #[cfg(unix)]
    for path in &files {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    // Any content of a file is an anchor of this store, or an error. A file that a crash left beside it does no harm.
    let path = anchors.iter().find(|path| {
        let id = path.file_stem().unwrap().to_str().unwrap();
        id == hex::encode(store_id(&older))
    });
    let path = path.unwrap();
    let intact = std::fs::read(path).unwrap();
    std::fs::write(path.with_extension("anchor.new"), vec![b'x'; 5000]).unwrap();
    for position in 0..intact.len() {
        for damage in [&intact[..position], &[&intact[..position], b"~", &intact[position + 1..]].concat()] {
            std::fs::write(path, damage).unwrap();
            assert_refused(&options, &stores[1], "Anchor(").await;
        }
    }
    std::fs::write(path, [&intact[..], &intact].concat()).unwrap();
    assert_refused(&options, &stores[1], "Anchor(").await;
    std::fs::write(path, &intact).unwrap();
    options.clone().mode(OpenMode::AcceptRollback).open(stores[1].clone(), raw_key()).await.unwrap();
    options.open(stores[1].clone(), raw_key()).await.unwrap();
    // A disk that is not mounted.
    std::fs::rename(folder.path(), folder.path().with_extension("gone")).unwrap();
    assert_refused(&options, &stores[1], "Anchor(").await;
    std::fs::rename(folder.path().with_extension("gone"), folder.path()).unwrap();
}

fn store_id(headers: &Headers) -> [u8; 16] {
    headers[0].as_ref().unwrap()[16..32].try_into().unwrap()
}

/// All processes that use the store and its anchor at the same time succeed.
async fn crowd(store: Arc<dyn Backend>, anchor: Arc<impl RollbackAnchor + 'static>, rounds: u8) {
    let options = anchored(&anchor);
    options.create(store.clone(), raw_key()).await.unwrap();
    let tasks = (0..4u8).map(|task| {
        let (store, options) = (store.clone(), options.clone());
        tokio::spawn(async move {
            for round in 0..rounds {
                let vault = with_retries(|| options.open(store.clone(), raw_key())).await;
                vault.layer().layer(store.clone()).put_session(SESSION_ADDRESS, SESSION).await.unwrap();
                let (label, secret) = (format!("task {task}"), [10 + task * 50 + round; 32]);
                let (vault, label) = (&vault, label.as_str());
                // After a conflict this vault's list is old: the slot is gone, or its number is that of another task.
                let remove = async |id| match vault.remove_slot(id).await {
                    Err(Error::NoSuchSlot(_)) => Ok(()),
                    removed => removed,
                };
                with_retries(|| async {
                    // After a conflict it may have been added nevertheless.
                    for slot in vault.slots().iter().filter(|slot| slot.label == label) {
                        remove(slot.id).await?;
                    }
                    let id = vault.add_slot(label, Key::from_bytes(&mut secret.clone())).await?;
                    remove(id).await
                })
                .await;
                options.clone().mode(OpenMode::ReadOnly).open(store.clone(), raw_key()).await.map(drop).unwrap_or_else(
                    |error| {
                        assert!(matches!(error, Error::HeaderConflict), "{error:?}");
                    },
                );
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    options.open(store, raw_key()).await.unwrap();
}

/// A conflict means that other processes kept writing, so the call is tried again. No other error may happen.
async fn with_retries<T, F: Future<Output = Result<T, Error>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(Error::HeaderConflict) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_that_shares_a_store_and_an_anchor_is_no_fork() {
    use crate::SqliteStore;

    for round in 0..super::rounds(2, 50) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(folder.path().join("wa.db")).await.unwrap());
        if round % 2 == 0 {
            crowd(store, Arc::new(Table::default()), 10).await;
        } else {
            crowd(store, Arc::new(FileAnchor::new(folder.path())), 5).await;
        }
    }
}

/// The whole database, as from a restored backup.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_restored_backup_of_the_database_is_refused() {
    use crate::SqliteStore;

    async fn open(path: &std::path::Path, options: &VaultOptions) -> Result<(Arc<dyn Backend>, crate::Vault), Error> {
        let store: Arc<dyn Backend> = Arc::new(SqliteStore::open(path).await?);
        let vault = options.open_or_create(store.clone(), raw_key()).await?;
        Ok((vault.layer().layer(store), vault))
    }

    let (folder, anchors) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, backup) = (folder.path().join("wa.db"), folder.path().join("backup.db"));
    let options = anchored(&Arc::new(FileAnchor::new(anchors.path())));
    let (backend, vault) = open(&path, &options).await.unwrap();
    backend.put_session(SESSION_ADDRESS, b"before").await.unwrap();
    SqliteStore::open_read_only(&path).await.unwrap().backup(&backup).await.unwrap();
    drop((backend, vault));
    let (backend, vault) = open(&path, &options).await.unwrap();
    backend.put_session(SESSION_ADDRESS, b"after").await.unwrap();
    drop((backend, vault));
    std::fs::rename(&backup, &path).unwrap();
    for rest in ["wa.db-wal", "wa.db-shm"] {
        std::fs::remove_file(folder.path().join(rest)).ok();
    }
    let error = open(&path, &options).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::RollbackDetected), "{error:?}");
    let store: Arc<dyn Backend> = Arc::new(SqliteStore::open(&path).await.unwrap());
    let vault = options.clone().mode(OpenMode::AcceptRollback).open(store.clone(), raw_key()).await.unwrap();
    let session = vault.layer().layer(store).get_session(SESSION_ADDRESS).await.unwrap();
    assert_eq!(session.as_deref(), Some(&b"before"[..]));
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_of_anchors_follows_nothing_that_was_planted() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    let folder = tempfile::tempdir().unwrap();
    let anchors = folder.path().join("anchors");
    std::fs::create_dir(&anchors).unwrap();
    let mode = |mode| std::fs::set_permissions(&anchors, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o755);
    let (store, options) = (memory(), anchored(&Arc::new(FileAnchor::new(&anchors))));
    options.create(store.clone(), raw_key()).await.unwrap();
    let path = anchors.join(format!("{}.anchor", hex::encode(store_id(&headers(&store).await))));

    // The unfinished file.
    let precious = folder.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    for hard in [false, true] {
        let new = path.with_extension("anchor.new");
        match hard {
            true => std::fs::hard_link(&precious, &new).unwrap(),
            false => symlink(&precious, &new).unwrap(),
        }
        options.open(store.clone(), raw_key()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert!(path.symlink_metadata().unwrap().is_file() && !new.exists());
    }

    // A folder in which other users may write.
    for open in [0o775, 0o757, 0o777, 0o1777] {
        mode(open);
        assert_refused(&options, &store, "Anchor(").await;
        let error = options.open(store.clone(), raw_key()).await.unwrap_err();
        let Error::Anchor(reason) = error else { panic!("{error:?}") };
        assert!(reason.to_string().contains("chmod go-w"), "{reason}");
    }
    mode(0o700);
    options.open(store.clone(), raw_key()).await.unwrap();

    // The anchor and the lock as a link, and as a pipe without another end.
    for path in [path, anchors.join("anchors.lock")] {
        let kept = folder.path().join("kept");
        std::fs::rename(&path, &kept).unwrap();
        symlink(&kept, &path).unwrap();
        assert!(matches!(options.open(store.clone(), raw_key()).await, Err(Error::Anchor(_))), "{}", path.display());
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let opened = tokio::time::timeout(Duration::from_secs(5), options.open(store.clone(), raw_key())).await;
        assert!(matches!(opened, Ok(Err(Error::Anchor(_)))), "{}", path.display());
        std::fs::rename(&kept, &path).unwrap();
    }
    options.open(store.clone(), raw_key()).await.unwrap();
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_store_that_vanished_is_not_begun_from_nothing() {
    use crate::SqliteStore;
    let folder = tempfile::tempdir().unwrap();
    let anchors = folder.path().join("anchors");
    std::fs::create_dir(&anchors).unwrap();
    let options = options().rollback_anchor(Arc::new(crate::vault::FileAnchor::new(&anchors)));
    let path = folder.path().join("wa.db");
    let open = async || {
        let store = Arc::new(SqliteStore::open(&path).await.unwrap());
        options.open_or_create(store, raw_key()).await
    };
    assert!(open().await.unwrap().was_created());
    assert!(!open().await.unwrap().was_created());
    let kept = std::fs::read(&path).unwrap();

    std::fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        let error = open().await.unwrap_err();
        assert!(matches!(error, Error::StoreVanished), "{error:?}");
    }
    // Another store in its place.
    let other = folder.path().join("other.db");
    for _ in 0..2 {
        crate::Vault::open_or_create(Arc::new(SqliteStore::open(&other).await.unwrap()), raw_key()).await.unwrap();
    }
    std::fs::rename(&other, &path).unwrap();
    let error = open().await.unwrap_err();
    assert!(matches!(error, Error::AnchorMissing), "{error:?}");
    // The first store is put back.
    std::fs::write(&path, kept).unwrap();
    assert!(!open().await.unwrap().was_created());
    // At another path it is the same store, and its old path stays known.
    let moved = folder.path().join("moved.db");
    std::fs::rename(&path, &moved).unwrap();
    options.open_or_create(Arc::new(SqliteStore::open(&moved).await.unwrap()), raw_key()).await.unwrap();
    assert!(matches!(open().await, Err(Error::StoreVanished)));
    // An explicit `create` is allowed.
    let store = Arc::new(SqliteStore::open(&path).await.unwrap());
    assert!(options.create(store, raw_key()).await.unwrap().was_created());
    assert!(!open().await.unwrap().was_created());
}

/// Two processes create a vault at the same time: the second one leaves nothing in the anchor.
#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_loser_of_a_creation_race_leaves_no_anchor() {
    use crate::SqliteStore;
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let anchors = folder.path().join("anchors");
        std::fs::create_dir(&anchors).unwrap();
        let options = options().rollback_anchor(Arc::new(crate::vault::FileAnchor::new(&anchors)));
        let store = Arc::new(SqliteStore::open(folder.path().join("wa.db")).await.unwrap());
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (options, store) = (options.clone(), store.clone());
                tokio::spawn(async move {
                    options.open_or_create(store, crate::encrypt::tests::passphrase()).await.map(drop)
                })
            })
            .collect();
        for task in tasks {
            match task.await.unwrap() {
                Ok(()) | Err(Error::HeaderConflict) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(!options.open_or_create(store, crate::encrypt::tests::passphrase()).await.unwrap().was_created());
    }
}
