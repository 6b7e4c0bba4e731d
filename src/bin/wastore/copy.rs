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
    if secret.is_given() && new_number.is_none() {
        return Err(Failure::usage("a copy needs no secret without `--as`: leave it out"));
    }
    let opened = in_use(if keep_source { open_read_only(&from).await? } else { open(&from).await? }).await?;
    let there = opened.accounts_in_use().await?;
    let numbers = match account {
        Some(number) if !there.contains(&number) => return Err(Error::NoSuchAccount(number).into()),
        Some(number) => vec![(number, new_number.unwrap_or(number))],
        None => there.into_iter().map(|number| (number, number)).collect(),
    };
    let rebinding = match (account, new_number) {
        (Some(old), Some(new)) if old != new && secret.is_given() => {
            let source = opened.account(old).await?;
            // Before anything is copied, because the source is closed off afterwards.
            Some(Rebinding::prepare(&source, old, new, secret.read(settings).await?, settings).await?)
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
        if !json {
            say(format_args!("{report}\n"))?;
        }
        reports.push(report);
        if let Some(rebinding) = &rebinding {
            rebinding.run(&target).await.inspect_err(|_| {
                tell!("wastore: account {number} was copied, but not yet bound to {new}: run the copy again");
            })?;
            if !json {
                say(format_args!("its vault is bound to account {new} now\n"))?;
            }
        }
    }
    if json {
        let reports = serde_json::to_value(&reports).map_err(Failure::other)?;
        say(format_args!("{reports:#}\n"))?;
    }
    DONE
}

/// Binds the vault of a copied account to its new number.
struct Rebinding {
    secret: Secret,
    old: VaultOptions,
    new: VaultOptions,
    new_context: String,
}

impl Rebinding {
    /// Makes sure that the secret opens the vault. An interrupted copy may have closed the source off, which does not
    /// matter here.
    async fn prepare(
        source: &AnyStore,
        old: i32,
        new: i32,
        secret: Secret,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let new_context = format!("account {new}");
        let [old, new] =
            [format!("account {old}"), new_context.clone()].map(|name| settings.vault.clone().context(name));
        open_account(source, &old.clone().mode(OpenMode::ReadOnly), secret.duplicate()).await?;
        Ok(Self { secret, old, new, new_context })
    }

    async fn run(&self, target: &AnyStore) -> Result<(), Error> {
        match open_account(target, &self.old, self.secret.duplicate()).await {
            Ok(vault) => vault.bind_context(self.new_context.as_bytes()).await,
            // It was interrupted at the very end.
            Err(Error::WrongContext) => open_account(target, &self.new, self.secret.duplicate()).await.map(drop),
            Err(error) => Err(error),
        }
    }
}
