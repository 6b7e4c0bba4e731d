//! Deletes the Signal state of a contact.

use std::collections::HashSet;
use std::fmt;

use super::rotate::keeps_header;
use crate::encrypt::Vault;
use crate::encrypt::cipher::session_or_identity;
use crate::encrypt::columns::addresses_of_user;
use crate::encrypt::format::token::user_of;
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::store::{OwnRows, OwnStore, RowAsFound, Rows};
use crate::rows::table::TABLES;

/// Deletes the sessions, identities and sender keys of a contact, so that the client negotiates
/// them again.
///
/// Name the contact by its JID, with or without a device, or by the part before the `@`. All
/// devices of the contact are included. So is its other name, phone number or LID, if the account
/// knows which belong together. Records that do not verify are deleted too, if their place in the
/// store says that they belong to the contact.
///
/// Stop the client first: it caches sessions, and would write them again.
///
/// # Errors
/// Nothing was deleted after an error. [`Error::InvalidInput`] if there is no name before the `@`.
/// [`Error::StoreInUse`] if another process has the database open. [`Error::Sqlite`].
pub async fn forget(store: &impl OwnStore, vault: &Vault, jid: &str) -> Result<ForgetReport> {
    let OwnRows(store) = store.own_rows();
    keeps_header(&*store, vault).await?;
    store.refuse_others().await?;
    let users = names_of(&*store, vault, jid).await?;
    let mut sender_keys = vec![];
    each_key(&*store, vault, Record::SenderKey, |row, key| {
        // `group:sender`.
        let sender = key.first().and_then(|name| name.split_once(':'));
        if sender.is_some_and(|(_, sender)| users.contains(user_of(sender).0)) {
            sender_keys.push(row);
        }
    })
    .await?;
    let state = vault.state();
    let addresses = users.iter().map(|user| addresses_of_user(state.cipher.lookup(), user));
    let (sessions, sender_keys) = store.delete_sessions(addresses.collect::<Result<_>>()?, sender_keys).await?;
    let mut report = ForgetReport { sender_keys, ..ForgetReport::default() };
    for value in sessions {
        match value.as_deref().map_or(Record::Session, session_or_identity) {
            Record::Identity => report.identities += 1,
            _ => report.sessions += 1,
        }
    }
    Ok(report)
}

/// The names of a contact: the part of the JID before the `@`, and the contact's other name, phone
/// number or LID.
async fn names_of(store: &dyn Rows, vault: &Vault, jid: &str) -> Result<HashSet<String>> {
    // Also accept a phone number as people write it.
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
    each_key(store, vault, Record::LidMapping, |_, key| {
        if let [lid, phone_number] = key {
            let (lid, phone_number) = (user_of(lid).0, user_of(phone_number).0);
            if lid == user || phone_number == user {
                other_names.extend([lid.to_owned(), phone_number.to_owned()]);
            }
        }
    })
    .await?;
    users.extend(other_names);
    Ok(users)
}

/// Passes the keys of all verified records of a kind to `look`, in the form that the client uses.
async fn each_key(
    store: &dyn Rows,
    vault: &Vault,
    record: Record,
    mut look: impl FnMut(RowAsFound, &[&str]),
) -> Result<()> {
    let held = vault.state();
    let mut snapshot = store.snapshot().await?;
    for table in TABLES.iter().filter(|table| table.record == record) {
        snapshot.begin(table);
        while let Some(page) = snapshot.next().await? {
            for (id, found) in page {
                let row = RowAsFound::new(table, id, &found);
                let Ok(Some(found)) = found else { continue };
                let opened = match vault.open_row(&held, found).await {
                    Ok(opened) => opened,
                    Err(error) if error.is_of_the_store() => return Err(error),
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

/// The number of records that [`forget`] deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForgetReport {
    /// Sessions with devices of the contact.
    pub sessions: u64,
    /// Identity keys of the contact's devices.
    pub identities: u64,
    /// Sender keys of the contact in groups.
    pub sender_keys: u64,
}

impl ForgetReport {
    /// `true` if nothing was stored about the contact.
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
