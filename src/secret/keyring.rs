//! Keys in the keyring of the operating system.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use keyring_core::Entry;
use keyring_core::api::CredentialStoreApi;
use zeroize::Zeroizing;

use super::deadline::{on_a_thread, within};
use super::hint::{self, NAME_BYTES};
use super::key::Key;
use super::provider::{KeyProvider, ProviderError, quoted};

/// Keeps the keys of vaults in the keyring of the operating system's user.
///
/// | system | keyring |
/// |--|--|
/// | Linux, FreeBSD, OpenBSD | the Secret Service (<https://specifications.freedesktop.org/secret-service/>): GNOME Keyring, KWallet, KeePassXC |
/// | macOS | the login keychain |
/// | Windows | the Credential Manager |
///
/// Each slot has an entry of its own, of the service `wastore`. The user name of the entry is the vault's id, a slash
/// and 16 random bytes in hexadecimal digits. Its password is the key, 32 random bytes, in 64 hexadecimal digits.
///
/// The entry opens the vault for every program that the keyring lets read it, which on Linux is every program in the
/// user's session. It protects copies of the store on other machines and in backups, and a machine that is switched
/// off. Back up the keyring, or add a [recovery key](crate::Vault::add_recovery_key): without the entry, the slot opens
/// nothing.
///
/// No entry is ever deleted, because older copies of the store still open with it. When the slot is removed, and no
/// such copy matters any more, delete the entry in the keyring. An entry can also be left if the vault or slot could
/// not be written after it was made; it opens nothing.
///
/// The keyring is asked on a thread of its own. It works under every async runtime.
///
/// ```no_run
/// # futures::executor::block_on(async {
/// use std::sync::Arc;
/// use wastore::vault::KeyringProvider;
/// use wastore::{SqliteStore, Vault};
///
/// let store = Arc::new(SqliteStore::open("bot.db").await?);
/// let vault = Vault::open_or_create(store, Arc::new(KeyringProvider::new())).await?;
/// # drop(vault);
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct KeyringProvider {
    limit: Duration,
}

impl KeyringProvider {
    /// The service of all entries.
    pub const SERVICE: &str = "wastore";

    /// A provider that gives the user a minute to unlock the keyring.
    pub fn new() -> Self {
        Self { limit: Duration::from_secs(60) }
    }

    /// The time after which [`KeyringProblem::TooSlow`] is returned. If the keyring is locked, the user is asked for its
    /// password in this time.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs `work` with an entry, on a thread that may wait for the user.
    async fn with_entry<T: Send + 'static>(
        &self,
        user: String,
        work: impl FnOnce(Entry) -> keyring_core::Result<T> + Send + 'static,
    ) -> Result<T, KeyringProblem> {
        let work = move || entry(&user).and_then(work).map_err(KeyringProblem::from);
        let no_thread = |error: io::Error| KeyringProblem::Unavailable { text: error.to_string() };
        let asked = within(self.limit, on_a_thread("keyring", work)).await.map_err(no_thread)?;
        asked.ok_or(KeyringProblem::TooSlow)?.map_err(no_thread)?
    }
}

impl Default for KeyringProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KeyProvider for KeyringProvider {
    async fn wrap(&self, store_id: &[u8; 16], key: &Key) -> Result<Vec<u8>, ProviderError> {
        let mut name = [0; NAME_BYTES];
        getrandom::fill(&mut name)?;
        let hint = hint::of_keyring(&name);
        let user = hint::keyring_entry(store_id, &hint).ok_or("the name of the new entry is not valid")?;
        // Text, because KWallet keeps only text. An array would leave copies where it is moved.
        let mut digits = Zeroizing::new(vec![0; 64]);
        HEXLOWER.encode_mut(key.expose(), &mut digits);
        self.with_entry(user, move |entry| entry.set_secret(&digits)).await?;
        Ok(hint)
    }

    async fn unwrap(&self, store_id: &[u8; 16], hint: &[u8]) -> Result<Option<Key>, ProviderError> {
        let Some(user) = hint::keyring_entry(store_id, hint) else { return Ok(None) };
        let secret = self.with_entry(user, |entry| entry.get_secret().map(Zeroizing::new)).await;
        let digits = secret.map_err(KeyringProblem::failure)?;
        let mut key = Key::zeroed();
        if digits.len() != 64 || HEXLOWER.decode_mut(&digits, key.bytes_mut()) != Ok(32) {
            return Err(KeyringProblem::Damaged.failure());
        }
        Ok(Some(key))
    }
}

/// The entry of the service with this user name.
fn entry(user: &str) -> keyring_core::Result<Entry> {
    store()?.build(KeyringProvider::SERVICE, user, Some(&HashMap::from(MODIFIERS)))
}

#[cfg(any(target_os = "linux", target_os = "freebsd", target_os = "openbsd"))]
fn store() -> keyring_core::Result<Arc<dyn CredentialStoreApi>> {
    Ok(zbus_secret_service_keyring_store::Store::new()?)
}

#[cfg(target_os = "macos")]
fn store() -> keyring_core::Result<Arc<dyn CredentialStoreApi>> {
    Ok(apple_native_keyring_store::keychain::Store::new()?)
}

#[cfg(target_os = "windows")]
fn store() -> keyring_core::Result<Arc<dyn CredentialStoreApi>> {
    Ok(windows_native_keyring_store::Store::new()?)
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "freebsd",
    target_os = "openbsd",
    target_os = "macos",
    target_os = "windows"
)))]
fn store() -> keyring_core::Result<Arc<dyn CredentialStoreApi>> {
    Err(keyring_core::Error::NotSupportedByStore("wastore knows no keyring of this system".to_owned()))
}

/// An entry does not roam to other machines of the user.
#[cfg(target_os = "windows")]
const MODIFIERS: [(&str, &str); 1] = [("persistence", "Local")];

#[cfg(not(target_os = "windows"))]
const MODIFIERS: [(&str, &str); 0] = [];

/// The reason why a [`KeyringProvider`] failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringProblem {
    /// There is no keyring, or it does not work.
    #[error("the keyring cannot be used ({text}): start it in this user's session, or use another secret")]
    Unavailable {
        /// The words of the operating system or the keyring, at most 200 characters.
        text: String,
    },
    /// The user did not unlock it, or refused the access, or there is no default keyring.
    #[error("the keyring is locked, or there is no default keyring: unlock it or make one, and try again")]
    Locked,
    /// The entry is gone.
    #[error("the keyring has no entry for this slot: it was deleted, or is in the keyring of another user or machine")]
    NoEntry,
    /// The entry is not as this provider writes it.
    #[error("the entry in the keyring is not a key of wastore: put its content back from a backup of the keyring")]
    Damaged,
    /// The keyring did not answer in time.
    #[error("the keyring did not answer in time: unlock it, and try again")]
    TooSlow,
}

impl KeyringProblem {
    /// Only these concern one slot.
    fn failure(self) -> ProviderError {
        match self {
            Self::NoEntry | Self::Damaged => ProviderError::NoKey(self.into()),
            _ => ProviderError::Failed(self.into()),
        }
    }
}

impl From<keyring_core::Error> for KeyringProblem {
    /// Leaves out the content of entries, which some errors carry.
    fn from(error: keyring_core::Error) -> Self {
        use keyring_core::Error;
        match error {
            Error::NoEntry => Self::NoEntry,
            Error::NoStorageAccess(_) => Self::Locked,
            Error::PlatformFailure(error) => Self::Unavailable { text: quoted(&error.to_string()) },
            Error::BadEncoding(content) | Error::BadDataFormat(content, _) => {
                drop(Zeroizing::new(content));
                Self::Damaged
            }
            Error::Ambiguous(_) => Self::Damaged,
            Error::NotSupportedByStore(text) => Self::Unavailable { text: quoted(&text) },
            _ => Self::Unavailable { text: "it lacks a feature".to_owned() },
        }
    }
}
