//! What a web server's answer means for a download that has `offset` bytes already. Pure.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED, RETRY_AFTER};

use super::Kind;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The body is the whole artifact: what is there is of another one, or the server has no ranges.
    Whole {
        /// The artifact's length.
        total: Option<u64>,
        /// For `If-Range`.
        validator: Option<String>,
    },
    /// The body goes on from `offset`.
    Rest {
        /// The artifact's length.
        total: Option<u64>,
    },
    /// There is nothing after `offset`.
    Complete,
    /// What is there cannot be gone on with: ask for all of it.
    StartOver,
    /// Later, perhaps.
    Later(Option<Duration>),
    /// No.
    No(Kind, &'static str),
}

/// Reads the answer to a request for what comes after `offset`.
pub(super) fn read(status: StatusCode, headers: &HeaderMap, offset: u64) -> Answer {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match status.as_u16() {
        200 => Answer::Whole {
            total: text(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            validator: validator(text(ETAG.clone()), text(LAST_MODIFIED)),
        },
        206 => match text(CONTENT_RANGE).and_then(range) {
            Some((start, total)) if offset > 0 && start == Some(offset) => Answer::Rest { total },
            // Other bytes than were asked for.
            _ => Answer::StartOver,
        },
        416 => match text(CONTENT_RANGE).and_then(range) {
            Some((None, Some(total))) if offset > 0 && total == offset => Answer::Complete,
            _ => Answer::StartOver,
        },
        404 | 410 => {
            Answer::No(Kind::NotFound, "is the source right? palisade model show NAME shows what is registered")
        }
        401 | 403 | 407 => Answer::No(
            Kind::Refused,
            "it wants credentials: --bearer-token-file, or a presigned URL that is still valid",
        ),
        408 | 425 | 429 | 500 | 502 | 503 | 504 => Answer::Later(text(RETRY_AFTER).and_then(|wait| {
            // The other form, a date, would need the server's clock: our own backoff does as well.
            wait.trim().parse().ok().map(Duration::from_secs)
        })),
        _ => Answer::No(Kind::Refused, "is the source right? Try it by curl -I"),
    }
}

/// A strong tag, or else the date. A weak one may name other bytes.
fn validator(etag: Option<&str>, modified: Option<&str>) -> Option<String> {
    match etag {
        Some(tag) if tag.starts_with('"') => Some(tag.to_owned()),
        Some(_) => None,
        None => modified.map(str::to_owned),
    }
}

/// `bytes START-END/TOTAL`, or `bytes */TOTAL`.
fn range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = match range.split_once('-') {
        Some((start, _)) => Some(start.trim().parse().ok()?),
        None => None,
    };
    Some((start, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn answer(status: u16, headers: &[(HeaderName, &'static str)], offset: u64) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        read(StatusCode::from_u16(status).unwrap(), &headers, offset)
    }

    #[test]
    fn only_bytes_that_go_on_where_we_stand_are_appended() {
        let rest = |range, offset| answer(206, &[(CONTENT_RANGE, range)], offset);
        assert_eq!(rest("bytes 7-9/10", 7), Answer::Rest { total: Some(10) });
        assert_eq!(rest("bytes 7-9/*", 7), Answer::Rest { total: None });
        for (range, offset) in
            [("bytes 6-9/10", 7), ("bytes 0-9/10", 0), ("bytes */10", 7), ("lines 7-9/10", 7), ("", 7)]
        {
            assert_eq!(rest(range, offset), Answer::StartOver, "{range}");
        }
        assert_eq!(answer(206, &[], 7), Answer::StartOver);
    }

    #[test]
    fn a_range_that_cannot_be_satisfied_is_the_end_only_if_the_length_says_so() {
        let none = |range, offset| answer(416, &[(CONTENT_RANGE, range)], offset);
        assert_eq!(none("bytes */10", 10), Answer::Complete);
        assert_eq!(none("bytes */9", 10), Answer::StartOver);
        assert_eq!(none("bytes */0", 0), Answer::StartOver);
        assert_eq!(answer(416, &[], 10), Answer::StartOver);
    }

    #[test]
    fn a_weak_tag_is_no_proof_that_the_bytes_are_the_same() {
        let whole = |headers: &[_]| match answer(200, headers, 0) {
            Answer::Whole { validator, .. } => validator,
            other => panic!("{other:?}"),
        };
        assert_eq!(whole(&[(ETAG, "\"a\""), (LAST_MODIFIED, "then")]).as_deref(), Some("\"a\""));
        assert_eq!(whole(&[(ETAG, "W/\"a\""), (LAST_MODIFIED, "then")]), None);
        assert_eq!(whole(&[(LAST_MODIFIED, "then")]).as_deref(), Some("then"));
    }

    #[test]
    fn what_may_pass_is_asked_again_and_what_will_not_is_told() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(answer(status, &[], 0), Answer::Later(None), "{status}");
        }
        assert_eq!(answer(503, &[(RETRY_AFTER, "7")], 0), Answer::Later(Some(Duration::from_secs(7))));
        assert_eq!(answer(503, &[(RETRY_AFTER, "Wed, 21 Oct 2015 07:28:00 GMT")], 0), Answer::Later(None));
        for (status, kind) in [(404, Kind::NotFound), (410, Kind::NotFound), (401, Kind::Refused), (403, Kind::Refused)]
        {
            assert!(matches!(answer(status, &[], 0), Answer::No(found, _) if found == kind), "{status}");
        }
        for status in [204, 304, 400, 501] {
            assert!(matches!(answer(status, &[], 0), Answer::No(Kind::Refused, _)), "{status}");
        }
    }
}
