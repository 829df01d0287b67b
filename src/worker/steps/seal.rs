//! Seal: every object of the deployment gets our fence before anything else is done.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use crate::worker::rollout::{Halt, Rollout};

/// From here on the API server refuses whatever an earlier owner still sends. The Service first: it is what traffic follows.
pub async fn seal(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let (cluster, lease) = (&r.context.cluster, r.lease);
    let (namespace, name) = (&r.plan.spec.namespace, &r.plan.spec.name);
    for service in cluster.list::<Service>(lease, namespace, name).await? {
        cluster.seal(lease, &service).await?;
    }
    for deployment in cluster.list::<Deployment>(lease, namespace, name).await? {
        cluster.seal(lease, &deployment).await?;
    }
    Ok(())
}
