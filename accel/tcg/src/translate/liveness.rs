//! Which arithmetic flags are read behind a block: a look at the code that it leads to.
//!
//! What is found is baked into the block: flags that nobody reads there are not kept. Should that code be changed so that it
//! reads them after all, it finds stale ones until the block is translated anew: a limit, which code that is called or
//! jumped to by other code's flags and rewritten in between would meet.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

use crate::translate::flags::{self, ALL};

/// Instructions looked at on each way.
const INSNS: usize = 20;
/// Bytes of code looked at in one piece.
pub const WINDOW: usize = 48;

/// Code as the CPU would fetch it now.
pub trait Peek {
    /// Copies what lies at offset `rip` in CS, up to the end of its page; returns how many bytes. None where nothing is
    /// mapped or nobody has looked yet: peeking has no effect on the guest.
    fn peek(&self, rip: u64, into: &mut [u8; WINDOW]) -> usize;
}

/// Where code is looked at.
pub struct Code<'a, 'b> {
    /// A decoder for the bytes around the block.
    pub near: &'a mut Decoder<'b>,
    /// Where in them the byte at an offset in CS is, if it is there.
    pub place: &'a dyn Fn(u64) -> Option<usize>,
    /// 16, 32 or 64.
    pub bits: u32,
    /// All other code.
    pub peek: &'a dyn Peek,
}

/// The flags that are read by what follows `last`, the last instruction of a block.
pub fn after(last: &Instruction, code: &mut Code) -> u8 {
    match last.flow_control() {
        FlowControl::Next => at(last.next_ip(), code),
        FlowControl::ConditionalBranch => at(last.near_branch_target(), code) | at(last.next_ip(), code),
        FlowControl::UnconditionalBranch if last.is_jmp_short_or_near() => {
            at(last.near_branch_target(), code)
        }
        FlowControl::Call if last.is_call_near() => at(last.near_branch_target(), code),
        _ => ALL,
    }
}

/// The flags that are read from some place on, as far as is known.
struct Look {
    live: u8,
    /// Flags that were neither read nor given new values.
    open: u8,
    /// Instructions that may still be looked at.
    left: usize,
}

/// The flags that are read from `rip` on before they are given new values.
pub fn at(mut rip: u64, code: &mut Code) -> u8 {
    let mut look = Look { live: 0, open: ALL, left: INSNS };
    let mut bytes = [0; WINDOW];
    loop {
        let next = match (code.place)(rip) {
            Some(place) => {
                code.near.set_position(place).expect("it is in the bytes");
                code.near.set_ip(rip);
                look.along(code.near)
            }
            None => {
                let len = code.peek.peek(rip, &mut bytes);
                let bytes = &bytes[..len];
                look.along(&mut Decoder::with_ip(code.bits, bytes, rip, DecoderOptions::FORCE_RESERVED_NOP))
            }
        };
        match next {
            Some(target) => rip = target,
            None => return look.live | look.open,
        }
    }
}

impl Look {
    /// Goes on along what `decoder` has. Where it is to be gone on then, if that is another place.
    fn along(&mut self, decoder: &mut Decoder) -> Option<u64> {
        let mut insn = Instruction::default();
        while self.left > 0 && decoder.can_decode() {
            self.left -= 1;
            decoder.decode_out(&mut insn);
            if insn.is_invalid() {
                return None;
            }
            let effect = flags::effect(&insn);
            self.live |= effect.read & self.open;
            self.open &= !effect.killed;
            if self.open == 0 {
                return None;
            }
            match insn.flow_control() {
                FlowControl::Next => {}
                FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() => {
                    return Some(insn.near_branch_target());
                }
                FlowControl::Call if insn.is_call_near() => return Some(insn.near_branch_target()),
                _ => return None,
            }
        }
        None
    }
}
