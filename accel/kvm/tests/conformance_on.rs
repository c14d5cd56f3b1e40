//! The conformance suite on the kernel's KVM with the kernel's interrupt controllers (`kernel-irqchip=on`).

use accel::Accelerator;
use accel_kvm::{KernelIrqchip, Kvm, KvmOptions};

fn make() -> Result<Box<dyn Accelerator>, String> {
    let options = KvmOptions { kernel_irqchip: KernelIrqchip::On, ..KvmOptions::default() };
    match Kvm::open(&options) {
        Ok(kvm) => Ok(Box::new(kvm)),
        Err(error) => Err(error.to_string()),
    }
}

accel::conformance_tests!(make);
