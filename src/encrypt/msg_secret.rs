//! Message secrets.
//!
//! | record | inner key | inner value | in the clear |
//! |--|--|--|--|
//! | message secret | `x`, `x`, token(chat, sender, message id) | 32-byte block | `expires_at`, `message_ts`: merged inside the store |
//!
//! The block is not authenticated: an altered row gives 32 random bytes, and the add-on's own AEAD rejects them.

use std::sync::Arc;

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{MessageSecret, MsgSecretEntry, MsgSecretStore};

use super::format::token::UNUSED;
use super::layer::EncryptStore;
use crate::error::{self, Error};
use crate::method::{Record, forward};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl MsgSecretStore for EncryptStore {
    async fn put_msg_secret(&self, chat: &str, sender: &str, msg_id: &str, secret: &MessageSecret) -> Result<()> {
        let state = self.state();
        let token = state.cipher.lookup().message_secret(chat, sender, msg_id)?;
        let block = state.cipher.lookup().block(chat, sender, msg_id)?.encrypt(secret);
        self.inner.put_msg_secret(UNUSED, UNUSED, &token, &block).await
    }

    async fn put_msg_secrets(&self, mut entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let state = self.state();
        let unused: Arc<str> = Arc::from(UNUSED);
        for entry in &mut entries {
            let block = state.cipher.lookup().block(&entry.chat, &entry.sender, &entry.msg_id)?;
            let token = state.cipher.lookup().message_secret(&entry.chat, &entry.sender, &entry.msg_id)?;
            entry.secret = block.encrypt(&entry.secret);
            (entry.chat, entry.sender, entry.msg_id) = (unused.clone(), unused.clone(), Arc::from(&*token));
        }
        self.inner.put_msg_secrets(entries).await
    }

    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        let token = self.state().cipher.lookup().message_secret(chat, sender, msg_id)?;
        let Some(block) = self.inner.get_msg_secret(UNUSED, UNUSED, &token).await? else { return Ok(None) };
        Ok(Some(self.open_block(chat, sender, msg_id, &block)?))
    }

    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let token = self.state().cipher.lookup().message_secret(chat, sender, msg_id)?;
        let found = self.inner.get_msg_secret_with_ts(UNUSED, UNUSED, &token).await?;
        let Some((block, message_ts)) = found else { return Ok(None) };
        Ok(Some((self.open_block(chat, sender, msg_id, &block)?, message_ts)))
    }

    // Deadlines are in the clear: the inner store merges and compares them.
    forward!(delete_expired_msg_secrets);
}

impl EncryptStore {
    fn open_block(&self, chat: &str, sender: &str, msg_id: &str, block: &[u8]) -> error::Result<Vec<u8>> {
        let block = block.try_into().map_err(|_| Error::Tampered { record: Record::MessageSecret })?;
        Ok(self.state().cipher.lookup().block(chat, sender, msg_id)?.decrypt(block).to_vec())
    }
}
