//! What people should see. Pure: from a CR and what was applied to its status, without the revision.
//!
//! kstatus' rules: `Ready` and `Serving` are always there; `Reconciling` and `Stalled` are there while they are true.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::apply::Applied;
use super::decide::{generation_of, uid_of};
use crate::crd::{
    LastError, MESSAGE_MAX, ModelDeployment, ModelDeploymentStatus, OWNER_MAX, REASON_MAX, Resolved, Serving, Step,
    clip,
};
use crate::plan::{Deployment, Plan, failure};

/// The CR's spec cannot be read by this program.
pub const INVALID_OBJECT: &str = "InvalidObject";
/// The running database has no epoch, and a person must act.
pub const EPOCH_NOT_ESTABLISHED: &str = "EpochNotEstablished";

/// Where a deployment stands.
enum Phase<'a> {
    /// It is being deleted.
    Removing,
    /// The plan cannot become what the CR asks for.
    Blocked(&'a LastError),
    /// The rollout stopped. `stalled`: a person must act.
    Failed { error: &'a LastError, stalled: bool },
    /// Nothing is to be done.
    Paused,
    /// What is wanted serves.
    Done(&'a Plan),
    /// A worker is at it, or was.
    UnderWay(&'a Plan, &'a Deployment),
    /// No worker has begun.
    Waiting(&'a Plan),
    /// Nothing is planned.
    Unplanned,
}

/// The status that the CR should have. Its revision is the old one's: whoever writes it gives it a new one.
#[must_use]
pub fn status(object: &ModelDeployment, applied: &Applied, now: Timestamp) -> ModelDeploymentStatus {
    let old = object.status.clone().unwrap_or_default();
    let uid = uid_of(object);
    let plan = applied.observed.plan.as_ref().filter(|plan| Some(plan.uid) == uid);
    let recorded = applied.observed.deployment.as_ref().filter(|d| Some(d.uid) == uid);
    let current = recorded.filter(|d| plan.is_some_and(|plan| plan.rollout == d.rollout));
    let serving = recorded.and_then(serving);
    let last_error = last_error(applied, current);
    let phase = phase(applied, plan, recorded, current, last_error.as_ref());
    let step = match &phase {
        Phase::UnderWay(_, d) => Some(step(d)),
        Phase::Failed { .. } => current.map(step),
        _ => None,
    };
    let stamp = Stamp { old: &old.conditions, generation: generation_of(object), now: seconds(now) };
    ModelDeploymentStatus {
        observed_generation: Some(stamp.generation),
        revision: old.revision,
        // What the cluster was told once stays true, also beside a database that has forgotten it.
        fencing_token: applied.observed.token.max(old.fencing_token),
        conditions: conditions(&phase, serving.as_ref(), object, &stamp),
        resolved: plan.map(|plan| resolved(plan, object)),
        serving,
        owner: applied.observed.owner.as_deref().map(|owner| clip(owner, OWNER_MAX)),
        rollout: plan.map(|plan| plan.rollout),
        target_revision: plan.map(|plan| plan.spec.revision()),
        step,
        last_error,
    }
}

/// The status of a CR for which nothing can be done, because there is no epoch until a person acts. It is the one status
/// that no leader writes: its revision is the next one, far below those of the next epoch.
#[must_use]
pub fn without_epoch(old: &ModelDeploymentStatus, generation: i64, why: &str, now: Timestamp) -> ModelDeploymentStatus {
    let message = clip(&format!("nothing is granted or recorded: {why}"), MESSAGE_MAX);
    ModelDeploymentStatus {
        revision: old.revision + 1,
        ..stalled(old, generation, EPOCH_NOT_ESTABLISHED, message, now)
    }
}

/// The status of a CR whose spec cannot be read; what serves, goes on serving.
#[must_use]
pub fn unreadable(old: &ModelDeploymentStatus, generation: i64, why: &str, now: Timestamp) -> ModelDeploymentStatus {
    let message = clip(
        &format!("nothing is done for this ModelDeployment, for it cannot be read: {why}; correct its spec"),
        MESSAGE_MAX,
    );
    stalled(old, generation, INVALID_OBJECT, message, now)
}

/// What was said before, but for what can no longer be said.
fn stalled(
    old: &ModelDeploymentStatus,
    generation: i64,
    reason: &str,
    message: String,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let stamp = Stamp { old: &old.conditions, generation, now: seconds(now) };
    let mut conditions =
        vec![stamp.condition("Ready", false, reason, &message), stamp.condition("Stalled", true, reason, &message)];
    conditions.extend(old.conditions.iter().filter(|c| c.type_ == "Serving").cloned());
    ModelDeploymentStatus {
        observed_generation: Some(generation),
        conditions,
        last_error: Some(LastError { reason: reason.to_owned(), message }),
        ..old.clone()
    }
}

/// What a status says in a word, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// What is wanted serves.
    Ready,
    /// It is on its way.
    Reconciling,
    /// It waits for somebody to do something.
    Stalled,
    /// It was told to wait.
    Paused,
}

impl Standing {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Reconciling, Self::Stalled, Self::Paused];

    /// The word for it in `/metrics`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Reconciling => "reconciling",
            Self::Stalled => "stalled",
            Self::Paused => "paused",
        }
    }

    /// What these conditions say.
    #[must_use]
    pub fn of(conditions: &[Condition]) -> Self {
        let holds = |type_| conditions.iter().any(|c: &Condition| c.type_ == type_ && c.status == "True");
        if holds("Stalled") {
            Self::Stalled
        } else if holds("Ready") {
            Self::Ready
        } else if holds("Reconciling") {
            Self::Reconciling
        } else {
            Self::Paused
        }
    }
}

/// Whether two statuses say the same, whatever their revisions.
#[must_use]
pub fn same(old: &ModelDeploymentStatus, new: &ModelDeploymentStatus) -> bool {
    ModelDeploymentStatus { revision: old.revision, ..new.clone() } == *old
}

fn phase<'a>(
    applied: &Applied,
    plan: Option<&'a Plan>,
    recorded: Option<&'a Deployment>,
    current: Option<&'a Deployment>,
    error: Option<&'a LastError>,
) -> Phase<'a> {
    if applied.removing {
        return Phase::Removing;
    }
    if let (Some(_), Some(error)) = (&applied.blocked, error) {
        return Phase::Blocked(error);
    }
    let Some(plan) = plan else { return Phase::Unplanned };
    let serves = recorded.is_some_and(|d| d.step == "done" && d.serving_revision == Some(plan.spec.revision()));
    if plan.paused {
        return if serves { Phase::Done(plan) } else { Phase::Paused };
    }
    match (current, error) {
        (Some(d), _) if d.step == "done" => Phase::Done(plan),
        (Some(_), Some(error)) => Phase::Failed { error, stalled: failure::is_stalled(&error.reason) },
        (Some(d), None) => Phase::UnderWay(plan, d),
        (None, _) => Phase::Waiting(plan),
    }
}

fn last_error(applied: &Applied, current: Option<&Deployment>) -> Option<LastError> {
    let (reason, message) = match (&applied.blocked, current) {
        (Some(problem), _) => (problem.reason.to_owned(), problem.message.clone()),
        (None, Some(d)) => (d.failure_reason.clone()?, d.failure_message.clone().unwrap_or_default()),
        (None, None) => return None,
    };
    Some(LastError { reason: clip(&reason, REASON_MAX), message: clip(&message, MESSAGE_MAX) })
}

fn serving(d: &Deployment) -> Option<Serving> {
    Some(Serving {
        model: d.serving_model.clone()?,
        version: d.serving_version?,
        revision: d.serving_revision.clone()?,
        since: seconds(d.serving_since?),
    })
}

fn step(d: &Deployment) -> Step {
    Step { name: clip(&d.step, 63), since: seconds(d.step_started_at) }
}

fn resolved(plan: &Plan, object: &ModelDeployment) -> Resolved {
    // An alias of a generation that was not planned yet did not stand for this version.
    let planned = plan.generation == generation_of(object) && plan.spec.model == object.spec.model.name;
    Resolved {
        model: plan.spec.model.clone(),
        version: plan.spec.version,
        digest: plan.spec.digest.clone(),
        alias: object.spec.model.alias.clone().filter(|_| planned),
    }
}

/// As the API server keeps times: else a status would differ from itself after it was written.
fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// What each condition carries.
struct Stamp<'a> {
    old: &'a [Condition],
    generation: i64,
    now: Time,
}

impl Stamp<'_> {
    fn condition(&self, type_: &str, holds: bool, reason: &str, message: &str) -> Condition {
        let status = if holds { "True" } else { "False" };
        let before = self.old.iter().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            observed_generation: Some(self.generation),
            last_transition_time: before.map_or_else(|| self.now.clone(), |c| c.last_transition_time.clone()),
            reason: word(reason),
            message: clip(message, MESSAGE_MAX),
        }
    }
}

/// A reason as the schema wants it: a later worker's word must not make the whole status unwritable.
fn word(reason: &str) -> String {
    let kept: String = reason.chars().filter(char::is_ascii_alphanumeric).take(REASON_MAX).collect();
    let kept = kept.trim_start_matches(|c: char| c.is_ascii_digit());
    if kept.is_empty() { "Unknown".to_owned() } else { kept.to_owned() }
}

fn conditions(
    phase: &Phase<'_>,
    serving: Option<&Serving>,
    object: &ModelDeployment,
    stamp: &Stamp<'_>,
) -> Vec<Condition> {
    let (reason, message) = words(phase, serving);
    let ready = matches!(phase, Phase::Done(_));
    let stalled = matches!(phase, Phase::Blocked(_) | Phase::Failed { stalled: true, .. });
    let reconciling = matches!(
        phase,
        Phase::Removing | Phase::Failed { stalled: false, .. } | Phase::UnderWay(..) | Phase::Waiting(_)
    );
    let mut conditions =
        vec![stamp.condition("Ready", ready, &reason, &message), serves(phase, serving, object, stamp)];
    if reconciling {
        conditions.push(stamp.condition("Reconciling", true, &reason, &message));
    }
    if stalled {
        conditions.push(stamp.condition("Stalled", true, &reason, &message));
    }
    conditions
}

/// Whether some version answers requests: also while an update runs, or has failed.
fn serves(phase: &Phase<'_>, serving: Option<&Serving>, object: &ModelDeployment, stamp: &Stamp<'_>) -> Condition {
    match serving {
        None => stamp.condition("Serving", false, "NothingServes", "no version has been served yet"),
        Some(_) if object.spec.replicas == 0 && matches!(phase, Phase::Done(_)) => {
            stamp.condition("Serving", false, "ScaledToZero", "spec.replicas is 0")
        }
        Some(Serving { model, version, .. }) => {
            stamp.condition("Serving", true, "VersionServes", &format!("version {version} of {model} serves"))
        }
    }
}

fn words(phase: &Phase<'_>, serving: Option<&Serving>) -> (String, String) {
    let goal = |plan: &Plan| format!("version {} of {}", plan.spec.version, plan.spec.model);
    let meanwhile =
        serving.map_or(String::new(), |s| format!("; version {} of {} goes on serving", s.version, s.model));
    let (reason, message) = match phase {
        Phase::Removing => ("Removing", "a worker is taking the deployment out of the registry".to_owned()),
        Phase::Blocked(error) => (&*error.reason, format!("{}{meanwhile}", error.message)),
        Phase::Failed { error, stalled: true } => (&*error.reason, format!("{}{meanwhile}", error.message)),
        Phase::Failed { error, stalled: false } => {
            (&*error.reason, format!("{}; it is tried again by itself{meanwhile}", error.message))
        }
        Phase::Paused => ("Paused", format!("spec.paused is true: nothing is changed{meanwhile}")),
        Phase::Done(plan) if plan.paused => {
            ("Paused", format!("{} serves; spec.paused is true: nothing is changed", goal(plan)))
        }
        Phase::Done(plan) => ("VersionServes", format!("{} serves", goal(plan))),
        Phase::UnderWay(plan, d) => {
            ("RolloutUnderWay", format!("rollout {} to {}: step {}", plan.rollout, goal(plan), d.step))
        }
        Phase::Waiting(plan) => {
            ("WaitingForWorker", format!("rollout {} to {}: no worker has begun it yet", plan.rollout, goal(plan)))
        }
        Phase::Unplanned => ("Unplanned", "nothing is planned yet".to_owned()),
    };
    (reason.to_owned(), message)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::plan::State;
    use crate::reconcile::decide::tests::{object, observed, planned};
    use crate::reconcile::validate::Problem;
    use crate::store::Observed;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::constant(1_000_000, 999);

    /// What a worker recorded of a plan.
    pub fn recorded(plan: &Plan, step: &str, serves: bool) -> Deployment {
        Deployment {
            uid: plan.uid,
            rollout: plan.rollout,
            step: step.into(),
            step_started_at: NOW,
            step_age_ms: 5,
            state: State::default(),
            serving_model: serves.then(|| plan.spec.model.clone()),
            serving_version: serves.then_some(plan.spec.version),
            serving_revision: serves.then(|| plan.spec.revision()),
            serving_since: serves.then_some(NOW),
            serving_age_ms: serves.then_some(5),
            failure_reason: None,
            failure_message: None,
            token: 7,
        }
    }

    /// A plan, and what was recorded of it.
    fn applied(object: &ModelDeployment, step: &str, serves: bool) -> Applied {
        let mut seen = Observed { alias_version: Some(1), ..observed(1) };
        let plan = planned(object, &seen, 3);
        seen.deployment = Some(recorded(&plan, step, serves));
        seen.plan = Some(plan);
        (seen.token, seen.owner) = (7, Some("worker-a".into()));
        Applied { observed: seen, blocked: None, removing: false }
    }

    /// The conditions that are there, as `Type=Status(Reason)`.
    fn conditions(status: &ModelDeploymentStatus) -> String {
        let one = |c: &Condition| format!("{}={}({})", c.type_, c.status, c.reason);
        status.conditions.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn fail(applied: &mut Applied, reason: &str) {
        let recorded = applied.observed.deployment.as_mut().expect("recorded");
        (recorded.failure_reason, recorded.failure_message) = (Some(reason.into()), Some("no room".into()));
    }

    #[test]
    fn conditions_follow_kstatus_in_every_phase() {
        let cr = object(json!({}));
        let paused = object(json!({"paused": true}));
        let none = object(json!({"replicas": 0}));
        let mut waiting = applied(&cr, "done", true);
        waiting.observed.plan.as_mut().expect("planned").rollout = 4;
        let mut stopped = applied(&cr, "ready", true);
        fail(&mut stopped, failure::NOT_READY);
        let mut retried = applied(&cr, "apply", false);
        fail(&mut retried, failure::UNAVAILABLE);
        let problem = Problem { reason: "AliasNotFound", message: "no such alias".into() };
        let blocked = Applied { blocked: Some(problem), ..applied(&cr, "done", true) };
        let removing = Applied { removing: true, ..applied(&cr, "done", true) };
        let unplanned = Applied { observed: observed(1), blocked: None, removing: false };
        for (cr, applied, expected) in [
            (&cr, applied(&cr, "done", true), "Ready=True(VersionServes) Serving=True(VersionServes)"),
            (
                &cr,
                applied(&cr, "ready", false),
                "Ready=False(RolloutUnderWay) Serving=False(NothingServes) Reconciling=True(RolloutUnderWay)",
            ),
            (
                &cr,
                applied(&cr, "ready", true),
                "Ready=False(RolloutUnderWay) Serving=True(VersionServes) Reconciling=True(RolloutUnderWay)",
            ),
            (
                &cr,
                waiting,
                "Ready=False(WaitingForWorker) Serving=True(VersionServes) Reconciling=True(WaitingForWorker)",
            ),
            (&cr, stopped, "Ready=False(NotReady) Serving=True(VersionServes) Stalled=True(NotReady)"),
            (&cr, retried, "Ready=False(Unavailable) Serving=False(NothingServes) Reconciling=True(Unavailable)"),
            (&cr, blocked, "Ready=False(AliasNotFound) Serving=True(VersionServes) Stalled=True(AliasNotFound)"),
            (&cr, removing, "Ready=False(Removing) Serving=True(VersionServes) Reconciling=True(Removing)"),
            (&cr, unplanned, "Ready=False(Unplanned) Serving=False(NothingServes)"),
            (&paused, self::applied(&paused, "done", true), "Ready=True(Paused) Serving=True(VersionServes)"),
            (&paused, self::applied(&paused, "ready", false), "Ready=False(Paused) Serving=False(NothingServes)"),
            (&none, self::applied(&none, "done", true), "Ready=True(VersionServes) Serving=False(ScaledToZero)"),
        ] {
            let status = status(cr, &applied, NOW);
            assert_eq!(conditions(&status), expected);
            assert!(status.conditions.iter().all(|c| c.observed_generation == Some(4)));
            assert_eq!(status.observed_generation, Some(4));
        }
    }

    #[test]
    fn what_was_recorded_is_shown() {
        let cr = object(json!({"model": {"version": null, "alias": "champion"}}));
        let mut seen = applied(&cr, "ready", false);
        fail(&mut seen, failure::NOT_READY);
        let status = status(&cr, &seen, NOW);
        assert_eq!(status.resolved.and_then(|r| r.alias).as_deref(), Some("champion"));
        assert_eq!((status.fencing_token, status.owner.as_deref(), status.rollout), (7, Some("worker-a"), Some(3)));
        assert_eq!(status.step.map(|s| s.name).as_deref(), Some("ready"));
        assert_eq!(status.last_error.map(|e| e.message).as_deref(), Some("no room"));
    }

    #[test]
    fn the_same_view_is_the_same_status_also_after_it_was_stored() {
        let mut cr = object(json!({}));
        let seen = applied(&cr, "done", true);
        let mut first = status(&cr, &seen, NOW);
        first.revision = 9;
        // As the API server gives it back: times in whole seconds.
        let text = serde_json::to_string(&first).expect("JSON");
        cr.status = Some(serde_json::from_str(&text).expect("a status"));
        let second = status(&cr, &seen, Timestamp::constant(2_000_000, 0));
        assert!(same(cr.status.as_ref().expect("a status"), &second), "{second:?}");
    }

    #[test]
    fn a_transition_time_is_that_of_the_last_change_of_the_condition() {
        let mut cr = object(json!({}));
        cr.status = Some(status(&cr, &applied(&cr, "ready", true), NOW));
        let later = Timestamp::constant(2_000_000, 0);
        let status = status(&cr, &applied(&cr, "done", true), later);
        let time = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_).map(|c| c.last_transition_time.0);
        assert_eq!(time("Ready"), Some(later));
        assert_eq!(time("Serving"), Some(Timestamp::constant(1_000_000, 0)));
    }

    #[test]
    fn the_fencing_token_never_falls() {
        let mut cr = object(json!({}));
        cr.status = Some(ModelDeploymentStatus { fencing_token: 100, ..ModelDeploymentStatus::default() });
        assert_eq!(status(&cr, &applied(&cr, "done", true), NOW).fencing_token, 100);
    }

    #[test]
    fn what_another_cr_of_this_name_had_is_not_shown() {
        let cr = object(json!({}));
        let mut seen = applied(&cr, "done", true);
        seen.observed.plan.as_mut().expect("planned").uid = uuid::Uuid::nil();
        seen.observed.deployment.as_mut().expect("recorded").uid = uuid::Uuid::nil();
        let status = status(&cr, &seen, NOW);
        assert_eq!((status.serving, status.resolved, status.rollout), (None, None, None));
    }

    #[test]
    fn a_reason_of_a_later_release_cannot_make_the_status_unwritable() {
        for (text, expected) in
            [("", "Unknown"), ("9", "Unknown"), ("no such thing!", "nosuchthing"), ("9Lives", "Lives")]
        {
            assert_eq!(word(text), expected);
        }
        assert!(word(&"x".repeat(500)).len() <= REASON_MAX);
    }

    #[test]
    fn an_unreadable_cr_says_so_and_keeps_what_serves() {
        let cr = object(json!({}));
        let old = status(&cr, &applied(&cr, "done", true), NOW);
        let new = unreadable(&old, 5, "recursion limit exceeded", NOW);
        assert_eq!(
            conditions(&new),
            "Ready=False(InvalidObject) Stalled=True(InvalidObject) Serving=True(VersionServes)"
        );
        assert_eq!(new.serving, old.serving);
    }
}
