//! What all vhost devices of the kernel's are told alike, and what begins and ends the work of each kind.

use vm_memory::GuestMemoryMmap;

use super::back_end::{KernelDevice, Ring};
use super::ioctl::VhostFile;

/// How the work of a kind of devices begins and ends ([`KernelDevice::run`], [`KernelDevice::halt`]).
pub(super) trait Kind: Send + Sync {
    fn run(&self, file: &VhostFile, rings: &[usize]) -> Result<(), vhost::Error>;
    fn halt(&self, file: &VhostFile, rings: &[usize]) -> Result<(), vhost::Error>;
}

/// A device of one kind.
pub(super) struct KernelFile<K> {
    pub file: VhostFile,
    pub kind: K,
}

impl<K: Kind> KernelDevice for KernelFile<K> {
    fn set_features(&self, features: u64) -> Result<(), vhost::Error> {
        self.file.set_features(features)
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), vhost::Error> {
        self.file.set_memory(memory)
    }

    fn set_ring(&self, memory: &GuestMemoryMmap, ring: &Ring) -> Result<(), vhost::Error> {
        self.file.set_ring(memory, ring)
    }

    fn base(&self, ring: usize) -> Result<u16, vhost::Error> {
        self.file.base(ring)
    }

    fn set_base(&self, ring: usize, base: u16) -> Result<(), vhost::Error> {
        self.file.set_base(ring, base)
    }

    fn run(&self, rings: &[usize]) -> Result<(), vhost::Error> {
        self.kind.run(&self.file, rings)
    }

    fn halt(&self, rings: &[usize]) -> Result<(), vhost::Error> {
        self.kind.halt(&self.file, rings)
    }
}
