//! A conformance kit for storage backends, and layers that watch and disturb calls.
//!
//! The storage traits of whatsapp-rust have 82 methods and no suite that says what they promise. This module is that
//! suite: it can be run on any [`Backend`](wacore::store::traits::Backend), one test per promise, named after it. All
//! stores and stacks of this crate pass it, and so do upstream's own two stores.
//!
//! # Testing a store
//!
//! Add this crate as a dev-dependency, without the SQLite store that it has by default (a program can link SQLite only
//! once, and yours may come with another version):
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
//! `cargo test my_store` then runs some 190 tests such as `my_store::session::a_batch_is_seen_whole` or
//! `my_store::tc_token::the_sender_time_never_goes_back`, and one that compares random sequences of calls with upstream's
//! in-memory store. Each test calls the constructor for a store of its own, which must be empty, within a tokio runtime
//! of two threads. The constructor returns a [`Subject`], or anything that becomes one: an `Arc` of a store, an
//! `Arc<dyn Backend>`, a [`Stack`](crate::Stack). A folder that has to outlive the store is kept by [`Subject::keeping`].
//!
//! The rules on two accounts call the constructor twice. If a store keeps several accounts in one place, give the second
//! one with [`Subject::second_account`], so that they test what could go wrong.
//!
//! # Optional features
//!
//! On some questions upstream's own stores disagree, or its documentation leaves the answer open, so a client cannot rely
//! on it and the kit does not ask. A store that answers one way says so, and is then held to it:
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
//! | `any_mac_length` | mutation MACs and their indexes of other lengths than 32 bytes come back | yes | yes |
//! | `any_sync_key_length` | sync keys of other lengths than 32 bytes come back | yes | |
//! | `atomic_batches` | batches of identities, prekeys, message secrets, LID mappings, device lists, pending messages, mutation MACs and sender key flags are seen whole, like those of sessions | | |
//! | `counts_repeated_secrets` | `put_msg_secrets` counts a row as often as it is in the batch | yes | yes |
//! | `created_at_is_kept` | a LID mapping that is stored again keeps its first `created_at` | | yes |
//! | `created_at_is_replaced` | … takes the last one | yes | |
//! | `durable` | everything is there after [`Subject::reopen_with`] | | yes |
//! | `large_prekey_ids` | prekey ids from 2³¹ on count as such in `get_max_prekey_id` | yes | |
//! | `latest_sync_key_is_the_highest` | `get_latest_sync_key_id` is the highest id, byte by byte | | yes |
//! | `latest_sync_key_is_the_last_stored` | … the id that was stored last | yes | |
//! | `lid_mappings_without_device` | LID mappings can be stored before a device is | yes | |
//! | `literal_users` | `has_signal_state_for_user` knows no wildcards and tells `a` from `A` | yes | |
//! | `moved_lid_falls_back` | when the newest LID of a number moves to another, the next newest answers | | yes |
//! | `newest_lid_by_its_time` | `get_pn_mapping` goes by `updated_at` | | yes |
//! | `newest_lid_is_the_last_stored` | … by the order of writing | yes | |
//! | `prekeys_as_asked_for` | `load_prekeys_batch` keeps the order and the repetitions of the ids | yes | |
//! | `repeatable_create` | `create` succeeds again and leaves the device as it is | yes | |
//! | `reports_resources` | `resource_report` says how much memory is used | | yes |
//! | `unbounded_sent_messages` | no sent message is evicted before it is taken or expires | | yes |
//! | `wide_numbers` | device lists keep times past 2038 and ids past 2³¹ | yes | |
//!
//! The last two columns are upstream's `InMemoryBackend` and `SqliteStore`, as of version 0.7.0.
//!
//! # What the kit takes for granted
//!
//! * Methods that upstream gives a default body for stores that lack a feature are real: `has_signal_state_for_user`,
//!   group metadata, pending messages and their sweep, `get_msg_secret_with_ts`. Both of upstream's stores have them, and
//!   without them the client does more work or loses messages.
//! * Batches of sessions and of sender keys are one step, and so are the merges of tc tokens and message secrets.
//! * The device is created before anything else is stored, as the client does it.
//! * The store's clock is that of the test: times of insertion are compared with it by the second.
//!
//! # Where the rules come from
//!
//! From the documentation of `wacore`'s `src/store/traits.rs` (0.7.0), from what its client does with the answers, and
//! from what both of upstream's stores do. A rule that one of them does not keep is an optional feature.
//!
//! A whole small store with its tests is
//! [`examples/own_backend.rs`](https://docs.rs/crate/wastore/latest/source/examples/own_backend.rs).
//!
//! # Longer runs
//!
//! With the environment variable `WASTORE_LONG=1` the random sequences are ten times as many and three times as long.
//! `PROPTEST_CASES=n` sets their number by hand.
//!
//! # Watching and disturbing
//!
//! [`Spy`], [`Fault`] and [`Tamper`] are layers for tests of code that uses a store: they record calls, make them fail, and
//! change what they answer.
//!
//! None of this is covered by semantic versioning as far as it can make a test fail: a new rule may find a bug in a store.

// Rules and their helpers say what is wrong by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a broken rule is a failed test")]

pub(crate) mod arguments;
#[cfg(test)]
pub(crate) mod canaries;
pub(crate) mod fault;
#[cfg(test)]
pub(crate) mod gate;
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

/// What the tests that [`backend_tests!`] writes call.
#[doc(hidden)]
pub fn check(module: &str, name: &str, constructor: fn() -> BoxFuture<'static, Subject>) {
    let rule = Rule::ALL.iter().find(|rule| rule.module == module && rule.name == name).expect("the rule is listed");
    rule::runtime().block_on(rule.check(constructor));
}

/// Writes a module of tests that hold a store to every rule of the kit; see [the module's documentation](self).
///
/// ```text
/// backend_tests!(name_of_the_module, || async { constructor });
/// backend_tests!(name_of_the_module, || async { constructor }, optional: [feature, feature]);
/// ```
///
/// The constructor may use everything that is in scope where the macro is called. It must not capture variables.
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
