//! What the outside can count. One struct that is passed in; every label is a closed set of words of this program, never
//! text from outside, so that the number of series is bounded.

mod counting;
mod labels;
mod leader;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use counting::Counting;
use labels::{
    ByAttention, ByCall, ByCallOutcome, ByCause, ByKind, ByReason, ByRemoved, ByResult, ByStep, GrantKind, ReasonLabel,
    RemovedLabel,
};
use leader::OfLeader;

use crate::epoch;
use crate::lease::Observer;
use crate::outcome::{Outcome, Reason};
use crate::reconcile::status::Standing;
use crate::store::{Figures, Kind, Size};

pub use labels::ResultLabel;

/// Milliseconds to seconds: a call to a database.
#[derive(Clone, Copy, Debug)]
struct Fast;
/// Tenths of seconds to hours: a step of a rollout, whose models may be large.
#[derive(Clone, Copy, Debug)]
struct Slow;

impl MetricConstructor<Histogram> for Fast {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
    }
}

impl MetricConstructor<Histogram> for Slow {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0])
    }
}

/// The reasons that speak of the fence itself: people watch them.
const OF_THE_FENCE: [Reason; 3] = [Reason::Stale, Reason::NotIssued, Reason::WrongKey];

type Seconds = Gauge<f64, AtomicU64>;
/// A gauge that is not there until it is known: a worker knows nothing of the epoch, and must not say that there is none.
type Known<M> = Family<[(&'static str, &'static str); 0], M>;

/// All that this process counts. Reading `/metrics` takes the registry; counting takes an atomic.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    grants: Family<ByKind, Counter>,
    heartbeats: Family<ByResult, Counter>,
    heartbeat_duration: Histogram,
    lease_seconds_left: Seconds,
    session_ttl: Seconds,
    fenced_writes: Family<ByCallOutcome, Counter>,
    refused_writes: Family<ByReason, Counter>,
    unknown_outcomes: Family<ByCall, Counter>,
    sessions_ended: Family<ByCause, Counter>,
    step_duration: Family<ByStep, Histogram, Slow>,
    of_leader: OfLeader,
    registry_refusals: Family<ByReason, Counter>,
    rows_removed: Family<ByRemoved, Counter>,
    reconciles: Family<ByResult, Counter>,
    reconcile_duration: Histogram,
    surveyed: Counter,
    leader: Known<Gauge>,
    epoch: Known<Gauge>,
    epoch_established: Known<Gauge>,
    epoch_needs_attention: Family<ByAttention, Gauge>,
    cluster_writes: Family<ByCallOutcome, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers a metric and gives back its handle. Counters get `_total` behind their name when they are printed.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("palisade");
        let r = &mut registry;
        let new = Self {
            grants: add(r, "grants", "Leases granted to this process", Family::default()),
            heartbeats: add(r, "heartbeats", "Heartbeats sent", Family::default()),
            heartbeat_duration: add(
                r,
                "heartbeat_duration_seconds",
                "How long heartbeats took to be answered",
                Fast.new_metric(),
            ),
            lease_seconds_left: add(
                r,
                "lease_seconds_left",
                "What was left of the session's term just before the last heartbeat was sent; 0: it is over",
                Seconds::default(),
            ),
            session_ttl: add(
                r,
                "session_ttl_seconds",
                "How long after its last heartbeat another one takes over; 0: it opens no session",
                Seconds::default(),
            ),
            fenced_writes: add(r, "fenced_writes", "Fenced writes to the database, by outcome", Family::default()),
            refused_writes: add(r, "refused_writes", "Fenced writes that were refused, by reason", Family::default()),
            unknown_outcomes: add(r, "unknown_outcomes", "Writes that ended without an answer", Family::default()),
            sessions_ended: add(r, "sessions_ended", "Sessions that ended, by cause", Family::default()),
            step_duration: add(
                r,
                "step_duration_seconds",
                "How long a rollout's steps took",
                Family::new_with_constructor(Slow),
            ),
            of_leader: OfLeader::new(r),
            registry_refusals: add(
                r,
                "registry_refusals",
                "Fenced writes that the database refused, by reason, whoever sent them, while this controller led",
                Family::default(),
            ),
            rows_removed: add(r, "rows_removed", "Old rows that were removed, by kind", Family::default()),
            reconciles: add(r, "reconciles", "Reconciliations of a ModelDeployment", Family::default()),
            reconcile_duration: add(r, "reconcile_duration_seconds", "How long they took", Fast.new_metric()),
            surveyed: add(r, "surveyed", "ModelDeployments that a survey found to need no look", Counter::default()),
            leader: add(r, "leader", "Whether this controller leads", Known::default()),
            epoch: add(r, "epoch", "The epoch's number, as last seen", Known::default()),
            epoch_established: add(
                r,
                "epoch_established",
                "Whether it is established for the running database: only then can leases be granted",
                Known::default(),
            ),
            epoch_needs_attention: add(
                r,
                "epoch_needs_attention",
                "Whether a person must see to the epoch, by cause: it does not heal by itself",
                Family::default(),
            ),
            cluster_writes: add(r, "cluster_writes", "Writes to the cluster, by outcome", Family::default()),
            registry: Registry::default(),
        };
        // There from the start: a counter that begins with its first event hides that one from rate() and increase().
        new.grants.get_or_create(&ByKind { kind: GrantKind::Takeover }).inc_by(0);
        for reason in OF_THE_FENCE {
            new.refused_writes.get_or_create(&ByReason { reason: ReasonLabel(reason) }).inc_by(0);
        }
        Self { registry, ..new }
    }

    /// Counts what becomes of a session with this TTL, and of its leases.
    #[must_use]
    pub fn observer(self: &Arc<Self>, ttl: Duration) -> Arc<dyn Observer> {
        self.session_ttl.set(ttl.as_secs_f64());
        Arc::new(Counting(Arc::clone(self)))
    }

    /// A step of a rollout ended.
    pub fn step(&self, step: &'static str, result: ResultLabel, took: Duration) {
        self.step_duration.get_or_create(&ByStep { step, result }).observe(took.as_secs_f64());
    }

    /// A reconciliation ended.
    pub fn reconciled(&self, result: ResultLabel, took: Duration) {
        self.reconciles.get_or_create(&ByResult { result }).inc();
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    /// A survey found that a ModelDeployment needs no look.
    pub fn surveyed(&self) {
        self.surveyed.inc();
    }

    /// A fenced write to the cluster ended.
    pub fn cluster_wrote<T>(&self, call: &'static str, outcome: &Outcome<T>) {
        self.cluster_writes.get_or_create(&ByCallOutcome { call, outcome: outcome.into() }).inc();
        self.not_applied(call, outcome);
    }

    /// What the database says of itself.
    pub fn figures(&self, figures: &Figures) {
        self.of_leader.figures(figures);
    }

    /// The database refused so many more writes, whoever sent them.
    pub fn registry_refused(&self, refusals: &[(Reason, u64)]) {
        for (reason, count) in OF_THE_FENCE.map(|reason| (reason, 0)).iter().chain(refusals) {
            self.registry_refusals.get_or_create(&ByReason { reason: ReasonLabel(*reason) }).inc_by(*count);
        }
    }

    /// Old rows were removed.
    pub fn removed(&self, kind: Kind, rows: u32) {
        self.rows_removed.get_or_create(&ByRemoved { kind: RemovedLabel(kind) }).inc_by(rows.into());
    }

    /// How large the tables are that grow.
    pub fn sizes(&self, sizes: &[Size]) {
        self.of_leader.sizes(sizes);
    }

    /// How many ModelDeployments stand where, and since when one does.
    pub fn standings(&self, standings: [(Standing, i64, Duration); 4]) {
        self.of_leader.standings(standings);
    }

    /// Whether this controller leads.
    pub fn leads(&self, leads: bool) {
        self.leader.get_or_create(&[]).set(i64::from(leads));
        if !leads {
            self.of_leader.clear();
        }
    }

    /// Which epoch it is, if one was ever established, and whether it is the running database's.
    pub fn epoch(&self, number: Option<i64>, established: bool) {
        self.epoch.get_or_create(&[]).set(number.unwrap_or(0));
        self.epoch_established.get_or_create(&[]).set(i64::from(established));
    }

    /// Why a person must see to the epoch.
    pub fn epoch_attention(&self, why: Option<epoch::Cause>) {
        for cause in epoch::Cause::ALL {
            let gauge = self.epoch_needs_attention.get_or_create(&ByAttention { cause: cause.word() });
            gauge.set(i64::from(why == Some(cause)));
        }
    }

    /// Everything, as Prometheus reads it (OpenMetrics text).
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail.
            Err(std::fmt::Error) => String::new(),
        }
    }

    fn not_applied<T>(&self, call: &'static str, outcome: &Outcome<T>) {
        match outcome {
            Outcome::Rejected(rejection) => {
                self.refused_writes.get_or_create(&ByReason { reason: ReasonLabel(rejection.reason) }).inc();
            }
            Outcome::Unknown(_) => {
                self.unknown_outcomes.get_or_create(&ByCall { call }).inc();
            }
            Outcome::Applied(_) | Outcome::Replayed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Ended;
    use crate::outcome::Rejection;

    #[test]
    fn what_happens_to_a_lease_is_counted_under_the_promised_names() {
        let metrics = Arc::new(Metrics::new());
        let observer = metrics.observer(Duration::from_secs(10));
        observer.granted(true);
        observer.heartbeat(true, Duration::from_millis(3), Duration::from_secs(4));
        observer.wrote("set_alias", &Outcome::Unknown("late".into()));
        let refused = Rejection { reason: Reason::Stale, current: None, detail: None };
        observer.wrote("set_alias", &Outcome::Rejected(refused));
        metrics.step("verify", ResultLabel::Ok, Duration::from_secs(2));
        metrics.figures(&Figures { queue_depth: 7, ..Figures::default() });
        metrics.removed(Kind::Ledger, 3);
        metrics.sizes(&[Size { table: "event".into(), bytes: 8192 }, Size { table: "theirs".into(), bytes: 1 }]);
        metrics.standings(Standing::ALL.map(|standing| (standing, 2, Duration::from_secs(9))));
        let text = metrics.print();
        assert!(!text.contains("theirs"), "{text}");
        for line in [
            "palisade_grants_total{kind=\"takeover\"} 1",
            "palisade_heartbeats_total{result=\"ok\"} 1",
            "palisade_heartbeat_duration_seconds_count 1",
            "palisade_lease_seconds_left 4.0",
            "palisade_session_ttl_seconds 10.0",
            "palisade_fenced_writes_total{call=\"set_alias\",outcome=\"rejected\"} 1",
            "palisade_refused_writes_total{reason=\"stale\"} 1",
            "palisade_unknown_outcomes_total{call=\"set_alias\"} 1",
            "palisade_step_duration_seconds_count{step=\"verify\",result=\"ok\"} 1",
            "palisade_queue_depth{} 7",
            "palisade_modeldeployments{state=\"stalled\"} 2",
            "palisade_modeldeployments_oldest_seconds{state=\"reconciling\"} 9.0",
            "palisade_rows_removed_total{kind=\"ledger\"} 3",
            "palisade_table_bytes{table=\"event\"} 8192",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        metrics.leads(true);
        metrics.leads(false);
        for gone in ["palisade_queue_depth{", "palisade_table_bytes{", "palisade_modeldeployments"] {
            assert!(!metrics.print().lines().any(|line| line.starts_with(gone)), "a former leader tells {gone}");
        }
        observer.ended(&Ended::Closed);
        assert!(metrics.print().contains("palisade_sessions_ended_total{cause=\"closed\"} 1"));
        assert!(metrics.print().contains("palisade_lease_seconds_left 0.0"), "no term is left");
    }
}
