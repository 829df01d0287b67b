//! `palisade worker`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Context, Database, Error};
use crate::cluster;
use crate::crd::Span;
use crate::http::{self, Probes, Readiness};
use crate::lease::{MARGIN_DIVISOR, SessionConfig};
use crate::store::{Store, StoreConfig};
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

fn name(text: &str) -> Result<String, String> {
    let ok = (1..=253).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
    if ok { Ok(text.to_owned()) } else { Err("1 to 253 visible ASCII characters are a name".into()) }
}

fn ttl(text: &str) -> Result<Span, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(3600))
}

fn poll(text: &str) -> Result<Span, String> {
    between(text, Duration::from_millis(50), Duration::from_secs(60))
}

fn between(text: &str, least: Duration, most: Duration) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|e: crate::crd::SpanError| e.to_string())?;
    if (least..=most).contains(&span.duration()) {
        Ok(span)
    } else {
        Err(format!("it must be from {least:?} to {most:?}"))
    }
}

pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    context.stop_on_signals()?;
    let ttl = args.ttl.duration();
    let name = args.name.unwrap_or_else(default_name);
    let timeout = (ttl / MARGIN_DIVISOR).min(Duration::from_secs(5));
    let connections = u32::from(args.capacity).clamp(4, 32);
    let config = StoreConfig { timeout, connections, ..args.database.config(&format!("palisade worker {name}")) };
    let store = Store::new(&config).map_err(|e| Error::usage(e.to_string()))?;
    let client = cluster::client().await.map_err(|e| {
        Error::unavailable_next(format!("no cluster: {e}"), "set KUBECONFIG, or run in a pod with a ServiceAccount")
    })?;

    let readiness = Readiness::waiting_for(&["session"]);
    let probes = Probes {
        // The runtime answers: what hangs in it loses its lease, and is taken over. A restart would not be quicker.
        watchdog: Arc::new(|| Ok(())),
        readiness: readiness.clone(),
        metrics: Arc::clone(&context.metrics),
    };
    let server = http::serve(args.listen, probes, context.stop.clone())
        .await
        .map_err(|e| Error::failed_next(format!("cannot listen on {}: {e}", args.listen), "choose another --listen"))?;
    let session = SessionConfig {
        clock: context.clock.clone(),
        observer: context.metrics.observer(),
        ..SessionConfig::new(name, ttl)
    };
    let config = WorkerConfig {
        session,
        capacity: args.capacity.into(),
        poll: args.poll.duration(),
        drain: args.drain.duration(),
    };
    let cluster = Cluster::new(client, Arc::clone(&context.metrics));
    worker::run(config, store.clone(), cluster, Arc::clone(&context.metrics), readiness, context.stop).await;
    store.close().await;
    server.stopped().await;
    Ok(())
}

fn default_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}-{}", if host.is_empty() { "worker" } else { &host }, std::process::id())
}
