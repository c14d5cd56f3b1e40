//! What happened, where, and what to use instead, when the kernel gives up on a guest.

use kvm_bindings as kvm;

use super::Vcpu;

/// How much of an instruction to show: the longest there is (SDM vol. 2A, *Instruction Format*).
const INSTRUCTION_BYTES: usize = 15;

impl Vcpu {
    /// One line for the exit `reason`.
    pub(super) fn failure_text(&self, reason: u32) -> String {
        let at = self.place();
        match reason {
            kvm::KVM_EXIT_INTERNAL_ERROR => self.internal_error_text(&at),
            kvm::KVM_EXIT_FAIL_ENTRY => {
                let (hardware, cpu) = self.page.fail_entry();
                format!(
                    "the hardware refuses to enter the guest {at} (reason {hardware:#x} on host CPU {cpu}); `-accel tcg` runs without it"
                )
            }
            kvm::KVM_EXIT_UNKNOWN => {
                let hardware = self.page.hardware_exit_reason();
                format!(
                    "the hardware left the guest {at} for a reason that this kernel's KVM does not know ({hardware:#x}); `-accel tcg` runs without it"
                )
            }
            kvm::KVM_EXIT_SYSTEM_EVENT => {
                format!("KVM ended the guest {at} (system event {})", self.page.system_event())
            }
            kvm::KVM_EXIT_MEMORY_FAULT => {
                let (gpa, size) = self.page.memory_fault();
                format!("KVM cannot get at guest memory {gpa:#x} ({size} bytes) {at}")
            }
            other => format!(
                "KVM left the guest {at} in a way that is not handled ({}, {other})",
                exit_name(other)
            ),
        }
    }

    fn internal_error_text(&self, at: &str) -> String {
        let error = self.page.internal_error();
        let data: Vec<String> = error.data.iter().map(|word| format!("{word:#x}")).collect();
        let data = data.join(" ");
        match error.suberror {
            kvm::KVM_INTERNAL_ERROR_EMULATION => {
                let told = (!error.instruction.is_empty()).then_some(error.instruction);
                let bytes = told.or_else(|| self.instruction_bytes()).map(|bytes| hex(&bytes));
                let bytes = bytes.map_or_else(|| "unreadable".to_owned(), |bytes| format!("bytes {bytes}"));
                format!("KVM failed to emulate the instruction {at} ({bytes}); `-accel tcg` runs it")
            }
            kvm::KVM_INTERNAL_ERROR_SIMUL_EX => {
                format!(
                    "KVM met an exception while it delivered another {at} (data {data}); `-accel tcg` runs it"
                )
            }
            kvm::KVM_INTERNAL_ERROR_DELIVERY_EV => {
                format!(
                    "KVM met an exit that it does not expect while it delivered an event {at} (data {data}); `-accel tcg` runs it"
                )
            }
            kvm::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                format!("KVM met an exit that it does not expect {at} (data {data}); `-accel tcg` runs it")
            }
            other => format!("KVM internal error {other} {at} (data {data}); `-accel tcg` may run it"),
        }
    }

    /// "at CS:RIP", as far as the kernel tells.
    fn place(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => {
                let linear = sregs.cs.base.wrapping_add(regs.rip);
                let linear =
                    if linear == regs.rip { String::new() } else { format!(" (linear {linear:#x})") };
                format!("at {:04x}:{:016x}{linear}", sregs.cs.selector, regs.rip)
            }
            _ => "at an unknown place".to_owned(),
        }
    }

    /// The bytes at CS:RIP, where they can be read.
    fn instruction_bytes(&self) -> Option<Vec<u8>> {
        let linear = self.fd.get_sregs().ok()?.cs.base.wrapping_add(self.fd.get_regs().ok()?.rip);
        let mut bytes = Vec::new();
        for address in (0..INSTRUCTION_BYTES as u64).map(|offset| linear.wrapping_add(offset)) {
            let translation =
                self.fd.translate_gva(address).ok().filter(|translation| translation.valid != 0);
            let mut byte = [0];
            match translation {
                Some(translation)
                    if self.shared.memory.read(translation.physical_address, &mut byte) == 1 =>
                {
                    bytes.push(byte[0]);
                }
                _ => break,
            }
        }
        (!bytes.is_empty()).then_some(bytes)
    }
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

/// The API's name of an exit reason.
fn exit_name(reason: u32) -> &'static str {
    match reason {
        kvm::KVM_EXIT_EXCEPTION => "KVM_EXIT_EXCEPTION",
        kvm::KVM_EXIT_HYPERCALL => "KVM_EXIT_HYPERCALL",
        kvm::KVM_EXIT_TPR_ACCESS => "KVM_EXIT_TPR_ACCESS",
        kvm::KVM_EXIT_NMI => "KVM_EXIT_NMI",
        kvm::KVM_EXIT_WATCHDOG => "KVM_EXIT_WATCHDOG",
        kvm::KVM_EXIT_IOAPIC_EOI => "KVM_EXIT_IOAPIC_EOI",
        kvm::KVM_EXIT_HYPERV => "KVM_EXIT_HYPERV",
        kvm::KVM_EXIT_X86_RDMSR => "KVM_EXIT_X86_RDMSR",
        kvm::KVM_EXIT_X86_WRMSR => "KVM_EXIT_X86_WRMSR",
        kvm::KVM_EXIT_DIRTY_RING_FULL => "KVM_EXIT_DIRTY_RING_FULL",
        kvm::KVM_EXIT_X86_BUS_LOCK => "KVM_EXIT_X86_BUS_LOCK",
        kvm::KVM_EXIT_XEN => "KVM_EXIT_XEN",
        kvm::KVM_EXIT_NOTIFY => "KVM_EXIT_NOTIFY",
        _ => "an unknown exit reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_in_a_listing() {
        assert_eq!(hex(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), "f0 48 0f c7 0f");
    }
}
