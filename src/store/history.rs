//! What people look at: leases, the ledger of one fence, and the story of a resource. Needs the role `palisade_reader`.

use jiff::Timestamp;
use serde_json::Value;

use super::Store;
use super::call::{CallError, get};
use super::sessions::OperationState;
use crate::outcome::Outcome;

/// A lease, as people list it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRow {
    /// What it is the lease of.
    pub resource: String,
    /// The newest token.
    pub token: i64,
    /// The last sequence that was used under it.
    pub sequence: i64,
    /// The worker that holds it.
    pub owner: Option<String>,
    /// `held`, `expired` (nobody took it over yet) or `free`.
    pub state: String,
    /// Milliseconds until the lease can be taken over, if it is held.
    pub left_ms: Option<i64>,
    /// When it was granted.
    pub granted_at: Option<Timestamp>,
}

/// One line of a resource's story.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When, by the database's clock.
    pub at: Timestamp,
    /// The token that it happened under.
    pub token: i64,
    /// The write's number under that token.
    pub sequence: Option<i64>,
    /// `grant`, `takeover`, `release`, `revoke`; for writes the function's name.
    pub kind: String,
    /// `granted`, `applied`, `rejected`.
    pub outcome: String,
    /// Who: the worker of the grant.
    pub worker: Option<String>,
    /// Why it was refused or taken over.
    pub reason: Option<String>,
    /// The newest token when it was refused.
    pub current_token: Option<i64>,
    /// What was written.
    pub result: Option<Value>,
}

/// The ledger's word on one fence.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationRow {
    /// `applied`, `rejected`, `never`, `pending` or `forgotten`.
    pub status: String,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// The newest token of the resource.
    pub current_token: Option<i64>,
    /// What was written.
    pub result: Option<Value>,
}

impl Store {
    /// All leases, or those whose resource begins with `prefix`, by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases(&self, prefix: &str) -> Result<Vec<LeaseRow>, CallError> {
        let statement = sqlx::query(
            "SELECT l.resource, l.token, l.sequence, s.worker, l.granted_at, \
                    CASE WHEN l.session IS NULL THEN 'free' \
                         WHEN s.closed_at IS NOT NULL OR s.expires_at <= clock_timestamp() OR p.deadline <= clock_timestamp() THEN 'expired' \
                         ELSE 'held' END AS state, \
                    (extract(epoch FROM least(s.expires_at, CASE WHEN isfinite(p.deadline) THEN p.deadline END) - clock_timestamp()) * 1000)::bigint AS left_ms \
             FROM palisade.lease AS l LEFT JOIN palisade.session AS s ON s.id = l.session \
             LEFT JOIN palisade.progress AS p ON p.resource = l.resource AND p.token = l.token \
             WHERE starts_with(l.resource, $1) ORDER BY l.resource",
        )
        .bind(prefix.to_owned());
        let rows = self.rows("leases", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(LeaseRow {
                    resource: get(row, "resource")?,
                    token: get(row, "token")?,
                    sequence: get(row, "sequence")?,
                    owner: get(row, "worker")?,
                    state: get(row, "state")?,
                    left_ms: get(row, "left_ms")?,
                    granted_at: get::<Option<jiff_sqlx::Timestamp>>(row, "granted_at")?
                        .map(jiff_sqlx::Timestamp::to_jiff),
                })
            })
            .collect()
    }

    /// Grants, applied and refused writes of a resource in fence order; the newest `limit` of them.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn history(&self, resource: &str, limit: i64) -> Result<Vec<Entry>, CallError> {
        let statement = sqlx::query(
            // What has no number of its own (progress) stands behind the last write that was applied before it.
            "SELECT * FROM (SELECT *, row_number() OVER (ORDER BY token, behind, place > 0, at, place) AS line FROM ( \
             SELECT *, coalesce(sequence, max(sequence) FILTER (WHERE outcome = 'applied') OVER (PARTITION BY token ORDER BY at), 0) AS behind FROM ( \
                SELECT h.at, h.token, 0::bigint AS sequence, h.kind, 'granted' AS outcome, h.worker, h.reason, NULL::bigint AS current_token, NULL::jsonb AS result, 0 AS place \
                  FROM palisade.grant_history AS h WHERE h.resource = $1 \
                UNION ALL \
                SELECT o.at, o.token, o.sequence, o.kind, o.outcome, g.worker, o.reason, NULL, o.result, 1 \
                  FROM palisade.operation AS o LEFT JOIN palisade.grant_history AS g ON g.resource = o.resource AND g.token = o.token \
                 WHERE o.resource = $1 AND o.outcome = 'applied' \
                UNION ALL \
                SELECT r.at, r.token, r.sequence, r.kind, 'rejected', g.worker, r.reason, r.current_token, NULL, 2 \
                  FROM palisade.refusal AS r LEFT JOIN palisade.grant_history AS g ON g.resource = r.resource AND g.token = r.token \
                 WHERE r.resource = $1) AS story) AS told ORDER BY line DESC LIMIT $2) AS newest \
             ORDER BY line",
        )
        .bind(resource.to_owned())
        .bind(limit);
        let rows = self.rows("history", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(Entry {
                    at: get::<jiff_sqlx::Timestamp>(row, "at")?.to_jiff(),
                    token: get(row, "token")?,
                    sequence: get::<Option<i64>>(row, "sequence")?.filter(|s| *s > 0),
                    kind: get(row, "kind")?,
                    outcome: get(row, "outcome")?,
                    worker: get(row, "worker")?,
                    reason: get(row, "reason")?,
                    current_token: get(row, "current_token")?,
                    result: get(row, "result")?,
                })
            })
            .collect()
    }

    /// What became of a fence, without its owner's key.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn operation_show(&self, resource: &str, token: i64, sequence: i64) -> Result<OperationRow, CallError> {
        self.operation_row(
            "operation_show",
            "SELECT * FROM palisade.operation_show($1, $2, $3)",
            resource,
            token,
            sequence,
        )
        .await
    }

    /// Closes a fence in its owner's place: if it was not applied, it never will be. Needs the role `palisade_controller`.
    ///
    /// # Errors
    /// When the database does not answer: asking again is safe.
    pub async fn operation_abandon(
        &self,
        resource: &str,
        token: i64,
        sequence: i64,
    ) -> Result<OperationRow, CallError> {
        self.operation_row(
            "operation_abandon",
            "SELECT * FROM palisade.operation_abandon($1, $2, $3)",
            resource,
            token,
            sequence,
        )
        .await
    }

    async fn operation_row(
        &self,
        name: &str,
        sql: &'static str,
        resource: &str,
        token: i64,
        sequence: i64,
    ) -> Result<OperationRow, CallError> {
        let statement = sqlx::query(sql).bind(resource.to_owned()).bind(token).bind(sequence);
        let answer = self.answer(name, self.timeout, statement).await?;
        let state = OperationState::from_answer(&answer.outcome, answer.reason.as_deref(), None);
        Ok(OperationRow {
            status: state.word().to_owned(),
            reason: answer.reason,
            current_token: answer.current.map(|t| t.0),
            result: answer.result,
        })
    }

    /// Takes a lease from its owner. Needs the role `palisade_controller`.
    ///
    /// # Errors
    /// When the database does not answer: asking again is safe.
    pub async fn revoke(&self, resource: &str, reason: &str) -> Result<Outcome, CallError> {
        let statement =
            sqlx::query("SELECT * FROM palisade.revoke($1, $2)").bind(resource.to_owned()).bind(reason.to_owned());
        Ok(self.answer("revoke", self.timeout, statement).await?.outcome())
    }
}
