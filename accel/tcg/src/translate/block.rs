//! Cutting a block out of guest code.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::code::tb::mode;
use crate::exception::Exception;
use crate::translate::classify::{Class, classify};
use crate::translate::features::Features;
use crate::translate::flags::{self, Effect};

/// Instructions in a block at most.
pub const MAX_INSNS: usize = 48;
/// Bytes of an instruction at most.
pub const MAX_INSN_BYTES: usize = 15;

/// One instruction of a block.
#[derive(Clone, Copy)]
pub struct Item {
    /// Decoded.
    pub insn: Instruction,
    /// What is done with it.
    pub class: Class,
    /// Bytes from the block's start.
    pub offset: u16,
    /// What it does to the arithmetic flags.
    pub flags: Effect,
    /// Flags that are read later on, as they are before it (its own reads included).
    pub live_in: u8,
    /// Flags that are read later on, as they are after it.
    pub live_out: u8,
}

/// How a block's last instruction relates to the end of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Within the page.
    Inside,
    /// The first instruction runs over the end of the bytes given: more are needed to say anything.
    NeedsNextPage,
}

/// Decodes a block at `rip` from `bytes`, which begin there and end with the page (or later). Fills `items`.
pub fn decode(
    bytes: &[u8],
    rip: u64,
    bits: u32,
    mode: u32,
    features: &Features,
    items: &mut Vec<Item>,
) -> Cut {
    items.clear();
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::FORCE_RESERVED_NOP);
    let limit = if mode & mode::SINGLE != 0 { 1 } else { MAX_INSNS };
    while items.len() < limit && decoder.can_decode() {
        let offset = decoder.position() as u16;
        let mut insn = Instruction::default();
        decoder.decode_out(&mut insn);
        if insn.code() == Code::INVALID && decoder.last_error() == DecoderError::NoMoreBytes {
            if items.is_empty() && bytes.len() < MAX_INSN_BYTES {
                return Cut::NeedsNextPage;
            }
            if !items.is_empty() {
                break;
            }
        }
        let class = match insn.code() {
            Code::INVALID if is_too_long(&bytes[usize::from(offset)..], bits) => {
                Class::Raise(Exception::gp(0))
            }
            _ => classify(&insn, bits, mode, features),
        };
        let effect = match class {
            Class::Native | Class::NativeFp | Class::BitTest => flags::effect(&insn),
            Class::JumpIf | Class::JumpCount => {
                Effect { read: flags::effect(&insn).read, ..Effect::default() }
            }
            Class::System(system) => system.effect(),
            // Helpers may show the flags to the guest.
            Class::Complex(_) | Class::Raise(_) => Effect { read: flags::ALL, ..Effect::default() },
            _ => Effect::default(),
        };
        items.push(Item { insn, class, offset, flags: effect, live_in: flags::ALL, live_out: flags::ALL });
        if ends_block(class, &insn, mode) {
            break;
        }
    }
    let mut live = flags::ALL;
    for item in items.iter_mut().rev() {
        item.live_out = live;
        live = live & !item.flags.killed | item.flags.read;
        item.live_in = live;
    }
    Cut::Inside
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
