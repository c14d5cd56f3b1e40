//! What is not compared, and why. Everything else is.

use iced_x86::{Code, Mnemonic};

/// Why an instruction is left out of the generated streams.
pub fn reason(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match code.mnemonic() {
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdpru => "reads a counter: no two readings are alike",
        M::Rdrand | M::Rdseed => "random numbers",
        M::Cpuid | M::Xgetbv | M::Rdpid => "the guest's CPU is not the host's: covered by tests of CPUID",
        M::Sgdt | M::Sidt | M::Smsw | M::Sldt | M::Str => {
            "UMIP: Linux emulates these for its processes; a guest gets #GP"
        }
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => "the host's descriptor tables are Linux's",
        M::Rdfsbase | M::Wrfsbase => "FS belongs to the native process's C library",
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            "loads a selector: the host's descriptor tables are Linux's"
        }
        M::Syscall | M::Sysenter | M::Sysret | M::Sysretq | M::Sysexit | M::Sysexitq | M::Int | M::Int1 => {
            "enters Linux on the native side"
        }
        M::Iret | M::Iretd | M::Iretq | M::Retf | M::Uiret => "far transfers: covered by the micro-kernels",
        M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx | M::Umonitor | M::Umwait | M::Tpause => {
            "waits; the guest's CPUID does not show it"
        }
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstor
        | M::Xrstor64
        | M::Xrstors
        | M::Xrstors64 => {
            "the header tells which components are in use, a fact of the moment; covered by unit tests"
        }
        M::Fnsave
        | M::Fsave
        | M::Fnstenv
        | M::Fstenv
        | M::Frstor
        | M::Fldenv
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64 => "stores FIP and FDP: `pointer_image` covers it with these fields left out",
        M::Popf | M::Popfd | M::Popfq => "may set TF and NT: `flags_image` covers it with chosen values",
        M::In | M::Insb | M::Insd | M::Insw | M::Out | M::Outsb | M::Outsd | M::Outsw => {
            "the native process has no ports: covered by the micro-kernels"
        }
        M::Loadall => "not an instruction of this CPU",
        _ => return by_code(code),
    })
}

fn by_code(code: Code) -> Option<&'static str> {
    let text = code.op_code();
    if (0..text.op_count()).any(|operand| text.op_kind(operand) == iced_x86::OpCodeOperandKind::seg_reg)
        && text.op_kind(0) == iced_x86::OpCodeOperandKind::seg_reg
    {
        return Some("loads a selector: the host's descriptor tables are Linux's");
    }
    match code {
        Code::Movsxd_r16_rm16 => Some("reads 2 bytes on Intel's CPUs, 4 on AMD's"),
        Code::Reservednop_rm16_r16_0F0D
        | Code::Reservednop_rm32_r32_0F0D
        | Code::Reservednop_rm64_r64_0F0D => {
            Some("a NOP on Intel's CPUs, undefined on AMD's with a register operand")
        }
        Code::Popw_ES
        | Code::Popd_ES
        | Code::Popw_SS
        | Code::Popd_SS
        | Code::Popw_DS
        | Code::Popd_DS
        | Code::Popw_FS
        | Code::Popd_FS
        | Code::Popq_FS
        | Code::Popw_GS
        | Code::Popd_GS
        | Code::Popq_GS => Some("loads a selector: the host's descriptor tables are Linux's"),
        _ => None,
    }
}
