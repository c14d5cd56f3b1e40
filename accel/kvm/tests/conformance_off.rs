//! The conformance suite on the kernel's KVM with the machine's interrupt controllers (`kernel-irqchip=off`).

use accel::Accelerator;
use accel_kvm::{KernelIrqchip, Kvm, KvmOptions};

fn make() -> Result<Box<dyn Accelerator>, String> {
    let options = KvmOptions { kernel_irqchip: KernelIrqchip::Off, ..KvmOptions::default() };
    match Kvm::open(&options) {
        Ok(kvm) => Ok(Box::new(kvm)),
        Err(error) => Err(error.to_string()),
    }
}

accel::conformance_tests!(make, not_applicable: {
    "triple_fault_is_reported":
        "a KVM that emulates ignores the limit of a real-mode IDT; the crate's own tests do it in protected mode",
});
