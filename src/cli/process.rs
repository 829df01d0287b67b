//! What controller and worker have in common: arguments, probes, a clean end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Context, Database, Error};
use crate::crd::{Span, SpanError};
use crate::http::{self, Probes, Pulse, Readiness};
use crate::lease::MARGIN_DIVISOR;
use crate::store::{Store, StoreConfig};

pub(super) fn ttl(text: &str) -> Result<Span, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(3600))
}

pub(super) fn between(text: &str, least: Duration, most: Duration) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|e: SpanError| e.to_string())?;
    if (least..=most).contains(&span.duration()) {
        Ok(span)
    } else {
        Err(format!("it must be from {least:?} to {most:?}"))
    }
}

pub(super) fn name(text: &str) -> Result<String, String> {
    let ok = (1..=253).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
    if ok { Ok(text.to_owned()) } else { Err("1 to 253 visible ASCII characters are a name".into()) }
}

/// `HOSTNAME-PID`, for people.
pub(super) fn default_name(kind: &str) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}-{}", if host.is_empty() { kind } else { &host }, std::process::id())
}

/// A store whose calls are over before a lease of this TTL is.
pub(super) fn store(database: &Database, application: &str, ttl: Duration, connections: u32) -> Result<Store, Error> {
    let timeout = (ttl / MARGIN_DIVISOR).min(Duration::from_secs(5));
    let config = StoreConfig { timeout, connections, ..database.config(application) };
    Store::new(&config).map_err(|e| Error::usage(e.to_string()))
}

/// Does the work, and answers probes until it has ended: a process that drains is alive, and says so.
pub(super) async fn with_probes(
    listen: SocketAddr,
    context: &Context,
    readiness: Readiness,
    work: impl Future<Output = ()>,
) -> Result<(), Error> {
    let pulse = Pulse::new(context.clock.clone());
    let probes = Probes { watchdog: pulse.watchdog(), readiness, metrics: Arc::clone(&context.metrics) };
    let ended = CancellationToken::new();
    let server = http::serve(listen, probes, ended.clone())
        .await
        .map_err(|e| Error::failed_next(format!("cannot listen on {listen}: {e}"), "choose another --listen"))?;
    tokio::select! {
        () = work => {}
        () = pulse.beat() => {}
    }
    ended.cancel();
    server.stopped().await;
    tracing::info!("stopped");
    Ok(())
}
