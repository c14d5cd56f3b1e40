//! Opening `/dev/kvm`, and what is wrong with it if that fails (Linux, Documentation/virt/kvm/api.rst, *API description*).

#![expect(unsafe_code, reason = "adopts the descriptor of the device file")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm as KvmFd};

/// The only API version there has been since Linux 2.6.22.
const API_VERSION: i32 = kvm_bindings::KVM_API_VERSION as i32;

/// Who models the interrupt controllers: QEMU's `kernel-irqchip`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelIrqchip {
    /// The kernel has PIC, IOAPIC, local APICs and PIT.
    #[default]
    On,
    /// The kernel has the local APICs alone.
    Split,
    /// The machine builds them all.
    Off,
}

/// Why KVM cannot be used. Each message is one line with the cure.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file, or no driver behind it.
    #[error("{} is absent: this host offers no KVM (load kvm_intel or kvm_amd, or pass the device into the container; `-accel tcg` needs none)", .0.display())]
    Absent(PathBuf),
    /// The file is there and may not be opened.
    #[error("{}: permission denied (join the group that owns it, usually `sudo usermod -aG kvm $USER` and a new login; `-accel tcg` needs no permission)", .0.display())]
    Permission(PathBuf),
    /// Another failure to open.
    #[error("{} cannot be opened (`-accel tcg` does without)", .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The file opens and is something else.
    #[error("{} is not a KVM device (it does not answer KVM_GET_API_VERSION; `-accel tcg` does without)", .0.display())]
    NotKvm(PathBuf),
    /// A KVM from before history.
    #[error("{} speaks KVM API version {version}, not 12 (`-accel tcg` does without)", .path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// What it speaks.
        version: i32,
    },
    /// A capability without which nothing works.
    #[error("this host's KVM lacks {0} (a newer kernel has it; `-accel tcg` does without)")]
    MissingCapability(&'static str),
    /// An option's value that is not built yet.
    #[error("kernel-irqchip=split is not available yet (use on or off)")]
    SplitIrqchip,
    /// The kernel opens the device and refuses a machine: another hypervisor holds the CPU, or memory is short.
    #[error("KVM refuses: {what} (another hypervisor may hold the CPU; `-accel tcg` does without)")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// Without these nothing works, whatever the options. All are in Linux 4.13 and later.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Needed with the kernel's interrupt controllers.
const REQUIRED_IRQCHIP: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
];

/// Opens the device and checks that it is a KVM with all that `irqchip` needs.
pub(crate) fn open(path: &Path, irqchip: KernelIrqchip) -> Result<KvmFd, OpenError> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|source| classify(path, source))?;
    let kvm = adopt(file);
    match kvm.get_api_version() {
        API_VERSION => {}
        // The ioctl failed: no KVM answers it with an error.
        version if version < 0 => return Err(OpenError::NotKvm(path.to_owned())),
        version => return Err(OpenError::Version { path: path.to_owned(), version }),
    }
    let chips = match irqchip {
        KernelIrqchip::On => REQUIRED_IRQCHIP,
        KernelIrqchip::Split => return Err(OpenError::SplitIrqchip),
        KernelIrqchip::Off => &[(Cap::UserNmi, "KVM_CAP_USER_NMI")],
    };
    for &(cap, name) in REQUIRED.iter().chain(chips) {
        if !kvm.check_extension(cap) {
            return Err(OpenError::MissingCapability(name));
        }
    }
    Ok(kvm)
}

fn classify(path: &Path, source: io::Error) -> OpenError {
    match source.raw_os_error() {
        // ENXIO and ENODEV: the node is there, the driver is not.
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => OpenError::Absent(path.to_owned()),
        Some(libc::EACCES | libc::EPERM) => OpenError::Permission(path.to_owned()),
        _ => OpenError::Open { path: path.to_owned(), source },
    }
}

fn adopt(file: File) -> KvmFd {
    // SAFETY: `into_raw_fd` gives up the only owner of an open descriptor, which `KvmFd` becomes. Nothing is
    // assumed of the file: until the version check has passed only plain-valued ioctls are made.
    unsafe { KvmFd::from_raw_fd(file.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(path: &str) -> OpenError {
        open(Path::new(path), KernelIrqchip::On).expect_err("no KVM is there")
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        assert!(matches!(open_error("/nonexistent/kvm"), OpenError::Absent(_)));
        assert!(matches!(open_error("/dev/null"), OpenError::NotKvm(_)));
        assert!(matches!(open_error("/"), OpenError::Open { .. }));
        let denied = classify(Path::new("/dev/kvm"), io::Error::from_raw_os_error(libc::EACCES));
        assert!(matches!(denied, OpenError::Permission(_)));
        let no_driver = classify(Path::new("/dev/kvm"), io::Error::from_raw_os_error(libc::ENXIO));
        assert!(matches!(no_driver, OpenError::Absent(_)));
    }

    #[test]
    fn each_message_is_one_line_that_names_the_device_and_a_cure() {
        for error in [
            open_error("/nonexistent/kvm"),
            open_error("/dev/null"),
            classify(Path::new("/dev/kvm"), io::Error::from_raw_os_error(libc::EACCES)),
            OpenError::MissingCapability("KVM_CAP_IRQFD"),
        ] {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains("-accel tcg"), "{text}");
        }
        assert!(open_error("/dev/null").to_string().contains("/dev/null"));
    }
}
