//! The settings of all commands that take a secret.

use wastore::VaultOptions;

use crate::transit::TransitServer;

/// How vaults are opened and created.
pub(crate) struct Settings {
    pub(crate) vault: VaultOptions,
    pub(crate) transit: TransitServer,
}
