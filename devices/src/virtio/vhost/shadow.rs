//! Rings that a back end works on in place of the guest's (Virtio 1.2, *Split Virtqueues*), and the memory that they are in: it may
//! be another process, or the kernel.
//!
//! The back end may write there what it likes: nothing that is read from it is relied on.

use std::fs::File;
use std::io;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::MemfdFlags;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

use crate::virtio::queue::{Chain, Segment, total};

/// Descriptors of a ring: the most that back ends take.
pub(in crate::virtio) const SIZE: u16 = 1024;

/// Where the rings are for a back end: far from any guest's memory.
const BASE: u64 = 1 << 50;
/// The parts of a ring, and the bytes of one: descriptors of 16 bytes, then 2 and 8 bytes each and the indices.
const AVAILABLE: u64 = SIZE as u64 * 16;
const USED: u64 = AVAILABLE + 4096;
const STRIDE: u64 = USED + 12288;

/// Where flags, index and elements are in an available or a used ring.
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;

/// What a back end did wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(in crate::virtio) enum Broken {
    /// It has used more than it was given.
    #[error("has used more buffers than there were")]
    Index,
    /// What it has used it was not given.
    #[error("has used a buffer that it was not given")]
    Element,
}

/// The memory of a device's rings, all zero.
pub(in crate::virtio) struct ShadowMemory(GuestMemoryMmap);

impl ShadowMemory {
    pub(in crate::virtio) fn new(rings: usize) -> io::Result<Self> {
        let bytes = usize::try_from(STRIDE).expect("a 64-bit host") * rings.max(1);
        let file = File::from(rustix::fs::memfd_create("vhost-rings", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes as u64)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), bytes).map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(BASE)).expect("far below the end");
        Ok(Self(GuestMemoryMmap::from_regions(vec![region]).map_err(io::Error::other)?))
    }

    pub(in crate::virtio) fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }

    /// All zero again.
    pub(in crate::virtio) fn clear(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for region in self.0.iter() {
            for at in (0..region.len()).step_by(ZEROS.len()) {
                region.write_slice(&ZEROS, MemoryRegionAddress(at)).expect(INSIDE);
            }
        }
    }

    /// Ring number `slot`.
    pub(in crate::virtio) fn ring(&self, slot: usize) -> ShadowRing {
        ShadowRing {
            memory: self.0.clone(),
            base: BASE + slot as u64 * STRIDE,
            free: (0..SIZE).rev().collect(),
            next_available: 0,
            next_used: 0,
            in_flight: (0..SIZE).map(|_| None).collect(),
        }
    }
}

/// A chain that the back end has, and the descriptors that say where it is, from its head on.
struct InFlight {
    chain: Chain,
    descriptors: Vec<u16>,
}

/// One ring, the driver's side of it.
pub(in crate::virtio) struct ShadowRing {
    memory: GuestMemoryMmap,
    base: u64,
    free: Vec<u16>,
    next_available: u16,
    next_used: u16,
    /// By the first descriptor.
    in_flight: Vec<Option<InFlight>>,
}

const INSIDE: &str = "rings lie within their memory";

/// The buffers of a chain; those without bytes are not worth a descriptor, and some back ends take them amiss.
fn buffers(chain: &Chain) -> impl Iterator<Item = (&Segment, u32)> {
    let readable = chain.readable.iter().map(|segment| (segment, 0));
    let writable = chain.writable.iter().map(|segment| (segment, VRING_DESC_F_WRITE));
    readable.chain(writable).filter(|(segment, _)| segment.len > 0)
}

/// Descriptors that `chain` takes.
pub(in crate::virtio) fn descriptors(chain: &Chain) -> usize {
    buffers(chain).count()
}

impl ShadowRing {
    /// The host's addresses of descriptors, available ring and used ring.
    pub(in crate::virtio) fn addresses(&self) -> [u64; 3] {
        [0, AVAILABLE, USED].map(|part| {
            let region = self.memory.find_region(GuestAddress(self.base)).expect(INSIDE);
            let host = region.get_host_address(MemoryRegionAddress(self.base - BASE + part)).expect(INSIDE);
            host as u64
        })
    }

    /// Where descriptors, available ring and used ring are in their memory.
    pub(in crate::virtio) fn places(&self) -> [GuestAddress; 3] {
        [0, AVAILABLE, USED].map(|part| GuestAddress(self.base + part))
    }

    /// Whether a chain that takes `count` descriptors can be pushed.
    pub(in crate::virtio) fn has_room(&self, count: usize) -> bool {
        count <= self.free.len()
    }

    fn write<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(self.base + at)).expect(INSIDE);
    }

    /// Makes `chain` available, which has bytes and for which there is room.
    pub(in crate::virtio) fn push(&mut self, chain: Chain) {
        let count = descriptors(&chain);
        let taken = self.free.split_off(self.free.len() - count);
        for (place, (segment, flags)) in buffers(&chain).enumerate() {
            let next = taken.get(place + 1).copied();
            let flags = flags | if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
            let at = u64::from(taken[place]) * 16;
            self.write(at, segment.address.0.to_le());
            self.write(at + 8, segment.len.to_le());
            self.write(at + 12, (flags as u16).to_le());
            self.write(at + 14, next.unwrap_or(0).to_le());
        }
        let head = taken[0];
        let slot = u64::from(self.next_available % SIZE);
        self.write(AVAILABLE + ELEMENTS + slot * 2, head.to_le());
        self.next_available = self.next_available.wrapping_add(1);
        self.in_flight[usize::from(head)] = Some(InFlight { chain, descriptors: taken });
        let index = GuestAddress(self.base + AVAILABLE + INDEX);
        self.memory.store(self.next_available.to_le(), index, Ordering::Release).expect(INSIDE);
    }

    /// Whether the back end wants to be kicked for what was pushed.
    pub(in crate::virtio) fn wants_kick(&self) -> bool {
        // What it says of that is read after the index was written, as it reads the index after it said so.
        fence(Ordering::SeqCst);
        let flags: u16 = self.load(USED + FLAGS);
        u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
    }

    fn load(&self, at: u64) -> u16 {
        let value: u16 = self.memory.load(GuestAddress(self.base + at), Ordering::Acquire).expect(INSIDE);
        u16::from_le(value)
    }

    /// The chains that were used since, and the bytes that were written to each: not more than it has room for.
    pub(in crate::virtio) fn pop(&mut self) -> Result<Vec<(Chain, u32)>, Broken> {
        let waiting = self.load(USED + INDEX).wrapping_sub(self.next_used);
        if waiting > SIZE {
            return Err(Broken::Index);
        }
        (0..waiting).map(|_| self.pop_one()).collect()
    }

    fn pop_one(&mut self) -> Result<(Chain, u32), Broken> {
        let slot = self.base + USED + ELEMENTS + u64::from(self.next_used % SIZE) * 8;
        let element: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).expect(INSIDE);
        let [head, written] = element.map(u32::from_le);
        let in_flight = usize::try_from(head).ok().and_then(|head| self.in_flight.get_mut(head));
        let Some(InFlight { chain, descriptors }) = in_flight.and_then(Option::take) else {
            return Err(Broken::Element);
        };
        self.next_used = self.next_used.wrapping_add(1);
        self.free.extend(descriptors);
        let room = u32::try_from(total(&chain.writable)).unwrap_or(u32::MAX);
        Ok((chain, written.min(room)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(segments: usize) -> Chain {
        let segment = Segment { address: GuestAddress(0), len: 1 };
        Chain::for_tests(0, vec![segment; segments - 1], vec![segment])
    }

    #[test]
    fn a_ring_has_room_again_when_buffers_were_used() {
        let memory = ShadowMemory::new(2).unwrap();
        let mut ring = memory.ring(1);
        let used = ring.places()[2];
        let give = |n: u16, head: u16, index: u16| {
            let slot = GuestAddress(used.0 + 4 + u64::from(n % SIZE) * 8);
            memory.memory().write_obj([u32::from(head), 99u32], slot).unwrap();
            memory.memory().write_obj(index, GuestAddress(used.0 + 2)).unwrap();
        };
        let mut n = 0u16;
        for _ in 0..3 {
            let mut heads = Vec::new();
            while ring.has_room(7) {
                ring.push(chain(7));
                let [_, available, _] = ring.places();
                let slot = n.wrapping_add(heads.len() as u16) % SIZE;
                let slot = GuestAddress(available.0 + 4 + u64::from(slot) * 2);
                heads.push(memory.memory().read_obj::<u16>(slot).unwrap());
            }
            assert_eq!(heads.len(), usize::from(SIZE) / 7);
            for head in heads.into_iter().rev() {
                assert!(ring.pop().unwrap().is_empty());
                give(n, head, n.wrapping_add(1));
                n = n.wrapping_add(1);
                // It says that it wrote more than there was room for.
                assert_eq!(ring.pop().unwrap()[0].1, 1);
            }
        }
        // What it does not have it cannot give back.
        give(n, 5, n.wrapping_add(1));
        assert_eq!(ring.pop().map(drop).unwrap_err(), Broken::Element);
        give(n, 5, n.wrapping_add(SIZE + 1));
        assert_eq!(ring.pop().map(drop).unwrap_err(), Broken::Index);
    }

    /// A frame in several buffers is one thing.
    #[test]
    fn what_was_used_at_once_comes_at_once() {
        let memory = ShadowMemory::new(1).unwrap();
        let mut ring = memory.ring(0);
        let used = ring.places()[2];
        for _ in 0..3 {
            ring.push(chain(1));
        }
        let head = |place: usize| {
            let at = GuestAddress(ring.places()[1].0 + ELEMENTS + place as u64 * 2);
            u32::from(memory.memory().read_obj::<u16>(at).unwrap())
        };
        for place in 0..3 {
            let slot = GuestAddress(used.0 + ELEMENTS + place as u64 * 8);
            memory.memory().write_obj([head(place), 1u32], slot).unwrap();
        }
        memory.memory().write_obj(3u16, GuestAddress(used.0 + INDEX)).unwrap();
        assert_eq!(ring.pop().unwrap().len(), 3);
        assert!(ring.pop().unwrap().is_empty());
    }
}
