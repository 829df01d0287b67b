//! A worker writes only where the cluster refuses what is stale, and asks before its first write.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use palisade::manifests::{self, SYSTEM_NAMESPACE, Settings, WORKER_ACCOUNT};
use rustix::process::Signal;
use serde_json::json;
use uuid::Uuid;

use crate::support::cluster::{Cluster, account, from_json, wait_for};
use crate::support::world::{World, lines, spec};

/// What is in the world's namespace of that which workers write.
async fn objects(world: &World) -> Vec<String> {
    let client = world.cluster.admin().await;
    let all = ListParams::default();
    let services = Api::<Service>::namespaced(client.clone(), &world.namespace).list(&all).await.expect("a list");
    let deployments = Api::<Deployment>::namespaced(client, &world.namespace).list(&all).await.expect("a list");
    services.iter().map(ResourceExt::name_any).chain(deployments.iter().map(ResourceExt::name_any)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_writes_nothing_in_a_cluster_that_does_not_fence_and_goes_on_by_itself_when_it_does() {
    let cluster: &Cluster = Box::leak(Box::new(Cluster::start().await));
    let settings = Settings::new(SYSTEM_NAMESPACE, [], None).expect("settings");
    cluster.apply(&manifests::rbac(&settings)).await;
    let kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, WORKER_ACCOUNT).await;
    let world = World::within(cluster, kubeconfig, "unfenced").await;
    world.planner.plan(Uuid::new_v4(), world.spec("churn", 1)).await;
    let worker = world.worker("w", &[]);
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'NotFenced')").await;
    let message = sql.text("SELECT failure_message FROM palisade.deployment").await;
    let told = ["the cluster does not fence", &world.namespace, "helm upgrade", "palisade crd --with-policy"];
    assert!(told.iter().all(|part| message.contains(part)), "{message}");
    // Not once, but at every try.
    worker.says("rollout stopped: the cluster does not fence", 2).await;
    assert_eq!(objects(&world).await, [""; 0], "it wrote");

    // Policies that look at every fence, and hold somebody else to a greater one: this worker could leave it out.
    let somebody_else = Settings::new(SYSTEM_NAMESPACE, [account(SYSTEM_NAMESPACE, "other")], None).expect("settings");
    // The policy that reads the epoch would refuse everything without one, and may speak before the others.
    let epoch = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": manifests::EPOCH_OBJECT, "namespace": SYSTEM_NAMESPACE},
        "data": {manifests::EPOCH_KEY: "1", manifests::INCARNATION_KEY: "of the tests"}});
    cluster.apply(&[serde_yaml::to_value(epoch).expect("YAML")]).await;
    cluster.apply(&manifests::policies(&somebody_else)).await;
    let named = "EXISTS (SELECT FROM palisade.deployment WHERE failure_reason = 'NotFenced' AND failure_message LIKE \
                 '%no admission policy …-fence-accounts names its account%--worker-account%')";
    sql.wait_until(named).await;
    assert_eq!(objects(&world).await, [""; 0], "it wrote");

    cluster.install_policies(&settings).await;
    cluster.allocate_epoch(SYSTEM_NAMESPACE, 1, "of the tests").await;
    world.done("churn", 1).await;
    assert_eq!(objects(&world).await, ["churn".to_owned(), world.spec("churn", 1).deployment_name()]);
    sql.close().await;
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_asks_once_a_namespace_whether_the_cluster_fences() {
    let world = World::new("asked").await;
    let uid = Uuid::new_v4();
    let points = world.logs.path().join("points");
    let worker = world.worker("w", &[("PALISADE_POINTS", points.to_str().expect("a path"))]);
    for version in 1..=3 {
        world.planner.plan(uid, world.spec("churn", version)).await;
        world.done("churn", version).await;
    }
    worker.says("\"done\"", 3).await;
    let next = world.cluster.namespace("asked-there").await;
    world.planner.plan(Uuid::new_v4(), spec(&next, "churn", 1)).await;
    worker.says("\"done\"", 4).await;
    let points = lines(&points);
    let first = |call: &str| points.iter().position(|point| point.contains(call)).expect(call);
    // A busy machine may cost a session, and with it what was known.
    let mut sql = world.sql().await;
    let sessions = sql.number("SELECT count(*) FROM palisade.session WHERE worker = 'w'").await;
    let asked = worker.text().matches("the cluster fences").count();
    assert!(
        asked >= 2 && asked <= 2 * usize::try_from(sessions).expect("some"),
        "{sessions} sessions asked {asked} times"
    );
    sql.close().await;
    assert!(first("seal/fences/after") < first("/apply/before"), "it wrote before it asked: {points:?}");
}

/// There nothing can be created, and so nothing asked; a ModelDeployment's finalizer waits for the registry all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_namespace_that_is_being_deleted_a_removal_goes_on_without_an_answer() {
    let world = World::new("going").await;
    let uid = Uuid::new_v4();
    world.planner.plan(uid, world.spec("churn", 1)).await;
    let mut first = world.worker("first", &[]);
    world.done("churn", 1).await;
    first.signal(Signal::TERM);
    first.ended().await;
    let client = world.cluster.admin().await;
    let held: Api<ConfigMap> = Api::namespaced(client.clone(), &world.namespace);
    let object = from_json(json!({"metadata": {"name": "held", "finalizers": ["example.com/held"]}}));
    held.create(&PostParams::default(), &object).await.expect("made");
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete(&world.namespace, &DeleteParams::default()).await.expect("deleted");

    world.planner.put(uid, world.spec("churn", 1), false, true).await;
    let _next = world.worker("next", &[]);
    let mut sql = world.sql().await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE step = 'removed')").await;
    sql.close().await;
    let letting_go = json!({"metadata": {"finalizers": null}});
    held.patch("held", &PatchParams::default(), &Patch::Merge(letting_go)).await.expect("let go");
    wait_for(&namespaces, &world.namespace, "to be gone", |namespace| namespace.is_none()).await;
}

/// Who put it there finds out by its status, and can delete it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_where_no_worker_writes_is_told_and_can_be_removed() {
    let world = World::new("home").await;
    let (uid, misplaced) = (Uuid::new_v4(), spec(SYSTEM_NAMESPACE, "misplaced", 1));
    world.planner.plan(uid, misplaced.clone()).await;
    let _worker = world.worker("w", &[]);
    let mut sql = world.sql().await;
    let told = "put the ModelDeployment into another one";
    sql.wait_until(&format!("EXISTS (SELECT FROM palisade.deployment WHERE failure_message LIKE '%{told}%')")).await;
    world.planner.put(uid, misplaced, false, true).await;
    sql.wait_until("EXISTS (SELECT FROM palisade.deployment WHERE step = 'removed')").await;
    sql.close().await;
}
