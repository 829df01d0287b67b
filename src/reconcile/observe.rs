//! What there is: the CR, read anew, and the registry's view of it, by one query.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::{GetParams, ObjectMeta};
use kube::core::Request;
use kube::runtime::reflector::ObjectRef;

use super::context::Context;
use super::outline::{Meta, Outline};
use super::{Error, call, decide};
use crate::crd::ModelDeployment;
use crate::store::Observed;

/// A CR, as far as it could be read.
pub(super) enum Read {
    /// It is not there.
    Gone,
    /// It is there, and this program cannot read its spec: the CRD was older, or looser, when it was written.
    Unreadable(Box<Outline>),
    /// It is there.
    Object(Box<ModelDeployment>),
}

/// Reads a CR: from etcd, not from a cache, so that its resourceVersion is worth a write.
pub(super) async fn read(context: &Context, key: &ObjectRef<Meta>) -> Result<Read, Error> {
    const DOING: &str = "read the ModelDeployment";
    let url = ModelDeployment::url_path(&(), key.namespace.as_deref());
    let request = Request::new(url)
        .get(&key.name, &GetParams::default())
        .map_err(|e| Error::Silent { doing: DOING, why: e.to_string() })?;
    let text = match call(DOING, "get_cr", context.client.request_text(request)).await {
        Ok(text) => text,
        Err(Error::Refused { status, .. }) if status.is_not_found() => return Ok(Read::Gone),
        Err(error) => return Err(error),
    };
    match serde_json::from_str::<ModelDeployment>(&text) {
        Ok(object) => Ok(Read::Object(Box::new(object))),
        Err(why) => match Outline::read(&text, why.to_string()) {
            Some(outline) => Ok(Read::Unreadable(Box::new(outline))),
            None => Err(Error::Silent { doing: DOING, why: why.to_string() }),
        },
    }
}

/// What the registry knows of a CR, and of what its spec names.
pub(super) async fn registry(context: &Context, object: &ModelDeployment) -> Result<Observed, Error> {
    let model = &object.spec.model;
    // Both are given only where the schema is not enforced: then validation says so.
    let alias = model.alias.as_deref().filter(|_| model.version.is_none());
    let promote = object.spec.promote_alias.as_deref();
    Ok(context.store.observe(&decide::resource(object), &model.name, model.version, alias, promote).await?)
}

/// What the registry knows of a resource whose CR is gone, unreadable, or going.
pub(super) async fn bare(context: &Context, resource: &str) -> Result<Observed, Error> {
    Ok(context.store.observe(resource, "", None, None, None).await?)
}

/// Whether our finalizer is on it.
pub(super) fn has_finalizer(metadata: &ObjectMeta) -> bool {
    let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|f| f == crate::manifests::names::FINALIZER)
}

/// A reference to a CR, for events about it.
pub(super) fn reference(metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(ModelDeployment::api_version(&()).into_owned()),
        kind: Some(ModelDeployment::kind(&()).into_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
