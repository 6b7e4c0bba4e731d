//! App-state keys, versions and mutation MACs.

use std::collections::HashMap;

use async_trait::async_trait;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, AppSyncStore};

use super::decode::{blob, first, get};
use super::statement::Column::{Bytes as Blob, BytesList, Flag, Long};
use super::statement::{Cell, Statement, change, row, upsert};
use super::store::PostgresStore;
use crate::error::Error;
use crate::method::Record;
use crate::rows::encoding::{decode_map, encode_map};

static GET_SYNC_KEY: Statement = Statement::read(
    Record::SyncKey,
    &[Blob],
    "SELECT key_data, fingerprint, timestamp FROM @.sync_keys WHERE account = $1 AND key_id = $2",
);
static SET_SYNC_KEY: Statement = Statement::upsert(
    Record::SyncKey,
    1,
    &[Blob, Blob, Blob, Long],
    upsert!(
        "INSERT INTO @.sync_keys (account, key_id, key_data, fingerprint, timestamp)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8) AS r ON CONFLICT (account, key_id) DO UPDATE
        SET key_data = excluded.key_data, fingerprint = excluded.fingerprint, timestamp = excluded.timestamp"
    ),
).proof("SELECT EXISTS (SELECT FROM @.sync_keys WHERE account = $1 AND key_id = $2 AND key_data = $3 AND fingerprint = $4 AND timestamp = $5)");
static LATEST_SYNC_KEY: Statement = Statement::read(
    Record::SyncKey,
    &[],
    "SELECT key_id FROM @.sync_keys WHERE account = $1 ORDER BY key_id DESC LIMIT 1",
);
static GET_VERSION: Statement = Statement::read(
    Record::CollectionVersion,
    &[Blob],
    "SELECT version, hash, index_value_map, mac_mismatch_fatal FROM @.collection_versions
    WHERE account = $1 AND name = $2",
);
static SET_VERSION: Statement = Statement::upsert(
    Record::CollectionVersion,
    1,
    &[Blob, Long, Blob, Blob, Flag],
    upsert!(
        "INSERT INTO @.collection_versions (account, name, version, hash, index_value_map, mac_mismatch_fatal)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8, $9) AS r ON CONFLICT (account, name) DO UPDATE
        SET version = excluded.version, hash = excluded.hash, index_value_map = excluded.index_value_map,
        mac_mismatch_fatal = excluded.mac_mismatch_fatal"
    ),
);
static PUT_MUTATION_MACS: Statement = Statement::upsert(
    Record::MutationMac,
    2,
    &[Blob, Blob, Blob, Long],
    upsert!(
        "INSERT INTO @.mutation_macs (account, name, index_mac, value_mac, version)
        SELECT $1, r.* FROM fence, unnest($5, $6, $7, $8) AS r ON CONFLICT (account, name, index_mac) DO UPDATE
        SET value_mac = excluded.value_mac, version = excluded.version"
    ),
);
static GET_MUTATION_MAC: Statement = Statement::read(
    Record::MutationMac,
    &[Blob, Blob],
    "SELECT value_mac FROM @.mutation_macs WHERE account = $1 AND name = $2 AND index_mac = $3",
);
static GET_MUTATION_MACS: Statement = Statement::read(
    Record::MutationMac,
    &[Blob, BytesList],
    "SELECT index_mac, value_mac FROM @.mutation_macs WHERE account = $1 AND name = $2 AND index_mac = ANY($3)",
);
static DELETE_MUTATION_MACS: Statement = Statement::change(
    Record::MutationMac,
    &[Blob, Blob],
    change!(
        "DELETE FROM @.mutation_macs t USING unnest($5, $6) AS r(name, index_mac)
        WHERE t.account = $1 AND t.name = r.name AND t.index_mac = r.index_mac AND EXISTS (SELECT FROM fence)
        RETURNING 1"
    ),
);
static CLEAR_MUTATION_MACS: Statement = Statement::single(
    Record::MutationMac,
    &[Blob],
    change!("DELETE FROM @.mutation_macs WHERE account = $1 AND name = $5 AND EXISTS (SELECT FROM fence) RETURNING 1"),
);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AppSyncStore for PostgresStore {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        const RECORD: Record = Record::SyncKey;
        let rows = self.read(&GET_SYNC_KEY, row![key_id]).await?;
        Ok(first(&rows, |row| {
            let (key_data, fingerprint) = (blob(row, 0, RECORD)?, blob(row, 1, RECORD)?);
            Ok(AppStateSyncKey { key_data, fingerprint, timestamp: get(row, 2, RECORD)? })
        })?)
    }

    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        let AppStateSyncKey { key_data, fingerprint, timestamp } = key;
        self.write_durable(&SET_SYNC_KEY, vec![row![key_id, key_data, fingerprint, timestamp]]).await
    }

    async fn get_version(&self, name: &str) -> Result<HashState> {
        const RECORD: Record = Record::CollectionVersion;
        let rows = self.read(&GET_VERSION, row![name]).await?;
        let state = first(&rows, |row| {
            Ok(HashState {
                version: get::<i64>(row, 0, RECORD)?.cast_unsigned(),
                hash: blob(row, 1, RECORD)?.try_into().map_err(|_| Error::Malformed { record: RECORD })?,
                index_value_map: decode_map(get(row, 2, RECORD)?)?,
                mac_mismatch_fatal: get(row, 3, RECORD)?,
            })
        })?;
        Ok(state.unwrap_or_default())
    }

    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        let (version, map) = (state.version.cast_signed(), encode_map(&state.index_value_map)?);
        let row = row![name, version, &state.hash[..], map, state.mac_mismatch_fatal];
        self.write_relaxed(&SET_VERSION, vec![row]).await
    }

    async fn put_mutation_macs(&self, name: &str, version: u64, mutations: &[AppStateMutationMAC]) -> Result<()> {
        let name = Cell::from(name);
        let row = |mac: &AppStateMutationMAC| {
            row![name.clone(), &mac.index_mac[..], &mac.value_mac[..], version.cast_signed()]
        };
        self.write_relaxed(&PUT_MUTATION_MACS, mutations.iter().map(row).collect()).await
    }

    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        let rows = self.read(&GET_MUTATION_MAC, row![name, index_mac]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::MutationMac))?)
    }

    async fn get_mutation_macs(&self, name: &str, index_macs: &[[u8; 32]]) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        const RECORD: Record = Record::MutationMac;
        let list = Cell::BytesList(index_macs.iter().map(|mac| mac.to_vec().into()).collect());
        let rows = self.read(&GET_MUTATION_MACS, row![name, list]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let index_mac = get::<&[u8]>(row, 0, RECORD)?;
            let index_mac = index_mac.try_into().map_err(|_| Error::Malformed { record: RECORD })?;
            found.insert(index_mac, blob(row, 1, RECORD)?);
        }
        Ok(found)
    }

    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        let name = Cell::from(name);
        let rows = index_macs.iter().map(|index_mac| row![name.clone(), &index_mac[..]]).collect();
        self.write_relaxed(&DELETE_MUTATION_MACS, rows).await
    }

    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        self.write_relaxed(&CLEAR_MUTATION_MACS, vec![row![name]]).await
    }

    /// The highest id, byte by byte. Ids end in an epoch that rises, so this is the newest id of all devices of the
    /// account.
    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        let rows = self.read(&LATEST_SYNC_KEY, row![]).await?;
        Ok(first(&rows, |row| blob(row, 0, Record::SyncKey))?)
    }
}
