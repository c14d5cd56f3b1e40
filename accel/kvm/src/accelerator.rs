//! The accelerator: one VM of the kernel's.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use accel::{
    Accelerator, DoorbellStore, Irqchip, MAX_CPUS, MemoryListener, Threading, VcpuConfig, VcpuError, VcpuSeed,
};
use devices::clock::Clock;
use devices::device::Device;
use devices::interrupt::InterruptSink;
use kvm_bindings::{
    KVM_CAP_IOEVENTFD, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ,
    KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm as KvmFd, NoDatamatch, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::clock::KvmClock;
use crate::device::{self, KernelIrqchip, OpenError};
use crate::irqchip::KernelChips;
use crate::memory::MemorySlots;
use crate::probe::{self, ProbeFailure};
use crate::vcpu::parked::ParkingLot;
use crate::vcpu::{Seed, msr};

/// Where the kernel's own pages lie in guest-physical memory: below the firmware's top 16 MiB less APICs, where no
/// machine has RAM. The identity map of real mode takes one page, the TSS the next three.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// Properties of `-accel kvm`.
#[derive(Clone, Debug)]
pub struct KvmOptions {
    /// Who models the interrupt controllers (`kernel-irqchip`).
    pub kernel_irqchip: KernelIrqchip,
    /// The device file (`device`).
    pub device: PathBuf,
}

impl Default for KvmOptions {
    fn default() -> Self {
        Self { kernel_irqchip: KernelIrqchip::default(), device: PathBuf::from("/dev/kvm") }
    }
}

/// What the kernel offers beyond what is required. Asked once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// The local APIC's timer has the TSC-deadline mode.
    pub(crate) tsc_deadline: bool,
    /// Bytes of a vCPU's vector state (KVM_CAP_XSAVE2); 0 where the kernel is too old.
    pub(crate) xsave_size: usize,
    /// Single-step can hold interrupts off.
    pub(crate) step_blocks_interrupts: bool,
}

/// What the parts of one VM share.
pub(crate) struct Shared {
    pub(crate) kvm: KvmFd,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: MemorySlots,
    pub(crate) chips: Option<Arc<KernelChips>>,
    pub(crate) features: Features,
    pub(crate) clock: Arc<KvmClock>,
    pub(crate) parked: ParkingLot,
    cpuid: OnceLock<Vec<kvm_cpuid_entry2>>,
    msrs: OnceLock<Vec<u32>>,
}

impl Shared {
    /// What KVM_GET_SUPPORTED_CPUID says. It is slow (the kernel asks the hardware leaf by leaf), so once.
    pub(crate) fn supported_cpuid(&self) -> Result<&[kvm_cpuid_entry2], VcpuError> {
        if let Some(entries) = self.cpuid.get() {
            return Ok(entries);
        }
        let entries = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let entries = entries.map_err(refused_vcpu("KVM_GET_SUPPORTED_CPUID failed"))?.as_slice().to_vec();
        Ok(self.cpuid.get_or_init(|| entries))
    }

    /// The MSRs of a CPU's state, ascending. `fd`, a fresh vCPU, tells which can be read.
    pub(crate) fn msrs(&self, fd: &VcpuFd) -> Result<&[u32], VcpuError> {
        if let Some(indices) = self.msrs.get() {
            return Ok(indices);
        }
        let listed = self.kvm.get_msr_index_list().map_err(refused_vcpu("KVM_GET_MSR_INDEX_LIST failed"))?;
        let readable = msr::read(fd, &msr::of_state(listed.as_slice()))?;
        Ok(self.msrs.get_or_init(|| readable.into_iter().map(|(index, _)| index).collect()))
    }
}

/// The KVM accelerator.
pub struct Kvm {
    pub(crate) shared: Arc<Shared>,
}

impl Kvm {
    /// Opens the device and makes an empty VM with the interrupt controllers asked for.
    pub fn open(options: &KvmOptions) -> Result<Self, OpenError> {
        let kvm = device::open(&options.device, options.kernel_irqchip)?;
        let vm = Arc::new(kvm.create_vm().map_err(refused("KVM_CREATE_VM failed"))?);
        // Both before any vCPU. The identity map's address is a matter of old Intel CPUs: others may lack the call.
        if vm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(IDENTITY_MAP).map_err(refused("KVM_SET_IDENTITY_MAP_ADDR failed"))?;
        }
        vm.set_tss_address(TSS).map_err(refused("KVM_SET_TSS_ADDR failed"))?;
        let chips = match options.kernel_irqchip {
            KernelIrqchip::Off => None,
            KernelIrqchip::On => {
                let routes = usize::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
                Some(Arc::new(KernelChips::new(Arc::clone(&vm), routes)))
            }
            KernelIrqchip::Split => return Err(OpenError::SplitIrqchip),
        };
        let debug = vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
        let features = Features {
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            xsave_size: usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
            step_blocks_interrupts: debug > 0 && debug.cast_unsigned() & KVM_GUESTDBG_BLOCKIRQ != 0,
        };
        let clock = KvmClock::new(Arc::clone(&vm))
            .map_err(|source| OpenError::Refused { what: "no timerfd to be had", source })?;
        let memory = MemorySlots::new(Arc::clone(&vm), kvm.get_nr_memslots());
        let shared = Shared {
            kvm,
            vm,
            memory,
            chips,
            features,
            clock: Arc::new(clock),
            parked: ParkingLot::default(),
            cpuid: OnceLock::new(),
            msrs: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether this KVM can run Linux: that it opens does not tell. Takes a few milliseconds, and no more than some
    /// ten where the answer is no.
    pub fn probe(&self) -> Result<(), ProbeFailure> {
        probe::run(&self.shared)
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> OpenError {
    move |error| OpenError::Refused { what, source: io::Error::from_raw_os_error(error.errno()) }
}

fn refused_vcpu(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Host { what, source: io::Error::from_raw_os_error(error.errno()) }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn memory_listener(&self) -> &dyn MemoryListener {
        &self.shared.memory
    }

    fn irqchip(&self) -> Irqchip {
        match &self.shared.chips {
            Some(chips) => Irqchip::Kernel(Arc::clone(chips) as Arc<dyn InterruptSink>),
            None => Irqchip::Userspace,
        }
    }

    fn irqchip_device(&self) -> Option<Arc<dyn Device>> {
        self.shared.chips.as_ref().map(|chips| Arc::clone(chips) as Arc<dyn Device>)
    }

    fn add_doorbell(&self, gpa: u64, store: DoorbellStore, event: &EventFd) -> io::Result<bool> {
        let vm = &self.shared.vm;
        let at = IoEventAddress::Mmio(gpa);
        let needed = match store {
            DoorbellStore::Word(_) => KVM_CAP_IOEVENTFD,
            DoorbellStore::Any => KVM_CAP_IOEVENTFD_ANY_LENGTH,
        };
        if vm.check_extension_raw(needed.into()) <= 0 {
            return Ok(false);
        }
        let registered = match store {
            DoorbellStore::Word(value) => vm.register_ioevent(event, &at, value),
            DoorbellStore::Any => vm.register_ioevent(event, &at, NoDatamatch),
        };
        registered.map(|()| true).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn remove_doorbell(&self, gpa: u64, store: DoorbellStore, event: &EventFd) -> io::Result<()> {
        let (vm, at) = (&self.shared.vm, IoEventAddress::Mmio(gpa));
        let removed = match store {
            DoorbellStore::Word(value) => vm.unregister_ioevent(event, &at, value),
            DoorbellStore::Any => vm.unregister_ioevent(event, &at, NoDatamatch),
        };
        removed.map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.shared.clock) as Arc<dyn Clock>
    }

    fn threading(&self) -> Threading {
        Threading::PerCpu
    }

    fn max_cpus(&self) -> usize {
        self.shared.kvm.get_max_vcpus().min(MAX_CPUS)
    }

    fn new_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError> {
        if let Some(chips) = &self.shared.chips {
            chips.ensure()?;
        }
        Ok(Box::new(Seed::new(Arc::clone(&self.shared), config.clone())))
    }
}
