//! Objects as they are watched: a ModelDeployment without its spec, and without what anybody may nest as deep as they like.
//!
//! `managedFields` repeats the field names of the spec: whoever nests a pod template 150 levels deep makes an object whose
//! *metadata* no JSON parser with a limit reads. One such object must not stop the watch of all others. So only the fields
//! that matter are read; the rest is skipped, which needs no stack.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::crd::{ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus};
use crate::manifests::names::{DEPLOYMENT_LABEL, REVISION_LABEL};

/// A ModelDeployment, as it is watched.
pub type Meta = Thin<ModelDeployment, true>;

/// An object of kind `K`, of which little is kept; with `METADATA`, only its metadata is asked for.
#[derive(Clone, Debug)]
pub struct Thin<K, const METADATA: bool> {
    /// Name, namespace, UID, versions, deletion, finalizers, Palisade's labels.
    pub metadata: ObjectMeta,
    /// A Service's.
    pub selector: Option<BTreeMap<String, String>>,
    kind: PhantomData<fn() -> K>,
}

impl<K, const METADATA: bool> Resource for Thin<K, METADATA>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn metadata_api() -> bool {
        METADATA
    }

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de, K, const METADATA: bool> Deserialize<'de> for Thin<K, METADATA> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Object {
            metadata: Fields,
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            selector: Option<BTreeMap<String, String>>,
        }
        // Of a ModelDeployment that is read whole, the spec is nobody's business here.
        if METADATA {
            let Watched { metadata } = Watched::deserialize(deserializer)?;
            return Ok(Self { metadata: metadata.into(), selector: None, kind: PhantomData });
        }
        let Object { metadata, spec } = Object::deserialize(deserializer)?;
        Ok(Self { metadata: metadata.into(), selector: spec.selector, kind: PhantomData })
    }
}

#[derive(Deserialize)]
struct Watched {
    #[serde(default)]
    metadata: Fields,
}

/// Reads a whole ModelDeployment, but of its metadata only what matters.
pub(super) fn read(text: &str) -> serde_json::Result<ModelDeployment> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Fields,
        spec: ModelDeploymentSpec,
        status: Option<ModelDeploymentStatus>,
    }
    let Object { metadata, spec, status } = serde_json::from_str(text)?;
    Ok(ModelDeployment { metadata: metadata.into(), spec, status })
}

/// The fields of an object's metadata that matter here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Fields {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    // A watch's bookmarks are told by them.
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Fields> for ObjectMeta {
    fn from(fields: Fields) -> Self {
        let Fields { name, namespace, uid, resource_version, generation, deletion_timestamp, .. } = fields;
        let Fields { finalizers, labels, annotations, .. } = fields;
        let ours = |mut map: BTreeMap<String, String>| {
            map.retain(|label, _| [DEPLOYMENT_LABEL, REVISION_LABEL].contains(&&**label));
            map
        };
        // Users keep whole manifests in annotations; none of it is worth memory here.
        let annotations = annotations.filter(|map| map.contains_key("k8s.io/initial-events-end"));
        Self {
            name,
            namespace,
            uid,
            resource_version,
            generation,
            deletion_timestamp,
            finalizers,
            labels: labels.map(ours).filter(|map| !map.is_empty()),
            annotations,
            ..Self::default()
        }
    }
}

/// A ModelDeployment whose spec cannot be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Outline {
    pub metadata: ObjectMeta,
    pub status: Option<ModelDeploymentStatus>,
    /// Why the rest cannot be read.
    pub why: String,
}

impl Outline {
    /// Reads what can be read of `text`; `None` if that is too little.
    pub(super) fn read(text: &str, why: String) -> Option<Self> {
        #[derive(Deserialize)]
        struct Status {
            status: Option<ModelDeploymentStatus>,
        }
        let Meta { metadata, .. } = serde_json::from_str(text).ok()?;
        metadata.name.as_ref()?;
        let status = serde_json::from_str::<Status>(text).ok().and_then(|object| object.status);
        Some(Self { metadata, status, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_nested_too_deeply_is_read_as_far_as_it_matters() {
        let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
        let text = format!(
            r#"{{"apiVersion":"palisade.dev/v1alpha1","kind":"ModelDeployment","metadata":{{"managedFields":[{{"fieldsV1":{deep}}}],
                "name":"churn","uid":"u","finalizers":["f"]}},"spec":{deep},"status":{{"revision":7,"fencingToken":3}}}}"#
        );
        let outline = Outline::read(&text, String::new()).expect("it can be read");
        assert_eq!((outline.metadata.name.as_deref(), outline.metadata.uid.as_deref()), (Some("churn"), Some("u")));
        assert_eq!(outline.status.map(|status| status.revision), Some(7));
        assert!(Outline::read("{}", String::new()).is_none());
    }
}
