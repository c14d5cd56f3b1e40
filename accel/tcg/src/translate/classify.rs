//! The white list: what is done with each instruction.
//!
//! An instruction is passed through to the host only if this file says so and the guest's CPUID shows its extension.
//! Everything else goes to a helper, which executes it or raises the exception that the CPU shown would.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::code::tb::mode;
use crate::exception::Exception;
use crate::translate::features::Features;
use crate::translate::system::{self, System};

/// What is done with an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Executed by the host, operands rewritten.
    Native,
    /// As `Native`, with vector or x87 state.
    NativeFp,
    /// No effect that a guest can see: NOP, ENDBR, PREFETCH.
    Nothing,
    /// LEA: an address, not an access.
    Lea,
    /// BT, BTS, BTR, BTC with a bit offset in a register and a memory operand.
    BitTest,
    /// PUSH of a register or immediate.
    Push,
    /// PUSH of a memory operand.
    PushMemory,
    /// POP of a general register.
    Pop,
    /// LEAVE.
    Leave,
    /// JMP rel.
    Jump,
    /// Jcc rel.
    JumpIf,
    /// JCXZ, LOOP and kin.
    JumpCount,
    /// JMP r/m.
    JumpIndirect,
    /// CALL rel.
    Call,
    /// CALL r/m.
    CallIndirect,
    /// RET, near.
    Return,
    /// CLD: 0, STD: DF.
    Direction(u32),
    /// A system instruction that has generated code of its own.
    System(System),
    /// Executed by a helper; `true`: nothing after it in this block runs.
    Complex(bool),
    /// Raises this.
    Raise(Exception),
}

/// Classifies `insn` in mode `mode` of a CPU that shows `features`.
pub fn classify(insn: &Instruction, bits: u32, mode: u32, features: &Features) -> Class {
    if insn.code() == Code::INVALID {
        return Class::Raise(Exception::UD);
    }
    if let Some(class) = control(insn, bits, mode) {
        return class;
    }
    if let Some(system) = system::plan(insn, mode, features) {
        return Class::System(system);
    }
    if integer(insn.mnemonic()) {
        if has_special_register(insn) {
            return Class::Complex(false);
        }
        let shown = insn.cpuid_features().iter().all(|&feature| features.has(feature));
        return if shown { bit_test(insn).unwrap_or(Class::Native) } else { Class::Raise(Exception::UD) };
    }
    match insn.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Reservednop => return Class::Nothing,
        Mnemonic::Lea if insn.op1_kind() == OpKind::Memory => return Class::Lea,
        // 32-bit code must not clear the registers that it cannot name.
        Mnemonic::Vzeroall | Mnemonic::Vzeroupper if bits != 64 => return Class::Complex(false),
        Mnemonic::Cld => return Class::Direction(0),
        Mnemonic::Std => return Class::Direction(crate::env::flag::DF),
        _ => {}
    }
    match vector(insn) {
        Some(unit) => vector_class(insn, unit, mode, features),
        None => Class::Complex(insn.flow_control() != FlowControl::Next),
    }
}

/// Control flow and stack instructions.
fn control(insn: &Instruction, bits: u32, mode: u32) -> Option<Class> {
    // Segmented and 16-bit stacks are the helpers'.
    let plain_stack = match bits {
        64 => true,
        32 => mode & mode::FLAT != 0 && mode & mode::STACK32 != 0,
        _ => false,
    };
    let stack = |class| {
        Some(if plain_stack { class } else { Class::Complex(insn.flow_control() != FlowControl::Next) })
    };
    // A 66 prefix on a near branch makes it 16 bits wide outside 64-bit mode.
    let narrow = bits == 32 && matches!(insn.op0_kind(), OpKind::NearBranch16);
    match insn.flow_control() {
        FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() && !narrow => {
            return Some(Class::Jump);
        }
        FlowControl::ConditionalBranch if insn.is_jcc_short_or_near() && !narrow => {
            return Some(Class::JumpIf);
        }
        FlowControl::ConditionalBranch
            if (insn.is_loop() || insn.is_loopcc() || insn.is_jcx_short()) && !narrow =>
        {
            return Some(Class::JumpCount);
        }
        FlowControl::IndirectBranch if matches!(insn.code(), Code::Jmp_rm64 | Code::Jmp_rm32) => {
            return Some(Class::JumpIndirect);
        }
        FlowControl::Call if insn.is_call_near() && !narrow => return stack(Class::Call),
        FlowControl::IndirectCall if matches!(insn.code(), Code::Call_rm64 | Code::Call_rm32) => {
            return stack(Class::CallIndirect);
        }
        FlowControl::Return if returns_near(insn.code(), bits) => return stack(Class::Return),
        _ => {}
    }
    match insn.mnemonic() {
        Mnemonic::Push if insn.op0_kind() == OpKind::Memory => stack(Class::PushMemory),
        Mnemonic::Push if !has_special_register(insn) => stack(Class::Push),
        Mnemonic::Pop if insn.op0_kind() == OpKind::Register && !has_special_register(insn) => {
            stack(Class::Pop)
        }
        Mnemonic::Leave if matches!(insn.code(), Code::Leaveq | Code::Leaved) => stack(Class::Leave),
        _ => None,
    }
}

fn returns_near(code: Code, bits: u32) -> bool {
    match bits {
        64 => matches!(code, Code::Retnq | Code::Retnq_imm16),
        _ => matches!(code, Code::Retnd | Code::Retnd_imm16),
    }
}

fn has_special_register(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|operand| {
        insn.op_kind(operand) == OpKind::Register && {
            let register = insn.op_register(operand);
            register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
        }
    })
}

fn bit_test(insn: &Instruction) -> Option<Class> {
    let bit_test = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let far = insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register;
    (bit_test && far).then_some(Class::BitTest)
}

/// Instructions on general registers and flags that the host executes as they are.
#[rustfmt::skip]
fn integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Add | M::Adc | M::And | M::Or | M::Xor | M::Sub | M::Sbb | M::Cmp | M::Test | M::Neg | M::Not | M::Inc | M::Dec
        | M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Movbe | M::Movnti | M::Bswap | M::Xchg | M::Xadd
        | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b
        | M::Mul | M::Imul | M::Div | M::Idiv
        | M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
        | M::Bsf | M::Bsr | M::Bt | M::Bts | M::Btr | M::Btc | M::Popcnt | M::Lzcnt | M::Tzcnt | M::Crc32
        | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo
        | M::Clc | M::Stc | M::Cmc | M::Lahf | M::Sahf
        | M::Cmova | M::Cmovae | M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge | M::Cmovl | M::Cmovle | M::Cmovne
        | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo | M::Cmovp | M::Cmovs
        | M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl | M::Setle | M::Setne
        | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets
        | M::Andn | M::Bextr | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi | M::Mulx | M::Pdep | M::Pext | M::Rorx
        | M::Sarx | M::Shlx | M::Shrx | M::Adcx | M::Adox | M::Rdrand | M::Rdseed
        | M::Lfence | M::Mfence | M::Sfence | M::Clflush | M::Clflushopt | M::Clwb
    )
}

/// Which state an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    X87,
    Wait,
    Mmx,
    Sse,
    Avx,
    Avx512,
}

/// The unit of a vector or x87 instruction that the host executes as it is; `None` for all others.
fn vector(insn: &Instruction) -> Option<Unit> {
    use Mnemonic as M;
    match insn.mnemonic() {
        // Memory operands that are not one plain stretch, or state that must be shown in the guest's terms.
        M::Fnstenv
        | M::Fstenv
        | M::Fldenv
        | M::Fnsave
        | M::Fsave
        | M::Frstor
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Maskmovq
        | M::Maskmovdqu
        | M::Vmaskmovdqu
        | M::Vmaskmovps
        | M::Vmaskmovpd
        | M::Vpmaskmovd
        | M::Vpmaskmovq
        | M::Fstdw
        | M::Fstsg
        | M::Frstpm
        | M::Fnstdw
        | M::Fnstsg
        | M::Fsetpm
        | M::Fnsetpm => return None,
        M::Wait => return Some(Unit::Wait),
        _ => {}
    }
    if insn.is_vsib() {
        return None;
    }
    let features = insn.cpuid_features();
    if insn.encoding() == EncodingKind::VEX || insn.encoding() == EncodingKind::EVEX {
        let mask_unit = |register: Register| register.is_k();
        let wide = insn.encoding() == EncodingKind::EVEX
            || (0..insn.op_count()).any(|op| mask_unit(insn.op_register(op)));
        return features.iter().any(|&f| is_vector_feature(f)).then_some(if wide {
            Unit::Avx512
        } else {
            Unit::Avx
        });
    }
    if insn.encoding() != EncodingKind::Legacy {
        return None;
    }
    let mut unit = None;
    for &feature in features {
        unit = Some(match feature {
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => Unit::X87,
            CpuidFeature::MMX => Unit::Mmx,
            other if is_vector_feature(other) => Unit::Sse,
            _ => continue,
        });
    }
    // SSE extensions on MMX registers need CR0.TS and EM as MMX does, and OSFXSR is not asked of them.
    if unit == Some(Unit::Sse) && uses_mm_only(insn) { Some(Unit::Mmx) } else { unit }
}

fn uses_mm_only(insn: &Instruction) -> bool {
    let registers = || {
        (0..insn.op_count()).filter(|&op| insn.op_kind(op) == OpKind::Register).map(|op| insn.op_register(op))
    };
    registers().any(|r| r.is_mm()) && !registers().any(|r| r.is_xmm())
}

#[rustfmt::skip]
fn is_vector_feature(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::SSE4A | F::AES | F::PCLMULQDQ | F::SHA | F::GFNI
        | F::AVX | F::AVX2 | F::FMA | F::F16C | F::VAES | F::VPCLMULQDQ | F::AVX_VNNI
        | F::AVX512F | F::AVX512BW | F::AVX512DQ | F::AVX512VL | F::AVX512CD | F::AVX512_IFMA | F::AVX512_VBMI
        | F::AVX512_VBMI2 | F::AVX512_VNNI | F::AVX512_BITALG | F::AVX512_VPOPCNTDQ | F::AVX512_BF16
    )
}

fn vector_class(insn: &Instruction, unit: Unit, mode: u32, features: &Features) -> Class {
    let set = |bits| mode & bits != 0;
    let ud = Class::Raise(Exception::UD);
    if !insn.cpuid_features().iter().all(|&feature| features.has(feature)) {
        return ud;
    }
    match unit {
        Unit::X87 if set(mode::EM | mode::TS) => return Class::Raise(Exception::NM),
        // #NM of FWAIT depends on CR0.MP: the helper looks.
        Unit::Wait if set(mode::TS) => return Class::Complex(false),
        Unit::X87 | Unit::Wait => return Class::NativeFp,
        Unit::Mmx if set(mode::EM) => return ud,
        Unit::Mmx => {}
        Unit::Sse if set(mode::EM) || !set(mode::SSE) => return ud,
        Unit::Avx if !set(mode::AVX) || set(mode::REAL) => return ud,
        Unit::Avx512 if !set(mode::AVX512) || set(mode::REAL) => return ud,
        _ => {}
    }
    if set(mode::TS) { Class::Raise(Exception::NM) } else { Class::NativeFp }
}
