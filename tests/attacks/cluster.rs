//! The stage in the cluster: objects that a newer owner wrote, and attackers with the tokens of the real ServiceAccounts.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::ApiResource;
use kube::{Client, Config};
use palisade::manifests::{
    self, CONTROLLER_ACCOUNT, DEPLOYMENT_LABEL, FENCE_ANNOTATION, RETIRED_ANNOTATION, SYSTEM_NAMESPACE, WORKER_ACCOUNT,
    WORKER_MANAGER,
};
use serde_json::{Value, json};

pub use crate::support::cluster::{EPOCH, fenced as cluster, settings};
use crate::support::cluster::{deployment, fence, from_json, merge, wait_until};

use super::expect::Expect;

/// A kind that workers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Deployment,
    Service,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Deployment, Kind::Service];

    pub fn resource(self) -> ApiResource {
        match self {
            Kind::Deployment => ApiResource::erase::<Deployment>(&()),
            Kind::Service => ApiResource::erase::<Service>(&()),
        }
    }

    /// Its name in RBAC: group, resource.
    pub fn named(self) -> (&'static str, &'static str) {
        match self {
            Kind::Deployment => ("apps", "deployments"),
            Kind::Service => ("", "services"),
        }
    }

    pub fn path(self, namespace: &str) -> String {
        match self {
            Kind::Deployment => format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
            Kind::Service => format!("/api/v1/namespaces/{namespace}/services"),
        }
    }
}

/// What an attacker sends, as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub content: &'static str,
    pub body: Value,
    pub headers: Vec<(&'static str, String)>,
}

impl Request {
    pub fn new(method: &'static str, path: impl Into<String>) -> Request {
        Request { method, path: path.into(), content: "application/json", body: Value::Null, headers: Vec::new() }
    }

    pub fn body(self, content: &'static str, body: Value) -> Request {
        Request { content, body, ..self }
    }

    pub fn json(self, body: Value) -> Request {
        self.body("application/json", body)
    }

    /// What the API server answers: the object, or its refusal as `CODE REASON: MESSAGE`.
    pub async fn send(&self, client: &Client) -> Result<String, String> {
        // A request to anywhere, made into this one: the types of its parts are not ours to name.
        let mut request = kube::core::Request::new("/").get("x", &Default::default()).expect("a request");
        *request.method_mut() = self.method.parse().expect("a method");
        *request.uri_mut() = self.path.parse().unwrap_or_else(|e| panic!("{}: {e}", self.path));
        request.headers_mut().insert("content-type", self.content.parse().expect("a header"));
        for (name, value) in &self.headers {
            request.headers_mut().append(*name, value.parse().expect("a header"));
        }
        if !self.body.is_null() {
            *request.body_mut() = self.body.to_string().into_bytes();
        }
        client.request_text(request).await.map_err(|error| match error {
            kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
            other => format!("no answer: {other}"),
        })
    }
}

/// Who acts, each with a token of its own account.
pub struct Actors {
    pub admin: Client,
    pub worker: Client,
    pub controller: Client,
}

impl Actors {
    pub async fn new() -> Actors {
        Actors {
            admin: cluster().admin().await,
            worker: with_token(WORKER_ACCOUNT).await,
            controller: with_token(CONTROLLER_ACCOUNT).await,
        }
    }
}

async fn with_token(account: &str) -> Client {
    // One after the other: the file is written in place.
    static WRITING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let writing = WRITING.lock().await;
    let path = cluster().kubeconfig_for(SYSTEM_NAMESPACE, account).await;
    let kubeconfig = Kubeconfig::read_from(path).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a good kubeconfig");
    drop(writing);
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

/// Under what the victim was last written: a newer owner's fence.
pub fn current() -> String {
    fence(EPOCH, 5, 7)
}

/// The victim's deployment, and another one.
pub const VICTIM: &str = "victim";
pub const OTHER: &str = "other";

/// A namespace with a newer owner's objects: Deployment and Service `victim` (5/7), a retired Deployment `retired` (5/7),
/// Deployment and Service `other` (9/3), and somebody's own `stranger` of each kind.
pub struct Stage {
    pub namespace: String,
    pub actors: Actors,
}

impl Stage {
    pub async fn new() -> Stage {
        let stage = Stage { namespace: cluster().namespace("attacks").await, actors: Actors::new().await };
        let retired = json!({"metadata": {"annotations": {RETIRED_ANNOTATION: current()}}});
        for (kind, object) in [
            (Kind::Service, service(VICTIM, VICTIM, &current())),
            (Kind::Deployment, plain(VICTIM, VICTIM, &current(), json!({"spec": {"replicas": 1}}))),
            (Kind::Deployment, plain("retired", VICTIM, &current(), retired)),
            (Kind::Service, service(OTHER, OTHER, &fence(EPOCH, 9, 3))),
            (Kind::Deployment, plain(OTHER, OTHER, &fence(EPOCH, 9, 3), json!({}))),
        ] {
            stage.plant(&stage.actors.worker, kind, object).await;
        }
        let bare = json!({"metadata": {"labels": null, "annotations": null}});
        for (kind, mut object) in [
            (Kind::Service, service("stranger", "x", &current())),
            (Kind::Deployment, plain("stranger", "x", &current(), json!({}))),
        ] {
            merge(&mut object, &bare);
            stage.plant(&stage.actors.admin, kind, object).await;
        }
        stage.seen().await;
        stage
    }

    /// Waits until a creation is held against the Service: the API server reads it from a cache, which is a little behind.
    async fn seen(&self) {
        let path = format!("{}?dryRun=All", Kind::Deployment.path(&self.namespace));
        let stale = plain("probe", VICTIM, &fence(EPOCH, 4, 1), json!({}));
        let request = Request::new("POST", path).json(stale);
        wait_until("the Service is known to the policies", || async {
            match request.send(&self.actors.worker).await {
                Err(said) if said.contains("stale write under") => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
    }

    /// As a worker writes: by server-side apply.
    async fn plant(&self, client: &Client, kind: Kind, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &self.namespace, &kind.resource());
        let params = PatchParams::apply(WORKER_MANAGER).force();
        let object: DynamicObject = from_json(object);
        api.patch(&name, &params, &Patch::Apply(object)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// What must be as before, of all objects of these kinds here. Not resourceVersion: the status goes on.
    pub async fn essence(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.actors.admin.clone(), &self.namespace, &kind.resource());
            for object in api.list(&Default::default()).await.expect("the admin can read") {
                let mut annotations = object.metadata.annotations.unwrap_or_default();
                annotations.retain(|key, _| key.starts_with("palisade.dev/"));
                all.push(json!({
                    "kind": format!("{kind:?}"), "name": object.metadata.name, "uid": object.metadata.uid,
                    "labels": object.metadata.labels, "annotations": annotations,
                    "owners": object.metadata.owner_references, "finalizers": object.metadata.finalizers,
                    "deleted": object.metadata.deletion_timestamp, "spec": object.data["spec"],
                }));
            }
        }
        all
    }

    /// Tries it as the worker; says what is wrong, if it did not become what it should.
    pub async fn attack(&self, before: &[Value], attack: &Attack) -> Result<(), String> {
        let answer = attack.request.send(&self.actors.worker).await;
        let after = self.essence().await;
        let name = &attack.name;
        match (answer, attack.expect) {
            (Ok(_), Expect::Refused(_)) => Err(format!("{name}: it was ACCEPTED")),
            (Err(said), Expect::Refused(parts)) if !Expect::names(parts, &said) => {
                Err(format!("{name}: refused, but not with {parts:?}: {said}"))
            }
            (Err(said), Expect::Harmless(_) | Expect::Limited(_)) => {
                Err(format!("{name}: it goes not through: {said}"))
            }
            _ if before != after => {
                let changed: Vec<_> =
                    after.iter().filter(|object| !before.contains(object)).map(Value::to_string).collect();
                Err(format!("{name}: it CHANGED {}", changed.join(", ")))
            }
            _ => Ok(()),
        }
    }
}

/// One thing that is tried, as the worker.
#[derive(Clone, Debug)]
pub struct Attack {
    pub name: String,
    pub request: Request,
    pub expect: Expect,
}

/// A Deployment of this ModelDeployment. Its pod template carries what the Service does not select.
pub fn plain(name: &str, label: &str, fence: &str, more: Value) -> Value {
    let mut object = serde_json::to_value(deployment(name, fence, json!({}))).expect("JSON");
    object["metadata"]["labels"][DEPLOYMENT_LABEL] = label.into();
    merge(&mut object, &more);
    object
}

pub fn service(name: &str, label: &str, fence: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {DEPLOYMENT_LABEL: label}, "annotations": {FENCE_ANNOTATION: fence}},
        "spec": {"ports": [{"port": 8080, "protocol": "TCP", "targetPort": 8080}], "selector": {"app": name}},
    })
}

pub fn object(kind: Kind, name: &str, label: &str, fence: &str) -> Value {
    match kind {
        Kind::Deployment => plain(name, label, fence, json!({})),
        Kind::Service => service(name, label, fence),
    }
}

/// The rules of the worker's Role, as they are rendered: (group, resource, verbs).
pub fn role() -> Vec<(String, String, Vec<String>)> {
    let mut rules = Vec::new();
    for object in manifests::rbac(&settings()) {
        let object = serde_json::to_value(object).expect("JSON");
        if object["kind"] != "ClusterRole" || object["metadata"]["name"] != "palisade-worker" {
            continue;
        }
        for rule in object["rules"].as_array().expect("rules") {
            let words = |key: &str| -> Vec<String> {
                let list = rule[key].as_array().into_iter().flatten();
                list.map(|word| word.as_str().expect("a word").to_owned()).collect()
            };
            for group in words("apiGroups") {
                rules.extend(words("resources").into_iter().map(|resource| (group.clone(), resource, words("verbs"))));
            }
        }
    }
    assert!(!rules.is_empty(), "the worker's Role is among what is rendered");
    rules
}
