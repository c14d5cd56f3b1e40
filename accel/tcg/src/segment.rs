//! Segment descriptors: reading, checking, loading (SDM vol. 3A, *Protected-Mode Memory Management*, *Protection*).

use crate::cpu::Cpu;
use crate::env::Segment;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;

/// Access rights of segment registers in real mode: data, writable, accessed, present.
pub const REAL_MODE_DATA: u16 = 0x93;
/// Access rights of segment registers in virtual-8086 mode: the same with DPL 3.
pub const VM86_DATA: u16 = 0xf3;

/// Types of system descriptors (SDM vol. 3A, *System Descriptor Types*).
pub mod system_type {
    pub const TSS16_AVAILABLE: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    /// In IA-32e mode the 64-bit TSS.
    pub const TSS32_AVAILABLE: u8 = 9;
    /// In IA-32e mode the 64-bit TSS.
    pub const TSS32_BUSY: u8 = 11;
    /// In IA-32e mode the 64-bit call gate.
    pub const CALL_GATE32: u8 = 12;
    pub const INTERRUPT_GATE32: u8 = 14;
    pub const TRAP_GATE32: u8 = 15;
}

/// The 8 bytes of a segment or gate descriptor; the first half of a 16-byte one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address; the low half of it in a 16-byte descriptor.
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// Limit in bytes, granularity applied.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 & 1 << 55 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Access rights as in [`Segment::access`].
    pub fn access(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// The type field, 0 to 15.
    pub fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 0xf
    }

    /// Code or data, as opposed to a system descriptor.
    pub fn is_user(self) -> bool {
        self.0 & 1 << 44 != 0
    }

    /// Code segment.
    pub fn is_code(self) -> bool {
        self.0 & 0x18 << 40 == 0x18 << 40
    }

    /// Data segment that may be written.
    pub fn is_writable_data(self) -> bool {
        self.0 & 0x1a << 40 == 0x12 << 40
    }

    /// Data, or code that may be read.
    pub fn is_readable(self) -> bool {
        self.is_user() && (!self.is_code() || self.0 & 1 << 41 != 0)
    }

    /// Conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.0 & 0x1c << 40 == 0x1c << 40
    }

    /// Descriptor privilege level.
    pub fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    /// P.
    pub fn is_present(self) -> bool {
        self.0 & 1 << 47 != 0
    }

    /// L: 64-bit code.
    pub fn is_long(self) -> bool {
        self.0 & 1 << 53 != 0
    }

    /// D/B.
    pub fn is_big(self) -> bool {
        self.0 & 1 << 54 != 0
    }

    /// What a segment register holds after loading this descriptor through `selector`.
    pub fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            access: self.access() | self.accessed_bit(),
            selector,
        }
    }

    fn accessed_bit(self) -> u16 {
        u16::from(self.is_user())
    }
}

/// Whether `selector` is a null selector.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Requested privilege level.
pub fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// `selector` as an error code names it.
pub fn selector_code(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// SS after a load of the null selector in 64-bit mode: unusable, but it carries the CPL.
pub fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { base: 0, limit: 0, access: u16::from(cpl) << 5, selector }
}

impl Cpu {
    /// EFER.LMA: IA-32e mode, compatibility mode included.
    pub fn is_long_mode(&self) -> bool {
        self.env.efer & crate::mmu::walk::cr::EFER_LMA != 0
    }

    /// The descriptor that `selector` names, and its linear address. `fault` makes the exception for a selector
    /// beyond its table.
    pub fn descriptor(&mut self, selector: u16, fault: fn(u32) -> Exception) -> Exec<(Descriptor, u64)> {
        let address = self.descriptor_address(selector, 8).ok_or(fault(selector_code(selector)))?;
        Ok((Descriptor(self.read(address, 8, Access::System)?), address))
    }

    /// Linear address of the descriptor of `len` bytes that `selector` names, if its table holds it.
    fn descriptor_address(&self, selector: u16, len: u32) -> Option<u64> {
        let offset = u32::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.env.gdt.base, u32::from(self.env.gdt.limit))
        } else if self.env.ldt.usable() {
            (self.env.ldt.base, self.env.ldt.limit)
        } else {
            return None;
        };
        // A limit below 7 must not wrap around.
        (offset + (len - 1) <= limit).then(|| self.wrap_system(base.wrapping_add(u64::from(offset))))
    }

    /// System addresses wrap at 4 GiB outside IA-32e mode.
    pub fn wrap_system(&self, linear: u64) -> u64 {
        if self.is_long_mode() { linear } else { linear & 0xffff_ffff }
    }

    /// The upper half of the 16-byte descriptor that `selector` names, whose type field must be zero there.
    pub fn descriptor_high(&mut self, selector: u16, fault: fn(u32) -> Exception) -> Exec<u64> {
        let code = selector_code(selector);
        let address = self.descriptor_address(selector, 16).ok_or(fault(code))?;
        let high = self.read(address + 8, 8, Access::System)?;
        if high >> 40 & 0x1f != 0 { Err(fault(code)) } else { Ok(high) }
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub fn mark_accessed(&mut self, descriptor: Descriptor, address: u64) -> Exec<()> {
        if descriptor.0 & 1 << 40 == 0 {
            let byte = (descriptor.0 >> 40) as u8 | 1;
            self.write(self.wrap_system(address + 5), 1, u64::from(byte), Access::System)?;
        }
        Ok(())
    }

    /// Checks `selector` for SS at privilege `cpl` and returns what SS would hold. `fault` makes the exceptions other
    /// than "not present": #GP for an instruction, #TS for a stack that the TSS names. `long`: the code that will use
    /// the stack is 64-bit code, which may have a null SS below privilege 3.
    pub fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        long: bool,
        fault: fn(u32) -> Exception,
    ) -> Exec<Segment> {
        if is_null(selector) {
            let allowed = long && cpl != 3 && rpl(selector) == cpl;
            return if allowed { Ok(null_stack(selector, cpl)) } else { Err(fault(0)) };
        }
        let (descriptor, address) = self.descriptor(selector, fault)?;
        if rpl(selector) != cpl || !descriptor.is_writable_data() || descriptor.dpl() != cpl {
            return Err(fault(selector_code(selector)));
        }
        if !descriptor.is_present() {
            return Err(Exception::ss(selector_code(selector)));
        }
        self.mark_accessed(descriptor, address)?;
        Ok(descriptor.segment(selector))
    }

    /// Checks `selector` for DS, ES, FS or GS and returns what the register would hold. `fault` as in
    /// [`Cpu::stack_segment`].
    pub fn data_segment(&mut self, selector: u16, fault: fn(u32) -> Exception) -> Exec<Segment> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let (descriptor, address) = self.descriptor(selector, fault)?;
        let privilege = self.env.cpl().max(rpl(selector));
        if !descriptor.is_readable() || !descriptor.is_conforming() && privilege > descriptor.dpl() {
            return Err(fault(selector_code(selector)));
        }
        if !descriptor.is_present() {
            return Err(Exception::np(selector_code(selector)));
        }
        self.mark_accessed(descriptor, address)?;
        Ok(descriptor.segment(selector))
    }

    /// What segment register `index` holds after loading `selector` in real or virtual-8086 mode. Real mode keeps limit
    /// and attributes from protected mode ("unreal" mode).
    pub fn paragraph_segment(&self, index: usize, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.env.cr0 & 1 != 0 {
            return Segment { base, limit: 0xffff, access: VM86_DATA, selector };
        }
        let before = self.env.seg[index];
        if before.usable() {
            Segment { base, selector, ..before }
        } else {
            Segment { base, limit: 0xffff, access: REAL_MODE_DATA, selector }
        }
    }

    /// Loads a segment register other than CS as MOV does.
    pub fn load_segment(&mut self, index: usize, selector: u16) -> Exec<()> {
        let segment = if self.env.is_real_or_vm86() {
            self.paragraph_segment(index, selector)
        } else if index == 2 {
            let (cpl, long) = (self.env.cpl(), self.env.is_64bit());
            self.stack_segment(selector, cpl, long, Exception::gp)?
        } else {
            self.data_segment(selector, Exception::gp)?
        };
        self.env.seg[index] = segment;
        Ok(())
    }

    /// After a return to an outer privilege level: data segments that it may not use become null.
    pub fn drop_inner_segments(&mut self) {
        let cpl = self.env.cpl();
        for index in [0, 3, 4, 5] {
            let segment = &mut self.env.seg[index];
            let conforming = segment.access & 0x1c == 0x1c;
            let dpl = (segment.access >> 5 & 3) as u8;
            if is_null(segment.selector) && !segment.usable() {
                // A base that WRMSR or WRFSBASE gave a null FS or GS stays.
                continue;
            }
            if !conforming && dpl < cpl {
                *segment = Segment { base: segment.base, ..Segment::default() };
            }
        }
    }
}
