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
use self::spec::{config, feature, header, queue};
use super::queue::{Chain, RingError, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, ActiveQueue, Doorbell, VirtioDevice};
use crate::net::{Checksum, FrameInfo, MAX_FRAME_BYTES, NetBackend, Offloads};

const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Frames that go down before what came up is fetched.
const BATCH: usize = 64;

const LOCK: &str = "no user of the network panics";

/// A network that one card is on. Its lock is the card's.
pub type Network = Arc<Mutex<Box<dyn NetBackend>>>;

/// The device.
pub struct Net {
    network: Network,
    config: [u8; config::BYTES],
    worker: Worker,
    /// The same one for both queues.
    doorbells: [Arc<Doorbell>; 2],
}

impl Net {
    /// A card with the address `mac` on `network`.
    pub fn new(network: Network, mac: [u8; 6], pace: &Pace) -> io::Result<Arc<Self>> {
        let mut space = [0; config::BYTES];
        space[config::MAC..][..6].copy_from_slice(&mac);
        space[config::STATUS..][..2].copy_from_slice(&config::LINK_UP.to_le_bytes());
        space[config::MAX_VIRTQUEUE_PAIRS..][..2].copy_from_slice(&1u16.to_le_bytes());
        let worker = Worker::watching("virtio-net", pace, network.lock().expect(LOCK).wakeup_fd())?;
        let doorbells = [worker.doorbell(), worker.doorbell()].map(Arc::clone);
        Ok(Arc::new(Self { network, config: space, worker, doorbells }))
    }
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
                && let Some(chain) = self.transmit.pop()?
            {
                self.send(&chain)?;
                sent += 1;
            }
            let is_full = self.fetch()?;
            if sent == BATCH {
                continue;
            }
            let more_to_send = self.transmit.has_more()?;
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
        if length > header::BYTES {
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
                    let (head, frame) = self.frame[..length].split_at(header::BYTES);
                    self.network.lock().expect(LOCK).send(&info(head), frame);
                }
            }
        }
        self.transmit.finish(chain, 0)
    }

    /// Fetches what there is for the guest; whether it has no room for more.
    fn fetch(&mut self) -> Result<bool, RingError> {
        let mut sink = ReceiveQueue {
            queue: &mut self.receive,
            waiting: &mut self.waiting,
            mergeable: self.mergeable,
            offloads: self.offloads,
            is_full: false,
            error: None,
        };
        self.network.lock().expect(LOCK).receive(&mut sink);
        match sink.error {
            Some(error) => Err(error),
            None => Ok(sink.is_full),
        }
    }
}

/// What a driver's header says.
fn info(head: &[u8]) -> FrameInfo {
    let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let partial = Checksum::Partial { start: word(header::CSUM_START), offset: word(header::CSUM_OFFSET) };
    let is_partial = head[header::FLAGS] & header::F_NEEDS_CSUM != 0;
    let is_large = head[header::GSO_TYPE] != header::GSO_NONE;
    FrameInfo {
        checksum: if is_partial { partial } else { Checksum::Complete },
        segment_bytes: is_large.then(|| word(header::GSO_SIZE)),
        header_bytes: word(header::HDR_LEN),
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
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::HOST_TSO4
            | feature::MRG_RXBUF
            | feature::STATUS
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
        let has = |feature| activation.features & feature != 0;
        let offloads = Offloads {
            checksum: has(feature::GUEST_CSUM),
            // Without mergeable buffers a driver would need 64 KiB for each frame.
            tcp4_segments: has(feature::GUEST_CSUM) && has(feature::GUEST_TSO4) && has(feature::MRG_RXBUF),
        };
        self.worker.start(Box::new(Traffic {
            network: Arc::clone(&self.network),
            receive,
            transmit,
            waiting: VecDeque::new(),
            mergeable: has(feature::MRG_RXBUF),
            offloads,
            frame: vec![0; header::BYTES + MAX_FRAME_BYTES].into_boxed_slice(),
        }));
    }
}

#[cfg(test)]
mod tests;
