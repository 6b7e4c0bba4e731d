//! Identities, sessions, prekeys and sender keys.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, Row, Statement};
use wacore::store::error::Result;
use wacore::store::traits::SignalStore;

use super::connection::Statements;
use super::store::SqliteStore;
use super::write_plan::WritePlan;
use crate::encrypt::HeaderCopy;
use crate::error::{self, Error};
use crate::method::Record;
use crate::rows::below;

const PUT_IDENTITY: &str = "INSERT INTO identities (account, address, key) VALUES (?1, ?2, ?3)
    ON CONFLICT (account, address) DO UPDATE SET key = excluded.key";
const PUT_SESSION: &str = "INSERT INTO sessions (account, address, record) VALUES (?1, ?2, ?3)
    ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";
const STORE_PREKEY: &str = "INSERT INTO prekeys (account, id, record, uploaded) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (account, id) DO UPDATE SET record = excluded.record, uploaded = excluded.uploaded";
const LOAD_PREKEY: &str = "SELECT record FROM prekeys WHERE account = ?1 AND id = ?2";
const STORE_SIGNED_PREKEY: &str = "INSERT INTO signed_prekeys (account, id, record) VALUES (?1, ?2, ?3)
    ON CONFLICT (account, id) DO UPDATE SET record = excluded.record";
const PUT_SENDER_KEY: &str = "INSERT INTO sender_keys (account, address, record) VALUES (?1, ?2, ?3)
    ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";
const GET_SENDER_KEY: &str = "SELECT record FROM sender_keys WHERE account = ?1 AND address = ?2";

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl SignalStore for SqliteStore {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        let (account, address) = (self.account, address.to_owned());
        self.write(WritePlan::DURABLE, move |c| c.run(PUT_IDENTITY, (account, &address, key)).map(drop)).await
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        let (account, rows) = (self.account, identities.to_vec());
        self.write_rows(
            WritePlan::DURABLE,
            PUT_IDENTITY,
            rows,
            |_| 32,
            move |put, (address, key)| put.execute((account, address, key)),
        )
        .await
    }

    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        const SQL: &str = "SELECT key FROM identities WHERE account = ?1 AND address = ?2";
        self.read(|c| {
            let key: Option<Vec<u8>> = c.first(SQL, (self.account, address), |row| row.get(0))?;
            key.map(|key| key.try_into().map_err(|_| Error::Malformed { record: Record::Identity })).transpose()
        })
        .await
    }

    async fn delete_identity(&self, address: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM identities WHERE account = ?1 AND address = ?2";
        let (account, address) = (self.account, address.to_owned());
        self.write(WritePlan::DURABLE, move |c| c.run(SQL, (account, &address)).map(drop)).await
    }

    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        const SQL: &str = "SELECT record FROM sessions WHERE account = ?1 AND address = ?2";
        self.read(|c| c.first(SQL, (self.account, address), bytes)).await
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        let (account, address, session) = (self.account, address.to_owned(), session.to_vec());
        self.write(WritePlan::DURABLE, move |c| c.run(PUT_SESSION, (account, &address, &session)).map(drop)).await
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        let (account, rows) = (self.account, sessions.to_vec());
        self.write_rows(
            WritePlan::DURABLE,
            PUT_SESSION,
            rows,
            |row| row.1.len(),
            move |put, (address, session)| put.execute((account, address, &session[..])),
        )
        .await
    }

    async fn delete_session(&self, address: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM sessions WHERE account = ?1 AND address = ?2";
        let (account, address) = (self.account, address.to_owned());
        self.write(WritePlan::DURABLE, move |c| c.run(SQL, (account, &address)).map(drop)).await
    }

    async fn has_session(&self, address: &str) -> Result<bool> {
        const SQL: &str = "SELECT 1 FROM sessions WHERE account = ?1 AND address = ?2";
        self.read(|c| Ok(c.first(SQL, (self.account, address), |_| Ok(()))?.is_some())).await
    }

    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        // In an address, `@` or `:` follows the user. The range ends before the next character.
        const SQL: &str = "SELECT
            EXISTS (SELECT 1 FROM sessions WHERE account = ?1 AND address >= ?2 AND address < ?3)
            OR EXISTS (SELECT 1 FROM sessions WHERE account = ?1 AND address >= ?4 AND address < ?5)
            OR EXISTS (SELECT 1 FROM identities WHERE account = ?1 AND address >= ?2 AND address < ?3)
            OR EXISTS (SELECT 1 FROM identities WHERE account = ?1 AND address >= ?4 AND address < ?5)";
        let [at, after_at, colon, after_colon] = ["@", "A", ":", ";"].map(|end| [user, end].concat());
        self.read(|c| {
            let found = c.first(SQL, (self.account, &at, &after_at, &colon, &after_colon), |row| row.get(0))?;
            Ok(found.unwrap_or(false))
        })
        .await
    }

    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        let (account, record) = (self.account, record.to_vec());
        self.write(WritePlan::DURABLE, move |c| c.run(STORE_PREKEY, (account, id, &record, uploaded)).map(drop)).await
    }

    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        let (account, rows) = (self.account, keys.to_vec());
        self.write_rows(
            WritePlan::DURABLE,
            STORE_PREKEY,
            rows,
            |row| row.1.len(),
            move |store, (id, record)| store.execute((account, id, &record[..], uploaded)),
        )
        .await
    }

    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        self.read(|c| c.first(LOAD_PREKEY, (self.account, id), bytes)).await
    }

    /// Returns the records in the order of `ids`. Returns an id twice if it is asked for twice.
    async fn load_prekeys_batch(&self, ids: &[u32]) -> Result<Vec<(u32, Bytes)>> {
        let account = self.account;
        let read =
            move |load: &mut Statement<'_>, &id: &u32| load.query_row((account, id), |row| Ok((id, bytes(row)?)));
        self.read_rows(LOAD_PREKEY, ids.to_vec(), read).await
    }

    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        const SQL: &str = "UPDATE prekeys SET uploaded = 1 WHERE account = ?1 AND id = ?2";
        let (account, rows) = (self.account, ids.to_vec());
        self.write_rows(WritePlan::DURABLE, SQL, rows, |_| 0, move |mark, id| mark.execute((account, id))).await
    }

    async fn remove_prekey(&self, id: u32) -> Result<()> {
        const SQL: &str = "DELETE FROM prekeys WHERE account = ?1 AND id = ?2";
        let account = self.account;
        self.write(WritePlan::DURABLE, move |c| c.run(SQL, (account, id)).map(drop)).await
    }

    async fn get_max_prekey_id(&self) -> Result<u32> {
        const SQL: &str = "SELECT id FROM prekeys WHERE account = ?1 ORDER BY id DESC LIMIT 1";
        self.read(|c| Ok(c.first(SQL, (self.account,), |row| row.get(0))?.unwrap_or(0))).await
    }

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        let (account, record) = (self.account, record.to_vec());
        self.write(WritePlan::DURABLE, move |c| c.run(STORE_SIGNED_PREKEY, (account, id, &record)).map(drop)).await
    }

    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        const SQL: &str = "SELECT record FROM signed_prekeys WHERE account = ?1 AND id = ?2";
        self.read(|c| c.first(SQL, (self.account, id), |row| row.get(0))).await
    }

    /// In ascending order of the ids.
    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        const SQL: &str = "SELECT id, record FROM signed_prekeys WHERE account = ?1 ORDER BY id";
        self.read(|c| c.all(SQL, (self.account,), |row| Ok((row.get(0)?, row.get(1)?)))).await
    }

    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        const SQL: &str = "DELETE FROM signed_prekeys WHERE account = ?1 AND id = ?2";
        let account = self.account;
        self.write(WritePlan::DURABLE, move |c| c.run(SQL, (account, id)).map(drop)).await
    }

    /// A copy of a vault header replaces only the header that it was made from. So if several
    /// vaults, tasks or processes write it at the same time, exactly one succeeds.
    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        let (account, address, record) = (self.account, address.to_owned(), record.to_vec());
        if HeaderCopy::of(&address).is_some() {
            let put = move |c: &Connection| write_sender_key(c, account, &address, &record);
            return self.write_header(WritePlan::DURABLE.transaction(), put).await;
        }
        self.write(WritePlan::DURABLE, move |c| c.run(PUT_SENDER_KEY, (account, &address, &record)).map(drop)).await
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        let (account, rows) = (self.account, sender_keys.to_vec());
        let headers = rows.iter().filter(|(address, _)| HeaderCopy::of(address).is_some()).count();
        if headers > 0 {
            let is_all = headers == rows.len();
            let plan = WritePlan::DURABLE.transaction().blocking();
            let put = move |c: &Connection| {
                rows.iter().try_for_each(|(address, record)| write_sender_key(c, account, address, record))
            };
            return if is_all { self.write_header(plan, put).await } else { self.write(plan, put).await };
        }
        self.write_rows(
            WritePlan::DURABLE,
            PUT_SENDER_KEY,
            rows,
            |row| row.1.len(),
            move |put, (address, record)| put.execute((account, address, &record[..])),
        )
        .await
    }

    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        if address == below::ADDRESS {
            return Ok(below::answer(&self.database, self.account, self.chosen));
        }
        self.read(|c| c.first(GET_SENDER_KEY, (self.account, address), |row| row.get(0))).await
    }

    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM sender_keys WHERE account = ?1 AND address = ?2";
        let (account, address) = (self.account, address.to_owned());
        self.write(WritePlan::DURABLE, move |c| c.run(SQL, (account, &address)).map(drop)).await
    }
}

/// Writes a sender key. A copy of a vault header replaces only the header that it was made from.
fn write_sender_key(c: &Connection, account: i32, address: &str, record: &[u8]) -> error::Result<()> {
    if let Some(copy) = HeaderCopy::of(address) {
        let stored =
            |copy: HeaderCopy| c.first(GET_SENDER_KEY, (account, copy.address()), |row| row.get::<_, Vec<u8>>(0));
        if !copy.may_become(record, stored(HeaderCopy::A)?.as_deref(), stored(HeaderCopy::B)?.as_deref()) {
            return Err(Error::HeaderConflict);
        }
    }
    c.run(PUT_SENDER_KEY, (account, address, record)).map(drop)
}

fn bytes(row: &Row<'_>) -> rusqlite::Result<Bytes> {
    row.get::<_, Vec<u8>>(0).map(Bytes::from)
}
