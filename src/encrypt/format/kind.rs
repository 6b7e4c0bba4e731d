//! The suite of records and the numbers of their kinds, which are part of the format.

use crate::method::Record;

/// XChaCha20-Poly1305.
pub(crate) const SUITE: u8 = 1;
/// Kinds of record count from 1 to this.
pub(crate) const KINDS: usize = 19;

/// The number of a record kind inside the format; numbers are never reused.
pub(crate) const fn kind_number(record: Record) -> u8 {
    match record {
        Record::Session => 1,
        Record::Identity => 2,
        Record::Prekey => 3,
        Record::SignedPrekey => 4,
        Record::SenderKey => 5,
        Record::SyncKey => 6,
        Record::CollectionVersion => 7,
        Record::MutationMac => 8,
        Record::SenderKeyDevice => 9,
        Record::LidMapping => 10,
        Record::BaseKey => 11,
        Record::DeviceList => 12,
        Record::GroupMetadata => 13,
        Record::TcToken => 14,
        Record::SentMessage => 15,
        Record::PendingInbound => 16,
        Record::MessageSecret => 17,
        Record::Device => 18,
        // `SignalState` and `Store` name methods, not rows; nothing is sealed under them.
        Record::SnapshotExtra | Record::SignalState | Record::Store => 19,
    }
}
