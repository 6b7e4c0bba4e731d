//! Seals and opens records with the keys of an open vault.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::columns::binding;
use super::format::envelope::{self, Nonce, Prefix, RowBinding};
use super::format::keys::{DataKeys, KeyRing, LookupKeys};
use super::format::kind::Kind;
use super::format::padding::Padding;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::SealedRow;

/// The part of an open vault that records need: its keys, its padding, and the generation of its header.
pub(crate) struct RecordCipher {
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) padding: Padding,
    /// The generation of the header, at most 2^32 − 1, which every record carries.
    pub(crate) generation: u32,
}

impl RecordCipher {
    /// The keys for names.
    pub(crate) fn lookup(&self) -> &LookupKeys {
        &self.ring.lookup
    }

    /// The keys that open values of this epoch.
    pub(crate) fn keys(&self, prefix: &Prefix, record: Record) -> Result<&DataKeys> {
        self.ring.epoch(prefix.epoch()).ok_or(Error::UnknownEpoch { record })
    }

    /// The keys that open a record, if they are here and the header is not older than the record.
    pub(crate) fn current_keys(&self, prefix: &Prefix) -> Option<&DataKeys> {
        self.ring.epoch(prefix.epoch()).filter(|_| prefix.generation() <= self.generation)
    }

    /// Seals a value with its own nonce.
    pub(crate) fn seal(&self, nonce: &Nonce, binding: RowBinding<'_>, payload: &[u8]) -> Result<Vec<u8>> {
        envelope::seal(self.ring.active(), self.generation, self.padding, nonce, binding, payload)
    }

    /// The data key under which a row opens, and its generation. `None` if no data key seals rows of its kind. The
    /// content of the row is not trusted before it has opened.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::Plaintext`] and [`Error::UnknownEpoch`] about the row.
    pub(crate) fn opens(&self, row: &SealedRow) -> Result<Option<OpenedUnder>> {
        let Some(prefix) = sealed_prefix(row)? else { return Ok(None) };
        let record = record_of(row);
        let mut value = Zeroizing::new(row.value.clone());
        let keys = self.keys(&prefix, record)?;
        envelope::open(keys, prefix, binding(record, &row.columns)?, &mut value)?;
        Ok(Some(OpenedUnder { active: keys.epoch == self.ring.active().epoch, generation: prefix.generation() }))
    }

    /// Opens a row, and seals it under the active data key unless it already is.
    ///
    /// # Errors
    /// As [`RecordCipher::opens`].
    pub(crate) fn reseal(&self, row: &SealedRow, nonce: &Nonce) -> Result<Resealed> {
        let Some(prefix) = sealed_prefix(row)? else { return Ok(Resealed::Unsealed) };
        let active = self.ring.active();
        if prefix.epoch() == active.epoch {
            self.opens(row)?;
            return Ok(Resealed::Already { generation: prefix.generation() });
        }
        let record = record_of(row);
        let sealed_under = self.keys(&prefix, record)?;
        let binding = binding(record, &row.columns)?;
        let value = envelope::reseal(sealed_under, active, self.generation, prefix, nonce, binding, &row.value)?;
        Ok(Resealed::Again { value, generation: prefix.generation() })
    }
}

/// The result of opening a row.
pub(crate) struct OpenedUnder {
    /// `true` for the active data key, `false` for an older one.
    pub(crate) active: bool,
    pub(crate) generation: u32,
}

/// A row on its way to the active data key.
pub(crate) enum Resealed {
    /// No data key seals rows of its kind.
    Unsealed,
    /// The row opened under the active data key.
    Already { generation: u32 },
    /// The row opened under an older one; `value` is sealed under the active one.
    Again { value: Vec<u8>, generation: u32 },
}

/// The record that a row holds. The table of sessions also holds identities.
pub(crate) fn record_of(row: &SealedRow) -> Record {
    if row.record == Record::Session { session_or_identity(&row.value) } else { row.record }
}

/// The record of a value in the table of sessions.
pub(crate) fn session_or_identity(value: &[u8]) -> Record {
    match Prefix::read(Kind::Identity, value) {
        Ok(_) => Record::Identity,
        Err(_) => Record::Session,
    }
}

/// The clear part of a row's value; `None` if no data key seals rows of its kind.
pub(crate) fn sealed_prefix(row: &SealedRow) -> Result<Option<Prefix>> {
    match record_of(row) {
        Record::SenderKeyDevice | Record::BaseKey | Record::MessageSecret => Ok(None),
        Record::TcToken if row.value.is_empty() => Ok(None),
        record => Prefix::read(Kind::of(record)?, &row.value).map(Some),
    }
}

/// The epoch in a sealed row.
#[cfg(test)]
pub(crate) fn epoch_of(row: &SealedRow) -> u32 {
    sealed_prefix(row).unwrap().unwrap().epoch()
}
