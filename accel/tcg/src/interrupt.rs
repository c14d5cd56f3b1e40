//! Interrupts and exceptions: delivery through the interrupt table, double and triple faults
//! (SDM vol. 3A, *Interrupt and Exception Handling*).

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::env::{Segment, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Access;
use crate::mmu::access::MODE_USER;
use crate::operand::is_canonical;
use crate::segment::{Descriptor, is_null, null_stack, selector_code, system_type};
use crate::stack::Stack;
use crate::task::{self, Outgoing, Via};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An exception; the saved RIP is `env.rip`.
    Exception {
        /// What it pushes, if it pushes one.
        code: Option<u32>,
    },
    /// A maskable interrupt.
    External,
    /// INT n, INT3, INTO: an instruction of `len` bytes at `env.rip`.
    Software {
        /// Bytes of the instruction; the saved RIP is behind it.
        len: u64,
    },
    /// A non-maskable interrupt; blocks further ones until IRET.
    Nmi,
}

/// DR6: debug-register access with DR7.GD set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6: task switch to a TSS with its T flag set.
pub const DR6_BT: u64 = 1 << 15;
/// DR7: general detect.
pub const DR7_GD: u64 = 1 << 13;

/// What clears at the entry of every handler.
const CLEARED: u32 = flag::TF | flag::NT | flag::RF | flag::VM;

/// Delivers `vector`: on success `env.rip` is at its handler; an exception on the way leaves the state as it was.
pub fn deliver(cpu: &mut Cpu, vector: u8, kind: Kind) -> Exec<()> {
    if kind == Kind::Nmi {
        cpu.env.nmi_blocked = true;
    }
    let external = !matches!(kind, Kind::Software { .. });
    let result = if cpu.is_long_mode() {
        deliver_long(cpu, vector, kind)
    } else if cpu.env.cr0 & 1 != 0 {
        deliver_protected(cpu, vector, kind)
    } else {
        deliver_real(cpu, vector, kind)
    };
    match result {
        Ok(()) => {
            cpu.env.interrupt_shadow = 0;
            cpu.env.halted = false;
            Ok(())
        }
        Err(exception) => Err(if external { with_ext(exception) } else { exception }),
    }
}

/// Delivers an interrupt, or the exceptions that its delivery raises.
pub fn inject(cpu: &mut Cpu, vector: u8, kind: Kind) -> Next {
    cpu.counters.interrupts += 1;
    match deliver(cpu, vector, kind) {
        Ok(()) => Next::Jumped,
        Err(exception) => raise(cpu, exception),
    }
}

/// Delivers `exception`, which the instruction at `env.rip` raised (for a trap: the instruction before it), or what
/// becomes of it when its delivery fails.
pub fn raise(cpu: &mut Cpu, exception: Exception) -> Next {
    cpu.counters.exceptions += 1;
    let mut current = exception;
    loop {
        match current.vector {
            vector::PF => cpu.env.cr2 = current.payload,
            vector::DB => {
                cpu.env.dr6 = cpu.env.dr6 & !0xf | current.payload;
                cpu.env.dr7 &= !DR7_GD;
                if current.payload & DR6_BD != 0 {
                    // The one #DB that is a fault and saves RF.
                    cpu.env.sysflags |= flag::RF;
                }
            }
            _ => {}
        }
        // What a fault interrupted does not complete; its traps come when it does.
        cpu.pending_debug = 0;
        let code = current.error_code;
        tracing::trace!(target: "int", vector = current.vector, code, rip = cpu.env.rip, cr2 = cpu.env.cr2);
        let Err(second) = deliver(cpu, current.vector, Kind::Exception { code }) else {
            return Next::Jumped;
        };
        if second.vector == vector::PF {
            // Even if it becomes a double fault: handlers of stack overflow look there.
            cpu.env.cr2 = second.payload;
        }
        match escalate(current.vector, second) {
            Some(next) => current = next,
            None => {
                tracing::trace!(target: "guest_errors", "triple fault at {:#x}", cpu.env.rip);
                return Next::Shutdown;
            }
        }
    }
}

/// Ends an instruction: delivers the debug traps it met, and the single-step trap if TF was set when it began
/// (`stepped`). `env.rip` is at the next instruction.
pub fn deliver_debug_traps(cpu: &mut Cpu, stepped: bool) -> Next {
    let bits = std::mem::take(&mut cpu.pending_debug) | if stepped { DR6_BS } else { 0 };
    if bits == 0 { Next::Fallthrough } else { raise(cpu, Exception::debug(bits)) }
}

/// The exception that follows when `second` arises while `first` is delivered (SDM vol. 3A, *Interrupt 8—Double Fault
/// Exception*); `None`: shutdown.
fn escalate(first: u8, second: Exception) -> Option<Exception> {
    let contributory =
        |vector| matches!(vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP);
    let (second_page, second_contributory) = (second.vector == vector::PF, contributory(second.vector));
    match first {
        vector::DF if second_page || second_contributory => None,
        vector::PF if second_page || second_contributory => Some(Exception::with_code(vector::DF, 0)),
        first if contributory(first) && second_contributory => Some(Exception::with_code(vector::DF, 0)),
        _ => Some(second),
    }
}

/// Sets EXT in the error codes that have it: the event did not come from an INT instruction.
fn with_ext(exception: Exception) -> Exception {
    match (exception.vector, exception.error_code) {
        (vector::TS..=vector::GP, Some(code)) => Exception { error_code: Some(code | 1), ..exception },
        _ => exception,
    }
}

/// RIP and RFLAGS to save.
fn saved(cpu: &Cpu, number: u8, kind: Kind) -> (u64, u32) {
    let flags = cpu.env.rflags();
    match kind {
        Kind::Software { len } => (cpu.env.rip.wrapping_add(len), flags),
        // Faults are restarted: RF keeps an instruction breakpoint from firing again. A #DB for such a breakpoint has
        // RF clear; #DB traps too. #DF is an abort.
        Kind::Exception { .. } if number != vector::DB && number != vector::DF => {
            (cpu.env.rip, flags | flag::RF)
        }
        _ => (cpu.env.rip, flags),
    }
}

fn enter(cpu: &mut Cpu, keep_if: bool) {
    let env = &mut *cpu.env;
    env.sysflags &= !CLEARED;
    if !keep_if {
        env.iflag = 0;
    }
}

/// Reads the gate's code segment and checks it; returns it with the privilege of the handler.
fn handler_segment(cpu: &mut Cpu, selector: u16) -> Exec<(Descriptor, u64, u8)> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let (descriptor, address) = cpu.descriptor(selector, Exception::gp)?;
    let cpl = cpu.env.cpl();
    if !descriptor.is_code() || descriptor.dpl() > cpl {
        return Err(Exception::gp(selector_code(selector)));
    }
    if !descriptor.is_present() {
        return Err(Exception::np(selector_code(selector)));
    }
    Ok((descriptor, address, if descriptor.is_conforming() { cpl } else { descriptor.dpl() }))
}

fn deliver_long(cpu: &mut Cpu, number: u8, kind: Kind) -> Exec<()> {
    let idt_code = u32::from(number) << 3 | 2;
    let offset = u64::from(number) * 16;
    if offset + 15 > u64::from(cpu.env.idt.limit) {
        return Err(Exception::gp(idt_code));
    }
    let address = cpu.env.idt.base.wrapping_add(offset);
    let gate = Descriptor(cpu.read(address, 8, Access::System)?);
    let high = cpu.read(address.wrapping_add(8), 8, Access::System)?;
    let is_trap = gate.kind() == system_type::TRAP_GATE32;
    if gate.is_user() || !(is_trap || gate.kind() == system_type::INTERRUPT_GATE32) {
        return Err(Exception::gp(idt_code));
    }
    let cpl = cpu.env.cpl();
    if matches!(kind, Kind::Software { .. }) && gate.dpl() < cpl {
        return Err(Exception::gp(idt_code));
    }
    if !gate.is_present() {
        return Err(Exception::np(idt_code));
    }
    let selector = (gate.0 >> 16) as u16;
    let (code, code_address, new_cpl) = handler_segment(cpu, selector)?;
    if !code.is_long() || code.is_big() {
        return Err(Exception::gp(selector_code(selector)));
    }
    let target = gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 | high << 32;
    if !is_canonical(target) {
        return Err(Exception::gp(0));
    }
    let ist = (gate.0 >> 32 & 7) as u8;
    let sp = if ist != 0 {
        cpu.tss_ist(ist)?
    } else if new_cpl < cpl {
        cpu.tss_rsp(new_cpl)?
    } else {
        cpu.env.gpr[4]
    } & !15;
    let (rip, flags) = saved(cpu, number, kind);
    let error = match kind {
        Kind::Exception { code } => code,
        _ => None,
    };
    let env = &*cpu.env;
    let (old_cs, old_ss, old_sp) = (env.seg[1].selector, env.seg[2].selector, env.gpr[4]);
    let frame =
        [u64::from(error.unwrap_or(0)), rip, u64::from(old_cs), u64::from(flags), old_sp, u64::from(old_ss)];
    let words = if error.is_some() { &frame[..] } else { &frame[1..] };
    let bottom = sp.wrapping_sub(words.len() as u64 * 8);
    if !is_canonical(bottom) || !is_canonical(sp.wrapping_sub(1)) {
        return Err(Exception::ss(0));
    }
    let mode = if new_cpl == 3 { MODE_USER } else { cpu.tlb_mode(Access::System) };
    cpu.mark_accessed(code, code_address)?;
    cpu.write_words(bottom, words, mode)?;

    let env = &mut *cpu.env;
    env.gpr[4] = bottom;
    env.seg[1] = code.segment(selector & !3 | u16::from(new_cpl));
    if new_cpl != cpl {
        env.seg[2] = null_stack(u16::from(new_cpl), new_cpl);
    }
    env.rip = target;
    enter(cpu, is_trap);
    Ok(())
}

fn deliver_protected(cpu: &mut Cpu, number: u8, kind: Kind) -> Exec<()> {
    let idt_code = u32::from(number) << 3 | 2;
    let offset = u64::from(number) * 8;
    if offset + 7 > u64::from(cpu.env.idt.limit) {
        return Err(Exception::gp(idt_code));
    }
    let address = cpu.wrap_system(cpu.env.idt.base.wrapping_add(offset));
    let gate = Descriptor(cpu.read(address, 8, Access::System)?);
    use system_type::{INTERRUPT_GATE16, INTERRUPT_GATE32, TRAP_GATE16, TRAP_GATE32};
    let is_task = gate.kind() == system_type::TASK_GATE;
    let known =
        is_task || matches!(gate.kind(), INTERRUPT_GATE16 | INTERRUPT_GATE32 | TRAP_GATE16 | TRAP_GATE32);
    if gate.is_user() || !known {
        return Err(Exception::gp(idt_code));
    }
    let cpl = cpu.env.cpl();
    if matches!(kind, Kind::Software { .. }) && gate.dpl() < cpl {
        return Err(Exception::gp(idt_code));
    }
    if !gate.is_present() {
        return Err(Exception::np(idt_code));
    }
    if is_task {
        let (ip, flags) = saved(cpu, number, kind);
        let error = match kind {
            Kind::Exception { code } => code,
            _ => None,
        };
        task::switch_by_gate(cpu, gate, Via::Interrupt(error), Outgoing { ip, flags })?;
        return Ok(());
    }
    let selector = (gate.0 >> 16) as u16;
    let (code, code_address, new_cpl) = handler_segment(cpu, selector)?;
    let vm86 = cpu.env.sysflags & flag::VM != 0;
    if vm86 && new_cpl != 0 {
        return Err(Exception::gp(selector_code(selector)));
    }
    let wide = gate.kind() & 8 != 0;
    let size = if wide { 4 } else { 2 };
    let target = if wide { gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 } else { gate.0 & 0xffff };
    let (rip, flags) = saved(cpu, number, kind);

    let mut new_stack = None;
    let mut stack = if new_cpl == cpl {
        Stack::current(cpu)
    } else {
        let (ss, sp) = cpu.tss_stack(new_cpl)?;
        let segment = cpu.stack_segment(ss, new_cpl, false, Exception::ts)?;
        new_stack = Some(segment);
        let mut stack = Stack::other(cpu, segment, sp, new_cpl);
        if vm86 {
            for index in [5, 4, 3, 0] {
                stack.push(cpu, size, u64::from(cpu.env.seg[index].selector))?;
            }
        }
        stack.push(cpu, size, u64::from(cpu.env.seg[2].selector))?;
        stack.push(cpu, size, cpu.env.gpr[4])?;
        stack
    };
    stack.push(cpu, size, u64::from(flags))?;
    stack.push(cpu, size, u64::from(cpu.env.seg[1].selector))?;
    stack.push(cpu, size, rip)?;
    if let Kind::Exception { code: Some(code) } = kind {
        stack.push(cpu, size, u64::from(code))?;
    }
    if target > u64::from(code.limit()) {
        return Err(Exception::gp(0));
    }
    cpu.mark_accessed(code, code_address)?;

    let env = &mut *cpu.env;
    env.seg[1] = code.segment(selector & !3 | u16::from(new_cpl));
    if let Some(segment) = new_stack {
        env.seg[2] = segment;
    }
    if vm86 {
        for index in [0, 3, 4, 5] {
            env.seg[index] = Segment::default();
        }
    }
    env.rip = target;
    enter(cpu, gate.kind() & 1 != 0);
    cpu.set_stack_pointer(stack.sp);
    Ok(())
}

fn deliver_real(cpu: &mut Cpu, number: u8, kind: Kind) -> Exec<()> {
    let offset = u64::from(number) * 4;
    if offset + 3 > u64::from(cpu.env.idt.limit) {
        return Err(Exception::gp(0));
    }
    let address = cpu.wrap_system(cpu.env.idt.base.wrapping_add(offset));
    let entry = cpu.read(address, 4, Access::System)?;
    let (rip, flags) = saved(cpu, number, kind);
    let mut stack = Stack::current(cpu);
    stack.push(cpu, 2, u64::from(flags))?;
    stack.push(cpu, 2, u64::from(cpu.env.seg[1].selector))?;
    stack.push(cpu, 2, rip)?;
    cpu.set_stack_pointer(stack.sp);
    let env = &mut *cpu.env;
    let selector = (entry >> 16) as u16;
    env.seg[1] = Segment { selector, base: u64::from(selector) << 4, ..env.seg[1] };
    env.rip = entry & 0xffff;
    env.ac = 0;
    enter(cpu, false);
    Ok(())
}
