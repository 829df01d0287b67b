//! Apply: the version's Deployment is there. With `Recreate`, the old version's pods end first.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};

use crate::manifests::names::{DEPLOYMENT_LABEL, REVISION_LABEL};
use crate::plan::{Strategy, failure};
use crate::worker::cluster::ClusterError;
use crate::worker::objects;
use crate::worker::rollout::{Halt, Rollout};

/// Server-side apply of the whole Deployment. One whose UID is known is not made anew behind our back: if it was deleted,
/// that is seen, and only then is another one made.
pub async fn apply(r: &mut Rollout<'_>) -> Result<(), Halt> {
    if r.plan.spec.strategy == Strategy::Recreate {
        clear(r).await?;
    }
    let name = r.plan.spec.deployment_name();
    let known = r.state.uids.get(&name).cloned();
    let applied = match put(r, &name, known.as_deref()).await {
        Err(ClusterError::Changed(_)) if known.is_some() => {
            tracing::warn!(resource = r.lease.resource(), object = name, "was deleted by somebody: making it anew");
            put(r, &name, None).await
        }
        applied => applied,
    }?;
    if let Some(uid) = applied.uid() {
        r.state.uids.insert(name, uid);
    }
    Ok(())
}

async fn put(r: &Rollout<'_>, name: &str, uid: Option<&str>) -> Result<Deployment, ClusterError> {
    let (spec, owner) = (&r.plan.spec, r.plan.uid.to_string());
    let object = |fence| objects::deployment(spec, &owner, spec.replicas, Some(fence));
    r.context.cluster.apply(r.lease, &spec.namespace, name, uid, object).await
}

/// Scales every other version to zero, and waits until its pods are gone.
async fn clear(r: &Rollout<'_>) -> Result<(), Halt> {
    let (cluster, spec, target) = (&r.context.cluster, &r.plan.spec, r.plan.spec.deployment_name());
    let mut old = cluster.list::<Deployment>(r.lease, &spec.namespace, &spec.name).await?;
    old.retain(|d| d.name_any() != target);
    for deployment in &old {
        if replicas(deployment) > 0 {
            cluster.scale(r.lease, deployment, 0).await.or_else(gone)?;
        }
    }
    for deployment in &old {
        let name = deployment.name_any();
        let ended = r.wait(ended(r, deployment), r.left_of(spec.ready_timeout_ms)).await?;
        if ended.transpose()?.is_none() {
            let message =
                format!("the pods of {name} did not end within spec.timeouts.ready ({} ms)", spec.ready_timeout_ms);
            return Err(Halt::Failed { reason: failure::NOT_READY, message, retry_in: Some(Duration::from_secs(60)) });
        }
    }
    Ok(())
}

/// Returns when a Deployment that was scaled to zero has no pods any more, also none that is ending: its own count leaves
/// those out, and they still have the memory that the new version needs.
async fn ended(r: &Rollout<'_>, deployment: &Deployment) -> Result<(), ClusterError> {
    let (cluster, namespace) = (&r.context.cluster, &r.plan.spec.namespace);
    until(cluster.api::<Deployment>(namespace), &deployment.name_any(), |d| {
        let seen = d.status.as_ref().is_some_and(|s| s.observed_generation >= d.metadata.generation);
        replicas(d) > 0 || (seen && d.status.as_ref().and_then(|s| s.replicas).unwrap_or(0) == 0)
    })
    .await;
    let revision = deployment.labels().get(REVISION_LABEL).map_or("", String::as_str);
    let selector = format!("{DEPLOYMENT_LABEL}={},{REVISION_LABEL}={revision}", r.plan.spec.name);
    let over = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    loop {
        let pods = cluster.pods(r.lease, namespace, &selector).await?;
        let Some(pod) = pods.iter().find(|pod| !over(pod)) else { return Ok(()) };
        until(cluster.pod_api(namespace), &pod.name_any(), over).await;
    }
}

/// Watches one object until it is gone, or `enough` of it is seen.
async fn until<K>(api: Api<K>, name: &str, enough: impl Fn(&K) -> bool)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let watch = watcher::watch_object(api, name).default_backoff();
    tokio::pin!(watch);
    while let Some(seen) = watch.next().await {
        if let Ok(seen) = seen
            && seen.is_none_or(|object| enough(&object))
        {
            return;
        }
    }
}

/// Something that was to be changed is gone: as good as changed.
pub(super) fn gone(error: ClusterError) -> Result<(), ClusterError> {
    match error {
        ClusterError::Changed(_) => Ok(()),
        error => Err(error),
    }
}

pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}
