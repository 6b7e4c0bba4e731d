//! Hides the length of sealed values.

use crate::error::{Error, Result};

/// The way in which the length of sealed values is hidden. Chosen when a vault is created, and kept in its header.
///
/// The length of a session shows how many skipped messages it holds. The length of a sent message shows how long its
/// text is. Padding (ISO/IEC 7816-4, inside the authenticated body) costs some space and hides most of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Padding {
    /// Lengths are visible.
    #[default]
    None,
    /// Padmé, at least 64 bytes. Takes at most 12 % more space; only the logarithm of the logarithm of the length is
    /// visible (<https://petsymposium.org/popets/2019/popets-2019-0056.php>).
    Padme,
    /// Up to a multiple of this many bytes, 16 to 4096.
    Multiple(u16),
}

impl Padding {
    const PADME_MINIMUM: usize = 64;

    /// # Errors
    /// [`Error::InvalidInput`] if a multiple is out of range.
    pub(crate) fn check(self) -> Result<Self> {
        match self {
            Padding::Multiple(bytes) if !(16..=4096).contains(&bytes) => {
                Err(Error::InvalidInput { what: "padding", problem: "must be a multiple of 16 to 4096 bytes" })
            }
            padding => Ok(padding),
        }
    }

    /// The two numbers of the policy in a header.
    pub(crate) fn to_header(self) -> (u8, u32) {
        match self {
            Padding::None => (0, 0),
            Padding::Padme => (1, 0),
            Padding::Multiple(bytes) => (2, u32::from(bytes)),
        }
    }

    pub(crate) fn from_header(policy: u8, parameter: u32) -> Option<Self> {
        match (policy, parameter) {
            (0, 0) => Some(Padding::None),
            (1, 0) => Some(Padding::Padme),
            (2, 16..=4096) => Some(Padding::Multiple(parameter as u16)),
            _ => None,
        }
    }

    /// The length of a body of `length` bytes after padding. At least one byte is padding.
    pub(crate) fn padded(self, length: usize) -> usize {
        match self {
            Padding::None => length,
            Padding::Padme => padme((length + 1).max(Self::PADME_MINIMUM)),
            Padding::Multiple(bytes) => (length + 1).next_multiple_of(usize::from(bytes)),
        }
    }
}

/// Rounds up so that only the leading log2(log2(length)) bits of the length differ (Padmé, algorithm 1).
fn padme(length: usize) -> usize {
    let exponent = length.ilog2();
    let kept = exponent.checked_ilog2().unwrap_or(0) + 1;
    let mask = (1 << (exponent.saturating_sub(kept))) - 1;
    (length + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padme_matches_the_paper() {
        // 9 → 10 is the paper's own example; the others follow from its bound of 12 %.
        assert_eq!(padme(9), 10);
        for length in 1..20_000 {
            let padded = padme(length);
            assert!(padded >= length && padded as f64 <= length as f64 * 1.12, "{length} → {padded}");
        }
        let distinct: std::collections::BTreeSet<_> = (1024..2048).map(padme).collect();
        assert!(distinct.len() <= 17, "{}", distinct.len());
    }

    #[test]
    fn every_policy_adds_a_byte_and_survives_the_header() {
        for padding in [Padding::None, Padding::Padme, Padding::Multiple(16), Padding::Multiple(4096)] {
            let (policy, parameter) = padding.to_header();
            assert_eq!(Padding::from_header(policy, parameter), Some(padding));
            for length in [0, 1, 15, 16, 63, 64, 4095, 4096, 70_000] {
                assert!(padding == Padding::None || padding.padded(length) > length);
            }
        }
        assert!(Padding::Multiple(15).check().is_err() && Padding::Multiple(4097).check().is_err());
        assert_eq!(Padding::from_header(2, 15), None);
    }
}
