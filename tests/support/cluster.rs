//! A real Kubernetes for the tests: API server, controller manager, scheduler and fake nodes (`hack/cluster.sh`).
//!
//! ```text
//! Cluster::shared()   one a test binary, started by whoever asks first; the CRD is installed
//!    ├─ namespace()   a namespace of its own for each test
//!    └─ admin(), client_as(), kubeconfig_for()   as whom the API server sees the caller
//! Cluster::start()    one of its own, for tests that freeze or stop a component
//! ```
//!
//! `PALISADE_TEST_KUBECONFIG` names a throwaway cluster that is used as the shared one instead.
//! It all ends with this process, however that ends. Tests wait by watches (`wait_for`); only what happens inside of the
//! API server, such as a policy that comes into force, is polled (`wait_until`).

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{GroupVersionKind, Status};
use kube::discovery::ApiResource;
use kube::runtime::wait::await_condition;
use kube::{Client, Config, Resource};
use palisade::manifests::{self, Account, Settings};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// How long a test waits for something that must happen. Generous: two slow cores, many tests at once, and a server that
/// does not answer for a while.
pub const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A control plane that ends with this process.
#[derive(Debug)]
pub struct Cluster {
    /// Of the components' PID files and logs; absent where the cluster is not ours.
    pub dir: Option<PathBuf>,
    /// An admin's.
    pub kubeconfig: PathBuf,
}

impl Cluster {
    /// The one that all tests of a binary share. The first caller waits for it, some 5 s.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cluster = match std::env::var_os("PALISADE_TEST_KUBECONFIG") {
                Some(path) => Cluster { dir: None, kubeconfig: path.into() },
                None => launch(),
            };
            block_on_elsewhere(cluster.install_crd());
            cluster
        })
    }

    /// One of its own, with the CRD.
    pub async fn start() -> Cluster {
        // Blocks this test's thread only: each test has a runtime of its own.
        let cluster = launch();
        cluster.install_crd().await;
        cluster
    }

    /// Stops it now, and not only when the process ends. Safe to repeat.
    pub fn stop(&self) {
        if let Some(dir) = &self.dir {
            let status = Command::new(root().join("hack/cluster.sh")).arg("stop").arg(dir).status();
            assert!(status.expect("hack/cluster.sh can be run").success(), "the cluster did not stop");
        }
    }

    /// The PID of one of its components, for example `kube-apiserver`.
    pub fn pid(&self, component: &str) -> i32 {
        let path = self.dir.as_ref().expect("a cluster of our own").join(format!("{component}.pid"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().parse().expect("a PID")
    }

    /// The admin's connection settings. Without kube's own retries: a test wants to see each answer.
    pub async fn config(&self) -> Config {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).expect("the kubeconfig can be read");
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a good kubeconfig");
        config.default_retry = false;
        config
    }

    pub async fn admin(&self) -> Client {
        Client::try_from(self.config().await).expect("a client")
    }

    /// As any user, for example `Account::username()`, by impersonation: RBAC and policies see that user.
    pub async fn client_as(&self, username: &str, groups: &[&str]) -> Client {
        Client::try_from(self.config_as(username, groups).await).expect("a client")
    }

    pub async fn config_as(&self, username: &str, groups: &[&str]) -> Config {
        let mut config = self.config().await;
        config.auth_info.impersonate = Some(username.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(|group| (*group).to_owned()).collect());
        config
    }

    /// A kubeconfig file with a ServiceAccount's own token, for a process. The account must exist.
    pub async fn kubeconfig_for(&self, namespace: &str, name: &str) -> PathBuf {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await, namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(24 * 3600), ..Default::default() },
            ..Default::default()
        };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await.expect("a token");
        let token = answer.status.expect("an answer").token;
        let text = fs::read_to_string(&self.kubeconfig).expect("the kubeconfig can be read");
        let mut config: serde_yaml::Value = serde_yaml::from_str(&text).expect("YAML");
        config["users"][0]["user"] = serde_yaml::to_value(json!({"token": token})).expect("YAML");
        let path = self.kubeconfig.with_file_name(format!("{namespace}.{name}.kubeconfig"));
        fs::write(&path, serde_yaml::to_string(&config).expect("YAML")).expect("the kubeconfig can be written");
        path
    }

    /// A namespace that no other test uses. Nothing waits for its end: the cluster is thrown away.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace: Namespace = from_json(json!({"metadata": {"name": name}}));
        let namespaces: Api<Namespace> = Api::all(self.admin().await);
        namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        // Pods are refused until the namespace has it.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await, &name);
        wait_for(&accounts, "default", "to exist", |account| account.is_some()).await;
        name
    }

    /// Creates or replaces objects, in this order, as the admin.
    pub async fn apply(&self, objects: &[serde_yaml::Value]) {
        let client = self.admin().await;
        for object in objects {
            let object: DynamicObject = serde_yaml::from_value(object.clone()).expect("a manifest");
            let types = object.types.as_ref().expect("kind and version");
            let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).expect("a version"));
            let api: Api<DynamicObject> = match &object.metadata.namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let name = object.metadata.name.as_deref().expect("a name");
            let params = PatchParams::apply("palisade-test").force();
            if let Err(error) = api.patch(name, &params, &Patch::Apply(&object)).await {
                panic!("{} {name} cannot be applied: {error}", types.kind);
            }
        }
    }

    async fn install_crd(&self) {
        self.apply(&[manifests::crd()]).await;
        let crds: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
            Api::all(self.admin().await);
        let established = kube::runtime::conditions::is_crd_established();
        let waiting = await_condition(crds, "modeldeployments.palisade.dev", established);
        tokio::time::timeout(PATIENCE, waiting).await.expect("the CRD is established in time").expect("a watch");
    }

    /// Accounts, RBAC and policies, in force on return. The epoch object is left to whoever is tested.
    /// The settings name the default worker account.
    pub async fn install_policies(&self, settings: &Settings) {
        self.apply(&manifests::rbac(settings)).await;
        self.apply(&manifests::policies(settings)).await;
        // The API server learns of one policy after the other. Several refusals come as one of them, so that each
        // policy is asked for what no other one refuses.
        let unlabelled = json!({"metadata": {"labels": null, "annotations": null}});
        self.wait_refused(
            "palisade-fence-accounts",
            &account(manifests::SYSTEM_NAMESPACE, manifests::WORKER_ACCOUNT).username(),
            unlabelled,
        )
        .await;
        let labelled = json!({"metadata": {"annotations": null}});
        self.wait_refused("palisade-fence", "probe", labelled).await;
    }

    /// Has the epoch object say this number, as if the controller had allocated it, and waits until policies use it.
    pub async fn allocate_epoch(&self, namespace: &str, number: u32, incarnation: &str) {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": manifests::EPOCH_OBJECT, "namespace": namespace},
            "data": {manifests::EPOCH_KEY: number.to_string(), manifests::INCARNATION_KEY: incarnation},
        });
        self.apply(&[serde_yaml::to_value(object).expect("YAML")]).await;
        let api = self.probes("probe").await;
        let probe = deployment("probe", &fence(number.into(), 1, 1), json!({}));
        wait_until("the epoch is known", || async { api.create(&dry_run(), &probe).await.map(drop) }).await;
        let next =
            json!({"metadata": {"annotations": {manifests::FENCE_ANNOTATION: fence(u64::from(number) + 1, 1, 1)}}});
        self.wait_refused("palisade-fence-epoch", "probe", next).await;
        let empty = json!({"metadata": {"annotations": null}});
        self.wait_refused("palisade-fence", "probe", empty).await;
    }

    async fn probes(&self, username: &str) -> Api<DynamicObject> {
        let client = self.client_as(username, &["system:masters"]).await;
        Api::namespaced_with(client, "default", &ApiResource::erase::<k8s_openapi::api::apps::v1::Deployment>(&()))
    }

    /// Waits until this policy, or the one on epochs whose parameter may be missing, refuses such a Deployment.
    async fn wait_refused(&self, policy: &str, username: &str, more: Value) {
        let api = self.probes(username).await;
        let probe = deployment("probe", &fence(1, 1, 1), more);
        wait_until(&format!("the policy {policy} is in force"), || async {
            match api.create(&dry_run(), &probe).await {
                Err(error) if error.to_string().contains(&format!("'{policy}'")) => Ok(()),
                Err(error) if error.to_string().contains("no params found") => Ok(()),
                Err(error) => Err(error.to_string()),
                Ok(_) => Err("it was accepted".to_owned()),
            }
        })
        .await;
    }

    /// kubectl as the admin, in the version of the cluster.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(root().join("hack/kubectl.sh"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args).stdin(Stdio::null());
        command.output().expect("kubectl can be run")
    }
}

/// The epoch that `prepare` has allocated.
pub const EPOCH: u64 = 3;

pub fn settings() -> Settings {
    Settings::new(manifests::SYSTEM_NAMESPACE, [], None).expect("the defaults are good")
}

/// The shared cluster, prepared at the first call.
pub fn fenced() -> &'static Cluster {
    static READY: OnceLock<&'static Cluster> = OnceLock::new();
    READY.get_or_init(|| {
        let cluster = Cluster::shared();
        block_on_elsewhere(prepare(cluster));
        cluster
    })
}

/// Policies in force, RBAC as it is rendered, and an epoch allocated.
pub async fn prepare(cluster: &Cluster) {
    cluster.install_policies(&settings()).await;
    cluster.allocate_epoch(manifests::SYSTEM_NAMESPACE, EPOCH as u32, "test").await;
}

/// A fence, `TOKEN/SEQUENCE`, of an epoch and a counter.
pub fn fence(epoch: u64, counter: u64, sequence: u64) -> String {
    format!("{}/{sequence}", (epoch << 32) + counter)
}

/// A Deployment without pods, as a worker writes it; `more` is merged into it.
pub fn deployment(name: &str, fence: &str, more: Value) -> DynamicObject {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": name,
            "labels": {manifests::DEPLOYMENT_LABEL: name},
            "annotations": {manifests::FENCE_ANNOTATION: fence},
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "model", "image": "registry.example/model:1"}]},
            },
        },
    });
    merge(&mut object, &more);
    from_json(object)
}

/// RFC 7386: null removes.
pub fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        let map = object.as_object_mut().expect("it was made one");
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Waits by a watch until `condition` holds for the object, which may be absent.
pub async fn wait_for<K>(api: &Api<K>, name: &str, what: &str, condition: impl Fn(Option<&K>) -> bool) -> Option<K>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let waiting = await_condition(api.clone(), name, |object: Option<&K>| condition(object));
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(result) => result.unwrap_or_else(|e| panic!("waiting for {name} {what}: {e}")),
        Err(_) => panic!("{name}: waited in vain {what}; it is now {:#?}", api.get_opt(name).await),
    }
}

/// Polls what cannot be watched, such as a policy that comes into force. Says what was in the way at last.
pub async fn wait_until<F, T, E>(what: &str, check: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let error = match check().await {
            Ok(found) => return found,
            Err(error) => error,
        };
        assert!(tokio::time::Instant::now() < until, "waited in vain until {what}: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn dry_run() -> PostParams {
    PostParams { dry_run: true, ..Default::default() }
}

/// The Status in an API server's refusal.
pub fn refusal(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// A typed object from what a test writes down.
pub fn from_json<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the test wrote a good object")
}

/// A typed API in a namespace.
pub fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), namespace)
}

/// An account that exists wherever the test says.
pub fn account(namespace: &str, name: &str) -> Account {
    Account::new(namespace, name).expect("a good name")
}

fn launch() -> Cluster {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("palisade-cluster-{}-{number}", std::process::id()));
    let output = Command::new(root().join("hack/cluster.sh"))
        .args(["start".as_ref(), dir.as_os_str()])
        .args(["--remove", "--parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("hack/cluster.sh can be run");
    assert!(output.status.success(), "the cluster did not start");
    let kubeconfig = String::from_utf8(output.stdout).expect("a path").trim().to_owned();
    Cluster { dir: Some(dir), kubeconfig: kubeconfig.into() }
}

/// Runs a future to its end from within a test, whose own runtime may not block on one.
pub fn block_on_elsewhere<F: Future + Send>(future: F) -> F::Output
where
    F::Output: Send,
{
    let run =
        || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
    std::thread::scope(|scope| scope.spawn(run).join().expect("the setup does not panic"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
