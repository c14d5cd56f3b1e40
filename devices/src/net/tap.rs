//! An interface of the host's kernel whose other end is the card (QEMU's `-netdev tap`; the kernel's
//! Documentation/networking/tuntap.rst).
//!
//! Frames go with the header that virtio-net has (`IFF_VNET_HDR`), so that neither side computes checksums or cuts segments which
//! the other would have taken whole.

mod sys;

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::checksum::Sum;
use super::{Checksum, FrameInfo, FrameSink, MAX_FRAME_BYTES, NetBackend, Offloads, vnet_header};

pub use self::sys::MAX_NAME_BYTES;

/// Frames before it is the guest's turn.
const TURN_FRAMES: usize = 256;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel has none, or not for this user.
    #[error("/dev/net/tun")]
    Device(#[source] io::Error),
    /// The interface cannot be had.
    #[error("interface '{name}'")]
    Interface {
        /// Its name; a pattern if the kernel was to choose one.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Its frames cannot have headers.
    #[error("the interface takes no header for offloads")]
    Header(#[source] io::Error),
    /// A descriptor that was handed down is something else.
    #[error("descriptor {0} is not a tap interface")]
    NotTap(RawFd),
}

/// An open tap interface.
pub struct Tap {
    file: File,
    name: String,
    has_header: bool,
    /// What the kernel knows that the guest does.
    told: Option<Offloads>,
    buffer: Box<[u8]>,
    /// Bytes of a frame, header included, that the guest had no room for.
    pending: usize,
}

impl Tap {
    /// Opens the interface `name`, or makes one, which goes with the process; without a name the kernel chooses one. `header`:
    /// offloads are to be used, where the kernel has them.
    pub fn open(name: Option<&str>, header: bool) -> Result<Self, OpenError> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = file.map_err(OpenError::Device)?;
        let header = header && sys::knows_headers(&file).map_err(OpenError::Device)?;
        let wanted = name.unwrap_or("tap%d");
        let name = sys::attach(&file, wanted, header)
            .map_err(|source| OpenError::Interface { name: wanted.into(), source })?;
        Self::new(file, name, header)
    }

    /// One that was opened by whoever started the process, as descriptor `number` there.
    pub fn inherited(fd: OwnedFd, number: RawFd) -> Result<Self, OpenError> {
        let file = File::from(fd);
        let (name, header) = sys::identify(&file).map_err(|_| OpenError::NotTap(number))?;
        rustix::io::ioctl_fionbio(&file, true).map_err(|error| OpenError::Device(error.into()))?;
        Self::new(file, name, header)
    }

    fn new(file: File, name: String, has_header: bool) -> Result<Self, OpenError> {
        if has_header {
            sys::set_header_bytes(&file, vnet_header::BYTES).map_err(OpenError::Header)?;
        }
        let buffer = vec![0; vnet_header::BYTES + MAX_FRAME_BYTES + 4].into_boxed_slice();
        Ok(Self { file, name, has_header, told: None, buffer, pending: 0 })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another descriptor, for who moves frames in our place. They have headers if there are offloads.
    pub(crate) fn duplicate(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The kernel gives the guest whole what it can take whole.
    pub(crate) fn tell(&mut self, guest: Offloads) {
        if self.has_header && self.told != Some(guest) {
            self.told = Some(guest);
            if let Err(error) = sys::set_offloads(&self.file, guest) {
                tracing::warn!(target: "net", %error, interface = self.name, "a tap without offloads");
            }
        }
    }

    /// Gives the guest the frame in the buffer, of `count` bytes; false if there is no room.
    fn deliver(&mut self, count: usize, sink: &mut dyn FrameSink) -> bool {
        let (info, frame) = if self.has_header {
            let Some((header, frame)) = self.buffer[..count].split_first_chunk_mut() else { return true };
            let Some(info) = vnet_header::decode(header) else { return true };
            (info, frame)
        } else {
            (FrameInfo::default(), &mut self.buffer[..count])
        };
        let guest = sink.offloads();
        // What was queued before the kernel was told, for a driver that took more.
        let Some(info) = settle(info, frame, guest) else { return true };
        sink.push(&info, &[frame])
    }
}

/// Makes of a frame one that the guest can take; `None`: that cannot be.
fn settle(info: FrameInfo, frame: &mut [u8], guest: Offloads) -> Option<FrameInfo> {
    let Checksum::Partial { start, offset } = info.checksum else { return Some(info) };
    if guest.checksum {
        return Some(info);
    }
    if info.segments.is_some() {
        return None;
    }
    let place = usize::from(start) + usize::from(offset);
    let mut sum = Sum::default();
    sum.add(frame.get(usize::from(start)..)?);
    // Nought would mean in UDP that there is none; in TCP both are the same number.
    let checksum = match sum.finish() {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    };
    frame.get_mut(place..place + 2)?.copy_from_slice(&checksum);
    Some(FrameInfo::default())
}

impl NetBackend for Tap {
    fn offloads(&self) -> Offloads {
        if self.has_header { Offloads::ALL } else { Offloads::default() }
    }

    fn send(&mut self, info: &FrameInfo, frame: &[u8]) {
        let header = vnet_header::encode(info, 0);
        let header = if self.has_header { &header[..] } else { &[] };
        // Lost where the interface is down, or the kernel will not have it.
        if let Err(error) = self.file.write_vectored(&[IoSlice::new(header), IoSlice::new(frame)]) {
            tracing::trace!(target: "net", %error, interface = self.name, "a frame is lost");
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) -> bool {
        self.tell(sink.offloads());
        for _ in 0..TURN_FRAMES {
            if self.pending == 0 {
                match self.file.read(&mut self.buffer) {
                    Ok(0) => return false,
                    Ok(count) => self.pending = count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // Nothing is there; or the interface is down or gone.
                    Err(_) => return false,
                }
            }
            if !self.deliver(self.pending, sink) {
                return false;
            }
            self.pending = 0;
        }
        true
    }

    fn wakeup_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
