//! Flags that system software owns: IF with its shadow, AC, and what PUSHF and POPF make of them.

use devices::cpu_interrupts::{InterruptKind, InterruptTarget};

use super::*;
use crate::code::tb::mode;
use crate::complex::Next;
use crate::env::flag;
use crate::exec::blocks::mode_bits;

#[test]
fn interrupt_flag_and_its_shadow() {
    let mut machine = long_kernel();
    machine.cpu.env.set_rflags(2);
    assert_eq!(machine.execute(&[0xfb]), Ok(Next::Fallthrough), "nothing waits");
    machine.cpu.env.set_rflags(2);
    machine.cpu.handle.raise(InterruptKind::Hard);
    assert_eq!(machine.execute(&[0xfb]), Ok(Next::EndBlock));
    assert_eq!((machine.cpu.env.iflag, machine.cpu.env.interrupt_shadow), (flag::IF, 1));
    machine.cpu.env.interrupt_shadow = 0;
    assert_eq!(machine.execute(&[0xfb]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.interrupt_shadow, 0, "IF was set already");
    assert_eq!(machine.execute(&[0xfa]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.iflag, 0);
    machine.execute(&[0xfb]).unwrap();
    assert_eq!(machine.execute(&[0xf4]), Ok(Next::Halt));
    assert_eq!(machine.cpu.env.interrupt_shadow, 0, "STI; HLT wakes at once");
    // With IOPL 3 a user may.
    let mut machine = long_user();
    machine.cpu.env.sysflags |= flag::IOPL;
    assert_eq!(machine.execute(&[0xfa]), Ok(Next::Fallthrough));
}

#[test]
fn pushf_and_popf_by_privilege() {
    let popf = |machine: &mut Machine, value: u64| {
        let sp = machine.cpu.env.gpr[4];
        put(machine, sp, value);
        let next = machine.execute(&[0x9d]);
        assert_eq!(machine.cpu.env.gpr[4], sp + 8);
        (next, machine.cpu.env.rflags())
    };
    let mut machine = long_user();
    let all = u64::from(flag::ALL);
    let user = 0x202 | crate::env::ARITH_FLAGS | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;
    assert_eq!(popf(&mut machine, all), (Ok(Next::EndBlock), user));
    assert_eq!(popf(&mut machine, 0), (Ok(Next::EndBlock), 0x202), "IF stays");
    assert_eq!(popf(&mut machine, 1), (Ok(Next::Fallthrough), 0x203));
    let mut machine = long_kernel();
    machine.cpu.env.set_rflags(2);
    assert_eq!(popf(&mut machine, all), (Ok(Next::EndBlock), user | flag::IOPL));
    machine.cpu.env.sysflags |= flag::RF;
    assert_eq!(machine.execute(&[0x9c]), Ok(Next::Fallthrough));
    let sp = machine.cpu.env.gpr[4];
    assert_eq!(get(&machine, sp, 8), u64::from(user | flag::IOPL), "without RF");
    // 66 9D: the upper half stays.
    put(&machine, sp, 0);
    assert_eq!(machine.execute(&[0x66, 0x9d]), Ok(Next::EndBlock));
    assert_eq!(machine.cpu.env.rflags(), 2 | flag::AC | flag::ID | flag::RF);
}

#[test]
fn popf_looks_for_interrupts_that_waited() {
    let mut machine = long_kernel();
    let popf = |machine: &mut Machine| {
        machine.cpu.env.set_rflags(2);
        put(machine, KERNEL_STACK, 0x202);
        machine.cpu.env.gpr[4] = KERNEL_STACK;
        machine.execute(&[0x9d])
    };
    assert_eq!(popf(&mut machine), Ok(Next::Fallthrough));
    machine.cpu.handle.raise(InterruptKind::Hard);
    assert_eq!(popf(&mut machine), Ok(Next::EndBlock));
}

#[test]
fn stac_opens_user_pages_to_the_kernel() {
    let mut machine = long_kernel();
    machine.cpu.env.cr4 |= 1 << 21;
    let view = |machine: &mut Machine, bytes: &[u8]| {
        assert_eq!(machine.execute(bytes), Ok(Next::EndBlock));
        let read = machine.cpu.read(0x7000, 8, crate::mmu::Access::Current);
        (mode_bits(&machine.cpu.env) & mode::SMAP_OFF != 0, read.is_ok())
    };
    assert_eq!(view(&mut machine, &[0x0f, 0x01, 0xca]), (false, false));
    assert_eq!(view(&mut machine, &[0x0f, 0x01, 0xcb]), (true, true));
}
