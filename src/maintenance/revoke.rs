//! Replaces the secrets and keys of every account that a leaked secret opens.

use std::fmt;
use std::sync::Arc;

use super::rotate::{Rewritten, Rotate, RotateReport};
use crate::encrypt::{OpenMode, Revocation, Vault, VaultOptions};
use crate::error::{Error, Result};
use crate::rows::store::{OwnRows, OwnStore, Rows};
use crate::secret::Secret;

/// The result of [`Rotate::revoke`]. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeReport {
    revoked: Vec<AccountReport>,
    others: Vec<i32>,
}

/// An account in a [`RevokeReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccountReport {
    /// The number of the account.
    pub account: i32,
    /// The change of its data key.
    pub report: RotateReport,
}

impl Rotate {
    /// Revokes a leaked secret for every account that it opens, directly or through the key that
    /// one of these vaults derives for `account N`.
    ///
    /// Each vault gets a new vault key, which only `new` opens, and a new data key. Every record is
    /// sealed again. Vaults that this process has open keep working. All other slots of these
    /// vaults are removed. Backups and saved headers do not change: [`Vault::revoke`] says where an
    /// old secret still works.
    ///
    /// If this is interrupted, each vault opens with either the old or the new secret. Call it
    /// again with the secret that opens the store then.
    ///
    /// # Errors
    /// Nothing was changed after one of these:
    ///
    /// * [`Error::WrongSecret`] or [`Error::KeyNotKept`] if `secret` opens none of the vaults;
    /// * [`Error::KeyProvider`] if its key provider or that of `new` fails;
    /// * [`Error::AccountsNotCovered`] if it does not open some accounts that are not excepted with
    ///   [`Rotate::except`];
    /// * [`Error::InvalidInput`] if `new` already opens a vault.
    ///
    /// [`Error::SlotsFull`] if a vault has no free slot. Those of [`Vault::revoke`] and
    /// [`Rotate::run`].
    pub async fn revoke(
        &self,
        store: &impl OwnStore,
        options: &VaultOptions,
        secret: impl Into<Secret>,
        new: impl Into<Secret>,
    ) -> Result<RevokeReport> {
        let (secret, new) = (secret.into(), new.into());
        let OwnRows(store) = store.own_rows();
        store.refuse_others().await?;
        self.refuse_damage(&*store).await?;
        let mut report = RevokeReport { revoked: vec![], others: self.except.clone() };
        let covered = self.cover(&*store, options, &secret, &new).await?;
        let opened = open(covered, options, &secret, &new).await?;
        let revocations = prepare(&opened, &new).await?;
        // All secrets go first, because the rows take long.
        for (Opened { vault, .. }, revocation) in opened.iter().zip(&revocations) {
            if let Some(revocation) = revocation {
                vault.revoke(revocation).await?;
            }
        }
        let mut changed = Ok(());
        for Opened { account, vault, .. } in &opened {
            match self.change(account, vault).await {
                Ok(done) => report.revoked.push(AccountReport { account: account.account_number(), report: done }),
                Err(error) => {
                    changed = Err(error);
                    break;
                }
            }
        }
        // Once for all accounts, also if one failed after others succeeded.
        if !report.revoked.is_empty() {
            let rewritten = Rewritten::of(&*store).await;
            report.revoked.iter_mut().for_each(|account| rewritten.note_in(&mut account.report));
        }
        changed.map(|()| report)
    }

    /// Finds how each account opens, without changing anything.
    ///
    /// # Errors
    /// [`Error::WrongSecret`], [`Error::NoSlotOfProvider`] or [`Error::KeyNotKept`] if the secret opens no account,
    /// [`Error::KeyProvider`] if its provider fails. [`Error::AccountsNotCovered`] if there are other accounts that are
    /// not excepted.
    /// [`Error::InvalidInput`] if the new secret already opens one.
    async fn cover(
        &self,
        store: &dyn Rows,
        options: &VaultOptions,
        secret: &Secret,
        new: &Secret,
    ) -> Result<Vec<(Arc<dyn Rows>, OpensWith)>> {
        let options = options.clone().mode(OpenMode::ReadOnly);
        let try_open =
            async |account: &Arc<dyn Rows>, secret: Secret| match options.open_backend(account.clone(), secret).await {
                Ok(vault) => Ok(Ok(vault)),
                Err(error) if error.is_about_rollback() || matches!(error, Error::KeyProvider(_)) => Err(error),
                Err(error) => Ok(Err(error)),
            };
        let (mut parents, mut closed, mut covered, mut uncovered) = (vec![], vec![], vec![], vec![]);
        for number in store.accounts_in_use().await? {
            if self.except.contains(&number) {
                continue;
            }
            let account = store.account(number);
            match try_open(&account, secret.duplicate()).await? {
                Ok(vault) => {
                    parents.push(vault);
                    covered.push((account, OpensWith::Old));
                }
                Err(error) => closed.push((account, error)),
            }
        }
        if parents.is_empty() {
            return Err(no_account_opens(closed.into_iter().map(|(_, error)| error)));
        }
        for (position, (account, _)) in covered.iter().enumerate() {
            // A provider makes another key for each slot, so the same one opens a new vault with a new key.
            let known = !matches!(new, Secret::Provider(_)) && try_open(account, new.duplicate()).await?.is_ok();
            // The new secret may open a vault that an interrupted revocation has begun.
            if known && !parents[position].is_rotating() {
                return Err(Error::InvalidInput {
                    what: "the new secret",
                    problem: "opens the store already: choose another",
                });
            }
        }
        'accounts: for (account, _) in closed {
            for (position, parent) in parents.iter().enumerate() {
                let key = parent.account_key(&account.key_label());
                if try_open(&account, key.into()).await?.is_ok() {
                    covered.push((account, OpensWith::KeyOf(position)));
                    continue 'accounts;
                }
            }
            match try_open(&account, new.duplicate()).await? {
                Ok(vault) if vault.is_rotating() => covered.push((account, OpensWith::New)),
                _ => uncovered.push(account.account_number()),
            }
        }
        if uncovered.is_empty() { Ok(covered) } else { Err(Error::AccountsNotCovered { accounts: uncovered }) }
    }
}

/// The error that tells the most of why a secret opens no account.
fn no_account_opens(refusals: impl Iterator<Item = Error>) -> Error {
    let mut error = Error::WrongSecret;
    for refusal in refusals {
        match refusal {
            Error::KeyNotKept(_) => return refusal,
            Error::NoSlotOfProvider => error = refusal,
            _ => {}
        }
    }
    error
}

/// An account to revoke, and its vault.
struct Opened {
    account: Arc<dyn Rows>,
    vault: Vault,
    opens_with: OpensWith,
}

/// Opens the vaults of all accounts.
async fn open(
    covered: Vec<(Arc<dyn Rows>, OpensWith)>,
    options: &VaultOptions,
    secret: &Secret,
    new: &Secret,
) -> Result<Vec<Opened>> {
    let mut opened: Vec<Opened> = vec![];
    for (account, opens_with) in covered {
        let secret = match opens_with {
            OpensWith::Old => secret.duplicate(),
            OpensWith::New => new.duplicate(),
            OpensWith::KeyOf(parent) => opened[parent].vault.account_key(&account.key_label()).into(),
        };
        let vault = options.open_backend(account.clone(), secret).await?;
        opened.push(Opened { account, vault, opens_with });
    }
    Ok(opened)
}

/// Prepares the revocation of each vault; `None` for those that an interrupted revocation has done.
async fn prepare(opened: &[Opened], new: &Secret) -> Result<Vec<Option<Revocation>>> {
    let mut revocations: Vec<Option<Revocation>> = vec![];
    for Opened { account, vault, opens_with } in opened {
        revocations.push(match opens_with {
            OpensWith::Old => Some(Revocation::prepare(vault, new.duplicate()).await?),
            OpensWith::New => None,
            OpensWith::KeyOf(parent) => {
                let Some(Some(parent)) = revocations.get(*parent) else { return Err(Error::WrongSecret) };
                let key = parent.account_key(&account.key_label());
                // Between the revocation of the parent and that of this vault, both the old and the
                // new key open this vault.
                vault.remove_others_labelled(DERIVED).await?;
                vault.add_slot(DERIVED, key.duplicate()).await?;
                Some(Revocation::prepare(vault, key).await?)
            }
        });
    }
    Ok(revocations)
}

impl RevokeReport {
    /// The accounts whose secrets were replaced, and the change of each one's data key.
    pub fn revoked(&self) -> &[AccountReport] {
        &self.revoked
    }

    /// The accounts that were excepted, and did not change.
    pub fn untouched_accounts(&self) -> &[i32] {
        &self.others
    }
}

impl fmt::Display for RevokeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for AccountReport { account, report } in &self.revoked {
            writeln!(f, "account {account}: {report}")?;
        }
        for account in &self.others {
            writeln!(f, "account {account}: not changed")?;
        }
        Ok(())
    }
}

/// The way an account opens.
enum OpensWith {
    /// With the secret that has leaked.
    Old,
    /// With the new secret, because a revocation was interrupted.
    New,
    /// With the key that the vault at this position derives for it.
    KeyOf(usize),
}

/// The label of a slot for a key that another account's vault derives.
const DERIVED: &str = "account key";
