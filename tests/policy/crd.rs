//! What the API server refuses of a ModelDeployment, and what it fills in.

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use palisade::crd::ModelDeployment;
use serde_json::{Value, json};

use crate::support::cluster::{Cluster, from_json, merge};

fn example(name: &str, more: Value) -> DynamicObject {
    let mut object = json!({
        "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name},
        "spec": {
            "model": {"name": "churn", "version": 1},
            "template": {"spec": {"containers": [{"name": "model", "image": "churn:1", "resources": {"limits": {"cpu": 1}}}]}},
            "service": {"port": 8080},
        },
    });
    merge(&mut object, &more);
    from_json(object)
}

/// Untyped: the tests send what the types could not express.
fn untyped(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<ModelDeployment>(&()))
}

#[tokio::test]
async fn what_is_left_out_gets_the_documented_defaults() {
    let cluster = Cluster::shared();
    let (client, namespace) = (cluster.admin().await, cluster.namespace("crd").await);
    let created = untyped(&client, &namespace).create(&PostParams::default(), &example("churn", json!({}))).await;
    let created = created.expect("the example is accepted");
    let mut spec = created.data["spec"].clone();
    assert_eq!(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"], 1, "nothing is dropped");
    for given in ["template", "model", "service"] {
        merge(&mut spec, &json!({given: null}));
    }
    assert_eq!(
        spec,
        json!({
            "replicas": 1, "paused": false, "revisionHistoryLimit": 2, "deletionPolicy": "Undeploy",
            "strategy": {"type": "BlueGreen", "drainSeconds": 10}, "lease": {"ttl": "30s"},
            "timeouts": {"verify": "1m", "ready": "1h"},
        })
    );
    let typed: Api<ModelDeployment> = Api::namespaced(client, &namespace);
    typed.get("churn").await.expect("what the server accepts can be read");
}

#[tokio::test]
async fn a_mistake_in_a_spec_is_refused_with_the_field_and_the_reason() {
    let cluster = Cluster::shared();
    let api = untyped(&cluster.admin().await, &cluster.namespace("crd").await);
    let long = "x".repeat(254);
    let cases = [
        (json!({"spec": {"model": {"alias": "champion"}}}), "give exactly one of model.version and model.alias"),
        (json!({"spec": {"model": {"version": null}}}), "give exactly one of model.version and model.alias"),
        (json!({"spec": {"model": {"version": 0}}}), "spec.model.version"),
        (json!({"spec": {"model": {"version": "1"}}}), "spec.model.version"),
        (json!({"spec": {"model": {"name": "a/b"}}}), "spec.model.name"),
        (json!({"spec": {"model": {"name": ""}}}), "spec.model.name"),
        (json!({"spec": {"model": {"name": long}}}), "spec.model.name"),
        (json!({"spec": {"model": {"name": "' OR 1=1 --"}}}), "spec.model.name"),
        (
            json!({"spec": {"model": {"version": null, "alias": "champion"}, "promoteAlias": "champion"}}),
            "promoteAlias may not be",
        ),
        (json!({"spec": {"promoteAlias": "a b"}}), "spec.promoteAlias"),
        (json!({"spec": {"artifact": {"digest": "sha256:12"}}}), "spec.artifact.digest"),
        (json!({"spec": {"artifact": {"digest": "A".repeat(64)}}}), "spec.artifact.digest"),
        (json!({"spec": {"replicas": -1}}), "spec.replicas"),
        (json!({"spec": {"replicas": 4_294_967_296i64}}), "spec.replicas"),
        (json!({"spec": {"template": null}}), "spec.template"),
        (json!({"spec": {"template": {"spec": null}}}), "spec.template.spec"),
        (json!({"spec": {"service": {"port": 0}}}), "spec.service.port"),
        (json!({"spec": {"service": {"port": 65536}}}), "spec.service.port"),
        (json!({"spec": {"service": null}}), "spec.service"),
        (json!({"spec": {"strategy": {"type": "Canary"}}}), "spec.strategy.type"),
        (json!({"spec": {"strategy": {"drainSeconds": 86401}}}), "spec.strategy.drainSeconds"),
        (json!({"spec": {"lease": {"ttl": "4s"}}}), "lease.ttl must be from 5s to 1h"),
        (json!({"spec": {"lease": {"ttl": "3601s"}}}), "lease.ttl must be from 5s to 1h"),
        (json!({"spec": {"lease": {"ttl": "soon"}}}), "spec.lease.ttl"),
        (json!({"spec": {"lease": {"ttl": 30}}}), "spec.lease.ttl"),
        (json!({"spec": {"lease": {"ttl": "99999999999999999999h"}}}), "spec.lease.ttl"),
        (json!({"spec": {"timeouts": {"verify": "0s"}}}), "timeouts.verify must be from 1s to 24h"),
        (json!({"spec": {"timeouts": {"ready": "169h"}}}), "timeouts.ready must be from 1s to 168h"),
        (json!({"spec": {"revisionHistoryLimit": 51}}), "spec.revisionHistoryLimit"),
        (json!({"spec": {"deletionPolicy": "Delete"}}), "spec.deletionPolicy"),
        (json!({"metadata": {"name": "a".repeat(51)}}), "metadata.name must be at most 50 characters"),
        (json!({"metadata": {"name": "1churn"}}), "metadata.name must be at most 50 characters"),
        (json!({"metadata": {"name": "churn.v1"}}), "metadata.name must be at most 50 characters"),
    ];
    for (more, says) in cases {
        let answer = api.create(&PostParams::default(), &example("churn", more.clone())).await;
        let error = answer.err().unwrap_or_else(|| panic!("it was ACCEPTED: {more}")).to_string();
        assert!(error.contains(says), "{more}: {error}");
    }
    let unbroken = example(&"a".repeat(50), json!({"spec": {"lease": {"ttl": "1h"}, "promoteAlias": "champion"}}));
    api.create(&PostParams::default(), &unbroken).await.expect("the limits themselves are accepted");
}

/// A status as the controller writes it.
fn status(revision: i64, token: i64, owner: &str) -> Value {
    json!({"revision": revision, "fencingToken": token, "owner": owner, "conditions": [{
        "type": "Ready", "status": "False", "observedGeneration": 1, "reason": "Waiting", "message": "m",
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    }]})
}

#[tokio::test]
async fn a_status_only_goes_forward() {
    let cluster = Cluster::shared();
    let api = untyped(&cluster.admin().await, &cluster.namespace("crd").await);
    api.create(&PostParams::default(), &example("churn", json!({}))).await.expect("it is accepted");
    let params = PatchParams::default();
    let write = async |status: Value| {
        api.patch_status("churn", &params, &Patch::Merge(json!({"status": status}))).await.map(drop)
    };
    let first = status(10, 20, "a");
    let incomplete = write(json!({"owner": "a", "revision": 1})).await.expect_err("without a token");
    assert!(incomplete.to_string().contains("status.fencingToken"), "{incomplete}");
    write(first.clone()).await.expect("the first one is accepted");
    for (what, status) in [
        ("an older revision", status(9, 20, "b")),
        ("an older revision with a newer token", status(9, 21, "b")),
        ("the same revision, changed", status(10, 20, "b")),
        ("the same revision with a newer token", status(10, 21, "a")),
        ("an older token", status(11, 19, "a")),
        ("no revision", json!({"revision": null, "owner": "b"})),
        ("no token", json!({"revision": 11, "fencingToken": null})),
        ("no status", Value::Null),
        ("an empty one", json!({"revision": null, "fencingToken": null, "owner": null, "conditions": null})),
    ] {
        let error = write(status).await.err().unwrap_or_else(|| panic!("{what} was ACCEPTED")).to_string();
        let told = ["this writer has been replaced", "status.revision", "status.fencingToken"];
        assert!(told.iter().any(|part| error.contains(part)), "{what}: {error}");
        assert_eq!(api.get("churn").await.expect("it is there").data["status"], first, "after {what}");
    }
    for status in [json!(null), json!({})] {
        let mut whole = api.get("churn").await.expect("it is there");
        whole.data["status"] = status;
        api.replace_status("churn", &PostParams::default(), &whole).await.expect_err("a replace without the status");
    }
    write(first.clone()).await.expect("the same once more");
    write(status(11, 20, "b")).await.expect("a newer revision under the same token");
    write(status(12, 25, "c")).await.expect("a newer revision under a newer token");
}

#[tokio::test]
async fn a_changed_spec_keeps_the_status_and_needs_no_revision() {
    let cluster = Cluster::shared();
    let api = untyped(&cluster.admin().await, &cluster.namespace("crd").await);
    api.create(&PostParams::default(), &example("churn", json!({}))).await.expect("it is accepted");
    let patch = Patch::Merge(json!({"status": status(10, 20, "a")}));
    api.patch_status("churn", &PatchParams::default(), &patch).await.expect("a status");
    let spec = json!({"spec": {"model": {"version": 2}}, "status": status(99, 99, "nobody")});
    let changed = api.patch("churn", &PatchParams::default(), &Patch::Merge(spec)).await.expect("a changed spec");
    assert_eq!(changed.data["status"], status(10, 20, "a"));
    assert_eq!(changed.metadata.generation, Some(2));
}

#[tokio::test]
async fn kubectl_get_shows_what_is_served_and_by_whom() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("crd").await;
    let api = untyped(&cluster.admin().await, &namespace);
    api.create(&PostParams::default(), &example("churn", json!({}))).await.expect("it is accepted");
    let mut status = status(10, 12_884_901_889, "worker-a");
    let pinned = json!({"resolved": {"model": "churn", "version": 2, "digest": "sha256:0"}, "serving": {
        "model": "churn", "version": 1, "revision": "5d1", "since": "2024-01-01T00:00:00Z",
    }});
    merge(&mut status, &pinned);
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status("churn", &PatchParams::default(), &patch).await.expect("a status");
    let output = cluster.kubectl(&["get", "mdep", "-n", &namespace]);
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "MODEL", "DESIRED", "SERVING", "READY", "TOKEN", "OWNER", "AGE"]);
    assert_eq!(rows[1][..7], ["churn", "churn", "2", "1", "False", "12884901889", "worker-a"]);
}

#[tokio::test]
async fn the_example_is_accepted_and_can_be_read() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("crd").await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/modeldeployment.yaml");
    let output = cluster.kubectl(&["apply", "--namespace", &namespace, "--filename", file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The API server says so when it does not know a field or a format.
    assert!(!String::from_utf8_lossy(&output.stderr).contains("Warning"), "{output:?}");
    let typed: Api<ModelDeployment> = Api::namespaced(cluster.admin().await, &namespace);
    assert_eq!(typed.get("churn").await.expect("it is there").spec.promote_alias.as_deref(), Some("champion"));
}
