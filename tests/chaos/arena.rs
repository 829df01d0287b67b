//! Where the chaos happens: Postgres, a control plane, a controller and workers, of their own, because all of them are
//! frozen and killed. Each part has its own rights, as in production, and nothing is in-process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use palisade::crd::ModelDeployment;
use palisade::manifests::{CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, Settings, WORKER_ACCOUNT};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::MutexGuard;

use super::history::{Fault, FaultKind, Revision};
use super::observe;
use crate::support::cluster::Cluster;
use crate::support::postgres::{Conn, LOGINS, Server};

/// The TTL of the workers' sessions.
pub const TTL: Duration = Duration::from_secs(2);
/// How long the whole system may take for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Deployments that a worker works on at once.
pub const CAPACITY: usize = 8;
const DATABASE: &str = "chaos";

/// A line each, `function ==> what its source says ==> what it says instead`, `sql ==> statement` or `policy ==> name`:
/// breaks the product, to see the checker fail.
const BREAK: &str = "PALISADE_CHAOS_BREAK";

pub struct Arena {
    pub server: Server,
    pub cluster: Cluster,
    pub client: Client,
    pub namespace: String,
    pub dir: tempfile::TempDir,
    pub revisions: Arc<Mutex<Vec<Revision>>>,
    pub faults: Mutex<Vec<Fault>>,
    watches: tokio::task::JoinSet<()>,
    /// One at a time: each has a whole control plane.
    _alone: MutexGuard<'static, ()>,
    /// How many writes were refused before: to see whether the policies are in force.
    pub denied_before: u64,
    controller: Option<Process>,
    worker_kubeconfig: PathBuf,
}

/// Nanoseconds since boot: what the processes' accounts are written by.
pub fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

impl Arena {
    /// Everything but workers: an epoch is established, and the model `churn` has two versions.
    pub async fn start() -> Arena {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let alone = ALONE.lock().await;
        let dir = tempfile::Builder::new().prefix("palisade-chaos-").tempdir().expect("a folder");
        let (server, cluster) = tokio::join!(postgres(), Cluster::start());
        cluster.install_policies(&Settings::new(SYSTEM_NAMESPACE, [], None).expect("settings")).await;
        let worker_kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, WORKER_ACCOUNT).await;
        let controller_kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT).await;
        let namespace = cluster.namespace("chaos").await;
        let client = cluster.admin().await;
        let revisions = Arc::default();
        let watches = observe::watch_all(&client, &namespace, &revisions).await;
        let mut arena = Arena {
            server,
            cluster,
            client,
            namespace,
            dir,
            revisions,
            faults: Mutex::default(),
            watches,
            _alone: alone,
            denied_before: 0,
            controller: None,
            worker_kubeconfig,
        };
        arena.denied_before = arena.denied();
        arena.break_product().await;
        let url = arena.server.url_of("controller_login", DATABASE);
        let args = ["controller", "--replica-name", "c1", "--ttl", "5s", "--watch-namespace", &arena.namespace];
        arena.controller = Some(arena.spawn("c1", &args, &url, &controller_kubeconfig, &[]));
        let mut sql = arena.sql().await;
        sql.wait_until("SELECT established FROM palisade.epoch_status()").await;
        register(&mut sql).await;
        sql.close().await;
        arena
    }

    async fn break_product(&self) {
        let Ok(text) = std::env::var(BREAK) else { return };
        eprintln!("the product is broken on purpose: {text}");
        let mut sql = self.sql().await;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match line.split_once("==>").map(|(what, rest)| (what.trim(), rest.trim())) {
                Some(("policy", name)) => {
                    let output = self.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", name]);
                    assert!(output.status.success(), "{output:?}");
                }
                _ => sql.break_rule(line).await,
            }
        }
        sql.close().await;
    }

    fn spawn(&self, name: &str, args: &[&str], url: &str, kubeconfig: &Path, environment: &[(&str, &str)]) -> Process {
        let log = self.dir.path().join(format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_palisade"))
            .args(args)
            .args(["--log-format", "json"])
            .env("DATABASE_URL", url)
            .env("KUBECONFIG", kubeconfig)
            .env("PALISADE_ACCOUNT", self.dir.path().join(format!("{name}.account")))
            .env("PALISADE_LOG", "palisade=info,palisade::worker::cluster=debug")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).expect("a log file"))
            .spawn();
        Process { child: child.expect("the process starts"), name: name.to_owned(), log }
    }

    /// A worker; with `stop_at` it stops itself there, once, and with `blind` it does not look at the clock when it wakes
    /// up, but sends what it was about to send.
    pub fn worker(&self, name: &str, stop_at: Option<&str>, blind: bool) -> Process {
        self.worker_with(name, TTL, stop_at, blind)
    }

    /// With another TTL.
    pub fn worker_with(&self, name: &str, ttl: Duration, stop_at: Option<&str>, blind: bool) -> Process {
        let ttl = format!("{}s", ttl.as_secs());
        let url = self.server.url_of("worker_login", DATABASE);
        let capacity = CAPACITY.to_string();
        let args = ["worker", "--name", name, "--ttl", &ttl, "--poll", "200ms", "--capacity", &capacity];
        let mut environment: Vec<_> = stop_at.iter().map(|point| ("PALISADE_STOP_AT", *point)).collect();
        if blind {
            environment.push(("PALISADE_BLIND", "1"));
        }
        self.spawn(name, &args, &url, &self.worker_kubeconfig, &environment)
    }

    /// As the superuser, who sees everything.
    pub async fn sql(&self) -> Conn {
        Conn::open(&self.server.url_of("postgres", DATABASE)).await
    }

    fn deployments(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<ModelDeployment>(&()))
    }

    /// How often the API server refused a write because of its fence: it counts for itself.
    pub fn denied(&self) -> u64 {
        let output = tokio::task::block_in_place(|| self.cluster.kubectl(&["get", "--raw", "/metrics"]));
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let denied = |line: &&str| {
            line.starts_with("apiserver_validating_admission_policy_check_total")
                && line.contains("policy=\"palisade-fence\"")
                && line.contains("enforcement_action=\"deny\"")
        };
        let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a count");
        text.lines().filter(denied).map(count).sum::<f64>() as u64
    }

    /// The cluster's revision now.
    pub async fn version(&self) -> u64 {
        observe::version(&self.deployments()).await
    }

    /// What a user does with `kubectl apply`, the first time.
    pub async fn create(&self, number: usize) {
        let name = format!("d-{number:03}");
        let mut spec = json!({
            "model": {"name": "churn", "version": 1},
            "replicas": 1,
            "template": {"spec": {"containers": [{"name": "model", "image": "registry.example/churn:1"}]}},
            "service": {"port": 8080},
            "strategy": {"type": if number.is_multiple_of(5) { "Recreate" } else { "BlueGreen" }, "drainSeconds": number % 2},
            "lease": {"ttl": "5s"},
            "revisionHistoryLimit": 1,
        });
        if number.is_multiple_of(3) {
            spec["promoteAlias"] = name.as_str().into();
        }
        let object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name}, "spec": spec,
        });
        let object = serde_json::from_value(object).expect("an object");
        self.deployments().create(&PostParams::default(), &object).await.expect("a ModelDeployment");
    }

    /// What a user does to roll to another version.
    pub async fn roll(&self, number: usize, version: i64) {
        let patch = Patch::Merge(json!({"spec": {"model": {"version": version}}}));
        let patched = self.deployments().patch(&format!("d-{number:03}"), &PatchParams::default(), &patch).await;
        patched.expect("a patched ModelDeployment");
    }

    /// How many serve this version, and have nothing left to do.
    pub async fn done(&self, version: i64) -> i64 {
        let mut sql = self.sql().await;
        let done = format!(
            "SELECT count(*) FROM palisade.deployment AS d JOIN palisade.plan AS n USING (resource) \
             WHERE d.step = 'done' AND (d.uid, d.rollout) = (n.uid, n.rollout) AND d.serving_version = {version}"
        );
        let count = sql.number(&done).await;
        sql.close().await;
        count
    }

    /// How many say Ready of this version.
    pub async fn ready(&self, version: i64) -> usize {
        let list = self.deployments().list(&Default::default()).await.expect("a list");
        let ready = |object: &&DynamicObject| {
            observe::is_ready(&object.data["status"], object.metadata.generation)
                && object.data["status"]["serving"]["version"] == version
        };
        list.items.iter().filter(ready).count()
    }

    /// Waits until all of them serve this version, and say so.
    pub async fn all_ready(&self, count: usize, version: i64) {
        let began = tokio::time::Instant::now();
        loop {
            let (done, ready) = (self.done(version).await, self.ready(version).await);
            if done == count as i64 && ready == count {
                return;
            }
            if began.elapsed() > PATIENCE {
                let mut sql = self.sql().await;
                let left = sql.list("SELECT n.resource || ' rollout ' || n.rollout || ' ' || (n.spec ->> 'version') || ': ' || coalesce(d::text, '') FROM palisade.plan AS n \
                     LEFT JOIN palisade.deployment AS d USING (resource) WHERE d.step IS DISTINCT FROM 'done' LIMIT 5").await;
                panic!(
                    "{done} of {count} are done and {ready} are Ready after {PATIENCE:?}: {left:#?}; logs: {}",
                    self.keep()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Keeps the logs for whoever looks at a failure.
    pub fn keep(&self) -> String {
        let copy = std::env::temp_dir().join(format!("palisade-chaos-failed-{}", std::process::id()));
        let copied = Command::new("cp").arg("-r").arg(self.dir.path()).arg(&copy).status();
        format!("{} ({copied:?})", copy.display())
    }

    pub fn fault(&self, kind: FaultKind, process: &str, from: u64, until: u64) {
        let micros = |nanos: u64| (nanos / 1000) as i64;
        let fault = Fault { kind, process: process.to_owned(), from: micros(from), until: micros(until) };
        self.faults.lock().expect("not poisoned").push(fault);
    }

    /// Whether Palisade has written an object since this revision, as far as the watches tell.
    pub fn wrote_since(&self, version: u64) -> bool {
        let revisions = self.revisions.lock().expect("not poisoned");
        revisions.iter().any(|revision| revision.version > version && revision.manager.starts_with("palisade"))
    }

    /// Ends the watches; what they saw stays in `revisions`.
    pub fn unwatch(&mut self) {
        self.watches.abort_all();
    }
}

/// A server that keeps the time of each commit, and has room for the workers' connections.
async fn postgres() -> Server {
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let mut admin = Conn::open(&server.url).await;
    admin.run("ALTER SYSTEM SET track_commit_timestamp = on").await;
    admin.run("ALTER SYSTEM SET max_connections = 300").await;
    admin.close().await;
    let server = tokio::task::spawn_blocking(move || {
        server.stop();
        server.start_again();
        server
    });
    let server = server.await.expect("a server");
    server.migrated(DATABASE).await;
    debug_assert_eq!(LOGINS.len(), 4);
    server
}

async fn register(sql: &mut Conn) {
    sql.call("register_model('churn', '', '{}', gen_random_uuid())").await.is("applied");
    for version in 1..=2 {
        let digest = format!("sha256:{version:064x}");
        sql.call(&format!(
            "register_version('churn', 's3://models/churn/{version}', '{digest}', '{{}}', gen_random_uuid())"
        ))
        .await
        .is("applied");
    }
}

/// A process of ours.
pub struct Process {
    child: Child,
    pub name: String,
    pub log: PathBuf,
}

impl Process {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a PID")
    }

    pub fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    /// Whether it is stopped: by SIGSTOP, its own or ours.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a child");
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal_to(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("the process is there");
}
