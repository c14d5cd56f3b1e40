//! A machine of one CPU for tests of instructions: 4 MiB of RAM, mapped page by page, linear address = physical.

use std::sync::{Arc, Mutex};

use accel::{CpuHandle, CpuIo};
use devices::clock::ManualClock;
use devices::cpu_interrupts::LocalInterrupts;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::complex::{Next, execute};
use crate::cpu::Cpu;
use crate::env::{EnvMapping, EnvRef, Segment};
use crate::exception::Exec;
use crate::ram::Ram;

const MEMORY: usize = 4 << 20;
const PML4: u64 = 0x1000;
/// Where tests have their data: above the tables.
pub const DATA: u64 = 0x10_0000;

/// Ports and MMIO that remember.
#[derive(Default)]
pub struct TestIo {
    /// Writes in order: address (ports as they are, MMIO by physical address), bytes.
    pub writes: Mutex<Vec<(u64, Vec<u8>)>>,
    /// The next byte that a read gives; it grows by one per byte.
    pub next: Mutex<u8>,
}

impl TestIo {
    fn give(&self, data: &mut [u8]) {
        let mut next = self.next.lock().unwrap();
        for byte in data {
            *byte = *next;
            *next = next.wrapping_add(1);
        }
    }
}

impl CpuIo for TestIo {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        self.give(data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.writes.lock().unwrap().push((u64::from(port), data.to_vec()));
    }
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        self.give(data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((gpa, data.to_vec()));
    }
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        None
    }
}

/// The machine.
pub struct Machine {
    pub cpu: Cpu,
    pub memory: GuestMemoryMmap,
    pub io: TestIo,
}

impl Machine {
    /// 64-bit mode, CPL 0, all of RAM mapped writable for user and supervisor.
    pub fn new() -> Self {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at)).unwrap();
        put(PML4, 0x2007);
        put(0x2000, 0x3007);
        for table in 0..2 {
            put(0x3000 + table * 8, (0x4000 + table * 0x1000) | 7);
        }
        for page in 0..(MEMORY as u64 >> 12) {
            put(0x4000 + page * 8, page << 12 | 7);
        }
        let ram = Arc::new(Ram::new(&memory));
        let mut env = EnvRef::new(EnvMapping::new().unwrap());
        env.cr0 = 0x8001_0033;
        env.cr3 = PML4;
        env.cr4 = 0x4_06a0;
        env.efer = 0xd01;
        env.xcr0 = 7;
        for index in 0..6 {
            env.seg[index] =
                Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 8 * (index as u16 + 1) };
        }
        env.seg[1].access = 0xa09b;
        env.dr6 = 0xffff_0ff0;
        env.dr7 = 0;
        env.xsave.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        env.xsave.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        let cpu = Cpu::new(env, ram, CpuHandle::new(0), ManualClock::new());
        let mut machine = Self { cpu, memory, io: TestIo::default() };
        machine.cpu.mmu.publish(&mut machine.cpu.env);
        machine
    }

    /// Flat 32-bit code (compatibility mode).
    pub fn new_32bit() -> Self {
        let mut machine = Self::new();
        machine.cpu.env.seg[1].access = 0xc09b;
        machine
    }

    /// 16-bit code in real mode; segments at base 0.
    pub fn new_real() -> Self {
        let mut machine = Self::new();
        machine.cpu.env.cr0 = 0x10;
        machine.cpu.env.efer = 0;
        for segment in &mut machine.cpu.env.seg {
            *segment = Segment { base: 0, limit: 0xffff, access: 0x93, selector: 0 };
        }
        machine
    }

    /// Replaces the page-table entry of `linear`; 0 leaves the page not present.
    pub fn map(&mut self, linear: u64, entry: u64) {
        self.memory.write_obj(entry, GuestAddress(0x4000 + (linear >> 12) * 8)).unwrap();
        self.cpu.mmu.flush_all();
    }

    /// Switches to CPL 3.
    pub fn user(&mut self) {
        self.cpu.env.seg[1].access |= 0x60;
        self.cpu.env.seg[2].access |= 0x60;
    }

    /// Decodes for the present mode.
    pub fn decode(&self, bytes: &[u8]) -> Instruction {
        let insn = Decoder::with_ip(self.cpu.env.code_bits(), bytes, self.cpu.env.rip, DecoderOptions::NONE)
            .decode();
        assert!(!insn.is_invalid(), "{bytes:02x?}");
        assert_eq!(insn.len(), bytes.len(), "{bytes:02x?}");
        insn
    }

    /// Executes the instruction once.
    pub fn execute(&mut self, bytes: &[u8]) -> Exec<Next> {
        let insn = self.decode(bytes);
        let Self { cpu, io, .. } = self;
        cpu.with_io(&*io, |cpu| execute(cpu, &insn))
    }

    /// Executes the instruction until it is finished.
    pub fn finish(&mut self, bytes: &[u8]) -> Exec<Next> {
        loop {
            match self.execute(bytes)? {
                Next::Repeat => {}
                next => return Ok(next),
            }
        }
    }

    /// Physical memory.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Physical memory.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

/// Numbers for tests: xorshift64*, from a seed that is not zero.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}
