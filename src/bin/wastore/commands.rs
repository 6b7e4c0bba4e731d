//! One function for each command. All of their work is done by functions of the library.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::ProgressBar;
use wastore::import::{AccountToExport, Export, Import};
use wastore::maintenance::{
    self, Repair, Rotate, Verify, VerifyReport, create_encrypted, open_account, restore_account_header,
};
use wastore::vault::{HeaderInfo, KeyringProvider, OpenMode, SlotInfo, SlotKind};
use wastore::{Error, Key, RecoveryKey, SqliteStore, printable, printable_path};
use zeroize::Zeroizing;

use crate::cli::{Accounts, Command, Header, ImportArgs, Keys, Store};
use crate::copy::copy;
use crate::failure::{DAMAGED, DONE, Done, Failure, REFUSED};
use crate::manual;
use crate::place::Place;
use crate::secrets::{CurrentSecret, NewPassphrase, NewSecret, is_stream, saved_header};
use crate::settings::Settings;
use crate::stores::{
    AnyStore, each_account, file_in_use, in_use, open, open_file, open_file_read_only, open_or_make, open_read_only,
};
use crate::terminal::{progress_bar, say, show, show_secret, write_private};

pub(crate) async fn run(command: Command, settings: &Settings) -> Done {
    match command {
        Command::Init { store, account, new } => init(&store, account, new, settings).await,
        Command::Import(arguments) => import(arguments, settings).await,
        Command::Export { store, secret, target, all_accounts, plaintext: _ } => {
            export(&store, secret, &target, all_accounts, settings).await
        }
        Command::Passwd { store, secret, new } => passwd(&store, secret, new, settings).await,
        Command::Keys { command } => keys(command, settings).await,
        Command::Copy(arguments) => copy(arguments, settings).await,
        Command::Rotate { store, secret, leave_damaged } => rotate(&store, secret, leave_damaged, settings).await,
        Command::Revoke { store, secret, new, leave_damaged, except } => {
            let rotate = |bar: &ProgressBar| except.into_iter().fold(rotation(leave_damaged, bar), Rotate::except);
            revoke(&store, secret, new, rotate, settings).await
        }
        Command::Vacuum { store } => vacuum(&store).await,
        Command::Verify { store, secret, quick, json } => verify(&store, secret, quick, json, settings).await,
        Command::Repair { store, secret, backup, unknown_keys } => {
            repair(&store, secret, backup, unknown_keys, settings).await
        }
        Command::Forget { store, secret, jid } => forget(&store, secret, &jid, settings).await,
        Command::PruneSnapshots { store, keep } => prune_snapshots(&store, keep).await,
        Command::AcceptRollback { store, secret } => accept_rollback(&store, secret, settings).await,
        Command::Inspect { store, json } => inspect(&store, json).await,
        Command::Backup { store, file, to_folder, keep } => backup(&store, file, to_folder.zip(keep)).await,
        Command::Restore { backup, store } => restore(&backup, &store).await,
        Command::Keygen { file } => keygen(&file),
        Command::Accounts { command: Accounts::List { store } } => list_accounts(&store).await,
        Command::Accounts { command: Accounts::Delete { store, number, for_good: _ } } => {
            delete_account(&store, number).await
        }
        Command::Accounts { command: Accounts::Reclaim { store, number, other_is_gone: _ } } => {
            reclaim_account(&store, number).await
        }
        Command::Shrink { store } => shrink(&store).await,
        Command::Header { command: Header::Save { store, secret, file } } => {
            save_header(&store, secret, &file, settings).await
        }
        Command::Header { command: Header::Restore { store, secret, file } } => {
            restore_header(&store, secret, &file, settings).await
        }
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man(dir.as_deref()),
    }
}

/// Called before the command asks for a passphrase.
fn refuse_taken(target: &Path) -> Result<(), Failure> {
    match target.symlink_metadata() {
        Ok(_) => Err(Error::TargetExists { path: target.to_owned() }.into()),
        Err(_) => Ok(()),
    }
}

async fn init(store: &Place, account: Option<i32>, new: NewSecret, settings: &Settings) -> Done {
    let number = account.unwrap_or(1);
    match store {
        Place::File(path) if number == 1 || path.symlink_metadata().is_err() => {
            refuse_taken(path)?;
            create_encrypted(path, number, &settings.vault, new.read(settings).await?).await?;
        }
        place => {
            let store = open_or_make(place).await?.account(number).await?;
            if store.header().await?.is_some() {
                return Err(Error::VaultExists.into());
            }
            store.create_vault(&settings.vault, new.read(settings).await?).await?;
        }
    }
    say("an empty encrypted store was created\n")?;
    DONE
}

/// The limits of removing a source.
const NOT_ERASED: &str = "\
The source was overwritten and removed. The disk may keep copies of it that cannot be reached from here: flash memory, and
file systems that copy on write, write new content elsewhere. Backups, and copies in synced folders, were not changed.
Other names of the same file are empty.";

async fn import(arguments: ImportArgs, settings: &Settings) -> Done {
    let ImportArgs { source, store, account, all_accounts, remove_source, new } = arguments;
    let resumes = remove_source && source.metadata().is_err();
    if let (false, Some(path)) = (resumes, store.path()) {
        refuse_taken(path)?;
    }
    let bar = progress_bar();
    let shown = bar.clone();
    let mut import = Import::new().vault_options(settings.vault.clone()).on_progress(move |progress| {
        show(&shown, progress.phase.name(), progress.done, progress.total);
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
    let report = match &store {
        Place::File(path) => import.run(&source, path, new.read(settings).await?).await,
        server => {
            let target = open_or_make(server).await?;
            import.run_into(&source, &target, new.read(settings).await?).await
        }
    };
    bar.finish_and_clear();
    let report = report?;
    say(format_args!("{report}\n{} is complete, and was compared with the source record by record.\n", store))?;
    for number in report.accounts() {
        match &store {
            Place::File(_) => {
                say(format_args!("account {number} opens with SqliteStore::open(..).await?.account({number})\n"))?;
            }
            Place::Server(_) => {
                say(format_args!("account {number} opens with PostgresOptions::new(..)?.open({number}).await?\n"))?;
            }
        }
    }
    let Some(removed) = report.removed_source() else {
        say(format_args!(
            "{} was not changed, and is readable: remove it when the bot runs on the new store.\n",
            printable_path(&source)
        ))?;
        return DONE;
    };
    say(format_args!("{NOT_ERASED}\n"))?;
    for left in removed.left() {
        say(format_args!("{} is still there, and readable\n", printable_path(left)))?;
    }
    DONE
}

async fn export(store: &Store, secret: CurrentSecret, target: &Path, all_accounts: bool, settings: &Settings) -> Done {
    refuse_taken(target)?;
    let opened = in_use(open_read_only(&store.store).await?).await?;
    let mut stores = vec![];
    if all_accounts {
        for number in opened.accounts_in_use().await? {
            stores.push(opened.account(number).await?);
        }
    } else {
        stores.push(store.choose(opened).await?);
    }
    let (secret, mut vaults) = (secret.read(settings).await?, vec![]);
    for account in &stores {
        vaults.push(open_account(account, &settings.vault.clone().mode(OpenMode::ReadOnly), secret.duplicate()).await?);
    }
    let exported: Vec<_> =
        stores.iter().zip(&vaults).map(|(account, vault)| AccountToExport::new(account, vault)).collect();
    let bar = progress_bar();
    let shown = bar.clone();
    let export = Export::new().on_progress(move |progress| show(&shown, "exporting", progress.done, progress.total));
    let reports = export.run_all(&exported, target).await;
    bar.finish_and_clear();
    for (account, report) in stores.iter().zip(reports?) {
        say(format_args!("account {}\n{report}\n", account.account_number()))?;
    }
    say(format_args!(
        "{} holds everything in plaintext: anyone who reads it can take over the account.\n",
        printable_path(target)
    ))?;
    DONE
}

async fn passwd(store: &Store, secret: CurrentSecret, new: NewPassphrase, settings: &Settings) -> Done {
    secret.refuse_stream_of(&new, &None)?;
    let vault = secret.open(&store.open().await?, settings).await?;
    vault.change_passphrase(new.read().await?).await?;
    say("the passphrase was changed\n")?;
    DONE
}

async fn keys(command: Keys, settings: &Settings) -> Done {
    match command {
        Keys::List { store } => {
            let store = store.open_read_only().await?;
            let header = store.header().await?.ok_or(Error::NoVault)?;
            say(format_args!("{:<5} {:<32} opens with\n", "slot", "label"))?;
            say_slots(header.slots)?;
        }
        Keys::Add { store, secret, new, recovery, label } => {
            new.refuse_stream_of(&secret)?;
            let vault = secret.open(&store.open().await?, settings).await?;
            if recovery {
                let key = RecoveryKey::generate()?;
                // Show the key before it opens anything: a key that no one has seen must not.
                show_secret(&key.expose())?;
                let added = vault.add_slot(label.as_deref().unwrap_or("recovery"), key).await;
                added.inspect_err(|error| match error {
                    Error::InvalidInput { .. } | Error::SlotsFull => {
                        tell!("wastore: the recovery key that was shown opens nothing: throw it away");
                    }
                    // The header may have been written before.
                    _ => tell!("wastore: the recovery key that was shown may open the store: look at `keys list`"),
                })?;
                tell!("this recovery key opens the store and is not shown again: print it and keep it in a safe");
                return DONE;
            }
            let secret = new.read(settings).await?;
            let slot = vault.add_slot(label.as_deref().unwrap_or(new.usual_label()), secret).await?;
            say(format_args!("slot {slot} was added\n"))?;
        }
        Keys::Remove { store, secret, slot } => {
            let vault = secret.open(&store.open().await?, settings).await?;
            let removed = vault.slots().into_iter().find(|info| info.id == slot);
            vault.remove_slot(slot).await?;
            say(format_args!("slot {slot} was removed; older copies of the store still open with it\n"))?;
            say_entries_left(removed.as_slice())?;
        }
    }
    DONE
}

/// Names the entries that removed slots leave in the keyring.
fn say_entries_left(removed: &[SlotInfo]) -> Result<(), Failure> {
    removed.iter().try_for_each(|slot| match &slot.kind {
        SlotKind::Keyring { entry } => say(format_args!(
            "the keyring keeps its entry {entry} of the service {}; delete it there when no older copy is left\n",
            KeyringProvider::SERVICE
        )),
        _ => Ok(()),
    })
}

fn say_slots(slots: Vec<SlotInfo>) -> Result<(), Failure> {
    slots.into_iter().try_for_each(|slot| {
        say(format_args!("{:<5} {:<32} {}\n", slot.id, printable(&slot.label).to_string(), slot.kind))
    })
}

fn rotation(leave_damaged: bool, bar: &ProgressBar) -> Rotate {
    let bar = bar.clone();
    let rotate = Rotate::new().on_progress(move |progress| show(&bar, "sealing", progress.done, progress.total));
    if leave_damaged { rotate.leave_damaged() } else { rotate }
}

/// Changes the data key of one account, or of all of them.
async fn rotate(store: &Store, secret: CurrentSecret, leave_damaged: bool, settings: &Settings) -> Done {
    let opened = open(&store.store).await?;
    let (bar, secret) = (progress_bar(), secret.read(settings).await?);
    let change = async |account: AnyStore| {
        let report = async {
            let vault = open_account(&account, &settings.vault, secret.duplicate()).await?;
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
    let code = each_account(store, &opened, change, tell).await?;
    if is_changed {
        say("save the headers again if you keep copies of them: older copies open nothing in this store\n")?;
    }
    Ok(ExitCode::from(code))
}

/// The limits of a revocation.
const STILL_POSSIBLE: &str = "\
Anyone who had one of the old secrets and a copy of the store can still:
 - read everything in that copy, and in every older copy and backup;
 - find out which contacts, groups and messages a newer copy is about, by guessing their names;
 - read and forge, in a newer copy, the secrets of messages whose ids they know (these decrypt reactions, edits and polls),
   and the names of devices that got sender keys and of contacts that have tokens;
 - open vaults in other files or under your own labels, if their keys were derived from an old one.
They cannot read anything else in a newer copy. To end all of this, export the account and import it into a new store.
Replace the backups and every saved header. Clear an external cache of the client.
Add other secrets again: only the new one opens the store.";

async fn revoke(
    store: &Place,
    secret: CurrentSecret,
    new: NewSecret,
    rotate: impl FnOnce(&ProgressBar) -> Rotate,
    settings: &Settings,
) -> Done {
    new.refuse_stream_of(&secret)?;
    let opened = in_use(open(store).await?).await?;
    let mut slots = vec![];
    for number in opened.accounts_in_use().await? {
        let header = opened.account(number).await?.header().await?;
        slots.push((number, header.map_or(vec![], |header| header.slots)));
    }
    let bar = progress_bar();
    let report =
        rotate(&bar).revoke(&opened, &settings.vault, secret.read(settings).await?, new.read(settings).await?).await;
    bar.finish_and_clear();
    let report = report?;
    say(format_args!("{report}\n{STILL_POSSIBLE}\n"))?;
    for (_, removed) in slots.iter().filter(|(number, _)| report.revoked().iter().any(|done| done.account == *number)) {
        say_entries_left(removed)?;
    }
    DONE
}

async fn vacuum(store: &Place) -> Done {
    let path = store.file("run VACUUM FULL there, which locks all accounts out meanwhile")?;
    file_in_use(open_file(path).await?).await?.vacuum().await?;
    say("the file was rewritten\n")?;
    DONE
}

/// Checks one account, or all of them.
async fn verify(store: &Store, secret: CurrentSecret, quick: bool, json: bool, settings: &Settings) -> Done {
    let opened = open_read_only(&store.store).await?;
    let (bar, secret) = (progress_bar(), secret.read(settings).await?);
    let check = async |account: AnyStore| {
        let shown = bar.clone();
        let verify = Verify::new();
        let verify = verify.on_progress(move |progress| show(&shown, "checking", progress.done, progress.total));
        let vault =
            open_account(&account, &settings.vault.clone().mode(OpenMode::ReadOnly), secret.duplicate()).await?;
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
    let code = each_account(store, &opened, check, tell).await?;
    bar.finish_and_clear();
    if json {
        say(format_args!("{:#}\n", serde_json::Value::from(reports)))?;
    }
    Ok(ExitCode::from(if sound { code } else { DAMAGED }))
}

async fn repair(
    store: &Store,
    secret: CurrentSecret,
    backup: PathBuf,
    unknown_keys: bool,
    settings: &Settings,
) -> Done {
    refuse_taken(&backup)?;
    let store = store.open().await?;
    let vault = secret.open(&store, settings).await?;
    let bar = progress_bar();
    let shown = bar.clone();
    let repair = if unknown_keys { Repair::new().unknown_keys() } else { Repair::new() };
    let repair = repair.on_progress(move |progress| show(&shown, "checking", progress.done, progress.total));
    let report = repair.run(&store, &vault, backup).await;
    bar.finish_and_clear();
    let report = report?;
    say(format_args!("account {}\n{report}\n", store.account_number()))?;
    if let Some(backup) = report.backup() {
        say(format_args!("{} is a copy from before the repair\n", printable_path(backup)))?;
    }
    DONE
}

async fn forget(store: &Store, secret: CurrentSecret, jid: &str, settings: &Settings) -> Done {
    let store = store.open().await?;
    let vault = secret.open(&store, settings).await?;
    let report = maintenance::forget(&store, &vault, jid).await?;
    say(format_args!("deleted: {report}\n"))?;
    if report.is_empty() {
        let text = "nothing is stored about this contact: give its JID as the client shows it".to_owned();
        return Err(Failure { text, code: REFUSED });
    }
    DONE
}

async fn prune_snapshots(store: &Place, keep: NonZeroUsize) -> Done {
    let path = store.file("the client makes no snapshots there")?;
    for old in file_in_use(open_file_read_only(path).await?).await?.prune_snapshots(keep).await? {
        say(format_args!("{} was deleted\n", printable_path(&old)))?;
    }
    DONE
}

async fn accept_rollback(store: &Store, secret: CurrentSecret, settings: &Settings) -> Done {
    let (opened, secret) = (in_use(open(&store.store).await?).await?, secret.read(settings).await?);
    for number in store.accounts(&opened).await? {
        let account = opened.account(number).await?;
        open_account(&account, &settings.vault.clone().mode(OpenMode::AcceptRollback), secret.duplicate()).await?;
        say(format_args!("account {number} is accepted as it is: link it again, and save its header again\n"))?;
    }
    DONE
}

async fn inspect(store: &Place, json: bool) -> Done {
    let inspection = maintenance::inspect(&open_read_only(store).await?).await?;
    if json {
        let inspection = serde_json::to_value(&inspection).map_err(Failure::other)?;
        say(format_args!("{inspection:#}\n"))?;
    } else {
        say(&inspection)?;
    }
    if inspection.accounts.is_empty() { Err(Error::NoVault.into()) } else { DONE }
}

async fn backup(store: &Place, file: Option<PathBuf>, to_folder: Option<(PathBuf, NonZeroUsize)>) -> Done {
    let path = store.file("use the backups of the server, or make a file with `wastore copy --keep-source`")?;
    let store = file_in_use(open_file_read_only(path).await?).await?;
    if let Some(file) = file {
        store.backup(&file).await?;
        say(format_args!("{} is a copy of the store\n", printable_path(&file)))?;
    }
    if let Some((folder, keep)) = to_folder {
        let backup = maintenance::backup_to_folder(&store, folder, keep).await?;
        say(format_args!(
            "{} is a copy of the store; its database is sound, its records were not opened\n",
            printable_path(&backup.copy)
        ))?;
        for old in backup.deleted {
            say(format_args!("{} was deleted\n", printable_path(&old)))?;
        }
    }
    DONE
}

async fn restore(backup: &Path, store: &Place) -> Done {
    let store = store.file("use the backups of the server, or `wastore copy`")?;
    fs::metadata(backup).map_err(|error| Failure::file("the backup cannot be opened", backup, &error))?;
    let aside = SqliteStore::restore(backup, store).await?;
    say(format_args!("{} was restored from the backup\n", printable_path(store)))?;
    if let Some(aside) = aside {
        say(format_args!("the previous store is now {}\n", printable_path(&aside)))?;
    }
    DONE
}

fn keygen(file: &Path) -> Done {
    let digits = Zeroizing::new(data_encoding::HEXLOWER.encode(Key::generate()?.expose()));
    if is_stream(file) {
        show_secret(&digits)?;
        return DONE;
    }
    write_private(file, digits.as_bytes())?;
    say(format_args!("{} is a key: keep a copy of it in another place than the store\n", printable_path(file)))?;
    DONE
}

async fn list_accounts(store: &Place) -> Done {
    for account in maintenance::inspect(&in_use(open_read_only(store).await?).await?).await?.accounts {
        let vault = match (account.header, account.problem) {
            (Some(_), _) => "has a vault".to_owned(),
            (None, problem) => problem.unwrap_or_else(|| "has no vault".to_owned()),
        };
        say(format_args!("account {}: {}\n", account.number, printable(&vault)))?;
    }
    DONE
}

async fn delete_account(store: &Place, number: i32) -> Done {
    let store = open(store).await?;
    let accounts = maintenance::inspect(&store).await?.accounts;
    let Some(deleted) = accounts.iter().find(|account| account.number == number) else {
        let text = format!("the store has no account {number}: `accounts list` shows its accounts");
        return Err(Failure { text, code: REFUSED });
    };
    if let Some(id) = deleted.header.as_ref().map(|header| header.store_id) {
        let opens_with_it = |header: &HeaderInfo| header.parent == Some(id) && header.slots.len() == 1;
        let mut others = accounts.iter().filter(|account| account.header.as_ref().is_some_and(opens_with_it));
        if let Some(other) = others.next().map(|account| account.number) {
            let text = format!(
                "account {other} opens with a key of account {number}: first give it its own, with `keys add --account {other}`"
            );
            return Err(Failure { text, code: REFUSED });
        }
    }
    store.account(number).await?.delete_account().await?;
    say(format_args!("account {number} was deleted; older copies of the store still have it\n"))?;
    DONE
}

async fn reclaim_account(store: &Place, number: i32) -> Done {
    maintenance::reclaim_account(&open(store).await?.account(number).await?).await?;
    say(format_args!("account {number} opens again\n"))?;
    DONE
}

async fn shrink(store: &Place) -> Done {
    let path = store.file("the server does this by itself")?;
    let left = file_in_use(open_file(path).await?).await?.shrink(None).await?;
    say(format_args!("{left} free pages are left\n"))?;
    DONE
}

async fn save_header(store: &Store, secret: CurrentSecret, file: &Path, settings: &Settings) -> Done {
    let header = secret.open_read_only(&store.open_read_only().await?, settings).await?.save_header();
    write_private(file, &header)?;
    say(format_args!("the header was saved: keep {} like a key\n", printable_path(file)))?;
    DONE
}

async fn restore_header(store: &Store, secret: CurrentSecret, file: &Path, settings: &Settings) -> Done {
    let store = store.open().await?;
    let saved = saved_header(file).await?;
    let vault = restore_account_header(&store, &settings.vault, &saved, secret.read(settings).await?).await?;
    say("the header was restored; save it again. These slots open the store, including any removed since:\n")?;
    say_slots(vault.slots())?;
    DONE
}
