//! Instructions of 64-bit code that name a guest register which the host has elsewhere: RSP, which is another register
//! there, and the cold ones, which are in memory. They are made of their bytes.
//!
//! A cold register is the instruction's memory operand, where it takes one in that place and has none yet:
//!
//! ```text
//!     add rax, r10     add rax, [rsp + r10]       cmp r9, 8     cmp qword [rsp + r9], 8
//!     mov [rdi], r9    mov t0, [rsp + r9]         add r9d, eax  mov t0, [rsp + r9]
//!                      mov [t1 + ...], t0                       add t0d, eax
//!                                                               mov [rsp + r9], t0
//! ```
//!
//! In all other places a scratch register stands in for it, which then is known to hold it ([`Translator::t0`]) until it
//! is used for something else. Stores to cold registers are always of the whole word: a load that follows gets what a
//! narrower store has left in part only when that has reached the cache. A store waits while the instructions that follow
//! do not leave the block ([`Translator::settle`]), as one of them often gives the register another value. Where they can fault, it
//! waits only in windows: the marks say where the value is then ([`crate::code::tb::Mark::waiting`]).

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind,
    OpKind, Register,
};

use crate::code::tb::{Waiting, mode};
use crate::code::thunks::{T0, T1, gpr_offset};
use crate::cpu::is_high_byte;
use crate::translate::block::Item;
use crate::translate::encode::{Memory, Op};
use crate::translate::generator::Translator;
use crate::translate::place::Place;
use crate::translate::registers::{gpr_number, host_number};
use crate::translate::shape::{Operands, Rm, Shape};

/// What T1 is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The word of the environment at this offset, which makes host addresses.
    Addend(i32),
    /// The value of this guest register, a cold one.
    Guest(usize),
}

/// An operand that is a general register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    /// Guest number.
    pub(super) guest: usize,
    /// Bytes.
    size: usize,
    read: bool,
    written: bool,
    /// It may be in memory instead.
    pub(super) or_memory: bool,
}

impl Operand {
    fn is_cold(self) -> bool {
        host_number(self.guest).is_none()
    }

    /// Whether it can be the cold register's word in memory. A narrower write must clear the rest of the word, or joins what
    /// is there: no store alone does that.
    fn can_be_in_memory(self) -> bool {
        self.or_memory && self.is_cold() && (!self.written || self.size == 8)
    }
}

/// The general registers that an instruction names, by where in its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fields {
    pub(super) reg: Option<Operand>,
    pub(super) rm: Option<Operand>,
    pub(super) vvvv: Option<Operand>,
    /// [`Fields::rm`] is in the opcode: there is no ModRM byte.
    pub(super) in_opcode: bool,
}

impl Fields {
    /// Those of `insn`. `None`: a high-byte register, or something that is not known here.
    pub(super) fn of(insn: &Instruction, info: &mut InstructionInfoFactory) -> Option<Self> {
        use OpCodeOperandKind as K;
        const ONLY_ACCESS: u32 =
            InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        let info = info.info_options(insn, ONLY_ACCESS);
        let code = insn.op_code();
        let mut fields = Self::default();
        for number in 0..insn.op_count() {
            let register = insn.op_register(number);
            if insn.op_kind(number) != OpKind::Register {
                continue;
            }
            if is_high_byte(register) {
                return None;
            }
            let Some(guest) = gpr_number(register) else { continue };
            let (place, or_memory) = match code.op_kind(number) {
                K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg => (&mut fields.reg, false),
                K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem => {
                    (&mut fields.rm, !differs_in_memory(insn))
                }
                K::r16_rm | K::r32_rm | K::r64_rm => (&mut fields.rm, false),
                K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => {
                    fields.in_opcode = true;
                    (&mut fields.rm, false)
                }
                K::r32_vvvv | K::r64_vvvv => (&mut fields.vvvv, false),
                // Named by the opcode alone: they are where they are.
                K::al | K::cl | K::ax | K::dx | K::eax | K::rax => continue,
                _ => return None,
            };
            let access = info.op_access(number);
            let size = register.size();
            let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            // A 32-bit write clears the rest; narrower ones leave it, so the old value must be there.
            let read = access != OpAccess::Write && !is_independent(insn) || size < 4;
            // What writes less to memory than to a register leaves the register's rest otherwise.
            let or_memory = or_memory && (!written || code.memory_size().size() == size);
            *place = Some(Operand { guest, size, read, written, or_memory });
        }
        Some(fields)
    }

    /// Whether operands of `kind` are named by their own bits.
    #[cfg(test)]
    pub(super) fn is_named(kind: OpCodeOperandKind) -> bool {
        use OpCodeOperandKind as K;
        !matches!(kind, K::al | K::cl | K::ax | K::dx | K::eax | K::rax)
    }

    /// Whether operands of `kind` are a register or in memory.
    #[cfg(test)]
    pub(super) fn is_rm(kind: OpCodeOperandKind) -> bool {
        use OpCodeOperandKind as K;
        matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem)
    }
}

/// Whether `insn` does something else with a memory operand than with a register: a bit string, or a locked access.
fn differs_in_memory(insn: &Instruction) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc => insn.op1_kind() == OpKind::Register,
        M::Xchg => true,
        _ => false,
    }
}

/// Whether what `insn` makes of a register does not depend on what was in it.
fn is_independent(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
        && insn.op1_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register()
}

/// A scratch register that stands in for a cold one.
#[derive(Clone, Copy)]
struct StandIn {
    guest: usize,
    host: u8,
    read: bool,
    written: bool,
    /// It has the value already.
    held: bool,
}

/// Scratch registers that stand in for cold ones.
#[derive(Default)]
struct StandIns {
    all: [Option<StandIn>; 2],
}

impl StandIns {
    /// Adds what `operand` needs. `None`: too many.
    fn add(&mut self, operand: Operand) -> Option<()> {
        let Operand { guest, read, written, .. } = operand;
        let same = |place: &Option<StandIn>| place.is_none_or(|known| known.guest == guest);
        let place = self.all.iter_mut().find(|place| same(place))?;
        let need = place.get_or_insert(StandIn { guest, host: 0, read: false, written: false, held: false });
        need.read |= read;
        need.written |= written;
        Some(())
    }

    fn iter(&self) -> impl Iterator<Item = &StandIn> {
        self.all.iter().flatten()
    }

    /// Gives each its register: the one that holds its value, if there is one, or one that is free, best one that holds nothing.
    /// Until the memory operand is read, those `in_use` are parts of its address. `None`: there are too few.
    fn place(
        &mut self,
        held: impl Fn(usize) -> Option<u8>,
        in_use: [bool; 2],
        holding: [bool; 2],
    ) -> Option<()> {
        let mut taken = [false; 2];
        for need in self.all.iter_mut().flatten() {
            if let Some(host) = held(need.guest) {
                (need.host, need.held) = (host, true);
                taken[usize::from(host - T0)] = true;
            }
        }
        // What is read needs its register from the start.
        for read in [true, false] {
            for need in self.all.iter_mut().flatten().filter(|need| !need.held && need.read == read) {
                let free = |at: &usize| !(taken[*at] || read && in_use[*at]);
                let at = (0..2).find(|at| free(at) && !holding[*at]).or_else(|| (0..2).find(free))?;
                taken[at] = true;
                need.host = T0 + at as u8;
            }
        }
        Some(())
    }

    /// The host register that is guest register `guest` in this instruction.
    fn host(&self, guest: usize) -> u8 {
        match host_number(guest) {
            Some(host) => host as u8,
            None => self.iter().find(|need| need.guest == guest).map_or(0, |need| need.host),
        }
    }
}

impl Translator {
    /// The scratch register that holds guest register `guest`.
    pub(super) fn held_in(&self, guest: usize) -> Option<u8> {
        if self.t0 == Some(guest) { Some(T0) } else { (self.t1 == Some(Held::Guest(guest))).then_some(T1) }
    }

    /// Neither scratch register is known to hold anything.
    pub(super) fn nothing_held(&mut self) {
        self.settle();
        (self.t0, self.t1) = (None, None);
    }

    /// Whether stores can wait while `item` is executed, which is the block's number `index`.
    pub(super) fn is_quiet(&self, item: &Item, index: usize) -> bool {
        let by_window = self.key.mode & mode::WINDOWED != 0 && self.hashed >> index & 1 == 0;
        item.is_quiet() && (by_window || !item.memory)
    }

    /// The guest registers whose stores wait, by the scratch registers that hold them.
    pub(super) fn waiting(&self) -> Waiting {
        let held = [self.t0, if let Some(Held::Guest(guest)) = self.t1 { Some(guest) } else { None }];
        std::array::from_fn(|at| held[at].filter(|_| self.put_off[at]))
    }

    /// Stores what has waited: every cold register is in its word.
    pub(super) fn settle(&mut self) {
        self.settle_in(T0);
        self.settle_in(T1);
    }

    /// As [`Translator::settle`], of what scratch register `host` holds, which is going to be used for something else.
    pub(super) fn settle_in(&mut self, host: u8) {
        let at = usize::from(host - T0);
        if let Some(guest) = self.waiting()[at] {
            self.e.store_env(gpr_offset(guest), host);
        }
        self.put_off[at] = false;
    }

    /// The word of cold guest register `guest` was given a value past the scratch registers.
    pub(super) fn given(&mut self, guest: usize) {
        if self.t0 == Some(guest) {
            (self.t0, self.put_off[0]) = (None, false);
        }
        if self.t1 == Some(Held::Guest(guest)) {
            (self.t1, self.put_off[1]) = (None, false);
        }
    }

    /// Cold guest register `guest` = scratch register `host`, which holds it from then on.
    pub(super) fn keep(&mut self, guest: usize, host: u8) {
        self.given(guest);
        self.holds(host, guest);
        self.put_off[usize::from(host - T0)] = true;
        if !self.may_wait {
            self.settle();
        }
    }

    /// Scratch register `host` has the value of guest register `guest`.
    pub(super) fn holds(&mut self, host: u8, guest: usize) {
        debug_assert!(self.waiting()[usize::from(host - T0)].is_none_or(|waiting| waiting == guest));
        if host == T0 {
            self.t0 = Some(guest);
        } else {
            self.t1 = Some(Held::Guest(guest));
        }
    }

    /// Emits `item`'s instruction for the registers that the host has, and its memory operand, if any, at the place. False:
    /// the encoder must do it, and nothing was emitted.
    pub(super) fn emit_moved(&mut self, item: &Item) -> bool {
        let Some(fields) = Fields::of(&item.insn, &mut self.info) else { return false };
        self.set_to_constant(item, &fields) || self.emit_with_fields(item, fields).is_some()
    }

    /// MOV of a constant that is short when it is extended to a whole word, to a cold register.
    fn set_to_constant(&mut self, item: &Item, fields: &Fields) -> bool {
        let insn = &item.insn;
        let Some(to) = fields.rm.filter(|to| to.is_cold() && to.size >= 4) else { return false };
        if insn.mnemonic() != Mnemonic::Mov || insn.op1_kind() == OpKind::Register || item.memory {
            return false;
        }
        let value = if to.size == 4 { i64::from(insn.immediate32()) } else { insn.immediate(1) as i64 };
        let Ok(value) = i32::try_from(value) else { return false };
        self.e.memory_op(Op::StoreConstant, 0, Memory::env(gpr_offset(to.guest)), 8);
        dynasm!(self.e ; .arch x64 ; .i32 value);
        self.given(to.guest);
        true
    }

    fn emit_with_fields(&mut self, item: &Item, fields: Fields) -> Option<()> {
        let Fields { mut reg, mut rm, vvvv, in_opcode } = fields;
        let mut shape = Shape::parse(&item.bytes[..item.insn.len()], !in_opcode)?;
        // A register that holds the value is better than memory, unless it is not asked for.
        let direct = |this: &Self, operand: Operand| {
            operand.can_be_in_memory() && (!operand.read || this.held_in(operand.guest).is_none())
        };
        if let (Some(first), Some(second), false) = (reg, rm, item.memory)
            && !direct(self, second)
            && direct(self, Operand { or_memory: true, ..first })
            && let Some(turned) = shape.turned()
        {
            shape = turned;
            (reg, rm) = (Some(second), Some(Operand { or_memory: true, ..first }));
        }
        let others = || [reg, vvvv].into_iter().flatten();
        let in_memory = rm.filter(|&operand| {
            direct(self, operand) && others().all(|other| other.guest != operand.guest) && !item.memory
        });
        let mut needs = StandIns::default();
        let named = others().chain(rm.filter(|_| in_memory.is_none()));
        for operand in named.filter(|operand| operand.is_cold()) {
            needs.add(operand)?;
        }
        // The sum of both is made one register's where the other is needed before the access.
        let mut place = self.place;
        let read = needs.iter().any(|need| need.read);
        let sum = place;
        let split = item.memory && matches!(place, Place::Sum(_)) && read;
        if split {
            place = Place::Host(0);
        }
        let in_use = if item.memory { place.uses_scratch() } else { [false; 2] };
        needs.place(|guest| self.held_in(guest), in_use, [self.t0.is_some(), self.t1.is_some()])?;
        let operands = Operands {
            reg: reg.map(|operand| needs.host(operand.guest)),
            vvvv: vvvv.map(|operand| needs.host(operand.guest)),
            rm: match (item.memory, in_memory, rm) {
                (true, ..) => Rm::Memory(place.memory()),
                (_, Some(operand), _) => Rm::Memory(Memory::env(gpr_offset(operand.guest))),
                (.., Some(operand)) => Rm::Register(needs.host(operand.guest)),
                _ => Rm::Same,
            },
            spare_rex: !names_byte_with_rex(&item.insn),
        };
        let (bytes, len) = shape.with(&operands)?;
        if split {
            self.settle_in(T1);
            self.t1 = None;
            self.e.memory_op(Op::Lea, T1, sum.memory(), 8);
        }
        let waiting = self.waiting();
        for need in needs.iter().filter(|need| !need.held) {
            self.settle_in(need.host);
            if need.read {
                self.e.load_env(need.host, gpr_offset(need.guest));
            }
        }
        if self.waiting() != waiting {
            self.mark();
        }
        self.e.raw_start(&bytes, len);
        if let Some(operand) = in_memory.filter(|operand| operand.written) {
            self.given(operand.guest);
        }
        for need in needs.iter() {
            if need.written {
                self.keep(need.guest, need.host);
            } else {
                self.holds(need.host, need.guest);
            }
        }
        Some(())
    }
}

/// Whether `insn` names a byte register that only a REX prefix makes one.
fn names_byte_with_rex(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|operand| {
        matches!(insn.op_register(operand), Register::SPL | Register::BPL | Register::SIL | Register::DIL)
    })
}
