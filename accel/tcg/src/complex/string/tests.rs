//! String instructions: against a byte-by-byte model over a flat copy of memory, and by hand for faults and modes.

use crate::complex::Next;
use crate::complex::testing::{DATA, Machine, Random};
use crate::env::{Segment, flag};
use crate::exception::{Exception, pf};

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// The registers and memory that the manual's pseudocode leaves, for `count` repetitions.
struct Model {
    memory: Vec<u8>,
    gpr: [u64; 16],
    flags: u32,
}

impl Model {
    fn load(&self, at: u64, size: usize) -> u64 {
        let mut value = [0; 8];
        let at = (at - DATA) as usize;
        value[..size].copy_from_slice(&self.memory[at..at + size]);
        u64::from_le_bytes(value)
    }

    fn run(&mut self, opcode: u8, size: usize, rep: Option<u8>, backward: bool) {
        let step = if backward { (size as u64).wrapping_neg() } else { size as u64 };
        let truncate = |value: u64| if size == 8 { value } else { value & ((1 << (8 * size)) - 1) };
        loop {
            if rep.is_some() {
                if self.gpr[RCX] == 0 {
                    return;
                }
                self.gpr[RCX] -= 1;
            }
            let (source, dest) = (self.gpr[RSI], self.gpr[RDI]);
            let source_used = matches!(opcode, 0xa4 | 0xac | 0xa6);
            let dest_used = opcode != 0xac;
            let mut compare = None;
            match opcode {
                0xa4 | 0xaa => {
                    let value = if source_used { self.load(source, size) } else { self.gpr[RAX] };
                    let at = (dest - DATA) as usize;
                    self.memory[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
                0xac => {
                    let value = self.load(source, size);
                    self.gpr[RAX] = match size {
                        1 => self.gpr[RAX] & !0xff | value,
                        2 => self.gpr[RAX] & !0xffff | value,
                        _ => value,
                    };
                }
                0xa6 => compare = Some((self.load(source, size), self.load(dest, size))),
                _ => compare = Some((truncate(self.gpr[RAX]), self.load(dest, size))),
            }
            if source_used {
                self.gpr[RSI] = source.wrapping_add(step);
            }
            if dest_used {
                self.gpr[RDI] = dest.wrapping_add(step);
            }
            if let Some((a, b)) = compare {
                self.flags = subtract(a, b, size);
                if rep == Some(0xf3) && a != b || rep == Some(0xf2) && a == b {
                    return;
                }
            }
            if rep.is_none() {
                return;
            }
        }
    }
}

/// Flags of SUB in wide arithmetic, written without a look at the implementation.
fn subtract(a: u64, b: u64, size: usize) -> u32 {
    let bits = 8 * size as u32;
    let wide = i128::from(a) - i128::from(b);
    let result = (wide as u128 & ((1 << bits) - 1)) as u64;
    let sign = |value: u64| i128::from(value) - (i128::from(value >> (bits - 1)) << bits);
    let signed = sign(a) - sign(b);
    let mut flags = 0;
    let mut set = |bit, on| flags |= if on { bit } else { 0 };
    set(flag::CF, wide < 0);
    set(flag::PF, (result as u8).count_ones() & 1 == 0);
    set(flag::AF, a & 0xf < b & 0xf);
    set(flag::ZF, result == 0);
    set(flag::SF, result >> (bits - 1) & 1 != 0);
    set(flag::OF, signed != sign(result));
    flags
}

fn encode(opcode: u8, size: usize, rep: Option<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if size == 2 {
        bytes.push(0x66);
    }
    bytes.extend(rep);
    if size == 8 {
        bytes.push(0x48);
    }
    bytes.push(if size == 1 { opcode } else { opcode + 1 });
    bytes
}

#[test]
fn every_instruction_matches_the_model() {
    const LEN: u64 = 0x6000;
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut machine = Machine::new();
    for round in 0..3000 {
        let opcode = [0xa4, 0xaa, 0xac, 0xa6, 0xae][random.below(5) as usize];
        let size = 1 << random.below(4);
        let rep = [None, Some(0xf3), Some(0xf2)][random.below(3) as usize];
        let backward = random.below(4) == 0;
        let mut memory = vec![0; LEN as usize];
        // Long equal stretches, so that comparisons go on for a while.
        if round % 2 == 0 {
            random.fill(&mut memory);
        } else {
            for _ in 0..4 {
                let at = random.below(LEN) as usize;
                memory[at] = random.next() as u8;
            }
        }
        machine.poke(DATA, &memory);
        let count = [random.below(5), random.below(300), random.below(0x1000)][random.below(3) as usize];
        let span = count.max(1) * size as u64;
        let count = if span > LEN / 2 { LEN / 2 / size as u64 } else { count };
        let span = count.max(1) * size as u64;
        let room = LEN - span;
        let mut source = DATA + random.below(room);
        let mut dest = DATA + random.below(room);
        if random.below(2) == 0 {
            // Overlap at every small distance, both ways.
            dest = (source + random.below(24)).saturating_sub(12).clamp(DATA, DATA + room);
        }
        if backward {
            source += span - size as u64;
            dest += span - size as u64;
        }
        let env = &mut machine.cpu.env;
        env.gpr[RAX] = if random.below(2) == 0 { 0 } else { random.next() };
        (env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]) = (count, source, dest);
        env.df = if backward { flag::DF } else { 0 };
        env.arith = random.next() as u32 & crate::env::ARITH_FLAGS;
        let mut model = Model { memory, gpr: env.gpr, flags: env.arith };
        model.run(opcode, size, rep, backward);
        let what = format!("round {round}: {opcode:x} size {size} rep {rep:?} back {backward} count {count}");
        let insn = encode(opcode, size, rep);
        assert_eq!(machine.finish(&insn), Ok(Next::Fallthrough), "{what}");
        assert_eq!(machine.cpu.env.gpr, model.gpr, "{what}");
        assert_eq!(machine.cpu.env.arith, model.flags, "{what}");
        assert!(machine.peek(DATA, LEN as usize) == model.memory, "{what}: memory");
    }
}

#[test]
fn flags_of_the_careful_path_are_those_of_subtraction() {
    let mut random = Random(77);
    for _ in 0..20_000 {
        let size = 1usize << random.below(4);
        let mask = u64::MAX >> (64 - 8 * size);
        let a = random.next() & mask;
        let b = if random.below(4) == 0 { a } else { random.next() & mask };
        assert_eq!(super::subtract_flags(a, b, size), subtract(a, b, size), "{a:x} {b:x} {size}");
    }
}

#[test]
fn a_fault_leaves_the_finished_elements() {
    let mut machine = Machine::new();
    let hole = DATA + 0x2000;
    machine.map(hole, 0);
    machine.poke(DATA, &[7; 0x2000]);
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]) = (0x3000, DATA, DATA + 0x1004);
    // rep movsb: the destination runs into the hole after 0xffc bytes.
    let fault = machine.finish(&[0xf3, 0xa4]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(hole, pf::WRITE));
    let env = &machine.cpu.env;
    assert_eq!((env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]), (0x3000 - 0xffc, DATA + 0xffc, hole));
    assert_eq!(machine.peek(DATA + 0x1004, 4), [7; 4]);
    // An element half in the hole: nothing of it is stored, the address is that of the hole.
    machine.poke(hole - 4, &[9; 4]);
    let env = &mut machine.cpu.env;
    (env.gpr[RAX], env.gpr[RCX], env.gpr[RDI]) = (0, 2, hole - 12);
    let fault = machine.finish(&[0xf3, 0x48, 0xab]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(hole, pf::WRITE));
    assert_eq!((machine.cpu.env.gpr[RCX], machine.cpu.env.gpr[RDI]), (1, hole - 4));
    assert_eq!(machine.peek(hole - 4, 4), [9; 4]);
    assert_eq!(machine.peek(hole - 12, 8), [0; 8]);
}

#[test]
fn scanning_stops_before_the_hole() {
    let mut machine = Machine::new();
    let hole = DATA + 0x1000;
    machine.map(hole, 0);
    machine.poke(hole - 3, b"ab\0");
    let env = &mut machine.cpu.env;
    (env.gpr[RAX], env.gpr[RCX], env.gpr[RDI]) = (0, u64::MAX, hole - 3);
    assert_eq!(machine.finish(&[0xf2, 0xae]), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.gpr[RCX], machine.cpu.env.gpr[RDI]), (u64::MAX - 3, hole));
}

#[test]
fn zero_count_changes_nothing() {
    let mut machine = Machine::new();
    machine.cpu.env.gpr[RCX] = 0;
    machine.cpu.env.gpr[RDI] = 0x8000_0000_0000_0000;
    machine.cpu.env.arith = flag::CF | flag::OF;
    assert_eq!(machine.execute(&[0xf3, 0xa6]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.arith, flag::CF | flag::OF);
}

#[test]
fn long_ones_let_interrupts_in() {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[RDI]) = (0x20_0000, DATA);
    assert_eq!(machine.execute(&[0xf3, 0xaa]), Ok(Next::Repeat));
    let done = 0x20_0000 - machine.cpu.env.gpr[RCX];
    assert_eq!(done, 0x10000);
    assert_eq!(machine.cpu.env.gpr[RDI], DATA + done);
}

#[test]
fn single_step_traps_after_each_element() {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]) = (2, DATA, DATA + 8);
    env.sysflags |= flag::TF;
    assert_eq!(machine.execute(&[0xf3, 0xa4]), Ok(Next::Repeat));
    assert_eq!(machine.cpu.env.gpr[RCX], 1);
    assert_eq!(machine.execute(&[0xf3, 0xa4]), Ok(Next::Fallthrough));
}

#[test]
fn data_breakpoints_are_noted() {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[RDI]) = (8, DATA);
    env.dr[1] = DATA + 4;
    env.dr7 = 1 << 2 | 1 << 20; // breakpoint 1: enabled, writes, one byte
    assert_eq!(machine.execute(&[0xf3, 0xaa]), Ok(Next::Repeat));
    assert_eq!((machine.cpu.env.gpr[RCX], machine.cpu.pending_debug), (3, 2));
}

#[test]
fn stores_to_device_memory_go_out_one_by_one() {
    let mut machine = Machine::new();
    machine.map(DATA, 0xfe00_0000 | 7);
    let env = &mut machine.cpu.env;
    (env.gpr[RAX], env.gpr[RCX], env.gpr[RDI]) = (0x0403_0201, 2, DATA + 8);
    assert_eq!(machine.finish(&[0xf3, 0xab]), Ok(Next::Fallthrough));
    let writes = machine.io.writes.lock().unwrap();
    assert_eq!(*writes, [(0xfe00_0008, vec![1, 2, 3, 4]), (0xfe00_000c, vec![1, 2, 3, 4])]);
}

#[test]
fn address_sizes_wrap_and_merge() {
    // 67h in 64-bit mode: ESI, EDI, ECX, written with zero-extension.
    let mut machine = Machine::new();
    machine.poke(DATA, b"xy");
    let env = &mut machine.cpu.env;
    let junk = 0xdead_beef_0000_0000;
    (env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]) = (junk | 2, junk | DATA, junk | (DATA + 0x100));
    assert_eq!(machine.finish(&[0xf3, 0x67, 0xa4]), Ok(Next::Fallthrough));
    let env = &machine.cpu.env;
    assert_eq!((env.gpr[RCX], env.gpr[RSI], env.gpr[RDI]), (0, DATA + 2, DATA + 0x102));
    // 16-bit: DI wraps at 64 KiB within the segment, the upper half of EDI stays.
    let mut machine = Machine::new_real();
    machine.cpu.env.seg[0].base = DATA;
    let env = &mut machine.cpu.env;
    (env.gpr[RAX], env.gpr[RCX], env.gpr[RDI]) = (0x5a, 4, 0x1234_fffe);
    assert_eq!(machine.finish(&[0xf3, 0xaa]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RDI], 0x1234_0002);
    assert_eq!(machine.peek(DATA + 0xfffe, 2), [0x5a; 2]);
    assert_eq!(machine.peek(DATA, 2), [0x5a; 2]);
}

#[test]
fn limits_fault_at_the_element_that_crosses_them() {
    let mut machine = Machine::new_32bit();
    machine.cpu.env.seg[0].limit = DATA as u32 + 9;
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[RDI]) = (4, DATA);
    assert_eq!(machine.finish(&[0xf3, 0xab]), Err(Exception::gp(0)));
    assert_eq!((machine.cpu.env.gpr[RCX], machine.cpu.env.gpr[RDI]), (2, DATA + 8));
    // SS override on the source: #SS.
    let mut machine = Machine::new_32bit();
    machine.cpu.env.seg[2].limit = 0xff;
    machine.cpu.env.gpr[RSI] = 0x100;
    machine.cpu.env.gpr[RDI] = DATA;
    assert_eq!(machine.finish(&[0x36, 0xa4]), Err(Exception::ss(0)));
}

#[test]
fn non_canonical_addresses_are_protection_faults() {
    let mut machine = Machine::new();
    machine.cpu.env.gpr[RDI] = 0x8000_0000_0000;
    machine.cpu.env.gpr[RSI] = DATA;
    assert_eq!(machine.finish(&[0xa4]), Err(Exception::gp(0)));
    machine.cpu.env.gpr[RCX] = 4;
    assert_eq!(machine.finish(&[0xf3, 0xaa]), Err(Exception::gp(0)));
    assert_eq!(machine.cpu.env.gpr[RCX], 4);
}

#[test]
fn fs_override_uses_the_base() {
    let mut machine = Machine::new();
    machine.poke(DATA + 0x10, b"q");
    machine.cpu.env.seg[4].base = DATA;
    machine.cpu.env.gpr[RSI] = 0x10;
    assert_eq!(machine.finish(&[0x64, 0xac]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[RAX], u64::from(b'q'));
}

#[test]
fn ports_need_the_right_and_stop_at_faults() {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    (env.gpr[RCX], env.gpr[2], env.gpr[RDI]) = (4, 0x1f0, DATA + 0xffc);
    machine.map(DATA + 0x1000, 0);
    // rep insw: two words fit, then the hole; the port is not read for the third.
    let fault = machine.finish(&[0x66, 0xf3, 0x6d]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(DATA + 0x1000, pf::WRITE));
    assert_eq!((machine.cpu.env.gpr[RCX], *machine.io.next.lock().unwrap()), (2, 4));
    assert_eq!(machine.peek(DATA + 0xffc, 4), [0, 1, 2, 3]);
    // rep outsb at CPL 3 without IOPL: by the TSS's bitmap.
    machine.user();
    let env = &mut machine.cpu.env;
    env.task = Segment { base: DATA + 0x4000, limit: 0x67 + 0x80, access: 0x8b, selector: 0x40 };
    (env.gpr[RCX], env.gpr[RSI]) = (3, DATA + 0xffc);
    machine.poke(DATA + 0x4066, &0x68u16.to_le_bytes());
    machine.poke(DATA + 0x4068 + 0x3e, &[0xfe]);
    assert_eq!(machine.finish(&[0xf3, 0x6e]), Ok(Next::EndBlock));
    assert_eq!(machine.io.writes.lock().unwrap().len(), 3);
    machine.cpu.env.gpr[RSI] = DATA;
    machine.cpu.env.gpr[2] = 0x1f1;
    assert_eq!(machine.finish(&[0x6e]), Err(Exception::gp(0)));
    machine.cpu.env.gpr[2] = 0x1ef; // its bit is clear, but the word's second port is 0x1f0
    assert_eq!(machine.finish(&[0x66, 0x6f]), Ok(Next::EndBlock));
    machine.cpu.env.gpr[2] = 0x3f8; // beyond the bitmap
    assert_eq!(machine.finish(&[0x6e]), Err(Exception::gp(0)));
    machine.cpu.env.sysflags |= flag::IOPL;
    machine.cpu.env.gpr[RSI] = DATA;
    assert_eq!(machine.finish(&[0x6e]), Ok(Next::EndBlock));
}
