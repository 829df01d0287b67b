//! Switch, and what goes into the registry at the end: what serves, that the plan is done, that all is gone.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;

use crate::plan::failure;
use crate::store::Write;
use crate::worker::objects;
use crate::worker::rollout::{Halt, Rollout, Step};

/// Moves the Service, then records what serves and moves the alias, both in one call.
pub async fn switch(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let (spec, owner) = (&r.plan.spec, r.plan.uid.to_string());
    let object = |fence| objects::service(spec, &owner, fence);
    let _: Service = r.context.cluster.apply(r.lease, &spec.namespace, &spec.name, None, object).await?;

    let revision = spec.revision();
    r.state.history.retain(|old| *old != revision);
    r.state.history.insert(0, revision.clone());
    r.state.history.truncate(spec.revision_history_limit + 1);
    let recorded = r.record(serving(r, spec.promote_alias.clone())).await;
    if r.serving.as_ref() != Some(&revision) {
        r.serving_since = Some(r.context.clock.now());
    }
    r.serving = Some(revision);
    match recorded {
        // Traffic has moved: what serves is recorded, whatever becomes of the alias.
        Err(Halt::Failed { reason: failure::ALIAS_GUARDED, message, retry_in }) => {
            r.record(serving(r, None)).await?;
            Err(Halt::Failed { reason: failure::ALIAS_GUARDED, message, retry_in })
        }
        recorded => recorded.map(|_| ()),
    }
}

fn serving(r: &Rollout<'_>, alias: Option<String>) -> Write {
    let spec = &r.plan.spec;
    Write::RecordServing {
        uid: r.plan.uid,
        rollout: r.plan.rollout,
        step: Step::Drain.name(),
        state: r.state.clone(),
        model: spec.model.clone(),
        version: spec.version,
        revision: spec.revision(),
        alias,
    }
}

/// The plan is carried out.
pub async fn done(r: &mut Rollout<'_>) -> Result<(), Halt> {
    r.record(Write::RecordDone { uid: r.plan.uid, rollout: r.plan.rollout, state: r.state.clone() }).await.map(|_| ())
}

/// The ModelDeployment is being deleted: its objects either belong to it, and go with it, or stay.
pub async fn remove(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let (cluster, spec) = (&r.context.cluster, &r.plan.spec);
    for service in cluster.list::<Service>(r.lease, &spec.namespace, &spec.name).await? {
        cluster.own(r.lease, &service, &r.plan).await?;
    }
    for deployment in cluster.list::<Deployment>(r.lease, &spec.namespace, &spec.name).await? {
        cluster.own(r.lease, &deployment, &r.plan).await?;
    }
    r.record(Write::RecordRemoved { uid: r.plan.uid, rollout: r.plan.rollout }).await.map(|_| ())
}
