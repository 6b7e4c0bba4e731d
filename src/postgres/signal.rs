//! Identities, sessions, prekeys and sender keys.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wacore::store::error::Result;
use wacore::store::traits::SignalStore;

use super::decode::{blob, first, get};
use super::header::Change;
use super::statement::Column::{Bytes as Blob, BytesList, Flag, Long, LongList};
use super::statement::{Cell, Row, Statement, change, row, upsert};
use super::store::PostgresStore;
use crate::encrypt::HeaderCopy;
use crate::error::{self, Error};
use crate::method::Record;
use crate::rows::below;
use crate::rows::store::UserAddresses;

static PUT_IDENTITY: Statement = Statement::upsert(
    Record::Identity,
    1,
    &[Blob, Blob],
    upsert!(
        "INSERT INTO @.identities (account, address, key) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account, address) DO UPDATE SET key = excluded.key"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.identities WHERE account = $1 AND address = $2 AND key = $3)");
static LOAD_IDENTITY: Statement =
    Statement::read(Record::Identity, &[Blob], "SELECT key FROM @.identities WHERE account = $1 AND address = $2");
static DELETE_IDENTITIES: Statement = Statement::change(
    Record::Identity,
    &[Blob],
    change!(
        "DELETE FROM @.identities WHERE account = $1 AND address = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.identities WHERE account = $1 AND address = $2)");
static GET_SESSION: Statement =
    Statement::read(Record::Session, &[Blob], "SELECT record FROM @.sessions WHERE account = $1 AND address = $2");
static HAS_SESSION: Statement =
    Statement::read(Record::Session, &[Blob], "SELECT 1 FROM @.sessions WHERE account = $1 AND address = $2");
pub(super) static PUT_SESSION: Statement = Statement::upsert(
    Record::Session,
    1,
    &[Blob, Blob],
    upsert!(
        "INSERT INTO @.sessions (account, address, record) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account, address) DO UPDATE SET record = excluded.record"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.sessions WHERE account = $1 AND address = $2 AND record = $3)");
pub(super) static DELETE_SESSIONS: Statement = Statement::change(
    Record::Session,
    &[Blob],
    change!(
        "DELETE FROM @.sessions WHERE account = $1 AND address = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.sessions WHERE account = $1 AND address = $2)");
// In an address, `@` or `:` follows the user. The range ends before the next character.
static HAS_SIGNAL_STATE: Statement = Statement::read(
    Record::Session,
    &[Blob, Blob, Blob, Blob],
    "SELECT EXISTS (SELECT FROM @.sessions WHERE account = $1 AND address >= $2 AND address < $3)
        OR EXISTS (SELECT FROM @.sessions WHERE account = $1 AND address >= $4 AND address < $5)
        OR EXISTS (SELECT FROM @.identities WHERE account = $1 AND address >= $2 AND address < $3)
        OR EXISTS (SELECT FROM @.identities WHERE account = $1 AND address >= $4 AND address < $5)",
);
static STORE_PREKEY: Statement = Statement::upsert(
    Record::Prekey,
    1,
    &[Long, Blob, Flag],
    upsert!(
        "INSERT INTO @.prekeys (account, id, record, uploaded) SELECT $1, r.* FROM fence, unnest($5, $6, $7) AS r
        ON CONFLICT (account, id) DO UPDATE SET record = excluded.record, uploaded = excluded.uploaded"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.prekeys WHERE account = $1 AND id = $2 AND record = $3 AND uploaded = $4)");
static LOAD_PREKEY: Statement =
    Statement::read(Record::Prekey, &[Long], "SELECT record FROM @.prekeys WHERE account = $1 AND id = $2");
static LOAD_PREKEYS: Statement = Statement::read(
    Record::Prekey,
    &[LongList],
    "SELECT id, record FROM @.prekeys WHERE account = $1 AND id = ANY($2)",
);
static MARK_UPLOADED: Statement = Statement::change(
    Record::Prekey,
    &[Long],
    change!(
        "UPDATE @.prekeys SET uploaded = true WHERE account = $1 AND id = ANY($5) AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.prekeys WHERE account = $1 AND id = $2 AND NOT uploaded)");
static REMOVE_PREKEYS: Statement = Statement::change(
    Record::Prekey,
    &[Long],
    change!("DELETE FROM @.prekeys WHERE account = $1 AND id = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.prekeys WHERE account = $1 AND id = $2)");
static MAX_PREKEY: Statement =
    Statement::read(Record::Prekey, &[], "SELECT id FROM @.prekeys WHERE account = $1 ORDER BY id DESC LIMIT 1");
static STORE_SIGNED_PREKEY: Statement = Statement::upsert(
    Record::SignedPrekey,
    1,
    &[Long, Blob],
    upsert!(
        "INSERT INTO @.signed_prekeys (account, id, record) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account, id) DO UPDATE SET record = excluded.record"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.signed_prekeys WHERE account = $1 AND id = $2 AND record = $3)");
static LOAD_SIGNED_PREKEY: Statement = Statement::read(
    Record::SignedPrekey,
    &[Long],
    "SELECT record FROM @.signed_prekeys WHERE account = $1 AND id = $2",
);
static LOAD_SIGNED_PREKEYS: Statement = Statement::read(
    Record::SignedPrekey,
    &[],
    "SELECT id, record FROM @.signed_prekeys WHERE account = $1 ORDER BY id",
);
static REMOVE_SIGNED_PREKEYS: Statement = Statement::change(
    Record::SignedPrekey,
    &[Long],
    change!(
        "DELETE FROM @.signed_prekeys WHERE account = $1 AND id = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.signed_prekeys WHERE account = $1 AND id = $2)");
static PUT_SENDER_KEY: Statement = Statement::upsert(
    Record::SenderKey,
    1,
    &[Blob, Blob],
    upsert!(
        "INSERT INTO @.sender_keys (account, address, record) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account, address) DO UPDATE SET record = excluded.record"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.sender_keys WHERE account = $1 AND address = $2 AND record = $3)");
static GET_SENDER_KEY: Statement =
    Statement::read(Record::SenderKey, &[Blob], "SELECT record FROM @.sender_keys WHERE account = $1 AND address = $2");
static DELETE_SENDER_KEYS: Statement = Statement::change(
    Record::SenderKey,
    &[Blob],
    change!(
        "DELETE FROM @.sender_keys WHERE account = $1 AND address = ANY($5) AND EXISTS (SELECT FROM fence) RETURNING 1"
    ),
)
.proof("SELECT NOT EXISTS (SELECT FROM @.sender_keys WHERE account = $1 AND address = $2)");

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SignalStore for PostgresStore {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        self.write_durable(&PUT_IDENTITY, vec![row![address, &key[..]]]).await
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        let rows = identities.iter().map(|(address, key)| row![&**address, &key[..]]).collect();
        self.write_durable(&PUT_IDENTITY, rows).await
    }

    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        let rows = self.read(&LOAD_IDENTITY, row![address]).await?;
        let Some(key) = first(&rows, |row| get::<&[u8]>(row, 0, Record::Identity))? else { return Ok(None) };
        let key = key.try_into().map_err(|_| Error::Malformed { record: Record::Identity })?;
        Ok(Some(key))
    }

    async fn delete_identity(&self, address: &str) -> Result<()> {
        self.write_durable(&DELETE_IDENTITIES, vec![row![address]]).await
    }

    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        let rows = self.read(&GET_SESSION, row![address]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::Session))?.map(Bytes::from))
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        self.write_durable(&PUT_SESSION, vec![row![address, session]]).await
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        let rows = sessions.iter().map(|(address, session)| row![&**address, session.clone()]).collect();
        self.write_durable(&PUT_SESSION, rows).await
    }

    async fn delete_session(&self, address: &str) -> Result<()> {
        self.write_durable(&DELETE_SESSIONS, vec![row![address]]).await
    }

    async fn has_session(&self, address: &str) -> Result<bool> {
        Ok(!self.read(&HAS_SESSION, row![address]).await?.is_empty())
    }

    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        let [at, after_at, colon, after_colon] = ["@", "A", ":", ";"].map(|end| [user, end].concat());
        let rows = self.read(&HAS_SIGNAL_STATE, row![at, after_at, colon, after_colon]).await?;
        Ok(first(&rows, |row| get(row, 0, Record::Session))?.unwrap_or(false))
    }

    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        self.write_durable(&STORE_PREKEY, vec![row![id, record, uploaded]]).await
    }

    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        let rows = keys.iter().map(|(id, record)| row![*id, record.clone(), uploaded]).collect();
        self.write_durable(&STORE_PREKEY, rows).await
    }

    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        let rows = self.read(&LOAD_PREKEY, row![id]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::Prekey))?.map(Bytes::from))
    }

    /// Returns the records in the order of `ids`. Returns an id twice if it is asked for twice.
    async fn load_prekeys_batch(&self, ids: &[u32]) -> Result<Vec<(u32, Bytes)>> {
        let list = Cell::LongList(ids.iter().map(|id| i64::from(*id)).collect());
        let rows = self.read(&LOAD_PREKEYS, smallvec::smallvec![list]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            found.insert(get::<i64>(row, 0, Record::Prekey)?, Bytes::from(blob(row, 1, Record::Prekey)?));
        }
        Ok(ids.iter().filter_map(|id| Some((*id, found.get(&i64::from(*id))?.clone()))).collect())
    }

    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        self.write_durable(&MARK_UPLOADED, ids.iter().map(|id| row![*id]).collect()).await
    }

    async fn remove_prekey(&self, id: u32) -> Result<()> {
        self.write_durable(&REMOVE_PREKEYS, vec![row![id]]).await
    }

    async fn get_max_prekey_id(&self) -> Result<u32> {
        let rows = self.read(&MAX_PREKEY, row![]).await?;
        Ok(first(&rows, |row| id(row, 0, Record::Prekey))?.unwrap_or(0))
    }

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        self.write_durable(&STORE_SIGNED_PREKEY, vec![row![id, record]]).await
    }

    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let rows = self.read(&LOAD_SIGNED_PREKEY, row![id]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::SignedPrekey))?)
    }

    /// In ascending order of the ids.
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let rows = self.read(&LOAD_SIGNED_PREKEYS, row![]).await?;
        let each = rows.iter().map(|row| Ok((id(row, 0, Record::SignedPrekey)?, blob(row, 1, Record::SignedPrekey)?)));
        Ok(each.collect::<error::Result<_>>()?)
    }

    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        self.write_durable(&REMOVE_SIGNED_PREKEYS, vec![row![id]]).await
    }

    /// A copy of a vault header replaces only the header that it was made from. So if several vaults, tasks or processes
    /// write it at the same time, exactly one succeeds.
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        if let Some(copy) = HeaderCopy::of(address) {
            return self.put_sender_keys(vec![(copy, Some(Bytes::copy_from_slice(record)))], vec![]).await;
        }
        self.write_durable(&PUT_SENDER_KEY, vec![row![address, record]]).await
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        let (mut copies, mut rows) = (vec![], vec![]);
        for (address, record) in sender_keys {
            match HeaderCopy::of(address) {
                Some(copy) => copies.push((copy, Some(record.clone()))),
                None => rows.push(row![&**address, record.clone()]),
            }
        }
        if copies.is_empty() {
            return self.write_durable(&PUT_SENDER_KEY, rows).await;
        }
        self.put_sender_keys(copies, PUT_SENDER_KEY.fold(rows)).await
    }

    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        if address == below::ADDRESS {
            return Ok(below::answer(self.shared(), self.account, true));
        }
        let rows = self.read(&GET_SENDER_KEY, row![address]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::SenderKey))?)
    }

    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        if let Some(copy) = HeaderCopy::of(address) {
            return self.put_sender_keys(vec![(copy, None)], vec![]).await;
        }
        self.write_durable(&DELETE_SENDER_KEYS, vec![row![address]]).await
    }
}

/// Where the addresses of a user's sessions begin and end.
static ADDRESSES: Statement = Statement::read(
    Record::Session,
    &[Blob, Blob, BytesList],
    "SELECT address FROM @.sessions WHERE account = $1 AND address >= $2 AND address < $3
    UNION SELECT address FROM @.sessions WHERE account = $1 AND address = ANY($4)",
);

impl PostgresStore {
    /// The addresses of users under which there are sessions.
    pub(super) async fn addresses_of(&self, users: Vec<UserAddresses>) -> error::Result<Vec<Vec<u8>>> {
        let mut addresses = vec![];
        for UserAddresses { prefix, bare } in users {
            let [at, after_at] = ["@", "A"].map(|end| [prefix.as_str(), end].concat());
            let bare = Cell::BytesList(bare.into_iter().map(Bytes::from).collect());
            let rows = self.read(&ADDRESSES, row![at, after_at, bare]).await?;
            for row in &rows {
                addresses.push(blob(row, 0, Record::Session)?);
            }
        }
        Ok(addresses)
    }

    async fn put_sender_keys(&self, copies: Vec<(HeaderCopy, Option<Bytes>)>, others: Vec<Row>) -> Result<()> {
        let others = (&PUT_SENDER_KEY, others);
        Ok(self.change_header(Change { account: self.account, copies, lease: None, others }).await?)
    }
}

/// A 32-bit id.
fn id(row: &tokio_postgres::Row, column: usize, record: Record) -> error::Result<u32> {
    get::<i64>(row, column, record)?.try_into().map_err(|_| Error::Malformed { record })
}
