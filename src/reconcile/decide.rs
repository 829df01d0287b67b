//! What should be planned: pure, from a CR and what the registry says.
//!
//! An alias is resolved here, and pinned by being written into the plan: a rollout goes to that version, whatever the alias
//! does meanwhile. When it has moved, the next look decides on a new plan, and the worker turns to it at its next safe step.

use std::time::Duration;

use uuid::Uuid;

use super::validate::Problem;
use crate::crd::{DeletionPolicy, ModelDeployment, StrategyType};
use crate::plan::{Plan, Spec, Strategy, resource_of};
use crate::store::{Observed, VersionState};

/// The registry has no such model.
pub const MODEL_NOT_FOUND: &str = "ModelNotFound";
/// The model has no such version.
pub const VERSION_NOT_FOUND: &str = "VersionNotFound";
/// The model has no such alias.
pub const ALIAS_NOT_FOUND: &str = "AliasNotFound";
/// Another resource owns the alias to promote.
pub const ALIAS_GUARDED: &str = "AliasGuarded";

/// What should be planned.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The CR's.
    pub uid: Uuid,
    /// The CR's.
    pub generation: i64,
    /// What should be, with the alias resolved.
    pub spec: Spec,
    /// Nothing is to be done for now.
    pub paused: bool,
    /// How long an owner may go without progress.
    pub progress: Duration,
    /// A worker should look, though nothing changed.
    pub wake: bool,
    /// The pods are not those of the last plan: the API server should check the template first.
    pub new_pods: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The plan is as it should be.
    Keep,
    /// It should become this.
    Put(Box<Wanted>),
    /// It stays as it is until a person, or the registry, changes something.
    Blocked(Problem),
}

/// Decides. `wake`: the cluster is not as it was recorded.
#[must_use]
pub fn decide(object: &ModelDeployment, observed: &Observed, problems: Vec<Problem>, wake: bool) -> Decision {
    if let Some(problem) = combined(problems) {
        return Decision::Blocked(problem);
    }
    let version = match resolve(object, observed) {
        Ok(version) => version,
        Err(problem) => return Decision::Blocked(problem),
    };
    let Some(uid) = uid_of(object) else {
        // The API server gives every object one.
        return Decision::Keep;
    };
    let spec = spec_of(object, version);
    let own = observed.plan.as_ref().filter(|plan| plan.uid == uid);
    let wanted = Wanted {
        uid,
        generation: generation_of(object),
        paused: object.spec.paused,
        progress: object.spec.lease.ttl.duration(),
        wake: wake && !object.spec.paused,
        new_pods: own.is_none_or(|plan| plan.spec.revision() != spec.revision()),
        spec,
    };
    match own {
        Some(plan) if !wanted.wake && same(plan, &wanted) => Decision::Keep,
        _ => Decision::Put(Box::new(wanted)),
    }
}

fn same(plan: &Plan, wanted: &Wanted) -> bool {
    let Wanted { uid, generation, spec, paused, progress, wake: _, new_pods: _ } = wanted;
    (plan.uid, plan.generation, plan.paused, plan.removed) == (*uid, *generation, *paused, false)
        && plan.spec == *spec
        && plan.progress() == *progress
}

/// The CR's UID.
#[must_use]
pub fn uid_of(object: &ModelDeployment) -> Option<Uuid> {
    object.metadata.uid.as_deref()?.parse().ok()
}

/// The CR's generation.
#[must_use]
pub fn generation_of(object: &ModelDeployment) -> i64 {
    object.metadata.generation.unwrap_or_default()
}

/// All problems as one: the first one's reason, all their messages.
fn combined(problems: Vec<Problem>) -> Option<Problem> {
    let reason = problems.first()?.reason;
    let messages: Vec<_> = problems.into_iter().map(|problem| problem.message).collect();
    Some(Problem { reason, message: messages.join("; ") })
}

/// The version that is wanted, or what keeps it from being served.
fn resolve<'a>(object: &ModelDeployment, observed: &'a Observed) -> Result<&'a VersionState, Problem> {
    let model = &object.spec.model;
    let problem = |reason, message| Err(Problem { reason, message });
    if !observed.model_exists {
        let message = format!(
            "spec.model.name is {:?}, and the registry has no such model: register it, or correct the name; it is looked \
             for again when a model of this name is registered",
            model.name
        );
        return problem(MODEL_NOT_FOUND, message);
    }
    if let (Some(alias), None) = (&model.alias, observed.alias_version) {
        let message = format!(
            "spec.model.alias is {alias:?}, and model {:?} has no such alias: set it, or correct the name",
            model.name
        );
        return problem(ALIAS_NOT_FOUND, message);
    }
    let Some(version) = &observed.version else {
        let wanted = model.version.or(observed.alias_version).unwrap_or_default();
        let message = format!("model {:?} has no version {wanted}: register it, or correct spec.model", model.name);
        return problem(VERSION_NOT_FOUND, message);
    };
    let resource = resource(object);
    if let (Some(alias), Some(guard)) = (&object.spec.promote_alias, &observed.promote_guard)
        && *guard != resource
    {
        let message = format!(
            "spec.promoteAlias is {alias:?}, which only {guard} may move: choose another alias, or delete its owner"
        );
        return problem(ALIAS_GUARDED, message);
    }
    Ok(version)
}

/// The name of the CR's lease.
#[must_use]
pub fn resource(object: &ModelDeployment) -> String {
    let meta = &object.metadata;
    resource_of(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn spec_of(object: &ModelDeployment, version: &VersionState) -> Spec {
    let (meta, spec) = (&object.metadata, &object.spec);
    // Validated before: each of these has a range that fits.
    let at_least_zero = |n: i32| u32::try_from(n).unwrap_or_default();
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    Spec {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        model: spec.model.name.clone(),
        version: version.version,
        source: version.source.clone(),
        digest: version.digest.clone(),
        expected_digest: spec.artifact.as_ref().and_then(|artifact| artifact.digest.clone()),
        replicas: spec.replicas,
        template: spec.template.clone(),
        port: u16::try_from(spec.service.port).unwrap_or_default(),
        strategy: match spec.strategy.kind {
            StrategyType::BlueGreen => Strategy::BlueGreen,
            StrategyType::Recreate => Strategy::Recreate,
        },
        drain_seconds: at_least_zero(spec.strategy.drain_seconds),
        promote_alias: spec.promote_alias.clone(),
        verify_timeout_ms: millis(spec.timeouts.verify.duration()),
        ready_timeout_ms: millis(spec.timeouts.ready.duration()),
        revision_history_limit: at_least_zero(spec.revision_history_limit) as usize,
        owned: spec.deletion_policy == DeletionPolicy::Undeploy,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub const UID: &str = "00000000-0000-4000-8000-000000000001";

    fn merge(object: &mut Value, patch: &Value) {
        match (object, patch) {
            (Value::Object(object), Value::Object(patch)) => {
                for (key, value) in patch {
                    if value.is_null() {
                        object.remove(key);
                    } else {
                        merge(object.entry(key.clone()).or_insert(Value::Null), value);
                    }
                }
            }
            (object, patch) => *object = patch.clone(),
        }
    }

    /// A good CR, with its spec patched.
    pub fn object(patch: Value) -> ModelDeployment {
        let mut spec = json!({
            "model": {"name": "churn", "version": 1},
            "template": {"spec": {"containers": [{"name": "model", "image": "churn:1"}]}},
            "service": {"port": 8080},
        });
        merge(&mut spec, &patch);
        serde_json::from_value(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "churn", "namespace": "team", "uid": UID, "generation": 4},
            "spec": spec,
        }))
        .expect("a ModelDeployment")
    }

    pub fn version(number: i64) -> VersionState {
        VersionState {
            version: number,
            source: format!("s3://models/churn/{number}"),
            digest: format!("sha256:{number:064}"),
        }
    }

    /// A registry with the wanted version, and nothing planned.
    pub fn observed(number: i64) -> Observed {
        Observed {
            plan: None,
            deployment: None,
            token: 0,
            owner: None,
            model_exists: true,
            alias_version: None,
            version: Some(version(number)),
            promote_guard: None,
            promote_version: None,
        }
    }

    /// The plan that `object` leads to, as the database would hold it.
    pub fn planned(object: &ModelDeployment, observed: &Observed, rollout: i64) -> Plan {
        let Decision::Put(wanted) = decide(object, observed, vec![], false) else { panic!("nothing is planned") };
        Plan {
            uid: wanted.uid,
            generation: wanted.generation,
            rollout,
            paused: wanted.paused,
            removed: false,
            spec: wanted.spec,
            progress_ms: i64::try_from(wanted.progress.as_millis()).expect("it fits"),
            status_revision: 0,
        }
    }

    fn put(decision: Decision) -> Wanted {
        match decision {
            Decision::Put(wanted) => *wanted,
            other => panic!("{other:?}"),
        }
    }

    fn blocked(decision: Decision) -> Problem {
        match decision {
            Decision::Blocked(problem) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_cr_is_planned_once() {
        let object = object(json!({"artifact": {"digest": format!("sha256:{:064}", 1)}}));
        let mut seen = observed(1);
        let wanted = put(decide(&object, &seen, vec![], false));
        assert!(wanted.new_pods);
        assert_eq!((wanted.generation, wanted.spec.version, wanted.spec.owned), (4, 1, true));
        assert_eq!(wanted.spec.expected_digest, Some(format!("sha256:{:064}", 1)));
        assert_eq!(wanted.progress, Duration::from_secs(30));
        seen.plan = Some(planned(&object, &seen, 1));
        assert_eq!(decide(&object, &seen, vec![], false), Decision::Keep);
    }

    #[test]
    fn a_moved_alias_is_a_new_plan_and_a_steady_one_is_none() {
        let object = object(json!({"model": {"version": null, "alias": "champion"}}));
        let mut seen = Observed { alias_version: Some(1), ..observed(1) };
        seen.plan = Some(planned(&object, &seen, 1));
        assert_eq!(decide(&object, &seen, vec![], false), Decision::Keep);
        (seen.alias_version, seen.version) = (Some(2), Some(version(2)));
        let wanted = put(decide(&object, &seen, vec![], false));
        assert_eq!((wanted.spec.version, wanted.new_pods), (2, true));
    }

    #[test]
    fn what_is_not_in_the_registry_blocks_and_changes_no_plan() {
        let by_version = object(json!({}));
        let by_alias = object(json!({"model": {"version": null, "alias": "champion"}}));
        let promoting = object(json!({"promoteAlias": "champion"}));
        let none = Observed { version: None, ..observed(1) };
        for (object, seen, reason, text) in [
            (&by_version, Observed { model_exists: false, ..none.clone() }, MODEL_NOT_FOUND, "\"churn\""),
            (&by_version, none.clone(), VERSION_NOT_FOUND, "no version 1"),
            (&by_alias, none.clone(), ALIAS_NOT_FOUND, "\"champion\""),
            (&by_alias, Observed { alias_version: Some(7), ..none }, VERSION_NOT_FOUND, "no version 7"),
            (
                &promoting,
                Observed { promote_guard: Some("deployment/team/other".into()), ..observed(1) },
                ALIAS_GUARDED,
                "deployment/team/other",
            ),
        ] {
            let problem = blocked(decide(object, &seen, vec![], true));
            assert_eq!(problem.reason, reason);
            assert!(problem.message.contains(text), "{}", problem.message);
        }
        let own = Observed { promote_guard: Some("deployment/team/churn".into()), ..observed(1) };
        put(decide(&promoting, &own, vec![], false));
    }

    #[test]
    fn problems_block_with_all_their_messages() {
        let problem = |message: &str| Problem { reason: "InvalidSpec", message: message.into() };
        let problem = blocked(decide(&object(json!({})), &observed(1), vec![problem("a"), problem("b")], false));
        assert_eq!(problem.message, "a; b");
    }

    #[test]
    fn a_change_that_leaves_the_pods_alone_needs_no_check_of_the_template() {
        let before = object(json!({}));
        let mut seen = observed(1);
        seen.plan = Some(planned(&before, &seen, 1));
        for patch in [
            json!({"replicas": 5}),
            json!({"paused": true}),
            json!({"lease": {"ttl": "10s"}}),
            json!({"deletionPolicy": "Retain"}),
        ] {
            let wanted = put(decide(&object(patch.clone()), &seen, vec![], false));
            assert!(!wanted.new_pods, "{patch}");
        }
        let wanted = put(decide(&object(json!({"service": {"port": 1}})), &seen, vec![], false));
        assert!(wanted.new_pods);
    }

    #[test]
    fn a_cr_that_was_made_anew_takes_the_plan_over() {
        let object = object(json!({}));
        let mut seen = observed(1);
        seen.plan = Some(Plan { uid: Uuid::nil(), generation: 99, ..planned(&object, &seen, 5) });
        assert_eq!(put(decide(&object, &seen, vec![], false)).generation, 4);
    }

    #[test]
    fn drift_wakes_a_worker_unless_paused() {
        let mut seen = observed(1);
        seen.plan = Some(planned(&object(json!({})), &seen, 1));
        assert!(put(decide(&object(json!({})), &seen, vec![], true)).wake);
        assert!(!put(decide(&object(json!({"paused": true})), &seen, vec![], true)).wake);
    }
}
