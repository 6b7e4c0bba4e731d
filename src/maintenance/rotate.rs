//! Gives a vault a new data key, and seals every record of its account under it.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::reseal::reseal;
use crate::background;
use crate::encrypt::{HeaderCopy, Vault};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::store::{OwnRows, OwnStore, Remains, Rows};

/// Gives a vault a new data key, seals every record of its account again under it, and forgets the
/// old keys. This process can read and write the account while it runs.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use wastore::{Key, SqliteStore, Vault};
/// use wastore::maintenance::Rotate;
///
/// let store = SqliteStore::open(folder.path().join("wa.db")).await?;
/// let vault = Vault::create(&store, Key::generate()?).await?;
/// let report = Rotate::new().run(&store, &vault).await?;
/// assert_eq!(report.resealed(), 0);
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// It may be killed at any moment: every record is under the old key or the new one, the header has
/// both, and the next run continues. An older copy of the store still opens with the secrets of its
/// time and the old data key. If one of those has leaked, use [`Rotate::revoke`].
///
/// Message secrets, base keys and the names of sender-key devices and tc tokens are under the
/// lookup key, which does not change: rows are found by it. To change it, export the account and
/// import it into a new store.
///
/// A [`CacheLayer`](crate::CacheLayer) *below* the encrypting layer keeps the old records: call its
/// `invalidate_all` afterwards. Running calls are waited for, so this never ends if a call's future
/// is kept and never polled. If a call is dropped, your own layer below the encrypting one must not
/// continue to write.
#[must_use = "nothing is sealed again before it is run"]
pub struct Rotate {
    pub(super) leave_damaged: bool,
    pub(super) except: Vec<i32>,
    pub(super) progress: Observer,
}

/// The result of a change of the data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotateReport {
    resealed: u64,
    left_behind: u64,
    old_key_in_wal: bool,
    is_rewritten: bool,
    remains_on_server: bool,
}

impl Rotate {
    /// A change that fails at the end if records are damaged.
    pub fn new() -> Self {
        Self { leave_damaged: false, except: vec![], progress: Observer::default() }
    }

    /// Forgets the old data keys even if some records do not verify.
    /// [`Verify`](crate::maintenance::Verify) lists them. They stay as they are, and unreadable.
    pub fn leave_damaged(mut self) -> Self {
        self.leave_damaged = true;
        self
    }

    /// Does not change this account in [`Rotate::revoke`]. Otherwise `revoke` refuses to begin if
    /// it cannot cover an account.
    pub fn except(mut self, account: i32) -> Self {
        self.except.push(account);
        self
    }

    /// Calls `progress` every few hundred rows.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Changes the data key of this account's vault, or continues a change that was interrupted.
    /// Save the header again afterwards: an older one has the key of no record.
    ///
    /// If the header is kept outside the store, nothing distinguishes the store from a copy of it.
    /// Take care to name the right one.
    ///
    /// # Errors
    /// After an error the old data keys are kept, and everything stays readable.
    ///
    /// [`Error::StoreInUse`] if another process has the database open. [`Error::InvalidInput`] if
    /// the vault was not opened on this account of this database. [`Error::DamagedRecords`] if
    /// records are damaged. [`Error::ReadOnly`]. [`Error::Sqlite`]. Those of changing the header,
    /// as for [`Vault::add_slot`].
    pub async fn run(&self, store: &impl OwnStore, vault: &Vault) -> Result<RotateReport> {
        let OwnRows(store) = store.own_rows();
        self.refuse_damage(&*store).await?;
        let mut report = self.change(&store, vault).await?;
        Rewritten::of(&*store).await.note_in(&mut report);
        Ok(report)
    }

    /// Puts a new data key in place and forgets the old ones.
    pub(super) async fn change(&self, store: &Arc<dyn Rows>, vault: &Vault) -> Result<RotateReport> {
        let mut report = RotateReport {
            resealed: 0,
            left_behind: 0,
            old_key_in_wal: false,
            is_rewritten: true,
            remains_on_server: false,
        };
        loop {
            // Before anything is changed, and again once every process that opens the vault finds
            // the new key.
            store.refuse_others().await?;
            let (epoch, is_new) = vault.begin_rotation(self.leave_damaged).await?;
            store.refuse_others().await?;
            let keeps_header = keeps_header(&**store, vault).await?;
            while !vault.no_retired_state_in_use() {
                background::unblock(|| thread::sleep(Duration::from_millis(1))).await;
            }
            // A call whose future was dropped may still be queued. Once the queue is empty, its
            // rows are in the table.
            store.drain().await?;
            let rows = store.count(|table| table.is_sealed).await?;
            let mut passed = 0;
            let tell = |done: u64| {
                passed += done;
                self.progress.tell(Phase::Resealing, (passed / 2).min(rows), rows);
            };
            let resealed = reseal(&**store, vault, tell).await?;
            self.progress.tell(Phase::Resealing, rows, rows);
            report.resealed += resealed.replaced;
            report.left_behind = resealed.left;
            if vault.current_epoch().await? != epoch {
                // Another call has changed it in between: repeat under the newest key.
                continue;
            }
            if !keeps_header {
                // The header cannot tell which store it belongs to, but the device can. The header
                // reaches the disk at once, so the records must be there before it.
                let device = vault.layer().layer(store.clone()).load().await?;
                device.ok_or(Error::DeviceMissing)?;
                store.checkpoint().await?;
            }
            if report.left_behind > 0 && !self.leave_damaged {
                return Err(Error::DamagedRecords { count: report.left_behind });
            }
            let finished = vault.finish_rotation(epoch).await;
            if matches!(finished, Err(Error::Anchor(_))) {
                // The header may already be without the old key; then the log must not have it
                // either.
                store.checkpoint().await?;
            }
            if finished? && is_new {
                return Ok(report);
            }
        }
    }

    /// # Errors
    /// [`Error::Sqlite`] as damaged, unless damaged records may be left behind.
    pub(super) async fn refuse_damage(&self, store: &dyn Rows) -> Result<()> {
        if self.leave_damaged { Ok(()) } else { store.refuse_damage().await }
    }
}

/// `true` if the store has the header of this vault, `false` if the vault keeps it elsewhere.
///
/// # Errors
/// [`Error::InvalidInput`] if the store has another header, including an older one of this vault,
/// as in a copy.
pub(super) async fn keeps_header(store: &dyn Rows, vault: &Vault) -> Result<bool> {
    /// Other processes may be opening the vault at this moment.
    const TRIES: usize = 8;
    for _ in 0..TRIES {
        let header = vault.current_header().await?;
        match store.get_sender_key(HeaderCopy::A.address()).await? {
            Some(stored) if stored == header => return Ok(true),
            Some(_) => {}
            None if vault.keeps_header_elsewhere() => return Ok(false),
            None => break,
        }
    }
    Err(Error::InvalidInput { what: "the vault", problem: "was opened on another store" })
}

impl Default for Rotate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Rotate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotate").field("leave_damaged", &self.leave_damaged).finish_non_exhaustive()
    }
}

impl RotateReport {
    /// How many records were sealed again. Records that were stored while it ran do not count.
    pub fn resealed(&self) -> u64 {
        self.resealed
    }

    /// How many damaged records were left behind, unreadable as before.
    pub fn left_behind(&self) -> u64 {
        self.left_behind
    }

    /// `false` if the file could not be rewritten at the end, for example because the disk is full.
    /// Unused parts of its pages may then hold pieces of records under the old key, until
    /// [`SqliteStore::vacuum`](crate::SqliteStore::vacuum) succeeds.
    pub fn is_rewritten(&self) -> bool {
        self.is_rewritten
    }

    /// `true` if the write-ahead log could not be emptied because a reader uses an older state of
    /// the database. The log then holds the old header and records under the old key, until a later
    /// [`SqliteStore::checkpoint`](crate::SqliteStore::checkpoint).
    pub fn old_key_in_wal(&self) -> bool {
        self.old_key_in_wal
    }

    /// `true` if the store is on a server. Its log, its standbys and its archives then keep the old header and records
    /// under the old key, until the server overwrites or removes them.
    pub fn remains_on_server(&self) -> bool {
        self.remains_on_server
    }
}

impl fmt::Display for RotateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records were sealed again, the old data key is forgotten", self.resealed)?;
        if self.left_behind > 0 {
            write!(f, "; {} damaged records were left behind", self.left_behind)?;
        }
        if !self.is_rewritten {
            f.write_str("; the file could not be rewritten and may hold pieces of old records: run `wastore vacuum`")?;
        }
        if self.old_key_in_wal {
            f.write_str(
                "; the write-ahead log still holds records under the old key: close and open the store to empty it",
            )?;
        }
        if self.remains_on_server {
            f.write_str("; the server's log, standbys and archives keep records under the old key until they expire")?;
        }
        Ok(())
    }
}

/// The result of rewriting a file.
pub(super) struct Rewritten {
    is_rewritten: bool,
    old_key_in_wal: bool,
    remains: Remains,
}

impl Rewritten {
    /// Rewrites the file: unused parts of its pages hold pieces of rows that SQLite moved earlier,
    /// and the old header opens them.
    pub(super) async fn of(store: &dyn Rows) -> Self {
        match store.rewrite().await {
            Ok(remains) => Self { is_rewritten: true, old_key_in_wal: false, remains },
            Err(error) => {
                log::warn!("the store could not be rewritten after its data key was changed: {error}");
                let old_key_in_wal = store.checkpoint().await.is_err();
                Self { is_rewritten: false, old_key_in_wal, remains: Remains::Nowhere }
            }
        }
    }

    pub(super) fn note_in(&self, report: &mut RotateReport) {
        (report.is_rewritten, report.old_key_in_wal) = (self.is_rewritten, self.old_key_in_wal);
        report.remains_on_server = self.remains == Remains::OnTheServer;
    }
}
