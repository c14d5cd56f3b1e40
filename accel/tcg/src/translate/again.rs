//! Flags that are made again.
//!
//! A return, or a jump whose target is not known, comes with flags that hardly any code reads: what it goes to by the first jump
//! cache or the return cache never does ([`crate::code::jump_caches`]). So where the instruction that gave them their values
//! can be executed once more, on what its operands were, nothing keeps them on that way, and the way of a miss makes them again.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::is_high_byte;
use crate::translate::block::Item;
use crate::translate::classify::Class;
use crate::translate::encode::{Memory, Op};
use crate::translate::flags;
use crate::translate::generator::Translator;
use crate::translate::groups::{RSP, written};
use crate::translate::registers::{gpr_number, host_number};

/// An operand as it still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    /// The host register that has it.
    Register(u8),
    Constant(i32),
}

/// How all arithmetic flags of an instruction are made again from what is left of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// Bytes: 1, 4 or 8.
    size: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// XOR or SUB of a register and itself.
    Zero,
    Compare(u8, Operand),
    Test(u8, Operand),
    /// The result is this register plus `ahead`.
    Add {
        result: u8,
        ahead: i32,
        by: Operand,
    },
    Subtract {
        result: u8,
        ahead: i32,
        by: Operand,
    },
    Negate(u8),
}

/// What has happened to registers since the instruction.
#[derive(Default)]
struct Since {
    /// Guest registers that have been given other values, a bit each.
    written: u16,
    /// Bytes that the stack pointer has moved up, if it is not among them.
    stack: i32,
}

impl Since {
    /// The host register that still has the value of `register`.
    fn host(&self, register: Register) -> Option<u8> {
        let number = gpr_number(register).filter(|_| !is_high_byte(register))?;
        let moved = number == usize::from(RSP) && self.stack != 0;
        if moved || self.written & 1 << number != 0 {
            return None;
        }
        host_number(number).map(|host| host as u8)
    }

    /// The host register that has the result `register`, and how much more it was.
    fn result(&self, register: Register) -> Option<(u8, i32)> {
        match gpr_number(register)? {
            4 if self.written & 1 << RSP == 0 => Some((9, -self.stack)),
            _ => self.host(register).map(|host| (host, 0)),
        }
    }

    /// The last of two operands.
    fn second(&self, insn: &Instruction) -> Option<Operand> {
        match insn.op1_kind() {
            OpKind::Register => self.host(insn.op1_register()).map(Operand::Register),
            OpKind::Immediate8
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32
            | OpKind::Immediate32to64 => Some(Operand::Constant(insn.immediate(1) as i32)),
            _ => None,
        }
    }
}

/// How the flags can be made again at the end of 64-bit code `items`, behind a return, an indirect jump or call.
pub fn find(items: &[Item]) -> Option<Again> {
    let (last, before) = items.split_last()?;
    if !matches!(last.class, Class::Return | Class::JumpIndirect | Class::CallIndirect) {
        return None;
    }
    let mut since = Since { written: 0, stack: last.insn.stack_pointer_increment() };
    for item in before.iter().rev() {
        if item.flags.writes {
            return of(item, &since);
        }
        match item.class {
            Class::Jump | Class::JumpIf => {}
            Class::Push | Class::PushMemory => since.stack += item.insn.stack_pointer_increment(),
            Class::Pop => {
                since.stack += item.insn.stack_pointer_increment();
                since.written |= written(&item.insn);
            }
            Class::Native | Class::NativeFp | Class::Lea | Class::Nothing => {
                since.written |= written(&item.insn);
            }
            _ => return None,
        }
    }
    None
}

/// How those of `item` are.
fn of(item: &Item, since: &Since) -> Option<Again> {
    use Mnemonic as M;
    let insn = &item.insn;
    let first = insn.op0_register();
    if item.class != Class::Native || item.memory || item.flags.killed != flags::ALL || !first.is_gpr() {
        return None;
    }
    let size = first.size() as u32;
    let mnemonic = insn.mnemonic();
    let same = insn.op1_kind() == OpKind::Register && insn.op1_register() == first;
    let kind = match mnemonic {
        M::Xor | M::Sub if same => Kind::Zero,
        M::Cmp => Kind::Compare(since.host(first)?, since.second(insn)?),
        M::Test => Kind::Test(since.host(first)?, since.second(insn)?),
        M::And | M::Or | M::Xor => {
            let result = since.host(first)?;
            Kind::Test(result, Operand::Register(result))
        }
        M::Add | M::Sub if size >= 4 && !same => {
            let (result, ahead) = since.result(first)?;
            let by = since.second(insn)?;
            if mnemonic == M::Add {
                Kind::Add { result, ahead, by }
            } else {
                Kind::Subtract { result, ahead, by }
            }
        }
        M::Neg if size >= 4 => Kind::Negate(since.host(first)?),
        _ => return None,
    };
    (size != 2).then_some(Again { size, kind })
}

impl Translator {
    /// Sees to the flags before a branch that goes on without them where it hits: where it misses, what is returned is to make
    /// them again, if it is anything; else they are saved. They are, too, if `may_go_without` is not said.
    pub(super) fn flags_for_a_miss(&mut self, may_go_without: bool) -> Option<Again> {
        let again = self.again.filter(|_| may_go_without && self.flags == flags::Flags::Host);
        if again.is_none() {
            self.flags_saved();
        }
        again
    }

    /// On the way of a miss: saves the flags that are to be made `again`, if they are. Clobbers T1.
    pub(super) fn flags_again(&mut self, again: Option<Again>) {
        let Some(Again { size, kind }) = again else { return };
        match kind {
            Kind::Zero => dynasm!(self.e ; .arch x64 ; xor r11d, r11d),
            Kind::Compare(first, Operand::Register(second)) => match size {
                1 => dynasm!(self.e ; .arch x64 ; cmp Rb(first), Rb(second)),
                4 => dynasm!(self.e ; .arch x64 ; cmp Rd(first), Rd(second)),
                _ => dynasm!(self.e ; .arch x64 ; cmp Rq(first), Rq(second)),
            },
            Kind::Compare(first, Operand::Constant(second)) => match size {
                1 => dynasm!(self.e ; .arch x64 ; cmp Rb(first), second as i8),
                4 => dynasm!(self.e ; .arch x64 ; cmp Rd(first), second),
                _ => dynasm!(self.e ; .arch x64 ; cmp Rq(first), second),
            },
            Kind::Test(first, Operand::Register(second)) => match size {
                1 => dynasm!(self.e ; .arch x64 ; test Rb(first), Rb(second)),
                4 => dynasm!(self.e ; .arch x64 ; test Rd(first), Rd(second)),
                _ => dynasm!(self.e ; .arch x64 ; test Rq(first), Rq(second)),
            },
            Kind::Test(first, Operand::Constant(second)) => match size {
                1 => dynasm!(self.e ; .arch x64 ; test Rb(first), second as i8),
                4 => dynasm!(self.e ; .arch x64 ; test Rd(first), second),
                _ => dynasm!(self.e ; .arch x64 ; test Rq(first), second),
            },
            Kind::Add { result, ahead, by } => {
                self.result_to_t1(result, ahead, size);
                self.subtract_from_t1(by, size);
                self.add_to_t1(by, size);
            }
            Kind::Subtract { result, ahead, by } => {
                self.result_to_t1(result, ahead, size);
                self.add_to_t1(by, size);
                self.subtract_from_t1(by, size);
            }
            Kind::Negate(result) => match size {
                4 => dynasm!(self.e ; .arch x64 ; mov r11d, Rd(result) ; neg r11d ; neg r11d),
                _ => dynasm!(self.e ; .arch x64 ; mov r11, Rq(result) ; neg r11 ; neg r11),
            },
        }
        self.store_flags_with_t1();
    }

    fn result_to_t1(&mut self, result: u8, ahead: i32, size: u32) {
        let memory = Memory { base: Some(result), index: None, displacement: ahead };
        self.e.memory_op(Op::Lea, 11, memory, size);
    }

    fn add_to_t1(&mut self, by: Operand, size: u32) {
        match (by, size) {
            (Operand::Register(by), 4) => dynasm!(self.e ; .arch x64 ; add r11d, Rd(by)),
            (Operand::Register(by), _) => dynasm!(self.e ; .arch x64 ; add r11, Rq(by)),
            (Operand::Constant(by), 4) => dynasm!(self.e ; .arch x64 ; add r11d, by),
            (Operand::Constant(by), _) => dynasm!(self.e ; .arch x64 ; add r11, by),
        }
    }

    fn subtract_from_t1(&mut self, by: Operand, size: u32) {
        match (by, size) {
            (Operand::Register(by), 4) => dynasm!(self.e ; .arch x64 ; sub r11d, Rd(by)),
            (Operand::Register(by), _) => dynasm!(self.e ; .arch x64 ; sub r11, Rq(by)),
            (Operand::Constant(by), 4) => dynasm!(self.e ; .arch x64 ; sub r11d, by),
            (Operand::Constant(by), _) => dynasm!(self.e ; .arch x64 ; sub r11, by),
        }
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::InstructionInfoFactory;

    use super::*;
    use crate::code::tb::mode;
    use crate::ram::PAGE;
    use crate::translate::block::{Items, MAX_INSN_BYTES, MAX_INSNS, Source, decode};
    use crate::translate::facts::Kinds;
    use crate::translate::features::Features;
    use crate::translate::liveness::{Peek, WINDOW};

    struct Nothing;

    impl Peek for Nothing {
        fn peek(&self, _: u64, _: &mut [u8; WINDOW]) -> usize {
            0
        }
    }

    fn at_the_end_of(code: &[u8]) -> Option<Again> {
        let mut bytes = code.to_vec();
        bytes.resize(PAGE as usize + MAX_INSN_BYTES, 0);
        let mode = mode::LONG | mode::FLAT_CODE | mode::SSE | 3;
        let source =
            Source { bytes: &bytes, start: 0, rip: 0, bits: 64, mode, limit: MAX_INSNS, extended: true };
        let features = Features::new(|_, _| [u32::MAX; 4]);
        let (mut kinds, mut info, mut items) =
            (Kinds::default(), InstructionInfoFactory::new(), Items::default());
        decode(&source, &mut kinds.of_mode(64, mode, &features, &mut info), &Nothing, &mut items);
        find(&items)
    }

    #[test]
    fn what_is_left_of_operands_makes_flags_again() {
        use Operand::{Constant, Register};
        let found = |code: &[u8]| at_the_end_of(code).map(|Again { size, kind }| (size, kind));
        // xor eax, eax; mov eax, 5; ret
        assert_eq!(found(b"\x31\xc0\xb8\x05\0\0\0\xc3"), Some((4, Kind::Zero)));
        // cmp bl, 5; mov eax, ecx; ret
        assert_eq!(found(b"\x80\xfb\x05\x89\xc8\xc3"), Some((1, Kind::Compare(3, Constant(5)))));
        // test rdx, rsi; jz (out); jmp rax
        assert_eq!(found(b"\x48\x85\xf2\x74\x02\xff\xe0"), Some((8, Kind::Test(2, Register(6)))));
        // and edi, esi; ret
        assert_eq!(found(b"\x21\xf7\xc3"), Some((4, Kind::Test(7, Register(7)))));
        // add rsp, 24; pop rbx; pop rbp; ret
        let add = Kind::Add { result: 9, ahead: -24, by: Constant(24) };
        assert_eq!(found(b"\x48\x83\xc4\x18\x5b\x5d\xc3"), Some((8, add)));
        // sub rax, rcx; call rax
        let subtract = Kind::Subtract { result: 0, ahead: 0, by: Register(1) };
        assert_eq!(found(b"\x48\x29\xc8\xff\xd0"), Some((8, subtract)));
        assert_eq!(found(b"\xf7\xdb\xc3"), Some((4, Kind::Negate(3))));
    }

    #[test]
    fn what_is_gone_does_not() {
        let gone: [&[u8]; 9] = [
            b"\x39\xd8\x89\xd8\xc3",     // cmp eax, ebx; mov eax, ebx; ret
            b"\x3b\x03\xc3",             // cmp eax, [rbx]; ret
            b"\x01\xd2\xc3",             // add edx, edx; ret
            b"\x48\x01\xc8\x59\xc3",     // add rax, rcx; pop rcx; ret
            b"\x48\xff\xc0\xc3",         // inc rax, which leaves CF; ret
            b"\x45\x85\xc9\xc3",         // test r9d, r9d, which is in memory; ret
            b"\x48\x83\xc4\x08\x5c\xc3", // add rsp, 8; pop rsp; ret
            b"\x48\x83\xc4\x08\xc9\xc3", // add rsp, 8; leave; ret
            b"\x66\x39\xd8\xc3",         // cmp ax, bx; ret
        ];
        for code in gone {
            assert_eq!(at_the_end_of(code), None, "{code:x?}");
        }
        // Nothing is needed where the target is known.
        assert_eq!(at_the_end_of(b"\x31\xc0\xe9\0\0\x01\0"), None);
    }
}
