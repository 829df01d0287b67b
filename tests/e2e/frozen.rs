//! Workers that stop in the middle of their work, and go on when they were replaced.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::node::{FAILPOINTS, SHOP, SYSTEM, is_stopped, signal};
use super::world::{TTL, World, name};

/// Right before a fenced write of each step of a rollout: where a pause does the most harm.
const POINTS: [&str; 9] = [
    "seal/seal/before",
    "verify/record_step/before",
    "apply/apply/before",
    "ready/record_step/before",
    "switch/apply/before",
    "switch/record_serving/before",
    "drain/record_step/before",
    "retire/mark/before",
    "done/record_done/before",
];
/// What a takeover may take beyond TTL and poll, on two busy cores.
const MARGIN: Duration = Duration::from_secs(6);

pub const WORKERS: &str = "app.kubernetes.io/component=worker";
/// The label of the workers that this story makes.
const ARMED: &str = "story=armed";

/// A worker pod as the release has it, but for a point at which it stops itself; it works on one deployment at a time. It
/// does not look at its clock when it wakes up: what it was about to send is sent, and only the fences stand.
fn armed(world: &World, number: usize, point: &str) -> Value {
    let mut spec = template(world);
    spec["restartPolicy"] = "Never".into();
    // The first process of a PID namespace cannot stop itself.
    spec["shareProcessNamespace"] = true.into();
    let container = &mut spec["containers"][0];
    container["image"] = FAILPOINTS.into();
    let args = container["args"].as_array_mut().expect("arguments");
    args.retain(|arg| !arg.as_str().is_some_and(|arg| arg.starts_with("--capacity")));
    args.push("--capacity=1".into());
    let env = container["env"].as_array_mut().expect("variables");
    env.push(json!({"name": "PALISADE_STOP_AT", "value": point}));
    env.push(json!({"name": "PALISADE_BLIND", "value": "1"}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("armed-{number}"), "namespace": SYSTEM, "labels": {"story": "armed"}},
        "spec": spec,
    })
}

/// The release's own worker.
fn template(world: &World) -> Value {
    world.get(&["deployment", "-n", SYSTEM, "palisade-worker"])["spec"]["template"]["spec"].clone()
}

fn resource(name: &str) -> String {
    format!("deployment/{SHOP}/{name}")
}

/// All deployments whose names begin with this, at this version.
async fn all_serve(world: &World, count: usize, version: i64) {
    for number in 0..count {
        world.serves(&format!("small-{number}"), version).await;
    }
}

/// Nine workers each stop at another step of nine rollouts. The one that is left takes over all nine; then the nine go on,
/// each with the very write before which it stopped.
pub async fn a_worker_frozen_in_any_step_is_replaced_and_its_late_writes_are_refused(world: &'static World) {
    world.register_small();
    let all: Vec<Value> = (0..POINTS.len()).map(|number| world.small(&format!("small-{number}"), 1)).collect();
    world.apply(&all);
    all_serve(world, POINTS.len(), 1).await;

    let pods = stop_each(world).await;
    let resumed = Instant::now();
    all_serve(world, POINTS.len(), 2).await;
    eprintln!("all nine were rolled out {:.1} s after the last had stopped", resumed.elapsed().as_secs_f64());
    let mut sql = world.sql().await;
    let stale = sql.number("SELECT count(*) FROM palisade.refusal WHERE reason = 'stale'").await;
    let denied = denied(world);
    let sessions = sql.list("SELECT worker FROM palisade.session WHERE worker LIKE 'armed-%' ORDER BY 1").await;
    let before = picture(world).await;

    pods.iter().for_each(|pod| signal(world.pid(pod), Signal::CONT));
    for (pod, point) in pods.iter().zip(POINTS) {
        // What it was about to write is refused, and counted.
        world
            .until(&format!("{} was refused what it was about to do at {point}", name(pod)), || async {
                let page = world.page(pod, "/metrics").await;
                let refused = |line: &&str| {
                    line.starts_with("palisade_refused_writes_total{reason=\"stale\"}") && !line.ends_with(" 0")
                };
                if page.lines().any(|line| refused(&line)) { Ok(()) } else { Err(page) }
            })
            .await;
        if is_clusters(point) {
            let page = world.page(pod, "/metrics").await;
            assert!(refused_objects(&page) > 0, "no write to an object was refused at {point}: {page}");
        }
    }
    sql.wait_until(
        "SELECT count(*) = 9 FROM (SELECT worker FROM palisade.session WHERE worker LIKE 'armed-%' GROUP BY worker \
         HAVING count(*) > 1 AND bool_or(closed_at IS NULL AND expires_at > clock_timestamp())) AS again",
    )
    .await;
    assert_eq!(before, picture(world).await, "a stale worker changed something");
    let (refused, denied) = (
        sql.number("SELECT count(*) FROM palisade.refusal WHERE reason = 'stale'").await - stale,
        self::denied(world) - denied,
    );
    eprintln!("refused: {refused} by the registry, {denied} by the cluster; sessions before: {}", sessions.len());
    let registry_writes = POINTS.iter().filter(|point| point.contains("record_")).count();
    let cluster_writes = POINTS.iter().filter(|point| is_clusters(point)).count();
    assert!(refused >= registry_writes as i64, "the registry refused {refused} of {registry_writes} writes");
    assert!(denied as usize >= cluster_writes, "the cluster refused {denied} of {cluster_writes} writes");
    let told = world.palisade("postgres", &["history", &format!("{SHOP}/small-1")]);
    assert!(told.contains("takeover") && told.contains("rejected: stale"), "the history does not tell of it: {told}");
    eprintln!("{told}");

    work_again(world, &pods).await;
    sql.close().await;
}

/// The release's worker, of which one is left.
async fn only_worker(world: &World) -> Value {
    world.kubectl(&["-n", SYSTEM, "scale", "deployment/palisade-worker", "--replicas=1"]);
    let one = || async {
        let pods = world.pods(SYSTEM, WORKERS);
        if pods.len() == 1 { Ok(()) } else { Err(format!("{} workers", pods.len())) }
    };
    world.until("one worker is left", one).await;
    world.pods(SYSTEM, WORKERS).remove(0)
}

/// The workers that stopped themselves, each at its point; the release's own one is running again on return, and has
/// taken over in time.
async fn stop_each(world: &World) -> Vec<Value> {
    let other = only_worker(world).await;
    let objects: Vec<Value> = POINTS.iter().enumerate().map(|(n, point)| armed(world, n, point)).collect();
    world.apply(&objects);
    world.kubectl(&["-n", SYSTEM, "wait", "--for=condition=Ready", "--timeout=120s", "pods", "-l", ARMED]);
    let armed = world.pods(SYSTEM, ARMED);
    // The only other one is frozen for a moment, so that each of these gets a deployment.
    world.freeze(&other);
    for number in 0..POINTS.len() {
        world.roll(&format!("small-{number}"), 2);
    }
    let stopped = || async {
        let going: Vec<&str> = armed.iter().filter(|pod| !is_stopped(world.pid(pod))).map(name).collect();
        if going.is_empty() { Ok(()) } else { Err(going.join(", ")) }
    };
    let took = world.until("each has stopped at its point", stopped).await;
    let mut sql = world.sql().await;
    let held = sql.number("SELECT count(*) FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session WHERE s.worker LIKE 'armed-%' AND l.resource LIKE 'deployment/%'").await;
    assert_eq!(held, POINTS.len() as i64, "each of them owns one deployment");
    world.thaw(&other);
    let thawed = Instant::now();
    let late = "SELECT count(*) FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session WHERE s.worker LIKE 'armed-%' AND l.resource LIKE 'deployment/%'";
    world
        .until("all are taken over", || async {
            let mut sql = world.sql().await;
            let left = sql.number(late).await;
            sql.close().await;
            if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
        })
        .await;
    let over = thawed.elapsed();
    eprintln!(
        "all had stopped after {:.1} s; all were taken over {:.1} s after the other one was let go on",
        took.as_secs_f64(),
        over.as_secs_f64()
    );
    assert!(over < TTL + MARGIN, "a takeover took {over:?}");
    sql.close().await;
    armed
}

/// What a stale worker might have changed: objects, and what the registry says.
async fn picture(world: &World) -> Vec<String> {
    let mut sql = world.sql().await;
    let mut all = Vec::new();
    for table in ["deployment", "plan", "lease", "operation"] {
        all.extend(
            sql.list(&format!(
                "SELECT t::text FROM palisade.{table} AS t WHERE resource LIKE '{}%' ORDER BY 1",
                resource("small-")
            ))
            .await,
        );
    }
    sql.close().await;
    for kind in ["deployments", "services"] {
        let list = world.get(&[kind, "-n", SHOP]);
        for object in list["items"].as_array().expect("a list") {
            all.push(json!([name(object), object["metadata"]["annotations"], object["spec"]]).to_string());
        }
    }
    all
}

/// Whether what is sent there is a write to an object, which the cluster refuses. What was to be marked for deletion has
/// been deleted since: of that, only the registry can say who owns it.
fn is_clusters(point: &str) -> bool {
    !point.contains("record_") && !point.contains("/mark/")
}

/// How many writes to objects were refused to a worker, by its own count: not what a session asks by dry runs.
fn refused_objects(page: &str) -> usize {
    let own = |line: &&str| line.starts_with("palisade_cluster_writes_total") && line.contains("outcome=\"rejected\"");
    page.lines().filter(own).filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
}

/// How many writes the policies refused, by the API server's own count. It knows neither names nor dry runs, so the
/// question of a new session, whether the cluster fences, would count as well: there is none while nothing is due, and
/// that each stale write was refused is what the workers count ([`refused_objects`]).
fn denied(world: &World) -> u64 {
    let text = world.kubectl(&["get", "--raw", "/metrics"]);
    let own = |line: &&str| {
        line.starts_with("apiserver_validating_admission_policy_check_total")
            && line.contains("palisade-fence")
            && line.contains("enforcement_action=\"deny\"")
    };
    text.lines().filter(own).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
}

/// They do what there is to do when nobody else does, each of them: one deployment at a time, and nine that take long.
async fn work_again(world: &World, pods: &[Value]) {
    world.kubectl(&["-n", SYSTEM, "scale", "deployment/palisade-worker", "--replicas=0"]);
    world.kubectl(&["-n", SYSTEM, "wait", "--for=delete", "--timeout=90s", "pods", "-l", WORKERS]);
    let mut sql = world.sql().await;
    let began = sql.text("SELECT clock_timestamp()::text").await;
    for number in 0..POINTS.len() {
        let patch = json!({"spec": {"model": {"version": 3}, "strategy": {"drainSeconds": 10}}}).to_string();
        world.kubectl(&["-n", SHOP, "patch", "mdep", &format!("small-{number}"), "--type", "merge", "-p", &patch]);
    }
    all_serve(world, POINTS.len(), 3).await;
    let again = format!(
        "SELECT DISTINCT worker FROM palisade.grant_history WHERE kind = 'grant' AND worker LIKE 'armed-%' AND at > '{began}' ORDER BY 1"
    );
    let mut names: Vec<&str> = pods.iter().map(name).collect();
    names.sort_unstable();
    assert_eq!(sql.list(&again).await, names, "those that worked again");
    sql.close().await;
    world.kubectl(&["-n", SYSTEM, "scale", "deployment/palisade-worker", "--replicas=2"]);
    world.kubectl(&["-n", SYSTEM, "delete", "pods", "-l", ARMED, "--timeout=120s"]);
    world.kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/palisade-worker", "--timeout=120s"]);
    let all: Vec<String> = (0..POINTS.len()).map(|number| format!("small-{number}")).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    world.kubectl(&[&["-n", SHOP, "delete", "mdep", "--timeout=120s"][..], &names].concat());
}

/// Frozen for longer than its probe allows: the kubelet kills it, and what it owned was another one's before.
pub async fn a_frozen_worker_that_its_probe_kills_is_replaced(world: &'static World) {
    world.register_small();
    let other = only_worker(world).await;
    let mut spec = template(world);
    for (key, value) in [("periodSeconds", 3), ("timeoutSeconds", 2), ("failureThreshold", 7)] {
        spec["containers"][0]["livenessProbe"][key] = value.into();
    }
    world.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "doomed", "namespace": SYSTEM, "labels": {"story": "doomed"}},
    })]);
    world.kubectl(&["-n", SYSTEM, "wait", "--for=condition=Ready", "--timeout=120s", "pod/doomed"]);
    let doomed = world.pods(SYSTEM, "story=doomed").remove(0);
    // Its pods are never ready, so that it stays owned; and the other worker is frozen until this one owns it.
    let mut object = world.small("endless", 1);
    let never = json!({"httpGet": {"path": "/", "port": 1}, "periodSeconds": 60});
    object["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = never;
    world.freeze(&other);
    world.apply(&[object]);
    owned_by(world, "doomed").await;
    world.freeze(&doomed);
    world.thaw(&other);
    let took = owned_by(world, name(&other)).await;
    eprintln!("taken over {:.1} s after it was frozen", took.as_secs_f64());
    assert!(took < TTL + MARGIN, "a takeover took {took:?}");
    let killed = || async {
        let pod = world.get(&["pod", "-n", SYSTEM, "doomed"]);
        let status = &pod["status"]["containerStatuses"][0];
        let again = status["restartCount"].as_i64() >= Some(1) && status["ready"] == true;
        if again { Ok(()) } else { Err(status.to_string()) }
    };
    let restarted = world.until("its probe had it killed, and it is ready again", killed).await;
    eprintln!("killed by its probe and ready again {:.1} s later", restarted.as_secs_f64());
    let mut sql = world.sql().await;
    let sessions = sql.number("SELECT count(*) FROM palisade.session WHERE worker = 'doomed'").await;
    sql.close().await;
    assert!(sessions >= 2, "it has no new session");
    world.kubectl(&["-n", SHOP, "delete", "mdep", "endless", "--timeout=120s"]);
    world.kubectl(&["-n", SYSTEM, "delete", "pod", "doomed", "--timeout=60s"]);
    world.kubectl(&["-n", SYSTEM, "scale", "deployment/palisade-worker", "--replicas=2"]);
}

/// Waits until a worker of this name owns the deployment that never ends.
async fn owned_by(world: &World, worker: &str) -> Duration {
    let owner = format!(
        "SELECT coalesce((SELECT s.worker FROM palisade.lease AS l JOIN palisade.session AS s ON s.id = l.session WHERE l.resource = '{}'), '')",
        resource("endless")
    );
    world
        .until(&format!("{worker} owns it"), || async {
            let mut sql = world.sql().await;
            let found = sql.text(&owner).await;
            sql.close().await;
            if found == worker { Ok(()) } else { Err(format!("its owner is {found:?}")) }
        })
        .await
}
