//! The controller: a ModelDeployment becomes a plan, and what the registry records becomes its status.
//!
//! ```text
//! watch.rs ─ a CR, the registry's outbox, an object that was changed by hand ─▶ which CR to look at
//! lead.rs ─── who may write: the lease controller/default ─▶ Tenure
//!
//! observe.rs ─▶ validate.rs (pure) ─▶ decide.rs (pure) ─▶ apply.rs ─▶ status.rs (pure) ─▶ report.rs
//! the CR, and      what the schema      the plan that       fenced       what people       status and events
//! one query        cannot say           is wanted           write        should see        written
//!
//! survey.rs     all CRs in bulk: which of them need a look
//! finalize.rs   a CR that is being deleted, also while there is no database        sweep.rs   a plan without a CR
//! ```
//!
//! - **Only the leader writes**, and a leader that was replaced writes nothing that sticks: plans carry its fence, a status
//!   carries a revision that only the current leader is given. The one exception is `finalize.rs` without a database.
//! - **Nothing is remembered that matters.** What [`context::Context`] keeps between two looks saves work, no more.
//! - **A CR is read when it is looked at**, and only its metadata is watched: one that cannot be read hurts nobody else.

mod alarm;
pub mod apply;
pub mod context;
pub mod decide;
mod drift;
mod finalize;
mod lead;
mod observe;
pub mod outline;
mod report;
pub mod status;
mod survey;
mod sweep;
pub mod upkeep;
pub mod validate;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::ObjectRef;
use tokio_util::sync::CancellationToken;

use crate::epoch::{Allocator, Keeping};
use crate::lease::LeaseError;
use crate::metrics::ResultLabel;
use crate::outcome::Rejection;
use crate::retry::{around, jitter};
use crate::store::CallError;
use context::{Context, Meta, Role};
pub use context::{Parts, Settings};
use lead::Tenure;

/// CRs that are looked at at the same time.
const CONCURRENCY: u16 = 16;
/// The longest that one look may take: every call in it has a shorter limit of its own.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long looks may go on after the process was asked to stop. They are told to end at once.
const FAREWELL: Duration = Duration::from_secs(15);
/// How often all CRs are surveyed when nothing happens: a net under lost triggers.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// Why a look at a CR came to no end. It is repeated, later each time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server says no. A conflict means that the CR was changed in between.
    #[error("the API server refuses to {doing}: {}", .status.message)]
    Refused {
        /// What was asked for.
        doing: &'static str,
        /// Its answer.
        status: Box<kube::core::Status>,
    },
    /// The API server did not answer.
    #[error("the API server does not answer ({doing}): {why}")]
    Silent {
        /// What was asked for.
        doing: &'static str,
        /// What happened instead.
        why: String,
    },
    /// The database did not answer, or refused.
    #[error(transparent)]
    Database(#[from] CallError),
    /// The lease is over, or an earlier write is in doubt.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The database refused the plan.
    #[error("the plan was refused: {0}")]
    Rejected(Rejection),
    /// Nobody knows whether the plan was written: the next look finds out.
    #[error("it is not known whether the plan was written: {0}")]
    Unknown(String),
    /// It took too long.
    #[error("not done within {LOOK_TIMEOUT:?}")]
    Timeout,
}

/// Runs one replica of the controller until `stop` is cancelled, then gives back what it holds.
pub async fn run(parts: Parts, stop: CancellationToken) {
    let (context, triggers) = Context::new(parts);
    let context = Arc::new(context);
    let keeping = Keeping {
        readiness: context.readiness.clone(),
        metrics: Arc::clone(&context.metrics),
        hint: Arc::clone(&context.epoch_hint),
        attention: context.attention.clone(),
    };
    let allocator = Allocator::new(
        context.store.clone(),
        context.client.clone(),
        &context.settings.system_namespace,
        context.settings.watch_namespace.as_deref(),
    );
    let looks = looks(Arc::clone(&context), triggers, stop.clone());
    // Said from the start: one that never led does not lead.
    context.metrics.leads(false);
    tokio::join!(
        allocator.keep(keeping, stop.clone()),
        alarm::alarm(Arc::clone(&context), stop.clone()),
        watch::drift(Arc::clone(&context), stop.clone()),
        lead::lead(Arc::clone(&context), stop.clone()),
        looks,
    );
}

/// The loop that looks at CRs: by watch, by trigger, all of them when there is no database.
async fn looks(context: Arc<Context>, triggers: context::Triggers, stop: CancellationToken) {
    let context::Triggers { one, all, crs } = triggers;
    let objects = watch::modeldeployments(Arc::clone(&context), crs);
    let reader = context.crs.clone();
    let looks = Controller::for_stream(objects, reader.clone())
        .with_config(controller::Config::default().concurrency(CONCURRENCY).debounce(Duration::from_millis(20)))
        .reconcile_on(one)
        .reconcile_all_on(all)
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(look, again, context)
        .for_each(|looked| async {
            match looked {
                // Told by `again`, which knows which object it was.
                Ok(_) | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!("watching ModelDeployments: {error}"),
            }
        });
    let patience = async {
        stop.cancelled().await;
        // Before the first list is complete no look has begun, and the loop would wait for it for ever.
        if reader.wait_until_ready().now_or_never().is_some() {
            tokio::time::sleep(FAREWELL).await;
        }
    };
    tokio::select! {
        () = looks => {}
        () = patience => {}
    }
}

/// One look at one CR.
async fn look(object: Arc<Meta>, context: Arc<Context>) -> Result<Action, Error> {
    let key = ObjectRef::from_obj(&*object);
    let began = context.clock.now();
    // Held to the end: whoever changes the role waits until this look is over, or was cancelled.
    let role = context.role.read().await;
    let looked = match &*role {
        Role::Leading(tenure) => {
            let work = tokio::time::timeout(LOOK_TIMEOUT, look_as_leader(&context, tenure, &key));
            tokio::select! {
                biased;
                () = tenure.over() => return Ok(Action::await_change()),
                looked = work => looked.unwrap_or(Err(Error::Timeout)),
            }
        }
        Role::Unavailable(why) => look_without_leader(&context, &key, why).await,
        Role::Starting | Role::Following { .. } => return Ok(Action::await_change()),
    };
    let result = if looked.is_ok() { ResultLabel::Ok } else { ResultLabel::Error };
    context.metrics.reconciled(result, context.clock.now().since(began));
    if looked.is_ok() {
        context.succeeded(&key);
    }
    looked
}

/// Nobody can lead. What can be done is let go of what is being deleted, and say so where a person must act.
async fn look_without_leader(context: &Context, key: &ObjectRef<Meta>, why: &str) -> Result<Action, Error> {
    let action = finalize::without_database(context, key, why).await?;
    alarm::tell(context, key).await?;
    Ok(action)
}

async fn look_as_leader(context: &Context, tenure: &Tenure, key: &ObjectRef<Meta>) -> Result<Action, Error> {
    let mut object = match observe::read(context, key).await? {
        observe::Read::Gone => {
            context.forget(key);
            return Ok(Action::await_change());
        }
        observe::Read::Unreadable(outline) => return finalize::unreadable(context, tenure, key, *outline).await,
        observe::Read::Object(object) => *object,
    };
    // Before the registry is asked: an event that comes after the answer finds the CR by its model.
    context.remember(key, |memory| memory.model.clone_from(&object.spec.model.name));
    if object.metadata.deletion_timestamp.is_some() {
        return finalize::object(context, tenure, key, &object).await;
    }
    finalize::add(context, &mut object).await?;
    let observed = observe::registry(context, &object).await?;
    let drift = drift::judge(context, key, &object, &observed);
    let problems = validate::validate(&object);
    let decision = decide::decide(&object, &observed, problems, drift.wake());
    let applied = apply::apply(context, tenure, key, &object, observed, decision).await?;
    context.remember(key, |memory| memory.guarded = applied.waits_for_guard());
    report::report(context, tenure, key, &object, &applied).await?;
    Ok(next_look(&applied, &drift))
}

/// When to look again, if nothing happens. Where nothing is awaited, the next survey sees to it.
fn next_look(applied: &apply::Applied, drift: &drift::Drift) -> Action {
    let wait = drift.look_again().into_iter().chain(applied.look_again()).min();
    wait.map_or_else(Action::await_change, |wait| Action::requeue(around(wait)))
}

/// When to look again after a failure: with full jitter, later each time.
fn again(object: Arc<Meta>, error: &Error, context: Arc<Context>) -> Action {
    let key = ObjectRef::from_obj(&*object);
    let mut failures = 0;
    context.remember(&key, |memory| {
        failures = memory.failures;
        memory.failures = failures.saturating_add(1);
    });
    let conflict = matches!(error, Error::Refused { status, .. } if status.is_conflict());
    if conflict || matches!(error, Error::Lease(LeaseError::Lost { .. })) {
        tracing::debug!(resource = context::resource_of(&key), "looking again: {error}");
    } else {
        tracing::warn!(resource = context::resource_of(&key), failures = failures + 1, "looking again: {error}");
    }
    let cap = Duration::from_millis(200).saturating_mul(1 << failures.min(9)).min(Duration::from_secs(60));
    Action::requeue(Duration::from_millis(50) + jitter(cap))
}

/// One request to the API server, with an end and a name for failpoints.
async fn call<T>(
    doing: &'static str,
    point: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    crate::failpoint::before(point);
    let answer = tokio::time::timeout(TIMEOUT, request).await;
    crate::failpoint::after(point);
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Error::Refused { doing, status }),
        Ok(Err(error)) => Err(Error::Silent { doing, why: error.to_string() }),
        Err(_) => Err(Error::Silent { doing, why: format!("no answer within {TIMEOUT:?}") }),
    }
}

/// The CRs of one namespace, of which only the metadata is asked for.
fn api_of(context: &Context, key: &ObjectRef<Meta>) -> kube::Api<Meta> {
    kube::Api::namespaced(context.client.clone(), key.namespace.as_deref().unwrap_or_default())
}
