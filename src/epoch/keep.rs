//! A controller's loop: it sees to it that the running database has an epoch, and says so when a person is needed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Allocator, Attention, Cause, EpochError};
use crate::http::Readiness;
use crate::metrics::Metrics;
use crate::retry::around;

/// How often a replica looks whether the epoch is still the running database's.
const INTERVAL: Duration = Duration::from_secs(4);
/// How soon it looks again after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// After how many looks it looks through the cluster for a fence that is ahead: about every five minutes.
const LOOKS: u32 = 75;

/// Who is told about the epoch, and who asks for it.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Its reason `epoch` says what is wrong.
    pub readiness: Readiness,
    /// Number, whether it is established, why a person is needed.
    pub metrics: Arc<Metrics>,
    /// Somebody was told `epoch_not_established`: look now.
    pub hint: Arc<Notify>,
    /// Why there will be no epoch until a person does something. Said only when two looks agree.
    pub attention: watch::Sender<Option<Attention>>,
}

impl Allocator {
    /// Keeps the epoch established until `stop`: looks every few seconds, and at once on a hint.
    pub async fn keep(self, keeping: Keeping, stop: CancellationToken) {
        let mut state = State { keeping, said: String::new(), seen: None, ahead: None, looks: 0 };
        loop {
            let ensured = tokio::select! {
                () = stop.cancelled() => return,
                ensured = self.ensure() => ensured,
            };
            let wait = match ensured {
                Ok(number) => {
                    state.established(&self, number).await;
                    INTERVAL
                }
                Err(error) => {
                    state.failed(&error);
                    AGAIN
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = state.keeping.hint.notified() => tokio::time::sleep(around(Duration::from_millis(50))).await,
                () = tokio::time::sleep(around(wait)) => {}
            }
        }
    }
}

struct State {
    keeping: Keeping,
    /// What was logged last.
    said: String,
    /// What the last look found.
    seen: Option<Cause>,
    /// A fence in the cluster that is ahead.
    ahead: Option<Attention>,
    looks: u32,
}

impl State {
    async fn established(&mut self, allocator: &Allocator, number: i64) {
        self.keeping.metrics.epoch(Some(number), true);
        self.keeping.metrics.epoch_attention(self.ahead.as_ref().map(|ahead| ahead.cause));
        self.keeping.readiness.ready("epoch");
        self.keeping.attention.send_if_modified(|told| told.take().is_some());
        if self.looks.is_multiple_of(LOOKS) || self.seen.is_some() {
            // A list that fails is no reason to have no epoch.
            self.ahead = allocator.fence_ahead(number).await.unwrap_or(None);
        }
        self.looks += 1;
        self.seen = self.ahead.as_ref().map(|ahead| ahead.cause);
        self.keeping.metrics.epoch_attention(self.seen);
        let text = self.ahead.as_ref().map(ToString::to_string).unwrap_or_default();
        self.say(text);
    }

    fn failed(&mut self, error: &EpochError) {
        let attention = error.attention();
        let cause = attention.as_ref().map(|attention| attention.cause);
        let text = attention.as_ref().map_or_else(|| error.to_string(), ToString::to_string);
        self.keeping.metrics.epoch(None, false);
        self.keeping.metrics.epoch_attention(cause);
        self.keeping.readiness.not_ready("epoch", &text);
        self.say(format!("no epoch: {text}"));
        // One look may have come between two steps of a person.
        let agreed = cause.is_some() && cause == self.seen;
        self.seen = cause;
        self.keeping.attention.send_if_modified(|told| {
            let new = if agreed { attention } else { None };
            let changed = (agreed || cause.is_none()) && *told != new;
            if changed {
                *told = new;
            }
            changed
        });
    }

    fn say(&mut self, text: String) {
        if text != self.said && !text.is_empty() {
            tracing::error!("{text}");
        }
        self.said = text;
    }
}
