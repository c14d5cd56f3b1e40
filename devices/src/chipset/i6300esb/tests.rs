//! The watchdog as Linux's driver uses it, and as no driver would.

use super::*;
use crate::clock::ManualClock;
use crate::testing::{Random, Requests};

struct Bench {
    clock: Arc<ManualClock>,
    requests: Arc<Requests>,
    chip: Arc<I6300Esb>,
}

fn bench() -> Bench {
    let (clock, requests) = (ManualClock::new(), Requests::new());
    let chip = I6300Esb::new(clock.clone(), requests.clone());
    Bench { clock, requests, chip }
}

const SECOND_NS: u64 = 1_000_000_000;

impl Bench {
    fn unlock(&self) {
        self.chip.write(register::RELOAD, &[0x80, 0]);
        self.chip.write(register::RELOAD, &[0x86, 0]);
    }

    /// Both stages, as Linux sets them: of each half of the seconds in units of 2^15 clocks.
    fn start(&self, seconds: u32) {
        for register in [register::PRELOAD_1, register::PRELOAD_2] {
            self.unlock();
            self.chip.write(register, &(seconds << 9).to_le_bytes());
        }
        self.chip.write_lock(lock::ENABLE);
    }

    fn feed(&self) {
        self.unlock();
        self.chip.write(register::RELOAD, &reload::RELOAD.to_le_bytes());
    }

    fn status(&self) -> u16 {
        let mut data = [0xee; 2];
        self.chip.read(register::RELOAD, &mut data);
        u16::from_le_bytes(data)
    }

    /// Time passes, in steps that let timers be armed anew.
    fn wait(&self, seconds: u64) {
        (0..seconds * 100).for_each(|_| self.clock.advance(SECOND_NS / 100));
    }
}

#[test]
fn a_guest_that_feeds_it_lives() {
    let bench = bench();
    bench.start(10);
    for _ in 0..10 {
        bench.wait(9);
        bench.feed();
    }
    assert_eq!(bench.requests.take(), []);
    bench.wait(9);
    assert_eq!(bench.requests.take(), []);
    bench.wait(3);
    assert_eq!(bench.requests.take(), [SystemRequest::Watchdog]);
    assert_eq!(bench.status(), reload::TIMEOUT | reload::TIMEOUT_OF_LINUX);
    // Once, without free running; a reset keeps what the next kernel asks for.
    bench.wait(30);
    bench.chip.reset();
    bench.wait(30);
    assert_eq!(bench.requests.take(), []);
    assert_ne!(bench.status(), 0);
    bench.unlock();
    bench.chip.write(register::RELOAD, &reload::TIMEOUT.to_le_bytes());
    assert_eq!(bench.status(), 0);
}

#[test]
fn nothing_is_written_without_the_sequence() {
    let bench = bench();
    bench.start(10);
    // Both words are needed, in their order, and again for each write.
    for words in [&[0x80][..], &[0x86], &[0x86, 0x80], &[0x80, 0x86, 0x80]] {
        words.iter().for_each(|&word: &u16| bench.chip.write(register::RELOAD, &word.to_le_bytes()));
        bench.chip.write(register::PRELOAD_1, &0xf_ffffu32.to_le_bytes());
    }
    bench.unlock();
    bench.chip.write(register::PRELOAD_2, &(10u32 << 9).to_le_bytes());
    bench.chip.write(register::PRELOAD_2, &0xf_ffffu32.to_le_bytes());
    bench.wait(12);
    assert_eq!(bench.requests.take(), [SystemRequest::Watchdog]);
}

#[test]
fn it_can_be_stopped_unless_locked_and_silenced() {
    let bench = bench();
    bench.start(10);
    bench.chip.write_lock(0);
    bench.wait(30);
    assert_eq!(bench.requests.take(), []);
    bench.chip.write_lock(lock::ENABLE | lock::LOCK | lock::FREE_RUNNING);
    bench.chip.write_lock(0);
    assert_eq!(bench.chip.config().1, 7);
    bench.wait(25);
    assert_eq!(bench.requests.take().len(), 2, "free running");
    bench.chip.write_configuration(0xffff);
    assert_eq!(bench.chip.config().0, 0x27);
    bench.wait(25);
    assert_eq!(bench.requests.take(), []);
}

#[test]
fn the_fast_clock() {
    let bench = bench();
    bench.chip.write_configuration(configuration::PRESCALER_1_MHZ);
    // 2 x 0xfffff units of 2^5 clocks of 33 MHz: 2.03 seconds.
    bench.chip.write_lock(lock::ENABLE);
    bench.wait(2);
    assert_eq!(bench.requests.take(), []);
    bench.wait(1);
    assert_eq!(bench.requests.take(), [SystemRequest::Watchdog]);
}

#[test]
fn random_guests() {
    let mut random = Random::new(0x6300);
    let bench = bench();
    for _ in 0..20_000 {
        let bytes = random.next().to_le_bytes();
        let len = 1 << random.below(4);
        match random.below(6) {
            0 => bench.chip.write_configuration(random.next() as u16),
            1 => bench.chip.write_lock(random.next() as u8 & !lock::LOCK),
            2 => bench.chip.read(random.below(16), &mut [0; 8][..len]),
            3 => bench.unlock(),
            4 => bench.clock.advance(random.below_bits(32)),
            _ => bench.chip.write(random.below(16), &bytes[..len]),
        }
    }
    bench.chip.reset();
    bench.requests.take();
    bench.chip.write_configuration(0);
    bench.start(2);
    bench.wait(3);
    assert_eq!(bench.requests.take(), [SystemRequest::Watchdog]);
}

#[test]
fn on_the_bus() {
    use crate::pci::PciDevice;
    use crate::pci::spec::CONFIG_BYTES;
    let bench = bench();
    let mut space = [0; CONFIG_BYTES];
    space[spec::config::CONFIG] = 0x04;
    bench.chip.wrote_config(spec::config::CONFIG, 2, &space);
    space[spec::config::LOCK] = lock::ENABLE | lock::LOCK;
    bench.chip.wrote_config(spec::config::LOCK, 1, &space);
    assert_eq!(bench.chip.config(), (0x04, 3));
    // Locked: what is written is not what is read.
    space[spec::config::LOCK] = 0;
    bench.chip.wrote_config(spec::config::LOCK & !3, 4, &space);
    let mut data = [0; 4];
    bench.chip.read_config(spec::config::LOCK & !3, &mut data, &space);
    assert_eq!(data, [3, 0, 0, 0]);
    let mut data = [0; 1];
    bench.chip.read_config(spec::config::LOCK + 1, &mut data, &space);
    assert_eq!(data, [0]);
    bench.wait(3);
    assert_eq!(bench.requests.take(), [SystemRequest::Watchdog]);
    // A neighbour's registers are none of its.
    bench.chip.wrote_config(spec::config::CONFIG + 2, 6, &[0xff; CONFIG_BYTES]);
    assert_eq!(bench.chip.config(), (0x04, 3));
}
