//! Looks at a database without any key.

use std::fmt;

use serde::Serialize;

use crate::encrypt::HeaderInfo;
use crate::error::{Error, Result};
use crate::printable::printable;
use crate::rows::store::{OwnRows, OwnStore};
use crate::rows::table::TableSize;

/// The content of a database that is visible without a key. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The accounts.
    pub accounts: Vec<InspectedAccount>,
    /// The tables, over all accounts.
    pub tables: Vec<TableSize>,
}

/// An account in an [`Inspection`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedAccount {
    /// The number of the account.
    #[serde(rename = "account")]
    pub number: i32,
    /// The header of its vault; `None` if it has no vault, or the header cannot be read.
    #[serde(rename = "vault")]
    pub header: Option<HeaderInfo>,
    /// Why the header cannot be read.
    pub problem: Option<String>,
}

/// Looks at a database without any key: its accounts, the headers of their vaults, and the rows and
/// bytes of each table.
///
/// # Errors
/// [`Error::Sqlite`] if the database cannot be read.
pub async fn inspect(store: &impl OwnStore) -> Result<Inspection> {
    let OwnRows(store) = store.own_rows();
    let mut accounts = vec![];
    for number in store.accounts_in_use().await? {
        let (header, problem) = match HeaderInfo::read(&*store.account(number)).await {
            Ok(header) => (header, None),
            Err(error @ (Error::HeaderDamaged(_) | Error::UnsupportedVersion { .. })) => {
                (None, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        accounts.push(InspectedAccount { number, header, problem });
    }
    Ok(Inspection { accounts, tables: store.sizes().await? })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for InspectedAccount { number, header, problem } in &self.accounts {
            let Some(header) = header else {
                writeln!(f, "account {number}: {}", printable(problem.as_deref().unwrap_or("no vault")))?;
                continue;
            };
            let state = match header {
                HeaderInfo { importing: true, .. } => ", import not finished",
                HeaderInfo { rotating: true, .. } => ", change of data key not finished",
                _ => "",
            };
            writeln!(
                f,
                "account {number}: vault format {}, generation {}, {} of 2 header copies intact, padding {:?}{state}",
                header.version, header.generation, header.intact_copies, header.padding
            )?;
            writeln!(f, "  store id {}", data_encoding::HEXLOWER.encode(&header.store_id))?;
            for slot in &header.slots {
                writeln!(f, "  slot {}: {} ({})", slot.id, printable(&slot.label), slot.kind)?;
            }
        }
        writeln!(f, "\n{:<20} {:>10} {:>14}", "table", "rows", "bytes")?;
        for TableSize { name, rows, bytes } in &self.tables {
            writeln!(f, "{name:<20} {rows:>10} {bytes:>14}")?;
        }
        Ok(())
    }
}
