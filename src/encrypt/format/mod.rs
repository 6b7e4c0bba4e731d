//! The stored format: the sealed value, blinded names, the block that cannot grow, and their keys.
//!
//! | file | |
//! |--|--|
//! | `envelope.rs` | the sealed value |
//! | `aead.rs` | its cipher |
//! | `padding.rs` | hiding its length |
//! | `token.rs` | the names that the inner store sees |
//! | `block.rs` | 32 bytes in a place of 32 bytes |
//! | `keys.rs`, `kind.rs` | the tree of keys; the numbers of the kinds of record |

pub(crate) mod aead;
pub(crate) mod block;
pub(crate) mod envelope;
pub(crate) mod keys;
pub(crate) mod kind;
pub(crate) mod padding;
pub(crate) mod token;
