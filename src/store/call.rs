//! One statement on one connection. What goes wrong is told apart by what it means for the write.

use std::time::Duration;

use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};

use super::Store;
use crate::failpoint;
use crate::lease::Token;
use crate::outcome::{Outcome, Reason, Rejection};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The statement was never sent: nothing happened.
    #[error("the database cannot be reached: {0}")]
    NotSent(String),
    /// The server said no with an error: the statement was rolled back.
    #[error("the database refused the call ({code}): {message}{hint}")]
    Refused {
        /// The SQLSTATE. Palisade's own begin with `PS`.
        code: String,
        /// What the server said.
        message: String,
        /// What it advises, behind a line break, or nothing.
        hint: String,
    },
    /// It was sent, and no answer came: it may have been applied, or may be later.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

impl CallError {
    /// Whether another try of something that changes nothing (a read) may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::NoAnswer(_) => true,
            // Lock not available, cancelled, too many connections, starting up, serialization and deadlock.
            Self::Refused { code, .. } => {
                matches!(code.as_str(), "55P03" | "57014" | "53300" | "57P03" | "40001" | "40P01")
            }
        }
    }
}

pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// A connection that goes back to the pool only when its answer was read to the end. Otherwise (a timeout, an error
/// that is not the server's, a dropped future) its state is unknown, and it is closed.
struct Checked {
    connection: Option<PoolConnection<Postgres>>,
    clean: bool,
}

impl Drop for Checked {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.clean
        {
            drop(connection.detach());
        }
    }
}

impl Store {
    /// Sends one statement and reads its rows. `name` is for failpoints.
    pub(super) async fn rows(
        &self,
        name: &str,
        budget: Duration,
        statement: Statement,
    ) -> Result<Vec<PgRow>, CallError> {
        let budget = budget.min(self.timeout);
        // A quarter for a connection, the rest for the statement: together no more than the caller allows.
        let (connecting, answering) = (budget / 4, budget - budget / 4);
        let connection = match tokio::time::timeout(connecting, self.pool.acquire()).await {
            Ok(connection) => connection.map_err(|e| CallError::NotSent(e.to_string()))?,
            Err(_) => return Err(CallError::NotSent(format!("no connection within {connecting:?}"))),
        };
        let mut checked = Checked { connection: Some(connection), clean: false };
        failpoint::before(name);
        let answer = match checked.connection.as_mut() {
            None => return Err(CallError::NotSent("no connection".into())),
            Some(connection) => match tokio::time::timeout(answering, statement.fetch_all(&mut **connection)).await {
                Ok(answer) => answer,
                Err(_) => return Err(CallError::NoAnswer(format!("within {answering:?}"))),
            },
        };
        failpoint::after(name);
        match answer {
            Ok(rows) => {
                checked.clean = true;
                Ok(rows)
            }
            Err(sqlx::Error::Database(error)) => {
                let code = error.code().unwrap_or_default().into_owned();
                // The server is going down (57P01, 57P02), or this connection is being ended: the commit may have
                // been on its way.
                if code.starts_with("57P") && code != "57P03" {
                    return Err(CallError::NoAnswer(error.message().to_owned()));
                }
                checked.clean = true;
                let hint = error
                    .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                    .and_then(|e| e.hint())
                    .map(|hint| format!("\n{hint}"))
                    .unwrap_or_default();
                Err(CallError::Refused { code, message: error.message().to_owned(), hint })
            }
            Err(error) => Err(CallError::NoAnswer(error.to_string())),
        }
    }

    pub(super) async fn row(&self, name: &str, budget: Duration, statement: Statement) -> Result<PgRow, CallError> {
        let mut rows = self.rows(name, budget, statement).await?;
        rows.pop().ok_or_else(|| CallError::NoAnswer("an answer without a row".into()))
    }

    /// A call of a function that returns `palisade.answer`.
    pub(super) async fn answer(&self, name: &str, budget: Duration, statement: Statement) -> Result<Answer, CallError> {
        Answer::read(&self.row(name, budget, statement).await?)
    }
}

/// `palisade.answer`, as it came.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub outcome: String,
    pub reason: Option<String>,
    pub current: Option<Token>,
    pub result: Option<Value>,
}

impl Answer {
    fn read(row: &PgRow) -> Result<Self, CallError> {
        Ok(Self {
            outcome: get(row, "outcome")?,
            reason: get(row, "reason")?,
            current: get::<Option<i64>>(row, "current_token")?.map(Token),
            result: get(row, "result")?,
        })
    }

    pub(super) fn outcome(self) -> Outcome {
        let result = self.result.clone().unwrap_or(Value::Null);
        match self.outcome.as_str() {
            "applied" => Outcome::Applied(result),
            "replayed" => Outcome::Replayed(result),
            "rejected" => Outcome::Rejected(self.rejection()),
            // A later release's word: what it means for the write is not known here.
            other => Outcome::Unknown(format!("the database answered {other:?}")),
        }
    }

    pub(super) fn rejection(self) -> Rejection {
        let reason = self.reason.as_deref().map_or(Reason::Other, Reason::from_word);
        Rejection { reason, current: self.current, detail: self.result }
    }
}

/// A column, or the news that this is not the schema that was expected.
pub(super) fn get<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(
    row: &'r PgRow,
    column: &str,
) -> Result<T, CallError> {
    row.try_get(column).map_err(|e| CallError::Refused {
        code: "PS000".into(),
        message: format!("column {column} cannot be read: {e}"),
        hint: "\nDo program and schema belong together? palisade migrate".into(),
    })
}

/// JSON that this program wrote, or an older or newer one.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T, CallError> {
    serde_json::from_value(value).map_err(|e| CallError::Refused {
        code: "PS000".into(),
        message: format!("{what} cannot be read: {e}"),
        hint: "\nDo program and schema belong together? palisade migrate".into(),
    })
}

/// Whole microseconds; anything longer than Postgres can hold is as good as its maximum.
pub(super) fn interval(span: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(span.as_micros()).unwrap_or(i64::MAX) }
}

pub(super) fn millis(value: i64) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}
