//! The decision, carried out: the template checked by a dry run, the plan written under the leader's fence.
//!
//! [`Applied`] can only be made here: a status can only be written of what was applied.

use std::time::Duration;

use kube::Resource;
use kube::api::PostParams;
use kube::core::Request;
use kube::runtime::reflector::ObjectRef;
use serde_json::Value;

use super::context::{Context, Meta};
use super::decide::{ALIAS_GUARDED, Decision, Wanted, generation_of, resource};
use super::lead::Tenure;
use super::validate::{INVALID_TEMPLATE, Problem};
use super::{Error, call};
use crate::crd::{MESSAGE_MAX, ModelDeployment, clip};
use crate::lease::{Lease, LeaseError, Settled};
use crate::manifests::names::CONTROLLER_MANAGER;
use crate::outcome::Outcome;
use crate::plan::{Plan, PlanMark, Spec};
use crate::store::{CallError, Observed, Write};
use crate::worker::objects;

/// The API server, or a policy, does not let such a Deployment be created.
pub const TEMPLATE_REFUSED: &str = "TemplateRefused";
/// The database does not take the plan.
pub const PLAN_REFUSED: &str = "PlanRefused";

/// What is true after a look: the registry's view with the plan that was put, and what stands in the way.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The registry's view.
    pub(super) observed: Observed,
    /// Why the plan is not what the CR asks for.
    pub(super) blocked: Option<Problem>,
    /// The CR is being deleted.
    pub(super) removing: bool,
}

impl Applied {
    /// The plan is the one that is wanted.
    pub(super) fn kept(observed: Observed) -> Self {
        Self { observed, blocked: None, removing: false }
    }

    /// A deletion under way.
    pub(super) fn removing(observed: Observed) -> Self {
        Self { observed, blocked: None, removing: true }
    }

    /// Whether another resource must let go of an alias first.
    #[must_use]
    pub fn waits_for_guard(&self) -> bool {
        self.blocked.as_ref().is_some_and(|problem| problem.reason == ALIAS_GUARDED)
    }

    /// When to look again, where nothing would say that the obstacle is gone.
    #[must_use]
    pub fn look_again(&self) -> Option<Duration> {
        let silent = [ALIAS_GUARDED, TEMPLATE_REFUSED, PLAN_REFUSED];
        self.blocked.as_ref().filter(|p| silent.contains(&p.reason)).map(|_| Duration::from_secs(60))
    }
}

/// Carries a decision out.
pub(super) async fn apply(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    object: &ModelDeployment,
    mut observed: Observed,
    decision: Decision,
) -> Result<Applied, Error> {
    let wanted = match decision {
        Decision::Keep => return Ok(Applied::kept(observed)),
        Decision::Blocked(problem) => return Ok(Applied { observed, blocked: Some(problem), removing: false }),
        Decision::Put(wanted) => wanted,
    };
    let problem = if wanted.new_pods { check_template(context, key, object, &wanted.spec).await? } else { None };
    if problem.is_some() {
        return Ok(Applied { observed, blocked: problem, removing: false });
    }
    let Wanted { uid, generation, spec, paused, progress, wake, new_pods: _ } = *wanted;
    let write = Write::PutPlan {
        deployment: resource(object),
        uid,
        generation,
        spec: Box::new(spec.clone()),
        paused,
        removed: false,
        progress,
        wake,
    };
    let written = match put(&tenure.lease, write).await {
        Err(Error::Lease(LeaseError::Call(error @ CallError::Refused { .. }))) if !error.is_transient() => {
            let message = format!("the registry does not take this spec: {error}");
            let problem = Problem { reason: PLAN_REFUSED, message };
            return Ok(Applied { observed, blocked: Some(problem), removing: false });
        }
        written => written?,
    };
    let progress_ms = i64::try_from(progress.as_millis()).unwrap_or(i64::MAX);
    let PlanMark { uid, generation, rollout, paused, removed } = written;
    observed.plan = Some(Plan { uid, generation, rollout, paused, removed, spec, progress_ms, status_revision: 0 });
    Ok(Applied { observed, blocked: None, removing: false })
}

/// Writes a plan, as a fact. Answers which one is current.
pub(super) async fn put(lease: &Lease, write: Write) -> Result<PlanMark, Error> {
    let answer = fenced(lease, write).await?;
    serde_json::from_value(answer).map_err(|e| Error::Unknown(format!("the answer cannot be read: {e}")))
}

/// A fenced write, as a fact: an outcome that is in doubt is settled before anything else is written.
pub(super) async fn fenced(lease: &Lease, write: Write) -> Result<Value, Error> {
    loop {
        return match lease.write(write.clone()).await {
            Ok(Outcome::Applied(answer) | Outcome::Replayed(answer)) => Ok(answer),
            Ok(Outcome::Rejected(rejection)) => Err(Error::Rejected(rejection)),
            Ok(Outcome::Unknown(why)) => match lease.settle().await? {
                Settled::Applied(answer) => Ok(answer),
                Settled::Never => Err(Error::Database(CallError::NoAnswer(why))),
                // Another look needed the lease, and settled it first.
                Settled::Nothing => Err(Error::Unknown(why)),
            },
            // Left behind by a look that was cancelled.
            Err(LeaseError::Unsettled { .. }) => {
                lease.settle().await?;
                continue;
            }
            Err(error) => Err(error.into()),
        };
    }
}

/// Has the API server check the template, once a generation: it creates the Deployment that a worker would, as a dry run.
async fn check_template(
    context: &Context,
    key: &ObjectRef<Meta>,
    object: &ModelDeployment,
    spec: &Spec,
) -> Result<Option<Problem>, Error> {
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let generation = generation_of(object);
    if let Some((of, at, verdict)) = context.recall(key).template
        && (&of, at) == (&uid, generation)
    {
        return Ok(verdict);
    }
    let verdict = match call("check the pod template", "dry_run", dry_run(context, spec)).await {
        Ok(_) => None,
        Err(Error::Refused { doing, status }) => match status.code {
            // Validation comes before the name is looked up.
            409 => None,
            400 | 422 => {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                let fields: Vec<_> = causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
                let text = if fields.is_empty() { status.message.clone() } else { fields.join("; ") };
                Some(problem(INVALID_TEMPLATE, "does not accept", &text))
            }
            // Not the template's fault alone: a quota, a policy, a missing right. It may be gone the next time.
            403 => return Ok(Some(problem(TEMPLATE_REFUSED, "forbids", &status.message))),
            _ => return Err(Error::Refused { doing, status }),
        },
        Err(error) => return Err(error),
    };
    context.remember(key, |memory| memory.template = Some((uid, generation, verdict.clone())));
    Ok(verdict)
}

fn problem(reason: &'static str, verb: &str, text: &str) -> Problem {
    let text = text.replace("spec.template.", "spec.template of the Deployment, ");
    let message =
        format!("spec.template: the API server {verb} a Deployment made from it: {text}; correct the template");
    Problem { reason, message: clip(&message, MESSAGE_MAX) }
}

/// Without the label, so that no policy asks for a fence; without an owner. Strict: a field that Kubernetes does not know is
/// a typing error, and would be dropped silently.
async fn dry_run(context: &Context, spec: &Spec) -> kube::Result<Value> {
    let mut object = objects::deployment(&Spec { owned: false, ..spec.clone() }, "", spec.replicas, None);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("labels");
    }
    let params = PostParams { dry_run: true, field_manager: Some(CONTROLLER_MANAGER.to_owned()) };
    let url = k8s_openapi::api::apps::v1::Deployment::url_path(&(), Some(&spec.namespace));
    let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
    let mut request = Request::new(url).create(&params, body).map_err(kube::Error::BuildRequest)?;
    let strict = format!("{}&fieldValidation=Strict", request.uri());
    // Only a known word was added to what was a URI before.
    if let Ok(uri) = strict.parse() {
        *request.uri_mut() = uri;
    }
    context.client.request(request).await
}
