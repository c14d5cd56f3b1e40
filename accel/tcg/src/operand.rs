//! Memory operands: effective addresses, segmentation, and reads and writes of what they name
//! (SDM vol. 1, *Operand Addressing*; vol. 3A, *Limit Checking*).

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::Cpu;
use crate::env::Segment;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;

/// Index of a segment register in [`crate::env::Env::seg`].
pub fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        _ => 5,
    }
}

impl Segment {
    /// Whether it may be used for an access (a null selector leaves it unusable).
    pub fn usable(&self) -> bool {
        self.access & 0x80 != 0
    }
    /// Code segment (as opposed to data).
    pub fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }
    /// Data: may be written. Code: may be read.
    pub fn bit_rw(&self) -> bool {
        self.access & 2 != 0
    }
    /// Data that grows down.
    pub fn expand_down(&self) -> bool {
        !self.is_code() && self.access & 4 != 0
    }
    /// D/B.
    pub fn big(&self) -> bool {
        self.access & (1 << 14) != 0
    }
    /// Whether `offset..offset + len` lies within the limit.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        let last = offset + (len - 1);
        if self.expand_down() {
            let top = if self.big() { 0xffff_ffff } else { 0xffff };
            offset > u64::from(self.limit) && last <= top
        } else {
            last <= u64::from(self.limit)
        }
    }
}

/// Whether `address` is canonical for 48-bit linear addresses.
pub fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

impl Cpu {
    /// The segment that memory operand of `insn` uses, override applied. In 64-bit mode overrides other than FS and GS are
    /// ignored: what the base register says decides between #SS and #GP.
    pub fn operand_segment(&self, insn: &Instruction) -> usize {
        let segment = segment_index(insn.memory_segment());
        if !self.env.is_64bit() || segment >= 4 {
            return segment;
        }
        match insn.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => 2,
            _ => 3,
        }
    }

    /// The offset that the memory operand `operand` of `insn` names, wrapped to the address size; no segment base.
    /// String operands (`[rsi]`, `es:[rdi]`) included.
    pub fn effective_offset(&self, insn: &Instruction, operand: u32) -> u64 {
        let offset = insn.virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() { Some(0) } else { Some(self.reg(register)) }
        });
        offset.expect("the caller names a memory operand without vector index")
    }

    /// Checks an access of `len` bytes (at least 1) at `offset` in segment `seg` and returns its linear address.
    /// Raises #GP(0), or #SS(0) for the stack segment.
    pub fn linear(&self, seg: usize, offset: u64, len: u64, write: bool) -> Exec<u64> {
        let fault = if seg == 2 { Exception::ss(0) } else { Exception::gp(0) };
        let segment = &self.env.seg[seg];
        if self.env.is_64bit() {
            let base = if seg >= 4 { segment.base } else { 0 };
            let linear = base.wrapping_add(offset);
            let last = linear.wrapping_add(len - 1);
            return if is_canonical(linear) && is_canonical(last) { Ok(linear) } else { Err(fault) };
        }
        if !self.env.is_real_or_vm86() {
            if !segment.usable() {
                return Err(Exception::gp(0));
            }
            let permitted = if write {
                !segment.is_code() && segment.bit_rw()
            } else {
                !segment.is_code() || segment.bit_rw()
            };
            if !permitted {
                return Err(Exception::gp(0));
            }
        }
        if !segment.contains(offset, len) {
            return Err(fault);
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Linear address of memory operand `operand` of `insn`, checked for `len` bytes.
    pub fn operand_linear(&self, insn: &Instruction, operand: u32, len: u64, write: bool) -> Exec<u64> {
        let seg = match insn.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => 0,
            _ => self.operand_segment(insn),
        };
        self.linear(seg, self.effective_offset(insn, operand), len, write)
    }

    /// Reads register or memory operand `operand` of `size` bytes (1, 2, 4, 8), or its immediate, zero-extended.
    pub fn read_operand(&mut self, insn: &Instruction, operand: u32, size: usize) -> Exec<u64> {
        match insn.op_kind(operand) {
            OpKind::Register => {
                let register = insn.op_register(operand);
                if register.is_segment_register() {
                    return Ok(u64::from(self.env.seg[segment_index(register)].selector));
                }
                Ok(self.reg(register))
            }
            kind if is_memory(kind) => {
                let linear = self.operand_linear(insn, operand, size as u64, false)?;
                self.read(linear, size, Access::Current)
            }
            _ => Ok(insn.immediate(operand)),
        }
    }

    /// Writes register or memory operand `operand` of `size` bytes (1, 2, 4, 8).
    pub fn write_operand(&mut self, insn: &Instruction, operand: u32, size: usize, value: u64) -> Exec<()> {
        if insn.op_kind(operand) == OpKind::Register {
            self.set_reg(insn.op_register(operand), value);
            return Ok(());
        }
        let linear = self.operand_linear(insn, operand, size as u64, true)?;
        self.write(linear, size, value, Access::Current)
    }
}

/// Whether an operand of this kind is in memory.
pub fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}
