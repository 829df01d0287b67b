//! `palisade worker`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::process::{self, between, default_name, name, ttl};
use super::{Context, Database, Error, Kubeconfig};
use crate::crd::Span;
use crate::http::Readiness;
use crate::lease::SessionConfig;
use crate::worker::{self, Cluster, WorkerConfig};

/// Roll out ModelDeployments: claim those whose work is due, and carry out their plans under a lease
///
/// Run as many as you like: each deployment has one owner at a time, and whatever a worker that was paused still tries
/// is refused. A worker needs a database login in the group role palisade_worker, and the permissions of the
/// ServiceAccount that `palisade crd --with-policy` prints.
///
/// SIGTERM hands over: work stops at its next safe step, leases are released, and the exit code is 0.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  palisade worker\n  palisade worker --ttl 15s --capacity 32 --listen 0.0.0.0:8080")]
pub struct Args {
    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    cluster: Kubeconfig,

    /// The worker's name, for people: in statuses, history and logs. Ownership never depends on it [default: HOSTNAME-PID]
    #[arg(long, env = "PALISADE_WORKER_NAME", value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// How long after its last heartbeat another worker takes over (1s to 1h). Shorter: sooner after a crash; longer:
    /// more patience with a slow network
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = ttl)]
    ttl: Span,

    /// Deployments to work on at once
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    capacity: u16,

    /// How often to ask for work when there is none, give or take a fifth
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = poll)]
    poll: Span,

    /// How long to go on with what is under way after SIGTERM. Keep it below terminationGracePeriodSeconds
    #[arg(long, default_value = "20s", value_name = "DURATION")]
    drain: Span,

    /// Where to serve /healthz, /readyz and /metrics; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", env = "PALISADE_LISTEN", value_name = "ADDRESS")]
    listen: SocketAddr,
}

pub(super) fn poll(text: &str) -> Result<Span, String> {
    between(text, Duration::from_millis(50), Duration::from_secs(60))
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    let Args { database, cluster, name, ttl, capacity, poll, drain, listen } = args;
    context.stop_on_signals()?;
    let (name, ttl) = (name.unwrap_or_else(|| default_name("worker")), ttl.duration());
    let store = process::store(&database, &format!("palisade worker {name}"), ttl, u32::from(capacity).clamp(4, 32))?;
    let cluster = Cluster::new(cluster.client().await?, Arc::clone(&context.metrics));
    let (clock, observer) = (context.clock.clone(), context.metrics.observer(ttl));
    let session = SessionConfig { clock, observer, ..SessionConfig::new(name, ttl) };
    let config = WorkerConfig { session, capacity: capacity.into(), poll: poll.duration(), drain: drain.duration() };
    let readiness = Readiness::waiting_for(&["schema", "session"]);
    let work = async {
        if process::schema(&store, &readiness, &context.stop).await {
            let metrics = Arc::clone(&context.metrics);
            worker::run(config, store.clone(), cluster, metrics, readiness.clone(), context.stop.clone()).await;
        }
        store.close().await;
    };
    process::with_probes(listen, &context, readiness.clone(), work).await
}
