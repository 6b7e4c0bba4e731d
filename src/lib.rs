#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(not(target_arch = "wasm32"))]
mod background;
#[cfg(not(target_arch = "wasm32"))]
mod cache;
mod clock;
mod encrypt;
mod ended;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod filesystem;
mod json;
mod layer;
mod method;
#[cfg(not(target_arch = "wasm32"))]
pub mod metrics;
mod printable;
#[cfg(not(target_arch = "wasm32"))]
mod private;
mod secret;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(not(target_arch = "wasm32"))]
mod striped;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "import")]
mod upstream;

#[cfg(not(target_arch = "wasm32"))]
pub use background::finish_background_work;
#[cfg(not(target_arch = "wasm32"))]
pub use cache::{CacheLayer, CacheStats, RecordStats};
#[cfg(not(target_arch = "wasm32"))]
pub use encrypt::FileAnchor;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use encrypt::fuzz;
pub use encrypt::{
    Anchor, Argon2Cost, EncryptLayer, FreshnessAnchor, HeaderCopy, HeaderInfo, HeaderStore, KdfLimits, OnDamage,
    Padding, Revocation, SlotInfo, SlotKind, Vault, VaultOptions,
};
pub use error::{Error, Result};
#[cfg(feature = "sqlite")]
pub use error::{ForeignFile, SqliteProblem};
pub use layer::{Closer, IntoBackend, Layer, Stack};
pub use method::{Access, Method, Record};
#[cfg(not(target_arch = "wasm32"))]
pub use metrics::{Metrics, MetricsLayer};
#[doc(hidden)]
pub use printable::printable;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub use printable::printable_path;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use private::write_new;
pub use secret::{Key, KeyProvider, Passphrase, RecoveryKey, Secret};
#[cfg(feature = "sqlite")]
pub use sqlite::{
    DamagedRow, Durability, ForgetReport, InspectedAccount, Inspection, Repair, RepairProgress, RepairReport,
    RevokeReport, Rotate, RotateProgress, RotateReport, SqliteConfig, SqliteStore, TableSize, Verify, VerifyProgress,
    VerifyReport,
};
#[cfg(feature = "import")]
pub use upstream::{
    Export, ExportProgress, ExportReport, Import, ImportPhase, ImportProgress, ImportReport, NotRead, RemovedSource,
};
