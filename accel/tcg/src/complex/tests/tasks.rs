//! Hardware task switches.

use super::*;
use crate::complex::Next;
use crate::env::flag;
use crate::exception::{Exception, vector};
use crate::interrupt::{Kind, inject, raise};

const NEW_STACK: u64 = 0x2_c000;

/// A kernel, and another task's TSS: 32-bit kernel code at HANDLER.
fn two_tasks() -> Machine {
    let mut machine = legacy_kernel();
    machine.cpu.env.set_rflags(0x202);
    let mut tss = [0u8; 0x68];
    let mut field = |at: usize, value: u64| tss[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    field(0x20, HANDLER);
    field(0x24, 0x2);
    for index in 0..8 {
        field(0x28 + index * 4, 0xa000 + index as u64);
    }
    field(0x38, NEW_STACK);
    for index in 0..6 {
        field(0x48 + index * 4, u64::from(KERNEL_DATA));
    }
    field(0x4c, u64::from(KERNEL_CODE32));
    machine.poke(OTHER_TSS, &tss);
    machine
}

fn descriptor_type(machine: &Machine, selector: u16) -> u64 {
    get(machine, GDT + u64::from(selector) + 5, 1) & 0xf
}

fn far(opcode: u8, selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [opcode, 0, 0, 0, 0, low, high]
}

const CALL: u8 = 0x9a;
const JMP: u8 = 0xea;

#[test]
fn a_called_task_returns_by_iret() {
    let mut machine = two_tasks();
    let before = machine.cpu.env.gpr;
    assert_eq!(machine.execute(&far(CALL, OTHER_TASK)), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.gpr[4], env.gpr[0], env.gpr[7]), (HANDLER, NEW_STACK, 0xa000, 0xa007));
    assert_eq!((env.task.selector, env.task.base, env.rflags()), (OTHER_TASK, OTHER_TSS, 2 | flag::NT));
    assert_ne!(env.cr0 & 8, 0, "TS");
    assert_eq!(get(&machine, OTHER_TSS, 2), u64::from(TASK), "the link");
    assert_eq!((descriptor_type(&machine, TASK), descriptor_type(&machine, OTHER_TASK)), (0xb, 0xb));
    assert_eq!(get(&machine, TSS + 0x20, 4), CODE + 7);
    assert_eq!(get(&machine, TSS + 0x24, 4), 0x202);

    machine.cpu.env.gpr[0] = 0x77;
    machine.cpu.env.rip = HANDLER + 0x20;
    assert_eq!(machine.execute(&[0xcf]), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.rflags(), env.task.selector), (CODE + 7, 0x202, TASK));
    assert_eq!(env.gpr[..8], before[..8]);
    assert_eq!((descriptor_type(&machine, TASK), descriptor_type(&machine, OTHER_TASK)), (0xb, 9));
    assert_eq!(get(&machine, OTHER_TSS + 0x28, 4), 0x77);
    assert_eq!(get(&machine, OTHER_TSS + 0x20, 4), HANDLER + 0x21);
    assert_eq!(get(&machine, OTHER_TSS + 0x24, 4), 2, "NT is not saved");
}

#[test]
fn a_jump_leaves_the_old_task_available() {
    let mut machine = two_tasks();
    assert_eq!(machine.execute(&far(JMP, OTHER_TASK)), Ok(Next::Jumped));
    assert_eq!((descriptor_type(&machine, TASK), descriptor_type(&machine, OTHER_TASK)), (9, 0xb));
    assert_eq!(machine.cpu.env.rflags(), 2);
    machine.cpu.env.rip = CODE;
    assert_eq!(machine.execute(&far(JMP, OTHER_TASK)), Err(Exception::gp(u32::from(OTHER_TASK))), "busy");
}

#[test]
fn a_task_gate_takes_an_exception() {
    let mut machine = two_tasks();
    machine.cpu.env.gpr[4] = 3;
    put(&machine, IDT + 8 * u64::from(vector::DF), gate(OTHER_TASK, 0, 0x85, 0));
    // #GP without a gate becomes a double fault, which has its own task and so a good stack.
    assert_eq!(raise(&mut machine.cpu, Exception::gp(0)), Next::Jumped);
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.task.selector, env.gpr[4]), (HANDLER, OTHER_TASK, NEW_STACK - 4));
    assert_eq!(get(&machine, NEW_STACK - 4, 4), 0);
    assert_eq!(get(&machine, TSS + 0x20, 4), CODE);
    assert_eq!(get(&machine, TSS + 0x38, 4), 3);

    let mut machine = two_tasks();
    put(&machine, IDT + 8 * 0x40, gate(OTHER_TASK, 0, 0x85, 0));
    assert_eq!(inject(&mut machine.cpu, 0x40, Kind::External), Next::Jumped);
    assert_eq!(machine.cpu.env.gpr[4], NEW_STACK, "no error code");
    assert_eq!(machine.execute(&[0xcf]), Ok(Next::Jumped));
    assert_eq!(machine.cpu.env.rip, CODE);
}

#[test]
fn faults_before_and_after_the_switch() {
    let mut machine = two_tasks();
    put(&machine, GDT + u64::from(OTHER_TASK), system(OTHER_TSS, 0x66, 0x89));
    assert_eq!(machine.execute(&far(CALL, OTHER_TASK)), Err(Exception::ts(0x68)));
    put(&machine, GDT + u64::from(OTHER_TASK), system(OTHER_TSS, 0x67, 0x09));
    assert_eq!(machine.execute(&far(CALL, OTHER_TASK)), Err(Exception::np(0x68)));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.task.selector), (CODE, TASK));

    let mut machine = two_tasks();
    put(&machine, OTHER_TSS + 0x50, u64::from(USER_DATA));
    assert_eq!(machine.execute(&far(CALL, OTHER_TASK)), Err(Exception::ts(0x20)), "its SS");
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.task.selector, env.cpl()), (HANDLER, OTHER_TASK, 0), "in the new task");

    let mut machine = two_tasks();
    put(&machine, OTHER_TSS + 0x54, u64::from(ABSENT));
    assert_eq!(machine.execute(&far(CALL, OTHER_TASK)), Err(Exception::np(0x60)), "its DS");

    // IRET to a task that does not wait.
    let mut machine = two_tasks();
    machine.cpu.env.sysflags |= flag::NT;
    put(&machine, TSS, u64::from(OTHER_TASK));
    assert_eq!(machine.execute(&[0xcf]), Err(Exception::ts(0x68)));
}

#[test]
fn a_16bit_tss_and_a_task_gate_in_the_gdt() {
    let mut machine = two_tasks();
    put(&machine, GDT + u64::from(OTHER_TASK), system(OTHER_TSS, 0x2b, 0x81));
    put(&machine, GDT + u64::from(GATE), gate(OTHER_TASK, 0, 0x85, 0));
    let mut tss = [0u8; 0x2c];
    let mut field = |at: usize, value: u16| tss[at..at + 2].copy_from_slice(&value.to_le_bytes());
    field(0x0e, 0x1234);
    field(0x10, 2);
    field(0x12, 0x5555);
    field(0x1a, 0x7000);
    for at in [0x22, 0x26, 0x28] {
        field(at, KERNEL_DATA);
    }
    field(0x24, KERNEL_CODE32);
    machine.poke(OTHER_TSS, &tss);
    assert_eq!(machine.execute(&far(CALL, GATE)), Ok(Next::Jumped));
    let env = &machine.cpu.env;
    assert_eq!((env.rip, env.gpr[0], env.gpr[4]), (0x1234, 0x5555, 0x7000));
    assert!(!env.seg[4].usable() && !env.seg[5].usable());
    assert_eq!(env.task.access & 0xf, 3);
    assert_eq!(machine.execute(&[0xcf]), Ok(Next::Jumped));
    assert_eq!(machine.cpu.env.rip, CODE + 7);
    assert_eq!(get(&machine, OTHER_TSS + 0x0e, 2), 0x1235);
}
