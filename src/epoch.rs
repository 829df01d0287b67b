//! Which epoch comes next: a compare-and-swap on a ConfigMap, because etcd remembers what Postgres may have lost.
//!
//! ```text
//! epoch_status() ─▶ next_step (pure) ◀─ ConfigMap palisade-epoch (number, incarnation)
//!                      │
//!                      └─▶ write the number, by resourceVersion ─▶ establish_epoch(number, incarnation)
//! ```
//!
//! Any controller replica does this, without a lease: there are no leases before there is an epoch. Two replicas at once are
//! told apart by the compare-and-swap; the loser reads again, and finds its work done. The number is written to the cluster
//! *before* the database knows it, so a number that was handed out is never forgotten by both.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::core::Request;
use kube::{Client, Resource, ResourceExt};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::crd::ModelDeployment;
use crate::failpoint;
use crate::http::Readiness;
use crate::lease::{Fence, Token};
use crate::manifests::names::{
    CONTROLLER_MANAGER, DEPLOYMENT_LABEL, EPOCH_KEY, EPOCH_OBJECT, FENCE_ANNOTATION, INCARNATION_KEY,
};
use crate::metrics::Metrics;
use crate::outcome::{NotApplied, Reason};
use crate::retry::{Backoff, around};
use crate::store::{CallError, EpochStatus, Store};

/// Key of the epoch object that says that the database has taken the number over. Until then a lower number in the
/// database is no loss: the server was restarted twice, and nobody was quick enough in between. From then on a database
/// of this incarnation without the number is another one: it was dropped and made anew, or restored, in a running server.
const TAKEN_OVER_KEY: &str = "establishedAt";
/// Epochs end here: a token is below 2⁵³.
const END: i64 = 1 << 21;
/// How often a replica looks whether the epoch is still the running database's.
const INTERVAL: Duration = Duration::from_secs(4);
/// How long one request to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The epoch object, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochObject {
    /// The number that was allocated last.
    pub number: i64,
    /// The incarnation of the database that it was allocated for.
    pub incarnation: String,
    /// Whether that database is known to have stored it.
    pub taken_over: bool,
}

/// What is to be done about the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Database and object agree on this number.
    Fine(i64),
    /// This number was allocated for the running incarnation, and the database does not have it yet.
    Establish(i64),
    /// The database has this number, and the object was lost or lags behind.
    Raise(i64),
    /// A number above this one, and above every one found in the cluster.
    Allocate(i64),
    /// The database has lost a number that it once had, on the same timeline: a restore, or a lost branch.
    Confirm {
        /// What the database has.
        stored: i64,
        /// What it had.
        allocated: i64,
    },
}

/// What comes next. `confirmed`: an operator knows that the database was restored, and wants to go on with it.
#[must_use]
pub fn next_step(status: &EpochStatus, object: Option<&EpochObject>, confirmed: bool) -> Step {
    let floor = status.floor();
    let established = status.number.filter(|_| status.established);
    let Some(object) = object else {
        return established.map_or(Step::Allocate(floor), Step::Raise);
    };
    let ours = object.incarnation == status.incarnation;
    match established {
        Some(number) if ours && number == object.number => return Step::Fine(number),
        Some(number) if number > object.number => return Step::Raise(number),
        _ if ours && !object.taken_over && object.number > floor => return Step::Establish(object.number),
        _ => {}
    }
    match status.number {
        Some(stored) if stored < object.number && object.taken_over && !confirmed && same_history(status, object) => {
            Step::Confirm { stored, allocated: object.number }
        }
        _ => Step::Allocate(floor.max(object.number)),
    }
}

/// Whether the running database continues the timeline of the one that the object names. A promoted standby and a
/// point-in-time restore begin a newer timeline, another server has another identifier: what they lack, they never had.
fn same_history(status: &EpochStatus, object: &EpochObject) -> bool {
    let mut parts = object.incarnation.split('/');
    let system = parts.next();
    let timeline: Option<i32> = parts.next().and_then(|text| text.parse().ok());
    system == status.incarnation.split('/').next() && timeline.is_none_or(|timeline| status.timeline <= timeline)
}

/// Why there is no epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The database does not answer, or refuses.
    #[error(transparent)]
    Database(#[from] CallError),
    /// The API server does not answer, or refuses.
    #[error("the epoch object {EPOCH_OBJECT} cannot be read or written: {0}")]
    Cluster(String),
    /// An operator must decide.
    #[error(
        "the database has epoch {stored}, but had {allocated} before, on the same timeline: it was restored to an older \
         state, or is a branch that was left. Is it the right one? Then start one controller with --adopt-epoch"
    )]
    LostBranch {
        /// What the database has.
        stored: i64,
        /// What it had.
        allocated: i64,
    },
    /// Somebody wrote something else into the object.
    #[error(
        "ConfigMap {EPOCH_OBJECT}: {0}. Delete it: the controller makes it anew, above every number that is in use"
    )]
    Damaged(String),
    /// There is no number left.
    #[error("{0} carries an epoch that leaves no room for another one: epochs end at {END}")]
    UsedUp(String),
    /// Others were faster, again and again.
    #[error("the epoch changed while it was being established; trying again")]
    Busy,
}

/// Allocates epochs for one database by one cluster.
#[derive(Clone)]
pub struct Allocator {
    store: Store,
    client: Client,
    system_namespace: String,
    watch_namespace: Option<String>,
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").field("system_namespace", &self.system_namespace).finish_non_exhaustive()
    }
}

impl Allocator {
    /// For the database behind `store`. Fences in use are looked for in `watch_namespace`, or everywhere.
    #[must_use]
    pub fn new(store: Store, client: Client, system_namespace: &str, watch_namespace: Option<&str>) -> Self {
        Self {
            store,
            client,
            system_namespace: system_namespace.to_owned(),
            watch_namespace: watch_namespace.map(str::to_owned),
        }
    }

    /// Sees to it that the running database has an epoch of its own, and that the cluster knows it. Answers its number.
    /// `confirmed`: an operator accepts that the database lost an epoch (a restore).
    ///
    /// # Errors
    /// [`EpochError`]; trying again is safe.
    pub async fn ensure(&self, confirmed: bool) -> Result<i64, EpochError> {
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_secs(1), 8);
        loop {
            if let Some(number) = self.attempt(confirmed).await? {
                return Ok(number);
            }
            let Some(wait) = tries.next_wait() else { return Err(EpochError::Busy) };
            tokio::time::sleep(wait).await;
        }
    }

    /// One round of reading and acting. `None`: something changed in between.
    async fn attempt(&self, confirmed: bool) -> Result<Option<i64>, EpochError> {
        // The object first: what it says was taken over, the database knows by the time that it is asked.
        let found = self.read().await?;
        let status = self.store.epoch_status().await?;
        let object = found.as_ref().map(EpochObject::try_from).transpose()?;
        let step = next_step(&status, object.as_ref(), confirmed);
        if !matches!(step, Step::Fine(_)) {
            tracing::info!(?step, stored = ?status.number, incarnation = status.incarnation, "epoch");
        }
        let number = match step {
            Step::Fine(number) if object.as_ref().is_some_and(|o| o.taken_over) => return Ok(Some(number)),
            Step::Fine(number) | Step::Establish(number) => number,
            Step::Confirm { stored, allocated } => return Err(EpochError::LostBranch { stored, allocated }),
            Step::Raise(number) => {
                // With the object gone, only the cluster's fences say whether another database was here before.
                let (used, by) = if found.is_none() { self.highest_epoch_in_use().await? } else { (0, String::new()) };
                if used > number { above(used, &by)? } else { number }
            }
            Step::Allocate(floor) => {
                let (used, by) = self.highest_epoch_in_use().await?;
                above(floor.max(used), &by)?
            }
        };
        let wanted = EpochObject { number, incarnation: status.incarnation.clone(), taken_over: false };
        let mut known = found;
        if object.as_ref().is_none_or(|o| (o.number, &o.incarnation) != (wanted.number, &wanted.incarnation)) {
            match self.write(known, &wanted).await? {
                Some(written) => known = Some(written),
                None => return Ok(None),
            }
        }
        let stored = status.established && status.number == Some(number);
        if !stored && !self.establish(&wanted).await? {
            return Ok(None);
        }
        // Only a mark for the judgement of a later restart: whether it stands is not waited for.
        let _ = self.write(known, &EpochObject { taken_over: true, ..wanted }).await;
        Ok(Some(number))
    }

    async fn establish(&self, object: &EpochObject) -> Result<bool, EpochError> {
        match self.store.establish_epoch(object.number, &object.incarnation).await?.applied() {
            Ok(_) => {
                tracing::info!(epoch = object.number, incarnation = object.incarnation, "epoch established");
                Ok(true)
            }
            // Restarted in between, or another replica was faster: look again.
            Err(NotApplied::Rejected(rejection))
                if matches!(rejection.reason, Reason::IncarnationChanged | Reason::EpochNotNewer) =>
            {
                Ok(false)
            }
            Err(error) => Err(EpochError::Cluster(format!("the database refuses number {}: {error}", object.number))),
        }
    }

    fn objects(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.system_namespace)
    }

    async fn read(&self) -> Result<Option<ConfigMap>, EpochError> {
        let objects = self.objects();
        call("epoch_get", objects.get_opt(EPOCH_OBJECT)).await?.map_err(|e| EpochError::Cluster(told(&e)))
    }

    /// Compare-and-swap: by the resourceVersion of what was read, or by creating it. `None`: somebody else was faster.
    async fn write(&self, known: Option<ConfigMap>, wanted: &EpochObject) -> Result<Option<ConfigMap>, EpochError> {
        let params = PostParams { field_manager: Some(CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let objects = self.objects();
        let exists = known.is_some();
        let mut object = known.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta { name: Some(EPOCH_OBJECT.to_owned()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        });
        object.metadata.managed_fields = None;
        object.data = Some(wanted.data());
        let written = if exists {
            call("epoch_put", objects.replace(EPOCH_OBJECT, &params, &object)).await?
        } else {
            call("epoch_put", objects.create(&params, &object)).await?
        };
        match written {
            Ok(object) => Ok(Some(object)),
            // 404: deleted since it was read.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(EpochError::Cluster(told(&error))),
        }
    }

    /// The highest epoch that any object's fence or any status carries, and whose it is: what a database before this one
    /// has handed out.
    async fn highest_epoch_in_use(&self) -> Result<(i64, String), EpochError> {
        let mut highest = (0, String::new());
        self.fences::<Deployment>(&mut highest).await?;
        self.fences::<Service>(&mut highest).await?;
        let url = ModelDeployment::url_path(&(), self.watch_namespace.as_deref());
        let mut params = ListParams::default().limit(500);
        loop {
            let request = Request::new(&url)
                .list(&params)
                .map_err(|e| EpochError::Cluster(format!("listing ModelDeployments: {e}")))?;
            let page: Outlines = match call("epoch_list", self.client.request(request)).await? {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(highest), // the CRD is not installed
                answer => answer.map_err(|e| EpochError::Cluster(told(&e)))?,
            };
            for Outline { metadata, status } in page.items {
                let Some(OutlineStatus { revision, fencing_token }) = status else { continue };
                let name = || format!("ModelDeployment {}/{}", metadata.namespace, metadata.name);
                raise(&mut highest, Token(revision.max(fencing_token)), name);
            }
            match page.metadata.r#continue {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(highest),
            }
        }
    }

    async fn fences<K>(&self, highest: &mut (i64, String)) -> Result<(), EpochError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = match &self.watch_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut params = ListParams::default().labels(DEPLOYMENT_LABEL).limit(500);
        loop {
            let page = call("epoch_list", api.list_metadata(&params)).await?;
            let page = page.map_err(|e| EpochError::Cluster(told(&e)))?;
            for object in &page.items {
                let fence = object.annotations().get(FENCE_ANNOTATION).and_then(|text| text.parse::<Fence>().ok());
                let name = || format!("{} {}", K::kind(&()), path(object.meta()));
                fence.into_iter().for_each(|fence| raise(highest, fence.token, name));
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(()),
            }
        }
    }
}

/// The next number above `highest`, which `by` carries.
fn above(highest: i64, by: &str) -> Result<i64, EpochError> {
    let next = highest + 1;
    if next < END { Ok(next) } else { Err(EpochError::UsedUp(by.to_owned())) }
}

fn raise(highest: &mut (i64, String), token: Token, name: impl Fn() -> String) {
    if token.epoch() > highest.0 {
        *highest = (token.epoch(), name());
    }
}

fn path(metadata: &ObjectMeta) -> String {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// One request, with an end.
async fn call<T>(name: &str, request: impl Future<Output = T>) -> Result<T, EpochError> {
    failpoint::before(name);
    let answer = tokio::time::timeout(CALL_TIMEOUT, request).await;
    failpoint::after(name);
    answer.map_err(|_| EpochError::Cluster(format!("no answer from the API server within {CALL_TIMEOUT:?}")))
}

/// The API server's own words, without the debug text that `kube::Error` adds.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl EpochObject {
    fn data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::from([
            (EPOCH_KEY.to_owned(), self.number.to_string()),
            (INCARNATION_KEY.to_owned(), self.incarnation.clone()),
        ]);
        if self.taken_over {
            data.insert(TAKEN_OVER_KEY.to_owned(), crate::clock::Clock::wall().strftime("%FT%TZ").to_string());
        }
        data
    }
}

impl TryFrom<&ConfigMap> for EpochObject {
    type Error = EpochError;

    fn try_from(object: &ConfigMap) -> Result<Self, EpochError> {
        let get = |key: &str| object.data.as_ref().and_then(|data| data.get(key));
        let text = get(EPOCH_KEY).map_or("", String::as_str);
        let number = text.parse().ok().filter(|n| (1..END).contains(n)).ok_or_else(|| {
            EpochError::Damaged(format!("data.{EPOCH_KEY} is {text:?}, and must be a number from 1 to {}", END - 1))
        })?;
        let incarnation = get(INCARNATION_KEY).filter(|name| !name.is_empty()).cloned().ok_or_else(|| {
            EpochError::Damaged(format!("data.{INCARNATION_KEY} is missing: it names the database's incarnation"))
        })?;
        Ok(Self { number, incarnation, taken_over: get(TAKEN_OVER_KEY).is_some() })
    }
}

/// A list of ModelDeployments, read only as far as needed: a spec that nobody can read does not matter here.
#[derive(Deserialize)]
struct Outlines {
    #[serde(default)]
    metadata: OutlinesMeta,
    #[serde(default)]
    items: Vec<Outline>,
}

#[derive(Default, Deserialize)]
struct OutlinesMeta {
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    metadata: OutlineName,
    status: Option<OutlineStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OutlineName {
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OutlineStatus {
    revision: i64,
    fencing_token: i64,
}

/// Who is told about the epoch, and who asks for it.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Its reason `epoch` says what is wrong.
    pub readiness: Readiness,
    /// Number, and whether it is established.
    pub metrics: Arc<Metrics>,
    /// Somebody was told `epoch_not_established`: look now.
    pub hint: Arc<Notify>,
    /// Told each time an operator is needed, once a message.
    pub alarm: tokio::sync::mpsc::Sender<String>,
    /// An operator confirmed that the database lost an epoch. Used once: the next loss is another one.
    pub adopt: bool,
}

impl Allocator {
    /// Keeps the epoch established until `stop`: looks every few seconds, and at once on a hint.
    pub async fn keep(self, keeping: Keeping, stop: CancellationToken) {
        let Keeping { readiness, metrics, hint, alarm, mut adopt } = keeping;
        let mut said = String::new();
        loop {
            let ensured = tokio::select! {
                () = stop.cancelled() => return,
                ensured = self.ensure(adopt) => ensured,
            };
            match ensured {
                Ok(number) => {
                    (adopt, said) = (false, String::new());
                    metrics.epoch(Some(number), true);
                    readiness.ready("epoch");
                }
                Err(error) => {
                    metrics.epoch(None, false);
                    let message = error.to_string();
                    readiness.not_ready("epoch", &message);
                    if message != said {
                        tracing::error!("no epoch: {message}");
                        if !matches!(error, EpochError::Database(_) | EpochError::Busy) {
                            // A full channel holds an alarm already.
                            let _ = alarm.try_send(message.clone());
                        }
                        said = message;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = hint.notified() => tokio::time::sleep(around(Duration::from_millis(50))).await,
                () = tokio::time::sleep(around(INTERVAL)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "77/1/100/200";

    fn status(number: Option<i64>, established: bool) -> EpochStatus {
        EpochStatus {
            number,
            established,
            incarnation: RUNNING.into(),
            established_for: None,
            timeline: 1,
            established_timeline: None,
            highest_token: number.unwrap_or(0) * Token::PER_EPOCH,
        }
    }

    fn object(number: i64, incarnation: &str) -> EpochObject {
        EpochObject { number, incarnation: incarnation.into(), taken_over: true }
    }

    #[test]
    fn what_comes_next_follows_from_database_and_object() {
        let before = "77/1/50/60"; // the same server, before its restart
        let other = "99/1/1/1"; // another server
        let earlier_timeline = "77/0/1/1"; // before this one was promoted
        let not_taken = |number, incarnation| EpochObject { taken_over: false, ..object(number, incarnation) };
        for (what, status, object, step) in [
            ("both agree", status(Some(3), true), Some(object(3, RUNNING)), Step::Fine(3)),
            ("a fresh database, a fresh cluster", status(None, false), None, Step::Allocate(0)),
            (
                "a fresh database beside an older one's object",
                status(None, false),
                Some(object(9, other)),
                Step::Allocate(9),
            ),
            ("a fresh database of the same server", status(None, false), Some(object(9, before)), Step::Allocate(9)),
            ("restarted", status(Some(3), false), Some(object(3, before)), Step::Allocate(3)),
            ("allocated, not established", status(Some(3), false), Some(not_taken(4, RUNNING)), Step::Establish(4)),
            (
                "dropped and made anew in a running server",
                status(None, false),
                Some(object(4, RUNNING)),
                Step::Allocate(4),
            ),
            (
                "restored in a running server",
                status(Some(3), false),
                Some(object(4, RUNNING)),
                Step::Confirm { stored: 3, allocated: 4 },
            ),
            ("the object is gone", status(Some(3), true), None, Step::Raise(3)),
            ("the object lags", status(Some(3), true), Some(object(2, before)), Step::Raise(3)),
            ("promoted with a lag", status(Some(2), false), Some(object(3, earlier_timeline)), Step::Allocate(3)),
            ("restored", status(Some(2), false), Some(object(3, before)), Step::Confirm { stored: 2, allocated: 3 }),
            ("restarted twice", status(Some(3), false), Some(not_taken(4, before)), Step::Allocate(4)),
            ("established by hand, below the object", status(Some(1), true), Some(object(5, other)), Step::Allocate(5)),
            ("one number for two databases", status(Some(5), true), Some(object(5, other)), Step::Allocate(5)),
            ("the object was put back by hand", status(Some(5), false), Some(object(3, RUNNING)), Step::Allocate(5)),
        ] {
            assert_eq!(next_step(&status, object.as_ref(), false), step, "{what}");
        }
    }

    #[test]
    fn an_operators_word_turns_a_restore_into_a_new_epoch() {
        let object = object(3, "77/1/50/60");
        assert_eq!(next_step(&status(Some(2), false), Some(&object), true), Step::Allocate(3));
    }

    #[test]
    fn a_lease_that_carries_a_higher_epoch_than_the_row_counts() {
        let status = EpochStatus { highest_token: 8 * Token::PER_EPOCH + 1, ..status(Some(3), false) };
        assert_eq!(next_step(&status, Some(&object(3, "77/1/50/60")), false), Step::Allocate(8));
    }

    #[test]
    fn a_damaged_object_is_refused_with_what_to_do() {
        for (epoch, incarnation) in [("", "x"), ("abc", "x"), ("0", "x"), ("2097152", "x"), ("-1", "x"), ("3", "")] {
            let data = [(EPOCH_KEY, epoch), (INCARNATION_KEY, incarnation)];
            let data = data.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let object = ConfigMap { data: Some(data), ..ConfigMap::default() };
            let error = EpochObject::try_from(&object).expect_err(epoch).to_string();
            assert!(error.contains("Delete it"), "{error}");
        }
    }

    #[test]
    fn the_last_epoch_names_who_used_the_numbers_up() {
        assert!(above(END - 2, "x").is_ok());
        let error = above(END - 1, "Service team/churn").expect_err("no number is left").to_string();
        assert!(error.contains("Service team/churn"), "{error}");
    }
}
