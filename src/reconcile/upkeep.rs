//! What the leader does for the database: what is old is removed in small batches, what blocks the gate is ended.

use std::time::Duration;

use super::context::Context;
use crate::retry::around;
use crate::store::{CallError, Kind, Store};

/// How long after the beginning of a term the first round begins.
const FIRST: Duration = Duration::from_secs(60);
/// How long after a round the next one begins.
const BETWEEN: Duration = Duration::from_secs(600);
/// How long the database is left alone between two batches.
const PAUSE: Duration = Duration::from_millis(200);
/// Rows that one call removes at the most: some fifty milliseconds, in which a few leases' rows are locked.
const BATCH: u32 = 1000;

/// How long old rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Answers to a fence or a request that is sent again; the sessions that prove whose they were.
    pub ledger: Duration,
    /// Refused writes.
    pub refusals: Duration,
    /// Grants. Never shorter than the ledger.
    pub history: Duration,
    /// The outbox.
    pub events: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |n: u64| Duration::from_secs(n * 24 * 3600);
        Self { ledger: days(7), refusals: days(30), history: days(90), events: days(7) }
    }
}

impl Retention {
    /// How long rows of a kind are kept.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Ledger | Kind::Requests | Kind::Sessions => self.ledger,
            Kind::Refusals => self.refusals,
            Kind::History => self.history.max(self.ledger),
            Kind::Events => self.events,
        }
    }
}

/// Ends backends of paused clients that keep a lease's row locked.
pub(super) async fn end_blockers(context: &Context) {
    let ttl = context.settings.ttl;
    loop {
        tokio::time::sleep(around(ttl)).await;
        match context.store.end_blockers(ttl).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, "ended backends that kept a lease's row locked"),
            Err(error) => tracing::debug!("end_blockers: {error}"),
        }
    }
}

/// Round after round, while this replica leads.
pub(super) async fn clean(context: &Context) {
    tokio::time::sleep(around(FIRST)).await;
    loop {
        let retention = context.settings.retention;
        if let Err(error) = round(&context.store, retention, |kind, rows| context.metrics.removed(kind, rows)).await {
            tracing::warn!("what is old is not removed for now: {error}");
        }
        match context.store.sizes().await {
            Ok(sizes) => context.metrics.sizes(&sizes),
            Err(error) => tracing::debug!("sizes: {error}"),
        }
        tokio::time::sleep(around(BETWEEN)).await;
    }
}

/// Removes all that is old now, batch by batch, and tells of each.
///
/// # Errors
/// When the database does not answer. What was removed is removed; the next round goes on.
pub async fn round(store: &Store, retention: Retention, mut removed: impl FnMut(Kind, u32)) -> Result<(), CallError> {
    for kind in Kind::ALL {
        let mut after = None;
        loop {
            let cleaned = store.clean(kind, retention.of(kind), BATCH, after).await?;
            removed(kind, cleaned.removed);
            after = cleaned.place;
            if after.is_none() {
                break;
            }
            tokio::time::sleep(around(PAUSE)).await;
        }
    }
    Ok(())
}
