//! Two accounts talk over real Signal sessions, with all of their state in encrypted stores. They stop, and continue
//! after a restart. Then the example searches every file they wrote for everything that must not be in it.
//!
//! Run with `cargo run --example quickstart`. It ends with an error if it finds anything.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

mod conversation;
mod search;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use wacore::libsignal::protocol::{
    SenderKeyDistributionMessage, UsePQRatchet, create_sender_key_distribution_message, process_prekey_bundle,
    process_sender_key_distribution_message,
};
use wacore::store::traits::Backend;
use wacore::types::jid::JidExt;
use wastore::{Passphrase, SqliteOptions, Vault};

use crate::conversation::{Account, converse, deliver, group_message};
use crate::search::{Report, Secrets};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GROUP: &str = "120363021033254949@g.us";
const PASSPHRASE: &str = "correct horse battery staple";

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("== encrypted ==");
    let encrypted = run(&folder.path().join("encrypted"), true).await?;
    println!("\n== the same without encryption ==");
    let plain = run(&folder.path().join("plain"), false).await?;

    println!("\nFound in the files, of what was looked for:\n");
    println!("{:<30} {:>10} {:>12} {:>12}", "", "looked for", "encrypted", "unencrypted");
    for (kind, (count, found)) in &encrypted {
        let plain_found = plain.get(kind).map_or(0, |(_, found)| *found);
        println!("{kind:<30} {count:>10} {found:>12} {plain_found:>12}");
    }
    let total = |report: &Report| report.values().fold((0, 0), |sum, (count, found)| (sum.0 + count, sum.1 + found));
    let ((count, found), (_, plain_found)) = (total(&encrypted), total(&plain));
    println!("{:<30} {count:>10} {found:>12} {plain_found:>12}", "total");
    println!(
        "\nNumbers of pieces differ from run to run. Values that are missing on the right were overwritten, cross a page"
    );
    println!("boundary, or are stored in another form.");
    if found > 0 {
        return Err("something was found in the encrypted stores".into());
    }
    if plain_found < count / 2 {
        return Err("the search does not find what is there, so it proves nothing".into());
    }
    Ok(())
}

/// The whole conversation, with a restart in the middle, and the search afterwards.
async fn run(folder: &Path, encrypt: bool) -> Result<Report> {
    std::fs::create_dir(folder)?;
    let mut rng: StdRng = rand::make_rng();
    let mut secrets = Secrets::default();
    let (alice_file, bob_file) = (folder.join("alice.db"), folder.join("bob.db"));

    let mut alice = Account::open(&alice_file, encrypt).await?;
    let mut bob = Account::open(&bob_file, encrypt).await?;
    println!("alice: {}", alice.stack);
    alice.pair("15550101111:3@s.whatsapp.net", "100000011112222:3@lid", "Alice the Operator", &mut rng).await?;
    bob.pair("15550102222:7@s.whatsapp.net", "100000033334444:7@lid", "Bob the Customer", &mut rng).await?;

    // Alice fetches Bob's prekey bundle and starts the session.
    let bundle = bob.publish_prekeys(&mut rng, &mut secrets).await?;
    process_prekey_bundle(
        &bob.jid.to_protocol_address(),
        &mut alice.signal.session_store,
        &mut alice.signal.identity_store,
        &bundle,
        &mut rng,
        UsePQRatchet::No,
    )
    .await?;
    converse(&mut alice, &mut bob, &["Hello Bob, your parcel 4711 is on its way"], &mut rng, &mut secrets).await?;
    converse(&mut bob, &mut alice, &["Thanks Alice, leave it at number 12", "and ring twice"], &mut rng, &mut secrets)
        .await?;

    // A group with sender keys.
    let group = alice.sender_key_name();
    let distribution =
        create_sender_key_distribution_message(&group, &mut alice.signal.sender_key_store, &mut rng).await?;
    let received = deliver(&mut alice, &mut bob, distribution.serialized(), &mut rng, &mut secrets).await?;
    let distribution = SenderKeyDistributionMessage::try_from(&received[..])?;
    process_sender_key_distribution_message(&group, &distribution, &mut bob.signal.sender_key_store).await?;
    group_message(&mut alice, &mut bob, "Warehouse closes at six today", &mut rng, &mut secrets).await?;

    // All other records that a client keeps.
    alice.keep_the_rest(&bob.jid, &mut secrets).await?;
    bob.keep_the_rest(&alice.jid, &mut secrets).await?;

    // Both processes end and start again.
    drop((alice, bob));
    let mut alice = Account::open(&alice_file, encrypt).await?;
    let mut bob = Account::open(&bob_file, encrypt).await?;
    converse(&mut bob, &mut alice, &["Are you still there after the restart?"], &mut rng, &mut secrets).await?;
    converse(&mut alice, &mut bob, &["Certainly, same session"], &mut rng, &mut secrets).await?;
    group_message(&mut alice, &mut bob, "The warehouse is closed now", &mut rng, &mut secrets).await?;
    println!("closed and reopened; the conversations continued");

    if encrypt {
        // Alice's process has the account. A store that only reads does not wait for it.
        let options = SqliteOptions::new().lease_when_writing();
        let store: Arc<dyn Backend> = Arc::new(options.open(&alice_file).await?);
        match Vault::open(store, Passphrase::new("incorrect horse")?).await {
            Err(wastore::Error::WrongSecret) => {
                println!("a wrong passphrase is refused: {}", wastore::Error::WrongSecret)
            }
            Err(error) => return Err(error.into()),
            Ok(_) => return Err("a wrong passphrase opened the vault".into()),
        }
    }
    secrets.add("passphrase", PASSPHRASE.as_bytes());
    alice.collect(&bob.jid, &mut secrets).await?;
    bob.collect(&alice.jid, &mut secrets).await?;
    for account in [&alice, &bob] {
        let stanza = format!("<message from='{}'>what went wrong</message>", account.jid);
        secrets.add("snapshot extras", stanza.as_bytes());
        account.backend.snapshot_db("quickstart", Some(stanza.as_bytes())).await?;
    }
    // The stores are still open, so the search finds their WAL and SHM files.
    let report = secrets.search(folder)?;
    drop((alice, bob));
    Ok(report)
}
