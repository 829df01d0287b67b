//! A worker's life: a session, the deployments that it claims, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::rollout::{self, Context};
use crate::failpoint;
use crate::http::Readiness;
use crate::lease::{Session, SessionConfig, SessionError};
use crate::metrics::Metrics;
use crate::outcome::Reason;
use crate::retry::{around, jitter};
use crate::store::Store;

/// The most deployments that one claim asks for: more would keep other workers from a fair share.
const CLAIM_LIMIT: u32 = 10;
/// The longest pause between tries to open a session.
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its session: name, TTL, clock.
    pub session: SessionConfig,
    /// Deployments that it works on at once.
    pub capacity: usize,
    /// How often it asks for work when it has none, give or take a fifth.
    pub poll: Duration,
    /// How long it may go on with what it has after it was asked to stop.
    pub drain: Duration,
}

/// Works until `shutdown` is cancelled, then hands over what it has and returns.
pub async fn run(
    config: WorkerConfig,
    store: Store,
    cluster: Cluster,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let opened = tokio::select! {
            session = open(&config, &store) => session,
            () = shutdown.cancelled() => return,
        };
        let context = Context {
            store: store.clone(),
            cluster: cluster.anew(),
            metrics: Arc::clone(&metrics),
            clock: config.session.clock.clone(),
            handover: shutdown.child_token(),
        };
        readiness.ready("session");
        serve(&config, &opened, &context, &shutdown).await;
        readiness.not_ready("session", "the last one was lost, a new one is being opened");
        if !shutdown.is_cancelled() {
            continue;
        }
        match opened.close().await {
            Ok(()) => tracing::info!("leases released, session closed"),
            Err(error) => tracing::warn!("the session could not be closed; its leases end with their TTL: {error}"),
        }
    }
}

/// Opens a session, however long it takes. What stands in the way is said once, not at every try.
async fn open(config: &WorkerConfig, store: &Store) -> Session {
    let mut said: Option<String> = None;
    loop {
        let why = match Session::open(store.clone(), config.session.clone()).await {
            Ok(session) => {
                tracing::info!(session = %session.id(), worker = config.session.worker, ttl_ms = config.session.ttl.as_millis(), "session opened");
                return session;
            }
            Err(SessionError::Rejected(r)) if r.reason == Reason::EpochNotEstablished => {
                "the database was restarted or is new, and no controller has established its epoch yet".to_owned()
            }
            Err(error) => error.to_string(),
        };
        if said.as_ref() != Some(&why) {
            tracing::warn!("no session yet, trying again: {why}");
            said = Some(why);
        }
        tokio::time::sleep(REOPEN_MAX / 4 + jitter(REOPEN_MAX)).await;
    }
}

/// Claims and works until the session is lost or the process must stop. When it returns, nothing of it is running.
async fn serve(config: &WorkerConfig, session: &Session, context: &Context, shutdown: &CancellationToken) {
    let mut work = JoinSet::new();
    let mut wait = Duration::ZERO;
    let over = loop {
        tokio::select! {
            biased;
            ended = session.over() => break Some(ended),
            () = shutdown.cancelled() => break None,
            Some(ended) = work.join_next() => {
                report(ended);
                wait = Duration::ZERO; // a free place
            }
            () = tokio::time::sleep(wait), if work.len() < config.capacity => {
                wait = claim(config, session, context, &mut work).await;
            }
        }
    };
    match over {
        // Every lease is cancelled: its task stops at once. Awaited, so that nothing of the old life reaches into the new one.
        Some(ended) => {
            let tasks = work.len();
            while let Some(ended) = work.join_next().await {
                report(ended);
            }
            tracing::warn!(tasks, "stepped down: {ended}; starting over with a new session");
        }
        None => drain(config, session, &mut work).await,
    }
}

/// Lets the work come to its next safe step; the handover was asked for by the same token that stopped the claims.
async fn drain(config: &WorkerConfig, session: &Session, work: &mut JoinSet<()>) {
    tracing::info!(tasks = work.len(), "stopping: finishing or handing over");
    let all = async {
        while let Some(ended) = work.join_next().await {
            report(ended);
        }
    };
    tokio::select! {
        () = all => {}
        ended = session.over() => tracing::warn!("the session ended while stopping: {ended}"),
        () = tokio::time::sleep(config.drain) => tracing::warn!(tasks = work.len(), "not done in time: the leases are released as they are"),
    }
    work.shutdown().await;
}

/// Claims once. Answers how long to wait before the next claim.
async fn claim(config: &WorkerConfig, session: &Session, context: &Context, work: &mut JoinSet<()>) -> Duration {
    let free = u32::try_from(config.capacity.saturating_sub(work.len())).unwrap_or(u32::MAX);
    let limit = free.min(CLAIM_LIMIT);
    // A claim whose answer was lost, a rollout that ended without a release: nobody else waits for their TTL.
    if session.has_strays() {
        match session.release_unknown().await {
            Ok(count) => tracing::info!(count, "gave back leases that nobody here works on"),
            Err(error) => tracing::warn!("what the session holds is not known yet: {error}"),
        }
    }
    let claimed = match session.claim(limit).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!("nothing claimed: {error}");
            return around(config.poll);
        }
    };
    let full = claimed.len() == limit as usize;
    for (lease, claimed) in claimed {
        let context = context.clone();
        work.spawn(failpoint::with_steps(async move { rollout::run(&context, &lease, claimed).await }));
    }
    if full { Duration::ZERO } else { around(config.poll) }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // Its lease ends for want of progress, and another worker resumes.
        tracing::error!("a rollout's task panicked: {error}");
    }
}
