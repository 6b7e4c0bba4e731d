//! Message secrets.

use async_trait::async_trait;
use wacore::store::error::Result;
use wacore::store::traits::{MessageSecret, MsgSecretEntry, MsgSecretStore};

use super::decode::{blob, first, get};
use super::statement::Column::{Bytes as Blob, Long};
use super::statement::{Fold, Kind, Statement, change, row, upsert};
use super::store::PostgresStore;
use crate::method::Record;

// An `expires_at` of 0 means never.
pub(super) static PUT: Statement = Statement::upsert(
    Record::MessageSecret,
    3,
    &[Blob, Blob, Blob, Blob, Long, Long],
    upsert!(
        "INSERT INTO @.message_secrets AS t (account, chat, sender, msg_id, secret, expires_at, message_ts)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8, $9, $10) AS r
        ON CONFLICT (account, chat, sender, msg_id) DO UPDATE SET secret = excluded.secret,
        expires_at = CASE WHEN t.expires_at = 0 OR excluded.expires_at = 0 THEN 0
            ELSE greatest(t.expires_at, excluded.expires_at) END,
        message_ts = greatest(t.message_ts, excluded.message_ts)"
    ),
)
.kind(Kind::Upsert(Fold::MessageSecret));
static GET: Statement = Statement::read(
    Record::MessageSecret,
    &[Blob, Blob, Blob],
    "SELECT secret, message_ts FROM @.message_secrets
    WHERE account = $1 AND chat = $2 AND sender = $3 AND msg_id = $4",
);
// The expiry of the 1,000th row bounds a step of the sweep; `least` skips NULL if there are fewer.
static DELETE_EXPIRED: Statement = Statement::single(
    Record::MessageSecret,
    &[Long],
    change!(
        "DELETE FROM @.message_secrets WHERE account = $1 AND expires_at <> 0 AND expires_at <= least($5,
            (SELECT expires_at FROM @.message_secrets WHERE account = $1 AND expires_at <> 0 AND expires_at <= $5
            ORDER BY expires_at OFFSET 999 LIMIT 1))
        AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MsgSecretStore for PostgresStore {
    async fn put_msg_secret(&self, chat: &str, sender: &str, msg_id: &str, secret: &MessageSecret) -> Result<()> {
        let (chat, sender, msg_id) = (chat.into(), sender.into(), msg_id.into());
        let entry = MsgSecretEntry { chat, sender, msg_id, secret: *secret, expires_at: 0, message_ts: 0 };
        self.put_msg_secrets(vec![entry]).await.map(drop)
    }

    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let count = entries.len();
        let row = |entry: MsgSecretEntry| {
            let MsgSecretEntry { chat, sender, msg_id, secret, expires_at, message_ts } = entry;
            row![&*chat, &*sender, &*msg_id, &secret[..], expires_at, message_ts]
        };
        self.write_relaxed(&PUT, entries.into_iter().map(row).collect()).await?;
        Ok(count)
    }

    async fn get_msg_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.get_msg_secret_with_ts(chat, sender, msg_id).await?.map(|(secret, _)| secret))
    }

    async fn get_msg_secret_with_ts(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Option<(Vec<u8>, i64)>> {
        const RECORD: Record = Record::MessageSecret;
        let rows = self.read(&GET, row![chat, sender, msg_id]).await?;
        Ok(first(&rows, |row| Ok((blob(row, 0, RECORD)?, get(row, 1, RECORD)?)))?)
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        self.sweep(&DELETE_EXPIRED, cutoff_timestamp).await
    }
}
