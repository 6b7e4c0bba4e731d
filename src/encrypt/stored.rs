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
    /// Columns in the clear that the store computes with.
    pub(crate) numbers: Vec<Option<i64>>,
}

/// A row that was opened.
#[cfg_attr(not(feature = "upstream"), expect(dead_code, reason = "only an export looks into it"))]
pub(crate) struct OpenedRow {
    pub(crate) record: Record,
    /// The key as the client knows it, if the row carries it, and the key columns otherwise. Of a collection's version both; of
    /// a mutation MAC its collection's column and its own index.
    pub(crate) key: Vec<Vec<u8>>,
    pub(crate) payload: Zeroizing<Vec<u8>>,
    pub(crate) numbers: Vec<Option<i64>>,
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
    pub(crate) async fn check(&self, row: StoredRow) -> Result<Checked> {
        let unauthenticated = matches!(row.record, Record::BaseKey | Record::MessageSecret | Record::SenderKeyDevice);
        self.open_stored(row).await?;
        Ok(if unauthenticated { Checked::Unauthenticated } else { Checked::Sealed })
    }

    /// Opens a row. Of sender-key devices, base keys and message secrets, whose keys are tokens, only the form is looked at,
    /// and they are given as they are.
    ///
    /// # Errors
    /// As [`Shared::check`].
    pub(crate) async fn open_stored(&self, row: StoredRow) -> Result<OpenedRow> {
        let StoredRow { record, columns, value, numbers } = row;
        // Another process may have opened the vault, or rotated keys, since the header was read.
        if let Ok(prefix) = Prefix::read(record, &value) {
            let state = self.state_for(record, prefix.epoch()).await?;
            if prefix.stamp() > state.stamp {
                self.refresh().await?;
            }
        }
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
                return Ok(OpenedRow { record, key: columns, payload: Zeroizing::default(), numbers });
            }
            Record::BaseKey | Record::MessageSecret if value.len() == 32 => {
                return Ok(OpenedRow { record, key: columns, payload: value.into(), numbers });
            }
            Record::BaseKey | Record::MessageSecret => return Err(tampered()),
            Record::TcToken => {
                let jid = state.ring.lookup.name(record, Domain::TcTokenJid, text(0)?)?;
                // A placeholder stays empty for the store to find it.
                let payload =
                    if value.is_empty() { Zeroizing::default() } else { open(&state, record, &columns, value)?.1 };
                return Ok(OpenedRow { record, key: vec![jid.into_bytes()], payload, numbers });
            }
            _ => {}
        }
        let (original, payload) = open(&state, record, &columns, value)?;
        if columns_of(&state, record, &original)?.is_some_and(|expected| expected != columns) {
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
}

type KeyAndPayload = (Vec<Vec<u8>>, Zeroizing<Vec<u8>>);

/// Verifies a value in its place, and gives the key that it carries, and the payload.
fn open(state: &State, record: Record, columns: &[Vec<u8>], value: Vec<u8>) -> Result<KeyAndPayload> {
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
    let original = opened.parts(&value).map(<[u8]>::to_vec).collect();
    Ok((original, Zeroizing::new(opened.payload(&value).to_vec())))
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
