//! A split ring (Virtio 1.2, *Split Virtqueues*) that the host's side works on, which is of the same process: the other side's
//! addresses are its own.

use vm_memory::{Bytes, VolatileSlice};

use crate::input::Input;

/// Where the parts of a ring are in this process.
#[derive(Clone, Copy)]
pub struct Parts {
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
}

/// A ring that is started, and how far it is.
pub struct Ring {
    size: u16,
    parts: Parts,
    taken: u16,
    used: u16,
}

const INSIDE: &str = "within the ring";

impl Ring {
    /// One of `size` descriptors, from its beginning on.
    ///
    /// # Safety
    ///
    /// Its parts are there as long as it is, and both sides reach them with volatile accesses only.
    pub unsafe fn new(size: u16, parts: Parts) -> Self {
        Self { size, parts, taken: 0, used: 0 }
    }

    fn part(&self, at: u64, bytes: usize) -> VolatileSlice<'_> {
        // SAFETY: whoever made it says so.
        unsafe { VolatileSlice::new(at as *mut u8, bytes) }
    }

    /// The descriptors.
    pub fn descriptors(&self) -> VolatileSlice<'_> {
        self.part(self.parts.descriptors, usize::from(self.size) * 16)
    }

    /// The used ring, and the event index of the available one.
    pub fn used_ring(&self) -> VolatileSlice<'_> {
        self.part(self.parts.used, 6 + usize::from(self.size) * 8)
    }

    /// The available ring, and the event index of the used one.
    pub fn available(&self) -> VolatileSlice<'_> {
        self.part(self.parts.available, 6 + usize::from(self.size) * 2)
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Buffers that have been taken, modulo 2^16.
    pub fn taken(&self) -> u16 {
        self.taken
    }

    /// Buffers that have been given back, modulo 2^16.
    pub fn used(&self) -> u16 {
        self.used
    }

    /// It goes on after `taken` buffers, and with the used ring where it is.
    pub fn go_on(&mut self, taken: u16) {
        self.taken = taken;
        self.used = self.used_ring().read_obj(2).expect(INSIDE);
    }

    /// How many buffers wait; more than there are descriptors if the driver's index makes no sense.
    pub fn waiting(&self) -> u16 {
        let index: u16 = self.available().read_obj(2).expect(INSIDE);
        index.wrapping_sub(self.taken)
    }

    /// The first descriptor of the next buffer that waits. It may be any number.
    pub fn next(&self) -> u16 {
        let slot = 4 + usize::from(self.taken % self.size) * 2;
        self.available().read_obj(slot).expect(INSIDE)
    }

    /// The next one is taken.
    pub fn take(&mut self) {
        self.taken = self.taken.wrapping_add(1);
    }

    /// Gives the buffer of descriptor `head` back, with so many bytes.
    pub fn put_used(&mut self, head: u32, written: u32) {
        let slot = 4 + usize::from(self.used % self.size) * 8;
        self.used_ring().write_obj([head, written], slot).expect(INSIDE);
        self.used = self.used.wrapping_add(1);
        self.set_used_index(self.used);
    }

    fn set_used_index(&self, index: u16) {
        self.used_ring().write_obj(index, 2).expect(INSIDE);
    }

    /// The driver is to notify, or need not.
    pub fn set_used_flags(&self, flags: u16) {
        self.used_ring().write_obj(flags, 0).expect(INSIDE);
    }

    /// Uses up to `most` buffers that it was given, each with so many bytes, and looks at none.
    pub fn work(&mut self, most: u16, written: u32) {
        for _ in 0..most.min(self.waiting()) {
            let head = self.next();
            self.take();
            self.put_used(head.into(), written);
        }
    }

    /// Something that one who works on it does, and `what` says; whether no good one does.
    pub fn step(&mut self, what: u8, input: &mut Input) -> bool {
        match what & 7 {
            0..3 => self.work(u16::from(what >> 3), input.small()),
            3 => {
                let flags = input.u8() & 1;
                self.set_used_flags(flags.into());
            }
            // What is not its own to write, and nobody reads.
            4 => {
                let (at, value) = (usize::from(input.u16()), input.u64());
                let place = if what & 8 == 0 { self.descriptors() } else { self.available() };
                place.write_obj(value, at % (place.len() - 8)).expect(INSIDE);
                // It may mislead itself then.
                return true;
            }
            5 => {
                self.put_used(input.small(), input.u32());
                return true;
            }
            6 => {
                self.set_used_index(input.u16());
                return true;
            }
            _ => self.work(1, input.u32()),
        }
        false
    }
}
