//! The kernel's thread at a ring (Linux, `drivers/vhost/vhost.c`), an honest one: it takes what a guest says of its buffers for what
//! it is, and answers them with the bytes that they have.

use vm_memory::{Bytes, VolatileSlice};

use super::memory::Table;
use crate::rings::Ring;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Flags of the two rings.
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Features of the rings.
const EVENT_IDX: u64 = 1 << 29;

/// Bytes of an answer at most.
const MOST: usize = 64;

const INSIDE: &str = "within the ring";

/// What a guest's rings say makes no sense.
pub struct Fault;

/// Buffers, each in pieces.
#[derive(Default)]
struct Chain<'a> {
    readable: Vec<VolatileSlice<'a>>,
    writable: Vec<(u64, VolatileSlice<'a>)>,
}

/// A ring that is worked on.
pub struct Worker<'a> {
    pub ring: &'a mut Ring,
    pub table: &'a Table,
    /// Those that were acknowledged.
    pub features: u64,
    /// Where the guest was told of what is used last, if it was.
    pub signalled: &'a mut Option<u16>,
    /// The guest's bytes that were written.
    pub written: &'a mut Vec<(u64, u64)>,
}

impl Worker<'_> {
    /// Answers up to `most` requests, and whether the guest wants to be told; or what was answered before it went wrong.
    pub fn work(mut self, most: u16) -> (bool, Result<(), Fault>) {
        let (mut answered, mut result) = (0, Ok(()));
        self.wants_kicks(false);
        while answered < most {
            match self.answer() {
                Ok(true) => answered += 1,
                Ok(false) => {
                    self.wants_kicks(true);
                    if self.ring.waiting() == 0 {
                        break;
                    }
                    self.wants_kicks(false);
                }
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        (answered > 0 && self.wants_call(), result)
    }

    fn has_events(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    fn wants_kicks(&self, wants: bool) {
        if !self.has_events() {
            self.ring.set_used_flags(if wants { 0 } else { NO_NOTIFY });
        } else if wants {
            let place = 4 + usize::from(self.ring.size()) * 8;
            self.ring.used_ring().write_obj(self.ring.taken(), place).expect(INSIDE);
        }
    }

    fn wants_call(&mut self) -> bool {
        let available = self.ring.available();
        if !self.has_events() {
            let flags: u16 = available.read_obj(0).expect(INSIDE);
            return flags & NO_INTERRUPT == 0;
        }
        let new = self.ring.used();
        let Some(old) = self.signalled.replace(new) else { return true };
        let event: u16 = available.read_obj(4 + usize::from(self.ring.size()) * 2).expect(INSIDE);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Answers the next request; false: there is none.
    fn answer(&mut self) -> Result<bool, Fault> {
        match self.ring.waiting() {
            0 => return Ok(false),
            waiting if waiting > self.ring.size() => return Err(Fault),
            _ => {}
        }
        let head = self.ring.next();
        let mut chain = Chain::default();
        gather(self.table, &self.ring.descriptors(), self.ring.size(), head, true, &mut chain)?;
        let mut bytes = Vec::new();
        for piece in &chain.readable {
            let mut some = vec![0; piece.len().min(MOST - bytes.len())];
            piece.read_slice(&mut some, 0).expect("within the piece");
            bytes.extend(some);
        }
        bytes.resize(MOST, 0x5a);
        let mut rest = &bytes[..];
        for (at, piece) in &chain.writable {
            let (now, later) = rest.split_at(piece.len().min(rest.len()));
            piece.write_slice(now, 0).expect("within the piece");
            self.written.push((*at, now.len() as u64));
            rest = later;
        }
        self.ring.take();
        self.ring.put_used(head.into(), (MOST - rest.len()) as u32);
        Ok(true)
    }
}

/// Finds the buffers of the chain that begins with descriptor `head` of `table`.
fn gather<'a>(
    memory: &'a Table,
    table: &VolatileSlice,
    size: u16,
    head: u16,
    is_ring: bool,
    chain: &mut Chain<'a>,
) -> Result<(), Fault> {
    let mut next = Some(head);
    let mut seen = 0;
    while let Some(index) = next {
        if index >= size || seen >= size {
            return Err(Fault);
        }
        seen += 1;
        let descriptor: [u8; 16] = table.read_obj(usize::from(index) * 16).expect("one of the table's");
        let half = |at: usize| u16::from_le_bytes([descriptor[at], descriptor[at + 1]]);
        let at = u64::from_le_bytes(descriptor[..8].try_into().expect("8 bytes"));
        let len = u32::from_le_bytes(descriptor[8..12].try_into().expect("4 bytes"));
        let (flags, following) = (half(12), half(14));
        next = (flags & NEXT != 0).then_some(following);
        if flags & INDIRECT != 0 {
            if !is_ring || len % 16 != 0 || len / 16 > 1 << 16 {
                return Err(Fault);
            }
            let mut copy = Vec::new();
            for piece in memory.find(at, len.into()).ok_or(Fault)? {
                let from = copy.len();
                copy.resize(from + piece.len(), 0);
                piece.read_slice(&mut copy[from..], 0).expect("within the piece");
            }
            let count = u16::try_from(len / 16).unwrap_or(u16::MAX);
            gather(memory, &VolatileSlice::from(&mut copy[..]), count, 0, false, chain)?;
            continue;
        }
        if flags & WRITE == 0 && !chain.writable.is_empty() {
            return Err(Fault);
        }
        let mut place = at;
        for piece in memory.find(at, len.into()).ok_or(Fault)? {
            let bytes = piece.len() as u64;
            if flags & WRITE == 0 {
                chain.readable.push(piece);
            } else {
                chain.writable.push((place, piece));
            }
            place += bytes;
        }
        // More than one call of the kernel's can say.
        if chain.readable.len() + chain.writable.len() > 1024 {
            return Err(Fault);
        }
    }
    Ok(())
}
