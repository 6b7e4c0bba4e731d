//! The number of rows and bytes in the arguments and the answers of a call.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::stats::StorageResourceReport;
use wacore::store::Device;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::{
    AppStateSyncKey, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry, PendingInboundKey, PendingInboundRow,
    TcTokenEntry,
};

use super::outcome::Outcome;
use crate::method::{Access, Method};

/// The volume of arguments or of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// The number of rows of a value. A list takes precedence over a name beside it, which all its rows share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rows {
    None,
    One,
    List(u64),
}

impl Rows {
    fn number(self) -> u64 {
        match self {
            Rows::None => 0,
            Rows::One => 1,
            Rows::List(rows) => rows,
        }
    }
}

/// A value that passes through the storage traits.
pub(super) trait Measure {
    fn rows(&self) -> Rows {
        Rows::One
    }

    /// The bytes of keys and contents. Numbers and flags do not count.
    fn size(&self) -> u64 {
        0
    }

    /// The number of rows that a sweep reports as removed.
    fn removed(&self) -> Option<u64> {
        None
    }
}

/// The arguments of a call, as `uniform_layer!` passes them.
pub(super) trait Arguments {
    fn volume(&self) -> Volume;
}

/// The answer of a call.
pub(super) trait Answer {
    fn outcome(&self) -> Outcome;
    fn volume(&self, method: Method) -> Volume;
}

impl<T: Measure> Answer for Result<T> {
    fn outcome(&self) -> Outcome {
        self.as_ref().err().map_or(Outcome::Ok, of_error)
    }

    fn volume(&self, method: Method) -> Volume {
        let Ok(value) = self else { return Volume::default() };
        let rows = match value.removed() {
            Some(removed) if method.access() == Access::Delete => removed,
            // The highest prekey id is not a number of rows.
            Some(_) => 0,
            None => value.rows().number(),
        };
        Volume { rows, bytes: value.size() }
    }
}

impl Answer for StorageResourceReport {
    fn outcome(&self) -> Outcome {
        Outcome::Ok
    }

    fn volume(&self, _: Method) -> Volume {
        Volume::default()
    }
}

/// The class of an error. It walks the error's sources, so call it only for failed calls.
fn of_error(error: &StoreError) -> Outcome {
    match error {
        // Upstream returns this when it gives up on a contended database (`whatsapp-rust-sqlite-storage` 0.7,
        // `sqlite_store.rs`).
        StoreError::RetriesExhausted { .. } => Outcome::Busy,
        error if error.is_database_busy_or_locked() => Outcome::Busy,
        StoreError::Connection(_) => Outcome::Connection,
        StoreError::Validation(_) | StoreError::InvalidConfig(_) => Outcome::Validation,
        StoreError::Serialization(_) => Outcome::Serialization,
        _ => Outcome::Other,
    }
}

macro_rules! tuples {
    ($(($($argument:ident),*))*) => { $(
        impl<$($argument: Measure),*> Arguments for ($($argument,)*) {
            #[allow(non_snake_case, reason = "the variable is called as its type")]
            #[inline]
            fn volume(&self) -> Volume {
                let ($($argument,)*) = self;
                let rows = Rows::None$(.max($argument.rows()))*.number();
                Volume { rows, bytes: 0 $(+ $argument.size())* }
            }
        }
    )* };
}
tuples!(()(A)(A, B)(A, B, C)(A, B, C, D));

impl<T: Measure + ?Sized> Measure for &T {
    fn rows(&self) -> Rows {
        (**self).rows()
    }

    fn size(&self) -> u64 {
        (**self).size()
    }
}

impl Measure for () {
    fn rows(&self) -> Rows {
        Rows::None
    }
}

/// An answer that a row exists counts as a found row.
impl Measure for bool {
    fn rows(&self) -> Rows {
        if *self { Rows::One } else { Rows::None }
    }
}

/// The id of a prekey, or the number of rows that a sweep removed.
impl Measure for u32 {
    fn removed(&self) -> Option<u64> {
        Some(u64::from(*self))
    }
}

macro_rules! numbers {
    ($($type:ty),*) => { $(
        impl Measure for $type {
            fn rows(&self) -> Rows {
                Rows::None
            }
        }
    )* };
}
numbers!(i32, i64, u64, usize);

macro_rules! byte_strings {
    ($($type:ty),*) => { $(
        impl Measure for $type {
            fn size(&self) -> u64 {
                self.len() as u64
            }
        }
    )* };
}
byte_strings!(str, String, Arc<str>, [u8], [u8; 32], Vec<u8>, Bytes);

impl<T: Measure> Measure for Option<T> {
    fn rows(&self) -> Rows {
        if self.is_some() { Rows::One } else { Rows::None }
    }

    fn size(&self) -> u64 {
        self.as_ref().map_or(0, T::size)
    }
}

/// A row of a batch.
impl<A: Measure, B: Measure> Measure for (A, B) {
    fn size(&self) -> u64 {
        self.0.size() + self.1.size()
    }
}

macro_rules! batches {
    ($($type:ty),* $(,)?) => { $(
        impl Measure for [$type] {
            fn rows(&self) -> Rows {
                Rows::List(self.len() as u64)
            }

            fn size(&self) -> u64 {
                self.iter().map(Measure::size).sum()
            }
        }

        impl Measure for Vec<$type> {
            fn rows(&self) -> Rows {
                self.as_slice().rows()
            }

            fn size(&self) -> u64 {
                self.as_slice().size()
            }
        }
    )* };
}
batches!(
    u32,
    &str,
    String,
    Vec<u8>,
    [u8; 32],
    (&str, bool),
    (String, bool),
    (Arc<str>, Bytes),
    (Arc<str>, [u8; 32]),
    (u32, Bytes),
    (u32, Vec<u8>),
    AppStateMutationMAC,
    DeviceListRecord,
    LidPnMappingEntry,
    MsgSecretEntry,
    PendingInboundKey<'_>,
    PendingInboundRow<'_>,
);

impl Measure for HashMap<[u8; 32], Vec<u8>> {
    fn rows(&self) -> Rows {
        Rows::List(self.len() as u64)
    }

    fn size(&self) -> u64 {
        self.iter().map(|(key, value)| key.size() + value.size()).sum()
    }
}

impl Measure for AppStateMutationMAC {
    fn size(&self) -> u64 {
        self.index_mac.size() + self.value_mac.size()
    }
}

impl Measure for AppStateSyncKey {
    fn size(&self) -> u64 {
        self.key_data.size() + self.fingerprint.size()
    }
}

/// Stores return version 0 for a collection that they do not have.
impl Measure for HashState {
    fn rows(&self) -> Rows {
        (self.version > 0).rows()
    }

    fn size(&self) -> u64 {
        if self.version == 0 {
            return 0;
        }
        let entries = self.index_value_map.iter().map(|(index, value)| index.size() + value.size());
        self.hash.len() as u64 + entries.sum::<u64>()
    }
}

impl Measure for LidPnMappingEntry {
    fn size(&self) -> u64 {
        self.lid.size() + self.phone_number.size() + self.learning_source.size()
    }
}

impl Measure for DeviceListRecord {
    fn size(&self) -> u64 {
        self.user.size() + self.phash.size()
    }
}

impl Measure for TcTokenEntry {
    fn size(&self) -> u64 {
        self.token.size()
    }
}

impl Measure for MsgSecretEntry {
    fn size(&self) -> u64 {
        self.chat.size() + self.sender.size() + self.msg_id.size() + self.secret.size()
    }
}

impl Measure for PendingInboundRow<'_> {
    fn size(&self) -> u64 {
        self.chat.size() + self.sender.size() + self.id.size() + self.message.size()
    }
}

impl Measure for PendingInboundKey<'_> {
    fn size(&self) -> u64 {
        self.chat.size() + self.sender.size() + self.id.size()
    }
}

/// The size in memory, without spare capacity of its parts of variable length.
impl Measure for Device {
    fn size(&self) -> u64 {
        let account = self.account.as_deref().map_or(0, |account| {
            let parts = [
                &account.details,
                &account.account_signature_key,
                &account.account_signature,
                &account.device_signature,
            ];
            parts.map(Measure::size).into_iter().sum()
        });
        let parts = [&self.edge_routing_info, &self.nct_salt].map(Measure::size).into_iter().sum::<u64>();
        size_of::<Device>() as u64 + account + parts + self.push_name.size() + self.props_hash.size()
    }
}
