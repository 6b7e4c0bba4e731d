//! The length-preserving 32-byte block, for the one slot that cannot grow: message secrets.
//!
//! ```text
//! k = HMAC-SHA-256(block key, parts(30; chat, sender, message id))
//! c = Threefish-256(key = k, tweak = "wastore/block/v1")(secret)          words little-endian
//! ```
//!
//! Threefish-256 is the block cipher of Skein (<https://www.schneier.com/academic/skein/>). The block is confidential and
//! bound to its row, but not authenticated: a flipped bit or a swapped row gives 32 random bytes, not an error.

use threefish::Threefish256;
use wacore::store::traits::MessageSecret;
use zeroize::{Zeroize, Zeroizing};

use super::keys::LookupKeys;
use super::token::{Domain, mac_parts};
use crate::error::Result;
use crate::method::Record;

const TWEAK: &[u8; 16] = b"wastore/block/v1";

/// The cipher of one row.
pub(crate) struct Block(Threefish256);

impl LookupKeys {
    /// The block cipher for the secret of a message.
    pub(crate) fn block(&self, chat: &str, sender: &str, message_id: &str) -> Result<Block> {
        let parts = [chat, sender, message_id].map(str::as_bytes);
        let domain = Domain::MessageSecretBlock;
        let key = Zeroizing::new(mac_parts(&self.block, Record::MessageSecret, domain, parts.into_iter())?);
        Ok(Block(Threefish256::new_with_tweak(&key, TWEAK)))
    }
}

impl Block {
    pub(crate) fn encrypt(&self, secret: &MessageSecret) -> MessageSecret {
        let mut words = to_words(secret);
        self.0.encrypt_block_u64(&mut words);
        to_bytes(words)
    }

    pub(crate) fn decrypt(&self, block: &MessageSecret) -> MessageSecret {
        let mut words = to_words(block);
        self.0.decrypt_block_u64(&mut words);
        let secret = to_bytes(words);
        words.zeroize();
        secret
    }
}

fn to_words(bytes: &[u8; 32]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    words
}

fn to_bytes(words: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    bytes
}
