//! The own device, and the methods on the store as a whole.
//!
//! | record | inner key | inner value | in the clear |
//! |--|--|--|--|
//! | device | – | sealed whole in `edge_routing_info` of a decoy device | that there is one |
//! | snapshot extra | token(name) | sealed | number and time of snapshots |

use async_trait::async_trait;
use wacore::stats::StorageResourceReport;
use wacore::store::Device;
use wacore::store::error::Result;
use wacore::store::traits::DeviceStore;

use super::carrier::{decoy, sealed_device};
use super::format::envelope::{RowBinding, nonce};
use super::format::kind::Kind;
use super::format::token::Domain;
use super::layer::EncryptStore;
use super::vault::occupancy::holds_sealed_device;
use crate::error::Error;
use crate::json;
use crate::method::{Record, forward};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl DeviceStore for EncryptStore {
    async fn save(&self, device: &Device) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal(&nonce()?, PLACE, &json::encode(Record::Device, device)?)?;
        let carrier = Device {
            edge_routing_info: Some(sealed),
            // These fields are not serialized and not secret, and their serde defaults differ from the client's. A
            // store that keeps them also keeps them here. A store that resets them on load does so as without
            // encryption.
            device_props: device.device_props.clone(),
            client_profile: device.client_profile.clone(),
            nct_salt_sync_seen: device.nct_salt_sync_seen,
            ..decoy()?
        };
        self.inner.save(&carrier).await?;
        Ok(self.vault.note_sealed_device().await?)
    }

    async fn load(&self) -> Result<Option<Device>> {
        let state = self.state();
        let Some(mut carrier) = self.inner.load().await? else {
            // A missing row that existed once must not silently lead to a new pairing.
            return if self.vault.device_is_sealed() { Err(Error::DeviceMissing.into()) } else { Ok(None) };
        };
        match sealed_device(&mut carrier)? {
            Some(sealed) => {
                let device: Device = self.open_typed(&state, PLACE, sealed).await?;
                Ok(Some(Device {
                    device_props: carrier.device_props,
                    client_profile: carrier.client_profile,
                    nct_salt_sync_seen: carrier.nct_salt_sync_seen,
                    ..device
                }))
            }
            None if self.vault.device_is_sealed() => Err(Error::PlaintextDevice.into()),
            None => Ok(None),
        }
    }

    async fn exists(&self) -> Result<bool> {
        if !self.vault.device_is_sealed() {
            return Ok(holds_sealed_device(&*self.inner).await?);
        }
        // `false` would make the client create and pair a new device.
        if self.inner.exists().await? { Ok(true) } else { Err(Error::DeviceMissing.into()) }
    }

    /// Makes the inner store create its row, unless it has one, and seals a new device into it at once. The plaintext
    /// device that the inner store wrote there is a decoy as well: its keys are never used.
    ///
    /// A sealed device stays. The number is the inner store's, or 1 if it already had the row.
    async fn create(&self) -> Result<i32> {
        if self.exists().await? {
            // The process that sealed the device may have stopped before it noted that.
            self.vault.note_sealed_device().await?;
            return Ok(1);
        }
        // Another process may have sealed a device since the header was read.
        self.vault.refresh().await?;
        if self.vault.device_is_sealed() {
            return Err(Error::DeviceMissing.into());
        }
        let id = if self.inner.exists().await? { 1 } else { self.inner.create().await? };
        self.save(&Device::new()).await?;
        Ok(id)
    }

    async fn snapshot_db(&self, name: &str, extra_content: Option<&[u8]>) -> Result<()> {
        let state = self.state();
        let token = state.cipher.lookup().token(Record::SnapshotExtra, Domain::SnapshotName, &[name])?;
        let sealed = extra_content
            .map(|content| {
                state.cipher.seal(&nonce()?, RowBinding::new(Kind::SnapshotExtra, [token.as_bytes()], []), content)
            })
            .transpose()?;
        self.inner.snapshot_db(&token, sealed.as_deref()).await
    }

    // Sizes and counters of the inner store.
    forward!(resource_report);
}

const PLACE: RowBinding<'static> = RowBinding::new(Kind::Device, [], []);
