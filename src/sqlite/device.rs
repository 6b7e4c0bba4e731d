//! The own device.

use async_trait::async_trait;
use rusqlite::Connection;
use wacore::stats::StorageResourceReport;
use wacore::store::Device;
use wacore::store::error::Result;
use wacore::store::traits::DeviceStore;
use zeroize::Zeroizing;

use super::connection::Statements;
use super::store::SqliteStore;
use super::write_plan::WritePlan;
use crate::rows::device::StoredDevice;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DeviceStore for SqliteStore {
    async fn save(&self, device: &Device) -> Result<()> {
        const SQL: &str = "INSERT INTO devices (account, record, edge_routing_info) VALUES (?1, ?2, ?3)
            ON CONFLICT (account) DO UPDATE SET record = excluded.record, edge_routing_info = excluded.edge_routing_info";
        let (account, row) = (self.account, StoredDevice::new(device)?);
        self.write(WritePlan::DURABLE, move |c| {
            c.run(SQL, (account, &row.record[..], &row.edge_routing_info)).map(drop)
        })
        .await
    }

    async fn load(&self) -> Result<Option<Device>> {
        const SQL: &str = "SELECT record, edge_routing_info FROM devices WHERE account = ?1";
        self.read(|c| {
            let row = c.first(SQL, (self.account,), |row| {
                Ok(StoredDevice { record: Zeroizing::new(row.get(0)?), edge_routing_info: row.get(1)? })
            })?;
            row.map(StoredDevice::into_device).transpose()
        })
        .await
    }

    async fn exists(&self) -> Result<bool> {
        const SQL: &str = "SELECT 1 FROM devices WHERE account = ?1";
        self.read(|c| Ok(c.first(SQL, (self.account,), |_| Ok(()))?.is_some())).await
    }

    /// Stores a new device, unless the account has one. Returns the account's number.
    async fn create(&self) -> Result<i32> {
        const SQL: &str = "INSERT INTO devices (account, record, edge_routing_info) VALUES (?1, ?2, ?3)
            ON CONFLICT (account) DO NOTHING";
        if !self.exists().await? {
            let (account, row) = (self.account, StoredDevice::new(&Device::new())?);
            self.write(WritePlan::DURABLE, move |c| {
                c.run(SQL, (account, &row.record[..], &row.edge_routing_info)).map(drop)
            })
            .await?;
        }
        Ok(self.account)
    }

    /// Writes `<database>.snapshot-<unix time in ms>-<name>` beside the database, and the extra
    /// content to the same name with `.extra`. Both files have mode 0600.
    ///
    /// In `name`, every character other than an ASCII letter, a digit or `-` becomes `_`, and only
    /// the first 64 characters are kept.
    async fn snapshot_db(&self, name: &str, extra_content: Option<&[u8]>) -> Result<()> {
        self.check()?;
        Ok(self.snapshot(name, extra_content.map(<[u8]>::to_vec)).await?)
    }

    /// Reports an upper bound of the memory in the page caches, and the number of pages of the
    /// database. All accounts share the connections, so account 1 reports their memory and the
    /// other accounts report 0.
    async fn resource_report(&self) -> StorageResourceReport {
        let pragmas = |c: &Connection| {
            let value = |name| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((value("page_count")?.cast_unsigned(), value("page_size")?.cast_unsigned()))
        };
        let Ok((pages, page_size)) = self.database.read(pragmas).await else { return StorageResourceReport::default() };
        let cache = (self.database.wal.config.page_cache as u64).min(pages.saturating_mul(page_size));
        let shared = cache.saturating_mul(self.database.open_connections() as u64);
        let memory_bytes = Some(if self.account == 1 { shared } else { 0 });
        StorageResourceReport { memory_bytes, pages: Some(pages), ..StorageResourceReport::default() }
    }
}
