//! Guest memory as KVM's memory slots (Linux, Documentation/virt/kvm/api.rst, *KVM_SET_USER_MEMORY_REGION*).

#![expect(unsafe_code, reason = "hands ranges of this process's memory to the kernel")]

use std::io;
use std::sync::{Arc, Mutex};

use accel::{MemoryError, MemoryListener};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// One slot in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    gpa: u64,
    len: u64,
    host: u64,
}

/// The slots of one VM.
pub(crate) struct MemorySlots {
    vm: Arc<VmFd>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// By slot number; `None` is free.
    slots: Vec<Option<Stretch>>,
    limit: usize,
    /// Keeps what the slots point to mapped.
    memory: Option<GuestMemoryMmap>,
}

impl MemorySlots {
    /// `limit`: how many slots the kernel has.
    pub(crate) fn new(vm: Arc<VmFd>, limit: usize) -> Self {
        Self { vm, inner: Mutex::new(Inner { slots: Vec::new(), limit, memory: None }) }
    }

    /// Reads guest memory, for diagnosis. Returns how many bytes there were.
    pub(crate) fn read(&self, gpa: u64, data: &mut [u8]) -> usize {
        let inner = self.inner.lock().expect("no holder of the slots' lock panics");
        inner.memory.as_ref().and_then(|memory| memory.read(data, GuestAddress(gpa)).ok()).unwrap_or(0)
    }

    fn set_slot(&self, slot: usize, stretch: Stretch) -> Result<(), MemoryError> {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: stretch.gpa,
            memory_size: stretch.len,
            userspace_addr: stretch.host,
        };
        // SAFETY: the range is a mapping of the `GuestMemoryMmap` kept in `Inner::memory`, which is replaced only
        // after the slots of mappings that went away were deleted; or the size is 0, which deletes.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|e| MemoryError::Host(io::Error::from_raw_os_error(e.errno())))
    }
}

impl MemoryListener for MemorySlots {
    fn set_map(&self, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
        let wanted: Vec<Stretch> = memory
            .iter()
            .map(|region| Stretch {
                gpa: region.start_addr().0,
                len: region.len(),
                host: region.as_ptr().addr() as u64,
            })
            .collect();
        let mut inner = self.inner.lock().expect("no holder of the slots' lock panics");
        let plan = plan(&inner.slots, &wanted);
        if plan.added.iter().any(|&(slot, _)| slot >= inner.limit) {
            return Err(MemoryError::TooManySlots(inner.limit));
        }
        // Deletions first: a slot may not overlap another.
        for slot in plan.deleted {
            if let Some(old) = inner.slots[slot] {
                self.set_slot(slot, Stretch { len: 0, ..old })?;
                inner.slots[slot] = None;
            }
        }
        for (slot, stretch) in plan.added {
            self.set_slot(slot, stretch)?;
            if inner.slots.len() <= slot {
                inner.slots.resize(slot + 1, None);
            }
            inner.slots[slot] = Some(stretch);
        }
        inner.memory = Some(memory.clone());
        Ok(())
    }
}

/// What turns one set of slots into another. A stretch that changed at all is deleted and added.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    deleted: Vec<usize>,
    added: Vec<(usize, Stretch)>,
}

fn plan(slots: &[Option<Stretch>], wanted: &[Stretch]) -> Plan {
    let mut plan = Plan::default();
    let mut free = Vec::new();
    for (number, slot) in slots.iter().enumerate() {
        match slot {
            Some(stretch) if wanted.contains(stretch) => {}
            Some(_) => {
                plan.deleted.push(number);
                free.push(number);
            }
            None => free.push(number),
        }
    }
    let mut free = free.into_iter().chain(slots.len()..);
    for &stretch in wanted {
        if !slots.contains(&Some(stretch)) {
            plan.added.push((free.next().expect("the range of numbers is endless"), stretch));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Stretch = Stretch { gpa: 0, len: 0x1000, host: 0x7000_0000 };
    const B: Stretch = Stretch { gpa: 0x10_0000, len: 0x1000, host: 0x7100_0000 };
    const C: Stretch = Stretch { gpa: 0x20_0000, len: 0x1000, host: 0x7200_0000 };

    #[test]
    fn only_changes_are_told() {
        assert_eq!(plan(&[], &[A, B]), Plan { deleted: vec![], added: vec![(0, A), (1, B)] });
        assert_eq!(plan(&[Some(A), Some(B)], &[B, A]), Plan::default());
        assert_eq!(plan(&[Some(A), Some(B)], &[B, C]), Plan { deleted: vec![0], added: vec![(0, C)] });
        let grown = Stretch { len: 0x2000, ..A };
        assert_eq!(
            plan(&[Some(A), Some(B)], &[grown, B]),
            Plan { deleted: vec![0], added: vec![(0, grown)] }
        );
        assert_eq!(plan(&[None, Some(B)], &[B, A, C]), Plan { deleted: vec![], added: vec![(0, A), (2, C)] });
    }
}
