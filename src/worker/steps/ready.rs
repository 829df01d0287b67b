//! Ready: the version's pods answer. A watch, not polling.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt, watcher};

use super::apply::{apply, gone, replicas};
use crate::manifests::names::{DEPLOYMENT_LABEL, REVISION_LABEL};
use crate::plan::{Strategy, failure};
use crate::worker::rollout::{Halt, Rollout};

enum Seen {
    Ready,
    Gone,
}

/// Waits until the Deployment is ready, for as long as the plan allows. If it is not, the old version goes on serving.
pub async fn ready(r: &mut Rollout<'_>) -> Result<(), Halt> {
    loop {
        // Even when the time is used up (a later try), it is looked at once.
        let left = r.left_of(r.plan.spec.ready_timeout_ms).max(Duration::from_secs(2));
        match r.wait(watch(r), left).await? {
            Some(Seen::Ready) => return Ok(()),
            Some(Seen::Gone) => apply(r).await?,
            None => {
                let mut message = why(r).await?;
                let mut retry_in = Some(Duration::from_secs(60));
                if r.plan.spec.strategy == Strategy::Recreate && go_back(r).await? {
                    // The new version's pods are gone again: looking at them in a minute would tell nothing.
                    message.push_str(". It is not tried again by itself: change the spec");
                    retry_in = None;
                }
                return Err(Halt::Failed { reason: failure::NOT_READY, message, retry_in });
            }
        }
    }
}

async fn watch(r: &Rollout<'_>) -> Seen {
    let (spec, name) = (&r.plan.spec, r.plan.spec.deployment_name());
    let watch = watcher::watch_object(r.context.cluster.api::<Deployment>(&spec.namespace), &name).default_backoff();
    tokio::pin!(watch);
    loop {
        match watch.next().await {
            Some(Ok(Some(deployment))) if is_ready(&deployment, spec.replicas) => return Seen::Ready,
            Some(Ok(None)) => return Seen::Gone,
            Some(Ok(Some(_))) => {}
            Some(Err(error)) => tracing::debug!(resource = r.lease.resource(), "watch: {error}"),
            // The stream of a watch does not end; if it did, the wait around it would.
            None => std::future::pending().await,
        }
    }
}

/// What the Deployment's own controller says, about the spec that it has now. A person may have scaled it in between; scaled
/// to nothing, it is not what the plan calls ready.
fn is_ready(deployment: &Deployment, wanted: i32) -> bool {
    let Some(status) = &deployment.status else { return false };
    let pods = replicas(deployment).max(wanted.min(1));
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) >= pods
        && status.available_replicas.unwrap_or(0) >= pods
}

/// With `Recreate` nothing serves while the new version starts: the old one, if there is one, is brought back.
async fn go_back(r: &Rollout<'_>) -> Result<bool, Halt> {
    let spec = &r.plan.spec;
    let Some(serving) = r.serving.as_ref().filter(|s| **s != spec.revision()) else { return Ok(false) };
    let cluster = &r.context.cluster;
    let old = format!("{}-{serving}", spec.name);
    let Some(old) = cluster.get::<Deployment>(r.lease, &spec.namespace, &old).await? else { return Ok(false) };
    if let Some(new) = cluster.get::<Deployment>(r.lease, &spec.namespace, &spec.deployment_name()).await? {
        cluster.scale(r.lease, &new, 0).await.or_else(gone)?;
    }
    cluster.scale(r.lease, &old, spec.replicas).await.or_else(gone)?;
    Ok(true)
}

/// What a person would look up first.
async fn why(r: &Rollout<'_>) -> Result<String, Halt> {
    let (spec, name) = (&r.plan.spec, r.plan.spec.deployment_name());
    let cluster = &r.context.cluster;
    let deployment = cluster.get::<Deployment>(r.lease, &spec.namespace, &name).await?;
    let status = deployment.and_then(|d| d.status).unwrap_or_default();
    let mut message = format!(
        "{} of {} pods of Deployment {name} were ready within spec.timeouts.ready ({} s)",
        status.available_replicas.unwrap_or(0),
        spec.replicas,
        spec.ready_timeout_ms / 1000
    );
    let failure =
        status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    if let Some(failure) = failure.and_then(|c| c.message) {
        message.push_str(&format!("; {failure}"));
    }
    let selector = format!("{DEPLOYMENT_LABEL}={},{REVISION_LABEL}={}", spec.name, spec.revision());
    let pods = cluster.pods(r.lease, &spec.namespace, &selector).await?;
    if let Some((pod, reason)) = pods.iter().find_map(|pod| Some((pod.name_any(), pod_reason(pod)?))) {
        message.push_str(&format!("; pod {pod}: {reason}"));
    }
    let serving = if r.serving.is_some() { "; the version before it goes on serving" } else { "" };
    message.push_str(&format!("{serving}. See: kubectl -n {} describe deployment {name}", spec.namespace));
    Ok(message)
}

fn pod_reason(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waiting = status.container_statuses.iter().flatten().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        Some(format!(
            "container {}: {} {}",
            c.name,
            waiting.reason.as_deref()?,
            waiting.message.as_deref().unwrap_or("")
        ))
    });
    let condition = || {
        let failed = |t: &str| status.conditions.iter().flatten().find(|c| c.type_ == t && c.status == "False");
        let condition = failed("PodScheduled").or_else(|| failed("Ready"))?;
        Some(format!("{} {}", condition.reason.as_deref()?, condition.message.as_deref().unwrap_or("")))
    };
    waiting.or_else(condition).map(|reason| reason.trim_end().to_owned())
}
