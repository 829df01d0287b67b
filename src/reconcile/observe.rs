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
use crate::store::{Observed, Question};

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
    Ok(context.store.observe(question(object)).await?)
}

/// The same of many, in their order, by one query.
pub(super) async fn registry_of_all<'a>(
    context: &Context,
    objects: impl Iterator<Item = &'a ModelDeployment>,
) -> Result<Vec<Observed>, Error> {
    Ok(context.store.observe_all(objects.map(question).collect()).await?)
}

fn question(object: &ModelDeployment) -> Question {
    let model = &object.spec.model;
    Question {
        deployment: decide::resource(object),
        model: model.name.clone(),
        version: model.version,
        // Both are given only where the schema is not enforced: then validation says so.
        alias: model.alias.clone().filter(|_| model.version.is_none()),
        promote: object.spec.promote_alias.clone(),
    }
}

/// What the registry knows of a resource whose CR is gone, unreadable, or going.
pub(super) async fn bare(context: &Context, resource: &str) -> Result<Observed, Error> {
    Ok(context.store.observe(Question { deployment: resource.to_owned(), ..Question::default() }).await?)
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
