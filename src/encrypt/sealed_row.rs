//! Rows as they are in a table: opens and checks a row whose name is unknown.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::cipher::record_of;
use super::columns::{binding, columns_of};
use super::format::envelope::{self, Prefix};
use super::format::token::Domain;
use super::vault::handle::Vault;
use super::vault::open_vault::VaultState;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::SealedRow;

/// A row that was opened.
#[cfg_attr(not(feature = "import"), expect(dead_code, reason = "only an export looks at the payload"))]
pub(crate) struct OpenRow {
    pub(crate) record: Record,
    /// The key as the client knows it, if the row carries it, and the key columns otherwise. For a collection's version
    /// both. For a mutation MAC its collection's column and its own index.
    pub(crate) key: Vec<Vec<u8>>,
    pub(crate) payload: Zeroizing<Vec<u8>>,
    pub(crate) numbers: Vec<Option<i64>>,
}

/// The result for a row without damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowCheck {
    /// This vault sealed it, for this binding and under this name.
    Sealed,
    /// It has the form of a row of this vault, but carries nothing that can be verified.
    Unauthenticated,
}

impl Vault {
    /// Opens a row and discards its content.
    ///
    /// # Errors
    /// [`Error::Tampered`], [`Error::Plaintext`], [`Error::UnknownEpoch`] and [`Error::HeaderRolledBack`] about the
    /// row.
    pub(crate) async fn check_row(&self, held: &Arc<VaultState>, row: SealedRow) -> Result<RowCheck> {
        let unauthenticated = matches!(row.record, Record::BaseKey | Record::MessageSecret | Record::SenderKeyDevice);
        self.open_row(held, row).await?;
        Ok(if unauthenticated { RowCheck::Unauthenticated } else { RowCheck::Sealed })
    }

    /// Opens a row that was read while `held` was held. The keys of sender-key devices, base keys and message secrets
    /// are tokens: only their form is checked, and they are returned as they are.
    ///
    /// # Errors
    /// As [`Vault::check_row`].
    pub(crate) async fn open_row(&self, held: &Arc<VaultState>, row: SealedRow) -> Result<OpenRow> {
        let record = record_of(&row);
        let SealedRow { columns, value, numbers, .. } = row;
        let lookup = held.cipher.lookup();
        let tampered = || Error::Tampered { record };
        let text = |column: usize| {
            let column = columns.get(column).and_then(|column| std::str::from_utf8(column).ok());
            column.ok_or_else(tampered)
        };
        match record {
            // The row holds only a name.
            Record::SenderKeyDevice => {
                lookup.decrypt_name(record, Domain::DeviceJid, text(1)?)?;
                return Ok(OpenRow { record, key: columns, payload: Zeroizing::default(), numbers });
            }
            Record::BaseKey | Record::MessageSecret if value.len() == 32 => {
                return Ok(OpenRow { record, key: columns, payload: value.into(), numbers });
            }
            Record::BaseKey | Record::MessageSecret => return Err(tampered()),
            Record::TcToken => {
                let jid = lookup.decrypt_name(record, Domain::TcTokenJid, text(0)?)?;
                // A placeholder stays empty, so that the store finds it.
                let payload = match value.is_empty() {
                    true => Zeroizing::default(),
                    false => self.open_value(held, record, &columns, value).await?.1,
                };
                return Ok(OpenRow { record, key: vec![jid.into_bytes()], payload, numbers });
            }
            _ => {}
        }
        let (original, payload) = self.open_value(held, record, &columns, value).await?;
        if columns_of(lookup, record, &original)?.is_some_and(|expected| expected != columns) {
            return Err(tampered());
        }
        let key = match record {
            _ if original.is_empty() => columns,
            // Only the token holds the name of the collection.
            Record::MutationMac => columns.into_iter().take(1).chain(original).collect(),
            Record::CollectionVersion => original.into_iter().chain(columns).collect(),
            _ => original,
        };
        Ok(OpenRow { record, key, payload, numbers })
    }

    /// Verifies a value in its binding. Returns the key that it carries, and the payload.
    async fn open_value(
        &self,
        held: &Arc<VaultState>,
        record: Record,
        columns: &[Vec<u8>],
        value: Vec<u8>,
    ) -> Result<KeyAndPayload> {
        let mut value = Zeroizing::new(value);
        let binding = binding(record, columns)?;
        let prefix = Prefix::read(binding.kind, &value)?;
        let state = self.shared.state_for(held, record, prefix.epoch()).await?;
        let opened = envelope::open(state.cipher.keys(&prefix, record)?, prefix, binding, &mut value)?;
        self.shared.check_generation(&state, prefix.generation()).await?;
        let original = opened.parts(&value).map(<[u8]>::to_vec).collect();
        Ok((original, Zeroizing::new(opened.payload(&value).to_vec())))
    }
}

type KeyAndPayload = (Vec<Vec<u8>>, Zeroizing<Vec<u8>>);
