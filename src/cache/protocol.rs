//! Sender key devices, LID mappings, device lists, group metadata and tc tokens.

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{
    DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore, TcTokenEntry,
};

use super::region::{ClearGuard, WriteGuard};
use super::value::WipedBytes;
use super::{CacheStore, clear_all, read, write_one};
use crate::method::forward;

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl ProtocolStore for CacheStore {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        let found = read!(self.sender_key_devices[group_jid.as_bytes()] => get_sender_key_devices(group_jid) => || {
            let (inner, group) = (self.inner.clone(), group_jid.to_owned());
            async move { inner.get_sender_key_devices(&group).await }
        });
        Ok(found.value.clone())
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        let group = group_jid.as_bytes();
        write_one!(self.sender_key_devices[group] => set_sender_key_status(group_jid, entries), None)
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        let group = group_jid.as_bytes();
        write_one!(self.sender_key_devices[group] => clear_sender_key_devices(group_jid), Some(vec![]))
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        let any = !device_jids.is_empty();
        clear_all!(self.sender_key_devices => delete_sender_key_device_rows(device_jids), |()| any)
    }

    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        clear_all!(self.sender_key_devices => clear_all_sender_key_devices(), |()| true)
    }

    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        let found = read!(self.mappings_by_lid[lid.as_bytes()] => get_lid_mapping(lid) => || {
            let (inner, lid) = (self.inner.clone(), lid.to_owned());
            async move { inner.get_lid_mapping(&lid).await }
        });
        Ok(found.value.clone())
    }

    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let found = read!(self.mappings_by_number[phone.as_bytes()] => get_pn_mapping(phone) => || {
            let (inner, phone) = (self.inner.clone(), phone.to_owned());
            async move { inner.get_pn_mapping(&phone).await }
        });
        Ok(found.value.clone())
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        let Some(writes) = self.write_mappings(std::slice::from_ref(entry)) else {
            return self.inner.put_lid_mapping(entry).await;
        };
        let result = self.inner.put_lid_mapping(entry).await;
        writes.end(result)
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let Some(writes) = self.write_mappings(entries) else { return self.inner.put_lid_mappings(entries).await };
        let result = self.inner.put_lid_mappings(entries).await;
        writes.end(result)
    }

    // A listing that is read once at the start, and comparisons that the store makes.
    forward!(get_all_lid_mappings, save_base_key, has_same_base_key, delete_base_key);

    /// A store may cut times and ids that are too wide for it, so the next read asks it again.
    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        write_one!(self.device_lists[record.user.as_bytes()] => update_device_list(record), None)
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        let Some(region) = &self.regions.device_lists else { return self.inner.update_device_lists(records).await };
        let write = region.write(records.iter().map(|record| region.key([record.user.as_bytes()])));
        let result = self.inner.update_device_lists(records).await;
        write.end(result, |_| None)
    }

    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        let found = read!(self.device_lists[user.as_bytes()] => get_devices(user) => || {
            let (inner, user) = (self.inner.clone(), user.to_owned());
            async move { inner.get_devices(&user).await }
        });
        Ok(found.value.clone())
    }

    async fn delete_devices(&self, user: &str) -> Result<()> {
        write_one!(self.device_lists[user.as_bytes()] => delete_devices(user), Some(None))
    }

    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        let found = read!(self.group_metadata[group_jid.as_bytes()] => get_group_metadata(group_jid) => || {
            let (inner, group) = (self.inner.clone(), group_jid.to_owned());
            async move { Ok(inner.get_group_metadata(&group).await?.map(WipedBytes::from)) }
        });
        Ok(found.value.as_ref().map(WipedBytes::to_vec))
    }

    /// A store without group metadata returns `Ok` and keeps nothing, so the next read asks it.
    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        write_one!(self.group_metadata[group_jid.as_bytes()] => put_group_metadata(group_jid, blob), None)
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        write_one!(self.group_metadata[group_jid.as_bytes()] => delete_group_metadata(group_jid), None)
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        let found = read!(self.tc_tokens[jid.as_bytes()] => get_tc_token(jid) => || self.load_tc_token(jid));
        Ok(found.value.clone())
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        write_one!(self.tc_tokens[jid.as_bytes()] => put_tc_token(jid, entry), Some(Some(entry.clone())))
    }

    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        write_one!(self.tc_tokens[jid.as_bytes()] => delete_tc_token(jid), Some(None))
    }

    // A listing.
    forward!(get_all_tc_token_jids);

    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        clear_all!(self.tc_tokens => delete_expired_tc_tokens(token_cutoff, sender_cutoff), |deleted| *deleted > 0)
    }

    // Only the store knows the result of merging.
    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        let key = jid.as_bytes();
        write_one!(self.tc_tokens[key] => touch_tc_token_sender_timestamp(jid, sender_timestamp), None)
    }

    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        let key = jid.as_bytes();
        write_one!(self.tc_tokens[key] => store_received_tc_token(jid, token, token_timestamp), None)
    }

    // Messages are taken once. Messages that wait for a commit are read once, after a crash.
    forward!(store_sent_message, take_sent_message, delete_expired_sent_messages);
    forward!(store_pending_inbound, get_pending_inbound, delete_pending_inbound, delete_expired_pending_inbound);
    forward!(store_pending_inbound_batch, delete_pending_inbound_batch);
}

/// LID mappings being written. A mapping that moves also changes the answer for its old number. Only the store knows
/// that number, so the region forgets all numbers.
struct MappingWrites {
    by_lid: WriteGuard<Option<LidPnMappingEntry>>,
    by_number: ClearGuard<Option<LidPnMappingEntry>>,
    any: bool,
}

impl MappingWrites {
    fn end(self, result: Result<()>) -> Result<()> {
        // Some stores keep the first `created_at`.
        let result = self.by_lid.end(result, |_| None);
        self.by_number.end(result, |()| self.any)
    }
}

impl CacheStore {
    /// `None` if mappings are not cached.
    fn write_mappings(&self, entries: &[LidPnMappingEntry]) -> Option<MappingWrites> {
        let (by_lid, by_number) =
            self.regions.mappings_by_lid.as_ref().zip(self.regions.mappings_by_number.as_ref())?;
        Some(MappingWrites {
            by_lid: by_lid.write(entries.iter().map(|entry| by_lid.key([entry.lid.as_bytes()]))),
            by_number: by_number.clear(),
            any: !entries.is_empty(),
        })
    }

    pub(super) fn load_tc_token(&self, jid: &str) -> impl Future<Output = Result<Option<TcTokenEntry>>> + Send + use<> {
        let (inner, jid) = (self.inner.clone(), jid.to_owned());
        async move { inner.get_tc_token(&jid).await }
    }
}
