//! What is left of a lease, by the holder's own clock. Pure: it is told the time.

use std::time::Duration;

use crate::clock::Moment;

/// The share of the TTL that a holder gives up, so that it has stopped before the database lets another one in.
pub const MARGIN_DIVISOR: u32 = 3;

/// How long a holder may act, counted from the instant *before* its last heartbeat was sent: the database's
/// clock started later than that, so the holder always stops first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    deadline: Moment,
}

impl Term {
    /// The term that a heartbeat bought which was sent at `sent` and was answered.
    #[must_use]
    pub fn renewed(sent: Moment, ttl: Duration) -> Self {
        Self { deadline: sent.after(ttl - ttl / MARGIN_DIVISOR) }
    }

    /// A term that ends at `deadline`.
    #[must_use]
    pub fn until(deadline: Moment) -> Self {
        Self { deadline }
    }

    /// When the holder must have stopped.
    #[must_use]
    pub fn deadline(self) -> Moment {
        self.deadline
    }

    /// What is left; `None` once it is over.
    #[must_use]
    pub fn left(self, now: Moment) -> Option<Duration> {
        let left = self.deadline.since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How long a holder that looks only now has been past its deadline.
    #[must_use]
    pub fn overdue(self, now: Moment) -> Duration {
        now.since(self.deadline)
    }
}

/// How often to send a heartbeat. One that fails is tried again at once, so half of a term is early enough; the longer
/// the interval, the sooner after a crash a lease runs out.
#[must_use]
pub fn heartbeat_interval(ttl: Duration) -> Duration {
    ttl / MARGIN_DIVISOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_ends_a_third_before_the_ttl_counted_from_before_the_heartbeat() {
        let sent = Moment::from_millis(1_000);
        let term = Term::renewed(sent, Duration::from_secs(9));
        assert_eq!(term.deadline(), Moment::from_millis(7_000));
        assert_eq!(term.left(Moment::from_millis(6_999)), Some(Duration::from_millis(1)));
        assert_eq!(term.left(Moment::from_millis(7_000)), None);
        assert_eq!(term.overdue(Moment::from_millis(9_500)), Duration::from_millis(2_500));
    }

    #[test]
    fn a_heartbeat_leaves_as_long_again_for_its_retries() {
        let ttl = Duration::from_secs(9);
        assert_eq!(
            heartbeat_interval(ttl) * 2,
            Term::renewed(Moment::from_millis(0), ttl).deadline().since(Moment::from_millis(0))
        );
    }
}
