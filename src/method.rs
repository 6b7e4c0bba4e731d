//! The one table of all 82 methods of the upstream storage traits, the table of their records, and the code generated
//! from both.
//!
//! Facts that hold per method live here and nowhere else: its trait, its exact signature, the [`Record`] that it
//! touches and its kind of [`Access`]. From the table come
//!
//! * [`Method`]: labels for metrics, error context and tests;
//! * `forward!`: pass-through methods for layers that write their other methods by hand;
//! * `uniform_layer!`: whole decorators that treat every method alike.
//!
//! Source of the signatures: `wacore` 0.7.0, `src/store/traits.rs`. A row that differs from the trait does not compile.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use wacore::stats::StorageResourceReport;
use wacore::store::error::StoreError;

/// The future that `#[async_trait]` makes of a trait method; not `Send` on wasm32, as upstream's traits are.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// The future that `#[async_trait(?Send)]` makes of a trait method.
#[cfg(target_arch = "wasm32")]
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Calls the macro `$callback` with the table of records.
///
/// A row reads: variant of [`Record`], name, label. A kind of record that the format can hold also has its number
/// there. Numbers are never reused. The other rows only say what a method looks at: nothing is sealed as one of them.
macro_rules! for_each_record {
    ($callback:ident) => {
        $callback! {
            kinds {
                /// A remote party's public identity key.
                Identity "identity" "identity" = 2;
                /// A Signal session.
                Session "session" "session" = 1;
                /// A one-time prekey.
                Prekey "prekey" "prekey" = 3;
                /// A signed prekey.
                SignedPrekey "signed prekey" "signed_prekey" = 4;
                /// A sender key of a group.
                SenderKey "sender key" "sender_key" = 5;
                /// An app-state sync key.
                SyncKey "sync key" "sync_key" = 6;
                /// The version and hash of an app-state collection.
                CollectionVersion "collection version" "collection_version" = 7;
                /// The MAC of an app-state mutation.
                MutationMac "mutation MAC" "mutation_mac" = 8;
                /// Which devices of a group hold our sender key.
                SenderKeyDevice "sender key device" "sender_key_device" = 9;
                /// The pairing of a LID with a phone number.
                LidMapping "LID mapping" "lid_mapping" = 10;
                /// The base key of a session, kept for collision detection.
                BaseKey "base key" "base_key" = 11;
                /// The device list of a user.
                DeviceList "device list" "device_list" = 12;
                /// A group metadata snapshot.
                GroupMetadata "group metadata" "group_metadata" = 13;
                /// A trusted-contact token.
                TcToken "tc token" "tc_token" = 14;
                /// A sent message kept for retries.
                SentMessage "sent message" "sent_message" = 15;
                /// A decrypted inbound message that waits for its commit.
                PendingInbound "pending inbound" "pending_inbound" = 16;
                /// A message secret for reactions, edits and polls.
                MessageSecret "message secret" "message_secret" = 17;
                /// The own device: identity, noise key, account.
                Device "device" "device" = 18;
                /// The content that accompanies a database snapshot.
                SnapshotExtra "snapshot extra" "snapshot_extra" = 19;
                /// An entry of the client's external cache.
                CacheEntry "cache entry" "cache_entry" = 20;
            }
            others {
                /// Sessions and identities together (the prefix query over both).
                SignalState "signal state" "signal_state";
                /// The store as a whole.
                Store "store" "store";
            }
        }
    };
}
pub(crate) use for_each_record;

macro_rules! define_record_enum {
    (
        kinds { $($(#[$doc:meta])* $kind:ident $name:literal $label:literal = $number:literal;)* }
        others { $($(#[$other_doc:meta])* $other:ident $other_name:literal $other_label:literal;)* }
    ) => {
        /// The kind of data that a storage method reads or writes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Record {
            $($(#[$doc])* $kind,)*
            $($(#[$other_doc])* $other,)*
        }

        impl Record {
            /// Every kind of record.
            pub const ALL: &'static [Record] = &[$(Record::$kind,)* $(Record::$other,)*];

            /// A name for error texts and reports, for example `sender key`.
            pub const fn name(self) -> &'static str {
                match self { $(Record::$kind => $name,)* $(Record::$other => $other_name,)* }
            }

            /// The name in the form of labels, for example `sender_key`.
            pub const fn label(self) -> &'static str {
                match self { $(Record::$kind => $label,)* $(Record::$other => $other_label,)* }
            }
        }
    };
}
for_each_record!(define_record_enum);

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of work that a storage method does with its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Looks up rows by key and changes nothing.
    Read,
    /// Inserts or updates rows.
    Write,
    /// Removes rows, by key or by age.
    Delete,
    /// Reads and removes in one atomic step.
    Take,
    /// Lists rows without being given their keys, and changes nothing.
    Scan,
    /// Snapshots and reports.
    Maintenance,
}

impl Access {
    /// `true` if a method of this kind can change what is stored.
    pub const fn changes_rows(self) -> bool {
        matches!(self, Access::Write | Access::Delete | Access::Take)
    }
}

/// The return types of storage methods, for layers that may refuse a call.
pub(crate) trait Refuse {
    /// The result that carries `error`, if the type has one.
    fn refused(error: StoreError) -> Self;
}

impl<T> Refuse for Result<T, StoreError> {
    fn refused(error: StoreError) -> Self {
        Err(error)
    }
}

impl Refuse for StorageResourceReport {
    fn refused(_: StoreError) -> Self {
        Self::default()
    }
}

/// Calls the macro `$callback` with the table, after any extra tokens.
///
/// A row reads: method, variant of [`Method`], `<lifetimes as async_trait numbers them>`, arguments, return type;
/// record, access.
macro_rules! for_each_method {
    ($callback:ident $(, $extra:tt)*) => {
        $callback! { $($extra)*
            SignalStore {
                put_identity PutIdentity <'a>(address: &'a str, key: [u8; 32]) -> Result<()>; Identity, Write;
                put_identities_batch PutIdentitiesBatch <'a>(identities: &'a [(Arc<str>, [u8; 32])]) -> Result<()>; Identity, Write;
                load_identity LoadIdentity <'a>(address: &'a str) -> Result<Option<[u8; 32]>>; Identity, Read;
                delete_identity DeleteIdentity <'a>(address: &'a str) -> Result<()>; Identity, Delete;
                get_session GetSession <'a>(address: &'a str) -> Result<Option<Bytes>>; Session, Read;
                put_session PutSession <'a, 'b>(address: &'a str, session: &'b [u8]) -> Result<()>; Session, Write;
                put_sessions_batch PutSessionsBatch <'a>(sessions: &'a [(Arc<str>, Bytes)]) -> Result<()>; Session, Write;
                delete_session DeleteSession <'a>(address: &'a str) -> Result<()>; Session, Delete;
                has_session HasSession <'a>(address: &'a str) -> Result<bool>; Session, Read;
                has_signal_state_for_user HasSignalStateForUser <'a>(user: &'a str) -> Result<bool>; SignalState, Read;
                store_prekey StorePrekey <'a>(id: u32, record: &'a [u8], uploaded: bool) -> Result<()>; Prekey, Write;
                store_prekeys_batch StorePrekeysBatch <'a>(keys: &'a [(u32, Bytes)], uploaded: bool) -> Result<()>; Prekey, Write;
                load_prekey LoadPrekey <>(id: u32) -> Result<Option<Bytes>>; Prekey, Read;
                load_prekeys_batch LoadPrekeysBatch <'a>(ids: &'a [u32]) -> Result<Vec<(u32, Bytes)>>; Prekey, Read;
                mark_prekeys_uploaded MarkPrekeysUploaded <'a>(ids: &'a [u32]) -> Result<()>; Prekey, Write;
                remove_prekey RemovePrekey <>(id: u32) -> Result<()>; Prekey, Delete;
                get_max_prekey_id GetMaxPrekeyId <>() -> Result<u32>; Prekey, Scan;
                store_signed_prekey StoreSignedPrekey <'a>(id: u32, record: &'a [u8]) -> Result<()>; SignedPrekey, Write;
                load_signed_prekey LoadSignedPrekey <>(id: u32) -> Result<Option<Vec<u8>>>; SignedPrekey, Read;
                load_all_signed_prekeys LoadAllSignedPrekeys <>() -> Result<Vec<(u32, Vec<u8>)>>; SignedPrekey, Scan;
                remove_signed_prekey RemoveSignedPrekey <>(id: u32) -> Result<()>; SignedPrekey, Delete;
                put_sender_key PutSenderKey <'a, 'b>(address: &'a str, record: &'b [u8]) -> Result<()>; SenderKey, Write;
                put_sender_keys_batch PutSenderKeysBatch <'a>(sender_keys: &'a [(Arc<str>, Bytes)]) -> Result<()>; SenderKey, Write;
                get_sender_key GetSenderKey <'a>(address: &'a str) -> Result<Option<Vec<u8>>>; SenderKey, Read;
                delete_sender_key DeleteSenderKey <'a>(address: &'a str) -> Result<()>; SenderKey, Delete;
            }
            AppSyncStore {
                get_sync_key GetSyncKey <'a>(key_id: &'a [u8]) -> Result<Option<AppStateSyncKey>>; SyncKey, Read;
                set_sync_key SetSyncKey <'a>(key_id: &'a [u8], key: AppStateSyncKey) -> Result<()>; SyncKey, Write;
                get_version GetVersion <'a>(name: &'a str) -> Result<HashState>; CollectionVersion, Read;
                set_version SetVersion <'a>(name: &'a str, state: HashState) -> Result<()>; CollectionVersion, Write;
                put_mutation_macs PutMutationMacs <'a, 'b>(name: &'a str, version: u64, mutations: &'b [AppStateMutationMAC]) -> Result<()>; MutationMac, Write;
                get_mutation_mac GetMutationMac <'a, 'b>(name: &'a str, index_mac: &'b [u8]) -> Result<Option<Vec<u8>>>; MutationMac, Read;
                get_mutation_macs GetMutationMacs <'a, 'b>(name: &'a str, index_macs: &'b [[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>>; MutationMac, Read;
                delete_mutation_macs DeleteMutationMacs <'a, 'b>(name: &'a str, index_macs: &'b [Vec<u8>]) -> Result<()>; MutationMac, Delete;
                clear_mutation_macs ClearMutationMacs <'a>(name: &'a str) -> Result<()>; MutationMac, Delete;
                get_latest_sync_key_id GetLatestSyncKeyId <>() -> Result<Option<Vec<u8>>>; SyncKey, Scan;
            }
            ProtocolStore {
                get_sender_key_devices GetSenderKeyDevices <'a>(group_jid: &'a str) -> Result<Vec<(String, bool)>>; SenderKeyDevice, Read;
                set_sender_key_status SetSenderKeyStatus <'a, 'b, 'c>(group_jid: &'a str, entries: &'b [(&'c str, bool)]) -> Result<()>; SenderKeyDevice, Write;
                clear_sender_key_devices ClearSenderKeyDevices <'a>(group_jid: &'a str) -> Result<()>; SenderKeyDevice, Delete;
                delete_sender_key_device_rows DeleteSenderKeyDeviceRows <'a, 'b>(device_jids: &'a [&'b str]) -> Result<()>; SenderKeyDevice, Delete;
                clear_all_sender_key_devices ClearAllSenderKeyDevices <>() -> Result<()>; SenderKeyDevice, Delete;
                get_lid_mapping GetLidMapping <'a>(lid: &'a str) -> Result<Option<LidPnMappingEntry>>; LidMapping, Read;
                get_pn_mapping GetPnMapping <'a>(phone: &'a str) -> Result<Option<LidPnMappingEntry>>; LidMapping, Read;
                put_lid_mapping PutLidMapping <'a>(entry: &'a LidPnMappingEntry) -> Result<()>; LidMapping, Write;
                put_lid_mappings PutLidMappings <'a>(entries: &'a [LidPnMappingEntry]) -> Result<()>; LidMapping, Write;
                get_all_lid_mappings GetAllLidMappings <>() -> Result<Vec<LidPnMappingEntry>>; LidMapping, Scan;
                save_base_key SaveBaseKey <'a, 'b, 'c>(address: &'a str, message_id: &'b str, base_key: &'c [u8]) -> Result<()>; BaseKey, Write;
                has_same_base_key HasSameBaseKey <'a, 'b, 'c>(address: &'a str, message_id: &'b str, current_base_key: &'c [u8]) -> Result<bool>; BaseKey, Read;
                delete_base_key DeleteBaseKey <'a, 'b>(address: &'a str, message_id: &'b str) -> Result<()>; BaseKey, Delete;
                update_device_list UpdateDeviceList <>(record: DeviceListRecord) -> Result<()>; DeviceList, Write;
                update_device_lists UpdateDeviceLists <>(records: Vec<DeviceListRecord>) -> Result<()>; DeviceList, Write;
                get_devices GetDevices <'a>(user: &'a str) -> Result<Option<DeviceListRecord>>; DeviceList, Read;
                delete_devices DeleteDevices <'a>(user: &'a str) -> Result<()>; DeviceList, Delete;
                get_group_metadata GetGroupMetadata <'a>(group_jid: &'a str) -> Result<Option<Vec<u8>>>; GroupMetadata, Read;
                put_group_metadata PutGroupMetadata <'a, 'b>(group_jid: &'a str, blob: &'b [u8]) -> Result<()>; GroupMetadata, Write;
                delete_group_metadata DeleteGroupMetadata <'a>(group_jid: &'a str) -> Result<()>; GroupMetadata, Delete;
                get_tc_token GetTcToken <'a>(jid: &'a str) -> Result<Option<TcTokenEntry>>; TcToken, Read;
                put_tc_token PutTcToken <'a, 'b>(jid: &'a str, entry: &'b TcTokenEntry) -> Result<()>; TcToken, Write;
                delete_tc_token DeleteTcToken <'a>(jid: &'a str) -> Result<()>; TcToken, Delete;
                get_all_tc_token_jids GetAllTcTokenJids <>() -> Result<Vec<String>>; TcToken, Scan;
                delete_expired_tc_tokens DeleteExpiredTcTokens <>(token_cutoff: i64, sender_cutoff: i64) -> Result<u32>; TcToken, Delete;
                touch_tc_token_sender_timestamp TouchTcTokenSenderTimestamp <'a>(jid: &'a str, sender_timestamp: i64) -> Result<()>; TcToken, Write;
                store_received_tc_token StoreReceivedTcToken <'a, 'b>(jid: &'a str, token: &'b [u8], token_timestamp: i64) -> Result<()>; TcToken, Write;
                store_sent_message StoreSentMessage <'a, 'b, 'c>(chat_jid: &'a str, message_id: &'b str, payload: &'c [u8]) -> Result<()>; SentMessage, Write;
                take_sent_message TakeSentMessage <'a, 'b>(chat_jid: &'a str, message_id: &'b str) -> Result<Option<Vec<u8>>>; SentMessage, Take;
                delete_expired_sent_messages DeleteExpiredSentMessages <>(cutoff_timestamp: i64) -> Result<u32>; SentMessage, Delete;
                store_pending_inbound StorePendingInbound <'a, 'b, 'c, 'd>(chat: &'a str, sender: &'b str, id: &'c str, message: &'d [u8]) -> Result<()>; PendingInbound, Write;
                get_pending_inbound GetPendingInbound <'a, 'b, 'c>(chat: &'a str, sender: &'b str, id: &'c str) -> Result<Option<Vec<u8>>>; PendingInbound, Read;
                delete_pending_inbound DeletePendingInbound <'a, 'b, 'c>(chat: &'a str, sender: &'b str, id: &'c str) -> Result<()>; PendingInbound, Delete;
                delete_expired_pending_inbound DeleteExpiredPendingInbound <>(cutoff_timestamp: i64) -> Result<u32>; PendingInbound, Delete;
                store_pending_inbound_batch StorePendingInboundBatch <'a, 'b>(rows: &'a [PendingInboundRow<'b>]) -> Result<()>; PendingInbound, Write;
                delete_pending_inbound_batch DeletePendingInboundBatch <'a, 'b>(keys: &'a [PendingInboundKey<'b>]) -> Result<()>; PendingInbound, Delete;
            }
            DeviceStore {
                save Save <'a>(device: &'a Device) -> Result<()>; Device, Write;
                load Load <>() -> Result<Option<Device>>; Device, Read;
                exists Exists <>() -> Result<bool>; Device, Read;
                create Create <>() -> Result<i32>; Device, Write;
                snapshot_db SnapshotDb <'a, 'b>(name: &'a str, extra_content: Option<&'b [u8]>) -> Result<()>; Store, Maintenance;
                resource_report ResourceReport <>() -> StorageResourceReport; Store, Maintenance;
            }
            MsgSecretStore {
                put_msg_secret PutMsgSecret <'a, 'b, 'c, 'd>(chat: &'a str, sender: &'b str, msg_id: &'c str, secret: &'d MessageSecret) -> Result<()>; MessageSecret, Write;
                put_msg_secrets PutMsgSecrets <>(entries: Vec<MsgSecretEntry>) -> Result<usize>; MessageSecret, Write;
                get_msg_secret GetMsgSecret <'a, 'b, 'c>(chat: &'a str, sender: &'b str, msg_id: &'c str) -> Result<Option<Vec<u8>>>; MessageSecret, Read;
                get_msg_secret_with_ts GetMsgSecretWithTs <'a, 'b, 'c>(chat: &'a str, sender: &'b str, msg_id: &'c str) -> Result<Option<(Vec<u8>, i64)>>; MessageSecret, Read;
                delete_expired_msg_secrets DeleteExpiredMsgSecrets <>(cutoff_timestamp: i64) -> Result<u32>; MessageSecret, Delete;
            }
        }
    };
}

/// The types that the table's signatures name, for the macros below.
pub(crate) mod signature {
    pub(crate) use std::collections::HashMap;
    pub(crate) use std::sync::Arc;

    pub(crate) use bytes::Bytes;
    pub(crate) use wacore::appstate::hash::HashState;
    pub(crate) use wacore::appstate::processor::AppStateMutationMAC;
    pub(crate) use wacore::stats::StorageResourceReport;
    pub(crate) use wacore::store::Device;
    pub(crate) use wacore::store::error::Result;
    pub(crate) use wacore::store::traits::{
        AppStateSyncKey, DeviceListRecord, LidPnMappingEntry, MessageSecret, MsgSecretEntry, PendingInboundKey,
        PendingInboundRow, TcTokenEntry,
    };
}

macro_rules! define_method_enum {
    ($($trait:ident { $(
        $name:ident $variant:ident <$($lt:lifetime),*>($($arg:ident: $ty:ty),*) -> $ret:ty; $record:ident, $access:ident;
    )* })*) => {
        /// A method of the upstream storage traits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Method {
            $($(
                #[doc = concat!("`", stringify!($trait), "::", stringify!($name), "`")]
                $variant,
            )*)*
        }

        impl Method {
            /// Every method, in the order of the upstream traits.
            pub const ALL: &'static [Method] = &[$($(Method::$variant,)*)*];

            /// The method's name as upstream spells it, for example `put_session`.
            pub const fn name(self) -> &'static str {
                match self { $($(Method::$variant => stringify!($name),)*)* }
            }

            /// The upstream trait that declares the method, for example `SignalStore`.
            pub const fn trait_name(self) -> &'static str {
                match self { $($(Method::$variant => stringify!($trait),)*)* }
            }

            /// The names of the arguments after `self`, as upstream spells them except for leading underscores.
            pub const fn arguments(self) -> &'static [&'static str] {
                match self { $($(Method::$variant => &[$(stringify!($arg)),*],)*)* }
            }

            /// The record that the method touches.
            pub const fn record(self) -> Record {
                match self { $($(Method::$variant => Record::$record,)*)* }
            }

            /// The kind of work that the method does with its record.
            pub const fn access(self) -> Access {
                match self { $($(Method::$variant => Access::$access,)*)* }
            }
        }
    };
}
for_each_method!(define_method_enum);

// `$d` is a dollar sign: the only way to write a macro that defines a macro with parameters on stable Rust.
macro_rules! define_forward {
    ($d:tt $($trait:ident { $(
        $name:ident $variant:ident <$($lt:lifetime),*>($($arg:ident: $ty:ty),*) -> $ret:ty; $record:ident, $access:ident;
    )* })*) => {
        /// Writes methods that hand their arguments to `self.inner` and return its future as it is.
        ///
        /// For use inside an `#[async_trait]` impl, which leaves macro items alone; hence the desugared signature.
        macro_rules! forward {
            $($(
                (@ $name) => {
                    fn $name<'s, $($lt,)* 'async_trait>(
                        &'s self, $($arg: $ty),*
                    ) -> $d crate::method::BoxFuture<'async_trait, $ret>
                    where 's: 'async_trait, $($lt: 'async_trait,)* Self: 'async_trait
                    {
                        self.inner.$name($($arg),*)
                    }
                };
            )*)*
            ($d($d method:ident),+ $d(,)?) => { $d(forward!(@ $d method);)+ };
        }
        pub(crate) use forward;
    };
}
for_each_method!(define_forward, $);

macro_rules! define_uniform_layer {
    ($d:tt $($trait:ident { $(
        $name:ident $variant:ident <$($lt:lifetime),*>($($arg:ident: $ty:ty),*) -> $ret:ty; $record:ident, $access:ident;
    )* })*) => {
        /// Implements all five traits for a type with a field `inner: Arc<dyn Backend>`. Every call goes through the
        /// type's function `around(&self, Method, arguments, FnOnce(arguments) -> inner future) -> BoxFuture`. The
        /// arguments are a tuple.
        macro_rules! uniform_layer {
            ($d layer:ty) => { const _: () = { use $d crate::method::signature::*; $(
                #[deny(clippy::missing_trait_methods)]
                impl wacore::store::traits::$trait for $d layer { $(
                    fn $name<'s, $($lt,)* 'async_trait>(
                        &'s self, $($arg: $ty),*
                    ) -> $d crate::method::BoxFuture<'async_trait, $ret>
                    where 's: 'async_trait, $($lt: 'async_trait,)* Self: 'async_trait
                    {
                        self.around(
                            $d crate::method::Method::$variant,
                            ($($arg,)*),
                            move |($($arg,)*)| self.inner.$name($($arg),*),
                        )
                    }
                )* }
            )* }; };
        }
        pub(crate) use uniform_layer;
    };
}
for_each_method!(define_uniform_layer, $);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_names_without_spaces_and_capitals() {
        for record in Record::ALL {
            assert_eq!(record.label(), record.name().to_lowercase().replace(' ', "_"));
        }
    }

    #[test]
    fn the_table_has_every_method_once() {
        assert_eq!(Method::ALL.len(), 82);
        let mut names: Vec<_> = Method::ALL.iter().map(|m| m.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 82);
        let per_trait = |name| Method::ALL.iter().filter(|m| m.trait_name() == name).count();
        assert_eq!(
            ["SignalStore", "AppSyncStore", "ProtocolStore", "DeviceStore", "MsgSecretStore"].map(per_trait),
            [25, 10, 36, 6, 5]
        );
    }
}
