//! The tables of an imported database that this version does not read.

use std::fmt;

use crate::printable::printable;

/// A part of a source that an import does not read. `Display` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRead {
    pub(crate) table: String,
    pub(crate) rows: Option<u64>,
}

impl NotRead {
    /// The name of the table, as it is in the file.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The number of its rows that belong to no imported account; `None` if the table is not upstream's.
    pub fn rows(&self) -> Option<u64> {
        self.rows
    }
}

impl fmt::Display for NotRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows {
            Some(rows) => write!(f, "{rows} rows of {}", printable(&self.table)),
            None => write!(f, "the table {}", printable(&self.table)),
        }
    }
}

/// The beginning of a list, as text.
pub(crate) fn listed(not_read: &[NotRead]) -> String {
    const SHOWN: usize = 8;
    let mut shown: Vec<_> = not_read.iter().take(SHOWN).map(NotRead::to_string).collect();
    if not_read.len() > SHOWN {
        shown.push(format!("and {} more", not_read.len() - SHOWN));
    }
    shown.join(", ")
}
