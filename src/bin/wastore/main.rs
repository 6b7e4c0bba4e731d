//! The command `wastore`: what an operator does with the store of a bot. Everything that it does is a function of the library.

#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a command talks to a terminal")]

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use wastore::{
    Argon2Cost, Error, Export, FileAnchor, HeaderInfo, Import, ImportPhase, Key, RecoveryKey, RemovedSource, Repair,
    Rotate, SlotInfo, SlotKind, SqliteConfig, SqliteProblem, SqliteStore, VaultOptions, Verify, VerifyReport,
    printable, printable_path,
};

use zeroize::Zeroizing;

/// Writes a line to standard error, which may be closed.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stderr(), $($text)*).ok();
    }};
}

mod secrets;
mod terminal;

use secrets::{CurrentSecret, NewPassphrase, NewSecret, saved_header};
use terminal::restore_terminal;

/// Encrypted storage for whatsapp-rust: import an existing bot, change who can open its store, check it, back it up.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The folder of the freshness anchor, if the bot uses one: for every command that takes a secret
    #[arg(long, global = true, value_name = "FOLDER")]
    anchor: Option<PathBuf>,
    /// The context that the vault is bound to, if the bot gives one; the default is the number of the account
    #[arg(long, global = true, value_name = "TEXT")]
    context: Option<String>,
    /// The memory that a guess at a new passphrase takes, in MiB; without it the slot that is replaced keeps its own, and others
    /// take 64
    #[arg(long, global = true, value_name = "MIB")]
    kdf_memory: Option<u32>,
    /// How often a guess goes through that memory; without it 3 times
    #[arg(long, global = true, value_name = "NUMBER", requires = "kdf_memory")]
    kdf_passes: Option<u32>,
    /// Open only the store with this id, as `inspect` prints it
    #[arg(long, global = true, value_name = "HEX", value_parser = store_id)]
    expect_store: Option<[u8; 16]>,
}

fn store_id(text: &str) -> Result<[u8; 16], String> {
    let id = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|id| id.try_into().ok());
    id.ok_or_else(|| "an id is 32 hexadecimal digits".to_owned())
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed; the message says what and what to do
  2  the command line is not right
  3  the passphrase or key does not open the store
  4  the store is damaged, or was altered
  5  a file is not what it has to be, is there already, or is not there
130  interrupted";

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
    /// The source is only read, unless it is to be removed. Stop the bot before, and remove its database when the new store is
    /// in use: until then the keys of the account are readable in it.
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
        /// Overwrite and delete the source when the new store is complete and was compared with it; what it leaves behind is
        /// printed
        #[arg(long, conflicts_with = "account")]
        remove_source: bool,
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
        /// Write every account; the secret opens the lowest, and the others with it
        #[arg(long, conflicts_with = "account")]
        all_accounts: bool,
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
        new: NewPassphrase,
    },
    /// List, add and remove what opens the store
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Make a new data key and seal every record anew under it
    ///
    /// The secrets stay. Stop the bot before, or call `Rotate` in it. Interrupted, it goes on when it is run again.
    Rotate {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// Forget the old data key even if there are damaged records, which `verify` lists; they stay unreadable
        #[arg(long)]
        leave_damaged: bool,
    },
    /// Make a leaked passphrase or key useless: new keys for everything, which only the new secret opens
    ///
    /// Of all accounts that the leaked secret opens, or that open with the key that the vault of such an account derives for
    /// them. Every other secret is gone as well: add them again afterwards. Vaults in other files whose keys a vault of this one
    /// derives need keys of their own before. Stop the bot before, or call `Rotate::revoke` in it. Interrupted, run it again with the secret that opens the store then. What
    /// somebody who has an old secret can still do is printed at the end.
    Revoke {
        /// The store
        store: PathBuf,
        #[command(flatten)]
        secret: CurrentSecret,
        #[command(flatten)]
        new: NewSecret,
        /// Forget the old data keys even if there are damaged records, which `verify` lists; they stay unreadable
        #[arg(long)]
        leave_damaged: bool,
        /// Leave this account as it is; without it nothing is changed if the leaked secret does not open every account
        #[arg(long, value_name = "NUMBER")]
        except: Vec<i32>,
    },
    /// Rewrite the whole file, so that nothing of deleted or replaced records stays in unused parts of it
    ///
    /// Needs no secret, and free space of about twice the file. The end of `rotate` and `revoke` does it as well.
    Vacuum {
        /// The store
        store: PathBuf,
    },
    /// Open every record and check its seal, its place and its name, and the database around it
    Verify {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// Check the header, fifty rows of each table, and the database without its indexes
        #[arg(long)]
        quick: bool,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop the records that `verify` names as damaged, so that the client negotiates or fetches them anew
    ///
    /// The whole store is copied before. What each kind means for the account is printed: most come again by themselves, a few
    /// are lost. Nothing is done to a sound store. Stop the bot before.
    Repair {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new file for the copy from before
        #[arg(long, value_name = "FILE")]
        backup: PathBuf,
        /// Also drop records under a data key that the header does not have; first make sure that no newer header is left, which
        /// would open them
        #[arg(long)]
        unknown_keys: bool,
    },
    /// Delete the sessions, identities and sender keys of a contact, so that they are negotiated anew
    ///
    /// All devices of the contact, under its phone number and its LID. Stop the bot before: it keeps sessions itself.
    Forget {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The contact's JID, or what comes before its `@`
        jid: String,
    },
    /// Delete the oldest of the snapshots that the client had made beside the store
    PruneSnapshots {
        /// The store
        store: PathBuf,
        /// How many stay
        #[arg(long, value_name = "NUMBER")]
        keep: NonZeroUsize,
    },
    /// Take the store as it is, although the freshness anchor remembers a newer or another one, or nothing
    ///
    /// What the anchor remembered does not open any more. Link the account again afterwards: a store that was put back uses
    /// message keys twice.
    AcceptRollback {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
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
        #[arg(required_unless_present = "to_folder", conflicts_with = "to_folder")]
        file: Option<PathBuf>,
        /// Copy it into this folder, under its name and the time, and look at the copy
        #[arg(long, value_name = "FOLDER", requires = "keep")]
        to_folder: Option<PathBuf>,
        /// Delete the oldest of such copies in the folder, but so many
        #[arg(long, value_name = "NUMBER", requires = "to_folder")]
        keep: Option<NonZeroUsize>,
    },
    /// Put a backup in the place of the store
    ///
    /// The store that is there is not deleted, but renamed, and so is its log, which must not lie beside another database. Stop
    /// the bot before. With a freshness anchor run `accept-rollback` afterwards.
    Restore {
        /// The backup, which is only read
        backup: PathBuf,
        /// The store
        store: PathBuf,
    },
    /// Make a key file of 64 random hexadecimal digits, which only its owner can read
    Keygen {
        /// The new file
        file: PathBuf,
    },
    /// List the accounts in a store, or delete one
    Accounts {
        #[command(subcommand)]
        command: Accounts,
    },
    /// Give free pages at the end of the file back to the file system
    Shrink {
        /// The store
        store: PathBuf,
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
        #[arg(long, group = "new")]
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
enum Accounts {
    /// Print the number of each account, and whether it has a vault
    List {
        /// The store
        store: PathBuf,
    },
    /// Delete every record of an account, and its vault; older copies of the store still have them
    ///
    /// Stop its bot before. Pieces may stay in unused parts of the file until `vacuum`.
    Delete {
        /// The store
        store: PathBuf,
        /// The account
        number: i32,
        /// The account is to be deleted for good
        #[arg(long, required = true)]
        for_good: bool,
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
    /// The account, if the store has several
    #[arg(long, value_name = "NUMBER")]
    account: Option<i32>,
}

fn main() -> ExitCode {
    let Cli { command, anchor, context, kdf_memory, kdf_passes, expect_store } = Cli::parse();
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let mut options = VaultOptions::new();
    if let Some(folder) = anchor {
        options = options.freshness_anchor(Arc::new(FileAnchor::new(folder)));
    }
    if let Some(context) = context {
        options = options.context(context);
    }
    if let Some(id) = expect_store {
        options = options.expect_store(id);
    }
    if let Some(memory) = kdf_memory {
        let usual = Argon2Cost::DEFAULT;
        match Argon2Cost::new(memory.saturating_mul(1024), kdf_passes.unwrap_or(usual.passes()), usual.lanes()) {
            Ok(cost) => options = options.kdf_cost(cost),
            Err(error) => {
                tell!("wastore: {error}");
                return ExitCode::from(USAGE);
            }
        }
    }
    let makes = Makes::of(&command);
    let run = || -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)?;
        // Dropping what is under way removes its unfinished files.
        runtime.block_on(async {
            // Before anything is made that a signal must not leave behind.
            let interrupted = interrupted();
            tokio::select! {
                done = run(command, &options) => done,
                () = interrupted => Err(Failure { text: "interrupted".to_owned(), code: INTERRUPTED }),
            }
        })
    };
    match run() {
        Ok(code) => code,
        Err(failure) => {
            if failure.code == INTERRUPTED {
                end_background_work();
                restore_terminal();
                makes.tell_what_is_done();
            }
            tell!("wastore: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Lets other threads end what they are in the middle of, and take their files along. A second signal ends the program at once.
fn end_background_work() {
    let (ended, wait) = std::sync::mpsc::channel::<&str>();
    let second = ended.clone();
    let on_a_thread = |work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().spawn(work).is_ok();
    on_a_thread(Box::new(move || {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            runtime.block_on(async { interrupted().await });
            second.send("a second signal came: files that begin with .wastore- may be left, delete them").ok();
        }
    }));
    let finishes = on_a_thread(Box::new(move || {
        wastore::finish_background_work();
        ended.send("").ok();
    }));
    if !finishes {
        return wastore::finish_background_work();
    }
    if let Ok(text) = wait.recv()
        && !text.is_empty()
    {
        tell!("wastore: {text}");
    }
}

/// What a command makes, and what it may take away, to say after an interruption what it had done by then.
struct Makes {
    target: Option<PathBuf>,
    source: Option<PathBuf>,
}

impl Makes {
    fn of(command: &Command) -> Self {
        let (target, source) = match command {
            Command::Init { store, .. } => (Some(store), None),
            Command::Import { store, source, remove_source, .. } => (Some(store), remove_source.then_some(source)),
            Command::Export { target, .. } => (Some(target), None),
            Command::Backup { file, .. } => (file.as_ref(), None),
            Command::Repair { backup, .. } => (Some(backup), None),
            Command::Keygen { file } | Command::Header { command: Header::Save { file, .. } } => (Some(file), None),
            _ => (None, None),
        };
        Self {
            target: target.filter(|path| path.symlink_metadata().is_err()).cloned(),
            source: source.filter(|path| path.symlink_metadata().is_ok()).cloned(),
        }
    }

    fn tell_what_is_done(self) {
        if let Some(path) = self.target.filter(|path| path.symlink_metadata().is_ok()) {
            tell!("wastore: {} is complete", printable_path(&path));
        }
        if let Some(path) = self.source.filter(|path| path.symlink_metadata().is_err()) {
            tell!("wastore: {} was removed", printable_path(&path));
        }
    }
}

/// A future that ends when a signal, from now on, asks the program to end.
fn interrupted() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let heeded = kinds.into_iter().filter(|kind| !is_ignored(kind.as_raw_value()));
        let mut signals: Vec<_> = heeded.filter_map(|kind| signal(kind).ok()).collect();
        std::future::poll_fn(move |context| {
            let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
    }
    #[cfg(not(unix))]
    async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals there is nothing to wait for.
            std::future::pending().await
        }
    }
}

/// `true` if the caller of the program has switched a signal off, as `nohup` does.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    static IGNORED: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        // Only Linux says so without a call that this program would need unsafe code for.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    });
    *IGNORED >> (signal - 1) & 1 == 1
}

async fn run(command: Command, options: &VaultOptions) -> Result<ExitCode, Failure> {
    match command {
        Command::Init { store, new } => {
            // Before anybody types a passphrase.
            if store.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: store }.into());
            }
            let secret = new.read().await?;
            SqliteStore::create_encrypted(&store, options, secret).await?;
            say("an empty encrypted store was created\n")?;
        }
        Command::Import { source, store, account, all_accounts, remove_source, new } => {
            // Before anybody types a passphrase.
            let resumes = remove_source && source.metadata().is_err();
            if !resumes && store.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: store }.into());
            }
            let bar = progress_bar();
            let shown = bar.clone();
            let mut import = Import::new().vault_options(options.clone()).on_progress(move |progress| {
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
            if remove_source {
                import = import.remove_source();
            }
            let report = import.run(&source, &store, new.read().await?).await;
            bar.finish_and_clear();
            let report = report?;
            say(format_args!(
                "{report}\n{} is complete, and was compared with the source record by record.\n",
                printable_path(&store)
            ))?;
            for number in report.accounts() {
                say(format_args!("account {number} opens with SqliteStore::open(..).await?.account({number})\n"))?;
            }
            match report.removed_source() {
                None => say(format_args!(
                    "{} is as it was, and readable: remove it when the bot runs on the new store.\n",
                    printable_path(&source)
                ))?,
                Some(removed) => {
                    say(format_args!("{}\n", RemovedSource::LIMITS))?;
                    for left in removed.left() {
                        say(format_args!("{} is still there, and readable\n", printable_path(left)))?;
                    }
                }
            }
        }
        Command::Export { store, secret, target, all_accounts, plaintext: _ } => {
            if target.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: target }.into());
            }
            let opened = in_use(open_read_only(&store.store).await?).await?;
            let stores: Vec<_> = match all_accounts {
                true => accounts(&opened).await?.into_iter().map(|number| opened.account(number)).collect(),
                false => vec![store.choose(opened).await?],
            };
            let (secret, mut vaults) = (secret.read().await?, vec![]);
            for account in &stores {
                vaults.push(account.open_vault_read_only(options, secret.duplicate()).await?);
            }
            let bar = progress_bar();
            let shown = bar.clone();
            let export = Export::new().on_progress(move |progress| {
                shown.set_message("exporting");
                shown.set_length(progress.total);
                shown.set_position(progress.done);
            });
            let reports = export.run_all(&stores.iter().zip(&vaults).collect::<Vec<_>>(), &target).await;
            bar.finish_and_clear();
            for (account, report) in stores.iter().zip(reports?) {
                say(format_args!("account {}\n{report}\n", account.account_number()))?;
            }
            say(format_args!(
                "{} holds everything in plaintext: whoever reads it can take the account over.\n",
                printable_path(&target)
            ))?;
        }
        Command::Passwd { store, secret, new } => {
            let vault = secret.open(&store.open().await?, options).await?;
            vault.change_passphrase(new.read().await?).await?;
            say("the passphrase was changed\n")?;
        }
        Command::Keys { command } => keys(command, options).await?,
        Command::Rotate { store, secret, leave_damaged } => return rotate(store, secret, leave_damaged, options).await,
        Command::Revoke { store, secret, new, leave_damaged, except } => {
            let opened = in_use(open(&store).await?).await?;
            let bar = progress_bar();
            let rotation = except.into_iter().fold(rotation(leave_damaged, &bar), Rotate::except);
            let report = rotation.revoke(&opened, options, secret.read().await?, new.read().await?).await;
            bar.finish_and_clear();
            say(format_args!("{}\n", report?))?;
        }
        Command::Vacuum { store } => {
            in_use(open(&store).await?).await?.vacuum().await?;
            say("the file was rewritten\n")?;
        }
        Command::Verify { store, secret, quick, json } => return verify(store, secret, quick, json, options).await,
        Command::Repair { store, secret, backup, unknown_keys } => {
            if backup.symlink_metadata().is_ok() {
                return Err(Error::TargetExists { path: backup }.into());
            }
            let store = store.open().await?;
            let vault = secret.open(&store, options).await?;
            let bar = progress_bar();
            let shown = bar.clone();
            let repair = if unknown_keys { Repair::new().unknown_keys() } else { Repair::new() };
            let repair = repair.on_progress(move |progress| {
                shown.set_message("checking");
                shown.set_length(progress.total);
                shown.set_position(progress.done);
            });
            let report = repair.run(&store, &vault, backup).await;
            bar.finish_and_clear();
            let report = report?;
            say(format_args!("account {}\n{report}\n", store.account_number()))?;
            if let Some(backup) = report.backup() {
                say(format_args!("{} is a copy from before\n", printable_path(backup)))?;
            }
        }
        Command::Forget { store, secret, jid } => {
            let store = store.open().await?;
            let vault = secret.open(&store, options).await?;
            say(format_args!("deleted: {}\n", store.forget(&vault, &jid).await?))?;
        }
        Command::PruneSnapshots { store, keep } => {
            for old in in_use(open_read_only(&store).await?).await?.prune_snapshots(keep).await? {
                say(format_args!("{} was deleted\n", printable_path(&old)))?;
            }
        }
        Command::AcceptRollback { store, secret } => {
            let (opened, secret) = (in_use(open(&store.store).await?).await?, secret.read().await?);
            for number in store.accounts(&opened).await? {
                opened.account(number).accept_rollback(options, secret.duplicate()).await?;
                say(format_args!("account {number} is taken as it is: link it again, and save its header again\n"))?;
            }
        }
        Command::Inspect { store, json } => {
            let inspection = open_read_only(&store).await?.inspect().await?;
            if json {
                say(format_args!("{:#}\n", as_json(&inspection)))?;
            } else {
                say(&inspection)?;
            }
            if inspection.accounts.is_empty() {
                return Err(Error::NoVault.into());
            }
        }
        Command::Backup { store, file, to_folder, keep } => {
            let store = in_use(open_read_only(&store).await?).await?;
            if let Some(file) = file {
                store.backup(&file).await?;
                say(format_args!("{} is a copy of the store\n", printable_path(&file)))?;
            }
            if let (Some(folder), Some(keep)) = (to_folder, keep) {
                let (copy, removed) = store.backup_to_folder(folder, keep).await?;
                say(format_args!("{} is a copy of the store, and sound\n", printable_path(&copy)))?;
                for old in removed {
                    say(format_args!("{} was deleted\n", printable_path(&old)))?;
                }
            }
        }
        Command::Restore { backup, store } => {
            fs::metadata(&backup).map_err(|error| Failure::file("the backup cannot be opened", &backup, &error))?;
            let aside = SqliteStore::restore(&backup, &store).await?;
            say(format_args!("{} is as the backup was\n", printable_path(&store)))?;
            if let Some(aside) = aside {
                say(format_args!("the store that was there is {} now\n", printable_path(&aside)))?;
            }
        }
        Command::Keygen { file } => {
            let mut digits = Zeroizing::new([0; 64]);
            data_encoding::HEXLOWER.encode_mut(Key::generate()?.expose(), &mut *digits);
            write_private(&file, &*digits)?;
            say(format_args!("{} is a key: keep a copy of it where the store is not\n", printable_path(&file)))?;
        }
        Command::Accounts { command: Accounts::List { store } } => {
            for account in in_use(open_read_only(&store).await?).await?.inspect().await?.accounts {
                let vault = match (account.header, account.problem) {
                    (Some(_), _) => "has a vault".to_owned(),
                    (None, problem) => problem.unwrap_or_else(|| "has no vault".to_owned()),
                };
                say(format_args!("account {}: {}\n", account.number, printable(&vault)))?;
            }
        }
        Command::Accounts { command: Accounts::Delete { store, number, for_good: _ } } => {
            let store = open(&store).await?;
            let accounts = store.inspect().await?.accounts;
            let Some(deleted) = accounts.iter().find(|account| account.number == number) else {
                return Err(Error::NoSuchAccount(number).into());
            };
            if let Some(id) = deleted.header.as_ref().map(|header| header.store_id) {
                let opens_with_it = |header: &HeaderInfo| header.parent == Some(id) && header.slots.len() == 1;
                let others = accounts.iter().filter(|account| account.header.as_ref().is_some_and(opens_with_it));
                if let Some(other) = others.map(|account| account.number).next() {
                    let text = format!(
                        "account {other} opens with a key of account {number}: give it one of its own first, with `keys add --account {other}`"
                    );
                    return Err(Failure { text, code: REFUSED });
                }
            }
            store.account(number).delete_account().await?;
            say(format_args!("account {number} was deleted; older copies of the store still have it\n"))?;
        }
        Command::Shrink { store } => {
            let left = in_use(open(&store).await?).await?.shrink(None).await?;
            say(format_args!("{left} free pages are left\n"))?;
        }
        Command::Header { command: Header::Save { store, secret, file } } => {
            let header = secret.open_read_only(&store.open_read_only().await?, options).await?.save_header();
            write_private(&file, &header)?;
            say(format_args!("the header was saved: keep {} like a key\n", printable_path(&file)))?;
        }
        Command::Header { command: Header::Restore { store, secret, file } } => {
            let store = store.open().await?;
            let saved = saved_header(&file).await?;
            let vault = store.restore_vault_header(options, &saved, secret.read().await?).await?;
            say(
                "the header was restored; save it again. These slots open the store, also those that were removed since:\n",
            )?;
            say_slots(vault.slots())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rotation(leave_damaged: bool, bar: &ProgressBar) -> Rotate {
    let bar = bar.clone();
    let rotate = Rotate::new().on_progress(move |progress| {
        bar.set_message("sealing");
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    if leave_damaged { rotate.leave_damaged() } else { rotate }
}

/// Changes the data key of one account, or of all of them.
async fn rotate(
    store: Store,
    secret: CurrentSecret,
    leave_damaged: bool,
    options: &VaultOptions,
) -> Result<ExitCode, Failure> {
    let opened = open(&store.store).await?;
    let (bar, secret) = (progress_bar(), secret.read().await?);
    let change = async |account: SqliteStore| {
        let report = async {
            let vault = account.open_vault(options, secret.duplicate()).await?;
            rotation(leave_damaged, &bar).run(&account, &vault).await
        };
        let report = report.await;
        bar.finish_and_clear();
        report
    };
    let mut is_changed = false;
    let tell = |number, report| match report {
        Ok(report) => {
            is_changed = true;
            say(format_args!("account {number}: {report}\n"))
        }
        Err(_) => Ok(()),
    };
    let code = each_account(&store, &opened, change, tell).await?;
    if is_changed {
        say("save the headers again, if you keep copies of them: those from before open nothing in this store\n")?;
    }
    Ok(ExitCode::from(code))
}

/// Checks one account, or all of them.
async fn verify(
    store: Store,
    secret: CurrentSecret,
    quick: bool,
    json: bool,
    options: &VaultOptions,
) -> Result<ExitCode, Failure> {
    let opened = open_read_only(&store.store).await?;
    let (bar, secret) = (progress_bar(), secret.read().await?);
    let check = async |account: SqliteStore| {
        let shown = bar.clone();
        let verify = Verify::new().on_progress(move |progress| {
            shown.set_message("checking");
            shown.set_length(progress.total);
            shown.set_position(progress.done);
        });
        let vault = account.open_vault_read_only(options, secret.duplicate()).await?;
        if quick { verify.quick() } else { verify }.run(&account, &vault).await
    };
    let (mut reports, mut sound) = (vec![], true);
    let tell = |number, report: Result<VerifyReport, String>| {
        reports.push(match report {
            Ok(report) => {
                sound &= report.is_sound();
                if !json {
                    say(format_args!("account {number}\n{report}"))?;
                }
                serde_json::json!({ "account": number, "report": report })
            }
            Err(problem) => serde_json::json!({ "account": number, "problem": problem }),
        });
        Ok(())
    };
    let code = each_account(&store, &opened, check, tell).await?;
    bar.finish_and_clear();
    if json {
        say(format_args!("{:#}\n", serde_json::Value::from(reports)))?;
    }
    Ok(ExitCode::from(if sound { code } else { DAMAGED }))
}

/// Works on the account that was chosen, or on all of them, and goes on with the others if it fails on one. Gives the exit code of
/// the first failure, 0 without one.
async fn each_account<T>(
    store: &Store,
    opened: &SqliteStore,
    work: impl AsyncFn(SqliteStore) -> Result<T, Error>,
    mut tell: impl FnMut(i32, Result<T, String>) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut first = 0;
    let numbers = store.accounts(opened).await?;
    if numbers.is_empty() {
        return Err(Error::NoVault.into());
    }
    for number in numbers {
        let done = work(opened.account(number)).await.map_err(|error| {
            let Failure { text, code } = error.into();
            tell!("wastore: account {number}: {text}");
            first = if first == 0 { code } else { first };
            text
        });
        tell(number, done)?;
    }
    Ok(first)
}

async fn keys(command: Keys, options: &VaultOptions) -> Result<(), Failure> {
    match command {
        Keys::List { store } => {
            let store = store.open_read_only().await?;
            let header = HeaderInfo::read(&store).await?.ok_or(Error::NoVault)?;
            say(format_args!("{:<5} {:<32} opens with\n", "slot", "label"))?;
            say_slots(header.slots)?;
        }
        Keys::Add { store, secret, new, recovery, label } => {
            let vault = secret.open(&store.open().await?, options).await?;
            if recovery {
                let key = RecoveryKey::generate()?;
                // Before it opens anything: a key that nobody saw must not.
                show_secret(&key.expose())?;
                vault.add_slot(label.as_deref().unwrap_or("recovery"), key).await?;
                tell!("this recovery key opens the store and is not shown again: print it and keep it in a safe");
                return Ok(());
            }
            let secret = new.read().await?;
            let usual = if new.is_key() { "key" } else { "passphrase" };
            let slot = vault.add_slot(label.as_deref().unwrap_or(usual), secret).await?;
            say(format_args!("slot {slot} was added\n"))?;
        }
        Keys::Remove { store, secret, slot } => {
            secret.open(&store.open().await?, options).await?.remove_slot(slot).await?;
            say(format_args!("slot {slot} was removed; older copies of the store still open with it\n"))?;
        }
    }
    Ok(())
}

fn say_slots(slots: Vec<SlotInfo>) -> Result<(), Failure> {
    slots.into_iter().try_for_each(|slot| {
        say(format_args!("{:<5} {:<32} {}\n", slot.id, printable(&slot.label).to_string(), slot.kind))
    })
}

impl Store {
    async fn open(&self) -> Result<SqliteStore, Failure> {
        self.choose(open(&self.store).await?).await
    }

    async fn open_read_only(&self) -> Result<SqliteStore, Failure> {
        self.choose(open_read_only(&self.store).await?).await
    }

    async fn choose(&self, store: SqliteStore) -> Result<SqliteStore, Failure> {
        let number = match self.account {
            Some(number) => number,
            None => match accounts(&store).await?[..] {
                [only] => only,
                [] => 1,
                _ => return Err(Failure::usage("the store has several accounts: choose one with --account")),
            },
        };
        Ok(store.account(number))
    }

    /// The account that was chosen, or all of them.
    async fn accounts(&self, opened: &SqliteStore) -> Result<Vec<i32>, Failure> {
        match self.account {
            Some(number) => Ok(vec![number]),
            None => accounts(opened).await,
        }
    }
}

async fn accounts(store: &SqliteStore) -> Result<Vec<i32>, Failure> {
    Ok(store.accounts_in_use().await?)
}

/// Opens a store that is there.
async fn open(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteConfig::new().must_exist().open(path).await?)
}

/// # Errors
/// [`Error::NoVault`] of a store in which no account has anything.
async fn in_use(store: SqliteStore) -> Result<SqliteStore, Failure> {
    if store.accounts_in_use().await?.is_empty() { Err(Error::NoVault.into()) } else { Ok(store) }
}

/// Opens a store that is there, and changes nothing.
async fn open_read_only(path: &Path) -> Result<SqliteStore, Failure> {
    fs::metadata(path).map_err(|error| Failure::file("the store cannot be opened", path, &error))?;
    Ok(SqliteStore::open_read_only(path).await?)
}

/// Writes to standard output. Who no longer reads is no failure.
fn say(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::other(error)),
        _ => Ok(()),
    }
}

/// Writes a secret to standard output, where somebody has to read it.
fn show_secret(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // Also the place of a closed standard output.
        let is_null = |out: rustix::fs::Stat| fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == out.st_rdev);
        if rustix::fs::fstat(&out).is_ok_and(is_null) {
            return Err(Failure::usage("standard output goes nowhere: the recovery key would be lost"));
        }
    }
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::other)
}

/// Shows what the library warns of.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().split("::").next() == Some("wastore")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            tell!("wastore: warning: {}", printable(&record.args().to_string()));
        }
    }

    fn flush(&self) {}
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
    wastore::write_new(path, content).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::TargetExists { path: path.to_owned() }.into(),
        _ => Error::File { what: "new", source }.into(),
    })
}

fn as_json(inspection: &wastore::Inspection) -> serde_json::Value {
    let slot = |slot: &SlotInfo| {
        let cost = match slot.kind {
            SlotKind::Passphrase(cost) => serde_json::json!({
                "memory_kib": cost.memory_kib(), "passes": cost.passes(), "lanes": cost.lanes(),
            }),
            _ => serde_json::Value::Null,
        };
        serde_json::json!({ "id": slot.id, "label": slot.label, "kind": slot.kind.to_string(), "argon2id": cost })
    };
    let account = |account: &wastore::InspectedAccount| {
        let vault = account.header.as_ref().map(|header| {
            serde_json::json!({
                "format": header.version,
                "store_id": data_encoding::HEXLOWER.encode(&header.store_id),
                "bound_to_context": header.bound,
                "generation": header.generation,
                "created": header.created,
                "intact_header_copies": header.intact_copies,
                "padding": format!("{:?}", header.padding),
                "data_key_epochs": header.epochs,
                "device_sealed": header.device_sealed,
                "importing": header.importing,
                "rotating": header.rotating,
                "slots": header.slots.iter().map(slot).collect::<Vec<_>>(),
            })
        });
        serde_json::json!({ "account": account.number, "vault": vault, "problem": account.problem })
    };
    let table =
        |(name, rows, bytes): &(&str, u64, u64)| serde_json::json!({ "table": name, "rows": rows, "bytes": bytes });
    serde_json::json!({
        "accounts": inspection.accounts.iter().map(account).collect::<Vec<_>>(),
        "tables": inspection.tables.iter().map(table).collect::<Vec<_>>(),
    })
}

const INTERRUPTED: u8 = 130;
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
        Self { text: format!("{what}: {}: {error}", printable_path(path)), code: REFUSED }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let own = match &error {
            Error::Store(inner) => Error::of(inner).unwrap_or(&error),
            error => error,
        };
        let code = match own {
            Error::WrongSecret => WRONG_SECRET,
            Error::HeaderDamaged(_)
            | Error::HeaderMissing
            | Error::HeaderTampered
            | Error::HeaderRolledBack
            | Error::RollbackDetected
            | Error::ForkDetected
            | Error::DeviceMissing
            | Error::Tampered { .. }
            | Error::Plaintext { .. }
            | Error::PlaintextDevice
            | Error::UnknownEpoch { .. }
            | Error::NotResealed { .. }
            | Error::SchemaAltered { .. }
            | Error::RowsMissed { .. }
            | Error::Malformed { .. }
            | Error::Sqlite { problem: SqliteProblem::Damaged, .. } => DAMAGED,
            Error::NotUpstream { .. }
            | Error::UpstreamTooOld { .. }
            | Error::UpstreamTooNew { .. }
            | Error::NoSuchAccount(_)
            | Error::SeveralAccounts(_)
            | Error::SourceDamaged
            | Error::SourceHoldsMore { .. }
            | Error::TargetExists { .. }
            | Error::ForeignFile { .. }
            | Error::UnsupportedVersion { .. }
            | Error::VaultExists
            | Error::NoVault
            | Error::OtherAccounts { .. }
            | Error::StoreVanished
            | Error::AnchorMissing
            | Error::WrongContext
            | Error::WrongStore
            | Error::AccountsNotCovered { .. }
            | Error::ImportIncomplete
            | Error::File { .. } => REFUSED,
            _ => OTHER,
        };
        // Sources say what the operating system or SQLite said.
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            // Some say all of it themselves.
            let inner_text = inner.to_string();
            if !text.ends_with(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        Self { text, code }
    }
}
