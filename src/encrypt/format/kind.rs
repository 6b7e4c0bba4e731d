//! The suite of records and the numbers of their kinds, which are part of the format.

use crate::error::{Error, Result};
use crate::method::{Record, for_each_record};

/// XChaCha20-Poly1305.
pub(crate) const SUITE: u8 = 1;
/// The number of kinds of record. Their numbers count from 1.
pub(crate) const KINDS: usize = Kind::ALL.len();

macro_rules! define_kind {
    (
        kinds { $($(#[$doc:meta])* $kind:ident $name:literal $label:literal = $number:literal;)* }
        others { $($others:tt)* }
    ) => {
        /// A kind of record in the format. Values are sealed only as one of these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Kind {
            $($kind = $number,)*
        }

        impl Kind {
            pub(crate) const ALL: &'static [Kind] = &[$(Kind::$kind,)*];

            /// The kind of a record.
            ///
            /// # Errors
            /// [`Error::Encode`] if nothing is sealed as such a record.
            pub(crate) fn of(record: Record) -> Result<Kind> {
                match record {
                    $(Record::$kind => Ok(Kind::$kind),)*
                    other => Err(Error::Encode { record: other }),
                }
            }

            pub(crate) const fn record(self) -> Record {
                match self { $(Kind::$kind => Record::$kind,)* }
            }
        }
    };
}
for_each_record!(define_kind);

impl Kind {
    /// Its number inside the format.
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    /// The kind with this number.
    pub(crate) fn with_number(number: u8) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_from_1_without_gaps() {
        let mut numbers: Vec<_> = Kind::ALL.iter().map(|kind| kind.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
        assert_eq!(KINDS, 20);
    }

    #[test]
    fn what_only_names_a_method_is_never_sealed() {
        for record in Record::ALL {
            match record {
                Record::SignalState | Record::Store => {
                    assert!(matches!(Kind::of(*record), Err(Error::Encode { record: refused }) if refused == *record));
                }
                _ => assert_eq!(Kind::of(*record).unwrap().record(), *record),
            }
        }
    }
}
