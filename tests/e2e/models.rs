//! Models, and ModelDeployments that serve them.

use std::fs;
use std::time::Duration;

use kube::api::{Api, DynamicObject};
use kube::discovery::ApiResource;
use palisade::crd::ModelDeployment;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::node::PAUSE;
use super::world::{PYTHON, World, has_node};

/// A container that may do nothing.
pub fn closed() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

impl World {
    /// The models' artifacts behind a Service: not from every cluster do pods reach this process.
    pub fn serve_artifacts(&self) {
        let store = self.store();
        let models = self.models.to_str().expect("UTF-8");
        self.kubectl(&["-n", &store, "create", "configmap", "artifacts", "--from-file", models]);
        let labels = json!({"app": "artifacts"});
        self.apply(&[
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "artifacts", "namespace": store},
                   "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "artifacts", "namespace": store, "labels": labels},
                   "spec": {
                       "terminationGracePeriodSeconds": 1,
                       "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                       "containers": [{
                           "name": "artifacts", "image": self.images.mlserver, "imagePullPolicy": "IfNotPresent",
                           "command": [PYTHON, "-m", "http.server", "8000", "--directory", "/artifacts"],
                           "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                           "securityContext": closed(), "volumeMounts": [{"name": "artifacts", "mountPath": "/artifacts"}],
                       }],
                       "volumes": [{"name": "artifacts", "configMap": {"name": "artifacts"}}],
                   }}),
        ]);
        // Where the node does not have the image yet, it is pulled meanwhile.
        self.kubectl(&["-n", &store, "wait", "--for=condition=Ready", "--timeout=600s", "pod/artifacts"]);
    }

    /// Where pods fetch a version of the iris model, and its digest.
    pub fn artifact(&self, version: u32) -> (String, String) {
        let bytes = fs::read(self.models.join(format!("{version}.tar.gz"))).expect("an artifact");
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        (format!("http://artifacts.{}.svc/{version}.tar.gz", self.store()), digest)
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
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": self.shop},
            "spec": {
                "model": {"name": model, "version": version},
                "service": {"port": 8080},
                "template": {"spec": {
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                    "initContainers": [{
                        "name": "fetch", "image": self.images.palisade, "imagePullPolicy": "IfNotPresent",
                        "args": ["fetch", "--to", "/models/model", "--unpack"],
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": closed(), "volumeMounts": mount.clone(),
                    }],
                    "containers": [{
                        "name": "model", "image": self.images.mlserver, "imagePullPolicy": "IfNotPresent",
                        "args": ["start", "/models/model"], "env": [{"name": "MLSERVER_PARALLEL_WORKERS", "value": "0"}],
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/v2/models/iris/ready", "port": 8080}, "periodSeconds": 1},
                        "securityContext": closed(), "volumeMounts": mount,
                    }],
                    "volumes": [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
                }},
            },
        })
    }

    /// One whose pods are there at once: what serves is of no interest.
    pub fn small(&self, name: &str, version: i64) -> Value {
        let mut container = json!({"name": "model", "image": PAUSE, "imagePullPolicy": "IfNotPresent"});
        if !has_node() {
            container["image"] = self.images.mlserver.as_str().into();
            container["command"] = json!([PYTHON, "-c", "import signal; signal.signal(15, print); signal.pause()"]);
        }
        json!({
            "apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": name, "namespace": self.shop},
            "spec": {
                "model": {"name": "small", "version": version},
                "service": {"port": 8080},
                "strategy": {"drainSeconds": 1},
                "revisionHistoryLimit": 0,
                "template": {"spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                }},
            },
        })
    }

    pub fn roll(&self, name: &str, version: i64) {
        let patch = json!({"spec": {"model": {"version": version}}}).to_string();
        self.kubectl(&["-n", self.shop, "patch", "mdep", name, "--type", "merge", "-p", &patch]);
    }

    pub fn deployments(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.shop, &ApiResource::erase::<ModelDeployment>(&()))
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
}

/// Whether it says Ready of its newest generation.
pub fn ready(object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    status["observedGeneration"].as_i64() == object.metadata.generation
        && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
