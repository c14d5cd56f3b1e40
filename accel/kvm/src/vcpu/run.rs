//! Running the guest (Linux, Documentation/virt/kvm/api.rst, *KVM_RUN*).

#![expect(unsafe_code, reason = "tells the kick signal where this vCPU's page is")]

use accel::{CpuIo, Shutdown, VcpuError, VcpuExit};
use kvm_bindings as kvm;

use super::{Vcpu, host};
use crate::kick::Entry;

impl Vcpu {
    pub(super) fn run_loop(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        if let Some(exit) = self.deferred.take() {
            return Ok(exit);
        }
        self.tell_pause();
        if let Some(exit) = self.leave_breakpoint(io)? {
            return Ok(exit);
        }
        // SAFETY: the page stays mapped while `self.fd` is open, and that outlives this call.
        let _entry = unsafe { Entry::new(self.page.immediate_exit()) };
        loop {
            self.page.set_immediate_exit(false);
            // Clear, then look.
            self.kicker.take();
            if self.cpu.exit_requested() {
                self.complete(io)?;
                return Ok(self.deferred.take().unwrap_or(VcpuExit::Kicked));
            }
            if self.incomplete && self.restart_requested() {
                self.complete(io)?;
                if let Some(exit) = self.deferred.take() {
                    return Ok(exit);
                }
                // From the start: the flag that a kick may have set meanwhile is to be cleared before the look.
                continue;
            }
            if let Some(exit) = self.prepare_entry(io)? {
                return Ok(exit);
            }
            if let Some(exit) = self.enter(io)? {
                return Ok(exit);
            }
            if self.debug.single_step && self.incomplete {
                return self.end_of_access(io);
            }
        }
    }

    /// After a pause: tells the guest that it was stopped, if it has a clock to be told by.
    fn tell_pause(&mut self) {
        let resumptions = self.shared.clock.resumptions();
        if self.resumptions != resumptions {
            self.resumptions = resumptions;
            // EINVAL: the guest uses no paravirtual clock.
            let _ = self.fd.kvmclock_ctrl();
        }
    }

    /// Finishes the access that was dispatched last: the kernel writes the result to the guest when KVM_RUN is entered
    /// again, which is not to run any further. One instruction may take several accesses.
    pub(super) fn complete(&mut self, io: &dyn CpuIo) -> Result<(), VcpuError> {
        while self.incomplete {
            self.page.set_immediate_exit(true);
            if let Some(exit) = self.enter(io)? {
                self.deferred = Some(exit);
            }
        }
        Ok(())
    }

    /// Completes an access of an instruction that is to be the only one. The kernel loses some of the traps that end
    /// such an instruction, so its end is taken for the trap.
    pub(super) fn end_of_access(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.complete(io)?;
        if let Some(exit) = self.deferred.take() {
            return Ok(exit);
        }
        Ok(VcpuExit::Debug { pc: self.pc()? })
    }

    /// One KVM_RUN, and what it came out for. `None`: on with the loop.
    pub(super) fn enter(&mut self, io: &dyn CpuIo) -> Result<Option<VcpuExit>, VcpuError> {
        self.incomplete = false;
        self.before_run(io);
        let result = self.fd.run().map(drop);
        self.after_run(io);
        match result {
            Ok(()) => self.dispatch(io),
            // A kick, or another signal; EAGAIN: an AP was woken from its wait for SIPI.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(None),
            Err(error) => Err(host("KVM_RUN failed")(error)),
        }
    }

    fn dispatch(&mut self, io: &dyn CpuIo) -> Result<Option<VcpuExit>, VcpuError> {
        match self.page.exit_reason() {
            kvm::KVM_EXIT_IO => self.pio(io),
            kvm::KVM_EXIT_MMIO => {
                self.incomplete = true;
                let mmio = self.page.mmio();
                match mmio.write {
                    true => io.mmio_write(mmio.gpa, mmio.data),
                    false => io.mmio_read(mmio.gpa, mmio.data),
                }
                Ok(None)
            }
            kvm::KVM_EXIT_HLT => {
                self.halted();
                Ok(None)
            }
            kvm::KVM_EXIT_DEBUG => {
                let pc = self.page.debug_pc();
                self.at_breakpoint = self.debug.breakpoints.contains(&pc).then_some(pc);
                Ok(Some(VcpuExit::Debug { pc }))
            }
            kvm::KVM_EXIT_SHUTDOWN => Ok(Some(VcpuExit::Shutdown(Shutdown::TripleFault))),
            // A chance to inject, or a signal: the loop looks.
            kvm::KVM_EXIT_IRQ_WINDOW_OPEN | kvm::KVM_EXIT_SET_TPR | kvm::KVM_EXIT_INTR => Ok(None),
            reason => Ok(Some(VcpuExit::Shutdown(Shutdown::EngineFailure(self.failure_text(reason))))),
        }
    }

    fn pio(&mut self, io: &dyn CpuIo) -> Result<Option<VcpuExit>, VcpuError> {
        let Some(pio) = self.page.pio() else {
            return Err(VcpuError::Unsupported("a port access with its data outside the shared page"));
        };
        self.incomplete = true;
        for data in pio.data.chunks_exact_mut(pio.width) {
            match pio.input {
                true => io.pio_read(pio.port, data),
                false => io.pio_write(pio.port, data),
            }
        }
        Ok(None)
    }
}
