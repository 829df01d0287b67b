//! Ready: the version's pods answer. A watch, not polling.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
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
    // While an init container does not succeed, the others only wait for it: it is the reason.
    let init = status.init_container_statuses.iter().flatten().map(|c| ("init container", c));
    let stuck =
        init.chain(status.container_statuses.iter().flatten().map(|c| ("container", c))).find_map(|(kind, c)| {
            let running =
                || (kind == "init container" && c.state.as_ref()?.running.is_some()).then(|| "still runs".to_owned());
            Some(format!("{kind} {}: {}", c.name, container_reason(c).or_else(running)?))
        });
    let condition = || {
        let failed = |t: &str| status.conditions.iter().flatten().find(|c| c.type_ == t && c.status == "False");
        let condition = failed("PodScheduled").or_else(|| failed("Ready"))?;
        Some(format!("{} {}", condition.reason.as_deref()?, condition.message.as_deref().unwrap_or("")))
    };
    stuck.or_else(condition).map(|reason| reason.trim_end().to_owned())
}

/// What it waits for, and how it ended before: with `terminationMessagePolicy: FallbackToLogsOnError` in its own words.
fn container_reason(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let ended = state.terminated.as_ref().or_else(|| container.last_state.as_ref()?.terminated.as_ref());
    let ended = ended.filter(|ended| ended.exit_code != 0).map(|ended| {
        let message = ended.message.as_deref().unwrap_or("").trim();
        format!("ended with exit code {}{}{message}", ended.exit_code, if message.is_empty() { "" } else { ": " })
    });
    let waiting = state.waiting.as_ref().and_then(|waiting| {
        // Its message repeats names and times that the reason goes without.
        let message = waiting.message.as_deref().filter(|_| ended.is_none()).unwrap_or("");
        Some(format!("{} {message}", waiting.reason.as_deref()?).trim_end().to_owned())
    });
    match (waiting, ended) {
        (Some(waiting), Some(ended)) => Some(format!("{waiting}, {ended}")),
        (waiting, ended) => waiting.or(ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn reason(init: Value, main: Value) -> Option<String> {
        let status = json!({
            "initContainerStatuses": [{"name": "fetch", "image": "", "imageID": "", "ready": false, "restartCount": 2, "state": init["state"], "lastState": init["lastState"]}],
            "containerStatuses": [{"name": "model", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": main}],
        });
        pod_reason(&serde_json::from_value(json!({"status": status})).unwrap_or_default())
    }

    #[test]
    fn an_init_container_that_fails_is_the_reason_and_is_quoted() {
        let waits = json!({"waiting": {"reason": "PodInitializing"}});
        let ended = json!({"terminated": {"exitCode": 9, "message": "another digest\n"}});
        let backs_off = json!({"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}, "lastState": ended});
        let expected = "init container fetch: CrashLoopBackOff, ended with exit code 9: another digest";
        assert_eq!(reason(backs_off, waits.clone()).as_deref(), Some(expected));
        let runs = json!({"state": {"running": {}}});
        assert_eq!(reason(runs, waits.clone()).as_deref(), Some("init container fetch: still runs"));
        let done = json!({"state": {"terminated": {"exitCode": 0}}});
        assert_eq!(reason(done.clone(), waits).as_deref(), Some("container model: PodInitializing"));
        let pulls = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        assert_eq!(reason(done, pulls).as_deref(), Some("container model: ImagePullBackOff no such image"));
    }
}
