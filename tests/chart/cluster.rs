//! A real API server is asked what it thinks of everything that is rendered: schemas, strictly; CEL; and the restricted
//! pod security standard, which it enforces.

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use serde_json::{Value, json};

use super::render::{cases, rendered};
use crate::support::cluster::{Cluster, from_json};
use crate::support::helm::name_of;

/// A namespace whose pods must be restricted.
async fn restricted(cluster: &Cluster) -> String {
    let namespace = cluster.namespace("restricted").await;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cluster.admin().await);
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(labels)).await.expect("labelled");
    namespace
}

/// What the API server says to an object, without making it.
pub async fn asked(cluster: &Cluster, object: &Value) -> Result<(), String> {
    let mut params = PatchParams::apply("chart-test").force().dry_run();
    params.field_validation = Some(ValidationDirective::Strict);
    let object: DynamicObject = from_json(object.clone());
    let types = object.types.clone().expect("kind and version");
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types).expect("a version"));
    let client = cluster.admin().await;
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let name = object.metadata.name.clone().expect("a name");
    api.patch(&name, &params, &Patch::Apply(&object)).await.map(drop).map_err(|error| error.to_string())
}

fn moved(objects: Vec<Value>, namespace: &str) -> Vec<Value> {
    let text = serde_json::to_string(&objects).expect("JSON").replace("palisade-system", namespace);
    serde_json::from_str(&text).expect("JSON")
}

/// The pods that its templates would make.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let pods = objects.iter().filter_map(|object| {
        let template = match object["kind"].as_str() {
            Some("Pod") => object,
            Some(_) => object.pointer("/spec/template").filter(|template| template["spec"]["containers"].is_array())?,
            None => return None,
        };
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked"}, "spec": template["spec"]});
        // A StatefulSet's volumes are claims.
        for claim in object.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array).into_iter().flatten() {
            let volume = json!({"name": claim["metadata"]["name"], "emptyDir": {}});
            pod["spec"]["volumes"].as_array_mut().expect("volumes").push(volume);
        }
        pod["metadata"]["labels"] = template["metadata"]["labels"].clone();
        Some((name_of(object), pod))
    });
    pods.collect()
}

async fn pod_is_let_in(cluster: &Cluster, namespace: &str, pod: &Value) -> Result<(), String> {
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(cluster.admin().await, namespace);
    let params = PostParams { dry_run: true, field_manager: None };
    api.create(&params, &from_json(pod.clone())).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn the_api_server_takes_every_object_and_restricted_namespaces_every_pod() {
    let cluster = Cluster::shared();
    let namespace = restricted(cluster).await;
    let (mut taken, mut pods_seen, mut problems) = (0, 0, Vec::new());
    for (case, values) in cases() {
        let objects = moved(rendered(&values), &namespace);
        // monitoring.rs asks about these.
        let others = |object: &&Value| object["apiVersion"] != "monitoring.coreos.com/v1";
        for object in objects.iter().filter(others) {
            let mut object = object.clone();
            if object["metadata"]["namespace"].is_null() && object["kind"] == "ConfigMap" {
                object["metadata"]["namespace"] = namespace.clone().into();
            }
            match asked(cluster, &object).await {
                Ok(()) => taken += 1,
                Err(error) => problems.push(format!("{case}: {}: {error}", name_of(&object))),
            }
            // A pod needs its account.
            if object["kind"] == "ServiceAccount" {
                cluster.apply(&[serde_yaml::to_value(&object).expect("YAML")]).await;
            }
        }
        for (name, pod) in pods(&objects) {
            pods_seen += 1;
            if let Err(error) = pod_is_let_in(cluster, &namespace, &pod).await {
                problems.push(format!("{case}: the pod of {name}: {error}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(taken > 100 && pods_seen > 4 * 4, "{taken} objects, {pods_seen} pods");
}

/// The test above could not fail otherwise.
#[tokio::test]
async fn a_pod_that_asks_for_more_and_a_field_that_nobody_knows_are_refused() {
    let cluster = Cluster::shared();
    let namespace = restricted(cluster).await;
    let (_, minimal) = cases().into_iter().find(|(name, _)| name == "minimal").expect("a case");
    let objects = moved(rendered(&minimal), &namespace);
    for account in objects.iter().filter(|object| object["kind"] == "ServiceAccount") {
        cluster.apply(&[serde_yaml::to_value(account).expect("YAML")]).await;
    }
    let (_, pod) = pods(&objects).into_iter().next().expect("a pod");
    for (pointer, value) in [
        ("/spec/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
        ("/spec/containers/0/securityContext/capabilities", json!({"add": ["NET_RAW"]})),
        ("/spec/securityContext/runAsNonRoot", json!(false)),
        ("/spec/securityContext/seccompProfile", json!({"type": "Unconfined"})),
    ] {
        let mut more = pod.clone();
        *more.pointer_mut(pointer).expect(pointer) = value;
        let error = pod_is_let_in(cluster, &namespace, &more).await.expect_err(pointer);
        assert!(error.contains("violates PodSecurity"), "{pointer}: {error}");
    }
    let mut deployment = objects.iter().find(|object| object["kind"] == "Deployment").expect("one").clone();
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = json!({});
    let error = asked(cluster, &deployment).await.expect_err("a misspelled field");
    assert!(error.contains("livenesProbe"), "{error}");
}

/// The root of a container is read-only, and its token is there only where it is used. No standard asks for either.
#[test]
fn every_container_has_a_read_only_root_and_only_who_asks_the_api_server_has_a_token() {
    for (case, values) in cases() {
        for (name, pod) in pods(&rendered(&values)) {
            let spec = &pod["spec"];
            for container in spec["containers"].as_array().expect("containers") {
                assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{case}: {name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{case}: {name}");
            }
            let asks = ["-controller", "-worker", "-doctor"].iter().any(|part| name.ends_with(part));
            assert_eq!(spec["automountServiceAccountToken"], asks, "{case}: {name}");
            assert_ne!(spec["serviceAccountName"], "default", "{case}: {name}");
        }
    }
}
