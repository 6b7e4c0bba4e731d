//! Exports an encrypted store into a database of whatsapp-rust's own SQLite store.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, ToSql, params};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use wacore::store::traits::DeviceListRecord;

use super::schema::MIGRATIONS;
use super::wire;
use crate::background;
use crate::encrypt::Vault;
use crate::encrypt::sealed_row::OpenRow;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::private;
use crate::progress::{Observer, Phase, Progress};
use crate::rows::store::{OwnRows, OwnStore, Rows};
use crate::rows::table::TABLES;
use crate::sqlite::files::{cannot_write, explained, publish, refuse_taken};

/// Writes an account of an encrypted [`SqliteStore`](crate::SqliteStore) into a new database for
/// whatsapp-rust 0.7's own SQLite store, **in plaintext**. So you can always move back.
///
/// Three kinds cannot be exported, because the store keeps only what it needs to compare them:
///
/// | record | the consequence |
/// |--|--|
/// | sender key device | the bot sends its sender key to every device of a group once more |
/// | message secret | reactions, edits and polls of messages so far cannot be decrypted |
/// | base key | a collision of session base keys since then may not be noticed |
///
/// Mutation MACs are exported for every collection that has a version in the store. The client uses
/// no others.
///
/// ```no_run
/// # async fn export() -> Result<(), wastore::Error> {
/// use wastore::import::Export;
/// use wastore::maintenance::open_account;
/// use wastore::vault::OpenMode;
/// use wastore::{Passphrase, SqliteStore, VaultOptions};
///
/// let store = SqliteStore::open("wa.db").await?;
/// let options = VaultOptions::new().mode(OpenMode::ReadOnly);
/// let vault = open_account(&store, &options, Passphrase::from_file("passphrase")?).await?;
/// println!("{}", Export::new().run(&store, &vault, "whatsapp.db").await?);
/// # Ok(())
/// # }
/// ```
#[must_use = "an export does nothing until it is run"]
pub struct Export {
    progress: Observer,
}

/// The result of an export. `Display` prints a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    records: Vec<(Record, u64, u64)>,
}

impl Export {
    /// An export of one or several accounts.
    pub fn new() -> Self {
        Self { progress: Observer::default() }
    }

    /// Calls `progress` every few hundred rows.
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Observer::new(progress);
        self
    }

    /// Exports the account of `store` with its vault into a new file at `target`, with mode 0600,
    /// which appears when it is complete. The account keeps its number, which upstream calls the
    /// device id. Stop the bot first: the export may miss records that it writes in between.
    ///
    /// Until it is complete, the file is in a folder `.wastore-export-…` beside the target, **in
    /// plaintext**. Dropping the future removes the folder. A killed process leaves it behind:
    /// delete it.
    ///
    /// # Errors
    /// There is no file at `target` after an error.
    ///
    /// * [`Error::DeviceMissing`] if the account's device is missing;
    /// * [`Error::TargetExists`];
    /// * [`Error::File`] if the target's folder does not exist or cannot be written;
    /// * [`Error::Tampered`] and similar errors if a record does not verify;
    /// * [`Error::RowsMissed`] if a table has rows that cannot be found in it;
    /// * [`Error::Sqlite`].
    pub async fn run(&self, store: &impl OwnStore, vault: &Vault, target: impl AsRef<Path>) -> Result<ExportReport> {
        let mut reports = self.run_all(&[AccountToExport::new(store, vault)], target).await?;
        Ok(reports.pop().unwrap_or_default())
    }

    /// Exports several accounts with their vaults into one new file, and returns a report for each.
    ///
    /// # Errors
    /// Those of [`Export::run`].
    pub async fn run_all(
        &self,
        accounts: &[AccountToExport<'_>],
        target: impl AsRef<Path>,
    ) -> Result<Vec<ExportReport>> {
        let target = target.as_ref().to_owned();
        refuse_taken(&target)?;
        let unfinished = private::unfinished_folder(&target, ".wastore-export-").map_err(cannot_write)?;
        let created = background::unblock(move || Writer::create(unfinished)).await;
        let mut writer = created.map_err(|error| explained(&target, error))?;
        let (mut done, mut total) = (0, 0);
        for AccountToExport { store, .. } in accounts {
            total += store.snapshot().await?.count().await?;
        }
        let mut tell = |rows: u64| {
            done += rows;
            self.progress.tell(Phase::Copying, done, total);
        };
        let mut reports = Vec::with_capacity(accounts.len());
        for AccountToExport { store, vault } in accounts {
            writer.account = store.account_number();
            writer.collections.clear();
            let report;
            (writer, report) = export(&**store, vault, writer, &mut tell).await?;
            reports.push(report);
        }
        let folder = background::unblock(move || writer.finish()).await?;
        let file = folder.path().join(FILE);
        publish((), Arc::new(folder), file, target).await?;
        Ok(reports)
    }
}

/// Exports one account.
async fn export(
    store: &dyn Rows,
    vault: &Vault,
    mut writer: Writer,
    tell: &mut impl FnMut(u64),
) -> Result<(Writer, ExportReport)> {
    let held = vault.state();
    let mut snapshot = store.snapshot().await?;
    let mut report = ExportReport::default();
    for table in &TABLES {
        snapshot.begin(table);
        while let Some(page) = snapshot.next().await? {
            let (rows, mut opened) = (page.len(), Vec::with_capacity(page.len()));
            for (id, row) in page {
                if let Some(row) = row? {
                    opened.push((id, vault.open_row(&held, row).await?));
                }
            }
            let outcome;
            (writer, outcome) = background::unblock(move || writer.write(opened)).await?;
            outcome.into_iter().for_each(|(record, given_back)| report.add(record, given_back));
            tell(rows as u64);
        }
    }
    drop(snapshot);
    // Damage may hide rows whose account SQLite cannot tell.
    store.refuse_damage().await?;
    if vault.device_is_sealed() && report.exported(Record::Device) == 0 {
        return Err(Error::DeviceMissing);
    }
    Ok((writer, report))
}

/// An account and its vault, for [`Export::run_all`].
#[derive(Debug)]
pub struct AccountToExport<'a> {
    store: Arc<dyn Rows>,
    vault: &'a Vault,
}

impl<'a> AccountToExport<'a> {
    /// The account of `store` with its vault.
    pub fn new(store: &impl OwnStore, vault: &'a Vault) -> Self {
        let OwnRows(store) = store.own_rows();
        Self { store, vault }
    }
}

impl Default for Export {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

impl ExportReport {
    /// How many records of a kind were exported.
    pub fn exported(&self, record: Record) -> u64 {
        self.find(record).0
    }

    /// How many records of a kind could not be exported.
    pub fn dropped(&self, record: Record) -> u64 {
        self.find(record).1
    }

    fn find(&self, record: Record) -> (u64, u64) {
        let found = self.records.iter().find(|(found, ..)| *found == record);
        found.map_or((0, 0), |(_, exported, dropped)| (*exported, *dropped))
    }

    fn add(&mut self, record: Record, given_back: bool) {
        let position = self.records.iter().position(|(found, ..)| *found == record).unwrap_or_else(|| {
            self.records.push((record, 0, 0));
            self.records.len() - 1
        });
        match given_back {
            true => self.records[position].1 += 1,
            false => self.records[position].2 += 1,
        }
    }
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>10} {:>10}", "record", "exported", "dropped")?;
        for (record, exported, dropped) in &self.records {
            writeln!(f, "{:<20} {exported:>10} {dropped:>10}", record.name())?;
        }
        for (record, _, dropped) in &self.records {
            let loss = match record {
                Record::SenderKeyDevice => "the bot sends its sender key to every device of a group once more",
                Record::MessageSecret => "reactions, edits and polls of messages so far cannot be decrypted",
                Record::BaseKey => "a collision of session base keys since then may not be noticed",
                Record::MutationMac => "their collections have no version, so the client fetches them again",
                _ => continue,
            };
            if *dropped > 0 {
                writeln!(f, "dropped {dropped} of {record}: {loss}")?;
            }
        }
        Ok(())
    }
}

/// The name of the database until it gets its own.
const FILE: &str = "whatsapp.db";

/// The database that is written.
struct Writer {
    connection: Connection,
    /// Dropped with the writer, on whichever thread that is if the caller gives up.
    folder: TempDir,
    /// The account whose rows are written.
    account: i32,
    /// The names of its collections by the tokens of their rows.
    collections: HashMap<Vec<u8>, String>,
}

impl Writer {
    fn create(folder: TempDir) -> Result<Self> {
        let path = &folder.path().join(FILE);
        // SQLite would create the file with a mode that lets others read it.
        private::create(path).map_err(|source| Error::File { what: "target", source })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // No other connection has it open.
        connection.busy_timeout(Duration::ZERO)?;
        // The file gets its name only when it is on the disk.
        connection.pragma_update(None, "journal_mode", "OFF")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        // Other rows refer to the device, which comes last.
        connection.pragma_update(None, "foreign_keys", "OFF")?;
        connection.execute_batch(include_str!("schema.sql"))?;
        for (version, _) in MIGRATIONS {
            connection.execute("INSERT INTO __diesel_schema_migrations (version) VALUES (?1)", (version,))?;
        }
        Ok(Self { connection, folder, account: 0, collections: HashMap::new() })
    }

    /// Writes rows in one transaction, and returns for each whether it was exported. Blocks its
    /// thread.
    fn write(mut self, rows: Vec<(i64, OpenRow)>) -> Result<(Self, Vec<(Record, bool)>)> {
        let mut outcome = Vec::with_capacity(rows.len());
        self.connection.execute_batch("BEGIN")?;
        for (id, row) in rows {
            outcome.push((row.record, self.insert(id, &row)?));
        }
        self.connection.execute_batch("COMMIT")?;
        Ok((self, outcome))
    }

    /// Writes a row, and returns whether it was exported.
    fn insert(&mut self, id: i64, row: &OpenRow) -> Result<bool> {
        let (record, account, blob, fields) = (row.record, self.account, &row.payload[..], Fields(row));
        if record == Record::Device {
            wire::insert_device(&self.connection, account, &fields.decode()?)?;
            return Ok(true);
        }
        let Some(sql) = insertion(record) else { return Ok(false) };
        let run = |values: &[&dyn ToSql]| -> Result<bool> {
            self.connection.prepare_cached(sql)?.execute(values)?;
            Ok(true)
        };
        match record {
            Record::Identity | Record::Session | Record::SenderKey | Record::GroupMetadata => {
                run(params![fields.text(0)?, blob, account])
            }
            Record::Prekey => run(params![fields.id()?, blob, fields.number(0)? != 0, account]),
            Record::SignedPrekey => run(params![fields.id()?, blob, account]),
            Record::SyncKey => run(params![fields.key(0)?, wire::sync_key_bytes(fields.decode()?), account]),
            Record::CollectionVersion => {
                let name = fields.text(0)?;
                self.collections.insert(fields.key(1)?.to_owned(), name.to_owned());
                run(params![name, wire::collection_version_bytes(fields.decode()?), account])
            }
            Record::MutationMac => match self.collections.get(fields.key(0)?) {
                Some(name) => run(params![name, fields.number(0)?, fields.key(1)?, blob, account]),
                None => Ok(false),
            },
            Record::LidMapping => {
                let (lid, phone_number, source) = (fields.text(0)?, fields.text(1)?, fields.utf8()?);
                let (created, updated) = (fields.number(0)?, fields.number(1)?);
                // Of LIDs that were learned in the same second, this crate takes the last one as
                // the newest, and upstream the first.
                run(params![lid, phone_number, created, updated, source, account, id.saturating_neg()])
            }
            Record::DeviceList => {
                let list: DeviceListRecord = fields.decode()?;
                let devices = serde_json::to_string(&list.devices).map_err(|_| Error::Encode { record })?;
                // Upstream stores the times of device lists in 32 bits.
                let time = i32::try_from(list.timestamp).unwrap_or(i32::MAX);
                run(params![list.user, devices, time, list.phash, account, list.raw_id.map(|id| id as i32)])
            }
            Record::TcToken => {
                run(params![fields.text(0)?, blob, fields.number(0)?, fields.optional_number(1), account])
            }
            Record::SentMessage => run(params![fields.text(0)?, fields.text(1)?, blob, fields.number(0)?, account]),
            Record::PendingInbound => {
                let (chat, sender, id) = (fields.text(0)?, fields.text(1)?, fields.text(2)?);
                run(params![chat, sender, id, blob, fields.number(0)?, account])
            }
            _ => Err(fields.damaged()),
        }
    }

    fn finish(self) -> Result<TempDir> {
        let check: String = self.connection.query_row("PRAGMA quick_check", (), |row| row.get(0))?;
        if check != "ok" {
            let source = std::io::Error::other("SQLite finds damage in what was just written");
            return Err(Error::File { what: "target", source });
        }
        self.connection.close().map_err(|(_, error)| error)?;
        Ok(self.folder)
    }
}

/// The statement that writes a record; `None` if the keys are tokens, from which no one can recover
/// the originals.
fn insertion(record: Record) -> Option<&'static str> {
    Some(match record {
        Record::Identity => "INSERT OR REPLACE INTO identities (address, key, device_id) VALUES (?1, ?2, ?3)",
        Record::Session => "INSERT OR REPLACE INTO sessions (address, record, device_id) VALUES (?1, ?2, ?3)",
        Record::Prekey => "INSERT OR REPLACE INTO prekeys (id, key, uploaded, device_id) VALUES (?1, ?2, ?3, ?4)",
        Record::SignedPrekey => "INSERT OR REPLACE INTO signed_prekeys (id, record, device_id) VALUES (?1, ?2, ?3)",
        Record::SenderKey => "INSERT OR REPLACE INTO sender_keys (address, record, device_id) VALUES (?1, ?2, ?3)",
        Record::SyncKey => "INSERT OR REPLACE INTO app_state_keys (key_id, key_data, device_id) VALUES (?1, ?2, ?3)",
        Record::CollectionVersion => {
            "INSERT OR REPLACE INTO app_state_versions (name, state_data, device_id) VALUES (?1, ?2, ?3)"
        }
        Record::MutationMac => {
            "INSERT OR REPLACE INTO app_state_mutation_macs (name, version, index_mac, value_mac, device_id)
            VALUES (?1, ?2, ?3, ?4, ?5)"
        }
        Record::LidMapping => {
            "INSERT OR REPLACE INTO lid_pn_mapping
            (lid, phone_number, created_at, updated_at, learning_source, device_id, rowid)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
        }
        Record::DeviceList => {
            "INSERT OR REPLACE INTO device_registry (user_id, devices_json, timestamp, phash, device_id, raw_id)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
        }
        Record::GroupMetadata => {
            "INSERT OR REPLACE INTO group_metadata (group_jid, info, device_id, updated_at)
            VALUES (?1, ?2, ?3, unixepoch())"
        }
        Record::TcToken => {
            "INSERT OR REPLACE INTO tc_tokens (jid, token, token_timestamp, sender_timestamp, device_id)
            VALUES (?1, ?2, ?3, ?4, ?5)"
        }
        Record::SentMessage => {
            "INSERT OR REPLACE INTO sent_messages (chat_jid, message_id, payload, created_at, device_id)
            VALUES (?1, ?2, ?3, ?4, ?5)"
        }
        Record::PendingInbound => {
            "INSERT OR REPLACE INTO pending_inbound_messages (chat, sender, id, message, inserted_at, device_id)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
        }
        _ => return None,
    })
}

/// The content of a row, by position. A missing part, or one of another form, is damage.
struct Fields<'r>(&'r OpenRow);

impl<'r> Fields<'r> {
    fn damaged(&self) -> Error {
        Error::Tampered { record: self.0.record }
    }

    /// A part of the key.
    fn key(&self, part: usize) -> Result<&'r [u8]> {
        self.0.key.get(part).map(|part| &part[..]).ok_or_else(|| self.damaged())
    }

    /// A part of the key that is text.
    fn text(&self, part: usize) -> Result<&'r str> {
        std::str::from_utf8(self.key(part)?).map_err(|_| self.damaged())
    }

    /// The key that is a number. Upstream stores unsigned ids in signed columns of the same width.
    fn id(&self) -> Result<i32> {
        self.key(0)?.try_into().map(i32::from_le_bytes).map_err(|_| self.damaged())
    }

    fn number(&self, at: usize) -> Result<i64> {
        self.optional_number(at).ok_or_else(|| self.damaged())
    }

    fn optional_number(&self, at: usize) -> Option<i64> {
        self.0.numbers.get(at).copied().flatten()
    }

    /// The payload that is text.
    fn utf8(&self) -> Result<&'r str> {
        std::str::from_utf8(&self.0.payload).map_err(|_| self.damaged())
    }

    /// The payload that is a typed record.
    fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.0.payload).map_err(|_| self.damaged())
    }
}
