//! The rules, one function each. A function takes a `&Subject` and panics if the store breaks the rule.
//!
//! A rule is in the file of its trait, in the module of its record. `for_each_rule!` is the list of all rules. A
//! function that is missing there is dead code, so clippy rejects it.

mod app_sync;
pub(crate) mod contents;
mod device;
pub(crate) mod keyed;
mod msg_secret;
mod optional;
mod protocol;
mod signal;
mod two_accounts;

use super::rule::{Check, Rule};

/// Calls `$callback!` with all rules: first the rules that every store must keep, then the optional ones by feature,
/// then the rules that need two accounts.
macro_rules! for_each_rule {
    ($callback:ident $(, $extra:tt)*) => {
        $callback! { $($extra)*
            required {
                signal identity {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows, is_kept_apart_from_the_session_of_the_same_address
                }
                signal session {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows, a_batch_is_seen_whole, exists_exactly_if_it_can_be_read,
                    a_batch_that_is_dropped_half_way_is_stored_whole_or_not_at_all,
                    concurrent_writers_lose_nothing_and_mix_nothing
                }
                signal signal_state {
                    of_a_user_is_found_by_a_session_or_an_identity,
                    of_a_user_is_not_that_of_one_with_a_longer_or_shorter_number,
                    of_a_user_is_gone_with_the_last_session_and_identity,
                    does_not_come_from_an_address_without_a_server
                }
                signal prekey {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows,
                    several_are_loaded_at_once_and_missing_ones_left_out,
                    marking_as_uploaded_changes_no_key_and_brings_none_back,
                    marking_as_uploaded_brings_none_back_that_is_just_removed,
                    the_highest_id_is_the_highest_of_those_stored
                }
                signal signed_prekey {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, all_are_listed,
                    is_kept_apart_from_the_prekey_of_the_same_id
                }
                signal sender_key {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows, a_batch_is_seen_whole,
                    is_kept_apart_from_the_session_of_the_same_address
                }
                app_sync sync_key {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, its_id_is_any_bytes, the_latest_is_one_of_those_stored
                }
                app_sync collection_version {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, every_field_reaches_its_bounds
                }
                app_sync mutation_mac {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows, several_are_read_at_once_and_missing_ones_left_out,
                    belongs_to_its_collection, clearing_a_collection_spares_the_others,
                    stays_when_a_later_version_is_stored, concurrent_writers_lose_nothing
                }
                protocol sender_key_device {
                    an_unknown_group_has_none, all_of_a_group_are_listed_with_their_flag,
                    groups_and_devices_go_by_their_exact_names, of_two_entries_of_a_batch_the_later_wins,
                    an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows,
                    deleting_devices_removes_them_from_every_group, clearing_a_group_spares_the_others,
                    clearing_all_leaves_no_group, concurrent_writers_lose_nothing
                }
                protocol lid_mapping {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, a_batch_stores_every_row, of_two_rows_of_a_batch_the_later_wins,
                    an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows, is_found_by_its_phone_number,
                    of_a_phone_number_is_the_newest, that_moved_to_another_number_leaves_the_old_one, all_are_listed
                }
                protocol base_key {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other,
                    is_the_same_only_byte_for_byte, goes_by_address_and_message
                }
                protocol device_list {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows
                }
                protocol group_metadata {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other
                }
                protocol tc_token {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, all_jids_are_listed,
                    touching_the_sender_time_makes_a_placeholder, touching_the_sender_time_keeps_the_token,
                    the_sender_time_never_goes_back, a_received_one_replaces_one_that_is_not_newer,
                    a_received_one_replaces_any_placeholder, a_received_one_keeps_the_sender_time,
                    expires_when_nothing_of_it_is_live, concurrent_writers_of_token_and_sender_time_lose_nothing
                }
                protocol sent_message {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, is_taken_once, goes_by_chat_and_id,
                    is_taken_by_exactly_one_of_many_at_once, expires_when_it_is_older_than_the_cutoff,
                    is_as_old_as_its_last_store
                }
                protocol pending_inbound {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, deleting_removes_one_and_no_other, a_batch_stores_every_row,
                    of_two_rows_of_a_batch_the_later_wins, an_empty_batch_changes_nothing,
                    a_batch_may_have_ten_thousand_rows, stays_after_it_was_read, goes_by_chat_sender_and_id,
                    a_batch_of_keys_deletes_exactly_these, expires_when_it_is_older_than_the_cutoff,
                    is_as_old_as_its_last_store
                }
                device own_device {
                    is_absent_until_created, is_there_and_unpaired_once_created, comes_back_as_it_was_saved,
                    may_be_saved_without_having_been_created, reports_and_snapshots_change_nothing
                }
                msg_secret message_secret {
                    is_absent_until_stored, comes_back_as_it_was_stored, goes_by_its_exact_key,
                    is_replaced_when_stored_again, a_batch_stores_every_row, of_two_rows_of_a_batch_the_later_wins,
                    an_empty_batch_changes_nothing, a_batch_may_have_ten_thousand_rows,
                    goes_by_chat_sender_and_id, is_counted,
                    comes_with_the_time_of_its_message, keeps_the_later_time_of_its_message, keeps_the_later_deadline,
                    a_deadline_of_zero_is_never_and_wins, expires_at_its_deadline_and_not_before,
                    concurrent_writers_keep_the_latest_times
                }
            }
            optional {
                any_mac_length { a_mutation_mac_and_its_index_may_have_any_length }
                any_sync_key_length { a_sync_key_may_have_any_length }
                atomic_batches {
                    a_batch_of_identities_is_seen_whole, a_batch_of_prekeys_is_seen_whole,
                    a_batch_of_message_secrets_is_seen_whole, a_batch_of_lid_mappings_is_seen_whole,
                    a_batch_of_device_lists_is_seen_whole, a_batch_of_pending_messages_is_seen_whole,
                    a_batch_of_mutation_macs_is_seen_whole, the_flags_of_a_group_are_seen_whole
                }
                counts_repeated_secrets { a_message_secret_is_counted_as_often_as_it_was_given }
                created_at_is_kept { a_lid_mapping_keeps_its_first_created_at }
                created_at_is_replaced { a_lid_mapping_takes_the_last_created_at }
                durable { everything_is_there_after_reopening, nothing_deleted_comes_back_after_reopening }
                large_prekey_ids { a_prekey_may_have_any_id }
                latest_sync_key_is_the_highest { the_latest_sync_key_has_the_highest_id }
                latest_sync_key_is_the_last_stored { the_latest_sync_key_is_the_one_stored_last }
                lid_mappings_without_device { a_lid_mapping_needs_no_device }
                literal_users { signal_state_is_of_exactly_this_user }
                moved_lid_falls_back { a_number_falls_back_to_its_next_newest_lid }
                newest_lid_by_its_time { the_newest_lid_is_the_one_updated_last }
                newest_lid_is_the_last_stored { the_newest_lid_is_the_one_stored_last }
                prekeys_as_asked_for { several_prekeys_come_in_the_order_asked_for }
                repeatable_create { a_device_that_is_there_stays_when_created_again }
                reports_resources { the_report_says_how_much_memory_is_used }
                unbounded_sent_messages { no_sent_message_is_evicted }
                wide_numbers { a_device_list_holds_any_time_and_id }
            }
            accounts {
                account {
                    sees_nothing_of_what_another_stores, keeps_what_another_deletes,
                    keeps_its_own_value_under_a_shared_key
                }
            }
        }
    };
}

/// Whether the rules of a module create the device themselves, or do without.
const fn is_about_the_device(module: &str) -> bool {
    matches!(module.as_bytes(), b"own_device" | b"lid_mappings_without_device" | b"repeatable_create" | b"durable")
}

macro_rules! define_rules {
    (
        required { $($file:ident $record:ident { $($rule:ident),* })* }
        optional { $($feature:ident { $($optional:ident),* })* }
        accounts { $($accounts:ident { $($isolation:ident),* })* }
    ) => {
        impl Rule {
            /// Every rule, the optional ones too.
            pub const ALL: &'static [Rule] = &[
                $($(Rule {
                    module: stringify!($record),
                    name: stringify!($rule),
                    optional: false,
                    with_device: !is_about_the_device(stringify!($record)),
                    check: Check::One(|store| Box::pin($file::$record::$rule(store))),
                },)*)*
                $($(Rule {
                    module: stringify!($feature),
                    name: stringify!($optional),
                    optional: true,
                    with_device: !is_about_the_device(stringify!($feature)),
                    check: Check::One(|store| Box::pin(optional::$feature::$optional(store))),
                },)*)*
                $($(Rule {
                    module: stringify!($accounts),
                    name: stringify!($isolation),
                    optional: false,
                    with_device: false,
                    check: Check::Two(|one, other| Box::pin(two_accounts::$accounts::$isolation(one, other))),
                },)*)*
            ];
        }
    };
}
for_each_rule!(define_rules);

// `$d` is a dollar sign, as in `method.rs`.
macro_rules! define_test_macros {
    (
        $d:tt
        required { $($file:ident $record:ident { $($rule:ident),* })* }
        optional { $($feature:ident { $($optional:ident),* })* }
        accounts { $($accounts:ident { $($isolation:ident),* })* }
    ) => {
        /// The tests of all rules that every store must keep, as modules that see the constructor.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __wastore_required_rules {
            () => {
                $(mod $record { $(
                    #[test]
                    fn $rule() {
                        $d crate::testing::check(stringify!($record), stringify!($rule), super::__wastore_subject);
                    }
                )* })*
                $(mod $accounts { $(
                    #[test]
                    fn $isolation() {
                        $d crate::testing::check(stringify!($accounts), stringify!($isolation), super::__wastore_subject);
                    }
                )* })*
            };
        }

        /// The tests of one optional feature.
        #[doc(hidden)]
        #[macro_export]
        macro_rules! __wastore_optional_rules {
            $(($feature) => {
                mod $feature { $(
                    #[test]
                    fn $optional() {
                        $d crate::testing::check(stringify!($feature), stringify!($optional), super::__wastore_subject);
                    }
                )* }
            };)*
        }
    };
}
for_each_rule!(define_test_macros, $);
