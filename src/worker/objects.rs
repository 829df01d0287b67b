//! The objects that a worker writes, built from a plan. Pure.

use serde_json::{Map, Value, json};

use crate::lease::Fence;
use crate::manifests::names::{DEPLOYMENT_LABEL, FENCE_ANNOTATION, REVISION_LABEL};
use crate::plan::Spec;

/// A version's Deployment, for a server-side apply. Without a fence it is only good for a dry run.
#[must_use]
pub fn deployment(spec: &Spec, owner_uid: &str, replicas: i32, fence: Option<Fence>) -> Value {
    let labels = labels(spec);
    let mut metadata = metadata(spec, &spec.deployment_name(), owner_uid, fence);
    metadata.insert("labels".into(), labels.clone());
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": template(spec),
        },
    })
}

/// The Service, which is never deleted: traffic moves by its selector.
#[must_use]
pub fn service(spec: &Spec, owner_uid: &str, fence: Fence) -> Value {
    let mut metadata = metadata(spec, &spec.name, owner_uid, Some(fence));
    metadata.insert("labels".into(), json!({ DEPLOYMENT_LABEL: spec.name }));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": labels(spec),
            "ports": [{ "name": "http", "port": spec.port, "targetPort": spec.port, "protocol": "TCP" }],
        },
    })
}

/// The Service before anything serves: it selects nothing. It is made before the first Deployment, because admission holds
/// the creation of a Deployment, which has no fence of its own yet, against the fence of the Service.
#[must_use]
pub fn anchor(spec: &Spec, owner_uid: &str, fence: Fence) -> Value {
    let mut service = service(spec, owner_uid, fence);
    service["spec"]["selector"][REVISION_LABEL] = "none".into();
    service
}

fn labels(spec: &Spec) -> Value {
    json!({ DEPLOYMENT_LABEL: spec.name, REVISION_LABEL: spec.revision() })
}

fn metadata(spec: &Spec, name: &str, owner_uid: &str, fence: Option<Fence>) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("name".into(), name.into());
    metadata.insert("namespace".into(), spec.namespace.clone().into());
    if let Some(fence) = fence {
        metadata.insert("annotations".into(), json!({ FENCE_ANNOTATION: fence.to_string() }));
    }
    if spec.owned {
        metadata.insert("ownerReferences".into(), json!([owner(spec, owner_uid)]));
    }
    metadata
}

/// The reference by which an object goes with its ModelDeployment. No `blockOwnerDeletion`: it would need a right on the
/// owner's finalizers, and the finalizer does that work.
#[must_use]
pub fn owner(spec: &Spec, uid: &str) -> Value {
    json!({ "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "name": spec.name, "uid": uid, "controller": true })
}

/// The user's pod template, with our labels, and the model's name, version, URI and digest in the environment of each
/// container and init container: one of these fetches the model.
fn template(spec: &Spec) -> Value {
    let mut template = spec.template.clone();
    // What is not an object is refused by the API server, in its own words, when the template is validated.
    let Some(object) = template.as_object_mut() else { return template };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let own = metadata.entry("labels").or_insert_with(|| json!({}));
        if let (Some(own), Value::Object(ours)) = (own.as_object_mut(), labels(spec)) {
            own.extend(ours);
        }
    }
    let Some(pod) = object.get_mut("spec").and_then(Value::as_object_mut) else { return template };
    let lists = pod.iter_mut().filter(|(field, _)| matches!(field.as_str(), "containers" | "initContainers"));
    let containers = lists.filter_map(|(_, list)| list.as_array_mut()).flatten();
    for container in containers.filter_map(Value::as_object_mut) {
        let env = container.entry("env").or_insert_with(|| json!([]));
        let Some(env) = env.as_array_mut() else { continue };
        // First, so that the user's own variables may refer to them.
        let ours = environment(spec);
        env.retain(|v| !ours.iter().any(|(name, _)| v.get("name").and_then(Value::as_str) == Some(name)));
        env.splice(0..0, ours.into_iter().map(|(name, value)| json!({ "name": name, "value": value })));
    }
    template
}

/// What a container is told of the model that it serves.
fn environment(spec: &Spec) -> [(&'static str, String); 4] {
    [
        ("PALISADE_MODEL_NAME", spec.model.clone()),
        ("PALISADE_MODEL_VERSION", spec.version.to_string()),
        ("PALISADE_MODEL_URI", spec.source.clone()),
        ("PALISADE_MODEL_DIGEST", spec.digest.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Token;
    use crate::plan::Strategy;

    fn spec() -> Spec {
        Spec {
            namespace: "team".into(),
            name: "churn".into(),
            model: "churn".into(),
            version: 3,
            source: "s3://models/churn/3".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            expected_digest: None,
            replicas: 2,
            template: json!({ "spec": { "containers": [{ "name": "server", "image": "x", "env": [{ "name": "A", "value": "1" }] }] } }),
            port: 8080,
            strategy: Strategy::BlueGreen,
            drain_seconds: 0,
            promote_alias: None,
            verify_timeout_ms: 1,
            ready_timeout_ms: 1,
            revision_history_limit: 2,
            owned: true,
        }
    }

    const FENCE: Fence = Fence { token: Token(7), sequence: 3 };

    #[test]
    fn the_model_reaches_every_container_and_init_container_before_the_users_own_variables() {
        let own = json!([{ "name": "server", "image": "x", "env": [{ "name": "A", "value": "1" }] }]);
        let template = json!({ "spec": { "containers": own.clone(), "initContainers": own } });
        let object = deployment(&Spec { template, ..spec() }, "u", 2, Some(FENCE));
        for list in ["containers", "initContainers"] {
            let env = object["spec"]["template"]["spec"][list][0]["env"].as_array().cloned().unwrap_or_default();
            let names: Vec<_> = env.iter().filter_map(|v| v["name"].as_str()).collect();
            assert_eq!(
                names,
                ["PALISADE_MODEL_NAME", "PALISADE_MODEL_VERSION", "PALISADE_MODEL_URI", "PALISADE_MODEL_DIGEST", "A"],
                "{list}"
            );
            assert_eq!(env[1]["value"], "3", "{list}");
        }
    }

    #[test]
    fn a_template_without_init_containers_gets_none() {
        assert_eq!(template(&spec())["spec"].as_object().map(Map::len), Some(1), "{}", template(&spec()));
    }

    #[test]
    fn selector_and_pods_carry_the_revision_and_the_object_its_fence() {
        let object = deployment(&spec(), "u", 2, Some(FENCE));
        assert_eq!(object["spec"]["selector"]["matchLabels"], object["spec"]["template"]["metadata"]["labels"]);
        assert_eq!(object["spec"]["selector"]["matchLabels"], service(&spec(), "u", FENCE)["spec"]["selector"]);
        assert_eq!(object["metadata"]["annotations"]["palisade.dev/fence"], "7/3");
    }

    #[test]
    fn another_version_or_template_is_another_revision_and_replicas_are_not() {
        let one = spec();
        assert_eq!(Spec { replicas: 9, drain_seconds: 5, ..spec() }.revision(), one.revision());
        assert_ne!(Spec { version: 4, ..spec() }.revision(), one.revision());
        assert_ne!(Spec { template: json!({}), ..spec() }.revision(), one.revision());
    }

    #[test]
    fn with_retain_nothing_belongs_to_the_modeldeployment() {
        assert!(service(&Spec { owned: false, ..spec() }, "u", FENCE)["metadata"].get("ownerReferences").is_none());
    }

    #[test]
    fn a_template_that_is_not_an_object_does_not_panic() {
        for template in [
            json!(null),
            json!(1),
            json!({ "spec": 1, "metadata": [] }),
            json!({ "spec": { "containers": [1, { "env": 2 }], "initContainers": "none" } }),
        ] {
            let _ = deployment(&Spec { template, ..spec() }, "u", 1, None);
        }
    }
}
