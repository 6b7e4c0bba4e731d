//! The store that a vault was opened on, and what can be seen of the rows in it.

use std::sync::Arc;
#[cfg(feature = "sqlite")]
use std::sync::{Mutex, PoisonError};

use wacore::store::traits::Backend;

use super::evidence::Claims;
#[cfg(feature = "sqlite")]
use crate::encrypt::format::envelope::Prefix;
use crate::encrypt::sealed_row::{StoredRow, sealed_prefix};
use crate::encrypt::{app_sync, device, protocol};
use crate::error::Result;
use crate::method::Record;
#[cfg(feature = "sqlite")]
use crate::sqlite::{Pages, Snapshot, SqliteStore, TABLES};

/// The store that a vault was opened on.
#[derive(Clone)]
pub(super) struct Host {
    backend: Arc<dyn Backend>,
    /// This crate's own store, if that is what the backend leads to.
    #[cfg(feature = "sqlite")]
    own: Option<SqliteStore>,
}

impl Host {
    pub(super) async fn of(backend: Arc<dyn Backend>) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "sqlite")]
            own: SqliteStore::below(&*backend).await?,
            backend,
        })
    }

    /// The context that vaults on this store are bound to unless the caller names another one.
    pub(super) fn context(&self) -> Option<Vec<u8>> {
        #[cfg(feature = "sqlite")]
        return self.own.as_ref().map(|own| own.key_label().into_bytes());
        #[cfg(not(feature = "sqlite"))]
        None
    }

    /// Makes the main file of this crate's own store hold everything, if nobody is in the way.
    pub(super) async fn settle(&self) {
        #[cfg(feature = "sqlite")]
        if let Some(own) = &self.own {
            own.settle().await;
        }
    }

    /// Where the store is, if that can be told.
    pub(super) fn place(&self) -> Option<Vec<u8>> {
        #[cfg(feature = "sqlite")]
        return self.own.as_ref().and_then(SqliteStore::place);
        #[cfg(not(feature = "sqlite"))]
        None
    }

    /// Refuses a store without a vault that is not the one that the caller can mean.
    ///
    /// # Errors
    /// [`Error::OtherAccounts`](crate::Error::OtherAccounts), and those of the store.
    pub(super) async fn refuse_account_of_chance(&self) -> Result<()> {
        #[cfg(feature = "sqlite")]
        if let Some(own) = &self.own {
            own.refuse_account_of_chance().await?;
        }
        Ok(())
    }

    /// `false` if the two are not the same store, but one may be a copy of the other. Of stores that are not this crate's own
    /// that cannot be told: there may be layers between.
    #[cfg(feature = "sqlite")]
    pub(super) fn may_be(&self, other: &Self) -> bool {
        match (&self.own, &other.own) {
            (Some(own), Some(other)) => own.is(other),
            (None, None) => true,
            _ => false,
        }
    }

    /// `true`: only this crate's own stores can be told apart.
    #[cfg(not(feature = "sqlite"))]
    pub(super) fn may_be(&self, _: &Self) -> bool {
        true
    }

    /// What every sealed row that can be found claims of itself: the same rows that [`Host::each_row`] shows.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn claims(&self) -> Result<Claims> {
        #[cfg(feature = "sqlite")]
        if let Some(own) = &self.own {
            let found = Arc::new(Mutex::new(Claims::default()));
            let claims = found.clone();
            own.sealed_prefixes(move |row| {
                if let Some(prefix) = row.prefix.as_ref().and_then(Prefix::of) {
                    // Nothing panics while holding the guard.
                    claims.lock().unwrap_or_else(PoisonError::into_inner).add(&prefix);
                }
            })
            .await?;
            let claims = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
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

    /// Shows every sealed row that can be found without its name: the device, and all rows of this crate's own store; of
    /// other stores those that the traits can list. Rows that cannot be read are left out.
    ///
    /// # Errors
    /// Those of the store, and of `look`.
    pub(super) async fn each_row(&self, mut look: impl FnMut(StoredRow) -> Result<()>) -> Result<()> {
        #[cfg(feature = "sqlite")]
        if let Some(own) = &self.own {
            let mut snapshot = Snapshot::open(own).await?;
            for table in TABLES.iter().filter(|table| table.is_sealed()) {
                let mut pages = Pages::of(table);
                while let Some(page) = snapshot.next(&mut pages).await? {
                    for row in page.into_iter().filter_map(|(_, row)| row.ok().flatten()) {
                        look(row)?;
                    }
                }
            }
            return Ok(());
        }
        if let Some(value) = device::sealed(&*self.backend).await? {
            look(StoredRow { record: Record::Device, columns: vec![], value, numbers: vec![] })?;
        }
        let row = |record, columns, value| StoredRow { record, columns, value, numbers: vec![] };
        for (id, value) in self.backend.load_all_signed_prekeys().await? {
            look(row(Record::SignedPrekey, vec![id.to_le_bytes().to_vec()], value))?;
        }
        if let Some(id) = self.backend.get_latest_sync_key_id().await?
            && let Some(key) = self.backend.get_sync_key(&id).await?
        {
            look(row(Record::SyncKey, vec![id], app_sync::join_carrier(key)))?;
        }
        for entry in self.backend.get_all_lid_mappings().await? {
            let Ok(value) = protocol::decode_text(Record::LidMapping, &entry.learning_source) else { continue };
            look(row(Record::LidMapping, vec![entry.lid.into_bytes(), entry.phone_number.into_bytes()], value))?;
        }
        Ok(())
    }
}
