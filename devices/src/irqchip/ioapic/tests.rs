use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::{ManualClock, ScaledTsc};
use crate::cpu_interrupts::{InterruptKind, InterruptTarget, LocalInterrupts};
use crate::irqchip::local_apic::{LocalApic, LocalApicConfig};

#[derive(Default)]
struct Nmis(AtomicUsize);
impl InterruptTarget for Nmis {
    fn raise(&self, kind: InterruptKind) {
        if kind == InterruptKind::Nmi {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    fn lower_hard(&self) {}
}

struct Board {
    ioapic: Arc<IoApic>,
    apic: Arc<LocalApic>,
    nmis: Arc<Nmis>,
}

impl Board {
    fn new() -> Self {
        let cpus: Arc<LocalApicSet> = Arc::default();
        let clock = ManualClock::new();
        let nmis = Arc::new(Nmis::default());
        let config = LocalApicConfig {
            apic_id: 0,
            is_bsp: true,
            address_bits: 40,
            target: nmis.clone(),
            clock: clock.clone(),
            tsc: ScaledTsc::new(clock, 1_000_000_000),
        };
        let apic = LocalApic::new(config, &cpus);
        apic.mmio_write(0xf0, &0x1ffu32.to_le_bytes());
        cpus.push(Arc::clone(&apic));
        let ioapic = IoApic::new(cpus);
        apic.connect_ioapic(&ioapic);
        Self { ioapic, apic, nmis }
    }

    fn write(&self, index: u8, value: u32) {
        self.ioapic.write(spec::IOREGSEL, &u32::from(index).to_le_bytes());
        self.ioapic.write(spec::IOWIN, &value.to_le_bytes());
    }

    fn read(&self, index: u8) -> u32 {
        self.ioapic.write(spec::IOREGSEL, &[index]);
        let mut data = [0; 4];
        self.ioapic.read(spec::IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    fn end(&self) {
        self.apic.mmio_write(0xb0, &[0; 4]);
    }
}

#[test]
fn identification() {
    let board = Board::new();
    assert_eq!(board.read(1), 0x0017_0020);
    board.write(0, u32::MAX);
    assert_eq!(board.read(0), 0x0f00_0000);
    assert_eq!(board.read(0x10), 0x1_0000);
    board.write(0x10, u32::MAX);
    assert_eq!(board.read(0x10), 0x1_afff, "status bits are read-only");
    board.write(0x11, 0x1234_5678);
    assert_eq!(board.read(0x11), 0x1200_0000);
    assert_eq!(board.read(0x40), u32::MAX);
}

#[test]
fn edges_are_sent_once_and_lost_while_masked() {
    let board = Board::new();
    board.write(0x10 + 8, 0x1_0034);
    board.ioapic.set_pin(4, true);
    board.ioapic.set_pin(4, false);
    board.write(0x10 + 8, 0x34);
    assert_eq!(board.apic.acknowledge(), None);
    board.ioapic.set_pin(4, true);
    board.ioapic.set_pin(4, true);
    assert_eq!(board.apic.acknowledge(), Some(0x34));
    board.end();
    assert_eq!(board.apic.acknowledge(), None);
    assert_eq!(board.read(0x10 + 8), 0x34);
}

#[test]
fn remote_irr_holds_a_level_back() {
    let board = Board::new();
    board.ioapic.set_pin(9, true);
    board.write(0x10 + 18, 0x8059);
    assert_eq!(board.read(0x10 + 18), 0xc059, "asserted before it was unmasked");
    assert_eq!(board.apic.acknowledge(), Some(0x59));
    board.write(0x10 + 18, 0x8059);
    assert!(!board.apic.has_interrupt());
    // How Linux ends an interrupt without an EOI register: masked, edge, and back.
    board.write(0x10 + 18, 0x1_0059);
    assert_eq!(board.read(0x10 + 18), 0x1_0059);
    board.write(0x10 + 18, 0x8059);
    assert_eq!(board.read(0x10 + 18), 0xc059);
    // Masked during service: nothing comes back until unmasked.
    board.end();
    assert_eq!(board.apic.acknowledge(), Some(0x59));
    board.write(0x10 + 18, 0x1_8059);
    board.end();
    assert_eq!(board.read(0x10 + 18), 0x1_8059);
    assert!(!board.apic.has_interrupt());
    board.write(0x10 + 18, 0x8059);
    assert!(board.apic.has_interrupt());
}

#[test]
fn nobody_to_take_it_is_no_remote_irr() {
    let board = Board::new();
    board.write(0x10 + 2 * 10 + 1, 7 << 24);
    board.write(0x10 + 2 * 10, 0x805a);
    board.ioapic.set_pin(10, true);
    assert_eq!(board.read(0x10 + 2 * 10), 0x805a);
    board.write(0x10 + 2 * 10 + 1, 0);
    assert_eq!(board.apic.acknowledge(), Some(0x5a));
}

#[test]
fn delivery_modes() {
    let board = Board::new();
    board.write(0x10 + 40, 0x400);
    board.ioapic.set_pin(20, true);
    assert_eq!(board.nmis.0.load(Ordering::SeqCst), 1);
    board.write(0x10 + 42, 0x0700);
    board.ioapic.set_pin(21, true);
    board.write(0x10 + 44, 0x0177);
    board.ioapic.set_pin(22, true);
    assert_eq!(board.apic.acknowledge(), Some(0x77));
    board.ioapic.set_pin(24, true);
    board.ioapic.reset();
    assert_eq!(board.read(0x10 + 44), 0x1_0000);
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new();
    let mut random = crate::testing::Random::new(2);
    for _ in 0..100_000 {
        match random.below(4) {
            0 => board.write(random.next() as u8 & 0x4f, random.next() as u32 & 0xff01_ffff),
            1 => board.ioapic.set_pin(random.below(26) as usize, random.below(2) == 0),
            2 => {
                let bytes = random.next().to_le_bytes();
                board.ioapic.write(random.below(0x1000), &bytes[..1 << random.below(4)]);
                board.ioapic.read(random.below(0x1000), &mut [0; 8][..1 << random.below(4)]);
            }
            _ => {
                board.apic.acknowledge();
                board.end();
            }
        }
    }
}
