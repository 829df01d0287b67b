//! The epoch object: it only goes forward, and while it is missing nobody writes under a fence, but what serves goes on.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use palisade::manifests::{self, CONTROLLER_ACCOUNT, EPOCH_OBJECT, SYSTEM_NAMESPACE, Settings};
use serde_json::{Value, json};

use super::table::fenced;
use super::world::{Actor, EPOCH, EPOCH_OBJECT as HELD, cluster};
use crate::support::cluster::{account, api, deployment, fence, from_json, wait_for, wait_until};

fn object(data: Value) -> ConfigMap {
    from_json(json!({"metadata": {"name": EPOCH_OBJECT}, "data": data}))
}

#[tokio::test]
async fn an_epoch_only_goes_forward_and_belongs_to_one_incarnation() {
    let _object = HELD.read().await;
    let cluster = cluster();
    let dry = PostParams { dry_run: true, ..Default::default() };
    for by in [Actor::Controller, Actor::Person] {
        let api: Api<ConfigMap> = api(&by.client(cluster).await, SYSTEM_NAMESPACE);
        for (data, says) in [
            (json!({"epoch": "2", "incarnation": "test"}), "an epoch only goes forward"),
            (
                json!({"epoch": "3", "incarnation": "another"}),
                "another incarnation of the database needs a greater one",
            ),
            (json!({"epoch": "4"}), "data.incarnation must name"),
            (json!({"incarnation": "test"}), "data.epoch must be a number"),
            (json!({"epoch": "four", "incarnation": "test"}), "data.epoch must be a number"),
            (json!({"epoch": "04", "incarnation": "test"}), "data.epoch must be a number"),
            (json!({"epoch": "2097152", "incarnation": "test"}), "data.epoch must be a number"),
            (json!({}), "data.epoch must be a number"),
        ] {
            let answer = api.replace(EPOCH_OBJECT, &dry, &object(data.clone())).await;
            let error = answer.err().unwrap_or_else(|| panic!("{by:?}: it was ACCEPTED: {data}")).to_string();
            assert!(error.contains(says), "{by:?} {data}: {error}");
        }
        for data in [
            json!({"epoch": "3", "incarnation": "test"}),
            json!({"epoch": "4", "incarnation": "another"}),
            json!({"epoch": "4", "incarnation": "test"}),
        ] {
            api.replace(EPOCH_OBJECT, &dry, &object(data.clone())).await.unwrap_or_else(|e| panic!("{data}: {e}"));
        }
    }
}

#[tokio::test]
async fn nobody_writes_the_epoch_object_but_the_controller_and_who_may_adopt_an_epoch() {
    let _object = HELD.read().await;
    let cluster = cluster();
    // RBAC lets both do anything with ConfigMaps there; one may adopt epochs besides.
    for (user, rules) in [
        ("bob", json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}])),
        (
            "oscar",
            json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]},
                   {"apiGroups": ["palisade.dev"], "resources": ["epochs"], "verbs": ["adopt"]}]),
        ),
    ] {
        let rbac = "rbac.authorization.k8s.io";
        cluster
            .apply(&[
                yaml(json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role",
                    "metadata": {"name": user, "namespace": SYSTEM_NAMESPACE}, "rules": rules})),
                yaml(json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
                    "metadata": {"name": user, "namespace": SYSTEM_NAMESPACE},
                    "roleRef": {"apiGroup": rbac, "kind": "Role", "name": user},
                    "subjects": [{"kind": "User", "name": user, "apiGroup": rbac}]})),
            ])
            .await;
    }
    let oscar: Api<ConfigMap> = api(&cluster.client_as("oscar", &[]).await, SYSTEM_NAMESPACE);
    let next = object(json!({"epoch": "4", "incarnation": "another"}));
    let dry = PostParams { dry_run: true, ..Default::default() };
    let gone = DeleteParams { dry_run: true, ..Default::default() };
    // The authorizer learns of the roles by a watch.
    wait_until("oscar may", || async { oscar.replace(EPOCH_OBJECT, &dry, &next).await.map(drop) }).await;
    oscar.delete(EPOCH_OBJECT, &gone).await.expect("he may delete it, too");

    let bob: Api<ConfigMap> = api(&cluster.client_as("bob", &[]).await, SYSTEM_NAMESPACE);
    let other: ConfigMap = from_json(json!({"metadata": {"name": "another"}}));
    wait_until("bob's role is in force", || async { bob.create(&dry, &other).await.map(drop) }).await;
    let merge = PatchParams { dry_run: true, ..Default::default() };
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let all = ListParams::default();
    for (what, answer) in [
        ("update", bob.replace(EPOCH_OBJECT, &dry, &next).await.map(drop)),
        ("patch", bob.patch(EPOCH_OBJECT, &merge, &Patch::Merge(&label)).await.map(drop)),
        ("delete", bob.delete(EPOCH_OBJECT, &gone).await.map(drop)),
        ("delete them all", bob.delete_collection(&gone, &all).await.map(drop)),
    ] {
        let error = answer.err().unwrap_or_else(|| panic!("{what}: it was ACCEPTED")).to_string();
        assert!(error.contains("only Palisade's controller writes the epoch object"), "{what}: {error}");
    }
    // The controller's account, with its own rights and no others.
    let controller = account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT).username();
    let controller: Api<ConfigMap> = api(&cluster.client_as(&controller, &[]).await, SYSTEM_NAMESPACE);
    controller.replace(EPOCH_OBJECT, &dry, &next).await.expect("it is the controller's");
}

#[tokio::test]
async fn a_namespace_that_is_deleted_takes_its_epoch_object_with_it() {
    let cluster = cluster();
    let namespace = cluster.namespace("leaving").await;
    let settings = Settings::named("leaving", &namespace, [], None).and_then(|s| s.watching(Some(&namespace)));
    cluster.apply(&manifests::policies(&settings.expect("good settings"))).await;
    let bob: Api<ConfigMap> = api(&cluster.client_as("bob", &["system:masters"]).await, &namespace);
    let namespaces: Api<Namespace> = Api::all(cluster.admin().await);
    bob.create(&PostParams::default(), &object(json!({"epoch": "1", "incarnation": "x"}))).await.expect("it is made");
    namespaces.delete(&namespace, &DeleteParams::default()).await.expect("deleted");
    wait_for(&namespaces, &namespace, "to be gone", |namespace| namespace.is_none()).await;
}

fn yaml(value: Value) -> serde_yaml::Value {
    serde_yaml::to_value(value).expect("YAML")
}

#[tokio::test]
async fn an_object_of_that_name_elsewhere_is_nobodys_business() {
    let _object = HELD.read().await;
    let cluster = cluster();
    let api: Api<ConfigMap> = api(&Actor::Person.client(cluster).await, &cluster.namespace("epoch").await);
    api.create(&PostParams::default(), &object(json!({"epoch": "whatever"}))).await.expect("it is theirs");
}

#[tokio::test]
async fn without_the_epoch_object_no_fence_is_written_but_what_serves_goes_on() {
    let _object = HELD.write().await;
    let cluster = cluster();
    let namespace = cluster.namespace("lost").await;
    let resource = ApiResource::erase::<Deployment>(&());
    let worker: Api<DynamicObject> = Api::namespaced_with(Actor::Worker.client(cluster).await, &namespace, &resource);
    let more = json!({"spec": {"replicas": 1}});
    worker.create(&PostParams::default(), &deployment("d", &fence(EPOCH, 1, 1), more)).await.expect("it is fenced");

    let epochs: Api<ConfigMap> = api(&cluster.admin().await, SYSTEM_NAMESPACE);
    epochs.delete(EPOCH_OBJECT, &DeleteParams::default()).await.expect("people may delete it");
    let next = Patch::Merge(fenced(&fence(EPOCH, 1, 2), json!({})));
    let dry = PatchParams { dry_run: true, ..Default::default() };
    wait_until("a fenced write is refused", || async {
        match worker.patch("d", &dry, &next).await {
            Err(error) if error.to_string().contains("no params found") => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;

    let typed: Api<Deployment> = api(&Actor::Autoscaler.client(cluster).await, &namespace);
    typed
        .patch_scale("d", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 2}})))
        .await
        .expect("scaled");
    wait_for(&typed, "d", "to have two ready pods", |d| {
        d.and_then(|d| d.status.as_ref()).and_then(|status| status.ready_replicas) == Some(2)
    })
    .await;
    let person: Api<Deployment> = api(&Actor::Person.client(cluster).await, &namespace);
    person.delete("d", &DeleteParams::default()).await.expect("people delete");
    wait_for(&person, "d", "to be gone", |d| d.is_none()).await;
    cluster.allocate_epoch(SYSTEM_NAMESPACE, EPOCH as u32, "test").await;
}
