//! The receive queue as the network's sink (Virtio 1.3, 5.1.6.4).

use std::collections::VecDeque;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use crate::net::{FrameInfo, FrameSink, Offloads, vnet_header};
use crate::virtio::ActiveQueue;
use crate::virtio::queue::{Chain, RingError, total};

pub(super) struct ReceiveQueue<'a> {
    pub(super) queue: &'a mut ActiveQueue,
    /// Buffers that have been taken from the queue and not filled.
    pub(super) waiting: &'a mut VecDeque<Chain>,
    pub(super) mergeable: bool,
    pub(super) offloads: Offloads,
    /// A frame did not fit.
    pub(super) is_full: bool,
    /// What the driver did wrong.
    pub(super) error: Option<RingError>,
}

impl FrameSink for ReceiveQueue<'_> {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn push(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> bool {
        if self.error.is_some() {
            return true;
        }
        match self.place(info, pieces) {
            Ok(taken) => {
                self.is_full |= !taken;
                taken
            }
            Err(error) => {
                self.error = Some(error);
                true
            }
        }
    }
}

impl ReceiveQueue<'_> {
    /// Fills buffers with a frame; false if there are too few.
    fn place(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> Result<bool, RingError> {
        let length = vnet_header::BYTES + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let (mut count, mut room) = (0, 0);
        while room < length as u64 {
            if count == self.waiting.len() {
                if count == usize::from(self.queue.size()) {
                    // All of them together are too small.
                    return Ok(true);
                }
                let Some(chain) = self.queue.pop()? else { return Ok(false) };
                if total(&chain.writable) < vnet_header::BYTES as u64 {
                    return Err(self.queue.bad_buffers(&chain, "have no room for a header"));
                }
                self.waiting.push_back(chain);
            }
            room += total(&self.waiting[count].writable);
            count += 1;
            if !self.mergeable && room < length as u64 {
                // A frame that does not fit the driver's buffers is dropped.
                return Ok(true);
            }
        }
        let head = vnet_header::encode(info, count as u16);
        let chains: Vec<Chain> = self.waiting.drain(..count).collect();
        let contents = std::iter::once(&head[..]).chain(pieces.iter().copied());
        let Some(filled) = self.queue.access(|memory| fill(memory, &chains, contents)) else {
            return Ok(true);
        };
        match filled {
            Some(written) => self.queue.finish_together(&chains, &written)?,
            None => return Err(self.queue.bad_buffers(&chains[0], "are not in memory")),
        }
        Ok(true)
    }
}

/// Copies `contents` into the chains, one after the other; how much each got. `None`: they are not in memory.
fn fill<'a>(
    memory: &GuestMemoryMmap,
    chains: &[Chain],
    contents: impl Iterator<Item = &'a [u8]>,
) -> Option<Vec<u32>> {
    let mut written = vec![0; chains.len()];
    let places = chains.iter().enumerate();
    let mut places =
        places.flat_map(|(index, chain)| chain.writable.iter().map(move |segment| (index, segment)));
    let mut place: Option<(usize, VolatileSlice)> = None;
    for mut piece in contents {
        while !piece.is_empty() {
            let (index, slice) = match place.take() {
                Some(place) => place,
                None => {
                    let (index, segment) = places.next()?;
                    (index, segment.slice(memory)?)
                }
            };
            let count = piece.len().min(slice.len());
            slice.copy_from(&piece[..count]);
            written[index] += count as u32;
            piece = &piece[count..];
            if count < slice.len() {
                place = Some((index, slice.offset(count).ok()?));
            }
        }
    }
    Some(written)
}
