//! Fenced writes to the cluster's objects. The API server's admission refuses every one that is not strictly newer than
//! the object's fence, inside its own compare-and-swap; here each call becomes a fact.
//!
//! Nothing is decided from an error's text, but for `fences`. Where a call was refused or went silent, the
//! object's fence is read: equal to ours, it was applied; of a newer token, the lease is lost; older, it was not applied
//! (yet), and the same fence may be sent again.

use std::collections::HashSet;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::failpoint;
use crate::lease::{Fence, Lease, LeaseError};
use crate::manifests;
use crate::manifests::names::{
    DEPLOYMENT_LABEL, FENCE_ANNOTATION, FENCE_REFUSAL, LABEL_REFUSAL, RETIRED_ANNOTATION, REVISION_LABEL, SEAL_MANAGER,
    WORKER_MANAGER,
};
use crate::metrics::Metrics;
use crate::outcome::{Outcome, Reason, Rejection};
use crate::plan::Plan;
use crate::retry::Backoff;
use crate::worker::objects;

/// How long one call may take, if the lease lasts that long.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an object was not written, or not read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The object carries a newer token, or the lease is over: stop.
    #[error("the lease is over")]
    Lost,
    /// The object carries a fence of a later epoch. Either the lease is over, or nobody was granted that fence.
    #[error("{name} carries the fence {fence}, of epoch {}, which the database never gave out: palisade epoch advance", .fence.token.epoch())]
    Ahead {
        /// The object.
        name: String,
        /// What it carries.
        fence: Fence,
    },
    /// The object is not the one that was expected: it was deleted, or made anew, or changed in between.
    #[error("{0} is not there any more, or not the one that was written")]
    Changed(String),
    /// The API server says no, and the fence is not why.
    #[error("the API server refuses {name}: {message}")]
    Refused {
        /// The object.
        name: String,
        /// The API server's words; they name the field.
        message: String,
    },
    /// Nothing in the cluster would refuse a stale write.
    #[error(
        "the cluster does not fence: no admission policy …-fence is in force in namespace {0}. Nothing is written until it is: helm upgrade, or palisade crd --with-policy | kubectl apply --server-side -f -"
    )]
    NotFenced(String),
    /// Policies are there, and do not hold this worker to the fence.
    #[error(
        "the cluster does not fence this worker: no admission policy …-fence-accounts names its account. Nothing is written until one does: run it as the release's worker account; or name all workers' accounts, with the options of before: palisade crd --with-policy --worker-account NAMESPACE:NAME … | kubectl apply --server-side -f -"
    )]
    NotNamed,
    /// What was to show that it fences says nothing about that.
    #[error(
        "nothing is written, for it cannot be told whether the cluster fences: the dry run that must be refused for its fence is refused otherwise: {0}"
    )]
    Doubtful(String),
    /// No answer, or not now. What was sent is closed by the next write, which carries a greater fence.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
    /// The lease could not be used.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// The kinds of object that a worker writes.
pub(crate) trait Fenced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl Fenced for Deployment {}
impl Fenced for Service {}

/// The cluster, as a worker may touch it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    metrics: Arc<Metrics>,
    /// The namespaces in which it has shown that it fences.
    fenced: Arc<Mutex<HashSet<String>>>,
}

/// What a write is made of, besides its fence.
enum Change {
    Apply(Value),
    Merge(Value),
}

impl Cluster {
    /// The cluster behind this client, which must not repeat writes by itself: see [`crate::cluster::client`].
    #[must_use]
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        Self { client, metrics, fenced: Arc::default() }
    }

    /// The same for another session: one that begins after a long pause asks anew whether it is fenced.
    pub(crate) fn anew(&self) -> Self {
        Self::new(self.client.clone(), Arc::clone(&self.metrics))
    }

    pub(crate) fn api<K: Fenced>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// All objects of a deployment.
    pub(crate) async fn list<K: Fenced>(
        &self,
        lease: &Lease,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<K>, ClusterError> {
        let api = self.api::<K>(namespace);
        let params = ListParams::default().labels(&format!("{DEPLOYMENT_LABEL}={name}"));
        self.read(lease, "list", || api.list(&params)).await.map(|list| list.items)
    }

    pub(crate) async fn get<K: Fenced>(
        &self,
        lease: &Lease,
        namespace: &str,
        name: &str,
    ) -> Result<Option<K>, ClusterError> {
        let api = self.api::<K>(namespace);
        self.read(lease, "get", || api.get_opt(name)).await
    }

    pub(crate) fn pod_api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Some pods of a revision.
    pub(crate) async fn pods(&self, lease: &Lease, namespace: &str, selector: &str) -> Result<Vec<Pod>, ClusterError> {
        let api = self.pod_api(namespace);
        let params = ListParams::default().labels(selector).limit(20);
        self.read(lease, "list_pods", || api.list(&params)).await.map(|list| list.items)
    }

    /// Whether the API server refuses what it must, asked by dry runs before the first write in a namespace: that any fence is
    /// looked at there, and that this account may not do without. A namespace that is going or gone takes nothing new,
    /// and what is left in it is no worker's any more: [`ClusterError::Changed`].
    async fn fences(&self, lease: &Lease, namespace: &str) -> Result<(), ClusterError> {
        if self.fenced.lock().await.contains(namespace) {
            return Ok(());
        }
        let malformed = manifests::question(true, "none");
        let unlabelled = manifests::question(false, "none");
        // Writes that begin together ask side by side: one that waited for another's answer would report nothing meanwhile.
        let (fenced, named) = tokio::join!(
            self.refuses(lease, namespace, malformed, FENCE_REFUSAL, ClusterError::NotFenced(namespace.to_owned())),
            self.refuses(lease, namespace, unlabelled, LABEL_REFUSAL, ClusterError::NotNamed),
        );
        fenced.and(named)?;
        tracing::debug!(namespace, "the cluster fences");
        self.fenced.lock().await.insert(namespace.to_owned());
        Ok(())
    }

    /// Whether the API server refuses this object in these words: validation and other policies refuse by the same codes,
    /// and any of them may be the first to speak.
    async fn refuses(
        &self,
        lease: &Lease,
        namespace: &str,
        object: Service,
        words: &str,
        taken: ClusterError,
    ) -> Result<(), ClusterError> {
        let api = self.api::<Service>(namespace);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let mut tries = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), 6);
        loop {
            let refusal = match self.call(lease, "fences", || api.create(&dry_run, &object)).await? {
                Ok(_) => return Err(taken),
                Err(Silence::Api(status)) if status.message.contains(words) => return Ok(()),
                Err(refusal) => refusal,
            };
            if refusal.is_not_found() || refusal.namespace_ends() {
                return Err(ClusterError::Changed(format!("namespace {namespace}")));
            }
            // By 422 a policy refuses that gives no other reason, or that the API server has not made out yet.
            let again = refusal.may_pass() || matches!(&refusal, Silence::Api(status) if status.code == 422);
            let Some(wait) = tries.next_wait().filter(|_| again) else {
                return Err(match refusal.into_error("the question whether it fences") {
                    ClusterError::Refused { message, .. } => ClusterError::Doubtful(message),
                    error => error,
                });
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// A server-side apply of the whole object.
    /// With `uid`, one that was deleted is not made anew ([`ClusterError::Changed`] instead).
    pub(crate) async fn apply<K: Fenced>(
        &self,
        lease: &Lease,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        object: impl Fn(Fence) -> Value + Send + Sync,
    ) -> Result<K, ClusterError> {
        self.write(lease, "apply", namespace, name, uid.map(str::to_owned), |fence| Change::Apply(object(fence))).await
    }

    /// Raises an object's fence and changes nothing else: from here on, whatever an earlier owner sends is refused. A merge
    /// patch under a field manager of its own, because an apply would drop the fields that it does not mention.
    pub(crate) async fn seal<K: Fenced>(&self, lease: &Lease, object: &K) -> Result<(), ClusterError> {
        let namespace = object.namespace().unwrap_or_default();
        let sealed: Result<K, _> =
            self.write(lease, "seal", &namespace, &object.name_any(), object.uid(), |_| Change::Merge(json!({}))).await;
        match sealed {
            // Gone in between: there is nothing left to protect.
            Ok(_) | Err(ClusterError::Changed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Points a Service at a revision's pods.
    pub(crate) async fn select(&self, lease: &Lease, service: &Service, revision: &str) -> Result<(), ClusterError> {
        let namespace = service.namespace().unwrap_or_default();
        let change = |_| Change::Merge(json!({ "spec": { "selector": { REVISION_LABEL: revision } } }));
        let _: Service = self.write(lease, "select", &namespace, &service.name_any(), service.uid(), change).await?;
        Ok(())
    }

    /// Changes the number of a Deployment's pods.
    pub(crate) async fn scale(
        &self,
        lease: &Lease,
        deployment: &Deployment,
        replicas: i32,
    ) -> Result<(), ClusterError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let change = |_| Change::Merge(json!({ "spec": { "replicas": replicas } }));
        let _: Deployment =
            self.write(lease, "scale", &namespace, &deployment.name_any(), deployment.uid(), change).await?;
        Ok(())
    }

    /// Makes an object belong to its ModelDeployment, or not, as the plan says; only where it is otherwise.
    pub(crate) async fn own<K: Fenced>(&self, lease: &Lease, object: &K, plan: &Plan) -> Result<(), ClusterError> {
        let uid = plan.uid.to_string();
        let owned = object.owner_references().iter().any(|owner| owner.uid == uid);
        if owned == plan.spec.owned {
            return Ok(());
        }
        let mut owners: Vec<Value> =
            object.owner_references().iter().filter(|o| o.uid != uid).map(|o| json!(o)).collect();
        if plan.spec.owned {
            owners.push(objects::owner(&plan.spec, &uid));
        }
        let change = |_| Change::Merge(json!({ "metadata": { "ownerReferences": owners } }));
        let namespace = object.namespace().unwrap_or_default();
        match self.write::<K>(lease, "own", &namespace, &object.name_any(), object.uid(), change).await {
            Ok(_) | Err(ClusterError::Changed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a Deployment: marks it by a fenced write, then deletes exactly what was marked.
    pub(crate) async fn retire(&self, lease: &Lease, deployment: &Deployment) -> Result<(), ClusterError> {
        let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
        let mark = |fence: Fence| {
            Change::Merge(
                json!({ "metadata": { "annotations": { RETIRED_ANNOTATION: fence.to_string() } }, "spec": { "replicas": 0 } }),
            )
        };
        let mut marked: Deployment = match self.write(lease, "mark", &namespace, &name, deployment.uid(), mark).await {
            Err(ClusterError::Changed(_)) => return Ok(()), // gone already
            marked => marked?,
        };
        let ours = marked.annotations().get(RETIRED_ANNOTATION).cloned();
        let api = self.api::<Deployment>(&namespace);
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_secs(1), 8);
        loop {
            let preconditions = Preconditions { uid: marked.uid(), resource_version: marked.resource_version() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            let answer = self.call(lease, "delete", || api.delete(&name, &params)).await;
            match answer? {
                Ok(_) => return Ok(()),
                Err(Silence::Api(status)) if status.code == 404 => return Ok(()),
                Err(Silence::Api(status)) if !matches!(status.code, 409 | 429 | 500..) => {
                    return Err(ClusterError::Refused { name, message: status.message });
                }
                // Its status changed in between (409), or nobody knows: look, and go on only if the mark is still ours.
                Err(error) => {
                    let Some(wait) = tries.next_wait() else {
                        return Err(ClusterError::Unavailable(error.to_string()));
                    };
                    tokio::time::sleep(wait).await;
                }
            }
            match self.get::<Deployment>(lease, &namespace, &name).await? {
                Some(now)
                    if now.uid() == marked.uid() && now.annotations().get(RETIRED_ANNOTATION) == ours.as_ref() =>
                {
                    marked = now
                }
                // Deleted, made anew, or put to use again by a newer owner: not ours to delete.
                _ => return Ok(()),
            }
        }
    }

    /// One fenced write, sent until it is a fact. With `uid`, only that object is changed.
    async fn write<K: Fenced>(
        &self,
        lease: &Lease,
        name_of_call: &'static str,
        namespace: &str,
        name: &str,
        uid: Option<String>,
        change: impl Fn(Fence) -> Change + Send,
    ) -> Result<K, ClusterError> {
        // Without policies even a seal would be a write that nobody could refuse.
        self.fences(lease, namespace).await?;
        let fence = lease.next_fence().await?;
        let api = self.api::<K>(namespace);
        let (params, patch) = patch(change(fence), fence, uid.clone());
        let account = |what: std::fmt::Arguments<'_>| {
            let call = format_args!("{name_of_call} {} {namespace}/{name}", K::kind(&()));
            failpoint::account(what, lease.resource(), fence, call);
        };
        account(format_args!("invoke"));
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_secs(2), 8);
        let result = loop {
            let refusal = match self.call(lease, name_of_call, || api.patch(name, &params, &patch)).await? {
                Ok(object) => break Ok(object),
                Err(refusal) => refusal,
            };
            match &refusal {
                Silence::Api(status) => account(format_args!("answer:{}", status.code)),
                Silence::None(_) => account(format_args!("silent")),
            }
            match self.settle(lease, &api, name, fence).await? {
                Settled::Applied(object) => break Ok(*object),
                Settled::Newer(found) if found.token.epoch() > fence.token.epoch() => {
                    break Err(ClusterError::Ahead { name: format!("{} {name}", K::kind(&())), fence: found });
                }
                Settled::Newer(_) => break Err(ClusterError::Lost),
                // Deleted, or made anew: this write was meant for another object.
                Settled::Older(found) if (uid.is_some() || refusal.is_not_found()) && found != uid => {
                    break Err(ClusterError::Changed(name.to_owned()));
                }
                Settled::Older(_) => {
                    let wait = tries.next_wait().filter(|_| refusal.may_pass());
                    let Some(wait) = wait else { break Err(refusal.into_error(name)) };
                    tokio::time::sleep(wait).await;
                }
            }
        };
        let ended = match &result {
            Ok(_) => "applied",
            Err(ClusterError::Lost | ClusterError::Ahead { .. }) => "rejected:stale",
            Err(ClusterError::Unavailable(_)) => "unknown",
            Err(_) => "failed",
        };
        account(format_args!("{ended}"));
        self.metrics.cluster_wrote(name_of_call, &outcome_of(&result));
        if matches!(result, Err(ClusterError::Lost | ClusterError::Ahead { .. })) {
            tracing::warn!(resource = lease.resource(), %fence, object = name, call = name_of_call, "rejected: the object carries a newer token");
            if matches!(result, Err(ClusterError::Lost)) {
                lease.give_up();
            }
        } else if result.is_ok() {
            tracing::debug!(resource = lease.resource(), %fence, object = name, call = name_of_call, "wrote");
        }
        result
    }

    /// Reads the object's fence: what became of ours?
    async fn settle<K: Fenced>(
        &self,
        lease: &Lease,
        api: &Api<K>,
        name: &str,
        fence: Fence,
    ) -> Result<Settled<K>, ClusterError> {
        let Some(object) = self.read(lease, "settle", || api.get_opt(name)).await? else {
            return Ok(Settled::Older(None));
        };
        let found: Option<Fence> = object.annotations().get(FENCE_ANNOTATION).and_then(|text| text.parse().ok());
        Ok(match found {
            Some(found) if found == fence => Settled::Applied(Box::new(object)),
            Some(found) if found > fence => Settled::Newer(found),
            _ => Settled::Older(object.uid()),
        })
    }

    /// A read, repeated while the lease lasts.
    async fn read<T, F: Future<Output = kube::Result<T>> + Send>(
        &self,
        lease: &Lease,
        name: &'static str,
        call: impl Fn() -> F + Send,
    ) -> Result<T, ClusterError> {
        let mut tries = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), 6);
        loop {
            let refusal = match self.call(lease, name, &call).await? {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            let Some(wait) = tries.next_wait().filter(|_| refusal.may_pass()) else {
                return Err(refusal.into_error(name));
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One request, no longer than the lease lasts.
    async fn call<T, F: Future<Output = kube::Result<T>>>(
        &self,
        lease: &Lease,
        name: &str,
        call: impl FnOnce() -> F,
    ) -> Result<Result<T, Silence>, ClusterError> {
        let budget = lease.check()?.min(CALL_TIMEOUT);
        failpoint::before(name);
        let answer = tokio::time::timeout(budget, call()).await;
        failpoint::after(name);
        if matches!(answer, Ok(Ok(_) | Err(kube::Error::Api(_)))) {
            lease.note_work();
        }
        let why = match answer {
            Ok(Ok(answer)) => return Ok(Ok(answer)),
            Ok(Err(kube::Error::Api(status))) => return Ok(Err(Silence::Api(status))),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {budget:?}"),
        };
        tracing::debug!(resource = lease.resource(), call = name, "silence: {why}");
        Ok(Err(Silence::None(why)))
    }
}

/// What an object's fence says of ours.
enum Settled<K> {
    /// It is ours.
    Applied(Box<K>),
    /// It is of a later write.
    Newer(Fence),
    /// It is of an earlier write, on the object with this UID; `None`: there is no object.
    Older(Option<String>),
}

/// A call without the answer that was hoped for.
#[derive(Clone, Debug)]
enum Silence {
    /// The API server said something else.
    Api(Box<kube::core::Status>),
    /// Nobody said anything.
    None(String),
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Api(status) => f.write_str(&status.message),
            Self::None(why) => f.write_str(why),
        }
    }
}

impl Silence {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(status) if status.code == 404)
    }

    fn namespace_ends(&self) -> bool {
        let Self::Api(status) = self else { return false };
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        causes.any(|cause| cause.reason == "NamespaceTerminating")
    }

    /// Whether the same call may work in a moment. A policy's refusal (403) is among them: its parameter, the epoch, reaches
    /// the API server's admission some milliseconds after it was changed. So is a conflict (409) of writes at the same time.
    fn may_pass(&self) -> bool {
        match self {
            Self::Api(status) => matches!(status.code, 403 | 408 | 409 | 429 | 500..),
            Self::None(_) => true,
        }
    }

    fn into_error(self, name: &str) -> ClusterError {
        match self {
            Self::Api(status) if !matches!(status.code, 408 | 429 | 500..) => {
                ClusterError::Refused { name: name.to_owned(), message: status.message }
            }
            other => ClusterError::Unavailable(other.to_string()),
        }
    }
}

fn patch(change: Change, fence: Fence, uid: Option<String>) -> (PatchParams, Patch<Value>) {
    let name_uid = |object: &mut Value| {
        if let Some(uid) = uid {
            object["metadata"]["uid"] = uid.into();
        }
    };
    match change {
        Change::Apply(mut object) => {
            name_uid(&mut object);
            (PatchParams::apply(WORKER_MANAGER).force(), Patch::Apply(object))
        }
        Change::Merge(mut object) => {
            object["metadata"]["annotations"][FENCE_ANNOTATION] = fence.to_string().into();
            name_uid(&mut object);
            (
                PatchParams { field_manager: Some(SEAL_MANAGER.to_owned()), ..PatchParams::default() },
                Patch::Merge(object),
            )
        }
    }
}

/// For the metrics, in the words of every other fenced write.
fn outcome_of<K>(result: &Result<K, ClusterError>) -> Outcome<()> {
    let rejected = |reason| Outcome::Rejected(Rejection { reason, current: None, detail: None });
    match result {
        Ok(_) => Outcome::Applied(()),
        Err(ClusterError::Lost | ClusterError::Ahead { .. }) => rejected(Reason::Stale),
        Err(error @ (ClusterError::Unavailable(_) | ClusterError::Lease(_))) => Outcome::Unknown(error.to_string()),
        Err(_) => rejected(Reason::Other),
    }
}
