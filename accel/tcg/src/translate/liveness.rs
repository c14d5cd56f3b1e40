//! Which arithmetic flags are read behind a block: a look at the code that it leads to.
//!
//! What is found is baked into the block: flags that nobody reads there are not kept. Should that code be changed so that it
//! reads them after all, it finds stale ones until the block is translated anew: a limit, which code that is called or
//! jumped to by other code's flags and rewritten in between would meet.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};

use crate::translate::flags::{self, ALL};

/// Instructions looked at on each way.
const INSNS: usize = 8;
/// Bytes of code looked at in one piece.
pub const WINDOW: usize = 48;

/// Code as the CPU would fetch it now.
pub trait Peek {
    /// Copies what lies at offset `rip` in CS, up to the end of its page; returns how many bytes. None where nothing is
    /// mapped or nobody has looked yet: peeking has no effect on the guest.
    fn peek(&self, rip: u64, into: &mut [u8; WINDOW]) -> usize;
}

/// The flags that are read by what follows `last`, the last instruction of a block.
pub fn after(last: &Instruction, bits: u32, peek: &dyn Peek) -> u8 {
    match last.flow_control() {
        FlowControl::Next => at(last.next_ip(), bits, peek),
        FlowControl::ConditionalBranch => {
            at(last.near_branch_target(), bits, peek) | at(last.next_ip(), bits, peek)
        }
        FlowControl::UnconditionalBranch if last.is_jmp_short_or_near() => {
            at(last.near_branch_target(), bits, peek)
        }
        FlowControl::Call if last.is_call_near() => at(last.near_branch_target(), bits, peek),
        _ => ALL,
    }
}

/// The flags that are read from `rip` on before they are given new values.
fn at(mut rip: u64, bits: u32, peek: &dyn Peek) -> u8 {
    let (mut open, mut live) = (ALL, 0);
    let mut left = INSNS;
    let mut bytes = [0; WINDOW];
    while left > 0 {
        let len = peek.peek(rip, &mut bytes);
        let mut decoder = Decoder::with_ip(bits, &bytes[..len], rip, DecoderOptions::FORCE_RESERVED_NOP);
        loop {
            if left == 0 || !decoder.can_decode() {
                return live | open;
            }
            left -= 1;
            let insn = decoder.decode();
            if insn.is_invalid() {
                return live | open;
            }
            let effect = flags::effect(&insn);
            live |= effect.read & open;
            open &= !effect.killed;
            if open == 0 {
                return live;
            }
            match insn.flow_control() {
                FlowControl::Next => {}
                FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() => {
                    rip = insn.near_branch_target();
                    break;
                }
                FlowControl::Call if insn.is_call_near() => {
                    rip = insn.near_branch_target();
                    break;
                }
                _ => return live | open,
            }
        }
    }
    live | open
}
