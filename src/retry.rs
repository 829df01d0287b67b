//! Retries with a budget and full jitter.

use std::time::Duration;

/// Waits between tries: uniformly random up to a cap that doubles ("full jitter", Brooker, *Exponential Backoff And
/// Jitter*, AWS Architecture Blog 2015), so that those who failed together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    cap: Duration,
    max: Duration,
    left: u32,
}

impl Backoff {
    /// At most `tries` waits, the first up to `first`, none longer than `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration, tries: u32) -> Self {
        Self { cap: first, max, left: tries }
    }

    /// The next wait; `None` when the budget is used up.
    pub fn next_wait(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = jitter(self.cap);
        self.cap = (self.cap * 2).min(self.max);
        Some(wait)
    }
}

/// A random span from zero to `span`.
#[must_use]
pub fn jitter(span: Duration) -> Duration {
    span.mul_f64(fastrand::f64())
}

/// `span`, give or take a fifth: for polls, so that many pollers do not march in step.
#[must_use]
pub fn around(span: Duration) -> Duration {
    span.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_and_no_wait_is_longer_than_its_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(25), 4);
        let caps = [10, 20, 25, 25].map(Duration::from_millis);
        for cap in caps {
            assert!(backoff.next_wait().is_some_and(|wait| wait <= cap));
        }
        assert_eq!(backoff.next_wait(), None);
    }
}
