use super::*;
use crate::clock::ManualClock;
use crate::testing::Random;

struct Board {
    rtc: Arc<RtcMc146818>,
    clock: Arc<ManualClock>,
}

/// 2024-02-29 23:59:57 UTC, a Thursday.
const START: Duration = Duration::from_secs(1_709_251_197);

impl Board {
    fn new() -> Self {
        let clock = ManualClock::new();
        let memory = MemorySize { below_4g_bytes: 3 << 30, above_4g_bytes: 5 << 30 };
        let rtc = RtcMc146818::new(IrqLine::detached("rtc"), clock.clone(), START, memory);
        Self { rtc, clock }
    }
    fn read(&self, index: u8) -> u8 {
        self.rtc.write(0, &[index | 0x80]);
        let mut data = [0];
        self.rtc.read(1, &mut data);
        data[0]
    }
    fn write(&self, index: u8, value: u8) {
        self.rtc.write(0, &[index]);
        self.rtc.write(1, &[value]);
    }
    /// Century, year, month, date, day of the week, hours, minutes, seconds, as the registers show them.
    fn time(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| self.read(index))
    }
    fn irq(&self) -> bool {
        self.rtc.irq.level()
    }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn time_in_all_formats() {
    let board = Board::new();
    assert_eq!(board.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x57]);
    board.write(0x0b, 0x06);
    assert_eq!(board.time(), [20, 24, 2, 29, 5, 23, 59, 57]);
    board.write(0x0b, 0x04);
    assert_eq!(board.read(4), 11 | 0x80);
    board.clock.advance(3 * SECOND);
    assert_eq!(board.read(4), 12);
    board.write(0x0b, 0x02);
    assert_eq!(board.time(), [0x20, 0x24, 0x03, 0x01, 6, 0, 0, 0]);
    assert_eq!(board.read(0x0d), 0x80);
}

#[test]
fn updates_announce_themselves() {
    let board = Board::new();
    assert_eq!(board.read(0x0a), 0x26);
    board.clock.advance(SECOND - spec::UIP_NS - 1);
    assert_eq!(board.read(0x0a), 0x26);
    board.clock.advance(1);
    assert_eq!(board.read(0x0a), 0xa6);
    board.clock.advance(spec::UIP_NS);
    assert_eq!(board.read(0x0a), 0x26);
    assert_eq!(board.read(0), 0x58);
}

#[test]
fn setting_the_time() {
    let board = Board::new();
    // As Linux does: stop, set the divider to reset, write, let go.
    board.write(0x0b, 0x82);
    board.write(0x0a, 0x76);
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
        board.write(index, value);
    }
    board.clock.advance(100 * SECOND);
    board.write(0x0b, 0x02);
    board.write(0x0a, 0x26);
    assert_eq!(board.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
    board.clock.advance(SECOND / 2);
    assert_eq!(board.time(), [0x20, 0, 1, 1, 7, 0, 0, 0]);
    // One field of a running clock; nonsense carries over.
    board.write(4, 0x12);
    assert_eq!(board.time(), [0x20, 0, 1, 1, 7, 0x12, 0, 0]);
    board.write(2, 0xff);
    assert_eq!(board.read(4), 0x14);
    board.rtc.reset();
    assert_eq!(board.read(9), 0);
}

#[test]
fn interrupts() {
    let board = Board::new();
    // 1024 Hz periodic.
    board.write(0x0b, 0x42);
    let mut count = 0;
    for _ in 0..2048 {
        board.clock.advance(SECOND / 2048);
        if board.irq() {
            count += 1;
            let flags = board.read(0x0c);
            assert_eq!(flags & 0xc0, 0xc0);
            assert!(!board.irq());
        }
    }
    assert!((1023..=1024).contains(&count), "{count}");
    // Update ended.
    board.write(0x0b, 0x12);
    board.read(0x0c);
    board.clock.advance(2 * SECOND);
    assert!(board.irq());
    assert_eq!(board.read(0x0c) & 0x90, 0x90);
    // Alarm at any hour, 02 minutes, 05 seconds.
    board.write(5, 0xff);
    board.write(3, 0x02);
    board.write(1, 0x05);
    board.write(0x0b, 0x22);
    board.read(0x0c);
    board.clock.advance(120 * SECOND);
    assert!(!board.irq());
    board.clock.advance(10 * SECOND);
    assert!(board.irq());
    assert_eq!(board.time()[6..], [0x02, 0x09]);
    assert_eq!(board.read(0x0c) & 0xb0, 0xb0);
    assert_eq!(board.read(0x0c), 0);
    // Flags come without their enables, too.
    board.write(0x0b, 0x02);
    board.clock.advance(3600 * SECOND);
    assert!(!board.irq());
    assert_eq!(board.read(0x0c), 0x70);
    assert_eq!(board.clock.next_deadline_ns(), None);
}

#[test]
fn memory_size_bytes() {
    let board = Board::new();
    let word = |at: u8| u32::from(board.read(at)) | u32::from(board.read(at + 1)) << 8;
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), ((3 << 30) - (16 << 20)) / (64 << 10));
    assert_eq!(word(0x5b) | u32::from(board.read(0x5d)) << 16, 5 << 14);
    board.write(0x40, 0x77);
    board.rtc.reset();
    assert_eq!(board.read(0x40), 0x77);
    let mut index = [0];
    board.rtc.read(0, &mut index);
    assert_eq!(index, [0xff]);
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let mut random = Random::new(7);
    for _ in 0..50_000 {
        let index = if random.below(2) == 0 { random.below(16) } else { random.below(128) } as u8;
        match random.below(4) {
            0 => _ = board.read(index),
            1 => board.write(index, random.next() as u8),
            2 => {
                let (offset, width) = (random.below(2), 1 << random.below(3));
                board.rtc.write(offset, &random.next().to_le_bytes()[..width]);
                board.rtc.read(offset, &mut [0; 8][..width]);
            }
            _ => board.clock.advance(random.below_bits(32)),
        }
    }
}
