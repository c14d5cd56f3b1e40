//! The generated walk against the one in Rust, over random page tables.

#![expect(unsafe_code, reason = "door: entering generated code, as `Vcpu::enter` does")]

use dynasmrt::{DynasmApi, dynasm};
use vm_memory::{Bytes, GuestAddress};

use crate::code::buffer::CodeBuffer;
use crate::code::emitter::Emitter;
use crate::code::thunks::{self, Exit, FpSave, exit, scratch_offset};
use crate::complex::testing::{Machine, Random};
use crate::env::{EnvBlock, TLB_MODES};
use crate::exec::helpers::HELPERS;
use crate::mmu::access::Target;
use crate::ram::CodeMark;

const TABLES: u64 = 0x1000;
const TABLES_LEN: usize = 0x5000;
const PS: u64 = 1 << 7;

/// Generated code that tries a refill of each kind: address in scratch 1, size in scratch 3, and whether it has
/// succeeded in scratch 7.
struct Refills {
    _buffer: CodeBuffer,
    enter: u64,
    tries: [[u64; 2]; TLB_MODES],
}

impl Refills {
    fn new() -> Self {
        let mut buffer = CodeBuffer::new(1 << 20).unwrap();
        let mut e = Emitter::new(buffer.range().start);
        let thunks = thunks::emit(&mut e, &HELPERS, FpSave { mask: 3, xsaveopt: false });
        let tries = thunks.try_refill.map(|of_mode| {
            of_mode.map(|refill| {
                let at = e.here();
                dynasm!(e ; .arch x64
                    ; mov r10, [rsp + scratch_offset(1)]
                    ; mov r11, [rsp + scratch_offset(3)]);
                e.call(refill);
                dynasm!(e ; .arch x64
                    ; mov [rsp + scratch_offset(1)], r10
                    ; mov [rsp + scratch_offset(3)], r11
                    ; sete [rsp + scratch_offset(7)]
                    ; mov r11d, exit::BLOCK_END as i32);
                e.jmp_to(thunks.exit);
                at
            })
        });
        buffer.reserve(e.bytes());
        Self { _buffer: buffer, enter: thunks.enter, tries }
    }

    /// What makes the host address of `linear`, if the refill has found it.
    fn attempt(
        &self,
        machine: &mut Machine,
        mode: usize,
        write: bool,
        linear: u64,
        size: u64,
    ) -> Option<u64> {
        machine.cpu.settle();
        let env = &mut *machine.cpu.env;
        let registers = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64);
        env.gpr = registers;
        (env.scratch[1], env.scratch[7], env.scratch[3]) = (linear, 0, size);
        let block = env_block(machine);
        // SAFETY: the thunk has this signature, the code comes back by the exit thunk, and the environment is the
        // machine's, which nobody else uses meanwhile.
        unsafe {
            let enter: extern "C" fn(*mut EnvBlock, u64) -> Exit = std::mem::transmute(self.enter);
            enter(block, self.tries[mode][usize::from(write)]);
        }
        let env = &*machine.cpu.env;
        assert_eq!(env.gpr, registers);
        assert_eq!(env.scratch[1], linear);
        (env.scratch[7] != 0).then_some(env.scratch[3])
    }
}

fn env_block(machine: &Machine) -> *mut EnvBlock {
    machine.cpu.env.mapping().block()
}

fn tables(machine: &Machine) -> Vec<u8> {
    machine.peek(TABLES, TABLES_LEN)
}

/// Changes a bit here and there of an entry.
fn spoil(random: &mut Random, entry: u64) -> u64 {
    const BITS: [u32; 14] = [0, 1, 2, 5, 6, 7, 8, 9, 13, 20, 46, 51, 52, 63];
    let mut entry = entry;
    while random.below(3) == 0 {
        entry ^= 1 << BITS[random.below(BITS.len() as u64) as usize];
    }
    entry
}

#[test]
fn it_finds_what_the_walk_in_rust_finds_without_a_change() {
    let refills = Refills::new();
    let mut machine = Machine::new();
    let mut random = Random(0x5eed);
    let mut found = 0;
    for round in 0..30_000 {
        let linear = random.below(4 << 20);
        let (mode, write) = (random.below(TLB_MODES as u64) as usize, random.below(2) != 0);
        let size = 1 << random.below(7);
        let put = |machine: &Machine, at: u64, entry: u64| {
            machine.memory.write_obj(entry, GuestAddress(at)).unwrap();
        };
        // Accessed and dirty, for the user or not; RAM ends at 4 MiB.
        let user = random.below(2) * 4;
        let directory = 0x3000 + (linear >> 21) * 8;
        put(&machine, 0x1000, spoil(&mut random, 0x2027 & !4 | user));
        put(&machine, 0x2000, spoil(&mut random, 0x3027 & !4 | user));
        match random.below(6) {
            0 => put(&machine, directory, spoil(&mut random, (linear & !0x1f_ffff | 0x67 | PS) & !4 | user)),
            1 => put(&machine, 0x2000, spoil(&mut random, (0x67 | PS) & !4 | user)),
            _ => put(&machine, directory, spoil(&mut random, (0x4000 + (linear >> 21) * 0x1000) | 0x27)),
        }
        let page = random.below(5 << 20) & !0xfff;
        put(&machine, 0x4000 + (linear >> 12) * 8, spoil(&mut random, page | 0x67));
        if let Some(page) = machine.cpu.ram.page(page) {
            let mark = if random.below(4) == 0 { CodeMark::Set } else { CodeMark::None };
            machine.cpu.ram.set_code(page.index, mark);
        }
        machine.cpu.mmu.flush_all();
        let before = tables(&machine);
        let addend = refills.attempt(&mut machine, mode, write, linear, size);
        assert!(tables(&machine) == before);
        let entered = machine.cpu.mmu.lookup(mode, write, linear);
        let walked = machine.cpu.fill(linear, mode, write);
        let crosses = linear & 0xfff > 0x1000 - size;
        let expected = match walked {
            Ok(Target::Ram(host)) if tables(&machine) == before && !crosses => Some(host),
            _ => None,
        };
        let what = format!("round {round}: {linear:#x} mode {mode} write {write} size {size}");
        assert_eq!(addend.map(|addend| addend.wrapping_add(linear)), expected, "{what}");
        assert_eq!(entered, expected.map(|host| host & !0xfff), "{what}");
        found += u32::from(expected.is_some());
    }
    assert!(found > 3000, "{found}");
}

#[test]
fn what_it_enters_is_forgotten_as_what_rust_enters_is() {
    let refills = Refills::new();
    let mut machine = Machine::new();
    machine.memory.write_obj(0x67 | PS, GuestAddress(0x3000)).unwrap();
    machine.memory.write_obj(0x2027u64, GuestAddress(0x1000)).unwrap();
    machine.memory.write_obj(0x3027u64, GuestAddress(0x2000)).unwrap();
    machine.cpu.mmu.flush_all();
    assert!(refills.attempt(&mut machine, 2, true, 0x5008, 8).is_some());
    // INVLPG anywhere in the large page.
    machine.cpu.mmu.flush_page(0x1f_f000);
    assert_eq!(machine.cpu.mmu.lookup(2, true, 0x5008), None);
    assert!(refills.attempt(&mut machine, 2, true, 0x5008, 8).is_some());
    let page = machine.cpu.ram.page(0x5000).unwrap();
    machine.cpu.revoke_write(page);
    assert_eq!(machine.cpu.mmu.lookup(2, true, 0x5008), None, "the page is going to have code");
}

#[test]
fn it_leaves_alone_what_is_not_simple() {
    let refills = Refills::new();
    let mut machine = Machine::new();
    for (at, entry) in [(0x1000, 0x2027u64), (0x2000, 0x3027), (0x3000, 0x4027), (0x4028, 0x5067)] {
        machine.memory.write_obj(entry, GuestAddress(at)).unwrap();
    }
    machine.cpu.mmu.flush_all();
    let attempt = |machine: &mut Machine, linear| refills.attempt(machine, 2, false, linear, 8);
    assert!(attempt(&mut machine, 0x5000).is_some());
    assert_eq!(attempt(&mut machine, 0x0001_0000_0000_5000), None, "not canonical");
    machine.cpu.env.dr7 = 1;
    assert_eq!(attempt(&mut machine, 0x5000), None, "a breakpoint may be on the page");
    machine.cpu.env.dr7 = 0x400;
    machine.cpu.env.cr0 &= !(1 << 16);
    machine.cpu.mmu.flush_all();
    assert_eq!(attempt(&mut machine, 0x5000), None, "without write protection rights are others");
}
