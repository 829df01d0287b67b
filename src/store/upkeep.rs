//! What keeps the tables small and the gate free. Needs the role `palisade_controller`.

use std::time::Duration;

use super::Store;
use super::call::{CallError, get, interval};
use crate::outcome::Reason;

/// What is removed once it is old. Never what a fence still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What became of the writes of former tokens.
    Ledger,
    /// Writes that were refused.
    Refusals,
    /// Former grants.
    History,
    /// The outbox.
    Events,
    /// Answers to plain clients.
    Requests,
    /// Sessions that ended.
    Sessions,
}

impl Kind {
    /// All of them. The grants behind the ledger: what it still needs is kept.
    pub const ALL: [Self; 6] =
        [Self::Ledger, Self::Refusals, Self::Events, Self::Requests, Self::Sessions, Self::History];

    /// The word for it in SQL and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Refusals => "refusals",
            Self::History => "history",
            Self::Events => "events",
            Self::Requests => "requests",
            Self::Sessions => "sessions",
        }
    }
}

/// What one batch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// Rows that were removed.
    pub removed: u32,
    /// Where to go on; `None`: there is no more for now.
    pub place: Option<String>,
}

/// How much of the disk a table takes, its indexes included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The table.
    pub table: String,
    /// Bytes.
    pub bytes: i64,
}

/// How far refusals were counted. Ids are given before rows are committed: what is newest now is counted the next time.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefusalCursor(Option<(i64, i64)>);

impl Store {
    /// Writes that were refused since the last call but one, by reason; nothing at the first call. Reads no other rows.
    /// Needs the role `palisade_reader`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn refusals(&self, cursor: &mut RefusalCursor) -> Result<Vec<(Reason, u64)>, CallError> {
        let statement = sqlx::query(
            "SELECT e.last, r.reason, r.refusals FROM (SELECT coalesce(max(id), 0) AS last FROM palisade.refusal) AS e \
             LEFT JOIN (SELECT reason, count(*) AS refusals FROM palisade.refusal WHERE id > $1 AND id <= $2 GROUP BY reason) AS r ON true",
        )
        .bind(cursor.0.map(|(from, _)| from))
        .bind(cursor.0.map(|(_, to)| to));
        let rows = self.rows("refusals", self.timeout, statement).await?;
        let mut refusals = Vec::new();
        for row in &rows {
            if let Some(reason) = get::<Option<String>>(row, "reason")? {
                refusals.push((Reason::from_word(&reason), get::<i64>(row, "refusals")?.unsigned_abs()));
            }
        }
        if let Some(row) = rows.first() {
            let last = get(row, "last")?;
            cursor.0 = Some((cursor.0.map_or(last, |(_, to)| to), last));
        }
        Ok(refusals)
    }

    /// Ends backends that have kept a lease's row locked, idle, for longer than this. Answers how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn end_blockers(&self, older_than: Duration) -> Result<i32, CallError> {
        let statement = sqlx::query("SELECT palisade.end_blockers($1) AS ended").bind(interval(older_than));
        get(&self.row("end_blockers", self.timeout, statement).await?, "ended")
    }

    /// Removes one batch of what is older than this, from a place on.
    ///
    /// # Errors
    /// When the database does not answer: asking again is safe.
    pub async fn clean(
        &self,
        kind: Kind,
        older_than: Duration,
        batch: u32,
        after: Option<String>,
    ) -> Result<Cleaned, CallError> {
        let statement = sqlx::query("SELECT removed, place FROM palisade.clean($1, $2, $3, $4)")
            .bind(kind.word())
            .bind(interval(older_than))
            .bind(i32::try_from(batch).unwrap_or(i32::MAX))
            .bind(after);
        let row = self.row("clean", self.timeout, statement).await?;
        let removed: i32 = get(&row, "removed")?;
        Ok(Cleaned { removed: removed.unsigned_abs(), place: get(&row, "place")? })
    }

    /// The tables that grow, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sizes(&self) -> Result<Vec<Size>, CallError> {
        let rows = self.rows("sizes", self.timeout, sqlx::query("SELECT name, bytes FROM palisade.sizes()")).await?;
        rows.iter().map(|row| Ok(Size { table: get(row, "name")?, bytes: get(row, "bytes")? })).collect()
    }
}
