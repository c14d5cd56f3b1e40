//! Machine checks from outside the guest (SDM vol. 3B, *Machine-Check Architecture*; Linux,
//! Documentation/virt/kvm/api.rst, *KVM_X86_SET_MCE*).

#![expect(unsafe_code, reason = "makes an ioctl that kvm-ioctls lacks")]

use accel::arch_state::RunMode;
use accel::{MachineCheck, VcpuError};
use kvm_bindings::kvm_x86_mce;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::{Vcpu, host};

ioctl_iow_nr!(KVM_X86_SETUP_MCE, kvm_bindings::KVMIO, 0x9c, u64);
ioctl_iow_nr!(KVM_X86_SET_MCE, kvm_bindings::KVMIO, 0x9e, kvm_x86_mce);

/// Banks of a CPU.
pub(super) const BANKS: u32 = 10;
/// IA32_MCG_CAP: IA32_MCG_CTL is there, recovery by software.
const MCG_CTL_P: u64 = 1 << 8;
const MCG_SER_P: u64 = 1 << 24;
/// IA32_MCi_STATUS: uncorrected.
const STATUS_UC: u64 = 1 << 61;

/// Gives a CPU the banks that it has under translation, too, all enabled.
pub(super) fn set_up(fd: &VcpuFd) {
    let capability = u64::from(BANKS) | MCG_CTL_P | MCG_SER_P;
    // SAFETY: `fd` is a vCPU's, and the kernel only reads the word.
    if unsafe { ioctl_with_ref(fd, KVM_X86_SETUP_MCE(), &capability) } != 0 {
        tracing::debug!(target: "cpu", "the kernel gives a CPU other machine-check banks");
    }
}

impl Vcpu {
    /// Files the error in its bank and raises #MC if it is an uncorrected one that the guest wants to hear of. An
    /// uncorrected one at a CPU that cannot take it shuts that down, as hardware does.
    pub(super) fn file_machine_check(&mut self, check: &MachineCheck) -> Result<(), VcpuError> {
        let mce = kvm_x86_mce {
            status: check.status,
            addr: check.address,
            misc: check.misc,
            mcg_status: check.mcg_status,
            bank: check.bank,
            ..Default::default()
        };
        // SAFETY: `fd` is a vCPU's, and the kernel only reads the structure.
        match unsafe { ioctl_with_ref(&*self.fd, KVM_X86_SET_MCE(), &mce) } {
            0 => {}
            _ => return Err(host("KVM_X86_SET_MCE failed")(kvm_ioctls::Error::last())),
        }
        if let Some(apic) = &mut self.user_apic
            && apic.run_mode == RunMode::Halted
            && check.status & STATUS_UC != 0
        {
            // #MC ends HLT, which the kernel does not know of.
            apic.run_mode = RunMode::Running;
        }
        Ok(())
    }
}
