//! What only the leader knows: gone with the leadership, for the next one tells it.

use std::time::Duration;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{ByState, ByTable};
use super::{Known, Seconds, add};
use crate::reconcile::status::Standing;
use crate::store::{Figures, Size};

#[derive(Debug)]
pub(super) struct OfLeader {
    queue_depth: Known<Gauge>,
    queue_age: Known<Seconds>,
    leases_held: Known<Gauge>,
    sessions_open: Known<Gauge>,
    oldest_transaction: Known<Seconds>,
    oldest_snapshot_age: Known<Gauge>,
    table_bytes: Family<ByTable, Gauge>,
    modeldeployments: Family<ByState, Gauge>,
    modeldeployments_oldest: Family<ByState, Seconds>,
}

impl OfLeader {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            queue_depth: add(r, "queue_depth", "Deployments whose work is due", Known::default()),
            queue_age: add(r, "queue_age_seconds", "Since when the oldest of them is due", Known::default()),
            leases_held: add(r, "leases_held", "Leases that any session holds", Known::default()),
            sessions_open: add(r, "sessions_open", "Sessions that are alive", Known::default()),
            oldest_transaction: add(
                r,
                "oldest_transaction_seconds",
                "Age of the oldest open transaction in the database",
                Known::default(),
            ),
            oldest_snapshot_age: add(
                r,
                "oldest_snapshot_age_transactions",
                "How many transactions the server's oldest snapshot is behind",
                Known::default(),
            ),
            table_bytes: add(r, "table_bytes", "What a table takes on the disk, with its indexes", Family::default()),
            modeldeployments: add(
                r,
                "modeldeployments",
                "ModelDeployments by what their status says",
                Family::default(),
            ),
            modeldeployments_oldest: add(
                r,
                "modeldeployments_oldest_seconds",
                "For how long one of them has been in this state, as far as this leader saw it",
                Family::default(),
            ),
        }
    }

    pub(super) fn clear(&self) {
        let Self {
            queue_depth,
            queue_age,
            leases_held,
            sessions_open,
            oldest_transaction,
            oldest_snapshot_age,
            table_bytes,
            modeldeployments,
            modeldeployments_oldest,
        } = self;
        for gauge in [queue_depth, leases_held, sessions_open, oldest_snapshot_age] {
            gauge.clear();
        }
        for gauge in [queue_age, oldest_transaction] {
            gauge.clear();
        }
        table_bytes.clear();
        modeldeployments.clear();
        modeldeployments_oldest.clear();
    }

    pub(super) fn figures(&self, figures: &Figures) {
        let Figures { queue_depth, queue_age, leases_held, sessions_open, oldest_transaction, oldest_xmin_age } =
            figures;
        self.queue_depth.get_or_create(&[]).set(*queue_depth);
        self.queue_age.get_or_create(&[]).set(queue_age.as_secs_f64());
        self.leases_held.get_or_create(&[]).set(*leases_held);
        self.sessions_open.get_or_create(&[]).set(*sessions_open);
        self.oldest_transaction.get_or_create(&[]).set(oldest_transaction.as_secs_f64());
        self.oldest_snapshot_age.get_or_create(&[]).set(*oldest_xmin_age);
    }

    pub(super) fn sizes(&self, sizes: &[Size]) {
        // A closed set: a word from outside is no label.
        const TABLES: [&str; 7] = ["event", "grant_history", "lease", "operation", "refusal", "request", "session"];
        for Size { table, bytes } in sizes {
            if let Some(table) = TABLES.into_iter().find(|known| known == table) {
                self.table_bytes.get_or_create(&ByTable { table }).set(*bytes);
            }
        }
    }

    pub(super) fn standings(&self, standings: [(Standing, i64, Duration); 4]) {
        for (standing, count, longest) in standings {
            let state = ByState { state: standing.word() };
            self.modeldeployments.get_or_create(&state).set(count);
            self.modeldeployments_oldest.get_or_create(&state).set(longest.as_secs_f64());
        }
    }
}
