//! A lease that is held: the only way to write under a fence.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::keeper::Inner;
use super::{Fence, MARGIN_DIVISOR, Token};
use crate::failpoint;
use crate::outcome::{Outcome, Reason, Rejection};
use crate::plan::PlanMark;
use crate::retry::Backoff;
use crate::store::{Address, CallError, Counterpart, OperationState, Store, Write};

/// What a lease is made from: only a grant makes one.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) session: Arc<Inner>,
    pub(super) resource: String,
    pub(super) token: Token,
    pub(super) cancel: CancellationToken,
}

/// The ownership of one resource under one token. It can be shared by the tasks of one piece of work; its writes go one
/// after the other, and nothing is sent while the outcome of an earlier one is unknown. One that is dropped without
/// [`Lease::release`] stays ours in the database: [`Session::release_unknown`](super::Session::release_unknown) gives it back.
#[derive(Debug)]
pub struct Lease {
    holder: Holder,
    state: Mutex<Sent>,
    /// Something was answered since this was asked last.
    worked: AtomicBool,
}

#[derive(Debug, Default)]
struct Sent {
    /// The last sequence that was used.
    sequence: i64,
    /// A write whose outcome is not known.
    unsettled: Option<(i64, Write)>,
}

/// Why nothing was sent, or nothing is known.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The lease is over by our own clock, or was taken: stop.
    #[error("the lease of {resource} under token {token} is over")]
    Lost {
        /// What it was the lease of.
        resource: String,
        /// The token that must not be used any more.
        token: Token,
    },
    /// The outcome of an earlier write is unknown: [`Lease::settle`] first.
    #[error("the outcome of {fence} ({name}) is unknown: settle it first")]
    Unsettled {
        /// The write in question.
        fence: Fence,
        /// Its SQL function.
        name: &'static str,
    },
    /// The call was not sent, or was refused with an error: nothing was changed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// What an unknown write turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// Nothing was unknown.
    Nothing,
    /// It was applied, with this result.
    Applied(Value),
    /// It was not applied, and never will be.
    Never,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.holder.session.dropped(&self.holder.resource, self.holder.token);
    }
}

impl Lease {
    pub(super) fn new(holder: Holder) -> Self {
        Self { holder, state: Mutex::default(), worked: AtomicBool::new(false) }
    }

    pub(super) fn continue_after(&self, sequence: i64) {
        if let Ok(mut state) = self.state.try_lock() {
            state.sequence = sequence;
        }
    }

    /// What is owned.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.holder.resource
    }

    /// Under which token.
    #[must_use]
    pub fn token(&self) -> Token {
        self.holder.token
    }

    /// Who owns it, for people.
    #[must_use]
    pub fn worker(&self) -> &str {
        &self.holder.session.config.worker
    }

    /// How long we may still act, by our own clock; `None`: stop.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        if failpoint::blind() {
            return Some(Duration::from_secs(1));
        }
        if self.holder.cancel.is_cancelled() { None } else { self.holder.session.left() }
    }

    /// What is left, or the error that says that nothing is.
    ///
    /// # Errors
    /// [`LeaseError::Lost`].
    pub fn check(&self) -> Result<Duration, LeaseError> {
        self.left().ok_or_else(|| LeaseError::Lost { resource: self.holder.resource.clone(), token: self.holder.token })
    }

    /// Returns when the lease is over. Select on it around every piece of work.
    pub async fn lost(&self) {
        if failpoint::blind() {
            std::future::pending::<()>().await;
        }
        self.holder.cancel.cancelled().await;
    }

    /// Ends the lease on this side: what the database or the cluster said shows that it is not ours any more.
    pub fn give_up(&self) {
        self.holder.session.forget(&self.holder.resource, self.holder.token);
    }

    /// The work under this lease came a call further.
    pub(crate) fn note_work(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// Whether it has, since this was asked last.
    pub(crate) fn take_work(&self) -> bool {
        self.worked.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.holder.session.store
    }

    fn address(&self) -> Address<'_> {
        Address { resource: &self.holder.resource, token: self.holder.token, key: &self.holder.session.key }
    }

    fn fence(&self, sequence: i64) -> Fence {
        Fence { token: self.holder.token, sequence }
    }

    /// The next fence, for a write to something other than the database that checks it (the cluster's objects).
    ///
    /// # Errors
    /// [`LeaseError`], as for [`Lease::write`].
    pub async fn next_fence(&self) -> Result<Fence, LeaseError> {
        let mut state = self.state.lock().await;
        self.settled(&state)?;
        self.check()?;
        state.sequence += 1;
        Ok(self.fence(state.sequence))
    }

    fn settled(&self, state: &Sent) -> Result<(), LeaseError> {
        match &state.unsettled {
            Some((sequence, write)) => Err(LeaseError::Unsettled { fence: self.fence(*sequence), name: write.name() }),
            None => Ok(()),
        }
    }

    /// Makes a fenced write under the next sequence. A call without an answer is repeated under the same fence, with full
    /// jitter, while the lease lasts; only then is the outcome `Unknown`, and nothing else is sent before [`Lease::settle`].
    ///
    /// # Errors
    /// When the lease is over, an earlier write is unsettled, or the database refused the call with an error.
    pub async fn write(&self, write: Write) -> Result<Outcome, LeaseError> {
        let mut state = self.state.lock().await;
        self.settled(&state)?;
        self.check()?;
        state.sequence += 1;
        let sequence = state.sequence;
        // Before the first poll of the call: if this future is dropped, the write is remembered as unsettled.
        state.unsettled = Some((sequence, write.clone()));
        self.account("invoke", sequence, &write);
        let outcome = self.send(sequence, &write).await;
        match &outcome {
            Ok(Outcome::Rejected(rejection)) => {
                self.account(format_args!("rejected:{}", rejection.reason), sequence, &write)
            }
            Ok(outcome) => self.account(outcome.word(), sequence, &write),
            Err(_) => self.account("failed", sequence, &write),
        }
        if !matches!(outcome, Ok(Outcome::Unknown(_))) {
            state.unsettled = None;
        }
        drop(state);
        let outcome = outcome?;
        self.note_work();
        self.holder.session.config.observer.wrote(write.name(), &outcome);
        self.told(&write, sequence, &outcome);
        Ok(outcome)
    }

    /// Hands an alias that this resource guards to `to`'s, whose lease is held as well. It uses one fence of each. An
    /// unknown outcome is settled here; what `to` writes meanwhile has a later sequence, and hence supersedes the move.
    ///
    /// # Errors
    /// As [`Lease::write`]; also when `to` is over, or has an unsettled write.
    pub async fn move_guard(&self, to: &Self, model: &str, alias: &str) -> Result<Outcome, LeaseError> {
        let fence = to.next_fence().await?;
        let counterpart = Counterpart {
            resource: to.holder.resource.clone(),
            token: fence.token,
            sequence: fence.sequence,
            key: to.holder.session.key.clone(),
        };
        let write = Write::MoveGuard { to: counterpart, model: model.to_owned(), alias: alias.to_owned() };
        let outcome = self.write(write).await?;
        if matches!(&outcome, Outcome::Rejected(r) if r.reason.lost() && r.is_of_another()) {
            to.give_up();
        }
        Ok(outcome)
    }

    fn account(&self, what: impl Display, sequence: i64, write: &Write) {
        failpoint::account(what, &self.holder.resource, self.fence(sequence), write.name());
    }

    fn told(&self, write: &Write, sequence: i64, outcome: &Outcome) {
        let fence = self.fence(sequence);
        let resource = &self.holder.resource;
        match outcome {
            Outcome::Applied(_) | Outcome::Replayed(_) => {
                tracing::debug!(resource, %fence, call = write.name(), outcome = outcome.word(), "wrote");
                if matches!(write, Write::Release { .. }) {
                    self.give_up();
                }
            }
            Outcome::Rejected(rejection) => {
                tracing::warn!(resource, %fence, call = write.name(), "{rejection}");
                if rejection.reason.lost() && !rejection.is_of_another() {
                    self.give_up();
                }
            }
            Outcome::Unknown(why) => tracing::warn!(resource, %fence, call = write.name(), "outcome unknown: {why}"),
        }
    }

    async fn send(&self, sequence: i64, write: &Write) -> Result<Outcome, CallError> {
        let mut tries = Backoff::new(Duration::from_millis(50), Duration::from_secs(1), 6);
        let mut silent = false;
        let mut last = String::from("the lease ended before it was sent");
        // A statement must not outlive what it was sent under by long: never wait for more than is left.
        while let Some(left) = self.left() {
            match self.holder.session.store.write(&self.address(), sequence, write, left).await {
                Ok(Outcome::Unknown(why)) => (silent, last) = (true, why),
                // The ledger that could tell what became of the silent try is gone: nobody knows.
                Ok(Outcome::Rejected(rejection)) if silent && rejection.reason == Reason::Forgotten => {
                    return Ok(Outcome::Unknown(rejection.to_string()));
                }
                Ok(outcome) => return Ok(outcome),
                Err(error) if error.is_transient() => last = error.to_string(),
                // Its own fault, or the database's: said at once. After a silent try, that one may still have been applied.
                Err(error) if !silent => return Err(error),
                Err(error) => last = error.to_string(),
            }
            let Some(wait) = tries.next_wait() else { break };
            tokio::time::sleep(wait).await;
        }
        if silent { Ok(Outcome::Unknown(last)) } else { Err(CallError::NotSent(last)) }
    }

    /// Turns an unknown outcome into a fact: asks, and closes the fence if it was not applied.
    ///
    /// # Errors
    /// When the database does not answer: call again, even after the lease is over.
    pub async fn settle(&self) -> Result<Settled, CallError> {
        let mut state = self.state.lock().await;
        let Some((sequence, write)) = &state.unsettled else { return Ok(Settled::Nothing) };
        let settled = match self.holder.session.store.abandon(&self.address(), *sequence).await? {
            OperationState::Applied(result) => Settled::Applied(result),
            OperationState::Never | OperationState::Rejected(_) => Settled::Never,
            // Not ours to say from here: an old ledger was cleaned, which takes days, not a lease's time.
            OperationState::Forgotten | OperationState::Pending => {
                return Err(CallError::NoAnswer("the ledger cannot say".into()));
            }
        };
        self.account(if settled == Settled::Never { "settled:never" } else { "settled:applied" }, *sequence, write);
        tracing::info!(resource = self.holder.resource, fence = %self.fence(*sequence), ?settled, "settled");
        state.unsettled = None;
        Ok(settled)
    }

    /// What the ledger says of one of our fences.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn status(&self, sequence: i64) -> Result<OperationState, CallError> {
        self.holder.session.store.operation_status(&self.address(), sequence).await
    }

    /// Reports that the work goes on, and learns which plan is current.
    ///
    /// # Errors
    /// When the lease is over, here or there, or the database does not answer.
    pub async fn progress(&self) -> Result<Option<PlanMark>, LeaseError> {
        let left = self.check()?;
        let budget = left.min(self.holder.session.config.ttl / MARGIN_DIVISOR);
        match self.holder.session.store.report_progress(&self.address(), budget).await? {
            Ok(mark) => Ok(mark),
            Err(rejection) => Err(self.refused(&rejection)),
        }
    }

    /// A revision for a deployment's status that is above every earlier one, and above `above`. For controllers.
    ///
    /// # Errors
    /// As [`Lease::progress`].
    pub async fn next_revision(&self, deployment: &str, above: i64) -> Result<i64, LeaseError> {
        self.check()?;
        match self.holder.session.store.next_revision(&self.address(), deployment, above).await? {
            Ok(revision) => Ok(revision),
            Err(rejection) => Err(self.refused(&rejection)),
        }
    }

    fn refused(&self, rejection: &Rejection) -> LeaseError {
        tracing::warn!(resource = self.holder.resource, fence = %self.holder.token, "{rejection}");
        self.give_up();
        LeaseError::Lost { resource: self.holder.resource.clone(), token: self.holder.token }
    }

    /// Gives the lease back; the work is due again after `retry_in`, if it is not done.
    ///
    /// # Errors
    /// As [`Lease::write`]. The lease then ends with its TTL.
    pub async fn release(&self, retry_in: Option<Duration>) -> Result<Outcome, LeaseError> {
        self.write(Write::Release { retry_in }).await
    }
}
