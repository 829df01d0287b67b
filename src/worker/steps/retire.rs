//! Retire: old versions are scaled to zero and kept for going back, the oldest are deleted.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use super::apply::{gone, replicas};
use crate::manifests::names::REVISION_LABEL;
use crate::worker::rollout::{Halt, Rollout};

/// Whatever does not serve: those of the history stay, scaled to zero; the others, also what never served, go.
pub async fn retire(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let (cluster, spec) = (&r.context.cluster, &r.plan.spec);
    let target = spec.revision();
    let mut names = std::collections::BTreeSet::from([spec.deployment_name()]);
    for deployment in cluster.list::<Deployment>(r.lease, &spec.namespace, &spec.name).await? {
        let revision = deployment.labels().get(REVISION_LABEL).cloned().unwrap_or_default();
        // Not ours, whatever its label says: what a person labelled is a person's to delete.
        if revision == target || deployment.name_any() != format!("{}-{revision}", spec.name) {
            continue;
        }
        if r.state.history.iter().skip(1).take(spec.revision_history_limit).any(|kept| *kept == revision) {
            if replicas(&deployment) > 0 {
                cluster.scale(r.lease, &deployment, 0).await.or_else(gone)?;
            }
            cluster.own(r.lease, &deployment, &r.plan).await?;
            names.insert(deployment.name_any());
        } else {
            cluster.retire(r.lease, &deployment).await?;
        }
    }
    // What is gone need not be remembered.
    r.state.uids.retain(|name, _| names.contains(name));
    Ok(())
}
