//! Looking for sealed records in a store whose header is gone, as far as the traits can list anything.

use wacore::store::traits::Backend;

use super::envelope::Header;
use super::{app_sync, protocol};
use crate::error::Result;
use crate::method::Record;

/// `true` if one of the listable tables holds a record that a vault sealed.
pub(super) async fn holds_sealed_records(store: &dyn Backend) -> Result<bool> {
    let signed_prekeys = store.load_all_signed_prekeys().await?;
    if signed_prekeys.iter().any(|(_, value)| Header::read(Record::SignedPrekey, value).is_ok()) {
        return Ok(true);
    }
    if let Some(id) = store.get_latest_sync_key_id().await?
        && let Some(key) = store.get_sync_key(&id).await?
        && Header::read(Record::SyncKey, &app_sync::join_carrier(key)).is_ok()
    {
        return Ok(true);
    }
    if store.get_all_lid_mappings().await?.iter().any(|entry| {
        protocol::decode_text(Record::LidMapping, &entry.learning_source)
            .is_ok_and(|value| Header::read(Record::LidMapping, &value).is_ok())
    }) {
        return Ok(true);
    }
    // A JID has an `@`, a token never does.
    Ok(store.get_all_tc_token_jids().await?.iter().any(|jid| jid.len() >= 52 && !jid.contains('@')))
}
