//! The system instructions, by mnemonic (SDM vol. 3A, *System Instruction Summary*).

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::complex::control::{edx_eax, set_edx_eax};
use crate::complex::{Next, control, debug_registers, far, flags, moves, port, returns, syscall, tables};
use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::{Exception, Exec, vector};
use crate::interrupt::{self, Kind};
use crate::msr;
use crate::operand::is_canonical;

const CR4_TSD: u64 = 1 << 2;
const CR4_FSGSBASE: u64 = 1 << 16;

/// #GP(0) above privilege level 0.
pub fn privileged(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cpl() == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

/// #GP(0) above privilege level 0 if CR4.UMIP is set.
pub fn umip(cpu: &Cpu) -> Exec<()> {
    if control::umip_enabled(cpu) { privileged(cpu) } else { Ok(()) }
}

/// Executes `insn` if it is a system instruction; `None`: it is not, or this CPU does not have it.
pub fn execute_system(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    use Mnemonic as M;
    let len = insn.len() as u64;
    Some(match insn.mnemonic() {
        M::Syscall => syscall::syscall(cpu, len),
        M::Sysret => syscall::sysret(cpu, false),
        M::Sysretq => syscall::sysret(cpu, true),
        M::Sysenter => syscall::sysenter(cpu),
        M::Sysexit => syscall::sysexit(cpu, false),
        M::Sysexitq => syscall::sysexit(cpu, true),
        M::Swapgs => syscall::swapgs(cpu),

        M::Iret => returns::iret(cpu, 2, len),
        M::Iretd => returns::iret(cpu, 4, len),
        M::Iretq => returns::iret(cpu, 8, len),
        M::Retf => retf(cpu, insn),
        M::Jmp if insn.is_jmp_far() || insn.is_jmp_far_indirect() => far::transfer(cpu, insn, false),
        M::Call if insn.is_call_far() || insn.is_call_far_indirect() => far::transfer(cpu, insn, true),

        M::Int => int(cpu, insn),
        M::Int3 => software(cpu, vector::BP, len),
        M::Into if cpu.env.arith & flag::OF == 0 => Ok(Next::Fallthrough),
        M::Into => software(cpu, vector::OF, len),
        M::Int1 => int1(cpu, len),
        M::Ud0 | M::Ud1 | M::Ud2 => Err(Exception::UD),

        M::Mov => return mov(cpu, insn),
        M::Push if register(insn, 0).is_segment_register() => moves::push(cpu, insn, stack_item(insn)),
        M::Pop if register(insn, 0).is_segment_register() => moves::pop(cpu, insn, stack_item(insn)),
        M::Les => moves::load_far_pointer(cpu, insn, 0),
        M::Lss => moves::load_far_pointer(cpu, insn, 2),
        M::Lds => moves::load_far_pointer(cpu, insn, 3),
        M::Lfs => moves::load_far_pointer(cpu, insn, 4),
        M::Lgs => moves::load_far_pointer(cpu, insn, 5),

        M::Cli => flags::cli(cpu),
        M::Sti => flags::sti(cpu),
        M::Clac => flags::set_ac(cpu, false),
        M::Stac => flags::set_ac(cpu, true),
        M::Pushf => flags::pushf(cpu, 2),
        M::Pushfd => flags::pushf(cpu, 4),
        M::Pushfq => flags::pushf(cpu, 8),
        M::Popf => flags::popf(cpu, 2),
        M::Popfd => flags::popf(cpu, 4),
        M::Popfq => flags::popf(cpu, 8),

        M::Sgdt => tables::store_table(cpu, insn, cpu.env.gdt),
        M::Sidt => tables::store_table(cpu, insn, cpu.env.idt),
        M::Lgdt => load_gdt(cpu, insn),
        M::Lidt => load_idt(cpu, insn),
        M::Sldt => tables::store_selector(cpu, insn, cpu.env.ldt.selector),
        M::Str => tables::store_selector(cpu, insn, cpu.env.task.selector),
        M::Lldt => tables::lldt(cpu, insn),
        M::Ltr => tables::ltr(cpu, insn),
        M::Lar => tables::lar(cpu, insn),
        M::Lsl => tables::lsl(cpu, insn),
        M::Verr => tables::verify(cpu, insn, false),
        M::Verw => tables::verify(cpu, insn, true),
        M::Arpl => tables::arpl(cpu, insn),

        M::Clts => control::clts(cpu),
        M::Lmsw => control::lmsw(cpu, insn),
        M::Smsw => control::smsw(cpu, insn),
        M::Invlpg => control::invlpg(cpu, insn),
        M::Invpcid => control::invpcid(cpu, insn),
        M::Xgetbv => control::xgetbv(cpu),
        M::Xsetbv => control::xsetbv(cpu),
        // Guest RAM is the host's write-back memory.
        M::Wbinvd | M::Invd | M::Wbnoinvd => privileged(cpu).map(|()| Next::Fallthrough),
        M::Hlt => hlt(cpu),
        M::Pause => {
            cpu.pause();
            Ok(Next::Fallthrough)
        }

        M::Rdmsr => rdmsr(cpu),
        M::Wrmsr => wrmsr(cpu),
        M::Rdtsc => rdtsc(cpu),
        M::Rdtscp if cpu.cpuid.rdtscp() => rdtscp(cpu),
        M::Rdpid if cpu.cpuid.rdpid() => rdpid(cpu, insn),
        // No performance counter exists.
        M::Rdpmc => Err(Exception::gp(0)),
        M::Cpuid => cpuid(cpu),
        M::In => port_in(cpu, insn),
        M::Out => port_out(cpu, insn),
        M::Rdfsbase => read_base(cpu, insn, 4),
        M::Rdgsbase => read_base(cpu, insn, 5),
        M::Wrfsbase => write_base(cpu, insn, 4),
        M::Wrgsbase => write_base(cpu, insn, 5),
        _ => return None,
    })
}

/// HLT. The shadow of an STI before it ends here: what arrives from now on wakes the CPU.
fn hlt(cpu: &mut Cpu) -> Exec<Next> {
    privileged(cpu)?;
    cpu.env.interrupt_shadow = 0;
    Ok(Next::Halt)
}

fn retf(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let size = match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let release = if insn.op_count() == 0 { 0 } else { u64::from(insn.immediate16()) };
    returns::retf(cpu, size, release)
}

/// Delivers a software interrupt.
fn software(cpu: &mut Cpu, number: u8, len: u64) -> Exec<Next> {
    interrupt::deliver(cpu, number, Kind::Software { len })?;
    Ok(Next::Jumped)
}

fn int(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    if cpu.env.sysflags & flag::VM != 0 && flags::iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    software(cpu, insn.immediate8(), insn.len() as u64)
}

/// INT1 (ICEBP): a #DB that no privilege check stops and that leaves DR6 alone.
fn int1(cpu: &mut Cpu, len: u64) -> Exec<Next> {
    let rip = cpu.env.rip;
    cpu.env.rip = rip.wrapping_add(len);
    let result = interrupt::deliver(cpu, vector::DB, Kind::Exception { code: None });
    if result.is_err() {
        cpu.env.rip = rip;
    }
    result.map(|()| Next::Jumped)
}

/// The register operand `operand`, or none.
fn register(insn: &Instruction, operand: u32) -> Register {
    if insn.op_kind(operand) == OpKind::Register { insn.op_register(operand) } else { Register::None }
}

/// MOV with a control, debug or segment register; the others are no system instructions.
fn mov(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let (to, from) = (register(insn, 0), register(insn, 1));
    Some(if to.is_cr() {
        control::write(cpu, insn)
    } else if from.is_cr() {
        control::read(cpu, insn)
    } else if to.is_dr() {
        debug_registers::write(cpu, insn)
    } else if from.is_dr() {
        debug_registers::read(cpu, insn)
    } else if to.is_segment_register() || from.is_segment_register() {
        moves::mov(cpu, insn)
    } else {
        return None;
    })
}

/// Bytes that PUSH or POP of a segment register moves the stack pointer by.
fn stack_item(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

fn load_gdt(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    cpu.env.gdt = tables::load_table(cpu, insn, insn.code() == Code::Lgdt_m1632_16)?;
    Ok(Next::Fallthrough)
}

fn load_idt(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    cpu.env.idt = tables::load_table(cpu, insn, insn.code() == Code::Lidt_m1632_16)?;
    Ok(Next::Fallthrough)
}

fn rdmsr(cpu: &mut Cpu) -> Exec<Next> {
    privileged(cpu)?;
    let value = msr::read(cpu, cpu.env.gpr[1] as u32)?;
    set_edx_eax(cpu, value);
    Ok(Next::Fallthrough)
}

fn wrmsr(cpu: &mut Cpu) -> Exec<Next> {
    privileged(cpu)?;
    let index = cpu.env.gpr[1] as u32;
    msr::write(cpu, index, edx_eax(cpu))?;
    Ok(if index == msr::spec::IA32_EFER { Next::EndBlock } else { Next::Fallthrough })
}

/// RDTSC and RDTSCP are privileged if CR4.TSD is set.
fn time_stamp_allowed(cpu: &Cpu) -> Exec<()> {
    if cpu.env.cr4 & CR4_TSD != 0 { privileged(cpu) } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu) -> Exec<Next> {
    time_stamp_allowed(cpu)?;
    let now = cpu.read_tsc();
    set_edx_eax(cpu, now);
    Ok(Next::Fallthrough)
}

fn rdtscp(cpu: &mut Cpu) -> Exec<Next> {
    rdtsc(cpu)?;
    cpu.env.gpr[1] = cpu.env.msr.tsc_aux;
    Ok(Next::Fallthrough)
}

fn rdpid(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    cpu.set_reg(insn.op0_register(), cpu.env.msr.tsc_aux);
    Ok(Next::Fallthrough)
}

fn cpuid(cpu: &mut Cpu) -> Exec<Next> {
    let [eax, ebx, ecx, edx] = cpu.cpuid(cpu.env.gpr[0] as u32, cpu.env.gpr[1] as u32);
    let gpr = &mut cpu.env.gpr;
    gpr[0] = u64::from(eax);
    gpr[3] = u64::from(ebx);
    gpr[1] = u64::from(ecx);
    gpr[2] = u64::from(edx);
    Ok(Next::Fallthrough)
}

/// The port that operand `operand` names.
fn port_operand(cpu: &Cpu, insn: &Instruction, operand: u32) -> u16 {
    if insn.op_kind(operand) == OpKind::Register {
        cpu.env.gpr[2] as u16
    } else {
        u16::from(insn.immediate8())
    }
}

fn port_in(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let register = insn.op0_register();
    let number = port_operand(cpu, insn, 1);
    let size = register.size();
    port::check_io(cpu, number, size)?;
    let mut data = [0; 4];
    cpu.io().pio_read(number, &mut data[..size]);
    cpu.set_reg(register, u64::from(u32::from_le_bytes(data)));
    Ok(Next::Fallthrough)
}

fn port_out(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    let register = insn.op1_register();
    let number = port_operand(cpu, insn, 0);
    let size = register.size();
    port::check_io(cpu, number, size)?;
    let data = (cpu.reg(register) as u32).to_le_bytes();
    cpu.io().pio_write(number, &data[..size]);
    Ok(Next::Fallthrough)
}

/// RDFSBASE and its kin exist in 64-bit mode with CR4.FSGSBASE set.
fn bases_allowed(cpu: &Cpu) -> Exec<()> {
    let allowed = cpu.env.is_64bit() && cpu.env.cr4 & CR4_FSGSBASE != 0;
    if allowed { Ok(()) } else { Err(Exception::UD) }
}

fn read_base(cpu: &mut Cpu, insn: &Instruction, index: usize) -> Exec<Next> {
    bases_allowed(cpu)?;
    cpu.set_reg(insn.op0_register(), cpu.env.seg[index].base);
    Ok(Next::Fallthrough)
}

fn write_base(cpu: &mut Cpu, insn: &Instruction, index: usize) -> Exec<Next> {
    bases_allowed(cpu)?;
    let value = cpu.reg(insn.op0_register());
    if !is_canonical(value) {
        return Err(Exception::gp(0));
    }
    cpu.env.seg[index].base = value;
    Ok(Next::Fallthrough)
}
