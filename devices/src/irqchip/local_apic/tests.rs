use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::spec::register;
use super::*;
use crate::bus::BusDevice;
use crate::clock::{ManualClock, ScaledTsc};
use crate::interrupt::{Gsi, InterruptSink, MsiMessage};
use crate::irqchip::{TIMER_PIN, UserspaceIrqchip};

/// What a CPU sees of its requests.
#[derive(Default)]
struct Cpu {
    hard: AtomicBool,
    others: Mutex<Vec<InterruptKind>>,
}

impl InterruptTarget for Cpu {
    fn raise(&self, kind: InterruptKind) {
        match kind {
            InterruptKind::Hard => self.hard.store(true, Ordering::SeqCst),
            kind => self.others.lock().unwrap().push(kind),
        }
    }
    fn lower_hard(&self) {
        self.hard.store(false, Ordering::SeqCst);
    }
}

impl Cpu {
    fn hard(&self) -> bool {
        self.hard.load(Ordering::SeqCst)
    }
    fn take_others(&self) -> Vec<InterruptKind> {
        std::mem::take(&mut self.others.lock().unwrap())
    }
}

struct Board {
    clock: Arc<ManualClock>,
    chip: Arc<UserspaceIrqchip>,
    cpus: Vec<Arc<Cpu>>,
    apics: Vec<Arc<LocalApic>>,
    tsc: Arc<ScaledTsc>,
}

impl Board {
    fn new(cpu_count: u32) -> Self {
        let clock = ManualClock::new();
        let chip = UserspaceIrqchip::new(clock.clone(), 40);
        let tsc = ScaledTsc::new(clock.clone(), 2_000_000_000);
        let cpus: Vec<Arc<Cpu>> = (0..cpu_count).map(|_| Arc::default()).collect();
        let apics = (0..cpu_count).map(|id| chip.add_cpu(id, cpus[id as usize].clone(), Some(tsc.clone())));
        let apics: Vec<_> = apics.collect();
        for apic in &apics {
            write(apic, register::SVR, 0x1ff);
        }
        Self { clock, chip, cpus, apics, tsc }
    }

    fn msi(&self, destination: u64, data: u32) {
        self.chip.send_msi(MsiMessage { address: 0xfee0_0000 | destination << 12, data });
    }
}

fn write(apic: &LocalApic, register: u16, value: u32) {
    if apic.is_x2apic() {
        apic.write_msr(0x800 + u32::from(register >> 4), u64::from(value)).unwrap();
    } else {
        apic.mmio_write(u64::from(register), &value.to_le_bytes());
    }
}

fn read(apic: &LocalApic, register: u16) -> u32 {
    let mut data = [0; 4];
    apic.mmio_read(u64::from(register), &mut data);
    u32::from_le_bytes(data)
}

fn enter_x2apic(apic: &LocalApic) {
    let base = apic.read_msr(spec::IA32_APIC_BASE).unwrap();
    apic.write_msr(spec::IA32_APIC_BASE, base | apic_base::EXTD).unwrap();
}

#[test]
fn vectors_are_taken_by_priority_and_ended() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    assert!(!apic.has_interrupt());
    board.msi(0, 0x41);
    board.msi(0, 0x42);
    board.msi(0, 0x61);
    assert!(cpu.hard() && apic.has_interrupt());
    assert_eq!(apic.acknowledge(), Some(0x61));
    assert!(!cpu.hard() && !apic.has_interrupt());
    assert_eq!(apic.processor_priority(), 0x60);
    board.msi(0, 0x6f);
    assert!(!cpu.hard(), "the same class waits");
    board.msi(0, 0x71);
    assert_eq!(apic.acknowledge(), Some(0x71));
    write(apic, register::EOI, 0);
    assert!(!cpu.hard());
    write(apic, register::EOI, 0);
    assert!(cpu.hard());
    assert_eq!(apic.acknowledge(), Some(0x6f));
    write(apic, register::EOI, 0);
    assert_eq!(apic.acknowledge(), Some(0x42));
    write(apic, register::EOI, 0);
    assert_eq!(apic.acknowledge(), Some(0x41));
    write(apic, register::EOI, 0);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn the_task_priority_holds_vectors_back() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    apic.set_cr8(5);
    assert_eq!((apic.cr8(), read(apic, register::TPR)), (5, 0x50));
    board.msi(0, 0x5f);
    assert!(!cpu.hard());
    apic.set_cr8(4);
    assert!(cpu.hard());
    apic.set_cr8(5);
    assert!(!cpu.hard());
    assert_eq!(apic.acknowledge(), None);
    write(apic, register::TPR, 0);
    assert_eq!(apic.acknowledge(), Some(0x5f));
}

#[test]
fn a_disabled_apic_takes_no_vectors() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    write(apic, register::LVT_ERROR, 0xfe);
    write(apic, register::SVR, 0xff);
    assert_eq!(read(apic, register::LVT_ERROR), 0x1_00fe);
    board.msi(0, 0x41);
    assert!(!cpu.hard());
    write(apic, register::LVT_ERROR, 0xfe);
    assert_eq!(read(apic, register::LVT_ERROR), 0x1_00fe, "masks cannot be cleared while disabled");
    board.msi(0, 0x400);
    assert_eq!(cpu.take_others(), [InterruptKind::Nmi]);
}

#[test]
fn errors_are_latched_by_a_write() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    write(apic, register::LVT_ERROR, 0xfe);
    board.msi(0, 0x0f);
    assert!(cpu.hard());
    assert_eq!(apic.acknowledge(), Some(0xfe));
    write(apic, register::ICR_LOW, 0x4_0008);
    read(apic, 0x010);
    assert_eq!(read(apic, register::ESR), 0);
    write(apic, register::ESR, 0);
    assert_eq!(read(apic, register::ESR), 0xe0);
    write(apic, register::ESR, 0);
    assert_eq!(read(apic, register::ESR), 0);
    // An error vector that is itself illegal must not recurse.
    write(apic, register::LVT_ERROR, 0x05);
    board.msi(0, 0x0f);
}

#[test]
fn ipis_reach_whom_they_name() {
    let board = Board::new(4);
    let hard = || board.cpus.iter().map(|cpu| cpu.hard()).collect::<Vec<_>>();
    let ipi = |destination: u32, low: u32| {
        write(&board.apics[1], register::ICR_HIGH, destination << 24);
        write(&board.apics[1], register::ICR_LOW, low);
    };
    let clear = || {
        for apic in &board.apics {
            while apic.acknowledge().is_some() {
                write(apic, register::EOI, 0);
            }
        }
    };
    ipi(2, 0x50);
    assert_eq!(hard(), [false, false, true, false]);
    clear();
    ipi(0xff, 0x50);
    assert_eq!(hard(), [true; 4]);
    clear();
    ipi(0, 0x4_0050);
    assert_eq!(hard(), [false, true, false, false]);
    clear();
    ipi(0, 0x8_0050);
    assert_eq!(hard(), [true; 4]);
    clear();
    ipi(0, 0xc_0050);
    assert_eq!(hard(), [true, false, true, true]);
    clear();
    for (i, apic) in board.apics.iter().enumerate() {
        write(apic, register::LDR, 1 << (24 + i));
    }
    ipi(0b1010, 0x850);
    assert_eq!(hard(), [false, true, false, true]);
    clear();
    for (apic, ldr) in board.apics.iter().zip([0x11, 0x12, 0x21, 0x22]) {
        write(apic, register::DFR, 0x0fff_ffff);
        write(apic, register::LDR, ldr << 24);
    }
    ipi(0x23, 0x850);
    assert_eq!(hard(), [false, false, true, true]);
    clear();
    // Lowest priority: of equals, each in its turn; a busy one is passed over.
    board.apics[0].set_cr8(8);
    for _ in 0..9 {
        ipi(0xff, 0x951);
    }
    assert_eq!(hard(), [false, true, true, true]);
}

#[test]
fn init_and_startup() {
    let board = Board::new(2);
    write(&board.apics[0], register::ICR_HIGH, 1 << 24);
    write(&board.apics[0], register::ICR_LOW, 0x4500);
    write(&board.apics[0], register::ICR_LOW, 0x8500);
    assert_eq!(board.cpus[1].take_others(), [InterruptKind::Init]);
    board.apics[1].init();
    assert_eq!(board.apics[1].take_sipi(), None);
    write(&board.apics[0], register::ICR_LOW, 0x4609);
    assert_eq!(board.cpus[1].take_others(), [InterruptKind::Sipi]);
    assert_eq!(board.apics[1].take_sipi(), Some(9));
    assert_eq!(board.apics[1].take_sipi(), None);
    assert_eq!(read(&board.apics[1], register::SVR), 0xff);
    assert_eq!(read(&board.apics[1], register::LVT_LINT0), 0x1_0000);
}

#[test]
fn modes_change_only_as_the_manual_allows() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    let set = |value| apic.write_msr(spec::IA32_APIC_BASE, value);
    let base = 0xfee0_0900;
    assert_eq!(apic.read_msr(0x1b), Ok(base));
    assert_eq!(apic.mmio_base(), Some(0xfee0_0000));
    assert_eq!(apic.read_msr(0x802), Err(NoSuchRegister));
    assert_eq!(set(base | 1), Err(NoSuchRegister));
    assert_eq!(set(base | 1 << 40), Err(NoSuchRegister));
    assert_eq!(set((base & !apic_base::EN) | apic_base::EXTD), Err(NoSuchRegister));
    set(base | apic_base::EXTD).unwrap();
    assert_eq!(apic.mmio_base(), None);
    assert_eq!(apic.read_msr(0x802), Ok(0));
    assert_eq!(apic.read_msr(0x80d), Ok(1));
    assert_eq!(set(base), Err(NoSuchRegister));
    set(base & !apic_base::EN).unwrap();
    assert_eq!(set(base | apic_base::EXTD), Err(NoSuchRegister));
    set(0x1_2345_6000 | apic_base::EN).unwrap();
    assert_eq!(apic.mmio_base(), Some(0x1_2345_6000));
    assert_eq!(read(apic, register::SVR), 0xff, "disabling lost the registers");
}

#[test]
fn x2apic_registers() {
    let board = Board::new(4);
    for apic in &board.apics {
        enter_x2apic(apic);
    }
    let apic = &board.apics[0];
    for reserved in [0x80e, 0x809, 0x831, 0x83f, 0x80b, 0x8ff] {
        assert_eq!(apic.read_msr(reserved), Err(NoSuchRegister), "{reserved:#x}");
    }
    for (index, value) in
        [(0x80b, 1), (0x808, 0x100), (0x802, 0), (0x80d, 0), (0x80e, 0), (0x83f, 0x100), (0x832, 1 << 32)]
    {
        assert_eq!(apic.write_msr(index, value), Err(NoSuchRegister), "{index:#x}");
    }
    apic.write_msr(0x830, 3 << 32 | 0x55).unwrap();
    assert_eq!(board.apics[3].acknowledge(), Some(0x55));
    // Logical: cluster 0, CPUs 1 and 2.
    apic.write_msr(0x830, 6 << 32 | 0x856).unwrap();
    assert_eq!(board.cpus.iter().map(|cpu| cpu.hard()).collect::<Vec<_>>(), [false, true, true, false]);
    apic.write_msr(0x830, 0xffff_ffff << 32 | 0x57).unwrap();
    assert!(board.cpus[0].hard());
    assert_eq!(apic.acknowledge(), Some(0x57));
    apic.write_msr(0x80b, 0).unwrap();
    apic.write_msr(0x83f, 0x58).unwrap();
    assert_eq!(apic.acknowledge(), Some(0x58));
}

#[test]
fn one_shot_and_periodic_timer() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    write(apic, register::TIMER_DIVIDE, 0b1011);
    write(apic, register::LVT_TIMER, 0x80);
    write(apic, register::TIMER_INITIAL, 1_000_000);
    board.clock.advance(250_000);
    assert_eq!(read(apic, register::TIMER_CURRENT), 750_000);
    assert!(!cpu.hard());
    board.clock.advance(750_000);
    assert_eq!(apic.acknowledge(), Some(0x80));
    write(apic, register::EOI, 0);
    assert_eq!(read(apic, register::TIMER_CURRENT), 0);
    board.clock.advance(10_000_000);
    assert!(!cpu.hard());

    write(apic, register::TIMER_DIVIDE, 0b0011);
    write(apic, register::LVT_TIMER, 0x2_0081);
    write(apic, register::TIMER_INITIAL, 62_500);
    for _ in 0..3 {
        board.clock.advance(1_000_000);
        assert_eq!(apic.acknowledge(), Some(0x81));
        write(apic, register::EOI, 0);
    }
    board.clock.advance(160_000);
    assert_eq!(read(apic, register::TIMER_CURRENT), 52_500);
    write(apic, register::TIMER_DIVIDE, 0b0000);
    assert_eq!(read(apic, register::TIMER_CURRENT), 52_500);
    write(apic, register::TIMER_INITIAL, 0);
    board.clock.advance(100_000_000);
    assert!(!cpu.hard());
    // A masked timer counts in silence.
    write(apic, register::LVT_TIMER, 0x1_0080);
    write(apic, register::TIMER_INITIAL, 100);
    board.clock.advance(1_000_000);
    assert!(!cpu.hard());
}

#[test]
fn tsc_deadline_timer() {
    let board = Board::new(1);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    let deadline = |value| apic.write_msr(spec::IA32_TSC_DEADLINE, value).unwrap();
    let armed = || apic.read_msr(spec::IA32_TSC_DEADLINE).unwrap();
    deadline(1000);
    assert_eq!(armed(), 0, "not in this mode");
    write(apic, register::LVT_TIMER, 0x4_0080);
    deadline(2001);
    assert_eq!(armed(), 2001);
    board.clock.advance(1000);
    assert!(!cpu.hard());
    board.clock.advance(1);
    assert_eq!(apic.acknowledge(), Some(0x80));
    write(apic, register::EOI, 0);
    assert_eq!(armed(), 0);
    deadline(5);
    assert_eq!(apic.acknowledge(), Some(0x80), "the past fires at once");
    write(apic, register::EOI, 0);
    // The guest moves its counter back: the deadline moves away.
    deadline(3000);
    board.tsc.write(1000);
    apic.tsc_changed();
    board.clock.advance(999);
    assert!(!cpu.hard());
    board.clock.advance(1);
    assert_eq!(apic.acknowledge(), Some(0x80));
    write(apic, register::EOI, 0);
    // And forward, past it.
    deadline(1 << 40);
    board.tsc.write(1 << 41);
    apic.tsc_changed();
    assert_eq!(apic.acknowledge(), Some(0x80));
    deadline(1 << 42);
    write(apic, register::LVT_TIMER, 0x80);
    assert_eq!(armed(), 0);
    assert_eq!(board.clock.next_deadline_ns(), None);
}

#[test]
fn virtual_wire_from_the_pic() {
    let board = Board::new(2);
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    let pic = board.chip.pic().master_ports();
    pic.write(0, &[0x11]);
    for word in [0x30, 4, 1, 0] {
        pic.write(1, &[word]);
    }
    board.chip.set_gsi(Gsi(4), true);
    assert!(cpu.hard() && !board.cpus[1].hard());
    assert_eq!(apic.acknowledge(), Some(0x34));
    assert!(!cpu.hard());
    pic.write(0, &[0x20]);
    // Masking at the PIC withdraws the request.
    board.chip.set_gsi(Gsi(3), true);
    assert!(cpu.hard());
    pic.write(1, &[0xff]);
    assert!(!cpu.hard());
    pic.write(1, &[0]);
    assert!(cpu.hard());
    write(apic, register::LVT_LINT0, 0x1_0700);
    assert!(!cpu.hard() && !apic.has_interrupt());
    write(apic, register::LVT_LINT0, 0x700);
    assert_eq!(apic.acknowledge(), Some(0x33));
    pic.write(0, &[0x20]);
    // LINT0 as a fixed interrupt.
    write(apic, register::LVT_LINT0, 0x77);
    board.chip.set_gsi(Gsi(6), true);
    assert_eq!(apic.acknowledge(), Some(0x77));
    // Off, the APIC passes INTR and NMI through.
    apic.write_msr(spec::IA32_APIC_BASE, 0xfee0_0100).unwrap();
    assert_eq!(apic.acknowledge(), Some(0x36));
    board.chip.nmi();
    assert_eq!(cpu.take_others(), [InterruptKind::Nmi]);
    assert_eq!(board.cpus[1].take_others(), [], "LINT1 is masked there");
}

#[test]
fn level_interrupts_come_back_after_eoi_until_lowered() {
    let board = Board::new(1);
    let (apic, cpu, ioapic) = (&board.apics[0], &board.cpus[0], board.chip.ioapic());
    write(apic, register::LVT_LINT0, 0x1_0000);
    let program = |index: u8, value: u32| {
        ioapic.write(0, &[index]);
        ioapic.write(0x10, &value.to_le_bytes());
    };
    program(0x10 + 2 * 5, 0x8035);
    board.chip.set_gsi(Gsi(5), true);
    for _ in 0..3 {
        assert!(cpu.hard());
        assert_eq!(apic.acknowledge(), Some(0x35));
        assert!(!apic.has_interrupt());
        write(apic, register::EOI, 0);
    }
    assert_eq!(apic.acknowledge(), Some(0x35));
    board.chip.set_gsi(Gsi(5), false);
    write(apic, register::EOI, 0);
    assert!(!cpu.hard());
    // With broadcasts suppressed, the EOI register ends it.
    write(apic, register::SVR, 0x11ff);
    board.chip.set_gsi(Gsi(5), true);
    assert_eq!(apic.acknowledge(), Some(0x35));
    write(apic, register::EOI, 0);
    assert!(!cpu.hard());
    ioapic.write(0x40, &[0x35, 0, 0, 0]);
    assert!(cpu.hard());
    board.chip.set_gsi(Gsi(5), false);
    // The timer's override.
    program(0x10 + 2 * TIMER_PIN as u8, 0x36);
    apic.acknowledge();
    write(apic, register::EOI, 0);
    board.chip.set_gsi(Gsi(2), true);
    assert!(!cpu.hard());
    board.chip.set_gsi(Gsi(0), true);
    assert_eq!(apic.acknowledge(), Some(0x36));
}

#[test]
fn routes_carry_their_message_unless_masked() {
    let board = Board::new(1);
    let route = board.chip.new_route().unwrap();
    route.trigger();
    route.set(Some(MsiMessage { address: 0xfee0_0000, data: 0x45 })).unwrap();
    route.trigger();
    assert_eq!(board.apics[0].acknowledge(), Some(0x45));
    route.set(None).unwrap();
    route.trigger();
    board.chip.send_msi(MsiMessage { address: 0xfed0_0000, data: 0x45 });
    board.chip.send_msi(MsiMessage { address: 0xfee0_0000, data: 0x345 });
    assert_eq!(board.apics[0].acknowledge(), None);
}

/// Deliveries race with acknowledges, EOIs and priority changes; none may be left behind with the CPU not raised.
#[test]
fn no_delivery_is_lost() {
    const ROUNDS: u32 = 20_000;
    let board = Arc::new(Board::new(1));
    let sent: Arc<[AtomicU32; 2]> = Arc::default();
    let threads: Vec<_> = [0x41u32, 0x61]
        .into_iter()
        .enumerate()
        .map(|(i, vector)| {
            let (board, sent) = (Arc::clone(&board), Arc::clone(&sent));
            std::thread::spawn(move || {
                for round in 1..=ROUNDS {
                    board.msi(0, vector);
                    // One in flight per vector: each must arrive before the next is sent.
                    while sent[i].load(Ordering::SeqCst) != round {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let (apic, cpu) = (&board.apics[0], &board.cpus[0]);
    let mut taken = [0u32; 2];
    let mut last = std::time::Instant::now();
    while taken != [ROUNDS; 2] {
        assert!(last.elapsed().as_secs() < 60, "stuck at {taken:?}: hard {}", cpu.hard());
        if !cpu.hard() {
            std::thread::yield_now();
            continue;
        }
        let Some(vector) = apic.acknowledge() else { continue };
        let index = usize::from(vector == 0x61);
        taken[index] += 1;
        last = std::time::Instant::now();
        apic.set_cr8(15);
        sent[index].store(taken[index], Ordering::SeqCst);
        apic.set_cr8(0);
        write(apic, register::EOI, 0);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(!apic.has_interrupt());
}

#[test]
fn random_accesses_do_no_harm() {
    let board = Board::new(2);
    let mut random = crate::testing::Random::new(1);
    for _ in 0..200_000 {
        let apic = &board.apics[random.below(2) as usize];
        let value = random.next();
        match random.below(8) {
            0 => _ = apic.read_msr(0x800 + random.below(0x100) as u32),
            1 => _ = apic.write_msr(0x800 + random.below(0x100) as u32, value >> random.below(64)),
            2 => _ = apic.write_msr(0x1b, 0xfee0_0000 | value & 0xfff),
            3 => _ = apic.write_msr(0x6e0, value >> random.below(64)),
            4 => apic.mmio_read(random.below(0x1000), &mut [0; 8][..1 << random.below(4)]),
            5 => apic.mmio_write(random.below(0x100) << 4, &(value as u32).to_le_bytes()),
            6 => _ = apic.acknowledge(),
            _ => board.clock.advance(value & 0xfffff),
        }
    }
}
