//! The finalizer: with a database, and without one.

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use palisade::manifests::FINALIZER;
use serde_json::{Value, json};

use crate::stage::{Stage, condition};
use crate::support::cluster::{api, from_json};

/// A ModelDeployment that is being deleted, and whose finalizer waits.
async fn going(stage: &Stage, name: &str, spec: Value) {
    stage.create(name, spec).await;
    stage.patch(name, json!({"metadata": {"finalizers": [FINALIZER]}})).await;
}

#[tokio::test]
async fn a_deletion_goes_through_the_registry() {
    let stage = Stage::new("delete").await;
    let replica = stage.replica("a").await;
    for (name, policy, event) in [("churn", "Undeploy", "Deleted"), ("kept", "Retain", "Retained")] {
        stage.create(name, json!({"deletionPolicy": policy})).await;
        stage.planned(name, &format!("n.spec->>'owned' = '{}'", policy == "Undeploy")).await;
        stage.work("worker-a").await;
        stage.holds(name, "Ready", "VersionServes").await;
        stage.delete(name).await;
        stage.planned(name, "n.removed").await;
        stage.holds(name, "Reconciling", "Removing").await;
        stage.work("worker-a").await;
        stage.gone(name).await;
        assert!(!stage.has_plan(name).await, "the plan is dropped before the finalizer goes");
        stage.told(name, event).await;
    }
    replica.stop().await;
}

#[tokio::test]
async fn a_paused_deployment_can_be_deleted() {
    let stage = Stage::new("delete-paused").await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({"paused": true})).await;
    stage.planned("churn", "n.paused").await;
    stage.delete("churn").await;
    stage.planned("churn", "n.removed AND NOT n.paused").await;
    stage.work("worker-a").await;
    stage.gone("churn").await;
    replica.stop().await;
}

#[tokio::test]
async fn one_that_was_never_planned_is_let_go_at_once() {
    let stage = Stage::new("delete-early").await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({"model": {"name": "nothing"}})).await;
    stage.holds("churn", "Stalled", "ModelNotFound").await;
    stage.delete("churn").await;
    stage.gone("churn").await;
    replica.stop().await;
}

#[tokio::test]
async fn retain_needs_no_database() {
    let stage = Stage::new("retain-down").await;
    going(&stage, "churn", json!({"deletionPolicy": "Retain"})).await;
    let service = from_json(json!({
        "metadata": {"name": "churn", "labels": {"palisade.dev/deployment": "churn"}}, "spec": {"ports": [{"port": 80}]},
    }));
    let services: Api<Service> = api(&stage.admin, &stage.namespace);
    services.create(&PostParams::default(), &service).await.expect("created");
    let replica = stage.replica_without_database("a").await;
    stage.delete("churn").await;
    stage.gone("churn").await;
    let note = stage.told("churn", "Retained").await;
    assert!(note.contains("out of reach"), "{note}");
    services.get("churn").await.expect("the Service stays");
    replica.stop().await;
}

#[tokio::test]
async fn retain_without_database_waits_while_an_object_would_go_with_it() {
    let stage = Stage::new("retain-owned").await;
    going(&stage, "churn", json!({"deletionPolicy": "Retain"})).await;
    let uid = stage.crs.get("churn").await.expect("there").uid().expect("a UID");
    let owner = json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "name": "churn", "uid": uid});
    let service = from_json(json!({
        "metadata": {"name": "churn", "labels": {"palisade.dev/deployment": "churn"}, "ownerReferences": [owner]},
        "spec": {"ports": [{"port": 80}]},
    }));
    let services: Api<Service> = api(&stage.admin, &stage.namespace);
    services.create(&PostParams::default(), &service).await.expect("created");
    let replica = stage.replica_without_database("a").await;
    stage.delete("churn").await;
    let note = stage.told("churn", "WaitingForDatabase").await;
    assert!(note.contains("Service churn"), "{note}");
    assert!(stage.crs.get("churn").await.expect("it waits").finalizers().contains(&FINALIZER.to_owned()));
    replica.stop().await;
}

#[tokio::test]
async fn undeploy_without_database_says_what_it_waits_for_and_goes_on_by_itself() {
    let stage = Stage::new("undeploy-down").await;
    let first = stage.replica("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    stage.work("worker-a").await;
    stage.holds("churn", "Ready", "VersionServes").await;
    first.stop().await;

    let blind = stage.replica_without_database("b").await;
    stage.delete("churn").await;
    let note = stage.told("churn", "WaitingForDatabase").await;
    assert!(note.contains("database") && note.contains(FINALIZER), "{note}");
    let object = stage.crs.get("churn").await.expect("it waits");
    assert!(object.finalizers().contains(&FINALIZER.to_owned()));
    assert_eq!(condition(&object.status.expect("a status"), "Serving"), Some("VersionServes"));
    blind.stop().await;

    let again = stage.replica("c").await;
    stage.planned("churn", "n.removed").await;
    stage.work("worker-a").await;
    stage.gone("churn").await;
    again.stop().await;
}

#[tokio::test]
async fn a_plan_that_lost_its_modeldeployment_is_swept() {
    let stage = Stage::new("sweep").await;
    let first = stage.replica("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    stage.work("worker-a").await;
    stage.holds("churn", "Ready", "VersionServes").await;
    first.stop().await;
    stage.patch("churn", json!({"metadata": {"finalizers": null}})).await;
    stage.delete("churn").await;
    stage.gone("churn").await;

    let next = stage.replica("b").await;
    stage.planned("churn", "n.removed").await;
    stage.work("worker-a").await;
    let resource = stage.resource("churn");
    stage
        .sql()
        .await
        .wait_until(&format!("NOT EXISTS (SELECT FROM palisade.plan WHERE resource = '{resource}')"))
        .await;
    next.stop().await;
}
