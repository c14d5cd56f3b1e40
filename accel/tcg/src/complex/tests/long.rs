//! 64-bit mode: SYSCALL and SYSRET, interrupts through the 64-bit IDT, IRETQ.

use super::*;
use crate::complex::Next;
use crate::env::flag;
use crate::exception::{Exception, vector};
use crate::interrupt::{Kind, deliver, deliver_debug_traps, inject, raise};

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETD: &[u8] = &[0x0f, 0x07];
const IRETQ: &[u8] = &[0x48, 0xcf];
const SWAPGS: &[u8] = &[0x0f, 0x01, 0xf8];
const INTERRUPT: u64 = 0x8e;
const TRAP: u64 = 0x8f;

#[test]
fn syscall_and_sysret() {
    let mut machine = long_user();
    machine.cpu.env.set_rflags(0x202 | flag::CF | flag::AC | flag::DF);
    assert_eq!(machine.execute(SYSCALL), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.is_64bit()), (HANDLER, 0, true));
    assert_eq!((env.seg[1].selector, env.seg[2].selector), (KERNEL_CODE64, KERNEL_DATA));
    assert_eq!(env.gpr[1], CODE + 2);
    assert_eq!(env.gpr[11], u64::from(0x202 | flag::CF | flag::AC | flag::DF));
    assert_eq!(env.rflags(), 2 | flag::CF);
    assert_eq!(env.gpr[4], USER_STACK);

    machine.cpu.env.gpr[11] |= u64::from(flag::RF | flag::VM);
    assert_eq!(machine.execute(SYSRETQ), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.is_64bit()), (CODE + 2, 3, true));
    assert_eq!((env.seg[1].selector, env.seg[2].selector), (USER_CODE64, USER_DATA));
    assert_eq!(env.rflags(), 0x202 | flag::CF | flag::AC | flag::DF);
}

#[test]
fn sysret_to_compatibility_mode() {
    let mut machine = long_kernel();
    machine.cpu.env.gpr[1] = 0xffff_8000_1234_5678;
    machine.cpu.env.gpr[11] = 0x202;
    assert_eq!(machine.execute(SYSRETD), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.code_bits(), env.seg[1].selector), (0x1234_5678, 32, USER_CODE32));
}

#[test]
fn syscall_exists_only_in_64bit_mode_with_sce() {
    let mut machine = long_user();
    set_code(&mut machine.cpu, USER_CODE32, 0xc0fb);
    assert_eq!(machine.execute(SYSCALL), Err(Exception::UD));
    let mut machine = long_user();
    machine.cpu.env.efer &= !1;
    assert_eq!(machine.execute(SYSCALL), Err(Exception::UD));
}

#[test]
fn sysret_checks_the_target_in_the_kernel() {
    let mut machine = long_kernel();
    machine.cpu.env.gpr[1] = 0x8000_0000_0000;
    assert_eq!(machine.execute(SYSRETQ), Err(Exception::gp(0)));
    assert_eq!((machine.cpu.env.cpl(), machine.cpu.env.rip), (0, CODE));
    let mut machine = long_user();
    assert_eq!(machine.execute(SYSRETQ), Err(Exception::gp(0)));
}

#[test]
fn sysenter_and_sysexit() {
    let mut machine = long_user();
    assert_eq!(machine.execute(&[0x0f, 0x34]), Err(Exception::gp(0)));
    machine.cpu.env.msr.sysenter_cs = u64::from(KERNEL_CODE64);
    machine.cpu.env.msr.sysenter_eip = HANDLER;
    machine.cpu.env.msr.sysenter_esp = KERNEL_STACK;
    assert_eq!(machine.execute(&[0x0f, 0x34]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.gpr[4], env.cpl(), env.iflag), (HANDLER, KERNEL_STACK, 0, 0));
    machine.cpu.env.gpr[2] = 1 << 47;
    machine.cpu.env.gpr[1] = USER_STACK;
    assert_eq!(machine.execute(&[0x48, 0x0f, 0x35]), Err(Exception::gp(0)));
    machine.cpu.env.gpr[2] = CODE;
    assert_eq!(machine.execute(&[0x48, 0x0f, 0x35]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.gpr[4], env.cpl()), (CODE, USER_STACK, 3));
    assert_eq!((env.seg[1].selector, env.seg[2].selector), (0x2b, 0x33));
}

#[test]
fn an_interrupt_and_back() {
    let mut machine = long_user();
    set_gate64(&machine, 0x40, 0xffff_8000_0005_0000, INTERRUPT, 0);
    put(&machine, TSS + 4, KERNEL_STACK + 8);
    machine.cpu.env.interrupt_shadow = 1;
    machine.cpu.env.set_rflags(0x202 | flag::TF | flag::RF | flag::CF);
    let before = machine.cpu.env.gpr;
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.interrupt_shadow), (0xffff_8000_0005_0000, 0, 0));
    assert_eq!(env.gpr[4], KERNEL_STACK - 40, "aligned to 16 bytes first");
    assert_eq!((env.seg[2].selector, env.seg[2].usable()), (0, false));
    assert_eq!(env.rflags(), 2 | flag::CF);
    let frame: Vec<u64> = (0..5).map(|word| get(&machine, KERNEL_STACK - 40 + word * 8, 8)).collect();
    let flags = u64::from(0x202 | flag::TF | flag::RF | flag::CF);
    assert_eq!(frame, [CODE, u64::from(USER_CODE64), flags, USER_STACK, u64::from(USER_DATA)]);

    machine.cpu.env.seg[3] = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: KERNEL_DATA };
    machine.cpu.env.seg[5].base = 0x7000;
    assert_eq!(machine.execute(IRETQ), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr), (CODE, 3, before));
    assert_eq!(u64::from(env.rflags()), flags);
    assert_eq!((env.seg[1].selector, env.seg[2].selector), (USER_CODE64, USER_DATA));
    assert_eq!((env.seg[3].selector, env.seg[3].usable()), (0, false), "kernel data is not for the user");
    assert_eq!(env.seg[0].selector, USER_DATA);
    assert_eq!(env.seg[5].base, 0x7000);
}

#[test]
fn an_exception_in_the_kernel_keeps_the_stack_segment() {
    let mut machine = long_kernel();
    set_gate64(&machine, vector::GP, HANDLER, TRAP, 0);
    machine.cpu.env.gpr[4] = KERNEL_STACK - 0x13;
    machine.cpu.env.set_rflags(0x202);
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0x50)), Next::Jumped);
    let env = &machine.cpu.env;
    let bottom = KERNEL_STACK - 0x20 - 48;
    assert_eq!((env.gpr[4], env.seg[2].selector), (bottom, KERNEL_DATA));
    assert_eq!(env.rflags(), 0x202, "a trap gate leaves IF");
    assert_eq!(get(&machine, bottom, 8), 0x50);
    assert_eq!(get(&machine, bottom + 8, 8), CODE);
    assert_eq!(get(&machine, bottom + 24, 8), u64::from(0x202 | flag::RF), "a fault is restarted with RF");
    machine.cpu.env.gpr[4] += 8;
    assert_eq!(machine.execute(IRETQ), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.gpr[4], machine.cpu.env.cpl()), (KERNEL_STACK - 0x13, 0));
}

#[test]
fn page_faults_set_cr2_and_stacks_come_from_the_ist() {
    let mut machine = long_kernel();
    set_gate64(&machine, vector::PF, HANDLER, INTERRUPT, 1);
    assert_eq!(raise(&mut machine.cpu, Exception::page_fault(0x1234, 6)), Next::Jumped);
    assert_eq!((machine.cpu.env.cr2, machine.cpu.env.gpr[4]), (0x1234, IST_STACK - 48));
    assert_eq!(get(&machine, IST_STACK - 48, 8), 6);
}

#[test]
fn software_interrupts_respect_the_gate() {
    let mut machine = long_user();
    set_gate64(&machine, 0x80, HANDLER, INTERRUPT, 0);
    assert_eq!(machine.execute(&[0xcd, 0x80]), Err(Exception::gp(0x402)));
    set_gate64(&machine, 0x80, HANDLER, 0xee, 0);
    assert_eq!(machine.execute(&[0xcd, 0x80]), Ok(Next::Jumped));
    assert_eq!(get(&machine, KERNEL_STACK - 40, 8), CODE + 2, "behind the instruction");
    assert_eq!(get(&machine, KERNEL_STACK - 24, 8), 0x202, "no RF");

    let mut machine = long_user();
    set_gate64(&machine, 1, HANDLER, INTERRUPT, 0);
    assert_eq!(machine.execute(&[0xf1]), Ok(Next::Jumped), "INT1 passes any gate");
    assert_eq!(get(&machine, KERNEL_STACK - 40, 8), CODE + 1);
    assert_eq!(machine.cpu.env.dr6, 0xffff_0ff0);

    let mut machine = long_user();
    set_gate64(&machine, 3, HANDLER, 0xee, 0);
    assert_eq!(machine.execute(&[0xcc]), Ok(Next::Jumped));
    assert_eq!(get(&machine, KERNEL_STACK - 40, 8), CODE + 1);
}

#[test]
fn what_is_wrong_with_a_gate() {
    let mut machine = long_user();
    set_gate64(&machine, 0x40, HANDLER, 0x0e, 0);
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::np(0x203)));
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::Software { len: 2 }), Err(Exception::gp(0x202)));
    set_gate64(&machine, 0x40, HANDLER, 0x8c, 0);
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(0x203)), "a call gate");
    set_gate64(&machine, 0x40, 1 << 47, INTERRUPT, 0);
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(1)), "not canonical");
    put(&machine, IDT + 0x400, gate(0, HANDLER, INTERRUPT, 0));
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(1)), "null selector");
    put(&machine, IDT + 0x400, gate(KERNEL_CODE32, HANDLER, INTERRUPT, 0));
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(0x31)), "not 64-bit code");
    put(&machine, IDT + 0x400, gate(ABSENT, HANDLER, INTERRUPT, 0));
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(0x61)), "data");
    set_gate64(&machine, 0x40, HANDLER, INTERRUPT, 0);
    put(&machine, TSS + 4, (1 << 47) + 0x1000);
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::ss(1)));
    machine.cpu.env.task.limit = 10;
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::ts(0x39)));
    machine.cpu.env.idt.limit = 0x40e;
    assert_eq!(deliver(&mut machine.cpu, 0x40, Kind::External), Err(Exception::gp(0x203)));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4], env.rflags()), (CODE, 3, USER_STACK, 0x202));
}

#[test]
fn a_stack_that_faults() {
    let mut machine = long_user();
    set_gate64(&machine, 0x40, HANDLER, INTERRUPT, 0);
    machine.map(KERNEL_STACK - 0x1000, 0);
    let fault = deliver(&mut machine.cpu, 0x40, Kind::External);
    assert_eq!(fault, Err(Exception::page_fault(KERNEL_STACK - 40, 2)), "the CPU's own access: no user bit");
    machine.map(KERNEL_STACK - 0x1000, (KERNEL_STACK - 0x1000) | 5);
    machine.cpu.env.cr0 |= 1 << 16;
    let fault = deliver(&mut machine.cpu, 0x40, Kind::External);
    assert_eq!(fault, Err(Exception::page_fault(KERNEL_STACK - 40, 3)));
}

#[test]
fn double_and_triple_faults() {
    // #GP whose gate is absent: contributory on contributory.
    let mut machine = long_user();
    set_gate64(&machine, vector::DF, HANDLER, INTERRUPT, 1);
    assert_eq!(raise(&mut machine.cpu, Exception::gp(8)), Next::Jumped);
    assert_eq!(machine.cpu.env.gpr[4], IST_STACK - 48);
    assert_eq!((get(&machine, IST_STACK - 48, 8), machine.cpu.env.rip), (0, HANDLER));
    assert_eq!(get(&machine, IST_STACK - 40, 8), CODE);
    assert_eq!(get(&machine, IST_STACK - 24, 8), 0x202, "an abort has no RF");

    // #PF on #PF.
    let mut machine = long_user();
    set_gate64(&machine, vector::DF, HANDLER, INTERRUPT, 1);
    set_gate64(&machine, vector::PF, HANDLER + 1, INTERRUPT, 0);
    machine.map(KERNEL_STACK - 0x1000, 0);
    assert_eq!(raise(&mut machine.cpu, Exception::page_fault(5, 4)), Next::Jumped);
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.cr2), (HANDLER, KERNEL_STACK - 48));

    // Benign, then #GP: serial, then a double fault because #GP's gate is absent.
    let mut machine = long_user();
    set_gate64(&machine, vector::GP, HANDLER, INTERRUPT, 0);
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    assert_eq!(get(&machine, KERNEL_STACK - 48, 8), 0x203);
    assert_eq!(machine.cpu.env.rip, HANDLER);

    // #GP, then #PF: serial.
    let mut machine = long_user();
    set_gate64(&machine, vector::GP, HANDLER, INTERRUPT, 0);
    set_gate64(&machine, vector::PF, HANDLER + 2, INTERRUPT, 1);
    machine.map(KERNEL_STACK - 0x1000, 0);
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0)), Next::Jumped);
    assert_eq!(machine.cpu.env.rip, HANDLER + 2);

    // No gate at all.
    let mut machine = long_user();
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0)), Next::Shutdown);
    let mut machine = long_user();
    machine.cpu.env.idt.limit = 0;
    assert_eq!(raise(&mut machine.cpu, Exception::UD), Next::Shutdown);
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut machine = long_user();
    set_gate64(&machine, vector::NMI, HANDLER, INTERRUPT, 1);
    assert_eq!(inject(&mut machine.cpu, vector::NMI, Kind::Nmi), Next::Jumped);
    assert!(machine.cpu.env.nmi_blocked);
    assert_eq!(machine.execute(IRETQ), Ok(Next::Jumped));
    assert!(!machine.cpu.env.nmi_blocked);
}

#[test]
fn debug_traps_after_an_instruction() {
    let mut machine = long_user();
    set_gate64(&machine, vector::DB, HANDLER, INTERRUPT, 0);
    assert_eq!(deliver_debug_traps(&mut machine.cpu, false), Next::Fallthrough);
    machine.cpu.pending_debug = 2;
    machine.cpu.env.dr7 = 1 << 13;
    assert_eq!(deliver_debug_traps(&mut machine.cpu, true), Next::Jumped);
    assert_eq!((machine.cpu.env.dr6, machine.cpu.env.dr7), (0xffff_4ff2, 0));
    assert_eq!(machine.cpu.pending_debug, 0);
    assert_eq!(get(&machine, KERNEL_STACK - 24, 8), 0x202, "a trap has no RF");
}

#[test]
fn iretq_checks_before_it_loads() {
    let frame = |machine: &mut Machine, words: [u64; 5]| {
        machine.cpu.env.gpr[4] = KERNEL_STACK - 40;
        for (index, word) in words.into_iter().enumerate() {
            put(machine, KERNEL_STACK - 40 + index as u64 * 8, word);
        }
        machine.execute(IRETQ)
    };
    let (user, data) = (u64::from(USER_CODE64), u64::from(USER_DATA));
    let mut machine = long_kernel();
    assert_eq!(frame(&mut machine, [1 << 47, user, 2, 0, data]), Err(Exception::gp(0)));
    assert_eq!(frame(&mut machine, [0, 0, 2, 0, data]), Err(Exception::gp(0)));
    assert_eq!(frame(&mut machine, [0, user, 2, 0, 0]), Err(Exception::gp(0)), "null stack for a user");
    assert_eq!(frame(&mut machine, [0, user, 2, 0, 0x10]), Err(Exception::gp(0x10)));
    assert_eq!(frame(&mut machine, [0, user & !3, 2, 0, data]), Err(Exception::gp(0x28)));
    assert_eq!(frame(&mut machine, [0, 0x80, 2, 0, data]), Err(Exception::gp(0x80)), "beyond the table");
    assert_eq!(machine.cpu.env.cpl(), 0);
    machine.cpu.env.sysflags |= flag::NT;
    assert_eq!(frame(&mut machine, [0, user, 2, 0, data]), Err(Exception::gp(0)));
    machine.cpu.env.sysflags = 0;
    // To 32-bit user code, with a 32-bit stack pointer.
    let compat = u64::from(USER_CODE32);
    assert_eq!(frame(&mut machine, [CODE, compat, 0x202, 0x9_1234_5678, data]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.gpr[4], machine.cpu.env.code_bits()), (0x1234_5678, 32));
    // Same privilege with a null stack.
    let mut machine = long_kernel();
    assert_eq!(frame(&mut machine, [CODE, 8, 2, 0x7000, 0]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.gpr[4], machine.cpu.env.cpl()), (0x7000, 0));
}

#[test]
fn an_interrupt_from_compatibility_mode() {
    let mut machine = long_user();
    set_code(&mut machine.cpu, USER_CODE32, 0xc0fb);
    set_gate64(&machine, 0x40, HANDLER, INTERRUPT, 0);
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    assert!(machine.cpu.env.is_64bit());
    assert_eq!(get(&machine, KERNEL_STACK - 32, 8), u64::from(USER_CODE32));
    assert_eq!(machine.execute(IRETQ), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.code_bits(), machine.cpu.env.gpr[4]), (32, USER_STACK));
}

#[test]
fn swapgs() {
    let mut machine = long_kernel();
    machine.cpu.env.seg[5].base = 1;
    machine.cpu.env.msr.kernel_gs_base = 2;
    assert_eq!(machine.execute(SWAPGS), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.seg[5].base, machine.cpu.env.msr.kernel_gs_base), (2, 1));
    assert_eq!(long_user().execute(SWAPGS), Err(Exception::gp(0)));
}

#[test]
fn a_call_gate_and_back() {
    let mut machine = long_user();
    put(&machine, GDT + u64::from(GATE), gate(KERNEL_CODE64, HANDLER, 0xec, 0));
    put(&machine, GDT + u64::from(GATE) + 8, 0xffff_8000);
    put(&machine, CODE + 0x100, u64::from(GATE | 3) << 32);
    machine.cpu.env.gpr[3] = CODE + 0x100;
    // call far [rbx]
    assert_eq!(machine.execute(&[0xff, 0x1b]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4]), (0xffff_8000_0005_0000, 0, KERNEL_STACK - 32));
    assert_eq!((env.seg[1].selector, env.seg[2].selector), (KERNEL_CODE64, 0));
    let frame: Vec<u64> = (0..4).map(|word| get(&machine, KERNEL_STACK - 32 + word * 8, 8)).collect();
    assert_eq!(frame, [CODE + 2, u64::from(USER_CODE64), USER_STACK, u64::from(USER_DATA)]);
    // retfq
    assert_eq!(machine.execute(&[0x48, 0xcb]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4]), (CODE + 2, 3, USER_STACK));

    put(&machine, GDT + u64::from(GATE), gate(KERNEL_CODE64, HANDLER, 0x8c, 0));
    machine.cpu.env.rip = CODE;
    assert_eq!(machine.execute(&[0xff, 0x1b]), Err(Exception::gp(u32::from(GATE))), "DPL 0");
}
