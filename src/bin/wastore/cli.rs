//! The command line: its commands, arguments and help texts.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, value_parser};
use clap_complete::Shell;
use wastore::vault::{Argon2Cost, FileAnchor};
use wastore::{Result, VaultOptions};

use crate::failure::Failure;
use crate::place::Place;
use crate::secrets::{CurrentSecret, NewPassphrase, NewSecret};
use crate::settings::Settings;
use crate::transit::TransitServer;

/// Encrypted storage for whatsapp-rust: import an existing bot, change the secrets of its store,
/// check it, back it up.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The folder of the rollback anchor, if the bot uses one; for commands that open or make a
    /// vault
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) anchor: Option<PathBuf>,
    /// The context that the vault is bound to, if the bot sets one; the default is the account
    /// number
    #[arg(long, global = true, value_name = "TEXT")]
    pub(crate) context: Option<String>,
    /// The memory that each guess at a new passphrase takes, in MiB, 256 at most; by default a
    /// replaced slot keeps its own, and other slots take 64. A passphrase that takes less, and opens
    /// the store for a change, is raised to it
    #[arg(long, global = true, value_name = "MIB", value_parser = value_parser!(u32).range(..=MOST_MEMORY_MIB))]
    pub(crate) kdf_memory: Option<u32>,
    /// How often a guess passes through that memory, 16 times at most; 3 times by default. Needs
    /// `--kdf-memory`
    #[arg(long, global = true, value_name = "NUMBER", requires = "kdf_memory", value_parser = value_parser!(u32).range(..=MOST_PASSES))]
    pub(crate) kdf_passes: Option<u32>,
    /// Open only the store with this id, as `inspect` prints it
    #[arg(long, global = true, value_name = "HEX", value_parser = store_id)]
    pub(crate) expect_store: Option<[u8; 16]>,
    #[command(flatten)]
    pub(crate) transit: TransitServer,
}

/// The highest cost within the default of [`KdfLimits`](wastore::vault::KdfLimits): every bot and every later command
/// opens such a slot.
const MOST_MEMORY_MIB: i64 = 256;
const MOST_PASSES: i64 = 16;

impl Cli {
    /// # Errors
    /// If the cost is not valid, or an option would be ignored that is meant to refuse a store.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        self.refuse_unused_guards()?;
        let vault = self.vault_options().map_err(|error| Failure::usage(&error.to_string()))?;
        Ok(Settings { vault, transit: self.transit.clone() })
    }

    fn refuse_unused_guards(&self) -> Result<(), Failure> {
        let vault = self.command.vault();
        let guards = [
            ("--anchor", self.anchor.is_some(), vault != VaultUse::None),
            // A copy to another number goes by the contexts of the numbers.
            ("--context", self.context.is_some(), !matches!(vault, VaultUse::None | VaultUse::Copied)),
            ("--expect-store", self.expect_store.is_some(), matches!(vault, VaultUse::Opened | VaultUse::Copied)),
        ];
        match guards.iter().find(|(_, is_given, is_used)| *is_given && !is_used) {
            Some((name, ..)) => Err(Failure::usage(&format!("this command does not check `{name}`: leave it out"))),
            None => Ok(()),
        }
    }

    fn vault_options(&self) -> Result<VaultOptions> {
        let mut options = VaultOptions::new();
        if let Some(folder) = &self.anchor {
            options = options.rollback_anchor(Arc::new(FileAnchor::new(folder)));
        }
        if let Some(context) = &self.context {
            options = options.context(context.as_bytes());
        }
        if let Some(id) = self.expect_store {
            options = options.expect_store(id);
        }
        if let Some(memory) = self.kdf_memory {
            let usual = Argon2Cost::DEFAULT;
            let passes = self.kdf_passes.unwrap_or(usual.passes());
            options = options.kdf_cost(Argon2Cost::new(memory.saturating_mul(1024), passes, usual.lanes())?);
        }
        Ok(options)
    }
}

fn store_id(text: &str) -> Result<[u8; 16], String> {
    let id = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|id| id.try_into().ok());
    id.ok_or_else(|| "an id is 32 hexadecimal digits".to_owned())
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed; the message says what, and what to do
  2  the command line is not valid
  3  the passphrase or key does not open the store
  4  the store is damaged or was altered
  5  a file is of the wrong kind, already exists, or does not exist
130  interrupted";

/// What a command does with vaults.
#[derive(Clone, Copy, PartialEq)]
enum VaultUse {
    None,
    Made,
    Opened,
    /// Opened under the context of another number.
    Copied,
}

impl Command {
    fn vault(&self) -> VaultUse {
        match self {
            Self::Init { .. } | Self::Import(_) => VaultUse::Made,
            Self::Copy(CopyArgs { secret, .. }) if secret.is_given() => VaultUse::Copied,
            Self::Export { .. }
            | Self::Passwd { .. }
            | Self::Keys { command: Keys::Add { .. } | Keys::Remove { .. } }
            | Self::Rotate { .. }
            | Self::Revoke { .. }
            | Self::Verify { .. }
            | Self::Repair { .. }
            | Self::Forget { .. }
            | Self::AcceptRollback { .. }
            | Self::Header { .. } => VaultUse::Opened,
            Self::Copy(_)
            | Self::Keys { command: Keys::List { .. } }
            | Self::Vacuum { .. }
            | Self::PruneSnapshots { .. }
            | Self::Inspect { .. }
            | Self::Backup { .. }
            | Self::Restore { .. }
            | Self::Keygen { .. }
            | Self::Accounts { .. }
            | Self::Shrink { .. }
            | Self::Completions { .. }
            | Self::Man { .. } => VaultUse::None,
        }
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create an empty encrypted store
    Init {
        /// The new store
        store: Place,
        /// The account, 1 if it is left out
        #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
        account: Option<i32>,
        #[command(flatten)]
        new: NewSecret,
    },
    /// Copy a database of whatsapp-rust's own SQLite store into a new encrypted one
    ///
    /// The source is only read, unless you remove it. Stop the bot first. Remove its old database
    /// when the new store is in use: until then the keys of the account are readable in it.
    Import(ImportArgs),
    /// Write an account back into a database of whatsapp-rust's own SQLite store, in plaintext
    ///
    /// The report names the records that cannot be given back, and the consequences.
    Export {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new database; it appears when it is complete
        target: PathBuf,
        /// Export every account; the secret opens the lowest, which opens the others
        #[arg(long, conflicts_with = "account")]
        all_accounts: bool,
        /// Confirm that the keys of the account become readable in the new file
        #[arg(long, required = true)]
        plaintext: bool,
    },
    /// Copy accounts to another store: between files and PostgreSQL servers, in any direction
    ///
    /// Everything is copied as it is, so no secret is needed. Stop the bot first. When the copy is
    /// complete and was compared with the source, the source is closed off, because two live copies
    /// of an account use its message keys twice. If this is interrupted, run it again: it continues.
    Copy(CopyArgs),
    /// Change the passphrase; records do not change
    ///
    /// An older copy of the store still opens with the old passphrase.
    Passwd {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        #[command(flatten)]
        new: NewPassphrase,
    },
    /// List, add and remove the secrets that open the store
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Make a new data key, and seal every record again under it
    ///
    /// The secrets stay the same. Stop the bot first, or call `Rotate` in it. If this is
    /// interrupted, run it again: it continues.
    Rotate {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// Forget the old data key even if there are damaged records, which `verify` lists; they
        /// stay unreadable
        #[arg(long)]
        leave_damaged: bool,
    },
    /// Revoke a leaked passphrase or key: make new keys for everything, which only the new secret
    /// opens
    ///
    /// Covers every account that the leaked secret opens, and every account that opens with a key
    /// derived by the vault of such an account. All other secrets are removed too: add them again
    /// afterwards.
    ///
    /// First give vaults in other files their own keys if a vault of this store derives them. Stop
    /// the bot first, or call `Rotate::revoke` in it. If this is interrupted, run it again with the
    /// secret that opens the store then.
    ///
    /// The end of the output says what an attacker with an old secret can still do.
    Revoke {
        /// The store
        store: Place,
        #[command(flatten)]
        secret: CurrentSecret,
        #[command(flatten)]
        new: NewSecret,
        /// Forget the old data keys even if there are damaged records, which `verify` lists; they
        /// stay unreadable
        #[arg(long)]
        leave_damaged: bool,
        /// Do not change this account; without this option nothing changes if the leaked secret
        /// does not open every account
        #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
        except: Vec<i32>,
    },
    /// Rewrite the whole file, so that no remains of deleted or replaced records stay in unused
    /// parts of it
    ///
    /// Needs no secret, and free space of about twice the file. `rotate` and `revoke` do this at
    /// their end.
    Vacuum {
        /// The store
        store: Place,
    },
    /// Open every record, and check its seal, place and name, and the database around it
    Verify {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// Check only the header, fifty rows of each table, and the database without its indexes
        #[arg(long)]
        quick: bool,
        /// Print the report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop the records that `verify` lists as damaged, so that the client negotiates or fetches
    /// them again
    ///
    /// Copies the whole store first. Prints what each dropped kind means for the account: most come
    /// again by themselves, a few are lost. Does nothing to a sound store. Stop the bot first.
    Repair {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new file for the copy from before the repair
        #[arg(long, value_name = "FILE")]
        backup: PathBuf,
        /// Also drop records under a data key that the header lacks; first make sure that no newer
        /// header exists, which would open them
        #[arg(long)]
        unknown_keys: bool,
    },
    /// Delete the sessions, identities and sender keys of a contact, so that the client negotiates
    /// them again
    ///
    /// Covers all devices of the contact, under its phone number and its LID. Stop the bot first:
    /// it caches sessions.
    Forget {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The contact's JID, or the part before its `@`
        jid: String,
    },
    /// Delete the oldest snapshots that the client made beside the store
    PruneSnapshots {
        /// The store
        store: Place,
        /// How many to keep
        #[arg(long, value_name = "NUMBER")]
        keep: NonZeroUsize,
    },
    /// Accept the store as it is, although the rollback anchor remembers a newer one, another one,
    /// or none
    ///
    /// The store that the anchor remembered does not open any more. Link the account again
    /// afterwards: a store that was put back uses message keys twice.
    AcceptRollback {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
    },
    /// Show what is visible without a key: accounts, key slots and their cost, rows and bytes
    Inspect {
        /// The store
        store: Place,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy the store to a new file while it is in use; the copy is encrypted like the store
    Backup {
        /// The store
        store: Place,
        /// The new file
        #[arg(required_unless_present = "to_folder", conflicts_with = "to_folder")]
        file: Option<PathBuf>,
        /// Copy it into this folder, named after the store and the time, and check its database
        #[arg(long, value_name = "FOLDER", requires = "keep")]
        to_folder: Option<PathBuf>,
        /// Keep this many of these copies in the folder, and delete older ones
        #[arg(long, value_name = "NUMBER", requires = "to_folder")]
        keep: Option<NonZeroUsize>,
    },
    /// Replace the store by a backup
    ///
    /// The old store is renamed, not deleted. So is its log, which must not lie beside another
    /// database. Stop the bot first. With a rollback anchor, run `accept-rollback` afterwards.
    Restore {
        /// The backup, which is only read
        backup: PathBuf,
        /// The store
        store: Place,
    },
    /// Make a key file of 64 random hexadecimal digits that only its owner can read
    Keygen {
        /// The new file; `-` is standard output
        file: PathBuf,
    },
    /// List the accounts in a store, or delete one
    Accounts {
        #[command(subcommand)]
        command: Accounts,
    },
    /// Return free pages at the end of the file to the file system
    Shrink {
        /// The store
        store: Place,
    },
    /// Save the vault's header, or restore a saved one
    Header {
        #[command(subcommand)]
        command: Header,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of this command, or write the pages of all subcommands
    Man {
        /// Write a page for each subcommand into this folder, and replace older pages there
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

/// The source and the target of a copy.
#[derive(Args)]
pub(crate) struct CopyArgs {
    /// The store to copy from
    pub(crate) from: Place,
    /// The store to copy to; a file or a schema that is not there is made
    pub(crate) to: Place,
    /// Copy only this account
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) account: Option<i32>,
    /// Give the account this number in the target; with a secret that opens its vault, the vault
    /// is bound to the new number, else it stays bound to the old one
    #[arg(long = "as", value_name = "NUMBER", requires = "account", allow_negative_numbers = true)]
    pub(crate) new_number: Option<i32>,
    /// Leave the source as it is: then delete one of the two before a client runs on the other
    #[arg(long)]
    pub(crate) keep_source: bool,
    /// Also copy accounts without a vault, in plaintext
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) secret: CurrentSecret,
}

/// The source and the target of an import.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The database that the bot uses now
    pub(crate) source: PathBuf,
    /// The new store; it appears when it is complete
    pub(crate) store: Place,
    /// Import this account of several
    #[arg(long, value_name = "NUMBER", conflicts_with = "all_accounts", allow_negative_numbers = true)]
    pub(crate) account: Option<i32>,
    /// Import every account; the secret opens the lowest, which opens the others
    #[arg(long)]
    pub(crate) all_accounts: bool,
    /// Overwrite and delete the source when the new store is complete and compared with it; the
    /// output names the files that are left
    #[arg(long, conflicts_with = "account")]
    pub(crate) remove_source: bool,
    #[command(flatten)]
    pub(crate) new: NewSecret,
}

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// List the key slots
    List {
        #[command(flatten)]
        store: Store,
    },
    /// Add a passphrase, a key, a recovery key, or a key in a keyring or of a Transit engine
    Add {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: Box<CurrentSecret>,
        #[command(flatten)]
        new: Box<NewSecret>,
        /// Make a recovery key, and print it once
        #[arg(long, group = "new")]
        recovery: bool,
        /// A label of at most 32 bytes; it is not encrypted
        #[arg(long)]
        label: Option<String>,
    },
    /// Remove a key slot; an older copy of the store still opens with it
    Remove {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: Box<CurrentSecret>,
        /// The number that `keys list` shows
        slot: u8,
    },
}

#[derive(Subcommand)]
pub(crate) enum Accounts {
    /// Print the number of each account, and whether it has a vault
    List {
        /// The store
        store: Place,
    },
    /// Delete every record of an account, and its vault; older copies of the store still have them
    ///
    /// Stop its bot first. Pieces of records may stay in unused parts of the file until `vacuum`.
    Delete {
        /// The store
        store: Place,
        /// The account
        #[arg(allow_negative_numbers = true)]
        number: i32,
        /// Confirm that the account is deleted for good
        #[arg(long, required = true)]
        for_good: bool,
    },
    /// Open an account again that `copy` closed off
    ///
    /// Only if the other store is gone and no client ran on it: two copies of an account use its
    /// message keys twice.
    Reclaim {
        /// The store
        store: Place,
        /// The account
        #[arg(allow_negative_numbers = true)]
        number: i32,
        /// Confirm that the other copy is gone
        #[arg(long, required = true)]
        other_is_gone: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum Header {
    /// Save the header to a new file; it opens with today's secrets for ever, so protect it like a
    /// key
    Save {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The new file
        file: PathBuf,
    },
    /// Restore a saved header over a damaged or missing one
    Restore {
        #[command(flatten)]
        store: Store,
        #[command(flatten)]
        secret: CurrentSecret,
        /// The saved header
        file: PathBuf,
    },
}

/// A store, and one of its accounts.
#[derive(Args)]
pub(crate) struct Store {
    /// The store
    pub(crate) store: Place,
    /// The account, if the store has several
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) account: Option<i32>,
}
