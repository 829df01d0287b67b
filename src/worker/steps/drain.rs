//! Drain: requests that are under way at the old version end before it is scaled down.

use std::time::Duration;

use crate::worker::rollout::{Halt, Rollout};

/// Waits for what is left of the drain time, counted from when the new version was recorded as serving.
pub async fn drain(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let served = r.serving_since.map_or(Duration::ZERO, |since| r.context.clock.now().since(since));
    let left = Duration::from_secs(r.plan.spec.drain_seconds.into()).saturating_sub(served);
    if !left.is_zero() {
        r.wait(std::future::pending::<()>(), left).await?;
    }
    Ok(())
}
