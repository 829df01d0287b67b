//! A controller and up to 10,000 ModelDeployments on a real API server: the first sync, a restart after which there is nothing
//! to do, what it writes then (nothing), and its memory.
//!
//! The objects are as they are in production: planned, rolled out, `Ready`, each with its Deployment and Service. Only the
//! rollouts themselves are left out: the benchmark records them in the workers' place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::Client;
use kube::core::Request;
use palisade::crd::ModelDeployment;
use palisade::lease::{Lease, Session, SessionConfig};
use palisade::manifests::{self, CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, Settings};
use palisade::plan::{Plan, State};
use palisade::store::{Claimed, Store, StoreConfig, Write};
use palisade::worker::objects;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Bench, Row, Target};
use crate::server::Db;
use crate::support::cluster::Cluster;
use crate::support::postgres::Server;
use crate::support::world::register;
use crate::takeover::{Process, wall};

pub const SUBJECT: &str = "modeldeployments";

const NAMESPACE: &str = "default";
const LARGEST: usize = 10_000;
/// Requests at once, of the benchmark's own.
const AT_ONCE: usize = 24;
/// How long nothing must happen until the controller counts as done.
const QUIET: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(900);

struct Place<'a> {
    bench: &'a Bench,
    cluster: &'a Cluster,
    client: Client,
    db: Db<'a>,
    kubeconfig: std::path::PathBuf,
}

/// A controller that runs, and where it answers.
struct Controller {
    process: Process,
    address: String,
    /// When it was started, in seconds since 1970.
    began: f64,
    at: Instant,
}

impl Controller {
    async fn start(place: &Place<'_>, name: &str) -> Controller {
        let log = place.bench.dir.join(format!("{name}.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(["controller", "--replica-name", name, "--watch-namespace", NAMESPACE, "--log-format", "json"]);
        command.env("DATABASE_URL", place.db.url_as("controller_login")).env("KUBECONFIG", &place.kubeconfig);
        let (began, at) = (wall(), Instant::now());
        let process = Process::start(command.stdout(Stdio::null()), &log);
        let address = address(&log).await;
        Controller { process, address, began, at }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.address).await.expect("the controller listens");
        let request = format!("GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// Objects that were looked at and are as they should be (one by one, or in a survey), and looks that failed.
    async fn looks(&self) -> (u64, u64) {
        let text = self.get("/metrics").await;
        let of = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default() as u64
        };
        let good = of("palisade_surveyed_total") + of("palisade_reconciles_total{result=\"ok\"}");
        (good, of("palisade_reconciles_total{result=\"error\"}"))
    }

    /// Waits until it has looked at `count` objects and has nothing more to do. Answers how long after its start it looked for
    /// the last time, and how often it looked.
    async fn rested(&self, count: usize) -> (Duration, u64) {
        let (mut last, mut seen) = (self.at.elapsed(), 0);
        loop {
            let (good, failed) = self.looks().await;
            if good + failed != seen {
                (last, seen) = (self.at.elapsed(), good + failed);
            } else if good as usize >= count && self.at.elapsed() - last > QUIET {
                return (last, seen);
            }
            assert!(self.at.elapsed() < PATIENCE, "{good} looks of {count} came to their end, {failed} failed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until this is none of the reasons for which it is not ready. Answers how long that took since its start.
    async fn ready(&self, reason: &str) -> Duration {
        while self.get("/readyz").await.contains(reason) {
            assert!(self.at.elapsed() < PATIENCE, "the controller waits for {reason}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.at.elapsed()
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.0.id())).expect("the process is there")
    }

    /// Memory that is its own, and its share of what it shares.
    fn memory_kb(&self) -> f64 {
        let text = self.proc("smaps_rollup");
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("a number of kB")
    }

    /// SIGTERM: it gives the leadership back.
    async fn stop(mut self) {
        self.process.signal(Signal::TERM);
        tokio::task::spawn_blocking(move || self.process.0.wait().expect("it ends")).await.expect("waited");
    }
}

/// Where the log says that it listens.
async fn address(log: &Path) -> String {
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(address) = lines.filter_map(|line| line["address"].as_str().map(str::to_owned)).next() {
            return address;
        }
        assert!(began.elapsed() < PATIENCE, "it does not listen; its log: {text}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// CPU time of a process, in seconds.
fn cpu(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / 100.0 // USER_HZ is 100 on every Linux
}

impl Place<'_> {
    async fn create(&self, path: String, object: &Value) {
        let body = serde_json::to_vec(object).expect("JSON");
        let request = Request::new(path).create(&kube::api::PostParams::default(), body).expect("a request");
        self.client.request_text(request).await.unwrap_or_else(|e| panic!("{object}: {e}"));
    }

    /// ModelDeployments as people write them.
    async fn apply(&self, range: std::ops::Range<usize>) {
        let path = || <ModelDeployment as kube::Resource>::url_path(&(), Some(NAMESPACE));
        let creations = range.map(|i| {
            let object = json!({
                "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
                "metadata": {"name": format!("model-{i}"), "labels": {"team": "churn", "app.kubernetes.io/part-of": "scoring"}},
                "spec": {
                    "model": {"name": "churn", "version": 1},
                    "replicas": 2,
                    "template": {"spec": {"containers": [{
                        "name": "model", "image": "registry.example/churn-server:1.0",
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                    }]}},
                    "service": {"port": 8080},
                },
            });
            async move { self.create(path(), &object).await }
        });
        stream::iter(creations).buffer_unordered(AT_ONCE).count().await;
    }

    /// What workers do for all that is due: objects, and what the registry records of them.
    async fn work(&self) {
        let config = SessionConfig::new("worker", Duration::from_secs(600));
        // Closed at the end: a backend that is kept, idle, tells what it wrote up to ten seconds later.
        let store = self.store();
        let session = Session::open(store.clone(), config).await.expect("a session");
        loop {
            let claimed = session.claim(500).await.expect("an answer");
            if claimed.is_empty() {
                break;
            }
            let work = claimed.into_iter().map(|(lease, Claimed { plan, .. })| self.roll_out(lease, plan));
            stream::iter(work).buffer_unordered(AT_ONCE).count().await;
        }
        session.close().await.expect("closed");
        store.close().await;
    }

    fn store(&self) -> Store {
        Store::new(&StoreConfig::new(self.db.url.clone(), "benchmark")).expect("a store")
    }

    async fn roll_out(&self, lease: Lease, plan: Plan) {
        let (spec, uid, rollout) = (&plan.spec, plan.uid, plan.rollout);
        let fence = palisade::lease::Fence { token: lease.token(), sequence: 1 };
        let owner = uid.to_string();
        // Without replicas: which pods run is not the controller's business.
        self.create(
            format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments"),
            &objects::deployment(spec, &owner, 0, Some(fence)),
        )
        .await;
        self.create(format!("/api/v1/namespaces/{NAMESPACE}/services"), &objects::service(spec, &owner, fence)).await;
        let state = State { history: vec![spec.revision()], ..State::default() };
        let serving = Write::RecordServing {
            uid,
            rollout,
            step: "drain",
            state: state.clone(),
            model: spec.model.clone(),
            version: spec.version,
            revision: spec.revision(),
            alias: None,
        };
        for write in [serving, Write::RecordDone { uid, rollout, state }] {
            lease.write(write).await.expect("an answer").applied().expect("recorded");
        }
        lease.release(None).await.expect("an answer");
    }

    /// Writes that the API server took, by verb and resource. Without those that it makes for itself.
    async fn api_writes(&self) -> BTreeMap<String, u64> {
        let request = Request::new("").get("metrics", &kube::api::GetParams::default()).expect("a request");
        let text = self.client.request_text(request).await.expect("the API server's metrics");
        let mut writes = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, count)) = line.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value.to_owned())
            };
            let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
            let writes_something = matches!(&*verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE");
            if writes_something && !matches!(&*resource, "leases" | "nodes" | "tokenreviews" | "subjectaccessreviews") {
                *writes.entry(format!("{verb} {resource}")).or_default() +=
                    count.parse::<f64>().unwrap_or_default() as u64;
            }
        }
        writes
    }

    /// Rows that were written to the registry: everything but sessions and the leader's own lease.
    async fn registry_writes(&self) -> i64 {
        let mut sql = self.db.sql().await;
        // A backend's figures are complete when it has ended: the controller's, and those that rolled out.
        sql.wait_until(
            "NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
             AND backend_type = 'client backend' AND pid <> pg_backend_pid())",
        )
        .await;
        sql.run("SELECT pg_stat_clear_snapshot()").await;
        let tables = sql.number(
            "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables WHERE schemaname = 'palisade'
             AND relname NOT IN ('session', 'lease', 'progress', 'grant_history', 'epoch', 'operation')",
        );
        let tables = tables.await;
        tables + sql.number("SELECT count(*) FROM palisade.operation WHERE resource NOT LIKE 'controller/%'").await
    }

    /// The same list as the controller reads, of which nothing is kept: the network's part.
    async fn list(&self) -> Duration {
        let (began, mut next) = (Instant::now(), String::new());
        loop {
            let path = <ModelDeployment as kube::Resource>::url_path(&(), Some(NAMESPACE));
            let params = kube::api::ListParams {
                limit: Some(500),
                continue_token: (!next.is_empty()).then_some(next),
                ..Default::default()
            };
            let request = Request::new(path).list_metadata(&params).expect("a request");
            let text = self.client.request_text(request).await.expect("a list");
            next = text
                .split_once("\"continue\":\"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map_or(String::new(), |(token, _)| token.to_owned());
            if next.is_empty() {
                return began.elapsed();
            }
        }
    }
}

fn freeze(cluster: &Cluster) {
    // Nothing but the API server and the controller shall work, or write.
    for component in ["kwok", "kube-scheduler", "kube-controller-manager"] {
        kill_process(Pid::from_raw(cluster.pid(component)).expect("a PID"), Signal::STOP).expect("it is there");
    }
}

pub async fn run(bench: &Bench, server: &Server) {
    let cluster = Cluster::start().await;
    cluster.apply(&manifests::rbac(&Settings::new(SYSTEM_NAMESPACE, [], None).expect("settings"))).await;
    let kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT).await;
    freeze(&cluster);
    let db = Db::new(bench, server).await;
    let place = Place { bench, client: cluster.admin().await, cluster: &cluster, db, kubeconfig };
    let store = place.store();
    register(&store).await;
    store.close().await;
    let mut sizes = vec![100, 1_000];
    sizes.extend(bench.pick(Some(LARGEST), None));
    let (mut from, mut least) = (0, None);
    for count in sizes {
        grow(&place, from, count).await;
        let memory = restart(&place, count).await;
        if let Some((fewest, kb)) = least {
            let each = (memory - kb) / (count - fewest) as f64;
            let row = Row::new(SUBJECT, format!("{count}: memory of the controller, an object"), each, "kB");
            // Of fewer, the pages of the lists that were read take most of it.
            bench.add(if count == LARGEST { row.with_target(Target::AtMost(5.0)) } else { row });
        }
        least = least.or(Some((count, memory)));
        from = count;
    }
    cluster.stop();
}

/// New ModelDeployments, and all that happens until they are served.
async fn grow(place: &Place<'_>, from: usize, to: usize) {
    let Place { bench, .. } = place;
    bench.say(format_args!("{to} ModelDeployments: creating {}", to - from));
    place.apply(from..to).await;
    let controller = Controller::start(place, &format!("first-{to}")).await;
    let (took, _) = controller.rested(to).await;
    let new = to - from;
    bench.add(Row::new(
        SUBJECT,
        format!("{to}: first sync of {new} new ones, until each has a plan and a status"),
        took.as_secs_f64(),
        "s",
    ));
    controller.stop().await;
    bench.say(format_args!("{to} ModelDeployments: rolling out {new}"));
    place.work().await;
    let controller = Controller::start(place, &format!("second-{to}")).await;
    controller.rested(to).await;
    controller.stop().await;
    let mut sql = place.db.sql().await;
    let done = sql.number("SELECT count(*) FROM palisade.deployment WHERE step = 'done'").await;
    assert_eq!(done as usize, to, "all are rolled out");
    sql.run("VACUUM ANALYZE").await;
    sql.close().await;
}

/// A controller that is started when there is nothing to do. Answers its memory in kB.
async fn restart(place: &Place<'_>, count: usize) -> f64 {
    let Place { bench, cluster, .. } = place;
    let network = place.list().await;
    let (api, registry) = (place.api_writes().await, place.registry_writes().await);
    let (server, before) = (cluster.pid("kube-apiserver"), cpu(cluster.pid("kube-apiserver")));
    let controller = Controller::start(place, &format!("restart-{count}")).await;
    let known = controller.ready("cluster").await;
    let (took, looks) = controller.rested(count).await;
    let own = cpu(controller.process.0.id().cast_signed());
    let memory = controller.memory_kb();
    let (_, failed) = controller.looks().await;
    let began = controller.began;
    bench.say(format_args!(
        "{count}: {looks} looks, {failed} failed; CPU: controller {own:.2} s, API server {:.2} s; list by itself {network:.2?}",
        cpu(server) - before
    ));
    controller.stop().await;
    let now = place.api_writes().await;
    let written: Vec<String> = now
        .iter()
        .map(|(what, count)| (what, count - api.get(what).copied().unwrap_or_default()))
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if !written.is_empty() {
        bench.say(format_args!("written: {}", written.join(", ")));
    }
    let writes: u64 = now.values().sum::<u64>() - api.values().sum::<u64>();
    let rows = place.registry_writes().await - registry;
    let mut sql = place.db.sql().await;
    let leading = sql.text("SELECT extract(epoch FROM max(at)) FROM palisade.grant_history WHERE resource = 'controller/default' AND session IS NOT NULL").await;
    let leading = leading.parse::<f64>().expect("a number") - began;
    let largest = count == LARGEST;
    let add = |what: &str, value: f64, unit: &str, target: Option<f64>| {
        let row = Row::new(SUBJECT, format!("{count}: {what}"), value, unit);
        bench.add(target.map_or(row.clone(), |most| row.with_target(Target::AtMost(most))));
    };
    let only = |most: f64| largest.then_some(most);
    add("restart, until all were looked at and nothing was to be done", took.as_secs_f64(), "s", only(5.0));
    add("writes to the API server meanwhile", writes as f64, "", Some(0.0));
    add("rows written to the registry meanwhile", rows as f64, "", Some(0.0));
    add("start of the process to the first lease", leading * 1e3, "ms", Some(250.0));
    add(
        "start of the process to a complete list, beside the network",
        (known.saturating_sub(network)).as_secs_f64(),
        "s",
        only(1.0),
    );
    add("memory of the controller", memory / 1024.0, "MB", only(60.0));
    memory
}
