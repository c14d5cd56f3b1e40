//! The calls of /dev/vhost-net and /dev/vhost-vsock (Linux, `include/uapi/linux/vhost.h`) that the `vhost` crate has not, or not
//! for a file that somebody else has opened.

#![expect(unsafe_code, reason = "door: ioctl(2) of vhost devices")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::back_end::{Ring, VhostError};

/// An open vhost device of the kernel's, for one device of a guest's.
pub struct VhostFile(File);

impl VhostFile {
    /// Opens a new one.
    pub fn open(path: &'static str) -> Result<Self, VhostError> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path);
        Self(file.map_err(|source| VhostError::Open { path, source })?).owned()
    }

    /// One that whoever started the process has opened, as descriptor `number` there.
    pub fn inherited(fd: OwnedFd, number: RawFd) -> Result<Self, VhostError> {
        Self(fd.into()).owned().map_err(|_| VhostError::NotVhost(number))
    }

    /// The kernel works in our memory.
    fn owned(self) -> Result<Self, VhostError> {
        self.plain(|handle| handle.set_owner())?;
        Ok(self)
    }

    /// The file itself, with the memory that rings are in.
    fn with<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Handle<'a> {
        Handle { file: &self.0, memory }
    }

    /// Runs what needs no memory.
    fn plain<R>(&self, act: impl FnOnce(&Handle) -> R) -> R {
        act(&self.with(&GuestMemoryMmap::default()))
    }

    pub(super) fn features(&self) -> Result<u64, vhost::Error> {
        self.plain(|handle| handle.get_features())
    }

    pub(super) fn set_features(&self, features: u64) -> Result<(), vhost::Error> {
        self.plain(|handle| handle.set_features(features))
    }

    /// What descriptors refer to. The kernel goes by our own addresses, so that it matters not what the memory is made of.
    pub(super) fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), vhost::Error> {
        let region = |region: &GuestRegionMmap| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..VhostUserMemoryRegionInfo::default()
        };
        let regions: Vec<_> = memory.iter().map(region).collect();
        self.plain(|handle| handle.set_mem_table(&regions)).map(drop)
    }

    /// Where `ring` is in `memory`, where it goes on, and how it is kicked and calls.
    pub(super) fn set_ring(&self, memory: &GuestMemoryMmap, ring: &Ring) -> Result<(), vhost::Error> {
        let handle = self.with(memory);
        handle.set_vring_num(ring.index, ring.size)?;
        handle.set_vring_base(ring.index, 0)?;
        let [descriptors, available, used] = ring.places.map(|place| place.0);
        let place = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: descriptors,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        handle.set_vring_addr(ring.index, &place)?;
        handle.set_vring_kick(ring.index, &ring.wires.kick)?;
        handle.set_vring_call(ring.index, &ring.wires.call)?;
        handle.set_vring_err(ring.index, &ring.errors)
    }

    pub(super) fn base(&self, ring: usize) -> Result<u16, vhost::Error> {
        let base = self.plain(|handle| handle.get_vring_base(ring))?;
        u16::try_from(base).map_err(|_| vhost::Error::InvalidQueue)
    }

    pub(super) fn set_base(&self, ring: usize, base: u16) -> Result<(), vhost::Error> {
        self.plain(|handle| handle.set_vring_base(ring, base))
    }

    /// Frames of `ring` go to `tap`, or nowhere. The kernel is done with what it was at when this returns.
    pub(super) fn set_tap(&self, ring: usize, tap: Option<&File>) -> Result<(), vhost::Error> {
        let index = u32::try_from(ring).map_err(|_| vhost::Error::InvalidQueue)?;
        let file = vhost_vring_file { index, fd: tap.map_or(-1, AsRawFd::as_raw_fd) };
        // SAFETY: the call reads the structure, which is alive.
        checked(unsafe { ioctl_with_ref(&self.0, VHOST_NET_SET_BACKEND(), &file) })
    }

    /// The guest's address.
    pub(super) fn set_guest_cid(&self, cid: u32) -> Result<(), vhost::Error> {
        let cid = u64::from(cid);
        // SAFETY: the call reads a number, which is alive.
        checked(unsafe { ioctl_with_ref(&self.0, VHOST_VSOCK_SET_GUEST_CID(), &cid) })
    }

    /// Streams flow, or not.
    pub(super) fn set_running(&self, running: bool) -> Result<(), vhost::Error> {
        let running = libc::c_int::from(running);
        // SAFETY: the call reads a number, which is alive.
        checked(unsafe { ioctl_with_ref(&self.0, VHOST_VSOCK_SET_RUNNING(), &running) })
    }
}

fn checked(result: libc::c_int) -> Result<(), vhost::Error> {
    if result == 0 { Ok(()) } else { Err(vhost::Error::IoctlError(io::Error::last_os_error())) }
}

/// What the crate's calls want.
struct Handle<'a> {
    file: &'a File,
    memory: &'a GuestMemoryMmap,
}

impl AsRawFd for Handle<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl<'a> VhostKernBackend for Handle<'a> {
    type AS = &'a GuestMemoryMmap;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The crate's own takes a ring that ends with the memory for one beyond it.
    fn is_valid(&self, ring: &VringConfigData) -> bool {
        let size = usize::from(ring.queue_size);
        let is_there =
            |address: u64, bytes: usize| self.memory.get_slice(GuestAddress(address), bytes).is_ok();
        size.is_power_of_two()
            && is_there(ring.desc_table_addr, 16 * size)
            && is_there(ring.avail_ring_addr, 6 + 2 * size)
            && is_there(ring.used_ring_addr, 6 + 8 * size)
    }
}
