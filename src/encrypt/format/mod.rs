//! What is stored: the sealed value, blinded names, the block that cannot grow, and the keys that they are made with.
//!
//! | file | |
//! |--|--|
//! | `envelope.rs` | the sealed value |
//! | `aead.rs` | its cipher |
//! | `padding.rs` | how its length is hidden |
//! | `token.rs` | what the inner store sees instead of names |
//! | `block.rs` | 32 bytes in a place of 32 bytes |
//! | `keys.rs` | the tree of keys |

pub(super) mod aead;
pub(super) mod block;
pub(super) mod envelope;
pub(super) mod keys;
pub(super) mod padding;
pub(super) mod token;
