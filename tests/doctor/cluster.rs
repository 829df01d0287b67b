//! A real API server on which Palisade is installed, and then something is taken away, changed or added. And an API
//! server that is none, for what the real one cannot be.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, Uri};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use palisade::manifests::{self, Settings};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use super::ran::{Ran, run};
use crate::support::cluster::{Cluster, fence, from_json, wait_until};
use crate::support::postgres::Db;

const NAMESPACE: &str = "palisade-system";

/// The shared cluster, as it is right after the installation; one test at a time, since each breaks it.
struct Installed {
    cluster: &'static Cluster,
    kubeconfig: String,
    _alone: MutexGuard<'static, ()>,
}

async fn installed() -> Installed {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let alone = ALONE.lock().await;
    let cluster = Cluster::shared();
    let installed = Installed { cluster, kubeconfig: cluster.kubeconfig.display().to_string(), _alone: alone };
    // What is gone comes back by an apply; what another test added goes by a replace, as the doctor advises.
    let objects = manifests::everything(&Settings::new(NAMESPACE, [], None).expect("settings"));
    cluster.apply(&objects).await;
    let epochs: Api<ConfigMap> = Api::namespaced(cluster.admin().await, NAMESPACE);
    let _ = epochs.delete(manifests::EPOCH_OBJECT, &DeleteParams::default()).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), manifests::print(&objects, manifests::Format::Yaml)).expect("a file");
    let replaced = cluster.kubectl(&["replace", "-f", &file.path().display().to_string()]);
    assert!(replaced.status.success(), "{}", String::from_utf8_lossy(&replaced.stderr));
    // The API server serves a CRD, and grants a right, a little later.
    wait_until("all is in force", || async {
        let ran = installed.doctor(&[]).await;
        if ran.problems() == ["cluster/epoch-object-missing"] { Ok(()) } else { Err(ran.out) }
    })
    .await;
    installed
}

impl Installed {
    async fn doctor(&self, args: &[&str]) -> Ran {
        run(&[("KUBECONFIG", &self.kubeconfig)], &[&["--only", "cluster"], args].concat()).await
    }

    async fn doctor_with(&self, db: &Db, args: &[&str]) -> Ran {
        let env = [("KUBECONFIG", self.kubeconfig.as_str()), ("DATABASE_URL", &db.url())];
        run(&env, &[&["--only", "cluster"], args].concat()).await
    }

    async fn api(&self, kind: &str) -> Api<DynamicObject> {
        let (group, version) = match kind {
            "CustomResourceDefinition" => ("apiextensions.k8s.io", "v1"),
            "ServiceAccount" => ("", "v1"),
            kind if kind.starts_with("ClusterRole") => ("rbac.authorization.k8s.io", "v1"),
            _ => ("admissionregistration.k8s.io", "v1"),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let client = self.cluster.admin().await;
        if kind == "ServiceAccount" {
            Api::namespaced_with(client, NAMESPACE, &resource)
        } else {
            Api::all_with(client, &resource)
        }
    }

    async fn delete(&self, kind: &str, name: &str) {
        let api = self.api(kind).await;
        api.delete(name, &DeleteParams::default()).await.expect("it can be deleted");
        wait_until(&format!("{kind} {name} is gone"), || async {
            match api.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    async fn patch(&self, kind: &str, name: &str, patch: Value) {
        let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("a patch"));
        self.api(kind).await.patch(name, &PatchParams::default(), &patch).await.expect("it can be patched");
    }

    /// The API server learns of a change of its policies a little later.
    async fn says(&self, check: &str, part: &str) {
        wait_until(&format!("{check}: {part}"), || async {
            let ran = self.doctor(&[]).await;
            let found = ran.problems().contains(&check) && ran.finds(check, "error").contains(part);
            if found { Ok(()) } else { Err(ran.out) }
        })
        .await;
    }

    /// An epoch object in a namespace of its own, where no policy looks at it.
    async fn epoch_object(&self, data: Value) -> String {
        let namespace = self.cluster.namespace("doctor").await;
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.admin().await, &namespace);
        let object = from_json(json!({"metadata": {"name": manifests::EPOCH_OBJECT}, "data": data}));
        api.create(&PostParams::default(), &object).await.expect("a ConfigMap");
        namespace
    }
}

#[tokio::test]
async fn of_a_fresh_installation_only_the_epoch_object_is_missed() {
    let it = installed().await;
    let ran = it.doctor(&[]).await;
    for check in ["cluster/version", "cluster/identity", "cluster/crd", "cluster/policies", "cluster/rights"] {
        ran.finds(check, "ok");
    }
    ran.exits(8).finds("cluster/epoch-object-missing", "error");
    assert_eq!(ran.problems(), ["cluster/epoch-object-missing"]);
    it.doctor(&["--pre"]).await.exits(0).finds("cluster/may-install", "ok");
    it.doctor(&["--namespace", "elsewhere"]).await.exits(8).finds("cluster/namespace-missing", "error");
}

#[tokio::test]
async fn a_crd_that_is_gone_changed_or_not_served_is_told_apart() {
    let it = installed().await;
    let name = "modeldeployments.palisade.dev";
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties";
    it.patch(
        "CustomResourceDefinition",
        name,
        json!([{"op": "remove", "path": format!("{schema}/spec/properties/replicas")}]),
    )
    .await;
    let what = it.doctor(&[]).await.finds("cluster/crd-different", "warning");
    assert!(what.contains("spec.properties.replicas differs"), "{what}");
    it.patch(
        "CustomResourceDefinition",
        name,
        json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]),
    )
    .await;
    it.doctor(&[]).await.exits(8).finds("cluster/crd-not-served", "error");
    it.delete("CustomResourceDefinition", name).await;
    it.doctor(&[]).await.exits(8).finds("cluster/crd-missing", "error");
    it.doctor(&["--pre"]).await.exits(0).finds("cluster/crd", "ok");
}

#[tokio::test]
async fn each_way_in_which_a_policy_stops_protecting_is_an_error() {
    let it = installed().await;
    let (policy, binding) = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding");
    it.patch(policy, "palisade-fence", json!([{"op": "replace", "path": "/spec/failurePolicy", "value": "Ignore"}]))
        .await;
    it.patch(
        policy,
        "palisade-fence-epoch",
        json!([{"op": "add", "path": "/spec/matchConditions",
        "value": [{"name": "never", "expression": "false"}]}]),
    )
    .await;
    it.patch(
        policy,
        "palisade-fence-create",
        json!([{"op": "replace", "path": "/spec/validations/0/expression", "value": "true"}]),
    )
    .await;
    it.patch(
        binding,
        "palisade-fence",
        json!([{"op": "replace", "path": "/spec/validationActions", "value": ["Audit"]}]),
    )
    .await;
    it.patch(
        binding,
        "palisade-fence-epoch",
        json!([{"op": "replace", "path": "/spec/paramRef/parameterNotFoundAction", "value": "Allow"}]),
    )
    .await;
    it.delete(policy, "palisade-fence-epoch-object").await;
    it.delete(binding, "palisade-fence-accounts").await;

    let ran = it.doctor(&[]).await;
    ran.exits(8).lacks("cluster/policies");
    for (check, says) in [
        ("cluster/policy-fails-open", "palisade-fence has failurePolicy \"Ignore\""),
        ("cluster/policy-different", "palisade-fence-epoch is not this program's: spec.matchConditions differs"),
        ("cluster/policy-different", "palisade-fence-create is not this program's: spec.validations[0].expression"),
        ("cluster/policy-missing", "palisade-fence-epoch-object"),
        ("cluster/binding-not-denying", "[\"Audit\"]"),
        ("cluster/binding-different", "spec.paramRef.parameterNotFoundAction differs"),
        ("cluster/binding-missing", "palisade-fence-accounts"),
    ] {
        let what = ran.finds(check, "error");
        assert!(what.contains(says), "{check}: {what}");
    }
}

/// What the policies' texts do not tell: what the API server does by them.
#[tokio::test]
async fn what_the_policies_refuse_is_asked_and_not_only_read() {
    let it = installed().await;
    let binding = "ValidatingAdmissionPolicyBinding";
    it.cluster.allocate_epoch(NAMESPACE, 1, "of the tests").await;
    let heard = it.doctor(&[]).await.exits(0).finds("cluster/admission", "ok");
    assert!(heard.contains("a malformed fence is refused, one of epoch 1 taken, a later one refused"), "{heard}");

    // It looks for the epoch where there is none: as if it did not follow the epoch object.
    let looks = |namespace: &str| json!([{"op": "replace", "path": "/spec/paramRef/namespace", "value": namespace}]);
    it.patch(binding, "palisade-fence-epoch", looks("default")).await;
    it.says("cluster/policies-behind", "epoch 1, and a fence of it is refused").await;

    let audit = json!([{"op": "replace", "path": "/spec/validationActions", "value": ["Audit"]}]);
    it.patch(binding, "palisade-fence-epoch", looks(NAMESPACE)).await;
    it.patch(binding, "palisade-fence-epoch", audit.clone()).await;
    it.says("cluster/policies-silent", "a fence of epoch 2").await;
    it.patch(binding, "palisade-fence", audit).await;
    it.says("cluster/policies-silent", "took a malformed fence").await;
    it.doctor(&[]).await.exits(8).lacks("cluster/admission");

    it.delete(binding, "palisade-fence").await;
    it.doctor(&[]).await.exits(8).lacks("cluster/policies-silent");
}

#[tokio::test]
async fn a_worker_that_the_policies_do_not_fence_is_an_error() {
    let it = installed().await;
    // Named on the command line, as to `palisade crd`.
    let what = it.doctor(&["--worker-account", "ml:blue"]).await.exits(8).finds("cluster/worker-unfenced", "error");
    assert!(what.contains("system:serviceaccount:ml:blue"), "{what}");
    // Found in the cluster: it has the role.
    let subject = |name: &str| {
        json!([{"op": "add", "path": "/subjects/-", "value":
        {"kind": "ServiceAccount", "name": name, "namespace": "ml"}}])
    };
    it.patch("ClusterRoleBinding", "palisade-worker", subject("green")).await;
    it.patch("ClusterRoleBinding", "palisade-controller", subject("chief")).await;
    let ran = it.doctor(&[]).await;
    assert!(ran.finds("cluster/worker-unfenced", "error").contains("system:serviceaccount:ml:green"));
    assert!(ran.finds("cluster/controller-unlisted", "warning").contains("system:serviceaccount:ml:chief"));
    assert!(ran.finds("cluster/account-missing", "warning").contains("ml:green"));
}

#[tokio::test]
async fn accounts_of_other_names_are_no_difference() {
    let it = installed().await;
    let named = Settings::new(NAMESPACE, ["default:default".parse().expect("an account")], None).expect("settings");
    it.cluster.apply(&manifests::everything(&named)).await;
    // The authorizer learns of the account's rights by a watch.
    let ran = wait_until("nothing but the epoch object is missed", || async {
        let ran = it.doctor(&[]).await;
        if ran.problems() == ["cluster/epoch-object-missing"] { Ok(ran) } else { Err(ran.out) }
    })
    .await;
    assert!(ran.finds("cluster/policies", "ok").contains("default:default"));
}

#[tokio::test]
async fn rights_that_an_account_lacks_or_has_too_many_of_are_named() {
    let it = installed().await;
    it.patch("ClusterRole", "palisade-worker", json!([
        {"op": "remove", "path": "/rules/2"},
        {"op": "add", "path": "/rules/-", "value": {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["update"]}},
        {"op": "add", "path": "/rules/-", "value": {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}},
    ])).await;
    // The authorizer learns of it by a watch.
    wait_until("the role is in force", || async {
        let ran = it.doctor(&[]).await;
        let both = ["cluster/rights-missing", "cluster/rights-excess"];
        if both.iter().all(|check| ran.problems().contains(check)) { Ok(()) } else { Err(ran.out) }
    })
    .await;
    let ran = it.doctor(&[]).await;
    let lacks = ran.finds("cluster/rights-missing", "error");
    assert!(lacks.contains("palisade-worker may not list, watch pods"), "{lacks}");
    let excess = ran.finds("cluster/rights-excess", "warning");
    assert!(
        excess.contains("update deployments/scale.apps") && excess.contains("patch configmaps palisade-epoch"),
        "{excess}"
    );
}

#[tokio::test]
async fn whoever_may_look_at_little_is_told_what_was_not_seen() {
    let it = installed().await;
    let worker: PathBuf = it.cluster.kubeconfig_for(NAMESPACE, "palisade-worker").await;
    let worker = worker.display().to_string();
    let ran = run(&[("KUBECONFIG", &worker)], &["--only", "cluster"]).await;
    let what = ran.exits(0).finds("cluster/unseen", "info");
    for part in ["the CRD", "the admission policies", "the epoch object"] {
        assert!(what.contains(part), "{part}: {what}");
    }
    ran.lacks("cluster/admission"); // it is held to more than others
    ran.finds("cluster/rights", "ok"); // about itself it may ask
    let ran = run(&[("KUBECONFIG", &worker)], &["--only", "cluster", "--pre"]).await;
    assert!(ran.exits(8).finds("cluster/may-not-install", "error").contains("create customresourcedefinitions"));
    it.delete("ServiceAccount", "palisade-controller").await;
    assert!(it.doctor(&[]).await.finds("cluster/account-missing", "warning").contains("palisade-controller"));
}

// ---------------------------------------------------------------- epoch

#[tokio::test]
async fn an_epoch_object_that_is_not_the_databases_is_told_by_what_is_wrong() {
    let it = installed().await;
    let db = Db::new().await;
    let incarnation = db.connect().await.text("SELECT incarnation FROM palisade.epoch_status()").await;
    let taken = "2026-01-01T00:00:00Z";
    for (data, check, severity, says) in [
        (json!({"epoch": "one", "incarnation": "x"}), "cluster/epoch-object-damaged", "error", "\"one\""),
        (
            json!({"epoch": "1", "incarnation": incarnation, "establishedAt": taken}),
            "cluster/epoch",
            "ok",
            "have epoch 1",
        ),
        (
            json!({"epoch": "5", "incarnation": incarnation, "establishedAt": taken}),
            "cluster/epoch-lost",
            "error",
            "has epoch 1, and the cluster has given epoch 5",
        ),
        (json!({"epoch": "5", "incarnation": "9/1/1/1/1"}), "cluster/epoch-differs", "error", "epoch 5 of 9/1/1/1/1"),
    ] {
        let namespace = it.epoch_object(data).await;
        let args = ["--namespace", &namespace, "--watch-namespace", &namespace];
        let what = it.doctor_with(&db, &args).await.finds(check, severity);
        assert!(what.contains(says), "{check}: {what}");
    }
}

#[tokio::test]
async fn a_fence_that_was_never_granted_is_named_with_what_cures_it() {
    let it = installed().await;
    let db = Db::new().await;
    let incarnation = db.connect().await.text("SELECT incarnation FROM palisade.epoch_status()").await;
    // Somebody took the policies away, wrote it, and put them back.
    for policy in ["palisade-fence", "palisade-fence-epoch", "palisade-fence-create"] {
        it.delete("ValidatingAdmissionPolicyBinding", policy).await;
    }
    for (epoch, check) in [(7, "cluster/fence-ahead"), (2_097_151, "cluster/epochs-used-up")] {
        let namespace = it
            .epoch_object(json!({"epoch": "1", "incarnation": incarnation, "establishedAt": "2026-01-01T00:00:00Z"}))
            .await;
        let service: Service = from_json(json!({
            "metadata": {"name": "churn", "labels": {manifests::DEPLOYMENT_LABEL: "churn"},
                "annotations": {manifests::FENCE_ANNOTATION: fence(epoch, 1, 1)}},
            "spec": {"ports": [{"port": 80}]},
        }));
        let services: Api<Service> = Api::namespaced(it.cluster.admin().await, &namespace);
        wait_until("the policies are out of force", || async {
            services.create(&PostParams::default(), &service).await.map(drop)
        })
        .await;
        let args = ["--namespace", &namespace, "--watch-namespace", &namespace];
        let what = it.doctor_with(&db, &args).await.exits(8).finds(check, "error");
        assert!(what.contains(&format!("Service {namespace}/churn")), "{what}");
    }
}

// ---------------------------------------------------------------- no API server, or another one

/// A kubeconfig for this address and token.
fn kubeconfig(folder: &tempfile::TempDir, server: &str, token: &str) -> String {
    let path = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    std::fs::write(&path, config.to_string()).expect("a file");
    path.display().to_string()
}

/// Answers the question for its version like this, and everything else with an error of its own.
async fn pretender(major: &str, minor: &str) -> String {
    let version = json!({"major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0"), "gitCommit": "",
        "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let version = Arc::new(version.to_string());
    let app = Router::new().fallback(move |uri: Uri| {
        let version = version.clone();
        async move {
            match uri.path() {
                "/version" => (StatusCode::OK, version.as_str().to_owned()),
                path if path.ends_with("admissionregistration.k8s.io/v1") => (StatusCode::OK,
                    json!({"kind": "APIResourceList", "groupVersion": "admissionregistration.k8s.io/v1", "resources": []}).to_string()),
                _ => (StatusCode::INTERNAL_SERVER_ERROR,
                    json!({"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "etcd is ill"}).to_string()),
            }
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

#[tokio::test]
async fn an_api_server_that_is_too_old_or_ill_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = kubeconfig(&folder, &pretender("1", "29+").await, "x");
    let ran = run(&[("KUBECONFIG", &old)], &["--only", "cluster"]).await;
    assert!(ran.exits(8).finds("cluster/version-too-old", "error").contains("v1.29"));
    ran.finds("cluster/policies-not-served", "error");
    assert!(ran.finds("cluster/no-answer", "error").contains("etcd is ill"));

    let odd = kubeconfig(&folder, &pretender("one", "x").await, "x");
    run(&[("KUBECONFIG", &odd)], &["--only", "cluster"]).await.finds("cluster/version-unreadable", "warning");
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_or_does_not_know_us_is_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let closed = kubeconfig(&folder, "https://127.0.0.1:1", "x");
    let what =
        run(&[("KUBECONFIG", &closed)], &["--only", "cluster"]).await.exits(8).finds("cluster/unreachable", "error");
    assert!(what.contains("refused"), "{what}");

    // It accepts, and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = kubeconfig(&folder, &format!("http://{}", listener.local_addr().expect("an address")), "x");
    let ran = run(&[("KUBECONFIG", &silent)], &["--only", "cluster", "--timeout", "1s"]).await;
    assert!(ran.exits(8).finds("cluster/unreachable", "error").contains("within 1s"));

    let text = std::fs::read_to_string(&Cluster::shared().kubeconfig).expect("the kubeconfig can be read");
    let real: Value = serde_yaml::from_str(&text).expect("YAML");
    let server = real["clusters"][0]["cluster"]["server"].as_str().expect("a server").to_owned();
    let stranger = kubeconfig(&folder, &server, "not-a-token");
    run(&[("KUBECONFIG", &stranger)], &["--only", "cluster"]).await.exits(8).finds("cluster/login-refused", "error");
}
