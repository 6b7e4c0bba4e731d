//! Finds this crate's own store below any layers.
//!
//! A vault is opened on a `dyn Backend`. If that leads to an own store, the vault can do more: it is bound to the
//! account's number, and it can look at all rows before keys change.
//!
//! The traits have no method for such a question. So the vault asks for the sender key of an address that no client
//! uses, and the store answers from memory. The answer carries a random number of this process. A row planted in
//! another store therefore does not pass for an answer.

use std::sync::{Arc, LazyLock, Mutex, Weak};

use wacore::store::traits::Backend;

use super::store::Rows;
use crate::error::Result;
use crate::sync::IgnorePoison;

/// The address of the question. Blinded addresses have 24 characters, so none can be equal.
pub(crate) const ADDRESS: &str = "wastoreownstore";

/// An open database of an own store.
pub(crate) trait OwnDatabase: Send + Sync {
    /// The handle of one of its accounts.
    fn rows_of(self: Arc<Self>, account: i32, chosen: bool) -> Arc<dyn Rows>;
}

/// The databases that have answered.
static ANSWERED: Mutex<Vec<Weak<dyn OwnDatabase>>> = Mutex::new(Vec::new());
/// Known only in this process. `None` if the operating system gave no random bytes; then no store is found.
static PROCESS: LazyLock<Option<[u8; 16]>> = LazyLock::new(|| {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok().map(|()| random)
});

const ANSWER_BYTES: usize = 16 + 8 + 4 + 1;

/// The answer of an account of a database.
pub(crate) fn answer<D: OwnDatabase + 'static>(database: &Arc<D>, account: i32, chosen: bool) -> Option<Vec<u8>> {
    let process = (*PROCESS)?;
    let database: Arc<dyn OwnDatabase> = database.clone();
    let database = Arc::downgrade(&database);
    let number = number_of(&database);
    let mut answered = ANSWERED.lock().ignore_poison();
    answered.retain(|database| database.strong_count() > 0);
    if !answered.iter().any(|database| number_of(database) == number) {
        answered.push(database);
    }
    Some([&process[..], &number.to_le_bytes(), &account.to_le_bytes(), &[chosen.into()]].concat())
}

/// The own store that a backend leads to, if there is one.
///
/// # Errors
/// Those of the backend.
pub(crate) async fn own_store_below(backend: &dyn Backend) -> Result<Option<Arc<dyn Rows>>> {
    // Without an own store, no one would answer.
    if cfg!(not(any(feature = "postgres", feature = "sqlite", test))) {
        return Ok(None);
    }
    let Some(answer) = backend.get_sender_key(ADDRESS).await? else { return Ok(None) };
    let Ok(answer) = <[u8; ANSWER_BYTES]>::try_from(answer) else { return Ok(None) };
    let (process, rest) = answer.split_at(16);
    let (number, rest) = rest.split_at(8);
    let (account, chosen) = rest.split_at(4);
    if (*PROCESS).is_none_or(|own| own != *process) {
        return Ok(None);
    }
    let answered = ANSWERED.lock().ignore_poison();
    let mut databases = answered.iter().filter(|database| number_of(database).to_le_bytes() == number);
    let database = databases.find_map(Weak::upgrade);
    let Ok(account) = account.try_into().map(i32::from_le_bytes) else { return Ok(None) };
    Ok(database.map(|database| database.rows_of(account, chosen != [0])))
}

/// The address of a database in memory. No other database gets it as long as a weak reference is kept.
fn number_of(database: &Weak<dyn OwnDatabase>) -> u64 {
    database.as_ptr().cast::<()>() as usize as u64
}
