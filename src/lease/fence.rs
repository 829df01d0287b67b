//! Fencing tokens and fences: the order of all that owners do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number that each grant of a resource makes larger, and that never goes back.
///
/// The high part is the epoch (the incarnation of the database), the low 32 bits count the grants:
/// `token = epoch · 2³² + counter`. Tokens stay below 2⁵³, so that they survive JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub i64);

impl Token {
    /// Grants an epoch has room for.
    pub const PER_EPOCH: i64 = 1 << 32;

    /// The incarnation of the database that granted it.
    #[must_use]
    pub fn epoch(self) -> i64 {
        self.0 / Self::PER_EPOCH
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Token and sequence: it names one intended write, and orders it. Written `TOKEN/SEQUENCE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// The grant under which the write happens.
    pub token: Token,
    /// The number of the write under that grant, from 1.
    pub sequence: i64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.token, self.sequence)
    }
}

/// Why a text is not a fence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a fence: TOKEN/SEQUENCE, two numbers from 1 to 9007199254740991, is")]
pub struct ParseFenceError(String);

impl FromStr for Fence {
    type Err = ParseFenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| -> Option<i64> {
            // As strict as the admission policy's pattern: no sign, no leading zero.
            let plain = part.len() <= 16 && !part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit());
            part.parse().ok().filter(|n| plain && *n > 0 && *n < (1_i64 << 53))
        };
        let parsed = text
            .split_once('/')
            .and_then(|(token, sequence)| Some(Self { token: Token(number(token)?), sequence: number(sequence)? }));
        parsed.ok_or_else(|| ParseFenceError(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fences_are_ordered_by_token_then_sequence() {
        let fence = |s: &str| s.parse::<Fence>().expect("a fence");
        assert!(fence("2/1") > fence("1/999"));
        assert!(fence("2/2") > fence("2/1"));
        assert_eq!(fence("4294967297/3").token.epoch(), 1);
    }

    #[test]
    fn what_is_not_a_fence_is_refused() {
        for text in
            ["", "1", "1/", "/1", "0/1", "1/0", "01/1", "+1/1", "-1/1", "1/1/1", " 1/1", "9007199254740992/1", "1/x"]
        {
            assert!(text.parse::<Fence>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(token in 1_i64..(1 << 53), sequence in 1_i64..(1 << 53)) {
            let fence = Fence { token: Token(token), sequence };
            prop_assert_eq!(fence.to_string().parse::<Fence>(), Ok(fence));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = text.parse::<Fence>();
        }
    }
}
