//! A single rule, and how to check it.

use std::fmt;
use std::time::Duration;

use super::subject::Subject;
use crate::method::BoxFuture;

/// One promise that a store makes.
///
/// [`backend_tests!`](super::backend_tests) makes a test of each. Use this type to run rules in another way.
#[derive(Clone, Copy)]
pub struct Rule {
    pub(super) module: &'static str,
    pub(super) name: &'static str,
    pub(super) optional: bool,
    /// Whether the device is created before the rule is checked.
    pub(super) with_device: bool,
    pub(super) check: Check,
}

#[derive(Clone, Copy)]
pub(super) enum Check {
    One(for<'a> fn(&'a mut Subject) -> BoxFuture<'a, ()>),
    /// Two accounts.
    Two(for<'a> fn(&'a Subject, &'a Subject) -> BoxFuture<'a, ()>),
}

impl Rule {
    /// The rule in words, for example `a_batch_is_seen_whole`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The subject of the rule, for example `session`. For an optional rule, its feature.
    pub const fn module(&self) -> &'static str {
        self.module
    }

    /// Returns whether the rule belongs to an optional feature.
    pub const fn is_optional(&self) -> bool {
        self.optional
    }

    /// Checks the rule on stores that `constructor` makes. Call it within a tokio runtime with several threads and
    /// timers.
    ///
    /// # Panics
    /// If the store breaks the rule, or does not answer within two minutes.
    pub async fn check<F>(&self, constructor: impl Fn() -> F)
    where
        F: Future<Output = Subject>,
    {
        let checked = async {
            let mut subject = constructor().await;
            match self.check {
                Check::One(check) => {
                    if self.with_device {
                        subject.create().await.unwrap();
                    }
                    check(&mut subject).await;
                }
                Check::Two(check) => {
                    let other = match subject.second_account.take() {
                        Some(account) => Subject::new(account),
                        None => constructor().await,
                    };
                    check(&subject, &other).await;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, checked).await.is_err() {
            panic!("the store did not answer within two minutes: {self:?}");
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.module, self.name)
    }
}

/// The time that a store may take for one rule or one sequence.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The runtime of one test.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads can be started")
}
