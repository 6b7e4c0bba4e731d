//! An external cache of the client, in memory.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use wacore::store::cache::CacheStore;

/// A cache whose content can be seen and changed.
#[derive(Default)]
pub(crate) struct MemoryCache {
    pub(crate) entries: Mutex<HashMap<(String, String), Vec<u8>>>,
    broken: AtomicBool,
}

impl MemoryCache {
    fn answer<T>(&self, answer: impl FnOnce(&mut HashMap<(String, String), Vec<u8>>) -> T) -> anyhow::Result<T> {
        anyhow::ensure!(!self.broken.load(Ordering::SeqCst), "the key is 15550001111@s.whatsapp.net");
        Ok(answer(&mut self.entries.lock().unwrap()))
    }

    /// Makes every call fail, or work again.
    pub(crate) fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

pub(crate) fn name(namespace: &str, key: &str) -> (String, String) {
    (namespace.to_owned(), key.to_owned())
}

#[async_trait]
impl CacheStore for MemoryCache {
    async fn get(&self, namespace: &str, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        self.answer(|entries| entries.get(&name(namespace, key)).cloned())
    }

    async fn set(&self, namespace: &str, key: &str, value: &[u8], _: Option<Duration>) -> anyhow::Result<()> {
        self.answer(|entries| drop(entries.insert(name(namespace, key), value.to_vec())))
    }

    async fn delete(&self, namespace: &str, key: &str) -> anyhow::Result<()> {
        self.answer(|entries| drop(entries.remove(&name(namespace, key))))
    }

    async fn clear(&self, namespace: &str) -> anyhow::Result<()> {
        self.answer(|entries| entries.retain(|(of, _), _| of != namespace))
    }

    async fn entry_count(&self, namespace: &str) -> anyhow::Result<u64> {
        self.answer(|entries| entries.keys().filter(|(of, _)| of == namespace).count() as u64)
    }
}
