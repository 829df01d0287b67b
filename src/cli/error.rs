//! How a command fails, and what its exit code is. The codes are part of the command line's promise: docs/cli.md.

use std::io::Write;

use super::output::visible;
use super::{Output, called};
use crate::epoch::{Attention, EpochError};
use crate::lease::{AcquireError, LeaseError, SessionError};
use crate::outcome::{NotApplied, Reason, Rejection};
use crate::store::{CallError, MigrateError};

/// Why a command did not do what it was asked to do. Each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments cannot be meant: exit code 2.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        next: String,
    },
    /// Refused, nothing was changed: exit code 3.
    #[error("{message}")]
    Rejected {
        /// What was refused, and why.
        message: String,
        /// What to do.
        next: String,
    },
    /// It may have been done: exit code 4.
    #[error("{message}")]
    Unknown {
        /// What is not known.
        message: String,
        /// How to find out.
        next: String,
    },
    /// There is no such thing: exit code 5.
    #[error("{message}")]
    NotFound {
        /// What is not there.
        message: String,
        /// Where to look.
        next: String,
    },
    /// The database or the cluster cannot be reached, or is not ready: exit code 6.
    #[error("{message}")]
    Unavailable {
        /// What is out of reach.
        message: String,
        /// What to do.
        next: String,
    },
    /// The doctor found something: exit code 7 or 8. The report is on stdout, and says what to do.
    #[error("{errors} errors, {warnings} warnings")]
    Found {
        /// Errors: with one, the code is 8.
        errors: usize,
        /// Warnings.
        warnings: usize,
    },
    /// What came is not what was wanted, and nothing of it is left: exit code 9.
    #[error("{message}")]
    WrongDigest {
        /// What came.
        message: String,
        /// What to do.
        next: String,
    },
    /// Anything else: exit code 1.
    #[error("{message}")]
    Failed {
        /// What went wrong.
        message: String,
        /// What to do.
        next: String,
    },
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $function:ident $with:ident $variant:ident $next:literal,)+) => {$(
        $(#[$doc])*
        pub fn $function(message: impl Into<String>) -> Self {
            Self::$with(message, $next)
        }

        /// The same, with what to do next.
        pub fn $with(message: impl Into<String>, next: impl Into<String>) -> Self {
            Self::$variant { message: message.into(), next: next.into() }
        }
    )+};
}

impl Error {
    constructors! {
        /// See [`Error::Usage`].
        usage usage_next Usage "try --help",
        /// See [`Error::Rejected`].
        rejected rejected_next Rejected "",
        /// See [`Error::Unknown`].
        unknown unknown_next Unknown "ask again: asking is safe",
        /// See [`Error::NotFound`].
        not_found not_found_next NotFound "",
        /// See [`Error::Unavailable`].
        unavailable unavailable_next Unavailable "try again",
        /// See [`Error::WrongDigest`].
        wrong_digest wrong_digest_next WrongDigest "",
        /// See [`Error::Failed`].
        failed failed_next Failed "",
    }

    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Rejected { .. } => 3,
            Self::Unknown { .. } => 4,
            Self::NotFound { .. } => 5,
            Self::Unavailable { .. } => 6,
            Self::Found { errors: 0, .. } => 7,
            Self::Found { .. } => 8,
            Self::WrongDigest { .. } => 9,
        }
    }

    /// The code's word, in JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "failed",
            Self::Usage { .. } => "usage",
            Self::Rejected { .. } => "rejected",
            Self::Unknown { .. } => "unknown",
            Self::NotFound { .. } => "not_found",
            Self::Unavailable { .. } => "unavailable",
            Self::Found { .. } => "found",
            Self::WrongDigest { .. } => "wrong_digest",
        }
    }

    /// What to do next; empty where the message says it all.
    #[must_use]
    pub fn next(&self) -> &str {
        match self {
            Self::Usage { next, .. }
            | Self::Rejected { next, .. }
            | Self::Unknown { next, .. }
            | Self::NotFound { next, .. }
            | Self::Unavailable { next, .. }
            | Self::WrongDigest { next, .. }
            | Self::Failed { next, .. } => next,
            Self::Found { .. } => "",
        }
    }

    /// A call that changes something, whose answer was lost, may have been done.
    pub fn of_write(error: CallError, next: &str) -> Self {
        match error {
            CallError::NoAnswer(why) => Self::unknown_next(format!("the outcome is unknown: {why}"), next),
            other => other.into(),
        }
    }

    /// Prints it, once, to stderr: as text, or as one line of JSON. What the doctor found is printed already.
    pub(super) fn report(&self, output: Output) {
        if matches!(self, Self::Found { .. }) {
            return;
        }
        let message = self.to_string();
        let (message, next) = (called::commands(&message), called::commands(self.next()));
        let text = match output {
            Output::Table => {
                let mut text = format!("error: {}\n", visible(&message));
                if !next.is_empty() {
                    text += &format!("next: {}\n", visible(&next));
                }
                text
            }
            Output::Json | Output::Yaml => {
                let (code, kind) = (self.code(), self.kind());
                let error = serde_json::json!({"code": code, "kind": kind, "message": message, "next": next});
                serde_json::json!({ "error": error }).to_string() + "\n"
            }
        };
        // Nobody is left to be told that nobody listens.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// A call whose lost answer changes nothing: asking again is safe. For others: [`Error::of_write`].
impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        const MIGRATE: &str = "the schema may be missing or older than this program: palisade migrate";
        let message = error.to_string();
        let CallError::Refused { code, .. } = &error else {
            return Self::unavailable_next(message, "is DATABASE_URL right, and does the server run? Then try again");
        };
        match code.as_str() {
            // PS004: an argument; 22: a value that its type does not hold; 23514: a CHECK; 54: too large.
            "PS004" | "PS001" | "23514" => Self::usage(message),
            other if other.starts_with("22") || other.starts_with("54") => Self::usage(message),
            "PS000" | "3F000" | "42P01" | "42883" | "42703" => Self::failed_next(message, MIGRATE),
            "PS006" => Self::unavailable(message),
            "42501" => Self::failed_next(message, "connect as a role that may: docs/cli.md names each command's"),
            _ if error.is_transient() => Self::unavailable(message),
            _ => Self::failed(message),
        }
    }
}

impl From<EpochError> for Error {
    fn from(error: EpochError) -> Self {
        match (error.attention(), error) {
            (Some(Attention { message, action, .. }), _) => Self::rejected_next(message, action),
            (None, EpochError::Database(error)) => error.into(),
            (None, error) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection.reason {
            Reason::NoLease => Self::not_found_next(message, "palisade lease ls shows what there is"),
            Reason::NoSuchModel => Self::not_found_next(message, "palisade model ls shows what there is"),
            Reason::NoSuchVersion => Self::not_found_next(message, "palisade model show NAME shows its versions"),
            Reason::NoSuchPlan | Reason::NoSession => Self::not_found(message),
            Reason::EpochNotEstablished => Self::unavailable_next(
                message,
                "the database was restarted or is new: a running controller establishes its epoch",
            ),
            Reason::NotHeld => Self::rejected_next(message, "nobody holds the lease: there is nothing to take away"),
            Reason::Guarded => {
                Self::rejected_next(message, "only the owner of the resource that guards it may move it")
            }
            _ => Self::rejected(message),
        }
    }
}

impl From<NotApplied> for Error {
    fn from(error: NotApplied) -> Self {
        match error {
            NotApplied::Rejected(rejection) => rejection.into(),
            NotApplied::Unknown(_) => Self::unknown(error.to_string()),
        }
    }
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Rejected(rejection) => rejection.into(),
            SessionError::Call(error) => error.into(),
        }
    }
}

impl From<AcquireError> for Error {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Rejected(rejection) => rejection.into(),
            AcquireError::Call(error) => error.into(),
            AcquireError::SessionOver => Self::rejected_next(error.to_string(), "start again with a new session"),
        }
    }
}

impl From<LeaseError> for Error {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Lost { .. } => Self::rejected_next(error.to_string(), "acquire it anew"),
            LeaseError::Unsettled { .. } => Self::unknown_next(error.to_string(), "palisade operation show"),
            LeaseError::Call(error) => Self::of_write(error, "palisade operation show tells what became of it"),
        }
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        let message = error.to_string();
        match error {
            MigrateError::Unavailable(_) => {
                Self::unavailable_next(message, "is DATABASE_URL right, and does the server run? Then try again")
            }
            MigrateError::Refused(_) => Self::unavailable_next(message, "mend the URL, the login or the certificate"),
            MigrateError::Logins(_) => Self::failed_next(
                message,
                "migrate as a role that may make roles, or make the logins by hand: docs/operations.md",
            ),
            MigrateError::NewerDatabase { .. } | MigrateError::Changed(_) | MigrateError::Failed(_) => {
                Self::failed(message)
            }
        }
    }
}

impl From<super::crd::Error> for Error {
    fn from(error: super::crd::Error) -> Self {
        match error {
            super::crd::Error::Usage(_) => Self::usage(error.to_string()),
            super::crd::Error::Write(_) => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> Error {
        CallError::Refused { code: code.into(), message: "m".into(), hint: String::new() }.into()
    }

    #[test]
    fn what_the_server_says_becomes_the_documented_exit_code() {
        for (code, exit) in [("PS004", 2), ("22P02", 2), ("42501", 1), ("42883", 1), ("57014", 6), ("53300", 6)] {
            assert_eq!(refused(code).code(), exit, "{code}");
        }
        assert_eq!(Error::from(CallError::NoAnswer("late".into())).code(), 6, "a read can be asked again");
        assert_eq!(Error::of_write(CallError::NoAnswer("late".into()), "ask").code(), 4, "a write may have been done");
        assert_eq!(Error::of_write(CallError::NotSent("down".into()), "ask").code(), 6, "nothing was sent");
    }

    #[test]
    fn a_rejection_is_3_unless_something_is_missing_or_not_ready() {
        let error = |reason| Error::from(Rejection { reason, current: None, detail: None }).code();
        assert_eq!(error(Reason::Stale), 3);
        assert_eq!(error(Reason::Guarded), 3);
        assert_eq!(error(Reason::NoSuchModel), 5);
        assert_eq!(error(Reason::EpochNotEstablished), 6);
    }
}
