//! A store as published ones are: a pool of ten connections, one of which each call takes; text keys; batches row by row
//! in a transaction; no check of who may write.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Client, Statement};
use wacore::store::traits::MsgSecretEntry;

use crate::peers::{Peer, connect};

const CONNECTIONS: usize = 10;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS naive_sessions (device_id integer NOT NULL, address text NOT NULL, record bytea NOT NULL,
        PRIMARY KEY (address, device_id));
    CREATE TABLE IF NOT EXISTS naive_tc_tokens (device_id integer NOT NULL, jid text NOT NULL, token bytea NOT NULL,
        token_timestamp bigint NOT NULL, sender_timestamp bigint, PRIMARY KEY (jid, device_id));
    CREATE TABLE IF NOT EXISTS naive_sent_messages (device_id integer NOT NULL, chat_jid text NOT NULL,
        message_id text NOT NULL, payload bytea NOT NULL, created_at bigint NOT NULL,
        PRIMARY KEY (chat_jid, message_id, device_id));
    CREATE TABLE IF NOT EXISTS naive_secrets (device_id integer NOT NULL, chat text NOT NULL, sender text NOT NULL,
        msg_id text NOT NULL, secret bytea NOT NULL, expires_at bigint NOT NULL, message_ts bigint NOT NULL,
        PRIMARY KEY (chat, sender, msg_id, device_id));";

pub(crate) struct Naive {
    free: Mutex<Vec<Connection>>,
    permits: Semaphore,
    device: i32,
}

/// A connection with its prepared statements.
struct Connection {
    client: Client,
    get: Statement,
    put: Statement,
    get_token: Statement,
    put_token: Statement,
    store_sent: Statement,
    put_secret: Statement,
}

/// A connection that a call has taken. It goes back when the call is done.
struct Taken<'a> {
    pool: &'a Naive,
    connection: Option<Connection>,
    _permit: SemaphorePermit<'a>,
}

impl std::ops::Deref for Taken<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().unwrap()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap().extend(self.connection.take());
    }
}

impl Connection {
    async fn new(url: &str) -> Self {
        let client = connect(url).await;
        let prepare = async |sql: &str| client.prepare(sql).await.unwrap();
        let get = prepare("SELECT record FROM naive_sessions WHERE address = $1 AND device_id = $2").await;
        let put = prepare(
            "INSERT INTO naive_sessions (address, device_id, record) VALUES ($1, $2, $3)
            ON CONFLICT (address, device_id) DO UPDATE SET record = excluded.record",
        )
        .await;
        let get_token = prepare(
            "SELECT token, token_timestamp, sender_timestamp FROM naive_tc_tokens WHERE jid = $1 AND device_id = $2",
        )
        .await;
        let put_token = prepare(
            "INSERT INTO naive_tc_tokens (jid, device_id, token, token_timestamp) VALUES ($1, $2, $3, 1)
            ON CONFLICT (jid, device_id) DO UPDATE SET token = excluded.token",
        )
        .await;
        let store_sent = prepare(
            "INSERT INTO naive_sent_messages (chat_jid, message_id, device_id, payload, created_at)
            VALUES ($1, $2, $3, $4, 1) ON CONFLICT (chat_jid, message_id, device_id) DO UPDATE
            SET payload = excluded.payload",
        )
        .await;
        let put_secret = prepare(
            "INSERT INTO naive_secrets (chat, sender, msg_id, device_id, secret, expires_at, message_ts)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (chat, sender, msg_id, device_id) DO UPDATE
            SET secret = excluded.secret",
        )
        .await;
        Self { client, get, put, get_token, put_token, store_sent, put_secret }
    }
}

impl Naive {
    pub(crate) async fn new(url: &str, device: i32) -> Self {
        connect(url).await.batch_execute(TABLES).await.unwrap();
        let mut free = vec![];
        for _ in 0..CONNECTIONS {
            free.push(Connection::new(url).await);
        }
        Self { free: free.into(), permits: Semaphore::new(CONNECTIONS), device }
    }

    async fn take(&self) -> Taken<'_> {
        let permit = self.permits.acquire().await.unwrap();
        let connection = self.free.lock().unwrap().pop();
        Taken { pool: self, connection, _permit: permit }
    }
}

#[async_trait]
impl Peer for Naive {
    async fn get(&self, address: &str) -> bool {
        let connection = self.take().await;
        let row = connection.client.query_opt(&connection.get, &[&address, &self.device]).await.unwrap();
        row.is_some_and(|row| !Bytes::from(row.get::<_, Vec<u8>>(0)).is_empty())
    }

    async fn put(&self, address: &str, session: &Bytes) {
        let connection = self.take().await;
        connection.client.execute(&connection.put, &[&address, &self.device, &&session[..]]).await.unwrap();
    }

    async fn batch(&self, sessions: &[(Arc<str>, Bytes)]) {
        let connection = self.take().await;
        connection.client.batch_execute("BEGIN").await.unwrap();
        for (address, session) in sessions {
            connection.client.execute(&connection.put, &[&&**address, &self.device, &&session[..]]).await.unwrap();
        }
        connection.client.batch_execute("COMMIT").await.unwrap();
    }

    async fn send(&self, chat: &str, id: &str, message: &[u8]) {
        let connection = self.take().await;
        let token = connection.client.query_opt(&connection.get_token, &[&chat, &self.device]).await.unwrap();
        assert!(token.is_some());
        drop(connection);
        let connection = self.take().await;
        connection.client.execute(&connection.store_sent, &[&chat, &id, &self.device, &message]).await.unwrap();
    }

    async fn put_secrets(&self, secrets: Vec<MsgSecretEntry>) {
        let connection = self.take().await;
        connection.client.batch_execute("BEGIN").await.unwrap();
        for MsgSecretEntry { chat, sender, msg_id, secret, expires_at, message_ts } in secrets {
            let secret = &secret[..];
            let row: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
                [&&*chat, &&*sender, &&*msg_id, &self.device, &secret, &expires_at, &message_ts];
            connection.client.execute(&connection.put_secret, &row).await.unwrap();
        }
        connection.client.batch_execute("COMMIT").await.unwrap();
    }

    async fn put_token(&self, chat: &str, token: &[u8]) {
        let connection = self.take().await;
        connection.client.execute(&connection.put_token, &[&chat, &self.device, &token]).await.unwrap();
    }
}
