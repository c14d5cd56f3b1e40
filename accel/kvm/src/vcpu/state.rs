//! The architectural state, out of the kernel and into it.

use accel::arch_state::{RunMode, TableState, seg};
use accel::{CpuArchState, VcpuError};
use kvm_bindings as kvm;
use kvm_bindings::{
    kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};

use super::{Vcpu, host, msr, segment, xsave};

const RFLAGS_IF: u64 = 1 << 9;

impl Vcpu {
    pub(super) fn read_state(&mut self) -> Result<CpuArchState, VcpuError> {
        let regs = self.fd.get_regs().map_err(host("KVM_GET_REGS failed"))?;
        let sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS failed"))?;
        let events = self.fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS failed"))?;
        let debug = self.fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS failed"))?;
        let xcrs = self.fd.get_xcrs().map_err(host("KVM_GET_XCRS failed"))?;
        let mut state = CpuArchState {
            gpr: gpr_from_kvm(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            xcr0: xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())]
                .iter()
                .find(|xcr| xcr.xcr == 0)
                .map_or(1, |xcr| xcr.value),
            dr: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
            xsave: xsave::read(&self.fd, self.shared.features.xsave_size)?,
            msrs: msr::read(&self.fd, self.shared.msrs(&self.fd)?)?,
            run_mode: self.read_run_mode()?,
            nmi_blocked: events.nmi.masked != 0,
            interrupt_shadow: events.interrupt.shadow != 0,
            ..CpuArchState::default()
        };
        sregs_from_kvm(&mut state, &sregs);
        Ok(state)
    }

    pub(super) fn write_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        // What is no part of the architectural state stays: IA32_APIC_BASE, events on their way.
        let mut sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS failed"))?;
        sregs_to_kvm(&mut sregs, state);
        self.fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS failed"))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.xcr0, ..Default::default() };
        self.fd.set_xcrs(&xcrs).map_err(host("KVM_SET_XCRS failed"))?;
        xsave::write(&self.fd, self.shared.features.xsave_size, &state.xsave)?;
        msr::write(&self.fd, &state.msrs)?;
        let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(host("KVM_SET_DEBUGREGS failed"))?;
        self.fd.set_regs(&regs_to_kvm(state)).map_err(host("KVM_SET_REGS failed"))?;
        let mut events = self.fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS failed"))?;
        events.nmi.masked = state.nmi_blocked.into();
        events.interrupt.shadow = state.interrupt_shadow.into();
        events.flags |= kvm::KVM_VCPUEVENT_VALID_SHADOW;
        self.fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS failed"))?;
        self.write_run_mode(state)
    }

    /// Drops exceptions, interrupts and NMIs that wait to be delivered.
    pub(super) fn clear_events(&mut self) -> Result<(), VcpuError> {
        let flags = kvm::KVM_VCPUEVENT_VALID_NMI_PENDING | kvm::KVM_VCPUEVENT_VALID_SHADOW;
        let events = kvm_vcpu_events { flags, ..Default::default() };
        self.fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS failed"))?;
        // One that user space injected shows up here as well.
        let mut sregs = self.fd.get_sregs().map_err(host("KVM_GET_SREGS failed"))?;
        if sregs.interrupt_bitmap != [0; 4] {
            sregs.interrupt_bitmap = [0; 4];
            self.fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS failed"))?;
        }
        Ok(())
    }

    /// INIT and SIPI that wait in the kernel's local APIC would start the CPU anew after a reset. There is no way to drop
    /// them; the kernel acts on them when it is asked for the run mode, and all that this changes is to be overwritten.
    pub(super) fn forget_init_and_sipi(&self) -> Result<(), VcpuError> {
        if self.user_apic.is_none() {
            self.fd.get_mp_state().map_err(host("KVM_GET_MP_STATE failed"))?;
        }
        Ok(())
    }

    fn read_run_mode(&self) -> Result<RunMode, VcpuError> {
        if let Some(apic) = &self.user_apic {
            return Ok(apic.run_mode);
        }
        let state = self.fd.get_mp_state().map_err(host("KVM_GET_MP_STATE failed"))?;
        Ok(match state.mp_state {
            kvm::KVM_MP_STATE_HALTED => RunMode::Halted,
            kvm::KVM_MP_STATE_UNINITIALIZED | kvm::KVM_MP_STATE_INIT_RECEIVED => RunMode::WaitForSipi,
            // SIPI_RECEIVED among them: the start is a matter of the next entry.
            _ => RunMode::Running,
        })
    }

    fn write_run_mode(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        if let Some(apic) = &mut self.user_apic {
            apic.run_mode = state.run_mode;
            apic.if_flag = state.rflags & RFLAGS_IF != 0;
            apic.new_cr8 = Some(state.cr8 as u8);
            // What the last exit said of the interrupt window is of another state.
            self.page.clear_ready_for_interrupt();
            return Ok(());
        }
        let mp_state = match state.run_mode {
            RunMode::Running => kvm::KVM_MP_STATE_RUNNABLE,
            RunMode::Halted => kvm::KVM_MP_STATE_HALTED,
            RunMode::WaitForSipi => kvm::KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(host("KVM_SET_MP_STATE failed"))
    }

    /// Two lines for a crash report.
    pub(super) fn registers_text(&self) -> String {
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return "KVM does not tell the registers".to_owned();
        };
        // AMD's hardware puts a CPU that shuts down back to its start.
        let gone = (sregs.cs.base, regs.rip) == (0xffff_0000, 0xfff0);
        let note = if gone {
            "\nThe CPU is at its reset vector: after a triple fault this host does not keep where."
        } else {
            ""
        };
        format!(
            "RIP={:016x} RSP={:016x} RFLAGS={:08x} CS={:04x} base={:x} SS={:04x}\n\
             CR0={:08x} CR2={:016x} CR3={:x} CR4={:x} EFER={:x}{note}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cs.selector,
            sregs.cs.base,
            sregs.ss.selector,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
        )
    }
}

fn gpr_from_kvm(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

fn regs_to_kvm(state: &CpuArchState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn sregs_from_kvm(state: &mut CpuArchState, sregs: &kvm_sregs) {
    let table = |table: &kvm_dtable| TableState { base: table.base, limit: table.limit };
    for (index, from) in [
        (seg::ES, &sregs.es),
        (seg::CS, &sregs.cs),
        (seg::SS, &sregs.ss),
        (seg::DS, &sregs.ds),
        (seg::FS, &sregs.fs),
        (seg::GS, &sregs.gs),
    ] {
        state.segments[index] = segment::from_kvm(from);
    }
    state.ldt = segment::from_kvm(&sregs.ldt);
    state.task = segment::from_kvm(&sregs.tr);
    (state.gdt, state.idt) = (table(&sregs.gdt), table(&sregs.idt));
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    (state.cr8, state.efer) = (sregs.cr8, sregs.efer);
}

fn sregs_to_kvm(sregs: &mut kvm_sregs, state: &CpuArchState) {
    let table =
        |table: &TableState| kvm_dtable { base: table.base, limit: table.limit, ..Default::default() };
    let [es, cs, ss, ds, fs, gs] = state.segments.each_ref().map(segment::to_kvm);
    (sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs) = (es, cs, ss, ds, fs, gs);
    sregs.ldt = segment::to_kvm(&state.ldt);
    sregs.tr = segment::to_kvm(&state.task);
    (sregs.gdt, sregs.idt) = (table(&state.gdt), table(&state.idt));
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
    (sregs.cr8, sregs.efer) = (state.cr8, state.efer);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_both_ways() {
        let mut state = CpuArchState::power_on();
        state.gpr = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64);
        (state.cr2, state.cr3, state.cr8) = (0xdead_beef, 0x1000, 5);
        let regs = regs_to_kvm(&state);
        assert_eq!((regs.rbx, regs.rsp, regs.r15), (state.gpr[3], state.gpr[4], state.gpr[15]));
        let mut sregs = kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
        sregs_to_kvm(&mut sregs, &state);
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        let mut back =
            CpuArchState { gpr: gpr_from_kvm(&regs), rip: regs.rip, rflags: regs.rflags, ..state.clone() };
        back.segments = Default::default();
        (back.cr0, back.cr8, back.efer) = (0, 0, 7);
        sregs_from_kvm(&mut back, &sregs);
        assert_eq!(back, state);
    }
}
