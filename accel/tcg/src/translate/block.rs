//! Cutting a block out of guest code.

use std::ops::{Deref, DerefMut, Range};

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::code::tb::mode;
use crate::exception::Exception;
use crate::translate::classify::Class;
use crate::translate::facts::{Facts, MemoryAccess, ModeKinds};
use crate::translate::flags::{self, Effect};
use crate::translate::liveness::{self, Peek};
use crate::translate::reencode::Bytes;

/// Instructions in a block at most.
pub const MAX_INSNS: usize = 48;
/// Bytes from a block's start on at most.
const AHEAD: usize = 384;
/// Bytes that a block goes back at most to go on at a jump's target.
const BACK: usize = 512;
/// Bytes that must be there at such a target.
const MAX_FOLLOWED: u64 = 64;
/// Jumps that a block goes on behind at most: each is a way out of its own.
const MAX_JUMPS: usize = 6;
/// Bytes of an instruction at most.
pub const MAX_INSN_BYTES: usize = 15;

/// One instruction of a block.
#[derive(Clone, Copy)]
pub struct Item {
    /// Decoded.
    pub insn: Instruction,
    /// Its bytes come first here.
    pub bytes: Bytes,
    /// What is done with it.
    pub class: Class,
    /// How it uses its memory operand, if it is executed natively and has one.
    pub access: MemoryAccess,
    /// It has an explicit memory operand.
    pub memory: bool,
    /// Bytes from the block's start. Negative where the block has gone on at a jump's target.
    pub offset: i16,
    /// What it does to the arithmetic flags.
    pub flags: Effect,
    /// Flags that are read later on, as they are before it (its own reads included).
    pub live_in: u8,
    /// Flags that are read later on, as they are after it.
    pub live_out: u8,
}

impl Item {
    /// Whether it never leaves the block nor looks at the environment, and cannot fault but for a memory operand.
    pub fn is_quiet(&self) -> bool {
        match self.class {
            Class::Native => !matches!(self.insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv),
            Class::Lea | Class::Nothing => true,
            _ => false,
        }
    }

    /// Before anything is known.
    fn unknown() -> Self {
        Self {
            insn: Instruction::default(),
            bytes: [0; MAX_INSN_BYTES + 1],
            class: Class::Nothing,
            access: MemoryAccess { writes: false, packed: 0 },
            memory: false,
            offset: 0,
            flags: Effect { read: 0, killed: 0, writes: false },
            live_in: flags::ALL,
            live_out: flags::ALL,
        }
    }
}

/// The instructions of a block. Their room is used again from block to block, and what is in it written over.
#[derive(Default)]
pub struct Items {
    room: Vec<Item>,
    len: usize,
    /// Flags that may be read where the call that ends the block returns to.
    pub live_back: u8,
}

impl Items {
    /// Another one, which is anything.
    #[inline]
    fn add(&mut self) -> &mut Item {
        if self.len == self.room.len() {
            self.room.push(Item::unknown());
        }
        self.len += 1;
        &mut self.room[self.len - 1]
    }
}

impl Deref for Items {
    type Target = [Item];
    #[inline]
    fn deref(&self) -> &[Item] {
        &self.room[..self.len]
    }
}

impl DerefMut for Items {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Item] {
        &mut self.room[..self.len]
    }
}

/// How a block's last instruction relates to the end of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Within the page.
    Inside,
    /// The first instruction runs over the end of the bytes given: more are needed to say anything.
    NeedsNextPage,
}

/// Where the bytes of a block that starts at `start` can lie in its page.
pub fn window(start: usize) -> Range<usize> {
    start.saturating_sub(BACK)..(start + AHEAD).min(4096)
}

/// Guest code to make a block of.
pub struct Source<'a> {
    /// The block's page, of which [`window`] is filled, and what of the next one is needed.
    pub bytes: &'a [u8],
    /// Where in them the block starts.
    pub start: usize,
    /// Offset in CS of that byte.
    pub rip: u64,
    /// 16, 32 or 64.
    pub bits: u32,
    /// The key's mode bits.
    pub mode: u32,
    /// Instructions at most.
    pub limit: usize,
    /// The block goes on behind conditional jumps, and at the targets of others.
    pub extended: bool,
}

/// Decodes a block from `source`. Fills `items`.
pub fn decode(source: &Source, kinds: &mut ModeKinds, peek: &dyn Peek, items: &mut Items) -> Cut {
    let &Source { start, rip, bits, mode, limit, .. } = source;
    let end = window(start).end;
    // The page's end is where an instruction may run over into the next.
    let bytes = if end < 4096 { &source.bytes[..end] } else { source.bytes };
    items.len = 0;
    let mut decoder = Decoder::new(bits, bytes, DecoderOptions::FORCE_RESERVED_NOP);
    decoder.set_position(start).expect("the block starts within its page");
    decoder.set_ip(rip);
    let limit = if mode & mode::SINGLE != 0 { 1 } else { limit };
    let mut jumps = 0;
    while items.len() < limit && decoder.can_decode() {
        let position = decoder.position();
        let offset = (decoder.ip().wrapping_sub(rip)) as i16;
        // In place: what was written in pieces is slow to be copied as a whole.
        let before = items.len();
        let item = items.add();
        decoder.decode_out(&mut item.insn);
        let insn = &item.insn;
        if insn.code() == Code::INVALID && decoder.last_error() == DecoderError::NoMoreBytes {
            if before == 0 && bytes.len() - start < MAX_INSN_BYTES {
                return Cut::NeedsNextPage;
            }
            if before != 0 {
                items.len -= 1;
                break;
            }
        }
        // An invalid one reads all flags, whatever it raises.
        let Facts { class, access, memory, flags } = kinds.of(insn);
        (item.class, item.access, item.memory, item.flags) = (*class, access, memory, flags);
        if insn.code() == Code::INVALID && is_too_long(&bytes[position..], bits) {
            item.class = Class::Raise(Exception::gp(0));
        }
        let ends = ends_block(item.class, insn, mode);
        item.bytes = first_bytes(&bytes[position..], insn.len());
        item.offset = offset;
        if !ends {
            continue;
        }
        jumps += 1;
        if !source.extended || jumps > MAX_JUMPS {
            break;
        }
        match items[before].class {
            Class::JumpIf => {}
            Class::Jump => match place_of(source, &items[before].insn) {
                Some((place, target)) if !items.iter().any(|item| item.insn.ip() == target) => {
                    decoder.set_position(place).expect("the target is on the page");
                    decoder.set_ip(target);
                }
                _ => break,
            },
            _ => break,
        }
    }
    let place = |rip: u64| {
        let place = (start as u64).wrapping_add(rip.wrapping_sub(source.rip));
        (window(start).start as u64..end as u64).contains(&place).then_some(place as usize)
    };
    let mut code = liveness::Code { near: &mut decoder, place: &place, bits, peek };
    let last = &items[items.len() - 1];
    let calls = matches!(last.class, Class::Call | Class::CallIndirect) && source.extended;
    let back = if calls { liveness::at(last.insn.next_ip(), &mut code) } else { flags::ALL };
    let looks = mode & mode::SINGLE == 0 && end_matters(items);
    let live = if looks { liveness::after(&last.insn, &mut code) } else { flags::ALL };
    items.live_back = back;
    find_live(items, live);
    Cut::Inside
}

/// Finds out which flags are read behind each of `items`, and `end` behind the last.
///
/// A jump in their midst may lead to one of them: then it is known what is read there, and for one that leads back it is found
/// out in rounds, from nothing up. Where others lead nobody has looked.
fn find_live(items: &mut [Item], end: u8) {
    let last = items.len() - 1;
    // The places of the targets, the last jump's first.
    let mut places = [None; MAX_JUMPS];
    let mut back = false;
    let jumps = (0..last).rev().filter(|&index| items[index].class == Class::JumpIf);
    for (place, jump) in places.iter_mut().zip(jumps) {
        let target = items[jump].insn.near_branch_target();
        *place = items.iter().position(|item| item.insn.ip() == target);
        back |= place.is_some_and(|place| place <= jump);
    }
    if back {
        items.iter_mut().for_each(|item| item.live_in = 0);
    }
    loop {
        let (mut live, mut changed) = (end, false);
        let mut places = places.iter();
        for index in (0..=last).rev() {
            if items[index].class == Class::JumpIf && index < last {
                live = match places.next() {
                    Some(&Some(target)) => live | items[target].live_in,
                    _ => flags::ALL,
                };
            }
            let item = &mut items[index];
            item.live_out = live;
            live = live & !item.flags.killed | item.flags.read;
            changed |= item.live_in != live;
            item.live_in = live;
        }
        if !back || !changed {
            return;
        }
    }
}

/// The first `len` of `bytes`, and what follows them or zeroes.
fn first_bytes(bytes: &[u8], len: usize) -> Bytes {
    match bytes.first_chunk() {
        Some(chunk) => *chunk,
        None => {
            let mut first = Bytes::default();
            let len = len.min(bytes.len());
            first[..len].copy_from_slice(&bytes[..len]);
            first
        }
    }
}

/// Where the jump `insn` leads to, in the page and as offset in CS, if it is a place that the block can go on at.
fn place_of(source: &Source, insn: &Instruction) -> Option<(usize, u64)> {
    let target = insn.near_branch_target();
    let place = (source.start as u64).wrapping_add(target.wrapping_sub(source.rip));
    // The last instruction of the page is left to a block of its own: it may run over the end.
    let window = window(source.start);
    let last = (window.end as u64).saturating_sub(MAX_FOLLOWED);
    (window.start as u64..last).contains(&place).then_some((place as usize, target))
}

/// Whether it makes a difference which flags are read behind the block: not if all are given new values by an instruction
/// after which nothing stands in the way of keeping them in EFLAGS.
fn end_matters(items: &[Item]) -> bool {
    let mut open = flags::ALL;
    for item in items.iter().rev() {
        let in_the_way = match item.class {
            Class::Native | Class::NativeFp => item.memory,
            Class::Lea | Class::Nothing | Class::Direction(_) | Class::JumpIf | Class::Jump => false,
            // Flags are stored for a helper in any case.
            Class::Complex(_) | Class::Raise(_) => return false,
            _ => true,
        };
        if in_the_way {
            return true;
        }
        open &= !item.flags.killed;
        if open == 0 {
            return false;
        }
    }
    true
}

/// Whether prefixes make an otherwise good instruction longer than one may be, which is #GP(0) and not #UD.
fn is_too_long(bytes: &[u8], bits: u32) -> bool {
    let is_prefix = |&byte: &u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || bits == 64 && byte & 0xf0 == 0x40
    };
    let prefixes = bytes.iter().take_while(|byte| is_prefix(byte)).count();
    let rest =
        Decoder::new(bits, &bytes[prefixes.min(bytes.len())..], DecoderOptions::FORCE_RESERVED_NOP).decode();
    prefixes >= MAX_INSN_BYTES || !rest.is_invalid() && prefixes + rest.len() > MAX_INSN_BYTES
}

fn ends_block(class: Class, insn: &Instruction, mode: u32) -> bool {
    match class {
        Class::Jump
        | Class::JumpIf
        | Class::JumpCount
        | Class::JumpIndirect
        | Class::Call
        | Class::CallIndirect
        | Class::Return
        | Class::Raise(_) => true,
        Class::System(system) => system.ends_block(mode),
        Class::Complex(ends) => ends || insn.flow_control() != FlowControl::Next,
        _ => false,
    }
}
