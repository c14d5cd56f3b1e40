//! A machine with one CPU for the tests: RAM at 0, ports that record what the guest writes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use accel::{
    Accelerator, CpuArchState, CpuHandle, CpuIo, VcpuBackend, VcpuConfig, VcpuExit, arch_state::seg,
};
use devices::bus::Bus;
use devices::cpu_interrupts::LocalInterrupts;
use devices::interrupt::{Gsi, InterruptSink};
use devices::irqchip::{LocalApic, UserspaceIrqchip};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{KernelIrqchip, Kvm, KvmOptions};

/// Where the guest's program starts, in real mode with CS = 0.
pub(crate) const START: u64 = 0x1000;
/// RAM ends here.
pub(crate) const RAM: usize = 0x1_0000;
/// Bytes that the guest says.
pub(crate) const SAY: u16 = 0x3f8;
/// A write raises interrupt 4 from another thread, a moment later.
pub(crate) const RAISE: u16 = 0xf0;
/// A write ends the run.
pub(crate) const END: u16 = 0xf4;

/// The accelerator, or `None` with a line that says which test is skipped and why.
pub(crate) fn open(test: &str, kernel_irqchip: KernelIrqchip) -> Option<Kvm> {
    match Kvm::open(&KvmOptions { kernel_irqchip, ..KvmOptions::default() }) {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("skipped: {test}: {error}");
            None
        }
    }
}

pub(crate) struct Io {
    cpu: CpuHandle,
    sink: Arc<dyn InterruptSink>,
    apic: Option<Arc<LocalApic>>,
    bus: Bus,
    pub(crate) said: Mutex<Vec<u8>>,
    pub(crate) mmio: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl CpuIo for Io {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        if !self.bus.read(port.into(), data) {
            data.fill(0x41);
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        match port {
            SAY => self.said.lock().unwrap().extend_from_slice(data),
            RAISE => {
                let sink = Arc::clone(&self.sink);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    sink.set_gsi(Gsi(4), true);
                    sink.set_gsi(Gsi(4), false);
                });
            }
            END => self.cpu.request_exit(),
            _ => _ = self.bus.write(port.into(), data),
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = (gpa as u8).wrapping_add(index as u8);
        }
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.lock().unwrap().push((gpa, data.to_vec()));
    }

    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        self.apic.as_deref().map(|apic| apic as &dyn LocalInterrupts)
    }
}

pub(crate) struct Machine {
    pub(crate) cpu: CpuHandle,
    pub(crate) io: Arc<Io>,
    pub(crate) backend: Box<dyn VcpuBackend>,
    pub(crate) memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine whose CPU, on the calling thread, is about to run `program`.
    pub(crate) fn new(kvm: &Kvm, program: &[u8]) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        memory.write_slice(program, GuestAddress(START)).unwrap();
        kvm.memory_listener().set_map(&memory).unwrap();
        let config = VcpuConfig { index: 0, apic_id: 0, cpu_count: 1, model: Arc::default() };
        let seed = kvm.new_vcpu(&config).unwrap();
        let cpu = CpuHandle::new(0);
        cpu.set_kicker(seed.kicker());
        let bus = Bus::new();
        let (sink, apic): (Arc<dyn InterruptSink>, _) = match kvm.irqchip() {
            accel::Irqchip::Kernel(sink) => (sink, None),
            accel::Irqchip::Split(_) => unreachable!("not asked for"),
            accel::Irqchip::Userspace => {
                let chips = UserspaceIrqchip::new(kvm.clock(), 40);
                bus.insert(0x20, 2, chips.pic().master_ports()).unwrap();
                bus.insert(0xa0, 2, chips.pic().slave_ports()).unwrap();
                let apic = chips.add_cpu(0, Arc::new(cpu.clone()), seed.tsc());
                (chips, Some(apic))
            }
        };
        let io = Arc::new(Io {
            cpu: cpu.clone(),
            sink,
            apic,
            bus,
            said: Mutex::default(),
            mmio: Mutex::default(),
        });
        let mut backend = seed.bind(cpu.clone()).unwrap();
        backend.set_state(&start()).unwrap();
        Self { cpu, io, backend, memory }
    }

    /// Runs until the guest ends it; halts are slept through.
    pub(crate) fn run(&mut self) -> VcpuExit {
        loop {
            match self.backend.run(&*self.io).unwrap() {
                VcpuExit::Halted => {
                    while !self.backend.has_work(&*self.io) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                VcpuExit::Kicked => {
                    assert!(self.cpu.take_exit_request());
                    self.backend.complete_exit(&*self.io).unwrap();
                    return VcpuExit::Kicked;
                }
                exit => return exit,
            }
        }
    }

    pub(crate) fn said(&self) -> String {
        String::from_utf8(self.io.said.lock().unwrap().clone()).unwrap()
    }
}

/// Real mode at 0:[`START`] with a stack.
pub(crate) fn start() -> CpuArchState {
    let mut state = CpuArchState::power_on();
    state.rip = START;
    state.segments[seg::CS].selector = 0;
    state.segments[seg::CS].base = 0;
    state.gpr[accel::arch_state::reg::RSP] = 0x8000;
    state
}
