//! Four races between a holder and its successor. Each is run as the store does it, and once without the protection: then
//! the old holder's write must get through, or the test would show nothing.

use std::time::Duration;

use wacore::store::traits::SignalStore;

use super::super::lease::ACQUIRE;
use super::super::signal::PUT_SESSION;
use super::*;

const ADDRESS: &str = "15550001111:2@s.whatsapp.net";
const LOCK: &str = " FOR KEY SHARE";
const CONDITION: &str = " AND epoch = $2 AND holder = $4";

/// Writes the session as the holder of a lease would, with some part of the statement left out.
async fn put(
    scratch: &Scratch,
    client: &Client,
    without: &str,
    (epoch, holder): &(i64, Vec<u8>),
    session: &[u8],
) -> Result<u64, tokio_postgres::Error> {
    assert!(PUT_SESSION.sql.contains(without));
    let sql = scratch.sql(&PUT_SESSION.sql.replace(without, ""));
    let (addresses, sessions) = (vec![ADDRESS.as_bytes()], vec![session]);
    let values: [&(dyn ToSql + Sync); 6] = [&1i32, epoch, &"on", holder, &addresses, &sessions];
    let parameters: Vec<_> = values.into_iter().zip(PUT_SESSION.types()).collect();
    execute(client, &sql, &parameters).await
}

/// Takes account 1 over as another process with the same lease name would.
async fn take_over(scratch: &Scratch, client: &Client) -> Result<u64, tokio_postgres::Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&1i32, Type::INT4),
        (&&[7u8; 16][..], Type::BYTEA),
        (&&b"bot"[..], Type::BYTEA),
        (&15f64, Type::FLOAT8),
        (&"on", Type::TEXT),
    ];
    execute(client, &scratch.sql(ACQUIRE), &parameters).await
}

/// A store that holds account 1, its lease, and two connections beside it.
async fn scene() -> Option<(Scratch, PostgresStore, (i64, Vec<u8>), Client, Client)> {
    let scratch = scratch()?;
    let store = scratch.options().lease_name("bot").open(1).await.unwrap();
    let (one, two) = (scratch.client().await, scratch.client().await);
    let lease = scratch.lease(&one).await;
    Some((scratch, store, lease, one, two))
}

async fn session(store: &PostgresStore) -> Vec<u8> {
    store.get_session(ADDRESS).await.unwrap().unwrap().to_vec()
}

/// The statement of an older connection arrives after the store has repeated it and written something newer.
async fn late_duplicate(without: &str) -> Option<Vec<u8>> {
    let (scratch, store, before, late, admin) = scene().await?;
    // The store connects again, and raises its epoch.
    scratch.cut(&admin).await;
    store.put_session(ADDRESS, b"newer").await.unwrap();
    assert!(scratch.lease(&admin).await.0 > before.0, "a reconnect raises the epoch");
    let accepted = put(&scratch, &late, without, &before, b"older").await.unwrap();
    assert_eq!(accepted > 0, session(&store).await == b"older");
    Some(session(&store).await)
}

#[tokio::test]
async fn a_late_statement_of_an_older_connection_is_refused() {
    let Some(session) = late_duplicate("").await else { return };
    assert_eq!(session, b"newer");
}

#[tokio::test]
async fn without_the_epoch_a_late_statement_wins() {
    let Some(session) = late_duplicate(CONDITION).await else { return };
    assert_eq!(session, b"older");
}

/// A takeover while a write is under way. Returns whether the takeover was complete before the write was.
async fn overtaken(without: &str, unique_key: bool) -> Option<bool> {
    let (scratch, _store, lease, mut writer, admin) = scene().await?;
    if !unique_key {
        scratch.run(&admin, "ALTER TABLE @.leases DROP CONSTRAINT leases_account_epoch_key").await;
    }
    let transaction = writer.transaction().await.unwrap();
    let accepted = put(&scratch, transaction.client(), without, &lease, b"under way").await.unwrap();
    assert_eq!(accepted, 1, "the fence held when the write began");
    let taking_over = take_over(&scratch, &admin);
    tokio::pin!(taking_over);
    let overtaken = tokio::time::timeout(Duration::from_millis(500), &mut taking_over).await.is_ok();
    transaction.commit().await.unwrap();
    if !overtaken {
        assert_eq!(taking_over.await.unwrap(), 1);
    }
    Some(overtaken)
}

#[tokio::test]
async fn a_takeover_waits_for_a_write_under_way() {
    let Some(overtaken) = overtaken("", true).await else { return };
    assert!(!overtaken);
}

#[tokio::test]
async fn without_the_lock_a_takeover_overtakes_a_write() {
    let Some(overtaken) = overtaken(LOCK, true).await else { return };
    assert!(overtaken);
}

#[tokio::test]
async fn without_the_unique_key_a_takeover_overtakes_a_write() {
    let Some(overtaken) = overtaken("", false).await else { return };
    assert!(overtaken);
}

/// A write that begins while a takeover is under way. Returns how many rows it wrote, or the code of its error.
async fn behind_a_takeover(without: &str, isolation: &str) -> Option<Result<u64, String>> {
    let (scratch, _store, lease, writer, mut admin) = scene().await?;
    scratch.run(&writer, &format!("SET default_transaction_isolation = '{isolation}'")).await;
    let transaction = admin.transaction().await.unwrap();
    assert_eq!(take_over(&scratch, transaction.client()).await.unwrap(), 1);
    let writing = put(&scratch, &writer, without, &lease, b"too late");
    tokio::pin!(writing);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut writing).await;
    transaction.commit().await.unwrap();
    let written = match early {
        Ok(written) => written,
        Err(_) => writing.await,
    };
    Some(written.map_err(|error| error.code().unwrap().code().to_owned()))
}

#[tokio::test]
async fn a_write_behind_a_takeover_is_refused() {
    let Some(written) = behind_a_takeover("", "read committed").await else { return };
    assert_eq!(written, Ok(0));
    let written = behind_a_takeover("", "serializable").await.unwrap();
    assert_eq!(written, Err("40001".to_owned()));
}

#[tokio::test]
async fn without_the_lock_a_write_overtakes_a_takeover() {
    let Some(written) = behind_a_takeover(LOCK, "read committed").await else { return };
    assert_eq!(written, Ok(1));
}
