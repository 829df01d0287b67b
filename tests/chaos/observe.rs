//! Collects what happened: the registry's rows, the cluster's revisions, the workers' accounts.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment as KubeDeployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::discovery::ApiResource;
use kube::{Client, ResourceExt};
use palisade::crd::ModelDeployment;
use palisade::manifests::{DEPLOYMENT_LABEL, FENCE_ANNOTATION, REVISION_LABEL};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;

use super::history::{
    Alias, Call, Deployment, Event, Grant, Granted, Micros, Operation, Plan, Refusal, Registry, Revision, Session,
    assemble, parse,
};
use crate::support::postgres::Conn;

// ---------------------------------------------------------------- the cluster

/// Watches every kind of object that Palisade writes, from before the first one on. Each revision is told: etcd keeps
/// them all for five minutes, and a watch that lagged further behind ends the test.
pub async fn watch_all(client: &Client, namespace: &str, revisions: &Arc<Mutex<Vec<Revision>>>) -> JoinSet<()> {
    let kinds = [
        ("Deployment", ApiResource::erase::<KubeDeployment>(&())),
        ("Service", ApiResource::erase::<Service>(&())),
        ("ModelDeployment", ApiResource::erase::<ModelDeployment>(&())),
    ];
    let mut watches = JoinSet::new();
    for (kind, resource) in kinds {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let from = version(&api).await;
        watches.spawn(watch(kind, api, from, Arc::clone(revisions)));
    }
    watches
}

/// The cluster's revision now.
pub async fn version(api: &Api<DynamicObject>) -> u64 {
    // A kind that was defined a moment ago is answered with 429 at first.
    let list = loop {
        match api.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 429 => tokio::time::sleep(Duration::from_millis(50)).await,
            list => break list.expect("a list"),
        }
    };
    list.metadata.resource_version.and_then(|version| version.parse().ok()).expect("a resourceVersion")
}

async fn watch(kind: &'static str, api: Api<DynamicObject>, mut from: u64, revisions: Arc<Mutex<Vec<Revision>>>) {
    loop {
        // The API server may be frozen or away: the watch goes on where it was.
        let Ok(stream) = api.watch(&WatchParams::default(), &from.to_string()).await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        futures::pin_mut!(stream);
        while let Some(Ok(event)) = stream.next().await {
            let (object, deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(error) => panic!("revisions of {kind} were missed: {error:?}"),
            };
            let revision = revision(kind, &object, deleted);
            from = revision.version;
            revisions.lock().expect("not poisoned").push(revision);
        }
    }
}

fn revision(kind: &'static str, object: &DynamicObject, deleted: bool) -> Revision {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let name = object.name_any();
    let label = |key: &str| object.labels().get(key).cloned();
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let manager = object.managed_fields().iter().max_by_key(|entry| entry.time.as_ref().map(|time| time.0));
    let fence = object.annotations().get(FENCE_ANNOTATION);
    let report = (kind == "ModelDeployment" && status.is_object())
        .then(|| (number(&status["revision"]), number(&status["fencingToken"]), status.clone()));
    Revision {
        kind,
        namespace: object.namespace().unwrap_or_default(),
        deployment: label(DEPLOYMENT_LABEL).unwrap_or_else(|| name.clone()),
        name,
        uid: object.uid().unwrap_or_default(),
        version: object.resource_version().and_then(|version| version.parse().ok()).expect("a resourceVersion"),
        fence: fence.and_then(|text| text.split_once('/')).and_then(|(t, s)| Some((t.parse().ok()?, s.parse().ok()?))),
        manager: manager.and_then(|entry| entry.manager.clone()).unwrap_or_default(),
        selects: match kind {
            "Service" => spec["selector"][REVISION_LABEL].as_str().map(str::to_owned),
            _ => label(REVISION_LABEL),
        },
        replicas: (spec["replicas"].as_i64().unwrap_or(1), number(&status["availableReplicas"])),
        status: report,
        ready: is_ready(status, object.metadata.generation),
        deleted,
    }
}

/// Ready, and of the newest generation.
pub fn is_ready(status: &Value, generation: Option<i64>) -> bool {
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    status["observedGeneration"].as_i64() == generation
        && conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True" && c["observedGeneration"].as_i64() == generation)
}

// ---------------------------------------------------------------- the workers

/// All accounts in this folder, one file a process.
pub fn accounts(folder: &Path) -> (Vec<Call>, Vec<Granted>) {
    let (mut calls, mut granted) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "account") {
            let process = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            let text = std::fs::read_to_string(&path).expect("an account");
            let (more, grants) = assemble(&parse(process, &text));
            calls.extend(more);
            granted.extend(grants);
        }
    }
    (calls, granted)
}

// ---------------------------------------------------------------- the registry

/// Everything, with the time of each row's commit.
pub async fn registry(sql: &mut Conn) -> Registry {
    Registry {
        grants: rows(sql, "SELECT resource, token, session, worker, kind, reason, us(former_end) AS former_end, us(at) AS at, committed(xmin) AS commit FROM palisade.grant_history", |r| Grant {
            resource: field(&r, "resource"),
            token: field(&r, "token"),
            session: field(&r, "session"),
            worker: field(&r, "worker"),
            kind: field(&r, "kind"),
            reason: field(&r, "reason"),
            former_end: field(&r, "former_end"),
            at: field(&r, "at"),
            commit: field(&r, "commit"),
        })
        .await,
        operations: rows(sql, "SELECT resource, token, sequence, kind, outcome, committed(xmin) AS commit FROM palisade.operation", |r| Operation {
            resource: field(&r, "resource"),
            token: field(&r, "token"),
            sequence: field(&r, "sequence"),
            kind: field(&r, "kind"),
            outcome: field(&r, "outcome"),
            commit: field(&r, "commit"),
        })
        .await,
        refusals: rows(sql, "SELECT reason FROM palisade.refusal", |r| Refusal { reason: field(&r, "reason") }).await,
        events: rows(sql, "SELECT id, resource, kind, data, committed(xmin) AS commit FROM palisade.event", |r| Event {
            id: field(&r, "id"),
            resource: field(&r, "resource"),
            kind: field(&r, "kind"),
            data: r["data"].clone(),
            commit: field(&r, "commit"),
        })
        .await,
        sessions: rows(sql, "SELECT id, worker, us(opened_at) AS opened_at, us(expires_at) AS expires_at, us(closed_at) AS closed_at FROM palisade.session", |r| Session {
            id: field(&r, "id"),
            worker: field(&r, "worker"),
            opened_at: field(&r, "opened_at"),
            expires_at: field(&r, "expires_at"),
            closed_at: field(&r, "closed_at"),
        })
        .await,
        aliases: rows(sql, "SELECT model, alias, version, guard FROM palisade.alias", |r| Alias {
            model: field(&r, "model"),
            alias: field(&r, "alias"),
            version: field(&r, "version"),
            guard: field(&r, "guard"),
        })
        .await,
        deployments: rows(sql, "SELECT * FROM palisade.deployment", |r| Deployment {
            resource: field(&r, "resource"),
            uid: field(&r, "uid"),
            rollout: field(&r, "rollout"),
            step: field(&r, "step"),
            serving_model: field(&r, "serving_model"),
            serving_version: field(&r, "serving_version"),
            serving_revision: field(&r, "serving_revision"),
            failure: field(&r, "failure_reason"),
        })
        .await,
        plans: rows(sql, "SELECT resource, uid, rollout, spec FROM palisade.plan", |r| Plan {
            resource: field(&r, "resource"),
            uid: field(&r, "uid"),
            rollout: field(&r, "rollout"),
            version: field(&r["spec"], "version"),
        })
        .await,
        queue: rows(sql, "SELECT resource FROM palisade.queue", |r| field(&r, "resource")).await,
        idle_in_transaction: sql
            .number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'")
            .await,
    }
}

async fn rows<T>(sql: &mut Conn, query: &str, make: impl Fn(Value) -> T) -> Vec<T> {
    sql.run(
        "CREATE OR REPLACE FUNCTION pg_temp.us(at timestamptz) RETURNS bigint LANGUAGE sql AS \
             'SELECT CASE WHEN isfinite(at) THEN (extract(epoch FROM at) * 1000000)::bigint END';
         CREATE OR REPLACE FUNCTION pg_temp.committed(x xid) RETURNS bigint LANGUAGE sql AS \
             'SELECT pg_temp.us(pg_xact_commit_timestamp(x))'",
    )
    .await;
    let query = query.replace("us(", "pg_temp.us(").replace("committed(", "pg_temp.committed(");
    let texts = sql.list(&format!("SELECT to_jsonb(t)::text FROM ({query}) AS t")).await;
    texts.iter().map(|text| make(serde_json::from_str(text).expect("JSON"))).collect()
}

fn field<T: DeserializeOwned>(row: &Value, name: &str) -> T {
    let value = row.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{name} of {row}: {error}"))
}

/// What to add to microseconds since boot to get the database's clock.
pub async fn offset(sql: &mut Conn, since_boot: u64) -> Micros {
    let wall = sql.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await;
    wall - (since_boot / 1000) as i64
}
