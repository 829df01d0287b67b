//! ModelDeployments that nobody should write: refused by the API server, or told about in the condition Stalled; and
//! whatever they are, nothing is planned for them, and nobody else notices.

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::cluster::wait_until;

fn container(more: Value) -> Value {
    let mut container = json!({"name": "model", "image": "registry.example/churn:1"});
    crate::support::cluster::merge(&mut container, &more);
    json!({"template": {"spec": {"containers": [container]}}})
}

#[tokio::test]
async fn what_the_schema_can_refuse_is_refused_at_apply() {
    let stage = Stage::new("hostile-api").await;
    let long = "n".repeat(300);
    for (name, spec) in [
        (&*"x".repeat(51), json!({})),
        ("1abc", json!({})),
        ("a", json!({"model": {"name": long}})),
        ("a", json!({"model": {"name": "churn'; DROP TABLE plan; --"}})),
        ("a", json!({"model": {"version": "one"}})),
        ("a", json!({"model": {"version": 9_223_372_036_854_775_807_i64}})),
        ("a", json!({"model": {"alias": "champion"}})),
        ("a", json!({"replicas": -1})),
        ("a", json!({"replicas": 1e12})),
        ("a", json!({"template": "a text"})),
        ("a", json!({"template": {"spec": []}})),
        ("a", json!({"service": {"port": 0}})),
        ("a", json!({"lease": {"ttl": "forever"}})),
        ("a", json!({"lease": {"ttl": "9999999999999999999h"}})),
        ("a", json!({"promoteAlias": "../../etc"})),
        ("a", json!({"deletionPolicy": "Explode"})),
    ] {
        let error = stage.try_create(name, spec.clone()).await.expect_err(&spec.to_string());
        assert!(matches!(&error, kube::Error::Api(status) if matches!(status.code, 400 | 422)), "{spec}: {error}");
    }
}

#[tokio::test]
async fn a_template_that_cannot_run_is_stalled_with_the_field_and_corrected_by_a_new_generation() {
    let stage = Stage::new("hostile-template").await;
    let replica = stage.replica("a").await;
    let reserved = json!({"template": {"metadata": {"labels": {"palisade.dev/deployment": "other"}}}});
    let mut crs = Vec::new();
    for (i, (spec, reason, field)) in [
        (json!({"template": {"spec": {"containers": []}}}), "InvalidSpec", "spec.template.spec.containers"),
        (json!({"template": {"spec": {"containers": {"a": 1}}}}), "InvalidSpec", "spec.template.spec.containers"),
        (json!({"template": {"spec": {"containers": ["x", 7, null]}}}), "InvalidSpec", "containers[0]"),
        (container(json!({"image": 7})), "InvalidSpec", "containers[0].image"),
        (reserved, "InvalidSpec", "palisade.dev/deployment"),
        (container(json!({"env": [{"name": "A", "value": "nul: \0"}]})), "InvalidSpec", "NUL"),
        (container(json!({"name": "Not A Name"})), "InvalidTemplate", "containers[0].name"),
        (container(json!({"resources": {"requests": {"cpu": "lots"}}})), "InvalidTemplate", "quantities"),
        (container(json!({"imag": "a typing error"})), "InvalidTemplate", "imag"),
        (container(json!({"ports": [{"containerPort": 99999}]})), "InvalidTemplate", "containerPort"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("churn-{i}");
        stage.create(&name, spec).await;
        crs.push((name, reason, field));
    }
    for (name, reason, field) in &crs {
        let status = stage.holds(name, "Stalled", reason).await;
        let message = status.last_error.expect("an error").message;
        assert!(message.contains(field), "{name}: {message}");
        assert!(!stage.has_plan(name).await, "{name}");
        stage.told(name, reason).await;
    }
    let containers = json!([{"name": "model", "image": "registry.example/churn:1"}]);
    stage.patch("churn-8", json!({"spec": {"template": {"spec": {"containers": containers}}}})).await;
    stage.planned("churn-8", "true").await;
    replica.stop().await;
}

// On threads of its own: kubectl keeps this one, and the replica must go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_be_read_hurts_nobody_else() {
    let stage = Stage::new("hostile-depth").await;
    // Deeper than this program reads JSON, and than anything that it could be meant for.
    let mut deep = json!("x");
    for _ in 0..150 {
        deep = json!({ "a": deep });
    }
    let spec = json!({"template": {"spec": {"containers": [{"name": "m", "image": "x"}], "deep": deep}}});
    // Its creation is answered with the object, which nobody here can read either.
    let _ = stage.try_create("deep", spec).await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let note = stage.told("deep", "InvalidObject").await;
    assert!(note.contains("correct its spec"), "{note}");
    assert!(!stage.has_plan("deep").await);
    let output = stage.cluster.kubectl(&[
        "-n",
        &stage.namespace,
        "get",
        "mdep",
        "deep",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Stalled\")].reason}",
    ]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "InvalidObject");

    // It can be deleted, also with our finalizer on it.
    let finalizer = json!({"metadata": {"finalizers": [palisade::manifests::FINALIZER]}}).to_string();
    let kubectl = |args: &[&str]| stage.cluster.kubectl(&[&["-n", &stage.namespace], args].concat());
    assert!(kubectl(&["patch", "mdep", "deep", "--type", "merge", "-p", &finalizer]).status.success());
    assert!(kubectl(&["delete", "mdep", "deep", "--wait=false"]).status.success());
    wait_until("it is gone", || async {
        let left = kubectl(&["get", "mdep", "deep", "--ignore-not-found", "-o", "name"]).stdout;
        if left.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&left).into_owned()) }
    })
    .await;
    replica.stop().await;
}

#[tokio::test]
async fn a_huge_template_is_refused_before_it_reaches_the_database() {
    let stage = Stage::new("hostile-size").await;
    let replica = stage.replica("a").await;
    stage.create("churn", container(json!({"env": [{"name": "A", "value": "y".repeat(700_000)}]}))).await;
    let status = stage.holds("churn", "Stalled", "InvalidSpec").await;
    assert!(status.last_error.is_some_and(|e| e.message.contains("512 KiB")));
    assert!(!stage.has_plan("churn").await);
    replica.stop().await;
}
