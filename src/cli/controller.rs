//! `palisade controller`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::process::{self, default_name, name, ttl};
use super::{Context, Database, Error, Kubeconfig};
use crate::crd::Span;
use crate::http::Readiness;
use crate::manifests::{self, NameError, SYSTEM_NAMESPACE};
use crate::reconcile::upkeep::Retention;
use crate::reconcile::{self, Parts, Settings};

/// Turn ModelDeployments into plans, and what workers record into their status
///
/// Run one or more: one of them leads, by a lease of its own, and a leader that was replaced can write nothing that
/// sticks. A controller needs a database login in the group role palisade_controller, and the permissions of the
/// ServiceAccount that `palisade crd --with-policy` prints. Every replica sees to it that the running database has an
/// epoch: after each of its restarts, and in the beginning.
///
/// SIGTERM releases the leadership, and the exit code is 0.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  palisade controller\n  palisade controller --watch-namespace ml --listen 0.0.0.0:8080"
)]
pub struct Args {
    #[command(flatten)]
    database: Database,

    #[command(flatten)]
    cluster: Kubeconfig,

    /// Namespace of Palisade's own objects: of the ConfigMap `palisade-epoch`
    #[arg(long, default_value = SYSTEM_NAMESPACE, env = "PALISADE_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    namespace: String,

    /// Look after the ModelDeployments of this namespace only [default: of all]
    #[arg(long, env = "PALISADE_WATCH_NAMESPACE", value_parser = namespace, value_name = "NAMESPACE")]
    watch_namespace: Option<String>,

    /// How long after its last heartbeat another replica leads (1s to 1h)
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = ttl)]
    ttl: Span,

    /// The replica's name, for people. Leadership never depends on it [default: HOSTNAME-PID]
    #[arg(long, env = "PALISADE_REPLICA_NAME", value_name = "NAME", value_parser = name)]
    replica_name: Option<String>,

    #[command(flatten)]
    keep: Keep,

    /// Where to serve /healthz, /readyz and /metrics; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", env = "PALISADE_LISTEN", value_name = "ADDRESS")]
    listen: SocketAddr,
}

/// How long old rows are kept: whole numbers with units (d, h, m, s), from 1h to 3650d.
#[derive(Clone, Debug, clap::Args)]
struct Keep {
    /// Keep what became of writes for this long: until then a fence, or a request, that is sent again gets its first
    /// answer. What the newest token of a resource wrote is always kept
    #[arg(long, default_value = "7d", env = "PALISADE_KEEP_LEDGER", value_name = "DURATION", value_parser = keep)]
    keep_ledger: Duration,

    /// Keep refused writes for this long
    #[arg(long, default_value = "30d", env = "PALISADE_KEEP_REFUSALS", value_name = "DURATION", value_parser = keep)]
    keep_refusals: Duration,

    /// Keep grants for this long, no less than the ledger. The newest of each resource is always kept
    #[arg(long, default_value = "90d", env = "PALISADE_KEEP_HISTORY", value_name = "DURATION", value_parser = keep)]
    keep_history: Duration,

    /// Keep the registry's events for this long, for readers of palisade.events()
    #[arg(long, default_value = "7d", env = "PALISADE_KEEP_EVENTS", value_name = "DURATION", value_parser = keep)]
    keep_events: Duration,
}

impl Keep {
    fn retention(&self) -> Result<Retention, Error> {
        let Self { keep_ledger: ledger, keep_refusals: refusals, keep_history: history, keep_events: events } = *self;
        if history < ledger {
            let [history, ledger] = [history, ledger].map(|span| Span::from_secs(span.as_secs()));
            return Err(Error::usage(format!(
                "--keep-history is {history}, and must not be shorter than --keep-ledger, {ledger}: a grant proves whose a fence was"
            )));
        }
        Ok(Retention { ledger, refusals, history, events })
    }
}

pub(super) fn keep(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 3600);
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    let span = match days.and_then(|days| day.checked_mul(days)) {
        Some(span) => span,
        None => text.parse::<Span>().map_err(|error| format!("{error}, or in days, such as \"7d\""))?.duration(),
    };
    // The database keeps everything for an hour at the least.
    if (Duration::from_secs(3600)..=day * 3650).contains(&span) {
        Ok(span)
    } else {
        Err("it must be from 1h to 3650d".into())
    }
}

pub(super) fn namespace(text: &str) -> Result<String, NameError> {
    manifests::check_label(text).map(|()| text.to_owned())
}

/// Runs until SIGTERM.
///
/// # Errors
/// When the arguments cannot be used. A database or a cluster that does not answer is waited for.
pub(super) async fn run(args: Args, context: Context) -> Result<(), Error> {
    let Args { database, cluster, namespace, watch_namespace, ttl, replica_name, keep, listen } = args;
    let retention = keep.retention()?;
    context.stop_on_signals()?;
    let (replica, ttl) = (replica_name.unwrap_or_else(|| default_name("controller")), ttl.duration());
    let store = process::store(&database, &format!("palisade controller {replica}"), ttl, 8)?;
    let client = cluster.client().await?;
    let readiness = Readiness::waiting_for(&["schema", "cluster", "database", "epoch"]);
    let settings = Settings { replica, system_namespace: namespace, watch_namespace, ttl, retention };
    let (clock, metrics) = (context.clock.clone(), Arc::clone(&context.metrics));
    let parts = Parts { settings, store: store.clone(), client, metrics, readiness: readiness.clone(), clock };
    let waiting = readiness.clone();
    let work = async {
        if process::schema(&store, &waiting, &context.stop).await {
            reconcile::run(parts, context.stop.clone()).await;
        }
        store.close().await;
    };
    process::with_probes(listen, &context, readiness, work).await
}
