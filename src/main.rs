//! The command `wastore`: what an operator does with the store of a bot. Everything that it does is a function of the library.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to a terminal")]

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use wastore::{
    Error, Export, HeaderInfo, Import, ImportPhase, Key, Passphrase, RecoveryKey, Secret, SlotKind, SqliteStore, Vault,
    VaultOptions, Verify,
};

/// Encrypted storage for whatsapp-rust: import an existing bot, change who can open its store, check it, back it up.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed; the message says what and what to do
  2  the command line is not right
  3  the passphrase or key does not open the store
  4  the store is damaged, or was altered
  5  a file is not what it has to be, is there already, or is not there";

#[derive(Subcommand)]
enum Command {
    /// Create an empty encrypted store
    Init {
        /// The new store
        store: PathBuf,
        #[command(flatten)]
        new: NewSecret,
    },
    /// Copy a database of whatsapp-rust's own SQLite store into a new encrypted one
    ///
    /// The source is only read. Stop the bot before, and delete its database yourself when the new store is in use: what was
    /// deleted from a disk may still be found on it, and in its backups and snapshots.
    Import {
        /// The database that the bot uses now
        source: PathBuf,
        /// The new store; it appears when it is complete
        store: PathBuf,
        /// Import this account of several
        #[arg(long, value_name = "NUMBER", conflicts_with = "all_accounts")]
        account: Option<i32>,
        /// Import every account; the secret opens the lowest, and the others with it
        #[arg(long)]
        all_accounts: bool,
        #[command(flatten)]
        new: NewSecret,
    },
    /// Write an account back into a database of whatsapp-rust's own SQLite store, in plaintext
    ///
    /// What cannot be given back is named, and what its loss means.
    Export {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new database; it appears when it is complete
        target: PathBuf,
        /// The keys of the account are to be readable in the new file
        #[arg(long, required = true)]
        plaintext: bool,
    },
    /// Change the passphrase; no record is touched
    ///
    /// An older copy of the store still opens with the old one.
    Passwd {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        #[command(flatten)]
        new: NewSecret,
    },
    /// List, add and remove what opens the store
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Open every record and check its seal, its place and its name, and the database around it
    Verify {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// Check the header, a hundred rows of each table, and the database without its indexes
        #[arg(long)]
        quick: bool,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what can be seen without any key: accounts, key slots and their cost, rows and bytes
    Inspect {
        /// The store
        store: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the store to a new file while it is in use; the copy is encrypted as the store is
    Backup {
        /// The store
        store: PathBuf,
        /// The new file
        file: PathBuf,
    },
    /// Save the vault's header, or put a saved one back
    Header {
        #[command(subcommand)]
        command: Header,
    },
}

#[derive(Subcommand)]
enum Keys {
    /// List the key slots
    List {
        #[command(flatten)]
        store: Store,
    },
    /// Add a passphrase, a key file or a recovery key
    Add {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        #[command(flatten)]
        new: NewSecret,
        /// Make a recovery key and print it, once
        #[arg(long, conflicts_with_all = ["new_passphrase_file", "new_passphrase_fd", "new_passphrase_env", "new_key_file"])]
        recovery: bool,
        /// A label, stored in the clear, at most 32 bytes
        #[arg(long)]
        label: Option<String>,
    },
    /// Remove a key slot; an older copy of the store still opens with it
    Remove {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The number that `keys list` shows
        slot: u8,
    },
}

#[derive(Subcommand)]
enum Header {
    /// Save the header to a new file; it opens with the secrets of today for ever, so keep it like a key
    Save {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new file
        file: PathBuf,
    },
    /// Put a saved header back, over a damaged or missing one
    Restore {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The saved header
        file: PathBuf,
    },
}

/// Which store, and which account of it.
#[derive(Args)]
struct Store {
    /// The store
    store: PathBuf,
    /// The account, if the store has several; the lowest is the default
    #[arg(long, value_name = "NUMBER")]
    account: Option<i32>,
}

/// What opens the store; a prompt if nothing is given.
#[derive(Args)]
struct CurrentSecret {
    /// Read the passphrase from the first line of a file
    #[arg(long, value_name = "FILE", group = "current")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from an open file descriptor
    #[arg(long, value_name = "NUMBER", group = "current")]
    passphrase_fd: Option<u32>,
    /// Read the passphrase from an environment variable; other programs of the same user can read it there
    #[arg(long, value_name = "NAME", group = "current")]
    passphrase_env: Option<String>,
    /// Open with a key file of 32 bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "FILE", group = "current")]
    key_file: Option<PathBuf>,
    /// Open with a recovery key, read from a file
    #[arg(long, value_name = "FILE", group = "current")]
    recovery_key_file: Option<PathBuf>,
}

/// What is to open the store; a prompt if nothing is given.
#[derive(Args)]
struct NewSecret {
    /// Read the new passphrase from the first line of a file
    #[arg(long, value_name = "FILE", group = "new")]
    new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from an open file descriptor
    #[arg(long, value_name = "NUMBER", group = "new")]
    new_passphrase_fd: Option<u32>,
    /// Read the new passphrase from an environment variable; other programs of the same user can read it there
    #[arg(long, value_name = "NAME", group = "new")]
    new_passphrase_env: Option<String>,
    /// Open with a key file of 32 bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "FILE", group = "new")]
    new_key_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = || -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Failure::other)?;
        runtime.block_on(run(cli.command))
    };
    match run() {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("wastore: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Init { store, new } => {
            let secret = new.read()?;
            Vault::create(Arc::new(create(&store).await?), secret).await?;
            println!("an empty encrypted store was created");
        }
        Command::Import { source, store, account, all_accounts, new } => {
            // Before anybody types a passphrase.
            if store.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: store }.into());
            }
            let bar = progress_bar();
            let shown = bar.clone();
            let mut import = Import::new().on_progress(move |progress| {
                shown.set_message(if progress.phase == ImportPhase::Copying { "copying" } else { "comparing" });
                shown.set_length(progress.total);
                shown.set_position(progress.done);
            });
            if let Some(account) = account {
                import = import.account(account);
            }
            if all_accounts {
                import = import.all_accounts();
            }
            let report = import.run(&source, &store, new.read()?).await;
            bar.finish_and_clear();
            print!("{}", report?);
            println!("\n{} is complete, and was compared with the source record by record.", store.display());
            println!("{} is as it was, and readable: delete it when the bot runs on the new store.", source.display());
        }
        Command::Export { store, secret, target, plaintext: _ } => {
            if target.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: target }.into());
            }
            let store = store.open().await?;
            let vault = secret.open_read_only(&store).await?;
            let bar = progress_bar();
            let shown = bar.clone();
            let export = Export::new().on_progress(move |progress| {
                shown.set_message("exporting");
                shown.set_length(progress.total);
                shown.set_position(progress.done);
            });
            let report = export.run(&store, &vault, &target).await;
            bar.finish_and_clear();
            print!("{}", report?);
            println!(
                "\n{} holds everything in plaintext: whoever reads it can take the account over.",
                target.display()
            );
        }
        Command::Passwd { store, secret, new } => {
            let vault = secret.open(&store.open().await?).await?;
            if new.new_key_file.is_some() {
                return Err(Failure::usage("a key file is added with `wastore keys add`"));
            }
            vault.change_passphrase(new.read_passphrase()?).await?;
            println!("the passphrase was changed");
        }
        Command::Keys { command } => keys(command).await?,
        Command::Verify { store, secret, quick, json } => {
            let store = store.open().await?;
            let vault = secret.open_read_only(&store).await?;
            let bar = progress_bar();
            let shown = bar.clone();
            let verify = Verify::new().on_progress(move |progress| {
                shown.set_message("checking");
                shown.set_length(progress.total);
                shown.set_position(progress.done);
            });
            let report = if quick { verify.quick() } else { verify }.run(&store, &vault).await;
            bar.finish_and_clear();
            let report = report?;
            if json {
                println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::other)?);
            } else {
                print!("{report}");
            }
            return Ok(ExitCode::from(if report.is_sound() { 0 } else { DAMAGED }));
        }
        Command::Inspect { store, json } => {
            let inspection = open(&store).await?.inspect().await?;
            if json {
                println!("{}", serde_json::to_string_pretty(&as_json(&inspection)).map_err(Failure::other)?);
            } else {
                print!("{inspection}");
            }
        }
        Command::Backup { store, file } => {
            if file.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: file }.into());
            }
            open(&store).await?.backup(&file).await?;
            println!("{} is a copy of the store", file.display());
        }
        Command::Header { command: Header::Save { store, secret, file } } => {
            let header = secret.open(&store.open().await?).await?.save_header();
            write_private(&file, &header)?;
            println!("the header was saved: keep {} like a key", file.display());
        }
        Command::Header { command: Header::Restore { store, secret, file } } => {
            let store = store.open().await?;
            let saved =
                fs::read(&file).map_err(|error| Failure::file("the saved header cannot be read", &file, &error))?;
            VaultOptions::new().restore_header(Arc::new(store), &saved, secret.read()?).await?;
            println!("the header was restored; save it again");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn keys(command: Keys) -> Result<(), Failure> {
    match command {
        Keys::List { store } => {
            let store = store.open().await?;
            let header = HeaderInfo::read(&store).await?.ok_or(Error::NoVault)?;
            println!("{:<5} {:<32} opens with", "slot", "label");
            for slot in header.slots {
                println!("{:<5} {:<32} {}", slot.id, slot.label, slot.kind);
            }
        }
        Keys::Add { store, secret, new, recovery, label } => {
            let vault = secret.open(&store.open().await?).await?;
            if recovery {
                let key = vault.add_recovery_key().await?;
                println!("{}", *key.expose());
                eprintln!("this recovery key opens the store and is not shown again: print it and keep it in a safe");
                return Ok(());
            }
            let secret = new.read()?;
            let usual = if new.new_key_file.is_some() { "key" } else { "passphrase" };
            let slot = vault.add_slot(label.as_deref().unwrap_or(usual), secret).await?;
            println!("slot {slot} was added");
        }
        Keys::Remove { store, secret, slot } => {
            secret.open(&store.open().await?).await?.remove_slot(slot).await?;
            println!("slot {slot} was removed; older copies of the store still open with it");
        }
    }
    Ok(())
}

impl Store {
    async fn open(&self) -> Result<SqliteStore, Failure> {
        let store = open(&self.store).await?;
        let number = match self.account {
            Some(number) => number,
            None => store.accounts().await?.first().copied().unwrap_or(1),
        };
        Ok(store.account(number))
    }
}

/// Opens a store that is there.
async fn open(path: &Path) -> Result<SqliteStore, Failure> {
    // Opening would create it.
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteStore::open(path).await?)
}

async fn create(path: &Path) -> Result<SqliteStore, Failure> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::TargetExists { path: path.to_owned() }.into());
    }
    Ok(SqliteStore::open(path).await?)
}

impl CurrentSecret {
    async fn open(&self, store: &SqliteStore) -> Result<Vault, Failure> {
        Ok(store.open_vault(&VaultOptions::new(), self.read()?).await?)
    }

    async fn open_read_only(&self, store: &SqliteStore) -> Result<Vault, Failure> {
        Ok(store.open_vault_read_only(&VaultOptions::new(), self.read()?).await?)
    }

    fn read(&self) -> Result<Secret, Failure> {
        if let Some(path) = &self.key_file {
            return Ok(Key::from_file(path)?.into());
        }
        if let Some(path) = &self.recovery_key_file {
            let text = fs::read_to_string(path);
            let text = text.map_err(|error| Failure::file("the recovery key cannot be read", path, &error))?;
            return Ok(RecoveryKey::parse(text.trim())?.into());
        }
        let given = passphrase(self.passphrase_file.as_deref(), self.passphrase_fd, self.passphrase_env.as_deref())?;
        match given {
            Some(passphrase) => Ok(passphrase.into()),
            None => Ok(Passphrase::new(prompt("passphrase: ")?)?.into()),
        }
    }
}

impl NewSecret {
    fn read(&self) -> Result<Secret, Failure> {
        match &self.new_key_file {
            Some(path) => Ok(Key::from_file(path)?.into()),
            None => Ok(self.read_passphrase()?.into()),
        }
    }

    fn read_passphrase(&self) -> Result<Passphrase, Failure> {
        let Self { new_passphrase_file, new_passphrase_fd, new_passphrase_env, .. } = self;
        let given = passphrase(new_passphrase_file.as_deref(), *new_passphrase_fd, new_passphrase_env.as_deref())?;
        if let Some(passphrase) = given {
            return Ok(passphrase);
        }
        let first = prompt("new passphrase: ")?;
        if first != prompt("once more: ")? {
            return Err(Failure::usage("the two passphrases are not the same"));
        }
        Ok(Passphrase::new(first)?)
    }
}

fn passphrase(
    file: Option<&Path>,
    descriptor: Option<u32>,
    variable: Option<&str>,
) -> Result<Option<Passphrase>, Failure> {
    Ok(match (file, descriptor, variable) {
        (Some(path), ..) => Some(Passphrase::from_file(path)?),
        (_, Some(number), _) => Some(Passphrase::from_file(format!("/dev/fd/{number}"))?),
        (.., Some(name)) => Some(Passphrase::from_env(name)?),
        _ => None,
    })
}

/// Reads a line from the terminal and does not show it.
fn prompt(text: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "no terminal to ask for a passphrase on: give one of the options for files, descriptors and variables",
        ));
    }
    rpassword::prompt_password(text).map_err(Failure::other)
}

/// On a terminal only.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:>9} {bar:40} {human_pos}/{human_len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Writes a new file that only its owner may read.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(|error| Failure::file("the file cannot be written", path, &error))
}

fn as_json(inspection: &wastore::Inspection) -> serde_json::Value {
    let slot = |slot: &wastore::SlotInfo| {
        let cost = match slot.kind {
            SlotKind::Passphrase(cost) => serde_json::json!({
                "memory_kib": cost.memory_kib(), "passes": cost.passes(), "lanes": cost.lanes(),
            }),
            _ => serde_json::Value::Null,
        };
        serde_json::json!({ "id": slot.id, "label": slot.label, "kind": slot.kind.to_string(), "argon2id": cost })
    };
    let account = |(number, header): &(i32, Option<HeaderInfo>)| {
        let vault = header.as_ref().map(|header| {
            serde_json::json!({
                "format": header.version,
                "generation": header.generation,
                "created": header.created,
                "intact_header_copies": header.intact_copies,
                "padding": format!("{:?}", header.padding),
                "data_key_epochs": header.epochs,
                "device_sealed": header.device_sealed,
                "importing": header.importing,
                "slots": header.slots.iter().map(slot).collect::<Vec<_>>(),
            })
        });
        serde_json::json!({ "account": number, "vault": vault })
    };
    let table =
        |(name, rows, bytes): &(&str, u64, u64)| serde_json::json!({ "table": name, "rows": rows, "bytes": bytes });
    serde_json::json!({
        "accounts": inspection.accounts.iter().map(account).collect::<Vec<_>>(),
        "tables": inspection.tables.iter().map(table).collect::<Vec<_>>(),
    })
}

const OTHER: u8 = 1;
const USAGE: u8 = 2;
const WRONG_SECRET: u8 = 3;
const DAMAGED: u8 = 4;
const REFUSED: u8 = 5;

/// What went wrong, and the exit code that says so.
struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    fn usage(text: &str) -> Self {
        Self { text: text.to_owned(), code: USAGE }
    }

    fn other(error: impl std::error::Error) -> Self {
        Self { text: error.to_string(), code: OTHER }
    }

    fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self { text: format!("{what}: {}: {error}", path.display()), code: REFUSED }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::WrongSecret => WRONG_SECRET,
            Error::HeaderDamaged(_)
            | Error::HeaderMissing
            | Error::HeaderTampered
            | Error::HeaderRolledBack
            | Error::DeviceMissing
            | Error::Tampered { .. }
            | Error::Plaintext { .. }
            | Error::Malformed { .. } => DAMAGED,
            Error::NotUpstream { .. }
            | Error::UpstreamTooOld { .. }
            | Error::UpstreamTooNew { .. }
            | Error::NoSuchAccount(_)
            | Error::SeveralAccounts(_)
            | Error::TargetExists { .. }
            | Error::ForeignFile { .. }
            | Error::UnsupportedVersion { .. }
            | Error::VaultExists
            | Error::NoVault
            | Error::ImportIncomplete
            | Error::File { .. } => REFUSED,
            _ => OTHER,
        };
        // Sources say what the operating system or SQLite said.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self { text, code }
    }
}
