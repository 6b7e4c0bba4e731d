//! App-state keys, versions and mutation MACs.

use std::collections::HashMap;

use async_trait::async_trait;
use rusqlite::Statement;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, AppSyncStore};

use super::connection::Statements;
use super::store::{SqliteStore, join};
use super::write_plan::WritePlan;
use crate::error::Error;
use crate::method::Record;
use crate::rows::encoding::{decode_map, encode_map};

const GET_MUTATION_MAC: &str =
    "SELECT value_mac FROM mutation_macs WHERE account = ?1 AND name = ?2 AND index_mac = ?3";

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AppSyncStore for SqliteStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        const SQL: &str = "SELECT key_data, fingerprint, timestamp FROM sync_keys WHERE account = ?1 AND key_id = ?2";
        self.read(|c| {
            c.first(SQL, (self.account, key_id), |row| {
                Ok(AppStateSyncKey { key_data: row.get(0)?, fingerprint: row.get(1)?, timestamp: row.get(2)? })
            })
        })
        .await
    }

    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        const SQL: &str = "INSERT INTO sync_keys (account, key_id, key_data, fingerprint, timestamp)
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (account, key_id) DO UPDATE
            SET key_data = excluded.key_data, fingerprint = excluded.fingerprint, timestamp = excluded.timestamp";
        let (account, key_id) = (self.account, key_id.to_vec());
        self.write(WritePlan::DURABLE, move |c| {
            c.run(SQL, (account, &key_id, &key.key_data, &key.fingerprint, key.timestamp)).map(drop)
        })
        .await
    }

    async fn get_version(&self, name: &str) -> Result<HashState> {
        const SQL: &str = "SELECT version, hash, index_value_map, mac_mismatch_fatal FROM collection_versions
            WHERE account = ?1 AND name = ?2";
        self.read(|c| {
            let row = c.first(SQL, (self.account, name), |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?))
            })?;
            let Some((version, hash, index_value_map, mac_mismatch_fatal)) = row else {
                return Ok(HashState::default());
            };
            Ok(HashState {
                version: version.cast_unsigned(),
                hash: hash.try_into().map_err(|_| Error::Malformed { record: Record::CollectionVersion })?,
                index_value_map: decode_map(&index_value_map)?,
                mac_mismatch_fatal,
            })
        })
        .await
    }

    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        const SQL: &str =
            "INSERT INTO collection_versions (account, name, version, hash, index_value_map, mac_mismatch_fatal)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (account, name) DO UPDATE SET version = excluded.version,
            hash = excluded.hash, index_value_map = excluded.index_value_map,
            mac_mismatch_fatal = excluded.mac_mismatch_fatal";
        let (account, name) = (self.account, name.to_owned());
        let (version, map) = (state.version.cast_signed(), encode_map(&state.index_value_map)?);
        self.write(WritePlan::RELAXED, move |c| {
            c.run(SQL, (account, &name, version, &state.hash[..], &map, state.mac_mismatch_fatal)).map(drop)
        })
        .await
    }

    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        // Without row ids and further indexes, SQLite replaces a row where it is.
        const SQL: &str = "INSERT OR REPLACE INTO mutation_macs (account, name, index_mac, value_mac, version)
            VALUES (?1, ?2, ?3, ?4, ?5)";
        let (account, name, version) = (self.account, name.to_owned(), version.cast_signed());
        let (bytes, mut rows) = join(mutations.iter().map(|mac| [&mac.index_mac[..], &mac.value_mac]));
        // In the order of the table, each of its pages is visited once. Of equal ones the last still wins.
        rows.sort_by(|[one, _], [other, _]| bytes[one.clone()].cmp(&bytes[other.clone()]));
        self.write_rows(
            WritePlan::RELAXED,
            SQL,
            rows,
            |[_, value_mac]| value_mac.len(),
            move |put, [index_mac, value_mac]| {
                put.execute((account, &name, &bytes[index_mac.clone()], &bytes[value_mac.clone()], version))
            },
        )
        .await
    }

    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        self.read(|c| c.first(GET_MUTATION_MAC, (self.account, name, index_mac), |row| row.get(0))).await
    }

    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        let (account, name) = (self.account, name.to_owned());
        let read = move |get: &mut Statement<'_>, index_mac: &[u8; 32]| {
            get.query_row((account, &name, index_mac), |row| Ok((*index_mac, row.get(0)?)))
        };
        let mut sorted = index_macs.to_vec();
        sorted.sort_unstable();
        Ok(self.read_rows(GET_MUTATION_MAC, sorted, read).await?.into_iter().collect())
    }

    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        const SQL: &str = "DELETE FROM mutation_macs WHERE account = ?1 AND name = ?2 AND index_mac = ?3";
        let (account, name) = (self.account, name.to_owned());
        let (bytes, rows) = join(index_macs.iter().map(|index_mac| [&index_mac[..]]));
        self.write_rows(
            WritePlan::RELAXED,
            SQL,
            rows,
            |_| 0,
            move |delete, [index_mac]| delete.execute((account, &name, &bytes[index_mac.clone()])),
        )
        .await
    }

    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM mutation_macs WHERE account = ?1 AND name = ?2";
        let (account, name) = (self.account, name.to_owned());
        self.write(WritePlan::RELAXED.blocking(), move |c| c.run(SQL, (account, &name)).map(drop)).await
    }

    /// The highest id, byte by byte. Ids end in an epoch that rises, so this is the newest id of
    /// all devices of the account.
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        const SQL: &str = "SELECT key_id FROM sync_keys WHERE account = ?1 ORDER BY key_id DESC LIMIT 1";
        self.read(|c| c.first(SQL, (self.account,), |row| row.get(0))).await
    }
}
