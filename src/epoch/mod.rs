//! Which epoch comes next: a compare-and-swap on a ConfigMap, because etcd remembers what Postgres may have lost.
//!
//! ```text
//! epoch_status() ─▶ next_step (pure) ◀─ ConfigMap palisade-epoch (number, incarnation)
//!                      │
//!                      └─▶ write the number, by resourceVersion ─▶ establish_epoch(number, incarnation)
//!
//! step.rs   what comes next (pure)          used.rs   epochs that objects carry
//! keep.rs   a controller's loop             view.rs   a look that changes nothing, and what a person must do
//! ```
//!
//! Any controller replica does this, without a lease: there are no leases before there is an epoch. Two replicas at once are
//! told apart by the compare-and-swap; the loser reads again, and finds its work done. The number is written to the cluster
//! *before* the database knows it, so a number that was handed out is never forgotten by both.
//!
//! Two databases at once, such as two promoted standbys, or a promoted one and the old primary: the object names one of
//! them. The other one is not given the epoch back by itself, and is told to refuse its clients.

mod keep;
mod step;
mod used;
mod view;

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::failpoint;
use crate::manifests::names::{CONTROLLER_MANAGER, EPOCH_OBJECT};
use crate::outcome::{NotApplied, Reason};
use crate::retry::Backoff;
use crate::store::{CallError, EpochStatus, Store};

pub use keep::Keeping;
use step::{END, above};
pub use step::{EpochObject, Step, next_step};
pub use used::InUse;
pub use view::{Attention, Cause, EpochView};

/// How long one request to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often [`Allocator::ensure`] reads and acts, at the most.
const TRIES: u32 = 10;
/// In how many of them it yields to an incarnation that was given a number and may be about to take it over.
const YIELDING: u32 = 7;

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
        "the database {}, and the cluster has given epoch {allocated} to another one ({incarnation}): this one was restored \
         to an older state, or is a branch that was left, or is another database",
        if *stored == 0 { "has no epoch".to_owned() } else { format!("has epoch {stored}") }
    )]
    LostBranch {
        /// What the database has; 0: nothing.
        stored: i64,
        /// What it lacks.
        allocated: i64,
        /// Who has it.
        incarnation: String,
    },
    /// Somebody wrote something else into the object.
    #[error("ConfigMap {EPOCH_OBJECT}: {0}")]
    Damaged(String),
    /// There is no number left.
    #[error("{0} carries an epoch that leaves no room for another one: epochs end at {END}")]
    UsedUp(String),
    /// Others were faster, again and again.
    #[error("the epoch changed while it was being established; trying again")]
    Busy,
}

/// What an operator wants besides an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Nothing.
    None,
    /// To go on with this database, though it lacks an epoch.
    Adopt,
    /// A number above everything that is in use, though the present one is fine.
    Advance,
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
    ///
    /// # Errors
    /// [`EpochError`]; trying again is safe.
    pub async fn ensure(&self) -> Result<i64, EpochError> {
        self.fulfil(Wish::None).await
    }

    /// The same, also for a database that lacks an epoch which another one took over: an operator knows that it is the
    /// right one. The other one's clients are refused from then on.
    ///
    /// # Errors
    /// [`EpochError`]; trying again is safe.
    pub async fn adopt(&self) -> Result<i64, EpochError> {
        self.fulfil(Wish::Adopt).await
    }

    /// Establishes a new epoch, above every one that is in use anywhere. All sessions are closed.
    ///
    /// # Errors
    /// [`EpochError`]; trying again is safe, and may skip a number.
    pub async fn advance(&self) -> Result<i64, EpochError> {
        self.fulfil(Wish::Advance).await
    }

    async fn fulfil(&self, wish: Wish) -> Result<i64, EpochError> {
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_secs(1), TRIES);
        for attempt in 0.. {
            if let Some(number) = self.attempt(wish, attempt < YIELDING).await? {
                return Ok(number);
            }
            let Some(wait) = tries.next_wait() else { break };
            tokio::time::sleep(wait).await;
        }
        Err(EpochError::Busy)
    }

    /// One round of reading and acting. `None`: something changed in between, or is about to.
    async fn attempt(&self, wish: Wish, yielding: bool) -> Result<Option<i64>, EpochError> {
        // The object first: what it says was taken over, the database knows by the time that it is asked.
        let found = self.read().await?;
        let status = self.store.epoch_status().await?;
        let object = found.as_ref().map(EpochObject::try_from).transpose()?;
        let step = next_step(&status, object.as_ref(), wish == Wish::Adopt);
        // Who is refused is told why, and once.
        if !matches!(step, Step::Fine { .. } | Step::Ask { .. }) {
            tracing::info!(?step, stored = ?status.number, incarnation = status.incarnation, "epoch");
        }
        let number = match step {
            Step::Ask { stored, allocated } => return Err(self.refuse(&status, object, stored, allocated).await),
            Step::Yield { .. } if yielding => return Ok(None),
            // Two databases live, and the other one is slow: this one does not take the number from it, turn by turn.
            Step::Yield { .. } if status.established && wish == Wish::None => return Err(EpochError::Busy),
            _ if wish == Wish::Advance => self.unused(&status, object.as_ref()).await?,
            Step::Fine { number } if object.as_ref().is_some_and(|o| o.taken_over) => return Ok(Some(number)),
            Step::Fine { number } | Step::Establish { number } => number,
            // With the object gone, only the cluster's fences say whether another database was here before.
            Step::Raise { number } if found.is_none() && self.in_use().await?.number <= number => number,
            Step::Raise { number } if found.is_some() => number,
            Step::Raise { .. } | Step::Allocate { .. } | Step::Yield { .. } => {
                self.unused(&status, object.as_ref()).await?
            }
        };
        self.give(found, object, &status, number).await
    }

    /// A number above everything that is known.
    async fn unused(&self, status: &EpochStatus, object: Option<&EpochObject>) -> Result<i64, EpochError> {
        let used = self.in_use().await?;
        let object = object.map_or(0, |object| object.number);
        let (highest, by) = [
            (used.number, used.by.as_str()),
            (object, "the ConfigMap palisade-epoch"),
            (status.floor(), "a lease in the database"),
        ]
        .into_iter()
        .max_by_key(|(number, _)| *number)
        .unwrap_or_default();
        above(highest, by)
    }

    /// Writes the number to the cluster, then to the database.
    async fn give(
        &self,
        found: Option<ConfigMap>,
        object: Option<EpochObject>,
        status: &EpochStatus,
        number: i64,
    ) -> Result<Option<i64>, EpochError> {
        let wanted = EpochObject { number, incarnation: status.incarnation.clone(), taken_over: false };
        let mut known = found;
        if object.is_none_or(|o| (o.number, &o.incarnation) != (wanted.number, &wanted.incarnation)) {
            match self.write(known, &wanted).await? {
                Some(written) => known = Some(written),
                None => return Ok(None),
            }
        }
        let stored = status.established && status.number == Some(number);
        if !stored && !self.establish(&wanted).await? {
            return Ok(None);
        }
        match self.write(known, &EpochObject { taken_over: true, ..wanted }).await {
            // Another database may have been given the next number before this one had its own.
            Ok(None) => Ok(None),
            // Only a mark for the judgement of a later restart.
            Ok(Some(_)) | Err(_) => Ok(Some(number)),
        }
    }

    /// The cluster's epoch went to another database. This one's clients are told so, instead of going on beside it.
    async fn refuse(
        &self,
        status: &EpochStatus,
        object: Option<EpochObject>,
        stored: i64,
        allocated: i64,
    ) -> EpochError {
        if status.established {
            match self.store.withdraw_epoch(stored, &status.incarnation).await {
                Ok(_) => {
                    tracing::warn!(epoch = stored, allocated, "epoch withdrawn: another database has the next one")
                }
                // The next look tries again.
                Err(error) => return error.into(),
            }
        }
        let incarnation = object.map(|object| object.incarnation).unwrap_or_default();
        EpochError::LostBranch { stored, allocated, incarnation }
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
