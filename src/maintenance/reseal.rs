//! Seals the rows of an account again, under the active data key of its vault.

use std::sync::Arc;

use futures_util::future::join;

use crate::background;
use crate::encrypt::Vault;
use crate::encrypt::cipher::Resealed;
use crate::encrypt::format::envelope::nonces;
use crate::encrypt::vault::open_vault::VaultState;
use crate::error::Result;
use crate::rows::SealedRow;
use crate::rows::store::{Found, Replacement, RowReader, Rows};
use crate::rows::table::{TABLES, Table};

/// The result of sealing an account again.
#[derive(Default)]
pub(super) struct ResealedRows {
    /// Rows that were under an old data key, and had not changed when they were written.
    pub(super) replaced: u64,
    /// Rows that do not open under the active data key.
    pub(super) left: u64,
}

/// Seals rows again until every row of a snapshot opens under the active data key, and counts the
/// rows that do not. Each row is looked at twice; `tell` gets the number of rows looked at since
/// its last call.
pub(super) async fn reseal(store: &dyn Rows, vault: &Vault, mut tell: impl FnMut(u64)) -> Result<ResealedRows> {
    /// The first pass suffices unless the tables are altered while it runs.
    const PASSES: usize = 3;
    let mut resealed = ResealedRows::default();
    for _ in 0..PASSES {
        let state = vault.state();
        let mut pass = Pass::default();
        for table in TABLES.iter().filter(|table| table.is_sealed) {
            pass.table(store, &state, table, &mut tell).await?;
        }
        vault.check_generation(&state, pass.newest_generation).await?;
        resealed.replaced += pass.replaced;
        let proof = Proof::of(store, vault, &mut tell).await?;
        // Rows that no longer have the value that was read cannot be replaced.
        resealed.left = proof.damaged + proof.older;
        if proof.older == 0 {
            break;
        }
    }
    Ok(resealed)
}

/// How all rows of an account open at one moment.
#[derive(Default)]
struct Proof {
    /// Rows that open under an older data key.
    older: u64,
    /// Rows that open under no data key.
    damaged: u64,
    newest_generation: u32,
}

impl Proof {
    /// Opens every sealed row.
    ///
    /// # Errors
    /// [`Error::HeaderRolledBack`] if a row is newer than the header.
    async fn of(store: &dyn Rows, vault: &Vault, mut tell: impl FnMut(u64)) -> Result<Self> {
        let (state, mut proof) = (vault.state(), Self::default());
        let mut snapshot = store.snapshot().await?;
        for table in TABLES.iter().filter(|table| table.is_sealed) {
            snapshot.begin(table);
            while let Some(rows) = snapshot.next().await? {
                let (state, count) = (state.clone(), rows.len() as u64);
                let judge =
                    move || rows.into_iter().try_fold(Self::default(), |proof, (_, row)| proof.and(&state, row));
                let page = background::unblock(judge).await?;
                proof.older += page.older;
                proof.damaged += page.damaged;
                proof.newest_generation = proof.newest_generation.max(page.newest_generation);
                tell(count);
            }
        }
        vault.check_generation(&state, proof.newest_generation).await?;
        Ok(proof)
    }

    fn and(mut self, state: &VaultState, row: Result<Option<SealedRow>>) -> Result<Self> {
        match row.and_then(|row| row.map_or(Ok(None), |row| state.cipher.opens(&row))) {
            Ok(None) => {}
            Ok(Some(under)) => {
                self.older += u64::from(!under.active);
                self.newest_generation = self.newest_generation.max(under.generation);
            }
            // The store failed, not the row.
            Err(error) if error.is_of_the_store() => return Err(error),
            Err(_) => self.damaged += 1,
        }
        Ok(self)
    }
}

/// One pass through all tables.
#[derive(Default)]
struct Pass {
    /// Rows that were under an old data key, and had not changed when they were written.
    replaced: u64,
    /// The highest generation of the rows that opened.
    newest_generation: u32,
}

impl Pass {
    /// Seals the rows of a table. Reads and seals a page while the previous one is written.
    async fn table(
        &mut self,
        store: &dyn Rows,
        state: &Arc<VaultState>,
        table: &'static Table,
        tell: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut rows = store.rows();
        rows.begin(table);
        let mut sealed = Page::default();
        loop {
            let replacements = std::mem::take(&mut sealed.replacements);
            let (written, next) = join(store.replace(table, replacements), Page::next(&mut *rows, state)).await;
            self.replaced += written?;
            let Some(page) = next? else { return Ok(()) };
            sealed = page;
            self.newest_generation = self.newest_generation.max(sealed.newest_generation);
            tell(sealed.rows);
        }
    }
}

/// Rows that were sealed again and are to be written.
#[derive(Default)]
struct Page {
    rows: u64,
    newest_generation: u32,
    replacements: Vec<Replacement>,
}

impl Page {
    /// Reads a page, and seals it on a blocking thread.
    async fn next(rows: &mut dyn RowReader, state: &Arc<VaultState>) -> Result<Option<Self>> {
        let Some(page) = rows.next().await? else { return Ok(None) };
        let state = state.clone();
        background::unblock(move || Self::seal(&state, page)).await.map(Some)
    }

    fn seal(state: &VaultState, rows: Vec<Found>) -> Result<Self> {
        let mut page = Self { rows: rows.len() as u64, ..Self::default() };
        for ((id, found), nonce) in rows.into_iter().zip(nonces(page.rows as usize)?) {
            let sealed = found.map(|row| row.map(|row| (state.cipher.reseal(&row, &nonce), row)));
            match sealed {
                Ok(Some((Ok(Resealed::Again { value, generation }), row))) => {
                    page.newest_generation = page.newest_generation.max(generation);
                    page.replacements.push(Replacement { id, columns: row.columns, old: row.value, new: value });
                }
                Ok(Some((Ok(Resealed::Already { generation }), _))) => {
                    page.newest_generation = page.newest_generation.max(generation);
                }
                Ok(None | Some((Ok(Resealed::Unsealed), _))) => {}
                // The store failed, not the row.
                Err(error) if error.is_of_the_store() => return Err(error),
                // `Proof` counts it.
                Err(_) | Ok(Some((Err(_), _))) => {}
            }
        }
        Ok(page)
    }
}
