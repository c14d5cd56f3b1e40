//! Debug registers: breakpoints on data and instructions (SDM vol. 3B, *Debug Registers*).

use crate::cpu::Cpu;
use crate::ram::PAGE;

/// Length in bytes of the breakpoint `index` of `dr7`.
fn length(dr7: u64, index: usize) -> u64 {
    [1, 2, 8, 4][(dr7 >> (18 + 4 * index) & 3) as usize]
}

/// R/W field of breakpoint `index`: 0 execute, 1 write, 2 I/O, 3 read or write.
fn kind(dr7: u64, index: usize) -> u64 {
    dr7 >> (16 + 4 * index) & 3
}

fn enabled(dr7: u64, index: usize) -> bool {
    dr7 >> (2 * index) & 3 != 0
}

impl Cpu {
    /// Whether a data breakpoint lies on the page of `linear`: then no TLB entry may map it.
    pub fn page_is_watched(&self, linear: u64) -> bool {
        let dr7 = self.env.dr7;
        if dr7 & 0xff == 0 {
            return false;
        }
        (0..4).any(|index| {
            enabled(dr7, index)
                && kind(dr7, index) & 1 != 0
                && (self.env.dr[index] ^ linear) & !(PAGE - 1) == 0
        })
    }

    /// Notes the data breakpoints that an access of `len` bytes at `linear` meets; they trap after the instruction.
    pub fn note_watch(&mut self, linear: u64, len: usize, write: bool) {
        let dr7 = self.env.dr7;
        if dr7 & 0xff == 0 {
            return;
        }
        for index in 0..4 {
            let kind = kind(dr7, index);
            if !enabled(dr7, index) || !(kind == 3 || kind == 1 && write) {
                continue;
            }
            let size = length(dr7, index);
            let start = self.env.dr[index] & !(size - 1);
            if linear < start.wrapping_add(size) && start < linear.wrapping_add(len as u64) {
                self.pending_debug |= 1 << index;
            }
        }
    }

    /// Notes the I/O breakpoints (CR4.DE set, R/W field 2) that an access to `len` ports from `port` meets.
    pub fn note_port(&mut self, port: u16, len: usize) {
        const CR4_DE: u64 = 1 << 3;
        let dr7 = self.env.dr7;
        if dr7 & 0xff == 0 || self.env.cr4 & CR4_DE == 0 {
            return;
        }
        let first = u64::from(port);
        for index in 0..4 {
            let size = length(dr7, index);
            let start = self.env.dr[index] & !(size - 1);
            let met = first < start.wrapping_add(size) && start < first + len as u64;
            if met && enabled(dr7, index) && kind(dr7, index) == 2 {
                self.pending_debug |= 1 << index;
            }
        }
    }

    /// Breakpoints of kind "execute" at `linear`, as DR6 bits.
    pub fn instruction_breakpoints(&self, linear: u64) -> u64 {
        let dr7 = self.env.dr7;
        if dr7 & 0xff == 0 {
            return 0;
        }
        (0..4)
            .filter(|&index| enabled(dr7, index) && kind(dr7, index) == 0 && self.env.dr[index] == linear)
            .fold(0, |bits, index| bits | 1 << index)
    }
}
