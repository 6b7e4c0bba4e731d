//! What the rows of a store say of its header, before its keys are changed.
//!
//! A header that was put back reads its own records and no newer ones. Writing the next header over it would wash that away:
//! the generation would rise above every stamp, removed secrets would open for good, and a data key could be forgotten that
//! the only readable rows are under. So every change of the keys looks at the rows first.

use std::collections::HashMap;

use super::Shared;
use crate::encrypt::format::envelope::Prefix;
use crate::error::Result;
use crate::method::Record;

/// What rows claim of themselves, whether or not they open: the highest stamp of each kind of record and epoch.
#[derive(Default)]
pub(super) struct Claims(HashMap<(Record, u32), u32>);

impl Claims {
    pub(super) fn add(&mut self, prefix: &Prefix) {
        let Some(record) = prefix.record() else { return };
        let stamp = self.0.entry((record, prefix.epoch())).or_default();
        *stamp = prefix.stamp().max(*stamp);
    }

    /// The highest epoch, or 0.
    pub(super) fn newest_epoch(&self) -> u32 {
        self.0.keys().map(|(_, epoch)| *epoch).max().unwrap_or(0)
    }
}

impl Shared {
    /// Looks at every row that can be found, under the header as it is stored now.
    ///
    /// # Errors
    /// `HeaderRolledBack` if a row that opens is newer than the header; `UnknownEpoch` if the device, or, unless
    /// `unknown_rows` may be there, any other row is under a data key that the header does not have.
    pub(super) async fn refuse_older_header(&self, unknown_rows: bool) -> Result<Claims> {
        self.refresh().await?;
        let state = self.state();
        let claims = self.host.claims().await?;
        let mut unknown: Vec<_> = claims.0.keys().filter(|(_, epoch)| state.ring.epoch(*epoch).is_none()).collect();
        // The device first, so that the same store always gets the same answer.
        unknown.sort_by_key(|(record, epoch)| (*record != Record::Device, *record as usize, *epoch));
        for (record, epoch) in unknown {
            if *record == Record::Device || !unknown_rows {
                // Unless another process has added it since.
                self.state_for(&state, *record, *epoch).await?;
            }
        }
        if claims.0.values().all(|stamp| *stamp <= state.stamp) {
            return Ok(claims);
        }
        // A stamp is believed once its row has opened.
        let mut newest = state.stamp;
        self.host
            .each_row(|row| {
                if let Ok(Some(under)) = state.opens(&row) {
                    newest = newest.max(under.stamp);
                }
                Ok(())
            })
            .await?;
        self.check_stamp(&state, newest).await?;
        Ok(claims)
    }
}
