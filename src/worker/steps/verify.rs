//! Verify: the version exists, and is what was planned and what was asked for.

use std::time::Duration;

use crate::plan::failure;
use crate::store::CallError;
use crate::worker::rollout::{Halt, Rollout};

/// Compares the registry's digest with the plan's and with the one that the ModelDeployment insists on.
pub async fn verify(r: &mut Rollout<'_>) -> Result<(), Halt> {
    let spec = &r.plan.spec;
    let left = r.left_of(spec.verify_timeout_ms).max(Duration::from_millis(1));
    let asked = r.wait(ask(r), left).await?;
    let Some(found) = asked.transpose()? else {
        let message =
            format!("the registry did not answer within spec.timeouts.verify ({} ms)", spec.verify_timeout_ms);
        return Err(Halt::Failed { reason: failure::UNAVAILABLE, message, retry_in: Some(Duration::from_secs(5)) });
    };
    let Some((_, digest)) = found else {
        let message =
            format!("model {} has no version {}: register it, or change spec.model", spec.model, spec.version);
        return Err(Halt::Failed { reason: failure::VERSION_NOT_FOUND, message, retry_in: None });
    };
    for (wanted, by) in [(Some(&spec.digest), "the plan"), (spec.expected_digest.as_ref(), "spec.artifact.digest")] {
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            let message = format!(
                "model {} version {} has digest {digest}, and {by} wants {wanted}: it is not served",
                spec.model, spec.version
            );
            return Err(Halt::Failed { reason: failure::DIGEST_MISMATCH, message, retry_in: None });
        }
    }
    Ok(())
}

/// A read, so it is simply repeated.
async fn ask(r: &Rollout<'_>) -> Result<Option<(String, String)>, CallError> {
    loop {
        match r.lease.store().version_show(&r.plan.spec.model, r.plan.spec.version).await {
            Err(error) if error.is_transient() => {
                tokio::time::sleep(crate::retry::jitter(Duration::from_secs(1))).await
            }
            answer => return answer,
        }
    }
}
