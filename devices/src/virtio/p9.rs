//! virtio-9p: a shared folder (Linux, `include/uapi/linux/virtio_9p.h`; QEMU, `hw/9pfs`).
//!
//! A chain is a request and room for its answer. Both are copied, so that no guest memory is held while the host's file system
//! takes its time.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::queue::{ActiveQueue, Chain, RingError, Segment, total};
use super::worker::{Pace, QueueWork, Worker};
use super::{Activation, Doorbell, VirtioDevice};
use crate::p9::{ERROR_BYTES, HEADER_BYTES, MAX_MSIZE, Server, Share};

const DEVICE_ID: u32 = 9;
/// Linux has as many descriptors, whatever the queue's size.
const QUEUE_SIZES: [u16; 1] = [128];
/// `VIRTIO_9P_MOUNT_TAG`: the folder has a name.
const MOUNT_TAG: u64 = 1;
/// Bytes of the longest name, as QEMU has it.
pub const MAX_TAG_BYTES: usize = 32;

/// The device.
pub struct P9 {
    share: Arc<Share>,
    /// The name's length and the name.
    config: Vec<u8>,
    worker: Worker,
    doorbells: [Arc<Doorbell>; 1],
}

impl P9 {
    /// `share`, which guests mount by the name `tag` of [`MAX_TAG_BYTES`] at most.
    pub fn new(share: Arc<Share>, tag: &str, pace: &Pace) -> io::Result<Arc<Self>> {
        let len = u16::try_from(tag.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let config = [&len.to_le_bytes(), tag.as_bytes()].concat();
        let worker = Worker::new("virtio-9p", pace)?;
        let doorbells = [Arc::clone(worker.doorbell())];
        Ok(Arc::new(Self { share, config, worker, doorbells }))
    }
}

struct Requests {
    server: Server,
    queue: Option<ActiveQueue>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl QueueWork for Requests {
    fn notified(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        queue.work(|queue, chain| self.serve(queue, &chain));
        self.queue = Some(queue);
    }
}

impl Requests {
    fn serve(&mut self, queue: &mut ActiveQueue, chain: &Chain) -> Result<(), RingError> {
        let room = usize::try_from(total(&chain.writable)).unwrap_or(usize::MAX);
        if total(&chain.readable) < HEADER_BYTES as u64 || room < ERROR_BYTES {
            return Err(queue.bad_buffers(chain, "have no room for a message"));
        }
        let request = &mut self.request;
        match queue.access(|memory| gather(memory, &chain.readable, request)) {
            None => return Ok(()),
            Some(false) => return Err(queue.bad_buffers(chain, "are not in memory")),
            Some(true) => {}
        }
        self.server.answer(&self.request, &mut self.reply, room);
        let reply = &self.reply;
        match queue.access(|memory| scatter(memory, &chain.writable, reply)) {
            None => Ok(()),
            Some(false) => Err(queue.bad_buffers(chain, "are not in memory")),
            Some(true) => queue.finish(chain, u32::try_from(reply.len()).expect("not more than msize")),
        }
    }
}

/// Copies the message, which may be shorter than its buffers, or say so. False: it is not in memory.
fn gather(memory: &GuestMemoryMmap, segments: &[Segment], message: &mut Vec<u8>) -> bool {
    message.clear();
    // What is longer than any message can be is cut off, and refused for its length.
    let mut wanted = MAX_MSIZE as usize + 1;
    for segment in segments {
        let Some(slice) = segment.slice(memory) else { return false };
        let (start, count) = (message.len(), slice.len().min(wanted - message.len()));
        message.resize(start + count, 0);
        slice.copy_to(&mut message[start..]);
        if start < 4 && message.len() >= 4 {
            let size = u32::from_le_bytes(message[..4].try_into().expect("4 bytes")) as usize;
            wanted = wanted.min(size.max(HEADER_BYTES));
            message.truncate(wanted);
        }
        if message.len() >= wanted {
            break;
        }
    }
    true
}

/// Copies the answer into the buffers, which have room for it. False: they are not in memory.
fn scatter(memory: &GuestMemoryMmap, segments: &[Segment], reply: &[u8]) -> bool {
    let mut rest = reply;
    for segment in segments {
        if rest.is_empty() {
            break;
        }
        let Some(slice) = segment.slice(memory) else { return false };
        let (here, behind) = rest.split_at(rest.len().min(slice.len()));
        slice.copy_from(here);
        rest = behind;
    }
    true
}

impl VirtioDevice for P9 {
    fn name(&self) -> &'static str {
        "virtio-9p"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        MOUNT_TAG
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
        if let Some(queue) = activation.queues.into_iter().next().flatten() {
            self.worker.start(Box::new(Requests {
                server: Server::new(Arc::clone(&self.share)),
                queue: Some(queue),
                request: Vec::new(),
                reply: Vec::new(),
            }));
        }
    }
}

#[cfg(test)]
mod tests;
