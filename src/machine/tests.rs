//! The machine on the CPU-less accelerator: the test does the CPU's accesses.

use super::*;
use accel::CpuIo;
use accel::arch_state::{RunMode, reg};
use accel::qtest::QtestAccelerator;
use devices::backend::{BufferBackend, CharBackend};
use devices::system::{SystemControl, SystemRequest};

use crate::run_state::Occurrence;

const MIB: u64 = 1 << 20;
const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

struct Bench {
    machine: Machine,
    accelerator: Arc<QtestAccelerator>,
    io: MachineIo,
    run_state: Arc<RunState>,
    said: Arc<BufferBackend>,
    _kernel: vmm_sys_util::tempfile::TempFile,
}

/// A PVH kernel of one page at 2 MiB.
fn kernel() -> vmm_sys_util::tempfile::TempFile {
    let mut note = [4u32, 4, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(0x20_0000u32.to_le_bytes());
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2u16, 3].map(u16::to_le_bytes).concat());
    image.extend([1, 0x20_0000, 52, 0, 0].map(u32::to_le_bytes).concat());
    image.extend([52u16, 32, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let length = note.len() as u32;
    image.extend([4, 116, 0, 0, length, length, 4, 4].map(u32::to_le_bytes).concat());
    image.extend([1, 116 + length, 0x20_0000, 0x20_0000, 2, 4096, 7, 4].map(u32::to_le_bytes).concat());
    image.extend(note);
    image.extend([0xf4, 0x90]);
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    std::fs::write(file.as_path(), image).unwrap();
    file
}

fn blueprint(kernel: &vmm_sys_util::tempfile::TempFile, topology: CpuTopology) -> Blueprint {
    Blueprint {
        machine: MachineKind::default(),
        memory_bytes: 16 * MIB,
        memory_backend: None,
        topology,
        cpu: CpuModel::default(),
        boot: BootSource::open(kernel.as_path(), None, "hello", 16 * MIB).unwrap(),
        devices: vec![DeviceChoice::IsaDebugExit { iobase: 0xf4, iosize: 4 }],
        virtio: Vec::new(),
        firmware: Firmware::default(),
        rtc: RtcBase::Host,
    }
}

fn bench() -> Bench {
    bench_of(CpuTopology::default())
}

fn bench_of(topology: CpuTopology) -> Bench {
    let kernel = kernel();
    let blueprint = blueprint(&kernel, topology);
    let accelerator = Arc::new(QtestAccelerator::new());
    let run_state = RunState::new().unwrap();
    let board = Board::new(blueprint, accelerator.clone(), run_state.clone()).unwrap();
    let io = MachineIo {
        pio: Arc::clone(&board.pio),
        mmio: Arc::clone(&board.mmio),
        local_apic: board.own_chips.as_ref().and_then(|own| own.local_apic(0)),
    };
    let said = BufferBackend::new(1000);
    let machine = board.equip(vec![Some(said.clone() as Arc<dyn CharBackend>)]).unwrap();
    machine.start().unwrap();
    Bench { machine, accelerator, io, run_state, said, _kernel: kernel }
}

impl Bench {
    fn out(&self, port: u16, value: u8) {
        self.io.pio_write(port, &[value]);
    }

    fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.io.pio_read(port, &mut data);
        data[0]
    }

    fn store(&self, address: u64, value: u32) {
        self.io.mmio_write(address, &value.to_le_bytes());
    }

    fn asked(&self) -> Option<SystemRequest> {
        match self.run_state.take()? {
            Occurrence::System(request) => Some(request),
            other => panic!("{other:?}"),
        }
    }

    fn rip(&self) -> u64 {
        let cpu = self.machine.lifecycle().cpus().cpu(0).unwrap();
        let state = cpu.run_on(|cpu| cpu.backend.state()).unwrap().unwrap();
        assert_eq!(state.gpr[reg::RBX], crate::boot::layout::START_INFO);
        state.rip
    }
}

#[test]
fn the_cpu_starts_at_the_kernel_and_finds_the_acpi_tables() {
    let bench = bench();
    assert_eq!(bench.rip(), 0x20_0000);
    let mut signature = [0; 8];
    bench.machine.memory().read_slice(&mut signature, GuestAddress(layout::ACPI)).unwrap();
    assert_eq!(&signature, b"RSD PTR ");
    assert_eq!(
        bench.accelerator.memory().map(|memory| memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap()),
        Some(0xf4)
    );
}

#[test]
fn devices_are_where_the_tables_say() {
    let bench = bench();
    bench.out(0x3f8, b'!');
    bench.accelerator.manual_clock().advance(10_000_000);
    assert_eq!(bench.said.take(), b"!");
    // Nobody is at COM2 to COM4.
    assert_eq!(bench.inb(0x2fd), 0xff);
    // The PM timer runs at 3.579545 MHz.
    let timer = || {
        let mut data = [0; 4];
        bench.io.pio_read(0x608, &mut data);
        u32::from_le_bytes(data)
    };
    let before = timer();
    bench.accelerator.manual_clock().advance(1_000_000_000);
    assert!(timer().wrapping_sub(before).abs_diff(3_579_545) <= 1);
    // RTC register A, index and data.
    bench.out(0x70, 0x0a);
    assert_eq!(bench.inb(0x71) & 0x7f, 0x26);
}

#[test]
fn what_guests_ask_of_the_machine() {
    let bench = bench();
    bench.io.pio_write(0x604, &(5u16 << 10 | 1 << 13).to_le_bytes());
    assert_eq!(bench.asked(), Some(SystemRequest::PowerOff));
    for (port, value) in [(0x64, 0xfe), (0xcf9, 6), (0x92, 1)] {
        bench.out(port, value);
        assert_eq!(bench.asked(), Some(SystemRequest::Reset), "{port:#x}");
    }
    bench.io.pio_write(0xf4, &0x11u32.to_le_bytes());
    assert_eq!(bench.asked(), Some(SystemRequest::Exit(0x23)));
}

#[test]
fn the_timer_reaches_the_cpu_through_pin_2() {
    let bench = bench();
    let apic = bench.io.interrupts().expect("ours");
    // The PIC is masked; counter 0 counts 1000 ticks in mode 2, both bytes.
    bench.out(0x21, 0xff);
    bench.out(0xa1, 0xff);
    bench.out(0x43, 0x34);
    bench.out(0x40, 0xe8);
    bench.out(0x40, 0x03);
    // Software-enabled; pin 2 to vector 0x30 of APIC 0.
    bench.store(LAPIC + 0xf0, 0x1ff);
    bench.store(IOAPIC, 0x14);
    bench.store(IOAPIC + 0x10, 0x30);
    assert!(!apic.has_interrupt());
    bench.accelerator.manual_clock().advance(2_000_000);
    assert!(apic.has_interrupt());
    assert_eq!(apic.acknowledge(), Some(0x30));
}

#[test]
fn a_reset_is_a_fresh_start() {
    let bench = bench();
    let memory = bench.machine.memory();
    memory.write_obj(0xccu8, GuestAddress(0x20_0000)).unwrap();
    memory.write_obj(0xccu8, GuestAddress(0x80_0000)).unwrap();
    bench.out(0x43, 0x34);
    bench.out(0x70, 0x0a);
    bench.run_state.request(SystemRequest::Reset);
    bench.machine.reset(|| bench.run_state.forget_guest()).unwrap();
    assert!(bench.run_state.take().is_none());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x20_0000)).unwrap(), 0xf4);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x80_0000)).unwrap(), 0);
    assert_eq!(bench.rip(), 0x20_0000);
    assert!(!bench.machine.lifecycle().is_paused());
}

#[test]
fn two_devices_do_not_share_a_port() {
    let kernel = kernel();
    let devices = vec![DeviceChoice::IsaDebugExit { iobase: 0x60, iosize: 1 }];
    let blueprint = Blueprint { devices, ..blueprint(&kernel, CpuTopology::default()) };
    let board = Board::new(blueprint, Arc::new(QtestAccelerator::new()), RunState::new().unwrap()).unwrap();
    assert!(matches!(board.equip(Vec::new()), Err(MachineError::Bus(BusError::Overlap { .. }))));
}

#[test]
fn packages_have_bits_of_their_own_in_apic_ids() {
    let bench = bench_of(CpuTopology { sockets: 2, cores: 3, threads: 1 });
    let cpus = bench.machine.lifecycle().cpus().cpus();
    assert_eq!(cpus.len(), 6);
    for (cpu, mode) in cpus.iter().zip([RunMode::Running].into_iter().chain([RunMode::WaitForSipi; 5])) {
        let state = cpu.run_on(|cpu| cpu.backend.state()).unwrap().unwrap();
        assert_eq!(state.run_mode, mode, "CPU {}", cpu.index());
    }
    // The MADT: local APICs follow its header of 44 bytes, 8 bytes each.
    let mut tables = vec![0; 0x1000];
    bench.machine.memory().read_slice(&mut tables, GuestAddress(layout::ACPI)).unwrap();
    let at = tables.windows(4).position(|window| window == b"APIC").unwrap();
    let ids: Vec<u8> = tables[at + 44..][..48].chunks(8).map(|entry| entry[3]).collect();
    assert_eq!(ids, [0, 1, 2, 4, 5, 6]);
}

#[test]
fn tables_have_places_of_their_own() {
    let kernel = kernel();
    let topology = CpuTopology::flat(64);
    let described = crate::smbios::Machine { product: "microvm", topology, memory_bytes: 4 << 40 };
    let smbios = Default::default();
    let smbios = crate::smbios::Tables::new(&smbios, &[], &described, layout::SMBIOS, 0xc000).unwrap();
    let firmware = Firmware { smbios, generation: Some(Default::default()), ..Firmware::default() };
    let blueprint = Blueprint { firmware, ..blueprint(&kernel, topology) };
    let board = Board::new(blueprint, Arc::new(QtestAccelerator::new()), RunState::new().unwrap()).unwrap();
    let pio = Arc::clone(&board.pio);
    let machine = board.equip(Vec::new()).unwrap();
    let mut tables: Vec<_> =
        machine.tables.iter().map(|(base, table)| (*base, base + table.len() as u64)).collect();
    tables.sort_unstable();
    assert_eq!(tables.len(), 4);
    assert!(tables.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{tables:x?}");
    assert!(tables[0].0 >= layout::ACPI && tables[3].1 <= layout::HIGH_RAM);
    // The firmware configuration device: CPUs, and the signature of its DMA.
    let mut data = [0; 4];
    pio.write(0x510, &5u16.to_le_bytes());
    pio.read(0x511, &mut data[..1]);
    assert_eq!(data[0], 64);
    pio.read(0x514, &mut data);
    assert_eq!(&data, b"QEMU");
}

#[test]
fn the_engine_limits_the_cpus() {
    let kernel = kernel();
    let blueprint = blueprint(&kernel, CpuTopology::flat(65));
    let board = Board::new(blueprint, Arc::new(QtestAccelerator::new()), RunState::new().unwrap());
    assert!(matches!(board.err(), Some(MachineError::TooManyCpus { cpus: 65, limit: 64, .. })));
}

#[test]
fn virtio_devices_are_where_acpi_says() {
    let kernel = kernel();
    let source = || VirtioPart::Rng(Arc::new(std::fs::File::open("/dev/urandom").unwrap())).into();
    let parts = |count: usize| (0..count).map(|_| source()).collect();
    let board = |count| {
        let blueprint = Blueprint { virtio: parts(count), ..blueprint(&kernel, CpuTopology::default()) };
        Board::new(blueprint, Arc::new(QtestAccelerator::new()), RunState::new().unwrap()).unwrap()
    };
    let board_of_9 = board(9);
    let mmio = Arc::clone(&board_of_9.mmio);
    let machine = board_of_9.equip(Vec::new()).unwrap();
    for (base, there) in [(0xfeb0_0000, true), (0xfeb0_1000, true), (0xfeb0_1200, false)] {
        let mut magic = [0; 4];
        assert_eq!(mmio.read(base, &mut magic), there, "{base:#x}");
        assert_eq!(&magic == b"virt", there, "{base:#x}");
    }
    machine.start().unwrap();
    let mut tables = vec![0; 0x2000];
    machine.memory().read_slice(&mut tables, GuestAddress(layout::ACPI)).unwrap();
    let described = tables.windows(8).filter(|window| window == b"LNRO0005").count();
    assert_eq!(described, 9);
    machine.flush_disks();
    assert!(matches!(board(33).equip(Vec::new()), Err(MachineError::Virtio(_))));
}

/// A board of this kind with that many sources of random bytes, and its buses.
fn with_pci(machine: MachineKind, count: usize) -> (Result<Machine, MachineError>, MachineIo) {
    let kernel = kernel();
    let source = || VirtioPart::Rng(Arc::new(std::fs::File::open("/dev/urandom").unwrap())).into();
    let virtio = (0..count).map(|_| source()).collect();
    let blueprint = Blueprint { machine, virtio, ..blueprint(&kernel, CpuTopology::default()) };
    let board = Board::new(blueprint, Arc::new(QtestAccelerator::new()), RunState::new().unwrap()).unwrap();
    let io = MachineIo { pio: Arc::clone(&board.pio), mmio: Arc::clone(&board.mmio), local_apic: None };
    (board.equip(Vec::new()), io)
}

#[test]
fn pci_is_where_acpi_says() {
    for (kind, host, isa) in [
        (MachineKind::Q35, 0x29c0_8086, 0x2918_8086),
        (MachineKind::Microvm { pcie: true }, 0x0008_1b36, u32::MAX),
    ] {
        let (machine, io) = with_pci(kind, 2);
        let machine = machine.unwrap();
        let get = |address: u64| {
            let mut data = [0; 4];
            io.mmio_read(address, &mut data);
            u32::from_le_bytes(data)
        };
        let function = |slot: u64| layout::ECAM + slot * 0x8000;
        let found = [0, 1, 2, 3, 31].map(|slot| get(function(slot)));
        assert_eq!(found, [host, 0x1044_1af4, 0x1044_1af4, u32::MAX, isa]);
        // The other way, and the register amid its ports.
        io.pio_write(0xcf8, &0x8000_0800u32.to_le_bytes());
        let mut data = [0; 4];
        io.pio_read(0xcfc, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x1044_1af4);
        io.pio_write(0xcf9, &[2]);
        let mut byte = [0];
        io.pio_read(0xcf9, &mut byte);
        assert_eq!(byte, [2]);
        // A BAR is placed, answers, and is gone after a reset.
        io.mmio_write(function(1) + 0x20, &0xc000_0000u32.to_le_bytes());
        io.mmio_write(function(1) + 4, &6u16.to_le_bytes());
        io.mmio_read(0xc000_0012, &mut data[..2]);
        assert_eq!(data[..2], [1, 0], "one queue");
        machine.start().unwrap();
        machine.reset(|| {}).unwrap();
        io.mmio_read(0xc000_0012, &mut data[..2]);
        assert_eq!(data[..2], [0xff, 0xff]);
        let mut tables = vec![0; 0x4000];
        machine.memory().read_slice(&mut tables, GuestAddress(layout::ACPI)).unwrap();
        let described = |name: &[u8]| tables.windows(name.len()).filter(|window| *window == name).count();
        assert_eq!((described(b"MCFG"), described(b"LNRO0005")), (1, 0));
        machine.flush_disks();
    }
}

#[test]
fn slots_are_limited() {
    assert!(with_pci(MachineKind::Q35, 30).0.is_ok());
    let error = with_pci(MachineKind::Q35, 31).0.err().expect("one too many");
    assert_eq!(error.to_string(), "virtio-rng: all slots of the PCI bus are taken");
}
