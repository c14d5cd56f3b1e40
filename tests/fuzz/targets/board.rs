//! The board's chips at their ports and addresses: interrupt controllers, timers, clock, keyboard controller, power management,
//! serial port, resets. Accesses of any width come as a CPU's, in any order, while time passes.
#![no_main]

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use accel::CpuIo;
use bivisor::machine::cpu_io::MachineIo;
use devices::backend::BufferBackend;
use devices::bus::{Bus, BusDevice};
use devices::chipset::rtc_mc146818::MemorySize;
use devices::chipset::{
    AcpiPm, DebugExit, I8042, Pit8254, PostPort, Pvpanic, ResetControl, RtcMc146818, SystemControlPortA,
};
use devices::clock::{Clock, ManualClock};
use devices::cpu_interrupts::{InterruptKind, InterruptTarget};
use devices::device::Device;
use devices::interrupt::{Gsi, InterruptSink, IrqPin, MsiMessage};
use devices::irqchip::{UserspaceIrqchip, ioapic};
use devices::serial::Uart16550;
use devices::system::SystemControl;
use fuzz::input::Input;
use fuzz::machine::Requests;
use libfuzzer_sys::fuzz_target;

/// First ports of the chips, and how many each has.
const PORTS: [(u16, u16); 18] = [
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x70, 2),
    (0x60, 1),
    (0x64, 1),
    (0x600, 0x40),
    (0xcf9, 1),
    (0x92, 1),
    (0x80, 1),
    (0x3f8, 8),
    (0x3f8, 8),
    (0x505, 1),
    (0xf4, 4),
    (0, 0xffff),
    (0x600, 8),
];
/// Registers of the local APIC that do most.
const APIC: [u64; 12] = [0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x300, 0x310, 0x320, 0x350, 0x380, 0x3e0];

/// Of guest time, in one input.
const MOST_TIME_NS: u64 = 2_000_000_000;

/// A CPU that takes note of nothing.
struct Cpu;

impl InterruptTarget for Cpu {
    fn raise(&self, _kind: InterruptKind) {}

    fn lower_hard(&self) {}
}

struct Board {
    clock: Arc<ManualClock>,
    /// Nanoseconds that may pass: timers may go off every 100 us of them.
    time_left: Cell<u64>,
    irqchip: Arc<UserspaceIrqchip>,
    io: MachineIo,
    devices: Vec<Arc<dyn Device>>,
    uart: Arc<Uart16550>,
}

fn board() -> Board {
    let clock = ManualClock::new();
    let time: Arc<dyn Clock> = clock.clone();
    let irqchip = UserspaceIrqchip::new(time.clone(), 52);
    let sink: Arc<dyn InterruptSink> = irqchip.clone();
    let cpus: Vec<_> = (0..2).map(|id| irqchip.add_cpu(id, Arc::new(Cpu), None)).collect();
    let line = |irq: u32| IrqPin::new(Gsi(irq), Arc::clone(&sink)).line("board");
    let system: Arc<dyn SystemControl> = Arc::new(Requests);
    let pit = Pit8254::new(line(0), time.clone());
    let memory = MemorySize { below_4g_bytes: 1 << 20, above_4g_bytes: 0 };
    let rtc = RtcMc146818::new(line(8), time.clone(), Duration::from_secs(1_700_000_000), memory);
    let keyboard = I8042::new(line(1), line(12), system.clone());
    let power = AcpiPm::new(line(9), time.clone(), system.clone());
    let reset = ResetControl::new(system.clone());
    let port_a = SystemControlPortA::new(system.clone());
    let post = PostPort::new();
    let panic = Pvpanic::new(3, system.clone());
    let exit = DebugExit::new(system.clone());
    let uart = Uart16550::new(line(4), BufferBackend::new(4096), &time);
    let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let pic = irqchip.pic();
    let windows: Vec<(u64, u64, Arc<dyn BusDevice>)> = vec![
        (0x20, 2, pic.master_ports()),
        (0xa0, 2, pic.slave_ports()),
        (0x4d0, 2, pic.elcr_ports()),
        (0x40, 4, pit.clone()),
        (0x61, 1, pit.nmi_status_port()),
        (0x70, 2, rtc.clone()),
        (0x60, 1, keyboard.data_port()),
        (0x64, 1, keyboard.command_port()),
        (0x600, devices::chipset::acpi_pm::spec::PORTS, power.clone()),
        (0xcf9, 1, reset.clone()),
        (0x92, 1, port_a.clone()),
        (0x80, 1, post.clone()),
        (0x3f8, 8, uart.clone()),
        (0x505, devices::chipset::pvpanic::spec::PORTS, panic.clone()),
        (0xf4, 4, exit.clone()),
    ];
    for (port, ports, window) in windows {
        pio.insert(port, ports, window).expect("apart from each other");
    }
    let ioapic: Arc<dyn BusDevice> = irqchip.ioapic().clone();
    mmio.insert(ioapic::spec::BASE, ioapic::spec::WINDOW, ioapic).expect("an empty bus");
    let devices: Vec<Arc<dyn Device>> =
        vec![pit, rtc, keyboard, power, reset, port_a, post, panic, exit, uart.clone(), irqchip.clone()];
    let io = MachineIo { pio, mmio, local_apic: cpus.into_iter().next() };
    Board { clock, time_left: Cell::new(MOST_TIME_NS), irqchip, io, devices, uart }
}

fn step(board: &Board, input: &mut Input) {
    let (what, width) = (input.u8(), input.width());
    let io = &board.io;
    let is_write = what & 0x80 == 0;
    match what & 15 {
        0..6 => {
            let (first, count) = input.pick(&PORTS);
            let port = first.wrapping_add(input.u16() % count.max(1));
            let width = width.min(4);
            match is_write {
                true => io.pio_write(port, &input.u64().to_le_bytes()[..width]),
                false => io.pio_read(port, &mut [0; 8][..width]),
            }
        }
        6..9 => {
            let base = input.pick(&[0xfec0_0000, 0xfee0_0000]);
            let at = match input.u8() {
                0xff => u64::from(input.u16() & 0xfff).min(0x1000 - width as u64),
                index if base == 0xfec0_0000 => u64::from(index & 7) << 4,
                index => APIC[usize::from(index) % APIC.len()],
            };
            match is_write {
                true => io.mmio_write(base + at, &input.u64().to_le_bytes()[..width]),
                false => io.mmio_read(base + at, &mut [0; 8][..width]),
            }
        }
        9 | 10 => {
            let Some(cpu) = io.interrupts() else { return };
            let index = input.pick(&[0x1b, 0x6e0, 0x808, 0x80b, 0x80f, 0x830, 0x832, 0x838, 0x83e, 0x83f]);
            let index = if what & 0x40 == 0 { index } else { 0x800 + u32::from(input.u8()) };
            match is_write {
                true => _ = cpu.write_msr(index, input.u64()),
                false => _ = cpu.read_msr(index),
            }
        }
        11 => {
            let Some(cpu) = io.interrupts() else { return };
            match input.u8() & 7 {
                0 => _ = cpu.take_sipi(),
                1 => cpu.tsc_changed(),
                2 => cpu.init(),
                3 => cpu.set_cr8(what >> 4 & 15),
                4 => _ = std::hint::black_box((cpu.cr8(), cpu.has_interrupt(), cpu.summary().to_string())),
                _ => _ = cpu.acknowledge(),
            }
        }
        12 => {
            let ns = input.pick(&[1, 1000, 50_000, 1_000_000, 500_000_000]).min(board.time_left.get());
            board.time_left.set(board.time_left.get() - ns);
            board.clock.advance(ns);
        }
        13 => {
            let device: &dyn devices::backend::CharDevice = &*board.uart;
            let bytes = input.short();
            device.receive(&bytes[..bytes.len().min(device.can_receive())]);
            if is_write {
                device.event(devices::backend::CharEvent::Break);
            }
        }
        14 => {
            let data = input.u32();
            board
                .irqchip
                .send_msi(MsiMessage { address: 0xfee0_0000 | u64::from(input.u32() & 0xf_ffff), data });
        }
        _ => match what >> 4 & 7 {
            0 => board.devices.iter().for_each(|device| device.reset()),
            1 => {
                board.devices.iter().for_each(|device| device.pause());
                board.devices.iter().for_each(|device| device.resume());
            }
            2 => board.irqchip.nmi(),
            _ => board.irqchip.set_gsi(Gsi(u32::from(input.u8() & 31)), is_write),
        },
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let board = board();
    // Up to hours after power-on, with nothing set yet.
    board.clock.advance(u64::from(input.u16()) << 27);
    while !input.is_empty() {
        step(&board, &mut input);
    }
    board.devices.iter().for_each(|device| device.reset());
    let mut line_status = [0];
    board.io.pio_read(0x3f8 + 5, &mut line_status);
    assert_eq!(line_status, [0x60], "the transmitter of a serial port at power-on is empty");
});
