//! The stored form of the own device.
//!
//! The device is stored as JSON, which carries every field that upstream serializes now or adds later. Only the routing
//! info has its own column, because an encrypting layer stores kilobytes in it.

use std::sync::Arc;

use wacore::client_profile::ClientProfile;
use wacore::store::Device;
use wacore::store::device::DEVICE_PROPS;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::json;
use crate::method::Record;

/// A device in its stored form.
pub(crate) struct StoredDevice {
    pub(crate) record: Zeroizing<Vec<u8>>,
    pub(crate) edge_routing_info: Option<Vec<u8>>,
}

impl StoredDevice {
    /// # Errors
    /// [`Error::Encode`].
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let mut device = device.clone();
        let edge_routing_info = device.edge_routing_info.take();
        Ok(Self { record: json::encode(Record::Device, &device)?, edge_routing_info })
    }

    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn into_device(self) -> Result<Device> {
        let device: Device =
            serde_json::from_slice(&self.record).map_err(|_| Error::Malformed { record: Record::Device })?;
        Ok(Device {
            edge_routing_info: self.edge_routing_info,
            // These fields are not serialized, and their serde defaults differ from the client's.
            device_props: Arc::new(DEVICE_PROPS.clone()),
            client_profile: ClientProfile::web(),
            nct_salt_sync_seen: false,
            ..device
        })
    }
}
