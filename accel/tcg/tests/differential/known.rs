//! Differences that are no bugs: where the manuals leave a choice, or different CPUs choose differently. Everything here has its reason.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use crate::exclusions;
use crate::layout::{CONTEXT_PAGE, PAGE};
use crate::shared::{Input, Outcome, Shared, ending};

/// Flags that the manuals call undefined after `code` and that the engine cannot get from the host: it executes these instructions by
/// other means (no 64-bit encoding), or the host's value depends on how the operand is reached (RCL/RCR by more than one). Such instructions are tested alone only.
pub fn undefined_flags(code: Code) -> u64 {
    match code.mnemonic() {
        Mnemonic::Aaa | Mnemonic::Aas => 0x8c4,
        Mnemonic::Daa | Mnemonic::Das => 0x800,
        Mnemonic::Aad | Mnemonic::Aam => 0x811,
        Mnemonic::Rcl | Mnemonic::Rcr if by_count(code) => 0x800,
        _ => 0,
    }
}

fn by_count(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    matches!(code.op_code().op_kind(1), K::imm8 | K::cl)
}

/// The instruction at `rip`, if it is one.
pub fn instruction_at(shared: &Shared, bits: u32, rip: u64) -> Option<Instruction> {
    let code = shared.code_at(rip, 15);
    let instruction = Decoder::with_ip(bits, &code, rip, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Memory operands that fault when they are not aligned, even without EFLAGS.AC.
fn may_need_alignment(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory)
        && instruction.memory_size().size() >= 16
}

fn is_io(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.op_code().is_input_output()
        || matches!(instruction.mnemonic(), M::Cli | M::Sti | M::Popf | M::Popfd | M::Popfq)
}

const GENERAL_PROTECTION: u32 = 13;
const PAGE_FAULT: u32 = 14;
const DEBUG: u32 = 1;
const ALIGNMENT_CHECK: u32 = 17;

/// The last page of user space, as a page number.
const LAST_USER_PAGE: u64 = 0x7_ffff_ffff;

/// Why two outcomes of a stream of `length` bytes that differ may.
pub fn tolerated(
    shared: &Shared,
    input: &Input,
    length: u64,
    native: &Outcome,
    engine: &Outcome,
) -> Option<&'static str> {
    if engine.vector == PAGE_FAULT && engine.cr2 & !(PAGE as u64 - 1) == CONTEXT_PAGE {
        return Some("the native side keeps its context in a page that the guest does not have");
    }
    if native.vector == ending::DONE {
        return None;
    }
    if input.cpl == 0 && native.vector == PAGE_FAULT && native.cr2 >> 63 != 0 {
        return Some(
            "the native side is a user always: the kernel's half is another one in the guest at CPL 0",
        );
    }
    if native.vector == PAGE_FAULT && native.cr2 >> 12 == LAST_USER_PAGE && native.error == engine.error | 1 {
        return Some("the host's kernel has a page of its own at the end of user space");
    }
    if native.vector == DEBUG && native.rip + 1 == engine.rip {
        return Some(
            "INT1: where the host is a virtual machine, its hypervisor may leave RIP at the instruction",
        );
    }
    if !(input.rip..input.rip + length).contains(&native.rip) {
        return Some(
            "the stream lost its way (it changed its return address), where instructions that are excluded lie",
        );
    }
    for rip in [native.rip, engine.rip] {
        if let Some(instruction) = instruction_at(shared, input.bits, rip)
            && let Some(why) = exclusions::reason(instruction.code())
        {
            return Some(why);
        }
    }
    let same_place = engine.vector < 32 && native.rip == engine.rip;
    let instruction = instruction_at(shared, input.bits, native.rip)?;
    match instruction.mnemonic() {
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq if same_place => {
            Some("which of CMPS's two operands is looked at first is the CPU's choice")
        }
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
            Some("whether bytes masked off fault, and the address reported, are the CPU's choice")
        }
        Mnemonic::Call
            if same_place
                && matches!(native.vector, PAGE_FAULT | ALIGNMENT_CHECK)
                && engine.vector == GENERAL_PROTECTION =>
        {
            Some("a call to a non-canonical address whose push faults: which is reported is the CPU's choice")
        }
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq
            if same_place && input.bits == 32 && engine.vector == GENERAL_PROTECTION =>
        {
            Some("elements masked off beyond 4 GiB are the CPU's choice")
        }
        _ if same_place && instruction.is_vsib() && native.vector == DEBUG && engine.vector == PAGE_FAULT => {
            Some("a gather that is stepped through may trap between its elements")
        }
        Mnemonic::Popa | Mnemonic::Popad if same_place => {
            Some("how many registers are loaded before a fault is the CPU's choice")
        }
        _ if input.cpl == 0
            && native.vector == GENERAL_PROTECTION
            && (instruction.is_privileged()
                || instruction.op_code().may_require_cpl0()
                || is_io(&instruction)) =>
        {
            Some("the native side is a user always: privileged instructions work at CPL 0")
        }
        _ if same_place
            && native.vector == GENERAL_PROTECTION
            && native.vector != engine.vector
            && may_need_alignment(&instruction) =>
        {
            Some("an operand both misaligned and not accessible: which is reported is the CPU's choice")
        }
        _ => None,
    }
}
