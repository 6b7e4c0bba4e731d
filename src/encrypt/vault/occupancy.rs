//! Looks for records that a vault, or a client without one, left in a store, as far as the traits can list them.

use wacore::store::traits::Backend;

use crate::encrypt::carrier::{join_carrier, sealed_device};
use crate::encrypt::format::envelope::Prefix;
use crate::encrypt::format::kind::Kind;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::encoding::decode_text;

/// `true` if one of the listable tables holds a record that a vault sealed.
///
/// # Errors
/// [`Error::Plaintext`] if one of them holds a record that no vault sealed.
pub(super) async fn holds_sealed_records(store: &dyn Backend) -> Result<bool> {
    let mut sealed = false;
    let mut look_at = |kind, value: &[u8]| match Prefix::read(kind, value) {
        Err(error @ Error::Plaintext { .. }) => Err(error),
        _ => {
            sealed = true;
            Ok(())
        }
    };
    for (_, value) in store.load_all_signed_prekeys().await? {
        look_at(Kind::SignedPrekey, &value)?;
    }
    if let Some(id) = store.get_latest_sync_key_id().await?
        && let Some(key) = store.get_sync_key(&id).await?
    {
        look_at(Kind::SyncKey, &join_carrier(key))?;
    }
    for entry in store.get_all_lid_mappings().await? {
        look_at(Kind::LidMapping, &decode_text(Record::LidMapping, &entry.learning_source)?)?;
    }
    for jid in store.get_all_tc_token_jids().await? {
        // A JID has an `@`; a blinded name never does.
        if jid.contains('@') {
            return Err(Error::Plaintext { record: Record::TcToken });
        }
        sealed = true;
    }
    Ok(sealed)
}

/// `true` if one of the listable tables holds any record.
pub(super) async fn is_occupied(store: &dyn Backend) -> Result<bool> {
    match holds_sealed_records(store).await {
        Err(error) if error.is_damage() => Ok(true),
        result => result,
    }
}

/// `true` if the store's device is a carrier, `false` if there is none or a fresh plaintext one.
///
/// # Errors
/// [`Error::PlaintextDevice`] if it is paired and in plaintext.
pub(in crate::encrypt) async fn holds_sealed_device(store: &dyn Backend) -> Result<bool> {
    match store.load().await? {
        Some(mut device) => Ok(sealed_device(&mut device)?.is_some()),
        None => Ok(false),
    }
}
