//! The command `copy`.

use wastore::maintenance::{StoreCopy, open_account};
use wastore::vault::OpenMode;
use wastore::{Error, Secret, VaultOptions};

use crate::cli::CopyArgs;
use crate::failure::{DONE, Done, Failure};
use crate::settings::Settings;
use crate::stores::{AnyStore, in_use, open, open_or_make, open_read_only};
use crate::terminal::{progress_bar, say, show};

/// Copies one account, or all of them.
pub(crate) async fn copy(arguments: CopyArgs, settings: &Settings) -> Done {
    let CopyArgs { from, to, account, new_number, keep_source, plaintext, json, secret } = arguments;
    if secret.is_given() && (new_number.is_none() || new_number == account) {
        return Err(Failure::usage("a copy only needs a secret if `--as` gives another number: leave it out"));
    }
    let opened = in_use(if keep_source { open_read_only(&from).await? } else { open(&from).await? }).await?;
    let there = opened.accounts_in_use().await?;
    let numbers = match account {
        Some(number) if !there.contains(&number) => return Err(Error::NoSuchAccount(number).into()),
        Some(number) => vec![(number, new_number.unwrap_or(number))],
        None => there.into_iter().map(|number| (number, number)).collect(),
    };
    let rebinding = match (account, new_number) {
        (Some(old), Some(new)) if secret.is_given() => {
            let source = opened.account(old).await?;
            // Before anything is copied, because the source is closed off afterwards.
            Some(Rebinding::prepare(&source, new, secret.read(settings).await?, &settings.vault).await?)
        }
        _ => None,
    };
    let target = open_or_make(&to).await?;
    let bar = progress_bar();
    let shown = bar.clone();
    let mut copy = StoreCopy::new()
        .on_progress(move |progress| show(&shown, progress.phase.name(), progress.done, progress.total));
    if keep_source {
        copy = copy.keep_source();
    }
    if plaintext {
        copy = copy.plaintext();
    }
    let mut reports = vec![];
    for (number, new) in numbers {
        let target = target.account(new).await?;
        let report = copy.run(&opened.account(number).await?, &target).await;
        bar.finish_and_clear();
        let report = report?;
        if let Some(rebinding) = &rebinding {
            rebinding.run(&target).await.inspect_err(|_| {
                tell!("wastore: account {number} was copied, but not yet bound to {new}: run the copy again");
            })?;
        }
        if !json {
            say(format_args!("{report}\n"))?;
            if rebinding.is_some() {
                say(format_args!("its vault is bound to account {new} now\n"))?;
            }
        }
        reports.push(report);
    }
    if json {
        let reports = serde_json::to_value(&reports).map_err(Failure::other)?;
        say(format_args!("{reports:#}\n"))?;
    }
    DONE
}

/// Binds the vault of a copied account to its new number.
struct Rebinding<'s> {
    secret: Secret,
    options: &'s VaultOptions,
    old: i32,
    new: i32,
}

impl<'s> Rebinding<'s> {
    /// Makes sure that the secret opens the vault. An interrupted copy may have closed the source off, which does not
    /// matter here.
    async fn prepare(source: &AnyStore, new: i32, secret: Secret, options: &'s VaultOptions) -> Result<Self, Failure> {
        match open_account(source, &options.clone().mode(OpenMode::ReadOnly), secret.duplicate()).await {
            Ok(_) => Ok(Self { secret, options, old: source.account_number(), new }),
            Err(Error::WrongContext) => {
                Err(Failure::usage("the vault is not bound to the number of its account: leave the secret out"))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn run(&self, target: &AnyStore) -> Result<(), Error> {
        let as_before = self.options.clone().context_of_account(self.old);
        match open_account(target, &as_before, self.secret.duplicate()).await {
            Ok(vault) => vault.bind_context(format!("account {}", self.new)).await,
            // It was interrupted at the very end.
            Err(Error::WrongContext) => open_account(target, self.options, self.secret.duplicate()).await.map(drop),
            Err(error) => Err(error),
        }
    }
}
