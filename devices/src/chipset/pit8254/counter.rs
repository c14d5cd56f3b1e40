//! One counter of the 8254: its count and output as functions of time. Intel 8254, *Mode Definitions*.

use super::spec::{self, control, status};

const NS_PER_SECOND: u128 = 1_000_000_000;

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(spec::HZ) / NS_PER_SECOND) as u64
}

fn tick_ns(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NS_PER_SECOND).div_ceil(u128::from(spec::HZ))).unwrap_or(u64::MAX)
}

/// Control word bits 5:4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    #[default]
    LowHigh = 3,
}

/// A counter. Times are guest time in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Counter {
    mode: u8,
    access: Access,
    is_bcd: bool,
    gate: bool,
    /// The count in force, 1 to 65536. `None` until one is written after the control word.
    count: Option<u32>,
    /// A count that takes over at the end of the present period (modes 2 and 3) or at the next trigger (1 and 5).
    next_count: Option<u32>,
    /// Ticks counted before [`Self::running_since_ns`].
    counted: u64,
    /// `None`: the gate holds the count, or nothing started it yet.
    running_since_ns: Option<u64>,
    written_low: Option<u8>,
    read_high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self { gate, ..Self::default() }
    }

    /// Modes 2 and 3 repeat; 6 and 7 are other names for them.
    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Modes 1 and 5 start at a rising gate.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    fn elapsed(&self, now_ns: u64) -> u64 {
        self.counted + self.running_since_ns.map_or(0, |since_ns| ticks(now_ns.saturating_sub(since_ns)))
    }

    /// Takes over a count that waited for the end of its period.
    fn settle(&mut self, now_ns: u64) {
        let (Some(count), Some(next), Some(since_ns)) = (self.count, self.next_count, self.running_since_ns)
        else {
            return;
        };
        if self.is_periodic() && self.elapsed(now_ns) >= u64::from(count) {
            self.running_since_ns = Some(since_ns.saturating_add(tick_ns(u64::from(count) - self.counted)));
            self.counted = 0;
            self.count = Some(next);
            self.next_count = None;
        }
    }

    fn start(&mut self, now_ns: u64) {
        self.counted = 0;
        self.running_since_ns = Some(now_ns);
    }

    /// Writes the control word's mode for this counter.
    pub(super) fn write_control(&mut self, word: u8, now_ns: u64) {
        self.access = match word >> control::RW_SHIFT & 3 {
            0 => return self.latch_count(now_ns),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowHigh,
        };
        let mode = word >> control::MODE_SHIFT & 7;
        *self = Self {
            mode: if mode > 5 { mode & 3 } else { mode },
            access: self.access,
            is_bcd: word & control::BCD != 0,
            gate: self.gate,
            ..Self::default()
        };
    }

    pub(super) fn latch_count(&mut self, now_ns: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now_ns));
        }
    }

    pub(super) fn latch_status(&mut self, now_ns: u64) {
        if self.latched_status.is_none() {
            let output = if self.output(now_ns) { status::OUTPUT } else { 0 };
            let is_null = self.count.is_none() || self.next_count.is_some();
            let null = if is_null { status::NULL_COUNT } else { 0 };
            let access = (self.access as u8) << control::RW_SHIFT;
            self.latched_status =
                Some(output | null | access | self.mode << control::MODE_SHIFT | u8::from(self.is_bcd));
        }
    }

    pub(super) fn write(&mut self, byte: u8, now_ns: u64) {
        let count = match (self.access, self.written_low.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::LowHigh, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::LowHigh, None) => {
                self.written_low = Some(byte);
                if self.mode == 0 {
                    // The first byte stops mode 0, with OUT low.
                    self.count = None;
                    self.running_since_ns = None;
                }
                return;
            }
        };
        self.load(self.decode(count), now_ns);
    }

    fn decode(&self, count: u16) -> u32 {
        match (count, self.is_bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => u32::from(count),
            (count, true) => {
                (0..4).rev().fold(0, |value, digit| value * 10 + u32::from(count >> (4 * digit) & 0xf))
            }
        }
    }

    fn encode(&self, value: u32) -> u16 {
        if !self.is_bcd {
            return value as u16;
        }
        (0..4).fold(0, |word, digit| word | ((value / 10u32.pow(digit) % 10) as u16) << (4 * digit))
    }

    fn load(&mut self, count: u32, now_ns: u64) {
        self.settle(now_ns);
        if self.is_triggered() || (self.is_periodic() && self.running_since_ns.is_some()) {
            self.next_count = Some(count);
            return;
        }
        self.count = Some(count);
        self.next_count = None;
        self.start(now_ns);
        if !self.gate {
            self.running_since_ns = None;
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool, now_ns: u64) {
        self.settle(now_ns);
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        match (self.mode, gate) {
            (1 | 5, true) => {
                if let Some(next) = self.next_count {
                    self.count = Some(next);
                    // The count stays written for further triggers; it is no longer waiting.
                    self.next_count = None;
                }
                if self.count.is_some() {
                    self.start(now_ns);
                }
            }
            (2 | 3, true) => {
                if let Some(next) = self.next_count.take() {
                    self.count = Some(next);
                }
                if self.count.is_some() {
                    self.start(now_ns);
                }
            }
            (0 | 4, true) => {
                if self.count.is_some() {
                    self.running_since_ns = Some(now_ns);
                }
            }
            (1 | 5, false) => {}
            (_, _) => {
                self.counted = self.elapsed(now_ns);
                self.running_since_ns = None;
            }
        }
    }

    /// The level of OUT.
    pub(super) fn output(&mut self, now_ns: u64) -> bool {
        self.settle(now_ns);
        let elapsed = self.elapsed(now_ns);
        let Some(count) = self.count.map(u64::from) else { return self.mode != 0 };
        match self.mode {
            0 => elapsed >= count,
            1 => self.running_since_ns.is_none() || elapsed >= count,
            2 => self.running_since_ns.is_none() || elapsed % count != count - 1,
            3 => self.running_since_ns.is_none() || elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// The counting element, as a read shows it.
    fn value(&mut self, now_ns: u64) -> u16 {
        self.settle(now_ns);
        let elapsed = self.elapsed(now_ns);
        let Some(count) = self.count.map(u64::from) else { return 0 };
        let modulus = if self.is_bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => {
                // Counts down by two, twice in a period; an odd count starts from the even number below.
                let (phase, high) = (elapsed % count, count.div_ceil(2));
                let within = if phase < high { phase } else { phase - high };
                (count & !1).saturating_sub(2 * within)
            }
            _ => (count + modulus - elapsed % modulus) % modulus,
        };
        self.encode((value % modulus) as u32)
    }

    pub(super) fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched_count.unwrap_or_else(|| self.value(now_ns));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::LowHigh => {
                self.read_high_next = !self.read_high_next;
                !self.read_high_next
            }
        };
        if !self.read_high_next {
            self.latched_count = None;
        }
        (if high { value >> 8 } else { value }) as u8
    }

    /// When OUT rises next after `now_ns`: the edge that makes an interrupt.
    pub(super) fn next_rise_ns(&mut self, now_ns: u64) -> Option<u64> {
        self.settle(now_ns);
        let since_ns = self.running_since_ns?;
        let count = u64::from(self.count?);
        let elapsed = self.elapsed(now_ns);
        let at = match self.mode {
            0 | 1 => count,
            2 | 3 => (elapsed / count + 1) * count,
            // The strobe's end.
            _ => count + 1,
        };
        (at > elapsed).then(|| since_ns.saturating_add(tick_ns(at - self.counted)))
    }
}
