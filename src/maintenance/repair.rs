//! Drops the records that do not verify.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::copy::back_up_account;
use super::rotate::keeps_header;
use crate::encrypt::Vault;
use crate::encrypt::cipher::record_of;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::store::{OwnRows, OwnStore, RowAsFound, Rows};
use crate::rows::table::TABLES;

/// Drops the records of an account that do not verify. The client then fetches or negotiates them
/// again, instead of failing on them for ever.
///
/// Copies the whole database first. If the store is sound, drops and copies nothing.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use wastore::{Key, SqliteStore, Vault};
/// use wastore::maintenance::Repair;
///
/// let store = SqliteStore::open(folder.path().join("wa.db")).await?;
/// let vault = Vault::create(&store, Key::generate()?).await?;
/// let report = Repair::new().run(&store, &vault, folder.path().join("before-repair.db")).await?;
/// assert!(report.is_empty());
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// If one mutation MAC or collection version is damaged, all of both kinds are dropped, and the
/// client fetches the app state again. If one sender key device is damaged, all of that kind are
/// dropped. Stop the client first: it caches records, and would write them again.
///
/// Three kinds of damage are left to a backup:
///
/// * a damaged device: without it the account is lost;
/// * records that are newer than the header, or under a data key that it lacks. Usually they are
///   sound and the header is an older one, so a newer header opens them;
/// * damage of the file that SQLite finds.
#[must_use = "nothing is repaired before it is run"]
pub struct Repair {
    unknown_keys: bool,
    progress: Observer,
}

impl Repair {
    /// A repair that drops only records under the data keys of the header.
    pub fn new() -> Self {
        Self { unknown_keys: false, progress: Observer::default() }
    }

    /// Also drops records under a data key that the header lacks. First make sure that no backup or
    /// saved header is newer: it would open these records.
    pub fn unknown_keys(mut self) -> Self {
        self.unknown_keys = true;
        self
    }

    /// Calls `progress` every few hundred rows.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Repairs this account with its vault. Writes the copy from before to a new file at `backup`.
    ///
    /// # Errors
    /// Nothing was dropped after an error other than [`Error::Sqlite`].
    ///
    /// [`Error::StoreInUse`] if another process has the database open. Those of
    /// [`SqliteStore::backup`](crate::SqliteStore::backup).
    ///
    /// Only a backup helps against these: [`Error::Tampered`] and similar errors of the device,
    /// [`Error::DeviceMissing`], [`Error::UnknownEpoch`], [`Error::HeaderRolledBack`],
    /// [`Error::RowsMissed`], and [`Error::Sqlite`] as damaged.
    pub async fn run(&self, store: &impl OwnStore, vault: &Vault, backup: impl AsRef<Path>) -> Result<RepairReport> {
        let OwnRows(store) = store.own_rows();
        keeps_header(&*store, vault).await?;
        store.refuse_others().await?;
        store.refuse_damage().await?;
        let damaged = self.find(&*store, vault).await?;
        if damaged.is_empty() {
            return Ok(RepairReport::default());
        }
        if !store.back_up(backup.as_ref()).await? {
            back_up_account(&store, backup.as_ref()).await?;
        }
        let dropped = drop_rows(&*store, damaged).await?;
        Ok(RepairReport { dropped, backup: Some(backup.as_ref().to_owned()) })
    }

    /// # Errors
    /// Those of records that cannot be dropped.
    async fn find(&self, store: &dyn Rows, vault: &Vault) -> Result<Vec<DamagedRecord>> {
        let held = vault.state();
        let mut snapshot = store.snapshot().await?;
        let (mut done, total) = (0, snapshot.count().await?);
        let (mut damaged, mut has_device) = (vec![], false);
        for table in &TABLES {
            snapshot.begin(table);
            while let Some(page) = snapshot.next().await? {
                done += page.len() as u64;
                for (id, found) in page {
                    let row = RowAsFound::new(table, id, &found);
                    has_device |= table.record == Record::Device && row.hash.is_some();
                    let record = found.as_ref().ok().and_then(Option::as_ref).map_or(table.record, record_of);
                    let checked = match found {
                        Ok(None) => Ok(()),
                        Ok(Some(found)) => vault.check_row(&held, found).await.map(drop),
                        Err(error) => Err(error),
                    };
                    match checked {
                        Ok(()) => {}
                        Err(error) if self.may_drop(record, &error) => damaged.push(DamagedRecord { record, row }),
                        Err(error) => return Err(error),
                    }
                }
                self.progress.tell(Phase::Checking, done, total);
            }
        }
        if vault.device_is_sealed() && !has_device {
            return Err(Error::DeviceMissing);
        }
        Ok(damaged)
    }

    fn may_drop(&self, record: Record, error: &Error) -> bool {
        let is_damage = match error {
            Error::Tampered { .. } | Error::Malformed { .. } | Error::Plaintext { .. } => true,
            Error::UnknownEpoch { .. } => self.unknown_keys,
            _ => false,
        };
        is_damage && record != Record::Device
    }
}

impl Default for Repair {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repair").field("unknown_keys", &self.unknown_keys).finish_non_exhaustive()
    }
}

/// A record that does not verify.
struct DamagedRecord {
    record: Record,
    row: RowAsFound,
}

/// Deletes the rows that have not changed since they were found, in portions. Returns how many were
/// deleted of each kind.
async fn drop_rows(store: &dyn Rows, rows: Vec<DamagedRecord>) -> Result<Vec<(Record, u64)>> {
    /// The largest number of rows that one transaction deletes.
    const AT_A_TIME: usize = 500;
    // One record of these kinds makes no sense to the client without the others, or has no id to
    // name it by.
    let whole = |record| matches!(record, Record::MutationMac | Record::CollectionVersion | Record::SenderKeyDevice);
    let (all_of, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| whole(row.record));
    let mut all_of: HashSet<Record> = all_of.into_iter().map(|row| row.record).collect();
    if all_of.contains(&Record::MutationMac) || all_of.contains(&Record::CollectionVersion) {
        all_of.extend([Record::MutationMac, Record::CollectionVersion]);
    }
    let mut dropped = store.delete_all(all_of.into_iter().collect()).await?;
    while !rows.is_empty() {
        // From the end: where ids are positions, the remaining rows keep theirs.
        let some = rows.split_off(rows.len().saturating_sub(AT_A_TIME));
        let records: Vec<_> = some.iter().map(|row| row.record).collect();
        let deleted = store.delete(some.into_iter().map(|row| row.row).collect()).await?;
        for (record, _) in records.into_iter().zip(deleted).filter(|(_, deleted)| *deleted) {
            match dropped.iter_mut().find(|(dropped, _)| *dropped == record) {
                Some((_, count)) => *count += 1,
                None => dropped.push((record, 1)),
            }
        }
    }
    dropped.retain(|(_, count)| *count > 0);
    Ok(dropped)
}

/// The records that a repair dropped. `Display` says what each kind means for the account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    dropped: Vec<(Record, u64)>,
    backup: Option<PathBuf>,
}

impl RepairReport {
    /// `true` if every record was sound.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty()
    }

    /// How many records of a kind were dropped.
    pub fn dropped(&self, record: Record) -> u64 {
        self.dropped.iter().find(|(dropped, _)| *dropped == record).map_or(0, |(_, count)| *count)
    }

    /// The copy from before; `None` if nothing was dropped.
    pub fn backup(&self) -> Option<&Path> {
        self.backup.as_deref()
    }
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "every record is sound");
        }
        for (position, (record, count)) in self.dropped.iter().enumerate() {
            let end = if position + 1 < self.dropped.len() { "\n" } else { "" };
            write!(f, "dropped {count} of {record}: {}{end}", loss_of(*record))?;
        }
        Ok(())
    }
}

/// The consequence for an account if a record is gone.
fn loss_of(record: Record) -> &'static str {
    match record {
        Record::Session => "negotiated again; a message that needs it comes again, as a retry",
        Record::Identity => "learned again with the next message; a change in between is not noticed",
        Record::Prekey => "a message that was encrypted to it comes again, as a retry",
        Record::SignedPrekey => {
            "messages that were encrypted to it come again, as retries, if the client makes a new one"
        }
        Record::SenderKey => "its sender distributes it again; a group message that needs it comes again, as a retry",
        Record::SyncKey => "the client asks the phone for it",
        Record::CollectionVersion | Record::MutationMac => "the client fetches the app state again",
        Record::SenderKeyDevice => "the bot sends its sender key to every device of a group once more",
        Record::LidMapping | Record::DeviceList | Record::GroupMetadata | Record::TcToken | Record::CacheEntry => {
            "the client asks the server for it"
        }
        Record::BaseKey => "a collision of session base keys may not be noticed",
        Record::SentMessage => "lost: a device that asks for the message again does not get it",
        Record::PendingInbound => "lost: a message that was received and not processed yet",
        Record::MessageSecret => "lost: reactions, edits and polls of the message cannot be decrypted",
        Record::Device | Record::SignalState | Record::SnapshotExtra | Record::Store => "lost",
    }
}
