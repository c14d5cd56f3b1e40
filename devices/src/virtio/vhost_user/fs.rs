//! virtio-fs: a folder of the host's that virtiofsd serves (Virtio 1.2, *File System Device*).

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::back_end::RingPlace;
use super::{BackEnd, BackEndError};
use crate::virtio::vhost::relay::{Relay, RingUser, Wires};
use crate::virtio::vhost::shadow::{SIZE, ShadowMemory, ShadowRing};
use crate::virtio::worker::{Pace, Worker};
use crate::virtio::{Activation, Doorbell, VirtioDevice};

const DEVICE_ID: u32 = 26;
/// Bytes of a name, padded with zeros.
pub const TAG_BYTES: usize = 36;
const CONFIG_BYTES: usize = TAG_BYTES + 4;
/// Sizes of queues: powers of two.
pub const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 2..=SIZE;
/// Queues for requests at most.
pub const MAX_REQUEST_QUEUES: u16 = 64;

/// What a device shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsOptions {
    /// The name that guests mount it by, of [`TAG_BYTES`] at most.
    pub tag: String,
    /// Descriptors of each queue, one of [`QUEUE_SIZES`].
    pub queue_size: u16,
    /// Queues for requests, 1 to [`MAX_REQUEST_QUEUES`].
    pub num_request_queues: u16,
}

impl FsOptions {
    /// Queues: the one for urgent requests comes first.
    pub fn queues(&self) -> usize {
        1 + usize::from(self.num_request_queues)
    }
}

/// The device.
pub struct VhostUserFs {
    back_end: Arc<BackEnd>,
    config: [u8; CONFIG_BYTES],
    sizes: Vec<u16>,
    workers: Vec<Worker>,
    doorbells: Vec<Arc<Doorbell>>,
    wires: Vec<Wires>,
    shadow: ShadowMemory,
}

impl VhostUserFs {
    /// A device that `back_end` works for, which knows guest memory.
    pub fn new(back_end: Arc<BackEnd>, options: &FsOptions, pace: &Pace) -> std::io::Result<Arc<Self>> {
        let mut config = [0; CONFIG_BYTES];
        let tag = options.tag.as_bytes();
        config[..tag.len()].copy_from_slice(tag);
        config[TAG_BYTES..].copy_from_slice(&u32::from(options.num_request_queues).to_le_bytes());
        let wires = (0..options.queues()).map(|_| Wires::new()).collect::<std::io::Result<Vec<_>>>()?;
        let worker = |wires: &Wires| Worker::watching("vhost-user-fs", pace, wires.call.as_raw_fd());
        let workers = wires.iter().map(worker).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Arc::new(Self {
            back_end,
            config,
            sizes: vec![options.queue_size; options.queues()],
            doorbells: workers.iter().map(|worker| Arc::clone(worker.doorbell())).collect(),
            workers,
            wires,
            shadow: ShadowMemory::new(options.queues())?,
        }))
    }

    fn begin(&self, activation: Activation) -> Result<(), BackEndError> {
        let used = activation.queues.into_iter().enumerate();
        let used: Vec<_> = used.filter_map(|(index, queue)| Some((index, queue?))).collect();
        let rings: Vec<_> = used.iter().map(|(index, _)| self.shadow.ring(*index)).collect();
        let place = |(&(index, _), ring): (&(usize, _), &ShadowRing)| {
            let Wires { kick, call } = &self.wires[index];
            RingPlace { index, size: SIZE, addresses: ring.addresses(), kick, call }
        };
        let places: Vec<_> = used.iter().zip(&rings).map(place).collect();
        self.back_end.start(&self.shadow, &places, (activation.session, activation.interrupt))?;
        for ((index, queue), ring) in used.into_iter().zip(rings) {
            let user = Arc::clone(&self.back_end) as Arc<dyn RingUser>;
            self.workers[index].start(Box::new(Relay::new(queue, ring, user, self.wires[index].clone())));
        }
        Ok(())
    }
}

impl VirtioDevice for VhostUserFs {
    fn name(&self) -> &'static str {
        "vhost-user-fs"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn doorbells(&self) -> &[Arc<Doorbell>] {
        &self.doorbells
    }

    fn workers(&self) -> &[Worker] {
        &self.workers
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&self, activation: Activation) {
        let interrupt = Arc::clone(&activation.interrupt);
        match self.begin(activation) {
            Ok(()) => {}
            // That was said.
            Err(BackEndError::Gone) => interrupt.needs_reset(),
            Err(error) => {
                self.back_end.give_up(&format!("does not begin: {error}"));
                interrupt.needs_reset();
            }
        }
    }

    /// Waits for the back end, which waits for nobody here.
    fn reset(&self) {
        self.workers.iter().for_each(Worker::stop);
        self.back_end.stop();
    }
}
