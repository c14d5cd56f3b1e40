//! vCPUs that have left the machine (Linux, Documentation/virt/kvm/api.rst, *KVM_CREATE_VCPU*): the kernel keeps a vCPU as long
//! as its VM and makes no second one of the same ID, so a CPU that comes back gets the one it had.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use accel::VcpuError;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;

use super::{PowerOn, host};
use crate::accelerator::Shared;

const LOCK: &str = "no holder of the lock of the parked vCPUs panics";

/// A vCPU that nobody runs.
struct Parked {
    id: u64,
    fd: VcpuFd,
    /// What it shows; empty at first.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// Its reset state, once it has been read.
    power_on: Option<Arc<PowerOn>>,
}

/// The vCPUs of one VM that nobody runs.
#[derive(Default)]
pub(crate) struct ParkingLot(Mutex<Vec<Parked>>);

/// A vCPU's descriptor. Dropped, the vCPU is parked.
pub(super) struct Fd {
    shared: Arc<Shared>,
    /// `None` while it is being dropped.
    parked: Option<Parked>,
}

impl Fd {
    /// The vCPU `id`: a new one, or the one that has left, as it was then.
    pub(super) fn open(shared: &Arc<Shared>, id: u64) -> Result<Self, VcpuError> {
        let left = {
            let mut lot = shared.parked.0.lock().expect(LOCK);
            lot.iter().position(|parked| parked.id == id).map(|at| lot.swap_remove(at))
        };
        let parked = match left {
            Some(parked) => parked,
            None => {
                let fd = shared.vm.create_vcpu(id).map_err(host("KVM_CREATE_VCPU failed"))?;
                Parked { id, fd, cpuid: Vec::new(), power_on: None }
            }
        };
        Ok(Self { shared: Arc::clone(shared), parked: Some(parked) })
    }

    fn parked(&mut self) -> &mut Parked {
        self.parked.as_mut().expect(TAKEN)
    }

    /// Has the vCPU show `entries`. The kernel may refuse a change once it has run.
    pub(super) fn show(&mut self, entries: Vec<kvm_cpuid_entry2>) -> Result<(), VcpuError> {
        let parked = self.parked();
        if parked.cpuid != entries {
            let cpuid = CpuId::from_entries(&entries)
                .map_err(|_| VcpuError::Unsupported("a CPUID of so many leaves"))?;
            parked.fd.set_cpuid2(&cpuid).map_err(host("KVM_SET_CPUID2 failed"))?;
            parked.cpuid = entries;
        }
        Ok(())
    }

    /// The vCPU's reset state, which `read` reads from a new one. Whether it was new.
    pub(super) fn power_on(
        &mut self,
        read: impl FnOnce(&VcpuFd) -> Result<PowerOn, VcpuError>,
    ) -> Result<(Arc<PowerOn>, bool), VcpuError> {
        let parked = self.parked();
        if let Some(power_on) = &parked.power_on {
            return Ok((Arc::clone(power_on), false));
        }
        let power_on = Arc::new(read(&parked.fd)?);
        parked.power_on = Some(Arc::clone(&power_on));
        Ok((power_on, true))
    }
}

const TAKEN: &str = "taken in drop only";

impl Deref for Fd {
    type Target = VcpuFd;
    fn deref(&self) -> &VcpuFd {
        &self.parked.as_ref().expect(TAKEN).fd
    }
}

impl DerefMut for Fd {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.parked().fd
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        if let Some(parked) = self.parked.take() {
            self.shared.parked.0.lock().expect(LOCK).push(parked);
        }
    }
}
