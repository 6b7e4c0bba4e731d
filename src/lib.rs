#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod encrypt;
mod error;
mod layer;
mod method;
mod secret;

pub use encrypt::{
    Argon2Cost, EncryptLayer, HeaderCopy, HeaderStore, KdfLimits, OnDamage, Padding, SlotInfo, SlotKind, Vault,
    VaultOptions,
};
pub use error::{Error, Result};
pub use layer::{IntoBackend, Layer, Stack};
pub use method::{Access, Method, Record};
pub use secret::{Key, KeyProvider, Passphrase, RecoveryKey, Secret};
