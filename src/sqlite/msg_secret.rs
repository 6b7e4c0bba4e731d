//! Message secrets.

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{MessageSecret, MsgSecretEntry, MsgSecretStore};

use super::connection::Statements;
use super::store::SWEEP_ROWS;
use super::store::SqliteStore;
use super::write_plan::WritePlan;

// An `expires_at` of 0 means never.
const PUT: &str = "INSERT INTO message_secrets (account, chat, sender, msg_id, secret, expires_at, message_ts)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (account, chat, sender, msg_id) DO UPDATE
    SET secret = excluded.secret,
    expires_at = iif(expires_at = 0 OR excluded.expires_at = 0, 0, max(expires_at, excluded.expires_at)),
    message_ts = max(message_ts, excluded.message_ts)";
const GET: &str =
    "SELECT secret, message_ts FROM message_secrets WHERE account = ?1 AND chat = ?2 AND sender = ?3 AND msg_id = ?4";

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MsgSecretStore for SqliteStore {
    async fn put_msg_secret(&self, chat: &str, sender: &str, msg_id: &str, secret: &MessageSecret) -> Result<()> {
        let (chat, sender, msg_id) = (chat.into(), sender.into(), msg_id.into());
        let entry = MsgSecretEntry { chat, sender, msg_id, secret: *secret, expires_at: 0, message_ts: 0 };
        self.put_msg_secrets(vec![entry]).await.map(drop)
    }

    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let (account, count) = (self.account, entries.len());
        self.write_rows(
            WritePlan::RELAXED,
            PUT,
            entries,
            |_| 0,
            move |put, entry| {
                let MsgSecretEntry { chat, sender, msg_id, secret, expires_at, message_ts } = entry;
                put.execute((account, chat, sender, msg_id, secret, expires_at, message_ts))
            },
        )
        .await?;
        Ok(count)
    }

    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        self.read(|c| c.first(GET, (self.account, chat, sender, msg_id), |row| row.get(0))).await
    }

    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        self.read(|c| c.first(GET, (self.account, chat, sender, msg_id), |row| Ok((row.get(0)?, row.get(1)?)))).await
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        const SQL: &str = "DELETE FROM message_secrets WHERE rowid IN (SELECT rowid FROM message_secrets
            WHERE account = ?1 AND expires_at != 0 AND expires_at <= ?2 LIMIT ?3)";
        let account = self.account;
        self.sweep(move |c| c.run(SQL, (account, cutoff_timestamp, SWEEP_ROWS as i64))).await
    }
}
