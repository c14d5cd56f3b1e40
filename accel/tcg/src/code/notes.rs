//! What is noted of a block's code: which guest instruction each piece of it belongs to, and where those are. There are more of
//! these than of anything else, and most are never looked at: so they are a few bytes, read from their start.
//!
//! ```text
//! popped, second page's number, number of instructions, number of marks
//! for each instruction   where the next one (or the end) is, from it on
//! for each mark          bytes of code from the one before; its instruction (6 bits) and what its state is like (2 bits);
//!                        its state, a number, if it is like no usual one
//! ```
//!
//! Numbers have seven bits to a byte, low ones first, those with a sign in bit 0.

use crate::code::tb::{FLAGS_IN_HOST, Lists, Mark};

/// Another byte of the number follows.
const MORE: u8 = 1 << 7;
/// A mark's second byte: its instruction.
const INSN: u8 = (1 << 6) - 1;
/// The state has [`FLAGS_IN_HOST`] alone.
const USUAL_FLAGS: u8 = 1 << 6;
/// The state is told in a number of its own.
const UNUSUAL: u8 = 1 << 7;

/// Appends the notes of a block with these lists.
pub fn add(notes: &mut Vec<u8>, block: &Lists) {
    put(notes, block.popped);
    put(notes, block.second_number);
    put(notes, block.insns.len() as u32 - 1);
    put(notes, block.marks.len() as u32);
    for pair in block.insns.windows(2) {
        let distance = i32::from(pair[1]) - i32::from(pair[0]);
        put(notes, (distance << 1 ^ distance >> 31) as u32);
    }
    let mut before = 0;
    for mark in &block.marks {
        debug_assert!(mark.host >= before && mark.insn <= INSN);
        put(notes, u32::from(mark.host - before));
        before = mark.host;
        match mark.state {
            0 => notes.push(mark.insn),
            FLAGS_IN_HOST => notes.push(mark.insn | USUAL_FLAGS),
            state => {
                notes.push(mark.insn | UNUSUAL);
                put(notes, state.into());
            }
        }
    }
}

fn put(notes: &mut Vec<u8>, mut value: u32) {
    while value >= MORE.into() {
        notes.push(value as u8 | MORE);
        value >>= 7;
    }
    notes.push(value as u8);
}

/// The notes of one block, to be read on from here.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().expect("notes end where they say");
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u32 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u32::from(byte & !MORE) << shift;
            shift += 7;
            if byte & MORE == 0 {
                return value;
            }
        }
    }

    fn signed(&mut self) -> i32 {
        let value = self.number();
        (value >> 1) as i32 ^ -((value & 1) as i32)
    }
}

/// What is noted of one block.
#[derive(Clone, Copy)]
pub struct Notes<'a> {
    /// Bytes that the return at its end takes off the stack; 0 for other ends.
    pub popped: u32,
    /// Number of the second page's mapping; 0 if there is none.
    pub second_number: u32,
    /// Instructions.
    pub count: u32,
    marks: u32,
    rest: &'a [u8],
}

impl<'a> Notes<'a> {
    /// The notes that begin with `bytes`.
    pub fn read(bytes: &'a [u8]) -> Self {
        let mut reader = Reader(bytes);
        let (popped, second_number) = (reader.number(), reader.number());
        let (count, marks) = (reader.number(), reader.number());
        Self { popped, second_number, count, marks, rest: reader.0 }
    }

    /// Where instruction `insn` is from the block's RIP on; one past the last: the end.
    pub fn offset(self, insn: usize) -> i64 {
        let mut reader = Reader(self.rest);
        (0..insn).map(|_| i64::from(reader.signed())).sum()
    }

    /// The guest instruction that the code at `offset` in the block's code belongs to.
    pub fn mark_at(self, offset: u64) -> Option<Mark> {
        let mut reader = Reader(self.rest);
        for _ in 0..self.count {
            reader.number();
        }
        let (mut found, mut host) = (None, 0);
        for _ in 0..self.marks {
            host += reader.number() as u16;
            let byte = reader.byte();
            let state = match byte & !INSN {
                0 => 0,
                USUAL_FLAGS => FLAGS_IN_HOST,
                _ => reader.number() as u16,
            };
            if u64::from(host) > offset {
                break;
            }
            found = Some(Mark { host, insn: byte & INSN, state });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found() {
        let mut lists = Lists {
            popped: 8 + 0xfff0,
            second_number: u32::MAX,
            insns: vec![0, 3, 18, -2000, -1993, 4095],
            ..Lists::default()
        };
        let unusual = 1 << 3 | 1 << 7 | FLAGS_IN_HOST;
        for (host, insn, state) in [
            (0, 0, 0),
            (5, 0, FLAGS_IN_HOST),
            (140, 4, unusual),
            (141, 4, 9 << 8),
            (60_000, 1, 1),
            (60_001, 3, 0),
        ] {
            lists.marks.push(Mark { host, insn, state });
        }
        let mut notes = vec![0xff; 3];
        add(&mut notes, &lists);
        let end = notes.len();
        add(&mut notes, &Lists { insns: vec![0, 1], ..Lists::default() });
        let read = Notes::read(&notes[3..]);
        assert_eq!((read.popped, read.second_number, read.count), (lists.popped, u32::MAX, 5));
        for (insn, &offset) in lists.insns.iter().enumerate() {
            assert_eq!(read.offset(insn), offset.into());
        }
        for offset in 0..u64::from(u16::MAX) {
            let expected = lists.marks.iter().rfind(|mark| u64::from(mark.host) <= offset).unwrap();
            let found = read.mark_at(offset).unwrap();
            assert!(found.host == expected.host && found.agrees(*expected), "{offset}: {found:?}");
        }
        let next = Notes::read(&notes[end..]);
        assert!(next.mark_at(0).is_none());
        assert_eq!((next.popped, next.count, next.offset(1)), (0, 1, 1));
    }
}
