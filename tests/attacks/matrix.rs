//! Every verb that the rendered Role holds on a kind × every way to send it × every false fence, generated. A verb or a
//! resource that comes to the Role and is not known here fails the test.

use futures::{StreamExt, stream};
use palisade::manifests::{DEPLOYMENT_LABEL, FENCE_ANNOTATION, RETIRED_ANNOTATION, WORKER_MANAGER};
use serde_json::{Value, json};

use crate::support::cluster::{fence, merge};

use super::cluster::{Attack, EPOCH, Kind, OTHER, Request, Stage, VICTIM, current, object, role};
use super::expect::Expect::Refused;
use super::others::EPOCH_OBJECT_LOCK;

const STALE: &str = "stale write under";
const BROKEN: &str = "must be TOKEN/SEQUENCE";
const LABEL: &str = "the label palisade.dev/deployment stays";
const FORGED: &str = "was not allocated yet";
const DELETES: &str = "a worker deletes only Deployments that were marked";

/// What a write says about the fence and the label, and what refuses it.
pub struct Mark {
    pub name: &'static str,
    /// Annotations and labels as a merge patch has them: null removes.
    metadata: Value,
    says: &'static str,
}

impl Mark {
    pub fn says(&self) -> &'static str {
        self.says
    }
}

fn mark(name: &'static str, says: &'static str, fence: impl Into<Value>) -> Mark {
    Mark { name, metadata: json!({"annotations": {FENCE_ANNOTATION: fence.into()}}), says }
}

fn labelled(name: &'static str, says: &'static str, fence: impl Into<Value>, label: impl Into<Value>) -> Mark {
    let mut metadata = mark(name, says, fence).metadata;
    metadata["labels"] = json!({DEPLOYMENT_LABEL: label.into()});
    Mark { name, metadata, says }
}

pub fn marks() -> Vec<Mark> {
    let next = fence(EPOCH, 5, 8);
    vec![
        mark("an older token", STALE, fence(EPOCH, 4, 9)),
        mark("an older token with a huge sequence", STALE, fence(EPOCH, 4, 1_000_000_000)),
        mark("an older epoch's token", STALE, fence(EPOCH - 1, 4_000_000_000, 1)),
        mark("an earlier sequence of the same token", STALE, fence(EPOCH, 5, 6)),
        mark("the same fence again", STALE, current()),
        mark("another deployment's fence, older than this object's", STALE, fence(EPOCH, 3, 99)),
        Mark { name: "no word about the fence", metadata: json!({}), says: STALE },
        mark("the fence stripped", BROKEN, Value::Null),
        Mark { name: "all annotations stripped", metadata: json!({"annotations": null}), says: BROKEN },
        labelled("the label stripped, under a greater fence", LABEL, next.clone(), Value::Null),
        labelled("the label of another deployment, under a greater fence", LABEL, next.clone(), OTHER),
        labelled("an empty label, under a greater fence", LABEL, next, ""),
        labelled(
            "fence and label stripped",
            "must be TOKEN/SEQUENCE|stays as it is|stale write",
            Value::Null,
            Value::Null,
        ),
        mark("an empty fence", BROKEN, ""),
        mark("a token without a sequence", BROKEN, "99999999999"),
        mark("a token with a leading zero", BROKEN, "099999999999/1"),
        mark("a sequence with a leading zero", BROKEN, "99999999999/01"),
        mark("a negative token", BROKEN, "-1/1"),
        mark("a token in other digits", BROKEN, "９９９９９９９９９９９/1"),
        mark("a token beyond 16 digits", BROKEN, "99999999999999999/1"),
        mark("a fence and more", BROKEN, format!("{}\n", fence(EPOCH, 6, 1))),
        mark("a token of the next epoch", FORGED, fence(EPOCH + 1, 1, 1)),
        mark("the largest token", FORGED, "9007199254740991/1"),
    ]
}

/// What a write changes besides: the first of a kind goes with each mark, the others with two.
pub fn changes(kind: Kind) -> Vec<(&'static str, Value)> {
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "00000000-0000-0000-0000-00000000dead"}]);
    let mut changes = match kind {
        Kind::Deployment => vec![
            ("replicas", json!({"spec": {"replicas": 7}})),
            (
                "the image",
                json!({"spec": {"template": {"spec": {"containers": [{"name": "model", "image": "registry.example/old:0"}]}}}}),
            ),
            ("the pods' labels", json!({"spec": {"template": {"metadata": {"labels": {"app": VICTIM, "more": "x"}}}}})),
            ("paused", json!({"spec": {"paused": true}})),
            ("the strategy", json!({"spec": {"minReadySeconds": 9}})),
        ],
        Kind::Service => vec![
            ("the selector", json!({"spec": {"selector": {"app": "old"}}})),
            ("the type", json!({"spec": {"type": "ExternalName", "externalName": "evil.example"}})),
            ("the ports", json!({"spec": {"ports": [{"port": 8080, "protocol": "TCP", "targetPort": 9}]}})),
            ("external addresses", json!({"spec": {"externalIPs": ["192.0.2.1"]}})),
            ("session affinity", json!({"spec": {"sessionAffinity": "ClientIP"}})),
        ],
    };
    changes.extend([
        ("nothing else", json!({})),
        ("the owner", json!({"metadata": {"ownerReferences": owner}})),
        ("finalizers", json!({"metadata": {"finalizers": ["evil.example/x"]}})),
        ("the mark of a retired one", json!({"metadata": {"annotations": {RETIRED_ANNOTATION: "x"}}})),
    ]);
    changes
}

/// Ways to send a change to an object that is there, by the verb that RBAC asks for.
pub fn ways(verb: &str) -> Option<&'static [&'static str]> {
    Some(match verb {
        "patch" => &[
            "merge patch",
            "merge patch, dry run",
            "merge patch as the sealing field manager",
            "strategic merge patch",
            "JSON patch",
            "apply",
            "forced apply",
            "forced apply as another field manager",
            "forced apply as the sealing field manager",
        ],
        "update" => &["replace", "replace whatever the version"],
        "create" => &["create", "create under a generated name", "apply that creates", "create over what is there"],
        "delete" => &[
            "delete",
            "delete by UID",
            "delete by resourceVersion",
            "delete in the foreground",
            "delete in the background",
            "delete that orphans",
            "delete without grace",
            "delete, dry run",
        ],
        "deletecollection" => &["delete a collection", "delete a collection by label", "delete a collection by field"],
        "get" | "list" | "watch" => &[],
        _ => return None,
    })
}

/// RFC 6902, from a merge patch, one level of which is a path.
fn json_patch(metadata: &Value, spec: &Value) -> Value {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    let mut operations = Vec::new();
    let mut operation = |path: String, value: &Value| {
        operations.push(if value.is_null() {
            json!({"op": "remove", "path": path})
        } else {
            json!({"op": "add", "path": path, "value": value})
        });
    };
    for (key, value) in metadata.as_object().into_iter().flatten() {
        match value {
            Value::Object(map) => map.iter().for_each(|(k, v)| operation(format!("/metadata/{key}/{}", escape(k)), v)),
            other => operation(format!("/metadata/{key}"), other),
        }
    }
    for (key, value) in spec.as_object().into_iter().flatten() {
        match value {
            // A template's parts lie deeper; the whole is replaced.
            Value::Object(map) if key == "template" => {
                map.iter().for_each(|(k, v)| operation(format!("/spec/template/{k}"), v));
            }
            other => operation(format!("/spec/{key}"), other),
        }
    }
    Value::Array(operations)
}

fn strips(metadata: &Value) -> bool {
    match metadata {
        Value::Null => true,
        Value::Object(map) => map.values().any(strips),
        _ => false,
    }
}

/// A patch of the victim that carries this mark and this change.
fn patch(kind: Kind, namespace: &str, way: &str, mark: &Mark, change: &Value) -> Option<Request> {
    let mut body = change.clone();
    body["metadata"] = {
        let mut metadata = change.get("metadata").cloned().unwrap_or_else(|| json!({}));
        // By hand: a null must stay one.
        for (key, value) in mark.metadata.as_object()? {
            match value {
                Value::Object(map) => map.iter().for_each(|(k, v)| metadata[key][k] = v.clone()),
                other => metadata[key] = other.clone(),
            }
        }
        metadata
    };
    let manager = if way.contains("sealing") {
        "palisade-seal"
    } else if way.contains("another") {
        "kubectl"
    } else {
        WORKER_MANAGER
    };
    let dry = if way.contains("dry run") { "&dryRun=All" } else { "" };
    let force = if way.contains("forced") { "&force=true" } else { "" };
    let path = format!("{}/{VICTIM}?fieldManager={manager}{dry}{force}", kind.path(namespace));
    let request = Request::new("PATCH", path);
    // An apply takes away what it does not mention, if it was its own. There is no other way to strip something by it.
    if way.contains("apply") && manager != WORKER_MANAGER && strips(&mark.metadata) {
        return None;
    }
    Some(match way {
        _ if way.contains("apply") => {
            // What an apply does not mention it leaves, or drops if it was its own: there is no null.
            let mut whole = match manager {
                WORKER_MANAGER => object(kind, VICTIM, VICTIM, &current()),
                _ => {
                    json!({"apiVersion": kind.resource().api_version, "kind": kind.resource().kind, "metadata": {"name": VICTIM}})
                }
            };
            if mark.metadata == json!({}) {
                merge(&mut whole, &json!({"metadata": {"annotations": {FENCE_ANNOTATION: null}}}));
            }
            merge(&mut whole, &body);
            request.body("application/apply-patch+yaml", whole)
        }
        "JSON patch" => request.body("application/json-patch+json", json_patch(&body["metadata"], &body["spec"])),
        "strategic merge patch" => request.body("application/strategic-merge-patch+json", body),
        _ => request.body("application/merge-patch+json", body),
    })
}

/// The live object with the mark and the change in it, as a whole.
fn replace(kind: Kind, namespace: &str, mark: &Mark, change: &Value) -> Request {
    let mut whole = object(kind, VICTIM, VICTIM, &current());
    merge(&mut whole, change);
    merge(&mut whole, &json!({"metadata": mark.metadata}));
    Request::new("PUT", format!("{}/{VICTIM}", kind.path(namespace))).json(whole)
}

fn changing(kind: Kind, namespace: &str, verb: &str, way: &'static str) -> Vec<Attack> {
    let changes = changes(kind);
    let mut attacks = Vec::new();
    for (place, mark) in marks().iter().enumerate() {
        // An older token and a silent write go with every change, the rest with the first.
        let every = place == 0 || mark.metadata == json!({});
        for (what, change) in changes.iter().take(if every { changes.len() } else { 1 }) {
            let says = match way {
                // Fields of somebody else's: the API server says so, or the policy, whichever is first.
                "apply" => "conflict|stale write|must be TOKEN|stays as it is|not allocated",
                // An apply that leaves out what it owned strips it.
                _ if way.contains("apply") => {
                    "stale write|must be TOKEN|stays as it is|not allocated|may not be removed"
                }
                // The pod template, the ports and the like have required parts, which a patch of a part may miss.
                _ => mark.says,
            };
            let request = match verb {
                "update" => Some(replace(kind, namespace, mark, change)),
                _ => patch(kind, namespace, way, mark, change),
            };
            let Some(request) = request else { continue };
            let name = format!("{kind:?}: {way} under {}: {what}", mark.name);
            attacks.push(Attack { name, request, expect: Refused(says) });
        }
    }
    // An apply cannot take away what it does not own, and a write that changes nothing is no write: not these.
    attacks.retain(|attack| !is_nothing(way, &attack.name));
    attacks
}

/// A server-side apply with no word about the fence, or with a null for it, by somebody who does not own it, and a
/// change of nothing: nothing is written, so nothing has to be refused.
fn is_nothing(way: &str, name: &str) -> bool {
    let silent = name.contains("no word about") && name.ends_with("nothing else");
    silent && (way.contains("as another") || way.contains("apply as the sealing") || way.contains("patch"))
}

/// Creations under fences that the deployment's Service is ahead of, or that no policy lets pass.
fn creating(kind: Kind, namespace: &str, way: &'static str) -> Vec<Attack> {
    let mut attacks = Vec::new();
    for mark in marks() {
        // Of a Service there is one a deployment, and it is there: without a name of its own it is another kind of attack.
        if kind == Kind::Service && way != "create over what is there" {
            continue;
        }
        let mut new =
            object(kind, if way == "create over what is there" { VICTIM } else { "evil" }, VICTIM, &current());
        let request = Request::new("POST", kind.path(namespace));
        let says = match mark.says {
            // The same token may create; it is there, or it is the owner's.
            STALE if mark.name.contains("same") || mark.name.contains("no word") => continue,
            LABEL if mark.name.contains("another") => continue, // that deployment's business: see others.rs
            LABEL if mark.name.contains("empty") => "must name a ModelDeployment",
            LABEL => "what a worker creates carries",
            STALE if kind == Kind::Service => "already exists",
            other => other,
        };
        merge(&mut new, &json!({"metadata": mark.metadata}));
        let request = match way {
            "create under a generated name" => {
                merge(&mut new, &json!({"metadata": {"name": null, "generateName": "evil-"}}));
                request.json(new)
            }
            "apply that creates" => {
                let path = format!("{}/evil?fieldManager={WORKER_MANAGER}&force=true", kind.path(namespace));
                Request::new("PATCH", path).body("application/apply-patch+yaml", new)
            }
            _ => request.json(new),
        };
        let says = if mark.name == "fence and label stripped" { "what a worker creates carries" } else { says };
        attacks.push(Attack { name: format!("{kind:?}: {way} under {}", mark.name), request, expect: Refused(says) });
    }
    attacks
}

/// Deletes of what is not retired, and of what is, without naming exactly what was marked.
fn deleting(kind: Kind, namespace: &str, way: &'static str) -> Vec<Attack> {
    let never = json!({"uid": "00000000-0000-0000-0000-00000000dead"});
    let options = match way {
        "delete by UID" => json!({"preconditions": never}),
        "delete by resourceVersion" => json!({"preconditions": {"resourceVersion": "1"}}),
        "delete in the foreground" => json!({"propagationPolicy": "Foreground"}),
        "delete in the background" => json!({"propagationPolicy": "Background"}),
        "delete that orphans" => json!({"propagationPolicy": "Orphan"}),
        "delete without grace" => json!({"gracePeriodSeconds": 0}),
        "delete, dry run" => json!({"dryRun": ["All"]}),
        _ => json!({}),
    };
    let victims: &[&str] =
        if kind == Kind::Deployment { &[VICTIM, "retired", "stranger"] } else { &[VICTIM, "stranger"] };
    let attack = |victim: &&str| Attack {
        name: format!("{kind:?}: {way}: {victim}"),
        request: Request::new("DELETE", format!("{}/{victim}", kind.path(namespace))).json(options.clone()),
        expect: Refused(match *victim {
            "stranger" => "this object is not Palisade's|a worker deletes only|recondition",
            _ => "a worker deletes only Deployments that were marked|recondition",
        }),
    };
    victims.iter().map(attack).collect()
}

fn collection(kind: Kind, namespace: &str, way: &'static str) -> Attack {
    let query = match way {
        "delete a collection by label" => "?labelSelector=palisade.dev/deployment",
        "delete a collection by field" => "?fieldSelector=metadata.name%3Dvictim",
        _ => "",
    };
    let request = Request::new("DELETE", format!("{}{query}", kind.path(namespace)));
    Attack { name: format!("{kind:?}: {way}"), request, expect: Refused(DELETES) }
}

/// All that a verb of the Role allows to be tried on a kind; none where nobody thought of the verb.
pub fn attacks(kind: Kind, namespace: &str, verb: &str) -> Option<Vec<Attack>> {
    let of = |way: &&'static str| match verb {
        "patch" | "update" => changing(kind, namespace, verb, way),
        "create" => creating(kind, namespace, way),
        "delete" => deleting(kind, namespace, way),
        _ => vec![collection(kind, namespace, way)],
    };
    Some(ways(verb)?.iter().flat_map(of).collect())
}

/// What the Role lets a worker read only: nothing is to be tried there.
const READ_ONLY: [(&str, &str); 1] = [("", "pods")];

/// The whole matrix, from the Role as it is rendered; and what of the Role nobody thought of.
pub fn matrix(namespace: &str) -> (Vec<Attack>, Vec<String>) {
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for (group, resource, verbs) in role() {
        let named = (group.as_str(), resource.as_str());
        let kind = Kind::ALL.into_iter().find(|kind| kind.named() == named);
        for verb in &verbs {
            let reads = ["get", "list", "watch"].contains(&verb.as_str());
            match kind.map(|kind| attacks(kind, namespace, verb)) {
                Some(Some(attacks)) => all.extend(attacks),
                None if reads && READ_ONLY.contains(&named) => {}
                _ => missing.push(format!("{verb} of {group}/{resource}")),
            }
        }
    }
    (all, missing)
}

#[tokio::test]
async fn nothing_that_the_workers_role_holds_changes_what_a_newer_owner_wrote() {
    let _epoch = EPOCH_OBJECT_LOCK.read().await;
    let stage = Stage::new().await;
    let (attacks, missing) = matrix(&stage.namespace);
    assert!(missing.is_empty(), "the Role holds this, and no attack tries it: {missing:?}");
    assert!(attacks.len() > 300, "{} attacks", attacks.len());
    let before = &stage.essence().await;
    let stage = &stage;
    let problems: Vec<String> = stream::iter(&attacks)
        .map(|attack| async move { stage.attack(before, attack).await.err() })
        .buffer_unordered(6)
        .filter_map(|problem| async { problem })
        .collect()
        .await;
    let shown = problems.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(problems.is_empty(), "{} of {}:\n{shown}", problems.len(), attacks.len());
}
