//! What happens in the cluster: CRs, by their metadata, and the objects that workers wrote for them.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::runtime::reflector::{self, ObjectRef, store::Writer};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::context::{Context, Meta, Role, ThinDeployment, ThinService};
use super::drift::{Objects, Selector};
use crate::manifests::names::{DEPLOYMENT_LABEL, REVISION_LABEL};

fn api<K>(context: &Context) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match &context.settings.watch_namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    }
}

/// CRs as they change. Of each only the metadata is kept: it is read when it is looked at.
pub(super) fn modeldeployments(
    context: Arc<Context>,
    writer: Writer<Meta>,
) -> impl Stream<Item = Result<Meta, watcher::Error>> + Send {
    let objects = watch(api::<Meta>(&context), watcher::Config::default()).default_backoff();
    reflector::reflector(writer, objects)
        .inspect(move |event| match event {
            Ok(Event::InitDone) => {
                context.readiness.ready("cluster");
                // What changed while nobody watched is found by a survey, not by a look at each. Without a database
                // there is none. Whoever changes the role at this moment sees to both, after the list is complete.
                if context.role.try_read().is_ok_and(|role| matches!(&*role, Role::Unavailable(_))) {
                    context.trigger_all();
                }
                context.survey_hint.notify_one();
            }
            Ok(Event::Delete(object)) => {
                context.forget(&ObjectRef::from_obj(object));
                // Usually its plan is gone already; without a finalizer it is not.
                context.sweep_hint.notify_one();
            }
            // A watch that breaks goes on by itself where it was, and no event says when it does. Whether the API server
            // can be reached at all, whoever keeps the epoch finds out.
            Err(error @ (watcher::Error::InitialListFailed(_) | watcher::Error::NoResourceVersion)) => {
                context.readiness.not_ready("cluster", error.to_string());
            }
            Ok(_) | Err(_) => {}
        })
        .filter_map(|event| async {
            match event {
                Ok(Event::Apply(object)) => Some(Ok(object)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        })
}

/// Keeps the index of objects, and has a CR looked at when one of its objects comes or goes.
pub(super) async fn drift(context: Arc<Context>, stop: CancellationToken) {
    let labelled = || watcher::Config::default().labels(DEPLOYMENT_LABEL);
    let deployments = watch(api::<ThinDeployment>(&context), labelled()).default_backoff();
    let services = watch(api::<ThinService>(&context), labelled()).default_backoff();
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(&context, 0, deployments, |objects| objects.deployments.clear(), put_deployment) => {}
        () = follow(&context, 1, services, |objects| objects.service = None, put_service) => {}
    }
}

/// Puts an object into the index, or takes it out.
type Put<K> = fn(&mut Objects, &K, bool);

fn put_deployment(objects: &mut Objects, object: &ThinDeployment, there: bool) {
    if there {
        objects.deployments.insert(object.name_any(), object.labels().get(REVISION_LABEL).cloned());
    } else {
        objects.deployments.remove(&object.name_any());
    }
}

fn put_service(objects: &mut Objects, object: &ThinService, there: bool) {
    // Only the Service of the CR's own name is Palisade's.
    if object.labels().get(DEPLOYMENT_LABEL) == Some(&object.name_any()) {
        objects.service = there.then(|| object.selector.as_ref().map(Selector::of).unwrap_or_default());
    }
}

async fn follow<K: kube::Resource>(
    context: &Context,
    list: usize,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    clear: fn(&mut Objects),
    put: Put<K>,
) {
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        let (object, there, listed) = match event {
            Ok(Event::Init) => {
                context.objects.set_known(list, false);
                context.objects.change_all(clear);
                continue;
            }
            Ok(Event::InitDone) => {
                context.objects.set_known(list, true);
                if context.objects.is_complete() {
                    context.survey_hint.notify_one();
                }
                continue;
            }
            Ok(Event::InitApply(object)) => (object, true, true),
            Ok(Event::Apply(object)) => (object, true, false),
            Ok(Event::Delete(object)) => (object, false, false),
            Err(error) => {
                tracing::debug!("watching objects: {error}");
                continue;
            }
        };
        let Some(name) = object.labels().get(DEPLOYMENT_LABEL) else { continue };
        let key = ObjectRef::new(name).within(object.namespace().as_deref().unwrap_or_default());
        // What is being deleted is as good as gone.
        let there = there && object.meta().deletion_timestamp.is_none();
        let changed = context.objects.change(&key, |objects| put(objects, &object, there));
        if changed && !listed {
            context.trigger(key).await;
        }
    }
}
