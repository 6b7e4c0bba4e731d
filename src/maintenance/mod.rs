//! The operator's tasks on a store and its vault: opening one account of several, new keys, checks,
//! repair.
//!
//! All of it works on [`OwnStore`], whichever engine keeps the rows; `create_encrypted` and
//! `backup_to_folder` make SQLite files.
//!
//! | file | |
//! |--|--|
//! | `accounts.rs`, `create.rs` | opening the vault of an account; creating an encrypted store |
//! | `rotate.rs`, `revoke.rs`, `reseal.rs` | a new data key; new secrets after a leak; sealing every row again |
//! | `verify.rs`, `inspect.rs` | checking every row; what can be seen without a key |
//! | `copy.rs` | copying accounts from store to store |
//! | `backups.rs` | backups in a folder |
//! | `repair.rs`, `forget.rs` | dropping damaged records; dropping a contact's |

mod accounts;
#[cfg(feature = "sqlite")]
mod backups;
mod copy;
#[cfg(feature = "sqlite")]
mod create;
mod forget;
mod inspect;
mod repair;
mod reseal;
mod revoke;
mod rotate;
#[cfg(test)]
mod tests;
mod verify;

pub use accounts::{open_account, restore_account_header};
#[cfg(feature = "sqlite")]
pub use backups::{FolderBackup, backup_to_folder};
pub use copy::{CopyReport, StoreCopy, reclaim_account};
#[cfg(feature = "sqlite")]
pub use create::create_encrypted;
pub use forget::{ForgetReport, forget};
pub use inspect::{InspectedAccount, Inspection, inspect};
pub use repair::{Repair, RepairReport};
pub use revoke::{AccountReport, RevokeReport};
pub use rotate::{Rotate, RotateReport};
pub use verify::{DamagedRow, Verify, VerifyReport};

pub use crate::progress::{Phase, Progress};
#[doc(hidden)]
pub use crate::rows::store::OwnRows;
pub use crate::rows::store::OwnStore;
pub use crate::rows::table::TableSize;
