//! Counts what the lease library reports.

use std::sync::Arc;
use std::time::Duration;

use super::Metrics;
use super::labels::{ByCallOutcome, ByCause, ByKind, ByResult, GrantKind, ResultLabel};
use crate::lease::{Ended, Observer};
use crate::outcome::Outcome;

#[derive(Debug)]
pub(super) struct Counting(pub(super) Arc<Metrics>);

impl Observer for Counting {
    fn heartbeat(&self, ok: bool, took: Duration, left: Duration) {
        let result = if ok { ResultLabel::Ok } else { ResultLabel::Error };
        self.0.heartbeats.get_or_create(&ByResult { result }).inc();
        self.0.heartbeat_duration.observe(took.as_secs_f64());
        self.0.lease_seconds_left.set(left.as_secs_f64());
    }

    fn granted(&self, takeover: bool) {
        let kind = if takeover { GrantKind::Takeover } else { GrantKind::Grant };
        self.0.grants.get_or_create(&ByKind { kind }).inc();
    }

    fn wrote(&self, name: &'static str, outcome: &Outcome) {
        self.0.fenced_writes.get_or_create(&ByCallOutcome { call: name, outcome: outcome.into() }).inc();
        self.0.not_applied(name, outcome);
    }

    fn ended(&self, why: &Ended) {
        self.0.sessions_ended.get_or_create(&ByCause { cause: why.into() }).inc();
        self.0.lease_seconds_left.set(0.0);
    }
}
