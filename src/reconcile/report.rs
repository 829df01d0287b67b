//! Status and events, written: a status only if it says something new, events only of what changed with it.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::runtime::reflector::ObjectRef;

use uuid::Uuid;

use super::apply::Applied;
use super::context::{Context, Meta, resource_of};
use super::decide::resource;
use super::lead::Tenure;
use super::outline::Outline;
use super::{Error, call, observe, status};
use crate::clock::Clock;
use crate::crd::{ModelDeployment, ModelDeploymentStatus, clip};
use crate::manifests::names::CONTROLLER_MANAGER;
use crate::store::Takeover;

/// The longest note of an event, in bytes, as the API server counts.
const NOTE_MAX: usize = 1000;

/// Something that a person would ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub warning: bool,
    pub reason: String,
    pub note: String,
}

impl News {
    pub(super) fn good(reason: &str, note: impl Into<String>) -> Self {
        Self { warning: false, reason: reason.to_owned(), note: note.into() }
    }

    pub(super) fn bad(reason: &str, note: impl Into<String>) -> Self {
        Self { warning: true, reason: reason.to_owned(), note: note.into() }
    }
}

/// Whether a status would be written.
pub(super) fn says_something_new(object: &ModelDeployment, applied: &Applied) -> bool {
    let new = status::status(object, applied, Clock::wall());
    !object.status.as_ref().is_some_and(|old| status::same(old, &new))
}

/// Writes the status, if it says something new, under a revision that only the current leader is given.
pub(super) async fn report(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    object: &ModelDeployment,
    applied: &Applied,
) -> Result<(), Error> {
    let mut new = status::status(object, applied, Clock::wall());
    let old = object.status.clone().unwrap_or_default();
    context.stands(key, &new.conditions);
    if object.status.is_some() && status::same(&old, &new) {
        return Ok(());
    }
    let resource = resource(object);
    let mut news = changes(&old, &new, applied);
    news.extend(takeover(context, &resource, &old, &new).await?);
    new.revision = tenure.lease.next_revision(&resource, old.revision).await?;
    let changed = ModelDeployment { status: Some(new), ..object.clone() };
    let params = PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
    let (namespace, name) = (object.metadata.namespace.as_deref(), object.metadata.name.as_deref());
    let api = kube::Api::namespaced(context.client.clone(), namespace.unwrap_or_default());
    // By the resourceVersion that was read, and by the CRD's rule on the revision.
    call("write the status", "put_status", api.replace_status(name.unwrap_or_default(), &params, &changed)).await?;
    tracing::debug!(resource, fence = %tenure.lease.token(), revision = changed.status.map(|s| s.revision), "status written");
    for news in news {
        publish(context, &observe::reference(object.meta()), &news).await;
    }
    Ok(())
}

/// Writes the status of a CR whose spec cannot be read.
pub(super) async fn report_unreadable(
    context: &Context,
    tenure: &Tenure,
    key: &ObjectRef<Meta>,
    outline: &Outline,
) -> Result<(), Error> {
    let metadata = &outline.metadata;
    let old = outline.status.clone().unwrap_or_default();
    let mut new = status::unreadable(&old, metadata.generation.unwrap_or_default(), &outline.why, Clock::wall());
    context.stands(key, &new.conditions);
    if outline.status.is_some() && status::same(&old, &new) {
        return Ok(());
    }
    new.revision = tenure.lease.next_revision(&resource_of(key), old.revision).await?;
    patch(context, key, metadata, &new).await?;
    tracing::warn!(resource = resource_of(key), "it cannot be read: {}", outline.why);
    let error = new.last_error.unwrap_or_default();
    publish(context, &observe::reference(metadata), &News::bad(&error.reason, error.message)).await;
    Ok(())
}

/// Writes a status by the resourceVersion that was read. Only what is said in it is sent, and no answer is parsed.
pub(super) async fn patch(
    context: &Context,
    key: &ObjectRef<Meta>,
    metadata: &ObjectMeta,
    status: &ModelDeploymentStatus,
) -> Result<(), Error> {
    let patch = serde_json::json!({ "metadata": { "resourceVersion": metadata.resource_version }, "status": status });
    let params = PatchParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PatchParams::default() };
    let request = Request::new(ModelDeployment::url_path(&(), key.namespace.as_deref()))
        .patch_subresource("status", &key.name, &params, &Patch::Merge(&patch))
        .map_err(|e| Error::Silent { doing: "write the status", why: e.to_string() })?;
    call("write the status", "put_status", context.client.request_text(request)).await?;
    Ok(())
}

/// What a changed status means to a person. Pure.
fn changes(old: &ModelDeploymentStatus, new: &ModelDeploymentStatus, applied: &Applied) -> Vec<News> {
    let mut news = Vec::new();
    let plan = applied.observed.plan.as_ref();
    if let (Some(rollout), Some(resolved), Some(plan)) = (new.rollout, &new.resolved, plan)
        && old.rollout != new.rollout
        && !plan.paused
        && !plan.removed
    {
        let from = old.serving.as_ref().map_or(String::new(), |s| format!(", from version {}", s.version));
        let note = format!("rollout {rollout}: version {} of {}{from}", resolved.version, resolved.model);
        news.push(News::good("RolloutStarted", note));
    }
    let what = |s: &crate::crd::Serving| (s.model.clone(), s.version, s.revision.clone());
    if let Some(serving) = &new.serving
        && old.serving.as_ref().map(what) != Some(what(serving))
    {
        let note = format!("version {} of {} serves (revision {})", serving.version, serving.model, serving.revision);
        news.push(News::good("Serving", note));
        if let Some(alias) = plan.and_then(|plan| plan.spec.promote_alias.as_ref())
            && applied.observed.promote_version == Some(serving.version)
        {
            let note = format!("alias {alias} of {} points at version {}", serving.model, serving.version);
            news.push(News::good("AliasPromoted", note));
        }
    }
    if let Some(error) = &new.last_error
        && old.last_error.as_ref() != Some(error)
    {
        let note = format!("{}: {}", error.reason, error.message);
        let reason = if applied.blocked.is_some() { &*error.reason } else { "RolloutFailed" };
        news.push(News::bad(reason, if applied.blocked.is_some() { error.message.clone() } else { note }));
    }
    news
}

/// Whether the deployment was taken from an owner that had not released it, since the last status.
async fn takeover(
    context: &Context,
    resource: &str,
    old: &ModelDeploymentStatus,
    new: &ModelDeploymentStatus,
) -> Result<Option<News>, Error> {
    if new.fencing_token <= old.fencing_token {
        return Ok(None);
    }
    let taken = context.store.takeover(resource, old.fencing_token, new.fencing_token).await?;
    Ok(taken.map(|Takeover { token, worker, former, reason }| {
        let former = former.map_or(String::new(), |former| format!(" from {former}"));
        let why = reason.map_or(String::new(), |why| format!(": {why}"));
        News::bad("Takeover", format!("{worker} took over{former} under token {token}{why}"))
    }))
}

/// Publishes an event. One that is lost is no reason to fail: the status says the same.
pub(super) async fn publish(context: &Context, about: &ObjectReference, news: &News) {
    let News { warning, reason, note } = news;
    let mut note = clip(note, NOTE_MAX);
    while note.len() > NOTE_MAX {
        note = clip(&note, note.chars().count() - 1);
    }
    // Each one by itself: kube's recorder folds those of one reason for minutes, and keeps the text of the first.
    let namespace = about.namespace.as_deref().unwrap_or("default");
    let name = format!("{}.{}", about.name.as_deref().unwrap_or("palisade"), Uuid::new_v4().simple());
    let event = Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() },
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(Clock::wall())),
        note: Some(note),
        reason: Some(clip(reason, 128)),
        regarding: Some(about.clone()),
        reporting_controller: Some("palisade.dev/controller".to_owned()),
        reporting_instance: Some(clip(&context.settings.replica, 128)),
        type_: Some(if *warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    };
    let events: kube::Api<Event> = kube::Api::namespaced(context.client.clone(), namespace);
    if let Err(error) = call("publish an event", "event", events.create(&PostParams::default(), &event)).await {
        tracing::warn!(reason, "an event was lost: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::failure;
    use crate::reconcile::decide::tests::{object, observed, planned};
    use crate::reconcile::status::tests::recorded;
    use crate::reconcile::validate::Problem;
    use jiff::Timestamp;
    use serde_json::json;

    /// What is told when the registry's view of a CR goes from one to the other.
    fn told(cr: &ModelDeployment, before: &Applied, after: &Applied) -> Vec<String> {
        let now = Timestamp::constant(1_000_000, 0);
        let mut cr = cr.clone();
        let old = status::status(&cr, before, now);
        cr.status = Some(old.clone());
        let new = status::status(&cr, after, now);
        changes(&old, &new, after).into_iter().map(|news| news.reason).collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        let cr = object(json!({"promoteAlias": "champion"}));
        let unplanned = Applied { observed: observed(1), blocked: None, removing: false };
        let mut started = unplanned.clone();
        started.observed.plan = Some(planned(&cr, &observed(1), 1));
        let plan = started.observed.plan.clone().expect("planned");
        let mut failed = started.clone();
        let mut stopped = recorded(&plan, "ready", false);
        (stopped.failure_reason, stopped.failure_message) = (Some(failure::NOT_READY.into()), Some("slow".into()));
        failed.observed.deployment = Some(stopped);
        let mut serving = started.clone();
        (serving.observed.deployment, serving.observed.promote_version) =
            (Some(recorded(&plan, "done", true)), Some(1));
        let problem = Problem { reason: "AliasNotFound", message: "no such alias".into() };
        let blocked = Applied { blocked: Some(problem), ..serving.clone() };
        for (before, after, expected) in [
            (&unplanned, &started, &["RolloutStarted"][..]),
            (&started, &started, &[]),
            (&started, &failed, &["RolloutFailed"]),
            (&failed, &failed, &[]),
            (&started, &serving, &["Serving", "AliasPromoted"]),
            (&serving, &blocked, &["AliasNotFound"]),
            (&blocked, &serving, &[]),
        ] {
            assert_eq!(told(&cr, before, after), expected);
        }
    }
}
