//! A CR that is being deleted: taken out of the registry first, then let go.
//!
//! ```text
//! with a leader:     plan.removed ─▶ a worker records `removed` ─▶ the plan is dropped ─▶ the finalizer goes ─▶ GC
//! without database:  Retain, and no object belongs to the CR ─▶ the finalizer goes; the plan is swept later
//!                    otherwise ─▶ the finalizer stays, and an event says what it waits for
//! ```

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::json;
use uuid::Uuid;

use super::apply::{Applied, fenced, put};
use super::context::{Context, Meta, resource_of};
use super::lead::Tenure;
use super::observe::{self, Read, has_finalizer, reference};
use super::outline::Outline;
use super::report::{News, publish, report, report_unreadable};
use super::{Error, api_of, call};
use crate::crd::{DeletionPolicy, ModelDeployment};
use crate::manifests::names::{CONTROLLER_MANAGER, DEPLOYMENT_LABEL, FINALIZER};
use crate::outcome::Reason;
use crate::plan::{Plan, Spec};
use crate::retry::around;
use crate::store::{Observed, Write};

/// How often an event that repeats is published.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How often to look whether there is a database again.
const WAIT: Duration = Duration::from_secs(10);

/// Puts the finalizer on a CR before anything is planned for it.
pub(super) async fn add(context: &Context, object: &mut ModelDeployment) -> Result<(), Error> {
    if has_finalizer(&object.metadata) {
        return Ok(());
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let metadata = set_finalizers(context, &object.metadata, finalizers).await?;
    object.metadata.finalizers = metadata.finalizers;
    // The next write is held against it.
    object.metadata.resource_version = metadata.resource_version;
    Ok(())
}

/// Takes it off. A CR that is gone, or has none, is fine.
async fn remove(context: &Context, metadata: &ObjectMeta) -> Result<(), Error> {
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|f| f != FINALIZER);
    match set_finalizers(context, metadata, finalizers).await {
        Err(Error::Refused { status, .. }) if status.is_not_found() => Ok(()),
        result => result.map(|_| ()),
    }
}

/// By resourceVersion: a finalizer that somebody else sets at the same time is not lost.
async fn set_finalizers(
    context: &Context,
    metadata: &ObjectMeta,
    finalizers: Vec<String>,
) -> Result<ObjectMeta, Error> {
    let name = metadata.name.clone().unwrap_or_default();
    let api = api_of(context, &ObjectRef::new(&name).within(metadata.namespace.as_deref().unwrap_or_default()));
    let patch = json!({ "metadata": { "resourceVersion": metadata.resource_version, "uid": metadata.uid, "finalizers": finalizers } });
    let params = PatchParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PatchParams::default() };
    let patched = call("set the finalizer", "finalizer", api.patch(&name, &params, &Patch::Merge(&patch))).await?;
    Ok(patched.metadata)
}

/// A CR that is being deleted, while we lead.
pub(super) async fn object(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    object: &ModelDeployment,
) -> Result<Action, Error> {
    if !has_finalizer(&object.metadata) {
        return Ok(Action::await_change());
    }
    let owned = object.spec.deletion_policy == DeletionPolicy::Undeploy;
    match withdraw(context, tenure, key, &object.metadata, Some(owned)).await? {
        None => {
            let (reason, note) = match object.spec.deletion_policy {
                DeletionPolicy::Undeploy => ("Deleted", "out of the registry; Service and Deployments go with it"),
                DeletionPolicy::Retain => {
                    ("Retained", "out of the registry; Service and Deployments stay, owned by nobody")
                }
            };
            publish(context, &reference(&object.metadata), &News::good(reason, note)).await;
            Ok(Action::await_change())
        }
        Some(observed) => {
            report(context, tenure, key, object, &Applied::removing(observed)).await?;
            Ok(Action::requeue(around(super::LOOK_AGAIN)))
        }
    }
}

/// A CR that this program cannot read: it can be deleted, and nothing else.
pub(super) async fn unreadable(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    outline: Outline,
) -> Result<Action, Error> {
    if outline.metadata.deletion_timestamp.is_none() {
        report_unreadable(context, tenure, key, &outline).await?;
        return Ok(Action::requeue(around(super::LOOK_AGAIN)));
    }
    let metadata = outline.metadata;
    if has_finalizer(&metadata) {
        withdraw(context, tenure, key, &metadata, None).await?;
    }
    Ok(Action::requeue(around(super::LOOK_AGAIN)))
}

/// Takes a CR out of the registry, step by step. `None`: it is out, and the finalizer is gone.
async fn withdraw(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    metadata: &ObjectMeta,
    owned: Option<bool>,
) -> Result<Option<Observed>, Error> {
    let resource = resource_of(key);
    let mut observed = observe::bare(context, &resource).await?;
    let uid: Option<Uuid> = metadata.uid.as_deref().and_then(|uid| uid.parse().ok());
    let planned = observed.plan.as_ref().filter(|plan| Some(plan.uid) == uid);
    let Some(plan) = planned else {
        // Never planned, or dropped already by a look that did not get to the finalizer.
        remove(context, metadata).await?;
        context.forget(key);
        return Ok(None);
    };
    if !plan.removed {
        let generation = metadata.generation.unwrap_or(plan.generation).max(plan.generation);
        observed.plan = Some(removal(tenure, &resource, plan, generation, owned).await?);
        return Ok(Some(observed));
    }
    if !is_removed(plan, &observed) || !drop_plan(tenure, &resource, plan.uid).await? {
        return Ok(Some(observed));
    }
    remove(context, metadata).await?;
    context.forget(key);
    Ok(None)
}

/// Plans the removal. `owned`: whether the objects are to go with the CR; without it, as it was planned.
pub(super) async fn removal(
    tenure: &Tenure,
    resource: &str,
    plan: &Plan,
    generation: i64,
    owned: Option<bool>,
) -> Result<Plan, Error> {
    let spec = Spec { owned: owned.unwrap_or(plan.spec.owned), ..plan.spec.clone() };
    let write = Write::PutPlan {
        deployment: resource.to_owned(),
        uid: plan.uid,
        generation,
        spec: Box::new(spec.clone()),
        paused: false,
        removed: true,
        progress: plan.progress(),
        wake: true,
    };
    let mark = put(&tenure.lease, write).await?;
    Ok(Plan { generation: mark.generation, rollout: mark.rollout, paused: false, removed: true, spec, ..plan.clone() })
}

/// Whether a worker has recorded the removal of this very plan.
pub(super) fn is_removed(plan: &Plan, observed: &Observed) -> bool {
    let recorded = observed.deployment.as_ref();
    plan.removed && recorded.is_some_and(|d| (d.uid, d.rollout, &*d.step) == (plan.uid, plan.rollout, "removed"))
}

/// Forgets a plan. `false`: it changed in between.
pub(super) async fn drop_plan(tenure: &Tenure, resource: &str, uid: Uuid) -> Result<bool, Error> {
    match fenced(&tenure.lease, Write::DropPlan { deployment: resource.to_owned(), uid }).await {
        Ok(_) => Ok(true),
        Err(Error::Rejected(rejection)) if rejection.reason == Reason::NotRemoved => Ok(false),
        Err(error) => Err(error),
    }
}

/// A CR, while nobody can lead. Only one that is being deleted matters.
pub(super) async fn without_database(context: &Context, key: &ObjectRef<Meta>, why: &str) -> Result<Action, Error> {
    let (metadata, policy) = match observe::read(context, key).await? {
        Read::Gone => return Ok(Action::await_change()),
        Read::Object(object) => (object.metadata, object.spec.deletion_policy),
        // Which policy it has is not known: the one that keeps the finalizer.
        Read::Unreadable(outline) => (outline.metadata, DeletionPolicy::Undeploy),
    };
    if metadata.deletion_timestamp.is_none() || !has_finalizer(&metadata) {
        return Ok(Action::await_change());
    }
    let waits = match policy {
        DeletionPolicy::Undeploy => "its aliases must be freed in the registry first".to_owned(),
        DeletionPolicy::Retain => match still_owned(context, &metadata).await? {
            None => {
                remove(context, &metadata).await?;
                let note = "the database is out of reach; Service and Deployments stay, owned by nobody, and the registry \
                            forgets the deployment when it is back";
                publish(context, &reference(&metadata), &News::good("Retained", note)).await;
                tracing::info!(resource = resource_of(key), "finalizer removed without the database: Retain");
                context.forget(key);
                return Ok(Action::await_change());
            }
            Some(object) => format!("{object} still belongs to it and would be deleted with it, which Retain forbids"),
        },
    };
    let note = format!(
        "the deletion waits for the database, for {waits}. The database: {why}. It goes on by itself; to delete at \
         once, and leave what is in the registry to be swept, remove the finalizer {FINALIZER}"
    );
    say(context, key, &metadata, &News::bad("WaitingForDatabase", note)).await;
    Ok(Action::requeue(around(WAIT)))
}

/// Publishes an event that would repeat, once a minute.
async fn say(context: &Context, key: &ObjectRef<Meta>, metadata: &ObjectMeta, news: &News) {
    let now = context.clock.now();
    let mut due = false;
    context.remember(key, |memory| {
        due = memory.said.is_none_or(|said| now.since(said) >= SAY_AGAIN);
        if due {
            memory.said = Some(now);
        }
    });
    if due {
        publish(context, &reference(metadata), news).await;
    }
}

/// An object that garbage collection would delete with the CR, if there is one. Asked of the API server, not of a cache.
async fn still_owned(context: &Context, metadata: &ObjectMeta) -> Result<Option<String>, Error> {
    let deployment = owned_by::<Deployment>(context, metadata).await?;
    if deployment.is_some() { Ok(deployment) } else { owned_by::<Service>(context, metadata).await }
}

async fn owned_by<K>(context: &Context, metadata: &ObjectMeta) -> Result<Option<String>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let (name, uid) = (metadata.name.as_deref().unwrap_or_default(), metadata.uid.as_deref().unwrap_or_default());
    let api: Api<K> = Api::namespaced(context.client.clone(), metadata.namespace.as_deref().unwrap_or_default());
    let params = ListParams::default().labels(&format!("{DEPLOYMENT_LABEL}={name}"));
    let list = call("list its objects", "list_owned", api.list_metadata(&params)).await?;
    let owned = list.items.iter().find(|object| object.owner_references().iter().any(|owner| owner.uid == uid));
    Ok(owned.map(|object| format!("{} {}", K::kind(&()), object.name_any())))
}
