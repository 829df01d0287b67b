//! A session: one heartbeat for all leases of the process, in a task of its own. It steps down before the work does harm.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::held::{Holder, Lease};
use super::term::{Term, heartbeat_interval};
use super::{Fence, MARGIN_DIVISOR, Token};
use crate::clock::{Clock, Moment};
use crate::failpoint;
use crate::outcome::{Outcome, Reason, Rejection};
use crate::retry::{Backoff, jitter};
use crate::store::{CallError, Claimed, Held, Store};

/// How a process presents itself, and how long it may be silent.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// A name for people. Ownership never depends on it.
    pub worker: String,
    /// How long after its last heartbeat another worker may take over. 1 s to 1 h.
    pub ttl: Duration,
    /// Where the time comes from.
    pub clock: Clock,
    /// Told of what happens, for metrics.
    pub observer: Arc<dyn Observer>,
}

impl SessionConfig {
    /// The machine's clock, and nobody watching.
    #[must_use]
    pub fn new(worker: impl Into<String>, ttl: Duration) -> Self {
        Self { worker: worker.into(), ttl, clock: Clock::system(), observer: Arc::new(Unobserved) }
    }
}

/// Told of what happens to leases and fenced writes. Called on the hot path: count, and return.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// A heartbeat was answered (`true`) or failed, after this long; this much of the term was left before it.
    fn heartbeat(&self, _ok: bool, _took: Duration, _left: Duration) {}
    /// A lease was granted; `takeover` if its last owner had not released it.
    fn granted(&self, _takeover: bool) {}
    /// A fenced write of this name ended.
    fn wrote(&self, _name: &'static str, _outcome: &Outcome) {}
    /// The session ended.
    fn ended(&self, _why: &Ended) {}
}

#[derive(Debug)]
struct Unobserved;
impl Observer for Unobserved {}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Our own clock went past the deadline: the process was paused, or the database was out of reach for too long.
    Overdue {
        /// How far past the deadline it was when we looked.
        by: Duration,
    },
    /// The database says so.
    Refused(Reason),
    /// We closed it.
    Closed,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Overdue { by } => write!(
                f,
                "no heartbeat was answered in time; noticed {by:?} past the deadline (paused, or the database out of reach)"
            ),
            Self::Refused(reason) => write!(f, "the database refused the heartbeat: {reason}"),
            Self::Closed => f.write_str("closed"),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The database said no.
    #[error("the session was not opened: {0}")]
    Rejected(Rejection),
    /// The database did not answer, or not in time.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// Another session holds it, or ours is over.
    #[error("the lease was not granted: {0}")]
    Rejected(Rejection),
    /// The database did not answer. A grant whose answer was lost shows in [`Session::held`]; acquiring again is safe.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Our session ended.
    #[error("the session is over")]
    SessionOver,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) id: Uuid,
    pub(super) key: SecretString,
    pub(super) config: SessionConfig,
    /// The term's deadline, in milliseconds since boot.
    deadline: AtomicU64,
    /// Cancelled when the session is over.
    pub(super) over: CancellationToken,
    ended: Mutex<Option<Ended>>,
    leases: Mutex<HashMap<(String, Token), CancellationToken>>,
    /// A lease was dropped, or a grant's answer was lost: the database may think that we hold more than we do.
    strays: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is only ever replaced whole: a panic elsewhere leaves it right.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn term(&self) -> Term {
        Term::until(Moment::from_millis(self.deadline.load(Ordering::SeqCst)))
    }

    /// What is left of the term; `None` if the session is over, or must be.
    pub(super) fn left(&self) -> Option<Duration> {
        if self.over.is_cancelled() {
            return None;
        }
        let left = self.term().left(self.config.clock.now());
        if left.is_none() {
            self.overdue();
        }
        left
    }

    fn overdue(&self) {
        let by = self.term().overdue(self.config.clock.now());
        self.end(Ended::Overdue { by });
    }

    /// Ends the session once: every lease is cancelled before anybody is told.
    fn end(&self, why: Ended) {
        let mut ended = locked(&self.ended);
        if ended.is_some() {
            return;
        }
        for (_, cancel) in locked(&self.leases).drain() {
            cancel.cancel();
        }
        self.over.cancel();
        if why == Ended::Closed {
            tracing::debug!(session = %self.id, "session closed");
        } else {
            tracing::warn!(session = %self.id, worker = self.config.worker, "session lost: {why}");
        }
        self.config.observer.ended(&why);
        *ended = Some(why);
    }

    /// Ends a lease on this side. Answers whether it was ours until now.
    /// A lease's value is gone. If it was neither released nor lost, nobody works on what the database says is ours.
    pub(super) fn dropped(&self, resource: &str, token: Token) {
        if self.forget(resource, token) {
            self.strays.store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn forget(&self, resource: &str, token: Token) -> bool {
        let cancel = locked(&self.leases).remove(&(resource.to_owned(), token));
        cancel.map(|cancel| cancel.cancel()).is_some()
    }
}

/// A process that is alive, as the database sees it. Dropping it stops the heartbeats; [`Session::close`] also releases.
#[derive(Debug)]
pub struct Session {
    inner: Arc<Inner>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
        self.inner.end(Ended::Closed);
    }
}

impl Session {
    /// Opens a session under a fresh id and key, and begins to beat.
    ///
    /// # Errors
    /// When the database does not answer, or refuses: `epoch_not_established` after its restart, until a controller
    /// has allocated the next epoch.
    pub async fn open(store: Store, config: SessionConfig) -> Result<Self, SessionError> {
        let id = Uuid::new_v4();
        // 244 random bits: two UUIDs of the operating system's randomness.
        let key = SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()));
        // No call of this session waits for longer than a margin: what is sent is over before the lease is.
        let store = store.within(config.ttl / MARGIN_DIVISOR);
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_millis(400), 3);
        // The first try may have opened it though its answer was lost: the term is counted from before that one.
        let sent = config.clock.now();
        loop {
            match store.open_session(id, &key, &config.worker, config.ttl).await {
                Ok(Outcome::Applied(_) | Outcome::Replayed(_)) => break,
                Ok(Outcome::Rejected(rejection)) => return Err(SessionError::Rejected(rejection)),
                Ok(Outcome::Unknown(why)) => return Err(SessionError::Call(CallError::NoAnswer(why))),
                Err(error) => match tries.next_wait().filter(|_| error.is_transient()) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(error.into()),
                },
            }
        }
        let inner = Arc::new(Inner {
            deadline: AtomicU64::new(Term::renewed(sent, config.ttl).deadline().as_millis()),
            store,
            id,
            key,
            config,
            over: CancellationToken::new(),
            ended: Mutex::new(None),
            leases: Mutex::default(),
            strays: AtomicBool::new(false),
        });
        let keeper = tokio::spawn(keep(Arc::clone(&inner), inner.store.beside()));
        Ok(Self { inner, keeper })
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.inner.id
    }

    /// Whether it can still be trusted, by our own clock.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.inner.left().is_some()
    }

    /// What is left of the term.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.inner.left().unwrap_or_default()
    }

    /// Returns when the session is over, and says why.
    pub async fn over(&self) -> Ended {
        self.inner.over.cancelled().await;
        locked(&self.inner.ended).clone().unwrap_or(Ended::Closed)
    }

    fn lease(&self, resource: String, token: Token, takeover: bool) -> Result<Lease, AcquireError> {
        let cancel = CancellationToken::new();
        {
            // Under the lock of `end`: a session that ends now cancels this lease too.
            let ended = locked(&self.inner.ended);
            if ended.is_some() {
                return Err(AcquireError::SessionOver);
            }
            locked(&self.inner.leases).insert((resource.clone(), token), cancel.clone());
        }
        self.inner.config.observer.granted(takeover);
        failpoint::account(
            if takeover { "takeover" } else { "granted" },
            &resource,
            Fence { token, sequence: 0 },
            "grant",
        );
        tracing::info!(resource, fence = %token, takeover, "lease granted");
        Ok(Lease::new(Holder { session: Arc::clone(&self.inner), resource, token, cancel }))
    }

    /// Asks for one lease. With `progress`, its owner must report progress within that time, or lose it.
    ///
    /// # Errors
    /// When another session holds it ([`Reason::Held`], with its owner and the time left), the session is over, or the
    /// database does not answer.
    pub async fn acquire(&self, resource: &str, progress: Option<Duration>) -> Result<Lease, AcquireError> {
        if !self.alive() {
            return Err(AcquireError::SessionOver);
        }
        let answer = self.inner.store.acquire(self.inner.id, &self.inner.key, resource, progress).await;
        match answer.inspect_err(|_| self.inner.strays.store(true, Ordering::SeqCst))? {
            Ok((token, takeover)) => self.lease(resource.to_owned(), token, takeover),
            Err(rejection) => Err(AcquireError::Rejected(rejection)),
        }
    }

    /// Asks for up to `limit` deployments whose work is due, the oldest first.
    ///
    /// # Errors
    /// When the session is over, or the database does not answer (what it granted then shows in [`Session::held`]).
    pub async fn claim(&self, limit: u32) -> Result<Vec<(Lease, Claimed)>, AcquireError> {
        if !self.alive() {
            return Err(AcquireError::SessionOver);
        }
        let claims = match self.inner.store.claim(self.inner.id, &self.inner.key, limit).await {
            Ok(Ok(claims)) => claims,
            Ok(Err(rejection)) => return Err(AcquireError::Rejected(rejection)),
            Err(error) => {
                // Granted or not: release_unknown finds out.
                self.inner.strays.store(true, Ordering::SeqCst);
                return Err(error.into());
            }
        };
        for (resource, token, why) in claims.unreadable {
            tracing::error!(resource, fence = %token, "this plan is of another release: leaving it to a worker that can read it: {why}");
            let lease = self.lease(resource, token, false)?;
            if let Err(error) = lease.release(Some(Duration::from_secs(60))).await {
                tracing::warn!("not released: {error}"); // dropped here, and found again by release_unknown
            }
        }
        claims.claimed.into_iter().map(|c| Ok((self.lease(c.resource.clone(), c.token, c.takeover)?, c))).collect()
    }

    /// Whether the database may think that we hold more than we do: time for [`Session::release_unknown`].
    #[must_use]
    pub fn has_strays(&self) -> bool {
        self.inner.strays.load(Ordering::SeqCst)
    }

    /// What the database says we hold.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn held(&self) -> Result<Vec<Held>, CallError> {
        self.inner.store.held(self.inner.id, &self.inner.key).await
    }

    /// Gives back leases that the database granted and nobody in this process works on: the answer to a grant was lost, or
    /// a [`Lease`] was dropped before it was released. What cannot be given back now is left to the next call.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release_unknown(&self) -> Result<usize, CallError> {
        self.inner.strays.store(false, Ordering::SeqCst);
        let held = self.held().await.inspect_err(|_| self.inner.strays.store(true, Ordering::SeqCst))?;
        let mut released = 0;
        for held in held {
            if locked(&self.inner.leases).contains_key(&(held.resource.clone(), held.token)) {
                continue;
            }
            if let Ok(lease) = self.lease(held.resource, held.token, false) {
                lease.continue_after(held.sequence);
                // If it does not work now, the lease is dropped as it is, and counted as a stray again.
                released += usize::from(lease.release(None).await.is_ok_and(|outcome| outcome.applied().is_ok()));
            }
        }
        Ok(released)
    }

    /// Releases every lease and ends the session.
    ///
    /// # Errors
    /// When the database does not answer: the leases then end with their TTL.
    pub async fn close(self) -> Result<(), CallError> {
        self.keeper.abort();
        self.inner.end(Ended::Closed);
        self.inner.store.close_session(self.inner.id, &self.inner.key).await.map(|_| ())
    }
}

/// The heartbeat task. It sleeps, beats, and looks at the clock after everything that may have taken long.
async fn keep(inner: Arc<Inner>, store: Store) {
    let ttl = inner.config.ttl;
    let interval = heartbeat_interval(ttl);
    let mut wait = interval;
    loop {
        tokio::time::sleep(wait).await;
        let sent = inner.config.clock.now();
        let Some(left) = inner.left() else { return };
        match store.heartbeat(inner.id, &inner.key, left.min(ttl / MARGIN_DIVISOR)).await {
            Ok(Ok(beat)) => {
                inner.deadline.store(Term::renewed(sent, ttl).deadline().as_millis(), Ordering::SeqCst);
                inner.config.observer.heartbeat(true, inner.config.clock.now().since(sent), left);
                for loss in beat.lost {
                    // Each heartbeat tells of it again: the answer before may have been lost.
                    if inner.forget(&loss.resource, loss.token) {
                        tracing::warn!(resource = loss.resource, fence = %loss.token, reason = loss.reason, "lease lost");
                    }
                }
                wait = interval;
            }
            Ok(Err(rejection)) => {
                inner.config.observer.heartbeat(false, inner.config.clock.now().since(sent), left);
                return inner.end(Ended::Refused(rejection.reason));
            }
            Err(error) => {
                inner.config.observer.heartbeat(false, inner.config.clock.now().since(sent), left);
                tracing::warn!(session = %inner.id, left_ms = left.as_millis(), "heartbeat failed, trying again: {error}");
                wait = jitter(interval / 4);
            }
        }
    }
}
