//! Sessions and leases.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::call::{CallError, Statement, from_json, get, interval, millis};
use super::{Address, Store};
use crate::lease::Token;
use crate::outcome::{Outcome, Rejection};
use crate::plan::{Deployment, Plan, PlanMark};

/// What a heartbeat brought.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Leases that this session no longer holds, though it lives.
    pub lost: Vec<Loss>,
}

/// A lease that was taken from a living session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Loss {
    /// What it was the lease of.
    pub resource: String,
    /// The token that is worth nothing now.
    pub token: Token,
    /// `no progress`, or `revoked: …`.
    pub reason: String,
}

/// A lease that a session holds, as the database sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it is the lease of.
    pub resource: String,
    /// Under which token.
    pub token: Token,
    /// The last sequence that was used.
    pub sequence: i64,
    /// How long until the owner must report progress; `None`: it need not.
    pub progress_left: Option<Duration>,
}

/// What a claim brought.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What can be worked on.
    pub claimed: Vec<Claimed>,
    /// Ours too, but of a release that this one cannot read: resource, token, and why.
    pub unreadable: Vec<(String, Token, String)>,
}

/// A deployment whose work is due, and now ours.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// `deployment/NAMESPACE/NAME`.
    pub resource: String,
    /// The grant.
    pub token: Token,
    /// Whether the last owner did not release it.
    pub takeover: bool,
    /// What should be.
    pub plan: Plan,
    /// What is, as far as it was recorded.
    pub deployment: Option<Deployment>,
}

impl Claimed {
    fn read(row: &PgRow, resource: &str, token: Token) -> Result<Self, CallError> {
        let deployment: Option<Value> = get(row, "deployment")?;
        Ok(Self {
            resource: resource.to_owned(),
            token,
            takeover: get(row, "takeover")?,
            plan: from_json("a plan", get(row, "plan")?)?,
            deployment: deployment.map(|d| from_json("a deployment's row", d)).transpose()?,
        })
    }
}

impl Store {
    /// Opens a session, or answers that this one is open.
    pub(crate) async fn open_session(
        &self,
        id: Uuid,
        key: &SecretString,
        worker: &str,
        ttl: Duration,
    ) -> Result<Outcome, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.open_session($1, $2, $3, $4)")
            .bind(id)
            .bind(key.expose_secret().to_owned())
            .bind(worker.to_owned())
            .bind(interval(ttl));
        Ok(self.answer("open_session", self.timeout, statement).await?.outcome())
    }

    /// One heartbeat for all leases of the session.
    pub(crate) async fn heartbeat(
        &self,
        id: Uuid,
        key: &SecretString,
        budget: Duration,
    ) -> Result<Result<Heartbeat, Rejection>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            lost: Vec<Loss>,
        }
        let statement =
            sqlx::query("SELECT * FROM palisade.heartbeat($1, $2)").bind(id).bind(key.expose_secret().to_owned());
        let answer = self.answer("heartbeat", budget, statement).await?;
        if answer.outcome != "applied" {
            return Ok(Err(answer.rejection()));
        }
        let body: Body = from_json("a heartbeat's answer", answer.result.unwrap_or(Value::Null))?;
        Ok(Ok(Heartbeat { lost: body.lost }))
    }

    /// Releases all leases of the session, and ends it.
    pub(crate) async fn close_session(&self, id: Uuid, key: &SecretString) -> Result<Outcome, CallError> {
        let statement =
            sqlx::query("SELECT * FROM palisade.close_session($1, $2)").bind(id).bind(key.expose_secret().to_owned());
        Ok(self.answer("close_session", self.timeout, statement).await?.outcome())
    }

    /// What the session holds: finds again a grant whose answer was lost.
    pub(crate) async fn held(&self, id: Uuid, key: &SecretString) -> Result<Vec<Held>, CallError> {
        let statement =
            sqlx::query("SELECT * FROM palisade.held($1, $2)").bind(id).bind(key.expose_secret().to_owned());
        let rows = self.rows("held", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(Held {
                    resource: get(row, "resource")?,
                    token: Token(get(row, "token")?),
                    sequence: get(row, "sequence")?,
                    progress_left: get::<Option<i64>>(row, "progress_left_ms")?.map(millis),
                })
            })
            .collect()
    }

    /// Asks for one lease.
    pub(crate) async fn acquire(
        &self,
        id: Uuid,
        key: &SecretString,
        resource: &str,
        progress: Option<Duration>,
    ) -> Result<Result<(Token, bool), Rejection>, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.acquire($1, $2, $3, $4)")
            .bind(id)
            .bind(key.expose_secret().to_owned())
            .bind(resource.to_owned())
            .bind(progress.map(interval));
        let answer = self.answer("acquire", self.timeout, statement).await?;
        match (answer.outcome.as_str(), answer.current) {
            ("applied", Some(token)) => {
                let takeover =
                    answer.result.as_ref().and_then(|r| r.get("takeover")).and_then(Value::as_bool).unwrap_or(false);
                Ok(Ok((token, takeover)))
            }
            _ => Ok(Err(answer.rejection())),
        }
    }

    /// Asks for up to `limit` deployments whose work is due, the oldest first.
    pub(crate) async fn claim(
        &self,
        id: Uuid,
        key: &SecretString,
        limit: u32,
    ) -> Result<Result<Claims, Rejection>, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.claim($1, $2, $3)")
            .bind(id)
            .bind(key.expose_secret().to_owned())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX));
        let rows = self.rows("claim", self.timeout, statement).await?;
        let mut claims = Claims::default();
        for row in &rows {
            if let Some(reason) = get::<Option<String>>(row, "refused")? {
                let reason = crate::outcome::Reason::from_word(&reason);
                return Ok(Err(Rejection { reason, current: None, detail: None }));
            }
            let (resource, token): (String, _) = (get(row, "resource")?, Token(get(row, "token")?));
            // One plan that cannot be read must not keep the others from being worked on.
            match Claimed::read(row, &resource, token) {
                Ok(claimed) => claims.claimed.push(claimed),
                Err(error) => claims.unreadable.push((resource, token, error.to_string())),
            }
        }
        Ok(Ok(claims))
    }

    /// Extends the progress deadline by the plan's TTL, and brings back which plan is current.
    pub(crate) async fn report_progress(
        &self,
        address: &Address<'_>,
        budget: Duration,
    ) -> Result<Result<Option<PlanMark>, Rejection>, CallError> {
        #[derive(Deserialize)]
        struct Body {
            plan: Option<PlanMark>,
        }
        let statement = sqlx::query("SELECT * FROM palisade.report_progress($1, $2, $3)")
            .bind(address.resource.to_owned())
            .bind(address.token.0)
            .bind(address.key.expose_secret().to_owned());
        let answer = self.answer("report_progress", budget, statement).await?;
        if answer.outcome != "applied" {
            return Ok(Err(answer.rejection()));
        }
        let body: Body = from_json("the answer to a progress report", answer.result.unwrap_or(Value::Null))?;
        Ok(Ok(body.plan))
    }

    /// What became of a fenced write.
    pub(crate) async fn operation_status(
        &self,
        address: &Address<'_>,
        sequence: i64,
    ) -> Result<OperationState, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.operation_status($1, $2, $3, $4)");
        self.operation_state("operation_status", statement, address, sequence).await
    }

    /// Closes a fence: if it was not applied, it never will be.
    pub(crate) async fn abandon(&self, address: &Address<'_>, sequence: i64) -> Result<OperationState, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.abandon($1, $2, $3, $4)");
        self.operation_state("abandon", statement, address, sequence).await
    }

    async fn operation_state(
        &self,
        name: &str,
        statement: Statement,
        address: &Address<'_>,
        sequence: i64,
    ) -> Result<OperationState, CallError> {
        let statement = statement
            .bind(address.resource.to_owned())
            .bind(address.token.0)
            .bind(sequence)
            .bind(address.key.expose_secret().to_owned());
        let answer = self.answer(name, self.timeout, statement).await?;
        Ok(OperationState::from_answer(&answer.outcome, answer.reason.as_deref(), answer.result))
    }
}

/// What became of a fence.
#[derive(Clone, Debug, PartialEq)]
pub enum OperationState {
    /// It was applied, with this result.
    Applied(Value),
    /// It was refused for this reason, and is closed.
    Rejected(crate::outcome::Reason),
    /// It was not applied, and never will be.
    Never,
    /// It was not applied yet; a statement on its way still may be.
    Pending,
    /// Its ledger was cleaned away.
    Forgotten,
}

impl OperationState {
    pub(super) fn from_answer(outcome: &str, reason: Option<&str>, result: Option<Value>) -> Self {
        match outcome {
            "applied" => Self::Applied(result.unwrap_or(Value::Null)),
            "never" => Self::Never,
            "pending" => Self::Pending,
            "forgotten" => Self::Forgotten,
            _ => Self::Rejected(reason.map_or(crate::outcome::Reason::Other, crate::outcome::Reason::from_word)),
        }
    }

    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Applied(_) => "applied",
            Self::Rejected(_) => "rejected",
            Self::Never => "never",
            Self::Pending => "pending",
            Self::Forgotten => "forgotten",
        }
    }
}
