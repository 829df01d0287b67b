//! What controller and worker have in common: arguments, probes, a clean end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Context, Database, Error};
use crate::crd::{Span, SpanError};
use crate::http::{self, Probes, Pulse, Readiness};
use crate::lease::MARGIN_DIVISOR;
use crate::retry::around;
use crate::store::{SchemaState, Store, StoreConfig};

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

/// Waits for a database whose schema this program can work with: it may have been started before the database, or before
/// the migration. `false`: it was asked to stop. What stands in the way is in `/readyz`, and said once.
pub(super) async fn schema(store: &Store, readiness: &Readiness, stop: &CancellationToken) -> bool {
    let mut said = String::new();
    loop {
        let why = match store.schema().await {
            Ok(SchemaState { database, program }) if database >= program => {
                if database > program {
                    tracing::info!(database, program, "the schema is of a later release");
                }
                readiness.ready("schema");
                return true;
            }
            Ok(SchemaState { database: 0, program }) => {
                format!(
                    "there is none yet that this login may use, and this program needs version {program}: palisade migrate"
                )
            }
            Ok(SchemaState { database, program }) => {
                format!("it has version {database}, and this program needs {program}: palisade migrate")
            }
            Err(error) => error.to_string(),
        };
        readiness.not_ready("schema", why.as_str());
        if said != why {
            tracing::warn!("waiting for the database's schema: {why}");
            said = why;
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(around(Duration::from_secs(1))) => {}
        }
    }
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
