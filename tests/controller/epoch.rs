//! The epoch: allocated by any replica, through the cluster's object.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use palisade::crd::ModelDeploymentStatus;
use palisade::epoch::{Allocator, Cause, EpochError, Step};
use palisade::manifests::{EPOCH_KEY, EPOCH_OBJECT, INCARNATION_KEY};
use palisade::store::Store;
use serde_json::json;

use crate::stage::{Stage, condition};
use crate::support::cluster::{api, deployment, fence, from_json};
use crate::support::postgres::{Db, Server};
use crate::support::world;

fn allocator(stage: &Stage) -> Allocator {
    Allocator::new(stage.store.clone(), stage.admin.clone(), &stage.namespace, Some(&stage.namespace))
}

fn untyped(stage: &Stage) -> Api<kube::core::DynamicObject> {
    let resource = kube::discovery::ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&());
    Api::namespaced_with(stage.admin.clone(), &stage.namespace, &resource)
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
    let deployments = untyped(&stage);
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
    assert_eq!(allocator(&stage).ensure().await.expect("an epoch"), 6);
}

#[tokio::test]
async fn two_replicas_at_once_establish_one_epoch() {
    for _ in 0..5 {
        let stage = Stage::with("epoch-race", Db::without_epoch().await, false).await;
        let (a, b) = (allocator(&stage), allocator(&stage));
        let (a, b) = tokio::join!(a.ensure(), b.ensure());
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
async fn of_two_fresh_databases_at_once_one_gets_the_epoch_and_the_other_waits_for_a_person() {
    let stage = Stage::with("epoch-servers", Db::without_epoch().await, false).await;
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let other = world::store(server.migrated("other").await, "test");
    let ours = allocator(&stage);
    let theirs = Allocator::new(other.clone(), stage.admin.clone(), &stage.namespace, Some(&stage.namespace));
    let (winner, loser, refused) = match tokio::join!(ours.ensure(), theirs.ensure()) {
        (Ok(1), Err(refused)) => (&stage.store, &other, refused),
        (Err(refused), Ok(1)) => (&other, &stage.store, refused),
        both => panic!("one of them gets the number: {both:?}"),
    };
    assert!(matches!(refused, EpochError::LostBranch { stored: 0, allocated: 1, .. }), "{refused}");
    assert_eq!((stored(winner).await, stored(loser).await), ((Some(1), true), (None, false)));
}

#[tokio::test]
async fn a_database_that_was_dropped_and_made_anew_waits_for_a_person_and_then_gets_a_new_number() {
    // In a running server. An empty registry in the place of a full one is not gone on with unasked.
    let stage = Stage::with("epoch-anew", Db::without_epoch().await, false).await;
    assert_eq!(allocator(&stage).ensure().await.expect("an epoch"), 1);
    let anew = Db::without_epoch().await;
    let store = world::store(anew.url(), "test");
    let allocator = Allocator::new(store.clone(), stage.admin.clone(), &stage.namespace, Some(&stage.namespace));
    let refused = allocator.ensure().await.expect_err("another database has the epoch");
    assert_eq!(refused.attention().map(|attention| attention.cause), Some(Cause::LostBranch));
    assert_eq!(allocator.adopt().await.expect("an epoch"), 2);
    assert_eq!(stored(&store).await, (Some(2), true));
    // The one that had it is told, and its clients are refused: not both go on.
    let refused = self::allocator(&stage).ensure().await.expect_err("the other one was adopted");
    assert!(matches!(refused, EpochError::LostBranch { stored: 1, allocated: 2, .. }), "{refused}");
    assert_eq!(stored(&stage.store).await, (Some(1), false));
    assert_eq!(allocator.ensure().await.expect("it stays"), 2);
}

#[tokio::test]
async fn a_number_goes_to_one_incarnation_only() {
    // Another incarnation has the very number that is stored here: what a copy of a database would be.
    let stage = Stage::new("epoch-two").await;
    put_object(&stage, 1, &former(&stage).await).await;
    assert_eq!(allocator(&stage).ensure().await.expect("an epoch"), 2);
    assert_eq!(stored(&stage.store).await, (Some(2), true));
}

#[tokio::test]
async fn a_number_that_an_earlier_incarnation_was_given_and_never_took_over_is_skipped() {
    // This server before its last restart, whose controller was killed before it told the database.
    let stage = Stage::with("epoch-skipped", Db::without_epoch().await, false).await;
    let objects: Api<ConfigMap> = api(&stage.admin, &stage.namespace);
    let object = from_json(json!({
        "metadata": {"name": EPOCH_OBJECT}, "data": {EPOCH_KEY: "1", INCARNATION_KEY: former(&stage).await},
    }));
    objects.create(&PostParams::default(), &object).await.expect("created");
    assert_eq!(allocator(&stage).ensure().await.expect("an epoch"), 2);
    assert_eq!(stored(&stage.store).await, (Some(2), true));
}

#[tokio::test]
async fn a_look_at_the_epoch_changes_nothing_and_says_what_comes_next() {
    let stage = Stage::with("epoch-look", Db::without_epoch().await, false).await;
    let view = allocator(&stage).inspect().await.expect("a view");
    assert_eq!((view.next, view.object, view.attention), (Some(Step::Allocate { above: 0 }), None, None));
    assert_eq!((stored(&stage.store).await, stage.epoch_object().await), ((None, false), None));
    allocator(&stage).ensure().await.expect("an epoch");
    let view = allocator(&stage).inspect().await.expect("a view");
    assert_eq!((view.next, view.attention), (Some(Step::Fine { number: 1 }), None));
    assert_eq!(view.object.map(|object| object.incarnation), Some(view.database.incarnation));
}

#[tokio::test]
async fn an_advance_is_above_a_fence_that_nobody_was_granted() {
    let stage = Stage::new("epoch-advance").await;
    allocator(&stage).ensure().await.expect("an epoch");
    let deployments = untyped(&stage);
    let corrupt = deployment("corrupt", &fence(40, 3, 1), json!({}));
    deployments.create(&PostParams::default(), &corrupt).await.expect("created");
    let attention = allocator(&stage).inspect().await.expect("a view").attention.expect("a person is needed");
    assert_eq!(attention.cause, Cause::FenceAhead);
    assert!(attention.message.contains("Deployment") && attention.message.contains("corrupt"), "{attention}");
    assert_eq!(allocator(&stage).advance().await.expect("an epoch"), 41);
    assert_eq!(allocator(&stage).inspect().await.expect("a view").attention, None);
    assert_eq!(stored(&stage.store).await, (Some(41), true));
    // Above the last one there is none: the message names who carries it.
    let last = deployment("last", &fence((1 << 21) - 1, 3, 1), json!({}));
    deployments.create(&PostParams::default(), &last).await.expect("created");
    let refused = allocator(&stage).advance().await.expect_err("no number is left");
    assert!(matches!(&refused, EpochError::UsedUp(by) if by.contains("last")), "{refused}");
    let attention = allocator(&stage).inspect().await.expect("a view").attention.expect("a person is needed");
    assert_eq!(attention.cause, Cause::UsedUp);
    assert_eq!(stored(&stage.store).await, (Some(41), true), "nothing was changed");
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
    let refused = allocator(&stage).ensure().await.expect_err("a lost branch");
    assert!(matches!(refused, EpochError::LostBranch { stored: 1, allocated: 5, .. }), "{refused}");
    let waiting = stage.replica("a").await;
    waiting.complains("palisade epoch adopt").await;
    let note = stage.told(EPOCH_OBJECT, "NoEpoch").await;
    assert!(note.contains("restored"), "{note}");
    stage.create("churn", json!({})).await;
    let told = stage.holds("churn", "Stalled", "EpochNotEstablished").await;
    assert!(told.last_error.is_some_and(|error| error.message.contains("palisade epoch adopt")));
    waiting.tells("palisade_epoch_needs_attention{cause=\"LostBranch\"} 1").await;
    assert_eq!(allocator(&stage).adopt().await.expect("an epoch"), 6);
    // Without a restart, and without anybody's help.
    waiting.ready().await;
    let healed = |s: &ModelDeploymentStatus| condition(s, "Stalled").is_none() && s.revision >> 32 == 6;
    stage.status("churn", "to be told of by the leader again", healed).await;
    waiting.tells("palisade_epoch_needs_attention{cause=\"LostBranch\"} 0").await;
    waiting.stop().await;
}

#[tokio::test]
async fn a_damaged_object_is_told_and_not_guessed_at() {
    let stage = Stage::with("epoch-damaged", Db::without_epoch().await, false).await;
    let objects: Api<ConfigMap> = api(&stage.admin, &stage.namespace);
    let object = from_json(json!({"metadata": {"name": EPOCH_OBJECT}, "data": {EPOCH_KEY: "many"}}));
    objects.create(&PostParams::default(), &object).await.expect("created");
    let refused = allocator(&stage).ensure().await.expect_err("damaged");
    assert!(
        refused.attention().is_some_and(|attention| attention.action.contains("delete the ConfigMap")),
        "{refused}"
    );
    assert_eq!(stored(&stage.store).await, (None, false));
    objects.delete(EPOCH_OBJECT, &DeleteParams::default()).await.expect("deleted");
    assert_eq!(allocator(&stage).ensure().await.expect("an epoch"), 1);
}
