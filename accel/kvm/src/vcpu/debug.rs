//! Single-step and breakpoints of a debugger outside the guest (Linux, Documentation/virt/kvm/api.rst,
//! *KVM_SET_GUEST_DEBUG*; SDM vol. 3B, *Debug Registers*).

#![expect(unsafe_code, reason = "tells the kick signal where this vCPU's page is")]

use accel::arch_state::RunMode;
use accel::{CpuIo, DebugControl, VcpuError, VcpuExit};
use kvm_bindings as kvm;
use kvm_bindings::kvm_guest_debug;

use super::{Vcpu, host};
use crate::kick::Entry;

/// How many addresses the debug registers hold.
const BREAKPOINTS: usize = 4;
/// DR7: the bits that read as one, and exact matches.
const DR7_BASE: u64 = 0x600;
/// DR7.G0; the others follow at every second bit.
const DR7_G0: u64 = 1 << 1;

/// The debug registers that stop at `breakpoints`.
fn registers(breakpoints: &[u64]) -> Result<[u64; 8], VcpuError> {
    if breakpoints.len() > BREAKPOINTS {
        return Err(VcpuError::Unsupported("a fifth breakpoint"));
    }
    let mut registers = [0; 8];
    for (index, &address) in breakpoints.iter().enumerate() {
        registers[index] = address;
        // R/W and LEN zero: execution.
        registers[7] |= DR7_BASE | DR7_G0 << (2 * index);
    }
    Ok(registers)
}

impl Vcpu {
    pub(super) fn apply_debug(&mut self, debug: &DebugControl, single_step: bool) -> Result<(), VcpuError> {
        let mut control = kvm_guest_debug::default();
        control.arch.debugreg = registers(&debug.breakpoints)?;
        if single_step {
            control.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_SINGLESTEP;
            if self.shared.features.step_blocks_interrupts {
                control.control |= kvm::KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        if !debug.breakpoints.is_empty() {
            control.control |= kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_USE_HW_BP;
        }
        self.fd.set_guest_debug(&control).map_err(host("KVM_SET_GUEST_DEBUG failed"))
    }

    /// CS:RIP as a linear address.
    pub(super) fn pc(&self) -> Result<u64, VcpuError> {
        let rip = self.fd.get_regs().map_err(host("KVM_GET_REGS failed"))?.rip;
        let base = self.fd.get_sregs().map_err(host("KVM_GET_SREGS failed"))?.cs.base;
        Ok(base.wrapping_add(rip))
    }

    /// Takes the CPU past the breakpoint that it has just reported, with no breakpoint set. `Some` if that ends the run.
    pub(super) fn leave_breakpoint(&mut self, io: &dyn CpuIo) -> Result<Option<VcpuExit>, VcpuError> {
        let Some(reported) = self.at_breakpoint.take() else { return Ok(None) };
        if self.pc()? != reported {
            return Ok(None);
        }
        let debug = self.debug.clone();
        self.apply_debug(&DebugControl::default(), true)?;
        let result = self.step_to_exit(io);
        self.apply_debug(&debug, debug.single_step)?;
        match result? {
            VcpuExit::Debug { .. } if !debug.single_step => Ok(None),
            exit => Ok(Some(exit)),
        }
    }

    /// One instruction. Interrupts wait meanwhile, where the kernel can hold them.
    pub(super) fn single_step(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        let debug = self.debug.clone();
        // Without breakpoints: one at this very instruction would be reported instead of the step.
        self.apply_debug(&DebugControl::default(), true)?;
        let result = self.step_to_exit(io);
        self.apply_debug(&debug, debug.single_step)?;
        match result {
            // Not asked for by a debugger: just done.
            Ok(VcpuExit::Debug { .. }) if !debug.single_step => Ok(VcpuExit::Kicked),
            other => other,
        }
    }

    fn step_to_exit(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        if let Some(exit) = self.deferred.take() {
            return Ok(exit);
        }
        if self.user_apic.as_ref().is_some_and(|apic| apic.run_mode != RunMode::Running) {
            return Ok(VcpuExit::Halted);
        }
        // SAFETY: the page stays mapped while `self.fd` is open, and that outlives this call.
        let _entry = unsafe { Entry::new(self.page.immediate_exit()) };
        // A window to inject in would end the step before its instruction.
        self.page.set_request_interrupt_window(false);
        loop {
            self.page.set_immediate_exit(false);
            self.kicker.take();
            if let Some(exit) = self.enter(io)? {
                return Ok(exit);
            }
            if self.user_apic.as_ref().is_some_and(|apic| apic.run_mode == RunMode::Halted) {
                return Ok(VcpuExit::Halted);
            }
            if self.incomplete {
                return self.end_of_access(io);
            }
            // With the kernel's local APIC a halted CPU waits in KVM_RUN; only a request gets it out.
            if self.cpu.exit_requested() {
                return Ok(VcpuExit::Kicked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_breakpoints_fit() {
        assert_eq!(registers(&[]).unwrap(), [0; 8]);
        let set = registers(&[0x1000, 0x2000]).unwrap();
        assert_eq!((set[0], set[1], set[7]), (0x1000, 0x2000, 0x60a));
        assert!(registers(&[1, 2, 3, 4]).is_ok());
        assert!(registers(&[1, 2, 3, 4, 5]).is_err());
    }
}
