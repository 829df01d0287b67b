//! A release's life: upgraded from an older chart, rolled back, uninstalled, installed again, and one beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::install::{address, install};
use super::traffic::Traffic;
use super::world::{Place, World, name};
use crate::support::postgres::{Server, root};

/// The field that the older CRD does not have.
const NEW_FIELD: &str = "revisionHistoryLimit";

/// A chart as it was before this field: an older version, an older CRD.
fn older_chart(world: &World) -> PathBuf {
    let chart = world.dir.join("tmp/older-chart");
    let copied = Command::new("cp").arg("-r").arg(root().join("charts/palisade")).arg(&chart).status();
    assert!(copied.is_ok_and(|status| status.success()), "the chart is copied");
    let edit = |file: &str, change: &dyn Fn(&mut serde_yaml::Value)| {
        let path = chart.join(file);
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(&fs::read_to_string(&path).expect(file)).expect("YAML");
        change(&mut yaml);
        fs::write(&path, serde_yaml::to_string(&yaml).expect("YAML")).expect("written");
    };
    edit("Chart.yaml", &|yaml| yaml["version"] = "0.0.1".into());
    edit("files/crd.yaml", &|yaml| {
        let fields = &mut yaml["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        assert!(fields.as_mapping_mut().expect("fields").remove(NEW_FIELD).is_some(), "the field is there");
    });
    chart
}

fn crd_has_the_field(world: &World) -> bool {
    let crd = world.get(&["crd", "modeldeployments.palisade.dev"]);
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][NEW_FIELD].is_object()
}

fn helm(world: &World, args: &[&str]) -> String {
    world.helm(&[args, &["--namespace", world.system]].concat())
}

fn upgrade(world: &World, chart: &Path) {
    let chart = chart.to_str().expect("UTF-8");
    helm(world, &["upgrade", "palisade", chart, "--reset-then-reuse-values", "--wait", "--timeout", "180s"]);
}

/// Palisade works: a rollout is carried out.
async fn works(world: &World, deployment: &str) {
    let now =
        world.get(&["mdep", "-n", world.shop, deployment])["status"]["serving"]["version"].as_i64().expect("a version");
    world.roll(deployment, 3 - now);
    world.serves(deployment, 3 - now).await;
}

pub async fn an_upgrade_from_an_older_chart_and_a_rollback_keep_what_serves(world: &'static World) {
    world.register_small();
    world.apply(&[world.small("kept", 1)]);
    world.serves("kept", 1).await;
    let traffic = Traffic::start(&address(world, "iris"), 1);
    let older = older_chart(world);
    upgrade(world, &older);
    assert!(!crd_has_the_field(world), "the older CRD is there");
    works(world, "kept").await;
    upgrade(world, &root().join("charts/palisade"));
    assert!(crd_has_the_field(world), "the upgrade brought the newer CRD");
    works(world, "kept").await;
    helm(world, &["test", "palisade", "--timeout", "120s"]);
    helm(world, &["rollback", "palisade", "--wait", "--timeout", "180s"]);
    assert!(!crd_has_the_field(world), "the rollback brought the older CRD back");
    works(world, "kept").await;
    upgrade(world, &root().join("charts/palisade"));
    let counts = traffic.end().await;
    assert!(counts.failures.is_empty(), "requests failed meanwhile: {:#?}", counts.failures);
    eprintln!(
        "{:?} answers meanwhile, none of them an error",
        counts.fresh.values().chain(counts.kept.values()).sum::<usize>()
    );
}

/// The commands for deleting a ModelDeployment that NOTES gives for after the uninstall.
fn commands(world: &World) -> Vec<String> {
    let notes = helm(world, &["get", "notes", "palisade"]);
    let last = notes.split("Nobody answers a deletion").nth(1).expect("NOTES speak of deletion");
    let lines = last.lines().map(str::trim).filter(|line| line.starts_with("kubectl "));
    lines.map(|line| line.replace("NAMESPACE", world.shop).replace("NAME", "kept")).collect()
}

pub async fn an_uninstall_leaves_what_serves_and_what_must_stay_and_nothing_else(world: &'static World) {
    world.register_small();
    world.apply(&[world.small("kept", 1)]);
    world.serves("kept", 1).await;
    let commands = commands(world);
    assert_eq!(commands.len(), 2, "{commands:?}");
    let traffic = Traffic::start(&address(world, "iris"), 1);
    helm(world, &["uninstall", "palisade", "--wait", "--timeout", "120s"]);
    nobody_changes_the_epoch_object(world).await;
    let kinds = "deployments,statefulsets,jobs,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,clusterroles,\
                 clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,poddisruptionbudgets,\
                 networkpolicies,leases,customresourcedefinitions";
    let gone = || async {
        let left = world.get(&[kinds, "-A", "-l", "app.kubernetes.io/instance=palisade"]);
        let left = left["items"].as_array().expect("a list").iter();
        let left: Vec<String> = left.map(|object| format!("{} {}", object["kind"], name(object))).collect();
        let expected = [
            "\"ValidatingAdmissionPolicy\" palisade-fence-epoch-object",
            "\"ValidatingAdmissionPolicyBinding\" palisade-fence-epoch-object",
            "\"CustomResourceDefinition\" modeldeployments.palisade.dev",
        ];
        if left == expected { Ok(()) } else { Err(left.join(", ")) }
    };
    world.until("nothing is left but the CRD, and what guards the epoch object", gone).await;
    // What has no label of the release: by name.
    let all = world.kubectl(&["get", kinds, "-A", "-o", "name"]);
    let ours: Vec<&str> = all.lines().filter(|line| line.contains("palisade")).collect();
    assert_eq!(
        ours,
        [
            "configmap/palisade-epoch",
            "validatingadmissionpolicy.admissionregistration.k8s.io/palisade-fence-epoch-object",
            "validatingadmissionpolicybinding.admissionregistration.k8s.io/palisade-fence-epoch-object",
            "customresourcedefinition.apiextensions.k8s.io/modeldeployments.palisade.dev"
        ],
        "what is left"
    );
    world.kubectl(&["get", "mdep", "-n", world.shop, "iris", "kept"]);
    traffic.flows().await;
    // As NOTES say: deleting one is not stuck, and takes what it served along.
    for command in &commands {
        world.shell(command);
    }
    let deleted = || async {
        let left = world.kubectl(&["get", "mdep,deployments,pods", "-n", world.shop, "-o", "name"]);
        if left.contains("kept") { Err(left) } else { Ok(()) }
    };
    let took = world.until("the ModelDeployment and its pods are gone", deleted).await;
    eprintln!("deleted without Palisade, by the commands of NOTES, in {:.1} s", took.as_secs_f64());
    // Elsewhere the database went with the release.
    if let Place::Node(server) = &world.place {
        installed_again_it_works(world, server).await;
    }
    let counts = traffic.end().await;
    assert!(counts.failures.is_empty(), "requests failed meanwhile: {:#?}", counts.failures);
}

/// Who may not adopt an epoch, whatever RBAC lets them do with ConfigMaps.
async fn nobody_changes_the_epoch_object(world: &World) {
    world.kubectl(&["-n", world.system, "create", "rolebinding", "editor", "--clusterrole=edit", "--user=editor"]);
    let refused = || async {
        let object = ["-n", world.system, "--as=editor", "patch", "configmap", "palisade-epoch"];
        let edit = world.try_kubectl(&[&object[..], &["--type=merge", "-p", r#"{"data":{"epoch":"99"}}"#]].concat());
        assert!(!edit.status.success(), "an editor changed the epoch object");
        let why = String::from_utf8_lossy(&edit.stderr).into_owned();
        if why.contains("only Palisade's controller writes the epoch object") { Ok(()) } else { Err(why) }
    };
    world.until("the policy refuses an editor, whom RBAC lets in by now", refused).await;
}

/// With an epoch that the API server, which has run on, has not seen yet: it must have followed the epoch object.
async fn installed_again_it_works(world: &World, server: &Server) {
    let epoch = || world.get(&["configmap", "-n", world.system, "palisade-epoch"])["data"]["epoch"].clone();
    let before = epoch();
    tokio::task::block_in_place(|| {
        server.shut_down();
        server.start_again();
    });
    install(world);
    works(world, "iris").await;
    assert_ne!(epoch(), before, "the epoch is another one");
}

/// The release is confined to one namespace; another one looks after another, with a throwaway Postgres.
pub async fn two_releases_beside_each_other_look_after_their_own(world: &'static World) {
    let confined = format!("watchNamespace={}", world.shop);
    let values = ["--reset-then-reuse-values", "--set", &confined, "--wait", "--timeout", "180s"];
    helm(world, &[&["upgrade", "palisade", "charts/palisade"][..], &values].concat());
    let (system, shop) = (world.namespace("second-system"), world.namespace("second-shop"));
    for namespace in [&system, &shop] {
        world.kubectl(&["create", "namespace", namespace]);
    }
    world.helm(&[
        "install",
        "second",
        "charts/palisade",
        "--namespace",
        &system,
        "--set-string",
        &world.image(),
        "--set",
        &format!("crds.enabled=false,watchNamespace={shop}"),
        "--set",
        &world.throwaway(),
        "--wait",
        "--timeout",
        "180s",
    ]);
    for (release, namespace) in [("palisade", world.system), ("second", &system)] {
        world.helm(&["test", release, "--namespace", namespace, "--timeout", "120s"]);
    }
    let policies = world.kubectl(&["get", "validatingadmissionpolicies", "-o", "name"]);
    for policy in ["palisade-fence", "second-palisade-fence"] {
        assert!(policies.lines().any(|line| line.ends_with(&format!("/{policy}"))), "no {policy}: {policies}");
    }
    second_serves(world, &system, &shop).await;
    works(world, "iris").await;
    world.helm(&["uninstall", "second", "--namespace", &system, "--wait", "--timeout", "120s"]);
    world.kubectl(&["delete", "namespace", &system, &shop, "--timeout=120s"]);
    let kept = "validatingadmissionpolicy,validatingadmissionpolicybinding";
    world.kubectl(&["delete", kept, "second-palisade-fence-epoch-object"]);
    works(world, "iris").await;
}

/// Its registry is reached by its own Secret, from a pod of its own image.
async fn second_serves(world: &World, system: &str, shop: &str) {
    let job = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "register", "namespace": system},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "register", "image": world.images.palisade, "imagePullPolicy": "IfNotPresent",
            "args": ["model", "register", "small", "--source", "s3://models/small", "--digest", format!("sha256:{}", "0".repeat(64))],
            "env": [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "second-palisade-postgres", "key": "registry-url"}}}],
        }]},
    });
    world.apply(&[job]);
    world.kubectl(&[
        "-n",
        system,
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=120s",
        "pod/register",
    ]);
    let mut object: Value = world.small("theirs", 1);
    object["metadata"]["namespace"] = shop.into();
    world.apply(&[object]);
    world.kubectl(&["-n", shop, "wait", "--for=condition=Ready", "--timeout=120s", "mdep/theirs"]);
    world.kubectl(&["-n", shop, "delete", "mdep", "theirs", "--timeout=120s"]);
}
