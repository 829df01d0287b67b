//! Releases on a real API server: install, upgrade, rollback, uninstall, install again; a second one beside.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::ApiResource;
use palisade::manifests;
use serde_json::{Value, json};

use crate::support::cluster::{Cluster, account, deployment, fence, from_json, wait_until};
use crate::support::helm::{Ran, chart, helm_at};

const DATABASE: &str = "database.existingSecret=palisade-database";

fn run(cluster: &Cluster, args: &[&str]) -> Ran {
    helm_at(&cluster.kubeconfig, args)
}

fn install(cluster: &Cluster, release: &str, namespace: &str, more: &[&str]) -> Ran {
    let chart = chart();
    let args = ["install", release, chart.to_str().expect("UTF-8"), "--namespace", namespace, "--set", DATABASE];
    run(cluster, &[&args, more].concat())
}

#[track_caller]
fn ok(ran: Ran) -> String {
    assert!(ran.ok, "{ran:?}");
    ran.out
}

#[track_caller]
fn refused(ran: Ran, says: &str) {
    assert!(!ran.ok && ran.err.contains(says), "{says:?} is not in {ran:?}");
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.kubectl(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All that is in the cluster of a release, as `KIND/NAME` lines.
fn left(cluster: &Cluster, release: &str) -> String {
    const KINDS: &str = "deployments,statefulsets,jobs,services,serviceaccounts,roles,rolebindings,clusterroles,\
        clusterrolebindings,configmaps,secrets,networkpolicies,poddisruptionbudgets,persistentvolumeclaims,pods,\
        validatingadmissionpolicies,validatingadmissionpolicybindings,customresourcedefinitions";
    let label = format!("app.kubernetes.io/instance={release}");
    kubectl(cluster, &["get", KINDS, "-A", "-l", &label, "-o", "name", "--ignore-not-found"])
}

#[tokio::test]
async fn a_release_is_installed_upgraded_rolled_back_uninstalled_and_installed_again() {
    let cluster = Cluster::start().await;
    let namespace = cluster.namespace("palisade-system").await;
    let ns = namespace.as_str();
    // The tests' own was made by hand.
    kubectl(&cluster, &["delete", "crd", "modeldeployments.palisade.dev"]);
    let notes = ok(install(&cluster, "palisade", ns, &[]));
    assert!(notes.contains(&format!("helm test palisade --namespace {ns}")), "{notes}");
    assert!(
        left(&cluster, "palisade")
            .contains("customresourcedefinition.apiextensions.k8s.io/modeldeployments.palisade.dev")
    );

    kubectl(&cluster, &["wait", "--for=condition=Established", "crd/modeldeployments.palisade.dev", "--timeout=60s"]);
    // A ModelDeployment with the controller's finalizer, and the epoch object that the controller would make.
    let model = json!({"apiVersion": "palisade.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "churn", "namespace": ns, "finalizers": [manifests::FINALIZER]}, "spec": spec()});
    cluster.apply(&[serde_yaml::to_value(&model).expect("YAML")]).await;
    let epochs: Api<ConfigMap> = Api::namespaced(cluster.admin().await, ns);
    let epoch: ConfigMap = from_json(json!({"metadata": {"name": manifests::EPOCH_OBJECT},
        "data": {"epoch": "1", "incarnation": "x"}}));
    epochs.create(&PostParams::default(), &epoch).await.expect("made");

    let jobs: Api<Job> = Api::namespaced(cluster.admin().await, ns);
    let names = || async {
        let list = jobs.list(&ListParams::default()).await.expect("a list");
        list.items.into_iter().filter_map(|job| job.metadata.name).collect::<Vec<_>>()
    };
    let job_of = |revision: &str, names: &[String]| {
        assert!(names.len() == 1 && names[0].starts_with(&format!("palisade-migrate-{revision}-")), "{names:?}");
    };
    job_of("1", &names().await);
    let chart = chart();
    let chart = chart.to_str().expect("UTF-8");
    ok(run(
        &cluster,
        &["upgrade", "palisade", chart, "--namespace", ns, "--set", DATABASE, "--set", "worker.replicas=3"],
    ));
    // Each revision migrates, and the job before it is gone.
    job_of("2", &names().await);
    ok(run(&cluster, &["rollback", "palisade", "1", "--namespace", ns]));
    // The older program runs its own.
    job_of("1", &names().await);

    ok(run(&cluster, &["uninstall", "palisade", "--namespace", ns, "--wait"]));
    // What it leaves: the CRD and with it the ModelDeployments; the epoch object, which was never the release's, and what
    // guards it.
    keeps(&cluster, "palisade", &kept("palisade", true)).await;
    assert!(epochs.get_opt(manifests::EPOCH_OBJECT).await.expect("an answer").is_some());
    kubectl(&cluster, &["get", "mdep", "churn", "-n", ns]);
    kubectl(&cluster, &["-n", ns, "create", "rolebinding", "editor", "--clusterrole=edit", "--user=bob"]);
    let bob: Api<ConfigMap> = Api::namespaced(cluster.client_as("bob", &[]).await, ns);
    let guarded = "only Palisade's controller writes the epoch object";
    wait_until("bob's role is in force, and the object is guarded", || async {
        match bob.delete(manifests::EPOCH_OBJECT, &DeleteParams::default()).await {
            Err(error) if error.to_string().contains(guarded) => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;

    // It takes back what was kept without being told. The API server, which runs on, follows what policies read.
    ok(install(&cluster, "palisade", ns, &[]));
    follows_its_parameters(&cluster, ns, 3).await;
    ok(run(&cluster, &["uninstall", "palisade", "--namespace", ns, "--wait"]));
    another_name_takes_over_or_removes_what_was_kept(&cluster, ns).await;

    // Nobody is there to answer a deletion: what NOTES.txt says.
    let notes = notes.replace("NAMESPACE", ns).replace("NAME", "churn");
    let told: Vec<_> = notes
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("kubectl") && line.contains("modeldeployment churn"))
        .collect();
    assert_eq!(told.len(), 2, "{notes}");
    let script =
        format!("set -e; kubectl() {{ {}/hack/kubectl.sh \"$@\"; }}; {}", env!("CARGO_MANIFEST_DIR"), told.join("; "));
    let output =
        std::process::Command::new("bash").args(["-c", &script]).env("KUBECONFIG", &cluster.kubeconfig).output();
    let output = output.expect("bash");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(kubectl(&cluster, &["get", "mdep", "-A", "-o", "name"]).trim(), "");
    // The namespace goes, and the epoch object with it, while the policy is there and nothing else.
    kubectl(&cluster, &["delete", "namespace", ns, "--timeout=180s"]);
    cluster.stop();
}

/// Waits until no more than this is left: helm does not wait for pods, which go a moment after their owners.
async fn keeps(cluster: &Cluster, release: &str, kept: &str) {
    wait_until(&format!("of {release} there is only what is kept"), || async {
        let left = left(cluster, release);
        if left.trim() == kept { Ok(()) } else { Err(left) }
    })
    .await;
}

/// What an uninstall keeps.
fn kept(name: &str, crd: bool) -> String {
    let policies = ["validatingadmissionpolicy", "validatingadmissionpolicybinding"]
        .map(|kind| format!("{kind}.admissionregistration.k8s.io/{name}-fence-epoch-object"));
    let crd = crd.then(|| "customresourcedefinition.apiextensions.k8s.io/modeldeployments.palisade.dev".to_owned());
    policies.into_iter().chain(crd).collect::<Vec<_>>().join("\n")
}

/// The controller writes the next epoch, and the policies, whose parameter it is, know it. So it is with a Service.
async fn follows_its_parameters(cluster: &Cluster, ns: &str, epoch: u64) {
    let [controller, worker] = ["controller", "worker"].map(|part| account(ns, &format!("palisade-{part}")).username());
    let object = json!({"metadata": {"name": manifests::EPOCH_OBJECT},
        "data": {"epoch": epoch.to_string(), "incarnation": "x"}});
    let epochs: Api<ConfigMap> = Api::namespaced(cluster.client_as(&controller, &[]).await, ns);
    epochs.replace(manifests::EPOCH_OBJECT, &PostParams::default(), &from_json(object)).await.expect("its own");
    let resource = ApiResource::erase::<Deployment>(&());
    let here: Api<DynamicObject> = Api::namespaced_with(cluster.client_as(&worker, &[]).await, "default", &resource);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    wait_until(&format!("a fence of epoch {epoch} passes, and one of the next does not"), || async {
        here.create(&dry, &deployment("model", &fence(epoch, 1, 1), json!({}))).await.map_err(|e| e.to_string())?;
        match here.create(&dry, &deployment("model", &fence(epoch + 1, 1, 1), json!({}))).await {
            Err(error) if error.to_string().contains("was not allocated yet") => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
    // The other parameter: a Service that was made after the policies were.
    let service = json!({"metadata": {"name": "model", "labels": {manifests::DEPLOYMENT_LABEL: "model"},
        "annotations": {manifests::FENCE_ANNOTATION: fence(epoch, 9, 1)}}, "spec": {"ports": [{"port": 80}]}});
    let services: Api<Service> = Api::namespaced(cluster.admin().await, "default");
    services.create(&PostParams::default(), &from_json(service)).await.expect("made");
    wait_until("a Deployment is held against its Service's fence", || async {
        match here.create(&dry, &deployment("model", &fence(epoch, 1, 1), json!({}))).await {
            Err(error) if error.to_string().contains("the Service of this deployment") => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
}

/// Its controller is not the one that the policy lets write the epoch object.
async fn another_name_takes_over_or_removes_what_was_kept(cluster: &Cluster, ns: &str) {
    let uninstall = |release| ok(run(cluster, &["uninstall", release, "--namespace", ns, "--wait"]));
    let says = install(cluster, "other-palisade", ns, &["--set=crds.enabled=false"]);
    refused(says, "Palisade was installed here as \"palisade\"");
    for release in ["other-palisade", "palisade"] {
        ok(install(cluster, release, ns, &["--take-ownership", "--set=fullnameOverride=palisade"]));
        uninstall(release);
    }
    let elsewhere = cluster.namespace("elsewhere").await;
    refused(install(cluster, "palisade", &elsewhere, &["--set=crds.enabled=false"]), "invalid ownership metadata");
    let says = install(cluster, "other-palisade", ns, &[]).err;
    let told = says.lines().map(str::trim).find_map(|line| line.strip_prefix("kubectl ")).expect("a command");
    kubectl(cluster, &told.split(' ').collect::<Vec<_>>());
    refused(install(cluster, "other-palisade", ns, &[]), "invalid ownership metadata");
    ok(install(cluster, "other-palisade", ns, &["--set=crds.enabled=false"]));
    uninstall("other-palisade");
}

#[tokio::test]
async fn a_second_release_needs_a_namespace_of_its_own_to_look_after() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.namespace("one").await, cluster.namespace("two").await);
    // What each of them looks after. Not its own namespace, where the database's secrets are.
    let (blue, green) = ("watchNamespace=team-blue".to_owned(), "watchNamespace=team-green".to_owned());
    for namespace in ["team-blue", "team-green"] {
        kubectl(&cluster, &["create", "namespace", namespace]);
    }
    let own = format!("watchNamespace={two}");
    refused(install(&cluster, "green", &two, &["--set", &own]), "could read the database's secrets");
    let no_crds = "crds.enabled=false";
    ok(install(&cluster, "blue", &one, &["--set", no_crds]));
    for set in [green.as_str(), no_crds] {
        refused(
            install(&cluster, "green", &two, &["--set", no_crds, "--set", set]),
            "already installed as \"blue-palisade\"",
        );
    }
    let chart = chart();
    let chart = chart.to_str().expect("UTF-8");
    ok(run(
        &cluster,
        &["upgrade", "blue", chart, "--namespace", &one, "--set", DATABASE, "--set", no_crds, "--set", &blue],
    ));
    refused(install(&cluster, "green", &two, &["--set", no_crds]), "would look after all of them");
    refused(
        install(&cluster, "green", &two, &["--set", no_crds, "--set", &blue]),
        "too: set watchNamespace to another one",
    );
    refused(install(&cluster, "green", &one, &["--set", no_crds, "--set", &green]), "one release a namespace");
    ok(install(&cluster, "green", &two, &["--set", no_crds, "--set", &green]));
    neither_fences_what_the_other_one_looks_after(&cluster, &one, &two).await;
    // One of them does not go back to all namespaces while the other is there.
    refused(
        run(&cluster, &["upgrade", "blue", chart, "--namespace", &one, "--set", DATABASE, "--set", no_crds]),
        "already installed as \"green-palisade\"",
    );
    // Pods come and go by themselves.
    let objects = || {
        let left = left(&cluster, "green");
        left.lines().filter(|line| !line.starts_with("pod/")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = objects();
    ok(run(&cluster, &["uninstall", "blue", "--namespace", &one, "--wait"]));
    keeps(&cluster, "blue", &kept("blue-palisade", false)).await;
    assert_eq!(objects(), before, "the other release is whole");
    cluster.stop();
}

/// Each has epochs of its own: by the other one's, its fences would not have been allocated.
async fn neither_fences_what_the_other_one_looks_after(cluster: &Cluster, one: &str, two: &str) {
    let own = [("blue", one, "team-blue", 5), ("green", two, "team-green", 2)];
    for (_, system, _, epoch) in own {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": manifests::EPOCH_OBJECT, "namespace": system},
            "data": {"epoch": epoch.to_string(), "incarnation": "x"}});
        cluster.apply(&[serde_yaml::to_value(object).expect("YAML")]).await;
    }
    for (release, system, team, epoch) in own {
        let worker = account(system, &format!("{release}-palisade-worker")).username();
        // With the rights of its Role, no more.
        let client = cluster.client_as(&worker, &[]).await;
        let resource = ApiResource::erase::<Deployment>(&());
        let here: Api<DynamicObject> = Api::namespaced_with(client.clone(), team, &resource);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let fenced = |epoch: u64| deployment("model", &fence(epoch, 1, 1), json!({}));
        wait_until(&format!("{release}'s worker writes under its own epoch"), || async {
            here.create(&dry, &fenced(epoch)).await.map(drop)
        })
        .await;
        wait_until(&format!("a later epoch than {release}'s is refused"), || async {
            match here.create(&dry, &fenced(epoch + 1)).await {
                Err(error) if error.to_string().contains("was not allocated yet") => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
        let there: Api<DynamicObject> =
            Api::namespaced_with(client, if team == "team-blue" { "team-green" } else { "team-blue" }, &resource);
        let error = there.create(&dry, &fenced(epoch)).await.expect_err("the other one's namespace").to_string();
        assert!(error.contains("cannot create resource"), "{error}");
    }
}

fn spec() -> Value {
    let text = std::fs::read_to_string(chart().join("../../examples/modeldeployment.yaml")).expect("the example");
    let object: Value = serde_yaml::from_str(&text).expect("YAML");
    object["spec"].clone()
}
