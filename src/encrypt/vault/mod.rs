//! An opened vault: its secrets, and the keys derived from it.
//!
//! | file | |
//! |--|--|
//! | `handle.rs` | the handle `Vault`: key slots, derived keys |
//! | `options.rs` | settings |
//! | `open.rs` | creating and opening |
//! | `open_vault.rs` | the live vault |
//! | `copies.rs`, `header.rs` | the two header copies, and the format of one |
//! | `slot.rs`, `kdf.rs`, `key_wrap.rs` | from a secret to the vault key, and from there to the others |
//! | `rotate.rs`, `restore.rs`, `evidence.rs` | new keys; a header that is put back; the claims of records about their keys |
//! | `inspect.rs` | the facts that need no key |
//! | `rollback.rs`, `file_anchor.rs` | older and second copies of a store; an anchor in a folder |
//! | `host.rs`, `occupancy.rs` | the store of a vault, and its content before the vault |

pub(crate) mod copies;
pub(crate) mod evidence;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod file_anchor;
pub(crate) mod handle;
pub(crate) mod header;
pub(crate) mod host;
pub(crate) mod inspect;
pub(crate) mod kdf;
pub(crate) mod key_wrap;
pub(crate) mod occupancy;
pub(crate) mod open;
pub(crate) mod open_vault;
pub(crate) mod options;
pub(crate) mod restore;
pub(crate) mod rollback;
pub(crate) mod rotate;
pub(crate) mod slot;
