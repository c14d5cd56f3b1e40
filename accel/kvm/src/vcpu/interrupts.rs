//! Interrupts of a CPU whose local APIC is ours (`kernel-irqchip=off`): injection, HLT, INIT and SIPI (SDM vol. 3A,
//! *Handling Multiple Interrupts and Exceptions*, *MP Initialization*; Linux, Documentation/virt/kvm/api.rst, *KVM_INTERRUPT*).

#![expect(unsafe_code, reason = "makes an ioctl that kvm-ioctls lacks")]

use accel::arch_state::RunMode;
use accel::cpu_handle::request;
use accel::{CpuArchState, CpuIo, VcpuError, VcpuExit};
use devices::cpu_interrupts::LocalInterrupts;
use kvm_bindings::kvm_interrupt;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::{Vcpu, host};

ioctl_iow_nr!(KVM_INTERRUPT, kvm_bindings::KVMIO, 0x86, kvm_interrupt);

const IA32_APIC_BASE: u32 = 0x1b;
const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_ADDRESS: u64 = 0xfee0_0000;
/// CR0.CD and CR0.NW, which INIT leaves alone.
const CR0_CACHES: u64 = 0b11 << 29;

/// IA32_APIC_BASE of CPU `index` at power-on.
pub(super) fn power_on_apic_base(index: usize) -> u64 {
    let bsp = if index == 0 { APIC_BASE_BSP } else { 0 };
    APIC_BASE_ADDRESS | APIC_BASE_ENABLE | bsp
}

/// What the kernel would know with a local APIC of its own.
pub(super) struct UserApic {
    pub(super) run_mode: RunMode,
    /// RFLAGS.IF at the last exit, or as set since.
    pub(super) if_flag: bool,
    /// IA32_APIC_BASE as the APIC was told last.
    apic_base: u64,
    /// CR8 was set from outside the guest; the APIC is not told yet.
    pub(super) new_cr8: Option<u8>,
}

impl UserApic {
    pub(super) fn new(index: usize) -> Self {
        let run_mode = if index == 0 { RunMode::Running } else { RunMode::WaitForSipi };
        Self { run_mode, if_flag: false, apic_base: power_on_apic_base(index), new_cr8: None }
    }

    pub(super) fn has_work(&self, pending: u32, io: &dyn CpuIo) -> bool {
        match self.run_mode {
            RunMode::Running => true,
            RunMode::Halted => {
                pending & (request::NMI | request::INIT) != 0
                    || (self.if_flag && (pending & request::HARD != 0 || has_interrupt(io)))
            }
            RunMode::WaitForSipi => pending & (request::INIT | request::SIPI) != 0,
        }
    }
}

fn has_interrupt(io: &dyn CpuIo) -> bool {
    io.interrupts().is_some_and(LocalInterrupts::has_interrupt)
}

fn interrupt(fd: &VcpuFd, vector: u8) -> Result<(), VcpuError> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: `fd` is a vCPU's, and the kernel only reads the structure.
    match unsafe { ioctl_with_ref(fd, KVM_INTERRUPT(), &interrupt) } {
        0 => Ok(()),
        _ => Err(host("KVM_INTERRUPT failed")(kvm_ioctls::Error::last())),
    }
}

impl Vcpu {
    /// Whether INIT or SIPI waits: they replace the state, which takes an instruction boundary.
    pub(super) fn restart_requested(&self) -> bool {
        self.user_apic.is_some() && self.cpu.interrupt_request() & (request::INIT | request::SIPI) != 0
    }

    /// HLT was executed, and the kernel leaves the waiting to us.
    pub(super) fn halted(&mut self) {
        if let Some(apic) = &mut self.user_apic {
            apic.run_mode = RunMode::Halted;
        }
    }

    /// Brings events to the CPU before it enters the guest. `Some` if it is not to enter.
    pub(super) fn prepare_entry(&mut self, io: &dyn CpuIo) -> Result<Option<VcpuExit>, VcpuError> {
        if self.cpu.interrupt_request() & request::NMI != 0 && self.can_take_nmi() {
            self.cpu.clear_interrupt(request::NMI);
            self.fd.nmi().map_err(host("KVM_NMI failed"))?;
            if let Some(apic) = &mut self.user_apic {
                apic.run_mode = RunMode::Running;
            }
        }
        let Some(interrupts) = io.interrupts().filter(|_| self.user_apic.is_some()) else { return Ok(None) };
        self.take_init_and_sipi(interrupts)?;
        if self.run_mode() == RunMode::WaitForSipi {
            return Ok(Some(VcpuExit::Halted));
        }
        self.inject(interrupts)?;
        Ok((self.run_mode() == RunMode::Halted).then_some(VcpuExit::Halted))
    }

    fn run_mode(&self) -> RunMode {
        self.user_apic.as_ref().map_or(RunMode::Running, |apic| apic.run_mode)
    }

    fn can_take_nmi(&self) -> bool {
        self.run_mode() != RunMode::WaitForSipi
    }

    fn take_init_and_sipi(&mut self, interrupts: &dyn LocalInterrupts) -> Result<(), VcpuError> {
        if self.cpu.interrupt_request() & request::INIT != 0 {
            self.cpu.clear_interrupt(request::INIT);
            interrupts.init();
            let run_mode = if self.index == 0 { RunMode::Running } else { RunMode::WaitForSipi };
            self.restart(CpuArchState { run_mode, ..CpuArchState::power_on() })?;
        }
        if self.cpu.interrupt_request() & request::SIPI != 0 {
            self.cpu.clear_interrupt(request::SIPI);
            let vector = interrupts.take_sipi();
            // A CPU that runs ignores it: Linux sends two.
            if let Some(vector) = vector.filter(|_| self.run_mode() == RunMode::WaitForSipi) {
                self.restart(CpuArchState::after_sipi(vector))?;
            }
        }
        Ok(())
    }

    /// Puts the CPU into `state`, with what INIT leaves alone as it is.
    fn restart(&mut self, state: CpuArchState) -> Result<(), VcpuError> {
        self.clear_events()?;
        let old = self.read_state()?;
        let cr0 = (state.cr0 & !CR0_CACHES) | (old.cr0 & CR0_CACHES);
        self.write_state(&CpuArchState { cr0, xsave: old.xsave, xcr0: old.xcr0, ..state })
    }

    /// Injects the highest interrupt if the CPU can take one, else asks to be told when it can.
    fn inject(&mut self, interrupts: &dyn LocalInterrupts) -> Result<(), VcpuError> {
        let mut window = false;
        if self.cpu.interrupt_request() & request::HARD != 0 || interrupts.has_interrupt() {
            let Some(apic) = &mut self.user_apic else { return Ok(()) };
            if apic.if_flag && self.page.ready_for_interrupt() {
                // Cleared before the look: the APIC raises it again for what comes after.
                self.cpu.clear_interrupt(request::HARD);
                if let Some(vector) = interrupts.acknowledge() {
                    interrupt(&self.fd, vector)?;
                    self.page.clear_ready_for_interrupt();
                    apic.run_mode = RunMode::Running;
                    window = interrupts.has_interrupt();
                }
            } else {
                window = true;
                if apic.if_flag {
                    // The window opens before the next instruction: HLT is over.
                    apic.run_mode = RunMode::Running;
                }
            }
        }
        self.page.set_request_interrupt_window(window);
        Ok(())
    }

    /// CR8 is the APIC's task priority: the kernel takes it from the page on each entry.
    pub(super) fn before_run(&mut self, io: &dyn CpuIo) {
        let Some(apic) = &mut self.user_apic else { return };
        let Some(interrupts) = io.interrupts() else { return };
        if let Some(value) = apic.new_cr8.take() {
            interrupts.set_cr8(value);
        }
        self.page.set_cr8(interrupts.cr8());
    }

    /// What the guest did to CR8 and IA32_APIC_BASE reaches the APIC.
    pub(super) fn after_run(&mut self, io: &dyn CpuIo) {
        let Some(apic) = &mut self.user_apic else { return };
        apic.if_flag = self.page.if_flag();
        let Some(interrupts) = io.interrupts() else { return };
        let cr8 = self.page.cr8();
        if cr8 != interrupts.cr8() {
            interrupts.set_cr8(cr8);
        }
        let apic_base = self.page.apic_base();
        if apic_base != apic.apic_base {
            apic.apic_base = apic_base;
            if interrupts.write_msr(IA32_APIC_BASE, apic_base).is_err() {
                tracing::warn!(target: "irq", apic_base, "the local APIC refuses its base");
            }
        }
    }

    /// Gives the CPU IA32_APIC_BASE from outside the guest; whoever resets the CPU resets its APIC.
    pub(super) fn set_apic_base(&mut self, value: u64) -> Result<(), VcpuError> {
        let mut sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS failed"))?;
        if sregs.apic_base != value {
            sregs.apic_base = value;
            self.fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS failed"))?;
        }
        if let Some(apic) = &mut self.user_apic {
            apic.apic_base = value;
        }
        Ok(())
    }
}
