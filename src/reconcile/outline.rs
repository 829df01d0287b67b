//! A ModelDeployment without its spec, and without what anybody may nest as deep as they like.
//!
//! `managedFields` repeats the field names of the spec: whoever nests a pod template 150 levels deep makes an object whose
//! *metadata* no JSON parser with a limit reads. One such object must not stop the watch of all others. So only the fields
//! that matter are read; the rest is skipped, which needs no stack.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::crd::{ModelDeployment, ModelDeploymentStatus};

/// A ModelDeployment, as it is watched.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Name, namespace, UID, versions, deletion, finalizers.
    pub metadata: ObjectMeta,
}

impl Resource for Meta {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn metadata_api() -> bool {
        true
    }

    fn kind(dt: &()) -> Cow<'_, str> {
        ModelDeployment::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        ModelDeployment::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        ModelDeployment::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        ModelDeployment::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for Meta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: Fields,
        }
        let Object { metadata } = Object::deserialize(deserializer)?;
        Ok(Self { metadata: metadata.into() })
    }
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
    // A watch's bookmarks are told by them.
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Fields> for ObjectMeta {
    fn from(fields: Fields) -> Self {
        let Fields { name, namespace, uid, resource_version, generation, deletion_timestamp, finalizers, annotations } =
            fields;
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
        let Meta { metadata } = serde_json::from_str(text).ok()?;
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
