//! `palisade doctor`: whether that on which Palisade stands is as it must be. It changes nothing, unless it is asked to
//! measure writes.
//!
//! ```text
//! store: one connection, a few statements ─▶ facts.rs ─▶ database.rs, logins.rs, activity.rs ─┐
//! look.rs, admission.rs: the API server ───────────────▶ cluster.rs, policies.rs, rights.rs ───┼─▶ Report
//! times and variables ─────────────────────────────────▶ configuration.rs ──────────────────────┘
//! ```
//!
//! The checks are pure: facts in, findings out. What cannot be looked at is a finding too, and the rest is still checked.

pub mod activity;
pub mod admission;
pub mod cluster;
pub mod configuration;
pub mod database;
pub mod facts;
mod finding;
pub mod logins;
mod look;
pub mod policies;
pub mod rights;

use std::time::Duration;

use kube::Client;
use secrecy::SecretString;
use uuid::Uuid;

pub use configuration::Configuration;
pub use finding::{Finding, Looked, Report, Severity, Unseen};
pub use look::{Wanted, cluster_facts};

use crate::clock::Clock;
use crate::epoch::{Allocator, EpochView};
use crate::store::{self, Store, StoreConfig};

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Area {
    /// Postgres, the schema, the logins.
    Database,
    /// The API server, what is installed there, who may do what.
    Cluster,
    /// Times and variables, against what was measured.
    Configuration,
}

/// What the doctor is asked.
#[derive(Clone)]
pub struct Visit {
    /// How to reach the database; its timeout holds for each question to the cluster, too. Absent: nobody named one.
    pub database: Option<StoreConfig>,
    /// How to reach the cluster, or why not.
    pub client: Result<Client, String>,
    /// Where to look there, and for whom.
    pub wanted: Wanted,
    /// Times and variables.
    pub configuration: Configuration,
    /// How long the controller keeps events.
    pub keep_events: Duration,
    /// Only this; absent: everything.
    pub only: Option<Area>,
    /// Open one session, send some heartbeats, close it: the one thing that writes.
    pub measure_writes: bool,
    /// How long one question may take.
    pub timeout: Duration,
}

/// Looks at everything that it was asked to look at.
pub async fn visit(visit: Visit, clock: &Clock) -> Report {
    let Visit { database, client, wanted, configuration, keep_events, only, measure_writes, timeout } = visit;
    let pre = wanted.pre;
    let wants = |area| only.is_none_or(|only| only == area);
    // Also for the cluster alone: its epoch object is compared with the database's epoch.
    let asked_database = async {
        match &database {
            Some(config) => Some(store::database_facts(config, clock).await),
            None => None,
        }
    };
    let asked_cluster =
        async { if wants(Area::Cluster) { Some(cluster_facts(client.clone(), &wanted, timeout).await) } else { None } };
    let (of_database, of_cluster) = tokio::join!(asked_database, asked_cluster);
    let mut findings = Vec::new();
    if wants(Area::Database) {
        findings.extend(match &of_database {
            Some(facts) => database::check(facts, pre, keep_events),
            None => vec![nowhere()],
        });
    }
    if let Some(facts) = &of_cluster {
        let view = match (&database, client) {
            (Some(config), Ok(client)) if !pre && has_epoch(of_database.as_ref()) => {
                Some(look_at_epoch(config, client, &wanted, timeout).await)
            }
            _ => None,
        };
        findings.extend(cluster::check(facts, view.as_ref(), pre));
    }
    if wants(Area::Configuration) {
        let beats = match &database {
            Some(config) if measure_writes => Some(beats(config, configuration.ttl, clock).await),
            _ => None,
        };
        let trips = of_database.as_ref().and_then(database::trips);
        findings.extend(configuration::check(&configuration, trips, beats.as_ref()));
    }
    findings.into()
}

/// Whether the database answers for its epoch at all.
fn has_epoch(facts: Option<&facts::DatabaseFacts>) -> bool {
    facts.and_then(|facts| facts.answers.as_ref().ok()).is_some_and(|answers| answers.epoch.is_ok())
}

/// The epoch as a controller sees it. It lists what carries a fence, which may take some questions more.
async fn look_at_epoch(config: &StoreConfig, client: Client, wanted: &Wanted, timeout: Duration) -> Looked<EpochView> {
    let store = Store::new(config).map_err(|e| Unseen::NoAnswer(e.to_string()))?;
    let allocator = Allocator::new(store.clone(), client, wanted.settings.namespace(), wanted.settings.watched());
    let view = tokio::time::timeout(timeout * 4, allocator.inspect()).await;
    store.close().await;
    // Who may see the object may not be let to list the others: why there is no view does not matter much here.
    match view {
        Ok(view) => view.map_err(|error| Unseen::NotAllowed(error.to_string())),
        Err(_) => Err(Unseen::NoAnswer(format!("within {:?}", timeout * 4))),
    }
}

fn nowhere() -> Finding {
    Finding::error(
        "database/unnamed",
        "no database was named",
        "without a database nothing can be granted or recorded",
        "set DATABASE_URL, or look at the cluster only: --only cluster",
    )
}

/// A session of the doctor's own: what a commit takes there. It holds no lease, and upkeep removes its row after a week.
async fn beats(config: &StoreConfig, ttl: Duration, clock: &Clock) -> configuration::Beats {
    const BEATS: usize = 10;
    let store = Store::new(config).map_err(|e| e.to_string())?;
    let (id, key) = (Uuid::now_v7(), SecretString::from(Uuid::new_v4().to_string()));
    let opened = store.open_session(id, &key, "palisade doctor", ttl).await.map_err(|e| e.to_string())?;
    opened.applied().map_err(|e| e.to_string())?;
    let mut took = Vec::with_capacity(BEATS);
    for _ in 0..BEATS {
        let sent = clock.now();
        let beat = store.heartbeat(id, &key, config.timeout).await.map_err(|e| e.to_string())?;
        beat.map_err(|rejection| rejection.to_string())?;
        took.push(clock.now().since(sent));
    }
    // What was measured counts; a session that is not closed ends with its TTL.
    let _ = store.close_session(id, &key).await;
    store.close().await;
    Ok(took)
}
