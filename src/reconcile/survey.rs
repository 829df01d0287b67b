//! All ModelDeployments, compared with the registry in bulk: when this replica begins to lead, when a watch begins anew, and
//! now and again as a net under lost triggers.
//!
//! ```text
//! a page of CRs ─▶ one query for all of them ─▶ nothing to do (most, and nearly always)
//!                                           └─▶ a look of its own: whatever is written is written there
//! ```
//!
//! A survey writes nothing and decides nothing: it only saves looks, each of which reads its CR anew.

use std::time::Duration;

use futures::FutureExt;
use kube::Resource;
use kube::api::ListParams;
use kube::core::Request;
use kube::runtime::reflector::ObjectRef;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::apply::Applied;
use super::context::{Context, Meta};
use super::decide::{Decision, decide};
use super::{Error, LOOK_AGAIN, call, drift, observe, outline, report, validate};
use crate::crd::ModelDeployment;
use crate::retry::{around, jitter};
use crate::store::Observed;

/// CRs that are read at once.
const PAGE: u32 = 250;
/// How long to wait for the watches before the first survey: without them it would have to be repeated.
const PATIENCE: Duration = Duration::from_secs(5);

/// Surveys at once, and then now and again, or when asked to.
pub(super) async fn survey(context: &Context) {
    let _ = tokio::time::timeout(PATIENCE, watches(context)).await;
    let mut failures = 0_u32;
    loop {
        // What was asked for until now is answered by this one.
        let _ = context.survey_hint.notified().now_or_never();
        let wait = match once(context).await {
            Ok(()) => {
                failures = 0;
                around(LOOK_AGAIN)
            }
            Err(error) => {
                tracing::warn!("not all ModelDeployments could be surveyed, trying again: {error}");
                failures = failures.saturating_add(1);
                let cap = Duration::from_millis(500).saturating_mul(1 << failures.min(6));
                Duration::from_millis(100) + jitter(cap)
            }
        };
        tokio::select! {
            () = context.survey_hint.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn watches(context: &Context) {
    let _ = context.crs.wait_until_ready().await;
    context.objects.complete().await;
}

/// A page of a list. An item is parsed by itself: one that cannot be read hurts nobody else.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageMeta {
    #[serde(rename = "continue")]
    next: Option<String>,
}

async fn once(context: &Context) -> Result<(), Error> {
    let mut text = list(context, None).await?;
    loop {
        let Page { metadata, items } = serde_json::from_str(&text).map_err(|e| silent(&e))?;
        let Some(next) = metadata.next.filter(|token| !token.is_empty()) else {
            return page(context, &items).await;
        };
        // While the API server gets the next one, the registry is asked about this one.
        let ((), following) = futures::try_join!(page(context, &items), list(context, Some(next)))?;
        text = following;
    }
}

const DOING: &str = "list the ModelDeployments";

fn silent(why: &dyn std::fmt::Display) -> Error {
    Error::Silent { doing: DOING, why: why.to_string() }
}

async fn list(context: &Context, next: Option<String>) -> Result<String, Error> {
    let params = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
    let request = Request::new(ModelDeployment::url_path(&(), context.settings.watch_namespace.as_deref()))
        .list(&params)
        .map_err(|e| silent(&e))?;
    call(DOING, "list_crs", context.client.request_text(request)).await
}

async fn page(context: &Context, items: &[&RawValue]) -> Result<(), Error> {
    let mut objects = Vec::with_capacity(items.len());
    for item in items {
        match outline::read(item.get()) {
            Ok(object) => {
                let key = key_of(&object.metadata);
                // Before the registry is asked, as in a look.
                context.remember(&key, |memory| memory.model.clone_from(&object.spec.model.name));
                objects.push((key, object));
            }
            Err(_) => {
                if let Ok(object) = serde_json::from_str::<Meta>(item.get()) {
                    context.trigger(key_of(&object.metadata)).await;
                }
            }
        }
    }
    let observed = observe::registry_of_all(context, objects.iter().map(|(_, object)| object)).await?;
    for ((key, object), observed) in objects.iter().zip(observed) {
        if rests(context, key, object, observed) {
            context.metrics.surveyed();
        } else {
            context.trigger(key.clone()).await;
        }
    }
    Ok(())
}

fn key_of(metadata: &kube::api::ObjectMeta) -> ObjectRef<Meta> {
    let name = metadata.name.as_deref().unwrap_or_default();
    ObjectRef::new(name).within(metadata.namespace.as_deref().unwrap_or_default())
}

/// Whether a look at it would find nothing to do.
fn rests(context: &Context, key: &ObjectRef<Meta>, object: &ModelDeployment, observed: Observed) -> bool {
    let metadata = &object.metadata;
    if metadata.deletion_timestamp.is_some() || !observe::has_finalizer(metadata) {
        return false;
    }
    if !drift::settled(context, key, object, &observed) {
        return false;
    }
    let Decision::Keep = decide(object, &observed, validate::validate(object), false) else { return false };
    context.remember(key, |memory| memory.guarded = false);
    if report::says_something_new(object, &Applied::kept(observed)) {
        return false;
    }
    context.stands(key, object.status.as_ref().map(|status| &*status.conditions).unwrap_or_default());
    true
}
