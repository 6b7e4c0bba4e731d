//! The client's caches in Redis, encrypted: an implementation of whatsapp-rust's `CacheStore` of 80 lines, and the vault
//! over it.
//!
//! ```sh
//! cargo run --example redis_cache -- redis://127.0.0.1/
//! ```
//!
//! It fills the client's cache of LID mappings, and prints what Redis holds of it.

#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, RedisResult, cmd};
use wacore::store::cache::CacheStore;
use wastore::{Key, Metrics, SqliteStore, Vault};
use whatsapp_rust::cache_config::CacheConfig;
use whatsapp_rust::lid_pn_cache::{LearningSource, LidPnCache, LidPnEntry};

/// Entries are keys `PREFIX:NAMESPACE:KEY`.
struct RedisCache {
    connection: ConnectionManager,
    prefix: &'static str,
}

/// A client that waits for its cache is slower than one without.
const PATIENCE: Duration = Duration::from_secs(1);

impl RedisCache {
    async fn connect(url: &str, prefix: &'static str) -> RedisResult<Self> {
        let patience = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = ConnectionManager::new_with_config(Client::open(url)?, patience).await?;
        Ok(Self { connection, prefix })
    }

    fn name(&self, namespace: &str, key: &str) -> String {
        format!("{}:{namespace}:{key}", self.prefix)
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> anyhow::Result<T> {
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    /// The names of all entries that begin like this.
    async fn names(&self, begin: &str) -> anyhow::Result<Vec<String>> {
        // In a pattern, a backslash takes away the meaning of the next character.
        let escaped: String = begin.chars().flat_map(|part| ['\\', part]).collect();
        let (mut names, mut cursor) = (vec![], 0u64);
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{escaped}*")).arg("COUNT").arg(1000);
            let (next, page): (u64, Vec<String>) = self.ask(&scan).await?;
            names.extend(page);
            cursor = next;
            if cursor == 0 {
                return Ok(names);
            }
        }
    }
}

#[async_trait]
impl CacheStore for RedisCache {
    async fn get(&self, namespace: &str, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        self.ask(cmd("GET").arg(self.name(namespace, key))).await
    }

    async fn set(&self, namespace: &str, key: &str, value: &[u8], ttl: Option<Duration>) -> anyhow::Result<()> {
        let mut set = cmd("SET");
        set.arg(self.name(namespace, key)).arg(value);
        if let Some(ttl) = ttl {
            set.arg("PX").arg(u64::try_from(ttl.as_millis())?.max(1));
        }
        self.ask(&set).await
    }

    async fn delete(&self, namespace: &str, key: &str) -> anyhow::Result<()> {
        self.ask(cmd("UNLINK").arg(self.name(namespace, key))).await
    }

    async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        for page in self.names(&self.name(namespace, "")).await?.chunks(1000) {
            self.ask::<()>(cmd("UNLINK").arg(page)).await?;
        }
        Ok(())
    }
    // `entry_count` is for diagnostics, and Redis cannot count them cheaply.
}

/// A contact of the example.
fn contact(number: u32) -> LidPnEntry {
    LidPnEntry::new(format!("{}", 100_000_000_000_000 + u64::from(number)), phone(number), LearningSource::Usync)
}

fn phone(number: u32) -> String {
    format!("1555{number:07}")
}

/// The client's own cache of LID mappings, over an external one. A bot gets it with
/// `CacheConfig { cache_stores: CacheStores::all(store), .. }`.
fn client_cache(store: Arc<dyn CacheStore>) -> LidPnCache {
    LidPnCache::with_config(&CacheConfig::default().lid_pn_cache, Some(store))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: redis_cache URL"))?;
    let redis = Arc::new(RedisCache::connect(&url, "wastore-example").await?);
    // In a bot: the store and the vault that also hold its sessions.
    let store = SqliteStore::in_memory().await?;
    let vault = Vault::create(&store, Key::generate()?).await?;

    let metrics = Metrics::new();
    let sealed = vault.cache_store(redis.clone());
    let cache = client_cache(metrics.cache_store("redis", sealed.clone()));
    for number in 0..3 {
        cache.add(&contact(number)).await;
        println!("{} is {:?}", phone(number), cache.get_current_lid(&phone(number)).await);
    }
    println!("a stranger is {:?}\n\nIn Redis:", cache.get_current_lid("15559999999").await);
    for name in redis.names(redis.prefix).await? {
        let value: Vec<u8> = redis.ask(cmd("GET").arg(&name)).await?;
        println!("{name}  {} bytes: {:02x?}…", value.len(), &value[..16]);
        redis.ask::<()>(cmd("UNLINK").arg(&name)).await?;
    }
    println!("\n{}\n{:?}", metrics.snapshot(), sealed.stats());
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::expect_used, clippy::print_stderr, clippy::unwrap_used, reason = "a failure is a failed test")]

    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use tempfile::TempDir;
    use wacore::store::traits::{Backend, DeviceInfo, DeviceListRecord};
    use wastore::Stack;
    use whatsapp_rust::Jid;
    use whatsapp_rust::cache_config::CacheStores;
    use whatsapp_rust::prelude::Bot;

    use super::*;

    /// A server of its own, reached by a socket in its folder. It ends with the test.
    struct Server {
        process: Child,
        folder: TempDir,
    }

    impl Server {
        fn start() -> Option<Self> {
            if std::env::var_os("WASTORE_NO_REDIS").is_some_and(|value| value == "1") {
                eprintln!("skipped: WASTORE_NO_REDIS is set");
                return None;
            }
            let folder = tempfile::tempdir().unwrap();
            let server = Command::new("redis-server")
                .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--dir", ".", "--logfile", "log"])
                .current_dir(folder.path())
                .stdout(Stdio::null())
                .spawn();
            let process = server.expect(
                "redis-server cannot be started: install it (on Debian: `apt-get install redis-server`), or skip its \
                 tests with WASTORE_NO_REDIS=1",
            );
            Some(Self { process, folder })
        }

        async fn cache(&self) -> Arc<RedisCache> {
            let url = format!("redis+unix://{}", self.folder.path().join("redis.sock").display());
            let start = Instant::now();
            loop {
                match RedisCache::connect(&url, "test").await {
                    Ok(cache) => return Arc::new(cache),
                    Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }

        /// The memory of the server: every mapping that can be written.
        #[cfg(target_os = "linux")]
        fn memory(&self) -> Vec<u8> {
            use std::os::unix::fs::FileExt;
            let process = Path::new("/proc").join(self.process.id().to_string());
            let (memory, mut content) = (std::fs::File::open(process.join("mem")).unwrap(), vec![]);
            for line in std::fs::read_to_string(process.join("maps")).unwrap().lines() {
                let mut words = line.split_whitespace();
                let (range, rights) = (words.next().unwrap(), words.next().unwrap());
                let Some((start, end)) = range.split_once('-').filter(|_| rights.starts_with("rw")) else { continue };
                let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
                let mut part = vec![0; (end - start) as usize];
                // Some mappings cannot be read.
                if memory.read_exact_at(&mut part, start).is_ok() {
                    content.extend(part);
                }
            }
            content
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }

    async fn vault() -> Vault {
        Vault::create(&SqliteStore::in_memory().await.unwrap(), Key::generate().unwrap()).await.unwrap()
    }

    const CONTACTS: u32 = 200;

    async fn fill(cache: &LidPnCache) {
        for number in 0..CONTACTS {
            cache.add(&contact(number)).await;
        }
    }

    async fn known(cache: &LidPnCache) -> usize {
        let mut known = 0;
        for number in 0..CONTACTS {
            let lid = cache.get_current_lid(&phone(number)).await;
            assert!(lid.as_ref().is_none_or(|lid| *lid == *contact(number).lid), "{lid:?}");
            known += usize::from(lid.is_some());
        }
        known
    }

    fn names_in(content: &[u8]) -> usize {
        let found = |name: &str| memchr::memmem::find(content, name.as_bytes()).is_some();
        let names = (0..CONTACTS).flat_map(|number| [phone(number), contact(number).lid.to_string()]);
        names.chain(["lid_pn_by".to_owned()]).filter(|name| found(name)).count()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn redis_holds_no_name_and_no_value() {
        let Some(server) = Server::start() else { return };
        let (redis, vault) = (server.cache().await, vault().await);
        let cache = client_cache(vault.cache_store(redis.clone()));
        fill(&cache).await;
        assert_eq!(known(&cache).await, CONTACTS as usize);
        redis.ask::<()>(&cmd("SAVE")).await.unwrap();
        let dump = std::fs::read(server.folder.path().join("dump.rdb")).unwrap();
        assert!(dump.len() > 2 * CONTACTS as usize * 100, "{}", dump.len());
        assert_eq!((names_in(&dump), names_in(&server.memory())), (0, 0));
        // Without the vault, all of them are there.
        fill(&client_cache(redis.clone())).await;
        assert_eq!(names_in(&server.memory()), 2 * CONTACTS as usize + 1);
    }

    /// A whole client over a store of its own, which was never connected.
    async fn client(redis: &Arc<RedisCache>) -> (Arc<whatsapp_rust::Client>, Arc<dyn Backend>) {
        let store = SqliteStore::in_memory().await.unwrap();
        let vault = Vault::create(&store, Key::generate().unwrap()).await.unwrap();
        let stores = CacheStores::all(vault.cache_store(redis.clone()));
        let backend = Stack::new(store).layer(vault.layer()).into_backend();
        let config = CacheConfig { cache_stores: stores, ..Default::default() };
        let bot = Bot::builder().with_backend_arc(backend.clone()).with_cache_config(config).build().await.unwrap();
        (bot.client(), backend)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread")]
    async fn clients_of_two_accounts_on_one_redis() {
        let Some(server) = Server::start() else { return };
        let redis = server.cache().await;
        let ((first, backend), (second, _)) = (client(&redis).await, client(&redis).await);
        let lid_of = async |client: &whatsapp_rust::Client, number| {
            let phone: Jid = format!("{}@s.whatsapp.net", phone(number)).parse().unwrap();
            client.get_lid_pn_entry(&phone).await.unwrap().map(|entry| entry.lid.to_string())
        };
        for number in 0..CONTACTS {
            let (lid, phone) = (contact(number).lid, phone(number));
            first.add_lid_pn_mapping(&lid, &phone, LearningSource::Usync).await.unwrap();
        }
        let entries = redis.names(redis.prefix).await.unwrap().len();
        assert!(entries >= 2 * CONTACTS as usize, "the client keeps its mappings in Redis: {entries}");
        for number in 0..CONTACTS {
            assert_eq!(lid_of(&first, number).await.as_deref(), Some(&*contact(number).lid));
            assert_eq!(lid_of(&second, number).await, None, "the second account knows no one");
        }
        // The same person has another LID in the second account.
        second.add_lid_pn_mapping("199999999999999", &phone(0), LearningSource::Usync).await.unwrap();
        assert_eq!(lid_of(&second, 0).await.as_deref(), Some("199999999999999"));
        assert_eq!(lid_of(&first, 0).await.as_deref(), Some(&*contact(0).lid));

        // The devices of a contact whom no mapping names.
        let device = |device_id| DeviceInfo { device_id, key_index: None, is_hosted: false };
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let devices = DeviceListRecord {
            user: phone(CONTACTS),
            devices: vec![device(0), device(7)],
            timestamp: i64::try_from(now).unwrap(),
            phash: None,
            raw_id: None,
        };
        backend.update_device_list(devices).await.unwrap();
        let before = redis.names(redis.prefix).await.unwrap().len();
        let jid: Jid = format!("{}@s.whatsapp.net", phone(CONTACTS)).parse().unwrap();
        let known = first.signal().get_user_devices(&[jid]).await.unwrap();
        assert_eq!(known.iter().map(|device| device.device).collect::<Vec<_>>(), [0, 7]);
        assert!(redis.names(redis.prefix).await.unwrap().len() > before, "the client keeps device lists in Redis");

        redis.ask::<()>(&cmd("SAVE")).await.unwrap();
        let dump = std::fs::read(server.folder.path().join("dump.rdb")).unwrap();
        assert_eq!((names_in(&dump), names_in(&server.memory())), (0, 0));
        let memory = server.memory();
        for name in [phone(CONTACTS), "device_registry".to_owned(), "199999999999999".to_owned()] {
            assert!(memchr::memmem::find(&memory, name.as_bytes()).is_none(), "{name}");
        }
    }

    #[tokio::test]
    async fn accounts_that_share_redis_never_meet() {
        let Some(server) = Server::start() else { return };
        let (redis, one, two) = (server.cache().await, vault().await, vault().await);
        let (first, second) =
            (client_cache(one.cache_store(redis.clone())), client_cache(two.cache_store(redis.clone())));
        fill(&first).await;
        assert_eq!((known(&first).await, known(&second).await), (CONTACTS as usize, 0));
        two.cache_store(redis.clone()).clear("lid_pn_by_pn").await.unwrap();
        assert_eq!(known(&first).await, CONTACTS as usize);
        one.rotate_data_key().await.unwrap();
        assert_eq!(known(&first).await, 0);
        fill(&first).await;
        one.cache_store(redis.clone()).clear("lid_pn_by_pn").await.unwrap();
        assert_eq!(known(&first).await, 0);
        assert_eq!(redis.names(redis.prefix).await.unwrap().len(), CONTACTS as usize, "the other namespace is left");
    }

    #[tokio::test]
    async fn a_redis_that_is_gone_or_hangs_is_a_miss() {
        let Some(mut server) = Server::start() else { return };
        let (redis, vault) = (server.cache().await, vault().await);
        let sealed = vault.cache_store(redis.clone());
        sealed.set("group", "g", b"members", None).await.unwrap();
        redis.ask::<()>(cmd("CLIENT").arg("PAUSE").arg(3000)).await.unwrap();
        let start = Instant::now();
        assert_eq!(sealed.get("group", "g").await.unwrap(), None);
        assert!(start.elapsed() < Duration::from_secs(10));
        server.process.kill().unwrap();
        server.process.wait().unwrap();
        assert_eq!(sealed.get("group", "g").await.unwrap(), None);
        sealed.set("group", "g", b"members", Some(PATIENCE)).await.unwrap();
        assert!(sealed.stats().failed >= 3, "{:?}", sealed.stats());
    }
}
