//! Files written by released versions open for ever. `tests/golden/README.md` lists them.

use wacore::store::traits::DeviceStore;

use super::semantics::assert_filled;
use super::*;
use crate::maintenance::Verify;
use crate::maintenance::open_account;
use crate::testing::canaries;
use crate::vault::Argon2Cost;
use crate::{Layer, Passphrase, VaultOptions};

pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The file of the version before leases.
pub(super) const PLAIN_1: &str = "sqlite-schema-1.db";
const PLAIN: &str = "sqlite-schema-2.db";
/// Account 1 has a passphrase, account 2 the key that account 1 derives. Each is bound to its
/// number.
const ENCRYPTED: &str = "sqlite-schema-2-encrypted.db";
const ALL_PLAIN: [&str; 2] = [PLAIN_1, PLAIN];
const ALL_ENCRYPTED: [&str; 2] = ["sqlite-schema-1-encrypted.db", ENCRYPTED];

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
