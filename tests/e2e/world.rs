//! The node that hack/e2e.sh started, in whose network this process runs; Postgres beside it, with TLS; and an HTTP server
//! with the models' artifacts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path as Route;
use kube::api::{Api, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::ApiResource;
use kube::{Client, Config};
use palisade::crd::ModelDeployment;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::postgres::{Conn, Server, root};

/// The release's namespace, and the one of the models.
pub const SYSTEM: &str = "palisade-system";
pub const SHOP: &str = "shop";
/// The node's address, as hack/node.sh has it: pods reach this process there.
const NODE: &str = "10.244.0.1";
const ARTIFACTS: u16 = 9000;
/// As the release is installed.
pub const TTL: Duration = Duration::from_secs(8);
/// How long anything may take: two cores, and a model server needs several seconds of both.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub const PALISADE: &str = "localhost/palisade:failpoints";
pub const MLSERVER: &str = "localhost/mlserver:1.7.1";
pub const PAUSE: &str = "localhost/pause:1";

pub struct World {
    /// Of this run: `node/` is the node's.
    pub dir: PathBuf,
    pub client: Client,
    pub server: Server,
    kubectl: PathBuf,
    helm: PathBuf,
    models: PathBuf,
}

fn setting(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run this by hack/e2e.sh")).into()
}

impl World {
    /// Everything but Palisade.
    pub async fn begin() -> World {
        let dir = setting("PALISADE_E2E_DIR");
        let kubeconfig = Kubeconfig::read_from(dir.join("node/cluster/kubeconfig")).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        let world = World {
            client: Client::try_from(config.expect("a good kubeconfig")).expect("a client"),
            server: tokio::task::spawn_blocking(Server::start).await.expect("Postgres"),
            kubectl: setting("PALISADE_E2E_KUBECTL"),
            helm: setting("PALISADE_E2E_HELM"),
            models: setting("PALISADE_E2E_MODELS"),
            dir,
        };
        world.serve_artifacts().await;
        world.offer_database().await;
        world
    }

    /// Postgres behind a Service, as a name that its certificate is for, and a Secret with the logins that the chart
    /// asks for.
    async fn offer_database(&self) {
        let mut sql = Conn::open(&self.server.url).await;
        sql.run("CREATE DATABASE palisade").await;
        sql.run("CREATE ROLE admin SUPERUSER LOGIN PASSWORD 'migration'").await;
        sql.close().await;
        for namespace in ["database", SYSTEM, SHOP] {
            self.kubectl(&["create", "namespace", namespace]);
        }
        let url =
            |user: &str, password: &str| format!("postgres://{user}:{password}@postgres.database.svc:5432/palisade");
        let ca = fs::read_to_string(self.dir.join("tls/ca.crt")).expect("the CA");
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres", "namespace": "database"},
                   "spec": {"ports": [{"name": "sql", "port": 5432}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                   "metadata": {"name": "postgres", "namespace": "database", "labels": {"kubernetes.io/service-name": "postgres"}},
                   "addressType": "IPv4", "endpoints": [{"addresses": [NODE]}],
                   "ports": [{"name": "sql", "port": self.server.port()}]}),
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

    async fn serve_artifacts(&self) {
        let models = self.models.clone();
        let one = move |Route(name): Route<String>| {
            let file = models.join(name);
            async move { fs::read(file).map_err(|_| axum::http::StatusCode::NOT_FOUND) }
        };
        let listener = tokio::net::TcpListener::bind((NODE, ARTIFACTS)).await.expect("a port");
        let router = Router::new().route("/{name}", axum::routing::get(one));
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    // ------------------------------------------------ tools

    fn run(&self, program: &Path, args: &[&str], input: Option<&str>) -> Output {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.dir.join("node/cluster/kubeconfig")).current_dir(root());
        for name in ["KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.dir.join("tmp").join(name));
        }
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        if let Some(input) = input {
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        }
        child.wait_with_output().expect("it ends")
    }

    #[track_caller]
    fn must(&self, program: &Path, args: &[&str], input: Option<&str>) -> String {
        let output = self.run(program, args, input);
        assert!(
            output.status.success(),
            "{} {args:?}: {}{}",
            program.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.must(&self.kubectl, args, None)
    }

    pub fn try_kubectl(&self, args: &[&str]) -> Output {
        self.run(&self.kubectl, args, None)
    }

    #[track_caller]
    pub fn helm(&self, args: &[&str]) -> String {
        self.must(&self.helm, args, None)
    }

    #[track_caller]
    pub fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.must(&self.kubectl, &["apply", "-f", "-"], Some(&list.to_string()));
    }

    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], args].concat())).expect("JSON")
    }

    /// A script of hack/, inside.
    #[track_caller]
    pub fn hack(&self, script: &str, args: &[&str]) -> String {
        self.must(&root().join("hack").join(script), args, None)
    }

    /// A command as a person types it, with kubectl in the PATH.
    #[track_caller]
    pub fn shell(&self, command: &str) -> String {
        let path = self.kubectl.parent().expect("a folder").display();
        self.must(Path::new("/bin/sh"), &["-c", &format!("PATH=\"{path}:$PATH\"; {command}")], None)
    }

    /// The program itself, as a person with the registry's login runs it.
    #[track_caller]
    pub fn palisade(&self, login: &str, args: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command.args(args).env("DATABASE_URL", self.server.url_of(login, "palisade")).env_remove("KUBECONFIG");
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        assert!(output.status.success(), "palisade {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub async fn sql(&self) -> Conn {
        Conn::open(&self.server.url_of("postgres", "palisade")).await
    }

    // ------------------------------------------------ models

    pub fn artifact(&self, version: u32) -> (String, String) {
        let bytes = fs::read(self.models.join(format!("{version}.tar.gz"))).expect("an artifact");
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        (format!("http://{NODE}:{ARTIFACTS}/{version}.tar.gz"), digest)
    }

    /// What a user registers; the version's number.
    pub fn register(&self, model: &str, source: &str, digest: &str) -> i64 {
        let printed =
            self.palisade("release_registry", &["model", "register", model, "--source", source, "--digest", digest]);
        printed.trim().parse().expect("a version's number")
    }

    /// Three versions of a model whose artifact nobody fetches, unless an earlier story has registered them.
    pub fn register_small(&self) {
        let known = self.palisade("postgres", &["model", "ls", "-o", "json"]).contains("\"small\"");
        for version in (1..=3).filter(|_| !known) {
            assert_eq!(self.register("small", "s3://models/small", &format!("sha256:{version:064x}")), version);
        }
    }

    /// A ModelDeployment of the iris model: the artifact is fetched and verified before the server starts.
    pub fn iris(&self, name: &str, model: &str, version: i64) -> Value {
        let mount = json!([{"name": "models", "mountPath": "/models"}, {"name": "tmp", "mountPath": "/tmp"}]);
        let closed = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": SHOP},
            "spec": {
                "model": {"name": model, "version": version},
                "service": {"port": 8080},
                "template": {"spec": {
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                    "initContainers": [{
                        "name": "fetch", "image": PALISADE, "imagePullPolicy": "IfNotPresent",
                        "args": ["fetch", "--to", "/models/model", "--unpack"],
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": closed.clone(), "volumeMounts": mount.clone(),
                    }],
                    "containers": [{
                        "name": "model", "image": MLSERVER, "imagePullPolicy": "IfNotPresent",
                        "args": ["start", "/models/model"], "env": [{"name": "MLSERVER_PARALLEL_WORKERS", "value": "0"}],
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/v2/models/iris/ready", "port": 8080}, "periodSeconds": 1},
                        "securityContext": closed, "volumeMounts": mount,
                    }],
                    "volumes": [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
                }},
            },
        })
    }

    /// One whose pods are there at once: what serves is of no interest.
    pub fn small(&self, name: &str, version: i64) -> Value {
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": SHOP},
            "spec": {
                "model": {"name": "small", "version": version},
                "service": {"port": 8080},
                "strategy": {"drainSeconds": 1},
                "revisionHistoryLimit": 0,
                "template": {"spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "model", "image": PAUSE, "imagePullPolicy": "IfNotPresent"}],
                }},
            },
        })
    }

    pub fn roll(&self, name: &str, version: i64) {
        let patch = json!({"spec": {"model": {"version": version}}}).to_string();
        self.kubectl(&["-n", SHOP, "patch", "mdep", name, "--type", "merge", "-p", &patch]);
    }

    pub fn deployments(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), SHOP, &ApiResource::erase::<ModelDeployment>(&()))
    }

    /// Waits until it is Ready, and serves this version.
    pub async fn serves(&self, name: &str, version: i64) -> Duration {
        let what = format!("{name} serves version {version}");
        self.until(&what, || async {
            let object = self.deployments().get(name).await.map_err(|error| error.to_string())?;
            let status = &object.data["status"];
            let ready = ready(&object) && status["serving"]["version"] == version;
            if ready { Ok(()) } else { Err(status.to_string()) }
        })
        .await
    }

    /// Waits until `check` is content; how long it took. Says at last what was in the way.
    pub async fn until<F, T: std::fmt::Display>(&self, what: &str, check: impl Fn() -> F) -> Duration
    where
        F: Future<Output = Result<(), T>>,
    {
        let began = Instant::now();
        loop {
            match check().await {
                Ok(()) => return began.elapsed(),
                Err(last) => assert!(began.elapsed() < PATIENCE, "waited in vain until {what}: {last}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    // ------------------------------------------------ pods and processes

    /// Pods of a part of the release that run and are not going.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<Value> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector]);
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let lives = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running";
        pods.into_iter().filter(lives).collect()
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
        let answer = super::traffic::get(&format!("{address}:8080"), path).await;
        answer.unwrap_or_else(|error| panic!("{path} of {}: {error}", name(pod)))
    }

    /// What a person wants to know of a failure.
    pub fn describe(&self) {
        for args in [
            &["get", "pods,mdep,jobs", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "-n",
                SYSTEM,
                "-l",
                "app.kubernetes.io/name=palisade",
                "--tail=25",
                "--prefix",
                "--all-containers",
            ],
        ] {
            let output = self.try_kubectl(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- kubectl {}\n{}", args.join(" "), lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }

    /// What a story that failed has left behind must not trouble the next one.
    pub fn tidy(&self) {
        let two_workers = ["-n", SYSTEM, "scale", "deployment/palisade-worker", "--replicas=2"];
        self.try_kubectl(&two_workers);
        self.try_kubectl(&["-n", SYSTEM, "delete", "pods", "-l", "story", "--force", "--grace-period=0"]);
        let all =
            String::from_utf8(self.try_kubectl(&["-n", SHOP, "get", "mdep", "-o", "name"]).stdout).expect("names");
        for object in all.lines().filter(|object| !object.ends_with("/iris")) {
            self.try_kubectl(&["-n", SHOP, "delete", object, "--timeout=60s"]);
        }
    }

    pub fn end(&self) {
        self.server.stop();
    }
}

/// Whether it says Ready of its newest generation.
pub fn ready(object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    status["observedGeneration"].as_i64() == object.metadata.generation
        && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a PID"), signal).expect("the process is there");
}

/// Whether SIGSTOP has stopped it.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
