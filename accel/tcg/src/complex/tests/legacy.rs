//! Real, virtual-8086 and 32-bit protected mode: segments, interrupts, call gates.

use super::*;
use crate::complex::Next;
use crate::env::flag;
use crate::exception::{Exception, Exec, vector};
use crate::interrupt::{Kind, deliver, inject, raise};

const IRETD: &[u8] = &[0xcf];

/// Virtual-8086 mode below IOPL 3.
fn vm86() -> Machine {
    let mut machine = legacy_kernel();
    machine.cpu.env.set_rflags(0x202 | flag::VM);
    for index in 0..6 {
        let selector = 0x100 * (index as u16 + 1);
        machine.cpu.env.seg[index] =
            Segment { base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3, selector };
    }
    machine.cpu.env.rip = 0x1234;
    machine.cpu.env.gpr[4] = 0x5678_8000;
    machine
}

fn words32(machine: &Machine, at: u64, count: u64) -> Vec<u64> {
    (0..count).map(|word| get(machine, at + word * 4, 4)).collect()
}

#[test]
fn an_interrupt_from_user_to_kernel_and_back() {
    let mut machine = legacy_user();
    set_gate32(&machine, 0x40, KERNEL_CODE32, HANDLER, 0x8e);
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4]), (HANDLER, 0, KERNEL_STACK - 20));
    assert_eq!((env.seg[1].selector, env.seg[2].selector, env.iflag), (KERNEL_CODE32, KERNEL_DATA, 0));
    let frame = words32(&machine, KERNEL_STACK - 20, 5);
    assert_eq!(frame, [CODE, u64::from(USER_CODE32), 0x202, USER_STACK, u64::from(USER_DATA)]);
    machine.cpu.env.seg[0] = machine.cpu.env.seg[2];
    assert_eq!(machine.execute(IRETD), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4], env.rflags()), (CODE, 3, USER_STACK, 0x202));
    assert_eq!((env.seg[0].selector, env.seg[3].selector), (0, USER_DATA));
}

#[test]
fn an_exception_in_the_kernel_and_a_16bit_gate() {
    let mut machine = legacy_kernel();
    set_gate32(&machine, vector::GP, KERNEL_CODE32, HANDLER, 0x8f);
    machine.cpu.env.set_rflags(0x202);
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0x18)), Next::Jumped);
    assert_eq!(machine.cpu.env.gpr[4], KERNEL_STACK - 16);
    let frame = words32(&machine, KERNEL_STACK - 16, 4);
    assert_eq!(frame, [0x18, CODE, u64::from(KERNEL_CODE32), u64::from(0x202 | flag::RF)]);
    assert_eq!(machine.cpu.env.iflag, flag::IF, "a trap gate");

    let mut machine = legacy_kernel();
    machine.cpu.env.rip = 0x1234;
    set_gate32(&machine, 0x21, KERNEL_CODE32, 0x4321, 0x86);
    assert_eq!(machine.execute(&[0xcd, 0x21]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[4]), (0x4321, KERNEL_STACK - 6));
    assert_eq!(get(&machine, KERNEL_STACK - 6, 2), 0x1236);
    assert_eq!(machine.execute(&[0x66, 0xcf]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[4]), (0x1236, KERNEL_STACK));
}

#[test]
fn what_is_wrong_with_a_gate_or_a_stack() {
    let mut machine = legacy_user();
    let external = |machine: &mut Machine| deliver(&mut machine.cpu, 0x40, Kind::External);
    set_gate32(&machine, 0x40, KERNEL_CODE32, HANDLER, 0x0e);
    assert_eq!(external(&mut machine), Err(Exception::np(0x203)));
    set_gate32(&machine, 0x40, KERNEL_DATA, HANDLER, 0x8e);
    assert_eq!(external(&mut machine), Err(Exception::gp(0x11)));
    set_gate32(&machine, 0x40, KERNEL_CODE32, HANDLER, 0x8e);
    assert_eq!(machine.execute(&[0xcd, 0x40]), Err(Exception::gp(0x202)));
    // INTO without overflow is nothing, and with it a software interrupt.
    assert_eq!(machine.execute(&[0xce]), Ok(Next::Fallthrough));
    machine.cpu.env.arith = flag::OF;
    assert_eq!(machine.execute(&[0xce]), Err(Exception::gp(0x22)));
    machine.cpu.env.arith = 0;
    put(&machine, TSS + 4, KERNEL_STACK | u64::from(USER_DATA) << 32);
    assert_eq!(external(&mut machine), Err(Exception::ts(0x21)), "stack of the wrong privilege");
    put(&machine, TSS + 4, KERNEL_STACK);
    assert_eq!(external(&mut machine), Err(Exception::ts(1)), "null stack");
    put(&machine, TSS + 4, KERNEL_STACK | u64::from(ABSENT) << 32);
    assert_eq!(external(&mut machine), Err(Exception::ss(0x61)), "absent stack");
    machine.cpu.env.task.limit = 8;
    assert_eq!(external(&mut machine), Err(Exception::ts(0x39)));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.cpl()), (CODE, 3));
}

#[test]
fn a_conforming_handler_runs_at_the_callers_privilege() {
    let mut machine = legacy_user();
    set_gate32(&machine, 0x40, CONFORMING32, HANDLER, 0x8e);
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    let env = &machine.cpu.env;
    assert_eq!((env.cpl(), env.gpr[4], env.seg[1].selector), (3, USER_STACK - 12, CONFORMING32 | 3));
}

#[test]
fn from_virtual_8086_mode_and_back() {
    let mut machine = vm86();
    set_gate32(&machine, vector::GP, KERNEL_CODE32, HANDLER, 0x8e);
    assert_eq!(machine.execute(&[0xcd, 0x21]), Err(Exception::gp(0)), "INT below IOPL 3");
    assert_eq!(machine.execute(&[0x9c]), Err(Exception::gp(0)), "PUSHF");
    assert_eq!(machine.execute(&[0xfa]), Err(Exception::gp(0)), "CLI");
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xc0]), Err(Exception::UD), "SLDT");
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0)), Next::Jumped);
    let env = &machine.cpu.env;
    assert_eq!((env.cpl(), env.gpr[4], env.sysflags & flag::VM), (0, KERNEL_STACK - 40, 0));
    assert!([0, 3, 4, 5].iter().all(|&index| !env.seg[index].usable()));
    let flags = u64::from(0x202 | flag::VM | flag::RF);
    let frame = words32(&machine, KERNEL_STACK - 40, 10);
    assert_eq!(frame, [0, 0x1234, 0x200, flags, 0x5678_8000, 0x300, 0x100, 0x400, 0x500, 0x600]);
    machine.cpu.env.gpr[4] += 4;
    assert_eq!(machine.execute(IRETD), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.code_bits(), env.gpr[4]), (0x1234, 3, 16, 0x5678_8000));
    assert_eq!(u64::from(env.rflags()), flags);
    for (index, segment) in env.seg.iter().enumerate() {
        let selector = 0x100 * (index as u16 + 1);
        let expected = Segment { base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3, selector };
        assert_eq!(*segment, expected);
    }
}

#[test]
fn virtual_8086_mode_at_iopl_3() {
    let mut machine = vm86();
    machine.cpu.env.sysflags |= flag::IOPL;
    assert_eq!(machine.execute(&[0x9c]), Ok(Next::Fallthrough));
    let image = 0x3202;
    assert_eq!(get(&machine, 0x3000 + 0x7ffe, 2), image);
    machine.poke(0x3000 + 0x7ffe, &[0xff, 0xff]);
    assert_eq!(machine.execute(&[0x9d]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.gpr[4], 0x5678_8000);
    assert_eq!(machine.cpu.env.sysflags & (flag::IOPL | flag::VM), flag::IOPL | flag::VM);
    machine.cpu.env.set_rflags(0x202 | flag::VM | flag::IOPL);
    // jmp far 0x9000:0x10
    assert_eq!(machine.execute(&[0xea, 0x10, 0, 0, 0x90]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.seg[1].base), (0x10, 0x9_0000));
    // iret within the mode keeps VM and IOPL.
    machine.poke(0x3000 + 0x7ffa, &[0x34, 0x12, 0x00, 0x02, 0x00, 0x00]);
    machine.cpu.env.gpr[4] = 0x5678_7ffa;
    assert_eq!(machine.execute(&[0xcf]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.seg[1].base, env.gpr[4]), (0x1234, 0x2000, 0x5678_8000));
    assert_eq!(env.rflags(), 2 | flag::VM | flag::IOPL);
}

#[test]
fn interrupts_in_real_mode() {
    let mut machine = Machine::new_real();
    machine.cpu.env.idt = Table { base: 0, limit: 0x3ff };
    machine.cpu.env.rip = 0x100;
    machine.cpu.env.seg[1].selector = 0x1000;
    machine.cpu.env.seg[1].base = 0x1_0000;
    machine.cpu.env.gpr[4] = 0x7000;
    machine.cpu.env.set_rflags(0x202 | flag::CF | flag::AC);
    machine.poke(0x21 * 4, &[0x34, 0x12, 0x00, 0x90]);
    assert_eq!(machine.execute(&[0xcd, 0x21]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.seg[1].selector, env.seg[1].base), (0x1234, 0x9000, 0x9_0000));
    assert_eq!((env.rflags(), env.gpr[4]), (3, 0x6ffa));
    assert_eq!(machine.peek(0x6ffa, 6), [0x02, 0x01, 0x00, 0x10, 0x03, 0x02]);
    assert_eq!(machine.execute(&[0xcf]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.seg[1].base, env.gpr[4]), (0x102, 0x1_0000, 0x7000));
    assert_eq!(env.rflags(), 0x203, "AC is not in 16 bits");

    machine.cpu.env.idt.limit = 0x20 * 4;
    assert_eq!(machine.execute(&[0xcd, 0x21]), Err(Exception::gp(0)));
    // Exceptions push no error code.
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0)), Next::Jumped);
    assert_eq!(machine.cpu.env.gpr[4], 0x6ffa);
    machine.cpu.env.idt.limit = 3;
    assert_eq!(raise(&mut machine.cpu, Exception::UD), Next::Shutdown);
}

#[test]
fn segment_loads_in_protected_mode() {
    /// mov Sreg, ax
    fn load(machine: &mut Machine, register: u8, selector: u16) -> Exec<Next> {
        machine.cpu.env.gpr[0] = u64::from(selector);
        machine.execute(&[0x8e, 0xc0 | register << 3])
    }
    const DS: u8 = 3;
    const SS: u8 = 2;
    let mut machine = legacy_user();
    assert_eq!(load(&mut machine, DS, USER_DATA), Ok(Next::EndBlock));
    assert_eq!(load(&mut machine, DS, 0), Ok(Next::EndBlock));
    assert!(!machine.cpu.env.seg[3].usable());
    assert_eq!(load(&mut machine, DS, KERNEL_DATA), Err(Exception::gp(0x10)));
    assert_eq!(load(&mut machine, DS, 0x80), Err(Exception::gp(0x80)), "beyond the limit");
    assert_eq!(load(&mut machine, DS, TASK), Err(Exception::gp(0x38)), "a system segment");
    assert_eq!(load(&mut machine, DS, 0x0f), Err(Exception::gp(0x0c)), "no LDT");
    assert_eq!(load(&mut machine, DS, CONFORMING32), Ok(Next::EndBlock), "readable and conforming");
    assert_eq!(load(&mut machine, SS, 0), Err(Exception::gp(0)));
    assert_eq!(load(&mut machine, SS, USER_DATA & !3), Err(Exception::gp(0x20)), "RPL");
    assert_eq!(load(&mut machine, SS, USER_CODE32), Err(Exception::gp(0x18)), "code");

    let mut machine = legacy_kernel();
    assert_eq!(load(&mut machine, DS, ABSENT), Err(Exception::np(0x60)));
    assert_eq!(load(&mut machine, SS, ABSENT), Err(Exception::ss(0x60)));
    assert_eq!(load(&mut machine, SS, KERNEL_DATA), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.interrupt_shadow, crate::env::SHADOW_SS);
    // The accessed bit is set in the table.
    put(&machine, GDT + u64::from(KERNEL_DATA), flat(0x92));
    assert_eq!(load(&mut machine, DS, KERNEL_DATA), Ok(Next::EndBlock));
    assert_eq!(get(&machine, GDT + u64::from(KERNEL_DATA) + 5, 1), 0x93);
    assert_eq!(machine.cpu.env.seg[3].access, 0xc093);

    // 64-bit mode: a null SS below privilege 3 keeps the privilege.
    let mut machine = long_kernel();
    assert_eq!(load(&mut machine, SS, 0), Ok(Next::EndBlock));
    assert_eq!((machine.cpu.env.cpl(), machine.cpu.env.seg[2].usable()), (0, false));
    assert_eq!(load(&mut machine, SS, 3), Err(Exception::gp(0)));
    assert_eq!(load(&mut machine, DS, USER_DATA), Ok(Next::Fallthrough));
    assert_eq!(load(&mut long_user(), SS, 3), Err(Exception::gp(0)));
}

#[test]
fn push_and_pop_of_segments_and_far_pointers() {
    let mut machine = legacy_kernel();
    assert_eq!(machine.execute(&[0x1e]), Ok(Next::Fallthrough));
    assert_eq!(get(&machine, KERNEL_STACK - 4, 4), u64::from(KERNEL_DATA));
    assert_eq!(machine.execute(&[0x0f, 0xa1]), Ok(Next::EndBlock));
    assert_eq!((machine.cpu.env.seg[4].selector, machine.cpu.env.gpr[4]), (KERNEL_DATA, KERNEL_STACK));
    assert_eq!(machine.execute(&[0x66, 0x1e]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[4], KERNEL_STACK - 2);
    // lss esp, [ebx]
    put(&machine, CODE + 0x100, 0x7000 | u64::from(KERNEL_DATA) << 32);
    machine.cpu.env.gpr[3] = CODE + 0x100;
    assert_eq!(machine.execute(&[0x0f, 0xb2, 0x23]), Ok(Next::EndBlock));
    assert_eq!((machine.cpu.env.gpr[4], machine.cpu.env.interrupt_shadow), (0x7000, 0));
    put(&machine, CODE + 0x100, 0x7000 | u64::from(USER_DATA) << 32);
    assert_eq!(machine.execute(&[0x0f, 0xb2, 0x23]), Err(Exception::gp(0x20)));
    assert_eq!(machine.cpu.env.gpr[4], 0x7000);
    let mut machine = long_kernel();
    assert_eq!(machine.execute(&[0x0f, 0xa8]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[4], KERNEL_STACK - 8);
}

#[test]
fn far_jumps_check_privilege() {
    let jump = |machine: &mut Machine, selector: u16, offset: u32| {
        machine.cpu.env.rip = CODE;
        let mut bytes = vec![0xea];
        bytes.extend(offset.to_le_bytes());
        bytes.extend(selector.to_le_bytes());
        machine.execute(&bytes)
    };
    let mut machine = legacy_user();
    assert_eq!(jump(&mut machine, USER_CODE32, 5), Ok(Next::Jumped));
    assert_eq!(jump(&mut machine, 0, 5), Err(Exception::gp(0)));
    assert_eq!(jump(&mut machine, KERNEL_CODE32, 5), Err(Exception::gp(0x30)));
    assert_eq!(jump(&mut machine, USER_DATA, 5), Err(Exception::gp(0x20)));
    assert_eq!(jump(&mut machine, CONFORMING32, 5), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.cpl(), machine.cpu.env.seg[1].selector), (3, CONFORMING32 | 3));
    // A limit.
    put(&machine, GDT + u64::from(USER_CODE32 & !3), 0x0040_fb00_0000_0fff);
    assert_eq!(jump(&mut machine, USER_CODE32, 0x1000), Err(Exception::gp(0)));
    assert_eq!(jump(&mut machine, USER_CODE32, 0xfff), Ok(Next::Jumped));
    // Real mode: call far and return.
    let mut machine = Machine::new_real();
    machine.cpu.env.gpr[4] = 0x7000;
    machine.cpu.env.rip = 0x10;
    assert_eq!(machine.execute(&[0x9a, 0x34, 0x12, 0x00, 0x90]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.seg[1].base), (0x1234, 0x9_0000));
    assert_eq!(machine.execute(&[0xca, 2, 0]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.seg[1].base, env.gpr[4]), (0x15, 0, 0x7002));
}

#[test]
fn a_call_gate_copies_parameters() {
    let mut machine = legacy_user();
    put(&machine, GDT + u64::from(GATE), gate(KERNEL_CODE32, HANDLER, 0xec, 2));
    put(&machine, USER_STACK, 0x2222_2222_1111_1111);
    // call 0x4b:0
    let call = [0x9a, 0, 0, 0, 0, (GATE | 3) as u8, 0];
    assert_eq!(machine.execute(&call), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4]), (HANDLER, 0, KERNEL_STACK - 24));
    let frame = words32(&machine, KERNEL_STACK - 24, 6);
    let (cs, ss) = (u64::from(USER_CODE32), u64::from(USER_DATA));
    assert_eq!(frame, [CODE + 7, cs, 0x1111_1111, 0x2222_2222, USER_STACK, ss]);
    // retf 8 releases them on both stacks.
    assert_eq!(machine.execute(&[0xca, 8, 0]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.cpl(), env.gpr[4]), (CODE + 7, 3, USER_STACK + 8));
    assert_eq!(env.seg[2].selector, USER_DATA);

    machine.cpu.env.rip = CODE;
    let jump = [0xea, 0, 0, 0, 0, (GATE | 3) as u8, 0];
    assert_eq!(machine.execute(&jump), Err(Exception::gp(0x30)), "JMP cannot raise the privilege");
    put(&machine, GDT + u64::from(GATE), gate(KERNEL_CODE32, HANDLER, 0x6c, 0));
    assert_eq!(machine.execute(&call), Err(Exception::np(u32::from(GATE))));
    put(&machine, GDT + u64::from(GATE), gate(0, HANDLER, 0xec, 0));
    assert_eq!(machine.execute(&call), Err(Exception::gp(0)));
}

#[test]
fn questions_about_descriptors() {
    let ask = |machine: &mut Machine, bytes: &[u8], selector: u16| {
        machine.cpu.env.gpr[3] = u64::from(selector);
        machine.cpu.env.gpr[0] = 0xdead;
        assert_eq!(machine.execute(bytes), Ok(Next::Fallthrough));
        (machine.cpu.env.arith & flag::ZF != 0).then_some(machine.cpu.env.gpr[0])
    };
    const LAR: &[u8] = &[0x0f, 0x02, 0xc3];
    const LSL: &[u8] = &[0x0f, 0x03, 0xc3];
    const VERR: &[u8] = &[0x0f, 0x00, 0xe3];
    const VERW: &[u8] = &[0x0f, 0x00, 0xeb];
    let mut machine = legacy_user();
    assert_eq!(ask(&mut machine, LAR, USER_DATA), Some(0xc0_f300));
    assert_eq!(ask(&mut machine, LSL, USER_DATA), Some(0xffff_ffff));
    assert_eq!(ask(&mut machine, LAR, KERNEL_DATA), None);
    assert_eq!(ask(&mut machine, LAR, 0), None);
    assert_eq!(ask(&mut machine, LSL, 0x1000), None);
    assert_eq!(ask(&mut machine, VERR, USER_CODE32), Some(0xdead));
    assert_eq!(ask(&mut machine, VERW, USER_CODE32), None);
    assert_eq!(ask(&mut machine, VERW, USER_DATA), Some(0xdead));
    assert_eq!(ask(&mut machine, VERR, TASK), None);
    let mut machine = legacy_kernel();
    assert_eq!(ask(&mut machine, LSL, TASK), Some(0x67));
    assert_eq!(ask(&mut machine, LAR, OTHER_TASK), Some(0x8900));
    put(&machine, GDT + u64::from(GATE), gate(KERNEL_CODE32, 0, 0x8c, 0));
    assert_eq!(ask(&mut machine, LAR, GATE), Some(0x8c00));
    assert_eq!(ask(&mut machine, LSL, GATE), None);
    assert_eq!(Machine::new_real().execute(LAR), Err(Exception::UD));
    // arpl bx, cx
    machine.cpu.env.gpr[3] = 0x1_0010;
    machine.cpu.env.gpr[1] = 3;
    assert_eq!(machine.execute(&[0x63, 0xcb]), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.gpr[3], machine.cpu.env.arith & flag::ZF), (0x1_0013, flag::ZF));
    assert_eq!(machine.execute(&[0x63, 0xcb]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.arith & flag::ZF, 0);
}

#[test]
fn the_ldt_and_the_task_register() {
    let mut machine = legacy_kernel();
    // lldt ax
    machine.cpu.env.gpr[0] = u64::from(LDT);
    put(&machine, OTHER_TSS + 0x800 + 8, flat(0x93));
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd0]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.ldt.base, OTHER_TSS + 0x800);
    machine.cpu.env.gpr[0] = 0x0c;
    assert_eq!(machine.execute(&[0x8e, 0xd8]), Ok(Next::EndBlock), "a selector of the LDT");
    machine.cpu.env.gpr[0] = u64::from(KERNEL_DATA);
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd0]), Err(Exception::gp(0x10)));
    // ltr ax
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(0x10)));
    machine.cpu.env.gpr[0] = u64::from(TASK);
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(0x38)), "busy");
    machine.cpu.env.gpr[0] = u64::from(OTHER_TASK);
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd8]), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.task.base, machine.cpu.env.task.access), (OTHER_TSS, 0x8b));
    assert_eq!(get(&machine, GDT + u64::from(OTHER_TASK) + 5, 1), 0x8b, "now busy in the table");
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xc8]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[0], u64::from(OTHER_TASK));
    machine.cpu.env.gpr[0] = 0;
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd0]), Ok(Next::Fallthrough));
    assert!(!machine.cpu.env.ldt.usable());

    // 64-bit mode reads 16 bytes.
    let mut machine = long_kernel();
    let wide = u64::from(GATE);
    put(&machine, GDT + wide, system(0x1000, 0x67, 0x89));
    put(&machine, GDT + wide + 8, 0xffff_fe00);
    machine.cpu.env.gpr[0] = wide;
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd8]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.task.base, 0xffff_fe00_0000_1000);
    put(&machine, GDT + wide, system(0x1000, 0x67, 0x89));
    put(&machine, GDT + wide + 8, 0xffff);
    assert_eq!(machine.execute(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(u32::from(GATE))));
}

#[test]
fn returns_to_outer_levels_check_the_stack() {
    let mut machine = legacy_kernel();
    let mut retf = |ip: u64, cs: u16, sp: u64, ss: u16| {
        machine.cpu.env.gpr[4] = KERNEL_STACK - 16;
        put(&machine, KERNEL_STACK - 16, ip | u64::from(cs) << 32);
        put(&machine, KERNEL_STACK - 8, sp | u64::from(ss) << 32);
        machine.execute(&[0xcb])
    };
    assert_eq!(retf(0, 0, 0, USER_DATA), Err(Exception::gp(0)));
    assert_eq!(retf(0, USER_CODE32 & !3, 0, USER_DATA), Err(Exception::gp(0x18)));
    assert_eq!(retf(0, USER_CODE32, 0, 0), Err(Exception::gp(0)));
    assert_eq!(retf(0, USER_CODE32, 0, KERNEL_DATA), Err(Exception::gp(0x10)));
    assert_eq!(retf(9, USER_CODE32, 0x100, USER_DATA), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[4], machine.cpu.env.cpl()), (9, 0x100, 3));
}

#[test]
fn the_io_bitmap() {
    let mut machine = legacy_user();
    machine.cpu.env.task.limit = 0x67 + 0x10;
    machine.poke(TSS + 0x68, &[0xff; 0x10]);
    machine.poke(TSS + 0x68 + 0x60 / 8, &[0xee]);
    assert_eq!(machine.execute(&[0xe4, 0x60]), Ok(Next::Fallthrough));
    assert_eq!(machine.execute(&[0xe4, 0x61]), Err(Exception::gp(0)));
    assert_eq!(machine.execute(&[0xe5, 0x60]), Err(Exception::gp(0)), "four ports");
}
