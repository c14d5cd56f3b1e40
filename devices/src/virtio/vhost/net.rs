//! virtio-net on a tap interface, its frames moved by the kernel (/dev/vhost-net).

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use super::back_end::{BackEnd, VhostError};
use super::ioctl::VhostFile;
use super::kernel_file::{KernelFile, Kind};
use super::queues::KernelQueues;
use crate::net::tap::Tap;
use crate::net::{NetBackend, Offloads};
use crate::virtio::net::spec::{self, config, feature};
use crate::virtio::net::{QUEUE_SIZES, config_space, guest_offloads, offered};
use crate::virtio::worker::{Pace, Worker};
use crate::virtio::{Activation, Doorbell, VirtioDevice, feature as ring_feature};

/// Where such devices are opened.
pub const PATH: &str = "/dev/vhost-net";

/// `VHOST_NET_F_VIRTIO_NET_HDR`: the kernel makes the headers, which the interface has not.
const F_VIRTIO_NET_HDR: u64 = 1 << 27;

const LOCK: &str = "no holder of a tap's lock panics";

/// A tap interface, and the kernel that moves its frames.
#[derive(Clone)]
pub struct VhostTap {
    back_end: Arc<BackEnd>,
    tap: Arc<Mutex<Tap>>,
}

impl VhostTap {
    /// `tap` with the new vhost device `file`.
    pub fn new(file: VhostFile, tap: Tap) -> Result<Self, VhostError> {
        let features = file.features()?;
        if features & feature::MRG_RXBUF == 0 {
            return Err(VhostError::Lacks("mergeable receive buffers"));
        }
        let device = KernelFile { file, kind: Moving(tap.duplicate()?) };
        let back_end = BackEnd::new("virtio-net", Box::new(device), features)?;
        Ok(Self { back_end, tap: Arc::new(Mutex::new(tap)) })
    }
}

/// Its frames are moved while it has the interface.
struct Moving(File);

impl Kind for Moving {
    fn run(&self, file: &VhostFile, rings: &[usize]) -> Result<(), vhost::Error> {
        rings.iter().try_for_each(|ring| file.set_tap(*ring, Some(&self.0)))
    }

    fn halt(&self, file: &VhostFile, rings: &[usize]) -> Result<(), vhost::Error> {
        rings.iter().try_for_each(|ring| file.set_tap(*ring, None))
    }
}

/// The card.
pub struct VhostNet {
    network: VhostTap,
    /// What the interface does for the guest.
    offloads: Offloads,
    config: [u8; config::BYTES],
    queues: KernelQueues,
}

impl VhostNet {
    /// A card with the address `mac` on `network`. `observed`: somebody has to hear of what is written to guest memory.
    pub fn new(network: VhostTap, mac: [u8; 6], observed: bool, pace: &Pace) -> io::Result<Arc<Self>> {
        let count = QUEUE_SIZES.len();
        let queues = KernelQueues::new(Arc::clone(&network.back_end), count, count, observed, pace)?;
        let offloads = network.tap.lock().expect(LOCK).offloads();
        Ok(Arc::new(Self { network, offloads, config: config_space(mac), queues }))
    }
}

impl VirtioDevice for VhostNet {
    fn name(&self) -> &'static str {
        self.network.back_end.name()
    }

    fn device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn features(&self) -> u64 {
        offered(self.offloads)
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
        const OF_RINGS: u64 = ring_feature::VERSION_1
            | ring_feature::RING_INDIRECT_DESC
            | ring_feature::RING_EVENT_IDX
            | feature::MRG_RXBUF;
        self.network.tap.lock().expect(LOCK).tell(guest_offloads(activation.features));
        let headers = if self.offloads == Offloads::default() { F_VIRTIO_NET_HDR } else { 0 };
        let features = activation.features & OF_RINGS | headers;
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
