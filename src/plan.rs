//! What is wanted of a deployment, and what is: the two rows that controller and worker exchange. Plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The name of a deployment's lease.
#[must_use]
pub fn resource_of(namespace: &str, name: &str) -> String {
    format!("deployment/{namespace}/{name}")
}

/// A plan as the database holds it. The controller is its only writer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Plan {
    /// The ModelDeployment's UID: one that was deleted and made anew is another.
    pub uid: Uuid,
    /// Its `metadata.generation` when this was planned.
    pub generation: i64,
    /// Counts the changes of the plan, also those that no generation shows (an alias moved).
    pub rollout: i64,
    /// Nothing is to be done for now.
    pub paused: bool,
    /// The ModelDeployment is being deleted.
    pub removed: bool,
    /// What should be.
    pub spec: Spec,
    /// How long an owner may go without progress, in milliseconds.
    pub progress_ms: i64,
    /// The last revision that a status was given.
    #[serde(default)]
    pub status_revision: i64,
}

impl Plan {
    /// How long an owner may go without progress.
    #[must_use]
    pub fn progress(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.progress_ms).unwrap_or(0))
    }

    /// Which plan this is.
    #[must_use]
    pub fn mark(&self) -> PlanMark {
        PlanMark {
            uid: self.uid,
            generation: self.generation,
            rollout: self.rollout,
            paused: self.paused,
            removed: self.removed,
        }
    }
}

/// Which plan is current: rides on the answers of a worker's writes, so that it sees a changed plan at its next step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMark {
    /// See [`Plan::uid`].
    pub uid: Uuid,
    /// See [`Plan::generation`].
    pub generation: i64,
    /// See [`Plan::rollout`].
    pub rollout: i64,
    /// See [`Plan::paused`].
    pub paused: bool,
    /// See [`Plan::removed`].
    pub removed: bool,
}

/// How the new version takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// The new version is up and ready before the Service moves.
    BlueGreen,
    /// The old version is scaled to zero first.
    Recreate,
}

/// What should be, with the alias resolved: all that a worker needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Where the objects live.
    pub namespace: String,
    /// The ModelDeployment's name: the Service has it too, and the Deployments begin with it.
    pub name: String,
    /// The registered model.
    pub model: String,
    /// Its version, pinned.
    pub version: i64,
    /// Where the version's artifact is.
    pub source: String,
    /// The digest that the registry has for it.
    pub digest: String,
    /// The digest that the ModelDeployment insists on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_digest: Option<String>,
    /// Pods.
    pub replicas: i32,
    /// The pod template, as it was written.
    pub template: Value,
    /// The port that Service and pods share.
    pub port: u16,
    /// How the new version takes over.
    pub strategy: Strategy,
    /// How long old pods go on after the Service moved, in seconds.
    pub drain_seconds: u32,
    /// The alias to move when the version serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promote_alias: Option<String>,
    /// How long verifying may take, in milliseconds.
    pub verify_timeout_ms: u64,
    /// How long getting ready may take, in milliseconds.
    pub ready_timeout_ms: u64,
    /// Old versions that stay, scaled to zero.
    pub revision_history_limit: usize,
    /// Whether the objects belong to the ModelDeployment, and go with it.
    pub owned: bool,
}

impl Spec {
    /// The name of what runs: a hash over all that makes its pods what they are. The same version with the same
    /// template has the same revision, so that going back finds what is still there.
    #[must_use]
    pub fn revision(&self) -> String {
        let Self { namespace: _, name, model, version, source, digest, template, port, .. } = self;
        let identity = serde_json::json!([name, model, version, source, digest, template, port]);
        hex::encode(&Sha256::digest(identity.to_string().as_bytes())[..5])
    }

    /// The name of the Deployment that runs it.
    #[must_use]
    pub fn deployment_name(&self) -> String {
        format!("{}-{}", self.name, self.revision())
    }
}

/// A deployment as the database holds it: what its owners recorded.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Deployment {
    /// The ModelDeployment that the rest is about.
    pub uid: Uuid,
    /// The rollout that the step is of.
    pub rollout: i64,
    /// The step that was begun last.
    pub step: String,
    /// When, for people.
    pub step_started_at: jiff::Timestamp,
    /// How long ago, by the database's clock.
    pub step_age_ms: i64,
    /// What the steps know.
    pub state: State,
    /// The model that serves.
    pub serving_model: Option<String>,
    /// Its version.
    pub serving_version: Option<i64>,
    /// Its revision: see [`Spec::revision`].
    pub serving_revision: Option<String>,
    /// Since when, for people.
    pub serving_since: Option<jiff::Timestamp>,
    /// For how long, by the database's clock.
    pub serving_age_ms: Option<i64>,
    /// Why the rollout does not go on, as a word.
    pub failure_reason: Option<String>,
    /// The same for a person.
    pub failure_message: Option<String>,
    /// The token of the last change.
    pub token: i64,
}

/// What a rollout's steps leave for the next step, or for the next owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// UIDs of the Deployments that were applied, by name: an apply that names the UID cannot make a deleted one anew.
    pub uids: std::collections::BTreeMap<String, String>,
    /// Revisions that served, the newest first: what may be kept for going back.
    pub history: Vec<String>,
}

/// Why a rollout stopped: the words in `failure_reason`, in conditions and in events.
pub mod failure {
    /// The registry has no such version any more.
    pub const VERSION_NOT_FOUND: &str = "VersionNotFound";
    /// The version's digest is not the one that was asked for.
    pub const DIGEST_MISMATCH: &str = "DigestMismatch";
    /// The version did not become ready in time.
    pub const NOT_READY: &str = "NotReady";
    /// The alias to promote belongs to another resource.
    pub const ALIAS_GUARDED: &str = "AliasGuarded";
    /// The API server, or the registry, refuses what must be written.
    pub const REFUSED: &str = "Refused";
    /// An object carries a fence of an epoch that the database never gave out.
    pub const FENCE_AHEAD: &str = "FenceAhead";
    /// The admission policies are not in force: nothing in the cluster would refuse a stale write.
    pub const NOT_FENCED: &str = "NotFenced";
    /// Database or API server did not answer for a while; it is tried again by itself.
    pub const UNAVAILABLE: &str = "Unavailable";

    /// Whether a person must act before it can go on (kstatus: Stalled). The rest heals by itself.
    #[must_use]
    pub fn is_stalled(reason: &str) -> bool {
        reason != UNAVAILABLE
    }
}
