//! Hardware task switches (SDM vol. 3A, *Task Switching*). IA-32e mode has none.

use crate::complex::Next;
use crate::complex::control::load_cr3;
use crate::cpu::Cpu;
use crate::env::{Segment, flag};
use crate::exception::{Exception, Exec};
use crate::interrupt::DR6_BT;
use crate::mmu::Access;
use crate::mmu::walk::cr::CR0_PG;
use crate::segment::{Descriptor, is_null, rpl, selector_code, system_type};
use crate::stack::Stack;

/// What switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// JMP: the old task ends.
    Jump,
    /// CALL: the old task waits for IRET.
    Call,
    /// An interrupt or exception, with the error code that it pushes on the new stack.
    Interrupt(Option<u32>),
    /// IRET with NT set.
    Return,
}

/// What the old TSS keeps of the instruction pointer and the flags.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// EIP.
    pub ip: u64,
    /// EFLAGS.
    pub flags: u32,
}

/// Offsets in a TSS (SDM vol. 3A, *Task-State Segment*, *16-Bit Task-State Segment*).
struct Layout {
    /// Bytes of a register.
    size: usize,
    ip: u64,
    flags: u64,
    /// EAX ECX EDX EBX ESP EBP ESI EDI follow each other.
    gpr: u64,
    /// ES CS SS DS (FS GS) follow each other.
    seg: u64,
    seg_count: usize,
    ldt: u64,
    min_limit: u32,
}

const TSS32: Layout =
    Layout { size: 4, ip: 0x20, flags: 0x24, gpr: 0x28, seg: 0x48, seg_count: 6, ldt: 0x60, min_limit: 0x67 };
const TSS16: Layout =
    Layout { size: 2, ip: 0x0e, flags: 0x10, gpr: 0x12, seg: 0x22, seg_count: 4, ldt: 0x2a, min_limit: 0x2b };
const TSS32_CR3: u64 = 0x1c;
const TSS32_T: u64 = 0x64;

/// Bit 1 of a TSS descriptor's type.
const BUSY: u8 = 2;
const CR0_TS: u64 = 1 << 3;
/// DR7: local enables, cleared by a task switch.
const DR7_LOCAL: u64 = 0x155;

fn layout(kind: u8) -> &'static Layout {
    if kind & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// What a new TSS says.
#[derive(Default)]
struct Incoming {
    cr3: u64,
    ip: u64,
    flags: u32,
    gpr: [u64; 8],
    seg: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Switches to the task that task gate `gate` names.
pub fn switch_by_gate(cpu: &mut Cpu, gate: Descriptor, via: Via, old: Outgoing) -> Exec<Next> {
    switch(cpu, (gate.0 >> 16) as u16, via, old)
}

/// IRET with NT set: switches to the task that the present TSS links to.
pub fn return_to_previous(cpu: &mut Cpu, next: u64) -> Exec<Next> {
    let base = cpu.env.task.base;
    let link = cpu.read(cpu.wrap_system(base), 2, Access::System)? as u16;
    let flags = cpu.env.rflags();
    switch(cpu, link, Via::Return, Outgoing { ip: next, flags })
}

/// Switches to the task of TSS `selector`. An exception up to the commit belongs to the old task, after it to the new
/// one, whose state the CPU then has.
pub fn switch(cpu: &mut Cpu, selector: u16, via: Via, old: Outgoing) -> Exec<Next> {
    let returning = via == Via::Return;
    let fault = if returning { Exception::ts } else { Exception::gp };
    let code = selector_code(selector);
    if selector & 4 != 0 || is_null(selector) {
        return Err(fault(code));
    }
    let (descriptor, address) = cpu.descriptor(selector, fault)?;
    let wanted = if returning { BUSY } else { 0 };
    let kind = descriptor.kind();
    let is_tss = matches!(kind & !BUSY, system_type::TSS16_AVAILABLE | system_type::TSS32_AVAILABLE);
    if descriptor.is_user() || !is_tss || kind & BUSY != wanted {
        return Err(fault(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    let new = layout(kind);
    if descriptor.limit() < new.min_limit {
        return Err(Exception::ts(code));
    }
    let base = descriptor.base();
    let incoming = read_tss(cpu, base, new)?;
    // All that can fault in the old task is touched before anything changes.
    let nested = matches!(via, Via::Call | Via::Interrupt(_));
    cpu.probe_write(base, 2, Access::System)?;
    cpu.probe_write(cpu.wrap_system(address + 5), 1, Access::System)?;
    save_old(cpu, via, old)?;

    // The new task's.
    let old_selector = cpu.env.task.selector;
    if nested {
        cpu.write(base, 2, u64::from(old_selector), Access::System)?;
    }
    let access = descriptor.access() | u16::from(BUSY);
    if !returning {
        cpu.write(cpu.wrap_system(address + 5), 1, u64::from(access as u8), Access::System)?;
    }
    cpu.env.task = Segment { access, ..descriptor.segment(selector) };
    cpu.env.cr0 |= CR0_TS;
    cpu.env.dr7 &= !DR7_LOCAL;
    if new.size == 4 && cpu.env.cr0 & CR0_PG != 0 {
        load_cr3(cpu, incoming.cr3);
    }
    cpu.mmu.flush_all();
    let flags = incoming.flags | if nested { flag::NT } else { 0 };
    load_new(cpu, &incoming, flags)?;
    if let Via::Interrupt(Some(error)) = via {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, new.size, u64::from(error))?;
        cpu.set_stack_pointer(stack.sp);
    }
    if incoming.trap {
        cpu.pending_debug |= DR6_BT;
    }
    Ok(Next::Jumped)
}

fn read_tss(cpu: &mut Cpu, base: u64, layout: &Layout) -> Exec<Incoming> {
    let mut incoming = Incoming::default();
    let mut field =
        |offset: u64, size: usize| cpu.read(cpu.wrap_system(base.wrapping_add(offset)), size, Access::System);
    let size = layout.size;
    incoming.ip = field(layout.ip, size)?;
    incoming.flags = field(layout.flags, size)? as u32;
    for (index, register) in incoming.gpr.iter_mut().enumerate() {
        *register = field(layout.gpr + (index * size) as u64, size)?;
    }
    for (index, selector) in incoming.seg[..layout.seg_count].iter_mut().enumerate() {
        *selector = field(layout.seg + (index * size) as u64, 2)? as u16;
    }
    incoming.ldt = field(layout.ldt, 2)? as u16;
    if size == 4 {
        incoming.cr3 = field(TSS32_CR3, 4)?;
        incoming.trap = field(TSS32_T, 2)? & 1 != 0;
    }
    Ok(incoming)
}

/// Saves the old task in its TSS and takes its busy bit away if it does not wait for the new one.
fn save_old(cpu: &mut Cpu, via: Via, old: Outgoing) -> Exec<()> {
    let task = cpu.env.task;
    let layout = layout(task.access as u8);
    let code = selector_code(task.selector);
    if task.limit < layout.min_limit {
        return Err(Exception::ts(code));
    }
    let size = layout.size;
    let last = layout.seg + (layout.seg_count * size) as u64;
    cpu.probe_write(cpu.wrap_system(task.base.wrapping_add(layout.ip)), last - layout.ip, Access::System)?;
    if matches!(via, Via::Jump | Via::Return) {
        let (descriptor, address) = cpu.descriptor(task.selector, Exception::ts)?;
        let byte = u64::from(descriptor.access() as u8 & !BUSY);
        cpu.write(cpu.wrap_system(address + 5), 1, byte, Access::System)?;
    }
    let flags = if via == Via::Return { old.flags & !flag::NT } else { old.flags };
    let field = |cpu: &mut Cpu, offset: u64, value: u64| {
        cpu.write(cpu.wrap_system(task.base.wrapping_add(offset)), size, value, Access::System)
    };
    field(cpu, layout.ip, old.ip)?;
    field(cpu, layout.flags, u64::from(flags))?;
    for index in 0..8 {
        field(cpu, layout.gpr + (index * size) as u64, cpu.env.gpr[index])?;
    }
    for index in 0..layout.seg_count {
        let selector = u64::from(cpu.env.seg[index].selector);
        field(cpu, layout.seg + (index * size) as u64, selector)?;
    }
    Ok(())
}

/// Loads the new task's registers, then its segments, whose faults are already its own.
fn load_new(cpu: &mut Cpu, incoming: &Incoming, flags: u32) -> Exec<()> {
    let cpl = if flags & flag::VM != 0 { 3 } else { rpl(incoming.seg[1]) };
    let env = &mut *cpu.env;
    env.rip = incoming.ip;
    env.set_rflags(flags);
    env.gpr[..8].copy_from_slice(&incoming.gpr);
    for (segment, &selector) in env.seg.iter_mut().zip(&incoming.seg) {
        *segment = Segment { selector, ..Segment::default() };
    }
    env.seg[2].access = u16::from(cpl) << 5;
    env.ldt = Segment { selector: incoming.ldt, ..Segment::default() };
    load_ldt(cpu, incoming.ldt)?;
    if flags & flag::VM != 0 {
        for (index, &selector) in incoming.seg.iter().enumerate() {
            cpu.env.seg[index] = cpu.paragraph_segment(index, selector);
        }
    } else {
        load_code(cpu, incoming.seg[1])?;
        cpu.env.seg[2] = cpu.stack_segment(incoming.seg[2], cpl, false, Exception::ts)?;
        for index in [3, 0, 4, 5] {
            cpu.env.seg[index] = cpu.data_segment(incoming.seg[index], Exception::ts)?;
        }
    }
    if incoming.ip > u64::from(cpu.env.seg[1].limit) {
        return Err(Exception::gp(0));
    }
    Ok(())
}

fn load_ldt(cpu: &mut Cpu, selector: u16) -> Exec<()> {
    if is_null(selector) {
        return Ok(());
    }
    let code = selector_code(selector);
    if selector & 4 != 0 {
        return Err(Exception::ts(code));
    }
    let (descriptor, _) = cpu.descriptor(selector, Exception::ts)?;
    if descriptor.is_user() || descriptor.kind() != system_type::LDT || !descriptor.is_present() {
        return Err(Exception::ts(code));
    }
    cpu.env.ldt = descriptor.segment(selector);
    Ok(())
}

fn load_code(cpu: &mut Cpu, selector: u16) -> Exec<()> {
    let code = selector_code(selector);
    if is_null(selector) {
        return Err(Exception::ts(0));
    }
    let (descriptor, address) = cpu.descriptor(selector, Exception::ts)?;
    let cpl = rpl(selector);
    let privileged =
        if descriptor.is_conforming() { descriptor.dpl() <= cpl } else { descriptor.dpl() == cpl };
    if !descriptor.is_code() || !privileged {
        return Err(Exception::ts(code));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(code));
    }
    cpu.mark_accessed(descriptor, address)?;
    cpu.env.seg[1] = descriptor.segment(selector);
    Ok(())
}
