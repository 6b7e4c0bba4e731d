//! A bot whose complete state is encrypted. It answers `ping` with `pong`.
//!
//! ```sh
//! echo 'a long passphrase' > passphrase && chmod 600 passphrase
//! cargo run --example bot -- wa.db passphrase
//! ```
//!
//! Scan the printed code with your phone under "Linked devices". With the same passphrase, the bot connects without a
//! code on the next start.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

use std::path::PathBuf;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use wastore::{Passphrase, SqliteStore, Stack, Vault};
use whatsapp_rust::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(database), Some(passphrase)) = (arguments.next(), arguments.next()) else {
        return Err("usage: bot DATABASE PASSPHRASE_FILE".into());
    };

    let store = SqliteStore::open(database).await?;
    let vault = Vault::open_or_create(&store, Passphrase::from_file(passphrase)?).await?;
    let stack = Stack::new(store).layer(vault.layer());
    println!("{stack:?}");

    let bot = Bot::builder()
        .with_backend_arc(stack.into_backend())
        .on_qr_code(|code, timeout| async move {
            println!("Scan this within {} s:", timeout.as_secs());
            match QrCode::new(&code) {
                Ok(picture) => println!("{}", picture.render::<Dense1x2>().build()),
                Err(error) => eprintln!("the code cannot be drawn: {error}"),
            }
        })
        .on_connected(|_| async { println!("connected") })
        .on_message(|context| async move {
            if context.message.text_content() == Some("ping")
                && let Err(error) = context.reply_quoting("pong").await
            {
                eprintln!("could not answer: {error}");
            }
        })
        .build()
        .await?;
    bot.run().await;
    Ok(())
}
