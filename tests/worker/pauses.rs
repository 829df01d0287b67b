//! A worker that stops at the worst moment: before or after each call of each step, to the database and to the cluster.
//!
//! The calls are not listed here: an undisturbed rollout writes down what it does, and then each of its calls is disturbed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use kube::{Resource, ResourceExt};
use palisade::plan::{Spec, Strategy};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::support::world::{Worker, World, lines};

/// Disturbed rollouts at once: each is two processes.
const AT_ONCE: usize = 5;
/// The TTLs of a worker that is paused, one after the other until it came to its point with its session alive: its own clock is
/// to find the time over, and each test waits for that. A machine that is busy for longer than the last one is out of use.
const TTLS: [u64; 4] = [2, 5, 10, 20];

/// From version 1, which serves, to version 2. Between them the kinds have every call that a rollout makes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Version 1 is deleted at the end.
    BlueGreen,
    /// Version 1 is kept, scaled to zero at the beginning.
    Recreate,
}

impl Kind {
    fn spec(self, world: &World, version: i64) -> Spec {
        let (strategy, revision_history_limit) = match self {
            Self::BlueGreen => (Strategy::BlueGreen, 0),
            Self::Recreate => (Strategy::Recreate, 1),
        };
        let promote_alias = Some("champion".into());
        Spec { promote_alias, strategy, revision_history_limit, ..world.spec("churn", version) }
    }
}

/// A world in which version 1 serves, and nobody works.
async fn serving(prefix: &str, uid: Uuid, kind: Kind) -> World {
    let world = World::new(prefix).await;
    world.planner.plan(uid, kind.spec(&world, 1)).await;
    let mut first = world.worker("first", &[]);
    world.done("churn", 1).await;
    first.signal(rustix::process::Signal::TERM);
    assert!(first.ended().await.success(), "a worker that was asked to stop exits with 0: {}", first.text());
    world
}

/// The calls of a rollout from version 1 to version 2, in order: `STEP/CALL/before` and `STEP/CALL/after`.
async fn points_of(kind: Kind) -> Vec<String> {
    let uid = Uuid::new_v4();
    let world = serving("points", uid, kind).await;
    let path = world.logs.path().join("points");
    world.planner.plan(uid, kind.spec(&world, 2)).await;
    let worker = world.worker("recorder", &[("PALISADE_POINTS", path.to_str().expect("a path"))]);
    world.done("churn", 2).await;
    worker.says("\"done\"", 1).await;
    let mut points = lines(&path);
    // These come at any time, from the moment that the process starts, or only when something was in the way.
    let incidental = [
        "schema_version",
        "heartbeat",
        "held",
        "open_session",
        "report_progress",
        "settle",
        "retire/get/",
        "list_pods",
    ];
    points.retain(|p| !incidental.iter().any(|call| p.contains(call)));
    points
}

/// Each call once, with the kind of rollout that makes it.
async fn points() -> Vec<(Kind, String)> {
    let usual = points_of(Kind::BlueGreen).await;
    let more = points_of(Kind::Recreate).await.into_iter().filter(|point| !usual.contains(point)).collect::<Vec<_>>();
    let all: Vec<_> =
        usual.into_iter().map(|p| (Kind::BlueGreen, p)).chain(more.into_iter().map(|p| (Kind::Recreate, p))).collect();
    let expected =
        ["-/claim", "seal/seal", "verify/version_show", "apply/apply", "apply/scale", "ready/", "switch/apply"];
    let expected =
        expected.iter().chain(&["switch/record_serving", "drain/record_step", "retire/mark", "retire/delete"]);
    for call in expected.chain(&["done/record_done", "done/release"]) {
        assert!(all.iter().any(|(_, point)| point.starts_with(call)), "no {call} in {all:?}");
    }
    all
}

/// Everything that a stale worker might have changed.
async fn picture(world: &World) -> BTreeMap<String, String> {
    let mut picture = BTreeMap::new();
    let mut sql = world.sql().await;
    for table in ["deployment", "alias", "plan", "lease", "queue", "operation", "event"] {
        let rows = sql.list(&format!("SELECT t::text FROM palisade.{table} AS t ORDER BY 1")).await;
        picture.insert(table.to_owned(), rows.join("\n"));
    }
    sql.close().await;
    let client = world.cluster.admin().await;
    objects::<Deployment>(Api::namespaced(client.clone(), &world.namespace), &mut picture).await;
    objects::<Service>(Api::namespaced(client, &world.namespace), &mut picture).await;
    picture
}

async fn objects<K>(api: Api<K>, picture: &mut BTreeMap<String, String>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    for object in api.list(&ListParams::default()).await.expect("a list").items {
        let mut json = serde_json::to_value(&object).expect("JSON");
        // What Kubernetes' own controllers report is theirs to change.
        for theirs in ["status", "managedFields", "resourceVersion"] {
            json.as_object_mut().expect("an object").remove(theirs);
            json["metadata"].as_object_mut().expect("metadata").remove(theirs);
        }
        picture.insert(format!("{} {}", K::kind(&()), object.name_any()), json.to_string());
    }
}

/// The registry's function, if the pause is right before a fenced write to it.
fn registry_write(point: &str) -> Option<&str> {
    let call = point.strip_suffix("/before")?.split('/').nth(1)?;
    (call.starts_with("record_") || call == "release").then_some(call)
}

/// Whether the pause is right before a fenced write to the cluster.
fn is_cluster_write(point: &str) -> bool {
    ["/seal/before", "/apply/before", "/scale/before", "/mark/before", "/delete/before"]
        .iter()
        .any(|call| point.ends_with(call))
}

/// A world in which worker `stale` is really stopped at `point` of the rollout of version 2, with its session alive.
async fn stopped(kind: Kind, point: &str, uid: Uuid) -> (World, Worker) {
    let blind = registry_write(point).is_some() || is_cluster_write(point);
    let stop: &[(&str, &str)] = &[("PALISADE_STOP_AT", point), ("PALISADE_BLIND", "1")];
    let stop = if blind { stop } else { &stop[..1] };
    for ttl in TTLS {
        let world = serving("paused", uid, kind).await;
        world.planner.plan(uid, kind.spec(&world, 2)).await;
        let stale = world.worker_with("stale", Duration::from_secs(ttl), stop);
        let lost = || stale.text().contains("session lost");
        stale.wait(&format!("to stop itself at {point}"), || stale.is_stopped() || lost()).await;
        // Too slow for its TTL, it goes on from what it recorded, and may never come to the point again.
        if !lost() {
            return (world, stale);
        }
    }
    panic!("no worker came to {point} before its session was lost, even with a TTL of {} s", TTLS[TTLS.len() - 1]);
}

/// A worker is really stopped at `point`, while it rolls out version 2. Another one takes over and rolls out version 3. Then the
/// first one goes on. Where it was about to write it is made blind, so that the write is really sent: only the fences stand.
async fn paused(kind: Kind, point: &str) {
    let uid = Uuid::new_v4();
    let (world, stale) = stopped(kind, point, uid).await;
    // What it did before it stopped is done; from here on, nothing of its may be applied.
    world.planner.plan(uid, kind.spec(&world, 3)).await;
    let next = world.worker("next", &[]);
    world.done("churn", 3).await;
    next.says("\"done\"", 1).await;

    let before = picture(&world).await;
    stale.thaw();
    // It notices, starts over, and is of use again (L4). With nothing in its hands, nobody had to wait for its TTL, and
    // there may be nothing to notice.
    if point == "done/release/after" {
        stale.says("\"done\"", 1).await;
    } else if point != "-/claim/before" {
        stale.says("starting over with a new session", 1).await;
        stale.says("session opened", 2).await;
    }
    let after = picture(&world).await;
    assert_eq!(
        before,
        after,
        "after a pause at {point}, the stale worker changed something; its log:\n{}",
        stale.text()
    );
    // Not vacuous: the write was sent, and refused.
    let mut sql = world.sql().await;
    if let Some(call) = registry_write(point) {
        let refused = format!("SELECT count(*) FROM palisade.refusal WHERE reason = 'stale' AND kind = '{call}'");
        assert!(sql.number(&refused).await > 0, "no {call} was refused after a pause at {point}:\n{}", stale.text());
    } else if is_cluster_write(point) {
        // Of a version's Deployment that is not there (any more), the object cannot say who owns it: the registry can.
        let told =
            ["the object carries a newer token", "rejected: stale"].iter().any(|text| stale.text().contains(text));
        assert!(told, "nothing was refused after a pause at {point}:\n{}", stale.text());
    }
    sql.close().await;
}

/// How many writes the policies have refused so far, by the API server's own count, which is one of validations; without the dry
/// runs by which each session asks whether they do: two validations refuse the malformed fence, one the missing label.
async fn denied(world: &World) -> f64 {
    let request = axum::http::Request::get("/metrics").body(Vec::new()).expect("a request");
    let text = world.cluster.admin().await.request_text(request).await.expect("the API server's metrics");
    let sum = |parts: &[&str]| -> f64 {
        let lines = text.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let denied =
        ["apiserver_validating_admission_policy_check_total{", "palisade-fence", "enforcement_action=\"deny\""];
    let asked =
        |code| sum(&["apiserver_request_total{", "dry_run=\"All\"", "resource=\"services\"", "verb=\"POST\"", code]);
    let (malformed, unlabelled) = (asked("code=\"422\""), asked("code=\"403\""));
    assert!(malformed > 0.0 && unlabelled > 0.0, "not one session asked");
    sum(&denied) - 2.0 * malformed - unlabelled
}

/// A worker is killed at `point`; another one resumes from what is recorded, and finishes the same plan.
async fn killed(kind: Kind, point: &str) {
    let uid = Uuid::new_v4();
    let world = serving("killed", uid, kind).await;
    world.planner.plan(uid, kind.spec(&world, 2)).await;
    let mut dead = world.worker("dead", &[("PALISADE_KILL_AT", point)]);
    dead.ended().await;
    world.expire("dead").await;
    let next = world.worker("next", &[]);
    world.done("churn", 2).await;
    let mut sql = world.sql().await;
    assert_eq!(sql.text("SELECT version::text FROM palisade.alias").await, "2", "killed at {point}");
    // The takeover is on record, unless there was nothing to do any more, or nothing held yet.
    let nothing_left = ["done/record_done/after", "done/release/before", "done/release/after"].contains(&point);
    let takeovers = sql
        .number("SELECT count(*) FROM palisade.grant_history WHERE kind = 'takeover' AND resource LIKE 'deployment/%'")
        .await;
    assert!(takeovers > 0 || nothing_left || point == "-/claim/before", "no takeover after a kill at {point}");
    sql.close().await;
    next.says("\"done\"", usize::from(!nothing_left)).await;
    let client = world.cluster.admin().await;
    let service = Api::<Service>::namespaced(client.clone(), &world.namespace).get("churn").await.expect("a Service");
    let target = kind.spec(&world, 2).revision();
    assert_eq!(
        service.spec.and_then(|s| s.selector).expect("a selector")["palisade.dev/revision"],
        target,
        "killed at {point}"
    );
    let left =
        Api::<Deployment>::namespaced(client, &world.namespace).list(&ListParams::default()).await.expect("a list");
    let running = |d: &&Deployment| d.spec.as_ref().and_then(|s| s.replicas) != Some(0);
    let names: Vec<_> = left.items.iter().filter(running).map(ResourceExt::name_any).collect();
    assert_eq!(names, [format!("churn-{target}")], "killed at {point}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_paused_before_or_after_any_call_of_any_step_changes_nothing_once_it_was_replaced() {
    let points = points().await;
    let world = World::new("metrics").await;
    let before = denied(&world).await;
    stream::iter(&points).for_each_concurrent(AT_ONCE, |(kind, point)| paused(*kind, point)).await;
    let denied = denied(&world).await - before;
    eprintln!("{} pauses; the API server refused {denied} writes", points.len());
    let cluster_writes =
        points.iter().filter(|(_, point)| is_cluster_write(point) && !point.ends_with("/delete/before")).count();
    assert!(
        denied >= cluster_writes as f64,
        "the API server refused {denied} writes, and {cluster_writes} came too late"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_before_or_after_any_call_of_any_step_is_resumed_by_another() {
    let points = points().await;
    stream::iter(&points).for_each_concurrent(AT_ONCE, |(kind, point)| killed(*kind, point)).await;
}
