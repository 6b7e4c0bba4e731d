//! No public type prints a name of an account or contact, or a secret, with `Debug` or `Display`. The test prints
//! everything that the store of a full bot produces, and searches for each value in every notation of its bytes.

#![cfg(feature = "import")]

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use syn::visit::Visit;
use syn::{Ident, Item, UseTree, Visibility};
use wacore::store::InMemoryBackend;
use wacore::store::cache::CacheStore;
use wacore::store::error::StoreError;

use crate::import::*;
use crate::maintenance::*;
use crate::testing::memory_cache::MemoryCache;
use crate::testing::{Fault, Operation, Rule, Spy, Subject, Tamper, canaries};
use crate::vault::*;
use crate::*;

/// Types that contain no such value: names, numbers and traits. Two of them, `Call` and `Value`, print their content.
/// They are for tests only, and their docs say so.
const WITHOUT_CONTENT: &[&str] = &[
    "Access",
    "Argon2Cost",
    "Call",
    "Durability",
    "Effect",
    "ExportedMetric",
    "FolderBackup",
    "ForeignFile",
    "ForeignSchema",
    "HeaderCopy",
    "HeaderStore",
    "IntoBackend",
    "KdfLimits",
    "KeyProvider",
    "Layer",
    "LayerKind",
    "Method",
    "MetricKind",
    "MetricsHttpClient",
    "MetricsTransportFactory",
    "NotRead",
    "OnDamage",
    "OpenMode",
    "Outcome",
    "OwnStore",
    "Padding",
    "Phase",
    #[cfg(not(feature = "postgres"))]
    "PostgresOptions",
    "PostgresProblem",
    #[cfg(not(all(unix, feature = "postgres")))]
    "PostgresStats",
    #[cfg(not(all(unix, feature = "postgres")))]
    "PostgresStore",
    "Record",
    "Result",
    "RollbackAnchor",
    "Sealed",
    "SqliteProblem",
    "Value",
    "When",
];

const PASSPHRASE: &str = "canary horse battery staple";

#[derive(Default)]
struct Printed(Vec<(&'static str, String)>);

impl Printed {
    fn debug(&mut self, name: &'static str, value: &impl Debug) {
        self.0.push((name, format!("{value:?} {value:#?}")));
    }

    fn both(&mut self, name: &'static str, value: &(impl Debug + Display)) {
        self.0.push((name, format!("{value:?} {value:#?} {value}")));
    }
}

#[tokio::test]
async fn no_public_type_prints_a_secret_or_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut printed = Printed::default();
    everything(folder.path(), &mut printed).await;

    let shown: BTreeSet<_> = printed.0.iter().map(|(name, _)| (*name).to_owned()).collect();
    let listed: BTreeSet<_> = WITHOUT_CONTENT.iter().map(|name| (*name).to_owned()).chain(shown).collect();
    let missing: Vec<_> = exported().difference(&listed).cloned().collect();
    assert!(missing.is_empty(), "no test prints these types: {missing:?}");

    let mut canaries = canaries::all();
    canaries.push(("passphrase".to_owned(), PASSPHRASE.into()));
    canaries.push(("key".to_owned(), vec![0x5a; 32]));
    for (name, text) in &printed.0 {
        let text = text.replace(&*folder.path().to_string_lossy(), "").to_lowercase();
        for (what, canary) in &canaries {
            for written in written(canary) {
                assert!(!text.contains(&written.to_lowercase()), "{name} prints {what}: {text}");
            }
        }
    }
}

/// The notations in which `format!` and encodings print bytes.
fn written(bytes: &[u8]) -> Vec<String> {
    let decimal: Vec<_> = bytes.iter().map(|byte| byte.to_string()).collect();
    vec![
        String::from_utf8_lossy(bytes).into_owned(),
        format!("{:?}", bytes::Bytes::copy_from_slice(bytes)),
        decimal.join(", "),
        decimal.join(",\n    "),
        hex::encode(bytes),
        data_encoding::BASE64_NOPAD.encode(bytes),
        data_encoding::BASE64URL_NOPAD.encode(bytes),
    ]
}

/// The public types, found in the sources: every type that a file declares or exports. The lint `unreachable_pub`
/// ensures that `pub` means public.
fn exported() -> BTreeSet<String> {
    let mut exported = Exported::default();
    exported.read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(exported.0.len() > 70, "{:?}", exported.0);
    exported.0
}

#[derive(Default)]
struct Exported(BTreeSet<String>);

impl Exported {
    fn read_folder(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("src/bin") {
                self.read_folder(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.visit_file(&syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap());
            }
        }
    }

    fn declare(&mut self, visibility: &Visibility, name: &Ident) {
        let name = name.to_string();
        // Leaves out functions, modules and constants.
        let is_type = name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
        if matches!(visibility, Visibility::Public(_)) && is_type {
            self.0.insert(name);
        }
    }
}

impl<'ast> Visit<'ast> for Exported {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Enum(item) => self.declare(&item.vis, &item.ident),
            Item::Struct(item) => self.declare(&item.vis, &item.ident),
            Item::Trait(item) => self.declare(&item.vis, &item.ident),
            Item::Type(item) => self.declare(&item.vis, &item.ident),
            Item::Use(item) => names_of(&item.tree).into_iter().for_each(|name| self.declare(&item.vis, name)),
            Item::Mod(_) => syn::visit::visit_item(self, item),
            _ => {}
        }
    }
}

/// The names that a `use` brings into scope.
fn names_of(tree: &UseTree) -> Vec<&Ident> {
    match tree {
        UseTree::Path(path) => names_of(&path.tree),
        UseTree::Name(name) => vec![&name.ident],
        UseTree::Rename(rename) => vec![&rename.rename],
        UseTree::Group(group) => group.items.iter().flat_map(names_of).collect(),
        UseTree::Glob(_) => vec![],
    }
}

struct Provider;

#[async_trait]
impl KeyProvider for Provider {
    async fn wrap(&self, _: &[u8; 16], _: &Key) -> Result<Vec<u8>, ProviderError> {
        Ok(vec![])
    }

    async fn unwrap(&self, _: &[u8; 16], _: &[u8]) -> Result<Option<Key>, ProviderError> {
        Ok(Some(key()))
    }
}

fn key() -> Key {
    Key::from_bytes(&mut [0x5a; 32])
}

/// The key providers of this crate.
fn providers(printed: &mut Printed) {
    printed.debug("ProviderError", &ProviderError::Failed("offline".into()));
    #[cfg(feature = "keyring")]
    {
        printed.debug("KeyringProvider", &KeyringProvider::new());
        printed.both("KeyringProblem", &KeyringProblem::Damaged);
    }
    #[cfg(feature = "transit")]
    {
        let http = Arc::new(whatsapp_rust::http::UreqHttpClient::new());
        let url = "https://15550001111.example.org";
        let provider = TransitProvider::new(http, url, &canaries::GROUP.replace('@', "-"), PASSPHRASE).unwrap();
        printed.debug("TransitProvider", &provider);
        printed.both("TransitProblem", &TransitProblem::Denied);
    }
    #[cfg(not(feature = "keyring"))]
    printed.0.extend([("KeyringProvider", String::new()), ("KeyringProblem", String::new())]);
    #[cfg(not(feature = "transit"))]
    printed.0.extend([("TransitProvider", String::new()), ("TransitProblem", String::new())]);
}

/// The types of a store on a server. Without a server, the caller asked for no such tests.
#[cfg(all(unix, feature = "postgres"))]
async fn on_a_server(printed: &mut Printed) {
    let Some(scratch) = crate::postgres::tests::scratch() else {
        return printed.0.extend([("PostgresStats", String::new()), ("PostgresStore", String::new())]);
    };
    let store = scratch.store().await;
    canaries::fill(&store).await;
    printed.debug("PostgresStore", &store);
    printed.both("PostgresStats", &store.stats());
}

/// A value of every type, from a store that is filled, used, damaged and repaired.
async fn everything(folder: &Path, printed: &mut Printed) {
    let passphrase = || Passphrase::new(PASSPHRASE).unwrap();
    let recovery = RecoveryKey::parse(&RecoveryKey::generate().unwrap().expose()).unwrap();
    printed.debug("Passphrase", &passphrase());
    printed.debug("Key", &key());
    printed.debug("RecoveryKey", &recovery);
    for secret in [passphrase().into(), key().into(), recovery.into(), Secret::Provider(Arc::new(Provider))] {
        printed.debug("Secret", &secret);
    }
    providers(printed);

    #[cfg(feature = "postgres")]
    {
        let url = format!("postgres://bot:%5A{}@{}/wa", "%5a".repeat(31), PASSPHRASE.replace(' ', "-"));
        printed.debug("PostgresOptions", &PostgresOptions::new(&url).unwrap().password_file(PASSPHRASE));
    }
    #[cfg(all(unix, feature = "postgres"))]
    on_a_server(printed).await;
    let config = SqliteOptions::new();
    printed.debug("SqliteOptions", &config);
    let sqlite = config.open(folder.join("wa.db")).await.unwrap();
    printed.debug("SqliteStore", &sqlite);
    let anchor = FileAnchor::new(folder);
    printed.debug("FileAnchor", &anchor);
    let anchor = Arc::new(anchor);
    let options = VaultOptions::new().rollback_anchor(anchor.clone()).kdf_cost(Argon2Cost::MINIMUM);
    printed.debug("VaultOptions", &options);
    let vault = options.create(Arc::new(sqlite.clone()), key()).await.unwrap();
    vault.add_slot("people", passphrase()).await.unwrap();
    printed.debug("Vault", &vault);
    printed.debug("SlotInfo", &vault.slots());
    vault.slots().iter().for_each(|slot| printed.both("SlotKind", &slot.kind));
    printed.debug("Revocation", &Revocation::prepare(&vault, passphrase()).await.unwrap());
    printed.debug("EncryptLayer", &vault.layer());

    let metrics = Metrics::new();
    let external = vault.cache_store(Arc::new(MemoryCache::default()));
    let counted = metrics.cache_store("redis", external.clone());
    counted.set("group", canaries::GROUP, canaries::SESSION, None).await.unwrap();
    counted.get("group", canaries::GROUP).await.unwrap().unwrap();
    printed.debug("EncryptedCacheStore", &external);
    printed.debug("EncryptedCacheStats", &external.stats());
    printed.debug("MetricsCacheStore", &counted);
    let cache = Record::ALL.iter().fold(CacheLayer::new(1 << 20), |cache, record| {
        if CacheLayer::new(0).stats().record(*record).is_some() { cache.with(*record) } else { cache }
    });
    metrics.track_cache("cache", &cache);
    let (spy, fault, tamper) = (Spy::new(), Fault::new(), Tamper::new());
    let stack = Stack::new(Arc::new(sqlite.clone()))
        .layer(metrics.layer("sqlite"))
        .layer(vault.layer())
        .layer(metrics.layer("vault"))
        .layer(cache.clone())
        .layer(spy.clone())
        .layer(fault.clone())
        .layer(tamper.clone())
        .layer(metrics.layer("client"));
    printed.debug("MetricsLayer", &metrics.layer("client"));
    printed.debug("Stack", &stack);
    printed.debug("Closer", &stack.closer());
    let store = stack.into_backend();
    canaries::fill(&*store).await;
    for method in Method::ALL.iter().filter(|method| !method.access().changes_rows()) {
        canaries::call(&*store, *method).await.unwrap();
    }
    printed.debug("CacheLayer", &cache);
    printed.both("CacheStats", &cache.stats());
    printed.debug("RecordStats", &cache.stats().records());
    printed.debug("Metrics", &metrics);
    let snapshot = metrics.snapshot();
    printed.both("MetricsSnapshot", &snapshot);
    for layer in snapshot.layers() {
        printed.both("LayerSnapshot", layer);
        layer.ops().iter().for_each(|op| {
            printed.debug("OpSnapshot", op);
            printed.debug("Histogram", op.times());
        });
    }
    let cost = snapshot.between("client", "sqlite").unwrap();
    printed.both("LayerCost", &cost);
    cost.ops().iter().for_each(|op| printed.both("OpCost", op));
    printed.debug("Spy", &spy);
    printed.debug("Fault", &fault);
    printed.debug("Tamper", &tamper);
    printed.debug("Operation", &Operation::sample(Method::PutSession));
    printed.debug("Rule", &Rule::ALL);
    printed.debug("Subject", &Subject::new(store.clone()));

    printed.debug("HeaderInfo", &HeaderInfo::read(&sqlite).await.unwrap());
    let inspection = inspect(&sqlite).await.unwrap();
    printed.both("Inspection", &inspection);
    printed.debug("TableSize", &inspection.tables);
    printed.debug("InspectedAccount", &inspection.accounts);
    let header = vault.save_header();
    let bytes: [u8; Anchor::BYTES] = [&header[32..40], &header[header.len() - 48..][..16]].concat().try_into().unwrap();
    printed.debug("Anchor", &Anchor::from_bytes(&bytes));

    {
        let (progress, told) = teller();
        let export = Export::new().on_progress(move |now| progress(format!("{now:?}")));
        printed.debug("Export", &export);
        printed.debug("AccountToExport", &AccountToExport::new(&sqlite, &vault));
        printed.debug("OwnRows", &sqlite.own_rows());
        printed.both("ExportReport", &export.run(&sqlite, &vault, &folder.join("plain.db")).await.unwrap());
        printed.0.extend(told().into_iter().map(|text| ("Progress", text)));
    }
    {
        let plain = rusqlite::Connection::open(folder.join("plain.db")).unwrap();
        plain.pragma_update(None, "journal_mode", "WAL").unwrap();
        drop(plain);
        let (progress, told) = teller();
        let import = Import::new().on_progress(move |now| progress(format!("{now:?}"))).remove_source();
        printed.debug("Import", &import);
        let report = import.run(&folder.join("plain.db"), &folder.join("again.db"), key()).await.unwrap();
        printed.both("ImportReport", &report);
        printed.debug("RemovedSource", &report.removed_source());
        printed.0.extend(told().into_iter().map(|text| ("Progress", text)));
    }
    // Rows in plaintext, which the report must mention without their content.
    rusqlite::Connection::open(folder.join("wa.db"))
        .unwrap()
        .execute_batch(&format!("UPDATE sessions SET record = CAST('{}' AS BLOB)", canaries::PHONE))
        .unwrap();
    {
        let (progress, told) = teller();
        let verify = Verify::new().on_progress(move |now| progress(format!("{now:?}")));
        printed.debug("Verify", &verify);
        let report = verify.run(&sqlite, &vault).await.unwrap();
        assert!(!report.is_sound());
        printed.both("VerifyReport", &report);
        printed.debug("DamagedRow", &report.damaged_rows());
        printed.0.extend(told().into_iter().map(|text| ("Progress", text)));
    }
    let damaged = store.get_session(canaries::SESSION_ADDRESS).await;
    printed.0.extend(damaged.err().map(|error| ("Error", format!("{error:?} {error}"))));
    for error in errors(&options, &sqlite).await {
        let source = std::error::Error::source(&error).map(|source| format!("{source:?} {source}"));
        let own = format!("{error:?} {error} {source:?}");
        printed.0.push(("Error", format!("{own} {:?}", StoreError::from(error))));
    }
    {
        let (progress, told) = teller();
        let repair = Repair::new().on_progress(move |now| progress(format!("{now:?}")));
        printed.debug("Repair", &repair);
        let report = repair.run(&sqlite, &vault, folder.join("before.db")).await.unwrap();
        assert!(!report.is_empty());
        printed.both("RepairReport", &report);
        printed.both("ForgetReport", &forget(&sqlite, &vault, canaries::PHONE).await.unwrap());
        printed.0.extend(told().into_iter().map(|text| ("Progress", text)));
    }
    {
        let (progress, told) = teller();
        let rotate = Rotate::new().on_progress(move |now| progress(format!("{now:?}"))).leave_damaged();
        printed.debug("Rotate", &rotate);
        let copy = StoreCopy::new().keep_source();
        let target = SqliteStore::in_memory().await.unwrap();
        printed.debug("StoreCopy", &copy);
        printed.both("CopyReport", &copy.run(&sqlite, &target).await.unwrap());
        printed.both("RotateReport", &rotate.run(&sqlite, &vault).await.unwrap());
        let new = Passphrase::new("canary number two").unwrap();
        let report = rotate.revoke(&sqlite, &options, key(), new).await.unwrap();
        printed.both("RevokeReport", &report);
        printed.debug("AccountReport", &report.revoked());
        printed.0.extend(told().into_iter().map(|text| ("Progress", text)));
    }
}

/// A callback for progress, and a function that returns what the callback was told.
fn teller() -> (impl Fn(String) + Send + Sync + 'static, impl FnOnce() -> Vec<String>) {
    let told = Arc::new(std::sync::Mutex::new(vec![]));
    let heard = told.clone();
    (move |text| told.lock().unwrap().push(text), move || std::mem::take(&mut *heard.lock().unwrap()))
}

/// Errors that know the account or contact they are about.
async fn errors(options: &VaultOptions, sqlite: &SqliteStore) -> Vec<Error> {
    let memory = Arc::new(InMemoryBackend::new());
    let vault = VaultOptions::new().create(memory.clone(), key()).await.unwrap();
    let long = format!("{}{}", canaries::SESSION_ADDRESS, "x".repeat(70_000));
    let store = vault.layer().layer(memory);
    let layered = store.get_session(&long).await.unwrap_err();
    vec![
        options.open(Arc::new(sqlite.clone()), Key::from_bytes(&mut [1; 32])).await.unwrap_err(),
        vault.add_slot(canaries::PUSH_NAME.repeat(9).as_str(), key()).await.unwrap_err(),
        Passphrase::new(vec![b'x'; Passphrase::MAX_BYTES + 1]).unwrap_err(),
        RecoveryKey::parse(PASSPHRASE).unwrap_err(),
        layered.into(),
    ]
}
