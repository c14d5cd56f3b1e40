//! Stacks that are pushed to and popped from before the stack pointer moves (SDM vol. 1, *Procedure Stack*).

use crate::cpu::Cpu;
use crate::env::Segment;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::mmu::access::MODE_USER;
use crate::operand::is_canonical;
use crate::ram::{PAGE, load_int, store_int};

/// RSP's place among the general registers.
const RSP: usize = 4;

/// A stack with a pointer of its own: the CPU's moves at [`Cpu::set_stack_pointer`] only.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    segment: Segment,
    /// Pointer width in bits: 16, 32 or 64.
    bits: u32,
    /// Soft-TLB mode of the accesses.
    mode: usize,
    /// Error code of the #SS for what lies beyond the segment.
    code: u32,
    /// The pointer.
    pub sp: u64,
}

impl Stack {
    /// The present stack.
    pub fn current(cpu: &Cpu) -> Self {
        let mode = cpu.tlb_mode(Access::Current);
        let bits = cpu.env.stack_bits();
        Self { segment: cpu.env.seg[2], bits, mode, code: 0, sp: cpu.env.gpr[RSP] & mask(bits) }
    }

    /// The stack in `segment` at `sp` for privilege `cpl`, outside 64-bit mode.
    pub fn other(cpu: &Cpu, segment: Segment, sp: u64, cpl: u8) -> Self {
        let mode = if cpl == 3 { MODE_USER } else { cpu.tlb_mode(Access::System) };
        let bits = if segment.big() { 32 } else { 16 };
        let code = u32::from(segment.selector & !3);
        Self { segment, bits, mode, code, sp: sp & mask(bits) }
    }

    /// The flat 64-bit stack at `sp` for privilege `cpl`.
    pub fn flat(cpu: &Cpu, sp: u64, cpl: u8) -> Self {
        let mode = if cpl == 3 { MODE_USER } else { cpu.tlb_mode(Access::System) };
        Self { segment: Segment::default(), bits: 64, mode, code: 0, sp }
    }

    /// The linear address of `size` bytes at `offset`.
    fn linear(&self, cpu: &Cpu, offset: u64, size: usize) -> Exec<u64> {
        if self.bits == 64 {
            let last = offset.wrapping_add(size as u64 - 1);
            let fits = is_canonical(offset) && is_canonical(last);
            return if fits { Ok(offset) } else { Err(Exception::ss(self.code)) };
        }
        if !self.segment.contains(offset, size as u64) {
            return Err(Exception::ss(self.code));
        }
        Ok(cpu.wrap_system(self.segment.base.wrapping_add(offset)))
    }

    fn check_alignment(&self, cpu: &Cpu, linear: u64, size: usize) -> Exec<()> {
        if self.mode == MODE_USER { cpu.check_alignment(linear, size, Access::Current) } else { Ok(()) }
    }

    /// Pushes `size` bytes (2, 4, 8).
    pub fn push(&mut self, cpu: &mut Cpu, size: usize, value: u64) -> Exec<()> {
        let sp = self.sp.wrapping_sub(size as u64) & mask(self.bits);
        let linear = self.linear(cpu, sp, size)?;
        self.check_alignment(cpu, linear, size)?;
        if linear & (PAGE - 1) <= PAGE - size as u64
            && let Some(host) = cpu.mmu.lookup(self.mode, true, linear)
        {
            store_int(host | linear & (PAGE - 1), size, value);
        } else {
            cpu.write_bytes_mode(linear, &value.to_le_bytes()[..size], self.mode)?;
        }
        self.sp = sp;
        Ok(())
    }

    /// Pops `size` bytes (2, 4, 8), zero-extended.
    pub fn pop(&mut self, cpu: &mut Cpu, size: usize) -> Exec<u64> {
        let linear = self.linear(cpu, self.sp, size)?;
        self.check_alignment(cpu, linear, size)?;
        if linear & (PAGE - 1) <= PAGE - size as u64
            && let Some(host) = cpu.mmu.lookup(self.mode, false, linear)
        {
            self.skip(size as u64);
            return Ok(load_int(host | linear & (PAGE - 1), size));
        }
        let mut bytes = [0; 8];
        cpu.read_bytes_mode(linear, &mut bytes[..size], self.mode)?;
        self.skip(size as u64);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Releases `len` bytes.
    pub fn skip(&mut self, len: u64) {
        self.sp = self.sp.wrapping_add(len) & mask(self.bits);
    }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

impl Cpu {
    /// Sets the stack pointer, as wide as the present stack segment has it.
    pub fn set_stack_pointer(&mut self, sp: u64) {
        let bits = self.env.stack_bits();
        let rsp = &mut self.env.gpr[RSP];
        *rsp = match bits {
            64 => sp,
            32 => sp & 0xffff_ffff,
            _ => *rsp & !0xffff | sp & 0xffff,
        };
    }

    /// Writes `words` upwards from linear address `address` in soft-TLB mode `mode`: all or nothing.
    pub fn write_words(&mut self, address: u64, words: &[u64], mode: usize) -> Exec<()> {
        assert!(words.len() <= 8, "at most two pages");
        if address & (PAGE - 1) <= PAGE - words.len() as u64 * 8
            && let Some(host) = self.mmu.lookup(mode, true, address)
        {
            let mut at = host | address & (PAGE - 1);
            for &word in words {
                store_int(at, 8, word);
                at += 8;
            }
            return Ok(());
        }
        let mut bytes = [0; 64];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        self.write_bytes_mode(address, &bytes[..words.len() * 8], mode)
    }
}
