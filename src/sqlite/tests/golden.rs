//! Files written by released versions open for ever. `tests/golden/README.md` lists them.

use wacore::store::traits::{DeviceStore, SignalStore};

use super::semantics::assert_filled;
use super::*;
use crate::maintenance::{Verify, open_account};
use crate::method::{Access, Method};
use crate::sqlite::schema::NEWEST;
use crate::testing::canaries;
use crate::vault::Argon2Cost;
use crate::{Layer, Passphrase, VaultOptions};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

const PLAIN: &str = "sqlite-schema-3.db";
/// Account 1 has a passphrase, account 2 the key that account 1 derives. Each is bound to its
/// number.
const ENCRYPTED: &str = "sqlite-schema-3-encrypted.db";
/// In the order of their versions.
const ALL_PLAIN: [&str; 3] = ["sqlite-schema-1.db", "sqlite-schema-2.db", PLAIN];
const ALL_ENCRYPTED: [&str; 3] = ["sqlite-schema-1-encrypted.db", "sqlite-schema-2-encrypted.db", ENCRYPTED];

fn passphrase() -> Passphrase {
    Passphrase::new("golden passphrase").unwrap()
}

/// Writes the golden file of the newest schema. Only for adding a schema, never for replacing a
/// file.
#[tokio::test]
async fn write_missing_golden_file() {
    let missing = |name: &str| std::env::var_os("WASTORE_BLESS").is_some() && !golden(name).exists();
    if missing(PLAIN) {
        let scratch = Scratch::new().await;
        canaries::fill(&scratch.store).await;
        scratch.store.save(&canaries::device()).await.unwrap();
        scratch.store.backup(golden(PLAIN)).await.unwrap();
    }
    if missing(ENCRYPTED) {
        let (scratch, options) = (Scratch::new().await, VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM));
        let (first, second) = (Arc::new(scratch.store.account(1)), Arc::new(scratch.store.account(2)));
        let vault = options.create(first.clone(), passphrase()).await.unwrap();
        canaries::fill(&*vault.layer().layer(first)).await;
        let derived = crate::Secret::from(vault.account_key("account 2"));
        let vault = options.derived_from(&vault).create(second.clone(), derived).await.unwrap();
        canaries::fill(&*vault.layer().layer(second)).await;
        scratch.store.backup(golden(ENCRYPTED)).await.unwrap();
    }
}

#[tokio::test]
async fn golden_files_open() {
    for name in ALL_PLAIN {
        golden_file_opens(name).await;
    }
}

async fn golden_file_opens(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    std::fs::copy(golden(name), &path).unwrap();
    let store = config().open(&path).await.unwrap();
    assert_filled(&store).await;
    // Fields that later versions of upstream add have their defaults; older fields have the written
    // values.
    let device = store.load().await.unwrap().unwrap();
    assert_eq!((device.push_name.as_str(), device.adv_secret_key), (canaries::PUSH_NAME, canaries::ADV_SECRET));
    canaries::fill(&store).await;
}

#[tokio::test]
async fn files_of_older_schemas_are_read_and_migrated() {
    for (version, name) in (1..).zip(ALL_PLAIN) {
        older_schema_is_read_and_migrated(version, name).await;
    }
}

/// An older file is read as it is, and migrated when it is opened.
async fn older_schema_is_read_and_migrated(written: u32, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    std::fs::copy(golden(name), &path).unwrap();
    let before = std::fs::read(&path).unwrap();
    let version = || {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0)).unwrap()
    };
    let reading = SqliteStore::open_read_only(&path).await.unwrap();
    for method in Method::ALL.iter().filter(|method| method.access() == Access::Read) {
        canaries::call(&reading, *method).await.unwrap();
    }
    assert!(reading.has_session(canaries::SESSION_ADDRESS).await.unwrap());
    assert_eq!(reading.integrity_check().await.unwrap(), [] as [String; 0]);
    assert_eq!(problem(reading.put_session("a", b"1").await), SqliteProblem::ReadOnly);
    let copy = path.with_file_name("copy.db");
    reading.backup(&copy).await.unwrap();
    drop(reading);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(version(), written);
    SqliteStore::restore(&copy, &path).await.unwrap();
    assert_eq!(version(), written);
    let store = config().open(&path).await.unwrap();
    assert_filled(&store).await;
    store.put_session("a", b"1").await.unwrap();
    drop(store);
    assert_eq!(version(), NEWEST);
}

#[tokio::test]
async fn golden_encrypted_files_open() {
    for name in ALL_ENCRYPTED {
        golden_encrypted_file_opens(name).await;
    }
}

async fn golden_encrypted_file_opens(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    std::fs::copy(golden(name), &path).unwrap();
    let store = config().open(&path).await.unwrap();
    for number in [1, 2] {
        let account = Arc::new(store.account(number));
        let vault = open_account(&account, &VaultOptions::new(), passphrase()).await.unwrap();
        let layered = vault.layer().layer(account.clone());
        let session = layered.get_session(canaries::SESSION_ADDRESS).await.unwrap();
        assert_eq!(session.as_deref(), Some(canaries::SESSION));
        let report = Verify::new().run(&account, &vault).await.unwrap();
        assert!(report.is_sound(), "{report}");
    }
}
