use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::interrupt::{Gsi, IrqPin};
use crate::pci::spec::{command, register};
use crate::pci::testing::{Probe, Recorder, Seen};
use crate::pci::{Bar, Identity, Layout};
use crate::testing::Random;

const ECAM: u64 = 0xe000_0000;
const MSIX_CONTROL: usize = 0x40 + 2;
const FIRST: Address = Address::new(3, 0).unwrap();

/// A root complex on its buses, wired as on a PC, with probes.
struct Rig {
    memory: Arc<Bus>,
    io: Arc<Bus>,
    root: Arc<PciRoot>,
    sink: Arc<Recorder>,
    probes: Vec<Arc<Probe>>,
}

/// A byte register, for port 0xcf9.
#[derive(Default)]
struct Byte(Mutex<u8>);
impl BusDevice for Byte {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(*self.0.lock().unwrap());
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        *self.0.lock().unwrap() = data[0];
    }
}

impl Rig {
    fn new(addresses: &[Address]) -> Self {
        let (memory, io) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let root = PciRoot::new(&memory, &io);
        memory.insert(ECAM, ecam_bytes(256), root.ecam()).unwrap();
        io.insert(0xcf8, 4, root.address_port(Some((1, Arc::new(Byte::default()))))).unwrap();
        io.insert(0xcfc, 4, root.data_port()).unwrap();
        let sink = Arc::new(Recorder::default());
        let mut probes = Vec::new();
        for &address in addresses {
            let line = IrqPin::new(Gsi(16), sink.clone()).line("probe");
            let interrupts = crate::pci::FunctionInterrupts::new(line, sink.clone(), 4);
            let probe = Probe::new(interrupts, address.number());
            root.add(address, probe.clone()).unwrap();
            probes.push(probe);
        }
        Self { memory, io, root, sink, probes }
    }

    fn at(address: Address, offset: usize) -> u64 {
        ECAM + u64::from(address.number()) * 4096 + offset as u64
    }

    fn get(&self, address: Address, offset: usize) -> u32 {
        let mut data = [0x11; 4];
        assert!(self.memory.read(Self::at(address, offset), &mut data));
        u32::from_le_bytes(data)
    }

    fn set(&self, address: Address, offset: usize, value: u32) {
        assert!(self.memory.write(Self::at(address, offset), &value.to_le_bytes()));
    }

    fn set_command(&self, address: Address, value: u16) {
        self.memory.write(Self::at(address, register::COMMAND), &value.to_le_bytes());
    }

    fn word(&self, address: u64) -> Option<u32> {
        let mut data = [0; 4];
        self.memory.read(address, &mut data).then(|| u32::from_le_bytes(data))
    }
}

const DECODE: u16 = command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER;

#[test]
fn both_ways_lead_to_the_registers() {
    let rig = Rig::new(&[FIRST]);
    assert_eq!(rig.get(FIRST, 0), 0x5678_1234);
    assert_eq!(rig.get(FIRST, register::REVISION_ID), 0xff00_0007);
    assert_eq!(rig.get(FIRST, 0x100), u32::MAX, "no extended capabilities");
    assert_eq!(rig.get(Address::new(4, 0).unwrap(), 0), u32::MAX);
    let mut other_bus = [0; 4];
    assert!(rig.memory.read(ECAM + (1 << 20) + u64::from(FIRST.number()) * 4096, &mut other_bus));
    assert_eq!(other_bus, [0xff; 4]);

    let select = |value: u32| rig.io.write(0xcf8, &value.to_le_bytes());
    select(0x8000_0000 | u32::from(FIRST.number()) << 8);
    let mut half = [0; 2];
    assert!(rig.io.read(0xcfe, &mut half));
    assert_eq!(half, [0x78, 0x56]);
    // The byte at 0xcf9 is another register, and no byte of CONFIG_ADDRESS.
    rig.io.write(0xcf9, &[0x0e]);
    let mut byte = [0];
    rig.io.read(0xcf9, &mut byte);
    assert_eq!(byte, [0x0e]);
    let mut address = [0; 4];
    rig.io.read(0xcf8, &mut address);
    assert_eq!(u32::from_le_bytes(address), 0x8000_1800);
    for nobody in [0x8000_0800, 0x8001_1800, 0x0000_1800] {
        select(nobody);
        let mut data = [0; 4];
        rig.io.read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4], "{nobody:#x}");
    }
}

#[test]
fn bars_tell_their_size_and_go_where_they_are_put() {
    let rig = Rig::new(&[FIRST]);
    for (index, mask) in
        [(0, 0xffff_f000), (1, 0xffff_f000), (2, 0xffff_c00c), (3, u32::MAX), (4, 0xffff_ffe1)]
    {
        rig.set(FIRST, register::BAR0 + 4 * index, u32::MAX);
        assert_eq!(rig.get(FIRST, register::BAR0 + 4 * index), mask, "{index}");
    }
    rig.set(FIRST, register::BAR0, 0xc000_0000);
    assert_eq!(rig.word(0xc000_0010), None, "not decoded yet");
    rig.set(FIRST, register::BAR0 + 16, 0xc000);
    rig.set(FIRST, register::BAR0 + 8, 0x4000);
    rig.set(FIRST, register::BAR0 + 12, 0x20);
    rig.set_command(FIRST, DECODE);
    // A probe's bytes are its number and BAR.
    assert_eq!(rig.word(0xc000_0010), Some(0x1818_1818));
    assert_eq!(rig.word(0x20_0000_4000), Some(0x1a1a_1a1a));
    let mut port = [0];
    assert!(rig.io.read(0xc01f, &mut port));
    assert_eq!(port, [0x1c]);
    assert!(!rig.io.read(0xc020, &mut port));
    // While it is decoded, too.
    rig.set(FIRST, register::BAR0, 0xc100_0000);
    assert_eq!((rig.word(0xc000_0010), rig.word(0xc100_0ffc)), (None, Some(0x1818_1818)));
    assert_eq!(rig.word(0xc100_0ffe), None, "an access that leaves the BAR");
    rig.set_command(FIRST, command::IO_SPACE);
    assert_eq!(rig.word(0xc100_0000), None);
    assert!(rig.io.read(0xc000, &mut port));
    // An address of zero is none.
    rig.set(FIRST, register::BAR0 + 16, 0);
    assert!(!rig.io.read(0, &mut port));
}

#[test]
fn what_is_wired_hides_bars_and_a_low_function_another() {
    let second = Address::new(5, 0).unwrap();
    let rig = Rig::new(&[FIRST, second]);
    for address in [FIRST, second] {
        rig.set(address, register::BAR0, 0xc000_0000);
        rig.set_command(address, DECODE);
    }
    assert_eq!(rig.word(0xc000_0000), Some(0x1818_1818));
    assert_eq!(rig.probes[0].at(0), Some(0xc000_0000));
    assert_eq!(rig.probes[1].at(0), None, "the kernel must not answer for it");
    rig.set(FIRST, register::BAR0, ECAM as u32);
    assert_eq!(rig.word(0xc000_0000), Some(0x2828_2828));
    assert_eq!((rig.probes[0].at(0), rig.probes[1].at(0)), (None, Some(0xc000_0000)));
    assert_eq!(rig.get(FIRST, 0), 0x5678_1234, "ECAM is where it was");
    rig.set_command(second, 0);
    assert_eq!(rig.probes[1].at(0), None);
}

#[test]
fn several_functions_say_so() {
    let [zero, two] = [Address::new(6, 0).unwrap(), Address::new(6, 2).unwrap()];
    let rig = Rig::new(&[two, zero]);
    assert_eq!(rig.get(zero, register::HEADER_TYPE) & 0x80, 0x80);
    let rig = Rig::new(&[zero]);
    assert_eq!(rig.get(zero, register::HEADER_TYPE) & 0x80, 0);
    assert_eq!(rig.root.free_slot(6), Address::new(7, 0));
    assert_eq!(rig.root.add(zero, rig.probes[0].clone()), Err(Taken(zero)));
    assert_eq!(Address::new(32, 0), None);
}

/// A function with MSI-X enabled and its table at 0xc0001000, all vectors masked.
fn with_msix() -> Rig {
    let rig = Rig::new(&[FIRST]);
    rig.set(FIRST, register::BAR0 + 4, 0xc000_1000);
    rig.set_command(FIRST, DECODE);
    rig.memory.write(Rig::at(FIRST, MSIX_CONTROL), &0x8000u16.to_le_bytes());
    for vector in 0..4u32 {
        for (at, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x40 + vector)] {
            rig.memory.write(0xc000_1000 + u64::from(vector) * 16 + at, &u32::to_le_bytes(value));
        }
    }
    rig
}

fn mask(rig: &Rig, vector: u64, masked: bool) {
    rig.memory.write(0xc000_1000 + vector * 16 + 12, &u32::from(masked).to_le_bytes());
}

#[test]
fn messages_wait_while_they_are_masked() {
    let rig = with_msix();
    let interrupts = &rig.probes[0].interrupts;
    assert_eq!(rig.get(FIRST, MSIX_CONTROL - 2), 0x8003_0011);
    assert_eq!((rig.get(FIRST, 0x44), rig.get(FIRST, 0x48)), (1, 0x41));
    interrupts.trigger(2);
    assert_eq!(rig.sink.take(), []);
    let pending = 0xc000_1040;
    assert_eq!(rig.word(pending), Some(1 << 2));
    rig.memory.write(pending, &[0xff]);
    assert_eq!(rig.word(pending), Some(1 << 2), "read-only");
    mask(&rig, 2, false);
    assert_eq!((rig.sink.take(), rig.word(pending)), (vec![Seen::Route(0xfee0_0000, 0x42)], Some(0)));
    interrupts.trigger(2);
    assert_eq!(rig.sink.take(), [Seen::Route(0xfee0_0000, 0x42)]);
    // The whole function, by its mask and by losing the bus.
    let control = |value: u16| rig.memory.write(Rig::at(FIRST, MSIX_CONTROL), &value.to_le_bytes());
    control(0xc000);
    interrupts.trigger(2);
    assert_eq!(rig.sink.take(), []);
    control(0x8000);
    assert_eq!(rig.sink.take().len(), 1);
    rig.set_command(FIRST, command::MEMORY_SPACE);
    interrupts.trigger(2);
    assert_eq!(rig.sink.take(), []);
    rig.set_command(FIRST, DECODE);
    assert_eq!(rig.sink.take().len(), 1);
    // Disabled: forgotten.
    mask(&rig, 2, true);
    interrupts.trigger(2);
    control(0);
    control(0x8000);
    mask(&rig, 2, false);
    assert_eq!(rig.sink.take(), []);
    interrupts.trigger(4);
    interrupts.trigger(u16::MAX);
    assert_eq!(rig.sink.take(), []);
}

#[test]
fn events_send_messages_unless_they_are_masked() {
    let rig = with_msix();
    let interrupts = &rig.probes[0].interrupts;
    let events = [(); 2].map(|()| Arc::new(EventFd::new(0).unwrap()));
    let sent = || [rig.sink.sent_by(&events[0]), rig.sink.sent_by(&events[1])];
    let none = [Vec::<u32>::new(), Vec::new()];
    interrupts.attach(1, &events[0]);
    interrupts.attach(2, &events[1]);
    interrupts.attach(u16::MAX, &events[1]);
    assert_eq!(sent(), none);
    mask(&rig, 1, false);
    assert_eq!(sent(), [vec![0x41], vec![]]);
    mask(&rig, 2, false);
    let both = [vec![0x41], vec![0x42]];
    assert_eq!(sent(), both);
    // Who takes an event may still tell.
    interrupts.trigger(1);
    assert_eq!(rig.sink.take(), [Seen::Route(0xfee0_0000, 0x41)]);
    let control = |value: u16| rig.memory.write(Rig::at(FIRST, MSIX_CONTROL), &value.to_le_bytes());
    for off in [0xc000, 0] {
        control(off);
        assert_eq!(sent(), none, "{off:#x}");
        control(0x8000);
        assert_eq!(sent(), both, "{off:#x}");
    }
    rig.set_command(FIRST, command::MEMORY_SPACE);
    assert_eq!(sent(), none);
    rig.set_command(FIRST, DECODE);
    // A message to nowhere.
    mask(&rig, 1, true);
    rig.memory.write(0xc000_1010, &0x1000u32.to_le_bytes());
    mask(&rig, 1, false);
    assert_eq!(sent(), [vec![], vec![0x42]]);
    // One vector for both.
    interrupts.detach(1, &events[0]);
    interrupts.attach(2, &events[0]);
    assert_eq!(sent(), [vec![0x42], vec![0x42]]);
    interrupts.detach(2, &events[1]);
    interrupts.detach(3, &events[0]);
    assert_eq!(sent(), [vec![0x42], vec![]]);
    rig.root.reset();
    assert_eq!(sent(), none);
}

#[test]
fn tables_are_written_in_any_size() {
    let rig = with_msix();
    // Entry 1 by bytes, entry 0 by a store of eight that unmasks it, one store across both.
    for (offset, byte) in [(16, 0x03u8), (17, 0x50), (18, 0xe1), (19, 0xfe), (24, 0x77), (28, 0xfe)] {
        rig.memory.write(0xc000_1000 + offset, &[byte]);
    }
    rig.probes[0].interrupts.trigger(1);
    assert_eq!(rig.sink.take(), [Seen::Route(0xfee1_5000, 0x77)]);
    rig.probes[0].interrupts.trigger(0);
    rig.memory.write(0xc000_1008, &0x55u64.to_le_bytes());
    assert_eq!(rig.sink.take(), [Seen::Route(0xfee0_0000, 0x55)]);
    rig.memory.write(0xc000_100c, &[0, 0, 0, 0, 0, 0, 0xe0, 0xfe]);
    rig.probes[0].interrupts.trigger(1);
    assert_eq!(rig.sink.take(), [Seen::Route(0xfee0_0000, 0x77)]);
    let mut entry = [0; 8];
    rig.memory.read(0xc000_1018, &mut entry);
    assert_eq!(entry, [0x77, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn messages_to_nowhere_and_without_routes() {
    let rig = with_msix();
    mask(&rig, 0, false);
    for (low, high) in [(0x1000, 0), (0xfed0_0000u32, 0), (0xfee0_0000, 1)] {
        rig.memory.write(0xc000_1000, &low.to_le_bytes());
        rig.memory.write(0xc000_1004, &u32::to_le_bytes(high));
        rig.probes[0].interrupts.trigger(0);
        assert_eq!(rig.sink.take(), [], "{low:#x}");
    }
    rig.sink.refuse_routes();
    mask(&rig, 3, false);
    rig.probes[0].interrupts.trigger(3);
    assert_eq!(rig.sink.take(), [Seen::Message(0xfee0_0000, 0x43)]);
}

#[test]
fn the_pin_is_for_want_of_messages() {
    let rig = Rig::new(&[FIRST]);
    let interrupts = rig.probes[0].interrupts.clone();
    interrupts.update_intx(|| true);
    assert_eq!(rig.sink.take(), [Seen::Pin(true)]);
    assert_eq!(rig.get(FIRST, register::COMMAND) >> 16 & 8, 8);
    rig.set_command(FIRST, command::INTERRUPT_DISABLE);
    assert_eq!(rig.sink.take(), [Seen::Pin(false)]);
    assert_eq!(rig.get(FIRST, register::COMMAND) >> 16 & 8, 8, "wanted all the same");
    rig.set_command(FIRST, 0);
    rig.memory.write(Rig::at(FIRST, MSIX_CONTROL), &0x8000u16.to_le_bytes());
    assert_eq!(rig.sink.take(), [Seen::Pin(true), Seen::Pin(false)]);
    rig.memory.write(Rig::at(FIRST, MSIX_CONTROL), &0u16.to_le_bytes());
    assert_eq!(rig.sink.take(), [Seen::Pin(true)]);
    rig.root.reset();
    assert_eq!(rig.sink.take(), [Seen::Pin(false)]);
}

#[test]
fn a_reset_puts_everything_back() {
    let rig = with_msix();
    let fresh = Rig::new(&[FIRST]);
    mask(&rig, 0, false);
    rig.set(FIRST, register::BAR0, 0xc000_0000);
    rig.set(FIRST, register::INTERRUPT_LINE, 11);
    assert!(rig.probes[0].is_master());
    rig.root.reset();
    assert_eq!(rig.word(0xc000_0000), None);
    for offset in (0..256).step_by(4) {
        assert_eq!(rig.get(FIRST, offset), fresh.get(FIRST, offset), "{offset:#x}");
    }
    assert_eq!((rig.probes[0].at(0), rig.probes[0].is_master()), (None, false));
    rig.set(FIRST, register::BAR0 + 4, 0xc000_1000);
    rig.set_command(FIRST, DECODE);
    assert_eq!((rig.word(0xc000_1000), rig.word(0xc000_100c)), (Some(0), Some(1)), "masked again");
}

#[test]
fn a_layout_without_bars_is_enough() {
    let rig = Rig::new(&[]);
    struct Plain;
    impl Device for Plain {
        fn name(&self) -> &'static str {
            "plain"
        }
        fn reset(&self) {}
    }
    impl PciDevice for Plain {
        fn layout(&self) -> Layout {
            let identity =
                Identity { vendor: 0x8086, device: 1, revision: 0, class: 0x06_0000, subsystem: (0, 0) };
            Layout { registers: vec![(0x60, vec![1, 2], vec![0, 0xff])], ..Layout::new(identity) }
        }
    }
    let zero = Address::new(0, 0).unwrap();
    rig.root.add(zero, Arc::new(Plain)).unwrap();
    rig.set(zero, 0x60, u32::MAX);
    rig.set(zero, register::BAR0, u32::MAX);
    assert_eq!((rig.get(zero, 0x60), rig.get(zero, register::BAR0)), (0xff01, 0));
    assert_eq!(rig.get(zero, register::CAPABILITIES_POINTER), 0);
}

#[test]
#[should_panic(expected = "BAR 3 is taken")]
fn a_wide_bar_takes_two() {
    let mut space = crate::pci::config::ConfigSpace::new(&Identity {
        vendor: 1,
        device: 1,
        revision: 0,
        class: 0,
        subsystem: (0, 0),
    });
    space.add_bar(2, Bar::new(BarKind::Memory64 { prefetchable: true }, 4096));
    space.add_bar(3, Bar::new(BarKind::Memory32, 4096));
}

/// Checks that a probe's first BAR answers where the probe was told that it does, if anywhere, and that the registers say so too;
/// how often.
fn is_where_it_was_told(rig: &Rig, address: Address, probe: &Probe) -> u32 {
    let Some(base) = probe.at(0) else { return 0 };
    assert_eq!(u64::from(rig.get(address, register::BAR0)), base, "{address}");
    assert_ne!(rig.get(address, register::COMMAND) & u32::from(command::MEMORY_SPACE), 0, "{address}");
    let byte = address.number() & 0xf8;
    for offset in [0, 0xffc] {
        assert_eq!(rig.word(base + offset), Some(u32::from_le_bytes([byte; 4])), "{address} at {base:#x}");
    }
    1
}

/// Whatever a guest writes to configuration spaces, BARs and tables: nothing panics, windows stay what the registers say, and
/// a reset makes it all as new.
#[test]
fn a_guest_that_writes_at_random() {
    let places =
        [FIRST, Address::new(3, 1).unwrap(), Address::new(9, 0).unwrap(), Address::new(31, 7).unwrap()];
    let rig = Rig::new(&places);
    let fresh = Rig::new(&places);
    let mut random = Random::new(7);
    let mut visible = 0;
    for round in 0..40_000 {
        let address = places[random.below(4) as usize];
        let size = 1usize << random.below(4);
        let mut data = random.next().to_le_bytes();
        if random.below(3) == 0 {
            // Addresses near each other, near the ECAM window and near the ends.
            let near =
                [0xc000_0000, ECAM, ECAM + 0xff0_0000, 0xffff_f000, 0xfee0_0000, 0][random.below(6) as usize];
            data = (near + random.below(4) * 0x1000).to_le_bytes();
        }
        let offset = match random.below(4) {
            0 => register::BAR0 as u64 + random.below(24),
            1 => register::COMMAND as u64,
            2 => MSIX_CONTROL as u64,
            _ => random.below(0x1000),
        };
        let (at, io) = (Rig::at(address, 0) + offset, 0xcf8 + random.below(8));
        match random.below(6) {
            0 | 1 => _ = rig.memory.write(at, &data[..size]),
            2 => _ = rig.memory.read(at, &mut data[..size]),
            3 => {
                let select = 0x8000_0000 | u32::from(address.number()) << 8 | offset as u32 & 0xfc;
                rig.io.write(0xcf8, &select.to_le_bytes());
                rig.io.write(io, &data[..size.min(4)]);
                rig.io.read(io, &mut data[..size.min(4)]);
            }
            4 => {
                let bar = rig.get(address, register::BAR0 + 4 * random.below(6) as usize) & !0xf;
                let inside = u64::from(bar) + random.below(0x1000);
                rig.memory.write(inside, &data[..size]);
                rig.memory.read(inside, &mut data[..size]);
                rig.io.read(inside & 0xffff, &mut data[..size.min(4)]);
            }
            _ => rig.probes[random.below(4) as usize].interrupts.trigger(random.below(6) as u16),
        }
        rig.sink.take();
        if round % 100 == 0 {
            for (&address, probe) in places.iter().zip(&rig.probes) {
                assert_eq!(rig.get(address, 0), 0x5678_1234, "identity is not written");
                assert_eq!(rig.get(address, register::CAPABILITIES_POINTER) & 0xff, 0x40);
                visible += is_where_it_was_told(&rig, address, probe);
            }
        }
    }
    assert!(visible > 100, "BARs were hardly ever decoded: {visible}");
    rig.root.reset();
    for &address in &places {
        for offset in (0..256).step_by(4) {
            assert_eq!(rig.get(address, offset), fresh.get(address, offset), "{address} {offset:#x}");
        }
    }
    assert!(rig.probes.iter().all(|probe| (0..6).all(|bar| probe.at(bar).is_none())));
    assert!(!rig.sink.pin(), "no line stays up");
}
