//! Which incarnation of the database hands out tokens.

use sqlx::postgres::PgRow;

use super::Store;
use super::call::{CallError, get};
use crate::outcome::Outcome;

/// What the database says of its epoch.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochStatus {
    /// The number that is stored, if there is one.
    pub number: Option<i64>,
    /// Whether it is this incarnation's: only then are tokens granted and writes applied.
    pub established: bool,
    /// The incarnation that is running: system identifier, timeline, start of postmaster and checkpointer.
    pub incarnation: String,
    /// The incarnation that the number was established for.
    pub established_for: Option<String>,
    /// The WAL timeline now.
    pub timeline: i32,
    /// The WAL timeline that the number was established on.
    pub established_timeline: Option<i32>,
    /// The highest token that any lease carries.
    pub highest_token: i64,
}

impl EpochStatus {
    /// The next number must be above this one, as far as the database knows. It is above the stored number only where a
    /// lease carries a later epoch's token, or the last one of this epoch: such a lease can be granted to nobody.
    #[must_use]
    pub fn floor(&self) -> i64 {
        self.number.unwrap_or(0).max((self.highest_token + 2) / crate::lease::Token::PER_EPOCH)
    }

    pub(super) fn read(row: &PgRow) -> Result<Self, CallError> {
        Ok(Self {
            number: get(row, "number")?,
            established: get(row, "established")?,
            incarnation: get(row, "incarnation")?,
            established_for: get(row, "established_for")?,
            timeline: get(row, "timeline")?,
            established_timeline: get(row, "established_timeline")?,
            highest_token: get(row, "highest_token")?,
        })
    }
}

impl Store {
    /// Which incarnation is running, and whether its epoch is established.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epoch_status(&self) -> Result<EpochStatus, CallError> {
        let row = self.row("epoch_status", self.timeout, sqlx::query("SELECT * FROM palisade.epoch_status()")).await?;
        EpochStatus::read(&row)
    }

    /// Establishes a number that was allocated for this incarnation. Closes all sessions, unless it is established already.
    ///
    /// # Errors
    /// When the database does not answer: asking again is safe.
    pub async fn establish_epoch(&self, number: i64, incarnation: &str) -> Result<Outcome, CallError> {
        let statement =
            sqlx::query("SELECT * FROM palisade.establish_epoch($1, $2)").bind(number).bind(incarnation.to_owned());
        Ok(self.answer("establish_epoch", self.timeout, statement).await?.outcome())
    }

    /// Makes an established epoch count no longer: every call is refused until another one is established. For a database
    /// beside which another one was given the next epoch.
    ///
    /// # Errors
    /// When the database does not answer: asking again is safe.
    pub async fn withdraw_epoch(&self, number: i64, incarnation: &str) -> Result<Outcome, CallError> {
        let statement =
            sqlx::query("SELECT * FROM palisade.withdraw_epoch($1, $2)").bind(number).bind(incarnation.to_owned());
        Ok(self.answer("withdraw_epoch", self.timeout, statement).await?.outcome())
    }

    /// Establishes an epoch without a cluster to remember it (`palisade demo`, tests): one above what is stored, and
    /// not below the timeline. A database that was restored to an older state can give out a token again this way;
    /// with a cluster, the controller's allocation prevents it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn establish_epoch_standalone(&self) -> Result<i64, CallError> {
        let status = self.epoch_status().await?;
        if let (true, Some(number)) = (status.established, status.number) {
            return Ok(number);
        }
        let number = (status.floor() + 1).max(i64::from(status.timeline));
        match self.establish_epoch(number, &status.incarnation).await?.applied() {
            Ok(_) => Ok(number),
            // Somebody else was faster, or the server was restarted in between: what it says now counts.
            Err(error) => match self.epoch_status().await? {
                EpochStatus { established: true, number: Some(number), .. } => Ok(number),
                _ => Err(CallError::NotSent(format!("the epoch cannot be established: {error}"))),
            },
        }
    }
}
