//! What is to be done about the epoch. Pure: from what the database says of itself, and what the cluster remembers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;

use super::EpochError;
use crate::manifests::names::{EPOCH_KEY, INCARNATION_KEY};
use crate::store::EpochStatus;

/// Key of the epoch object that says that the database has taken the number over. Until then a lower number in the
/// database is no loss: the server was restarted twice, and nobody was quick enough in between. From then on a database
/// without the number is another one: restored, left behind, or made anew.
const TAKEN_OVER_KEY: &str = "establishedAt";
/// Epochs end here: a token is below 2⁵³.
pub(super) const END: i64 = 1 << 21;

/// The epoch object, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochObject {
    /// The number that was allocated last.
    pub number: i64,
    /// The incarnation of the database that it was allocated for.
    pub incarnation: String,
    /// Whether that database is known to have stored it.
    pub taken_over: bool,
}

/// What is to be done about the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Database and object agree on this number.
    Fine {
        /// The number.
        number: i64,
    },
    /// This number was allocated for the running incarnation, and the database does not have it yet.
    Establish {
        /// The number.
        number: i64,
    },
    /// The database has this number, and the object was lost or lags behind.
    Raise {
        /// The number.
        number: i64,
    },
    /// A number above this one, and above every one found in the cluster.
    Allocate {
        /// The highest number that is known without looking into the cluster.
        above: i64,
    },
    /// Another incarnation was given this number a moment ago, and may be about to take it over: let it. If it does not,
    /// it was this server before another restart.
    Yield {
        /// The number.
        number: i64,
    },
    /// The database lacks a number that another incarnation took over, and no promotion explains it: a person decides.
    Ask {
        /// What the database has; 0: nothing.
        stored: i64,
        /// What it lacks.
        allocated: i64,
    },
}

/// What comes next. `confirmed`: an operator knows that this is the right database, and wants to go on with it.
#[must_use]
pub fn next_step(status: &EpochStatus, object: Option<&EpochObject>, confirmed: bool) -> Step {
    let (stored, floor) = (status.number.unwrap_or(0), status.floor());
    let Some(object) = object else {
        return if status.established { Step::Raise { number: stored } } else { Step::Allocate { above: floor } };
    };
    let (ours, allocated) = (object.incarnation == status.incarnation, object.number);
    if status.established && stored > allocated {
        return Step::Raise { number: stored };
    }
    // A lease that carries a later epoch, or the last token of this one, can be granted under the next epoch only.
    if status.established && ours && stored == allocated && floor == stored {
        return Step::Fine { number: stored };
    }
    if ours && !object.taken_over && allocated > floor {
        return Step::Establish { number: allocated };
    }
    let lacking = stored < allocated && !confirmed && !promoted(status, object);
    match object.taken_over {
        true if lacking => Step::Ask { stored, allocated },
        false if lacking => Step::Yield { number: allocated },
        _ => Step::Allocate { above: floor.max(allocated) },
    }
}

/// Whether the running database has a newer timeline than the one that the object names, and than it had when it was
/// given its own number: a standby that was promoted since, or a point-in-time recovery. What it lacks was never on its
/// branch. One that had a number on this timeline was left behind, or withdrawn for another one that a person adopted.
/// Another server's timelines cannot be compared.
fn promoted(status: &EpochStatus, object: &EpochObject) -> bool {
    let mut parts = object.incarnation.split('/');
    let (system, timeline) = (parts.next(), parts.next().and_then(|text| text.parse::<i32>().ok()));
    system == status.incarnation.split('/').next()
        && timeline.is_some_and(|timeline| status.timeline > timeline)
        && status.established_timeline.is_none_or(|own| status.timeline > own)
}

/// The next number above `highest`, which `by` carries.
pub(super) fn above(highest: i64, by: &str) -> Result<i64, EpochError> {
    let next = highest + 1;
    if next < END { Ok(next) } else { Err(EpochError::UsedUp(by.to_owned())) }
}

impl EpochObject {
    pub(super) fn data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::from([
            (EPOCH_KEY.to_owned(), self.number.to_string()),
            (INCARNATION_KEY.to_owned(), self.incarnation.clone()),
        ]);
        if self.taken_over {
            data.insert(TAKEN_OVER_KEY.to_owned(), crate::clock::Clock::wall().strftime("%FT%TZ").to_string());
        }
        data
    }
}

impl TryFrom<&ConfigMap> for EpochObject {
    type Error = EpochError;

    fn try_from(object: &ConfigMap) -> Result<Self, EpochError> {
        let get = |key: &str| object.data.as_ref().and_then(|data| data.get(key));
        let text = get(EPOCH_KEY).map_or("", String::as_str);
        let number = text.parse().ok().filter(|n| (1..END).contains(n)).ok_or_else(|| {
            EpochError::Damaged(format!("data.{EPOCH_KEY} is {text:?}, and must be a number from 1 to {}", END - 1))
        })?;
        let incarnation = get(INCARNATION_KEY).filter(|name| !name.is_empty()).cloned().ok_or_else(|| {
            EpochError::Damaged(format!("data.{INCARNATION_KEY} is missing: it names the database's incarnation"))
        })?;
        Ok(Self { number, incarnation, taken_over: get(TAKEN_OVER_KEY).is_some() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Token;

    const RUNNING: &str = "77/1/100/200";

    fn status(number: Option<i64>, established: bool) -> EpochStatus {
        EpochStatus {
            number,
            established,
            incarnation: RUNNING.into(),
            established_for: None,
            timeline: 1,
            established_timeline: None,
            highest_token: number.unwrap_or(0) * Token::PER_EPOCH,
        }
    }

    fn object(number: i64, incarnation: &str) -> EpochObject {
        EpochObject { number, incarnation: incarnation.into(), taken_over: true }
    }

    const BEFORE: &str = "77/1/50/60"; // the same server, before its restart
    const EARLIER: &str = "77/0/1/1"; // before this one was promoted
    const LATER: &str = "77/2/100/200"; // a standby of this one, promoted
    const OTHER: &str = "99/1/1/1"; // another server

    fn not_taken(number: i64, incarnation: &str) -> EpochObject {
        EpochObject { taken_over: false, ..object(number, incarnation) }
    }

    fn ask(stored: i64, allocated: i64) -> Step {
        Step::Ask { stored, allocated }
    }

    fn allocate(above: i64) -> Step {
        Step::Allocate { above }
    }

    #[test]
    fn what_comes_next_follows_from_database_and_object() {
        for (what, status, object, step) in [
            ("both agree", status(Some(3), true), Some(object(3, RUNNING)), Step::Fine { number: 3 }),
            ("established, not marked", status(Some(4), true), Some(not_taken(4, RUNNING)), Step::Fine { number: 4 }),
            ("not established", status(Some(3), false), Some(not_taken(4, RUNNING)), Step::Establish { number: 4 }),
            ("a fresh database, a fresh cluster", status(None, false), None, allocate(0)),
            ("restarted", status(Some(3), false), Some(object(3, BEFORE)), allocate(3)),
            (
                "upgraded: another identifier, the same data",
                status(Some(3), false),
                Some(object(3, OTHER)),
                allocate(3),
            ),
            ("promoted with a lag", status(Some(2), false), Some(object(3, EARLIER)), allocate(3)),
            ("the object is gone", status(Some(3), true), None, Step::Raise { number: 3 }),
            ("the object is gone, the server restarted", status(Some(3), false), None, allocate(3)),
            ("the object lags", status(Some(3), true), Some(object(2, BEFORE)), Step::Raise { number: 3 }),
            ("the object was put back by hand", status(Some(5), false), Some(object(3, RUNNING)), allocate(5)),
        ] {
            assert_eq!(next_step(&status, object.as_ref(), false), step, "{what}");
        }
    }

    #[test]
    fn a_database_that_lacks_the_epoch_does_not_get_it_by_itself() {
        for (what, status, object, step) in [
            ("fresh, beside another server's", status(None, false), object(9, OTHER), ask(0, 9)),
            ("fresh, in the same server", status(None, false), object(9, BEFORE), ask(0, 9)),
            ("restored", status(Some(2), false), object(3, BEFORE), ask(2, 3)),
            ("restored in a running server", status(Some(3), false), object(4, RUNNING), ask(3, 4)),
            ("an older dump in another server", status(Some(2), false), object(3, OTHER), ask(2, 3)),
            ("isolated, and another one was promoted", status(Some(2), true), object(3, LATER), ask(2, 3)),
            ("isolated, and another server was adopted", status(Some(2), true), object(3, OTHER), ask(2, 3)),
            ("one that was just given it", status(Some(2), false), not_taken(3, BEFORE), Step::Yield { number: 3 }),
            // The same number for two: whoever asks gets one of its own, and then the other one lacks it.
            ("one number for two", status(Some(5), true), object(5, OTHER), allocate(5)),
        ] {
            assert_eq!(next_step(&status, Some(&object), false), step, "{what}");
        }
    }

    #[test]
    fn a_branch_that_was_left_is_not_promoted_a_second_time() {
        let promoted = |own| EpochStatus {
            incarnation: LATER.into(),
            timeline: 2,
            established_timeline: own,
            ..status(Some(4), false)
        };
        // It was given epoch 4 on its timeline; then a person adopted the one on the older timeline.
        assert_eq!(next_step(&promoted(Some(2)), Some(&object(5, RUNNING)), false), ask(4, 5));
        // Its row is still the one of before the promotion.
        assert_eq!(next_step(&promoted(Some(1)), Some(&object(5, RUNNING)), false), allocate(5));
    }

    #[test]
    fn an_operators_word_turns_a_restore_into_a_new_epoch() {
        let object = object(3, "77/1/50/60");
        assert_eq!(next_step(&status(Some(2), false), Some(&object), true), Step::Allocate { above: 3 });
    }

    #[test]
    fn a_lease_that_carries_a_higher_epoch_than_the_row_counts() {
        let status = EpochStatus { highest_token: 8 * Token::PER_EPOCH + 1, ..status(Some(3), false) };
        assert_eq!(next_step(&status, Some(&object(3, "77/1/50/60")), false), Step::Allocate { above: 8 });
    }

    #[test]
    fn a_token_that_nobody_can_be_granted_after_is_left_behind_by_the_next_epoch() {
        let running = |highest_token| EpochStatus { highest_token, ..status(Some(3), true) };
        let step = |highest| next_step(&running(highest), Some(&object(3, RUNNING)), false);
        assert_eq!(step(4 * Token::PER_EPOCH - 3), Step::Fine { number: 3 });
        // The epoch's last one is kept for the release of the one before.
        assert_eq!(step(4 * Token::PER_EPOCH - 2), Step::Allocate { above: 4 });
        assert_eq!(step(9 * Token::PER_EPOCH + 1), Step::Allocate { above: 9 });
        // And it does not go on and on.
        let next = EpochStatus { number: Some(5), highest_token: 4 * Token::PER_EPOCH - 2, ..status(Some(5), true) };
        assert_eq!(next_step(&next, Some(&object(5, RUNNING)), false), Step::Fine { number: 5 });
    }

    #[test]
    fn a_damaged_object_is_refused() {
        for (epoch, incarnation) in [("", "x"), ("abc", "x"), ("0", "x"), ("2097152", "x"), ("-1", "x"), ("3", "")] {
            let data = [(EPOCH_KEY, epoch), (INCARNATION_KEY, incarnation)];
            let data = data.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let object = ConfigMap { data: Some(data), ..ConfigMap::default() };
            let error = EpochObject::try_from(&object).expect_err(epoch).to_string();
            assert!(error.contains("palisade-epoch"), "{error}");
        }
    }

    #[test]
    fn the_last_epoch_names_who_used_the_numbers_up() {
        assert!(above(END - 2, "x").is_ok());
        let error = above(END - 1, "Service team/churn").expect_err("no number is left").to_string();
        assert!(error.contains("Service team/churn"), "{error}");
    }
}
