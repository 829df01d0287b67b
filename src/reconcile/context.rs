//! What the parts of a replica share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::reflector::{self, ObjectRef, store::Writer};
use tokio::sync::{Notify, RwLock, mpsc, watch};

use super::drift::Index;
use super::lead::Tenure;
pub use super::outline::Meta;
use super::outline::Thin;
use super::status::Standing;
use super::upkeep::Retention;
use super::validate::Problem;
use crate::clock::{Clock, Moment};
use crate::epoch::{Attention, Cause};
use crate::http::Readiness;
use crate::metrics::Metrics;
use crate::store::Store;

/// A Deployment, as far as it is watched.
pub(super) type ThinDeployment = Thin<Deployment, true>;
/// A Service, as far as it is watched.
pub(super) type ThinService = Thin<Service, false>;

/// How a replica works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A name for people. Leadership never depends on it.
    pub replica: String,
    /// Where Palisade's own objects are.
    pub system_namespace: String,
    /// Where ModelDeployments are; `None`: everywhere.
    pub watch_namespace: Option<String>,
    /// How long after its last heartbeat a leader can be replaced.
    pub ttl: Duration,
    /// How long old rows of the database are kept.
    pub retention: Retention,
}

/// What a replica is made of.
#[derive(Clone)]
pub struct Parts {
    /// See [`Settings`].
    pub settings: Settings,
    /// The database. Its timeout should be below a third of the TTL.
    pub store: Store,
    /// The cluster, by [`crate::cluster::client`]: it must not repeat writes by itself.
    pub client: Client,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is waited for: reasons `cluster`, `database`, `epoch`.
    pub readiness: Readiness,
    /// Where the time comes from.
    pub clock: Clock,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What this replica may do.
#[derive(Debug)]
pub(super) enum Role {
    /// Not known yet.
    Starting,
    /// It holds the lease.
    Leading(Arc<Tenure>),
    /// Another replica does: nothing is to be done here.
    Following {
        /// Its name.
        leader: String,
    },
    /// Nobody can lead, or so it looks from here: there is no database, or no epoch.
    Unavailable(String),
}

/// What is remembered of a CR. Losing it costs work, no more.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// The registered model: an event about it concerns this CR.
    pub model: String,
    /// It waits for an alias that another resource guards.
    pub guarded: bool,
    /// What the API server said of the template, by UID and generation.
    pub template: Option<(String, i64, Option<Problem>)>,
    /// Since when its objects are not what was recorded.
    pub drift_since: Option<Moment>,
    /// When a worker was last sent to look at them.
    pub woken: Option<Moment>,
    /// When an event was last published that repeats.
    pub said: Option<Moment>,
    /// Why a person must see to the epoch, as this replica has written it into the status.
    pub told: Option<Cause>,
    /// Looks that failed, one after the other.
    pub failures: u32,
    /// What its status says, and since when, as far as this leader saw it.
    pub standing: Option<(Standing, Moment)>,
}

/// What the parts share.
pub struct Context {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) client: Client,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
    pub(super) clock: Clock,
    pub(super) role: RwLock<Role>,
    pub(super) crs: reflector::Store<Meta>,
    pub(super) objects: Index,
    /// Somebody was told that there is no epoch.
    pub(super) epoch_hint: Arc<Notify>,
    /// Why there will be no epoch until a person does something.
    pub(super) attention: watch::Sender<Option<Attention>>,
    /// A plan may have lost its CR.
    pub(super) sweep_hint: Notify,
    /// A watch began anew: what happened meanwhile is not known one by one.
    pub(super) survey_hint: Notify,
    one: mpsc::Sender<ObjectRef<Meta>>,
    all: mpsc::Sender<()>,
    memory: Mutex<HashMap<ObjectRef<Meta>, Memory>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The other ends of the channels.
pub(super) struct Triggers {
    pub one: BoxStream<'static, ObjectRef<Meta>>,
    pub all: BoxStream<'static, ()>,
    pub crs: Writer<Meta>,
}

fn receiving<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|item| (item, receiver)) }).boxed()
}

impl Context {
    pub(super) fn new(parts: Parts) -> (Self, Triggers) {
        let Parts { settings, store, client, metrics, readiness, clock } = parts;
        let (one, ones) = mpsc::channel(1024);
        let (all, alls) = mpsc::channel(1);
        let (crs, crs_writer) = reflector::store();
        let context = Self {
            settings,
            store,
            client,
            metrics,
            readiness,
            clock,
            role: RwLock::new(Role::Starting),
            crs,
            objects: Index::default(),
            epoch_hint: Arc::default(),
            attention: watch::Sender::new(None),
            sweep_hint: Notify::new(),
            survey_hint: Notify::new(),
            one,
            all,
            memory: Mutex::default(),
        };
        (context, Triggers { one: receiving(ones), all: receiving(alls), crs: crs_writer })
    }

    /// Has a CR looked at.
    pub(super) async fn trigger(&self, key: ObjectRef<Meta>) {
        // The other end lives as long as the process does.
        let _ = self.one.send(key).await;
    }

    /// Has every CR looked at.
    pub(super) fn trigger_all(&self) {
        // A full channel: it is about to happen anyway.
        let _ = self.all.try_send(());
    }

    /// Changes what is remembered of a CR.
    pub(super) fn remember(&self, key: &ObjectRef<Meta>, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(key.clone()).or_default());
    }

    /// Changes what is remembered of every CR.
    pub(super) fn change_all(&self, change: impl Fn(&mut Memory)) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).values_mut().for_each(change);
    }

    /// What is remembered of a CR.
    pub(super) fn recall(&self, key: &ObjectRef<Meta>) -> Memory {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.get(key).cloned().unwrap_or_default()
    }

    /// What the status of a CR says by now.
    pub(super) fn stands(&self, key: &ObjectRef<Meta>, conditions: &[Condition]) {
        let (standing, now) = (Standing::of(conditions), self.clock.now());
        self.remember(key, |memory| {
            if memory.standing.is_none_or(|(before, _)| before != standing) {
                memory.standing = Some((standing, now));
            }
        });
    }

    /// How many CRs stand where, and for how long the one has that is there the longest.
    pub(super) fn standings(&self) -> [(Standing, i64, Duration); 4] {
        let now = self.clock.now();
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Standing::ALL.map(|standing| {
            let those = memory.values().filter_map(|memory| memory.standing.filter(|(s, _)| *s == standing));
            those.fold((standing, 0, Duration::ZERO), |(_, count, longest), (_, since)| {
                (standing, count + 1, longest.max(now.since(since)))
            })
        })
    }

    /// A look came to its end. Nothing is remembered anew: the CR may be gone by now.
    pub(super) fn succeeded(&self, key: &ObjectRef<Meta>) {
        if let Some(memory) = self.memory.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            memory.failures = 0;
        }
    }

    /// The CR is gone.
    pub(super) fn forget(&self, key: &ObjectRef<Meta>) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// The CRs for which this holds.
    pub(super) fn remembered(&self, wanted: impl Fn(&Memory) -> bool) -> Vec<ObjectRef<Meta>> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.iter().filter(|(_, memory)| wanted(memory)).map(|(key, _)| key.clone()).collect()
    }

    /// Whether a namespace is this controller's business.
    pub(super) fn watches(&self, namespace: &str) -> bool {
        self.settings.watch_namespace.as_deref().is_none_or(|watched| watched == namespace)
    }
}

/// The name of a CR's lease.
pub(super) fn resource_of(key: &ObjectRef<Meta>) -> String {
    crate::plan::resource_of(key.namespace.as_deref().unwrap_or_default(), &key.name)
}

/// The CR that a lease's name belongs to.
pub(super) fn key_of(resource: &str) -> Option<ObjectRef<Meta>> {
    let (namespace, name) = resource.strip_prefix("deployment/")?.split_once('/')?;
    Some(ObjectRef::new(name).within(namespace))
}
