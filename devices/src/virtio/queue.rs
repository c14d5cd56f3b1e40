//! A queue that its driver has made ready (Virtio 1.2, *Split Virtqueues*).

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::{Session, VirtioInterrupt};
use crate::dma::DmaMemory;

/// What a driver did wrong with its rings: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The rings are not in memory, or their indices make no sense.
    #[error("virtqueue {queue}")]
    Ring {
        /// Which queue.
        queue: u16,
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// A chain of descriptors has no end, or leads out of the table.
    #[error("virtqueue {queue}: the chain of descriptor {head} has no end")]
    Chain {
        /// Which queue.
        queue: u16,
        /// The first descriptor.
        head: u16,
    },
    /// The chain's buffers are not what the device can work with at all.
    #[error("virtqueue {queue}: the buffers of descriptor {head} {what}")]
    Buffers {
        /// Which queue.
        queue: u16,
        /// The first descriptor.
        head: u16,
        /// What they do not do.
        what: &'static str,
    },
}

/// A stretch of guest memory. It need not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
}

impl Segment {
    /// Its bytes; `None` where they are not all in RAM.
    pub fn slice<'a>(&self, memory: &'a GuestMemoryMmap) -> Option<VolatileSlice<'a>> {
        memory.get_slice(self.address, usize::try_from(self.len).ok()?).ok()
    }
}

/// Bytes of all segments.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Cuts `segments` after `at` bytes; the second part is empty if they have no more.
pub fn split(segments: &[Segment], at: u64) -> (Vec<Segment>, Vec<Segment>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut left = at;
    for &Segment { address, len } in segments {
        let here = u32::try_from(left.min(u64::from(len))).expect("not more than `len`");
        left -= u64::from(here);
        if here > 0 {
            first.push(Segment { address, len: here });
        }
        if here < len {
            second.push(Segment {
                address: GuestAddress(address.0.wrapping_add(here.into())),
                len: len - here,
            });
        }
    }
    (first, second)
}

/// Buffers that the driver has made available: first those that the device reads, then those that it writes.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// What the device reads.
    pub readable: Vec<Segment>,
    /// What the device writes.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Its first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// A chain of no ring.
    #[cfg(test)]
    pub fn for_tests(head: u16, readable: Vec<Segment>, writable: Vec<Segment>) -> Self {
        Self { head, readable, writable }
    }
}

/// A queue of an activated device. Owned by the thread that works on it.
pub struct ActiveQueue {
    index: u16,
    queue: Queue,
    dma: DmaMemory,
    session: Arc<Session>,
    interrupt: Arc<dyn VirtioInterrupt>,
    /// The driver's rings make no sense.
    broken: bool,
}

impl ActiveQueue {
    /// Queue number `index`, ready and validated.
    pub fn new(
        index: u16,
        queue: Queue,
        dma: DmaMemory,
        session: Arc<Session>,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Self {
        Self { index, queue, dma, session, interrupt, broken: false }
    }

    /// Its number among the device's queues.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its length in descriptors, as the driver chose it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Where descriptors, available ring and used ring are.
    pub fn places(&self) -> [GuestAddress; 3] {
        [self.queue.desc_table(), self.queue.avail_ring(), self.queue.used_ring()].map(GuestAddress)
    }

    /// Does `work` on guest memory, unless the device has been reset: `None` then. What is written must lie in the
    /// writable segments of a chain that is then given to [`ActiveQueue::finish`]. `work` waits for no CPU: see
    /// [`Session`].
    pub fn access<R>(&self, work: impl FnOnce(&GuestMemoryMmap) -> R) -> Option<R> {
        self.session.run(|| work(self.dma.memory()))
    }

    /// `len` bytes at `address` were changed otherwise than through a chain's writable segments. Called with no lock held,
    /// outside of [`ActiveQueue::access`].
    pub fn wrote(&self, address: GuestAddress, len: u64) {
        self.dma.written(address, len);
    }

    /// The next buffers that the driver has made available; `None`: there are none now, or the device has been reset.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        if self.broken {
            return Ok(None);
        }
        let (index, queue, memory) = (self.index, &mut self.queue, self.dma.memory());
        let popped = self.session.run(|| {
            let mut available =
                queue.iter(memory).map_err(|source| RingError::Ring { queue: index, source })?;
            let Some(chain) = available.next() else { return Ok(None) };
            let head = chain.head_index();
            let (mut readable, mut writable) = (Vec::new(), Vec::new());
            let mut ended = false;
            for descriptor in chain {
                let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
                ended = !descriptor.has_next();
                if descriptor.is_write_only() {
                    writable.push(segment);
                } else if writable.is_empty() {
                    readable.push(segment);
                } else {
                    return Err(RingError::Chain { queue: index, head });
                }
            }
            if ended {
                Ok(Some(Chain { head, readable, writable }))
            } else {
                Err(RingError::Chain { queue: index, head })
            }
        });
        popped.unwrap_or(Ok(None))
    }

    /// Gives a chain back, of whose writable segments the first `written` bytes are valid, and tells the driver if it wants
    /// to know. Called with no lock held.
    pub fn finish(&mut self, chain: &Chain, written: u32) -> Result<(), RingError> {
        for segment in &chain.writable {
            self.dma.written(segment.address, segment.len.into());
        }
        let (index, queue, memory) = (self.index, &mut self.queue, self.dma.memory());
        let error = |source| RingError::Ring { queue: index, source };
        let head = chain.head;
        if let Some(result) = self.session.run(|| queue.add_used(memory, head, written)) {
            result.map_err(error)?;
        }
        self.dma.written(GuestAddress(queue.used_ring()), 6 + 8 * u64::from(queue.size()));
        let told = self.session.run(|| {
            if queue.needs_notification(memory)? {
                self.interrupt.queue_used(index);
            }
            Ok(())
        });
        told.unwrap_or(Ok(())).map_err(error)
    }

    /// Gives chains back that hold one thing together, in their order, each with its valid bytes: the driver sees all of
    /// them or none. Called with no lock held.
    pub fn finish_together(&mut self, chains: &[Chain], written: &[u32]) -> Result<(), RingError> {
        let (Some((last, first)), Some(last_written)) = (chains.split_last(), written.last()) else {
            return Ok(());
        };
        if first.is_empty() {
            return self.finish(last, *last_written);
        }
        for segment in first.iter().flat_map(|chain| &chain.writable) {
            self.dma.written(segment.address, segment.len.into());
        }
        let (queue, memory) = (&mut self.queue, self.dma.memory());
        let (ring, size) = (queue.used_ring(), u64::from(queue.size()));
        let placed = self.session.run(|| {
            for (chain, written) in first.iter().zip(written) {
                // The queue's own index moves; the driver's stays until the last one is there.
                let slot = GuestAddress(ring + 4 + u64::from(queue.next_used()) % size * 8);
                let element = u64::from(chain.head) | u64::from(*written) << 32;
                memory.write_obj(element.to_le(), slot).map_err(virtio_queue::Error::GuestMemory)?;
                queue.set_next_used(queue.next_used().wrapping_add(1));
            }
            Ok(())
        });
        placed.unwrap_or(Ok(())).map_err(|source| RingError::Ring { queue: self.index, source })?;
        self.finish(last, *last_written)?;
        // Whether the driver wants to know was asked for the last one only.
        self.session.run(|| self.interrupt.queue_used(self.index));
        Ok(())
    }

    /// Whether there is more, after the driver was asked to notify of what comes next.
    pub fn has_more(&mut self) -> Result<bool, RingError> {
        if self.broken {
            return Ok(false);
        }
        let (queue, memory) = (&mut self.queue, self.dma.memory());
        let more = self.session.run(|| queue.enable_notification(memory)).unwrap_or(Ok(false));
        more.map_err(|source| RingError::Ring { queue: self.index, source })
    }

    /// The driver's rings make no sense: nothing is taken from them any more, and the driver is told.
    pub fn fail(&mut self, error: &RingError) {
        if !std::mem::replace(&mut self.broken, true) {
            tracing::warn!(target: "virtio", error = error as &dyn std::error::Error, "device needs a reset");
            self.session.run(|| self.interrupt.needs_reset());
        }
    }

    /// Has `each` work on the chains that are available, until there are no more, and asks to be notified of the next
    /// one. `each` gives its chain back.
    pub fn work(&mut self, mut each: impl FnMut(&mut Self, Chain) -> Result<(), RingError>) {
        let mut drain = || -> Result<(), RingError> {
            loop {
                while let Some(chain) = self.pop()? {
                    each(self, chain)?;
                }
                if !self.has_more()? {
                    return Ok(());
                }
            }
        };
        if let Err(error) = drain() {
            self.fail(&error);
        }
    }

    /// An error about the buffers of `chain`.
    pub fn bad_buffers(&self, chain: &Chain, what: &'static str) -> RingError {
        RingError::Buffers { queue: self.index, head: chain.head, what }
    }
}
