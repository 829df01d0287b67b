//! Where a story happens: a namespace with an epoch object of its own, servers, the service's address, and processes.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use palisade::crd::{ModelDeployment, ModelDeploymentStatus};
use palisade::epoch::Allocator;
use palisade::manifests::{self, EPOCH_KEY, EPOCH_OBJECT, Settings};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit, watch};

use crate::history::{History, Statuses, follow};
use crate::support::cluster::{Cluster, PATIENCE, api, from_json, wait_for, wait_until};
use crate::support::postgres::{Conn, Server, follows, quote};
use crate::support::world::{self, Worker, digest};

/// Stories that are told at the same time: each has servers of its own.
static ROOM: Semaphore = Semaphore::const_new(3);

pub struct Ground {
    pub cluster: &'static Cluster,
    /// Where the epoch object is.
    pub system: String,
    /// Where the ModelDeployment is.
    pub namespace: String,
    pub admin: Client,
    pub crs: Api<ModelDeployment>,
    pub history: History,
    kubeconfig: PathBuf,
    logs: tempfile::TempDir,
    statuses: Statuses,
    follower: tokio::task::JoinHandle<()>,
    _room: SemaphorePermit<'static>,
}

impl Ground {
    pub async fn new(prefix: &str) -> Ground {
        let room = ROOM.acquire().await.expect("never closed");
        let cluster = tokio::task::spawn_blocking(Cluster::shared).await.expect("a cluster");
        let namespace = cluster.namespace(prefix).await;
        Ground::within(room, cluster, namespace.clone(), namespace).await
    }

    /// Its epoch object is the one that the policies read, in Palisade's own namespace, where no worker may write. For one
    /// story only.
    pub async fn of_the_policies() -> Ground {
        let room = ROOM.acquire().await.expect("never closed");
        let cluster = tokio::task::spawn_blocking(Cluster::shared).await.expect("a cluster");
        rights(cluster).await;
        let namespace = cluster.namespace("policies").await;
        Ground::within(room, cluster, manifests::SYSTEM_NAMESPACE.to_owned(), namespace).await
    }

    async fn within(
        room: SemaphorePermit<'static>,
        cluster: &'static Cluster,
        system: String,
        namespace: String,
    ) -> Ground {
        let kubeconfig = rights(cluster).await;
        grant_epoch_object(cluster, &system).await;
        let admin = cluster.admin().await;
        let crs: Api<ModelDeployment> = api(&admin, &namespace);
        let (follower, statuses) = follow(crs.clone());
        let logs = tempfile::tempdir().expect("a folder");
        let history = History::default();
        Ground { cluster, system, namespace, admin, crs, history, kubeconfig, logs, statuses, follower, _room: room }
    }

    /// The deployment that all of them are about.
    pub fn resource(&self) -> String {
        palisade::plan::resource_of(&self.namespace, "churn")
    }

    fn program(&self, url: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        command
            .env("DATABASE_URL", url)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PALISADE_NAMESPACE", &self.system)
            .env("PALISADE_WATCH_NAMESPACE", &self.namespace)
            .env("PALISADE_LOG", "palisade=debug");
        command
    }

    /// A controller for the database at this URL, until the value is dropped.
    pub fn controller(&self, name: &str, url: &str) -> Worker {
        self.controller_with(name, url, &[])
    }

    pub fn controller_with(&self, name: &str, url: &str, environment: &[(&str, &str)]) -> Worker {
        let mut command = self.program(url);
        command.args(["controller", "--ttl", "4s", "--replica-name", name, "--log-format", "json"]);
        command.envs(environment.iter().copied());
        Worker::of(command, name, self.logs.path().join(format!("{name}.log")))
    }

    pub fn worker(&self, url: &str, kubeconfig: &std::path::Path) -> Worker {
        let mut command = self.program(url);
        command.args(["worker", "--name", "worker-a", "--ttl", "10s", "--poll", "200ms", "--log-format", "json"]);
        command.env("KUBECONFIG", kubeconfig);
        Worker::of(command, "worker-a", self.logs.path().join("worker-a.log"))
    }

    /// `palisade ARGS`, run to its end.
    pub fn palisade(&self, url: &str, args: &[&str]) -> Output {
        let mut command = self.program(url);
        command.env("PALISADE_LOG", "error").args(args).stdin(Stdio::null()).output().expect("it runs")
    }

    /// The same, which must end with this exit code. What it printed, as JSON.
    pub fn json(&self, url: &str, args: &[&str], code: i32) -> Value {
        let out = self.palisade(url, &[args, &["-o", "json"]].concat());
        let text = if code == 0 { &out.stdout } else { &out.stderr };
        let text = String::from_utf8_lossy(text).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text} {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{args:?}: {text}"))
    }

    /// The doctor names it as an error, beside whatever else is not as it should be here.
    pub fn doctor_finds(&self, url: &str, check: &str) {
        let out = self.palisade(url, &["doctor", "-o", "json"]);
        let text = String::from_utf8_lossy(&out.stdout);
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("doctor: {out:?}"));
        let found = report["findings"].as_array().is_some_and(|findings| {
            findings.iter().any(|finding| finding["check"] == check && finding["severity"] == "error")
        });
        assert!(found, "doctor does not name {check}: {text}");
    }

    pub fn allocator(&self, url: &str) -> Allocator {
        Allocator::new(world::store(url, "test"), self.admin.clone(), &self.system, Some(&self.namespace))
    }

    pub fn epoch_objects(&self) -> Api<ConfigMap> {
        api(&self.admin, &self.system)
    }

    /// The object's data.
    pub async fn object(&self) -> Option<std::collections::BTreeMap<String, String>> {
        self.epoch_objects().get_opt(EPOCH_OBJECT).await.expect("an answer").and_then(|object| object.data)
    }

    /// Waits until the database has this epoch, and the cluster says so.
    pub async fn epoch_is(&self, url: &str, number: i64) {
        let established = || async {
            let mut conn = Conn::try_open(url).await.map_err(|failure| failure.message)?;
            let sql = "SELECT format('%s, established: %s', number, established) FROM palisade.epoch_status()";
            let found = conn.try_text(sql).await.map_err(|failure| failure.message)?;
            let object = self.object().await.and_then(|data| data.get(EPOCH_KEY).cloned());
            let wanted = (format!("{number}, established: t"), Some(number.to_string()));
            if (found.clone(), object.clone()) == wanted { Ok(()) } else { Err(format!("{found}; {object:?}")) }
        };
        wait_until(&format!("epoch {number} is established"), established).await;
    }

    /// A ModelDeployment `churn`.
    pub async fn create(&self) {
        let object: ModelDeployment = from_json(json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "churn"},
            "spec": {
                "model": {"name": "churn", "version": 1},
                "template": {"spec": {"containers": [{"name": "model", "image": "registry.example/churn:1"}]}},
                "service": {"port": 8080},
            },
        }));
        self.crs.create(&Default::default(), &object).await.expect("created");
    }

    /// Waits for a status of `churn`.
    pub async fn status(&self, what: &str, wanted: impl Fn(&ModelDeploymentStatus) -> bool) -> ModelDeploymentStatus {
        let seen = |object: Option<&ModelDeployment>| object.and_then(|o| o.status.as_ref()).is_some_and(&wanted);
        let status = wait_for(&self.crs, "churn", what, seen).await.and_then(|object| object.status).expect("a status");
        // The follower has a watch of its own, and notes it a moment later.
        let followed =
            || self.statuses.lock().expect("not poisoned").iter().any(|(revision, _)| *revision >= status.revision);
        let began = Instant::now();
        while !followed() {
            assert!(began.elapsed() < PATIENCE, "the follower sees no status");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        status
    }

    /// Waits until the leader of this epoch has told how `churn` stands: nobody is stalled.
    pub async fn told_by_the_leader_of(&self, epoch: i64) {
        let healthy = |status: &ModelDeploymentStatus| status.revision >> 32 == epoch && stalled(status).is_none();
        self.status(&format!("to be told of by the leader of epoch {epoch}"), healthy).await;
    }

    /// At a story's end: nothing went back.
    pub fn nothing_went_back(&self) {
        let seen = self.statuses.lock().expect("not poisoned").clone();
        for pair in seen.windows(2) {
            assert!(pair[1].0 >= pair[0].0 && pair[1].1 >= pair[0].1, "a status went back: {pair:?}");
        }
        assert!(!seen.is_empty(), "no status was seen");
        self.history.is_not_vacuous();
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The reason of the condition Stalled.
pub fn stalled(status: &ModelDeploymentStatus) -> Option<&str> {
    status.conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True").map(|c| &*c.reason)
}

/// Waits until this stands in what a process says at `/metrics`: a look that fails in between takes it away for a moment.
pub async fn tells(process: &Worker, line: &str) {
    wait_until(&format!("{} tells {line}", process.name), || async {
        let text = metrics(process).await;
        if text.contains(line) { Ok(()) } else { Err(text) }
    })
    .await;
}

/// What a process says at `/metrics`.
async fn metrics(process: &Worker) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    process.says("listening for", 1).await;
    let text = process.text();
    let address = text.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// A server with a migrated database `app`, the model `churn`, and no epoch.
pub async fn server(ground: &Ground) -> Server {
    let server = tokio::task::spawn_blocking(Server::start).await.expect("a server");
    let url = server.migrated("app").await;
    furnish(&url, &ground.resource()).await;
    server
}

/// A registered model, and an alias that the deployment guards.
pub async fn furnish(url: &str, resource: &str) {
    let mut conn = Conn::open(url).await;
    let request = "gen_random_uuid()";
    conn.call(&format!("register_model('churn', '', '{{}}', {request})")).await.is("applied");
    conn.call(&format!("register_version('churn', 's3://churn/1', '{}', '{{}}', {request})", digest(1))).await;
    conn.run(&format!(
        "INSERT INTO palisade.alias (model, alias, version, guard, updated_at) VALUES ('churn', 'live', 1, {}, now())",
        quote(resource)
    ))
    .await;
    conn.close().await;
}

pub fn superuser(server: &Server) -> String {
    server.url_of("postgres", "app")
}

pub fn login(server: &Server) -> String {
    server.url_of("controller_login", "app")
}

/// The service's address, behind which the primary changes.
pub struct Address {
    port: u16,
    to: watch::Sender<u16>,
}

impl Address {
    pub async fn of(server: &Server) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (to, behind) = watch::channel(server.port());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut behind = behind.clone();
                tokio::spawn(async move {
                    let port = *behind.borrow_and_update();
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = behind.changed() => {}
                    }
                });
            }
        });
        Address { port, to }
    }

    /// From now on it leads to another server. Connections end.
    pub fn move_to(&self, server: &Server) {
        self.to.send_replace(server.port());
    }

    pub fn login(&self) -> String {
        format!("postgres://controller_login@127.0.0.1:{}/app?sslmode=disable", self.port)
    }
}

/// Lets the standby lag behind for ever. What was written before this call, it has.
pub async fn cut_off(primary: &Server, standby: &Server) {
    let at = Conn::open(&primary.url).await.text("SELECT pg_current_wal_lsn()").await;
    let mut admin = Conn::open(&standby.url).await;
    follows(&mut admin, &at).await;
    admin.run("ALTER SYSTEM SET primary_conninfo = ''").await;
    admin.run("SELECT pg_reload_conf()").await;
    admin.wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE pid IS NOT NULL)").await;
}

pub async fn promote(standby: &Server) {
    let mut admin = Conn::open(&standby.url).await;
    admin.run("SELECT pg_promote(true, 60)").await;
    admin.wait_until("SELECT NOT pg_is_in_recovery()").await;
}

async fn rights(cluster: &'static Cluster) -> PathBuf {
    static RIGHTS: OnceCell<PathBuf> = OnceCell::const_new();
    let made = RIGHTS.get_or_init(|| async {
        cluster.apply(&manifests::rbac(&settings())).await;
        cluster.kubeconfig_for(manifests::SYSTEM_NAMESPACE, manifests::CONTROLLER_ACCOUNT).await
    });
    made.await.clone()
}

fn settings() -> Settings {
    Settings::new(manifests::SYSTEM_NAMESPACE, [], None).expect("settings")
}

/// The role for the epoch object, in another namespace than Palisade's own.
async fn grant_epoch_object(cluster: &Cluster, namespace: &str) {
    let own = manifests::rbac(&settings()).into_iter();
    let own =
        own.filter(|o| o["metadata"]["namespace"] == manifests::SYSTEM_NAMESPACE && o["kind"] != "ServiceAccount");
    let moved = own.map(|mut object| {
        object["metadata"]["namespace"] = namespace.into();
        object
    });
    cluster.apply(&moved.collect::<Vec<_>>()).await;
}
