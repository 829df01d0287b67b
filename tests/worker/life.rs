//! What a worker's life promises besides: handing over, turning to a changed plan, telling why something is not ready.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use palisade::manifests::REVISION_LABEL;
use palisade::plan::{Spec, Strategy};
use rustix::process::Signal;
use uuid::Uuid;

use crate::support::cluster::{PATIENCE, wait_until};
use crate::support::postgres::Conn;
use crate::support::world::World;

/// A pod that no fake node can hold.
fn unschedulable(spec: Spec) -> Spec {
    let template = serde_json::json!({"spec": {"nodeSelector": {"no": "such-node"}, "containers": [{"name": "model", "image": "x"}]}});
    Spec { template, ..spec }
}

async fn selector(world: &World, name: &str) -> Option<String> {
    let api = Api::<Service>::namespaced(world.cluster.admin().await, &world.namespace);
    let service = api.get_opt(name).await.expect("an answer")?;
    service.spec?.selector?.get("palisade.dev/revision").cloned()
}

async fn replicas(world: &World) -> Vec<(String, i32)> {
    let api = Api::<Deployment>::namespaced(world.cluster.admin().await, &world.namespace);
    let list = api.list(&ListParams::default()).await.expect("a list");
    list.items.iter().map(|d| (d.name_any(), d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))).collect()
}

/// Waits until the scheduler has said of this version's pod that there is no place for it.
async fn unscheduled(world: &World, spec: &Spec) {
    let api = Api::<Pod>::namespaced(world.cluster.admin().await, &world.namespace);
    let of_version = ListParams::default().labels(&format!("{REVISION_LABEL}={}", spec.revision()));
    let said = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter_map(|condition| condition.reason.as_deref()).any(|reason| reason == "Unschedulable")
    };
    wait_until("its pod is unschedulable", async || {
        let pods = api.list(&of_version).await.map_err(|error| error.to_string())?.items;
        if pods.iter().any(said) { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
}

/// How many leases of deployments were taken from an owner.
async fn takeovers(sql: &mut Conn) -> i64 {
    sql.number("SELECT count(*) FROM palisade.grant_history WHERE kind = 'takeover'").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_become_ready_leaves_the_old_one_serving_and_says_why() {
    let world = World::new("unready").await;
    let uid = Uuid::new_v4();
    let _worker = world.worker("w", &[]);
    world.planner.plan(uid, world.spec("churn", 1)).await;
    world.done("churn", 1).await;
    let first = world.spec("churn", 1).revision();
    // There is all the time until there is a reason to tell.
    let second = unschedulable(world.spec("churn", 2));
    world.planner.plan(uid, second.clone()).await;
    unscheduled(&world, &second).await;
    world.planner.plan(uid, Spec { ready_timeout_ms: 1500, ..second }).await;
    let mut sql = world.sql().await;
    sql.wait_until(
        "EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'NotReady' AND serving_version = 1)",
    )
    .await;
    let message = sql.text("SELECT failure_message FROM palisade.deployment").await;
    assert!(
        message.contains("0 of 1 pods") && message.contains("Unschedulable") && message.contains("goes on serving"),
        "{message}"
    );
    assert_eq!(selector(&world, "churn").await, Some(first));

    // The way out is a plan that works; what never served is not kept.
    world.planner.plan(uid, world.spec("churn", 3)).await;
    world.done("churn", 3).await;
    let mut names: Vec<_> = replicas(&world).await;
    names.sort_by_key(|(_, replicas)| *replicas);
    let expected = [(world.spec("churn", 1).deployment_name(), 0), (world.spec("churn", 3).deployment_name(), 1)];
    assert_eq!(names, expected);
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_recreate_a_version_that_does_not_become_ready_is_replaced_by_the_old_one() {
    let world = World::new("recreate").await;
    let uid = Uuid::new_v4();
    let _worker = world.worker("w", &[]);
    let recreate = |spec: Spec| Spec { strategy: Strategy::Recreate, ..spec };
    world.planner.plan(uid, recreate(world.spec("churn", 1))).await;
    world.done("churn", 1).await;
    world.planner.plan(uid, recreate(Spec { ready_timeout_ms: 1500, ..unschedulable(world.spec("churn", 2)) })).await;
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'NotReady')").await;
    let old = world.spec("churn", 1).deployment_name();
    assert!(replicas(&world).await.contains(&(old, 1)), "{:?}", replicas(&world).await);
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_changes_while_a_version_is_waited_for_is_turned_to() {
    let world = World::new("turn").await;
    let uid = Uuid::new_v4();
    let worker = world.worker("w", &[]);
    world.planner.plan(uid, unschedulable(world.spec("churn", 1))).await;
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE step = 'ready')").await;
    world.planner.plan(uid, world.spec("churn", 2)).await;
    world.done("churn", 2).await;
    worker.says("turning to it", 1).await;
    // One lease was enough: nobody had to give up for it.
    assert_eq!(takeovers(&mut sql).await, 0);
    assert_eq!(replicas(&world).await, [(world.spec("churn", 2).deployment_name(), 1)]);
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_back_finds_the_old_version_scaled_to_zero_and_not_made_anew() {
    let world = World::new("back").await;
    let uid = Uuid::new_v4();
    let _worker = world.worker("w", &[]);
    let api = Api::<Deployment>::namespaced(world.cluster.admin().await, &world.namespace);
    world.planner.plan(uid, world.spec("churn", 1)).await;
    world.done("churn", 1).await;
    let name = world.spec("churn", 1).deployment_name();
    let first = api.get(&name).await.expect("a Deployment").uid();
    world.planner.plan(uid, world.spec("churn", 2)).await;
    world.done("churn", 2).await;
    let kept = api.get(&name).await.expect("it is kept");
    assert_eq!(kept.spec.as_ref().and_then(|s| s.replicas), Some(0));
    world.planner.plan(uid, world.spec("churn", 1)).await;
    world.done("churn", 1).await;
    assert_eq!(api.get(&name).await.expect("a Deployment").uid(), first);
    assert_eq!(selector(&world, "churn").await, Some(world.spec("churn", 1).revision()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_asked_to_stop_hands_over_and_exits_with_0() {
    let world = World::new("term").await;
    let uid = Uuid::new_v4();
    let mut worker = world.worker("w", &[]);
    world.planner.plan(uid, unschedulable(world.spec("churn", 1))).await;
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE step = 'ready')").await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(0), "{}", worker.text());
    assert_eq!(
        sql.number("SELECT count(*) FROM palisade.lease WHERE resource LIKE 'deployment/%' AND session IS NOT NULL")
            .await,
        0
    );
    // The next one need not wait for anything.
    let next = world.worker("next", &[]);
    next.says("lease granted", 1).await;
    assert_eq!(takeovers(&mut sql).await, 0);
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_dies_between_moving_the_service_and_recording_it_leaves_nothing_half_way() {
    let world = World::new("halfway").await;
    let uid = Uuid::new_v4();
    let mut first = world.worker("first", &[]);
    world.planner.plan(uid, world.spec("churn", 1)).await;
    world.done("churn", 1).await;
    first.signal(Signal::TERM);
    first.ended().await;
    world.planner.plan(uid, world.spec("churn", 2)).await;
    let mut dead = world.worker("dead", &[("PALISADE_KILL_AT", "switch/record_serving/before")]);
    dead.ended().await;
    world.expire("dead").await;
    assert_eq!(selector(&world, "churn").await, Some(world.spec("churn", 2).revision()), "the Service had moved");

    // Another plan comes, whose version does not become ready: what is recorded serves, and nothing else.
    world.planner.plan(uid, Spec { ready_timeout_ms: 1500, ..unschedulable(world.spec("churn", 3)) }).await;
    let _next = world.worker("next", &[]);
    let mut sql = world.sql().await;
    sql.wait_until(
        "EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'NotReady' AND serving_version = 1)",
    )
    .await;
    assert_eq!(selector(&world, "churn").await, Some(world.spec("churn", 1).revision()));
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_recreate_the_old_pods_are_gone_before_the_new_ones_come() {
    let world = World::new("ended").await;
    let uid = Uuid::new_v4();
    let worker = world.worker("w", &[]);
    let recreate = |version| Spec { strategy: Strategy::Recreate, ..world.spec("churn", version) };
    world.planner.plan(uid, recreate(1)).await;
    world.done("churn", 1).await;
    world.planner.plan(uid, recreate(2)).await;
    world.done("churn", 2).await;
    let text = worker.text();
    let at = |text: &str, call: &str| text.find(call).unwrap_or_else(|| panic!("no {call}"));
    assert!(at(&text, "\"call\":\"scale\"") < at(&text, &world.spec("churn", 2).deployment_name()));
    assert_eq!(selector(&world, "churn").await, Some(recreate(2).revision()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_digest_is_never_served() {
    let world = World::new("digest").await;
    let _worker = world.worker("w", &[]);
    let wrong = Spec { expected_digest: Some(format!("sha256:{}", "0".repeat(64))), ..world.spec("churn", 1) };
    world.planner.plan(Uuid::new_v4(), wrong).await;
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'DigestMismatch')").await;
    assert_eq!(replicas(&world).await, []);
    assert_eq!(
        sql.number("SELECT count(*) FROM palisade.queue").await,
        0,
        "only another plan helps: nothing is tried again"
    );
    sql.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_owner_whose_process_beats_loses_its_lease_and_is_told() {
    let world = World::new("hung").await;
    let mut sql = world.sql().await;
    world.planner.plan(Uuid::new_v4(), unschedulable(world.spec("churn", 1))).await;
    let hung = world.worker("hung", &[]);
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE step = 'ready')").await;
    let next = world.worker("next", &[]);
    next.says("session opened", 1).await;
    // As if it did not report: the deadline is over however often it does, the heartbeats go on.
    let over = "UPDATE palisade.progress SET deadline = clock_timestamp() - interval '1 second' WHERE resource LIKE 'deployment/%'";
    // By the other process, or by its own, whose other tasks are well; the hung one is told in either case.
    let reason = "SELECT reason FROM palisade.grant_history WHERE kind = 'takeover' ORDER BY token LIMIT 1";
    let until = tokio::time::Instant::now() + PATIENCE;
    while takeovers(&mut sql).await == 0 {
        assert!(tokio::time::Instant::now() < until, "nobody took over; the hung one says:\n{}", hung.text());
        sql.run(over).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(sql.text(reason).await, "no progress");
    hung.says("the lease is lost", 1).await;
    assert!(!hung.text().contains("session lost"), "its session lives on: {}", hung.text());
    sql.close().await;
}
