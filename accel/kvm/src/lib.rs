//! The KVM accelerator: guests run by the kernel (Linux, Documentation/virt/kvm/api.rst).
//!
//! [`Kvm`] implements [`accel::Accelerator`]. [`Kvm::probe`] tells whether a KVM that opens can also run Linux:
//! some kernels offer a `/dev/kvm` that merely emulates.

#![deny(missing_docs)]

mod accelerator;
mod clock;
mod cpuid;
mod device;
mod irqchip;
mod kick;
mod memory;
mod probe;
mod routes;
mod vcpu;

pub use accelerator::{Kvm, KvmOptions};
pub use device::{KernelIrqchip, OpenError};
pub use probe::ProbeFailure;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
