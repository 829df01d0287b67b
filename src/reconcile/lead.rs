//! Who may write: the replica that holds the lease `controller/default`, for as long as it holds it.
//!
//! ```text
//! open a session ─▶ acquire, again and again ─▶ Tenure ─▶ lost, or asked to stop ─▶ every look ended ─▶ start over
//!                                                 └─ the outbox, surveys, the sweep, maintenance, figures: in this task
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::context::{Context, Role, key_of};
use super::{survey, sweep, upkeep};
use crate::lease::{AcquireError, Lease, Session, SessionConfig, SessionError};
use crate::outcome::{Reason, Rejection};
use crate::retry::{around, jitter};
use crate::store::{Event, EventCursor, RefusalCursor};

/// The resource whose owner leads.
pub const LEADERSHIP: &str = "controller/default";
/// How often the outbox is read: one statement, whatever the number of deployments.
const POLL: Duration = Duration::from_millis(500);
/// Events that are read at once.
const BATCH: u32 = 500;
/// How often figures for `/metrics` are read.
const FIGURES: Duration = Duration::from_secs(5);

/// The time in which this replica leads.
#[derive(Debug)]
pub(super) struct Tenure {
    /// What every write goes through.
    pub lease: Lease,
    /// The replica was asked to stop.
    stopping: CancellationToken,
}

impl Tenure {
    /// Returns when nothing more may be begun, and what is under way is to be dropped.
    pub(super) async fn over(&self) {
        tokio::select! {
            () = self.lease.lost() => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

/// Leads whenever it can, until `stop`.
pub(super) async fn lead(context: Arc<Context>, stop: CancellationToken) {
    let ttl = context.settings.ttl;
    let mut failures = 0;
    while !stop.is_cancelled() {
        match term(&context, &stop).await {
            Ok(()) => failures = 0,
            Err(why) => {
                failures += 1;
                context.readiness.not_ready("database", &why);
                // One lost answer is not yet a lost database.
                if failures >= 2 {
                    unavailable(&context, why).await;
                }
                let wait = if failures < 2 { ttl / 20 } else { ttl / 8 };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(wait.mul_f64(0.5) + jitter(wait)) => {}
                }
            }
        }
    }
}

async fn unavailable(context: &Context, why: String) {
    let changed = !matches!(&*context.role.read().await, Role::Unavailable(_));
    if changed {
        tracing::warn!("nobody can lead, or so it looks from here: {why}");
    }
    *context.role.write().await = Role::Unavailable(why);
    if changed {
        // Deletions that need no database need not wait for it.
        context.trigger_all();
    }
}

/// One session: waits for the lease, leads, gives it back. An error says why nobody can lead.
async fn term(context: &Arc<Context>, stop: &CancellationToken) -> Result<(), String> {
    let settings = &context.settings;
    let config = SessionConfig {
        clock: context.clock.clone(),
        observer: context.metrics.observer(settings.ttl),
        ..SessionConfig::new(settings.replica.clone(), settings.ttl)
    };
    let opened = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        opened = Session::open(context.store.clone(), config) => opened,
    };
    let session = match opened {
        Ok(session) => session,
        Err(SessionError::Rejected(rejection)) => return Err(no_session(context, &rejection)),
        Err(error) => return Err(error.to_string()),
    };
    context.readiness.ready("database");
    let lease = tokio::select! {
        () = stop.cancelled() => Ok(None),
        lease = acquire(context, &session) => lease,
    };
    let ended = match lease {
        Ok(Some(lease)) => rule(context, lease, stop).await,
        Ok(None) => Ok(()),
        Err(why) => Err(why),
    };
    if let Err(error) = session.close().await {
        tracing::debug!("the session was not closed, it ends with its TTL: {error}");
    }
    ended
}

fn no_session(context: &Context, rejection: &Rejection) -> String {
    if rejection.reason == Reason::EpochNotEstablished {
        context.epoch_hint.notify_one();
        return "the database was restarted or is new, and its epoch is not established yet".to_owned();
    }
    rejection.to_string()
}

/// Asks until it is granted. `None`: the session ended meanwhile.
async fn acquire(context: &Context, session: &Session) -> Result<Option<Lease>, String> {
    loop {
        match session.acquire(LEADERSHIP, None).await {
            Ok(lease) => return Ok(Some(lease)),
            Err(AcquireError::Rejected(rejection)) if rejection.reason == Reason::Held => {
                follow(context, &rejection).await;
                tokio::time::sleep(around(context.settings.ttl / 4)).await;
            }
            Err(AcquireError::Rejected(rejection)) if rejection.reason == Reason::EpochNotEstablished => {
                return Err(no_session(context, &rejection));
            }
            Err(AcquireError::SessionOver) => return Ok(None),
            Err(AcquireError::Rejected(rejection)) if rejection.reason.lost() => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn follow(context: &Context, rejection: &Rejection) {
    let detail = rejection.detail.as_ref();
    let leader = detail.and_then(|d| d.get("owner")).and_then(|owner| owner.as_str()).unwrap_or("another").to_owned();
    let known = matches!(&*context.role.read().await, Role::Following { leader: known } if *known == leader);
    if !known {
        tracing::info!(leader, "another replica leads");
        *context.role.write().await = Role::Following { leader };
    }
}

/// Leads until the lease is over or `stop`; on return no look is under way any more, and the lease is given back.
/// An error: it could not be led at all.
async fn rule(context: &Arc<Context>, lease: Lease, stop: &CancellationToken) -> Result<(), String> {
    // Before the first look: what happens from here on is either seen by it, or told by the outbox.
    let cursor = context.store.events_end().await.map_err(|error| format!("the outbox cannot be read: {error}"))?;
    tracing::info!(resource = lease.resource(), fence = %lease.token(), "leading");
    context.metrics.leads(true);
    let tenure = Arc::new(Tenure { lease, stopping: stop.clone() });
    *context.role.write().await = Role::Leading(Arc::clone(&tenure));
    tokio::select! {
        biased;
        () = tenure.over() => {}
        () = outbox(context, cursor) => {}
        () = survey::survey(context) => {}
        () = sweep::sweep(context, &tenure) => {}
        () = upkeep::end_blockers(context) => {}
        () = upkeep::clean(context) => {}
        () = figures(context) => {}
        // The ledger of a current token is kept whole: under a new one, the former can be removed in time.
        () = tokio::time::sleep(context.settings.retention.ledger) => {
            tracing::info!(fence = %tenure.lease.token(), "the lease is given back and taken anew, so that its ledger does not grow for ever");
        }
    }
    // Waits for every look: they end by themselves, for the tenure is over.
    *context.role.write().await = Role::Starting;
    context.metrics.leads(false);
    // What was not seen any more while another one led is no longer known.
    context.change_all(|memory| memory.standing = None);
    tracing::info!(fence = %tenure.lease.token(), "no longer leading");
    if tenure.lease.left().is_some() {
        // A look that was dropped may have left a write in doubt.
        let released = match tenure.lease.settle().await {
            Ok(_) => tenure.lease.release(None).await.map(|_| ()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = released {
            tracing::warn!("the leadership was not released, it ends with its TTL: {error}");
        }
    }
    Ok(())
}

/// Reads the registry's outbox, and has every CR looked at that an event concerns.
async fn outbox(context: &Context, mut cursor: EventCursor) {
    loop {
        let full = match context.store.events(&cursor, BATCH).await {
            Ok(events) => {
                if let Some(last) = events.last() {
                    cursor = last.cursor.clone();
                }
                let full = events.len() >= BATCH as usize;
                for key in concerned(context, &events) {
                    context.trigger(key).await;
                }
                full
            }
            Err(error) => {
                tracing::warn!("the outbox cannot be read, trying again: {error}");
                false
            }
        };
        if !full {
            tokio::time::sleep(around(POLL)).await;
        }
    }
}

fn concerned(context: &Context, events: &[Event]) -> HashSet<kube::runtime::reflector::ObjectRef<super::Meta>> {
    let mut keys = HashSet::new();
    for Event { cursor: _, resource, kind, data } in events {
        // Our own doing: the look that planned it has written the status.
        if kind == "planned" {
            continue;
        }
        if let Some(key) = key_of(resource) {
            if kind == "removed" && context.crs.get(&key).is_none() {
                context.sweep_hint.notify_one();
            }
            keys.insert(key);
        }
        let model = resource.strip_prefix("model/").or_else(|| data.get("model").and_then(|model| model.as_str()));
        if let Some(model) = model {
            keys.extend(context.remembered(|memory| memory.model == model));
        }
        if matches!(kind.as_str(), "removed" | "guard") {
            keys.extend(context.remembered(|memory| memory.guarded));
        }
    }
    keys
}

async fn figures(context: &Context) {
    let mut counted = RefusalCursor::default();
    loop {
        context.metrics.standings(context.standings());
        match context.store.figures().await {
            Ok(figures) => context.metrics.figures(&figures),
            Err(error) => tracing::debug!("figures: {error}"),
        }
        match context.store.refusals(&mut counted).await {
            Ok(refusals) => context.metrics.registry_refused(&refusals),
            Err(error) => tracing::debug!("refusals: {error}"),
        }
        tokio::time::sleep(around(FIGURES)).await;
    }
}
