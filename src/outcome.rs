//! What became of a write. Never a boolean: a timeout is a guess.

use std::fmt;

use serde_json::Value;

use crate::lease::Token;

/// What became of a fenced write, as far as the caller can know.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T = Value> {
    /// It was applied by this call.
    Applied(T),
    /// It had been applied before; this is the first try's answer again.
    Replayed(T),
    /// It was not applied, and under this fence it never will be.
    Rejected(Rejection),
    /// It may have been applied, or may still be. Send the same fence again, ask for its status, or abandon it.
    Unknown(String),
}

impl<T> Outcome<T> {
    /// The result, if the write stands.
    ///
    /// # Errors
    /// When it does not, or nobody knows.
    pub fn applied(self) -> Result<T, NotApplied> {
        match self {
            Self::Applied(result) | Self::Replayed(result) => Ok(result),
            Self::Rejected(rejection) => Err(NotApplied::Rejected(rejection)),
            Self::Unknown(why) => Err(NotApplied::Unknown(why)),
        }
    }

    /// The word for it: `applied`, `replayed`, `rejected` or `unknown`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Applied(_) => "applied",
            Self::Replayed(_) => "replayed",
            Self::Rejected(_) => "rejected",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Why [`Outcome::applied`] has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotApplied {
    /// It never will be applied.
    #[error("{0}")]
    Rejected(Rejection),
    /// It may have been applied.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// A refusal: nothing was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// The newest token of the resource when this was answered, if it has one.
    pub current: Option<Token>,
    /// What else the refusal says (the owner and the time left, for [`Reason::Held`]).
    pub detail: Option<Value>,
}

impl Rejection {
    /// Whether another resource's fence was refused, of a write that needs two: the own lease may be as good as before.
    #[must_use]
    pub fn is_of_another(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.get("resource").is_some())
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rejected: {}", self.reason)?;
        match self.current {
            Some(token) => write!(f, " (the newest token is {token})"),
            None => Ok(()),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)+) => {
        /// Why a call was refused. Closed, so that it can label a metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
            /// A reason of a newer database; see the server's ledger.
            Other,
        }

        impl Reason {
            /// The reason's word in SQL, logs and metrics.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)+ Self::Other => "other" }
            }

            /// The reason for a word from SQL.
            #[must_use]
            pub fn from_word(word: &str) -> Self {
                match word { $($word => Self::$name,)+ _ => Self::Other }
            }
        }
    };
}

reasons! {
    /// A newer token was granted.
    Stale = "stale",
    /// The token was never granted to anyone.
    NotIssued = "not_issued",
    /// The key is not the one of the session that holds the token.
    WrongKey = "wrong_key",
    /// A later write under the same token was applied, or this fence was abandoned.
    Superseded = "superseded",
    /// The token is so old that its ledger was cleaned away.
    Forgotten = "forgotten",
    /// There is no lease of this name.
    NoLease = "no_lease",
    /// The lease is free.
    NotHeld = "not_held",
    /// Another session holds the lease.
    Held = "held",
    /// There is no such session.
    NoSession = "no_session",
    /// The session was closed.
    SessionClosed = "session_closed",
    /// The session's heartbeat came too late.
    SessionExpired = "session_expired",
    /// The database was restarted or replaced, and has no epoch yet.
    EpochNotEstablished = "epoch_not_established",
    /// The epoch's number is not above every one used before.
    EpochNotNewer = "epoch_not_newer",
    /// The database was restarted since its incarnation was read.
    IncarnationChanged = "incarnation_changed",
    /// The row carries a newer token than the gate let through.
    NewerRow = "newer_row",
    /// Another resource guards the alias.
    Guarded = "guarded",
    /// No model has this name.
    NoSuchModel = "no_such_model",
    /// The model has no such version.
    NoSuchVersion = "no_such_version",
    /// A model of this name is there already.
    ModelExists = "model_exists",
    /// There is no such plan, or not yet.
    NoSuchPlan = "no_such_plan",
    /// A newer generation was planned already.
    OlderGeneration = "older_generation",
    /// Only a controller's lease may do this.
    NotAController = "not_a_controller",
    /// The deployment's removal is not recorded yet.
    NotRemoved = "not_removed",
}

impl Reason {
    /// Whether the caller is no longer the owner: it must stop, and start over with a new grant.
    #[must_use]
    pub fn lost(self) -> bool {
        matches!(
            self,
            Self::Stale
                | Self::NotIssued
                | Self::WrongKey
                | Self::Forgotten
                | Self::NoLease
                | Self::NoSession
                | Self::SessionClosed
                | Self::SessionExpired
                | Self::EpochNotEstablished
                | Self::NewerRow
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_back_from_its_word() {
        for reason in [Reason::Stale, Reason::Superseded, Reason::NewerRow, Reason::NotRemoved] {
            assert_eq!(Reason::from_word(reason.word()), reason);
        }
        assert_eq!(Reason::from_word("of a later release"), Reason::Other);
    }

    #[test]
    fn only_applied_and_replayed_have_a_result() {
        assert_eq!(Outcome::Applied(1).applied(), Ok(1));
        assert_eq!(Outcome::Replayed(1).applied(), Ok(1));
        assert!(matches!(Outcome::<i32>::Unknown("late".into()).applied(), Err(NotApplied::Unknown(_))));
    }
}
