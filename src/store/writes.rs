//! The fenced writes: one match arm a SQL function. A write is plain data, so that the same one can be sent again.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use super::Store;
use super::call::{CallError, Statement, interval};
use crate::lease::Token;
use crate::outcome::Outcome;
use crate::plan::{Spec, State};

/// Whose write it is.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// The resource whose lease is held.
    pub resource: &'a str,
    /// The grant.
    pub token: Token,
    /// The session's key.
    pub key: &'a SecretString,
}

/// The fence of the other owner, for a write that needs two. Only a lease makes one.
#[derive(Clone, Debug)]
pub struct Counterpart {
    pub(crate) resource: String,
    pub(crate) token: Token,
    pub(crate) sequence: i64,
    pub(crate) key: SecretString,
}

impl PartialEq for Counterpart {
    fn eq(&self, other: &Self) -> bool {
        // A token has one key.
        (&self.resource, self.token, self.sequence) == (&other.resource, other.token, other.sequence)
    }
}

/// A change that only the current owner of a resource may make.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Points an alias at a version (`None` takes it away). From then on the alias is guarded by this resource.
    SetAlias {
        /// The registered model.
        model: String,
        /// The alias.
        alias: String,
        /// The version.
        version: Option<i64>,
    },
    /// Hands an alias that this resource guards to another one, under both fences: see
    /// [`Lease::move_guard`](crate::lease::Lease::move_guard).
    MoveGuard {
        /// The new guard's fence.
        to: Counterpart,
        /// The registered model.
        model: String,
        /// The alias.
        alias: String,
    },
    /// Where a rollout stands.
    RecordStep {
        /// See [`crate::plan::Plan::uid`].
        uid: Uuid,
        /// See [`crate::plan::Plan::rollout`].
        rollout: i64,
        /// The step that begins.
        step: &'static str,
        /// What the next owner must know.
        state: State,
    },
    /// What serves, and its alias, in one transaction.
    RecordServing {
        /// See [`crate::plan::Plan::uid`].
        uid: Uuid,
        /// See [`crate::plan::Plan::rollout`].
        rollout: i64,
        /// The step that begins.
        step: &'static str,
        /// What the next owner must know.
        state: State,
        /// The registered model.
        model: String,
        /// The version that serves.
        version: i64,
        /// See [`crate::plan::Spec::revision`].
        revision: String,
        /// The alias to move.
        alias: Option<String>,
    },
    /// The plan is carried out.
    RecordDone {
        /// See [`crate::plan::Plan::uid`].
        uid: Uuid,
        /// See [`crate::plan::Plan::rollout`].
        rollout: i64,
        /// What the next owner must know.
        state: State,
    },
    /// The plan cannot be carried out, for now or at all.
    RecordFailure {
        /// See [`crate::plan::Plan::uid`].
        uid: Uuid,
        /// See [`crate::plan::Plan::rollout`].
        rollout: i64,
        /// The step that failed.
        step: &'static str,
        /// What the next owner must know.
        state: State,
        /// One CamelCase word.
        reason: String,
        /// What a person should know and do.
        message: String,
        /// When to look again; `None`: only when the plan changes.
        retry_in: Option<Duration>,
    },
    /// The ModelDeployment is gone: nothing serves, and its aliases are free.
    RecordRemoved {
        /// See [`crate::plan::Plan::uid`].
        uid: Uuid,
        /// See [`crate::plan::Plan::rollout`].
        rollout: i64,
    },
    /// Gives the lease back.
    Release {
        /// When the work is due again, if it is not done.
        retry_in: Option<Duration>,
    },
    /// A controller's: what a deployment should be.
    PutPlan {
        /// `deployment/NAMESPACE/NAME`.
        deployment: String,
        /// The ModelDeployment's UID.
        uid: Uuid,
        /// Its generation.
        generation: i64,
        /// What should be.
        spec: Box<Spec>,
        /// Nothing is to be done for now.
        paused: bool,
        /// It is being deleted.
        removed: bool,
        /// How long an owner may go without progress.
        progress: Duration,
        /// Look at it again, even if nothing changed.
        wake: bool,
    },
    /// A controller's: forgets a plan whose removal was recorded.
    DropPlan {
        /// `deployment/NAMESPACE/NAME`.
        deployment: String,
        /// The ModelDeployment's UID.
        uid: Uuid,
    },
}

/// The four arguments that are a fence.
fn fence(statement: Statement, resource: &str, token: Token, sequence: i64, key: &SecretString) -> Statement {
    statement.bind(resource.to_owned()).bind(token.0).bind(sequence).bind(key.expose_secret().to_owned())
}

impl Write {
    /// The SQL function's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SetAlias { .. } => "set_alias",
            Self::MoveGuard { .. } => "move_guard",
            Self::RecordStep { .. } => "record_step",
            Self::RecordServing { .. } => "record_serving",
            Self::RecordDone { .. } => "record_done",
            Self::RecordFailure { .. } => "record_failure",
            Self::RecordRemoved { .. } => "record_removed",
            Self::Release { .. } => "release",
            Self::PutPlan { .. } => "put_plan",
            Self::DropPlan { .. } => "drop_plan",
        }
    }

    fn statement(&self, address: &Address<'_>, sequence: i64) -> Statement {
        let gate = |sql: &'static str| fence(sqlx::query(sql), address.resource, address.token, sequence, address.key);
        match self.clone() {
            Self::SetAlias { model, alias, version } => {
                gate("SELECT * FROM palisade.set_alias($1, $2, $3, $4, $5, $6, $7)")
                    .bind(model)
                    .bind(alias)
                    .bind(version)
            }
            Self::MoveGuard { to, model, alias } => {
                let own = gate("SELECT * FROM palisade.move_guard($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");
                fence(own, &to.resource, to.token, to.sequence, &to.key).bind(model).bind(alias)
            }
            Self::RecordStep { uid, rollout, step, state } => {
                gate("SELECT * FROM palisade.record_step($1, $2, $3, $4, $5, $6, $7, $8)")
                    .bind(uid)
                    .bind(rollout)
                    .bind(step)
                    .bind(Json(state))
            }
            Self::RecordServing { uid, rollout, step, state, model, version, revision, alias } => {
                gate("SELECT * FROM palisade.record_serving($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
                    .bind(uid)
                    .bind(rollout)
                    .bind(step)
                    .bind(Json(state))
                    .bind(model)
                    .bind(version)
                    .bind(revision)
                    .bind(alias)
            }
            Self::RecordDone { uid, rollout, state } => {
                gate("SELECT * FROM palisade.record_done($1, $2, $3, $4, $5, $6, $7)")
                    .bind(uid)
                    .bind(rollout)
                    .bind(Json(state))
            }
            Self::RecordFailure { uid, rollout, step, state, reason, message, retry_in } => {
                gate("SELECT * FROM palisade.record_failure($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
                    .bind(uid)
                    .bind(rollout)
                    .bind(step)
                    .bind(Json(state))
                    .bind(reason)
                    .bind(message)
                    .bind(retry_in.map(interval))
            }
            Self::RecordRemoved { uid, rollout } => {
                gate("SELECT * FROM palisade.record_removed($1, $2, $3, $4, $5, $6)").bind(uid).bind(rollout)
            }
            Self::Release { retry_in } => {
                gate("SELECT * FROM palisade.release($1, $2, $3, $4, $5)").bind(retry_in.map(interval))
            }
            Self::PutPlan { deployment, uid, generation, spec, paused, removed, progress, wake } => {
                gate("SELECT * FROM palisade.put_plan($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
                    .bind(deployment)
                    .bind(uid)
                    .bind(generation)
                    .bind(Json(*spec))
                    .bind(paused)
                    .bind(removed)
                    .bind(interval(progress))
                    .bind(wake)
            }
            Self::DropPlan { deployment, uid } => {
                gate("SELECT * FROM palisade.drop_plan($1, $2, $3, $4, $5, $6)").bind(deployment).bind(uid)
            }
        }
    }
}

impl Store {
    /// Sends a fenced write once. Whatever happened, the answer says what is known of it.
    pub(crate) async fn write(
        &self,
        address: &Address<'_>,
        sequence: i64,
        write: &Write,
        budget: Duration,
    ) -> Result<Outcome<Value>, CallError> {
        match self.answer(write.name(), budget, write.statement(address, sequence)).await {
            Ok(answer) => Ok(answer.outcome()),
            Err(CallError::NoAnswer(why)) => Ok(Outcome::Unknown(why)),
            Err(error) => Err(error),
        }
    }
}
