//! Control, debug and model-specific registers; what needs privilege.

use std::sync::Mutex;

use accel::CpuIo;
use devices::cpu_interrupts::{LocalInterrupts, NoSuchRegister};

use super::*;
use crate::complex::{Next, execute};
use crate::env::flag;
use crate::exception::{Exception, Exec};
use crate::msr::spec;

fn wrmsr(machine: &mut Machine, index: u32, value: u64) -> Exec<Next> {
    machine.cpu.env.gpr[1] = u64::from(index);
    machine.cpu.env.gpr[0] = value & 0xffff_ffff;
    machine.cpu.env.gpr[2] = value >> 32;
    machine.execute(&[0x0f, 0x30])
}

fn rdmsr(machine: &mut Machine, index: u32) -> Exec<u64> {
    machine.cpu.env.gpr[1] = u64::from(index);
    machine.execute(&[0x0f, 0x32])?;
    Ok(machine.cpu.env.gpr[2] << 32 | machine.cpu.env.gpr[0])
}

/// mov crN, rax
fn set_cr(machine: &mut Machine, number: u8, value: u64) -> Exec<Next> {
    machine.cpu.env.gpr[0] = value;
    machine.execute(&[0x0f, 0x22, 0xc0 | number << 3])
}

#[test]
fn privileged_instructions_fault_in_user_mode() {
    let instructions: &[&[u8]] = &[
        &[0xf4],                         // hlt
        &[0xfa],                         // cli
        &[0xfb],                         // sti
        &[0x0f, 0x06],                   // clts
        &[0x0f, 0x08],                   // invd
        &[0x0f, 0x09],                   // wbinvd
        &[0x0f, 0x20, 0xc0],             // mov rax, cr0
        &[0x0f, 0x22, 0xd8],             // mov cr3, rax
        &[0x0f, 0x21, 0xf8],             // mov rax, dr7
        &[0x0f, 0x23, 0xf8],             // mov dr7, rax
        &[0x0f, 0x30],                   // wrmsr
        &[0x0f, 0x32],                   // rdmsr
        &[0x0f, 0x01, 0x38],             // invlpg [rax]
        &[0x66, 0x0f, 0x38, 0x82, 0x08], // invpcid rcx, [rax]
        &[0x0f, 0x01, 0x10],             // lgdt [rax]
        &[0x0f, 0x01, 0x18],             // lidt [rax]
        &[0x0f, 0x00, 0xd0],             // lldt ax
        &[0x0f, 0x00, 0xd8],             // ltr ax
        &[0x0f, 0x01, 0xf0],             // lmsw ax
        &[0x0f, 0x01, 0xd1],             // xsetbv
        &[0x0f, 0x33],                   // rdpmc
        &[0xe4, 0x60],                   // in al, 0x60
        &[0xee],                         // out dx, al
    ];
    for bytes in instructions {
        let mut machine = long_user();
        machine.cpu.env.gpr[0] = CODE;
        assert_eq!(machine.execute(bytes), Err(Exception::gp(0)), "{bytes:02x?}");
    }
    let undefined: &[&[u8]] = &[
        &[0x0f, 0x01, 0xca],       // clac
        &[0x0f, 0x01, 0xc8],       // monitor
        &[0x0f, 0x01, 0xc9],       // mwait
        &[0x0f, 0x01, 0xc1],       // vmcall
        &[0x0f, 0xaa],             // rsm
        &[0x0f, 0x0b],             // ud2
        &[0xf3, 0x0f, 0xae, 0xc0], // rdfsbase eax, CR4.FSGSBASE clear
    ];
    for bytes in undefined {
        assert_eq!(long_user().execute(bytes), Err(Exception::UD), "{bytes:02x?}");
    }
}

#[test]
fn cr0_and_cr4_refuse_what_does_not_exist() {
    let mut machine = long_kernel();
    let (cr0, cr4) = (machine.cpu.env.cr0, machine.cpu.env.cr4);
    assert_eq!(set_cr(&mut machine, 0, cr0 & !1), Err(Exception::gp(0)), "PG without PE");
    assert_eq!(set_cr(&mut machine, 0, cr0 | 1 << 29), Err(Exception::gp(0)), "NW without CD");
    assert_eq!(set_cr(&mut machine, 0, cr0 | 1 << 32), Err(Exception::gp(0)));
    assert_eq!(set_cr(&mut machine, 0, cr0 & !(1 << 31)), Err(Exception::gp(0)), "in 64-bit mode");
    assert_eq!(set_cr(&mut machine, 4, cr4 & !(1 << 5)), Err(Exception::gp(0)), "PAE in long mode");
    assert_eq!(set_cr(&mut machine, 4, cr4 | 1 << 13), Err(Exception::gp(0)), "VMXE");
    assert_eq!(set_cr(&mut machine, 4, cr4 | 1 << 12), Err(Exception::gp(0)), "LA57");
    assert_eq!(set_cr(&mut machine, 3, 1 << 46), Err(Exception::gp(0)));
    assert_eq!(set_cr(&mut machine, 3, 1 << 63 | 0x1000), Err(Exception::gp(0)), "without PCIDE");
    assert_eq!((machine.cpu.env.cr0, machine.cpu.env.cr4), (cr0, cr4));

    machine.cpu.env.cr3 |= 1;
    assert_eq!(set_cr(&mut machine, 4, cr4 | 1 << 17), Err(Exception::gp(0)), "PCID with CR3[11:0]");
    machine.cpu.env.cr3 &= !1;
    assert_eq!(set_cr(&mut machine, 4, cr4 | 1 << 17), Ok(Next::EndBlock));
    assert_eq!(set_cr(&mut machine, 3, 1 << 63 | 0x1005), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.cr3, 0x1005);
    assert_eq!(set_cr(&mut machine, 0, cr0 | 8), Ok(Next::EndBlock));
    assert_eq!(machine.execute(&[0x0f, 0x06]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.cr0, cr0);
}

#[test]
fn a_new_address_space_is_seen_at_once() {
    let mut machine = long_kernel();
    let read = |machine: &mut Machine| machine.cpu.read(0x7000, 8, crate::mmu::Access::Current);
    put(&machine, 0x7000, 1);
    put(&machine, 0x8000, 2);
    assert_eq!(read(&mut machine), Ok(1));
    // A copy of the tables in which 0x7000 is 0x8000.
    for (table, at) in [(0x1000, 0x60_000), (0x2000, 0x61_000), (0x3000, 0x62_000), (0x4000, 0x63_000)] {
        let bytes = machine.peek(table, 4096);
        machine.poke(at, &bytes);
    }
    put(&machine, 0x60_000, 0x61_007);
    put(&machine, 0x61_000, 0x62_007);
    put(&machine, 0x62_000, 0x63_007);
    put(&machine, 0x63_000 + 7 * 8, 0x8007);
    assert_eq!(set_cr(&mut machine, 3, 0x60_000), Ok(Next::EndBlock));
    assert_eq!(read(&mut machine), Ok(2));
    // A change of the tables is seen after INVLPG.
    put(&machine, 0x63_000 + 7 * 8, 0x7007);
    machine.cpu.env.gpr[0] = 0x7123;
    assert_eq!(machine.execute(&[0x0f, 0x01, 0x38]), Ok(Next::EndBlock));
    assert_eq!(read(&mut machine), Ok(1));
}

#[test]
fn invpcid_checks_its_descriptor() {
    let mut machine = long_kernel();
    let mut invpcid = |kind: u64, pcid: u64, linear: u64| {
        put(&machine, CODE + 0x100, pcid);
        put(&machine, CODE + 0x108, linear);
        machine.cpu.env.gpr[0] = CODE + 0x100;
        machine.cpu.env.gpr[1] = kind;
        machine.execute(&[0x66, 0x0f, 0x38, 0x82, 0x08])
    };
    assert_eq!(invpcid(4, 0, 0), Err(Exception::gp(0)));
    assert_eq!(invpcid(0, 1, 0), Err(Exception::gp(0)), "PCIDE is clear");
    assert_eq!(invpcid(3, 0x1000, 0), Err(Exception::gp(0)));
    assert_eq!(invpcid(0, 0, 1 << 47), Err(Exception::gp(0)));
    for kind in 0..4 {
        assert_eq!(invpcid(kind, 0, 0x1000), Ok(Next::EndBlock));
    }
}

#[test]
fn from_real_mode_to_64bit_mode_and_back() {
    let mut machine = Machine::new_real();
    with_tables(&mut machine);
    machine.cpu.env.gpr[4] = 0x7000;
    machine.cpu.env.seg[1].selector = 0x4000;
    machine.cpu.env.seg[1].base = CODE;
    machine.cpu.env.rip = 0;
    let cr4 = machine.cpu.env.cr4;
    machine.cpu.env.cr4 = 0;
    machine.cpu.env.cr3 = 0;
    assert_eq!(set_cr(&mut machine, 0, 0x11), Ok(Next::EndBlock));
    assert_eq!((machine.cpu.env.code_bits(), machine.cpu.env.cpl()), (16, 0));
    // jmp dword 0x30:CODE
    let mut jump = vec![0x66, 0xea, 0, 0, 4, 0];
    jump.extend(KERNEL_CODE32.to_le_bytes());
    assert_eq!(machine.execute(&jump), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.code_bits()), (CODE, 32));
    // mov ds, eax
    machine.cpu.env.gpr[0] = u64::from(KERNEL_DATA);
    assert_eq!(machine.execute(&[0x8e, 0xd8]), Ok(Next::EndBlock));
    assert_eq!(machine.execute(&[0x8e, 0xd0]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.interrupt_shadow, crate::env::SHADOW_SS);
    // Without PAE, long mode cannot be entered.
    assert_eq!(wrmsr(&mut machine, spec::IA32_EFER, 0x900), Ok(Next::EndBlock));
    assert_eq!(set_cr(&mut machine, 3, 0x1000), Ok(Next::EndBlock));
    assert_eq!(set_cr(&mut machine, 0, 0x8000_0011), Err(Exception::gp(0)));
    assert_eq!(set_cr(&mut machine, 4, cr4), Ok(Next::EndBlock));
    assert_eq!(set_cr(&mut machine, 0, 0x8000_0011), Ok(Next::EndBlock));
    assert_eq!(rdmsr(&mut machine, spec::IA32_EFER), Ok(0xd00));
    assert_eq!(machine.cpu.env.code_bits(), 32, "compatibility mode");
    assert_eq!(wrmsr(&mut machine, spec::IA32_EFER, 0x800), Err(Exception::gp(0)), "LME while paging");
    let mut jump = vec![0xea, 0x10, 0, 4, 0];
    jump.extend(KERNEL_CODE64.to_le_bytes());
    assert_eq!(machine.execute(&jump), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.code_bits()), (CODE + 0x10, 64));

    // And back: a far return to 32-bit code, then paging off.
    put(&machine, 0x6ff0, CODE);
    put(&machine, 0x6ff8, u64::from(KERNEL_CODE32));
    machine.cpu.env.gpr[4] = 0x6ff0;
    assert_eq!(machine.execute(&[0x48, 0xcb]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.code_bits(), machine.cpu.env.gpr[4]), (32, 0x7000));
    assert_eq!(set_cr(&mut machine, 0, 0x11), Ok(Next::EndBlock));
    assert_eq!(rdmsr(&mut machine, spec::IA32_EFER), Ok(0x900));
}

#[test]
fn msrs_refuse_bad_values() {
    let mut machine = long_kernel();
    let gp = Err(Exception::gp(0));
    for (index, value) in [
        (spec::IA32_LSTAR, 1 << 47),
        (spec::IA32_KERNEL_GS_BASE, 1 << 63),
        (spec::IA32_FS_BASE, 0x8000_0000_0000),
        (spec::IA32_FMASK, 1 << 32),
        (spec::IA32_TSC_AUX, 1 << 32),
        (spec::IA32_EFER, 1 << 1),
        (spec::IA32_EFER, 1 << 12),
        (spec::IA32_PAT, 2),
        (spec::IA32_PAT, 8 << 56),
        (spec::IA32_MTRR_DEF_TYPE, 2),
        (spec::IA32_MTRR_DEF_TYPE, 1 << 12),
        (spec::IA32_MTRR_PHYSBASE0, 0x106),
        (spec::IA32_MTRR_PHYSBASE0 + 1, 1 << 46),
        (spec::IA32_MTRR_FIX64K_00000, 3),
        (spec::IA32_SPEC_CTRL, 8),
        (spec::IA32_PRED_CMD, 2),
        (spec::IA32_ARCH_CAPABILITIES, 0),
        (spec::IA32_MTRRCAP, 0),
        (spec::IA32_TSC_DEADLINE, 0),
        (0x1234, 0),
        (0x4000_0000, 0),
        (0xc001_0015, 0),
    ] {
        assert_eq!(wrmsr(&mut machine, index, value), gp, "{index:#x} {value:#x}");
    }
    for index in [spec::IA32_PRED_CMD, 0x1234, 0x186, 0x4b56_4d00, 0x26a + 0x10, 0x210] {
        assert_eq!(rdmsr(&mut machine, index), Err(Exception::gp(0)), "{index:#x}");
    }
}

#[test]
fn msrs_keep_good_values() {
    let mut machine = long_kernel();
    for (index, value) in [
        (spec::IA32_STAR, 0x0023_0010_0000_0000),
        (spec::IA32_LSTAR, 0xffff_ffff_8100_0000),
        (spec::IA32_KERNEL_GS_BASE, 0xffff_8880_0000_0000),
        (spec::IA32_TSC_AUX, 0x1003),
        (spec::IA32_SYSENTER_ESP, 0xffff_fe00_0000_0000),
        (spec::IA32_PAT, 0x0407_0506_0007_0106),
        (spec::IA32_MTRR_DEF_TYPE, 0xc06),
        (spec::IA32_MTRR_PHYSBASE0 + 15, 0x3fff_8000_0800),
        (spec::IA32_MTRR_FIX4K_C0000 + 7, 0x0505_0505_0505_0505),
        (spec::IA32_SPEC_CTRL, 1),
    ] {
        assert_eq!(wrmsr(&mut machine, index, value), Ok(Next::Fallthrough), "{index:#x}");
        assert_eq!(rdmsr(&mut machine, index), Ok(value), "{index:#x}");
    }
    assert_eq!(wrmsr(&mut machine, spec::IA32_GS_BASE, 0x5000), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.seg[5].base, 0x5000);
    assert_eq!(wrmsr(&mut machine, spec::IA32_EFER, 0xd01), Ok(Next::EndBlock));
    assert_eq!(rdmsr(&mut machine, spec::IA32_EFER), Ok(0xd01));
    assert_eq!(rdmsr(&mut machine, spec::IA32_ARCH_CAPABILITIES).unwrap() & 3, 3);
    assert_eq!(rdmsr(&mut machine, spec::IA32_MTRRCAP), Ok(0x508));
}

#[test]
fn the_time_stamp_counter_moves_with_its_msrs() {
    let mut machine = long_kernel();
    assert_eq!(wrmsr(&mut machine, spec::IA32_TIME_STAMP_COUNTER, 1000), Ok(Next::Fallthrough));
    assert_eq!(rdmsr(&mut machine, spec::IA32_TIME_STAMP_COUNTER), Ok(1000));
    assert_eq!(rdmsr(&mut machine, spec::IA32_TSC_ADJUST), Ok(1000));
    assert_eq!(wrmsr(&mut machine, spec::IA32_TSC_ADJUST, 400), Ok(Next::Fallthrough));
    machine.execute(&[0x0f, 0x31]).unwrap();
    assert_eq!((machine.cpu.env.gpr[0], machine.cpu.env.gpr[2]), (400, 0));
    assert_eq!(machine.cpu.tsc.offset(), 400);
    machine.cpu.env.msr.tsc_aux = 7;
    machine.execute(&[0x0f, 0x01, 0xf9]).unwrap();
    assert_eq!(machine.cpu.env.gpr[1], 7);
    machine.execute(&[0xf3, 0x48, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_eq!(machine.cpu.env.gpr[0], 7);
    // CR4.TSD.
    let mut machine = long_user();
    assert_eq!(machine.execute(&[0x0f, 0x31]), Ok(Next::Fallthrough));
    machine.cpu.env.cr4 |= 4;
    assert_eq!(machine.execute(&[0x0f, 0x31]), Err(Exception::gp(0)));
    assert_eq!(machine.execute(&[0x0f, 0x01, 0xf9]), Err(Exception::gp(0)));
}

#[test]
fn state_out_and_in_again() {
    let mut machine = long_user();
    crate::msr::power_on(&mut machine.cpu);
    machine.cpu.env.msr.lstar = 0x1234;
    machine.cpu.env.msr.mtrr_var[3] = 0x800;
    machine.cpu.env.msr.tsc_adjust = 9;
    machine.cpu.env.xsave.0[600] = 1;
    machine.cpu.env.halted = true;
    let state = crate::arch::cpu_to_arch(&mut machine.cpu);
    assert!(state.msrs.is_sorted());
    let mut other = Machine::new_real();
    crate::arch::arch_to_cpu(&mut other.cpu, &state);
    assert_eq!(crate::arch::cpu_to_arch(&mut other.cpu), state);
    crate::arch::reset(&mut other.cpu);
    let env = &other.cpu.env;
    assert_eq!((env.rip, env.seg[1].base, env.cr0, env.msr.lstar), (0xfff0, 0xffff_0000, 0x6000_0010, 0));
    assert_eq!(env.xsave.0[24..28], [0x80, 0x1f, 0, 0]);
    assert_eq!(env.msr.pat, spec::PAT_RESET);
}

#[test]
fn init_and_start_up() {
    let mut machine = long_kernel();
    machine.cpu.index = 1;
    machine.cpu.env.msr.lstar = 5;
    machine.cpu.with_io(&crate::complex::testing::TestIo::default(), crate::arch::init);
    assert!(machine.cpu.env.wait_for_sipi);
    assert_eq!((machine.cpu.env.cr0, machine.cpu.env.efer), (0x10, 0));
    crate::arch::start_up(&mut machine.cpu, 0x9a);
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.seg[1].base, env.seg[1].selector), (0, 0x9_a000, 0x9a00));
    assert!(!env.wait_for_sipi);
    assert_eq!(env.msr.lstar, 5, "INIT keeps MSRs");
    crate::arch::start_up(&mut machine.cpu, 1);
    assert_eq!(machine.cpu.env.seg[1].base, 0x9_a000, "ignored by a running CPU");
}

#[test]
fn debug_registers() {
    let mut machine = long_kernel();
    machine.cpu.env.gpr[0] = u64::MAX;
    assert_eq!(machine.execute(&[0x0f, 0x23, 0xc0]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.dr[0], u64::MAX);
    assert_eq!(machine.execute(&[0x0f, 0x23, 0xf8]), Err(Exception::gp(0)));
    machine.cpu.env.gpr[0] = 0xffff_ffff;
    assert_eq!(machine.execute(&[0x0f, 0x23, 0xf0]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.dr6, 0xffff_efff);
    // DR5 is DR7 unless CR4.DE is set.
    machine.cpu.env.gpr[0] = 0x2000;
    assert_eq!(machine.execute(&[0x0f, 0x23, 0xe8]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.dr7, 0x2400);
    assert_eq!(machine.execute(&[0x0f, 0x21, 0xf0]), Err(Exception::debug(1 << 13)), "general detect");
    machine.cpu.env.cr4 |= 8;
    assert_eq!(machine.execute(&[0x0f, 0x21, 0xe0]), Err(Exception::UD));
}

#[test]
fn general_detect_and_port_breakpoints() {
    let mut machine = long_kernel();
    set_gate64(&machine, 1, HANDLER, 0x8e, 0);
    machine.cpu.env.dr7 = 0x2400;
    let exception = machine.execute(&[0x0f, 0x21, 0xf0]).unwrap_err();
    assert_eq!(crate::interrupt::raise(&mut machine.cpu, exception), Next::Jumped);
    assert_eq!((machine.cpu.env.dr6, machine.cpu.env.dr7), (0xffff_2ff0, 0x400));
    assert_eq!(get(&machine, KERNEL_STACK - 24, 8), u64::from(2 | flag::RF), "a fault");

    let mut machine = long_kernel();
    machine.cpu.env.cr4 |= 8;
    machine.cpu.env.dr[1] = 0x3f8;
    // Breakpoint 1: I/O, two ports.
    machine.cpu.env.dr7 = 0x400 | 4 | 6 << 20;
    machine.cpu.env.gpr[2] = 0x3f9;
    assert_eq!(machine.execute(&[0xee]), Ok(Next::Fallthrough));
    assert_eq!(std::mem::take(&mut machine.cpu.pending_debug), 2);
    machine.cpu.env.gpr[2] = 0x3fa;
    assert_eq!(machine.execute(&[0xee]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.pending_debug, 0);
}

#[test]
fn xcr0() {
    let mut machine = long_kernel();
    let mut xsetbv = |ecx: u64, value: u64| {
        machine.cpu.env.gpr[1] = ecx;
        machine.cpu.env.gpr[0] = value;
        machine.cpu.env.gpr[2] = 0;
        machine.execute(&[0x0f, 0x01, 0xd1])
    };
    for bad in [0, 2, 5, 0x21, 0x201, 1 << 31] {
        assert_eq!(xsetbv(0, bad), Err(Exception::gp(0)), "{bad:#x}");
    }
    assert_eq!(xsetbv(1, 1), Err(Exception::gp(0)));
    assert_eq!(xsetbv(0, 3), Ok(Next::EndBlock));
    machine.cpu.env.gpr[1] = 0;
    assert_eq!(machine.execute(&[0x0f, 0x01, 0xd0]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[0], 3);
    machine.cpu.env.cr4 &= !(1 << 18);
    assert_eq!(machine.execute(&[0x0f, 0x01, 0xd0]), Err(Exception::UD));
}

#[test]
fn fs_and_gs_bases() {
    let mut machine = long_user();
    machine.cpu.env.cr4 |= 1 << 16;
    machine.cpu.env.gpr[0] = 0x7fff_1234_5678;
    assert_eq!(machine.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]), Ok(Next::Fallthrough));
    assert_eq!(machine.execute(&[0xf3, 0x0f, 0xae, 0xc3]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[3], 0x1234_5678);
    machine.cpu.env.gpr[0] = 1 << 47;
    assert_eq!(machine.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]), Err(Exception::gp(0)));
}

#[test]
fn user_mode_instruction_prevention() {
    for bytes in [
        &[0x0f, 0x01, 0x00][..],
        &[0x0f, 0x01, 0x08],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x01, 0xe0],
    ] {
        let mut machine = long_user();
        machine.cpu.env.gpr[0] = CODE;
        assert_eq!(machine.execute(bytes), Ok(Next::Fallthrough), "{bytes:02x?}");
        machine.cpu.env.gpr[0] = CODE;
        machine.cpu.env.cr4 |= 1 << 11;
        assert_eq!(machine.execute(bytes), Err(Exception::gp(0)), "{bytes:02x?}");
    }
    let mut machine = long_user();
    machine.cpu.env.gpr[0] = CODE;
    machine.execute(&[0x0f, 0x01, 0x00]).unwrap();
    assert_eq!((get(&machine, CODE, 2), get(&machine, CODE + 2, 8)), (u64::from(GDT_LIMIT), GDT));
}

#[test]
fn lgdt_wants_a_canonical_base() {
    let mut machine = long_kernel();
    machine.cpu.env.gpr[0] = CODE;
    put(&machine, CODE, 0x1ff);
    put(&machine, CODE + 2, 0x8000_0000_0000);
    assert_eq!(machine.execute(&[0x0f, 0x01, 0x10]), Err(Exception::gp(0)));
    put(&machine, CODE + 2, 0xffff_8000_0000_0000);
    assert_eq!(machine.execute(&[0x0f, 0x01, 0x10]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gdt, Table { base: 0xffff_8000_0000_0000, limit: 0x1ff });
}

#[test]
fn ports_reach_the_bus() {
    let mut machine = long_kernel();
    machine.cpu.env.gpr[2] = 0x3f8;
    machine.cpu.env.gpr[0] = 0x1122_3344;
    assert_eq!(machine.execute(&[0xee]), Ok(Next::Fallthrough));
    assert_eq!(machine.execute(&[0xe7, 0x70]), Ok(Next::Fallthrough));
    let writes = machine.io.writes.lock().unwrap().clone();
    assert_eq!(writes, [(0x3f8, vec![0x44]), (0x70, vec![0x44, 0x33, 0x22, 0x11])]);
    machine.cpu.env.gpr[0] = u64::MAX;
    assert_eq!(machine.execute(&[0x66, 0xed]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[0], 0xffff_ffff_ffff_0100);
    assert_eq!(machine.execute(&[0xed]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[0], 0x0504_0302, "a 32-bit IN clears the upper half");
}

/// A local APIC that remembers what the CPU wrote.
#[derive(Default)]
struct Apic {
    written: Mutex<Vec<(u32, u64)>>,
    tsc_changes: Mutex<u32>,
}

impl LocalInterrupts for Apic {
    fn has_interrupt(&self) -> bool {
        false
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tsc_changed(&self) {
        *self.tsc_changes.lock().unwrap() += 1;
    }
    fn init(&self) {}
    fn cr8(&self) -> u8 {
        9
    }
    fn set_cr8(&self, value: u8) {
        self.written.lock().unwrap().push((8, u64::from(value)));
    }
    fn read_msr(&self, index: u32) -> Result<u64, NoSuchRegister> {
        match index {
            spec::IA32_APIC_BASE => Ok(0xfee0_0500),
            0x802 => Ok(5),
            _ => Err(NoSuchRegister),
        }
    }
    fn write_msr(&self, index: u32, value: u64) -> Result<(), NoSuchRegister> {
        if index == 0x802 {
            return Err(NoSuchRegister);
        }
        self.written.lock().unwrap().push((index, value));
        Ok(())
    }
    fn mmio_base(&self) -> Option<u64> {
        None
    }
    fn mmio_read(&self, _offset: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _offset: u64, _data: &[u8]) {}
}

impl CpuIo for Apic {
    fn pio_read(&self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        Some(self)
    }
}

#[test]
fn registers_of_the_local_apic() {
    let mut machine = long_kernel();
    let apic = Apic::default();
    let mut run = |bytes: &[u8], rax: u64, rcx: u64| {
        machine.cpu.env.gpr[0] = rax;
        machine.cpu.env.gpr[1] = rcx;
        machine.cpu.env.gpr[2] = 0;
        let insn = machine.decode(bytes);
        let next = machine.cpu.with_io(&apic, |cpu| execute(cpu, &insn));
        (next, machine.cpu.env.gpr[0])
    };
    const RDMSR: &[u8] = &[0x0f, 0x32];
    const WRMSR: &[u8] = &[0x0f, 0x30];
    let fallthrough = Ok(Next::Fallthrough);
    assert_eq!(run(RDMSR, 0, 0x802), (fallthrough, 5));
    assert_eq!(run(WRMSR, 1, 0x802).0, Err(Exception::gp(0)));
    assert_eq!(run(RDMSR, 0, 0x8ff).0, Err(Exception::gp(0)));
    assert_eq!(run(WRMSR, 0, 0x80b).0, fallthrough);
    assert_eq!(run(WRMSR, 77, u64::from(spec::IA32_TSC_DEADLINE)).0, fallthrough);
    assert_eq!(run(WRMSR, 1, u64::from(spec::IA32_TIME_STAMP_COUNTER)).0, fallthrough);
    // mov rax, cr8; mov cr8, rax
    assert_eq!(run(&[0x44, 0x0f, 0x20, 0xc0], 0, 0), (fallthrough, 9));
    assert_eq!(run(&[0x44, 0x0f, 0x22, 0xc0], 15, 0).0, fallthrough);
    assert_eq!(run(&[0x44, 0x0f, 0x22, 0xc0], 16, 0).0, Err(Exception::gp(0)));
    // The APIC is disabled in IA32_APIC_BASE, and CPUID says so.
    assert_eq!(run(&[0x0f, 0xa2], 1, 0).0, fallthrough);
    assert_eq!(machine.cpu.env.gpr[2] & 1 << 9, 0);
    assert_eq!(*apic.written.lock().unwrap(), [(0x80b, 0), (spec::IA32_TSC_DEADLINE, 77), (8, 15)]);
    assert_eq!(*apic.tsc_changes.lock().unwrap(), 1);
}
