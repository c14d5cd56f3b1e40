//! The clock's registers as functions of guest time. Motorola MC146818A, *Time, Calendar, and Alarm Locations* and
//! *Registers*.

use std::time::Duration;

use super::calendar::{DateTime, SECONDS_PER_DAY};
use super::spec::{self, reg_a, reg_b, reg_c, register};

const NS_PER_SECOND: i128 = 1_000_000_000;
/// The divider's frequency: the periodic interrupt's rates are powers of two below it.
const DIVIDER_HZ: u64 = 32_768;

/// Time, flags and RAM. `now_ns` is guest time.
pub(super) struct Clockwork {
    /// All registers and RAM; the time locations are current only while the clock stands still.
    pub(super) ram: [u8; spec::BYTES],
    /// Nanoseconds since 1970 at guest time zero.
    base_ns: i128,
    flags: u8,
    /// Up to when the flags are known.
    seen_ns: u64,
}

fn is_time(index: u8) -> bool {
    matches!(index, register::SECONDS | register::MINUTES | register::HOURS | register::CENTURY)
        || (register::DAY_OF_WEEK..=register::YEAR).contains(&index)
}

impl Clockwork {
    pub(super) fn new(unix_time: Duration, now_ns: u64) -> Self {
        let mut ram = [0; spec::BYTES];
        ram[usize::from(register::A)] = reg_a::POWER_ON;
        ram[usize::from(register::B)] = reg_b::H24;
        let unix_ns = i128::try_from(unix_time.as_nanos()).unwrap_or(i128::MAX / 2);
        Self { ram, base_ns: unix_ns - i128::from(now_ns), flags: 0, seen_ns: now_ns }
    }

    fn reg(&self, index: u8) -> u8 {
        self.ram[usize::from(index)]
    }

    fn divider(&self) -> u8 {
        self.reg(register::A) >> reg_a::DV_SHIFT & 7
    }

    /// The clock counts: its divider runs and nobody is setting it.
    fn is_running(&self) -> bool {
        self.divider() == reg_a::DV_32768_HZ && self.reg(register::B) & reg_b::SET == 0
    }

    fn unix_ns(&self, now_ns: u64) -> i128 {
        self.base_ns + i128::from(now_ns)
    }

    fn unix_seconds(&self, now_ns: u64) -> i64 {
        i64::try_from(self.unix_ns(now_ns).div_euclid(NS_PER_SECOND)).unwrap_or(i64::MAX / 2)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.reg(register::B) & reg_b::DM != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.reg(register::B) & reg_b::DM != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10).saturating_add(value & 0xf)
        }
    }

    fn encode_hours(&self, hours: u8) -> u8 {
        if self.reg(register::B) & reg_b::H24 != 0 {
            return self.encode(hours);
        }
        let pm = if hours >= 12 { spec::HOURS_PM } else { 0 };
        self.encode(if hours.is_multiple_of(12) { 12 } else { hours % 12 }) | pm
    }

    fn decode_hours(&self, value: u8) -> u8 {
        if self.reg(register::B) & reg_b::H24 != 0 {
            return self.decode(value);
        }
        let pm = if value & spec::HOURS_PM != 0 { 12 } else { 0 };
        self.decode(value & !spec::HOURS_PM) % 12 + pm
    }

    /// Copies the present into the time locations.
    fn show_time(&mut self, now_ns: u64) {
        let time = DateTime::from_unix(self.unix_seconds(now_ns));
        let fields = [
            (register::SECONDS, self.encode(time.seconds)),
            (register::MINUTES, self.encode(time.minutes)),
            (register::HOURS, self.encode_hours(time.hours)),
            (register::DAY_OF_WEEK, self.encode(time.day_of_week)),
            (register::DATE, self.encode(time.date)),
            (register::MONTH, self.encode(time.month)),
            (register::YEAR, self.encode(time.year.rem_euclid(100) as u8)),
            (register::CENTURY, self.encode(time.year.div_euclid(100).rem_euclid(100) as u8)),
        ];
        for (index, value) in fields {
            self.ram[usize::from(index)] = value;
        }
    }

    /// Takes the time locations as the present, `subsecond_ns` into their second.
    fn adopt_time(&mut self, now_ns: u64, subsecond_ns: i128) {
        let field = |index| self.decode(self.reg(index));
        let time = DateTime {
            year: i64::from(field(register::CENTURY)) * 100 + i64::from(field(register::YEAR)),
            month: field(register::MONTH),
            date: field(register::DATE),
            day_of_week: 1,
            hours: self.decode_hours(self.reg(register::HOURS)),
            minutes: field(register::MINUTES),
            seconds: field(register::SECONDS),
        };
        self.base_ns = i128::from(time.to_unix()) * NS_PER_SECOND + subsecond_ns - i128::from(now_ns);
    }

    fn subsecond_ns(&self, now_ns: u64) -> u64 {
        self.unix_ns(now_ns).rem_euclid(NS_PER_SECOND) as u64
    }

    pub(super) fn read(&mut self, index: u8, now_ns: u64) -> u8 {
        match index {
            register::A => {
                let soon = self.subsecond_ns(now_ns) >= NS_PER_SECOND as u64 - spec::UIP_NS;
                let uip = if self.is_running() && soon { reg_a::UIP } else { 0 };
                self.reg(register::A) | uip
            }
            register::D => spec::VRT,
            _ => {
                if self.is_running() && is_time(index) {
                    self.show_time(now_ns);
                }
                self.reg(index)
            }
        }
    }

    pub(super) fn write(&mut self, index: u8, value: u8, now_ns: u64) {
        match index {
            register::A => self.write_control(register::A, value & !reg_a::UIP, now_ns),
            register::B => {
                let uie = if value & reg_b::SET != 0 { reg_b::UIE } else { 0 };
                self.write_control(register::B, value & !uie, now_ns);
            }
            register::C | register::D => {}
            _ if is_time(index) && self.is_running() => {
                self.show_time(now_ns);
                self.ram[usize::from(index)] = value;
                self.adopt_time(now_ns, i128::from(self.subsecond_ns(now_ns)));
            }
            _ => self.ram[usize::from(index)] = value,
        }
    }

    /// Writes register A or B, which may stop the clock and start it.
    fn write_control(&mut self, index: u8, value: u8, now_ns: u64) {
        let (was_running, old_divider) = (self.is_running(), self.divider());
        if was_running {
            self.show_time(now_ns);
        }
        let subsecond_ns = i128::from(self.subsecond_ns(now_ns));
        self.ram[usize::from(index)] = value;
        match (was_running, self.is_running()) {
            // A divider let go from reset makes its first update half a second later (data sheet, *Divider Control*).
            (false, true) if old_divider != reg_a::DV_32768_HZ => self.adopt_time(now_ns, NS_PER_SECOND / 2),
            (false, true) => self.adopt_time(now_ns, subsecond_ns),
            _ => {}
        }
    }

    /// Nanoseconds between periodic interrupts; `None` with the rate off.
    fn period_ns(&self) -> Option<u64> {
        let rate = self.reg(register::A) & reg_a::RS;
        // Rates 1 and 2 are 256 and 128 Hz, as 8 and 9 are.
        let shift = match rate {
            0 => return None,
            1 | 2 => rate + 6,
            _ => rate - 1,
        };
        (self.divider() == reg_a::DV_32768_HZ).then(|| (1_000_000_000 << shift) / DIVIDER_HZ)
    }

    /// Whether the alarm's locations match `seconds` since 1970.
    fn is_alarm(&self, seconds: i64) -> bool {
        let time = DateTime::from_unix(seconds);
        let matches = |index, value| {
            let alarm = self.reg(index);
            alarm & spec::ALARM_DONT_CARE == spec::ALARM_DONT_CARE || alarm == value
        };
        matches(register::SECONDS_ALARM, self.encode(time.seconds))
            && matches(register::MINUTES_ALARM, self.encode(time.minutes))
            && matches(register::HOURS_ALARM, self.encode_hours(time.hours))
    }

    /// Sets the flags of what happened up to `now_ns`.
    pub(super) fn advance(&mut self, now_ns: u64) {
        let seen_ns = std::mem::replace(&mut self.seen_ns, now_ns);
        if now_ns <= seen_ns {
            return;
        }
        if let Some(period_ns) = self.period_ns()
            && now_ns / period_ns != seen_ns / period_ns
        {
            self.flags |= reg_c::PF;
        }
        if !self.is_running() {
            return;
        }
        let (from, to) = (self.unix_seconds(seen_ns), self.unix_seconds(now_ns));
        if from < to {
            self.flags |= reg_c::UF;
            // The alarm is of the time of day: a day holds every chance it has.
            let from = from.max(to - SECONDS_PER_DAY);
            if self.flags & reg_c::AF == 0 && (from + 1..=to).any(|second| self.is_alarm(second)) {
                self.flags |= reg_c::AF;
            }
        }
    }

    pub(super) fn is_interrupting(&self) -> bool {
        // The enables of register B lie where the flags of register C do.
        self.flags & self.reg(register::B) & (reg_c::PF | reg_c::AF | reg_c::UF) != 0
    }

    /// Register C, which a read clears.
    pub(super) fn take_flags(&mut self) -> u8 {
        let irqf = if self.is_interrupting() { reg_c::IRQF } else { 0 };
        std::mem::take(&mut self.flags) | irqf
    }

    /// When an enabled interrupt may come next.
    pub(super) fn next_event_ns(&self, now_ns: u64) -> Option<u64> {
        // Until the present one is taken, another changes nothing.
        if self.is_interrupting() {
            return None;
        }
        let enables = self.reg(register::B);
        let periodic = self
            .period_ns()
            .filter(|_| enables & reg_b::PIE != 0)
            .map(|period_ns| (now_ns / period_ns + 1) * period_ns);
        let second = (self.is_running() && enables & (reg_b::AIE | reg_b::UIE) != 0)
            .then(|| now_ns + (NS_PER_SECOND as u64 - self.subsecond_ns(now_ns)));
        periodic.into_iter().chain(second).min()
    }

    pub(super) fn reset(&mut self) {
        self.flags = 0;
        self.ram[usize::from(register::B)] &= !(reg_b::PIE | reg_b::AIE | reg_b::UIE | reg_b::SQWE);
    }
}
