//! Every method of every store and layer, dropped at every point where it waits. Afterwards
//!
//! * the store holds all of the call's writes or none of them, as the model does;
//! * a stack answers like a new one over the same store, so no layer keeps values that the store does not hold;
//! * the same call succeeds, so nothing is locked or in doubt.
//!
//! This includes batches, over all three stores. Each layer hands a batch to the store in one call. Upstream's
//! in-memory store never waits within one, and upstream's SQLite store completes a batch that it has begun.

#![allow(clippy::print_stdout, reason = "how many points there are is a result")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wacore::store::InMemoryBackend;
use wacore::store::error::Result;
use wacore::store::traits::Backend;
use whatsapp_rust_sqlite_storage::SqliteStore as UpstreamSqliteStore;

use crate::testing::arguments::{self, Arguments, call};
use crate::testing::fault::polled;
use crate::testing::gate::Pauses;
use crate::testing::sequence::agree;
use crate::testing::{Spy, Value};
use crate::vault::Argon2Cost;
use crate::{Access, CacheLayer, Error, Key, Layer, Method, Metrics, Passphrase, Record, Secret, VaultOptions};

/// A test for each stack over a store. Where a store is slow, the single layers are left out: they are tested over the
/// fast ones, and all together over every store.
macro_rules! dropped_anywhere {
    ($(#[$attribute:meta])* $module:ident, $over:literal, $store:expr, [$($test:ident: $layers:ident),+ $(,)?]) => {
        $(#[$attribute])*
        mod $module {
            use super::*;

            $(#[test]
            fn $test() {
                dropped_anywhere($over, $store, Layers::$layers);
            })+
        }
    };
}

dropped_anywhere!(
    over_memory,
    "memory",
    async || Store::Memory,
    [bare: Bare, paused: Pauses, encrypted: Encrypt, cached: Cache, metered: Metrics, all_layers: Everything]
);

dropped_anywhere!(
    #[cfg(feature = "sqlite")]
    over_the_own_store,
    "the own store",
    async || {
        let folder = folder();
        let store = crate::SqliteStore::open(folder.path().join("wa.db")).await.unwrap();
        Store::Own(store, folder)
    },
    [bare: Bare, paused: Pauses, encrypted: Encrypt, cached: Cache, metered: Metrics, all_layers: Everything]
);

dropped_anywhere!(
    #[cfg(all(unix, feature = "postgres"))]
    over_the_postgres_store,
    "the PostgreSQL store",
    async || match crate::postgres::tests::scratch() {
        // Each stack has its own schema.
        Some(scratch) => Store::Postgres(scratch.store().await),
        // The caller asked for no tests with a server.
        None => Store::Memory,
    },
    [bare: Bare, paused: Pauses, all_layers: Everything]
);

dropped_anywhere!(
    over_upstreams_store,
    "upstream's store",
    async || Store::Upstream(folder()),
    [bare: Bare, paused: Pauses, all_layers: Everything]
);

/// The operations that change a vault; `encrypt/tests/interrupted.rs` drops the other ones. At each point one of the
/// secrets opens the vault and every record in it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Opening,
    Passphrase,
    NewRecoveryKey,
    RestoredHeader,
}

#[tokio::test]
async fn vaults_opened_and_changed_and_dropped_anywhere() {
    for change in [Change::Opening, Change::Passphrase, Change::NewRecoveryKey, Change::RestoredHeader] {
        let mut points = 0;
        for polls in 0.. {
            let dropped = tokio::time::timeout(PATIENCE, drop_change(change, polls)).await;
            if dropped.unwrap_or_else(|_| panic!("{change:?} hangs after {polls} polls")) {
                break;
            }
            points += usize::from(polls > 0);
        }
        println!("{change:?}: {points} points");
        assert!(points >= 4, "{change:?}: {points} points");
    }
}

/// Drops the change at one point. Returns whether it ended before.
async fn drop_change(change: Change, polls: usize) -> bool {
    let at = format!("{change:?} after {polls} polls");
    let replaces = change == Change::Passphrase;
    let options = VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM);
    // Only a passphrase can be changed, and its key takes a while to derive.
    let old = || -> Secret {
        if replaces { Passphrase::new("the old one").unwrap().into() } else { Key::from_bytes(&mut [0x5a; 32]).into() }
    };
    let new = || Passphrase::new("the new one").unwrap();
    let inner: Arc<dyn Backend> = Arc::new(InMemoryBackend::new());
    let saved = {
        let vault = options.create(inner.clone(), old()).await.unwrap();
        let backend = vault.layer().layer(inner.clone());
        backend.create().await.unwrap();
        fill(&*backend, &rows(BYSTANDERS, OLD), None, &at).await;
        let saved = vault.save_header();
        if change == Change::RestoredHeader {
            // Changes the header, so that the test restores a different one.
            vault.add_slot("later", Key::from_bytes(&mut [7; 32])).await.unwrap();
        }
        saved
    };

    let store = Pauses.layer(inner.clone());
    let vault = options.open(store.clone(), old()).await.unwrap();
    let before = read(&*vault.layer().layer(store.clone()), &rows(BYSTANDERS, OLD), None, &at).await;
    let run = async || match change {
        Change::Opening => drop(options.open(store.clone(), old()).await.unwrap()),
        Change::Passphrase => vault.change_passphrase(new()).await.unwrap(),
        Change::NewRecoveryKey => drop(vault.add_recovery_key().await.unwrap()),
        Change::RestoredHeader => drop(options.restore_header(store.clone(), &saved, old()).await.unwrap()),
    };
    let ended = polled(polls, run()).await.is_some();
    for again in [false, true] {
        if again {
            run().await;
        }
        let changed = ended || again;
        let opened = match options.open(inner.clone(), old()).await {
            Ok(opened) if !(replaces && changed) => opened,
            Err(Error::WrongSecret) if replaces => options.open(inner.clone(), new()).await.unwrap(),
            opened => panic!("{at}, again: {again}: {opened:?}"),
        };
        // The vault that was open before, and the one opened since.
        for (vault, store) in [(&vault, &store), (&opened, &inner)] {
            let backend = vault.layer().layer(store.clone());
            assert_eq!(before, read(&*backend, &rows(BYSTANDERS, OLD), None, &at).await, "{at}, again: {again}");
        }
    }
    ended
}

fn dropped_anywhere(over: &'static str, store: impl AsyncFn() -> Store, layers: Layers) {
    // Upstream's store completes a dropped call on a blocking thread. With only one such thread, later calls run
    // after it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(over, store().await, layers).await;
        let mut points = 0;
        for method in Method::ALL.iter().copied() {
            let found = tokio::time::timeout(PATIENCE, run.drop_everywhere(method)).await;
            let found = found.unwrap_or_else(|_| panic!("{}: {} hangs", run.name(), method.name()));
            // At least before the call to the store and after its answer.
            assert!(layers == Layers::Bare || found >= 2, "{}: {} has {found} points", run.name(), method.name());
            points += found;
        }
        println!("{}: {points} points", run.name());
    });
}

/// The time for all points of one method.
const PATIENCE: Duration = Duration::from_secs(60);

/// The store under the layers.
enum Store {
    Memory,
    #[cfg(feature = "sqlite")]
    Own(crate::SqliteStore, #[allow(dead_code, reason = "it is kept")] TempDir),
    #[cfg(all(unix, feature = "postgres"))]
    Postgres(crate::PostgresStore),
    Upstream(TempDir),
}

impl Store {
    /// An account without records.
    async fn account(&self, number: i32) -> Arc<dyn Backend> {
        match self {
            Store::Memory => Arc::new(InMemoryBackend::new()),
            #[cfg(feature = "sqlite")]
            Store::Own(store, _) => Arc::new(store.account(number)),
            #[cfg(all(unix, feature = "postgres"))]
            Store::Postgres(store) => Arc::new(store.account(number).await.unwrap()),
            Store::Upstream(folder) => {
                let path = folder.path().join("upstream.db");
                Arc::new(UpstreamSqliteStore::new_for_device(path.to_str().unwrap(), number).await.unwrap())
            }
        }
    }
}

/// In memory if the system has such a folder; the speed of the disk does not matter here.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layers {
    Bare,
    Pauses,
    Encrypt,
    Cache,
    Metrics,
    Everything,
}

impl Layers {
    /// New layers over a store. The vault is created, or opened if it exists.
    async fn over(self, store: Arc<dyn Backend>) -> Arc<dyn Backend> {
        let paused = Pauses.layer(store.clone());
        match self {
            Layers::Bare => store,
            Layers::Pauses => paused,
            Layers::Encrypt => encrypted(paused).await,
            Layers::Cache => cache().layer(paused),
            Layers::Metrics => Metrics::new().layer("store").layer(paused),
            Layers::Everything => {
                let metrics = Metrics::new();
                let store = Pauses.layer(metrics.layer("store").layer(paused));
                let store = Pauses.layer(cache().layer(store));
                let store = Pauses.layer(encrypted(store).await);
                let store = Pauses.layer(metrics.layer("above encryption").layer(store));
                let store = Pauses.layer(cache().layer(store));
                metrics.layer("client").layer(Spy::new().layer(store))
            }
        }
    }
}

async fn encrypted(store: Arc<dyn Backend>) -> Arc<dyn Backend> {
    let key = Key::from_bytes(&mut [0x5a; 32]);
    VaultOptions::new().open_or_create(store.clone(), key).await.unwrap().layer().layer(store)
}

/// A cache of all records that can be cached.
fn cache() -> CacheLayer {
    let signal = [Record::Session, Record::Identity, Record::SenderKey, Record::SignedPrekey];
    signal.into_iter().fold(CacheLayer::new(512 << 10), CacheLayer::with)
}

/// One stack, whose calls are dropped one after another, and the models to compare it with. Each point has its own
/// rows.
struct Run {
    over: &'static str,
    layers: Layers,
    inner: Arc<dyn Backend>,
    outer: Arc<dyn Backend>,
    /// The model in which a dropped call did nothing, and the model in which it did all.
    without: InMemoryBackend,
    with: InMemoryBackend,
    /// The first key of the next rows, and the next account without a device.
    next_key: u32,
    next_account: i32,
    /// The last field, so that its folder outlives the files that are open in it.
    store: Store,
}

/// The key of rows that no call names.
const BYSTANDERS: u32 = 1;

impl Run {
    async fn new(over: &'static str, store: Store, layers: Layers) -> Self {
        let inner = store.account(1).await;
        let outer = layers.over(inner.clone()).await;
        let (without, with) = (InMemoryBackend::new(), InMemoryBackend::new());
        let run = Self { over, store, layers, inner, outer, without, with, next_key: 4, next_account: 2 };
        for store in run.stores() {
            store.create().await.unwrap();
            fill(store, &rows(BYSTANDERS, OLD)[..2], None, &run.name()).await;
        }
        run
    }

    fn name(&self) -> String {
        format!("{:?} over {}", self.layers, self.over)
    }

    fn stores(&self) -> [&dyn Backend; 3] {
        [&*self.outer, &self.without, &self.with]
    }

    /// Makes new layers over the same store: nothing is cached, and the vault is opened again.
    async fn rebuild(&mut self) {
        self.outer = self.inner.clone();
        self.outer = self.layers.over(self.inner.clone()).await;
    }

    /// Drops calls of a method after 0, 1, 2, … polls until one ends first. Returns the number of points at which a
    /// call was dropped while it waited.
    async fn drop_everywhere(&mut self, method: Method) -> usize {
        let mut points = 0;
        for polls in 0.. {
            let at = format!("{}: {} after {polls} polls", self.name(), method.name());
            let ended = match method {
                Method::Create => self.drop_create(polls, &at).await,
                _ => self.drop_at(method, polls, &at).await,
            };
            if ended {
                break;
            }
            points += usize::from(polls > 0);
            assert!(polls < 1000, "{at}: the call does not end");
        }
        // Everything that was not compared at each point, to save time.
        let at = format!("{}: everything after {}", self.name(), method.name());
        let bystanders = rows(BYSTANDERS, OLD);
        let expected = read(&self.with, &bystanders, None, &at).await;
        assert_agree(&[expected], &read(&*self.outer, &bystanders, None, &at).await, &at);
        points
    }

    /// Drops a call of any method but `create` at one point. Returns whether it ended before.
    async fn drop_at(&mut self, method: Method, polls: usize, at: &str) -> bool {
        let family = std::env::var_os("WASTORE_LONG").is_none().then(|| family_of(method));
        let (old, new) = (rows(self.next_key, OLD), rows(self.next_key, NEW));
        self.next_key += 3;
        // The third row does not exist yet.
        for store in self.stores() {
            fill(store, &old[..2], family, at).await;
        }
        // Methods that only read find nothing cached, so that they ask the store. All others find everything cached.
        let reads = matches!(method.access(), Access::Read | Access::Scan);
        if reads {
            self.rebuild().await;
        }
        let mut before = read(&self.without, &new, family, at).await;
        if !reads {
            assert_agree(std::slice::from_ref(&before), &read(&*self.outer, &new, family, at).await, at);
        }
        let whole = call(&self.with, method, &new[0], &new).await;
        let mut after = read(&self.with, &new, family, at).await;
        before.extend(take(&self.without, &new, family, at).await);
        after.extend(take(&self.with, &new, family, at).await);

        let outcome = polled(polls, call(&*self.outer, method, &new[0], &new)).await;
        self.settle().await;
        let mut found = read(&*self.outer, &new, family, at).await;
        // A taken message is gone, so the test takes it only once: through the old layers or through the new ones.
        let early = polls.is_multiple_of(2);
        let taken = if early { take(&*self.outer, &new, family, at).await } else { vec![] };
        self.rebuild().await;
        let again = read(&*self.outer, &new, family, at).await;
        for ((asked, old), (_, new)) in found.iter().zip(&again) {
            assert_eq!(old, new, "{at}: {} answers differently through new layers", asked.name());
        }
        found.extend(if early { taken } else { take(&*self.outer, &new, family, at).await });
        let ended = outcome.is_some();
        if let Some(answer) = outcome {
            assert_same_answer(method, &[whole], &answer, at);
        }
        let states = if ended { vec![after] } else { vec![before, after] };
        assert_agree(&states, &found, at);

        // The same call again, this time to its end. A store may refuse two snapshots of one name within a second.
        let again = new.clone().map(|row| Arguments { snapshot_name: format!("again {}", row.user), ..row });
        let answers =
            [call(&self.without, method, &again[0], &again).await, call(&self.with, method, &again[0], &again).await];
        let at = &format!("{at}, then once more");
        assert_same_answer(method, &answers, &call(&*self.outer, method, &again[0], &again).await, at);
        let mut expected = read(&self.with, &new, family, at).await;
        expected.extend(take(&self.with, &new, family, at).await);
        take(&self.without, &new, family, at).await;
        let mut found = read(&*self.outer, &new, family, at).await;
        found.extend(take(&*self.outer, &new, family, at).await);
        assert_agree(&[expected], &found, at);
        ended
    }

    /// Drops a call of `create` at one point. Its device has other keys each time. Returns whether it ended before.
    async fn drop_create(&mut self, polls: usize, at: &str) -> bool {
        let inner = self.store.account(self.next_account).await;
        self.next_account += 1;
        let outer = self.layers.over(inner.clone()).await;
        let ended = polled(polls, outer.create()).await.map(Result::unwrap).is_some();
        settle(&*inner).await;
        let found = load(&*outer, at).await;
        drop(outer);
        let outer = self.layers.over(inner).await;
        assert_eq!(found, load(&*outer, at).await, "{at}: new layers show another device");
        if found == Value::Nothing {
            assert!(!ended, "{at}: there is no device");
            outer.create().await.unwrap_or_else(|error| panic!("{at}, then once more: {error:?}"));
            assert_ne!(load(&*outer, at).await, Value::Nothing, "{at}, then once more");
        }
        ended
    }

    async fn settle(&self) {
        settle(&*self.inner).await;
    }
}

/// The device, if it exists.
async fn load(store: &dyn Backend, at: &str) -> Value {
    let [row, ..] = rows(BYSTANDERS, NEW);
    let exists = store.exists().await.unwrap_or_else(|error| panic!("{at}: {error:?}"));
    let device = call(store, Method::Load, &row, &[]).await.unwrap_or_else(|error| panic!("{at}: {error:?}"));
    assert_eq!(exists, device != Value::Nothing, "{at}: a device exists exactly if it can be loaded");
    device
}

/// Returns when a store has completed all dropped calls. This crate's store and upstream's carry out a call that they
/// have begun on another thread, before any later write.
async fn settle(inner: &dyn Backend) {
    inner.save_base_key("settled", "settled", &[1; 32]).await.unwrap();
    // The PostgreSQL store sweeps over another connection.
    inner.delete_expired_sent_messages(i64::MIN).await.unwrap();
}

/// The numbers of rows that exist, and of rows that calls write.
const OLD: u8 = 4;
const NEW: u8 = 5;

fn rows(first_key: u32, number: u8) -> [Arguments; 3] {
    [0, 1, 2].map(|at| {
        let id = first_key + at;
        let user = format!("1{id:06}");
        let text = format!("{user}:1@s.whatsapp.net");
        let row = Arguments::numbered(arguments::Key { id, text: &text }, number);
        Arguments { snapshot_name: format!("first {user}"), user, ..row }
    })
}

/// The records that a method touches or reads together.
fn family_of(method: Method) -> Record {
    match method.record() {
        Record::Identity | Record::SignalState => Record::Session,
        Record::Store | Record::SnapshotExtra => Record::Device,
        record => record,
    }
}

/// Returns whether a method belongs to a family. Every method belongs to `None`.
fn concerns(method: Method, family: Option<Record>) -> bool {
    family.is_none_or(|family| family_of(method) == family)
}

/// Calls every method that writes.
async fn fill(store: &dyn Backend, rows: &[Arguments], family: Option<Record>, at: &str) {
    let writes = |method: &Method| method.access() == Access::Write && *method != Method::Create;
    each(store, rows, family, at, writes).await;
}

type Reading = Vec<(Method, Value)>;

/// The answers of all methods that change nothing.
async fn read(store: &dyn Backend, rows: &[Arguments], family: Option<Record>, at: &str) -> Reading {
    each(store, rows, family, at, |method| matches!(method.access(), Access::Read | Access::Scan)).await
}

/// Takes the sent messages, which removes them.
async fn take(store: &dyn Backend, rows: &[Arguments], family: Option<Record>, at: &str) -> Reading {
    each(store, rows, family, at, |method| method.access() == Access::Take).await
}

async fn each(
    store: &dyn Backend,
    rows: &[Arguments],
    family: Option<Record>,
    at: &str,
    wanted: impl Fn(&Method) -> bool,
) -> Reading {
    let mut results = vec![];
    for method in Method::ALL.iter().copied().filter(|method| wanted(method) && concerns(*method, family)) {
        // A listing is the same for every row.
        let rows_asked = if method.access() == Access::Scan { &rows[..1] } else { rows };
        for row in rows_asked {
            match call(store, method, row, rows).await {
                Ok(value) => results.push((method, value.sorted())),
                Err(error) => panic!("{at}: {} failed: {error:?}", method.name()),
            }
        }
    }
    results
}

/// Asserts that a reading is one of these states as a whole.
fn assert_agree(states: &[Reading], found: &[(Method, Value)], at: &str) {
    let differences = |state: &Reading| -> Vec<String> {
        assert_eq!(state.len(), found.len(), "{at}");
        let pairs = state.iter().zip(found).filter(|((method, expected), (_, found))| !agree(*method, expected, found));
        pairs.map(|((method, expected), (_, found))| format!("{}: {found}, not {expected}", method.name())).collect()
    };
    let differences: Vec<_> = states.iter().map(differences).collect();
    let same = differences.iter().any(Vec::is_empty);
    assert!(
        same,
        "{at}: the store is in a state that is not allowed; it differs from each allowed one by\n{differences:#?}"
    );
}

/// Asserts that a call succeeded, and that its answer is one of these.
fn assert_same_answer(method: Method, expected: &[Result<Value>], found: &Result<Value>, at: &str) {
    let found = found.as_ref().unwrap_or_else(|error| panic!("{at}: the call failed: {error:?}")).clone().sorted();
    let same = |expected: &Result<Value>| agree(method, &expected.as_ref().unwrap().clone().sorted(), &found);
    assert!(expected.iter().any(same), "{at}: it returned {found}, not one of {expected:?}");
}
