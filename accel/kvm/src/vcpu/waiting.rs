//! What a vCPU waits for and what waits for it, for whoever finds that it hangs (Linux, Documentation/virt/kvm/api.rst,
//! *KVM_GET_VCPU_EVENTS*, *KVM_GET_MP_STATE*, *KVM_GET_LAPIC*).

use accel::CpuIo;
use devices::cpu_interrupts::ApicSummary;
use kvm_bindings::{kvm_lapic_state, kvm_vcpu_events};

use super::Vcpu;

/// The local APIC's page: a 32-bit register in each 16 bytes (SDM vol. 3A, *Local APIC Register Address Map*).
const TPR: usize = 0x80;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const IRR: usize = 0x200;

impl Vcpu {
    /// One line.
    pub(super) fn waiting_text(&self, io: &dyn CpuIo) -> String {
        let mut parts = Vec::new();
        // Before the run mode: the kernel acts on INIT and SIPI when it is asked for that.
        if let Ok(events) = self.fd.get_vcpu_events() {
            parts.extend(events_text(&events));
        }
        match (&self.user_apic, io.interrupts()) {
            (Some(apic), Some(interrupts)) => {
                let closed = if self.page.ready_for_interrupt() { "" } else { ", no window" };
                parts.push(format!("{:?}{closed}, {}", apic.run_mode, interrupts.summary()));
            }
            _ => {
                if let Ok(apic) = self.fd.get_lapic() {
                    parts.push(apic_summary(&apic).to_string());
                }
                if let Ok(state) = self.fd.get_mp_state() {
                    parts.push(format!("KVM says {}", mp_state_name(state.mp_state)));
                }
            }
        }
        parts.join(", ")
    }
}

/// The events on their way to the CPU, and what holds them off.
fn events_text(events: &kvm_vcpu_events) -> Vec<String> {
    let mut parts = Vec::new();
    if events.exception.injected != 0 {
        parts.push(format!("exception {:02x} injected", events.exception.nr));
    }
    if events.interrupt.injected != 0 {
        parts.push(format!("interrupt {:02x} injected", events.interrupt.nr));
    }
    let flags = [
        (events.interrupt.shadow != 0, "shadow"),
        (events.nmi.injected != 0, "NMI injected"),
        (events.nmi.pending != 0, "NMI pending"),
        (events.nmi.masked != 0, "NMIs masked"),
        (events.smi.latched_init != 0, "INIT latched"),
    ];
    parts.extend(flags.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what.to_owned()));
    parts
}

fn apic_summary(apic: &kvm_lapic_state) -> ApicSummary {
    let register = |at: usize| {
        let bytes = std::array::from_fn(|index| apic.regs[at + index].cast_unsigned());
        u32::from_le_bytes(bytes)
    };
    ApicSummary {
        irr: std::array::from_fn(|index| register(IRR + 16 * index)),
        isr: std::array::from_fn(|index| register(ISR + 16 * index)),
        tpr: register(TPR) as u8,
        svr: register(SVR),
    }
}

/// The API's name of a run mode.
fn mp_state_name(mp_state: u32) -> &'static str {
    match mp_state {
        kvm_bindings::KVM_MP_STATE_RUNNABLE => "RUNNABLE",
        kvm_bindings::KVM_MP_STATE_UNINITIALIZED => "UNINITIALIZED",
        kvm_bindings::KVM_MP_STATE_INIT_RECEIVED => "INIT_RECEIVED",
        kvm_bindings::KVM_MP_STATE_HALTED => "HALTED",
        kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED => "SIPI_RECEIVED",
        _ => "an unknown run mode",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apic_s_page_is_read() {
        let mut apic = kvm_lapic_state { regs: [0; 1024] };
        (apic.regs[IRR + 0x23], apic.regs[ISR + 0x10], apic.regs[TPR]) = (-128, 2, 0x40);
        (apic.regs[SVR], apic.regs[SVR + 1]) = (-1, 1);
        assert_eq!(apic_summary(&apic).to_string(), "IRR 5f, ISR 21, TPR 40");
    }

    #[test]
    fn events_are_told_by_name() {
        let mut events = kvm_vcpu_events::default();
        assert!(events_text(&events).is_empty());
        (events.interrupt.injected, events.interrupt.nr, events.nmi.masked) = (1, 0x41, 1);
        assert_eq!(events_text(&events), ["interrupt 41 injected", "NMIs masked"]);
    }
}
