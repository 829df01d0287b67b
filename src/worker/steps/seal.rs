//! Seal: every object of the deployment gets our fence before anything else is done, and the Service is there to carry it.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use crate::worker::objects;
use crate::worker::rollout::{Halt, Rollout};

/// From here on the API server refuses whatever an earlier owner still sends. The Service first: it is what traffic follows.
pub async fn seal(r: &mut Rollout<'_>) -> Result<(), Halt> {
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
    for deployment in cluster.list::<Deployment>(lease, namespace, name).await? {
        cluster.seal(lease, &deployment).await?;
    }
    Ok(())
}
