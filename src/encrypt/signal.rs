//! Identities, sessions, prekeys and sender keys.
//!
//! | record | inner key | inner value | in the clear |
//! |--|--|--|--|
//! | session | token(user)@token(address) | sealed | – |
//! | identity | in the session table, under tokens of its own | sealed | – |
//! | prekey, signed prekey | id | sealed | id, `uploaded` |
//! | sender key | token | sealed | – |

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use wacore::store::error::Result;
use wacore::store::traits::SignalStore;

use super::cipher::RecordCipher;
use super::columns::prekey;
use super::format::envelope::{Nonce, RowBinding, nonce, nonces};
use super::format::kind::Kind;
use super::format::token::{Domain, Token, user_of};
use super::layer::EncryptStore;
use super::vault::options::OnDamage;
use crate::error::{self, Error};
use crate::method::{Record, forward};

#[cfg_attr(target_arch = "wasm32", async_trait(?Send))]
#[cfg_attr(not(target_arch = "wasm32"), async_trait)]
#[deny(clippy::missing_trait_methods)]
impl SignalStore for EncryptStore {
    // An identity has 32 bytes and no room for a tag. So it is stored among the sessions, whose values may have any
    // length. The prefix query below looks there as well.

    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        let state = self.state();
        let (token, sealed) = state.cipher.seal_addressed(Kind::Identity, address, &nonce()?, &key)?;
        self.inner.put_session(&token, &sealed).await
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal_addressed_batch(Kind::Identity, identities)?;
        self.inner.put_sessions_batch(&sealed).await
    }

    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        let state = self.state();
        let token = state.cipher.lookup().address(Record::Identity, address)?;
        let Some(value) = self.inner.get_session(&token).await? else { return Ok(None) };
        let binding = RowBinding::new(Kind::Identity, [token.as_bytes()], [address.as_bytes()]);
        let opened = self.open_bytes(&state, binding, value).await;
        let key = opened.and_then(|key| key[..].try_into().map_err(|_| Error::Tampered { record: Record::Identity }));
        Ok(self.or_renegotiated(key)?)
    }

    async fn delete_identity(&self, address: &str) -> Result<()> {
        let token = self.address_token(Record::Identity, address)?;
        self.inner.delete_session(&token).await
    }

    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        let state = self.state();
        let token = state.cipher.lookup().address(Record::Session, address)?;
        let Some(value) = self.inner.get_session(&token).await? else { return Ok(None) };
        let binding = RowBinding::new(Kind::Session, [token.as_bytes()], [address.as_bytes()]);
        Ok(self.or_renegotiated(self.open_bytes(&state, binding, value).await)?)
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        let state = self.state();
        let (token, sealed) = state.cipher.seal_addressed(Kind::Session, address, &nonce()?, session)?;
        self.inner.put_session(&token, &sealed).await
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal_addressed_batch(Kind::Session, sessions)?;
        self.inner.put_sessions_batch(&sealed).await
    }

    async fn delete_session(&self, address: &str) -> Result<()> {
        let token = self.address_token(Record::Session, address)?;
        self.inner.delete_session(&token).await
    }

    async fn has_session(&self, address: &str) -> Result<bool> {
        if self.vault.on_damage == OnDamage::Renegotiate {
            // An altered session counts as absent.
            return Ok(self.get_session(address).await?.is_some());
        }
        let token = self.address_token(Record::Session, address)?;
        self.inner.has_session(&token).await
    }

    // A query for more than a user, such as `15550001111:2`, is answered for its user. A wrong `true` costs the client
    // a scan (upstream's default body always says `true`). A wrong `false` would lose a session migration.
    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        let (user, _) = user_of(user);
        let token = self.state().cipher.lookup().token(Record::SignalState, Domain::User, &[user])?;
        self.inner.has_signal_state_for_user(&token).await
    }

    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal(&nonce()?, prekey(Kind::Prekey, &id.to_le_bytes()), record)?;
        self.inner.store_prekey(id, &sealed, uploaded).await
    }

    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        let state = self.state();
        let sealed = keys
            .iter()
            .zip(nonces(keys.len())?)
            .map(|((id, record), nonce)| {
                Ok((*id, Bytes::from(state.cipher.seal(&nonce, prekey(Kind::Prekey, &id.to_le_bytes()), record)?)))
            })
            .collect::<Result<Vec<_>>>()?;
        self.inner.store_prekeys_batch(&sealed, uploaded).await
    }

    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        let state = self.state();
        let Some(value) = self.inner.load_prekey(id).await? else { return Ok(None) };
        let opened = self.open_bytes(&state, prekey(Kind::Prekey, &id.to_le_bytes()), value).await;
        Ok(self.or_renegotiated(opened)?)
    }

    async fn load_prekeys_batch(&self, ids: &[u32]) -> Result<Vec<(u32, Bytes)>> {
        let state = self.state();
        let sealed = self.inner.load_prekeys_batch(ids).await?;
        let mut prekeys = Vec::with_capacity(sealed.len());
        for (id, value) in sealed {
            let opened = self.open_bytes(&state, prekey(Kind::Prekey, &id.to_le_bytes()), value).await;
            prekeys.extend(self.or_renegotiated(opened)?.map(|record| (id, record)));
        }
        Ok(prekeys)
    }

    // Prekey ids and the `uploaded` hint are in the clear: the server knows the ids, and the store computes with both.
    forward!(mark_prekeys_uploaded, remove_prekey, get_max_prekey_id, remove_signed_prekey);

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal(&nonce()?, prekey(Kind::SignedPrekey, &id.to_le_bytes()), record)?;
        self.inner.store_signed_prekey(id, &sealed).await
    }

    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let state = self.state();
        let Some(value) = self.inner.load_signed_prekey(id).await? else { return Ok(None) };
        Ok(Some(self.open(&state, prekey(Kind::SignedPrekey, &id.to_le_bytes()), value).await?))
    }

    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let state = self.state();
        let mut prekeys = self.inner.load_all_signed_prekeys().await?;
        for (id, value) in &mut prekeys {
            *value = self.open(&state, prekey(Kind::SignedPrekey, &id.to_le_bytes()), std::mem::take(value)).await?;
        }
        Ok(prekeys)
    }

    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        let state = self.state();
        let (token, sealed) = state.cipher.seal_addressed(Kind::SenderKey, address, &nonce()?, record)?;
        self.inner.put_sender_key(&token, &sealed).await
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        let state = self.state();
        let sealed = state.cipher.seal_addressed_batch(Kind::SenderKey, sender_keys)?;
        self.inner.put_sender_keys_batch(&sealed).await
    }

    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        let state = self.state();
        let token = state.cipher.lookup().address(Record::SenderKey, address)?;
        let Some(value) = self.inner.get_sender_key(&token).await? else { return Ok(None) };
        let binding = RowBinding::new(Kind::SenderKey, [token.as_bytes()], [address.as_bytes()]);
        Ok(self.or_renegotiated(self.open(&state, binding, value).await)?)
    }

    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        let token = self.address_token(Record::SenderKey, address)?;
        self.inner.delete_sender_key(&token).await
    }
}

impl EncryptStore {
    fn address_token(&self, record: Record, address: &str) -> error::Result<Token> {
        self.state().cipher.lookup().address(record, address)
    }
}

impl RecordCipher {
    /// The stored address and the sealed value of an identity, a session or a sender key.
    fn seal_addressed(
        &self,
        kind: Kind,
        address: &str,
        nonce: &Nonce,
        value: &[u8],
    ) -> error::Result<(Token, Vec<u8>)> {
        let token = self.lookup().address(kind.record(), address)?;
        let binding = RowBinding::new(kind, [token.as_bytes()], [address.as_bytes()]);
        Ok((token, self.seal(nonce, binding, value)?))
    }

    fn seal_addressed_batch<V: AsRef<[u8]>>(
        &self,
        kind: Kind,
        rows: &[(Arc<str>, V)],
    ) -> error::Result<Vec<(Arc<str>, Bytes)>> {
        rows.iter()
            .zip(nonces(rows.len())?)
            .map(|((address, value), nonce)| {
                let (token, sealed) = self.seal_addressed(kind, address, &nonce, value.as_ref())?;
                Ok((Arc::from(&*token), Bytes::from(sealed)))
            })
            .collect()
    }
}
