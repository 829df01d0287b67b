//! Plans without a CR: one whose finalizer was taken off by hand, or while the database was out of reach.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::context::{Context, key_of, resource_of};
use super::finalize::{drop_plan, is_removed, removal};
use super::lead::Tenure;
use super::observe::{self, Read};
use super::{Error, context};
use crate::retry::around;

/// How often plans and CRs are compared.
const INTERVAL: Duration = Duration::from_secs(60);

/// Sweeps at once, and then now and again, or when asked to.
pub(super) async fn sweep(context: &Context, tenure: &Tenure) {
    // Without the CRs, every plan would look like an orphan. (Each is asked for again before anything is done.)
    if context.crs.wait_until_ready().await.is_err() {
        return std::future::pending().await;
    }
    loop {
        if let Err(error) = once(context, tenure).await {
            tracing::warn!("plans without a ModelDeployment could not be swept, trying again: {error}");
        }
        tokio::select! {
            () = context.sweep_hint.notified() => tokio::time::sleep(around(Duration::from_millis(200))).await,
            () = tokio::time::sleep(around(INTERVAL)) => {}
        }
    }
}

async fn once(context: &Context, tenure: &Tenure) -> Result<(), Error> {
    let plans = context.store.plans().await?;
    let known: HashMap<String, Option<Uuid>> = context
        .crs
        .state()
        .iter()
        .map(|object| {
            let uid = object.metadata.uid.as_deref().and_then(|uid| uid.parse().ok());
            (resource_of(&kube::runtime::reflector::ObjectRef::from_obj(&**object)), uid)
        })
        .collect();
    for plan in plans {
        // One that was made anew takes the plan over by itself.
        if known.contains_key(&plan.resource) {
            continue;
        }
        let Some(key) = key_of(&plan.resource) else { continue };
        if context.watches(key.namespace.as_deref().unwrap_or_default()) {
            orphan(context, tenure, &key).await?;
        }
    }
    Ok(())
}

/// One plan that seems to have lost its CR.
async fn orphan(
    context: &Context,
    tenure: &Tenure,
    key: &kube::runtime::reflector::ObjectRef<context::Meta>,
) -> Result<(), Error> {
    if !matches!(observe::read(context, key).await?, Read::Gone) {
        return Ok(());
    }
    let resource = resource_of(key);
    let observed = observe::bare(context, &resource).await?;
    let Some(plan) = &observed.plan else { return Ok(()) };
    if !plan.removed {
        tracing::info!(resource, fence = %tenure.lease.token(), "its ModelDeployment is gone: planning the removal");
        removal(tenure, &resource, plan, plan.generation, None).await?;
    } else if is_removed(plan, &observed) && drop_plan(tenure, &resource, plan.uid).await? {
        tracing::info!(resource, fence = %tenure.lease.token(), "plan swept: its ModelDeployment is gone");
        context.forget(key);
    }
    Ok(())
}
