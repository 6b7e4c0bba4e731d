//! Dropping records: those of a contact, and those that do not verify.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::connection::{Statements, permitted};
use super::rows::{Pages, Snapshot};
use super::tables::{TABLES, Table};
use super::writer::Plan;
use super::{SqliteStore, rotate};
use crate::encrypt::sealed_row::{StoredRow, session_or_identity};
use crate::encrypt::{Vault, user_of};
use crate::ended;
use crate::error::{Error, Result};
use crate::method::Record;

/// Drops the records of an account that do not verify, so that the client fetches or negotiates them anew instead of failing on
/// them for ever. Before, the whole database is copied. Nothing is dropped of a sound store, and then nothing is copied.
///
/// ```
/// # futures::executor::block_on(async {
/// # let folder = tempfile::tempdir().unwrap();
/// use std::sync::Arc;
/// use wastore::{Key, Repair, SqliteStore, Vault};
///
/// let store = Arc::new(SqliteStore::open(folder.path().join("wa.db")).await?);
/// let vault = Vault::create(store.clone(), Key::generate()?).await?;
/// let report = Repair::new().run(&store, &vault, folder.path().join("before-repair.db")).await?;
/// assert!(report.is_empty());
/// # Ok::<(), wastore::Error>(())
/// # }).unwrap();
/// ```
///
/// If one mutation MAC or collection version is damaged, all of them are dropped, and the client fetches the app state anew; if one
/// sender key device is, all of those are. Stop the client before: it keeps records itself, and would write them again.
///
/// A device is not dropped: without it the account is gone. Nor is anything if records are newer than the header, or under a data
/// key that it does not have: as a rule they are not damaged, but the header is an older one, and a newer one opens them. Nor if
/// SQLite finds damage in the file. All of that is for a backup.
#[must_use = "nothing is repaired before it is run"]
pub struct Repair {
    unknown_keys: bool,
    progress: Box<dyn Fn(RepairProgress) + Send + Sync>,
}

/// How far a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairProgress {
    /// The rows that were looked at.
    pub done: u64,
    /// The rows that there are to look at, as they were counted at the beginning.
    pub total: u64,
}

impl Repair {
    /// A repair that tells nobody how far it is.
    pub fn new() -> Self {
        Self { unknown_keys: false, progress: Box::new(|_| {}) }
    }

    /// Also drops records under a data key that the header does not have. Make sure before that no newer header of the store is
    /// left, in a backup or as a saved one: it would open them.
    pub fn unknown_keys(mut self) -> Self {
        self.unknown_keys = true;
        self
    }

    /// Is told after every few hundred rows how far the repair is.
    pub fn on_progress(mut self, progress: impl Fn(RepairProgress) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Repairs this account with its vault. The copy from before goes to a new file at `backup`.
    ///
    /// # Errors
    /// Nothing was dropped then, unless it is [`Error::Sqlite`]. [`Error::NotAlone`] if another process has the database open;
    /// [`Error::Tampered`] and the like of the device, [`Error::DeviceMissing`], [`Error::UnknownEpoch`], [`Error::HeaderRolledBack`], [`Error::RowsMissed`] and
    /// [`Error::Sqlite`] as damaged, of what only a backup helps against; those of [`SqliteStore::backup`].
    pub async fn run(&self, store: &SqliteStore, vault: &Vault, backup: impl AsRef<Path>) -> Result<RepairReport> {
        rotate::keeps_header(store, vault).await?;
        store.database.refuse_others().await?;
        store.refuse_damage().await?;
        let damaged = self.find(store, vault).await?;
        if damaged.is_empty() {
            return Ok(RepairReport::default());
        }
        store.backup(&backup).await?;
        let dropped = drop_rows(store, damaged).await?;
        Ok(RepairReport { dropped, backup: Some(backup.as_ref().to_owned()) })
    }

    /// # Errors
    /// Of what cannot be dropped.
    async fn find(&self, store: &SqliteStore, vault: &Vault) -> Result<Vec<Row>> {
        let held = vault.state();
        let mut snapshot = Snapshot::open(store).await?;
        let (mut done, total) = (0, snapshot.count_rows().await?);
        let (mut damaged, mut has_device) = (vec![], false);
        for table in &TABLES {
            let mut pages = Pages::of(table);
            while let Some(page) = snapshot.next(&mut pages).await? {
                done += page.len() as u64;
                for (id, found) in page {
                    let row = Row::of(table, id, &found);
                    has_device |= table.record == Record::Device && row.hash.is_some();
                    let checked = match found {
                        Ok(None) => Ok(()),
                        Ok(Some(found)) => vault.check_stored(&held, found).await.map(drop),
                        Err(error) => Err(error),
                    };
                    match checked {
                        Ok(()) => {}
                        Err(Error::Tampered { .. } | Error::Malformed { .. } | Error::Plaintext { .. })
                            if table.record != Record::Device =>
                        {
                            damaged.push(row);
                        }
                        Err(Error::UnknownEpoch { record }) if self.unknown_keys && record != Record::Device => {
                            damaged.push(row);
                        }
                        Err(error) => return Err(error),
                    }
                }
                (self.progress)(RepairProgress { done, total: total.max(done) });
            }
        }
        if vault.device_is_sealed() && !has_device {
            return Err(Error::DeviceMissing);
        }
        Ok(damaged)
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

/// A row as it was found.
struct Row {
    table: &'static Table,
    record: Record,
    id: i64,
    /// Of its content; `None` if it cannot be read.
    hash: Option<[u8; 32]>,
}

impl Row {
    fn of(table: &'static Table, id: i64, found: &Result<Option<StoredRow>>) -> Self {
        let content = found.as_ref().ok().and_then(Option::as_ref);
        let record = content.map_or(table.record, |row| row.record);
        Self { table, record, id, hash: content.map(hash) }
    }

    /// Deletes it, if it is still as it was found.
    fn delete(&self, c: &Connection, account: i32) -> Result<bool> {
        let Some(found) = self.table.row_by_id(c, self.id, account)? else { return Ok(false) };
        if Self::of(self.table, self.id, &found).hash != self.hash {
            return Ok(false);
        }
        let sql = format!("DELETE FROM {} WHERE rowid = ?1 AND account = ?2", self.table.name);
        Ok(permitted(|| c.prepare(&sql))?.execute((self.id, account))? > 0)
    }
}

fn hash(row: &StoredRow) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in row.columns.iter().chain([&row.value]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for number in &row.numbers {
        hash.update([u8::from(number.is_some())]);
        hash.update(number.unwrap_or(0).to_le_bytes());
    }
    hash.finalize().into()
}

/// Deletes rows that are still as they were found, a number of them at a time, and gives how many of each kind.
async fn drop_rows(store: &SqliteStore, rows: Vec<Row>) -> Result<Vec<(Record, u64)>> {
    /// How many rows a transaction deletes at most.
    const AT_A_TIME: usize = 500;
    // Of these, one without the others makes no sense to the client, or has no id to be named by.
    let whole = |record| matches!(record, Record::MutationMac | Record::CollectionVersion | Record::SenderKeyDevice);
    let (all_of, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| whole(row.record));
    let mut all_of: HashSet<Record> = all_of.into_iter().map(|row| row.record).collect();
    if all_of.contains(&Record::MutationMac) || all_of.contains(&Record::CollectionVersion) {
        all_of.extend([Record::MutationMac, Record::CollectionVersion]);
    }
    let account = store.account;
    let delete_all = move |c: &Connection| {
        let tables = TABLES.iter().filter(|table| all_of.contains(&table.record));
        tables.map(|table| Ok((table.record, c.run(table.delete_all, (account,))? as u64))).collect::<Result<Vec<_>>>()
    };
    let plan = Plan::SIGNAL.transaction().long();
    let mut dropped = store.database.write(plan, delete_all).await?;
    while !rows.is_empty() {
        let some = rows.split_off(rows.len().saturating_sub(AT_A_TIME));
        let delete = move |c: &Connection| {
            let mut deleted = vec![];
            for row in &some {
                if row.delete(c, account)? {
                    deleted.push(row.record);
                }
            }
            Ok(deleted)
        };
        for record in store.database.write(plan, delete).await? {
            match dropped.iter_mut().find(|(dropped, _)| *dropped == record) {
                Some((_, count)) => *count += 1,
                None => dropped.push((record, 1)),
            }
        }
    }
    ended::note();
    dropped.retain(|(_, count)| *count > 0);
    Ok(dropped)
}

/// What a repair dropped. `Display` says what each kind means for the account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    dropped: Vec<(Record, u64)>,
    backup: Option<PathBuf>,
}

impl RepairReport {
    /// `true` if every record was as it should be.
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
            return write!(f, "every record is as it should be");
        }
        for (position, (record, count)) in self.dropped.iter().enumerate() {
            let end = if position + 1 < self.dropped.len() { "\n" } else { "" };
            write!(f, "dropped {count} of {record}: {}{end}", loss_of(*record))?;
        }
        Ok(())
    }
}

/// What it means for an account that a record is gone.
fn loss_of(record: Record) -> &'static str {
    match record {
        Record::Session => "negotiated anew; a message that needs it comes again, as a retry",
        Record::Identity => "learned anew with the next message; a change in between is not noticed",
        Record::Prekey => "a message that was encrypted to it comes again, as a retry",
        Record::SignedPrekey => {
            "messages that were encrypted to it come again, as retries, if the client makes a new one"
        }
        Record::SenderKey => "its sender distributes it anew; a group message that needs it comes again, as a retry",
        Record::SyncKey => "the client asks the phone for it",
        Record::CollectionVersion | Record::MutationMac => "the client fetches the app state anew",
        Record::SenderKeyDevice => "the bot sends its sender key to every device of a group once more",
        Record::LidMapping | Record::DeviceList | Record::GroupMetadata | Record::TcToken => {
            "the client asks the server for it"
        }
        Record::BaseKey => "a collision of session base keys may not be noticed",
        Record::SentMessage => "lost: a device that asks for the message again does not get it",
        Record::PendingInbound => "lost: a message that was received and not yet worked on",
        Record::MessageSecret => "lost: reactions, edits and polls of the message cannot be decrypted",
        Record::Device | Record::SignalState | Record::SnapshotExtra | Record::Store => "lost",
    }
}

impl SqliteStore {
    /// Deletes the sessions, identities and sender keys of a contact, so that the client negotiates them anew. The contact is
    /// named by its JID, with or without a device, or by the part of it before the `@`; all of its devices are meant, and also
    /// its other name, phone number or LID, if the account knows which belong together. Records that do not verify are deleted
    /// as well, if their place says that they are the contact's.
    ///
    /// Stop the client before: it keeps sessions itself, and would write them again.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is no name before the `@`; [`Error::NotAlone`] if another process has the database open;
    /// [`Error::Sqlite`]. Nothing was deleted then.
    pub async fn forget(&self, vault: &Vault, jid: &str) -> Result<ForgetReport> {
        rotate::keeps_header(self, vault).await?;
        self.database.refuse_others().await?;
        // A phone number as people write it, too.
        let jid: String = jid.chars().filter(|c| !c.is_whitespace() && !matches!(c, '+' | '(' | ')')).collect();
        let whole = user_of(&jid).0;
        let digits: String = whole.chars().filter(|c| *c != '-').collect();
        let whole = if digits.bytes().all(|byte| byte.is_ascii_digit()) { &digits } else { whole };
        // An agent may follow the name.
        let user = whole.split(['.', '_']).next().unwrap_or(whole);
        if user.is_empty() {
            return Err(Error::InvalidInput { what: "the JID", problem: "has no name before the @" });
        }
        let mut users = HashSet::from([user.to_owned(), whole.to_owned()]);
        let mut other_names = vec![];
        self.each_key(vault, Record::LidMapping, |_, key| {
            if let [lid, phone_number] = key {
                let (lid, phone_number) = (user_of(lid).0, user_of(phone_number).0);
                if lid == user || phone_number == user {
                    other_names.extend([lid.to_owned(), phone_number.to_owned()]);
                }
            }
        })
        .await?;
        users.extend(other_names);
        let mut sender_keys = vec![];
        self.each_key(vault, Record::SenderKey, |row, key| {
            // `group:sender`.
            let sender = key.first().and_then(|name| name.split_once(':'));
            if sender.is_some_and(|(_, sender)| users.contains(user_of(sender).0)) {
                sender_keys.push(row);
            }
        })
        .await?;

        let (state, account) = (vault.state(), self.account);
        let tokens: Vec<_> = users.iter().map(|user| state.tokens_of_user(user)).collect::<Result<_>>()?;
        let delete = move |c: &Connection| {
            let mut report = ForgetReport::default();
            for of_user in &tokens {
                let kind = |row: &rusqlite::Row<'_>| {
                    let kind = row.get_ref(1)?.as_bytes().map_or(Record::Session, session_or_identity);
                    Ok((row.get::<_, i64>(0)?, kind))
                };
                let with_prefix = "SELECT rowid, record FROM sessions WHERE account = ?1
                    AND address > ?2 || '@' AND address < ?2 || 'A'";
                let mut rows = c.all(with_prefix, (account, &*of_user.prefix), kind)?;
                let [session, identity] = &of_user.bare;
                let bare = "SELECT rowid, record FROM sessions WHERE account = ?1 AND address IN (?2, ?3)";
                rows.extend(c.all(bare, (account, &**session, &**identity), kind)?);
                for (id, record) in rows {
                    c.run("DELETE FROM sessions WHERE rowid = ?1", (id,))?;
                    match record {
                        Record::Identity => report.identities += 1,
                        _ => report.sessions += 1,
                    }
                }
            }
            for row in &sender_keys {
                report.sender_keys += u64::from(row.delete(c, account)?);
            }
            Ok(report)
        };
        let report = self.database.write(Plan::SIGNAL.transaction().long(), delete).await?;
        ended::note();
        Ok(report)
    }

    /// Shows the keys of all records of a kind that verify, as the client knows them.
    async fn each_key(&self, vault: &Vault, record: Record, mut look: impl FnMut(Row, &[&str])) -> Result<()> {
        let held = vault.state();
        let mut snapshot = Snapshot::open(self).await?;
        for table in TABLES.iter().filter(|table| table.record == record) {
            let mut pages = Pages::of(table);
            while let Some(page) = snapshot.next(&mut pages).await? {
                for (id, found) in page {
                    let row = Row::of(table, id, &found);
                    let Ok(Some(found)) = found else { continue };
                    let opened = match vault.open_stored(&held, found).await {
                        Ok(opened) => opened,
                        Err(error @ (Error::Store(_) | Error::Sqlite { .. })) => return Err(error),
                        Err(_) => continue,
                    };
                    let key: Result<Vec<_>, _> = opened.key.iter().map(|part| std::str::from_utf8(part)).collect();
                    if let Ok(key) = key {
                        look(row, &key);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What [`SqliteStore::forget`] deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForgetReport {
    /// Sessions with devices of the contact.
    pub sessions: u64,
    /// Identity keys of its devices.
    pub identities: u64,
    /// Its sender keys in groups.
    pub sender_keys: u64,
}

impl ForgetReport {
    /// `true` if nothing was stored of the contact.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for ForgetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, identities, sender_keys } = self;
        write!(f, "sessions {sessions}, identities {identities}, sender keys {sender_keys}")
    }
}
