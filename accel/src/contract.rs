//! What an accelerator owes the machine, and the machine the accelerator.
//!
//! The accelerator is chosen once, in the machine builder; nobody else ever asks which one it is. I/O goes out of
//! a running CPU by callback ([`CpuIo`]); only reasons of the CPU's lifecycle come back as values ([`VcpuExit`]).

use std::sync::Arc;
use std::time::Duration;

use devices::clock::{Clock, GuestTsc};
use devices::cpu_interrupts::LocalInterrupts;
use devices::device::Device;
use devices::dma::DmaObserver;
use devices::interrupt::InterruptSink;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::arch_state::CpuArchState;
use crate::cpu_handle::CpuHandle;
use crate::cpu_model::{CpuModel, CpuPlace, CpuTopology};

/// An execution engine.
pub trait Accelerator: Send + Sync {
    /// `kvm`, `tcg`, `qtest`: the name on the command line.
    fn name(&self) -> &'static str;
    /// Told of every change of the guest's physical memory map, before CPUs exist or while they are stopped.
    fn memory_listener(&self) -> &dyn MemoryListener;
    /// Who models the interrupt controllers.
    fn irqchip(&self) -> Irqchip;
    /// The accelerator's own interrupt controllers as a device, to be reset with the others (the local APICs are reset
    /// with their CPUs). `None` where the machine builds them.
    fn irqchip_device(&self) -> Option<Arc<dyn Device>> {
        None
    }
    /// Whether guest code is translated: what the host does on the guest's behalf is then many times faster than what the
    /// guest does itself.
    fn translates(&self) -> bool {
        false
    }
    /// Who is to hear of what devices write to guest memory. `None`: nobody need.
    fn dma_observer(&self) -> Option<Arc<dyn DmaObserver>> {
        None
    }
    /// From now on a CPU's `store` to `gpa`, which is not RAM, writes `event` instead of reaching the bus. Once for each, until
    /// it is removed; from any thread. False: the accelerator has no such thing, and the store goes on to the bus.
    fn add_doorbell(&self, gpa: u64, store: DoorbellStore, event: &EventFd) -> std::io::Result<bool> {
        let _ = (gpa, store, event);
        Ok(false)
    }
    /// Undoes one [`Accelerator::add_doorbell`] that was true.
    fn remove_doorbell(&self, gpa: u64, store: DoorbellStore, event: &EventFd) -> std::io::Result<()> {
        let _ = (gpa, store, event);
        Ok(())
    }
    /// Guest time.
    fn clock(&self) -> Arc<dyn Clock>;
    /// How CPUs map to host threads.
    fn threading(&self) -> Threading;
    /// How many CPUs a machine may have.
    fn max_cpus(&self) -> usize {
        if self.translates() { 16 } else { MAX_CPUS }
    }
    /// Guest time, where the CPUs' own thread drives it ([`Threading::RoundRobin`] then). `None`: it goes by itself.
    fn cpu_time(&self) -> Option<Arc<dyn CpuTime>> {
        None
    }
    /// Reserves vCPU `config.index`, also while others run, and again once one of that index has left. The rest of its
    /// creation happens on its own thread, in [`VcpuSeed::bind`].
    fn new_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError>;
}

/// Which stores ring a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellStore {
    /// 32 bits of this value.
    Word(u32),
    /// Any, of any size.
    Any,
}

/// How many CPUs a machine may have under any accelerator.
pub const MAX_CPUS: usize = 64;

/// How CPUs map to host threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threading {
    /// A thread per CPU.
    PerCpu,
    /// One thread for all CPUs (`-accel tcg,thread=single`).
    RoundRobin,
}

/// Guest time that is made by the CPUs' thread (icount): by what they execute, and by what happens here while none does.
pub trait CpuTime: Send + Sync {
    /// No CPU of the thread can run, and not all of them are stopped: moves time, or says how long to wait. Called on the
    /// CPUs' thread with no lock held; timers' callbacks are run.
    fn idle(&self) -> Wait;
    /// The wait that [`CpuTime::idle`] asked for is over, or was ended by mail or an interrupt.
    fn waited(&self);
    /// Before a CPU executes: how long it is to wait because guest time is ahead of the host's.
    fn ahead(&self) -> Option<Duration>;
    /// What has been executed and how much time has passed, for the user: a line.
    fn summary(&self) -> String;
}

/// What a CPU thread does while none of its CPUs can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Looks again: time has been moved.
    Not,
    /// Sleeps so long, unless there is mail or an interrupt.
    For(Duration),
    /// Sleeps until there is mail or an interrupt.
    ForMail,
}

/// Who models the interrupt controllers.
pub enum Irqchip {
    /// The accelerator has PIC, IOAPIC, LAPICs and PIT; drive its pins here.
    Kernel(Arc<dyn InterruptSink>),
    /// The accelerator has the LAPICs; PIC, IOAPIC and PIT are the machine's; messages go here.
    Split(Arc<dyn InterruptSink>),
    /// The machine builds them all from `devices::irqchip`.
    Userspace,
}

/// One stretch of guest RAM or ROM changed. `memory` is the machine's whole RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The accelerator has no room for another stretch.
    #[error("too many stretches of guest memory (limit {0})")]
    TooManySlots(usize),
    /// The host refused.
    #[error("guest memory could not be mapped into the machine")]
    Host(#[source] std::io::Error),
}

/// Follows the guest's physical memory map: memslots under KVM, TLB flushes under TCG.
pub trait MemoryListener: Send + Sync {
    /// The map is now `memory`. The accelerator keeps its own reference; earlier maps are gone.
    fn set_map(&self, memory: &GuestMemoryMmap) -> Result<(), MemoryError>;
}

/// One CPU to be made.
#[derive(Clone, Debug)]
pub struct VcpuConfig {
    /// 0 for the bootstrap CPU.
    pub index: usize,
    /// Local APIC ID.
    pub apic_id: u32,
    /// How many CPUs the machine has in all, with those that may be added while it runs.
    pub cpu_count: usize,
    /// What CPUID shows.
    pub model: Arc<CpuModel>,
}

impl VcpuConfig {
    /// Where the CPU is among the machine's.
    pub fn place(&self) -> CpuPlace {
        let flat = || CpuTopology::flat(u32::try_from(self.cpu_count).expect("CPUs are counted in dozens"));
        CpuPlace { topology: self.model.topology.unwrap_or_else(flat), apic_id: self.apic_id }
    }
}

/// A CPU reserved, not yet bound to its thread.
pub trait VcpuSeed: Send {
    /// Gets the CPU out of the guest from any thread. Valid from now on and after the CPU is gone.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// The CPU's time-stamp counter, for the TSC-deadline timer of a local APIC that is ours. `None`: guest time at
    /// the frequency that the machine gives the APIC, never moved by the guest.
    fn tsc(&self) -> Option<Arc<dyn GuestTsc>> {
        None
    }
    /// Finishes the CPU on the thread that will run it.
    fn bind(self: Box<Self>, cpu: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError>;
}

/// Gets a CPU out of the guest. Three laws: *publish, then kick*; *a kick is sticky* (one that lands before
/// [`VcpuBackend::run`] still makes it return or re-examine its requests); *clear, then look*.
pub trait Kick: Send + Sync {
    /// Idempotent, lock-free, any thread.
    fn kick(&self);
}

/// A CPU as its lifecycle sees it. Not `Send`: it lives and dies on its thread.
pub trait VcpuBackend {
    /// Runs the guest until there is a reason of the lifecycle to stop. Returns [`VcpuExit::Kicked`] once
    /// [`CpuHandle::exit_requested`] is seen; takes interrupts itself. Called with no lock held.
    fn run(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError>;
    /// Runs one guest instruction; `Kicked` says that it is done. The caller holds an exclusive section or every other
    /// CPU is stopped. Executes also when an exit is requested.
    fn step(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError>;
    /// Finishes a port or MMIO access that the guest has begun, so that the state is at an instruction boundary.
    /// After this the CPU may be stopped, saved or reset.
    fn complete_exit(&mut self, io: &dyn CpuIo) -> Result<(), VcpuError>;
    /// Whether a halted CPU has a reason to run (a deliverable interrupt, NMI, INIT ...): whether `run` would now do
    /// anything but return `Halted`. Asked with no lock held, so it may ask the interrupt controller. An engine that
    /// sleeps inside [`VcpuBackend::run`] (KVM with an in-kernel irqchip) answers true.
    fn has_work(&self, io: &dyn CpuIo) -> bool;
    /// Power-on state (SDM vol. 3A, *Processor State After Reset*); every CPU but the bootstrap CPU (index 0) waits for
    /// a start-up IPI, and says `Halted` when run, until then.
    fn reset(&mut self) -> Result<(), VcpuError>;
    /// The architectural state.
    fn state(&mut self) -> Result<CpuArchState, VcpuError>;
    /// Replaces the architectural state.
    fn set_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError>;
    /// A machine check happens to the CPU, before its next instruction if it is #MC. Refused by an engine whose CPUs have no
    /// banks for it (IA32_MCG_CAP).
    fn machine_check(&mut self, check: &MachineCheck) -> Result<(), VcpuError> {
        let _ = check;
        Err(VcpuError::Unsupported("a machine check, for which its CPUs have no banks,"))
    }
    /// Breakpoints and single-step for a debugger outside the guest.
    fn set_debug(&mut self, debug: &DebugControl) -> Result<(), VcpuError>;
    /// What the engine has counted of this CPU since the start, for the user: a line each; none if it counts nothing.
    fn statistics(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// What waits for the CPU and what it waits for, on a line, for whoever finds that it hangs. Asked before the state, which
    /// may act on it.
    fn waiting(&mut self, io: &dyn CpuIo) -> String {
        io.interrupts().map_or_else(String::new, |interrupts| interrupts.summary().to_string())
    }
    /// A line or two of engine-specific diagnosis for crash reports; empty if there is none.
    fn describe(&mut self) -> String {
        String::new()
    }
}

/// A hardware error, as a CPU's bank reports it (SDM vol. 3B, *Machine-Check Architecture*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCheck {
    /// Which bank.
    pub bank: u8,
    /// IA32_MCi_STATUS; VAL is to be set.
    pub status: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// IA32_MCi_ADDR.
    pub address: u64,
    /// IA32_MCi_MISC.
    pub misc: u64,
}

impl MachineCheck {
    /// An uncorrected error was at another CPU: VAL, UC; MCIP, RIPV.
    pub(crate) const ELSEWHERE: Self =
        Self { bank: 1, status: 1 << 63 | 1 << 61, mcg_status: 1 << 2 | 1, address: 0, misc: 0 };
}

/// What a debugger outside the guest wants of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after each instruction.
    pub single_step: bool,
    /// Stop before the instruction at these linear addresses.
    pub breakpoints: Vec<u64>,
}

/// The way out of a CPU: its ports, its MMIO, its interrupt controller. One per CPU, made by the machine.
/// Device errors are values of the bus (all ones), never errors here.
pub trait CpuIo: Send + Sync {
    /// IN: `data` is 1, 2 or 4 bytes.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// OUT: `data` is 1, 2 or 4 bytes.
    fn pio_write(&self, port: u16, data: &[u8]);
    /// A load of 1 to 8 bytes outside RAM; wider ones are split by the accelerator.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// A store of 1 to 8 bytes outside RAM; wider ones are split by the accelerator.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// The CPU's interrupt controller where it is ours; `None` with the kernel's.
    fn interrupts(&self) -> Option<&dyn LocalInterrupts>;
}

/// No devices at all: reads give all ones, writes go nowhere. For machines that are a CPU and memory.
pub struct NoIo;

impl CpuIo for NoIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        None
    }
}

/// Why [`VcpuBackend::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// An exit was requested ([`CpuHandle::exit_requested`]).
    Kicked,
    /// The CPU has had its turn, or waits for another one of its thread. Only from engines of
    /// [`Threading::RoundRobin`].
    Yielded,
    /// HLT with nothing to do: sleep on `halt_cond` until [`VcpuBackend::has_work`].
    Halted,
    /// An instruction needs all other CPUs stopped: `step` it in an exclusive section.
    NeedsExclusive,
    /// The CPU cannot go on.
    Shutdown(Shutdown),
    /// The debugger's condition was met at this linear address.
    Debug {
        /// RIP plus CS base.
        pc: u64,
    },
}

/// Why a CPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Triple fault (SDM vol. 3A, *Interrupt 8—Double Fault Exception*: shutdown).
    TripleFault,
    /// The engine gave up on a guest instruction: the kernel's KVM says emulation failed, or a hardware
    /// entry failure. The text says what and where.
    EngineFailure(String),
}

/// Why a CPU could not be made, run or read: the VMM's or the host's failure, never the guest's doing.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The host refused an operation.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// The CPU model asks for what this host cannot give.
    #[error("CPU feature {0} is not available with this accelerator on this host")]
    MissingFeature(&'static str),
    /// This operation is not available on this accelerator.
    #[error("{0} is not available with this accelerator")]
    Unsupported(&'static str),
}
