//! Files written by released versions open for ever. `tests/golden/README.md` lists them.

use wacore::store::traits::DeviceStore;

use super::semantics::assert_filled;
use super::*;
use crate::sample;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sqlite-schema-1.db")
}

/// Writes the golden file of the newest schema. Only for adding a schema, never for replacing a file.
#[tokio::test]
async fn write_missing_golden_file() {
    if std::env::var_os("WASTORE_BLESS").is_none() || golden().exists() {
        return;
    }
    let scratch = Scratch::new().await;
    sample::fill(&scratch.store).await;
    scratch.store.save(&sample::device()).await.unwrap();
    scratch.store.backup(golden()).await.unwrap();
}

#[tokio::test]
async fn golden_files_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wa.db");
    std::fs::copy(golden(), &path).unwrap();
    let store = config().open(&path).await.unwrap();
    assert_filled(&store).await;
    // Fields that later versions of upstream add have their defaults; those of that day are as they were written.
    let device = store.load().await.unwrap().unwrap();
    assert_eq!((device.push_name.as_str(), device.adv_secret_key), (sample::PUSH_NAME, sample::ADV_SECRET));
    sample::fill(&store).await;
}
