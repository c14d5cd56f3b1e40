//! virtio-net: a network card (Virtio 1.3, 5.1).
//!
//! One thread works on both queues and the network behind them: it wakes for the driver's notifications and for the network,
//! sends a batch down, and fetches what there is up. So the network needs no lock, but one for the time of a reset, when
//! the thread may still be at work for the driver before.

mod receive;
pub mod spec;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use self::receive::ReceiveQueue;
use self::spec::{config, feature, queue};
use super::queue::{Chain, RingError, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, ActiveQueue, Doorbell, VirtioDevice};
use crate::net::{MAX_FRAME_BYTES, NetBackend, Offloads, vnet_header};

pub(super) const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Frames that go down before what came up is fetched.
const BATCH: usize = 64;

const LOCK: &str = "no user of the network panics";

/// A network that one card is on. Its lock is the card's.
pub type Network = Arc<Mutex<Box<dyn NetBackend>>>;

/// The device.
pub struct Net {
    network: Network,
    /// What the network does for the guest.
    offloads: Offloads,
    config: [u8; config::BYTES],
    worker: Worker,
    /// The same one for both queues.
    doorbells: [Arc<Doorbell>; 2],
}

impl Net {
    /// A card with the address `mac` on `network`.
    pub fn new(network: Network, mac: [u8; 6], pace: &Pace) -> io::Result<Arc<Self>> {
        let (wakeup, offloads) = {
            let network = network.lock().expect(LOCK);
            (network.wakeup_fd(), network.offloads())
        };
        let worker = Worker::watching("virtio-net", pace, wakeup)?;
        let doorbells = [worker.doorbell(), worker.doorbell()].map(Arc::clone);
        Ok(Arc::new(Self { network, offloads, config: config_space(mac), worker, doorbells }))
    }
}

/// The configuration space of a card with the address `mac`.
pub(super) fn config_space(mac: [u8; 6]) -> [u8; config::BYTES] {
    let mut space = [0; config::BYTES];
    space[config::MAC..][..6].copy_from_slice(&mac);
    space[config::STATUS..][..2].copy_from_slice(&config::LINK_UP.to_le_bytes());
    space[config::MAX_VIRTQUEUE_PAIRS..][..2].copy_from_slice(&1u16.to_le_bytes());
    space
}

/// What a card on a network that does `can` offers.
pub(super) fn offered(can: Offloads) -> u64 {
    let with = |is_set: bool, features: u64| if is_set { features } else { 0 };
    feature::MAC
        | feature::MRG_RXBUF
        | feature::STATUS
        | with(can.checksum, feature::CSUM | feature::GUEST_CSUM)
        | with(can.tcp4_segments, feature::GUEST_TSO4 | feature::HOST_TSO4)
        | with(can.tcp6_segments, feature::GUEST_TSO6 | feature::HOST_TSO6)
}

/// What a driver that has agreed to `features` does itself.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    let has = |feature| features & feature != 0;
    // Without mergeable buffers a driver would need 64 KiB for each frame.
    let takes_large = |kind| has(feature::GUEST_CSUM) && has(kind) && has(feature::MRG_RXBUF);
    Offloads {
        checksum: has(feature::GUEST_CSUM),
        tcp4_segments: takes_large(feature::GUEST_TSO4),
        tcp6_segments: takes_large(feature::GUEST_TSO6),
    }
}

/// What [`Traffic::fetch`] found.
struct Fetched {
    /// The guest has no room for what there is.
    is_full: bool,
    /// There is more, and room.
    more: bool,
}

/// The two queues, and the network.
struct Traffic {
    network: Network,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// Receive buffers that have been taken and not filled.
    waiting: VecDeque<Chain>,
    mergeable: bool,
    offloads: Offloads,
    /// A header and a frame of the driver's.
    frame: Box<[u8]>,
}

impl QueueWork for Traffic {
    fn notified(&mut self) {
        if let Err(error) = self.work() {
            // Rings that make no sense are the driver's, not one queue's.
            self.receive.fail(&error);
            self.transmit.fail(&error);
        }
    }
}

impl Traffic {
    fn work(&mut self) -> Result<(), RingError> {
        loop {
            let mut sent = 0;
            while sent < BATCH
                && self.is_ready()
                && let Some(chain) = self.transmit.pop()?
            {
                self.send(&chain)?;
                sent += 1;
            }
            let Fetched { is_full, more } = self.fetch()?;
            if sent == BATCH || more {
                continue;
            }
            // A network that takes nothing wakes us when it does again.
            let more_to_send = self.is_ready() && self.transmit.has_more()?;
            let more_room = is_full && self.receive.has_more()?;
            if !more_to_send && !more_room {
                return Ok(());
            }
        }
    }

    fn send(&mut self, chain: &Chain) -> Result<(), RingError> {
        let length = total(&chain.readable);
        // A frame that is none is dropped.
        let length = usize::try_from(length).ok().filter(|length| *length <= self.frame.len()).unwrap_or(0);
        if length > vnet_header::BYTES {
            let frame = &mut self.frame[..length];
            let copied = self.transmit.access(|memory| {
                let mut at = 0;
                chain.readable.iter().all(|segment| {
                    let Some(slice) = segment.slice(memory) else { return false };
                    at += slice.copy_to(&mut frame[at..]);
                    true
                })
            });
            match copied {
                None => return Ok(()),
                Some(false) => return Err(self.transmit.bad_buffers(chain, "are not in memory")),
                Some(true) => {
                    let header = self.frame[..length].split_first_chunk();
                    // One with a kind of segmentation that was not offered is dropped, too.
                    if let Some((header, frame)) = header
                        && let Some(info) = vnet_header::decode(header)
                    {
                        self.network.lock().expect(LOCK).send(&info, frame);
                    }
                }
            }
        }
        self.transmit.finish(chain, 0)
    }

    fn is_ready(&self) -> bool {
        self.network.lock().expect(LOCK).is_ready()
    }

    /// Fetches what there is for the guest.
    fn fetch(&mut self) -> Result<Fetched, RingError> {
        let mut sink = ReceiveQueue {
            queue: &mut self.receive,
            waiting: &mut self.waiting,
            mergeable: self.mergeable,
            offloads: self.offloads,
            is_full: false,
            error: None,
        };
        let more = self.network.lock().expect(LOCK).receive(&mut sink);
        match sink.error {
            Some(error) => Err(error),
            None => Ok(Fetched { is_full: sink.is_full, more }),
        }
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &'static str {
        "virtio-net"
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
        &self.doorbells
    }

    fn workers(&self) -> &[Worker] {
        std::slice::from_ref(&self.worker)
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&self, activation: Activation) {
        let mut queues = activation.queues;
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let (Some(receive), Some(transmit)) = (take(queue::RECEIVE), take(queue::TRANSMIT)) else { return };
        self.worker.start(Box::new(Traffic {
            network: Arc::clone(&self.network),
            receive,
            transmit,
            waiting: VecDeque::new(),
            mergeable: activation.features & feature::MRG_RXBUF != 0,
            offloads: guest_offloads(activation.features),
            frame: vec![0; vnet_header::BYTES + MAX_FRAME_BYTES].into_boxed_slice(),
        }));
    }
}

#[cfg(test)]
mod tests;
