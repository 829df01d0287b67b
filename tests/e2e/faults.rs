//! What a node and its surroundings can do to Palisade, one after the other; then everything is Ready again, and what
//! happened keeps every rule that can be seen from outside.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::frozen::WORKERS;
use super::models::ready;
use super::node::{SHOP, SYSTEM, signal};
use super::world::{World, name};
use crate::history::{History, Rule, Terms};
use crate::{observe, rules};

const COUNT: usize = 4;
const CONTROLLERS: &str = "app.kubernetes.io/component=controller";

fn roll_all(world: &World, version: i64) {
    for number in 0..COUNT {
        world.roll(&format!("small-{number}"), version);
    }
}

async fn all_serve(world: &World, version: i64) {
    for number in 0..COUNT {
        world.serves(&format!("small-{number}"), version).await;
    }
}

/// The pod of the worker that owns most, or of any.
async fn busiest(world: &World) -> Value {
    let mut sql = world.sql().await;
    let workers = sql
        .list("SELECT s.worker FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session WHERE l.resource LIKE 'deployment/%' GROUP BY 1 ORDER BY count(*) DESC")
        .await;
    sql.close().await;
    let pods = world.pods(SYSTEM, WORKERS);
    let owner = pods.iter().find(|pod| workers.first().is_some_and(|worker| worker == name(pod)));
    owner.or(pods.first()).cloned().expect("a worker")
}

/// The kubelet is away while a rollout begins, and for longer than the cluster waits for a node.
async fn kubelet_stops(world: &World, version: i64) {
    signal(world.component("kubelet"), Signal::KILL);
    roll_all(world, version);
    let not_ready = ["wait", "--for=condition=Ready=unknown", "--timeout=120s", "node/node"];
    world.kubectl(&not_ready);
    let dir = world.dir.join("node");
    world.hack("node.sh", &["kubelet", dir.to_str().expect("UTF-8")]);
    world.kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", "node/node"]);
    all_serve(world, version).await;
}

async fn worker_is_deleted_by_force(world: &World, version: i64) {
    roll_all(world, version);
    let pod = busiest(world).await;
    world.kubectl(&["-n", SYSTEM, "delete", "pod", name(&pod), "--force", "--grace-period=0"]);
    all_serve(world, version).await;
}

async fn controllers_are_killed(world: &World, version: i64) {
    roll_all(world, version);
    for pod in world.pods(SYSTEM, CONTROLLERS) {
        signal(world.pid(&pod), Signal::KILL);
    }
    all_serve(world, version).await;
}

async fn postgres_is_restarted(world: &World, version: i64) {
    roll_all(world, version);
    tokio::task::block_in_place(|| {
        world.server().shut_down();
        std::thread::sleep(Duration::from_secs(3));
        world.server().start_again();
    });
    all_serve(world, version).await;
}

async fn api_server_is_frozen(world: &World, version: i64) {
    roll_all(world, version);
    let pid = world.component("cluster/kube-apiserver");
    signal(pid, Signal::STOP);
    tokio::time::sleep(Duration::from_secs(30)).await;
    signal(pid, Signal::CONT);
    // What asked meanwhile is answered late; the tests' own client as well.
    world
        .until("the API server answers", || async { world.deployments().list(&Default::default()).await.map(drop) })
        .await;
    all_serve(world, version).await;
}

pub async fn all_are_ready_after_kubelet_worker_controller_postgres_and_api_server_failed(world: &'static World) {
    world.register_small();
    let revisions = std::sync::Arc::default();
    let watches = observe::watch_all(&world.client, SHOP, &revisions).await;
    let all: Vec<Value> = (0..COUNT).map(|number| world.small(&format!("small-{number}"), 1)).collect();
    world.apply(&all);
    all_serve(world, 1).await;
    let told = |what: &str| eprintln!("all are Ready after {what}");
    kubelet_stops(world, 2).await;
    told("the kubelet was away");
    worker_is_deleted_by_force(world, 1).await;
    told("a worker was deleted by force");
    controllers_are_killed(world, 2).await;
    told("both controllers were killed");
    postgres_is_restarted(world, 1).await;
    told("Postgres was restarted");
    api_server_is_frozen(world, 2).await;
    told("the API server was frozen for 30 s");
    // Those of earlier stories, too: nobody touched them.
    world
        .until("every ModelDeployment is Ready", || async {
            let all = world.deployments().list(&Default::default()).await.map_err(|error| error.to_string())?;
            match all.iter().find(|object| !ready(object)) {
                None => Ok(()),
                Some(object) => Err(format!("{:?}: {}", object.metadata.name, object.data["status"])),
            }
        })
        .await;
    revisions_keep_the_rules(world, watches, revisions).await;
    let all: Vec<String> = (0..COUNT).map(|number| format!("small-{number}")).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    world.kubectl(&[&["-n", SHOP, "delete", "mdep", "--timeout=120s"][..], &names].concat());
}

/// The rules of a history, of what can be seen from outside: the workers in their pods keep no accounts.
async fn revisions_keep_the_rules(
    world: &World,
    mut watches: tokio::task::JoinSet<()>,
    revisions: std::sync::Arc<std::sync::Mutex<Vec<crate::history::Revision>>>,
) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let quiet_version = observe::version(&world.deployments()).await;
    let mut sql = world.sql().await;
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let from = sql.number(now).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let until = sql.number(now).await;
    watches.abort_all();
    let mut registry = observe::registry(&mut sql).await;
    sql.close().await;
    // The others were not watched from their beginning.
    let ours = format!("deployment/{SHOP}/small-");
    registry.deployments.retain(|row| row.resource.starts_with(&ours));
    registry.plans.retain(|row| row.resource.starts_with(&ours));
    let history = History {
        registry,
        revisions: revisions.lock().expect("not poisoned").clone(),
        calls: Vec::new(),
        granted: Vec::new(),
        faults: Vec::new(),
        denied: 0,
        terms: Terms {
            ttl: super::world::TTL.as_micros() as i64,
            poll: 1_200_000,
            margin: 10_000_000,
            capacity: 16,
            quiet: (from, until),
            quiet_version,
            faults: Vec::new(),
            stale_writes: false,
        },
    };
    let broken: Vec<String> = rules::check(&history)
        .iter()
        // Its business is with the workers' accounts.
        .filter(|violation| violation.rule != Rule::NotVacuous)
        .map(ToString::to_string)
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let (revisions, grants) = (history.revisions.len(), history.registry.grants.len());
    assert!(revisions > 50 && grants > 10, "too little happened: {revisions} revisions, {grants} grants");
    eprintln!("{revisions} revisions of objects and {grants} grants keep the rules");
}
