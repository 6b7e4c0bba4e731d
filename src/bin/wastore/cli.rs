//! The command line: what may be asked for, and nothing of how it is done.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use wastore::vault::{Argon2Cost, FileAnchor};
use wastore::{Result, VaultOptions};

use crate::secrets::{CurrentSecret, NewPassphrase, NewSecret};

/// Encrypted storage for whatsapp-rust: import an existing bot, change who can open its store, check it, back it up.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The folder of the rollback anchor, if the bot uses one: for every command that takes a secret
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) anchor: Option<PathBuf>,
    /// The context that the vault is bound to, if the bot gives one; the default is the number of the account
    #[arg(long, global = true, value_name = "TEXT")]
    pub(crate) context: Option<String>,
    /// The memory that a guess at a new passphrase takes, in MiB; without it the slot that is replaced keeps its own, and others
    /// take 64
    #[arg(long, global = true, value_name = "MIB")]
    pub(crate) kdf_memory: Option<u32>,
    /// How often a guess goes through that memory; without it 3 times
    #[arg(long, global = true, value_name = "NUMBER", requires = "kdf_memory")]
    pub(crate) kdf_passes: Option<u32>,
    /// Open only the store with this id, as `inspect` prints it
    #[arg(long, global = true, value_name = "HEX", value_parser = store_id)]
    pub(crate) expect_store: Option<[u8; 16]>,
}

impl Cli {
    /// How vaults are created and opened.
    ///
    /// # Errors
    /// [`wastore::Error::InvalidInput`] for a cost that is none.
    pub(crate) fn vault_options(&self) -> Result<VaultOptions> {
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
  1  something failed; the message says what and what to do
  2  the command line is not right
  3  the passphrase or key does not open the store
  4  the store is damaged, or was altered
  5  a file is not what it has to be, is there already, or is not there
130  interrupted";

#[derive(Subcommand)]
pub(crate) enum Command {
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
    Import(ImportArgs),
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
        #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
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
    /// Take the store as it is, although the rollback anchor remembers a newer or another one, or nothing
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
        /// Copy it into this folder, under its name and the time, and look at its database
        #[arg(long, value_name = "FOLDER", requires = "keep")]
        to_folder: Option<PathBuf>,
        /// Delete the oldest of such copies in the folder, but so many
        #[arg(long, value_name = "NUMBER", requires = "to_folder")]
        keep: Option<NonZeroUsize>,
    },
    /// Put a backup in the place of the store
    ///
    /// The store that is there is not deleted, but renamed, and so is its log, which must not lie beside another database. Stop
    /// the bot before. With a rollback anchor run `accept-rollback` afterwards.
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
    /// Print a script that makes a shell complete this command
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of this command, or write the pages of all subcommands
    Man {
        /// Write a page for each subcommand into this folder, over those that are there
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

/// From where an import comes, and where it goes.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The database that the bot uses now
    pub(crate) source: PathBuf,
    /// The new store; it appears when it is complete
    pub(crate) store: PathBuf,
    /// Import this account of several
    #[arg(long, value_name = "NUMBER", conflicts_with = "all_accounts", allow_negative_numbers = true)]
    pub(crate) account: Option<i32>,
    /// Import every account; the secret opens the lowest, and the others with it
    #[arg(long)]
    pub(crate) all_accounts: bool,
    /// Overwrite and delete the source when the new store is complete and was compared with it; what it leaves behind is
    /// printed
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
pub(crate) enum Accounts {
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
        #[arg(allow_negative_numbers = true)]
        number: i32,
        /// The account is to be deleted for good
        #[arg(long, required = true)]
        for_good: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum Header {
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
pub(crate) struct Store {
    /// The store
    pub(crate) store: PathBuf,
    /// The account, if the store has several
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) account: Option<i32>,
}
