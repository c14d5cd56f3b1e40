//! virtio-vsock: streams between programs of the guest and of the host (Virtio 1.2, *Socket Device*).
//!
//! One thread works on both queues and the host's sockets behind them, as a network card's does: it wakes for the driver's
//! notifications and for the sockets.

mod connection;
mod mux;
mod socket;
pub(super) mod spec;

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use self::mux::Mux;
use self::spec::{F_STREAM, Header, queue};
use super::queue::{Chain, RingError, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, ActiveQueue, Doorbell, VirtioDevice};

pub use socket::{HostSocket, SocketError};

/// For the guest, of the guest, and events, of which there are none.
const QUEUE_SIZES: [u16; 3] = [256; 3];
/// Bytes of one packet at most.
const MAX_PAYLOAD: usize = 64 << 10;
/// Packets of the guest's that are taken before those for it are brought.
const BATCH: usize = 64;

const LOCK: &str = "no user of the streams panics";

/// The device.
pub struct Vsock {
    mux: Arc<Mutex<Mux>>,
    config: [u8; 8],
    worker: Worker,
    /// The same one for all queues.
    doorbells: [Arc<Doorbell>; 3],
}

impl Vsock {
    /// A device of the guest that is `guest_cid` (3 or more, below 2^32 - 1), reached through `socket`, which has been made.
    pub fn new(guest_cid: u32, socket: Arc<HostSocket>, pace: &Pace) -> io::Result<Arc<Self>> {
        crate::descriptors::raise_limit();
        let mux = Mux::new(guest_cid.into(), socket)?;
        let worker = Worker::watching("virtio-vsock", pace, mux.fd())?;
        let doorbells = [worker.doorbell(), worker.doorbell(), worker.doorbell()].map(Arc::clone);
        let config = u64::from(guest_cid).to_le_bytes();
        Ok(Arc::new(Self { mux: Arc::new(Mutex::new(mux)), config, worker, doorbells }))
    }
}

/// The two queues, and the streams.
struct Traffic {
    mux: Arc<Mutex<Mux>>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// A buffer for the guest that has been taken and not filled.
    waiting: Option<Chain>,
    payload: Vec<u8>,
}

impl QueueWork for Traffic {
    fn notified(&mut self) {
        let mux = Arc::clone(&self.mux);
        let mut mux = mux.lock().expect(LOCK);
        if let Err(error) = self.work(&mut mux) {
            // Rings that make no sense are the driver's, not one queue's.
            self.receive.fail(&error);
            self.transmit.fail(&error);
            mux.reset();
        }
    }
}

/// The guest's streams end with the driver that had them.
impl Drop for Traffic {
    fn drop(&mut self) {
        if let Ok(mut mux) = self.mux.lock() {
            mux.reset();
        }
    }
}

impl Traffic {
    fn work(&mut self, mux: &mut Mux) -> Result<(), RingError> {
        loop {
            mux.poll();
            let mut taken = 0;
            while taken < BATCH
                && mux.has_room()
                && let Some(chain) = self.transmit.pop()?
            {
                self.take(mux, &chain)?;
                taken += 1;
            }
            let is_full = self.bring(mux)?;
            if taken == BATCH {
                continue;
            }
            let more_to_take = mux.has_room() && self.transmit.has_more()?;
            let more_room = is_full && self.receive.has_more()?;
            if !more_to_take && !more_room {
                return Ok(());
            }
        }
    }

    /// A packet of the guest's.
    fn take(&mut self, mux: &mut Mux, chain: &Chain) -> Result<(), RingError> {
        let mut head = [0; Header::BYTES];
        if total(&chain.readable) < Header::BYTES as u64 {
            return Err(self.transmit.bad_buffers(chain, "have no room for a header"));
        }
        let payload = &mut self.payload;
        let read = self.transmit.access(|memory| gather(memory, chain, &mut head, payload));
        match read {
            None => return Ok(()),
            Some(None) => return Err(self.transmit.bad_buffers(chain, "are not in memory")),
            Some(Some(is_whole)) => {
                mux.receive(&Header::read(&head), is_whole.then_some(&self.payload[..]));
            }
        }
        self.transmit.finish(chain, 0)
    }

    /// Brings the guest what there is for it; whether it has no room for more.
    fn bring(&mut self, mux: &mut Mux) -> Result<bool, RingError> {
        while mux.has_packets() {
            let chain = match self.waiting.take() {
                Some(chain) => chain,
                None => match self.receive.pop()? {
                    Some(chain) => chain,
                    None => return Ok(true),
                },
            };
            let room = usize::try_from(total(&chain.writable)).unwrap_or(usize::MAX);
            let Some(room) = room.checked_sub(Header::BYTES) else {
                return Err(self.receive.bad_buffers(&chain, "have no room for a header"));
            };
            let Some(header) = mux.next(room.min(MAX_PAYLOAD), &mut self.payload) else {
                self.waiting = Some(chain);
                continue;
            };
            let (head, payload) = (header.bytes(), &self.payload);
            match self.receive.access(|memory| scatter(memory, &chain, [&head, payload])) {
                None => return Ok(false),
                Some(false) => return Err(self.receive.bad_buffers(&chain, "are not in memory")),
                Some(true) => {}
            }
            let written = u32::try_from(head.len() + payload.len()).expect("64 KiB and a header");
            self.receive.finish(&chain, written)?;
        }
        Ok(false)
    }
}

/// Copies a packet. `None`: it is not in memory; false: it has less bytes than it says, or more than one may have.
fn gather(
    memory: &GuestMemoryMmap,
    chain: &Chain,
    head: &mut [u8; Header::BYTES],
    payload: &mut Vec<u8>,
) -> Option<bool> {
    payload.clear();
    let (mut filled, mut wanted) = (0, 0);
    for segment in &chain.readable {
        let mut slice = segment.slice(memory)?;
        if filled < head.len() {
            let count = slice.len().min(head.len() - filled);
            slice.subslice(0, count).ok()?.copy_to(&mut head[filled..]);
            slice = slice.offset(count).ok()?;
            filled += count;
            if filled < head.len() {
                continue;
            }
            wanted = Header::read(head).len as usize;
            if wanted > connection::BUFFER_BYTES as usize {
                return Some(false);
            }
        }
        let (start, count) = (payload.len(), slice.len().min(wanted - payload.len()));
        payload.resize(start + count, 0);
        slice.copy_to(&mut payload[start..]);
    }
    Some(payload.len() == wanted)
}

/// Fills a buffer for the guest, which has room. False: it is not in memory.
fn scatter(memory: &GuestMemoryMmap, chain: &Chain, pieces: [&[u8]; 2]) -> bool {
    let mut places = chain.writable.iter();
    let mut place: Option<VolatileSlice> = None;
    for mut piece in pieces {
        while !piece.is_empty() {
            let slice = match place.take() {
                Some(slice) => slice,
                None => match places.next().and_then(|segment| segment.slice(memory)) {
                    Some(slice) => slice,
                    None => return false,
                },
            };
            let count = piece.len().min(slice.len());
            slice.copy_from(&piece[..count]);
            piece = &piece[count..];
            place = slice.offset(count).ok().filter(|rest| !rest.is_empty());
        }
    }
    true
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "virtio-vsock"
    }

    fn device_id(&self) -> u32 {
        spec::DEVICE_ID
    }

    fn features(&self) -> u64 {
        F_STREAM
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
            mux: Arc::clone(&self.mux),
            receive,
            transmit,
            waiting: None,
            payload: Vec::new(),
        }));
    }

    fn reset(&self) {
        self.worker.stop();
        // The host's programs hear of it now, and not when the next driver comes.
        self.doorbells[0].ring();
    }
}

#[cfg(test)]
mod tests;
