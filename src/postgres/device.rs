//! The own device.

use async_trait::async_trait;
use wacore::stats::StorageResourceReport;
use wacore::store::Device;
use wacore::store::error::Result;
use wacore::store::traits::DeviceStore;
use zeroize::Zeroizing;

use super::decode::{blob, first, get};
use super::statement::Column::Bytes as Blob;
use super::statement::{Cell, Row, Statement, change, row, upsert};
use super::store::PostgresStore;
use crate::error;
use crate::method::Record;
use crate::rows::device::StoredDevice;

static SAVE: Statement = Statement::upsert(
    Record::Device,
    0,
    &[Blob, Blob],
    upsert!(
        "INSERT INTO @.devices (account, record, edge_routing_info) SELECT $1, r.* FROM fence, unnest($5, $6) AS r
        ON CONFLICT (account) DO UPDATE
        SET record = excluded.record, edge_routing_info = excluded.edge_routing_info"
    ),
).proof("SELECT EXISTS (SELECT FROM @.devices WHERE account = $1 AND record = $2 AND edge_routing_info IS NOT DISTINCT FROM $3)");
static LOAD: Statement =
    Statement::read(Record::Device, &[], "SELECT record, edge_routing_info FROM @.devices WHERE account = $1");
static EXISTS: Statement = Statement::read(Record::Device, &[], "SELECT 1 FROM @.devices WHERE account = $1");
static CREATE: Statement = Statement::single(
    Record::Device,
    &[Blob, Blob],
    change!(
        "INSERT INTO @.devices (account, record, edge_routing_info) SELECT $1, $5, $6 FROM fence
        ON CONFLICT (account) DO NOTHING RETURNING 1"
    ),
)
.proof("SELECT EXISTS (SELECT FROM @.devices WHERE account = $1 AND ($2 IS NULL OR true) AND ($3 IS NULL OR true))");
/// The accounts that hold records. Goes from account to account by the indexes, because reading all rows takes minutes in
/// a large database.
pub(super) static ACCOUNTS: Statement = Statement::read(
    Record::Store,
    &[],
    "WITH RECURSIVE found (account) AS (
        SELECT least((SELECT min(account) FROM @.devices), (SELECT min(account) FROM @.sender_keys),
            (SELECT min(account) FROM @.sessions))
        UNION ALL
        SELECT least((SELECT min(account) FROM @.devices d WHERE d.account > found.account),
            (SELECT min(account) FROM @.sender_keys k WHERE k.account > found.account),
            (SELECT min(account) FROM @.sessions s WHERE s.account > found.account))
        FROM found WHERE found.account IS NOT NULL)
    SELECT account FROM found WHERE account IS NOT NULL AND $1 IS NOT NULL ORDER BY account",
);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DeviceStore for PostgresStore {
    async fn save(&self, device: &Device) -> Result<()> {
        self.write_durable(&SAVE, vec![stored(device)?]).await
    }

    async fn load(&self) -> Result<Option<Device>> {
        let rows = self.read(&LOAD, row![]).await?;
        let stored = first(&rows, |row| {
            let record = Zeroizing::new(blob(row, 0, Record::Device)?);
            Ok(StoredDevice { record, edge_routing_info: get(row, 1, Record::Device)? })
        })?;
        Ok(stored.map(StoredDevice::into_device).transpose()?)
    }

    async fn exists(&self) -> Result<bool> {
        Ok(!self.read(&EXISTS, row![]).await?.is_empty())
    }

    /// Stores a new device, unless the account has one. Returns the account's number.
    async fn create(&self) -> Result<i32> {
        if !self.exists().await? {
            self.write_durable(&CREATE, vec![stored(&Device::new())?]).await?;
        }
        Ok(self.account)
    }

    /// Does nothing: the database is not a file of the bot's. The server's own means make backups, such as `pg_dump`.
    async fn snapshot_db(&self, _name: &str, _extra_content: Option<&[u8]>) -> Result<()> {
        log::info!("no snapshot is made of a PostgreSQL database: use the backups of the server");
        Ok(())
    }

    /// Reports nothing: the memory is the server's.
    async fn resource_report(&self) -> StorageResourceReport {
        StorageResourceReport::default()
    }
}

fn stored(device: &Device) -> error::Result<Row> {
    let StoredDevice { record, edge_routing_info } = StoredDevice::new(device)?;
    Ok(row![Cell::Bytes(bytes::Bytes::from_owner(record)), edge_routing_info])
}
