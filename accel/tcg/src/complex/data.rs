//! Instructions that helpers execute and that are no system instructions: strings, port strings, saved state, gathers,
//! masked moves, and what 64-bit mode has no encoding for.

use iced_x86::Instruction;

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::exception::Exec;

use super::{fpu_env, gather, inert, legacy, masked, port_string, string, vzero, xstate};

/// Executes `insn` if it is one of these; `None`: it is not.
pub fn execute_data(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    string::execute(cpu, insn)
        .or_else(|| xstate::execute(cpu, insn))
        .or_else(|| fpu_env::execute(cpu, insn))
        .or_else(|| legacy::execute(cpu, insn))
        .or_else(|| gather::execute(cpu, insn))
        .or_else(|| masked::execute(cpu, insn))
        .or_else(|| vzero::execute(cpu, insn))
        .or_else(|| inert::execute(cpu, insn))
        .or_else(|| port_string::execute(cpu, insn))
}
