//! How far the host's wall clock is from UTC (localtime_r(3)).

#![expect(unsafe_code, reason = "localtime_r is C")]

use std::time::Duration;

/// What clocks on the wall show at `time` (since 1970, UTC), counted as if they showed UTC.
pub fn of(time: Duration) -> Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    // SAFETY: all of its fields are numbers and a pointer that nobody follows; zero is a value of each.
    let mut fields: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of this function, which outlive the call.
    let known = unsafe { !libc::localtime_r(&seconds, &mut fields).is_null() };
    let offset = if known { fields.tm_gmtoff } else { 0 };
    let seconds = u64::try_from(seconds.saturating_add(offset)).unwrap_or(0);
    Duration::new(seconds, time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_is_a_day_from_utc() {
        let utc = Duration::from_secs(1_700_000_000);
        assert!(of(utc).abs_diff(utc) <= Duration::from_secs(14 * 3600));
        assert_eq!(of(utc).subsec_nanos(), 0);
    }
}
