//! INS and OUTS with their prefixes (SDM vol. 2, *INS/INSB/INSW/INSD*, *OUTS/OUTSB/OUTSW/OUTSD*).

use iced_x86::{Code, Instruction};

use crate::complex::Next;
use crate::complex::port::check_io;
use crate::complex::string::{Rep, address_mask};
use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::Exec;
use crate::mmu::Access;
use crate::operand::segment_index;

const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

/// Elements after which a repeated instruction lets interrupts in.
const BUDGET: u32 = 256;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let (input, size) = match insn.code() {
        Code::Insb_m8_DX => (true, 1),
        Code::Insw_m16_DX => (true, 2),
        Code::Insd_m32_DX => (true, 4),
        Code::Outsb_DX_m8 => (false, 1),
        Code::Outsw_DX_m16 => (false, 2),
        Code::Outsd_DX_m32 => (false, 4),
        _ => return None,
    };
    Some(run(cpu, insn, input, size))
}

fn run(cpu: &mut Cpu, insn: &Instruction, input: bool, size: usize) -> Exec<Next> {
    let mask = address_mask(insn);
    let segment = if input { 0 } else { segment_index(insn.memory_segment()) };
    let repeated = Rep::of(insn) != Rep::None;
    let port = cpu.env.gpr[RDX] as u16;
    check_io(cpu, port, size)?;
    let mut budget = BUDGET;
    loop {
        if repeated && cpu.env.gpr[RCX] & mask == 0 {
            // A device may have raised an interrupt, or asked for the machine to stop.
            return Ok(Next::EndBlock);
        }
        if budget == 0 {
            return Ok(Next::Repeat);
        }
        element(cpu, input, port, size, segment, mask)?;
        if !repeated {
            return Ok(Next::EndBlock);
        }
        cpu.advance_index(RCX, mask, 1u64.wrapping_neg());
        let traps = cpu.env.sysflags & flag::TF != 0 || cpu.pending_debug != 0;
        budget = if traps { 0 } else { budget - 1 };
    }
}

fn element(cpu: &mut Cpu, input: bool, port: u16, size: usize, segment: usize, mask: u64) -> Exec<()> {
    let index = if input { RDI } else { RSI };
    let linear = cpu.linear(segment, cpu.env.gpr[index] & mask, size as u64, input)?;
    if input {
        // The port is read only if the result can be stored: a device's FIFO forgets what it gave.
        cpu.probe_write(linear, size as u64, Access::Current)?;
        let mut data = [0; 8];
        cpu.io().pio_read(port, &mut data[..size]);
        cpu.write(linear, size, u64::from_le_bytes(data), Access::Current)?;
    } else {
        let data = cpu.read(linear, size, Access::Current)?;
        cpu.io().pio_write(port, &data.to_le_bytes()[..size]);
    }
    let by = if cpu.env.df != 0 { (size as u64).wrapping_neg() } else { size as u64 };
    cpu.advance_index(index, mask, by);
    Ok(())
}
