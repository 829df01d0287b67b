//! One deployment's rollout, under one lease: which step comes next, and what each way of stopping means.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, ClusterError};
use super::steps;
use crate::clock::{Clock, Moment};
use crate::failpoint;
use crate::lease::{Lease, LeaseError};
use crate::metrics::{Metrics, ResultLabel};
use crate::outcome::{Outcome, Reason};
use crate::plan::{Deployment, Plan, PlanMark, State, failure};
use crate::retry::{around, jitter};
use crate::store::{CallError, Claimed, Store, Write};

/// What a rollout needs besides its lease.
#[derive(Clone)]
pub(super) struct Context {
    pub store: Store,
    pub cluster: Cluster,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    /// Cancelled when the process is to stop: hand over at the next safe step.
    pub handover: CancellationToken,
}

/// The steps of a rollout, in order. Each is recorded when it begins, and can be repeated from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The version exists, and is what was asked for.
    Verify,
    /// Its Deployment is there.
    Apply,
    /// Its pods are ready.
    Ready,
    /// The Service points at it, and the registry says so.
    Switch,
    /// Requests that are under way end.
    Drain,
    /// Old versions are scaled down, or deleted.
    Retire,
}

impl Step {
    const ALL: [Self; 6] = [Self::Verify, Self::Apply, Self::Ready, Self::Switch, Self::Drain, Self::Retire];

    /// The step's name in the registry, in status and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Apply => "apply",
            Self::Ready => "ready",
            Self::Switch => "switch",
            Self::Drain => "drain",
            Self::Retire => "retire",
        }
    }

    /// Where a new owner goes on: at the step that was begun, if it was of this very plan.
    fn resume(plan: &Plan, recorded: Option<&Deployment>) -> Self {
        recorded
            .filter(|d| (d.uid, d.rollout) == (plan.uid, plan.rollout))
            .and_then(|d| Self::ALL.into_iter().find(|step| step.name() == d.step))
            .unwrap_or(Self::Verify)
    }
}

/// Why a rollout stops before its end.
#[derive(Debug, PartialEq)]
pub(super) enum Halt {
    /// The lease is over: touch nothing more.
    Lost,
    /// The plan was changed: go on with the new one.
    Turned,
    /// The process is to stop.
    Handover,
    /// It cannot be done, for this reason (see [`failure`]) and in these words; looked at again after the span.
    Failed { reason: &'static str, message: String, retry_in: Option<Duration> },
}

impl From<ClusterError> for Halt {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Lost => Self::Lost,
            ClusterError::Lease(error) => error.into(),
            ClusterError::Refused { .. } => Self::Failed {
                reason: failure::REFUSED,
                message: error.to_string(),
                retry_in: Some(around(Duration::from_secs(60))),
            },
            // The registry decides whether the lease is over: it takes the failure down, or refuses it.
            ClusterError::Ahead { .. } => Self::Failed {
                reason: failure::FENCE_AHEAD,
                message: error.to_string(),
                retry_in: Some(around(Duration::from_secs(5))),
            },
            // While a release is being installed, the policies come a moment after the workers.
            ClusterError::NotFenced(_) | ClusterError::NotNamed | ClusterError::Doubtful(_) => Self::Failed {
                reason: failure::NOT_FENCED,
                message: error.to_string(),
                retry_in: Some(around(Duration::from_secs(5))),
            },
            ClusterError::Changed(_) | ClusterError::Unavailable(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<LeaseError> for Halt {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Lost { .. } => Self::Lost,
            error => Self::unavailable(error.to_string()),
        }
    }
}

impl From<CallError> for Halt {
    fn from(error: CallError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl Halt {
    /// Not now: another try, by whoever claims it then, is likely to work.
    fn unavailable(message: String) -> Self {
        Self::Failed {
            reason: failure::UNAVAILABLE,
            message,
            retry_in: Some(Duration::from_secs(1) + jitter(Duration::from_secs(4))),
        }
    }
}

/// A rollout under way: what the steps read and change.
pub(super) struct Rollout<'a> {
    pub context: &'a Context,
    pub lease: &'a Lease,
    pub plan: Plan,
    pub state: State,
    /// The revision that serves, as far as it was recorded.
    pub serving: Option<String>,
    /// Since when it serves, by our clock; the database told its age.
    pub serving_since: Option<Moment>,
    /// The step that was begun last.
    pub step: Step,
    /// When it began, by our clock; earlier owners' time counts.
    pub step_began: Moment,
}

/// Works on a claimed deployment until it is done, cannot go on, or is not ours any more.
pub(super) async fn run(context: &Context, lease: &Lease, claimed: Claimed) {
    let claimed_progress = claimed.plan.progress();
    let work = async {
        let mut rollout = Rollout::new(context, lease, &claimed);
        let mut recorded = claimed.deployment;
        loop {
            match rollout.all(recorded.take()).await {
                Err(Halt::Turned) => match rollout.turn().await {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(halt) => break Err(halt),
                },
                ended => break ended,
            }
        }
    };
    // Work first: a release ends the lease too, and then the work is at its end. Every call looks at the lease by itself.
    let ended = tokio::select! {
        biased;
        ended = work => ended,
        () = lease.lost() => Err(Halt::Lost),
        never = report(lease, claimed_progress) => match never {},
    };
    let (resource, token) = (lease.resource(), lease.token());
    match ended {
        Ok(()) => tracing::info!(resource, fence = %token, "done"),
        Err(Halt::Lost) => {
            tracing::warn!(resource, fence = %token, "the lease is lost: left as it is, for its next owner")
        }
        Err(halt) => tracing::info!(resource, fence = %token, "left: {halt:?}"),
    }
}

/// Reports progress while calls are answered, however slowly: a busy API server is not a hung handler. Otherwise many
/// rollouts at once would take each other's leases away, and none would come to its end.
async fn report(lease: &Lease, progress: Duration) -> Infallible {
    loop {
        // At least every 2 s: a plan that comes meanwhile may ask for progress more often, down to every 5 s.
        tokio::time::sleep((progress / 6).clamp(Duration::from_millis(500), Duration::from_secs(2))).await;
        if lease.take_work()
            && let Err(error) = lease.progress().await
        {
            // The heartbeat decides when the database was silent for too long.
            tracing::debug!(resource = lease.resource(), "progress not reported: {error}");
            lease.note_work();
        }
    }
}

impl<'a> Rollout<'a> {
    fn new(context: &'a Context, lease: &'a Lease, claimed: &Claimed) -> Self {
        let now = context.clock.now();
        let own = claimed.deployment.as_ref().filter(|d| d.uid == claimed.plan.uid);
        let ago = |millis: i64| now.before(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
        Self {
            context,
            lease,
            plan: claimed.plan.clone(),
            state: own.map(|d| d.state.clone()).unwrap_or_default(),
            serving: own.and_then(|d| d.serving_revision.clone()),
            serving_since: own.and_then(|d| d.serving_age_ms).map(ago),
            step: Step::resume(&claimed.plan, claimed.deployment.as_ref()),
            step_began: own.filter(|d| d.rollout == claimed.plan.rollout).map_or(now, |d| ago(d.step_age_ms)),
        }
    }

    /// Everything that one plan asks for. Ends with the lease released, unless it is lost or the plan was changed.
    async fn all(&mut self, recorded: Option<Deployment>) -> Result<(), Halt> {
        let ended = self.steps(recorded.as_ref()).await;
        match &ended {
            Ok(()) => self.release(None).await?,
            Err(Halt::Handover) => self.release(Some(Duration::ZERO)).await?,
            Err(Halt::Failed { reason, message, retry_in }) => {
                tracing::warn!(resource = self.lease.resource(), fence = %self.lease.token(), reason, "rollout stopped: {message}");
                self.settle().await?;
                let again = match self.record(self.failure(reason, message, *retry_in)).await {
                    Ok(_) => None,
                    Err(halt @ (Halt::Turned | Halt::Lost)) => return Err(halt),
                    // Unrecorded, it is due as before: not at once, or it would go round and round.
                    Err(_) => Some(Duration::from_secs(1) + jitter(Duration::from_secs(4))),
                };
                self.release(again).await?;
            }
            Err(Halt::Lost | Halt::Turned) => {}
        }
        ended
    }

    async fn steps(&mut self, recorded: Option<&Deployment>) -> Result<(), Halt> {
        failpoint::enter_step("seal");
        let first = Step::resume(&self.plan, recorded);
        steps::seal(self, first).await?;
        if self.plan.removed {
            failpoint::enter_step("remove");
            return steps::remove(self).await;
        }
        if self.plan.paused {
            return Ok(());
        }
        for step in Step::ALL.into_iter().skip_while(|step| *step != first) {
            if self.context.handover.is_cancelled() {
                return Err(Halt::Handover);
            }
            failpoint::enter_step(step.name());
            let began = self.context.clock.now();
            let ended = self.step(step).await;
            let result = match &ended {
                Ok(()) => ResultLabel::Ok,
                Err(Halt::Failed { .. }) => ResultLabel::Error,
                Err(Halt::Lost | Halt::Turned | Halt::Handover) => ResultLabel::Stopped,
            };
            self.context.metrics.step(step.name(), result, self.context.clock.now().since(began));
            ended?;
        }
        failpoint::enter_step("done");
        steps::done(self).await
    }

    async fn step(&mut self, step: Step) -> Result<(), Halt> {
        self.begin(step).await?;
        match step {
            Step::Verify => steps::verify(self).await,
            Step::Apply => steps::apply(self).await,
            Step::Ready => steps::ready(self).await,
            Step::Switch => steps::switch(self).await,
            Step::Drain => steps::drain(self).await,
            Step::Retire => steps::retire(self).await,
        }
    }

    /// Records that a step begins; the answer says whether the plan is still the current one.
    async fn begin(&mut self, step: Step) -> Result<(), Halt> {
        self.step = step;
        let write = Write::RecordStep {
            uid: self.plan.uid,
            rollout: self.plan.rollout,
            step: step.name(),
            state: self.state.clone(),
        };
        let result = self.record(write).await?;
        let age = result.get("step_age_ms").and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.step_began = self.context.clock.now().before(Duration::from_millis(age));
        Ok(())
    }

    /// A fenced write to the registry, as a fact: an unknown outcome is settled here. Its answer names the current plan.
    pub(super) async fn record(&self, write: Write) -> Result<serde_json::Value, Halt> {
        let result = match self.lease.write(write).await? {
            Outcome::Applied(result) | Outcome::Replayed(result) => result,
            Outcome::Rejected(rejection) if rejection.reason.lost() => return Err(Halt::Lost),
            Outcome::Rejected(rejection) if rejection.reason == Reason::NoSuchPlan => return Err(Halt::Turned),
            Outcome::Rejected(rejection) if rejection.reason == Reason::Guarded => {
                let message = "the alias to promote is guarded by another resource: give spec.promoteAlias another value, or delete its other owner";
                return Err(Halt::Failed {
                    reason: failure::ALIAS_GUARDED,
                    message: message.to_owned(),
                    retry_in: Some(around(Duration::from_secs(60))),
                });
            }
            Outcome::Rejected(rejection) => {
                return Err(Halt::Failed {
                    reason: failure::REFUSED,
                    message: format!("the registry says: {rejection}"),
                    retry_in: None,
                });
            }
            Outcome::Unknown(why) => match self.lease.settle().await? {
                crate::lease::Settled::Applied(result) => result,
                _ => return Err(Halt::unavailable(why)),
            },
        };
        let mark = result.get("plan").cloned().and_then(|mark| serde_json::from_value(mark).ok());
        self.compare(mark.as_ref())?;
        Ok(result)
    }

    /// Whether the plan that we carry out is the current one.
    pub(super) fn compare(&self, mark: Option<&PlanMark>) -> Result<(), Halt> {
        match mark {
            Some(mark) if (mark.uid, mark.rollout) != (self.plan.uid, self.plan.rollout) => Err(Halt::Turned),
            _ => Ok(()),
        }
    }

    async fn settle(&self) -> Result<(), Halt> {
        self.lease.settle().await?;
        Ok(())
    }

    fn failure(&self, reason: &str, message: &str, retry_in: Option<Duration>) -> Write {
        Write::RecordFailure {
            uid: self.plan.uid,
            rollout: self.plan.rollout,
            step: self.step.name(),
            state: self.state.clone(),
            reason: reason.to_owned(),
            message: crate::crd::clip(message, crate::crd::MESSAGE_MAX),
            retry_in,
        }
    }

    async fn release(&self, retry_in: Option<Duration>) -> Result<(), Halt> {
        match self.lease.release(retry_in).await? {
            Outcome::Rejected(_) | Outcome::Unknown(_) => Err(Halt::Lost),
            _ => Ok(()),
        }
    }

    /// The plan that is current now: a read, so it is simply repeated while the lease lasts.
    async fn current(&self) -> Result<Option<Plan>, Halt> {
        loop {
            match self.context.store.plan_show(self.lease.resource()).await {
                Err(error) if error.is_transient() => {
                    self.lease.check()?;
                    tokio::time::sleep(jitter(Duration::from_millis(500))).await;
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// Takes up the plan that is current now. `false`: there is none any more, and the lease was released.
    async fn turn(&mut self) -> Result<bool, Halt> {
        let Some(plan) = self.current().await? else {
            self.release(None).await?;
            return Ok(false);
        };
        tracing::info!(
            resource = self.lease.resource(),
            from = self.plan.rollout,
            to = plan.rollout,
            "the plan was changed: turning to it"
        );
        if plan.uid != self.plan.uid {
            // Another ModelDeployment of the same name: nothing that we know is about its objects.
            self.state = State::default();
            self.serving = None;
            self.serving_since = None;
        }
        self.plan = plan;
        Ok(true)
    }
}
