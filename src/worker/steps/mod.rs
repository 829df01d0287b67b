//! The steps of a rollout: one file a step. Each can be repeated, by the same owner or by the next.

mod apply;
mod drain;
mod ready;
mod record;
mod retire;
mod seal;
mod verify;

pub(super) use apply::apply;
pub(super) use drain::drain;
pub(super) use ready::ready;
pub(super) use record::{done, remove, switch};
pub(super) use retire::retire;
pub(super) use seal::seal;
pub(super) use verify::verify;

use std::time::Duration;

use super::rollout::{Halt, Rollout};
use crate::lease::LeaseError;

impl Rollout<'_> {
    /// Waits for something that takes long, and tells the database that the work goes on; its answer tells whether the
    /// plan was changed. `None`: it did not come within `limit`.
    async fn wait<T>(&self, what: impl Future<Output = T>, limit: Duration) -> Result<Option<T>, Halt> {
        let every = (self.plan.progress() / 6).max(Duration::from_millis(500));
        let limit = tokio::time::sleep(limit);
        tokio::pin!(what, limit);
        loop {
            tokio::select! {
                biased;
                () = self.lease.lost() => return Err(Halt::Lost),
                came = &mut what => return Ok(Some(came)),
                () = &mut limit => return Ok(None),
                () = self.context.handover.cancelled() => return Err(Halt::Handover),
                () = tokio::time::sleep(every) => match self.lease.progress().await {
                    Ok(mark) => self.compare(mark.as_ref())?,
                    Err(LeaseError::Lost { .. }) => return Err(Halt::Lost),
                    // The heartbeat decides when the database was silent for too long.
                    Err(error) => tracing::debug!(resource = self.lease.resource(), "progress not reported: {error}"),
                },
            }
        }
    }

    /// What is left of a step's time, of which earlier owners may have used some.
    fn left_of(&self, timeout_ms: u64) -> Duration {
        Duration::from_millis(timeout_ms).saturating_sub(self.context.clock.now().since(self.step_began))
    }
}
