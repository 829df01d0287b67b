//! What the controller asks for: the registry's view of one deployment, the outbox, figures for metrics.

use std::time::Duration;

use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;

use super::call::{CallError, from_json, get};
use super::{Address, Store};
use crate::outcome::Rejection;
use crate::plan::{Deployment, Plan};

/// What the controller asks about a deployment: what its spec names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The deployment's resource.
    pub deployment: String,
    /// The registered model.
    pub model: String,
    /// Its version, if the spec names one.
    pub version: Option<i64>,
    /// The alias that is followed.
    pub alias: Option<String>,
    /// The alias that is moved.
    pub promote: Option<String>,
}

/// Everything that the controller decides from, read in one round trip.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Observed {
    /// What was planned last.
    pub plan: Option<Plan>,
    /// What was recorded last.
    pub deployment: Option<Deployment>,
    /// The newest token of the deployment's lease; 0: none was granted.
    pub token: i64,
    /// The worker that holds the lease.
    pub owner: Option<String>,
    /// Whether the registry has the model.
    pub model_exists: bool,
    /// Where the followed alias points.
    pub alias_version: Option<i64>,
    /// The version that is wanted, if the registry has it.
    pub version: Option<VersionState>,
    /// The resource that guards the alias to promote.
    pub promote_guard: Option<String>,
    /// Where the alias to promote points.
    pub promote_version: Option<i64>,
}

/// A version, as far as a plan needs it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VersionState {
    /// Its number.
    pub version: i64,
    /// Where the artifact is.
    pub source: String,
    /// Its digest.
    pub digest: String,
}

/// A plan, as far as the sweep needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// `deployment/NAMESPACE/NAME`.
    pub resource: String,
    /// See [`Plan::uid`].
    pub uid: uuid::Uuid,
    /// See [`Plan::removed`].
    pub removed: bool,
}

/// A grant of a resource whose last owner had not released it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The grant's token.
    pub token: i64,
    /// Who took over.
    pub worker: String,
    /// From whom.
    pub former: Option<String>,
    /// Why that was possible.
    pub reason: Option<String>,
}

/// How far the outbox was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventCursor {
    /// The transaction.
    pub xid: String,
    /// The event in it.
    pub id: i64,
}

impl Default for EventCursor {
    fn default() -> Self {
        Self { xid: "0".to_owned(), id: 0 }
    }
}

/// A change in the registry, from the outbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where to read on.
    pub cursor: EventCursor,
    /// What changed: `deployment/…`, `model/NAME`, `epoch`.
    pub resource: String,
    /// What happened: `planned`, `step`, `serving`, `alias`, `done`, `failed`, `removed`, `guard`, `version_registered`, …
    pub kind: String,
    /// The particulars.
    pub data: Value,
}

/// Figures for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Deployments whose work is due.
    pub queue_depth: i64,
    /// Since when the oldest is due.
    pub queue_age: Duration,
    /// Leases that some session holds.
    pub leases_held: i64,
    /// Sessions that are alive.
    pub sessions_open: i64,
    /// The age of the oldest open transaction in this database.
    pub oldest_transaction: Duration,
    /// How many transactions the oldest snapshot is behind: it keeps dead rows from being cleaned.
    pub oldest_xmin_age: i64,
}

impl Store {
    /// What the registry knows of a deployment, and of what its spec names.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn observe(&self, question: Question) -> Result<Observed, CallError> {
        let Question { deployment, model, version, alias, promote } = question;
        let statement = sqlx::query("SELECT palisade.observe($1, $2, $3, $4, $5) AS observed")
            .bind(deployment)
            .bind(model)
            .bind(version)
            .bind(alias)
            .bind(promote);
        let row = self.row("observe", self.timeout, statement).await?;
        from_json("what the registry knows", get(&row, "observed")?)
    }

    /// The same of many, in their order, in one round trip.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn observe_all(&self, questions: Vec<Question>) -> Result<Vec<Observed>, CallError> {
        let (mut deployments, mut models, mut versions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut aliases, mut promotes) = (Vec::new(), Vec::new());
        for Question { deployment, model, version, alias, promote } in questions {
            deployments.push(deployment);
            models.push(model);
            versions.push(version);
            aliases.push(alias);
            promotes.push(promote);
        }
        let statement = sqlx::query(
            "SELECT palisade.observe(w.deployment, w.model, w.version, w.alias, w.promote) AS observed \
             FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[]) \
                  WITH ORDINALITY AS w(deployment, model, version, alias, promote, place) \
             ORDER BY w.place",
        )
        .bind(deployments)
        .bind(models)
        .bind(versions)
        .bind(aliases)
        .bind(promotes);
        let rows = self.rows("observe_all", self.timeout, statement).await?;
        rows.iter().map(|row| from_json("what the registry knows", get(row, "observed")?)).collect()
    }

    /// All plans, by name. Needs the role `palisade_reader`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn plans(&self) -> Result<Vec<PlanRow>, CallError> {
        let statement = sqlx::query("SELECT n.resource, n.uid, n.removed FROM palisade.plan AS n ORDER BY n.resource");
        let rows = self.rows("plans", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(PlanRow { resource: get(row, "resource")?, uid: get(row, "uid")?, removed: get(row, "removed")? })
            })
            .collect()
    }

    /// The last takeover of a resource with a token above `after` and up to `until`, if there was one. Needs the role
    /// `palisade_reader`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn takeover(&self, resource: &str, after: i64, until: i64) -> Result<Option<Takeover>, CallError> {
        let statement = sqlx::query(
            "SELECT h.token, h.worker, h.reason, \
                    (SELECT f.worker FROM palisade.grant_history AS f \
                      WHERE f.resource = h.resource AND f.token < h.token AND f.worker IS NOT NULL \
                      ORDER BY f.token DESC LIMIT 1) AS former \
             FROM palisade.grant_history AS h \
             WHERE h.resource = $1 AND h.token > $2 AND h.token <= $3 AND h.kind = 'takeover' \
             ORDER BY h.token DESC LIMIT 1",
        )
        .bind(resource.to_owned())
        .bind(after)
        .bind(until);
        let rows = self.rows("takeover", self.timeout, statement).await?;
        rows.first()
            .map(|row| {
                Ok(Takeover {
                    token: get(row, "token")?,
                    worker: get::<Option<String>>(row, "worker")?.unwrap_or_default(),
                    former: get(row, "former")?,
                    reason: get(row, "reason")?,
                })
            })
            .transpose()
    }

    /// The plan of a deployment as it is now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn plan_show(&self, resource: &str) -> Result<Option<Plan>, CallError> {
        let statement = sqlx::query("SELECT palisade.plan_show($1) AS plan").bind(resource.to_owned());
        let row = self.row("plan_show", self.timeout, statement).await?;
        get::<Option<Value>>(&row, "plan")?.map(|plan| from_json("a plan", plan)).transpose()
    }

    /// A number above every revision that the deployment's status ever had, and above `above`.
    pub(crate) async fn next_revision(
        &self,
        address: &Address<'_>,
        deployment: &str,
        above: i64,
    ) -> Result<Result<i64, Rejection>, CallError> {
        let statement = sqlx::query("SELECT * FROM palisade.next_revision($1, $2, $3, $4, $5)")
            .bind(address.resource.to_owned())
            .bind(address.token.0)
            .bind(address.key.expose_secret().to_owned())
            .bind(deployment.to_owned())
            .bind(above);
        let answer = self.answer("next_revision", self.timeout, statement).await?;
        match answer.result.as_ref().and_then(|r| r.get("revision")).and_then(Value::as_i64) {
            Some(revision) if answer.outcome == "applied" => Ok(Ok(revision)),
            _ => Ok(Err(answer.rejection())),
        }
    }

    /// The next events of the outbox, in an order that misses none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events(&self, after: &EventCursor, limit: u32) -> Result<Vec<Event>, CallError> {
        let statement =
            sqlx::query("SELECT xid::text AS xid, id, resource, kind, data FROM palisade.events($1::xid8, $2, $3)")
                .bind(after.xid.clone())
                .bind(after.id)
                .bind(i32::try_from(limit).unwrap_or(i32::MAX));
        let rows = self.rows("events", self.timeout, statement).await?;
        rows.iter()
            .map(|row| {
                Ok(Event {
                    cursor: EventCursor { xid: get(row, "xid")?, id: get(row, "id")? },
                    resource: get(row, "resource")?,
                    kind: get(row, "kind")?,
                    data: get(row, "data")?,
                })
            })
            .collect()
    }

    /// Where the outbox ends now: a reader that begins here sees what comes after.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_end(&self) -> Result<EventCursor, CallError> {
        let statement = sqlx::query("SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text AS xid");
        let row = self.row("events_end", self.timeout, statement).await?;
        Ok(EventCursor { xid: get(&row, "xid")?, id: i64::MAX })
    }

    /// Figures for `/metrics`, by one statement.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn figures(&self) -> Result<Figures, CallError> {
        use super::call::millis;
        let row = self.row("figures", self.timeout, sqlx::query("SELECT * FROM palisade.figures()")).await?;
        Ok(Figures {
            queue_depth: get(&row, "queue_depth")?,
            queue_age: millis(get(&row, "queue_age_ms")?),
            leases_held: get(&row, "leases_held")?,
            sessions_open: get(&row, "sessions_open")?,
            oldest_transaction: millis(get(&row, "oldest_transaction_ms")?),
            oldest_xmin_age: get(&row, "oldest_xmin_age")?,
        })
    }
}
