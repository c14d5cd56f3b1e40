//! When a segment counts as lost (RFC 6298).

use std::time::Duration;

use super::segment::ahead;
use crate::net::poller::Time;

const INITIAL: Duration = Duration::from_secs(1);
/// A guest that is translated on a busy host answers late, but nothing gets lost on the cable: patience costs nothing.
const MIN: Duration = Duration::from_millis(500);
const MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    smoothed: Option<Duration>,
    variation: Duration,
    /// How often in a row the time was up.
    backoff: u32,
    /// A segment's end, and when it was sent.
    timed: Option<(u32, Time)>,
}

impl Timing {
    /// How long to wait for an acknowledgement.
    pub(super) fn timeout(&self) -> Duration {
        let base = self.smoothed.map_or(INITIAL, |smoothed| (smoothed + 4 * self.variation).max(MIN));
        base.saturating_mul(1 << self.backoff.min(8)).min(MAX)
    }

    /// A new segment that ends at `end` was sent.
    pub(super) fn sent(&mut self, end: u32, now: Time) {
        self.timed.get_or_insert((end, now));
    }

    /// Something is sent again: it can't be told what an acknowledgement is for (Karn).
    pub(super) fn resent(&mut self) {
        self.timed = None;
    }

    /// The time was up.
    pub(super) fn expired(&mut self) {
        self.backoff += 1;
        self.timed = None;
    }

    /// New data was acknowledged.
    pub(super) fn acknowledged(&mut self, ack: u32, now: Time) {
        self.backoff = 0;
        if let Some((end, sent)) = self.timed
            && ahead(ack, end) >= 0
        {
            self.timed = None;
            let sample = now.saturating_sub(sent);
            match &mut self.smoothed {
                None => (self.smoothed, self.variation) = (Some(sample), sample / 2),
                Some(smoothed) => {
                    self.variation = (3 * self.variation + smoothed.abs_diff(sample)) / 4;
                    *smoothed = (7 * *smoothed + sample) / 8;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_what_answers_take() {
        let mut timing = Timing::default();
        assert_eq!(timing.timeout(), INITIAL);
        timing.expired();
        timing.expired();
        assert_eq!(timing.timeout(), 4 * INITIAL);
        for round in 0..20u32 {
            timing.sent(round, Duration::from_secs(round.into()));
            timing.acknowledged(round, Duration::from_secs(round.into()) + Duration::from_millis(900));
        }
        let timeout = timing.timeout();
        assert!(timeout > Duration::from_millis(900) && timeout < Duration::from_secs(2), "{timeout:?}");
        (0..40).for_each(|_| timing.expired());
        assert_eq!(timing.timeout(), MAX);
    }

    #[test]
    fn what_was_sent_again_is_not_measured() {
        let mut timing = Timing::default();
        timing.sent(1, Duration::ZERO);
        timing.resent();
        timing.acknowledged(1, Duration::from_secs(50));
        assert_eq!(timing.timeout(), INITIAL);
    }
}
