//! Puts a saved header back, and decides which of several headers has the keys of the rows.

use std::sync::Arc;

use wacore::store::traits::Backend;

use super::copies::{HeaderCopy, HeaderStore, write_header};
use super::handle::Vault;
use super::header::{CHECKSUM_BYTES, DEVICE_SEALED, Header, MAX_DATA_KEYS, ROTATING, WrappedDataKey};
use super::host::Host;
use super::key_wrap::VaultKeys;
use super::occupancy::{holds_sealed_device, is_occupied};
use super::open::OpenedHeader;
use super::open_vault::{RESTORE_STEP, VaultState};
use super::options::{OpenMode, VaultOptions};
use crate::encrypt::cipher::sealed_prefix;
use crate::error::{Error, Result};
use crate::layer::IntoBackend;
use crate::method::Record;
use crate::secret::Secret;

impl VaultOptions {
    /// Puts a header from [`Vault::save_header`] back, over damaged, missing or older copies, and opens the vault.
    ///
    /// Key slots that were removed after saving are back, and later ones are gone: `saved` opens with the secrets of
    /// its day. Records written in between stay readable, because the restored generation is above theirs. Save the
    /// header again afterwards, and after every change of the data key.
    ///
    /// If there is an intact header of the same vault, the device and the records decide which header has the right
    /// data keys. If they do not decide, all keys are kept. If there is no such header, the vault has only the data
    /// keys of `saved`.
    ///
    /// # Errors
    /// [`Error::HeaderDamaged`], [`Error::UnsupportedVersion`], [`Error::WrongSecret`], [`Error::KeyNotKept`],
    /// [`Error::NoSlotOfProvider`], [`Error::HeaderTampered`] if `saved` is not an intact header that opens with
    /// `secret`; [`Error::KeyProvider`], [`Error::ImportIncomplete`], [`Error::PlaintextDevice`] as in [`Vault::open`].
    ///
    /// [`Error::VaultExists`] or [`Error::UnsupportedVersion`] if the store has the header of another vault or of a
    /// later version, and no sealed device that proves it to be planted. [`Error::VaultExists`] also if it has the
    /// header of this vault after [`Vault::revoke`]. [`Error::UnknownEpoch`] if no header is left and the device is
    /// under a data key that `saved` does not have.
    ///
    /// Nothing was written in these cases. [`Error::HeaderConflict`], [`Error::Store`] and [`Error::Anchor`] can come
    /// after the header was written.
    pub async fn restore_header(
        &self,
        store: impl IntoBackend,
        saved: &[u8],
        secret: impl Into<Secret>,
    ) -> Result<Vault> {
        self.restore_in_backend(store.into_backend().0, saved, secret.into()).await
    }

    pub(crate) async fn restore_in_backend(
        &self,
        store: Arc<dyn Backend>,
        saved: &[u8],
        secret: Secret,
    ) -> Result<Vault> {
        if self.mode == OpenMode::ReadOnly {
            return Err(Error::InvalidInput {
                what: "the mode",
                problem: "writes no header: choose OpenMode::ReadWrite",
            });
        }
        let host = Host::of(store.clone()).await?;
        let (opened, _) = self.open_header(Header::parse(saved)?, saved, secret, &host).await?;
        let OpenedHeader { mut header, vault_keys, slot, .. } = opened;
        let headers = self.headers(&store);
        let in_use = holds_sealed_device(&*store).await? || is_occupied(&*store).await?;

        let InPlace { found, foreign, replaced } = InPlace::read(&*headers, &header, &vault_keys).await?;
        let saved_generation = header.generation;
        let mut newest = found.iter().map(|found| found.generation).fold(saved_generation, u64::max);
        if in_use || found.iter().any(|found| found.flags & DEVICE_SEALED != 0) {
            header.flags |= DEVICE_SEALED;
        }

        let headers_with_keys = std::iter::once(header.clone()).chain(found);
        let mut sets = headers_with_keys
            .map(|header| VaultState::unwrapped(header, vault_keys.clone()).map(KeySet::of))
            .collect::<Result<Vec<_>>>()?;
        let rows = look_at(&host, &mut sets).await?;
        // An intact header of another vault stays. The exception: the sealed device proves that this is the vault's
        // store, and that the header was planted.
        if let Some(refusal) = foreign
            && !sets.iter().any(|set| set.opens_device)
        {
            return Err(refusal);
        }
        if rows.unknown_device {
            return Err(Error::UnknownEpoch { record: Record::Device });
        }
        newest = newest.max(rows.newest_generation.into());
        if u64::from(rows.newest_generation) > saved_generation {
            log::warn!(
                "records are newer than the restored header: key slots that were removed since it was saved open the store again; list the slots, and remove those that should be gone"
            );
        }
        take_keys(&mut header, &sets, &rows)?;

        let known = self.anchor.load(&header.store_id).await?;
        // Records carry the generation of the header they were written under. The restored header must not be older
        // than any.
        header.generation = newest.max(known.map_or(0, |known| known.generation())).saturating_add(RESTORE_STEP);
        header.set_previous(replaced);
        self.anchor.distinguish(&mut header)?;
        let bytes = header.serialize(&vault_keys.mac_key);
        write_header(&*headers, &bytes).await?;
        self.anchor.advance(known, &header, &bytes).await?;
        Ok(self.vault(headers, host, OpenedHeader::new(header, vault_keys, slot)?, false))
    }
}

/// The headers that a saved one replaces.
#[derive(Default)]
struct InPlace {
    /// The headers of this vault.
    found: Vec<Header>,
    /// The reason why another header must not be overwritten.
    foreign: Option<Error>,
    /// The checksum of the header that counts.
    replaced: Option<[u8; CHECKSUM_BYTES]>,
}

impl InPlace {
    /// # Errors
    /// [`Error::VaultExists`] if the vault was revoked since `saved`.
    async fn read(headers: &dyn HeaderStore, saved: &Header, vault_keys: &VaultKeys) -> Result<Self> {
        let mut in_place = Self::default();
        for copy in HeaderCopy::BOTH {
            let Some(bytes) = headers.read(copy).await? else { continue };
            // Copy A decides, if it is intact.
            in_place.replaced = in_place.replaced.or_else(|| Header::checksum(&bytes));
            match Header::parse(&bytes) {
                Ok(intact) if intact.verify(&bytes, &vault_keys.mac_key).is_ok() => in_place.found.push(intact),
                // The vault was revoked: secrets of the saved header had leaked.
                Ok(intact) if intact.store_id == saved.store_id => return Err(Error::VaultExists),
                Ok(_) => in_place.foreign = Some(Error::VaultExists),
                Err(error @ Error::UnsupportedVersion { .. }) => in_place.foreign = Some(error),
                Err(_) => {}
            }
        }
        Ok(in_place)
    }
}

/// The data keys of one header, and the rows that they open.
struct KeySet {
    state: VaultState,
    opens_device: bool,
    opened: u64,
}

/// The findings of all sets together.
#[derive(Default)]
struct Rows {
    sealed: u64,
    /// The highest generation of a row that opened.
    newest_generation: u32,
    /// There is a device whose epoch no set has.
    unknown_device: bool,
}

impl KeySet {
    fn of(state: VaultState) -> Self {
        Self { state, opens_device: false, opened: 0 }
    }
}

/// Tries every set on every row.
async fn look_at(host: &Host, sets: &mut [KeySet]) -> Result<Rows> {
    let mut rows = Rows::default();
    host.each_row(|row| {
        let Ok(Some(prefix)) = sealed_prefix(&row) else { return Ok(()) };
        let is_device = row.record == Record::Device;
        rows.sealed += 1;
        rows.unknown_device |=
            is_device && sets.iter().all(|set| set.state.cipher.ring.epoch(prefix.epoch()).is_none());
        for set in sets.iter_mut() {
            if let Ok(Some(under)) = set.state.cipher.opens(&row) {
                set.opened += 1;
                set.opens_device |= is_device;
                rows.newest_generation = rows.newest_generation.max(under.generation);
            }
        }
        Ok(())
    })
    .await?;
    Ok(rows)
}

/// Gives the header the data keys that open the device and the rows. They are those of the set that opens the most, or
/// the newest of equal sets. If they do not open everything, or there is nothing to open, the keys of the other sets
/// are kept beside them.
///
/// # Errors
/// [`Error::DataKeysFull`] if all of them together are more than sixteen.
fn take_keys(header: &mut Header, sets: &[KeySet], rows: &Rows) -> Result<()> {
    let rank = |set: &KeySet| (set.opens_device, set.opened, set.state.header.generation);
    let Some(best) = sets.iter().max_by_key(|set| rank(set)) else { return Ok(()) };
    let from = &best.state.header;
    let mut keys: Vec<WrappedDataKey> = from.data_keys.clone();
    if rows.sealed == 0 || best.opened < rows.sealed {
        for key in sets.iter().flat_map(|set| &set.state.header.data_keys) {
            if keys.iter().all(|there| there.epoch != key.epoch) {
                keys.push(WrappedDataKey { active: false, ..*key });
            }
        }
    }
    if keys.len() > MAX_DATA_KEYS {
        return Err(Error::DataKeysFull);
    }
    header.flags = header.flags & !ROTATING | from.flags & ROTATING;
    (header.data_keys, header.lookup_key) = (keys, from.lookup_key);
    Ok(())
}
