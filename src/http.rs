//! `/healthz`, `/readyz` and `/metrics`.
//!
//! - `/healthz`: the process does its work. It fails when the watchdog says that the main loop is stuck; a restart helps.
//! - `/readyz`: it can do its work. It fails with the reasons (no database, no epoch); a restart would not help.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::metrics::Metrics;

/// What a process still waits for before it can do its work. Shared: each part names its own reason.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Not ready for `reasons` until each is [`Readiness::ready`].
    #[must_use]
    pub fn waiting_for(reasons: &[&'static str]) -> Self {
        let readiness = Self::default();
        for reason in reasons {
            readiness.not_ready(reason, "not yet");
        }
        readiness
    }

    /// This reason is gone.
    pub fn ready(&self, reason: &'static str) {
        self.locked().remove(reason);
    }

    /// Not ready for this reason, with the particulars for a person.
    pub fn not_ready(&self, reason: &'static str, why: impl Into<String>) {
        self.locked().insert(reason, why.into());
    }

    /// The reasons, a line each; `None`: ready.
    #[must_use]
    pub fn reasons(&self) -> Option<String> {
        let reasons = self.locked();
        let lines = reasons.iter().map(|(reason, why)| format!("{reason}: {why}\n"));
        (!reasons.is_empty()).then(|| lines.collect())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        // A map of texts: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A main loop that shows that it is not stuck: run [`Pulse::beat`] in its own task, beside it.
#[derive(Clone, Debug)]
pub struct Pulse {
    clock: Clock,
    last: Arc<AtomicU64>,
}

impl Pulse {
    const EVERY: Duration = Duration::from_secs(1);
    /// How long a task may keep its thread for itself before a restart is better.
    const LIMIT: Duration = Duration::from_secs(30);

    /// A pulse that has just been felt.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let last = Arc::new(AtomicU64::new(clock.now().as_millis()));
        Self { clock, last }
    }

    /// Beats as long as the task that it runs in is given its turns. Does not return.
    pub async fn beat(&self) {
        loop {
            self.last.store(self.clock.now().as_millis(), Ordering::SeqCst);
            tokio::time::sleep(Self::EVERY).await;
        }
    }

    /// For [`Probes::watchdog`].
    #[must_use]
    pub fn watchdog(&self) -> Watchdog {
        let Self { clock, last } = self.clone();
        Arc::new(move || {
            let silent = clock.now().since(Moment::from_millis(last.load(Ordering::SeqCst)));
            if silent < Self::LIMIT { Ok(()) } else { Err(format!("the main loop has not had a turn for {silent:?}")) }
        })
    }
}

/// Says why the main loop is stuck, if it is.
pub type Watchdog = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the server tells about.
#[derive(Clone)]
pub struct Probes {
    /// For `/healthz`.
    pub watchdog: Watchdog,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    /// Where: with the port that was chosen, where 0 was asked for.
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

/// How long a request that is under way may take after the server was asked to stop.
const FAREWELL: Duration = Duration::from_secs(2);

impl Server {
    /// Waits until the server has stopped, after its token was cancelled.
    pub async fn stopped(mut self) {
        if tokio::time::timeout(FAREWELL, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Serves the probes until `stop` is cancelled. Returns as soon as it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(listen: SocketAddr, probes: Probes, stop: CancellationToken) -> std::io::Result<Server> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes);
    tracing::info!(%address, "listening for /healthz, /readyz and /metrics");
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
            tracing::error!(%address, "the probes' server ended: {error}");
        }
    });
    Ok(Server { address, task })
}

async fn healthz(State(probes): State<Probes>) -> impl IntoResponse {
    match (probes.watchdog)() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("stuck: {why}\n")),
    }
}

async fn readyz(State(probes): State<Probes>) -> impl IntoResponse {
    match probes.readiness.reasons() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], probes.metrics.print())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn probes_tell_stuck_from_not_ready_and_the_server_stops_when_told() {
        let stuck = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stuck);
        let probes = Probes {
            watchdog: Arc::new(move || if seen.load(Ordering::SeqCst) { Err("no beat".into()) } else { Ok(()) }),
            readiness: Readiness::waiting_for(&["database", "epoch"]),
            metrics: Arc::new(Metrics::new()),
        };
        let stop = CancellationToken::new();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = serve(listen, probes.clone(), stop.clone()).await.expect("a free port");

        assert!(ask(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask(server.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("database: not yet\nepoch: not yet\n"), "{answer}");
        probes.readiness.ready("database");
        probes.readiness.ready("epoch");
        assert!(ask(server.address, "/readyz").await.starts_with("HTTP/1.1 200"));
        stuck.store(true, Ordering::SeqCst);
        assert!(ask(server.address, "/healthz").await.contains("stuck: no beat"));
        assert!(ask(server.address, "/metrics").await.contains("# EOF"));

        // A client that never ends its request does not hold the process.
        let mut idle = tokio::net::TcpStream::connect(server.address).await.expect("it listens");
        idle.write_all(b"GET /healthz HTT").await.expect("sent");
        stop.cancel();
        server.stopped().await;
    }
}
