//! The calls about tap interfaces (the kernel's `linux/if_tun.h`).

#![expect(unsafe_code, reason = "door: ioctl(2) of tap interfaces")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::net::Offloads;

/// The longest name of an interface.
pub const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// `struct ifreq`, of which these calls use the name and the flags.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    // The union's largest member, `struct ifmap`, has 24 bytes.
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: libc::c_int) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_NAME_BYTES || bytes.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags: flags as u16, rest: [0; 22] };
        request.name[..bytes.len()].copy_from_slice(bytes);
        Ok(request)
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether frames can have headers.
pub(super) fn knows_headers(file: &File) -> io::Result<bool> {
    let mut features: libc::c_uint = 0;
    // SAFETY: the call writes one unsigned int, where a live one is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    Ok(features & libc::IFF_VNET_HDR as libc::c_uint != 0)
}

/// Makes `file` the other end of the tap interface `name`; the name that it really has.
pub(super) fn attach(file: &File, name: &str, header: bool) -> io::Result<String> {
    let header = if header { libc::IFF_VNET_HDR } else { 0 };
    let mut request = Request::new(name, libc::IFF_TAP | libc::IFF_NO_PI | header)?;
    // SAFETY: the call reads and writes a `struct ifreq`, as large as `Request` and alive.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(request.name())
}

/// What an open file is the other end of, and whether its frames have headers; an error if of no tap interface.
pub(super) fn identify(file: &File) -> io::Result<(String, bool)> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: as in `attach`.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let flags = libc::c_int::from(request.flags);
    if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((request.name(), flags & libc::IFF_VNET_HDR != 0))
}

/// How long headers are.
pub(super) fn set_header_bytes(file: &File, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call reads one int, where a live one is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// What the guest does for the kernel.
pub(super) fn set_offloads(file: &File, guest: Offloads) -> io::Result<()> {
    let bit = |is_set: bool, flag: libc::c_uint| if is_set { flag } else { 0 };
    let flags = bit(guest.checksum, libc::TUN_F_CSUM)
        | bit(guest.tcp4_segments, libc::TUN_F_TSO4)
        | bit(guest.tcp6_segments, libc::TUN_F_TSO6);
    // SAFETY: the call takes a number, no pointer.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}
