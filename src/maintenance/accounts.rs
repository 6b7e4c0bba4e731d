//! Opens the vault of one account of several.

use std::sync::Arc;

use crate::encrypt::{HeaderInfo, Vault, VaultOptions};
use crate::error::{Error, Result};
use crate::rows::store::{OwnRows, OwnStore, Rows};
use crate::secret::Secret;

/// Opens the vault of an account with `secret`. If `secret` does not open it, tries the key that
/// the vault of another account derives for it (`vault.account_key("account 2")` for account 2, as
/// [`Import`](crate::import::Import) does).
///
/// The header names that other account. For a vault that was created without
/// [`VaultOptions::derived_from`], up to 16 other accounts are tried.
///
/// With [`OpenMode::AcceptRollback`](crate::vault::OpenMode::AcceptRollback) and several accounts,
/// begin with the lowest.
///
/// # Errors
/// Those of [`VaultOptions::open`].
pub async fn open_account(store: &impl OwnStore, options: &VaultOptions, secret: impl Into<Secret>) -> Result<Vault> {
    let OwnRows(store) = store.own_rows();
    let open = async |secret| options.open_backend(store.clone(), secret).await;
    with_own_or_derived(&store, options, secret.into(), open).await
}

/// Restores a saved header of an account's vault, see [`VaultOptions::restore_header`]. Takes the
/// same secret as [`open_account`].
///
/// # Errors
/// Those of [`VaultOptions::restore_header`].
pub async fn restore_account_header(
    store: &impl OwnStore,
    options: &VaultOptions,
    saved: &[u8],
    secret: impl Into<Secret>,
) -> Result<Vault> {
    let OwnRows(store) = store.own_rows();
    let restore = async |secret| options.restore_in_backend(store.clone(), saved, secret).await;
    with_own_or_derived(&store, options, secret.into(), restore).await
}

async fn with_own_or_derived(
    store: &Arc<dyn Rows>,
    options: &VaultOptions,
    secret: Secret,
    open: impl AsyncFn(Secret) -> Result<Vault>,
) -> Result<Vault> {
    let wrong = match open(secret.duplicate()).await {
        Err(wrong @ (Error::WrongSecret | Error::NoSlotOfProvider | Error::KeyNotKept(_))) => wrong,
        opened => return opened,
    };
    // The header names the vault whose key it is. Older versions did not write that, so any other
    // vault may be the one.
    let parent = HeaderInfo::read(&**store).await.ok().flatten().and_then(|header| header.parent);
    let (mut tries, mut doubt, mut lost) = (0, None, None);
    for number in store.accounts_in_use().await? {
        if number == store.account_number() || tries == MAX_PARENTS {
            continue;
        }
        let account = store.account(number);
        match HeaderInfo::read(&*account).await {
            Ok(Some(header)) if parent.is_none_or(|parent| parent == header.store_id) => tries += 1,
            _ => continue,
        }
        match options.of_parent().open_backend(account, secret.duplicate()).await {
            Ok(vault) => match open(vault.account_key(&store.key_label()).into()).await {
                Err(Error::WrongSecret) => {}
                opened => return opened,
            },
            // Other faults of that vault do not concern the requested one.
            Err(error) if error.is_about_rollback() => doubt = doubt.or(Some(error)),
            Err(error @ Error::KeyProvider(_)) => return Err(error),
            Err(error @ Error::KeyNotKept(_)) => lost = lost.or(Some(error)),
            Err(_) => {}
        }
    }
    // The key of that vault opens this one, and the reason for its loss tells more.
    let lost = lost.filter(|_| matches!(wrong, Error::NoSlotOfProvider));
    Err(doubt.or(lost).unwrap_or(wrong))
}

/// How many other vaults are opened to find the one that derives a key. Each may cost a key
/// derivation.
const MAX_PARENTS: usize = 16;
