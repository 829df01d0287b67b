//! What the policies must not stand in the way of: a worker's rollout, people, and Kubernetes' own controllers.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::discovery::ApiResource;
use kube::{Client, ResourceExt};
use palisade::manifests::{
    DEPLOYMENT_LABEL, FENCE_ANNOTATION, RETIRED_ANNOTATION, SEAL_MANAGER, SYSTEM_NAMESPACE, WORKER_ACCOUNT,
    WORKER_MANAGER,
};
use serde_json::{Value, json};

use super::table::fenced;
use super::world::{Actor, EPOCH, EPOCH_OBJECT, cluster};
use crate::support::cluster::{Cluster, account, api, deployment, fence, from_json, wait_for};

/// The worker with no more rights than it is given: its username, and none of the admin's groups.
async fn plain_worker(cluster: &Cluster) -> Client {
    cluster.client_as(&account(SYSTEM_NAMESPACE, WORKER_ACCOUNT).username(), &[]).await
}

fn untyped(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Deployment>(&()))
}

fn ready(count: i32) -> impl Fn(Option<&Deployment>) -> bool {
    move |deployment| {
        deployment.is_some_and(|d| {
            let status = d.status.clone().unwrap_or_default();
            status.observed_generation == d.metadata.generation && status.ready_replicas.unwrap_or(0) == count
        })
    }
}

/// What a worker created: a Deployment with one pod, that is ready.
async fn served(namespace: &str) -> Api<Deployment> {
    let cluster = cluster();
    let one = json!({"spec": {"replicas": 1}});
    let object = deployment("d", &fence(EPOCH, 1, 1), one);
    let worker = untyped(&plain_worker(cluster).await, namespace);
    worker.create(&PostParams::default(), &object).await.expect("the worker creates");
    let person: Api<Deployment> = api(&Actor::Person.client(cluster).await, namespace);
    wait_for(&person, "d", "to be ready", ready(1)).await;
    person
}

fn fence_of(object: &Deployment) -> &str {
    object.annotations().get(FENCE_ANNOTATION).map_or("", String::as_str)
}

fn apply(name: &str, kind: &str, version: &str, fence: &str, spec: Value) -> Patch<Value> {
    Patch::Apply(json!({
        "apiVersion": version, "kind": kind,
        "metadata": {"name": name, "labels": {DEPLOYMENT_LABEL: "d"}, "annotations": {FENCE_ANNOTATION: fence}},
        "spec": spec,
    }))
}

fn pods(replicas: i32) -> Value {
    json!({
        "replicas": replicas, "selector": {"matchLabels": {"app": "d"}},
        "template": {
            "metadata": {"labels": {"app": "d"}},
            "spec": {"containers": [{"name": "model", "image": "registry.example/model:1"}]},
        },
    })
}

#[tokio::test]
async fn a_worker_rolls_out_seals_takes_over_retires_and_deletes_with_its_own_rights() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    let namespace = cluster.namespace("rollout").await;
    let client = plain_worker(cluster).await;
    let deployments: Api<Deployment> = api(&client, &namespace);
    let services: Api<Service> = api(&client, &namespace);
    let by = PatchParams::apply(WORKER_MANAGER).force();

    deployments
        .patch("d", &by, &apply("d", "Deployment", "apps/v1", &fence(EPOCH, 1, 1), pods(1)))
        .await
        .expect("created");
    wait_for(&deployments, "d", "to be ready", ready(1)).await;
    let ports = json!({"ports": [{"port": 8080}], "selector": {"app": "d"}});
    services
        .patch("d", &by, &apply("d", "Service", "v1", &fence(EPOCH, 1, 2), ports.clone()))
        .await
        .expect("a Service");
    deployments
        .patch("d", &by, &apply("d", "Deployment", "apps/v1", &fence(EPOCH, 1, 3), pods(2)))
        .await
        .expect("more");
    wait_for(&deployments, "d", "to have two pods", ready(2)).await;

    // Another owner: it seals first, and then what the first one still has on its way is refused.
    let seal = PatchParams { field_manager: Some(SEAL_MANAGER.into()), ..Default::default() };
    let sealed = Patch::Merge(fenced(&fence(EPOCH, 2, 1), json!({})));
    let object = deployments.patch("d", &seal, &sealed).await.expect("sealed");
    assert_eq!(object.spec.and_then(|spec| spec.replicas), Some(2), "the seal changes nothing else");
    let late = deployments.patch("d", &by, &apply("d", "Deployment", "apps/v1", &fence(EPOCH, 1, 4), pods(0))).await;
    assert!(late.expect_err("late").to_string().contains("stale write under"));
    deployments
        .patch("d", &by, &apply("d", "Deployment", "apps/v1", &fence(EPOCH, 2, 2), pods(0)))
        .await
        .expect("drained");
    wait_for(&deployments, "d", "to have no pods", ready(0)).await;

    let retire = json!({"metadata": {"annotations": {RETIRED_ANNOTATION: "true"}}});
    deployments.patch("d", &seal, &Patch::Merge(fenced(&fence(EPOCH, 2, 3), retire))).await.expect("retired");
    loop {
        let metadata = deployments.get("d").await.expect("it is there").metadata;
        let preconditions = Preconditions { uid: metadata.uid, resource_version: metadata.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match deployments.delete("d", &params).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {} // a status came in between
            answer => break drop(answer.expect("deleted")),
        }
    }
    wait_for(&deployments, "d", "to be gone", |d| d.is_none()).await;
    services.patch("d", &by, &apply("d", "Service", "v1", &fence(EPOCH, 2, 4), ports)).await.expect("it stays");
}

#[tokio::test]
async fn the_controller_checks_a_template_by_a_dry_run() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    let namespace = cluster.namespace("dry").await;
    let client = cluster.client_as(&account(SYSTEM_NAMESPACE, "palisade-controller").username(), &[]).await;
    let dry = PostParams { dry_run: true, ..Default::default() };
    let bare = json!({"metadata": {"labels": null, "annotations": null}});
    let good = deployment("d", "", bare.clone());
    untyped(&client, &namespace).create(&dry, &good).await.expect("a good template");
    let mut bad = deployment("d", "", bare);
    bad.data["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70000}]);
    let error = untyped(&client, &namespace).create(&dry, &bad).await.expect_err("a bad template").to_string();
    assert!(error.contains("spec.template.spec.containers[0].ports[0].containerPort"), "{error}");
}

#[tokio::test]
async fn people_scale_restart_edit_and_delete() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    let namespace = cluster.namespace("people").await;
    let person = served(&namespace).await;
    let kubectl = |args: &[&str]| {
        let output =
            cluster.kubectl(&[&["-n", &namespace, "--as", "alice", "--as-group", "system:masters"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    kubectl(&["scale", "deployment/d", "--replicas", "2"]);
    wait_for(&person, "d", "to have two pods", ready(2)).await;
    kubectl(&["rollout", "restart", "deployment/d"]);
    kubectl(&["rollout", "status", "deployment/d", "--timeout", "30s"]);
    kubectl(&["label", "deployment/d", "team=churn"]);
    kubectl(&["annotate", "deployment/d", "note=hello"]);
    kubectl(&["set", "env", "deployment/d", "A=B"]);
    let changed = person.get("d").await.expect("it is there");
    assert_eq!(fence_of(&changed), fence(EPOCH, 1, 1), "nobody had to know of the fence");
    kubectl(&["delete", "deployment/d", "--timeout", "30s"]);
    assert!(person.get_opt("d").await.expect("an answer").is_none());
}

#[tokio::test]
async fn autoscalers_scale() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    let namespace = cluster.namespace("autoscaler").await;
    let person = served(&namespace).await;
    let autoscaler: Api<Deployment> = api(&Actor::Autoscaler.client(cluster).await, &namespace);
    let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
    autoscaler.patch_scale("d", &PatchParams::default(), &three).await.expect("scaled");
    wait_for(&person, "d", "to have three pods", ready(3)).await;
}

#[tokio::test]
async fn what_a_deleted_owner_leaves_is_collected() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    for policy in [PropagationPolicy::Background, PropagationPolicy::Foreground] {
        let namespace = cluster.namespace("garbage").await;
        let owners: Api<ConfigMap> = api(&cluster.admin().await, &namespace);
        let owner: ConfigMap = from_json(json!({"metadata": {"name": "owner"}}));
        let owner = owners.create(&PostParams::default(), &owner).await.expect("an owner");
        let mut object = deployment("d", &fence(EPOCH, 1, 1), json!({"spec": {"replicas": 1}}));
        object.metadata.owner_references = Some(from_json(json!([{
            "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid,
            "controller": true, "blockOwnerDeletion": true,
        }])));
        let worker = plain_worker(cluster).await;
        untyped(&worker, &namespace).create(&PostParams::default(), &object).await.expect("created");
        let deployments: Api<Deployment> = api(&cluster.admin().await, &namespace);
        wait_for(&deployments, "d", "to be ready", ready(1)).await;
        let params = DeleteParams { propagation_policy: Some(policy.clone()), ..Default::default() };
        owners.delete("owner", &params).await.expect("deleted");
        wait_for(&deployments, "d", &format!("to be collected ({policy:?})"), |d| d.is_none()).await;
        let sets: Api<ReplicaSet> = api(&cluster.admin().await, &namespace);
        for set in sets.list(&ListParams::default()).await.expect("a list") {
            wait_for(&sets, &set.name_any(), "to be collected", |set| set.is_none()).await;
        }
    }
}

#[tokio::test]
async fn a_namespace_ends_with_all_that_is_fenced_in_it() {
    let _object = EPOCH_OBJECT.read().await;
    let cluster = cluster();
    let namespace = cluster.namespace("ending").await;
    let person = served(&namespace).await;
    let services: Api<Service> = api(&plain_worker(cluster).await, &namespace);
    let spec = json!({"ports": [{"port": 8080}], "selector": {"app": "d"}});
    let by = PatchParams::apply(WORKER_MANAGER).force();
    services.patch("d", &by, &apply("d", "Service", "v1", &fence(EPOCH, 1, 2), spec)).await.expect("a Service");
    let namespaces: Api<Namespace> = Api::all(person.into_client());
    namespaces.delete(&namespace, &DeleteParams::default()).await.expect("deleted");
    wait_for(&namespaces, &namespace, "to be gone", |namespace| namespace.is_none()).await;
}

#[tokio::test]
async fn the_api_server_finds_nothing_to_warn_of_in_the_policies() {
    use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
    let _object = EPOCH_OBJECT.read().await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(cluster().admin().await);
    for name in ["palisade-fence", "palisade-fence-epoch", "palisade-fence-accounts", "palisade-fence-epoch-object"] {
        let checked = wait_for(&policies, name, "to be checked", |policy| {
            policy.and_then(|policy| policy.status.as_ref()).is_some_and(|status| status.type_checking.is_some())
        });
        let checking = checked.await.and_then(|policy| policy.status).and_then(|status| status.type_checking);
        assert_eq!(checking.and_then(|checking| checking.expression_warnings), None, "{name}");
    }
}
