//! Stores that break one promise each, and the rules that detect them: every rule can fail.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::stats::StorageResourceReport;
use wacore::store::error::Result;
use wacore::store::traits::*;
use wacore::store::{Device, InMemoryBackend};

use crate::method::{BoxFuture, Method, forward, uniform_layer};
use crate::testing::arguments::{Arguments, Key};
use crate::testing::rules::{contents, keyed};
use crate::testing::{Rule, Subject};

macro_rules! violations {
    ($($violation:ident => $module:ident::$rule:ident;)*) => {
        /// A way in which a store can be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Violation {
            Nothing,
            $($violation,)*
        }

        impl Violation {
            const ALL: &[Violation] = &[$(Violation::$violation,)*];

            /// The rule that must detect it.
            fn caught_by(self) -> (&'static str, &'static str) {
                match self { Violation::Nothing => ("", ""), $(Violation::$violation => (stringify!($module), stringify!($rule)),)* }
            }
        }
    };
}

violations! {
    IdentityBatchForgetsTheLast => identity::a_batch_stores_every_row;
    IdentityBatchKeepsTheFirstOfTwo => identity::of_two_rows_of_a_batch_the_later_wins;
    IdentityBatchIsALoop => atomic_batches::a_batch_of_identities_is_seen_whole;
    IdentityIsASession => identity::is_kept_apart_from_the_session_of_the_same_address;
    SessionBatchForgetsTheFirst => session::a_batch_stores_every_row;
    SessionBatchIsALoop => session::a_batch_is_seen_whole;
    SessionBatchDroppedHalfWay => session::a_batch_that_is_dropped_half_way_is_stored_whole_or_not_at_all;
    SessionBatchStopsAtALimit => session::a_batch_may_have_ten_thousand_rows;
    SessionBatchOfNothingClears => session::an_empty_batch_changes_nothing;
    SessionBatchKeepsTheFirstOfTwo => session::of_two_rows_of_a_batch_the_later_wins;
    SessionAddressesFoldCase => session::goes_by_its_exact_key;
    SessionAddressesAreCut => session::goes_by_its_exact_key;
    SessionAddressesLoseTheDevice => session::goes_by_its_exact_key;
    SessionAddressesAreTrimmed => session::goes_by_its_exact_key;
    SessionsDeletedByPattern => session::deleting_removes_one_and_no_other;
    SessionOfNothingIsAbsent => session::comes_back_as_it_was_stored;
    SessionIsCut => session::comes_back_as_it_was_stored;
    SessionIsText => session::comes_back_as_it_was_stored;
    SessionStaysWhenStoredAgain => session::is_replaced_when_stored_again;
    SessionReadIsStale => session::is_replaced_when_stored_again;
    SessionReadIsStaleAfterDelete => session::deleting_removes_one_and_no_other;
    SessionReadIsStaleAfterABatch => session::a_batch_stores_every_row;
    SessionWritesMix => session::concurrent_writers_lose_nothing_and_mix_nothing;
    SessionOfNothingDoesNotExist => session::exists_exactly_if_it_can_be_read;
    SignalStateByPrefix => signal_state::of_a_user_is_not_that_of_one_with_a_longer_or_shorter_number;
    SignalStateWithoutServer => signal_state::does_not_come_from_an_address_without_a_server;
    SignalStateOfSessionsOnly => signal_state::of_a_user_is_found_by_a_session_or_an_identity;
    SignalStateIsNeverForgotten => signal_state::of_a_user_is_gone_with_the_last_session_and_identity;
    PrekeyBatchIsALoop => atomic_batches::a_batch_of_prekeys_is_seen_whole;
    PrekeyMarkingLoadsThenStores => prekey::marking_as_uploaded_brings_none_back_that_is_just_removed;
    PrekeyMarkingInserts => prekey::marking_as_uploaded_changes_no_key_and_brings_none_back;
    PrekeyMarkingEmptiesTheKey => prekey::marking_as_uploaded_changes_no_key_and_brings_none_back;
    PrekeyMaximumNeverFalls => prekey::the_highest_id_is_the_highest_of_those_stored;
    PrekeyMaximumCountsSignedOnes => prekey::the_highest_id_is_the_highest_of_those_stored;
    PrekeyLookupStopsAtAMissingOne => prekey::several_are_loaded_at_once_and_missing_ones_left_out;
    PrekeyLookupIsLimited => prekey::several_are_loaded_at_once_and_missing_ones_left_out;
    PrekeyIsASignedPrekey => signed_prekey::is_kept_apart_from_the_prekey_of_the_same_id;
    SignedPrekeyListIsLimited => signed_prekey::all_are_listed;
    SenderKeyBatchIsALoop => sender_key::a_batch_is_seen_whole;
    SenderKeyIsASession => sender_key::is_kept_apart_from_the_session_of_the_same_address;

    SyncKeyLosesItsTime => sync_key::comes_back_as_it_was_stored;
    SyncKeyLosesItsFingerprint => sync_key::comes_back_as_it_was_stored;
    SyncKeyIdIsText => sync_key::its_id_is_any_bytes;
    SyncKeyLatestIsTheFirst => sync_key::the_latest_is_one_of_those_stored;
    VersionLosesItsIndex => collection_version::comes_back_as_it_was_stored;
    VersionLosesTheFatalFlag => collection_version::comes_back_as_it_was_stored;
    VersionIsSigned => collection_version::every_field_reaches_its_bounds;
    VersionCannotBeReset => collection_version::every_field_reaches_its_bounds;
    MacsForgetTheCollection => mutation_mac::belongs_to_its_collection;
    MacsOfAllCollectionsAreCleared => mutation_mac::clearing_a_collection_spares_the_others;
    MacsClearedWithTheVersion => mutation_mac::clearing_a_collection_spares_the_others;
    MacsOfTheLastVersionOnly => mutation_mac::stays_when_a_later_version_is_stored;
    MacsReadInPart => mutation_mac::a_batch_may_have_ten_thousand_rows;
    MacsReadWithMissingOnes => mutation_mac::several_are_read_at_once_and_missing_ones_left_out;
    MacIndexIsPadded => any_mac_length::a_mutation_mac_and_its_index_may_have_any_length;
    MacValueIsCut => any_mac_length::a_mutation_mac_and_its_index_may_have_any_length;
    MacBatchIsALoop => atomic_batches::a_batch_of_mutation_macs_is_seen_whole;
    MacsOfOneWriterOnly => mutation_mac::concurrent_writers_lose_nothing;

    StatusBatchIsALoop => atomic_batches::the_flags_of_a_group_are_seen_whole;
    StatusWrittenAsAWholeGroup => sender_key_device::concurrent_writers_lose_nothing;
    StatusReplacesTheGroup => sender_key_device::all_of_a_group_are_listed_with_their_flag;
    StatusFlagNeverFalls => sender_key_device::all_of_a_group_are_listed_with_their_flag;
    StatusOfNothingClears => sender_key_device::an_empty_batch_changes_nothing;
    StatusKeepsTheFirstOfTwo => sender_key_device::of_two_entries_of_a_batch_the_later_wins;
    StatusGroupsFoldCase => sender_key_device::groups_and_devices_go_by_their_exact_names;
    StatusListIsLimited => sender_key_device::a_batch_may_have_ten_thousand_rows;
    StatusDeletedInOneGroup => sender_key_device::deleting_devices_removes_them_from_every_group;
    StatusClearedByPrefix => sender_key_device::clearing_a_group_spares_the_others;
    StatusClearedWithSenderKeys => sender_key_device::clearing_all_leaves_no_group;
    StatusOfUnknownGroupIsAnError => sender_key_device::an_unknown_group_has_none;
    LidMappingBatchIsALoop => atomic_batches::a_batch_of_lid_mappings_is_seen_whole;
    LidMappingLosesItsSource => lid_mapping::comes_back_as_it_was_stored;
    LidMappingOldestWins => lid_mapping::of_a_phone_number_is_the_newest;
    LidMappingStaysAtItsOldNumber => lid_mapping::that_moved_to_another_number_leaves_the_old_one;
    LidMappingsOnePerNumber => lid_mapping::all_are_listed;
    LidMappingFoundByLidAsNumber => lid_mapping::is_found_by_its_phone_number;
    LidMappingBatchForgetsTheLast => lid_mapping::a_batch_stores_every_row;
    BaseKeyComparedByPrefix => base_key::is_the_same_only_byte_for_byte;
    BaseKeyParts => base_key::goes_by_address_and_message;
    DeviceListBatchIsALoop => atomic_batches::a_batch_of_device_lists_is_seen_whole;
    DeviceListLosesHosting => device_list::comes_back_as_it_was_stored;
    DeviceListLosesPhash => device_list::comes_back_as_it_was_stored;
    DeviceListMergesDevices => device_list::is_replaced_when_stored_again;
    DeviceListBatchForgetsTheLast => device_list::a_batch_stores_every_row;
    GroupMetadataIsNotKept => group_metadata::comes_back_as_it_was_stored;
    GroupMetadataIsNotDeleted => group_metadata::deleting_removes_one_and_no_other;
    TcTouchReplacesTheToken => tc_token::touching_the_sender_time_keeps_the_token;
    TcTouchMakesNoPlaceholder => tc_token::touching_the_sender_time_makes_a_placeholder;
    TcTouchGoesBack => tc_token::the_sender_time_never_goes_back;
    TcReceivedAlwaysWins => tc_token::a_received_one_replaces_one_that_is_not_newer;
    TcReceivedMustBeNewer => tc_token::a_received_one_replaces_one_that_is_not_newer;
    TcReceivedForgetsTheSender => tc_token::a_received_one_keeps_the_sender_time;
    TcReceivedLosesToAPlaceholder => tc_token::a_received_one_replaces_any_placeholder;
    TcMergedInTwoSteps => tc_token::concurrent_writers_of_token_and_sender_time_lose_nothing;
    TcSweepForgetsTheSender => tc_token::expires_when_nothing_of_it_is_live;
    TcSweepOneSecondLate => tc_token::expires_when_nothing_of_it_is_live;
    TcSweepCountsNothing => tc_token::expires_when_nothing_of_it_is_live;
    TcPlaceholdersAreNotListed => tc_token::all_jids_are_listed;
    SentMessageTakenTwice => sent_message::is_taken_once;
    SentMessageTakenInTwoSteps => sent_message::is_taken_by_exactly_one_of_many_at_once;
    SentMessageKeepsItsFirstTime => sent_message::is_as_old_as_its_last_store;
    SentMessageParts => sent_message::goes_by_chat_and_id;
    SentMessageExpiresAtTheCutoff => sent_message::expires_when_it_is_older_than_the_cutoff;
    PendingBatchIsALoop => atomic_batches::a_batch_of_pending_messages_is_seen_whole;
    PendingKeepsItsFirstTime => pending_inbound::is_as_old_as_its_last_store;
    PendingReadRemoves => pending_inbound::stays_after_it_was_read;
    PendingParts => pending_inbound::goes_by_chat_sender_and_id;
    PendingDeletesTheWholeChat => pending_inbound::a_batch_of_keys_deletes_exactly_these;
    PendingExpiresAtTheCutoff => pending_inbound::expires_when_it_is_older_than_the_cutoff;
    PendingBatchForgetsTheLast => pending_inbound::a_batch_stores_every_row;

    DeviceIsThereFromTheStart => own_device::is_absent_until_created;
    DeviceIsNewOnEveryLoad => own_device::is_there_and_unpaired_once_created;
    DeviceLosesItsSalt => own_device::comes_back_as_it_was_saved;
    DeviceIsSavedOnce => own_device::comes_back_as_it_was_saved;
    DeviceNeedsToBeCreated => own_device::may_be_saved_without_having_been_created;
    SnapshotEmptiesTheStore => own_device::reports_and_snapshots_change_nothing;

    SecretIsNotReplaced => message_secret::is_replaced_when_stored_again;
    SecretParts => message_secret::goes_by_chat_sender_and_id;
    SecretCountsRows => message_secret::is_counted;
    SecretCountsOnce => counts_repeated_secrets::a_message_secret_is_counted_as_often_as_it_was_given;
    SecretLosesTheTime => message_secret::comes_with_the_time_of_its_message;
    SecretTimeGoesBack => message_secret::keeps_the_later_time_of_its_message;
    SecretTimesMixUnderLoad => message_secret::concurrent_writers_keep_the_latest_times;
    SecretDeadlineGoesBack => message_secret::keeps_the_later_deadline;
    SecretDeadlineOfZeroIsPast => message_secret::a_deadline_of_zero_is_never_and_wins;
    SecretExpiresOneSecondLate => message_secret::expires_at_its_deadline_and_not_before;
    SecretExpiresOneSecondEarly => message_secret::expires_at_its_deadline_and_not_before;
    SecretNegativeDeadlineIsNever => message_secret::expires_at_its_deadline_and_not_before;
    SecretBatchIsALoop => atomic_batches::a_batch_of_message_secrets_is_seen_whole;

    AccountsShareSessions => account::sees_nothing_of_what_another_stores;
    AccountsShareTheAddressBook => account::keeps_its_own_value_under_a_shared_key;
    AccountsShareTheDevice => account::keeps_its_own_value_under_a_shared_key;
    AccountsAreSweptTogether => account::keeps_what_another_deletes;
}

/// A store that keeps every promise but one.
struct Mutant {
    inner: Arc<dyn Backend>,
    /// The store of another account.
    neighbour: Arc<dyn Backend>,
    violation: Violation,
    /// The sessions that were read.
    read: Mutex<HashMap<String, Option<Bytes>>>,
    /// The names that were used: addresses, groups, ids.
    names: Mutex<BTreeSet<String>>,
    /// How often each message secret was stored.
    times: Mutex<HashMap<String, u32>>,
    highest_prekey: Mutex<u32>,
    first_sync_key: Mutex<Option<Vec<u8>>>,
    old_numbers: Mutex<HashMap<String, LidPnMappingEntry>>,
    known_macs: Mutex<Vec<AppStateMutationMAC>>,
    deadlines: Mutex<HashMap<String, i64>>,
    /// The times at which rows were first stored.
    first_stored: Mutex<HashMap<String, i64>>,
}

impl Mutant {
    fn over(inner: Arc<dyn Backend>, neighbour: Arc<dyn Backend>, violation: Violation) -> Arc<dyn Backend> {
        Arc::new(Self {
            inner,
            neighbour,
            violation,
            read: Mutex::default(),
            names: Mutex::default(),
            times: Mutex::default(),
            highest_prekey: Mutex::default(),
            first_sync_key: Mutex::default(),
            old_numbers: Mutex::default(),
            known_macs: Mutex::default(),
            deadlines: Mutex::default(),
            first_stored: Mutex::default(),
        })
    }

    fn is(&self, violation: Violation) -> bool {
        self.violation == violation
    }

    /// The store that holds the sessions.
    fn sessions(&self) -> &dyn Backend {
        if self.is(Violation::AccountsShareSessions) { &*self.neighbour } else { &*self.inner }
    }

    fn address(&self, address: &str) -> String {
        let short = || address.chars().take(255).collect();
        let without_device = || match address.split_once(':') {
            Some((user, device)) => format!("{user}@{}", device.split_once('@').map_or("", |(_, server)| server)),
            None => address.to_owned(),
        };
        match self.violation {
            Violation::SessionAddressesFoldCase => address.to_lowercase(),
            Violation::SessionAddressesAreCut => short(),
            Violation::SessionAddressesLoseTheDevice => without_device(),
            Violation::SessionAddressesAreTrimmed => address.trim_start_matches('0').to_owned(),
            _ => address.to_owned(),
        }
    }

    /// Lets other tasks run between the steps of a batch.
    async fn step() {
        tokio::task::yield_now().await;
    }

    fn note(&self, name: &str) {
        self.names.lock().unwrap().insert(name.to_owned());
    }

    fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().iter().cloned().collect()
    }

    fn note_time(&self, id: &str) {
        self.first_stored.lock().unwrap().entry(id.to_owned()).or_insert_with(wacore::time::now_secs);
    }

    fn is_older_than(&self, cutoff: i64) -> bool {
        self.first_stored.lock().unwrap().values().any(|stored| *stored < cutoff)
    }

    /// The id under which a message secret is stored. It is different every time, so that nothing merges.
    fn fresh(&self, id: &str) -> String {
        let mut times = self.times.lock().unwrap();
        let time = times.entry(id.to_owned()).or_default();
        *time += 1;
        format!("{id} {time}")
    }

    fn current(&self, id: &str) -> String {
        let unmerged = matches!(
            self.violation,
            Violation::SecretTimeGoesBack | Violation::SecretTimesMixUnderLoad | Violation::SecretDeadlineGoesBack
        );
        match self.times.lock().unwrap().get(id) {
            Some(time) if unmerged => format!("{id} {time}"),
            _ => id.to_owned(),
        }
    }

    fn secret_key(&self, chat: &str, sender: &str, id: &str) -> [String; 3] {
        let id = self.current(id);
        match self.violation {
            Violation::SecretParts => [String::new(), String::new(), format!("{chat}{sender}{id}")],
            _ => [chat.to_owned(), sender.to_owned(), id],
        }
    }

    fn pending_key(&self, chat: &str, sender: &str, id: &str) -> [String; 3] {
        match self.violation {
            Violation::PendingParts => [String::new(), String::new(), format!("{chat}:{sender}:{id}")],
            _ => [chat.to_owned(), sender.to_owned(), id.to_owned()],
        }
    }
}

fn all_but_last<T>(rows: &[T]) -> &[T] {
    rows.split_last().map_or(rows, |(_, rest)| rest)
}

#[async_trait]
impl SignalStore for Mutant {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        self.note(address);
        if self.is(Violation::IdentityIsASession) {
            return self.inner.put_session(address, &key).await;
        }
        self.inner.put_identity(address, key).await
    }
    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        match self.violation {
            Violation::IdentityBatchForgetsTheLast => self.inner.put_identities_batch(all_but_last(identities)).await,
            Violation::IdentityBatchIsALoop => {
                for (address, key) in identities {
                    self.inner.put_identity(address, *key).await?;
                    Self::step().await;
                }
                Ok(())
            }
            Violation::IdentityBatchKeepsTheFirstOfTwo => {
                let reversed: Vec<_> = identities.iter().rev().cloned().collect();
                self.inner.put_identities_batch(&reversed).await
            }
            _ => self.inner.put_identities_batch(identities).await,
        }
    }
    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        if self.is(Violation::IdentityIsASession) {
            return Ok(self.inner.get_session(address).await?.and_then(|key| key[..].try_into().ok()));
        }
        self.inner.load_identity(address).await
    }
    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        let stale = matches!(
            self.violation,
            Violation::SessionReadIsStale
                | Violation::SessionReadIsStaleAfterDelete
                | Violation::SessionReadIsStaleAfterABatch
        );
        if stale && let Some(read) = self.read.lock().unwrap().get(address) {
            return Ok(read.clone());
        }
        let found = self.sessions().get_session(&self.address(address)).await?;
        self.read.lock().unwrap().insert(address.to_owned(), found.clone());
        Ok(match self.violation {
            Violation::SessionOfNothingIsAbsent => found.filter(|record| !record.is_empty()),
            Violation::SessionIsText => found.map(|record| String::from_utf8_lossy(&record).into_owned().into()),
            _ => found,
        })
    }
    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.note(address);
        let address = self.address(address);
        let session = match self.violation {
            Violation::SessionIsCut => &session[..session.len().min(65_535)],
            Violation::SessionStaysWhenStoredAgain if self.inner.has_session(&address).await? => return Ok(()),
            Violation::SessionReadIsStale => {
                // Reads before it writes, like a cache that is being filled.
                self.get_session(&address).await?;
                session
            }
            Violation::SessionReadIsStaleAfterDelete | Violation::SessionReadIsStaleAfterABatch => {
                self.read.lock().unwrap().insert(address.clone(), Some(Bytes::copy_from_slice(session)));
                session
            }
            _ => session,
        };
        if self.is(Violation::SessionWritesMix) {
            let before = self.inner.get_session(&address).await?.unwrap_or_default();
            Self::step().await;
            let mut mixed = session.to_vec();
            if before.len() == mixed.len() {
                mixed[..1].copy_from_slice(&before[..1]);
            }
            return self.inner.put_session(&address, &mixed).await;
        }
        self.sessions().put_session(&address, session).await
    }
    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        sessions.iter().for_each(|(address, _)| self.note(address));
        match self.violation {
            Violation::SessionBatchForgetsTheFirst => {
                self.inner.put_sessions_batch(sessions.get(1..).unwrap_or_default()).await
            }
            Violation::SessionBatchStopsAtALimit => {
                self.inner.put_sessions_batch(&sessions[..sessions.len().min(999)]).await
            }
            Violation::SessionBatchIsALoop | Violation::SessionBatchDroppedHalfWay => {
                for (address, session) in sessions {
                    self.inner.put_session(address, session).await?;
                    Self::step().await;
                }
                Ok(())
            }
            Violation::SessionBatchOfNothingClears if sessions.is_empty() => {
                for address in self.names() {
                    self.inner.delete_session(&address).await?;
                }
                Ok(())
            }
            Violation::SessionBatchKeepsTheFirstOfTwo => {
                let reversed: Vec<_> = sessions.iter().rev().cloned().collect();
                self.inner.put_sessions_batch(&reversed).await
            }
            _ => self.sessions().put_sessions_batch(sessions).await,
        }
    }
    async fn delete_identity(&self, address: &str) -> Result<()> {
        if self.is(Violation::IdentityIsASession) {
            return self.inner.delete_session(address).await;
        }
        self.inner.delete_identity(address).await
    }
    async fn delete_session(&self, address: &str) -> Result<()> {
        if !self.is(Violation::SessionReadIsStaleAfterDelete) {
            self.read.lock().unwrap().remove(address);
        }
        if self.is(Violation::SessionsDeletedByPattern) {
            let matches = |name: &String| {
                let pattern = address.replace('%', "");
                let alike = |(one, other): (char, char)| one == '_' || one == other;
                name.chars().count() == pattern.chars().count() && pattern.chars().zip(name.chars()).all(alike)
            };
            for name in self.names().iter().filter(|name| matches(name)) {
                self.inner.delete_session(name).await?;
            }
        }
        self.sessions().delete_session(&self.address(address)).await
    }
    async fn has_session(&self, address: &str) -> Result<bool> {
        if self.is(Violation::SessionOfNothingDoesNotExist) {
            return Ok(self.inner.get_session(address).await?.is_some_and(|record| !record.is_empty()));
        }
        self.sessions().has_session(&self.address(address)).await
    }
    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        let names = self.names();
        Ok(match self.violation {
            Violation::SignalStateByPrefix => names.iter().any(|name| name.starts_with(user)),
            Violation::SignalStateWithoutServer => {
                names.iter().any(|name| name == user) || self.inner.has_signal_state_for_user(user).await?
            }
            Violation::SignalStateIsNeverForgotten => {
                let found = self.inner.has_signal_state_for_user(user).await?;
                if found {
                    self.note(&format!("found {user}"));
                }
                found || names.contains(&format!("found {user}"))
            }
            Violation::SignalStateOfSessionsOnly => {
                let mut found = false;
                for name in names.iter().filter(|name| name.split(['@', ':']).next() == Some(user)) {
                    found |= self.inner.has_session(name).await?;
                }
                found
            }
            _ => self.sessions().has_signal_state_for_user(user).await?,
        })
    }
    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        let mut highest = *self.highest_prekey.lock().unwrap();
        highest = highest.max(id);
        *self.highest_prekey.lock().unwrap() = highest;
        if self.is(Violation::PrekeyIsASignedPrekey) {
            self.inner.store_signed_prekey(id, record).await?;
        }
        self.inner.store_prekey(id, record, uploaded).await
    }
    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        if self.is(Violation::PrekeyBatchIsALoop) {
            for (id, record) in keys {
                self.inner.store_prekey(*id, record, uploaded).await?;
                Self::step().await;
            }
            return Ok(());
        }
        self.inner.store_prekeys_batch(keys, uploaded).await
    }
    async fn load_prekeys_batch(&self, ids: &[u32]) -> Result<Vec<(u32, Bytes)>> {
        match self.violation {
            Violation::PrekeyLookupStopsAtAMissingOne => {
                let mut found = vec![];
                for id in ids {
                    let Some(record) = self.inner.load_prekey(*id).await? else { break };
                    found.push((*id, record));
                }
                Ok(found)
            }
            Violation::PrekeyLookupIsLimited => self.inner.load_prekeys_batch(&ids[..ids.len().min(2)]).await,
            _ => self.inner.load_prekeys_batch(ids).await,
        }
    }
    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        for id in ids {
            let stored = self.inner.load_prekey(*id).await?;
            if self.is(Violation::PrekeyMarkingInserts) && stored.is_none() {
                self.inner.store_prekey(*id, b"", true).await?;
            }
            if self.is(Violation::PrekeyMarkingLoadsThenStores)
                && let Some(record) = &stored
            {
                Self::step().await;
                self.inner.store_prekey(*id, record, true).await?;
            }
            if self.is(Violation::PrekeyMarkingEmptiesTheKey) && stored.is_some() {
                self.inner.store_prekey(*id, b"", true).await?;
            }
        }
        self.inner.mark_prekeys_uploaded(ids).await
    }
    async fn get_max_prekey_id(&self) -> Result<u32> {
        let stored = self.inner.get_max_prekey_id().await?;
        Ok(match self.violation {
            Violation::PrekeyMaximumNeverFalls => stored.max(*self.highest_prekey.lock().unwrap()),
            Violation::PrekeyMaximumCountsSignedOnes => {
                let signed = self.inner.load_all_signed_prekeys().await?;
                signed.iter().map(|(id, _)| *id).chain([stored]).max().unwrap_or(0)
            }
            _ => stored,
        })
    }
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let mut all = self.inner.load_all_signed_prekeys().await?;
        if self.is(Violation::SignedPrekeyListIsLimited) {
            all.truncate(1);
        }
        Ok(all)
    }
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        self.note(address);
        if self.is(Violation::SenderKeyIsASession) {
            return self.inner.put_session(address, record).await;
        }
        self.inner.put_sender_key(address, record).await
    }
    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        if self.is(Violation::SenderKeyBatchIsALoop) {
            for (address, record) in sender_keys {
                self.inner.put_sender_key(address, record).await?;
                Self::step().await;
            }
            return Ok(());
        }
        self.inner.put_sender_keys_batch(sender_keys).await
    }
    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        if self.is(Violation::SenderKeyIsASession) {
            return Ok(self.inner.get_session(address).await?.map(Vec::from));
        }
        self.inner.get_sender_key(address).await
    }
    forward!(load_prekey, remove_prekey, store_signed_prekey, load_signed_prekey, remove_signed_prekey);
    forward!(delete_sender_key);
}

#[async_trait]
impl AppSyncStore for Mutant {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        let found = match self.violation {
            Violation::SyncKeyIdIsText => {
                self.inner.get_sync_key(String::from_utf8_lossy(key_id).trim().as_bytes()).await?
            }
            _ => self.inner.get_sync_key(key_id).await?,
        };
        Ok(found.map(|key| match self.violation {
            Violation::SyncKeyLosesItsTime => AppStateSyncKey { timestamp: 0, ..key },
            Violation::SyncKeyLosesItsFingerprint => AppStateSyncKey { fingerprint: vec![], ..key },
            _ => key,
        }))
    }
    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        self.first_sync_key.lock().unwrap().get_or_insert(key_id.to_vec());
        if self.is(Violation::SyncKeyIdIsText) {
            return self.inner.set_sync_key(String::from_utf8_lossy(key_id).trim().as_bytes(), key).await;
        }
        self.inner.set_sync_key(key_id, key).await
    }
    async fn get_version(&self, name: &str) -> Result<HashState> {
        let state = self.inner.get_version(name).await?;
        Ok(match self.violation {
            Violation::VersionLosesItsIndex => HashState { index_value_map: HashMap::new(), ..state },
            Violation::VersionLosesTheFatalFlag => HashState { mac_mismatch_fatal: false, ..state },
            Violation::VersionIsSigned => HashState { version: state.version.min(i64::MAX as u64), ..state },
            _ => state,
        })
    }
    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        if self.is(Violation::VersionCannotBeReset) && state.version == 0 {
            return Ok(());
        }
        self.inner.set_version(name, state).await
    }
    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        self.note(name);
        let name = if self.is(Violation::MacsForgetTheCollection) { "" } else { name };
        if self.is(Violation::MacsOfTheLastVersionOnly) && !mutations.is_empty() {
            self.inner.clear_mutation_macs(name).await?;
        }
        let mutations: Vec<_> = mutations
            .iter()
            .map(|mac| {
                let (mut index_mac, mut value_mac) = (mac.index_mac.clone(), mac.value_mac.clone());
                match self.violation {
                    Violation::MacIndexIsPadded => index_mac.resize(index_mac.len().max(32), 0),
                    Violation::MacValueIsCut => value_mac.truncate(300),
                    _ => {}
                }
                AppStateMutationMAC { index_mac, value_mac }
            })
            .collect();
        match self.violation {
            Violation::MacBatchIsALoop => {
                for mac in mutations {
                    self.inner.put_mutation_macs(name, version, &[mac]).await?;
                    Self::step().await;
                }
                Ok(())
            }
            Violation::MacsOfOneWriterOnly => {
                // All rows of the collection, as they were before.
                let known: Vec<_> = self.known_macs.lock().unwrap().clone();
                Self::step().await;
                let all: Vec<_> = known.into_iter().chain(mutations).collect();
                self.inner.clear_mutation_macs(name).await?;
                self.inner.put_mutation_macs(name, version, &all).await?;
                *self.known_macs.lock().unwrap() = all;
                Ok(())
            }
            _ => self.inner.put_mutation_macs(name, version, &mutations).await,
        }
    }
    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        let name = if self.is(Violation::MacsForgetTheCollection) { "" } else { name };
        let mut index_mac = index_mac.to_vec();
        if self.is(Violation::MacIndexIsPadded) {
            index_mac.resize(index_mac.len().max(32), 0);
        }
        self.inner.get_mutation_mac(name, &index_mac).await
    }
    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        let name = if self.is(Violation::MacsForgetTheCollection) { "" } else { name };
        let index_macs = match self.violation {
            Violation::MacsReadInPart => &index_macs[..index_macs.len().min(500)],
            _ => index_macs,
        };
        let mut found = self.inner.get_mutation_macs(name, index_macs).await?;
        if self.is(Violation::MacsReadWithMissingOnes) {
            for index in index_macs {
                found.entry(*index).or_default();
            }
        }
        Ok(found)
    }
    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        let name = if self.is(Violation::MacsForgetTheCollection) { "" } else { name };
        self.inner.delete_mutation_macs(name, index_macs).await
    }
    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        match self.violation {
            Violation::MacsOfAllCollectionsAreCleared => {
                for name in self.names() {
                    self.inner.clear_mutation_macs(&name).await?;
                }
            }
            Violation::MacsClearedWithTheVersion => self.inner.set_version(name, HashState::default()).await?,
            _ => {}
        }
        self.inner.clear_mutation_macs(name).await
    }
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        if self.is(Violation::SyncKeyLatestIsTheFirst) {
            return Ok(self.first_sync_key.lock().unwrap().clone());
        }
        self.inner.get_latest_sync_key_id().await
    }
}

#[async_trait]
impl ProtocolStore for Mutant {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        let group = if self.is(Violation::StatusGroupsFoldCase) { group_jid.to_lowercase() } else { group_jid.into() };
        let mut devices = self.inner.get_sender_key_devices(&group).await?;
        match self.violation {
            Violation::StatusListIsLimited => devices.truncate(1000),
            Violation::StatusOfUnknownGroupIsAnError if devices.is_empty() => return Err(super::super::Fault::error()),
            _ => {}
        }
        Ok(devices)
    }
    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        self.note(group_jid);
        let before = self.inner.get_sender_key_devices(group_jid).await?;
        let had_key = |device: &str| before.iter().any(|(known, flag)| known == device && *flag);
        match self.violation {
            Violation::StatusBatchIsALoop => {
                for entry in entries {
                    self.inner.set_sender_key_status(group_jid, &[*entry]).await?;
                    Self::step().await;
                }
                return Ok(());
            }
            Violation::StatusWrittenAsAWholeGroup => {
                Self::step().await;
                let mut rows: HashMap<_, _> = before.iter().map(|(device, flag)| (device.as_str(), *flag)).collect();
                rows.extend(entries.iter().copied());
                self.inner.clear_sender_key_devices(group_jid).await?;
                let rows: Vec<_> = rows.into_iter().collect();
                return self.inner.set_sender_key_status(group_jid, &rows).await;
            }
            Violation::StatusReplacesTheGroup => self.inner.clear_sender_key_devices(group_jid).await?,
            Violation::StatusOfNothingClears if entries.is_empty() => {
                self.inner.clear_sender_key_devices(group_jid).await?;
            }
            Violation::StatusKeepsTheFirstOfTwo => {
                let reversed: Vec<_> = entries.iter().rev().copied().collect();
                return self.inner.set_sender_key_status(group_jid, &reversed).await;
            }
            Violation::StatusFlagNeverFalls => {
                let kept: Vec<_> = entries.iter().map(|(device, flag)| (*device, *flag || had_key(device))).collect();
                return self.inner.set_sender_key_status(group_jid, &kept).await;
            }
            Violation::StatusGroupsFoldCase => {
                return self.inner.set_sender_key_status(&group_jid.to_lowercase(), entries).await;
            }
            _ => {}
        }
        self.inner.set_sender_key_status(group_jid, entries).await
    }
    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        if self.is(Violation::StatusClearedByPrefix) {
            let prefix = group_jid.split('@').next().unwrap_or_default();
            for group in self.names().iter().filter(|group| group.starts_with(prefix)) {
                self.inner.clear_sender_key_devices(group).await?;
            }
        }
        self.inner.clear_sender_key_devices(group_jid).await
    }
    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        if self.is(Violation::StatusDeletedInOneGroup) {
            let Some(group) = self.names().into_iter().next() else { return Ok(()) };
            let mut left = self.inner.get_sender_key_devices(&group).await?;
            left.retain(|(device, _)| !device_jids.contains(&device.as_str()));
            let left: Vec<_> = left.iter().map(|(device, flag)| (device.as_str(), *flag)).collect();
            self.inner.clear_sender_key_devices(&group).await?;
            return self.inner.set_sender_key_status(&group, &left).await;
        }
        self.inner.delete_sender_key_device_rows(device_jids).await
    }
    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        if self.is(Violation::StatusClearedWithSenderKeys) {
            for address in self.names() {
                self.inner.delete_sender_key(&address).await?;
            }
        }
        self.inner.clear_all_sender_key_devices().await
    }
    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        let shared = self.is(Violation::AccountsShareTheAddressBook);
        let found =
            if shared { self.neighbour.get_lid_mapping(lid).await? } else { self.inner.get_lid_mapping(lid).await? };
        Ok(match self.violation {
            Violation::LidMappingLosesItsSource => {
                found.map(|entry| LidPnMappingEntry { learning_source: String::new(), ..entry })
            }
            _ => found,
        })
    }
    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        let found = self.inner.get_pn_mapping(phone).await?;
        match self.violation {
            Violation::LidMappingOldestWins => {
                let all = self.inner.get_all_lid_mappings().await?;
                Ok(all.into_iter().filter(|entry| entry.phone_number == phone).min_by_key(|entry| entry.updated_at))
            }
            Violation::LidMappingStaysAtItsOldNumber => {
                Ok(found.or_else(|| self.old_numbers.lock().unwrap().get(phone).cloned()))
            }
            Violation::LidMappingFoundByLidAsNumber => match found {
                Some(found) => Ok(Some(found)),
                None => self.inner.get_lid_mapping(phone).await,
            },
            _ => Ok(found),
        }
    }
    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.old_numbers.lock().unwrap().insert(entry.phone_number.clone(), entry.clone());
        if self.is(Violation::AccountsShareTheAddressBook) {
            self.neighbour.put_lid_mapping(entry).await?;
        }
        self.inner.put_lid_mapping(entry).await
    }
    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        if self.is(Violation::AccountsShareTheAddressBook) {
            self.neighbour.put_lid_mappings(entries).await?;
        }
        if self.is(Violation::LidMappingBatchIsALoop) {
            for entry in entries {
                self.inner.put_lid_mapping(entry).await?;
                Self::step().await;
            }
            return Ok(());
        }
        if self.is(Violation::LidMappingBatchForgetsTheLast) {
            return self.inner.put_lid_mappings(all_but_last(entries)).await;
        }
        self.inner.put_lid_mappings(entries).await
    }
    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        let mut all = self.inner.get_all_lid_mappings().await?;
        if self.is(Violation::LidMappingsOnePerNumber) {
            all.sort_by(|one, other| one.phone_number.cmp(&other.phone_number));
            all.dedup_by(|one, other| one.phone_number == other.phone_number);
        }
        Ok(all)
    }
    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        match self.violation {
            Violation::BaseKeyParts => self.inner.save_base_key("", &format!("{address}{message_id}"), base_key).await,
            Violation::BaseKeyComparedByPrefix => {
                self.inner.save_base_key(address, message_id, &base_key[..base_key.len().min(5)]).await
            }
            _ => self.inner.save_base_key(address, message_id, base_key).await,
        }
    }
    async fn has_same_base_key(&self, address: &str, message_id: &str, current_base_key: &[u8]) -> Result<bool> {
        match self.violation {
            Violation::BaseKeyParts => {
                self.inner.has_same_base_key("", &format!("{address}{message_id}"), current_base_key).await
            }
            Violation::BaseKeyComparedByPrefix => {
                let current = &current_base_key[..current_base_key.len().min(5)];
                self.inner.has_same_base_key(address, message_id, current).await
            }
            _ => self.inner.has_same_base_key(address, message_id, current_base_key).await,
        }
    }
    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        let mut record = record;
        if self.is(Violation::DeviceListMergesDevices)
            && let Some(before) = self.inner.get_devices(&record.user).await?
        {
            record.devices.extend(before.devices);
        }
        self.inner.update_device_list(record).await
    }
    async fn update_device_lists(&self, mut records: Vec<DeviceListRecord>) -> Result<()> {
        if self.is(Violation::DeviceListBatchIsALoop) {
            for record in records {
                self.inner.update_device_list(record).await?;
                Self::step().await;
            }
            return Ok(());
        }
        if self.is(Violation::DeviceListBatchForgetsTheLast) {
            records.pop();
        }
        self.inner.update_device_lists(records).await
    }
    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        Ok(self.inner.get_devices(user).await?.map(|mut record| {
            match self.violation {
                Violation::DeviceListLosesHosting => {
                    record.devices.iter_mut().for_each(|device| device.is_hosted = false);
                }
                Violation::DeviceListLosesPhash => record.phash = None,
                _ => {}
            }
            record
        }))
    }
    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        if self.is(Violation::GroupMetadataIsNotKept) {
            return Ok(());
        }
        self.inner.put_group_metadata(group_jid, blob).await
    }
    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        if self.is(Violation::GroupMetadataIsNotDeleted) {
            return Ok(());
        }
        self.inner.delete_group_metadata(group_jid).await
    }
    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        let mut jids = self.inner.get_all_tc_token_jids().await?;
        if self.is(Violation::TcPlaceholdersAreNotListed) {
            let mut real = vec![];
            for jid in jids {
                if self.inner.get_tc_token(&jid).await?.is_some_and(|entry| !entry.token.is_empty()) {
                    real.push(jid);
                }
            }
            jids = real;
        }
        Ok(jids)
    }
    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        match self.violation {
            Violation::TcSweepForgetsTheSender => self.inner.delete_expired_tc_tokens(token_cutoff, i64::MAX).await,
            Violation::TcSweepOneSecondLate => {
                self.inner.delete_expired_tc_tokens(token_cutoff - 1, sender_cutoff).await
            }
            Violation::TcSweepCountsNothing => {
                self.inner.delete_expired_tc_tokens(token_cutoff, sender_cutoff).await.map(|_| 0)
            }
            Violation::AccountsAreSweptTogether => {
                self.neighbour.delete_expired_tc_tokens(token_cutoff, sender_cutoff).await?;
                self.inner.delete_expired_tc_tokens(token_cutoff, sender_cutoff).await
            }
            _ => self.inner.delete_expired_tc_tokens(token_cutoff, sender_cutoff).await,
        }
    }
    async fn touch_tc_token_sender_timestamp(&self, jid: &str, sender_timestamp: i64) -> Result<()> {
        let before = self.inner.get_tc_token(jid).await?;
        let placeholder =
            TcTokenEntry { token: vec![], token_timestamp: sender_timestamp, sender_timestamp: Some(sender_timestamp) };
        match (self.violation, before) {
            (Violation::TcTouchReplacesTheToken, _) => self.inner.put_tc_token(jid, &placeholder).await,
            (Violation::TcTouchMakesNoPlaceholder, None) => Ok(()),
            (Violation::TcTouchGoesBack, Some(before)) => {
                let entry = TcTokenEntry { sender_timestamp: Some(sender_timestamp), ..before };
                self.inner.put_tc_token(jid, &entry).await
            }
            (Violation::TcMergedInTwoSteps, before) => {
                Self::step().await;
                let mut entry = before.unwrap_or(placeholder);
                entry.sender_timestamp = entry.sender_timestamp.max(Some(sender_timestamp));
                self.inner.put_tc_token(jid, &entry).await
            }
            _ => self.inner.touch_tc_token_sender_timestamp(jid, sender_timestamp).await,
        }
    }
    async fn store_received_tc_token(&self, jid: &str, token: &[u8], token_timestamp: i64) -> Result<()> {
        let before = self.inner.get_tc_token(jid).await?;
        let received = |sender_timestamp| TcTokenEntry { token: token.to_vec(), token_timestamp, sender_timestamp };
        match (self.violation, before) {
            (Violation::TcReceivedAlwaysWins, before) => {
                let entry = received(before.and_then(|before| before.sender_timestamp));
                self.inner.put_tc_token(jid, &entry).await
            }
            (Violation::TcReceivedMustBeNewer, Some(before)) if before.token_timestamp >= token_timestamp => Ok(()),
            (Violation::TcReceivedLosesToAPlaceholder, Some(before)) if before.token_timestamp > token_timestamp => {
                Ok(())
            }
            (Violation::TcReceivedForgetsTheSender, _) => self.inner.put_tc_token(jid, &received(None)).await,
            (Violation::TcMergedInTwoSteps, before) => {
                Self::step().await;
                let keep = before.as_ref().is_some_and(|b| !b.token.is_empty() && b.token_timestamp > token_timestamp);
                let entry = received(before.and_then(|before| before.sender_timestamp));
                if keep { Ok(()) } else { self.inner.put_tc_token(jid, &entry).await }
            }
            _ => self.inner.store_received_tc_token(jid, token, token_timestamp).await,
        }
    }
    async fn store_sent_message(&self, chat_jid: &str, message_id: &str, payload: &[u8]) -> Result<()> {
        self.note_time(message_id);
        if self.is(Violation::SentMessageParts) {
            return self.inner.store_sent_message("", &format!("{chat_jid}:{message_id}"), payload).await;
        }
        self.inner.store_sent_message(chat_jid, message_id, payload).await
    }
    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        match self.violation {
            Violation::SentMessageParts => self.inner.take_sent_message("", &format!("{chat_jid}:{message_id}")).await,
            Violation::SentMessageTakenTwice | Violation::SentMessageTakenInTwoSteps => {
                let taken = self.inner.take_sent_message(chat_jid, message_id).await?;
                if let Some(payload) = &taken {
                    // Puts the message back, permanently or for a moment.
                    self.inner.store_sent_message(chat_jid, message_id, payload).await?;
                    if self.is(Violation::SentMessageTakenInTwoSteps) {
                        Self::step().await;
                        self.inner.take_sent_message(chat_jid, message_id).await?;
                    }
                }
                Ok(taken)
            }
            _ => self.inner.take_sent_message(chat_jid, message_id).await,
        }
    }
    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        if self.is(Violation::SentMessageKeepsItsFirstTime) && self.is_older_than(cutoff_timestamp) {
            return Ok(1);
        }
        let off = i64::from(self.is(Violation::SentMessageExpiresAtTheCutoff));
        self.inner.delete_expired_sent_messages(cutoff_timestamp + off).await
    }
    async fn store_pending_inbound(&self, chat: &str, sender: &str, id: &str, message: &[u8]) -> Result<()> {
        self.note_time(id);
        let [chat, sender, id] = self.pending_key(chat, sender, id);
        self.inner.store_pending_inbound(&chat, &sender, &id, message).await
    }
    async fn get_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Option<Vec<u8>>> {
        let [chat, sender, id] = self.pending_key(chat, sender, id);
        let found = self.inner.get_pending_inbound(&chat, &sender, &id).await?;
        if self.is(Violation::PendingReadRemoves) {
            self.inner.delete_pending_inbound(&chat, &sender, &id).await?;
        }
        Ok(found)
    }
    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        let [chat, sender, id] = self.pending_key(chat, sender, id);
        self.inner.delete_pending_inbound(&chat, &sender, &id).await
    }
    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        if self.is(Violation::PendingKeepsItsFirstTime) && self.is_older_than(cutoff_timestamp) {
            return Ok(1);
        }
        let off = i64::from(self.is(Violation::PendingExpiresAtTheCutoff));
        self.inner.delete_expired_pending_inbound(cutoff_timestamp + off).await
    }
    async fn store_pending_inbound_batch(&self, rows: &[PendingInboundRow<'_>]) -> Result<()> {
        rows.iter().for_each(|row| self.note(&format!("{}\0{}\0{}", row.chat, row.sender, row.id)));
        if self.is(Violation::PendingBatchIsALoop) {
            for row in rows {
                self.inner.store_pending_inbound(row.chat, row.sender, row.id, row.message).await?;
                Self::step().await;
            }
            return Ok(());
        }
        if self.is(Violation::PendingBatchForgetsTheLast) {
            return self.inner.store_pending_inbound_batch(all_but_last(rows)).await;
        }
        self.inner.store_pending_inbound_batch(rows).await
    }
    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        if self.is(Violation::PendingDeletesTheWholeChat) {
            let names = self.names();
            let parts = |name: &'_ str| name.split('\0').map(str::to_owned).collect::<Vec<_>>();
            for name in names.iter().map(|name| parts(name)).filter(|name| keys.iter().any(|key| key.chat == name[0])) {
                self.inner.delete_pending_inbound(&name[0], &name[1], &name[2]).await?;
            }
        }
        self.inner.delete_pending_inbound_batch(keys).await
    }
    forward!(delete_base_key, delete_devices, get_group_metadata, get_tc_token, put_tc_token, delete_tc_token);
}

#[async_trait]
impl DeviceStore for Mutant {
    async fn save(&self, device: &Device) -> Result<()> {
        let saved = self.inner.exists().await?;
        match self.violation {
            Violation::DeviceIsSavedOnce if self.names().contains(&"saved".to_owned()) => return Ok(()),
            Violation::DeviceNeedsToBeCreated if !saved => return Ok(()),
            Violation::AccountsShareTheDevice => self.neighbour.save(device).await?,
            _ => {}
        }
        self.note("saved");
        self.inner.save(device).await
    }
    async fn load(&self) -> Result<Option<Device>> {
        match self.violation {
            Violation::DeviceIsNewOnEveryLoad => Ok(self.inner.load().await?.map(|_| Device::new())),
            Violation::DeviceLosesItsSalt => {
                Ok(self.inner.load().await?.map(|device| Device { nct_salt: None, ..device }))
            }
            Violation::AccountsShareTheDevice => self.neighbour.load().await,
            _ => self.inner.load().await,
        }
    }
    async fn exists(&self) -> Result<bool> {
        Ok(self.is(Violation::DeviceIsThereFromTheStart) || self.inner.exists().await?)
    }
    async fn snapshot_db(&self, name: &str, extra_content: Option<&[u8]>) -> Result<()> {
        if self.is(Violation::SnapshotEmptiesTheStore) {
            self.inner.clear_all_sender_key_devices().await?;
        }
        self.inner.snapshot_db(name, extra_content).await
    }
    forward!(create, resource_report);
}

#[async_trait]
impl MsgSecretStore for Mutant {
    async fn put_msg_secret(&self, chat: &str, sender: &str, msg_id: &str, secret: &MessageSecret) -> Result<()> {
        let entry = MsgSecretEntry {
            chat: chat.into(),
            sender: sender.into(),
            msg_id: msg_id.into(),
            secret: *secret,
            expires_at: 0,
            message_ts: 0,
        };
        self.put_msg_secrets(vec![entry]).await.map(drop)
    }
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let mut rows = vec![];
        for mut entry in entries {
            let before = self.get_msg_secret_with_ts(&entry.chat, &entry.sender, &entry.msg_id).await?;
            match (self.violation, before) {
                (Violation::SecretIsNotReplaced, Some((secret, _))) => entry.secret = secret[..].try_into().unwrap(),
                (Violation::SecretDeadlineGoesBack, before) => {
                    entry.message_ts = entry.message_ts.max(before.map_or(0, |(_, time)| time));
                    entry.msg_id = self.fresh(&entry.msg_id).into();
                }
                (Violation::SecretTimeGoesBack, _) => entry.msg_id = self.fresh(&entry.msg_id).into(),
                (Violation::SecretTimesMixUnderLoad, before) => {
                    // The deadline merges correctly, but the time does not merge in one step.
                    Self::step().await;
                    entry.message_ts = entry.message_ts.max(before.map_or(0, |(_, time)| time));
                    let mut deadlines = self.deadlines.lock().unwrap();
                    let deadline = deadlines.entry(entry.msg_id.to_string()).or_default();
                    *deadline = entry.expires_at.max(*deadline);
                    entry.expires_at = *deadline;
                    drop(deadlines);
                    entry.msg_id = self.fresh(&entry.msg_id).into();
                }
                (Violation::SecretDeadlineOfZeroIsPast, _) if entry.expires_at == 0 => entry.expires_at = 1,
                (Violation::SecretNegativeDeadlineIsNever, _) => entry.expires_at = entry.expires_at.max(0),
                _ => {}
            }
            let [chat, sender, id] = self.secret_key(&entry.chat, &entry.sender, &entry.msg_id);
            rows.push(MsgSecretEntry { chat: chat.into(), sender: sender.into(), msg_id: id.into(), ..entry });
        }
        let count = rows.len();
        match self.violation {
            Violation::SecretBatchIsALoop => {
                for row in rows {
                    self.inner.put_msg_secrets(vec![row]).await?;
                    Self::step().await;
                }
                Ok(count)
            }
            Violation::SecretCountsRows => {
                let mut new = 0;
                for row in &rows {
                    let stored = self.inner.get_msg_secret(&row.chat, &row.sender, &row.msg_id).await?;
                    new += usize::from(stored.is_none());
                }
                self.inner.put_msg_secrets(rows).await?;
                Ok(new)
            }
            Violation::SecretCountsOnce => {
                let ids: BTreeSet<_> = rows.iter().map(|row| row.msg_id.clone()).collect();
                self.inner.put_msg_secrets(rows).await?;
                Ok(ids.len())
            }
            _ => self.inner.put_msg_secrets(rows).await,
        }
    }
    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        let [chat, sender, id] = self.secret_key(chat, sender, msg_id);
        self.inner.get_msg_secret(&chat, &sender, &id).await
    }
    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let [chat, sender, id] = self.secret_key(chat, sender, msg_id);
        let found = self.inner.get_msg_secret_with_ts(&chat, &sender, &id).await?;
        Ok(match self.violation {
            Violation::SecretLosesTheTime => found.map(|(secret, _)| (secret, 0)),
            _ => found,
        })
    }
    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        let off = match self.violation {
            Violation::SecretExpiresOneSecondLate => -1,
            Violation::SecretExpiresOneSecondEarly => 1,
            _ => 0,
        };
        self.inner.delete_expired_msg_secrets(cutoff_timestamp.saturating_add(off)).await
    }
}

/// A store in which one method does nothing and returns nothing.
struct Lost {
    inner: Arc<dyn Backend>,
    method: Method,
}

/// The result of a method that did nothing.
trait Nothing {
    fn nothing() -> Self;
}

impl<T: Default> Nothing for Result<T> {
    fn nothing() -> Self {
        Ok(T::default())
    }
}

impl Nothing for StorageResourceReport {
    fn nothing() -> Self {
        Self::default()
    }
}

impl Lost {
    fn around<'a, A, T: Nothing + Send + 'a>(
        &self,
        method: Method,
        arguments: A,
        call: impl FnOnce(A) -> BoxFuture<'a, T>,
    ) -> BoxFuture<'a, T> {
        if method == self.method { Box::pin(async { T::nothing() }) } else { call(arguments) }
    }
}

uniform_layer!(Lost);

/// Runs a rule and returns whether the store kept it.
async fn keeps(rule: &'static Rule, constructor: impl Fn() -> Subject + Send + Sync + 'static) -> bool {
    tokio::spawn(async move { rule.check(async || constructor()).await }).await.is_ok()
}

fn required() -> impl Iterator<Item = &'static Rule> {
    Rule::ALL.iter().filter(|rule| !rule.is_optional())
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(InMemoryBackend::new())
}

fn mutant(violation: Violation) -> impl Fn() -> Subject + Send + Sync + 'static {
    move || {
        let (one, other) = (memory(), memory());
        Subject::new(Mutant::over(one.clone(), other.clone(), violation)).second_account(Mutant::over(
            other.clone(),
            if is_shared(violation) { other } else { one },
            violation,
        ))
    }
}

/// Whether both accounts use the neighbour's store, instead of each interfering with the other's.
fn is_shared(violation: Violation) -> bool {
    matches!(
        violation,
        Violation::AccountsShareSessions | Violation::AccountsShareTheAddressBook | Violation::AccountsShareTheDevice
    )
}

fn losing(method: Method) -> impl Fn() -> Subject + Send + Sync + 'static {
    move || Subject::new(Arc::new(Lost { inner: memory(), method }))
}

/// A store that is not empty, because an earlier test used it.
fn left_over() -> Subject {
    let store = memory();
    futures::executor::block_on(async {
        let key = |(at, text)| Key { id: at as u32 + 1, text };
        let keys = keyed::unusual_keys();
        let rows: Vec<_> =
            keys.iter().map(String::as_str).enumerate().map(|it| Arguments::numbered(key(it), 4)).collect();
        contents::store(&*store, &rows).await;
    });
    Subject::new(store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_violation_is_caught_by_its_rule() {
    assert!(Violation::ALL.len() >= 40);
    let mut missed = vec![];
    for violation in Violation::ALL.iter().copied() {
        let (module, name) = violation.caught_by();
        let rule = Rule::ALL.iter().find(|rule| (rule.module(), rule.name()) == (module, name));
        let rule = rule.unwrap_or_else(|| panic!("there is no rule {module}::{name}"));
        // Violations that only show when tasks overlap may need several tries on a loaded machine.
        let mut tries = 0..20;
        while keeps(rule, mutant(violation)).await {
            if tries.next().is_none() {
                missed.push((violation, rule));
                break;
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

/// The rules detect the violation, and not a property that all broken stores share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_violation_keeps_every_rule() {
    for rule in required() {
        assert!(keeps(rule, mutant(Violation::Nothing)).await, "{rule:?}");
    }
}

/// Methods without a visible effect: a flag that the traits never return, and two methods that may do nothing.
const UNSEEN: [Method; 3] = [Method::MarkPrekeysUploaded, Method::SnapshotDb, Method::ResourceReport];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_does_nothing_is_caught_whichever_it_is() {
    for method in Method::ALL.iter().copied().filter(|method| !UNSEEN.contains(method)) {
        let module = method.record().name().replace(' ', "_").to_lowercase();
        let (about, others): (Vec<_>, Vec<_>) = required().partition(|rule| rule.module() == module);
        let mut caught = false;
        for rule in about.into_iter().chain(others) {
            if !keeps(rule, losing(method)).await {
                caught = true;
                break;
            }
        }
        assert!(caught, "no rule notices that {} does nothing", method.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_catches_something() {
    let mut idle = vec![];
    for rule in required() {
        let deliberate = Violation::ALL.iter().any(|v| v.caught_by() == (rule.module(), rule.name()));
        let mut catches = deliberate || !keeps(rule, left_over).await;
        for method in Method::ALL.iter().copied() {
            if catches {
                break;
            }
            catches = !keeps(rule, losing(method)).await;
        }
        if !catches {
            idle.push(rule);
        }
    }
    assert!(idle.is_empty(), "rules that no store breaks: {idle:#?}");
}

/// For each optional feature, some store lacks it: one of upstream's, or this crate's.
#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_optional_rule_catches_something() {
    let upstream = || {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wa.db").to_str().unwrap().to_owned();
        let open = async { whatsapp_rust_sqlite_storage::SqliteStore::new(&path).await };
        let store = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(open)).unwrap();
        Subject::from(Arc::new(store)).keeping(folder)
    };
    let own = || {
        let store = futures::executor::block_on(crate::SqliteStore::in_memory()).unwrap();
        Subject::from(Arc::new(store))
    };
    // Reopens as another store.
    let forgetful = || Subject::new(memory()).reopen_with(|| async { memory() });
    // Also forgets deletes, so that deleted rows come back.
    let stubborn = || {
        let store = memory();
        let reopened = store.clone();
        Subject::new(store).reopen_with(move || {
            let store = reopened.clone();
            async move {
                store.create().await.unwrap();
                contents::store(&*store, &contents::rows()).await;
                store
            }
        })
    };
    for rule in Rule::ALL.iter().filter(|rule| rule.is_optional()) {
        let deliberate = Violation::ALL.iter().any(|v| v.caught_by() == (rule.module(), rule.name()));
        let caught = deliberate
            || !keeps(rule, || Subject::new(memory())).await
            || !keeps(rule, own).await
            || !keeps(rule, upstream).await;
        assert!(caught, "no store breaks {rule:?}");
        if rule.module() == "durable" {
            let broken = if rule.name().starts_with("nothing") {
                keeps(rule, stubborn).await
            } else {
                keeps(rule, forgetful).await
            };
            assert!(!broken, "{rule:?}");
        }
    }
}
