//! Whether the cluster still is as a worker left it. The controller repairs nothing itself: it wakes a worker, which can.
//!
//! Only what keeps a version from serving counts: a person's `kubectl scale` is left alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;

use super::context::{Context, Meta};
use super::decide::uid_of;
use crate::crd::ModelDeployment;
use crate::manifests::names::{DEPLOYMENT_LABEL, REVISION_LABEL};
use crate::store::Observed;

/// How long it must be so: the watch may lag behind the registry.
const SETTLED: Duration = Duration::from_secs(2);
/// How often a worker is sent.
const WAKE_AGAIN: Duration = Duration::from_secs(60);

/// The objects of one CR, as far as they matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Objects {
    /// Deployments by name, with their revision.
    pub deployments: BTreeMap<String, Option<String>>,
    /// The selector of the Service of the CR's name.
    pub service: Option<Selector>,
}

/// What a Service's selector says of Palisade's labels. A map of two would take ten times the memory, for each CR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    pub deployment: Option<String>,
    pub revision: Option<String>,
}

impl Selector {
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Self {
        let get = |label: &str| labels.get(label).cloned();
        Self { deployment: get(DEPLOYMENT_LABEL), revision: get(REVISION_LABEL) }
    }
}

/// All labelled objects, by CR. Those that are being deleted count as gone.
#[derive(Debug, Default)]
pub(super) struct Index {
    objects: Mutex<HashMap<ObjectRef<Meta>, Objects>>,
    /// Whether Deployments and Services were listed completely.
    known: [std::sync::atomic::AtomicBool; 2],
    completed: tokio::sync::Notify,
}

impl Index {
    /// Changes what is known of a CR's objects. Answers whether that changed anything.
    pub(super) fn change(&self, key: &ObjectRef<Meta>, change: impl FnOnce(&mut Objects)) -> bool {
        let mut objects = self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed = objects.get(key).cloned().unwrap_or_default();
        change(&mut changed);
        if changed == Objects::default() {
            return objects.remove(key).is_some();
        }
        objects.insert(key.clone(), changed.clone()).is_none_or(|before| before != changed)
    }

    /// Applies a change to every CR's objects: before a list is read anew.
    pub(super) fn change_all(&self, change: impl Fn(&mut Objects)) {
        let mut objects = self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        objects.values_mut().for_each(change);
    }

    /// Whether one of the two lists is complete.
    pub(super) fn set_known(&self, list: usize, known: bool) {
        if let Some(flag) = self.known.get(list) {
            flag.store(known, std::sync::atomic::Ordering::SeqCst);
        }
        if self.is_complete() {
            self.completed.notify_waiters();
        }
    }

    /// Whether both lists are complete.
    pub(super) fn is_complete(&self) -> bool {
        self.known.iter().all(|known| known.load(std::sync::atomic::Ordering::SeqCst))
    }

    /// Waits until both lists are complete.
    pub(super) async fn complete(&self) {
        loop {
            let completed = self.completed.notified();
            if self.is_complete() {
                return;
            }
            completed.await;
        }
    }

    fn of(&self, key: &ObjectRef<Meta>) -> Option<Objects> {
        if !self.is_complete() {
            return None;
        }
        let objects = self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(objects.get(key).cloned().unwrap_or_default())
    }
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drift {
    /// Nothing.
    None,
    /// Look again after this time.
    Wait(Duration),
    /// Wake a worker.
    Wake(String),
}

impl Drift {
    pub(super) fn wake(&self) -> bool {
        matches!(self, Self::Wake(_))
    }

    pub(super) fn look_again(&self) -> Option<Duration> {
        match self {
            Self::Wait(span) => Some(*span),
            Self::None | Self::Wake(_) => None,
        }
    }
}

/// How the cluster differs from what was recorded for this CR.
fn found(context: &Context, key: &ObjectRef<Meta>, object: &ModelDeployment, observed: &Observed) -> Option<String> {
    let found = context.objects.of(key);
    let own = observed.plan.as_ref().is_some_and(|plan| Some(plan.uid) == uid_of(object));
    found.filter(|_| own).and_then(|objects| difference(observed, &objects))
}

/// Whether nothing differs, as far as is known.
pub(super) fn settled(context: &Context, key: &ObjectRef<Meta>, object: &ModelDeployment, observed: &Observed) -> bool {
    let settled = found(context, key, object, observed).is_none();
    if settled {
        context.remember(key, |memory| memory.drift_since = None);
    }
    settled
}

/// Compares, and remembers since when they differ.
pub(super) fn judge(context: &Context, key: &ObjectRef<Meta>, object: &ModelDeployment, observed: &Observed) -> Drift {
    let difference = found(context, key, object, observed);
    let now = context.clock.now();
    let mut drift = Drift::None;
    context.remember(key, |memory| {
        let Some(difference) = difference else {
            memory.drift_since = None;
            return;
        };
        let since = now.since(*memory.drift_since.get_or_insert(now));
        let rested = memory.woken.map_or(WAKE_AGAIN, |woken| now.since(woken));
        drift = if since < SETTLED {
            Drift::Wait(SETTLED - since)
        } else if rested < WAKE_AGAIN {
            Drift::Wait(WAKE_AGAIN - rested)
        } else {
            memory.woken = Some(now);
            Drift::Wake(difference)
        };
    });
    if let Drift::Wake(difference) = &drift {
        tracing::info!(resource = super::context::resource_of(key), "waking a worker: {difference}");
    }
    drift
}

/// How a deployment whose rollout is done differs from what was recorded. Pure.
fn difference(observed: &Observed, found: &Objects) -> Option<String> {
    let (plan, recorded) = (observed.plan.as_ref()?, observed.deployment.as_ref()?);
    let done = (recorded.uid, recorded.rollout, &*recorded.step) == (plan.uid, plan.rollout, "done");
    if !done || plan.paused || plan.removed {
        return None;
    }
    let target = plan.spec.deployment_name();
    if !found.deployments.contains_key(&target) {
        return Some(format!("Deployment {target} is missing"));
    }
    let serving = recorded.serving_revision.as_deref()?;
    let name = &plan.spec.name;
    match &found.service {
        None => return Some(format!("Service {name} is missing")),
        Some(selector) => {
            if (selector.deployment.as_ref(), selector.revision.as_deref()) != (Some(name), Some(serving)) {
                return Some(format!("Service {name} does not point at revision {serving}"));
            }
        }
    }
    let known = |revision: &str| {
        revision == serving || revision == plan.spec.revision() || recorded.state.history.iter().any(|r| r == revision)
    };
    let unknown = found.deployments.iter().find(|(_, revision)| !revision.as_deref().is_some_and(known));
    unknown.map(|(name, _)| format!("Deployment {name} is of no revision that was recorded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::decide::tests::{object, observed, planned};
    use crate::reconcile::status::tests::recorded;
    use serde_json::json;

    fn done() -> (Observed, Objects) {
        let mut seen = observed(1);
        let plan = planned(&object(json!({})), &seen, 1);
        let (target, revision) = (plan.spec.deployment_name(), plan.spec.revision());
        seen.deployment = Some(recorded(&plan, "done", true));
        seen.plan = Some(plan);
        let selector = Selector { deployment: Some("churn".into()), revision: Some(revision.clone()) };
        (seen, Objects { deployments: [(target, Some(revision))].into(), service: Some(selector) })
    }

    #[test]
    fn what_a_worker_left_is_no_drift() {
        let (seen, found) = done();
        assert_eq!(difference(&seen, &found), None);
    }

    #[test]
    fn each_loss_that_keeps_a_version_from_serving_is_seen() {
        type Change = fn(&mut Objects);
        let changes: [(&str, Change); 5] = [
            ("is missing", |o| o.deployments.clear()),
            ("Service churn is missing", |o| o.service = None),
            ("does not point at", |o| {
                o.service.as_mut().expect("a Service").revision = Some("other".into());
            }),
            ("does not point at", |o| o.service = Some(Selector::default())),
            ("no revision that was recorded", |o| {
                o.deployments.insert("churn-x".into(), Some("x".into()));
            }),
        ];
        for (text, change) in changes {
            let (seen, mut found) = done();
            change(&mut found);
            let difference = difference(&seen, &found).unwrap_or_default();
            assert!(difference.contains(text), "{text}: {difference}");
        }
    }

    #[test]
    fn a_rollout_under_way_is_no_drift() {
        let (mut seen, _) = done();
        seen.deployment.as_mut().expect("recorded").step = "apply".into();
        assert_eq!(difference(&seen, &Objects::default()), None);
    }

    #[test]
    fn versions_that_are_kept_for_going_back_are_no_drift() {
        let (mut seen, mut found) = done();
        seen.deployment.as_mut().expect("recorded").state.history.push("old".into());
        found.deployments.insert("churn-old".into(), Some("old".into()));
        assert_eq!(difference(&seen, &found), None);
    }
}
