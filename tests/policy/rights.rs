//! RBAC: the accounts have the verbs that they use, and none that a fence could not follow.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::api::{Api, PostParams};
use palisade::manifests::{CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE, WORKER_ACCOUNT};
use serde_json::json;

use super::world::cluster;
use crate::support::cluster::{account, from_json};

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Which of all verbs the account has on `group/resource[/subresource][=name]` in a namespace.
async fn verbs(name: &str, namespace: &str, what: &str) -> Vec<&'static str> {
    let api: Api<SubjectAccessReview> = Api::all(cluster().admin().await);
    let (what, object) = what.split_once('=').unwrap_or((what, ""));
    let mut parts = what.split('/');
    let (group, resource) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let subresource = parts.next().unwrap_or_default();
    let mut allowed = Vec::new();
    for verb in VERBS {
        let review: SubjectAccessReview = from_json(json!({"spec": {
            "user": account(SYSTEM_NAMESPACE, name).username(),
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {
                "namespace": namespace, "verb": verb, "group": group, "resource": resource,
                "subresource": subresource, "name": object,
            },
        }}));
        let answer = api.create(&PostParams::default(), &review).await.expect("an answer");
        if answer.status.is_some_and(|status| status.allowed) {
            allowed.push(verb);
        }
    }
    allowed
}

#[tokio::test]
async fn a_worker_has_the_verbs_that_it_uses_and_no_others() {
    for (what, expected) in [
        ("apps/deployments", &["get", "list", "watch", "create", "patch", "delete"][..]),
        ("apps/deployments/scale", &[]),
        ("apps/deployments/status", &[]),
        ("/services", &["get", "list", "create", "patch"]),
        ("/services/status", &[]),
        ("/pods", &["list", "watch"]),
        ("/configmaps", &[]),
        ("/secrets", &[]),
        ("/serviceaccounts/token", &[]),
        ("palisade.dev/modeldeployments", &[]),
        ("palisade.dev/modeldeployments/status", &[]),
        ("palisade.dev/modeldeployments/finalizers", &[]),
        ("admissionregistration.k8s.io/validatingadmissionpolicies", &[]),
        ("rbac.authorization.k8s.io/clusterrolebindings", &[]),
    ] {
        assert_eq!(verbs(WORKER_ACCOUNT, "default", what).await, expected, "{what}");
    }
    assert!(verbs(WORKER_ACCOUNT, SYSTEM_NAMESPACE, "/configmaps=palisade-epoch").await.is_empty());
}

#[tokio::test]
async fn the_controller_has_the_verbs_that_it_uses_and_no_others() {
    for (namespace, what, expected) in [
        ("default", "palisade.dev/modeldeployments", &["get", "list", "watch", "patch"][..]),
        ("default", "palisade.dev/modeldeployments/status", &["update", "patch"]),
        ("default", "palisade.dev/modeldeployments/finalizers", &[]),
        ("default", "apps/deployments", &["list", "watch", "create"]),
        ("default", "apps/deployments/scale", &[]),
        ("default", "/services", &["list", "watch"]),
        ("default", "events.k8s.io/events", &["create"]),
        ("default", "/secrets", &[]),
        ("default", "/configmaps", &[]),
        ("default", "/configmaps=palisade-epoch", &[]),
        (SYSTEM_NAMESPACE, "/configmaps=palisade-epoch", &["get", "create", "update"]),
        (SYSTEM_NAMESPACE, "/configmaps=another", &["create"]),
    ] {
        assert_eq!(verbs(CONTROLLER_ACCOUNT, namespace, what).await, expected, "{namespace}: {what}");
    }
}
