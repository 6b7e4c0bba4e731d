//! The facts about a vault that need no key.

use serde::{Serialize, Serializer};
use wacore::store::traits::Backend;

use super::copies::HeaderCopy;
use super::header::{DEVICE_SEALED, Header, IMPORTING, ROTATING};
use super::slot::SlotInfo;
use crate::encrypt::format::padding::Padding;
use crate::error::{Error, Result};

/// The facts that a vault's header shows without any key. They are not authenticated. As JSON, ids are in hexadecimal
/// digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HeaderInfo {
    /// The version of the format.
    #[serde(rename = "format")]
    pub version: u16,
    /// The vault's random id, for [`VaultOptions::expect_store`](crate::VaultOptions::expect_store).
    #[serde(serialize_with = "hex")]
    pub store_id: [u8; 16],
    /// The id of the vault whose [`Vault::account_key`](crate::Vault::account_key) opens this one, if it was noted.
    #[serde(serialize_with = "hex_if_any")]
    pub parent: Option<[u8; 16]>,
    /// `true` if the vault is bound to a context; see [`VaultOptions::context`](crate::VaultOptions::context).
    #[serde(rename = "bound_to_context")]
    pub bound: bool,
    /// Rises with every change and every start.
    pub generation: u64,
    /// The time when the vault was created, in unix seconds.
    pub created: u64,
    /// The key slots.
    pub slots: Vec<SlotInfo>,
    /// The way in which the length of values is hidden.
    #[serde(serialize_with = "padding")]
    pub padding: Padding,
    /// The epochs of the data keys; the active one is the last.
    #[serde(rename = "data_key_epochs")]
    pub epochs: Vec<u32>,
    /// `true` if a device was sealed, so that its absence is an error.
    pub device_sealed: bool,
    /// `true` if an import did not finish.
    pub importing: bool,
    /// `true` if a change of the data key did not finish, so records of older epochs may be left.
    pub rotating: bool,
    /// The number of intact copies, of two.
    #[serde(rename = "intact_header_copies")]
    pub intact_copies: u8,
}

impl HeaderInfo {
    /// Reads the header of a store's vault; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::HeaderDamaged`] if no copy is intact, [`Error::UnsupportedVersion`] if a later version wrote it, and
    /// [`Error::Store`].
    pub async fn read(store: &dyn Backend) -> Result<Option<Self>> {
        let (mut newest, mut damaged, mut intact) = (None::<(Header, u16)>, None, 0);
        for copy in HeaderCopy::BOTH {
            let Some(bytes) = store.get_sender_key(copy.address()).await? else { continue };
            match Header::parse(&bytes) {
                Ok(header) => {
                    intact += 1;
                    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
                    if newest.as_ref().is_none_or(|(newest, _)| header.generation > newest.generation) {
                        newest = Some((header, version));
                    }
                }
                Err(error @ Error::HeaderDamaged(_)) => damaged = Some(error),
                Err(error) => return Err(error),
            }
        }
        let Some((header, version)) = newest else { return damaged.map_or(Ok(None), Err) };
        Ok(Some(Self::of(&header, version, intact)))
    }

    /// The facts in a saved header.
    #[cfg(test)]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        Ok(Self::of(&Header::parse(bytes)?, 1, 1))
    }

    fn of(header: &Header, version: u16, intact: u8) -> Self {
        let mut keys = header.data_keys.clone();
        keys.sort_by_key(|key| (key.active, key.epoch));
        Self {
            version,
            store_id: header.store_id,
            parent: header.parent(),
            bound: header.is_bound(),
            generation: header.generation,
            created: header.created,
            slots: header.slot_infos(),
            padding: header.padding(),
            epochs: keys.iter().map(|key| key.epoch).collect(),
            device_sealed: header.flags & DEVICE_SEALED != 0,
            importing: header.flags & IMPORTING != 0,
            rotating: header.flags & ROTATING != 0,
            intact_copies: intact,
        }
    }
}

fn hex<S: Serializer>(id: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&data_encoding::HEXLOWER.encode(id))
}

fn hex_if_any<S: Serializer>(id: &Option<[u8; 16]>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| data_encoding::HEXLOWER.encode(&id)).serialize(serializer)
}

fn padding<S: Serializer>(padding: &Padding, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{padding:?}"))
}
