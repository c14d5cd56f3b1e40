//! Tests of the system instructions and of interrupt delivery, on a machine with tables made by hand.

mod flags;
mod legacy;
mod long;
mod privileged;
mod tasks;

use super::testing::Machine;
use crate::cpu::Cpu;
use crate::env::{Segment, Table};

/// Where the tables and stacks lie; linear address = physical.
const GDT: u64 = 0x1_0000;
const IDT: u64 = 0x1_1000;
const TSS: u64 = 0x1_2000;
const OTHER_TSS: u64 = 0x1_3000;
const KERNEL_STACK: u64 = 0x2_0000;
const IST_STACK: u64 = 0x2_8000;
const USER_STACK: u64 = 0x3_0000;
const CODE: u64 = 0x4_0000;
const HANDLER: u64 = 0x5_0000;

/// Selectors in the GDT of [`with_tables`].
const KERNEL_CODE64: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_CODE32: u16 = 0x18 | 3;
const USER_DATA: u16 = 0x20 | 3;
const USER_CODE64: u16 = 0x28 | 3;
const KERNEL_CODE32: u16 = 0x30;
const TASK: u16 = 0x38;
const GATE: u16 = 0x48;
const CONFORMING32: u16 = 0x58;
const ABSENT: u16 = 0x60;
const OTHER_TASK: u16 = 0x68;
const LDT: u16 = 0x70;
const GDT_LIMIT: u16 = 0x7f;

const FLAT: u64 = 0x00cf_0000_0000_ffff;

fn put(machine: &Machine, at: u64, value: u64) {
    machine.poke(at, &value.to_le_bytes());
}

fn get(machine: &Machine, at: u64, size: usize) -> u64 {
    machine.peek(at, size).iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A code or data descriptor: flat, with this access byte.
fn flat(access: u64) -> u64 {
    FLAT | access << 40
}

/// A system descriptor.
fn system(base: u64, limit: u64, access: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56
}

/// A gate's first 8 bytes. `access`: P, DPL, type. `low`: IST or parameter count.
fn gate(selector: u16, offset: u64, access: u64, low: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | low << 32 | access << 40 | (offset >> 16 & 0xffff) << 48
}

fn set_gate64(machine: &Machine, vector: u8, offset: u64, access: u64, ist: u64) {
    let at = IDT + u64::from(vector) * 16;
    put(machine, at, gate(KERNEL_CODE64, offset, access, ist));
    put(machine, at + 8, offset >> 32);
}

fn set_gate32(machine: &Machine, vector: u8, selector: u16, offset: u64, access: u64) {
    put(machine, IDT + u64::from(vector) * 8, gate(selector, offset, access, 0));
}

/// Writes the GDT.
fn with_tables(machine: &mut Machine) {
    let long = 0x20u64 << 48;
    let big = 0x40u64 << 48;
    let entries = [
        (KERNEL_CODE64, flat(0x9b) & !big | long),
        (KERNEL_DATA, flat(0x93)),
        (USER_CODE32, flat(0xfb)),
        (USER_DATA, flat(0xf3)),
        (USER_CODE64, flat(0xfb) & !big | long),
        (KERNEL_CODE32, flat(0x9b)),
        (TASK, system(TSS, 0x67, 0x8b)),
        (CONFORMING32, flat(0x9f)),
        (ABSENT, flat(0x13)),
        (OTHER_TASK, system(OTHER_TSS, 0x67, 0x89)),
        (LDT, system(OTHER_TSS + 0x800, 0x1f, 0x82)),
    ];
    for (selector, entry) in entries {
        put(machine, GDT + u64::from(selector & !7), entry);
    }
    // No I/O permission bitmap.
    machine.poke(TSS + 0x66, &0x68u16.to_le_bytes());
    let env = &mut *machine.cpu.env;
    env.gdt = Table { base: GDT, limit: GDT_LIMIT };
    env.idt = Table { base: IDT, limit: 0xfff };
    env.task = Segment { base: TSS, limit: 0x67, access: 0x8b, selector: TASK };
    env.ldt = Segment::default();
    env.rip = CODE;
    env.gpr = std::array::from_fn(|index| 0x1111 * index as u64);
    env.gpr[4] = KERNEL_STACK;
}

fn set_code(cpu: &mut Cpu, selector: u16, access: u16) {
    cpu.env.seg[1] = Segment { base: 0, limit: u32::MAX, access, selector };
}

fn set_data(cpu: &mut Cpu, selector: u16, access: u16) {
    for index in [0, 2, 3] {
        cpu.env.seg[index] = Segment { base: 0, limit: u32::MAX, access, selector };
    }
    for index in [4, 5] {
        cpu.env.seg[index] = Segment::default();
    }
}

/// 64-bit mode at CPL 0.
fn long_kernel() -> Machine {
    let mut machine = Machine::new();
    with_tables(&mut machine);
    put(&machine, TSS + 4, KERNEL_STACK);
    put(&machine, TSS + 0x24, IST_STACK);
    set_code(&mut machine.cpu, KERNEL_CODE64, 0xa09b);
    set_data(&mut machine.cpu, KERNEL_DATA, 0xc093);
    machine.cpu.env.msr.star = u64::from(USER_CODE32) << 48 | u64::from(KERNEL_CODE64) << 32;
    machine.cpu.env.msr.lstar = HANDLER;
    machine.cpu.env.msr.fmask = 0x4_7700;
    machine
}

/// 64-bit mode at CPL 3, interrupts on.
fn long_user() -> Machine {
    let mut machine = long_kernel();
    set_code(&mut machine.cpu, USER_CODE64, 0xa0fb);
    set_data(&mut machine.cpu, USER_DATA, 0xc0f3);
    machine.cpu.env.gpr[4] = USER_STACK;
    machine.cpu.env.set_rflags(0x202);
    machine
}

/// 32-bit protected mode without paging, CPL 0.
fn legacy_kernel() -> Machine {
    let mut machine = Machine::new_real();
    with_tables(&mut machine);
    machine.cpu.env.cr0 = 0x11;
    put(&machine, TSS + 4, KERNEL_STACK | u64::from(KERNEL_DATA) << 32);
    set_code(&mut machine.cpu, KERNEL_CODE32, 0xc09b);
    set_data(&mut machine.cpu, KERNEL_DATA, 0xc093);
    machine
}

/// 32-bit protected mode without paging, CPL 3.
fn legacy_user() -> Machine {
    let mut machine = legacy_kernel();
    set_code(&mut machine.cpu, USER_CODE32, 0xc0fb);
    set_data(&mut machine.cpu, USER_DATA, 0xc0f3);
    machine.cpu.env.gpr[4] = USER_STACK;
    machine.cpu.env.set_rflags(0x202);
    machine
}
