//! Near branches and the stack in every width.

use crate::complex::Next;
use crate::complex::testing::{DATA, Machine};
use crate::env::{ARITH_FLAGS, flag};
use crate::exception::{Exception, pf};

const RCX: usize = 1;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;

#[test]
fn pop_to_memory_uses_the_moved_pointer() {
    let mut machine = Machine::new();
    machine.poke(DATA + 0x100, &0x1122_3344_5566_7788u64.to_le_bytes());
    machine.cpu.env.gpr[RSP] = DATA + 0x100;
    // pop qword [rsp + 8]
    assert_eq!(machine.execute(&[0x8f, 0x44, 0x24, 8]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RSP], DATA + 0x108);
    assert_eq!(machine.peek(DATA + 0x110, 8), 0x1122_3344_5566_7788u64.to_le_bytes());
    // To a missing page: nothing moves.
    machine.map(DATA + 0x1000, 0);
    machine.cpu.env.gpr[RBX] = DATA + 0x1000;
    let fault = machine.execute(&[0x8f, 0x03]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(DATA + 0x1000, pf::WRITE));
    assert_eq!(machine.cpu.env.gpr[RSP], DATA + 0x108);
    // pop sp, pop rsp: the value wins.
    machine.poke(DATA + 0x108, &0x4242u64.to_le_bytes());
    assert_eq!(machine.execute(&[0x66, 0x5c]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RSP], DATA & !0xffff | 0x4242);
}

#[test]
fn sixteen_bit_stacks_wrap() {
    let mut machine = Machine::new_real();
    machine.cpu.env.seg[2].base = DATA;
    machine.cpu.env.gpr[RSP] = 0x1234_0002;
    machine.cpu.env.gpr[RBX] = 0xaabb_ccdd;
    assert_eq!(machine.execute(&[0x53]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RSP], 0x1234_0000);
    assert_eq!(machine.execute(&[0x53]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RSP], 0x1234_fffe);
    assert_eq!(machine.peek(DATA + 0xfffe, 2), [0xdd, 0xcc]);
    assert_eq!(machine.execute(&[0x66, 0x68, 0x78, 0x56, 0x34, 0x12]), Ok(Next::Fallthrough));
    assert_eq!(machine.peek(DATA + 0xfffa, 4), [0x78, 0x56, 0x34, 0x12]);
    // push -1 as a byte
    assert_eq!(machine.execute(&[0x6a, 0xff]), Ok(Next::Fallthrough));
    assert_eq!(machine.peek(DATA + 0xfff8, 2), [0xff, 0xff]);
    machine.cpu.env.gpr[RBP] = 0xfffa;
    assert_eq!(machine.execute(&[0x66, 0xc9]), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.gpr[RBP], machine.cpu.env.gpr[RSP]), (0x1234_5678, 0x1234_fffe));
}

#[test]
fn calls_come_back() {
    let mut machine = Machine::new_real();
    machine.cpu.env.rip = 0x7c00;
    machine.cpu.env.gpr[RSP] = 0x1000;
    assert_eq!(machine.execute(&[0xe8, 0x10, 0]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[RSP]), (0x7c13, 0xffe));
    assert_eq!(machine.execute(&[0xc2, 4, 0]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[RSP]), (0x7c03, 0x1004));
    // Through memory, 32-bit operand, target beyond the limit: #GP before the push.
    machine.poke(0x500, &0x1_0000u32.to_le_bytes());
    assert_eq!(machine.execute(&[0x66, 0xff, 0x16, 0, 5]), Err(Exception::gp(0)));
    assert_eq!(machine.cpu.env.gpr[RSP], 0x1004);
    machine.poke(0x500, &0x1234u16.to_le_bytes());
    assert_eq!(machine.execute(&[0xff, 0x26, 0, 5]), Ok(Next::Jumped));
    assert_eq!(machine.cpu.env.rip, 0x1234);
    // A backward jump wraps in 16 bits.
    machine.cpu.env.rip = 4;
    assert_eq!(machine.execute(&[0xeb, 0xf0]), Ok(Next::Jumped));
    assert_eq!(machine.cpu.env.rip, 0xfff6);
}

#[test]
fn every_condition() {
    use flag::{CF, OF, PF, SF, ZF};
    let mut machine = Machine::new_32bit();
    type Holds = fn(u32) -> bool;
    let sets: [(u8, Holds); 8] = [
        (0, |f| f & OF != 0),
        (2, |f| f & CF != 0),
        (4, |f| f & ZF != 0),
        (6, |f| f & (CF | ZF) != 0),
        (8, |f| f & SF != 0),
        (10, |f| f & PF != 0),
        (12, |f| (f & SF != 0) != (f & OF != 0)),
        (14, |f| f & ZF != 0 || (f & SF != 0) != (f & OF != 0)),
    ];
    for flags in (0..=ARITH_FLAGS).filter(|flags| flags & !ARITH_FLAGS == 0) {
        for (code, holds) in sets {
            for negated in [0, 1] {
                machine.cpu.env.arith = flags;
                machine.cpu.env.rip = 0x100;
                let next = machine.execute(&[0x66, 0x0f, 0x80 | code | negated, 0x10, 0]);
                let taken = holds(flags) != (negated == 1);
                let expected = if taken { (Ok(Next::Jumped), 0x115) } else { (Ok(Next::Fallthrough), 0x100) };
                assert_eq!((next, machine.cpu.env.rip), expected, "{code} {negated} {flags:x}");
            }
        }
    }
}

#[test]
fn loops_count_in_the_address_size() {
    let mut machine = Machine::new_32bit();
    machine.cpu.env.rip = 0x100;
    machine.cpu.env.gpr[RCX] = 0x1_0001;
    // loop with a 16-bit counter: CX becomes 0, the rest stays, no jump.
    assert_eq!(machine.execute(&[0x67, 0xe2, 0x10]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RCX], 0x1_0000);
    assert_eq!(machine.execute(&[0x67, 0xe3, 0x10]), Ok(Next::Jumped));
    machine.cpu.env.rip = 0x100;
    assert_eq!(machine.execute(&[0xe3, 0x10]), Ok(Next::Fallthrough));
    machine.cpu.env.arith = flag::ZF;
    assert_eq!(machine.execute(&[0xe0, 0x10]), Ok(Next::Fallthrough));
    assert_eq!(machine.execute(&[0xe1, 0x10]), Ok(Next::Jumped));
    assert_eq!((machine.cpu.env.rip, machine.cpu.env.gpr[RCX]), (0x112, 0xfffe));
}
