//! Compares the rows of a store with its header before its keys are changed.
//!
//! A header that was put back reads its own records and no newer ones. Writing the next header over it would hide that:
//! the generation would rise above that of every record, and removed secrets would open the vault for good. A data key
//! could be forgotten although the only readable rows are under it. So every change of the keys looks at the rows
//! first.

use super::host::Claims;
use super::open_vault::OpenVault;
use crate::error::Result;
use crate::method::Record;

impl OpenVault {
    /// Looks at every row that can be found, under the header as it is stored now.
    ///
    /// # Errors
    /// `HeaderRolledBack` if a row that opens is newer than the header. `UnknownEpoch` if the device is under a data
    /// key that the header does not have, or any other row, unless `unknown_rows` allows such rows.
    pub(super) async fn refuse_older_header(&self, unknown_rows: bool) -> Result<Claims> {
        self.refresh().await?;
        let state = self.state();
        let claims = self.host.claims().await?;
        let mut unknown: Vec<_> =
            claims.0.keys().filter(|(_, epoch)| state.cipher.ring.epoch(*epoch).is_none()).collect();
        // The device first, so that the same store always gets the same answer.
        unknown.sort_by_key(|(record, epoch)| (*record != Record::Device, *record as usize, *epoch));
        for (record, epoch) in unknown {
            if *record == Record::Device || !unknown_rows {
                // It is no error if another process has added the key since.
                self.state_for(&state, *record, *epoch).await?;
            }
        }
        if claims.0.values().all(|generation| *generation <= state.cipher.generation) {
            return Ok(claims);
        }
        // A generation counts only if its row opens.
        let mut newest = state.cipher.generation;
        self.host
            .each_row(|row| {
                if let Ok(Some(under)) = state.cipher.opens(&row) {
                    newest = newest.max(under.generation);
                }
                Ok(())
            })
            .await?;
        self.check_generation(&state, newest).await?;
        Ok(claims)
    }
}
