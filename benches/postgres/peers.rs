//! What is measured beside each other: the store, other stores, and the driver by itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio_postgres::{Client, NoTls, Statement};
use wacore::store::traits::{Backend, MsgSecretEntry, TcTokenEntry};

/// The calls that are measured.
#[async_trait]
pub(crate) trait Peer: Send + Sync {
    async fn get(&self, address: &str) -> bool;
    async fn put(&self, address: &str, session: &Bytes);
    async fn batch(&self, sessions: &[(Arc<str>, Bytes)]);

    /// The calls before a message goes out.
    async fn send(&self, _chat: &str, _id: &str, _message: &[u8]) {
        unreachable!("only stores send")
    }

    async fn put_secrets(&self, _secrets: Vec<MsgSecretEntry>) {
        unreachable!("only stores send")
    }

    async fn put_token(&self, _chat: &str, _token: &[u8]) {
        unreachable!("only stores send")
    }
}

/// A store behind upstream's traits.
pub(crate) struct Stored(pub(crate) Arc<dyn Backend>);

#[async_trait]
impl Peer for Stored {
    async fn get(&self, address: &str) -> bool {
        self.0.get_session(address).await.unwrap().is_some()
    }

    async fn put(&self, address: &str, session: &Bytes) {
        self.0.put_session(address, session).await.unwrap();
    }

    async fn batch(&self, sessions: &[(Arc<str>, Bytes)]) {
        self.0.put_sessions_batch(sessions).await.unwrap();
    }

    async fn send(&self, chat: &str, id: &str, message: &[u8]) {
        assert!(self.0.get_tc_token(chat).await.unwrap().is_some());
        self.0.store_sent_message(chat, id, message).await.unwrap();
    }

    async fn put_secrets(&self, secrets: Vec<MsgSecretEntry>) {
        self.0.put_msg_secrets(secrets).await.unwrap();
    }

    async fn put_token(&self, chat: &str, token: &[u8]) {
        let token = TcTokenEntry { token: token.to_vec(), token_timestamp: 1, sender_timestamp: None };
        self.0.put_tc_token(chat, &token).await.unwrap();
    }
}

/// A connection whose task is driven in the background.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The driver without a store: the statements of the store on its tables, without the fence, over one connection.
pub(crate) struct Driver {
    client: Client,
    account: i32,
    get: Statement,
    put: Statement,
}

impl Driver {
    /// `durable` is the durability of its commits.
    pub(crate) async fn new(url: &str, account: i32, durable: bool) -> Self {
        let client = connect(url).await;
        if !durable {
            client.batch_execute("SET synchronous_commit = off").await.unwrap();
        }
        let get = "SELECT record FROM wastore.sessions WHERE account = $1 AND address = $2";
        let put = "INSERT INTO wastore.sessions (account, address, record)
            SELECT $1, r.* FROM unnest($2::bytea[], $3::bytea[]) AS r
            ON CONFLICT (account, address) DO UPDATE SET record = excluded.record";
        let (get, put) = (client.prepare(get).await.unwrap(), client.prepare(put).await.unwrap());
        Self { client, account, get, put }
    }

    async fn write(&self, addresses: &[&[u8]], sessions: &[&[u8]]) {
        let written = self.client.execute(&self.put, &[&self.account, &addresses, &sessions]).await.unwrap();
        assert_eq!(written, addresses.len() as u64);
    }
}

#[async_trait]
impl Peer for Driver {
    async fn get(&self, address: &str) -> bool {
        let rows = self.client.query(&self.get, &[&self.account, &address.as_bytes()]).await.unwrap();
        rows.first().is_some_and(|row| !Bytes::from(row.get::<_, Vec<u8>>(0)).is_empty())
    }

    async fn put(&self, address: &str, session: &Bytes) {
        self.write(&[address.as_bytes()], &[session]).await;
    }

    async fn batch(&self, sessions: &[(Arc<str>, Bytes)]) {
        let addresses: Vec<&[u8]> = sessions.iter().map(|(address, _)| address.as_bytes()).collect();
        let sessions: Vec<&[u8]> = sessions.iter().map(|(_, session)| &session[..]).collect();
        self.write(&addresses, &sessions).await;
    }
}

/// A `SELECT` of nothing: the least that a call over this connection can take.
pub(crate) struct Empty {
    client: Client,
    statement: Statement,
}

impl Empty {
    pub(crate) async fn new(url: &str) -> Self {
        let client = connect(url).await;
        let statement = client.prepare("SELECT").await.unwrap();
        Self { client, statement }
    }
}

#[async_trait]
impl Peer for Empty {
    async fn get(&self, _: &str) -> bool {
        self.client.query(&self.statement, &[]).await.unwrap().len() == 1
    }

    async fn put(&self, _: &str, _: &Bytes) {
        unreachable!("nothing is put")
    }

    async fn batch(&self, _: &[(Arc<str>, Bytes)]) {
        unreachable!("nothing is put")
    }
}

/// The disk by itself: 8 KiB over existing ones, then `fdatasync`, as a commit of PostgreSQL does.
pub(crate) struct Disk {
    file: File,
    next: AtomicU64,
}

impl Disk {
    const PAGES: u64 = 2048;

    pub(crate) fn new(folder: &Path) -> Self {
        let file = File::create(folder.join("synced")).unwrap();
        for page in 0..Self::PAGES {
            file.write_all_at(&[1; 8192], page * 8192).unwrap();
        }
        file.sync_all().unwrap();
        Self { file, next: AtomicU64::new(0) }
    }
}

#[async_trait]
impl Peer for Disk {
    async fn get(&self, _: &str) -> bool {
        unreachable!("nothing is read")
    }

    async fn put(&self, _: &str, session: &Bytes) {
        let page = self.next.fetch_add(1, Ordering::Relaxed) % Self::PAGES;
        self.file.write_all_at(&[session[0]; 8192], page * 8192).unwrap();
        self.file.sync_data().unwrap();
    }

    async fn batch(&self, _: &[(Arc<str>, Bytes)]) {
        unreachable!("only single writes")
    }
}
