//! Seal: every object of the deployment gets our fence before anything else is done, and the Service is there to carry it.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use crate::manifests::names::REVISION_LABEL;
use crate::worker::objects;
use crate::worker::rollout::{Halt, Rollout, Step};

/// From here on the API server refuses whatever an earlier owner still sends. The Service first: it is what traffic follows.
pub async fn seal(r: &mut Rollout<'_>, first: Step) -> Result<(), Halt> {
    let (cluster, lease) = (&r.context.cluster, r.lease);
    let (namespace, name) = (&r.plan.spec.namespace, &r.plan.spec.name);
    let services = cluster.list::<Service>(lease, namespace, name).await?;
    for service in &services {
        cluster.seal(lease, service).await?;
    }
    if services.is_empty() && !r.plan.removed && !r.plan.paused {
        let (spec, owner) = (&r.plan.spec, r.plan.uid.to_string());
        let object = |fence| objects::anchor(spec, &owner, fence);
        let _: Service = cluster.apply(lease, namespace, name, None, object).await?;
    }
    let deployments = cluster.list::<Deployment>(lease, namespace, name).await?;
    for deployment in &deployments {
        cluster.seal(lease, deployment).await?;
    }
    restore(r, first, &services, &deployments).await
}

/// An owner that ended between moving the Service and recording it left traffic at a version of which the registry knows
/// nothing. If that very rollout goes on, it is recorded next. If another plan has come instead, the Service goes back to
/// what is recorded, which is still there: versions are retired only after the record.
async fn restore(r: &Rollout<'_>, first: Step, services: &[Service], deployments: &[Deployment]) -> Result<(), Halt> {
    if matches!(first, Step::Switch | Step::Drain | Step::Retire) {
        return Ok(());
    }
    let Some(serving) = r.serving.as_deref() else { return Ok(()) };
    let is_serving =
        |d: &&Deployment| d.metadata.labels.iter().flatten().any(|(k, v)| k == REVISION_LABEL && v == serving);
    if !deployments.iter().any(|d| is_serving(&d)) {
        return Ok(());
    }
    let selected = |s: &Service| s.spec.as_ref()?.selector.as_ref()?.get(REVISION_LABEL).cloned();
    for service in services {
        if selected(service).is_some_and(|revision| revision != serving) {
            tracing::warn!(resource = r.lease.resource(), fence = %r.lease.token(), serving, "the Service pointed elsewhere: putting it back");
            r.context.cluster.select(r.lease, service, serving).await?;
        }
    }
    Ok(())
}
