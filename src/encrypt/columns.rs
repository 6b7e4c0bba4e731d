//! The key columns of each kind of record: the names that the inner store gets, and the key that a sealed value is
//! bound to.
//!
//! The table of kinds in `docs/format.md` says the same in words.

use super::format::envelope::RowBinding;
use super::format::keys::LookupKeys;
use super::format::kind::Kind;
use super::format::token::{Domain, Token, UNUSED};
use crate::error::{Error, Result};
use crate::method::Record;
use crate::rows::store::UserAddresses;

impl LookupKeys {
    pub(super) fn collection(&self, record: Record, name: &str) -> Result<Token> {
        self.token(record, Domain::Collection, &[name])
    }

    pub(super) fn mutation_index(&self, name: &str, index_mac: &[u8]) -> Result<[u8; 32]> {
        self.token_bytes(Record::MutationMac, Domain::MutationIndex, &[name.as_bytes(), index_mac])
    }

    pub(super) fn device_jids<'j>(&self, jids: impl Iterator<Item = &'j str>) -> Result<Vec<String>> {
        jids.map(|jid| self.encrypt_name(Record::SenderKeyDevice, Domain::DeviceJid, jid)).collect()
    }

    pub(super) fn lid(&self, lid: &str) -> Result<Token> {
        self.token(Record::LidMapping, Domain::Lid, &[lid])
    }

    pub(super) fn phone_number(&self, phone_number: &str) -> Result<Token> {
        self.token(Record::LidMapping, Domain::PhoneNumber, &[phone_number])
    }

    pub(super) fn base_key_row(&self, address: &str, message_id: &str) -> Result<Token> {
        self.token(Record::BaseKey, Domain::BaseKeyRow, &[address, message_id])
    }

    pub(super) fn base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<(Token, [u8; 32])> {
        let parts = [address.as_bytes(), message_id.as_bytes(), base_key];
        Ok((self.base_key_row(address, message_id)?, self.token_bytes(Record::BaseKey, Domain::BaseKeyValue, &parts)?))
    }

    pub(super) fn device_list(&self, user: &str) -> Result<Token> {
        self.token(Record::DeviceList, Domain::DeviceListUser, &[user])
    }

    pub(super) fn group_metadata(&self, group_jid: &str) -> Result<Token> {
        self.token(Record::GroupMetadata, Domain::GroupMetadata, &[group_jid])
    }

    pub(super) fn tc_token_jid(&self, jid: &str) -> Result<String> {
        self.encrypt_name(Record::TcToken, Domain::TcTokenJid, jid)
    }

    pub(super) fn sent_message(&self, chat: &str, id: &str) -> Result<Token> {
        self.token(Record::SentMessage, Domain::SentMessage, &[chat, id])
    }

    pub(super) fn pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<Token> {
        self.token(Record::PendingInbound, Domain::PendingInbound, &[chat, sender, id])
    }

    pub(super) fn cache_namespace(&self, namespace: &str) -> Result<Token> {
        self.token(Record::CacheEntry, Domain::CacheNamespace, &[namespace])
    }

    pub(super) fn cache_key(&self, namespace: &str, key: &str) -> Result<Token> {
        self.token(Record::CacheEntry, Domain::CacheKey, &[namespace, key])
    }

    pub(super) fn message_secret(&self, chat: &str, sender: &str, msg_id: &str) -> Result<Token> {
        self.token(Record::MessageSecret, Domain::MessageSecret, &[chat, sender, msg_id])
    }
}

/// The stored addresses of a user's sessions and identities.
pub(crate) fn addresses_of_user(lookup: &LookupKeys, user: &str) -> Result<UserAddresses> {
    let bare = [lookup.address(Record::Session, user)?, lookup.address(Record::Identity, user)?];
    Ok(UserAddresses {
        prefix: lookup.token(Record::SignalState, Domain::User, &[user])?.to_string(),
        bare: bare.iter().map(|token| (**token).to_owned()).collect(),
    })
}

pub(super) fn prekey(kind: Kind, id: &[u8; 4]) -> RowBinding<'_> {
    RowBinding::new(kind, [id], [])
}

pub(super) fn mutation_mac<'a>(token: &'a Token, index: &'a [u8; 32], index_mac: &'a [u8]) -> RowBinding<'a> {
    RowBinding::new(Kind::MutationMac, [token.as_bytes(), index], [index_mac])
}

pub(super) fn sent_message<'a>(token: &'a Token, chat: &'a str, id: &'a str) -> RowBinding<'a> {
    let columns = [UNUSED.as_bytes(), token.as_bytes()];
    RowBinding::new(Kind::SentMessage, columns, [chat.as_bytes(), id.as_bytes()])
}

pub(super) fn pending_inbound<'a>(token: &'a Token, chat: &'a str, sender: &'a str, id: &'a str) -> RowBinding<'a> {
    let columns = [UNUSED.as_bytes(), UNUSED.as_bytes(), token.as_bytes()];
    RowBinding::new(Kind::PendingInbound, columns, [chat, sender, id].map(str::as_bytes))
}

/// The binding of a row, without the key that its value carries.
pub(super) fn binding(record: Record, columns: &[Vec<u8>]) -> Result<RowBinding<'_>> {
    let kind = Kind::of(record)?;
    match columns {
        [] => Ok(RowBinding::new(kind, [], [])),
        [one] => Ok(RowBinding::new(kind, [one], [])),
        [one, two] => Ok(RowBinding::new(kind, [one, two], [])),
        [one, two, three] => Ok(RowBinding::new(kind, [one, two, three], [])),
        _ => Err(Error::Tampered { record }),
    }
}

/// The key columns of a record with this key. `None` if the columns are the key itself, or if its value carries only a
/// part of the key.
pub(super) fn columns_of(lookup: &LookupKeys, record: Record, original: &[Vec<u8>]) -> Result<Option<Vec<Vec<u8>>>> {
    let tampered = || Error::Tampered { record };
    if matches!(record, Record::MutationMac) || original.is_empty() {
        return Ok(None);
    }
    let texts = original.iter().map(|part| std::str::from_utf8(part).map_err(|_| tampered()));
    let texts: Vec<&str> = texts.collect::<Result<_>>()?;
    let columns = match (record, &texts[..]) {
        (Record::Session | Record::Identity | Record::SenderKey, [address]) => {
            Some(vec![lookup.address(record, address)?])
        }
        (Record::CollectionVersion, [name]) => Some(vec![lookup.collection(record, name)?]),
        _ => columns_of_protocol_record(lookup, record, &texts)?,
    };
    let columns = columns.ok_or_else(tampered)?;
    Ok(Some(columns.into_iter().map(|column| column.as_bytes().to_vec()).collect()))
}

/// The key columns of a record with this key. `None` if the key does not have the parts of such a record.
fn columns_of_protocol_record(lookup: &LookupKeys, record: Record, key: &[&str]) -> Result<Option<Vec<Token>>> {
    let unused = Token::unused();
    Ok(Some(match (record, key) {
        (Record::LidMapping, [lid, phone_number]) => vec![lookup.lid(lid)?, lookup.phone_number(phone_number)?],
        (Record::DeviceList, [user]) => vec![lookup.device_list(user)?],
        (Record::GroupMetadata, [group]) => vec![lookup.group_metadata(group)?],
        (Record::SentMessage, [chat, id]) => vec![unused, lookup.sent_message(chat, id)?],
        (Record::PendingInbound, [chat, sender, id]) => {
            vec![unused, unused, lookup.pending_inbound(chat, sender, id)?]
        }
        _ => return Ok(None),
    }))
}
