//! Creates an encrypted SQLite store that appears when it is complete.

use std::path::Path;
use std::sync::Arc;

use crate::encrypt::VaultOptions;
use crate::error::Result;
use crate::private;
use crate::secret::Secret;
use crate::sqlite::{SqliteOptions, files};

/// Creates an encrypted store: a new file at `path` with a vault for one account, usually account
/// 1, whose first key slot opens with `secret`.
///
/// The file appears when it is complete and on the disk. Until then it is in a folder
/// `.wastore-init-…` beside it. A killed process leaves that folder behind; you may delete it.
///
/// # Errors
/// There is no file at `path` after an error, unless waiting for the disk failed at the very end.
///
/// [`Error::TargetExists`](crate::Error::TargetExists). [`Error::File`](crate::Error::File) if the
/// folder does not exist or cannot be written. Those of
/// [`SqliteStore::open`](crate::SqliteStore::open) and
/// [`VaultOptions::create`](crate::VaultOptions::create).
pub async fn create_encrypted(
    path: impl AsRef<Path>,
    account: i32,
    options: &VaultOptions,
    secret: impl Into<Secret>,
) -> Result<()> {
    let target = path.as_ref().to_owned();
    files::refuse_taken(&target)?;
    let folder = private::unfinished_folder(&target, ".wastore-init-").map_err(files::cannot_write)?;
    let (file, folder) = (folder.path().join("store.db"), Arc::new(folder));
    let store = SqliteOptions::new().unfinished_in(&folder).lease_when_writing().open(&file).await?;
    let vault = options.create(&store.account(account), secret).await?;
    store.checkpoint().await?;
    files::publish((vault, store), folder, file, target).await
}
