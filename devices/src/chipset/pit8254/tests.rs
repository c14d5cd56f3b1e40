use std::sync::Mutex;

use super::*;
use crate::clock::ManualClock;
use crate::interrupt::{Gsi, InterruptSink, IrqPin, MsiMessage, MsiRoute, RouteError};
use crate::testing::Random;

/// Counts rising edges.
#[derive(Default)]
struct Edges(Mutex<u32>);
impl InterruptSink for Edges {
    fn set_gsi(&self, _gsi: Gsi, level: bool) {
        *self.0.lock().unwrap() += u32::from(level);
    }
    fn send_msi(&self, _message: MsiMessage) {}
    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        Err(RouteError::Exhausted)
    }
}

struct Board {
    pit: Arc<Pit8254>,
    port61: Arc<dyn BusDevice>,
    clock: Arc<ManualClock>,
    edges: Arc<Edges>,
}

impl Board {
    fn new() -> Self {
        let (clock, edges) = (ManualClock::new(), Arc::new(Edges::default()));
        let pit = Pit8254::new(IrqPin::new(Gsi(0), edges.clone()).line("pit"), clock.clone());
        let port61 = pit.nmi_status_port();
        Self { pit, port61, clock, edges }
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        for byte in bytes {
            self.pit.write(offset, &[*byte]);
        }
    }
    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.pit.read(offset, &mut data);
        data[0]
    }
    fn count(&self, counter: u64) -> u16 {
        self.write(3, &[(counter as u8) << 6]);
        u16::from_le_bytes([self.read(counter), self.read(counter)])
    }
    fn read61(&self) -> u8 {
        let mut data = [0];
        self.port61.read(0, &mut data);
        data[0]
    }
    /// To the first nanosecond at which `ticks` more have passed since time zero.
    fn advance_to_tick(&self, ticks: u64) {
        let at = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(spec::HZ)) as u64;
        self.clock.advance(at - self.clock.now_ns());
    }
    fn edges(&self) -> u32 {
        std::mem::take(&mut *self.edges.0.lock().unwrap())
    }
    fn status(&self, counter: u8) -> u8 {
        self.write(3, &[0xe0 | 2 << counter]);
        self.read(u64::from(counter))
    }
}

#[test]
fn rate_generator_interrupts_at_its_rate() {
    let board = Board::new();
    board.write(3, &[0x34]);
    board.write(0, &[0x9c, 0x2e]);
    board.edges();
    // 1193182 / 11932 is a little below 100 a second.
    board.advance_to_tick(100 * 11932 - 1);
    assert_eq!(board.edges(), 99);
    board.advance_to_tick(100 * 11932);
    assert_eq!(board.edges(), 1);
    board.advance_to_tick(100 * 11932 + 5000);
    assert_eq!(board.count(0), 11932 - 5000);
    // Faster than a host should go: merged.
    board.write(3, &[0x34]);
    board.write(0, &[2, 0]);
    board.edges();
    board.clock.advance(10 * MIN_PERIOD_NS);
    assert!((9..=11).contains(&board.edges()));
    board.pit.reset();
    board.clock.advance(1_000_000_000);
    assert_eq!(board.edges(), 0);
}

#[test]
fn one_shot_counts_down_once() {
    let board = Board::new();
    board.write(3, &[0x30]);
    board.write(0, &[0x10, 0x27]);
    assert_eq!(board.edges(), 0);
    assert_eq!(board.status(0), 0x30);
    board.advance_to_tick(4000);
    assert_eq!(board.count(0), 6000);
    board.advance_to_tick(9999);
    assert_eq!(board.edges(), 0);
    board.advance_to_tick(10_000);
    assert_eq!(board.edges(), 1);
    assert_eq!(board.status(0), 0xb0);
    board.advance_to_tick(10_001);
    assert_eq!(board.count(0), 0xffff);
    board.advance_to_tick(200_000);
    assert_eq!(board.edges(), 0);
}

#[test]
fn counter_2_measures_time_through_its_gate() {
    let board = Board::new();
    // As Linux's pit_calibrate_tsc does.
    board.port61.write(0, &[board.read61() & !2 | 1]);
    board.write(3, &[0xb0]);
    board.write(2, &[0xff, 0xff]);
    assert_eq!(board.read61() & 0x21, 0x01);
    board.advance_to_tick(0xfffe);
    assert_eq!(board.read61() & 0x20, 0);
    board.advance_to_tick(0xffff);
    assert_eq!(board.read61() & 0x20, 0x20);
    // A low gate holds mode 0.
    board.write(2, &[0, 0x10]);
    let start = 0xffff;
    board.advance_to_tick(start + 0x100);
    board.port61.write(0, &[0]);
    let held = board.count(2);
    assert!((0xeff..=0xf01).contains(&held), "{held:#x}");
    board.advance_to_tick(start + 0x10000);
    assert_eq!(board.count(2), held);
    board.port61.write(0, &[1]);
    board.advance_to_tick(start + 0x10100);
    assert!((0xdfe..=0xe02).contains(&board.count(2)));
    // The refresh bit toggles.
    let before = board.read61() & 0x10;
    board.clock.advance(nmi_sc::REFRESH_NS);
    assert_ne!(board.read61() & 0x10, before);
}

#[test]
fn square_wave() {
    let board = Board::new();
    board.port61.write(0, &[1]);
    board.write(3, &[0xb6]);
    board.write(2, &[7, 0]);
    // Odd counts are high for one tick more.
    let mut wave = String::new();
    for tick in 0..14 {
        board.advance_to_tick(tick);
        wave.push(if board.read61() & 0x20 != 0 { 'H' } else { 'l' });
    }
    assert_eq!(wave, "HHHHlllHHHHlll");
    board.port61.write(0, &[0]);
    assert_eq!(board.read61() & 0x20, 0x20, "without its gate OUT is high");
    // A new count waits for the period's end.
    board.port61.write(0, &[1]);
    board.write(2, &[100, 0]);
    assert_eq!(board.status(2) & 0x40, 0x40);
    board.advance_to_tick(14 + 10);
    assert_eq!(board.status(2) & 0x40, 0);
    assert!(board.count(2) > 7);
}

#[test]
fn triggered_modes_wait_for_the_gate() {
    for (control, pulse) in [(0xb2, false), (0xba, true)] {
        let board = Board::new();
        board.write(3, &[control]);
        board.write(2, &[100, 0]);
        assert_eq!(board.read61() & 0x20, 0x20);
        board.advance_to_tick(1000);
        board.port61.write(0, &[1]);
        board.advance_to_tick(1050);
        assert_eq!(board.read61() & 0x20 == 0, !pulse);
        // Triggered anew in between.
        board.port61.write(0, &[0]);
        board.port61.write(0, &[1]);
        board.advance_to_tick(1149);
        assert_eq!(board.read61() & 0x20 == 0, !pulse);
        board.advance_to_tick(1150);
        assert_eq!(board.read61() & 0x20 == 0, pulse);
        board.advance_to_tick(1152);
        assert_eq!(board.read61() & 0x20, 0x20);
    }
}

#[test]
fn strobe_latches_and_bcd() {
    let board = Board::new();
    board.write(3, &[0x39]);
    board.write(0, &[0x00, 0x10]);
    assert_eq!(board.status(0), 0xb9);
    board.edges();
    board.advance_to_tick(1);
    assert_eq!(board.count(0), 0x0999);
    // Latched values stay until read; a second latch is ignored.
    board.write(3, &[0x00]);
    board.advance_to_tick(500);
    board.write(3, &[0xc2]);
    assert_eq!(board.read(0), 0xb9, "status first");
    assert_eq!([board.read(0), board.read(0)], [0x99, 0x09]);
    assert_eq!(board.count(0), 0x0500);
    board.advance_to_tick(1000);
    assert_eq!(board.status(0), 0x39);
    board.advance_to_tick(1001);
    assert_eq!(board.edges(), 1);
    // Byte accesses.
    board.write(3, &[0x14]);
    board.write(0, &[200]);
    assert_eq!(board.status(0) & 0x30, 0x10);
    assert_eq!(board.read(0), 200);
    assert_eq!(board.read(3), 0xff);
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let mut random = Random::new(4);
    for _ in 0..100_000 {
        let (offset, width) = (random.below(4), 1 << random.below(3));
        match random.below(5) {
            0 | 1 => board.pit.write(offset, &random.next().to_le_bytes()[..width]),
            2 => board.pit.read(offset, &mut [0; 8][..width]),
            3 => {
                board.port61.write(0, &[random.next() as u8]);
                board.read61();
            }
            _ => board.clock.advance(random.below_bits(23)),
        }
    }
}
