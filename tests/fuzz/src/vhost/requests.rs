//! What the kernel answers to each call.

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use vmm_sys_util::eventfd::EventFd;

use super::memory::{Region, Table};
use super::{EVENT_IDX, FAILS, INDIRECT_DESC, Kernel, Kind, OF_ALL, RINGS, State, TAKEN, TRANSMIT, VRing};
use crate::rings::{Parts, Ring};

// Of linux/vhost.h.
const GET_FEATURES: c_ulong = 0x8008_af00;
const SET_FEATURES: c_ulong = 0x4008_af00;
const SET_OWNER: c_ulong = 0xaf01;
const SET_MEM_TABLE: c_ulong = 0x4008_af03;
const SET_VRING_NUM: c_ulong = 0x4008_af10;
const SET_VRING_ADDR: c_ulong = 0x4028_af11;
const SET_VRING_BASE: c_ulong = 0x4008_af12;
const GET_VRING_BASE: c_ulong = 0xc008_af12;
const SET_VRING_KICK: c_ulong = 0x4008_af20;
const SET_VRING_CALL: c_ulong = 0x4008_af21;
const SET_VRING_ERR: c_ulong = 0x4008_af22;
const NET_SET_BACKEND: c_ulong = 0x4008_af30;
const VSOCK_SET_GUEST_CID: c_ulong = 0x4008_af60;
const VSOCK_SET_RUNNING: c_ulong = 0x4004_af61;

/// `VHOST_NET_F_VIRTIO_NET_HDR`.
const NET_HEADERS: u64 = 1 << 27;
/// Regions at most, as the kernel's module has it if nobody says otherwise.
const MAX_REGIONS: u32 = 64;

/// What calls fail with.
const ERRORS: [c_int; 5] = [libc::EFAULT, libc::EINVAL, libc::ENOMEM, libc::EPERM, libc::EBUSY];

type Answer = Result<(), c_int>;

/// `struct vhost_vring_state`, or `struct vhost_vring_file`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RingNumber {
    index: u32,
    value: u32,
}

/// `struct vhost_vring_addr`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RingAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// The beginning of `struct ifreq`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
}

impl Kernel {
    /// Answers `request`, if it is for one of its descriptors.
    ///
    /// # Safety
    ///
    /// `argument` is what the request wants.
    pub(super) unsafe fn call(&self, fd: c_int, request: c_ulong, argument: *mut c_void) -> Option<Answer> {
        if fd != self.device && fd != self.tap {
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        let how = state.script.pop_front().unwrap_or(0);
        // SAFETY: as the caller says.
        let ends = unsafe {
            match request {
                NET_SET_BACKEND => argument.cast::<RingNumber>().read().value as c_int == -1,
                VSOCK_SET_RUNNING => argument.cast::<c_int>().read() == 0,
                _ => false,
            }
        };
        if how >= FAILS {
            self.has_failed.set(true);
            if ends {
                self.is_stuck.set(true);
            }
            if request == GET_VRING_BASE && how & 1 != 0 {
                // SAFETY: as the caller says.
                unsafe { (*argument.cast::<RingNumber>()).value = u32::from(how) << 16 };
                return Some(Ok(()));
            }
            return Some(Err(ERRORS[usize::from(how) % ERRORS.len()]));
        }
        // SAFETY: as the caller says.
        Some(unsafe {
            if fd == self.tap {
                self.call_tap(request, argument)
            } else {
                self.call_vhost(state, request, argument)
            }
        })
    }

    /// # Safety
    ///
    /// As of [`Kernel::call`].
    unsafe fn call_tap(&self, request: c_ulong, argument: *mut c_void) -> Answer {
        match request as c_uint {
            request if request == libc::TUNGETIFF as c_uint => {
                let header =
                    if self.kind == (Kind::Net { has_header: true }) { libc::IFF_VNET_HDR } else { 0 };
                let flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as u16;
                let mut name = [0; libc::IFNAMSIZ];
                name[..4].copy_from_slice(b"tap0");
                // SAFETY: as the caller says.
                unsafe { argument.cast::<InterfaceRequest>().write(InterfaceRequest { name, flags }) };
                Ok(())
            }
            request if request == libc::TUNSETVNETHDRSZ as c_uint => {
                // SAFETY: as the caller says.
                assert_eq!(unsafe { argument.cast::<c_int>().read() }, 12, "virtio's header");
                Ok(())
            }
            request if request == libc::TUNSETOFFLOAD as c_uint => Ok(()),
            _ => Err(libc::EINVAL),
        }
    }

    /// # Safety
    ///
    /// As of [`Kernel::call`].
    unsafe fn call_vhost(&self, state: &mut State, request: c_ulong, argument: *mut c_void) -> Answer {
        // SAFETY: as the caller says, for the requests that have such a thing.
        let (number, long) =
            (|| unsafe { argument.cast::<RingNumber>().read() }, || unsafe { argument.cast::<u64>().read() });
        match request {
            SET_OWNER if state.is_owned => return Err(libc::EBUSY),
            SET_OWNER => state.is_owned = true,
            // SAFETY: as the caller says.
            GET_FEATURES => unsafe { argument.cast::<u64>().write(self.offered) },
            _ if !state.is_owned => return Err(libc::EPERM),
            SET_FEATURES => self.set_features(state, long()),
            // SAFETY: as the caller says.
            SET_MEM_TABLE => return unsafe { self.set_memory(state, argument) },
            SET_VRING_NUM => {
                let (vring, size) = (self.resting(state, number().index)?, number().value);
                let is_size = size.is_power_of_two() && size <= 0xffff;
                vring.size = u16::try_from(size).ok().filter(|_| is_size).ok_or(libc::EINVAL)?;
            }
            SET_VRING_BASE => {
                let vring = self.resting(state, number().index)?;
                vring.base = u16::try_from(number().value).map_err(|_| libc::EINVAL)?;
            }
            GET_VRING_BASE => {
                let vring = at(state, number().index)?;
                let base = vring.ring.as_ref().map_or(vring.base, Ring::taken);
                // SAFETY: as the caller says.
                unsafe { (*argument.cast::<RingNumber>()).value = base.into() };
            }
            // SAFETY: as the caller says.
            SET_VRING_ADDR => {
                return self.set_address(state, &unsafe { argument.cast::<RingAddress>().read() });
            }
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
                let vring = at(state, number().index)?;
                let event = event(number().value as c_int)?;
                match request {
                    SET_VRING_KICK => vring.kick = event,
                    SET_VRING_CALL => vring.call = event,
                    _ => vring.errors = event,
                }
            }
            NET_SET_BACKEND if self.kind != Kind::Vsock => {
                return self.set_tap(state, number().index, number().value as c_int);
            }
            VSOCK_SET_GUEST_CID if self.kind == Kind::Vsock => match long() {
                0..=2 | 0xffff_ffff.. => return Err(libc::EINVAL),
                cid if cid == u64::from(TAKEN) => return Err(libc::EADDRINUSE),
                _ => {}
            },
            VSOCK_SET_RUNNING if self.kind == Kind::Vsock => {
                // SAFETY: as the caller says.
                let is_start = unsafe { argument.cast::<c_int>().read() } != 0;
                (0..RINGS)
                    .for_each(|index| if is_start { self.start(state, index) } else { stop(state, index) });
            }
            _ => return Err(libc::ENOTTY),
        }
        Ok(())
    }

    /// Ring number `index`, which is not to be worked on.
    fn resting<'a>(&self, state: &'a mut State, index: u32) -> Result<&'a mut VRing, c_int> {
        let vring = at(state, index)?;
        assert!(self.is_stuck() || vring.ring.is_none(), "a ring is changed while it is worked on");
        if vring.ring.is_some() { Err(libc::EBUSY) } else { Ok(vring) }
    }

    fn set_features(&self, state: &mut State, features: u64) {
        assert_eq!(features & !self.offered, 0, "features that the kernel has not");
        let is_working = state.rings.iter().any(|ring| ring.ring.is_some());
        assert!(self.is_stuck() || !is_working, "features change while rings are worked on");
        if self.observed {
            assert_eq!(features & (INDIRECT_DESC | EVENT_IDX), 0, "our own rings have neither");
        }
        if let Kind::Net { has_header } = self.kind {
            assert_eq!(features & NET_HEADERS == 0, has_header, "headers come from one of both");
        }
        let known = OF_ALL | super::SEQPACKET | super::MRG_RXBUF;
        assert_eq!(features & !known, 0, "features that are not the rings'");
        state.features = features;
    }

    /// # Safety
    ///
    /// `argument` is a `struct vhost_memory`.
    unsafe fn set_memory(&self, state: &mut State, argument: *const c_void) -> Answer {
        // SAFETY: as the caller says.
        let [count, padding] = unsafe { argument.cast::<[u32; 2]>().read() };
        if padding != 0 {
            return Err(libc::EOPNOTSUPP);
        }
        if count > MAX_REGIONS {
            return Err(libc::E2BIG);
        }
        // SAFETY: as many as the header says follow it.
        let region =
            |index: usize| unsafe { argument.cast::<[u64; 4]>().byte_add(8).add(index).read_unaligned() };
        let regions: Vec<_> = (0..count as usize)
            .map(region)
            .map(|[guest, bytes, host, _]| Region { guest, bytes, host })
            .collect();
        assert_eq!(regions, self.memory, "the guest's memory is something else");
        // SAFETY: the machine has this memory, which ends after the device's last use.
        state.table = unsafe { Table::new(regions) };
        Ok(())
    }

    fn set_address(&self, state: &mut State, address: &RingAddress) -> Answer {
        let RingAddress { index, flags, descriptors, used, available, log } = *address;
        if flags & !1 != 0 {
            return Err(libc::EOPNOTSUPP);
        }
        if available & 1 != 0 || used & 3 != 0 || log & 3 != 0 {
            return Err(libc::EINVAL);
        }
        let size = u64::from(at(state, index)?.size);
        for (from, bytes) in [(descriptors, 16 * size), (used, 6 + 8 * size), (available, 6 + 2 * size)] {
            let is_guests = state.table.holds(from, bytes);
            assert_eq!(is_guests, !self.observed, "the kernel would work on other memory than it is to");
            assert!(is_guests || is_mapped(from, bytes), "the kernel would work on no memory");
        }
        self.resting(state, index)?.parts = Some(Parts { descriptors, used, available });
        Ok(())
    }

    fn set_tap(&self, state: &mut State, index: u32, fd: c_int) -> Answer {
        at(state, index)?;
        if fd == -1 {
            stop(state, index as usize);
            return Ok(());
        }
        let file = File::from(duplicate(fd)?);
        assert_eq!(file.metadata().expect("an open file").ino(), self.tap_inode, "another interface");
        self.start(state, index as usize);
        Ok(())
    }

    /// Ring number `index` is worked on from now on. For what waits in it already the kernel looks where the network takes
    /// frames, and nowhere else.
    fn start(&self, state: &mut State, index: usize) {
        let vring = &mut state.rings[index];
        if vring.ring.is_some() {
            return;
        }
        vring.listen();
        let parts = vring.parts.expect("a ring is worked on before it is there");
        // SAFETY: the parts are in memory that is there, as was seen, and the other side reaches it as a driver or device does.
        let mut ring = unsafe { Ring::new(vring.size, parts) };
        ring.go_on(vring.base);
        vring.ring = Some(ring);
        vring.signalled = None;
        vring.is_kicked = self.kind != Kind::Vsock && index == TRANSMIT;
    }
}

fn stop(state: &mut State, index: usize) {
    let vring = &mut state.rings[index];
    if let Some(ring) = vring.ring.take() {
        vring.base = ring.taken();
    }
    vring.listen();
}

fn at(state: &mut State, index: u32) -> Result<&mut VRing, c_int> {
    state.rings.get_mut(index as usize).ok_or(libc::ENOBUFS)
}

fn duplicate(fd: c_int) -> Result<OwnedFd, c_int> {
    // SAFETY: whoever passes it has it open, for as long as the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.as_fd().try_clone_to_owned().map_err(|_| libc::EBADF)
}

/// The eventfd behind `fd`; `None` for -1.
fn event(fd: c_int) -> Result<Option<EventFd>, c_int> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    if fd == -1 {
        return Ok(None);
    }
    let fd = duplicate(fd)?.into_raw_fd();
    // SAFETY: it is a new descriptor.
    Ok(Some(unsafe { EventFd::from_raw_fd(fd) }))
}

/// Whether all these bytes of the process are there.
fn is_mapped(from: u64, bytes: u64) -> bool {
    const PAGE: u64 = 4096;
    let (begin, end) = (from / PAGE * PAGE, (from + bytes).next_multiple_of(PAGE));
    let mut pages = vec![0; ((end - begin) / PAGE) as usize];
    // SAFETY: there is a byte for each page, and the pages are not touched.
    (unsafe { libc::mincore(begin as *mut c_void, (end - begin) as usize, pages.as_mut_ptr()) }) == 0
}
