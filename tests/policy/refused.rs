//! Each row is a write that must be refused, and leave nothing changed.

use futures::{StreamExt, stream};
use palisade::manifests::{FENCE_ANNOTATION, RETIRED_ANNOTATION};
use serde_json::{Value, json};

use super::table::{Case, Given, Seed, Write, check, current, fenced, labelled};
use super::world::{Actor, Clients, EPOCH, EPOCH_OBJECT, cluster};
use crate::support::cluster::{Cluster, fence};

const STALE: &str = "'palisade-fence' denied request: stale write under";
const BROKEN: &str = "must be TOKEN/SEQUENCE";
const BACK: &str = "only goes forward";
const LABEL: &str = "the label palisade.dev/deployment stays";
const FORGED: &str = "was not allocated yet";
const DELETES: &str = "a worker deletes only Deployments that were marked";
const STRANGE: &str = "this object is not Palisade's";
const PRECONDITION: &str = "recondition";

fn case(name: impl Into<String>, seed: Seed, by: Actor, write: Write, says: &'static str) -> Case {
    Case { name: name.into(), seed, by, write, says }
}

fn replicas() -> Value {
    json!({"spec": {"replicas": 3}})
}

/// A template change: what a rollout does.
fn image(fence: Value) -> Value {
    json!({
        "metadata": {"annotations": {FENCE_ANNOTATION: fence}},
        "spec": {"template": {"spec": {"containers": [{"name": "model", "image": "registry.example/old:0"}]}}},
    })
}

/// Older in each way in which a fence can be: another owner's, an earlier write's, this very write again.
fn old_fences() -> [(&'static str, String); 5] {
    [
        ("under an older token", fence(EPOCH, 4, 9)),
        ("under an older token with a huge sequence", fence(EPOCH, 4, 1_000_000_000)),
        ("under an older epoch", fence(EPOCH - 1, 9, 9)),
        ("late: an earlier sequence of the same token", fence(EPOCH, 5, 6)),
        ("doubled: the same fence again", current()),
    ]
}

/// Every verb by which a worker may write, under one fence.
fn verbs(fence: &str) -> [(&'static str, Write); 6] {
    [
        ("merge patch", Write::Merge(fenced(fence, replicas()))),
        ("strategic merge patch", Write::Strategic(image(fence.into()))),
        (
            "JSON patch",
            Write::Json(json!([
                {"op": "replace", "path": "/metadata/annotations/palisade.dev~1fence", "value": fence},
                {"op": "replace", "path": "/spec/replicas", "value": 3},
            ])),
        ),
        ("forced apply", Write::Apply("palisade-worker", fenced(fence, replicas()))),
        ("forced apply under another field manager", Write::Apply("somebody-else", fenced(fence, replicas()))),
        ("replace", Write::Replace(fenced(fence, replicas()))),
    ]
}

fn stale_writes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (age, fence) in old_fences() {
        for (verb, write) in verbs(&fence) {
            cases.push(case(format!("a worker's {verb} {age}"), Seed::Live, Actor::Worker, write, STALE));
        }
        let seal = Write::Merge(fenced(&fence, json!({})));
        cases.push(case(format!("a worker's seal {age}"), Seed::Live, Actor::Worker, seal, STALE));
        let switch = fenced(&fence, json!({"spec": {"selector": {"app": "old"}}}));
        let switch = Write::Merge(switch);
        cases.push(case(format!("a worker moves a Service {age}"), Seed::Service, Actor::Worker, switch, STALE));
    }
    cases
}

fn silent_writes() -> Vec<Case> {
    let json_patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    let writes = [
        ("merge patch", Write::Merge(replicas())),
        ("strategic merge patch", Write::Strategic(replicas())),
        ("JSON patch", Write::Json(json_patch)),
        ("forced apply", Write::Apply("somebody-else", replicas())),
        ("replace", Write::Replace(replicas())),
    ];
    let mut cases: Vec<_> = writes
        .into_iter()
        .map(|(verb, write)| {
            case(format!("a worker's {verb} that does not mention the fence"), Seed::Live, Actor::Worker, write, STALE)
        })
        .collect();
    let service = Write::Merge(json!({"spec": {"selector": {"app": "old"}}}));
    cases.push(case("a worker moves a Service silently", Seed::Service, Actor::Worker, service, STALE));
    cases
}

fn malformed_fences() -> Vec<Case> {
    let fences = [
        "",
        "7",
        "7/",
        "/7",
        "a/b",
        "1/2/3",
        "-1/2",
        "0/1",
        "1/0",
        "07/1",
        "1/07",
        "1e3/1",
        " 1/1",
        "1/1 ",
        "1/1\n",
        "0x1/1",
        "99999999999999999/1",
        "1/99999999999999999",
        "１/１",
    ];
    let mut cases = Vec::new();
    for text in fences {
        for by in [Actor::Worker, Actor::Person] {
            let write = Write::Merge(fenced(text, json!({})));
            cases.push(case(format!("{by:?} writes the fence {text:?}"), Seed::Live, by, write, BROKEN));
        }
        let create = Write::Create(fenced(text, json!({})));
        cases.push(case(
            format!("a worker creates under the fence {text:?}"),
            Seed::Nothing,
            Actor::Worker,
            create,
            BROKEN,
        ));
    }
    cases
}

fn stripped_marks() -> Vec<Case> {
    let no_fence = json!({"metadata": {"annotations": {FENCE_ANNOTATION: null}}});
    let no_annotations = json!({"metadata": {"annotations": null}});
    let next = fence(EPOCH, 5, 8);
    let mut cases = Vec::new();
    for by in [Actor::Worker, Actor::Person, Actor::Autoscaler] {
        for (how, write) in [
            ("by a merge patch", Write::Merge(no_fence.clone())),
            ("by a JSON patch", Write::Json(json!([{"op": "remove", "path": "/metadata/annotations"}]))),
            ("by a replace", Write::Replace(no_annotations.clone())),
        ] {
            cases.push(case(format!("{by:?} takes the fence away {how}"), Seed::Live, by, write, BROKEN));
        }
        for (what, label) in [("away", Value::Null), ("to another", json!("other"))] {
            let plain = if by == Actor::Worker { fenced(&next, labelled(label)) } else { labelled(label) };
            let name = format!("{by:?} changes the label: {what}");
            cases.push(case(name, Seed::Live, by, Write::Merge(plain.clone()), LABEL));
            let name = format!("{by:?} changes a Service's label: {what}");
            cases.push(case(name, Seed::Service, by, Write::Replace(plain), LABEL));
        }
    }
    let both = json!({"metadata": {"labels": null, "annotations": null}});
    cases.push(case(
        "a worker strips all at once",
        Seed::Live,
        Actor::Worker,
        Write::Replace(both),
        "must be TOKEN/SEQUENCE|stays as it is|stale write",
    ));
    let empty = Write::Create(labelled("".into()));
    cases.push(case("a worker creates for nobody", Seed::Nothing, Actor::Worker, empty, "must name a ModelDeployment"));
    cases
}

fn forged_epochs() -> Vec<Case> {
    let mut cases = Vec::new();
    for by in [Actor::Worker, Actor::Person] {
        for (what, forged) in
            [("the next epoch", fence(EPOCH + 1, 0, 1)), ("a huge token", "9007199254740991/1".into())]
        {
            for (verb, write) in verbs(&forged) {
                cases.push(case(format!("{by:?}: {verb} under {what}"), Seed::Live, by, write, FORGED));
            }
            let write = Write::Merge(fenced(&forged, json!({})));
            cases.push(case(format!("{by:?}: a Service under {what}"), Seed::Service, by, write, FORGED));
            let write = Write::Create(fenced(&forged, json!({})));
            cases.push(case(format!("{by:?}: creates under {what}"), Seed::Nothing, by, write, FORGED));
        }
    }
    cases
}

fn peoples_writes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (verb, write) in verbs(&fence(EPOCH, 5, 6)) {
        cases.push(case(format!("a person's {verb} sets the fence back"), Seed::Live, Actor::Person, write, BACK));
    }
    let status = Write::Subresource("status", fenced(&fence(EPOCH, 5, 6), json!({})));
    cases.push(case("a status sets the fence back", Seed::Live, Actor::Person, status, BACK));
    let status = Write::Subresource("status", fenced(&fence(EPOCH, 5, 8), json!({})));
    cases.push(case("a status sets the fence forward", Seed::Live, Actor::Person, status, BACK));
    let status = Write::Subresource("status", fenced(&fence(EPOCH + 1, 5, 8), json!({})));
    cases.push(case("a Service's status forges a fence", Seed::Service, Actor::Person, status, BACK));
    let retire = json!({"metadata": {"annotations": {RETIRED_ANNOTATION: "true"}}});
    cases.push(case("a person retires", Seed::Live, Actor::Person, Write::Merge(retire), "changes only together"));
    let unretire = Write::Merge(json!({"metadata": {"annotations": {RETIRED_ANNOTATION: null}}}));
    cases.push(case(
        "a person takes a retirement back",
        Seed::Retired,
        Actor::Person,
        unretire,
        "changes only together",
    ));
    let label = Write::Merge(labelled("mine".into()));
    cases.push(case("a label without a fence, put on what is there", Seed::Stranger, Actor::Person, label, BROKEN));
    let bare = Write::Create(json!({"metadata": {"annotations": null}}));
    cases.push(case("a person creates with a label, without a fence", Seed::Nothing, Actor::Person, bare, BROKEN));
    cases
}

fn going_unfenced() -> Vec<Case> {
    let worker = Actor::Worker;
    let bare = json!({"metadata": {"labels": null}});
    let carried = "what a worker creates carries";
    let adopt = fenced(&fence(EPOCH, 9, 1), labelled("mine".into()));
    let zero = json!({"spec": {"replicas": 0}});
    let writes = json!({"status": {"replicas": 5}});
    let subresource = "a worker writes no subresources";
    let either = "a worker writes no subresources|stale write";
    let delete = Write::Delete { uid: Given::Right, version: Given::Right };
    let home = "a worker writes nothing in Palisade's own namespace";
    let create = |namespace| Write::CreateIn(namespace, json!({}));
    vec![
        case("a worker creates beside Palisade", Seed::Nothing, worker, create("palisade-system"), home),
        case("a worker creates beside Kubernetes' parts", Seed::Nothing, worker, create("kube-system"), home),
        case("a worker creates without the label", Seed::Nothing, worker, Write::Create(bare), carried),
        case("a worker adopts a stranger", Seed::Stranger, worker, Write::Merge(adopt.clone()), STRANGE),
        case("a worker adopts a stranger by apply", Seed::Stranger, worker, Write::Apply("w", adopt), STRANGE),
        case("a worker changes a stranger", Seed::Stranger, worker, Write::Merge(zero.clone()), STRANGE),
        case("a worker deletes a stranger", Seed::Stranger, worker, delete.clone(), STRANGE),
        case("a worker uses /scale", Seed::Live, worker, Write::Subresource("scale", replicas()), subresource),
        case("a worker uses /status", Seed::Live, worker, Write::Subresource("status", writes), either),
        case(
            "a worker uses a stranger's /scale",
            Seed::Stranger,
            worker,
            Write::Subresource("scale", zero),
            subresource,
        ),
    ]
}

fn deletes() -> Vec<Case> {
    use Given::{No, Right, Wrong};
    let delete = |uid, version| Write::Delete { uid, version };
    let retired = json!({"metadata": {"annotations": {RETIRED_ANNOTATION: "true"}}});
    let mut cases = vec![
        case("a worker deletes what is not retired", Seed::Live, Actor::Worker, delete(Right, Right), DELETES),
        case("a worker deletes without preconditions", Seed::Retired, Actor::Worker, delete(No, No), DELETES),
        case("a worker deletes without UID", Seed::Retired, Actor::Worker, delete(No, Right), DELETES),
        case("a worker deletes without resourceVersion", Seed::Retired, Actor::Worker, delete(Right, No), DELETES),
        case("a worker deletes another UID", Seed::Retired, Actor::Worker, delete(Wrong, Right), PRECONDITION),
        case("a worker deletes an older version", Seed::Retired, Actor::Worker, delete(Right, Wrong), PRECONDITION),
        case("a worker deletes a Service", Seed::Service, Actor::Worker, delete(Right, Right), DELETES),
        case("a worker deletes a retired Service", Seed::RetiredService, Actor::Worker, delete(Right, Right), DELETES),
        case("a worker deletes a collection", Seed::Live, Actor::Worker, Write::DeleteCollection, DELETES),
        case("a worker deletes a retired collection", Seed::Retired, Actor::Worker, Write::DeleteCollection, DELETES),
    ];
    for (age, fence) in old_fences() {
        let write = Write::Merge(fenced(&fence, retired.clone()));
        cases.push(case(format!("a worker retires {age}"), Seed::Live, Actor::Worker, write, STALE));
    }
    cases
}

fn the_controllers() -> Vec<Case> {
    let dry = "by dry runs only";
    let by = Actor::Controller;
    let bare = Write::Create(json!({"metadata": {"labels": null, "annotations": null}}));
    let next = fence(EPOCH, 5, 8);
    vec![
        case("the controller creates a Deployment", Seed::Nothing, by, bare, dry),
        case("the controller creates a fenced one", Seed::Nothing, by, Write::Create(json!({})), dry),
        case("the controller changes a Deployment", Seed::Live, by, Write::Merge(fenced(&next, replicas())), dry),
        case("the controller scales", Seed::Live, by, Write::Subresource("scale", replicas()), dry),
        case("the controller moves a Service", Seed::Service, by, Write::Merge(fenced(&next, json!({}))), dry),
        case("the controller deletes", Seed::Live, by, Write::Delete { uid: Given::No, version: Given::No }, dry),
    ]
}

/// All of them.
pub fn cases() -> Vec<Case> {
    [
        stale_writes(),
        silent_writes(),
        malformed_fences(),
        stripped_marks(),
        forged_epochs(),
        peoples_writes(),
        going_unfenced(),
        deletes(),
        the_controllers(),
    ]
    .concat()
}

/// At most `most` of what was not refused as it should be. A few cases at a time: all together would only wait for
/// each other.
pub async fn failures(cluster: &Cluster, cases: &[Case], most: usize) -> Vec<String> {
    let namespace = &cluster.namespace("refused").await;
    let clients = &Clients::new(cluster).await;
    stream::iter(cases.iter().enumerate())
        .map(|(number, case)| async move { check(clients, namespace, &format!("c{number}"), case).await.err() })
        .buffer_unordered(4)
        .filter_map(|failure| async { failure })
        .take(most)
        .collect()
        .await
}

async fn assert_refused(cases: Vec<Case>) {
    let _object = EPOCH_OBJECT.read().await;
    assert!(!cases.is_empty());
    let failures = failures(cluster(), &cases, cases.len()).await;
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

macro_rules! refused {
    ($($claim:ident: $cases:ident;)*) => {$(
        #[tokio::test]
        async fn $claim() {
            assert_refused($cases()).await;
        }
    )*};
}

refused! {
    a_worker_writes_nothing_under_a_fence_that_is_not_greater: stale_writes;
    a_worker_writes_nothing_that_does_not_mention_the_fence: silent_writes;
    a_fence_that_is_not_well_formed_is_refused: malformed_fences;
    nobody_strips_or_changes_fence_and_label: stripped_marks;
    a_token_of_an_epoch_that_was_not_allocated_is_refused: forged_epochs;
    people_cannot_set_a_fence_back_or_retire_without_one: peoples_writes;
    a_worker_cannot_go_unfenced: going_unfenced;
    a_worker_deletes_only_what_was_retired_under_a_fence: deletes;
    the_controller_writes_nothing_that_is_fenced: the_controllers;
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let mut names: Vec<_> = cases().into_iter().map(|case| case.name).collect();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!((all, names.len() > 100), (names.len(), true));
}
