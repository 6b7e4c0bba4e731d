//! Tells upstream's databases, and their age, from others, and reads them safely although an
//! attacker may have written them.

use std::path::Path;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ErrorCode};

use crate::error::{Error, Result};
use crate::method::Record;
use crate::sqlite::connection::guard;

/// The kinds in the order in which they are copied, with upstream's tables. The device comes last:
/// a store without it does not belong to a bot yet.
pub(crate) const TABLES: [(Record, &str); 18] = [
    (Record::Identity, "identities"),
    (Record::Session, "sessions"),
    (Record::Prekey, "prekeys"),
    (Record::SignedPrekey, "signed_prekeys"),
    (Record::SenderKey, "sender_keys"),
    (Record::SyncKey, "app_state_keys"),
    (Record::CollectionVersion, "app_state_versions"),
    (Record::MutationMac, "app_state_mutation_macs"),
    (Record::SenderKeyDevice, "sender_key_devices"),
    (Record::LidMapping, "lid_pn_mapping"),
    (Record::BaseKey, "base_keys"),
    (Record::DeviceList, "device_registry"),
    (Record::GroupMetadata, "group_metadata"),
    (Record::TcToken, "tc_tokens"),
    (Record::SentMessage, "sent_messages"),
    (Record::PendingInbound, "pending_inbound_messages"),
    (Record::MessageSecret, "msg_secrets"),
    (Record::Device, "device"),
];

/// The migrations of `whatsapp-rust-sqlite-storage` 0.7.0, as Diesel numbers them: the digits of
/// their folder names.
pub(super) const MIGRATIONS: [(&str, &str); 23] = [
    ("20250814035031", "initial"),
    ("202509230322320000", "add_multi_account_support"),
    ("20251204000000", "add_skdm_recipients"),
    ("20251211000000", "add_lid_pn_mapping"),
    ("20251224000000", "add_whatsapp_web_alignment"),
    ("20260205000000", "add_props_hash"),
    ("20260212000000", "add_tc_tokens"),
    ("20260312000000", "add_next_pre_key_id"),
    ("20260315000000", "add_sent_messages"),
    ("20260323000000", "add_nct_salt"),
    ("20260326000000", "unified_sender_key_devices"),
    ("20260331000000", "add_device_registry_raw_id"),
    ("20260406171140", "add_server_has_prekeys"),
    ("20260426000000", "add_server_cert_chain"),
    ("20260513000000", "add_login_counter"),
    ("20260528000000", "add_msg_secrets"),
    ("20260531000000", "msg_secret_expires_at"),
    ("20260601000000", "add_group_metadata"),
    ("20260610000000", "add_first_unupload_pk_id"),
    ("20260626000000", "add_pending_inbound_messages"),
    ("20260702000000", "add_lid_migrated"),
    ("20260703000000", "add_signed_prekey_rotation"),
    ("20260703000001", "add_read_receipts_privacy"),
];

/// Prepares a connection to one of upstream's databases for reading. It runs no SQL from the file,
/// and reads only the imported tables.
pub(super) fn restrict(connection: &Connection) -> rusqlite::Result<()> {
    guard(connection)?;
    // No content may reach a temporary file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "query_only", 1)?;
    connection.authorizer(Some(|context: AuthContext<'_>| {
        let allowed = match context.action {
            AuthAction::Select | AuthAction::Transaction { .. } => true,
            AuthAction::Pragma { pragma_name, pragma_value } => match pragma_name {
                "application_id" => pragma_value.is_none(),
                _ => ["table_xinfo", "quick_check", "integrity_check"].contains(&pragma_name),
            },
            AuthAction::Function { function_name } => function_name == "count",
            // Only for the statement itself, not for a view.
            AuthAction::Read { table_name, .. } => context.accessor.is_none() && is_read(table_name),
            _ => false,
        };
        if allowed { Authorization::Allow } else { Authorization::Deny }
    }))
}

/// Checks for damage that would hide rows: in the pages, and, if the source is to be removed,
/// between tables and indexes.
///
/// # Errors
/// [`Error::SourceDamaged`].
pub(super) fn check_integrity(connection: &Connection, is_to_be_removed: bool) -> Result<()> {
    let pragma = if is_to_be_removed { "integrity_check" } else { "quick_check" };
    // Only the tables that are read: others may be virtual.
    for (_, table) in TABLES {
        let found: String = connection.query_row(&format!("PRAGMA {pragma}({table})"), (), |row| row.get(0))?;
        if found != "ok" {
            return Err(Error::SourceDamaged);
        }
    }
    Ok(())
}

const MIGRATIONS_TABLE: &str = "__diesel_schema_migrations";

pub(super) fn is_read(table: &str) -> bool {
    ["sqlite_master", "sqlite_schema", MIGRATIONS_TABLE].contains(&table)
        || TABLES.iter().any(|(_, name)| *name == table)
}

/// # Errors
/// [`Error::NotUpstream`] if it is not a database of upstream's store, or its tables were replaced.
/// [`Error::UpstreamTooOld`] if migrations are missing, [`Error::UpstreamTooNew`] if it has
/// migrations that this version does not know.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<()> {
    let foreign = |found| Error::NotUpstream { path: path.to_owned(), found };
    let tables = connection
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name IN ('__diesel_schema_migrations', 'device', 'sessions')",
            (),
            |row| row.get::<_, i64>(0),
        )
        .map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => foreign("no SQLite database, or encrypted as a whole"),
            _ => error.into(),
        })?;
    if tables < 3 {
        let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        return Err(foreign(match application {
            crate::sqlite::schema::APPLICATION_ID => "a store of wastore already",
            _ => "the database of another program",
        }));
    }
    // A view or a virtual table may have a table's name, and columns may be computed. A query would
    // then run SQL from the file.
    for table in TABLES.iter().map(|(_, table)| *table).chain([MIGRATIONS_TABLE]) {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND NOT (type = 'table' AND rootpage > 0)";
        let is_table = connection.query_row(sql, (table,), |row| row.get::<_, i64>(0))? == 0;
        let mut is_computed = false;
        if is_table {
            connection.pragma(None, "table_xinfo", table, |column| {
                is_computed |= column.get::<_, i64>("hidden")? != 0;
                Ok(())
            })?;
        }
        if !is_table || is_computed {
            return Err(foreign("a database of whatsapp-rust whose tables were altered"));
        }
    }
    let mut statement = connection.prepare("SELECT version FROM __diesel_schema_migrations ORDER BY version")?;
    let found: Vec<String> = statement.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    if let Some((_, name)) = MIGRATIONS.iter().find(|(version, _)| !found.iter().any(|found| found == version)) {
        return Err(Error::UpstreamTooOld { path: path.to_owned(), migration: name });
    }
    match found.into_iter().find(|found| MIGRATIONS.iter().all(|(version, _)| found != version)) {
        Some(migration) => Err(Error::UpstreamTooNew { path: path.to_owned(), migration }),
        None => Ok(()),
    }
}
