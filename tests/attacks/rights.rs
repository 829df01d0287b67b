//! What the Roles do not hold is refused: every resource, subresource and verb that the API server's discovery lists.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use kube::Client;
use palisade::manifests::SYSTEM_NAMESPACE;
use serde_json::{Value, json};

use super::cluster::{Actors, Request, cluster};

/// All that a worker may do: `group/resource`, verbs. What is not here is refused.
pub const WORKER: &[(&str, &[&str])] = &[
    ("apps/deployments", &["get", "list", "watch", "create", "patch", "delete"]),
    ("/services", &["get", "list", "create", "patch"]),
    ("/pods", &["list", "watch"]),
];

/// All that the controller may do in any namespace.
pub const CONTROLLER: &[(&str, &[&str])] = &[
    ("palisade.dev/modeldeployments", &["get", "list", "watch", "patch"]),
    ("palisade.dev/modeldeployments/status", &["patch", "update"]),
    ("apps/deployments", &["list", "watch", "create"]),
    ("/services", &["list", "watch"]),
    ("events.k8s.io/events", &["create"]),
];

/// And in Palisade's own namespace. By name it may get and update one ConfigMap, the epoch object.
pub const CONTROLLER_AT_HOME: &[(&str, &[&str])] = &[("/configmaps", &["create"])];

/// What Kubernetes lets every account do: ask who it is, and what it may.
pub const EVERYBODY: &[(&str, &[&str])] = &[
    ("authentication.k8s.io/selfsubjectreviews", &["create"]),
    ("authorization.k8s.io/selfsubjectaccessreviews", &["create"]),
    ("authorization.k8s.io/selfsubjectrulesreviews", &["create"]),
];

/// Those of requests, and those that stand for a power of their own.
const VERBS: [&str; 16] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "impersonate",
    "bind",
    "escalate",
    "approve",
    "sign",
    "attest",
    "use",
    "adopt",
];

/// What discovery lists: `group/resource[/subresource]`, version, whether it lies in namespaces.
#[derive(Clone, Debug)]
struct Known {
    group: String,
    version: String,
    resource: String,
    namespaced: bool,
}

async fn discovery(admin: &Client) -> Vec<Known> {
    let read = async |path: String| -> Value {
        let text = Request::new("GET", path).send(admin).await.expect("discovery answers");
        serde_json::from_str(&text).expect("JSON")
    };
    let groups = read("/apis".into()).await;
    let mut places = vec![(String::new(), "v1".to_owned())];
    for group in groups["groups"].as_array().expect("groups") {
        for version in group["versions"].as_array().expect("versions") {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            places.push((text(&group["name"]), text(&version["version"])));
        }
    }
    let mut known = Vec::new();
    for (group, version) in places {
        let path = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
        for resource in read(path).await["resources"].as_array().expect("resources") {
            known.push(Known {
                group: group.clone(),
                version: version.clone(),
                resource: resource["name"].as_str().expect("a name").to_owned(),
                namespaced: resource["namespaced"] == true,
            });
        }
    }
    // Verbs that RBAC knows, and discovery does not list.
    for (group, resource, namespaced) in [
        ("", "users", false),
        ("", "groups", false),
        ("authentication.k8s.io", "uids", false),
        ("authentication.k8s.io", "userextras", false),
        ("certificates.k8s.io", "signers", false),
        ("palisade.dev", "modeldeployments/finalizers", true),
        ("palisade.dev", "epochs", true),
        ("apps", "deployments/finalizers", true),
        ("apps", "deployments/rollback", true),
    ] {
        let version = "v1".to_owned();
        known.push(Known { group: group.into(), version, resource: resource.into(), namespaced });
    }
    known
}

/// Whether the account itself is told that it may.
async fn may(client: &Client, known: &Known, verb: &str, namespace: &str) -> bool {
    let (resource, subresource) = known.resource.split_once('/').unwrap_or((&known.resource, ""));
    let namespace = if known.namespaced { namespace } else { "" };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": known.group, "version": known.version,
            "resource": resource, "subresource": subresource,
        }},
    });
    let request = Request::new("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").json(review);
    let answer: Value = serde_json::from_str(&request.send(client).await.expect("an answer")).expect("JSON");
    answer["status"]["allowed"] == true
}

fn list(allowed: &[&[(&str, &[&str])]]) -> BTreeSet<String> {
    let rules = allowed.iter().flat_map(|rules| rules.iter());
    rules.flat_map(|(what, verbs)| verbs.iter().map(move |verb| format!("{verb} {what}"))).collect()
}

async fn held(client: &Client, known: &[Known], namespace: &str) -> BTreeSet<String> {
    let questions = known.iter().flat_map(|known| VERBS.into_iter().map(move |verb| (known, verb)));
    stream::iter(questions)
        .map(|(known, verb)| async move {
            let yes = may(client, known, verb, namespace).await;
            yes.then(|| format!("{verb} {}/{}", known.group, known.resource))
        })
        .buffer_unordered(8)
        .filter_map(|held| async { held })
        .collect()
        .await
}

#[tokio::test]
async fn of_all_that_discovery_lists_the_accounts_hold_what_the_allow_list_says_and_nothing_else() {
    cluster();
    let actors = Actors::new().await;
    let known = discovery(&actors.admin).await;
    assert!(known.len() > 100, "only {} are listed", known.len());
    let home = SYSTEM_NAMESPACE;
    for (client, namespace, allowed) in [
        (&actors.worker, "default", list(&[WORKER, EVERYBODY])),
        (&actors.worker, home, list(&[WORKER, EVERYBODY])),
        (&actors.controller, "default", list(&[CONTROLLER, EVERYBODY])),
        (&actors.controller, home, list(&[CONTROLLER, CONTROLLER_AT_HOME, EVERYBODY])),
    ] {
        let held = held(client, &known, namespace).await;
        assert_eq!(held, allowed, "in namespace {namespace}");
    }
}

/// By which requests a verb is used.
const METHODS: [(&str, &str, bool); 7] = [
    ("get", "GET", true),
    ("list", "GET", false),
    ("create", "POST", false),
    ("update", "PUT", true),
    ("patch", "PATCH", true),
    ("delete", "DELETE", true),
    ("deletecollection", "DELETE", false),
];

/// The requests that a resource, or a subresource, can be asked by, each with its verb.
fn requests(known: &Known, namespace: &str) -> Vec<(&'static str, Request)> {
    let root =
        if known.group.is_empty() { "/api/v1".into() } else { format!("/apis/{}/{}", known.group, known.version) };
    let root = if known.namespaced { format!("{root}/namespaces/{namespace}") } else { root };
    let (resource, subresource) = known.resource.split_once('/').unwrap_or((&known.resource, ""));
    let patches: &[&str] = &[
        "application/merge-patch+json",
        "application/json-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ];
    let mut all = Vec::new();
    for (verb, method, named) in METHODS {
        let path = match (subresource, named) {
            ("", true) => format!("{root}/{resource}/x"),
            ("", false) => format!("{root}/{resource}"),
            // A subresource is always one object's; a collection of them there is not.
            (_, false) if verb != "create" => continue,
            (sub, _) => format!("{root}/{resource}/x/{sub}"),
        };
        // A namespace is its own.
        let path = if known.resource == "namespaces" && named { format!("{root}/namespaces/x") } else { path };
        let contents = if verb == "patch" { patches } else { &["application/json"][..] };
        for content in contents {
            let query = if content.contains("apply") { "?fieldManager=evil&force=true" } else { "" };
            let request = Request::new(method, format!("{path}{query}")).body(content, json!({}));
            all.push((verb, request));
        }
    }
    all
}

#[tokio::test]
async fn what_the_workers_role_does_not_hold_is_refused_when_it_is_tried() {
    cluster();
    let actors = Actors::new().await;
    let known = discovery(&actors.admin).await;
    let allowed = list(&[WORKER, EVERYBODY]);
    let mut tries = Vec::new();
    for known in &known {
        for (verb, request) in requests(known, "default") {
            if !allowed.contains(&format!("{verb} {}/{}", known.group, known.resource)) {
                tries.push(request);
            }
        }
    }
    assert!(tries.len() > 1000, "{} were tried", tries.len());
    let client = &actors.worker;
    let problems: Vec<String> = stream::iter(&tries)
        .map(|request| async move {
            match request.send(client).await {
                Err(said) if said.starts_with("403 Forbidden") && said.contains(" cannot ") => None,
                answer => Some(format!("{} {}: {answer:?}", request.method, request.path)),
            }
        })
        .buffer_unordered(8)
        .filter_map(|problem| async { problem })
        .collect()
        .await;
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), tries.len(), problems.join("\n"));
}

/// Discovery lists one version of each kind that workers write, and the policies name it.
#[tokio::test]
async fn the_kinds_that_workers_write_have_one_version() {
    cluster();
    let known = discovery(&cluster().admin().await).await;
    for (group, resource) in [("apps", "deployments"), ("", "services")] {
        let served: Vec<_> = known.iter().filter(|known| known.resource == resource).collect();
        assert!(matches!(&served[..], [one] if one.group == group && one.version == "v1"), "{served:?}");
    }
}
