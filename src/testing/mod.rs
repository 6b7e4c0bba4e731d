//! A conformance kit for storage backends, and layers that watch and disturb calls.
//!
//! The storage traits of whatsapp-rust have 82 methods, and no test suite says what they promise. This module is that
//! suite: one test per promise, named after it, for any [`Backend`](wacore::store::traits::Backend). All stores and
//! stacks of this crate pass it, and so do upstream's own two stores.
//!
//! # Testing a store
//!
//! Add this crate as a dev-dependency without its default SQLite store. A program can link SQLite only once, and your
//! store may use another version:
//!
//! ```toml
//! [dev-dependencies]
//! wastore = { version = "0.1", default-features = false, features = ["testing"] }
//! ```
//!
//! Then write one line per store or stack:
//!
//! ```
//! # mod my_crate {
//! # pub use wacore::store::InMemoryBackend as MyStore;
//! # }
//! # use my_crate::MyStore;
//! use std::sync::Arc;
//!
//! wastore::testing::backend_tests!(my_store, || async { Arc::new(MyStore::new()) });
//! # fn main() {}
//! ```
//!
//! `cargo test my_store` then runs some 190 tests, such as `my_store::session::a_batch_is_seen_whole` or
//! `my_store::tc_token::the_sender_time_never_goes_back`. One more test compares random sequences of calls with
//! upstream's in-memory store.
//!
//! Each test calls the constructor within a tokio runtime of two threads, and needs a store of its own that is empty.
//! The constructor returns a [`Subject`], or anything that converts into one: an `Arc` of a store, an `Arc<dyn
//! Backend>`, a [`Stack`](crate::Stack). [`Subject::keeping`] keeps a folder that must outlive the store.
//!
//! The rules on two accounts call the constructor twice. If your store keeps several accounts in one place, return
//! the second one with [`Subject::second_account`]. Otherwise these rules cannot detect that accounts mix.
//!
//! # Optional features
//!
//! On some questions upstream's own stores disagree, or its documentation leaves the answer open. A client cannot
//! rely on such an answer, so the kit does not test it by default. Name the feature if your store promises one
//! answer; the kit then tests it:
//!
//! ```
//! # use std::sync::Arc;
//! # use wacore::store::InMemoryBackend as MyStore;
//! # use wastore::testing::backend_tests;
//! backend_tests!(my_store, || async { Arc::new(MyStore::new()) }, optional: [literal_users, wide_numbers]);
//! # fn main() {}
//! ```
//!
//! | feature | the store promises | memory | SQLite |
//! |--|--|--|--|
//! | `any_mac_length` | mutation MACs and their indexes come back if their length is not 32 bytes | yes | yes |
//! | `any_sync_key_length` | sync keys come back if their length is not 32 bytes | yes | |
//! | `atomic_batches` | readers see batches of identities, prekeys, message secrets, LID mappings, device lists, pending messages, mutation MACs and sender key flags whole, like those of sessions | | |
//! | `counts_repeated_secrets` | `put_msg_secrets` counts a row as often as it is in the batch | yes | yes |
//! | `created_at_is_kept` | a LID mapping that is stored again keeps its first `created_at` | | yes |
//! | `created_at_is_replaced` | … takes the last `created_at` | yes | |
//! | `durable` | all records are there after [`Subject::reopen_with`] | | yes |
//! | `large_prekey_ids` | `get_max_prekey_id` treats prekey ids from 2³¹ on as numbers that large | yes | |
//! | `latest_sync_key_is_the_highest` | `get_latest_sync_key_id` returns the highest id, compared byte by byte | | yes |
//! | `latest_sync_key_is_the_last_stored` | … returns the id that was stored last | yes | |
//! | `lid_mappings_without_device` | LID mappings can be stored before a device is | yes | |
//! | `literal_users` | `has_signal_state_for_user` knows no wildcards and distinguishes `a` from `A` | yes | |
//! | `moved_lid_falls_back` | if the newest LID of a number moves to another number, the next newest answers | | yes |
//! | `newest_lid_by_its_time` | `get_pn_mapping` returns the mapping with the latest `updated_at` | | yes |
//! | `newest_lid_is_the_last_stored` | … returns the mapping that was stored last | yes | |
//! | `prekeys_as_asked_for` | `load_prekeys_batch` keeps the order and the repetitions of the ids | yes | |
//! | `repeatable_create` | `create` succeeds again and leaves the device as it is | yes | |
//! | `reports_resources` | `resource_report` tells how much memory the store uses | | yes |
//! | `unbounded_sent_messages` | no sent message is evicted before it is taken or expires | | yes |
//! | `wide_numbers` | device lists keep times past 2038 and ids past 2³¹ | yes | |
//!
//! The last two columns are upstream's `InMemoryBackend` and `SqliteStore`, version 0.7.0.
//!
//! # What the kit assumes
//!
//! * The store implements the methods for which upstream has a default body: `has_signal_state_for_user`, group
//!   metadata, pending messages and their sweep, `get_msg_secret_with_ts`. Both of upstream's stores do. Without
//!   these methods the client does more work or loses messages.
//! * Batches of sessions and of sender keys are one step, and so are the merges of tc tokens and message secrets.
//! * The device is created before anything else is stored, as the client does it.
//! * The store and the test use the same clock: rules compare times of insertion with it, to the second.
//!
//! # Sources of the rules
//!
//! The rules come from the documentation of `wacore`'s `src/store/traits.rs` (0.7.0), from the way its client uses
//! the answers, and from the common behaviour of upstream's two stores. A rule that one of these stores breaks is an
//! optional feature.
//!
//! For a complete small store with its tests see
//! [`examples/own_backend.rs`](https://docs.rs/crate/wastore/latest/source/examples/own_backend.rs).
//!
//! # Longer runs
//!
//! With the environment variable `WASTORE_LONG=1` there are ten times as many random sequences, each three times as
//! long. `PROPTEST_CASES=n` sets their number.
//!
//! # Recording and disturbing calls
//!
//! [`Spy`], [`Fault`] and [`Tamper`] are layers for tests of code that uses a store. They record calls, make them
//! fail, and change their answers.
//!
//! Semantic versioning does not cover new failures of these tests: a new rule may find a bug in your store.

// Rules and their helpers panic, as tests do, to report what is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken rule is a failed test")]

pub(crate) mod arguments;
#[cfg(test)]
pub(crate) mod canaries;
pub(crate) mod fault;
#[cfg(test)]
pub(crate) mod gate;
#[cfg(test)]
pub(crate) mod memory_cache;
#[cfg(test)]
mod redaction;
mod rule;
mod rules;
mod sequence;
mod spy;
mod subject;
mod tamper;
#[cfg(test)]
mod tests;
mod value;

pub use crate::backend_tests;
use crate::method::BoxFuture;
pub use fault::{Effect, Fault, When};
pub use rule::Rule;
#[doc(hidden)]
pub use sequence::check_random_sequences;
pub use sequence::{Operation, operations};
pub use spy::{Call, Spy};
pub use subject::Subject;
pub use tamper::Tamper;
pub use value::Value;

/// Checks one rule. The tests that [`backend_tests!`] writes call it.
#[doc(hidden)]
pub fn check(module: &str, name: &str, constructor: fn() -> BoxFuture<'static, Subject>) {
    let rule = Rule::ALL.iter().find(|rule| rule.module == module && rule.name == name).expect("the rule is listed");
    rule::runtime().block_on(rule.check(constructor));
}

/// Writes a module of tests that check a store against every rule of the kit; see [the module's documentation](self).
///
/// ```text
/// backend_tests!(name_of_the_module, || async { constructor });
/// backend_tests!(name_of_the_module, || async { constructor }, optional: [feature, feature]);
/// ```
///
/// The constructor may use everything in scope at the macro call. It must not capture variables.
#[macro_export]
macro_rules! backend_tests {
    ($name:ident, $constructor:expr $(,)?) => {
        $crate::backend_tests!($name, $constructor, optional: []);
    };
    ($name:ident, $constructor:expr, optional: [$($feature:ident),* $(,)?] $(,)?) => {
        #[cfg(test)]
        mod $name {
            mod constructor {
                #[allow(unused_imports, reason = "the constructor may name nothing of its surroundings")]
                use super::super::*;

                pub(super) async fn __wastore_subject() -> $crate::testing::Subject {
                    $crate::testing::Subject::from(($constructor)().await)
                }
            }

            fn __wastore_subject() -> ::std::pin::Pin<
                ::std::boxed::Box<
                    dyn ::std::future::Future<Output = $crate::testing::Subject> + ::std::marker::Send,
                >,
            > {
                ::std::boxed::Box::pin(constructor::__wastore_subject())
            }

            $crate::__wastore_required_rules!();
            mod optional {
                #[allow(unused_imports, reason = "there may be no optional feature")]
                use super::__wastore_subject;

                $($crate::__wastore_optional_rules!($feature);)*
            }
            mod random_sequences {
                #[test]
                fn agree_with_the_reference_store() {
                    $crate::testing::check_random_sequences(super::__wastore_subject);
                }
            }
        }
    };
}
