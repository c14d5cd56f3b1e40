//! The task-state segment (SDM vol. 3A, *Task Management*).

use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::segment::selector_code;

mod switch;

pub use switch::{Outgoing, Via, return_to_previous, switch, switch_by_gate};

/// Bit 3 of a TSS descriptor's type: 32-bit or 64-bit, as opposed to 16-bit.
const WIDE: u16 = 8;

impl Cpu {
    /// Reads `size` bytes at `offset` in the TSS; #TS beyond its limit.
    fn tss_field(&mut self, offset: u32, size: usize) -> Exec<u64> {
        let task = self.env.task;
        if offset + (size as u32 - 1) > task.limit {
            return Err(Exception::ts(selector_code(task.selector)));
        }
        self.read(self.wrap_system(task.base.wrapping_add(u64::from(offset))), size, Access::System)
    }

    /// The stack that the TSS has for privilege `cpl` outside IA-32e mode: selector and pointer.
    pub fn tss_stack(&mut self, cpl: u8) -> Exec<(u16, u64)> {
        if self.env.task.access & WIDE != 0 {
            let at = 4 + 8 * u32::from(cpl);
            // Both fields are checked before either is read.
            let selector = self.tss_field(at + 4, 2)?;
            Ok((selector as u16, self.tss_field(at, 4)?))
        } else {
            let at = 2 + 4 * u32::from(cpl);
            let selector = self.tss_field(at + 2, 2)?;
            Ok((selector as u16, self.tss_field(at, 2)?))
        }
    }

    /// The stack pointer that the 64-bit TSS has for privilege `cpl`.
    pub fn tss_rsp(&mut self, cpl: u8) -> Exec<u64> {
        self.tss_field(4 + 8 * u32::from(cpl), 8)
    }

    /// Entry `index` (1 to 7) of the 64-bit TSS's interrupt stack table.
    pub fn tss_ist(&mut self, index: u8) -> Exec<u64> {
        self.tss_field(0x1c + 8 * u32::from(index), 8)
    }
}
