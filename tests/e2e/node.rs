//! What only a node of our own allows: Postgres beside it, with TLS, and its processes. hack/e2e.sh started it, and runs
//! this process in its network.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::traffic::{self, Way};
use super::world::{Place, World, name};
use crate::support::postgres::{Conn, Server};

/// The release's namespace, and the one of the models, there.
pub const SYSTEM: &str = "palisade-system";
pub const SHOP: &str = "shop";
/// Of tests: a program that stops itself where it is told to, and an image that does nothing.
pub const FAILPOINTS: &str = "localhost/palisade:failpoints";
pub const PAUSE: &str = "localhost/pause:1";
/// Values of the chart that name its database.
pub const DATABASE: &str = "database.existingSecret=database,database.tls.caSecret.name=database-ca";
/// The node's address, as hack/node.sh has it: pods reach this process there.
const NODE: &str = "10.244.0.1";

impl World {
    /// Postgres behind a Service, as a name that its certificate is for, and a Secret with the logins that the chart
    /// asks for.
    pub async fn offer_database(&self, server: &Server) {
        let mut sql = Conn::open(&server.url).await;
        sql.run("CREATE DATABASE palisade").await;
        sql.run("CREATE ROLE admin SUPERUSER LOGIN PASSWORD 'migration'").await;
        sql.close().await;
        let url = |user: &str, password: &str| format!("postgres://{user}:{password}@postgres.store.svc:5432/palisade");
        let ca = fs::read_to_string(self.dir.join("tls/ca.crt")).expect("the CA");
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres", "namespace": self.store()},
                   "spec": {"ports": [{"name": "sql", "port": 5432}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                   "metadata": {"name": "postgres", "namespace": self.store(), "labels": {"kubernetes.io/service-name": "postgres"}},
                   "addressType": "IPv4", "endpoints": [{"addresses": [NODE]}],
                   "ports": [{"name": "sql", "port": server.port()}]}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "database", "namespace": SYSTEM},
                   "stringData": {
                       "migration-url": url("admin", "migration"),
                       "controller-url": url("release_controller", "of-the-controller"),
                       "worker-url": url("release_worker", "of-the-worker"),
                       "registry-url": url("release_registry", "of-the-registry"),
                   }}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "database-ca", "namespace": SYSTEM},
                   "stringData": {"ca.crt": ca}}),
        ]);
    }

    pub fn server(&self) -> &Server {
        match &self.place {
            Place::Node(server) => server,
            Place::Cluster(_) => panic!("Postgres is not ours"),
        }
    }

    /// The cgroup of a pod's only container, in the hierarchy of the freezer.
    fn cgroup(&self, pod: &Value) -> PathBuf {
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().expect("a container");
        let id = id.rsplit('/').next().expect("an id");
        let own = fs::read_to_string(self.dir.join("node/cgroup")).expect("the run's cgroup");
        let version_1 = Path::new("/sys/fs/cgroup/freezer");
        let base = if version_1.exists() { version_1 } else { Path::new("/sys/fs/cgroup") };
        let mut folders = vec![base.join(own.trim())];
        while let Some(folder) = folders.pop() {
            if folder.ends_with(id) {
                return folder;
            }
            let below = fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
        }
        panic!("container {id} has no cgroup");
    }

    /// The PID of a container's first process, as this process sees it.
    pub fn pid(&self, pod: &Value) -> i32 {
        let text = fs::read_to_string(self.cgroup(pod).join("cgroup.procs")).expect("its processes");
        text.lines().filter_map(|line| line.parse().ok()).min().expect("a process")
    }

    /// Stops all processes of a container where they are.
    pub fn freeze(&self, pod: &Value) {
        self.freezer(pod, "FROZEN", "1");
    }

    pub fn thaw(&self, pod: &Value) {
        self.freezer(pod, "THAWED", "0");
    }

    fn freezer(&self, pod: &Value, one: &str, two: &str) {
        let cgroup = self.cgroup(pod);
        let (file, value) = match cgroup.join("freezer.state") {
            file if file.exists() => (file, one),
            _ => (cgroup.join("cgroup.freeze"), two),
        };
        fs::write(&file, value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// A process of the node or the control plane.
    pub fn component(&self, name: &str) -> i32 {
        let file = self.dir.join("node").join(format!("{name}.pid"));
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().parse().expect("a PID")
    }

    /// A page of a pod's own HTTP server.
    pub async fn page(&self, pod: &Value, path: &str) -> String {
        let address = pod["status"]["podIP"].as_str().expect("an address");
        let answer = traffic::get(&Way::Address(format!("{address}:8080")), path).await;
        answer.unwrap_or_else(|error| panic!("{path} of {}: {error}", name(pod)))
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("the process is there");
}

/// Whether SIGSTOP has stopped it.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
