//! From a ModelDeployment to a plan, and from what a worker records to a status.

use kube::ResourceExt;
use palisade::manifests::FINALIZER;
use palisade::plan::State;
use palisade::store::Write;
use serde_json::json;

use crate::stage::{Stage, condition, version_of};
use crate::support::cluster::{deployment, wait_until};

#[tokio::test]
async fn a_modeldeployment_becomes_a_plan_and_what_a_worker_records_its_status() {
    let stage = Stage::new("plans").await;
    let replica = stage.replica("a").await;
    let created = stage.create("churn", json!({"replicas": 2, "promoteAlias": "champion"})).await;
    stage.planned("churn", "n.rollout = 1 AND n.spec->>'version' = '1' AND n.spec->>'replicas' = '2'").await;
    let status = stage.holds("churn", "Reconciling", "WaitingForWorker").await;
    assert_eq!(status.observed_generation, created.metadata.generation);
    assert_eq!(status.resolved.map(|r| r.version), Some(1));

    let tokens = stage.work("worker-a").await;
    let status = stage.holds("churn", "Ready", "VersionServes").await;
    assert_eq!(condition(&status, "Serving"), Some("VersionServes"));
    assert!(condition(&status, "Reconciling").is_none() && condition(&status, "Stalled").is_none());
    assert_eq!(status.serving.as_ref().map(|s| s.version), Some(1));
    // A release raises the token once more.
    assert!(status.fencing_token >= tokens[0], "{status:?}");
    assert!(stage.crs.get("churn").await.expect("it is there").finalizers().contains(&FINALIZER.to_owned()));
    for (reason, text) in [("RolloutStarted", "version 1"), ("Serving", "version 1"), ("AliasPromoted", "champion")] {
        let note = stage.told("churn", reason).await;
        assert!(note.contains(text), "{reason}: {note}");
    }

    // A change, while what serves goes on serving.
    stage.patch("churn", json!({"spec": {"model": {"version": 2}}})).await;
    stage.planned("churn", "n.rollout = 2 AND n.spec->>'version' = '2'").await;
    let status = stage.holds("churn", "Reconciling", "WaitingForWorker").await;
    assert_eq!(condition(&status, "Serving"), Some("VersionServes"));
    assert_eq!((status.serving.map(|s| s.version), status.resolved.map(|r| r.version)), (Some(1), Some(2)));
    stage.work("worker-a").await;
    stage.status("churn", "serving version 2", |s| s.serving.as_ref().is_some_and(|s| s.version == 2)).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_look_that_finds_nothing_new_writes_nothing() {
    let stage = Stage::new("quiet").await;
    let replica = stage.lasting("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    stage.work("worker-a").await;
    stage.rests("churn").await;
    stage.told("churn", "Serving").await;

    let before = stage
        .sql()
        .await
        .text("SELECT token || '/' || sequence FROM palisade.lease WHERE resource = 'controller/default'")
        .await;
    let looks = replica.looks();
    let touched = stage.patch("churn", json!({"metadata": {"annotations": {"touched": "yes"}}})).await;
    wait_until("it was looked at", || async { if replica.looks() > looks { Ok(()) } else { Err("not yet") } }).await;
    assert_eq!(version_of(&stage.crs.get("churn").await.expect("there")), version_of(&touched));
    let after = stage
        .sql()
        .await
        .text("SELECT token || '/' || sequence FROM palisade.lease WHERE resource = 'controller/default'")
        .await;
    assert_eq!(before, after, "no plan was put");
    replica.stop().await;
}

#[tokio::test]
async fn a_new_leader_looks_only_at_those_that_changed_while_nobody_led() {
    let stage = Stage::new("survey").await;
    let first = stage.replica("a").await;
    stage.point("champion", 1).await;
    for (name, spec) in [
        ("rests", json!({})),
        ("edited", json!({})),
        ("followed", json!({"model": {"version": null, "alias": "champion"}})),
    ] {
        stage.create(name, spec).await;
        stage.status(name, "planned", |s| s.observed_generation == Some(1) && s.rollout == Some(1)).await;
    }
    first.stop().await;

    let second = stage.replica("b").await;
    let surveyed = async || if second.surveyed() >= 3 { Ok(()) } else { Err(format!("{}", second.surveyed())) };
    wait_until("all were surveyed", surveyed).await;
    second.tells("palisade_modeldeployments{state=\"reconciling\"} 3").await;
    assert_eq!(second.looks(), 0, "there was nothing to do");
    second.stop().await;

    let rests = stage.crs.get("rests").await.expect("there");
    stage.patch("edited", json!({"spec": {"replicas": 3}})).await;
    stage.point("champion", 2).await;
    let third = stage.replica("c").await;
    stage.planned("edited", "n.generation = 2 AND n.spec->>'replicas' = '3'").await;
    stage.planned("followed", "n.spec->>'version' = '2'").await;
    wait_until("the third was surveyed", async || if third.surveyed() > 0 { Ok(()) } else { Err("not yet") }).await;
    assert_eq!(version_of(&stage.crs.get("rests").await.expect("there")), version_of(&rests));
    third.stop().await;
}

#[tokio::test]
async fn an_alias_is_pinned_and_starts_a_new_rollout_when_it_moves() {
    let stage = Stage::new("alias").await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({"model": {"version": null, "alias": "champion"}})).await;
    let status = stage.holds("churn", "Stalled", "AliasNotFound").await;
    assert!(status.last_error.is_some_and(|e| e.message.contains("\"champion\"")));
    assert!(!stage.has_plan("churn").await);
    replica.tells("palisade_modeldeployments{state=\"stalled\"} 1").await;

    stage.point("champion", 1).await;
    stage.planned("churn", "n.rollout = 1 AND n.spec->>'version' = '1'").await;
    stage.work("worker-a").await;
    let status = stage.holds("churn", "Ready", "VersionServes").await;
    assert_eq!(status.resolved.and_then(|r| r.alias).as_deref(), Some("champion"));
    replica.tells("palisade_modeldeployments{state=\"stalled\"} 0").await;
    replica.tells("palisade_modeldeployments{state=\"ready\"} 1").await;

    stage.point("champion", 2).await;
    stage.planned("churn", "n.rollout = 2 AND n.spec->>'version' = '2'").await;
    let status = stage.status("churn", "resolved to 2", |s| s.resolved.as_ref().is_some_and(|r| r.version == 2)).await;
    assert_eq!(status.serving.map(|s| s.version), Some(1), "the old version goes on serving");
    replica.stop().await;
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_waited_for() {
    let stage = Stage::new("missing").await;
    let replica = stage.replica("a").await;
    stage.create("other", json!({"model": {"name": "other"}})).await;
    stage.create("churn", json!({"model": {"version": 3}})).await;
    stage.holds("other", "Stalled", "ModelNotFound").await;
    stage.holds("churn", "Stalled", "VersionNotFound").await;
    assert!(!stage.has_plan("other").await && !stage.has_plan("churn").await);
    stage.register("other", 1).await;
    stage.planned("other", "true").await;
    stage.register_version("churn", 3).await;
    stage.planned("churn", "n.spec->>'version' = '3'").await;
    replica.stop().await;
}

#[tokio::test]
async fn an_alias_that_another_deployment_guards_is_waited_for() {
    let stage = Stage::new("guard").await;
    let replica = stage.replica("a").await;
    stage.create("first", json!({"promoteAlias": "champion"})).await;
    stage.planned("first", "true").await;
    stage.work("worker-a").await;
    stage.create("second", json!({"promoteAlias": "champion"})).await;
    let status = stage.holds("second", "Stalled", "AliasGuarded").await;
    assert!(status.last_error.is_some_and(|e| e.message.contains(&stage.resource("first"))));
    assert!(!stage.has_plan("second").await);

    stage.delete("first").await;
    stage.planned("first", "n.removed").await;
    stage.work("worker-a").await;
    stage.planned("second", "true").await;
    stage.gone("first").await;
    replica.stop().await;
}

#[tokio::test]
async fn a_paused_deployment_is_planned_as_such() {
    let stage = Stage::new("paused").await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({"paused": true})).await;
    stage.planned("churn", "n.paused").await;
    stage.status("churn", "paused", |s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "Paused")).await;
    assert_eq!(stage.work("worker-a").await, Vec::<i64>::new(), "nothing is due");
    stage.patch("churn", json!({"spec": {"paused": false}})).await;
    stage.planned("churn", "NOT n.paused").await;
    stage.work("worker-a").await;
    stage.holds("churn", "Ready", "VersionServes").await;
    replica.stop().await;
}

#[tokio::test]
async fn a_service_that_somebody_deleted_wakes_a_worker() {
    use k8s_openapi::api::core::v1::Service;
    use kube::api::{DeleteParams, PostParams};

    let stage = Stage::new("drift").await;
    let first = stage.replica("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let status = stage.holds("churn", "Reconciling", "WaitingForWorker").await;
    // Or its watch could be so late that it misses what the worker wrote.
    first.stop().await;
    let revision = status.target_revision.expect("a revision");
    let labels = json!({"palisade.dev/deployment": "churn", "palisade.dev/revision": revision});
    let name = format!("churn-{revision}");
    let object = deployment(&name, "1/1", json!({"metadata": {"labels": labels}}));
    let resource = kube::discovery::ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&());
    let deployments: kube::Api<kube::core::DynamicObject> =
        kube::Api::namespaced_with(stage.admin.clone(), &stage.namespace, &resource);
    deployments.create(&PostParams::default(), &object).await.expect("created");
    let services: kube::Api<Service> = crate::support::cluster::api(&stage.admin, &stage.namespace);
    let service = crate::support::cluster::from_json(json!({
        "metadata": {"name": "churn", "labels": labels}, "spec": {"selector": labels, "ports": [{"port": 8080}]},
    }));
    services.create(&PostParams::default(), &service).await.expect("created");
    stage.work("worker-a").await;
    let replica = stage.replica("b").await;
    stage.holds("churn", "Ready", "VersionServes").await;
    let due = format!("EXISTS (SELECT FROM palisade.queue WHERE resource = '{}')", stage.resource("churn"));
    assert_eq!(stage.sql().await.text(&due).await, "false");

    services.delete("churn", &DeleteParams::default()).await.expect("deleted");
    stage.sql().await.wait_until(&due).await;
    stage.planned("churn", "n.rollout = 1").await;
    replica.stop().await;
}

#[tokio::test]
async fn a_takeover_is_told() {
    let stage = Stage::new("takeover").await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let (first, claimed) = stage.claim("worker-a").await;
    let plan = &claimed[0].1.plan;
    let begin = Write::RecordStep { uid: plan.uid, rollout: plan.rollout, step: "ready", state: State::default() };
    claimed[0].0.write(begin).await.expect("an answer").applied().expect("recorded");
    // The owner may be told of before the step is: they are two changes of the registry.
    stage
        .status("churn", "at its step, owned", |s| {
            s.owner.as_deref() == Some("worker-a") && s.step.as_ref().is_some_and(|step| step.name == "ready")
        })
        .await;

    let expire =
        "UPDATE palisade.session SET expires_at = clock_timestamp() - interval '1 ms' WHERE worker = 'worker-a'";
    stage.sql().await.run(expire).await;
    stage.work("worker-b").await;
    stage.holds("churn", "Ready", "VersionServes").await;
    let note = stage.told("churn", "Takeover").await;
    assert!(note.contains("worker-b took over from worker-a"), "{note}");
    drop(first);
    replica.stop().await;
}
