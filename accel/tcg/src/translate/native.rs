//! Instructions that the host executes: operands rewritten, bits untouched.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};

use crate::code::tb::{PARKED, PARKING_ORDER};
use crate::code::thunks::{T0, gpr_offset, scratch_offset};
use crate::cpu::is_high_byte;
use crate::translate::address::{Use, address_width, stack_bit};
use crate::translate::block::Item;
use crate::translate::encode::Memory;
use crate::translate::generator::Translator;
use crate::translate::place::Place;
use crate::translate::reencode::{Copying, copying, with_memory};
use crate::translate::registers::{gpr_number, host_number, sized};

/// A guest register that needs a stand-in for one instruction.
#[derive(Clone, Copy)]
struct StandIn {
    /// Guest number.
    guest: usize,
    /// Host number of the stand-in.
    host: usize,
    read: bool,
    written: bool,
}

impl Translator {
    /// An instruction on general registers and flags.
    pub(super) fn native(&mut self, item: &Item) {
        if item.memory {
            self.native_memory(item, false);
        } else {
            self.native_on_host(item);
        }
    }

    /// An instruction on vector or x87 registers.
    pub(super) fn native_fp(&mut self, item: &Item) {
        if item.memory {
            self.native_memory(item, true);
            return;
        }
        self.need_fp(item.live_in);
        self.native_on_host(item);
    }

    fn native_memory(&mut self, item: &Item, fp: bool) {
        let insn = &item.insn;
        let size = insn.memory_size().size() as u32;
        let write = item.access.writes;
        if fp && self.windowed() {
            self.need_fp(item.live_in);
        }
        if self.reach_window(insn) {
            return self.native_on_host(item);
        }
        // After a miss the scratch registers hold something else.
        self.may_wait = false;
        self.settle();
        let packed = size.max(1) | stack_bit(insn, self.bits) | item.access.packed;
        let stub = self.reach((packed, write), item.live_in, Use::Native, |this, used_for| {
            let path = match used_for {
                Use::Member => this.path_of(insn),
                _ => this.path_to(insn, size.max(1), write),
            };
            if fp {
                this.need_fp(item.live_in);
            }
            path
        });
        self.native_on_host(item);
        self.checked_access_ends(stub);
    }

    /// The instruction of `item`, with its memory operand, if it has one, at the place.
    pub(super) fn native_on_host(&mut self, item: &Item) {
        self.flags_for(item);
        self.mark();
        let start = self.e.len();
        self.emit_rewritten(item);
        self.flags_after(item);
        self.note_movable(item, start);
    }

    /// LEA.
    pub(super) fn lea(&mut self, item: &Item) {
        let insn = &item.insn;
        let destination = insn.op0_register();
        let number = gpr_number(destination).expect("LEA names a general register");
        let size = destination.size() as u32;
        // The offset is of the address size; the destination takes what fits, a narrower one zero-extended.
        let width = address_width(insn, self.bits);
        debug_assert!(width >= 16);
        let cold = |register| gpr_number(register).is_some_and(|number| host_number(number).is_none());
        if width != 64
            || size < 4
            || [destination, insn.memory_base(), insn.memory_index()].into_iter().any(cold)
        {
            self.settle();
        }
        match host_number(number) {
            Some(host) if size >= 4 && width == 64 => _ = self.offset_to(host as u8, size, insn),
            Some(host) => {
                self.offset_to_t0(insn);
                match size {
                    8 => dynasm!(self.e ; .arch x64 ; mov Rq(host as u8), r10),
                    4 => dynasm!(self.e ; .arch x64 ; mov Rd(host as u8), r10d),
                    _ => dynasm!(self.e ; .arch x64 ; mov Rw(host as u8), r10w),
                }
            }
            None if size >= 4 && width == 64 => {
                self.offset_to(T0, size, insn);
                self.keep(number, T0);
            }
            None => {
                self.offset_to_t0(insn);
                match size {
                    8 => {}
                    4 => dynasm!(self.e ; .arch x64 ; mov r10d, r10d),
                    _ => {
                        dynasm!(self.e ; .arch x64 ; mov [rsp + gpr_offset(number)], r10w);
                        return self.nothing_held();
                    }
                }
                self.keep(number, T0);
            }
        }
    }

    /// Emits `insn` with guest registers replaced by host ones and its memory operand, if any, by T1 + T0.
    fn emit_rewritten(&mut self, item: &Item) {
        let insn = &item.insn;
        if self.bits == 64 {
            let len = insn.len();
            match copying(insn, item.memory) {
                Copying::Verbatim => return self.e.raw_start(&item.bytes, len),
                Copying::Memory if matches!(self.place, Place::Own(_)) => {
                    return self.e.raw_start(&item.bytes, len);
                }
                Copying::Memory => {
                    if let Some((bytes, len)) = with_memory(&item.bytes, len, self.place) {
                        return self.e.raw_start(&bytes, len);
                    }
                }
                Copying::No if self.emit_moved(item) => return,
                Copying::No => {}
            }
        }
        let mut new = *insn;
        new.set_segment_prefix(Register::None);
        to_64bit_code(&mut new);
        let memory = item.memory;
        if memory {
            set_operand(&mut new, self.place);
        }
        let registers = (0..insn.op_count()).filter(|&op| insn.op_kind(op) == OpKind::Register);
        let (mut cold, mut high_byte, mut extended) = (false, false, memory);
        for operand in registers {
            let register = insn.op_register(operand);
            if is_high_byte(register) {
                high_byte = true;
            } else if let Some(number) = gpr_number(register) {
                match host_number(number) {
                    None => cold = true,
                    Some(host) => {
                        extended |= host >= 8;
                        new.set_op_register(operand, sized(host, register.size()));
                    }
                }
            }
        }
        if cold || high_byte && extended {
            self.emit_with_stand_ins(insn, new, memory, high_byte);
        } else {
            self.encode(&new);
        }
    }

    /// Emits `new` (registers of `insn` already replaced where they are resident), with host registers standing in for
    /// what the encoding cannot name: cold registers; with a high-byte operand everything above the eighth register,
    /// which a REX prefix would rule out.
    fn emit_with_stand_ins(
        &mut self,
        insn: &Instruction,
        mut new: Instruction,
        memory: bool,
        high_byte: bool,
    ) {
        let info = self.info.info(insn);
        let mut busy = [false; 16];
        busy[4] = true;
        for used in info.used_registers() {
            if let Some(host) = gpr_number(used.register()).and_then(host_number) {
                busy[host] = true;
            }
        }
        let mut needs: Vec<StandIn> = Vec::new();
        for operand in 0..insn.op_count() {
            let register = insn.op_register(operand);
            if insn.op_kind(operand) != OpKind::Register || is_high_byte(register) {
                continue;
            }
            let Some(number) = gpr_number(register) else { continue };
            let above = high_byte && host_number(number).is_some_and(|host| host >= 8);
            if host_number(number).is_some() && !above {
                continue;
            }
            let access = info.op_access(operand);
            // A 32-bit write clears the rest; narrower ones leave it, so the old value must be there.
            let read = !matches!(access, OpAccess::Write) || register.size() < 4;
            let written = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            match needs.iter_mut().find(|need| need.guest == number) {
                Some(need) => {
                    need.read |= read;
                    need.written |= written;
                }
                None => needs.push(StandIn { guest: number, host: 0, read, written }),
            }
        }
        self.nothing_held();
        // Scratch registers stand in for free where the encoding allows; others are parked for the time.
        let mut parked: Vec<usize> = Vec::new();
        let mut scratch: &[usize] = match (high_byte, memory) {
            (true, _) => &[],
            (false, false) => &[10, 11],
            (false, true) => &[11],
        };
        let mut stand_in = |translator: &mut Self, parked: &mut Vec<usize>, busy: &mut [bool; 16]| {
            if let Some((&host, rest)) = scratch.split_last() {
                scratch = rest;
                return host;
            }
            let host =
                PARKING_ORDER.into_iter().find(|&host| !busy[host]).expect("no instruction names them all");
            busy[host] = true;
            dynasm!(translator.e ; .arch x64 ; mov [rsp + scratch_offset(PARKED + parked.len())], Rq(host as u8));
            parked.push(host);
            host
        };
        if memory && high_byte {
            let host = stand_in(self, &mut parked, &mut busy);
            self.place_address(host as u8);
            set_address(&mut new, sized(host, 8));
        } else if memory && !needs.is_empty() {
            self.place_address(10);
            set_address(&mut new, Register::R10);
        }
        for need in &mut needs {
            need.host = stand_in(self, &mut parked, &mut busy);
            let host = need.host as u8;
            if need.read {
                match host_number(need.guest) {
                    None => dynasm!(self.e ; .arch x64 ; mov Rq(host), [rsp + gpr_offset(need.guest)]),
                    Some(home) => dynasm!(self.e ; .arch x64 ; mov Rq(host), Rq(home as u8)),
                }
            }
        }
        for operand in 0..insn.op_count() {
            let register = insn.op_register(operand);
            if insn.op_kind(operand) != OpKind::Register || is_high_byte(register) {
                continue;
            }
            if let Some(need) =
                gpr_number(register).and_then(|number| needs.iter().find(|need| need.guest == number))
            {
                new.set_op_register(operand, sized(need.host, register.size()));
            }
        }
        let mask = parked.iter().fold(0, |mask, &host| mask | 1 << host);
        self.mark_parked(mask);
        self.encode(&new);
        for need in needs.iter().filter(|need| need.written) {
            let host = need.host as u8;
            match host_number(need.guest) {
                None => dynasm!(self.e ; .arch x64 ; mov [rsp + gpr_offset(need.guest)], Rq(host)),
                Some(home) => dynasm!(self.e ; .arch x64 ; mov Rq(home as u8), Rq(host)),
            }
        }
        for (slot, &host) in parked.iter().enumerate() {
            dynasm!(self.e ; .arch x64 ; mov Rq(host as u8), [rsp + scratch_offset(PARKED + slot)]);
        }
    }

    /// Appends the encoding of `insn`, whose registers are the host's.
    pub(super) fn encode(&mut self, insn: &Instruction) {
        match self.encoder.encode(insn, self.e.here()) {
            Ok(_) => {
                let bytes = self.encoder.take_buffer();
                self.e.raw(&bytes);
                let mut bytes = bytes;
                bytes.clear();
                self.encoder.set_buffer(bytes);
            }
            Err(error) => {
                // What 64-bit mode cannot encode is not on the white list; should one slip through, the guest gets #UD.
                tracing::warn!(target: "tb", %insn, %error, "instruction cannot be re-encoded");
                drop(self.encoder.take_buffer());
                let item = *insn;
                self.complex(&item, Some(crate::exception::Exception::UD));
            }
        }
    }
}

/// Has the memory operand of `insn` be at `place`.
pub fn set_operand(insn: &mut Instruction, place: Place) {
    let (base, index, displacement) = match place {
        Place::Sum(displacement) => (Register::R11, Register::R10, displacement),
        Place::Host(displacement) => (Register::R11, Register::None, displacement),
        Place::Base { base, displacement } => (sized(usize::from(base), 8), Register::R11, displacement),
        Place::Window(memory) | Place::Own(memory) => return set_memory(insn, memory),
    };
    insn.set_memory_base(base);
    insn.set_memory_index(index);
    insn.set_memory_index_scale(1);
    insn.set_memory_displacement64(displacement as u64);
    insn.set_memory_displ_size(u32::from(displacement != 0));
}

/// Has the memory operand of `insn` be `memory`.
fn set_memory(insn: &mut Instruction, memory: Memory) {
    let register = |number: Option<u8>| number.map_or(Register::None, |number| sized(number.into(), 8));
    let Memory { base, index, displacement } = memory;
    insn.set_memory_base(register(base));
    insn.set_memory_index(register(index.map(|(index, _)| index)));
    insn.set_memory_index_scale(index.map_or(1, |(_, scale)| scale));
    insn.set_memory_displacement64(displacement as u64);
    insn.set_memory_displ_size(match base {
        None => 4,
        Some(_) => u32::from(displacement != 0),
    });
}

/// Has the memory operand of `insn` be at `base`.
fn set_address(insn: &mut Instruction, base: Register) {
    insn.set_memory_base(base);
    insn.set_memory_index(Register::None);
    insn.set_memory_displacement64(0);
    insn.set_memory_displ_size(0);
}

/// Whether `insn` has an explicit memory operand.
pub fn has_memory(insn: &Instruction) -> bool {
    // Operands that an instruction does not have are registers, and the fifth can be none in memory.
    insn.op1_kind() == OpKind::Memory
        || insn.op0_kind() == OpKind::Memory
        || insn.op2_kind() == OpKind::Memory
        || insn.op3_kind() == OpKind::Memory
}

/// Whether an x87 exception that is pending comes before `insn`.
pub fn waits(insn: &Instruction) -> bool {
    let no_wait = matches!(insn.mnemonic(), Mnemonic::Fnstsw | Mnemonic::Fnstcw);
    !no_wait && (is_x87(insn) || uses_mmx(insn))
}

fn uses_mmx(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|op| insn.op_kind(op) == OpKind::Register && insn.op_register(op).is_mm())
}

/// Whether `insn` is the x87 FPU's.
pub fn is_x87(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    // FISTTP came with SSE3; it alone of that extension has no vector register.
    insn.mnemonic() == Mnemonic::Fisttp
        || insn.cpuid_features().iter().any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387))
}

/// Whether a memory operand that is not aligned to its size raises #GP(0) (SDM vol. 1, *Memory Alignment*).
pub fn needs_alignment(insn: &Instruction, fp: bool) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Cmpxchg16b
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovdqa32
        | M::Vmovdqa64
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => true,
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Pcmpestri
        | M::Pcmpestrm
        | M::Pcmpistri
        | M::Pcmpistrm
        | M::Pcmpestri64
        | M::Pcmpestrm64
        | M::Sha1msg1
        | M::Sha1msg2
        | M::Sha1nexte
        | M::Sha1rnds4
        | M::Sha256msg1
        | M::Sha256msg2
        | M::Sha256rnds2 => false,
        _ => fp && insn.encoding() == EncodingKind::Legacy && insn.memory_size().size() == 16,
    }
}

/// Replaces encodings that 64-bit mode does not have by their equals.
fn to_64bit_code(insn: &mut Instruction) {
    let code = match insn.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        // Absolute offsets: the address is a register now.
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        _ => return,
    };
    insn.set_code(code);
}
