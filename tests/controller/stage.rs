//! A namespace and a database of its own for each test, replicas of the controller in it, and the test in the worker's place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use palisade::clock::Clock;
use palisade::crd::{ModelDeployment, ModelDeploymentStatus};
use palisade::http::Readiness;
use palisade::lease::{Lease, Session, SessionConfig};
use palisade::manifests::{self, Settings as Manifests};
use palisade::metrics::Metrics;
use palisade::plan::State;
use palisade::reconcile::upkeep::Retention;
use palisade::reconcile::{self, Parts, Settings};
use palisade::store::{Claimed, Store, StoreConfig, Write};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::cluster::{Cluster, api, from_json, merge, wait_for, wait_until};
use crate::support::postgres::{Conn, Db};
use crate::support::world::{self, digest};

/// The TTL of the controllers' sessions. One that is busy for longer loses its lease, and leads anew: where that would matter,
/// the replica is a `lasting` one.
pub const TTL: Duration = Duration::from_secs(3);
/// A TTL that no busy machine uses up.
pub const LASTING: Duration = Duration::from_secs(60);
/// The controller's account, as the API server names it.
const ACCOUNT: &str = "system:serviceaccount:palisade-system:palisade-controller";
const GROUPS: &[&str] = &["system:serviceaccounts", "system:authenticated"];

/// Where a test happens. Its namespace is also Palisade's own.
pub struct Stage {
    pub cluster: &'static Cluster,
    pub db: Db,
    pub namespace: String,
    pub admin: Client,
    pub crs: Api<ModelDeployment>,
    /// As a plain client of the registry, and as whoever else the test needs to be.
    pub store: Store,
}

impl Stage {
    /// With epoch 1, and model `churn` in versions 1 and 2.
    pub async fn new(prefix: &str) -> Stage {
        Stage::with(prefix, Db::new().await, true).await
    }

    pub async fn with(prefix: &str, db: Db, models: bool) -> Stage {
        // PALISADE_LOG=palisade=debug shows what the replicas in this process say.
        if let Ok(filter) = std::env::var("PALISADE_LOG") {
            let _ = palisade::telemetry::init(palisade::telemetry::LogFormat::Human, &filter);
        }
        let cluster = Cluster::shared();
        static RIGHTS: OnceCell<()> = OnceCell::const_new();
        let settings = Manifests::new("palisade-system", [], None).expect("settings");
        RIGHTS.get_or_init(|| async { cluster.apply(&manifests::rbac(&settings)).await }).await;
        let namespace = cluster.namespace(prefix).await;
        grant_epoch_object(cluster, &settings, &namespace).await;
        let admin = cluster.admin().await;
        let store = world::store(db.url(), "test");
        let stage = Stage { cluster, crs: api(&admin, &namespace), db, namespace, admin, store };
        if models {
            stage.register("churn", 2).await;
        }
        stage
    }

    pub async fn register(&self, model: &str, versions: i64) {
        let answer = self.store.register_model(model, "", &json!({}), Uuid::new_v4()).await;
        answer.expect("an answer").applied().expect("registered");
        for version in 1..=versions {
            self.register_version(model, version).await;
        }
    }

    pub async fn register_version(&self, model: &str, version: i64) {
        let source = format!("s3://models/{model}/{version}");
        let answer = self.store.register_version(model, &source, &digest(version), &json!({}), Uuid::new_v4()).await;
        answer.expect("an answer").applied().expect("registered");
    }

    pub async fn point(&self, alias: &str, version: i64) {
        let answer = self.store.put_alias("churn", alias, Some(version), Uuid::new_v4()).await;
        answer.expect("an answer").applied().expect("moved");
    }

    /// A replica, as the controller's own account and role.
    pub async fn replica(&self, name: &str) -> Replica {
        self.replica_at(name, &self.db.url_as("controller_login")).await
    }

    /// A replica whose database is out of reach.
    pub async fn replica_without_database(&self, name: &str) -> Replica {
        self.replica_at(name, "postgres://nobody@127.0.0.1:1/nowhere").await
    }

    pub async fn replica_at(&self, name: &str, url: &str) -> Replica {
        let client = self.cluster.client_as(ACCOUNT, GROUPS).await;
        self.replica_by(name, url, Retention::default(), TTL, client)
    }

    /// A replica that leads, once it does, until it is stopped.
    pub async fn lasting(&self, name: &str) -> Replica {
        self.lasting_with(name, Retention::default()).await
    }

    pub async fn lasting_with(&self, name: &str, retention: Retention) -> Replica {
        let client = self.cluster.client_as(ACCOUNT, GROUPS).await;
        self.replica_by(name, &self.db.url_as("controller_login"), retention, LASTING, client)
    }

    /// A replica that talks to the API server at this address.
    pub async fn replica_through(&self, name: &str, address: SocketAddr) -> Replica {
        let mut config = self.cluster.config_as(ACCOUNT, GROUPS).await;
        config.cluster_url = format!("https://{address}").parse().expect("a URL");
        let client = Client::try_from(config).expect("a client");
        self.replica_by(name, &self.db.url_as("controller_login"), Retention::default(), TTL, client)
    }

    fn replica_by(&self, name: &str, url: &str, retention: Retention, ttl: Duration, client: Client) -> Replica {
        // As the program has it.
        let timeout = (ttl / 3).min(Duration::from_secs(5));
        let config = StoreConfig { timeout, ..StoreConfig::new(url, name) };
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::waiting_for(&["cluster", "database", "epoch"]);
        let parts = Parts {
            settings: Settings {
                replica: name.to_owned(),
                system_namespace: self.namespace.clone(),
                watch_namespace: Some(self.namespace.clone()),
                ttl,
                retention,
            },
            store: Store::new(&config).expect("a store"),
            client,
            metrics: Arc::clone(&metrics),
            readiness: readiness.clone(),
            clock: Clock::system(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(reconcile::run(parts, stop.clone()));
        Replica { stop, task, metrics, readiness }
    }

    /// Creates a ModelDeployment: version 1 of `churn`, with `spec` merged into it.
    pub async fn create(&self, name: &str, spec: Value) -> ModelDeployment {
        self.try_create(name, spec).await.expect("it is accepted")
    }

    pub async fn try_create(&self, name: &str, spec: Value) -> kube::Result<ModelDeployment> {
        let mut object = json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name},
            "spec": {
                "model": {"name": "churn", "version": 1},
                "template": {"spec": {"containers": [{"name": "model", "image": "registry.example/churn:1"}]}},
                "service": {"port": 8080},
            },
        });
        merge(&mut object["spec"], &spec);
        let object: kube::core::DynamicObject = from_json(object);
        let resource = kube::discovery::ApiResource::erase::<ModelDeployment>(&());
        let any: Api<kube::core::DynamicObject> = Api::namespaced_with(self.admin.clone(), &self.namespace, &resource);
        any.create(&PostParams::default(), &object).await?;
        self.crs.get(name).await
    }

    pub async fn patch(&self, name: &str, patch: Value) -> ModelDeployment {
        self.crs.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched")
    }

    pub fn resource(&self, name: &str) -> String {
        palisade::plan::resource_of(&self.namespace, name)
    }

    pub async fn sql(&self) -> Conn {
        self.db.connect().await
    }

    /// Waits until a plan row satisfies this, in which `n` is the row.
    pub async fn planned(&self, name: &str, condition: &str) {
        let resource = self.resource(name);
        let sql = format!("EXISTS (SELECT FROM palisade.plan AS n WHERE n.resource = '{resource}' AND {condition})");
        self.sql().await.wait_until(&sql).await;
    }

    pub async fn has_plan(&self, name: &str) -> bool {
        let resource = self.resource(name);
        self.sql().await.text(&format!("EXISTS (SELECT FROM palisade.plan WHERE resource = '{resource}')")).await
            == "true"
    }

    /// Waits for a status.
    pub async fn status(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ModelDeploymentStatus) -> bool,
    ) -> ModelDeploymentStatus {
        let seen = |object: Option<&ModelDeployment>| object.and_then(|o| o.status.as_ref()).is_some_and(&wanted);
        let object = wait_for(&self.crs, name, what, seen).await.expect("it is there");
        object.status.expect("a status")
    }

    /// Waits until a condition is True for this reason.
    pub async fn holds(&self, name: &str, type_: &str, reason: &str) -> ModelDeploymentStatus {
        self.status(name, &format!("{type_} for {reason}"), |status| condition(status, type_) == Some(reason)).await
    }

    /// Waits until its rollout is over and told: Ready may be told before its worker lets go, so that a status with
    /// an owner is not the last one.
    pub async fn rests(&self, name: &str) -> ModelDeploymentStatus {
        let over = |status: &ModelDeploymentStatus| {
            condition(status, "Ready") == Some("VersionServes") && status.owner.is_none()
        };
        self.status(name, "Ready and released", over).await
    }

    pub async fn gone(&self, name: &str) {
        wait_for(&self.crs, name, "to be gone", |object| object.is_none()).await;
    }

    pub async fn delete(&self, name: &str) {
        self.crs.delete(name, &kube::api::DeleteParams::default()).await.expect("deleted");
    }

    /// Waits for an event about a ModelDeployment.
    pub async fn told(&self, name: &str, reason: &str) -> String {
        let events: Api<Event> = api(&self.admin, &self.namespace);
        let find = || async {
            let list = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let ours = |e: &&Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name);
            let reasons: Vec<_> = list.items.iter().filter(ours).filter_map(|e| e.reason.clone()).collect();
            let found = list.items.iter().filter(ours).find(|e| e.reason.as_deref() == Some(reason));
            found.map(|e| e.note.clone().unwrap_or_default()).ok_or(format!("there are {reasons:?}"))
        };
        wait_until(&format!("{name} has an event {reason}"), find).await
    }

    /// Claims what is due, as a worker.
    pub async fn claim(&self, worker: &str) -> (Session, Vec<(Lease, Claimed)>) {
        let store = world::store(self.db.url_as("worker_login"), worker);
        let config = SessionConfig::new(worker, Duration::from_secs(600));
        let session = Session::open(store, config).await.expect("a session");
        let claimed = session.claim(10).await.expect("an answer");
        (session, claimed)
    }

    /// Does what a worker does for what is due, in the registry alone. Answers the tokens.
    pub async fn work(&self, worker: &str) -> Vec<i64> {
        let (session, claimed) = self.claim(worker).await;
        let mut tokens = Vec::new();
        for (lease, Claimed { plan, .. }) in claimed {
            tokens.push(lease.token().0);
            for write in writes(&plan) {
                lease.write(write).await.expect("an answer").applied().expect("recorded");
            }
            lease.release(None).await.expect("an answer");
        }
        session.close().await.expect("closed");
        tokens
    }

    pub async fn epoch_object(&self) -> Option<ConfigMap> {
        let objects: Api<ConfigMap> = api(&self.admin, &self.namespace);
        objects.get_opt(manifests::EPOCH_OBJECT).await.expect("an answer")
    }

    /// Waits until the epoch object has this number.
    pub async fn epoch_is(&self, number: &str) {
        let objects: Api<ConfigMap> = api(&self.admin, &self.namespace);
        let has = |object: Option<&ConfigMap>| {
            object.and_then(|o| o.data.as_ref()?.get(manifests::EPOCH_KEY)).is_some_and(|n| n == number)
        };
        wait_for(&objects, manifests::EPOCH_OBJECT, &format!("to have number {number}"), has).await;
    }
}

/// What a worker writes for a plan.
fn writes(plan: &palisade::plan::Plan) -> Vec<Write> {
    let (uid, rollout, spec) = (plan.uid, plan.rollout, &plan.spec);
    if plan.removed {
        return vec![Write::RecordRemoved { uid, rollout }];
    }
    let state = State { history: vec![spec.revision()], ..State::default() };
    let serving = Write::RecordServing {
        uid,
        rollout,
        step: "drain",
        state: state.clone(),
        model: spec.model.clone(),
        version: spec.version,
        revision: spec.revision(),
        alias: spec.promote_alias.clone(),
    };
    vec![serving, Write::RecordDone { uid, rollout, state }]
}

/// The role for the epoch object, in another namespace than Palisade's default one.
async fn grant_epoch_object(cluster: &Cluster, settings: &Manifests, namespace: &str) {
    let own =
        manifests::rbac(settings).into_iter().filter(|object| object["metadata"]["namespace"] == "palisade-system");
    let own = own.filter(|object| object["kind"] != "ServiceAccount").map(|mut object| {
        object["metadata"]["namespace"] = namespace.into();
        object
    });
    cluster.apply(&own.collect::<Vec<_>>()).await;
}

/// The reason of a condition that is True.
pub fn condition<'a>(status: &'a ModelDeploymentStatus, type_: &str) -> Option<&'a str> {
    status.conditions.iter().find(|c| c.type_ == type_ && c.status == "True").map(|c| &*c.reason)
}

/// One replica of the controller, in this process.
pub struct Replica {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
}

impl Replica {
    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(crate::support::cluster::PATIENCE, self.task).await.expect("it stops").expect("no panic");
    }

    /// Looks that ended well.
    pub fn looks(&self) -> u64 {
        self.count("palisade_reconciles_total{result=\"ok\"} ")
    }

    /// ModelDeployments for which a survey found nothing to do.
    pub fn surveyed(&self) -> u64 {
        self.count("palisade_surveyed_total ")
    }

    fn count(&self, name: &str) -> u64 {
        let text = self.metrics.print();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Waits until this line stands in its `/metrics`.
    pub async fn tells(&self, line: &str) {
        wait_until(&format!("it tells {line}"), || async {
            let text = self.metrics.print();
            if text.lines().any(|told| told == line) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// Waits until it is not ready for a reason in which this text stands.
    pub async fn complains(&self, text: &str) {
        wait_until(&format!("it complains of {text:?}"), || async {
            let reasons = self.readiness.reasons().unwrap_or_default();
            if reasons.contains(text) { Ok(()) } else { Err(reasons) }
        })
        .await;
    }

    pub async fn ready(&self) {
        wait_until("it is ready", || async { self.readiness.reasons().map_or(Ok(()), Err) }).await;
    }
}

/// The version of an object, to see whether it was written.
pub fn version_of(object: &ModelDeployment) -> String {
    object.resource_version().expect("a version")
}
