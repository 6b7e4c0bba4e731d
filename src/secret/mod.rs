//! Secrets that open a vault. None of them can be cloned, printed or compared by accident; all are wiped when dropped.
//!
//! | file | |
//! |--|--|
//! | `passphrase.rs`, `key.rs`, `recovery.rs` | the three kinds |
//! | `provider.rs` | the trait for keys that are kept elsewhere |
//! | `keyring.rs`, `transit.rs`, `transit_url.rs`, `hint.rs`, `deadline.rs` | the providers of this crate |
//! | `read.rs` | reading a secret and normalizing its text |

#[cfg(any(feature = "keyring", feature = "transit"))]
mod deadline;
pub(crate) mod hint;
mod key;
#[cfg(feature = "keyring")]
mod keyring;
mod passphrase;
mod provider;
mod read;
mod recovery;
#[cfg(test)]
mod tests;
#[cfg(feature = "transit")]
mod transit;
#[cfg(feature = "transit")]
mod transit_url;

use std::fmt;
use std::sync::Arc;

pub use key::Key;
#[cfg(feature = "keyring")]
pub use keyring::{KeyringProblem, KeyringProvider};
pub use passphrase::Passphrase;
pub use provider::{KeyProvider, ProviderError};
pub use recovery::RecoveryKey;
pub(crate) use recovery::encoding;
#[cfg(feature = "transit")]
pub use transit::{TransitProblem, TransitProvider};

/// The secret that creates or opens a vault.
#[non_exhaustive]
pub enum Secret {
    /// A passphrase, stretched with Argon2id.
    Passphrase(Passphrase),
    /// A raw key of 32 bytes.
    Key(Key),
    /// A printed recovery key.
    Recovery(RecoveryKey),
    /// A key kept elsewhere.
    Provider(Arc<dyn KeyProvider>),
}

impl Secret {
    /// A second copy, for a secret that opens several vaults. There is no `Clone`, so that no copy is made by accident.
    pub fn duplicate(&self) -> Self {
        match self {
            Secret::Passphrase(passphrase) => Secret::Passphrase(passphrase.duplicate()),
            Secret::Key(key) => Secret::Key(key.duplicate()),
            Secret::Recovery(key) => Secret::Recovery(key.duplicate()),
            Secret::Provider(provider) => Secret::Provider(provider.clone()),
        }
    }
}

impl From<Passphrase> for Secret {
    fn from(passphrase: Passphrase) -> Self {
        Secret::Passphrase(passphrase)
    }
}

impl From<Key> for Secret {
    fn from(key: Key) -> Self {
        Secret::Key(key)
    }
}

impl From<RecoveryKey> for Secret {
    fn from(key: RecoveryKey) -> Self {
        Secret::Recovery(key)
    }
}

impl<P: KeyProvider + 'static> From<Arc<P>> for Secret {
    fn from(provider: Arc<P>) -> Self {
        Secret::Provider(provider)
    }
}

macro_rules! redacted_debug {
    ($($name:ident),+) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+ };
}

redacted_debug!(Passphrase, Key, RecoveryKey, Secret);
