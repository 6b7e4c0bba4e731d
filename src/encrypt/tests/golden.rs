//! Stores of released versions stay readable for ever. `tests/golden/README.md` lists them.

use std::path::{Path, PathBuf};

use super::interop::{assert_complete, open_store};
use super::{open_sqlite, options, raw_key};
use crate::testing::canaries;
use crate::testing::canaries::*;
use crate::vault::{HeaderInfo, Padding};
use crate::{Error, Layer, Passphrase, RecoveryKey};

const PASSPHRASE: &str = "golden passphrase";
const CONTEXT: &str = "golden bot";
const RECOVERY_KEY_FILE: &str = "recovery-key.txt";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Bound to a context, and opened by the key that another vault derives (header extensions 3 and 4).
const BOUND: &str = "v1-bound.db";

/// Writes the golden stores of the version in this tree. Only for adding a format, never for replacing one.
#[tokio::test]
async fn write_missing_golden_stores() {
    for (name, padding) in [("v1.db", Padding::None), ("v1-padme.db", Padding::Padme), (BOUND, Padding::None)] {
        if std::env::var_os("WASTORE_BLESS").is_none() || golden(name).exists() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = open_sqlite(&folder).await;
        let mut options = options().padding(padding);
        if name == BOUND {
            let parent = super::options().create(super::memory(), raw_key()).await.unwrap();
            options = options.context(CONTEXT).derived_from(&parent);
        }
        let vault = options.create(store.clone(), Passphrase::new(PASSPHRASE).unwrap()).await.unwrap();
        vault.add_slot("machine", raw_key()).await.unwrap();
        if name == "v1.db" {
            std::fs::write(golden(RECOVERY_KEY_FILE), &*vault.add_recovery_key().await.unwrap().expose()).unwrap();
        }
        canaries::fill(&*vault.layer().layer(store.clone())).await;
        store.snapshot_db("golden", None).await.unwrap();
        let snapshot = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains("snapshot"))
            .unwrap();
        std::fs::copy(snapshot, golden(name)).unwrap();
    }
}

#[tokio::test]
async fn golden_stores_open() {
    for name in ["v1.db", "v1-padme.db", BOUND] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(golden(name), folder.path().join("wa.db")).unwrap();
        let store = open_sqlite(&folder).await;
        let mut options = options();
        if name == BOUND {
            let error = options.open(store.clone(), raw_key()).await.unwrap_err();
            assert!(matches!(error, Error::WrongContext), "{error:?}");
            let header = HeaderInfo::read(&*store).await.unwrap().unwrap();
            assert!(header.bound && header.parent.is_some());
            options = options.context(CONTEXT);
        }
        options.open(store.clone(), Passphrase::new(PASSPHRASE).unwrap()).await.unwrap();
        if name == "v1.db" {
            let printed = std::fs::read_to_string(golden(RECOVERY_KEY_FILE)).unwrap();
            options.open(store.clone(), RecoveryKey::parse(&printed).unwrap()).await.unwrap();
        }
        let vault = options.open(store.clone(), raw_key()).await.unwrap();
        let backend = vault.layer().layer(store);
        // Fields that later versions of upstream add have their defaults. The older fields are as they were written.
        let device = backend.load().await.unwrap().unwrap();
        assert_eq!((device.push_name.as_str(), device.adv_secret_key), (PUSH_NAME, ADV_SECRET));
        assert_eq!(device.server_cert_chain.unwrap().leaf.key, SERVER_KEY);
        assert_eq!(backend.get_session(SESSION_ADDRESS).await.unwrap().as_deref(), Some(SESSION));
        assert_eq!(backend.load_identity(IDENTITY_ADDRESS).await.unwrap(), Some(IDENTITY_KEY));
        assert_eq!(backend.load_prekey(5).await.unwrap().as_deref(), Some(PREKEY));
        assert_eq!(backend.load_signed_prekey(7).await.unwrap().as_deref(), Some(SIGNED_PREKEY));
        assert_eq!(backend.get_sender_key(SENDER_KEY_ADDRESS).await.unwrap().as_deref(), Some(SENDER_KEY));
        let key = backend.get_sync_key(&[0, 1, 0, 0, 0, 2]).await.unwrap().unwrap();
        assert_eq!((key.key_data, key.fingerprint), (SYNC_KEY.to_vec(), FINGERPRINT.to_vec()));
        assert_eq!(backend.get_version(COLLECTION).await.unwrap().hash, version().hash);
        assert_eq!(backend.get_mutation_mac(COLLECTION, &INDEX_MAC).await.unwrap().as_deref(), Some(&VALUE_MAC[..]));
        assert_eq!(backend.get_sender_key_devices(GROUP).await.unwrap(), [(DEVICE_JID.to_owned(), true)]);
        let mapping = backend.get_pn_mapping(PHONE).await.unwrap().unwrap();
        assert_eq!((mapping.lid.as_str(), mapping.learning_source.as_str()), (LID, SOURCE));
        assert!(backend.has_same_base_key(SESSION_ADDRESS, MESSAGE_ID, &BASE_KEY).await.unwrap());
        let list = backend.get_devices(PHONE).await.unwrap().unwrap();
        assert_eq!((list.devices.len(), list.timestamp, list.phash.as_deref()), (2, 5_000_000_000, Some(PHASH)));
        assert_eq!(backend.get_group_metadata(GROUP).await.unwrap().as_deref(), Some(GROUP_METADATA));
        assert_eq!(backend.get_tc_token(TC_JID).await.unwrap().unwrap().token, TC_TOKEN);
        assert_eq!(backend.get_all_tc_token_jids().await.unwrap(), [TC_JID]);
        let pending = backend.get_pending_inbound(CHAT, SENDER, MESSAGE_ID).await.unwrap();
        assert_eq!(pending.as_deref(), Some(PENDING_MESSAGE));
        assert_eq!(backend.take_sent_message(CHAT, MESSAGE_ID).await.unwrap().as_deref(), Some(SENT_MESSAGE));
        let secret = backend.get_msg_secret(CHAT, SENDER, MESSAGE_ID).await.unwrap();
        assert_eq!(secret.as_deref(), Some(&MESSAGE_SECRET[..]));
    }
}

#[test]
fn golden_stores_are_opened_by_another_implementation() {
    let key = "5a".repeat(32);
    for name in ["v1.db", "v1-padme.db"] {
        assert_complete(open_store(&golden(name), &["--key", &key]));
    }
    assert_complete(open_store(&golden(BOUND), &["--key", &key, "--context", CONTEXT]));
}
