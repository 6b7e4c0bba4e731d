//! The store that a vault was opened on, and the rows in it that the vault can see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use wacore::store::traits::Backend;

use crate::encrypt::carrier;
use crate::encrypt::cipher::sealed_prefix;
use crate::encrypt::format::envelope::Prefix;
use crate::error::Result;
use crate::method::Record;
use crate::rows::SealedRow;
use crate::rows::below::own_store_below;
use crate::rows::encoding::decode_text;
use crate::rows::store::Rows;
use crate::rows::table::TABLES;
use crate::sync::IgnorePoison;

/// The store that a vault was opened on.
#[derive(Clone)]
pub(super) struct Host {
    backend: Arc<dyn Backend>,
    /// This crate's own store, if the backend leads to one.
    own: Option<Arc<dyn Rows>>,
}

impl Host {
    pub(super) async fn of(backend: Arc<dyn Backend>) -> Result<Self> {
        Ok(Self { own: own_store_below(&*backend).await?, backend })
    }

    /// The context to which vaults on this store are bound, unless the caller names another one.
    pub(super) fn context(&self) -> Option<Vec<u8>> {
        self.own.as_ref().map(|own| own.key_label().into_bytes())
    }

    /// Brings all data into the main file of this crate's own store, if no other process is in the way.
    pub(super) async fn settle(&self) {
        if let Some(own) = &self.own {
            own.settle().await;
        }
    }

    /// The place of the store, if it is known.
    pub(super) fn place(&self) -> Option<Vec<u8>> {
        self.own.as_ref().and_then(|own| own.place())
    }

    /// Refuses a store without a vault if the caller probably means another account.
    ///
    /// # Errors
    /// [`Error::OtherAccounts`](crate::Error::OtherAccounts), and those of the store.
    pub(super) async fn refuse_account_of_chance(&self) -> Result<()> {
        match &self.own {
            Some(own) => own.refuse_account_of_chance().await,
            None => Ok(()),
        }
    }

    /// `false` if the two are certainly not the same store, though one may be a copy of the other. Always `true` for
    /// two stores that are not this crate's own: there may be layers in between that hide them.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        match (&self.own, &other.own) {
            (Some(own), Some(other)) => own.identity() == other.identity(),
            (None, None) => true,
            _ => false,
        }
    }

    /// The claims of every sealed row that can be found: the same rows that [`Host::each_row`] shows.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn claims(&self) -> Result<Claims> {
        if let Some(own) = &self.own {
            let found = Arc::new(Mutex::new(Claims::default()));
            let claims = found.clone();
            own.sealed_prefixes(Box::new(move |row| {
                if let Some(prefix) = row.prefix.as_ref().and_then(Prefix::of) {
                    claims.lock().ignore_poison().add(&prefix);
                }
            }))
            .await?;
            let claims = std::mem::take(&mut *found.lock().ignore_poison());
            return Ok(claims);
        }
        let mut claims = Claims::default();
        self.each_row(|row| {
            if let Ok(Some(prefix)) = sealed_prefix(&row) {
                claims.add(&prefix);
            }
            Ok(())
        })
        .await?;
        Ok(claims)
    }

    /// Shows every sealed row that can be found without its name. In this crate's own store these are all rows. In
    /// other stores they are the device and the rows that the traits can list. Rows that cannot be read are left out.
    ///
    /// # Errors
    /// Those of the store, and of `look`.
    pub(super) async fn each_row(&self, mut look: impl FnMut(SealedRow) -> Result<()>) -> Result<()> {
        if let Some(own) = &self.own {
            let mut snapshot = own.snapshot().await?;
            for table in TABLES.iter().filter(|table| table.is_sealed) {
                snapshot.begin(table);
                while let Some(page) = snapshot.next().await? {
                    for row in page.into_iter().filter_map(|(_, row)| row.ok().flatten()) {
                        look(row)?;
                    }
                }
            }
            return Ok(());
        }
        let row = |record, columns, value| SealedRow { record, columns, value, numbers: vec![] };
        if let Some(value) = carrier::sealed(&*self.backend).await? {
            look(row(Record::Device, vec![], value))?;
        }
        for (id, value) in self.backend.load_all_signed_prekeys().await? {
            look(row(Record::SignedPrekey, vec![id.to_le_bytes().to_vec()], value))?;
        }
        if let Some(id) = self.backend.get_latest_sync_key_id().await?
            && let Some(key) = self.backend.get_sync_key(&id).await?
        {
            look(row(Record::SyncKey, vec![id], carrier::join_carrier(key)))?;
        }
        for entry in self.backend.get_all_lid_mappings().await? {
            let Ok(value) = decode_text(Record::LidMapping, &entry.learning_source) else { continue };
            look(row(Record::LidMapping, vec![entry.lid.into_bytes(), entry.phone_number.into_bytes()], value))?;
        }
        Ok(())
    }
}

/// The claims of rows, whether or not they open: the highest generation of each kind of record and epoch.
#[derive(Default)]
pub(super) struct Claims(pub(super) HashMap<(Record, u32), u32>);

impl Claims {
    pub(super) fn add(&mut self, prefix: &Prefix) {
        let Some(record) = prefix.record() else { return };
        let generation = self.0.entry((record, prefix.epoch())).or_default();
        *generation = prefix.generation().max(*generation);
    }

    /// The highest epoch, or 0.
    pub(super) fn newest_epoch(&self) -> u32 {
        self.0.keys().map(|(_, epoch)| *epoch).max().unwrap_or(0)
    }
}
