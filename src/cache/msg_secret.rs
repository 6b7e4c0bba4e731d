//! Message secrets.

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{MessageSecret, MsgSecretEntry, MsgSecretStore};

use super::{CacheStore, clear_all, read, write_one};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl MsgSecretStore for CacheStore {
    // Only the store knows the merged deadline and time.
    async fn put_msg_secret(&self, chat: &str, sender: &str, msg_id: &str, secret: &MessageSecret) -> Result<()> {
        let (first, second, third) = (chat.as_bytes(), sender.as_bytes(), msg_id.as_bytes());
        write_one!(self.message_secrets[first, second, third] => put_msg_secret(chat, sender, msg_id, secret), None)
    }

    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let Some(region) = &self.regions.message_secrets else { return self.inner.put_msg_secrets(entries).await };
        let key = |entry: &MsgSecretEntry| {
            region.key([entry.chat.as_bytes(), entry.sender.as_bytes(), entry.msg_id.as_bytes()])
        };
        let write = region.write(entries.iter().map(key));
        let result = self.inner.put_msg_secrets(entries).await;
        write.end(result, |_| None)
    }

    /// Also asks the store for the time, so that one entry answers both questions.
    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        if self.regions.message_secrets.is_none() {
            return self.inner.get_msg_secret(chat, sender, msg_id).await;
        }
        Ok(self.get_msg_secret_with_ts(chat, sender, msg_id).await?.map(|(secret, _)| secret))
    }

    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        let (first, second, third) = (chat.as_bytes(), sender.as_bytes(), msg_id.as_bytes());
        let found = read!(
            self.message_secrets[first, second, third] => get_msg_secret_with_ts(chat, sender, msg_id) => || {
                let inner = self.inner.clone();
                let (chat, sender, msg_id) = (chat.to_owned(), sender.to_owned(), msg_id.to_owned());
                async move { inner.get_msg_secret_with_ts(&chat, &sender, &msg_id).await }
            }
        );
        Ok(found.value.clone())
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        clear_all!(self.message_secrets => delete_expired_msg_secrets(cutoff_timestamp), |deleted| *deleted > 0)
    }
}
