//! Every store and every stack passes every rule of the kit.

#![allow(missing_docs, clippy::unwrap_used, reason = "a failure is a failed test")]

use std::sync::Arc;

use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;
use wastore::testing::{Fault, Spy, Subject, backend_tests};
use wastore::vault::Padding;
use wastore::{CacheLayer, Key, Layer, Metrics, Record, SqliteStore, VaultOptions};
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamSqliteStore;

async fn memory() -> Subject {
    Subject::from(Arc::new(InMemoryBackend::new()))
}

/// Upstream's store: two accounts in one file.
async fn upstream_sqlite() -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("upstream.db").to_str().unwrap().to_owned();
    let open = move |device: i32| {
        let path = path.clone();
        async move {
            let store = UpstreamSqliteStore::new_for_device(&path, device).await.unwrap();
            Arc::new(store) as Arc<dyn Backend>
        }
    };
    Subject::new(open(1).await).second_account(open(2).await).reopen_with(move || open(1)).keeping(folder)
}

/// This crate's store: two accounts in one file.
async fn sqlite() -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let second = Arc::new(store.account(2));
    let reopen = move || {
        let path = path.clone();
        async move { Arc::new(SqliteStore::open(path).await.unwrap()) as Arc<dyn Backend> }
    };
    Subject::from(Arc::new(store)).second_account(second).reopen_with(reopen).keeping(folder)
}

async fn in_memory() -> Subject {
    let store = SqliteStore::in_memory().await.unwrap();
    Subject::from(Arc::new(store.account(1))).second_account(Arc::new(store.account(2)))
}

#[cfg(all(unix, feature = "postgres"))]
#[allow(dead_code, clippy::expect_used, clippy::print_stderr, reason = "other tests use the rest of it")]
#[path = "postgres/pgbouncer.rs"]
mod pgbouncer;
#[cfg(all(unix, feature = "postgres"))]
#[allow(dead_code, clippy::expect_used, clippy::print_stderr, reason = "other tests use the rest of it")]
#[path = "postgres/server.rs"]
mod server;

/// The PostgreSQL store on a server that all tests share. Each store has two accounts of its own.
#[cfg(all(unix, feature = "postgres"))]
mod postgres_server {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};
    use wastore::{PostgresOptions, PostgresStore};

    use super::pgbouncer::PgBouncer;
    use super::*;

    /// Runs the lanes of the stores that tests share.
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

    /// A database, and a store on it that all tests share: a test has two accounts of its own.
    struct Database {
        options: PostgresOptions,
        store: PostgresStore,
    }

    impl Database {
        fn open(options: PostgresOptions) -> Self {
            // These are tests of answers, not of the time they take on a machine with much to do.
            let options = options.deadline(PATIENCE).answer_timeout(PATIENCE);
            let opening = options.clone();
            let store = RUNTIME.spawn(async move { opening.open(1).await.unwrap() });
            // The caller is within a runtime, which forbids waiting.
            let store = std::thread::spawn(|| RUNTIME.block_on(store).unwrap()).join().unwrap();
            Self { options, store }
        }

        async fn subject(&self) -> Subject {
            static ACCOUNTS: AtomicI32 = AtomicI32::new(2);
            let account = ACCOUNTS.fetch_add(2, Ordering::Relaxed);
            let store = self.store.account(account).await.unwrap();
            let second = Arc::new(self.store.account(account + 1).await.unwrap());
            let options = self.options.clone();
            let reopen = move || {
                let options = options.clone();
                async move { Arc::new(options.open(account).await.unwrap()) as Arc<dyn Backend> }
            };
            Subject::from(Arc::new(store)).second_account(second).reopen_with(reopen)
        }
    }

    const PATIENCE: Duration = Duration::from_secs(100);

    pub(super) async fn postgres() -> Subject {
        if !server::available() {
            return memory().await;
        }
        static DATABASE: LazyLock<Database> =
            LazyLock::new(|| Database::open(PostgresOptions::new(&server::shared().url()).unwrap()));
        DATABASE.subject().await
    }

    /// A database whose transactions are `SERIALIZABLE`: the server refuses calls that meet, and the store repeats them.
    pub(super) async fn serializable() -> Subject {
        if !server::available() {
            return memory().await;
        }
        static DATABASE: LazyLock<Database> = LazyLock::new(|| {
            let server = server::shared();
            server.psql("CREATE DATABASE serializable");
            server.psql("ALTER DATABASE serializable SET default_transaction_isolation = serializable");
            let url = server.url().replace("/postgres?", "/serializable?");
            Database::open(PostgresOptions::new(&url).unwrap())
        });
        DATABASE.subject().await
    }

    /// Through PgBouncer, each transaction on a connection of its choice. This version knows no prepared statements.
    pub(super) async fn through_pgbouncer() -> Subject {
        if !server::available() {
            return memory().await;
        }
        static PGBOUNCER: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::start(server::shared(), 20));
        static DATABASE: LazyLock<Database> = LazyLock::new(|| {
            server::shared().psql("CREATE DATABASE pooled");
            let url = PGBOUNCER.url().replace("/postgres?", "/pooled?");
            Database::open(PostgresOptions::new(&url).unwrap().prepared(false))
        });
        DATABASE.subject().await
    }
}

/// Encrypts each account with its own vault. A reopened store opens the vault again.
async fn encrypted(subject: Subject, options: VaultOptions) -> Subject {
    subject
        .wrapped(move |store| {
            let options = options.clone();
            async move {
                let key = Key::from_bytes(&mut [0x5a; 32]);
                options.open_or_create(store.clone(), key).await.unwrap().layer().layer(store)
            }
        })
        .await
}

async fn layered(subject: Subject, layer: impl Layer + Clone + 'static) -> Subject {
    subject
        .wrapped(move |store| {
            let layer = layer.clone();
            async move { layer.layer(store) }
        })
        .await
}

/// A cache of all records that can be cached, so small that it must evict.
fn small_cache() -> CacheLayer {
    let signal = [Record::Session, Record::Identity, Record::SenderKey, Record::SignedPrekey];
    signal.into_iter().fold(CacheLayer::new(512 << 10), CacheLayer::with)
}

/// All layers, outermost last, with metrics in each place: over the store, on both sides of the cache and of
/// encryption, and nearest to the client.
async fn all_layers(subject: Subject) -> Subject {
    let metrics = Metrics::new();
    let subject = layered(subject, metrics.layer("store")).await;
    let subject = layered(subject, Fault::new()).await;
    let subject = layered(subject, small_cache()).await;
    let subject = layered(subject, metrics.layer("below encryption")).await;
    let subject = encrypted(subject, VaultOptions::new().padding(Padding::Padme)).await;
    let subject = layered(subject, metrics.layer("above encryption")).await;
    let subject = layered(subject, small_cache()).await;
    let subject = layered(subject, Spy::new()).await;
    layered(subject, metrics.layer("client")).await
}

/// Tests of a store alone and under each layer. The first list has the optional features of the store, the second
/// list those of the store under encryption.
macro_rules! stacks {
    ($store:ident, [$($plain:ident),* $(,)?], [$($encrypted:ident),* $(,)?]) => {
        mod $store {
            use super::*;

            backend_tests!(alone, $store, optional: [$($plain),*]);
            backend_tests!(spy, || async { layered($store().await, Spy::new()).await }, optional: [$($plain),*]);
            backend_tests!(fault, || async { layered($store().await, Fault::new()).await }, optional: [$($plain),*]);
            backend_tests!(
                metrics,
                || async { layered($store().await, Metrics::new().layer("store")).await },
                optional: [$($plain),*]
            );
            backend_tests!(
                cache,
                || async { layered($store().await, small_cache()).await },
                optional: [$($plain),*]
            );
            backend_tests!(
                cache_over_encrypt,
                || async { layered(encrypted($store().await, VaultOptions::new()).await, small_cache()).await },
                optional: [$($encrypted),*]
            );
            backend_tests!(
                cache_under_encrypt,
                || async { encrypted(layered($store().await, small_cache()).await, VaultOptions::new()).await },
                optional: [$($encrypted),*]
            );
            backend_tests!(
                encrypt,
                || async { encrypted($store().await, VaultOptions::new()).await },
                optional: [$($encrypted),*]
            );
            backend_tests!(full_stack, || async { all_layers($store().await).await }, optional: [$($encrypted),*]);
        }
    };
}

stacks! {
    memory,
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, created_at_is_replaced, large_prekey_ids, latest_sync_key_is_the_last_stored,
        lid_mappings_without_device, literal_users, newest_lid_is_the_last_stored, prekeys_as_asked_for,
        repeatable_create, wide_numbers,
    ],
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, created_at_is_replaced, large_prekey_ids, latest_sync_key_is_the_last_stored,
        lid_mappings_without_device, literal_users, newest_lid_is_the_last_stored, prekeys_as_asked_for,
        repeatable_create, wide_numbers,
    ]
}

stacks! {
    upstream_sqlite,
    [
        any_mac_length, counts_repeated_secrets, created_at_is_kept, durable, latest_sync_key_is_the_highest, moved_lid_falls_back, newest_lid_by_its_time,
        reports_resources, unbounded_sent_messages,
    ],
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, created_at_is_kept, durable, latest_sync_key_is_the_highest, literal_users,
        moved_lid_falls_back, newest_lid_by_its_time, repeatable_create, reports_resources, unbounded_sent_messages,
        wide_numbers,
    ]
}

stacks! {
    sqlite,
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
        latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
        newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, reports_resources, unbounded_sent_messages,
        wide_numbers,
    ],
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
        latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
        newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, reports_resources, unbounded_sent_messages,
        wide_numbers,
    ]
}

#[cfg(all(unix, feature = "postgres"))]
use postgres_server::{postgres, serializable, through_pgbouncer};

#[cfg(all(unix, feature = "postgres"))]
stacks! {
    postgres,
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
        latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
        newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, unbounded_sent_messages,
        wide_numbers,
    ],
    [
        any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
        latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
        newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, unbounded_sent_messages,
        wide_numbers,
    ]
}

#[cfg(all(unix, feature = "postgres"))]
backend_tests!(postgres_serializable, serializable, optional: [
    any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
    latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
    newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, unbounded_sent_messages, wide_numbers,
]);

#[cfg(all(unix, feature = "postgres"))]
backend_tests!(postgres_through_pgbouncer, through_pgbouncer, optional: [
    any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, durable, large_prekey_ids,
    latest_sync_key_is_the_highest, lid_mappings_without_device, literal_users, moved_lid_falls_back,
    newest_lid_by_its_time, prekeys_as_asked_for, repeatable_create, unbounded_sent_messages, wide_numbers,
]);

backend_tests!(sqlite_in_memory, in_memory, optional: [
    any_mac_length, any_sync_key_length, counts_repeated_secrets, atomic_batches, created_at_is_replaced, large_prekey_ids, latest_sync_key_is_the_highest,
    lid_mappings_without_device, literal_users, moved_lid_falls_back, newest_lid_by_its_time, prekeys_as_asked_for,
    repeatable_create, reports_resources, unbounded_sent_messages, wide_numbers,
]);

/// A layer works over any backend, even over another layer of its kind.
mod encrypted_twice {
    use super::*;

    backend_tests!(over_memory, || async {
        let subject = encrypted(memory().await, VaultOptions::new().padding(Padding::Multiple(256))).await;
        encrypted(subject, VaultOptions::new()).await
    });
}
