//! What no matrix has: other namespaces, tokens and identities; what goes through and is harmless; what only rights limit.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use palisade::manifests::{EPOCH_OBJECT, FENCE_ANNOTATION, SYSTEM_NAMESPACE, WORKER_MANAGER};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::support::cluster::{api, fence, merge, wait_until};

use super::cluster::{Attack, EPOCH, Kind, OTHER, Request, Stage, VICTIM, cluster, object, plain};
use super::expect::Expect::{self, Harmless, Limited, Refused};

/// Held for writing by the test that takes the next epoch; by all others that send fences for reading.
pub static EPOCH_OBJECT_LOCK: RwLock<()> = RwLock::const_new(());

const CANNOT: Expect = Refused(" cannot ");
const STRANGE: Expect = Refused("this object is not Palisade's");
const HOME: Expect = Refused("a worker writes nothing in Palisade's own namespace");

fn attack(name: &str, request: Request, expect: Expect) -> Attack {
    Attack { name: name.to_owned(), request, expect }
}

fn merged(path: String, body: Value) -> Request {
    Request::new("PATCH", path).body("application/merge-patch+json", body)
}

fn created(kind: Kind, namespace: &str, object: Value) -> Request {
    Request::new("POST", format!("{}?dryRun=All", kind.path(namespace))).json(object)
}

fn identities() -> Vec<Attack> {
    let who = |name: &'static str, value: &str| Request {
        headers: vec![(name, value.to_owned())],
        ..Request::new("GET", "/api/v1/namespaces/default/secrets")
    };
    let both = Request {
        headers: vec![("impersonate-user", "admin".into()), ("impersonate-group", "system:masters".into())],
        ..Request::new("GET", "/api/v1/namespaces/default/secrets")
    };
    let controller = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:palisade-controller");
    let account = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts/palisade-controller");
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    vec![
        attack("impersonate an administrator", who("impersonate-user", "admin"), CANNOT),
        attack("impersonate an administrators' group", both, CANNOT),
        attack("impersonate the controller", who("impersonate-user", &controller), CANNOT),
        attack("a token of the controller's", Request::new("POST", format!("{account}/token")).json(token), CANNOT),
        attack("the controller's account", Request::new("GET", account), CANNOT),
    ]
}

fn system() -> Vec<Attack> {
    let epoch = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps/{EPOCH_OBJECT}");
    let data = json!({"data": {"epoch": "9", "incarnation": "evil"}});
    let fenced = |namespace: &str, more: Value| {
        let mut object = plain("evil", "evil", &fence(EPOCH, 9, 9), json!({}));
        merge(&mut object, &more);
        created(Kind::Deployment, namespace, object)
    };
    let as_controller = json!({"spec": {"template": {"spec": {"serviceAccountName": "palisade-controller"}}}});
    let secrets = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets");
    let service = object(Kind::Service, "evil", "evil", &fence(EPOCH, 9, 9));
    vec![
        attack("read the epoch object", Request::new("GET", epoch.clone()), CANNOT),
        attack("change the epoch object", merged(epoch.clone(), data.clone()), CANNOT),
        attack("replace the epoch object", Request::new("PUT", epoch.clone()).json(data), CANNOT),
        attack("delete the epoch object", Request::new("DELETE", epoch), CANNOT),
        attack("list the secrets of Palisade's namespace", Request::new("GET", secrets), CANNOT),
        attack("pods that run as the controller", fenced(SYSTEM_NAMESPACE, as_controller), HOME),
        attack("pods in Palisade's namespace, which could read its secrets", fenced(SYSTEM_NAMESPACE, json!({})), HOME),
        attack("a Service in Palisade's namespace", created(Kind::Service, SYSTEM_NAMESPACE, service), HOME),
        attack("pods in `kube-system`, with its accounts", fenced("kube-system", json!({})), HOME),
    ]
}

fn strangers(namespace: &str) -> Vec<Attack> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let path = format!("{}/stranger", kind.path(namespace));
        let adopt = json!({"metadata": {
            "labels": {"palisade.dev/deployment": "stranger"}, "annotations": {FENCE_ANNOTATION: fence(EPOCH, 9, 9)},
        }});
        let mut apply = object(kind, "stranger", "stranger", &fence(EPOCH, 9, 9));
        merge(&mut apply, &json!({"spec": {"selector": null}}));
        let bare = json!({"metadata": {"name": "evil", "labels": null, "annotations": null}});
        let mut unlabelled = object(kind, "evil", "evil", &fence(EPOCH, 9, 9));
        merge(&mut unlabelled, &bare);
        let applied = format!("{path}?fieldManager=evil&force=true");
        all.extend([
            attack(
                &format!("{kind:?}: change what is not Palisade's"),
                merged(path.clone(), json!({"metadata": {"annotations": {"a": "b"}}})),
                STRANGE,
            ),
            attack(&format!("{kind:?}: adopt what is not Palisade's"), merged(path.clone(), adopt), STRANGE),
            attack(
                &format!("{kind:?}: adopt by a forced apply"),
                Request::new("PATCH", applied).body("application/apply-patch+yaml", apply),
                STRANGE,
            ),
            attack(
                &format!("{kind:?}: create without a label"),
                created(kind, namespace, unlabelled),
                Refused("what a worker creates carries"),
            ),
        ]);
    }
    for (path, expect) in
        [("extensions/v1beta1", CANNOT), ("apps/v1beta2", Refused("404")), ("apps/v1beta1", Refused("404"))]
    {
        let request = Request::new("POST", format!("/apis/{path}/namespaces/{namespace}/deployments")).json(json!({}));
        all.push(attack(&format!("create by an API version that the policies do not name, `{path}`"), request, expect));
    }
    all
}

fn harmless(namespace: &str) -> Vec<Attack> {
    let deployments = Kind::Deployment.path(namespace);
    let next = json!({"metadata": {"annotations": {FENCE_ANNOTATION: fence(EPOCH, 5, 8)}}});
    vec![
        attack(
            "read all objects",
            Request::new("GET", deployments.clone()),
            Harmless("fences are no secret: to know one is not to hold it in the database"),
        ),
        attack(
            "a dry run under a greater fence",
            merged(format!("{deployments}/{VICTIM}?dryRun=All"), next),
            Harmless("a dry run writes nothing"),
        ),
    ]
}

/// All that follows takes a fence that its sender was not granted, greater than what is there. A stale worker does not: it
/// sends its own fences.
fn limited(namespace: &str) -> Vec<Attack> {
    let dry = |kind: Kind, name: &str, fence: String| {
        merged(
            format!("{}/{name}?dryRun=All", kind.path(namespace)),
            json!({"metadata": {"annotations": {FENCE_ANNOTATION: fence}}}),
        )
    };
    let copied = "a greater token that was copied passes: a policy cannot know whose a token is. The owner is refused until it has a greater one: each grant raises it, `palisade epoch advance` does so at once";
    let forged = fence(EPOCH, 4_000_000_000, 1);
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let name = |what: &str| format!("{kind:?}: {what}");
        all.push(attack(
            &name("another deployment's greater fence"),
            dry(kind, VICTIM, fence(EPOCH, 9, 3)),
            Limited(copied),
        ));
        all.push(attack(
            &name("the owner's own token, copied, and its next sequence"),
            dry(kind, VICTIM, fence(EPOCH, 5, 8)),
            Limited(copied),
        ));
        all.push(attack(
            &name("a token of this epoch that nobody was granted yet"),
            dry(kind, VICTIM, forged.clone()),
            Limited(copied),
        ));
    }
    let beside = plain("evil", OTHER, &fence(EPOCH, 9, 4), json!({}));
    let elsewhere = plain("evil", "evil", &fence(EPOCH, 1, 1), json!({}));
    let secret = json!({"spec": {"template": {"spec": {"volumes": [{"name": "s", "secret": {"secretName": "any"}}]}}}});
    let mut reading = elsewhere.clone();
    merge(&mut reading, &secret);
    all.extend([
        attack(
            "a Deployment for another deployment, under its copied token",
            created(Kind::Deployment, namespace, beside),
            Limited(
                "it serves nothing, since the Service does not select it; that deployment's next rollout retires it",
            ),
        ),
        attack(
            "a Deployment in another team's namespace",
            created(Kind::Deployment, "default", elsewhere),
            Limited("the Role says where workers may write: bind it in the namespaces that have ModelDeployments"),
        ),
        attack(
            "pods that mount a secret of their namespace",
            created(Kind::Deployment, namespace, reading),
            Limited("whoever may make pods in a namespace may read its secrets: the Role says where"),
        ),
    ]);
    all
}

/// By subject.
pub fn others(namespace: &str) -> Vec<(&'static str, Vec<Attack>)> {
    vec![
        ("Other identities", identities()),
        ("Palisade's own namespace, and Kubernetes'", system()),
        ("What is not Palisade's", strangers(namespace)),
        ("Harmless", harmless(namespace)),
        ("Copied and forged fences: limited by rights only", limited(namespace)),
    ]
}

#[tokio::test]
async fn what_no_matrix_has_is_refused_or_harmless_or_limited_as_the_table_says() {
    let _epoch = EPOCH_OBJECT_LOCK.read().await;
    let stage = Stage::new().await;
    let before = stage.essence().await;
    let mut problems = Vec::new();
    for attack in others(&stage.namespace).iter().flat_map(|(_, attacks)| attacks) {
        problems.extend(stage.attack(&before, attack).await.err());
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// A worker marked a Deployment, was paused, and was replaced: the new owner has sealed what it found, and may use it.
#[tokio::test]
async fn a_delete_that_comes_after_a_newer_owners_seal_finds_another_version() {
    let _epoch = EPOCH_OBJECT_LOCK.read().await;
    let stage = Stage::new().await;
    let worker: Api<Deployment> = api(&stage.actors.worker, &stage.namespace);
    let marked = worker.get("retired").await.expect("it is there");
    let seal = json!({"metadata": {"annotations": {FENCE_ANNOTATION: fence(EPOCH, 6, 1)}}});
    worker.patch("retired", &PatchParams::default(), &Patch::Merge(seal)).await.expect("the new owner");
    let before = stage.essence().await;
    let preconditions = Preconditions { uid: marked.metadata.uid, resource_version: marked.metadata.resource_version };
    let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
    let refused = worker.delete("retired", &params).await.expect_err("it is another version");
    assert!(refused.to_string().contains("recondition"), "{refused}");
    assert_eq!(stage.essence().await, before);
}

/// Where a person deleted the Service, an old token may make it again. The owner's is greater still.
#[tokio::test]
async fn a_service_that_a_stale_worker_makes_anew_is_the_owners_with_its_next_write() {
    let _epoch = EPOCH_OBJECT_LOCK.read().await;
    let stage = Stage::new().await;
    let person: Api<Service> = api(&stage.actors.admin, &stage.namespace);
    person.delete(VICTIM, &DeleteParams::default()).await.expect("people may");
    let stale = object(Kind::Service, VICTIM, VICTIM, &fence(EPOCH, 4, 1));
    Request::new("POST", Kind::Service.path(&stage.namespace))
        .json(stale)
        .send(&stage.actors.worker)
        .await
        .expect("nobody is there");
    let owner: Api<Service> = api(&stage.actors.worker, &stage.namespace);
    let apply = object(Kind::Service, VICTIM, VICTIM, &fence(EPOCH, 5, 8));
    let params = PatchParams::apply(WORKER_MANAGER).force();
    owner.patch(VICTIM, &params, &Patch::Apply(apply)).await.expect("the owner's is greater");
}

/// The worst that a copied or made-up token of the epoch can do, and what ends it.
#[tokio::test]
async fn an_object_under_a_token_that_nobody_was_granted_is_written_again_in_the_next_epoch() {
    let _epoch = EPOCH_OBJECT_LOCK.write().await;
    let stage = Stage::new().await;
    let services: Api<Service> = api(&stage.actors.worker, &stage.namespace);
    let under = |fence: String| Patch::Merge(json!({"metadata": {"annotations": {FENCE_ANNOTATION: fence}}}));
    let params = PatchParams::default();
    services.patch(VICTIM, &params, &under(fence(EPOCH, 4_294_967_295, 9_999_999_999_999_999))).await.expect("forged");
    let refused = services.patch(VICTIM, &params, &under(fence(EPOCH, 6, 1))).await.expect_err("the owner's is lower");
    assert!(refused.to_string().contains("stale write under"), "{refused}");
    cluster().allocate_epoch(SYSTEM_NAMESPACE, EPOCH as u32 + 1, "test, advanced").await;
    services.patch(VICTIM, &params, &under(fence(EPOCH + 1, 1, 1))).await.expect("the next epoch's is greater");
    // As it was, for the other tests: an epoch does not go back, so it is made anew.
    let epochs: Api<ConfigMap> = api(&stage.actors.admin, SYSTEM_NAMESPACE);
    epochs.delete(EPOCH_OBJECT, &DeleteParams::default()).await.expect("people may");
    wait_until("the policies have missed it", || async {
        match services
            .patch(VICTIM, &PatchParams { dry_run: true, ..Default::default() }, &under(fence(EPOCH + 1, 1, 2)))
            .await
        {
            Err(error) if error.to_string().contains("no params found") => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
    cluster().allocate_epoch(SYSTEM_NAMESPACE, EPOCH as u32, "test").await;
}
