//! What the rows of a store say of its header, before its keys are changed.
//!
//! A header that was put back reads its own records and no newer ones. Writing the next header over it would wash that away:
//! the generation would rise above every stamp, removed secrets would open for good, and a data key could be forgotten that
//! the only readable rows are under. So every change of the keys looks at the rows first.

use super::stored::sealed_prefix;
use super::vault::Shared;
use crate::error::Result;
use crate::method::Record;

/// What rows claim of themselves, whether or not they open.
#[derive(Default)]
pub(super) struct Claims {
    /// The highest epoch, or 0.
    pub(super) newest_epoch: u32,
}

impl Shared {
    /// Looks at every row that can be found, under the header as it is stored now.
    ///
    /// # Errors
    /// `HeaderRolledBack` if a row that opens is newer than the header; `UnknownEpoch` if the device, or,
    /// unless `unknown_rows` may be there, any other row is under a data key that the header does not have.
    pub(super) async fn refuse_older_header(&self, unknown_rows: bool) -> Result<Claims> {
        self.refresh().await?;
        let state = self.state();
        let (mut claims, mut newest, mut unknown) = (Claims::default(), 0, vec![]);
        self.host
            .each_row(|row| {
                // Damage is for whoever reads the row.
                let Ok(Some(prefix)) = sealed_prefix(&row) else { return Ok(()) };
                let epoch = prefix.epoch();
                claims.newest_epoch = claims.newest_epoch.max(epoch);
                if state.ring.epoch(epoch).is_none() {
                    let counts = row.record == Record::Device || !unknown_rows;
                    if counts && !unknown.iter().any(|(_, known)| *known == epoch) && unknown.len() < UNKNOWN_EPOCHS {
                        unknown.push((row.record, epoch));
                    }
                } else if prefix.stamp() > state.stamp.max(newest) && state.opens(&row).is_ok() {
                    newest = prefix.stamp();
                }
                Ok(())
            })
            .await?;
        if newest > 0 {
            self.check_stamp(&state, newest).await?;
        }
        for (record, epoch) in unknown {
            // Unless another process has added it since.
            self.state_for(&state, record, epoch).await?;
        }
        Ok(claims)
    }
}

/// More than a header can come to know while rows are looked at.
const UNKNOWN_EPOCHS: usize = 32;
