//! Seconds since 1970 to the clock's time fields and back, in the proleptic Gregorian calendar, UTC.

/// A point of time as the clock's registers have it, in binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub date: u8,
    /// 1 (Sunday) to 7.
    pub day_of_week: u8,
    pub hours: u8,
    pub minutes: u8,
    pub seconds: u8,
}

pub(super) const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;

/// Days before a month in a year that begins in March, so that the leap day is the last.
fn days_before(month_from_march: i64) -> i64 {
    (153 * month_from_march + 2) / 5
}

impl DateTime {
    pub(super) fn from_unix(seconds: i64) -> Self {
        let (day, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        let (era, day_of_era) =
            ((day + EPOCH_DAYS).div_euclid(ERA_DAYS), (day + EPOCH_DAYS).rem_euclid(ERA_DAYS));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            date: (day_of_year - days_before(month_from_march) + 1) as u8,
            // 1970-01-01 was a Thursday.
            day_of_week: (day + 4).rem_euclid(7) as u8 + 1,
            hours: (second / 3600) as u8,
            minutes: (second / 60 % 60) as u8,
            seconds: (second % 60) as u8,
        }
    }

    /// Fields out of range carry over: what a guest writes need not be a date.
    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month.max(1)) - 1;
        let year = self.year + month / 12;
        let month = month % 12 + 1;
        let (year, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = days_before(month_from_march) + i64::from(self.date) - 1;
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * ERA_DAYS + day_of_era - EPOCH_DAYS;
        let time = i64::from(self.hours) * 3600 + i64::from(self.minutes) * 60 + i64::from(self.seconds);
        days * SECONDS_PER_DAY + time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let cases = [
            (0, (1970, 1, 1, 5, 0, 0, 0)),
            (951_782_400, (2000, 2, 29, 3, 0, 0, 0)),
            (1_709_251_199, (2024, 2, 29, 5, 23, 59, 59)),
            (4_107_542_399, (2100, 2, 28, 1, 23, 59, 59)),
            (-1, (1969, 12, 31, 4, 23, 59, 59)),
        ];
        for (unix, (year, month, date, day_of_week, hours, minutes, seconds)) in cases {
            let time = DateTime { year, month, date, day_of_week, hours, minutes, seconds };
            assert_eq!(DateTime::from_unix(unix), time);
            assert_eq!(time.to_unix(), unix);
        }
    }

    #[test]
    fn every_day_comes_back() {
        for day in -200_000..200_000 {
            let seconds = day * SECONDS_PER_DAY + day.rem_euclid(SECONDS_PER_DAY);
            assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
