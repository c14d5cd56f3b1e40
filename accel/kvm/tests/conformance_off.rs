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

accel::conformance_tests!(make);
