//! Guest RAM as devices reach it, and who is told of what they write there.
//!
//! A CPU whose code is translated must hear of every byte that did not come from one of its own stores: the bytes may be
//! code that was translated, as they are when a guest's page cache is read from a disk.

use std::ops::Deref;
use std::sync::Arc;

use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

/// Is told of what devices write to guest RAM.
pub trait DmaObserver: Send + Sync {
    /// A device has written `len` bytes at `gpa`. Called after they were written and before the guest is told of them; when
    /// it returns, no CPU begins anything that was made of what was there before. (One that is in the midst of it
    /// does some instructions more, as if the bytes came after.)
    ///
    /// May wait until a running CPU has taken notice. So the caller holds no lock that a CPU may want in an access to a
    /// device; on a CPU's own thread that CPU takes notice before it executes more.
    fn written(&self, gpa: u64, len: u64);
}

/// Guest RAM for devices.
#[derive(Clone)]
pub struct DmaMemory {
    memory: GuestMemoryMmap,
    observer: Option<Arc<dyn DmaObserver>>,
}

impl DmaMemory {
    /// `memory`, whose changes `observer` hears of.
    pub fn new(memory: GuestMemoryMmap, observer: Option<Arc<dyn DmaObserver>>) -> Self {
        Self { memory, observer }
    }

    /// The memory. Whoever writes to it says so ([`DmaMemory::written`]).
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Whether somebody has to hear of what is written. Then nobody else than a device writes: not another process, nor the kernel.
    pub fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// `len` bytes at `address` were written; see [`DmaObserver::written`].
    pub fn written(&self, address: GuestAddress, len: u64) {
        if let Some(observer) = &self.observer
            && len > 0
        {
            observer.written(address.raw_value(), len);
        }
    }
}

impl Deref for DmaMemory {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}
