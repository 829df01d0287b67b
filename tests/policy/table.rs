//! Writes that a policy must refuse: what there is, who writes what, and what the refusal says.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::discovery::ApiResource;
use palisade::manifests::{DEPLOYMENT_LABEL, FENCE_ANNOTATION, RETIRED_ANNOTATION};
use serde_json::{Value, json};

use super::world::{Actor, Clients, EPOCH};
use crate::support::cluster::{deployment, fence, from_json, merge};

/// What is there before the write. All but the stranger were last written under fence 5/7 of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    Nothing,
    Live,
    Retired,
    /// Somebody else's Deployment, without label and fence.
    Stranger,
    Service,
    RetiredService,
}

/// Which precondition a delete carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    No,
    Right,
    Wrong,
}

#[derive(Clone, Debug)]
pub enum Write {
    Create(Value),
    /// In another namespace than the seed's.
    CreateIn(&'static str, Value),
    Merge(Value),
    Strategic(Value),
    Json(Value),
    /// Server-side apply of exactly this, under this field manager, by force.
    Apply(&'static str, Value),
    /// The live object with this merged into it, as a whole.
    Replace(Value),
    Delete {
        uid: Given,
        version: Given,
    },
    DeleteCollection,
    /// A merge patch of a subresource.
    Subresource(&'static str, Value),
}

#[derive(Clone, Debug)]
pub struct Case {
    /// A claim: "refused: …".
    pub name: String,
    pub seed: Seed,
    pub by: Actor,
    pub write: Write,
    /// A part of the refusal. Several, with `|` between them, where several rules refuse: the API server tells one.
    pub says: &'static str,
}

/// `patch` and the fence. Not by `merge`, for which a null in `patch` would be none.
pub fn fenced(fence: &str, mut patch: Value) -> Value {
    patch["metadata"]["annotations"][FENCE_ANNOTATION] = fence.into();
    patch
}

pub fn labelled(value: Value) -> Value {
    json!({"metadata": {"labels": {DEPLOYMENT_LABEL: value}}})
}

/// What the seeds were last written under.
pub fn current() -> String {
    fence(EPOCH, 5, 7)
}

pub fn resource(seed: Seed) -> ApiResource {
    match seed {
        Seed::Service | Seed::RetiredService => ApiResource::erase::<Service>(&()),
        _ => ApiResource::erase::<Deployment>(&()),
    }
}

pub fn service(name: &str, fence: &str) -> DynamicObject {
    from_json(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "labels": {DEPLOYMENT_LABEL: name}, "annotations": {FENCE_ANNOTATION: fence},
        },
        "spec": {"ports": [{"port": 8080}], "selector": {"app": name}},
    }))
}

async fn plant(clients: &Clients, namespace: &str, name: &str, seed: Seed) {
    let retired = json!({"metadata": {"annotations": {RETIRED_ANNOTATION: "true"}}});
    let mut object = match seed {
        Seed::Nothing => return,
        Seed::Live | Seed::Retired => deployment(name, &current(), json!({})),
        Seed::Stranger => deployment(name, "", json!({"metadata": {"labels": null, "annotations": null}})),
        Seed::Service | Seed::RetiredService => service(name, &current()),
    };
    if matches!(seed, Seed::Retired | Seed::RetiredService) {
        let mut value = serde_json::to_value(&object).expect("JSON");
        merge(&mut value, &retired);
        object = from_json(value);
    }
    let by = if seed == Seed::Stranger { Actor::Person } else { Actor::Worker };
    let api: Api<DynamicObject> = Api::namespaced_with(clients.of(by), namespace, &resource(seed));
    api.create(&PostParams::default(), &object).await.unwrap_or_else(|e| panic!("{name}, {seed:?}: {e}"));
}

/// What must be as before after a refusal. Not resourceVersion: the status goes on.
fn essence(object: Option<DynamicObject>) -> Value {
    let Some(object) = object else { return Value::Null };
    let mut annotations = object.metadata.annotations.unwrap_or_default();
    annotations.retain(|key, _| key.starts_with("palisade.dev/"));
    json!({
        "uid": object.metadata.uid, "labels": object.metadata.labels, "annotations": annotations,
        "deleted": object.metadata.deletion_timestamp, "spec": object.data["spec"],
    })
}

/// Tries the write, and says what is wrong if it was not refused as it should be.
pub async fn check(clients: &Clients, namespace: &str, name: &str, case: &Case) -> Result<(), String> {
    plant(clients, namespace, name, case.seed).await;
    let resource = resource(case.seed);
    let admin: Api<DynamicObject> = Api::namespaced_with(clients.admin.clone(), namespace, &resource);
    let before = essence(admin.get_opt(name).await.expect("the admin can read"));
    let api: Api<DynamicObject> = Api::namespaced_with(clients.of(case.by), namespace, &resource);
    let answer = perform(&api, &resource, name, &case.write).await;
    let after = essence(admin.get_opt(name).await.expect("the admin can read"));
    match answer {
        Ok(()) => Err(format!("{}: it was ACCEPTED", case.name)),
        Err(error) if !case.says.split('|').any(|part| error.to_string().contains(part)) => {
            Err(format!("{}: refused, but not with {:?}: {error}", case.name, case.says))
        }
        Err(_) if before != after => Err(format!("{}: refused, and yet {before} became {after}", case.name)),
        Err(_) => Ok(()),
    }
}

pub async fn perform(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    name: &str,
    write: &Write,
) -> Result<(), kube::Error> {
    let params = PatchParams { field_manager: Some("palisade-worker".into()), ..Default::default() };
    let patched = match write {
        Write::Create(more) => api.create(&PostParams::default(), &deployment(name, &current(), more.clone())).await,
        Write::CreateIn(namespace, more) => {
            let api: Api<DynamicObject> = Api::namespaced_with(api.clone().into_client(), namespace, resource);
            api.create(&PostParams::default(), &deployment(name, &current(), more.clone())).await
        }
        Write::Merge(patch) => api.patch(name, &params, &Patch::Merge(patch)).await,
        Write::Strategic(patch) => api.patch(name, &params, &Patch::Strategic(patch)).await,
        Write::Json(patch) => {
            // kube has JSON patches behind a feature that nothing else needs: a merge patch under another name.
            let request = kube::core::Request::new(api.resource_url());
            let mut request = request.patch(name, &params, &Patch::Merge(patch)).expect("a request");
            let kind = "application/json-patch+json".parse().expect("a header");
            request.headers_mut().insert("content-type", kind);
            api.clone().into_client().request(request).await
        }
        Write::Apply(manager, body) => {
            let mut body = body.clone();
            merge(&mut body, &json!({"apiVersion": resource.api_version, "kind": resource.kind}));
            api.patch(name, &PatchParams::apply(manager).force(), &Patch::Apply(body)).await
        }
        Write::Replace(changes) => {
            let mut object = serde_json::to_value(api.get(name).await?).expect("JSON");
            // Without it the write is unconditional: nothing but the policy stands in its way.
            merge(&mut object, &json!({"metadata": {"resourceVersion": null}}));
            merge(&mut object, changes);
            api.replace(name, &PostParams::default(), &from_json(object)).await
        }
        Write::Delete { uid, version } => return delete(api, name, *uid, *version).await,
        Write::DeleteCollection => {
            let named = ListParams::default().fields(&format!("metadata.name={name}"));
            return api.delete_collection(&DeleteParams::default(), &named).await.map(drop);
        }
        Write::Subresource(subresource, patch) => {
            api.patch_subresource(subresource, name, &params, &Patch::Merge(patch)).await
        }
    };
    patched.map(drop)
}

/// With the right resourceVersion it is tried again when a status came in between.
async fn delete(api: &Api<DynamicObject>, name: &str, uid: Given, version: Given) -> Result<(), kube::Error> {
    let given = |given, right: Option<String>, wrong: &str| match given {
        Given::No => None,
        Given::Right => right,
        Given::Wrong => Some(wrong.to_owned()),
    };
    loop {
        let metadata = api.get(name).await?.metadata;
        let preconditions = Preconditions {
            uid: given(uid, metadata.uid, "00000000-0000-0000-0000-000000000000"),
            resource_version: given(version, metadata.resource_version, "1"),
        };
        let none = uid == Given::No && version == Given::No;
        let params = DeleteParams { preconditions: (!none).then_some(preconditions), ..Default::default() };
        match api.delete(name, &params).await {
            Err(kube::Error::Api(status)) if status.is_conflict() && uid != Given::Wrong && version == Given::Right => {
            }
            answer => return answer.map(drop),
        }
    }
}
