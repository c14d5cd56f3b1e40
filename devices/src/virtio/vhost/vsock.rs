//! virtio-vsock whose streams end in AF_VSOCK of the host's kernel (/dev/vhost-vsock).

use std::io;
use std::sync::Arc;

use super::back_end::{BackEnd, VhostError};
use super::ioctl::VhostFile;
use super::kernel_file::{KernelFile, Kind};
use super::queues::KernelQueues;
use crate::virtio::vsock::spec::{DEVICE_ID, F_SEQPACKET};
use crate::virtio::worker::{Pace, Worker};
use crate::virtio::{Activation, Doorbell, VirtioDevice, feature};

/// Where such devices are opened.
pub const PATH: &str = "/dev/vhost-vsock";

/// For the guest, of the guest; and events, of which there are none: a guest that is moved elsewhere would hear of that.
const QUEUE_SIZES: [u16; 3] = [128; 3];
const SERVED: usize = 2;

/// Streams of messages are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Seqpacket {
    /// Where the kernel has them.
    #[default]
    Auto,
    /// Or there is no device.
    On,
    /// They are not.
    Off,
}

/// The kernel's end of a guest's streams.
#[derive(Clone)]
pub struct VhostStreams {
    back_end: Arc<BackEnd>,
    guest_cid: u32,
    features: u64,
}

impl VhostStreams {
    /// Those of the guest `guest_cid` with the new vhost device `file`, which has the address to itself from now on.
    pub fn new(file: VhostFile, guest_cid: u32, seqpacket: Seqpacket) -> Result<Self, VhostError> {
        let features = file.features()?;
        if seqpacket == Seqpacket::On && features & F_SEQPACKET == 0 {
            return Err(VhostError::Lacks("SOCK_SEQPACKET (seqpacket=off)"));
        }
        match file.set_guest_cid(guest_cid) {
            Err(vhost::Error::IoctlError(error)) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                return Err(VhostError::CidTaken(guest_cid));
            }
            result => result?,
        }
        let kinds = if seqpacket == Seqpacket::Off { 0 } else { F_SEQPACKET };
        let back_end = BackEnd::new("vhost-vsock", Box::new(KernelFile { file, kind: Flowing }), features)?;
        Ok(Self { back_end, guest_cid, features: features & kinds })
    }
}

/// Streams flow while it runs.
struct Flowing;

impl Kind for Flowing {
    fn run(&self, file: &VhostFile, _rings: &[usize]) -> Result<(), vhost::Error> {
        file.set_running(true)
    }

    fn halt(&self, file: &VhostFile, _rings: &[usize]) -> Result<(), vhost::Error> {
        file.set_running(false)
    }
}

/// The device.
pub struct VhostVsock {
    streams: VhostStreams,
    config: [u8; 8],
    queues: KernelQueues,
}

impl VhostVsock {
    /// A device for `streams`. `observed`: somebody has to hear of what is written to guest memory.
    pub fn new(streams: VhostStreams, observed: bool, pace: &Pace) -> io::Result<Arc<Self>> {
        let back_end = Arc::clone(&streams.back_end);
        let queues = KernelQueues::new(back_end, QUEUE_SIZES.len(), SERVED, observed, pace)?;
        let config = u64::from(streams.guest_cid).to_le_bytes();
        Ok(Arc::new(Self { streams, config, queues }))
    }
}

impl VirtioDevice for VhostVsock {
    fn name(&self) -> &'static str {
        self.streams.back_end.name()
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.streams.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn doorbells(&self) -> &[Arc<Doorbell>] {
        self.queues.doorbells()
    }

    fn workers(&self) -> &[Worker] {
        self.queues.workers()
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&self, activation: Activation) {
        const OF_RINGS: u64 =
            feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX | F_SEQPACKET;
        let features = activation.features & OF_RINGS;
        self.queues.activate(activation, features);
    }

    fn reset(&self) {
        self.queues.reset();
    }

    fn pause(&self) {
        self.queues.pause();
    }

    fn resume(&self) {
        self.queues.resume();
    }
}
