//! Sealed rows as they lie in a table: checking them without being asked for one by its name.

#[cfg(feature = "sqlite")]
use std::sync::Arc;

use zeroize::Zeroizing;

#[cfg(feature = "sqlite")]
use super::format::envelope::Nonce;
use super::format::envelope::{self, Place, Prefix};
#[cfg(feature = "sqlite")]
use super::format::keys::LookupKeys;
#[cfg(feature = "sqlite")]
use super::format::token::Domain;
#[cfg(feature = "sqlite")]
use super::vault::Shared;
use super::vault::State;
#[cfg(feature = "sqlite")]
use super::{app_sync, protocol};
use crate::error::{Error, Result};
use crate::method::Record;

/// A row of a store under a vault: its key columns as the traits name them, and what carries the sealed value.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "only tables have numbers"))]
pub(crate) struct StoredRow {
    pub(crate) record: Record,
    pub(crate) columns: Vec<Vec<u8>>,
    pub(crate) value: Vec<u8>,
    /// Columns in the clear that the store computes with.
    pub(crate) numbers: Vec<Option<i64>>,
}

/// A row that was opened.
#[cfg(feature = "sqlite")]
#[cfg_attr(not(feature = "import"), expect(dead_code, reason = "only an export looks at the payload"))]
pub(crate) struct OpenedRow {
    pub(crate) record: Record,
    /// The key as the client knows it, if the row carries it, and the key columns otherwise. Of a collection's version both; of
    /// a mutation MAC its collection's column and its own index.
    pub(crate) key: Vec<Vec<u8>>,
    pub(crate) payload: Zeroizing<Vec<u8>>,
    pub(crate) numbers: Vec<Option<i64>>,
}

/// What can be said of a row that is as it should be.
#[cfg(feature = "sqlite")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// This vault sealed it, for this place and under this name.
    Sealed,
    /// It has the form of what this vault writes, but carries nothing that could be verified.
    Unauthenticated,
}

#[cfg(feature = "sqlite")]
impl Shared {
    /// Opens a row and throws its content away.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::Plaintext`], [`Error::UnknownEpoch`] and [`Error::HeaderRolledBack`] about the row.
    pub(crate) async fn check(&self, held: &Arc<State>, row: StoredRow) -> Result<Checked> {
        let unauthenticated = matches!(row.record, Record::BaseKey | Record::MessageSecret | Record::SenderKeyDevice);
        self.open_stored(held, row).await?;
        Ok(if unauthenticated { Checked::Unauthenticated } else { Checked::Sealed })
    }

    /// Opens a row that was read while `held` was held. Of sender-key devices, base keys and message secrets, whose keys are
    /// tokens, only the form is looked at, and they are given as they are.
    ///
    /// # Errors
    /// As [`Shared::check`].
    pub(crate) async fn open_stored(&self, held: &Arc<State>, row: StoredRow) -> Result<OpenedRow> {
        let StoredRow { record, columns, value, numbers } = row;
        let lookup = &held.ring.lookup;
        let tampered = || Error::Tampered { record };
        let text = |column: usize| {
            let column = columns.get(column).and_then(|column| std::str::from_utf8(column).ok());
            column.ok_or_else(tampered)
        };
        match record {
            // All that there is of it is its name.
            Record::SenderKeyDevice => {
                lookup.name(record, Domain::DeviceJid, text(1)?)?;
                return Ok(OpenedRow { record, key: columns, payload: Zeroizing::default(), numbers });
            }
            Record::BaseKey | Record::MessageSecret if value.len() == 32 => {
                return Ok(OpenedRow { record, key: columns, payload: value.into(), numbers });
            }
            Record::BaseKey | Record::MessageSecret => return Err(tampered()),
            Record::TcToken => {
                let jid = lookup.name(record, Domain::TcTokenJid, text(0)?)?;
                // A placeholder stays empty for the store to find it.
                let payload = match value.is_empty() {
                    true => Zeroizing::default(),
                    false => self.open_row(held, record, &columns, value).await?.1,
                };
                return Ok(OpenedRow { record, key: vec![jid.into_bytes()], payload, numbers });
            }
            _ => {}
        }
        let (original, payload) = self.open_row(held, record, &columns, value).await?;
        if columns_of(lookup, record, &original)?.is_some_and(|expected| expected != columns) {
            return Err(tampered());
        }
        let key = match record {
            _ if original.is_empty() => columns,
            // The name of the collection is in its token only.
            Record::MutationMac => columns.into_iter().take(1).chain(original).collect(),
            Record::CollectionVersion => original.into_iter().chain(columns).collect(),
            _ => original,
        };
        Ok(OpenedRow { record, key, payload, numbers })
    }

    /// Verifies a value in its place, and gives the key that it carries, and the payload.
    async fn open_row(
        &self,
        held: &Arc<State>,
        record: Record,
        columns: &[Vec<u8>],
        value: Vec<u8>,
    ) -> Result<KeyAndPayload> {
        let mut value = Zeroizing::new(value);
        let prefix = Prefix::read(record, &value)?;
        let state = self.state_for(held, record, prefix.epoch()).await?;
        let opened = envelope::open(state.keys(&prefix, record)?, prefix, place(record, columns)?, &mut value)?;
        self.check_stamp(&state, prefix.stamp()).await?;
        let original = opened.parts(&value).map(<[u8]>::to_vec).collect();
        Ok((original, Zeroizing::new(opened.payload(&value).to_vec())))
    }
}

impl State {
    /// Which data key a row opens under, and its stamp; `None` if it is of those that no data key seals. Nothing of the row
    /// is believed before it has opened.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::Plaintext`] and [`Error::UnknownEpoch`] about the row.
    pub(crate) fn opens(&self, row: &StoredRow) -> Result<Option<OpenedUnder>> {
        let Some(prefix) = sealed_prefix(row)? else { return Ok(None) };
        let mut value = Zeroizing::new(row.value.clone());
        let keys = self.keys(&prefix, row.record)?;
        envelope::open(keys, prefix, place(row.record, &row.columns)?, &mut value)?;
        Ok(Some(OpenedUnder { active: keys.epoch == self.ring.active().epoch, stamp: prefix.stamp() }))
    }

    /// Opens a row, and seals it under the active data key unless it already is.
    ///
    /// # Errors
    /// As [`State::opens`].
    #[cfg(feature = "sqlite")]
    pub(crate) fn reseal(&self, row: &StoredRow, nonce: &Nonce) -> Result<Resealed> {
        let Some(prefix) = sealed_prefix(row)? else { return Ok(Resealed::Unsealed) };
        let active = self.ring.active();
        if prefix.epoch() == active.epoch {
            self.opens(row)?;
            return Ok(Resealed::Already { stamp: prefix.stamp() });
        }
        let sealed_under = self.keys(&prefix, row.record)?;
        let place = place(row.record, &row.columns)?;
        let value = envelope::reseal(sealed_under, active, self.stamp, prefix, nonce, place, &row.value)?;
        Ok(Resealed::Anew { value, stamp: prefix.stamp() })
    }
}

/// How a row opened.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "only records of tables are sealed anew"))]
pub(crate) struct OpenedUnder {
    /// The active data key, not one of the older ones.
    pub(crate) active: bool,
    pub(crate) stamp: u32,
}

/// A row on its way to the active data key.
#[cfg(feature = "sqlite")]
pub(crate) enum Resealed {
    /// No data key seals rows of its kind.
    Unsealed,
    /// It opened under the active data key.
    Already { stamp: u32 },
    /// It opened under an older one, and is this under the active one.
    Anew { value: Vec<u8>, stamp: u32 },
}

/// The clear part of a row's value; `None` if no data key seals rows of its kind.
pub(crate) fn sealed_prefix(row: &StoredRow) -> Result<Option<Prefix>> {
    match row.record {
        Record::SenderKeyDevice | Record::BaseKey | Record::MessageSecret => Ok(None),
        Record::TcToken if row.value.is_empty() => Ok(None),
        record => Prefix::read(record, &row.value).map(Some),
    }
}

#[cfg(feature = "sqlite")]
type KeyAndPayload = (Vec<Vec<u8>>, Zeroizing<Vec<u8>>);

/// The place of a row, without the key that its value carries.
fn place(record: Record, columns: &[Vec<u8>]) -> Result<Place<'_>> {
    match columns {
        [] => Ok(Place::new(record, [], [])),
        [one] => Ok(Place::new(record, [one], [])),
        [one, two] => Ok(Place::new(record, [one, two], [])),
        [one, two, three] => Ok(Place::new(record, [one, two, three], [])),
        _ => Err(Error::Tampered { record }),
    }
}

/// The key columns of a record with this key; `None` where the columns are the key itself, or its value does not carry all
/// of it.
#[cfg(feature = "sqlite")]
fn columns_of(lookup: &LookupKeys, record: Record, original: &[Vec<u8>]) -> Result<Option<Vec<Vec<u8>>>> {
    let tampered = || Error::Tampered { record };
    if matches!(record, Record::MutationMac) || original.is_empty() {
        return Ok(None);
    }
    let texts = original.iter().map(|part| std::str::from_utf8(part).map_err(|_| tampered()));
    let texts: Vec<&str> = texts.collect::<Result<_>>()?;
    let columns = match (record, &texts[..]) {
        (Record::Session | Record::Identity | Record::SenderKey, [address]) => {
            Some(vec![lookup.address(record, address)?])
        }
        (Record::CollectionVersion, [name]) => Some(vec![lookup.collection(record, name)?]),
        _ => protocol::columns_of(lookup, record, &texts)?,
    };
    let columns = columns.ok_or_else(tampered)?;
    Ok(Some(columns.into_iter().map(|column| column.as_bytes().to_vec()).collect()))
}

/// What a value in the session table is: identities live there as well.
#[cfg(feature = "sqlite")]
pub(crate) fn session_or_identity(value: &[u8]) -> Record {
    match Prefix::read(Record::Identity, value) {
        Ok(_) => Record::Identity,
        Err(_) => Record::Session,
    }
}

/// The epoch that a sealed row states.
#[cfg(test)]
pub(crate) fn epoch_of(row: &StoredRow) -> u32 {
    Prefix::read(row.record, &row.value).unwrap().epoch()
}

/// The map entry that carries a sealed collection version.
#[cfg(feature = "sqlite")]
pub(crate) use app_sync::CARRIER;
/// The envelope in a text field.
#[cfg(feature = "sqlite")]
pub(crate) use protocol::{decode_text, encode_text};
