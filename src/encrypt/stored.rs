//! Sealed rows as they lie in a table: checking them without being asked for one by its name.

use zeroize::Zeroizing;

use super::envelope::{self, Place, Prefix};
use super::token::Domain;
use super::vault::{Shared, State};
use super::{app_sync, protocol};
use crate::error::{Error, Result};
use crate::method::Record;

/// A row of a store under a vault: its key columns as the traits name them, and what carries the sealed value.
pub(crate) struct StoredRow {
    pub(crate) record: Record,
    pub(crate) columns: Vec<Vec<u8>>,
    pub(crate) value: Vec<u8>,
}

/// What can be said of a row that is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// This vault sealed it, for this place and under this name.
    Sealed,
    /// It has the form of what this vault writes, but carries nothing that could be verified.
    Unauthenticated,
}

impl Shared {
    /// Opens a row and throws its content away.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::Plaintext`], [`Error::UnknownEpoch`] and [`Error::HeaderRolledBack`] about the row.
    pub(crate) fn check(&self, row: StoredRow) -> Result<Checked> {
        let StoredRow { record, columns, value } = row;
        let state = self.state();
        let tampered = || Error::Tampered { record };
        let text = |column: usize| {
            let column = columns.get(column).and_then(|column| std::str::from_utf8(column).ok());
            column.ok_or_else(tampered)
        };
        match record {
            // All that there is of it is its name.
            Record::SenderKeyDevice => {
                state.ring.lookup.name(record, Domain::DeviceJid, text(1)?)?;
                return Ok(Checked::Sealed);
            }
            Record::BaseKey | Record::MessageSecret => {
                return if value.len() == 32 { Ok(Checked::Unauthenticated) } else { Err(tampered()) };
            }
            Record::TcToken => {
                state.ring.lookup.name(record, Domain::TcTokenJid, text(0)?)?;
                // A placeholder, which stays empty for the store to find it.
                if value.is_empty() {
                    return Ok(Checked::Sealed);
                }
            }
            _ => {}
        }
        let original = open(&state, record, &columns, value)?;
        match columns_of(&state, record, &original)? {
            Some(expected) if expected != columns => Err(tampered()),
            _ => Ok(Checked::Sealed),
        }
    }
}

/// Verifies a value in its place, and gives the key that it carries.
fn open(state: &State, record: Record, columns: &[Vec<u8>], value: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let place = match columns {
        [] => Place::new(record, [], []),
        [one] => Place::new(record, [one], []),
        [one, two] => Place::new(record, [one, two], []),
        [one, two, three] => Place::new(record, [one, two, three], []),
        _ => return Err(Error::Tampered { record }),
    };
    let mut value = Zeroizing::new(value);
    let prefix = Prefix::read(record, &value)?;
    let opened = envelope::open(state.keys(&prefix, record)?, prefix, place, &mut value)?;
    if prefix.stamp() > state.stamp {
        return Err(Error::HeaderRolledBack);
    }
    Ok(opened.parts(&value).map(<[u8]>::to_vec).collect())
}

/// The key columns of a record with this key; `None` where the columns are the key itself, or its value does not carry all
/// of it.
fn columns_of(state: &State, record: Record, original: &[Vec<u8>]) -> Result<Option<Vec<Vec<u8>>>> {
    let tampered = || Error::Tampered { record };
    if matches!(record, Record::MutationMac) || original.is_empty() {
        return Ok(None);
    }
    let texts = original.iter().map(|part| std::str::from_utf8(part).map_err(|_| tampered()));
    let texts: Vec<&str> = texts.collect::<Result<_>>()?;
    let lookup = &state.ring.lookup;
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
pub(crate) fn session_or_identity(value: &[u8]) -> Record {
    match Prefix::read(Record::Identity, value) {
        Ok(_) => Record::Identity,
        Err(_) => Record::Session,
    }
}

/// The map entry that carries a sealed collection version.
pub(crate) use app_sync::CARRIER;
/// The envelope in a text field.
pub(crate) use protocol::decode_text;
