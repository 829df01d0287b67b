//! The labels: each a closed set of words.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::lease::Ended;
use crate::outcome::{Outcome, Reason};
use crate::store::Kind;

/// How something ended that either works or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResultLabel {
    /// It worked.
    Ok,
    /// It failed.
    Error,
    /// It was given up before its end: the lease was lost, or the plan changed.
    Stopped,
}

/// Whether a lease was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum GrantKind {
    Grant,
    Takeover,
}

/// [`Outcome`] without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum OutcomeLabel {
    Applied,
    Replayed,
    Rejected,
    Unknown,
}

/// [`Ended`] without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    Overdue,
    Refused,
    Closed,
}

/// [`Reason`], to be implemented for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReasonLabel(pub(super) Reason);

/// [`Kind`], to be implemented for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RemovedLabel(pub(super) Kind);

macro_rules! words {
    ($($type:ty { $($pattern:pat => $word:expr,)+ })+) => {$(
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&match self { $($pattern => $word,)+ }, encoder)
            }
        }
    )+};
}

words! {
    ResultLabel { Self::Ok => "ok", Self::Error => "error", Self::Stopped => "stopped", }
    GrantKind { Self::Grant => "grant", Self::Takeover => "takeover", }
    OutcomeLabel { Self::Applied => "applied", Self::Replayed => "replayed", Self::Rejected => "rejected", Self::Unknown => "unknown", }
    Cause { Self::Overdue => "overdue", Self::Refused => "refused", Self::Closed => "closed", }
    ReasonLabel { Self(reason) => reason.word(), }
    RemovedLabel { Self(kind) => kind.word(), }
}

macro_rules! label_sets {
    ($($name:ident { $($field:ident: $type:ty),+ })+) => {$(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $(pub(super) $field: $type),+ }
    )+};
}

// `&'static str`: a word that stands in this program. The names of calls and steps are such words.
label_sets! {
    ByKind { kind: GrantKind }
    ByResult { result: ResultLabel }
    ByCall { call: &'static str }
    ByCallOutcome { call: &'static str, outcome: OutcomeLabel }
    ByReason { reason: ReasonLabel }
    ByCause { cause: Cause }
    ByStep { step: &'static str, result: ResultLabel }
    ByRemoved { kind: RemovedLabel }
    ByTable { table: &'static str }
    ByAttention { cause: &'static str }
    ByState { state: &'static str }
}

impl<T> From<&Outcome<T>> for OutcomeLabel {
    fn from(outcome: &Outcome<T>) -> Self {
        match outcome {
            Outcome::Applied(_) => Self::Applied,
            Outcome::Replayed(_) => Self::Replayed,
            Outcome::Rejected(_) => Self::Rejected,
            Outcome::Unknown(_) => Self::Unknown,
        }
    }
}

impl From<&Ended> for Cause {
    fn from(why: &Ended) -> Self {
        match why {
            Ended::Overdue { .. } => Self::Overdue,
            Ended::Refused(_) => Self::Refused,
            Ended::Closed => Self::Closed,
        }
    }
}
