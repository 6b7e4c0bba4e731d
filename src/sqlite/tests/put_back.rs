//! Headers, rows and whole stores that are put back, swapped or altered: keys do not change over
//! them, and nothing is lost.

use rusqlite::Connection;
use wacore::store::traits::Backend;

use super::*;
use crate::encrypt::{Vault, VaultOptions};
use crate::maintenance::inspect;
use crate::maintenance::open_account;
use crate::maintenance::restore_account_header;
use crate::maintenance::{Rotate, Verify};
use crate::secret::{Key, Passphrase};
use crate::testing::canaries;
use crate::vault::OpenMode;
use crate::vault::{Argon2Cost, HeaderCopy, HeaderInfo, Revocation};
use crate::{Layer, Record};

fn key(byte: u8) -> Key {
    Key::from_bytes(&mut [byte; 32])
}

fn options() -> VaultOptions {
    VaultOptions::new().kdf_cost(Argon2Cost::MINIMUM)
}

const SESSIONS: usize = 100;

/// A store with a device and a number of sessions.
struct Bot {
    scratch: Scratch,
    vault: Vault,
}

impl Bot {
    async fn new() -> Self {
        Self::with(&options()).await
    }

    async fn with(options: &VaultOptions) -> Self {
        let scratch = Scratch::new().await;
        let vault = fill(&scratch.store, options, key(7)).await;
        Self { scratch, vault }
    }

    fn store(&self) -> Arc<dyn Backend> {
        Arc::new(self.scratch.store.clone())
    }

    fn layered(&self) -> Arc<dyn Backend> {
        self.vault.layer().layer(self.store())
    }

    async fn open(&self, secret: Key) -> crate::Result<Vault> {
        options().open(self.store(), secret).await
    }

    fn change(&self, sql: &str, parameters: impl rusqlite::Params) -> usize {
        Connection::open(&self.scratch.path).unwrap().execute(sql, parameters).unwrap()
    }

    fn put_header_back(&self, header: &[u8]) {
        for copy in HeaderCopy::BOTH {
            let sql = "UPDATE sender_keys SET record = ?1 WHERE account = 1 AND address = ?2";
            assert_eq!(self.change(sql, (header, copy.address())), 1);
        }
    }

    /// How many sessions open with a vault.
    async fn readable(&self, vault: &Vault) -> usize {
        let layered = vault.layer().layer(self.store());
        let mut readable = 0;
        for number in 0..SESSIONS {
            readable += usize::from(layered.get_session(&address(number)).await.is_ok_and(|found| found.is_some()));
        }
        readable
    }
}

async fn fill(store: &SqliteStore, options: &VaultOptions, secret: Key) -> Vault {
    let store: Arc<dyn Backend> = Arc::new(store.clone());
    let vault = options.create(store.clone(), secret).await.unwrap();
    let layered = vault.layer().layer(store);
    layered.save(&canaries::device()).await.unwrap();
    let rows: Vec<_> = (0..SESSIONS).map(|number| (address(number), vec![number as u8; 300].into())).collect();
    layered.put_sessions_batch(&rows).await.unwrap();
    vault
}

/// A prefix that is not authenticated must not mark a row as done.
#[tokio::test]
async fn rows_that_claim_the_new_data_key_are_not_taken_for_done() {
    let bot = Bot::new().await;
    let claim = "UPDATE sessions SET record =
        CAST(substr(record, 1, 6) || x'02000000' || substr(record, 11) AS BLOB) WHERE rowid <= 30";
    assert_eq!(bot.change(claim, ()), 30);
    let refused = Rotate::new().run(&bot.scratch.store, &bot.vault).await;
    assert!(matches!(refused, Err(Error::UnknownEpoch { record: Record::Session })), "{refused:?}");
    assert_eq!(HeaderInfo::read(&bot.scratch.store).await.unwrap().unwrap().epochs, [1], "nothing has begun");
    // Once the prefix is corrected, all rows are there.
    assert_eq!(bot.change(&claim.replace("02000000", "01000000"), ()), 30);
    Rotate::new().run(&bot.scratch.store, &bot.vault).await.unwrap();
    assert_eq!(bot.readable(&bot.vault).await, SESSIONS);

    // Rows that claim to stay damaged are counted, and the new epoch is above the ones they claim.
    assert_eq!(bot.change(&claim.replace("02000000", "09000000"), ()), 30);
    let report = Rotate::new().leave_damaged().run(&bot.scratch.store, &bot.vault).await.unwrap();
    assert_eq!(report.left_behind(), 30);
    assert_eq!(HeaderInfo::read(&bot.scratch.store).await.unwrap().unwrap().epochs, [10]);
    assert_eq!(bot.readable(&bot.vault).await, SESSIONS - 30);
}

/// Two rows are put back, without any key. A change of the data key over them would lose
/// everything.
#[tokio::test]
async fn a_header_from_before_a_rotation_is_not_rotated() {
    let bot = Bot::new().await;
    let before = bot.vault.save_header();
    Rotate::new().run(&bot.scratch.store, &bot.vault).await.unwrap();
    let after = bot.vault.save_header();
    bot.put_header_back(&before);
    let Bot { scratch, vault } = bot;
    drop(vault);
    let vault = options().open(Arc::new(scratch.store.clone()), key(7)).await.unwrap();
    let bot = Bot { scratch, vault };
    for leave_damaged in [false, true] {
        let rotate = if leave_damaged { Rotate::new().leave_damaged() } else { Rotate::new() };
        let refused = rotate.run(&bot.scratch.store, &bot.vault).await;
        assert!(matches!(refused, Err(Error::UnknownEpoch { record: Record::Device })), "{refused:?}");
    }
    let refused = bot.vault.rotate_data_key().await;
    assert!(matches!(refused, Err(Error::UnknownEpoch { .. })), "{refused:?}");
    let revocation = Revocation::prepare(&bot.vault, key(8)).await.unwrap();
    let refused = bot.vault.revoke(&revocation).await;
    assert!(matches!(refused, Err(Error::UnknownEpoch { .. })), "{refused:?}");

    // The right header returns over the intact older one, whose generation the opening has raised.
    for _ in 0..3 {
        bot.open(key(7)).await.unwrap();
    }
    let restored = restore_account_header(&bot.scratch.store, &options(), &after, key(7)).await.unwrap();
    assert_eq!(bot.readable(&restored).await, SESSIONS);
    let report = Verify::new().run(&bot.scratch.store, &restored).await.unwrap();
    assert!(report.is_sound(), "{report}");
    // Restoring the older header over the newer one does not remove its data key.
    let restored = restore_account_header(&bot.scratch.store, &options(), &before, key(7)).await.unwrap();
    assert_eq!(bot.readable(&restored).await, SESSIONS);
}

#[tokio::test]
async fn a_detached_header_that_was_put_back_is_not_rotated() {
    let elsewhere = Arc::new(Elsewhere::default());
    let options = options().header_store(elsewhere.clone());
    let bot = Bot::with(&options).await;
    let before = elsewhere.0.lock().unwrap().clone();
    Rotate::new().run(&bot.scratch.store, &bot.vault).await.unwrap();
    let after = elsewhere.0.lock().unwrap().clone();
    *elsewhere.0.lock().unwrap() = before;
    let vault = options.open(bot.store(), key(7)).await.unwrap();
    let refused = Rotate::new().run(&bot.scratch.store, &vault).await;
    assert!(matches!(refused, Err(Error::UnknownEpoch { .. })), "{refused:?}");
    *elsewhere.0.lock().unwrap() = after;
    let vault = options.open(bot.store(), key(7)).await.unwrap();
    assert_eq!(bot.readable(&vault).await, SESSIONS);
}

/// A slot that was removed does not come back with the next change.
#[tokio::test]
async fn a_header_that_was_put_back_is_not_washed() {
    let bot = Bot::new().await;
    let leaked = bot.vault.add_slot("leaked", key(9)).await.unwrap();
    let old = bot.vault.save_header();
    bot.vault.remove_slot(leaked).await.unwrap();
    bot.layered().put_session(&address(1), b"newer").await.unwrap();
    for change in ["passphrase", "add", "remove", "data key", "revoke", "anchor", "context", "rotate"] {
        bot.put_header_back(&old);
        let vault = bot.open(key(9)).await.unwrap();
        let refused = match change {
            "passphrase" => {
                // There is no passphrase to change, but the error is another one.
                vault.change_passphrase(Passphrase::new("another passphrase").unwrap()).await.map_err(|error| {
                    assert!(matches!(error, Error::AmbiguousPassphrase(0)), "{error:?}");
                    Error::HeaderRolledBack
                })
            }
            "add" => vault.add_slot("more", key(10)).await.map(drop),
            "remove" => vault.remove_slot(0).await,
            "data key" => vault.rotate_data_key().await,
            "revoke" => vault.revoke(&Revocation::prepare(&vault, key(11)).await.unwrap()).await,
            "anchor" => vault.renew_anchor().await,
            "context" => vault.bind_context("another").await,
            _ => Rotate::new().run(&bot.scratch.store, &vault).await.map(drop),
        };
        assert!(matches!(refused, Err(Error::HeaderRolledBack)), "{change}: {refused:?}");
    }
}

#[tokio::test]
async fn a_passphrase_is_not_changed_over_a_header_that_was_put_back() {
    let word = |word: &str| Passphrase::new(word).unwrap();
    let scratch = Scratch::new().await;
    let store: Arc<dyn Backend> = Arc::new(scratch.store.clone());
    let vault = options().create(store.clone(), word("old passphrase")).await.unwrap();
    let old = vault.save_header();
    vault.change_passphrase(word("new passphrase")).await.unwrap();
    vault.layer().layer(store.clone()).save(&canaries::device()).await.unwrap();
    let bot = Bot { scratch, vault };
    bot.put_header_back(&old);
    let vault = options().open(store, word("old passphrase")).await.unwrap();
    let refused = vault.change_passphrase(word("third passphrase")).await;
    assert!(matches!(refused, Err(Error::HeaderRolledBack)), "{refused:?}");
}

const COPY_OVER: &str = "INSERT OR REPLACE INTO sender_keys (account, address, record)
    SELECT 2, address, record FROM sender_keys WHERE account = 1";

/// Two accounts with the same secret: neither can be passed off as the other.
#[tokio::test]
async fn an_account_does_not_take_the_place_of_another_one() {
    let bot = Bot::new().await;
    let second = bot.scratch.store.account(2);
    let vault = fill(&second, &options(), key(7)).await;
    assert_ne!(vault.store_id(), bot.vault.store_id());
    for sql in [
        "DELETE FROM sessions WHERE account = 2",
        "DELETE FROM devices WHERE account = 2",
        "DELETE FROM sender_keys WHERE account = 2",
        COPY_OVER,
        "INSERT INTO sessions (account, address, record) SELECT 2, address, record FROM sessions WHERE account = 1",
        "INSERT INTO devices SELECT 2, record, edge_routing_info FROM devices WHERE account = 1",
    ] {
        bot.change(sql, ());
    }
    let second: Arc<dyn Backend> = Arc::new(second);
    for options in [options(), options().context("account 2")] {
        for opened in [
            options.open(second.clone(), key(7)).await,
            options.clone().mode(OpenMode::ReadOnly).open(second.clone(), key(7)).await,
        ] {
            assert!(matches!(opened, Err(Error::WrongContext)), "{opened:?}");
        }
    }
    bot.open(key(7)).await.unwrap();

    // The account can be moved on purpose.
    let moved = options().context("account 1").open(second.clone(), key(7)).await.unwrap();
    moved.bind_context("account 2").await.unwrap();
    let moved = options().open(second.clone(), key(7)).await.unwrap();
    assert_eq!(moved.layer().layer(second).get_session(&address(3)).await.unwrap().unwrap(), vec![3; 300]);
}

#[tokio::test]
async fn exchanged_files_with_the_same_secret_are_told_apart() {
    let bound = |name: &str| options().context(name);
    let (one, two) = (Bot::with(&bound("one")).await, Bot::with(&bound("two")).await);
    bound("one").open(one.store(), key(7)).await.unwrap();
    for (name, store) in [("two", one.store()), ("one", two.store()), ("", one.store())] {
        let opened = bound(name).open(store, key(7)).await;
        assert!(matches!(opened, Err(Error::WrongContext)), "{opened:?}");
    }
    let opened = options().open(one.store(), key(7)).await;
    assert!(matches!(opened, Err(Error::WrongContext)), "{opened:?}");

    // Vaults without a context are told apart by their ids.
    let expecting = options().context("one").expect_store(one.vault.store_id());
    expecting.open(one.store(), key(7)).await.unwrap();
    let opened = expecting.context("two").open(two.store(), key(7)).await;
    assert!(matches!(opened, Err(Error::WrongStore)), "{opened:?}");
}

/// An anchor knows the store of a context, even if a second store with the same secret was made for
/// it.
#[tokio::test]
async fn an_anchor_remembers_the_store_of_a_context() {
    let folder = tempfile::tempdir().unwrap();
    let anchor = Arc::new(crate::vault::FileAnchor::new(folder.path()));
    let bound = options().context("bot").rollback_anchor(anchor);
    let bot = Bot::with(&bound).await;
    bound.open(bot.store(), key(7)).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = Arc::new(crate::vault::FileAnchor::new(elsewhere.path()));
    let other = Bot::with(&options().context("bot").rollback_anchor(elsewhere)).await;
    for opened in [
        bound.open(other.store(), key(7)).await,
        bound.clone().mode(OpenMode::ReadOnly).open(other.store(), key(7)).await,
    ] {
        assert!(matches!(opened, Err(Error::WrongStore)), "{opened:?}");
    }
    bound.open(bot.store(), key(7)).await.unwrap();
    bound.clone().mode(OpenMode::AcceptRollback).open(other.store(), key(7)).await.unwrap();
    assert!(matches!(bound.open(bot.store(), key(7)).await, Err(Error::WrongStore)));
}

/// The header of a copy that this process also has open is not the store's own.
#[tokio::test]
async fn the_header_of_an_open_copy_is_not_taken_over() {
    let bot = Bot::new().await;
    let copy = bot.scratch.path.with_file_name("copy.db");
    bot.scratch.store.backup(&copy).await.unwrap();
    let copy = config().open(&copy).await.unwrap();
    let store: Arc<dyn Backend> = Arc::new(copy.clone());
    let of_copy = options().open(store, key(7)).await.unwrap();
    let revocation = Revocation::prepare(&of_copy, key(8)).await.unwrap();
    of_copy.revoke(&revocation).await.unwrap();
    bot.put_header_back(&of_copy.save_header());
    let refused = bot.vault.add_slot("more", key(10)).await;
    assert!(matches!(refused, Err(Error::HeaderTampered)), "{refused:?}");
}

/// A lower account number, planted or honest, does not shut derived accounts out.
#[tokio::test]
async fn derived_accounts_know_their_parent() {
    for noted in [true, false] {
        let bot = Bot::new().await;
        let second = bot.scratch.store.account(2);
        let options = if noted { options().derived_from(&bot.vault) } else { options() };
        fill(&second, &options, bot.vault.account_key("account 2")).await;
        fill(&bot.scratch.store.account(-5), &self::options(), key(66)).await;
        fill(&bot.scratch.store.account(0), &self::options(), key(7)).await;
        open_account(&second, &self::options(), key(7)).await.unwrap();
        open_account(&second, &self::options().mode(OpenMode::ReadOnly), key(7)).await.unwrap();
        let wrong = open_account(&second, &self::options(), key(1)).await;
        assert!(matches!(wrong, Err(Error::WrongSecret)), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_revocation_covers_every_account_or_changes_nothing() {
    let bot = Bot::new().await;
    fill(&bot.scratch.store.account(2), &options(), key(66)).await;
    bot.change("INSERT INTO sessions (account, address, record) VALUES (3, 'a', x'00')", ());
    let before = inspect(&bot.scratch.store).await.unwrap();
    let revoke = async |rotate: Rotate| rotate.revoke(&bot.scratch.store, &options(), key(7), key(8)).await;
    for (rotate, missing) in [(Rotate::new(), vec![2, 3]), (Rotate::new().except(3), vec![2])] {
        match revoke(rotate).await {
            Err(Error::AccountsNotCovered { accounts }) => assert_eq!(accounts, missing),
            refused => panic!("{refused:?}"),
        }
        assert_eq!(inspect(&bot.scratch.store).await.unwrap(), before, "nothing was changed");
    }
    let report = revoke(Rotate::new().except(3).except(2)).await.unwrap();
    assert_eq!(report.untouched_accounts(), [3, 2]);
    assert!(matches!(bot.open(key(7)).await, Err(Error::WrongSecret)));
    assert_eq!(bot.readable(&bot.open(key(8)).await.unwrap()).await, SESSIONS);
}

/// On a store that cannot list its rows, old data keys stay, until there is no room for another
/// one.
#[tokio::test]
async fn a_revocation_needs_no_room_for_a_data_key() {
    let store: Arc<dyn Backend> = Arc::new(wacore::store::InMemoryBackend::new());
    let vault = options().create(store.clone(), key(7)).await.unwrap();
    let layered = vault.layer().layer(store.clone());
    layered.put_session("a@b", b"x").await.unwrap();
    for _ in 0..15 {
        vault.rotate_data_key().await.unwrap();
    }
    for (old, new) in [(7, 8), (8, 9)] {
        let revocation = Revocation::prepare(&vault, key(new)).await.unwrap();
        vault.revoke(&revocation).await.unwrap();
        assert!(!revocation.has_new_data_key());
        assert!(matches!(options().open(store.clone(), key(old)).await, Err(Error::WrongSecret)));
        let opened = options().open(store.clone(), key(new)).await.unwrap();
        let session = opened.layer().layer(store.clone()).get_session("a@b").await.unwrap();
        assert_eq!(session.unwrap(), &b"x"[..]);
    }
}
