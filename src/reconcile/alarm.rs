//! What people are told while there is no epoch and only they can change that: an event, and every ModelDeployment's
//! status.
//!
//! No leader can write these statuses, for there are no leases without an epoch. Any replica does, by the resourceVersion
//! that it read, with the next revision: below those of the next epoch, so that whoever leads then writes over it. Each
//! replica says it once. If the status changes again, somebody leads, by another database perhaps, and has the last word.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::reflector::ObjectRef;
use tokio_util::sync::CancellationToken;

use super::context::{Context, Meta, resource_of};
use super::observe::{self, Read};
use super::report::{News, patch, publish};
use super::{Error, status};
use crate::clock::Clock;
use crate::manifests::names::EPOCH_OBJECT;

/// Tells the cluster's people when a person must see to the epoch, and has every ModelDeployment told.
pub(super) async fn alarm(context: Arc<Context>, stop: CancellationToken) {
    let mut attention = context.attention.subscribe();
    while let Some(Ok(())) = stop.run_until_cancelled(attention.changed()).await {
        let message = attention.borrow_and_update().as_ref().map(ToString::to_string);
        let Some(message) = message else {
            context.change_all(|memory| memory.told = None);
            continue;
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: Some(EPOCH_OBJECT.to_owned()),
            namespace: Some(context.settings.system_namespace.clone()),
            ..ObjectReference::default()
        };
        context.trigger_all();
        publish(&context, &about, &News::bad("NoEpoch", message)).await;
    }
}

/// Says in a CR's status that a person must see to the epoch, if that is so, and was not said yet.
pub(super) async fn tell(context: &Context, key: &ObjectRef<Meta>) -> Result<(), Error> {
    let attention = context.attention.borrow().clone();
    let Some(attention) = attention.filter(|attention| context.recall(key).told != Some(attention.cause)) else {
        return Ok(());
    };
    let (metadata, old) = match observe::read(context, key).await? {
        Read::Gone => return Ok(()),
        Read::Object(object) => (object.metadata, object.status.unwrap_or_default()),
        Read::Unreadable(outline) => (outline.metadata, outline.status.unwrap_or_default()),
    };
    let generation = metadata.generation.unwrap_or_default();
    let new = status::without_epoch(&old, generation, &attention.to_string(), Clock::wall());
    if old.conditions != new.conditions {
        patch(context, key, &metadata, &new).await?;
        tracing::debug!(resource = resource_of(key), revision = new.revision, "told that there is no epoch");
    }
    context.remember(key, |memory| memory.told = Some(attention.cause));
    Ok(())
}
