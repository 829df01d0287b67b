//! All of Palisade but the controller, for tests of workers: a database and a namespace of their own on the shared
//! server and cluster, real `palisade worker` processes with a worker's rights, and a planner in the controller's place.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use palisade::lease::{Lease, Session, SessionConfig};
use palisade::manifests::Settings;
use palisade::plan::{Spec, Strategy, resource_of};
use palisade::store::{Store, StoreConfig, Write};
use serde_json::json;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::cluster::{Cluster, PATIENCE};
use super::postgres::{Conn, Db};

/// The TTL of the workers' sessions. So long that nobody loses one because the machine is busy: what a test wants to be
/// over, it ends by `World::expire`, or it gives a worker less.
pub const TTL: Duration = Duration::from_secs(60);

/// Where a test happens.
pub struct World {
    pub cluster: &'static Cluster,
    pub db: Db,
    pub namespace: String,
    pub kubeconfig: PathBuf,
    pub planner: Planner,
    pub logs: tempfile::TempDir,
}

impl World {
    /// With policies in force, epoch 1 allocated, and the model `churn` registered in versions 1 to 3.
    pub async fn new(prefix: &str) -> World {
        let cluster = Cluster::shared();
        static INSTALLED: OnceCell<PathBuf> = OnceCell::const_new();
        let kubeconfig = INSTALLED.get_or_init(|| async {
            let settings = Settings::new("palisade-system", [], None).expect("settings");
            cluster.install_policies(&settings).await;
            cluster.allocate_epoch("palisade-system", 1, "of the tests").await;
            cluster.kubeconfig_for("palisade-system", "palisade-worker").await
        });
        Self::within(cluster, kubeconfig.await.clone(), prefix).await
    }

    /// In a cluster that has the rights, if not the policies; the kubeconfig is a worker's.
    pub async fn within(cluster: &'static Cluster, kubeconfig: PathBuf, prefix: &str) -> World {
        let db = Db::new().await;
        let planner = Planner::new(db.url()).await;
        let namespace = cluster.namespace(prefix).await;
        World { cluster, db, namespace, kubeconfig, planner, logs: tempfile::tempdir().expect("a folder") }
    }

    /// See [`spec`].
    pub fn spec(&self, name: &str, version: i64) -> Spec {
        spec(&self.namespace, name, version)
    }

    pub fn resource(&self, name: &str) -> String {
        resource_of(&self.namespace, name)
    }

    /// A worker process that works for this world only. Ends with the value.
    pub fn worker(&self, name: &str, environment: &[(&str, &str)]) -> Worker {
        self.worker_with(name, TTL, environment)
    }

    /// With another TTL.
    pub fn worker_with(&self, name: &str, ttl: Duration, environment: &[(&str, &str)]) -> Worker {
        let log = self.logs.path().join(format!("{name}.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .args(["worker", "--name", name, "--ttl", &format!("{}s", ttl.as_secs())])
            .args(["--poll", "200ms", "--log-format", "json"])
            .env("DATABASE_URL", self.db.url_as("worker_login"))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PALISADE_LOG", "palisade=debug")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).expect("a log file"));
        Worker { child: command.spawn().expect("the worker starts"), log, name: name.into() }
    }

    pub async fn sql(&self) -> Conn {
        self.db.connect().await
    }

    /// Lets the time of this worker's sessions run out at once, as the database sees it.
    pub async fn expire(&self, worker: &str) {
        let mut sql = self.sql().await;
        let over = "UPDATE palisade.session SET expires_at = clock_timestamp() - interval '1 millisecond' WHERE worker";
        sql.run(&format!("{over} = '{worker}'")).await;
        sql.close().await;
    }

    /// Waits until the registry says that this version serves and its plan is done.
    pub async fn done(&self, name: &str, version: i64) {
        let resource = self.resource(name);
        let condition = format!(
            "EXISTS (SELECT FROM palisade.deployment AS d JOIN palisade.plan AS n USING (resource) WHERE d.resource = '{resource}' \
             AND d.step = 'done' AND d.rollout = n.rollout AND d.serving_version = {version})"
        );
        let mut sql = self.sql().await;
        sql.wait_until(&condition).await;
        sql.close().await;
    }
}

/// A plan as the controller would make it. Nothing owns the objects: there is no ModelDeployment.
pub fn spec(namespace: &str, name: &str, version: i64) -> Spec {
    Spec {
        namespace: namespace.into(),
        name: name.into(),
        model: "churn".into(),
        version,
        source: format!("s3://models/churn/{version}"),
        digest: digest(version),
        expected_digest: None,
        replicas: 1,
        template: json!({"spec": {"containers": [{"name": "model", "image": "registry.example/churn:1"}]}}),
        port: 8080,
        strategy: Strategy::BlueGreen,
        drain_seconds: 0,
        promote_alias: None,
        verify_timeout_ms: 60_000,
        ready_timeout_ms: 60_000,
        revision_history_limit: 1,
        owned: false,
    }
}

pub fn digest(version: i64) -> String {
    format!("sha256:{version:064x}")
}

/// A test's own way to the registry. It waits for as long as a test does: a server that is slow is no failure.
pub fn store(url: impl Into<String>, application: &str) -> Store {
    let config = StoreConfig { timeout: PATIENCE, ..StoreConfig::new(url, application) };
    Store::new(&config).expect("a store")
}

/// The model `churn` in versions 1 to 3.
pub async fn register(store: &Store) {
    let model = store.register_model("churn", "", &json!({}), Uuid::new_v4()).await;
    model.expect("an answer").applied().expect("registered");
    for version in 1..=3 {
        let source = format!("s3://models/churn/{version}");
        let outcome = store.register_version("churn", &source, &digest(version), &json!({}), Uuid::new_v4()).await;
        outcome.expect("an answer").applied().expect("registered");
    }
}

/// Plays the controller: one lease, one plan after the other.
pub struct Planner {
    pub store: Store,
    _session: Session,
    lease: Lease,
}

impl Planner {
    /// With the model `churn` in versions 1 to 3.
    pub async fn new(url: String) -> Planner {
        let store = store(url, "planner");
        register(&store).await;
        // A long TTL: nothing in these tests is about the controller's own lease.
        let config = SessionConfig::new("planner", Duration::from_secs(600));
        let session = Session::open(store.clone(), config).await.expect("a session");
        let lease = session.acquire("controller/default", None).await.expect("a lease");
        Planner { store, _session: session, lease }
    }

    /// Plans this for the ModelDeployment with this UID. Owners must report progress every half minute: no busy machine
    /// costs them their lease.
    pub async fn plan(&self, uid: Uuid, spec: Spec) {
        self.put(uid, spec, false, false).await;
    }

    pub async fn put(&self, uid: Uuid, spec: Spec, paused: bool, removed: bool) {
        self.put_within(uid, spec, paused, removed, Duration::from_secs(30)).await;
    }

    /// With another time for progress.
    pub async fn put_within(&self, uid: Uuid, spec: Spec, paused: bool, removed: bool, progress: Duration) {
        let write = Write::PutPlan {
            deployment: resource_of(&spec.namespace, &spec.name),
            uid,
            generation: 1,
            spec: Box::new(spec),
            paused,
            removed,
            progress,
            wake: false,
        };
        self.lease.write(write).await.expect("an answer").applied().expect("planned");
    }
}

/// A real worker process, or another one of ours.
pub struct Worker {
    child: Child,
    pub log: PathBuf,
    pub name: String,
}

impl Worker {
    /// A process of another kind. What it says goes into `log`.
    pub fn of(mut command: Command, name: &str, log: PathBuf) -> Worker {
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Worker { child: command.spawn().expect("it starts"), log, name: name.into() }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a PID")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a PID");
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// The state letter of /proc: `T` is stopped.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    /// Whether the process has stopped itself.
    pub fn is_stopped(&self) -> bool {
        self.state() == Some('T')
    }

    /// Waits until the process has stopped itself.
    pub async fn stopped(&self) {
        self.wait("to stop itself", || self.is_stopped()).await;
    }

    /// Waits until the process is gone, and says how it ended.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{} does not end; its log:\n{}", self.name, self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All that it has logged so far.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log has this text, `times` times.
    pub async fn says(&self, text: &str, times: usize) {
        self.wait(&format!("to say {text:?} {times} times"), || self.text().matches(text).count() >= times).await;
    }

    /// Waits until this holds of it.
    pub async fn wait(&self, what: &str, check: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !check() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} was expected {what}; its log:\n{}",
                self.name,
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines of a file; none if it is not there.
pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
