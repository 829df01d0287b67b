//! The fenced writes of the worker library, in an order in which each has something to do.

use std::time::Duration;

use palisade::lease::{Lease, LeaseError};
use palisade::outcome::Outcome;
use palisade::plan::{Spec, State, Strategy};
use palisade::store::Write;
use serde_json::json;
use uuid::Uuid;

use super::world;

pub const UID: Uuid = Uuid::from_u128(7);
pub const DEPLOYMENT: &str = "deployment/team/churn";
pub const CONTROLLER: &str = "controller/default";
/// Where a guard is moved to.
pub const OTHER: &str = "retraining/churn";

/// The model `churn` with two versions.
pub async fn register(url: &str) {
    let direct = world::store(url, "set-up");
    direct
        .register_model("churn", "", &json!({}), Uuid::new_v4())
        .await
        .expect("an answer")
        .applied()
        .expect("registered");
    for _ in 0..2 {
        let digest = format!("sha256:{}", "a".repeat(64));
        let outcome = direct.register_version("churn", "s3://churn", &digest, &json!({}), Uuid::new_v4()).await;
        outcome.expect("an answer").applied().expect("registered");
    }
    direct.close().await;
}

pub fn set_alias(alias: &str, version: i64) -> Write {
    Write::SetAlias { model: "churn".into(), alias: alias.into(), version: Some(version) }
}

pub fn spec() -> Spec {
    Spec {
        namespace: "team".into(),
        name: "churn".into(),
        model: "churn".into(),
        version: 1,
        source: "s3://churn".into(),
        digest: format!("sha256:{}", "a".repeat(64)),
        expected_digest: None,
        replicas: 1,
        template: json!({}),
        port: 80,
        strategy: Strategy::BlueGreen,
        drain_seconds: 0,
        promote_alias: None,
        verify_timeout_ms: 1,
        ready_timeout_ms: 1,
        revision_history_limit: 0,
        owned: false,
    }
}

pub fn put_plan(removed: bool) -> Write {
    Write::PutPlan {
        deployment: DEPLOYMENT.into(),
        uid: UID,
        generation: 1,
        spec: Box::new(spec()),
        paused: false,
        removed,
        progress: Duration::from_secs(30),
        wake: false,
    }
}

/// A write, and under whose lease it is made.
#[derive(Clone, Debug)]
pub enum Step {
    Write(&'static str, Write),
    /// Under two leases: the deployment's and `OTHER`'s.
    MoveGuard,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::Write(_, write) => write.name(),
            Step::MoveGuard => "move_guard",
        }
    }
}

/// The leases that the steps need.
#[derive(Debug)]
pub struct Leases {
    pub controller: Lease,
    pub worker: Lease,
    pub other: Lease,
}

impl Leases {
    pub fn of(&self, step: &Step) -> &Lease {
        match step {
            Step::Write(CONTROLLER, _) => &self.controller,
            _ => &self.worker,
        }
    }

    pub async fn send(&self, step: &Step) -> Result<Outcome, LeaseError> {
        match step {
            Step::Write(_, write) => self.of(step).write(write.clone()).await,
            Step::MoveGuard => self.worker.move_guard(&self.other, "churn", "spare").await,
        }
    }
}

/// Every fenced write that a worker or a controller makes, in an order in which each has something to do.
pub fn steps() -> Vec<Step> {
    let state = State::default();
    let step = Write::RecordStep { uid: UID, rollout: 1, step: "verify", state: state.clone() };
    let serving = Write::RecordServing {
        uid: UID,
        rollout: 1,
        step: "drain",
        state: state.clone(),
        model: "churn".into(),
        version: 1,
        revision: "r".into(),
        alias: Some("champion".into()),
    };
    let failure = Write::RecordFailure {
        uid: UID,
        rollout: 1,
        step: "ready",
        state: state.clone(),
        reason: "NotReady".into(),
        message: "no room".into(),
        retry_in: Some(Duration::from_secs(60)),
    };
    let done = Write::RecordDone { uid: UID, rollout: 1, state };
    let removed = Write::RecordRemoved { uid: UID, rollout: 2 };
    let drop = Write::DropPlan { deployment: DEPLOYMENT.into(), uid: UID };
    let (controller, worker) = (|write| Step::Write(CONTROLLER, write), |write| Step::Write(DEPLOYMENT, write));
    vec![
        controller(put_plan(false)),
        worker(set_alias("spare", 1)),
        Step::MoveGuard,
        worker(step),
        worker(serving),
        worker(failure),
        worker(done),
        controller(put_plan(true)),
        worker(removed),
        controller(drop),
        worker(Write::Release { retry_in: None }),
    ]
}
