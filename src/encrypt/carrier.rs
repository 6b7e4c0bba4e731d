//! The fields of upstream's typed records that carry a sealed value.

use std::sync::LazyLock;

use wacore::libsignal::protocol::{KeyPair, PrivateKey};
use wacore::store::Device;
use wacore::store::traits::{AppStateSyncKey, Backend};

use super::format::envelope::Prefix;
use super::format::kind::Kind;
use crate::error::{Error, Result};
use crate::method::Record;

/// The envelope that was split over the fields of a sync key.
pub(super) fn join_carrier(carrier: AppStateSyncKey) -> Vec<u8> {
    let mut sealed = carrier.key_data;
    sealed.extend_from_slice(&carrier.fingerprint);
    sealed
}

/// The envelope of the store's sealed device, if there is one. It is not verified.
pub(super) async fn sealed(store: &dyn Backend) -> Result<Option<Vec<u8>>> {
    let carried = store.load().await?.and_then(|carrier| carrier.edge_routing_info);
    Ok(carried.filter(|value| Prefix::read(Kind::Device, value).is_ok()))
}

/// Takes the envelope out of a carrier. `None` for a plaintext device that was never paired: no client uses its keys.
pub(super) fn sealed_device(device: &mut Device) -> Result<Option<Vec<u8>>> {
    let sealed = device.edge_routing_info.take().filter(|value| {
        !value.is_empty() && !matches!(Prefix::read(Kind::Device, value), Err(Error::Plaintext { .. }))
    });
    let paired = device.pn.is_some() || device.lid.is_some() || device.account.is_some();
    if sealed.is_none() && paired { Err(Error::PlaintextDevice) } else { Ok(sealed) }
}

/// An empty device: a reader of the store sees it around the envelope. To a plain client it looks unpaired.
pub(super) fn decoy() -> Result<Device> {
    static DECOY: LazyLock<Option<Device>> = LazyLock::new(|| {
        let private = PrivateKey::deserialize(&[0; 32]).ok()?;
        let keys = KeyPair::new(private.public_key().ok()?, private);
        Some(Device {
            pn: None,
            lid: None,
            registration_id: 0,
            noise_key: keys.clone(),
            identity_key: keys.clone(),
            signed_pre_key: keys,
            signed_pre_key_id: 0,
            signed_pre_key_signature: [0; 64],
            adv_secret_key: [0; 32],
            account: None,
            push_name: "encrypted by wastore".to_owned(),
            app_version_primary: 0,
            app_version_secondary: 0,
            app_version_tertiary: 0,
            app_version_last_fetched_ms: 0,
            edge_routing_info: None,
            props_hash: None,
            next_pre_key_id: 0,
            first_unupload_pre_key_id: 0,
            server_has_prekeys: false,
            nct_salt: None,
            server_cert_chain: None,
            login_counter: 0,
            lid_migrated: false,
            last_signed_pre_key_rotation_ms: 0,
            read_receipts_disabled: false,
            ..Device::new()
        })
    });
    DECOY.clone().ok_or(Error::Encode { record: Record::Device })
}
