//! A bot whose encrypted state lies in PostgreSQL. It answers `ping` with `pong`.
//!
//! ```sh
//! echo 'a long passphrase' > passphrase && chmod 600 passphrase
//! export DATABASE_URL='postgres://bot@db.example.com/wa' PASSWORD_FILE=db-password
//! cargo run --example postgres_bot --features postgres -- passphrase
//! ```
//!
//! `PASSWORD_FILE` and `LEASE_NAME` are optional. A second copy of this program waits for the first one to end, and gives
//! up after 20 seconds. Give both the same `LEASE_NAME`, and the second one takes over at once.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

use std::env;
use std::sync::Arc;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use wacore::store::traits::Backend;
use wastore::{CacheLayer, Metrics, Passphrase, PostgresOptions, PostgresStore, Stack, Vault};
use whatsapp_rust::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(passphrase) = env::args_os().nth(1) else {
        return Err("usage: postgres_bot PASSPHRASE_FILE, with the URL in DATABASE_URL".into());
    };
    let store = open().await?;

    let vault = Vault::open_or_create(&store, Passphrase::from_file(passphrase)?).await?;
    let (metrics, cache) = (Metrics::new(), CacheLayer::new(16 << 20));
    metrics.track_postgres("postgres", &store);
    metrics.track_cache("cache", &cache);
    let stack = Stack::new(&store)
        .layer(metrics.layer("postgres"))
        .layer(vault.layer())
        .layer(cache)
        .layer(metrics.layer("client"));
    println!("{stack:?}");
    let closer = stack.closer();

    let mut bot = bot(stack.into_backend()).await?.spawn();
    tokio::select! {
        () = &mut bot => {}
        // Every call fails from now on. The client must not go on with sessions that another process continues.
        () = store.lost() => {
            eprintln!("another process runs this bot now");
            bot.shutdown().await;
        }
        _ = tokio::signal::ctrl_c() => bot.shutdown().await,
    }
    println!("{}", metrics.snapshot());

    // Wipes the cache and the keys, and gives the lease back: another process need not wait.
    closer.close().await?;
    Ok(())
}

async fn open() -> Result<PostgresStore, Box<dyn std::error::Error>> {
    let mut options = PostgresOptions::new(&env::var("DATABASE_URL")?)?;
    if let Ok(file) = env::var("PASSWORD_FILE") {
        options = options.password_file(&file);
    }
    if let Ok(name) = env::var("LEASE_NAME") {
        options = options.lease_name(&name);
    }
    Ok(options.open(1).await?)
}

async fn bot(backend: Arc<dyn Backend>) -> Result<Bot, Box<dyn std::error::Error>> {
    let bot = Bot::builder()
        .with_backend_arc(backend)
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
    Ok(bot)
}
