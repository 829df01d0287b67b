//! The epoch: allocated by any replica, through the cluster's object.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use palisade::epoch::{Allocator, EpochError};
use palisade::manifests::{EPOCH_KEY, EPOCH_OBJECT, INCARNATION_KEY};
use palisade::store::{Store, StoreConfig};
use serde_json::json;

use crate::stage::Stage;
use crate::support::cluster::{api, deployment, fence, from_json};
use crate::support::postgres::{Db, Server};

fn allocator(stage: &Stage) -> Allocator {
    Allocator::new(stage.store.clone(), stage.admin.clone(), &stage.namespace, Some(&stage.namespace))
}

async fn put_object(stage: &Stage, number: i64, incarnation: &str) {
    let objects: Api<ConfigMap> = api(&stage.admin, &stage.namespace);
    let object = from_json(json!({
        "metadata": {"name": EPOCH_OBJECT},
        "data": {EPOCH_KEY: number.to_string(), INCARNATION_KEY: incarnation, "establishedAt": "then"},
    }));
    objects.create(&PostParams::default(), &object).await.expect("created");
}

async fn stored(store: &Store) -> (Option<i64>, bool) {
    let status = store.epoch_status().await.expect("an answer");
    (status.number, status.established)
}

/// The incarnation before this one: the same server and timeline, started earlier.
async fn former(stage: &Stage) -> String {
    let running = stage.store.epoch_status().await.expect("an answer").incarnation;
    let parts: Vec<_> = running.split('/').collect();
    format!("{}/{}/1/1", parts[0], parts[1])
}

#[tokio::test]
async fn a_fresh_database_beside_older_objects_gets_a_higher_epoch() {
    let stage = Stage::with("epoch-fresh", Db::without_epoch().await, false).await;
    let resource = kube::discovery::ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&());
    let deployments: Api<kube::core::DynamicObject> =
        Api::namespaced_with(stage.admin.clone(), &stage.namespace, &resource);
    let old = deployment("old", &fence(7, 3, 1), json!({}));
    deployments.create(&PostParams::default(), &old).await.expect("created");
    let replica = stage.replica("a").await;
    stage.epoch_is("8").await;
    replica.ready().await;
    assert_eq!(stored(&stage.store).await, (Some(8), true));
    stage.register("churn", 1).await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let tokens = stage.work("worker-a").await;
    assert!(tokens[0] >> 32 == 8, "{tokens:?}");
    replica.stop().await;
}

#[tokio::test]
async fn a_status_of_an_older_database_counts_as_well() {
    let stage = Stage::with("epoch-status", Db::without_epoch().await, false).await;
    let mut object = stage.create("churn", json!({})).await;
    let status = json!({"revision": (5_i64 << 32) + 1, "fencingToken": 0, "conditions": []});
    object.status = Some(from_json(status));
    stage.crs.replace_status("churn", &PostParams::default(), &object).await.expect("written");
    assert_eq!(allocator(&stage).ensure(false).await.expect("an epoch"), 6);
}

#[tokio::test]
async fn two_replicas_at_once_establish_one_epoch() {
    for _ in 0..5 {
        let stage = Stage::with("epoch-race", Db::without_epoch().await, false).await;
        let (a, b) = (allocator(&stage), allocator(&stage));
        let (a, b) = tokio::join!(a.ensure(false), b.ensure(false));
        let (a, b) = (a.expect("an epoch"), b.expect("an epoch"));
        let object = stage.epoch_object().await.and_then(|o| o.data).expect("the object");
        assert_eq!((a, b), (1, 1), "nobody needed a second number");
        assert_eq!((stored(&stage.store).await, object[EPOCH_KEY].as_str()), ((Some(1), true), "1"));
    }
}

#[tokio::test]
async fn after_a_restart_of_the_database_a_new_epoch_is_allocated_and_work_goes_on() {
    // Until the process ends: the database's value wants a server that outlives it.
    let server: &'static Server =
        Box::leak(Box::new(tokio::task::spawn_blocking(Server::start).await.expect("a server")));
    server.migrated("restarted").await;
    let db = Db { name: "restarted".to_owned(), server };
    let stage = Stage::with("epoch-restart", db, false).await;
    let replica = stage.replica("a").await;
    stage.epoch_is("1").await;
    replica.ready().await;
    stage.register("churn", 1).await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let before = stage.work("worker-a").await;
    stage.holds("churn", "Ready", "VersionServes").await;

    tokio::task::spawn_blocking(|| (server.crash(), server.start_again())).await.expect("it runs again");
    stage.epoch_is("2").await;
    stage.patch("churn", json!({"spec": {"replicas": 2}})).await;
    stage.planned("churn", "n.spec->>'replicas' = '2'").await;
    let after = stage.work("worker-a").await;
    assert_eq!((before[0] >> 32, after[0] >> 32), (1, 2), "{before:?} {after:?}");
    stage.status("churn", "the new token", |s| s.fencing_token >= after[0]).await;
    replica.stop().await;
    server.stop();
}

#[tokio::test]
async fn two_databases_at_once_get_two_numbers() {
    let stage = Stage::with("epoch-servers", Db::without_epoch().await, false).await;
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let other = Store::new(&StoreConfig::new(server.migrated("other").await, "test")).expect("a store");
    let ours = allocator(&stage);
    let theirs = Allocator::new(other, stage.admin.clone(), &stage.namespace, Some(&stage.namespace));
    let (ours, theirs) = tokio::join!(ours.ensure(false), theirs.ensure(false));
    let mut numbers = [ours.expect("an epoch"), theirs.expect("an epoch")];
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn a_database_that_was_dropped_and_made_anew_gets_a_new_number() {
    // In a running server.
    let stage = Stage::with("epoch-anew", Db::without_epoch().await, false).await;
    assert_eq!(allocator(&stage).ensure(false).await.expect("an epoch"), 1);
    let anew = Db::without_epoch().await;
    let store = Store::new(&StoreConfig::new(anew.url(), "test")).expect("a store");
    let allocator = Allocator::new(store.clone(), stage.admin.clone(), &stage.namespace, Some(&stage.namespace));
    assert_eq!(allocator.ensure(false).await.expect("an epoch"), 2);
    assert_eq!(stored(&store).await, (Some(2), true));
}

#[tokio::test]
async fn a_number_goes_to_one_incarnation_only() {
    // Two databases, one cluster: what two fresh installations, or a copy of a database, would be.
    let stage = Stage::with("epoch-two", Db::without_epoch().await, false).await;
    put_object(&stage, 1, "999/1/1/1").await;
    assert_eq!(allocator(&stage).ensure(false).await.expect("an epoch"), 2);
    assert_eq!(stored(&stage.store).await, (Some(2), true));
}

#[tokio::test]
async fn an_object_that_was_deleted_comes_back_with_the_same_number() {
    let stage = Stage::new("epoch-lost").await;
    let replica = stage.replica("a").await;
    stage.epoch_is("1").await;
    replica.ready().await;
    let objects: Api<ConfigMap> = api(&stage.admin, &stage.namespace);
    objects.delete(EPOCH_OBJECT, &DeleteParams::default()).await.expect("deleted");
    stage.epoch_is("1").await;
    assert_eq!(stored(&stage.store).await, (Some(1), true), "nobody lost a lease for it");
    replica.stop().await;
}

#[tokio::test]
async fn a_restored_database_waits_for_an_operator() {
    let stage = Stage::new("epoch-restored").await;
    // The database says 1; the cluster knows that this server once had 5.
    put_object(&stage, 5, &former(&stage).await).await;
    let refused = allocator(&stage).ensure(false).await.expect_err("a lost branch");
    assert!(matches!(refused, EpochError::LostBranch { stored: 1, allocated: 5 }), "{refused}");
    let waiting = stage.replica("a").await;
    waiting.complains("--adopt-epoch").await;
    let note = stage.told(EPOCH_OBJECT, "NoEpoch").await;
    assert!(note.contains("restored"), "{note}");
    waiting.stop().await;
    let adopting = stage.replica_at("b", &stage.db.url_as("controller_login"), true).await;
    stage.epoch_is("6").await;
    adopting.ready().await;
    adopting.stop().await;
}

#[tokio::test]
async fn a_damaged_object_is_told_and_not_guessed_at() {
    let stage = Stage::with("epoch-damaged", Db::without_epoch().await, false).await;
    let objects: Api<ConfigMap> = api(&stage.admin, &stage.namespace);
    let object = from_json(json!({"metadata": {"name": EPOCH_OBJECT}, "data": {EPOCH_KEY: "many"}}));
    objects.create(&PostParams::default(), &object).await.expect("created");
    let refused = allocator(&stage).ensure(false).await.expect_err("damaged");
    assert!(refused.to_string().contains("Delete it"), "{refused}");
    assert_eq!(stored(&stage.store).await, (None, false));
    objects.delete(EPOCH_OBJECT, &DeleteParams::default()).await.expect("deleted");
    assert_eq!(allocator(&stage).ensure(false).await.expect("an epoch"), 1);
}
