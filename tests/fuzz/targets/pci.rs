//! PCI: configuration registers through ECAM and ports, BARs moved over one another and over other windows, MSI-X tables, the
//! bridges and the watchdog.
#![no_main]

use std::sync::Arc;

use devices::bus::Bus;
use devices::chipset::I6300Esb;
use devices::pci::IsaBridge;
use devices::pci::spec::command;
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use fuzz::input::Input;
use fuzz::machine::{ECAM, ECAM_BYTES, Machine, Requests};
use libfuzzer_sys::fuzz_target;

/// Slots that have a function: the host bridge, two devices, the watchdog, the ISA bridge.
const SLOTS: [u64; 5] = [0, 1, 2, 5, 31];
/// Where BARs may be: apart, on top of each other, over the ECAM window, at the ends.
const PLACES: [u32; 8] =
    [0xc000_0000, 0xc000_4000, 0xc000_8000, ECAM as u32, 0xffff_f000, 0, 0xfee0_0000, 0xdfff_c000];

fn plug(machine: &Machine) {
    for slot in [1, 2] {
        let source = std::fs::File::open("/dev/zero").expect("a device");
        let device = Rng::new(source, &machine.pace()).expect("an eventfd");
        let interrupts = machine.interrupts(if slot == 1 { 2 } else { 2048 });
        machine.plug(slot, VirtioPci::new(device, interrupts, machine.memory.clone(), machine.doorbells()));
    }
    machine.plug(5, I6300Esb::new(machine.clock(), Arc::new(Requests)));
    machine.plug(31, IsaBridge::new(0x600));
}

/// An access of `what`'s kind.
fn access(bus: &Bus, what: u8, at: u64, width: usize, input: &mut Input) {
    if what & 0x80 == 0 {
        bus.write(at, &input.u64().to_le_bytes()[..width]);
    } else {
        bus.read(at, &mut [0; 8][..width]);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let machine = Machine::default();
    plug(&machine);
    while !input.is_empty() {
        let (what, width) = (input.u8(), input.width());
        let aligned = |at: u64| at & !(width as u64 - 1);
        let function = input.pick(&SLOTS) << 15;
        match what & 7 {
            0 | 1 => {
                let at = aligned(ECAM + function + u64::from(input.u8()));
                access(&machine.mmio, what, at, width, &mut input);
            }
            // Anything in the window, and accesses that are not aligned.
            2 => {
                let at = ECAM + u64::from(input.u32()) % (ECAM_BYTES - 8);
                access(&machine.mmio, what, at, width, &mut input);
            }
            3 => {
                let address = match input.u8() {
                    0xff => input.u32(),
                    register => 0x8000_0000 | (function >> 4) as u32 | u32::from(register),
                };
                machine.pio.write(0xcf8, &address.to_le_bytes());
                access(&machine.pio, what, 0xcfc + u64::from(what >> 3 & 3), width.min(4), &mut input);
            }
            4 => access(&machine.pio, what, 0xcf8 + u64::from(what >> 3 & 7), width.min(4), &mut input),
            // A BAR of a function, and what it decodes.
            5 => {
                let bar = ECAM + function + 0x10 + 4 * u64::from(input.u8() % 6);
                machine.mmio.write(bar, &input.pick(&PLACES).to_le_bytes());
                let enabled = command::MEMORY_SPACE | command::BUS_MASTER | u16::from(input.u8() & 1);
                machine.mmio.write(ECAM + function + 4, &enabled.to_le_bytes());
            }
            // Where one may be.
            6 => {
                let at = u64::from(input.pick(&PLACES)) + u64::from(input.u16() & 0x7fff);
                let bus = if what & 0x40 == 0 { &machine.mmio } else { &machine.pio };
                access(bus, what, aligned(at), width, &mut input);
            }
            _ => match what >> 3 & 3 {
                0 => devices::device::Device::reset(&*machine.root),
                1 => {
                    devices::device::Device::pause(&*machine.root);
                    devices::device::Device::resume(&*machine.root);
                }
                _ => machine.clock.advance(u64::from(input.u32())),
            },
        }
    }
    devices::device::Device::reset(&*machine.root);
    for slot in SLOTS {
        let mut vendor = [0; 2];
        machine.mmio.read(ECAM + (slot << 15), &mut vendor);
        assert!(matches!(u16::from_le_bytes(vendor), 0x8086 | 0x1af4), "slot {slot}");
    }
});
