//! Instructions that helpers execute: system instructions, far transfers, strings, state saving.
//!
//! Generated code stores the registers, sets `env.rip` to the instruction and calls [`execute`].

pub mod control;
#[cfg(test)]
mod coverage;
pub mod data;
pub mod debug_registers;
pub mod far;
pub mod flags;
pub mod fpu_env;
pub mod gather;
pub mod inert;
pub mod legacy;
pub mod masked;
pub mod moves;
pub mod near;
pub mod port;
pub mod port_string;
pub mod returns;
pub mod string;
pub mod syscall;
pub mod system;
pub mod tables;
pub mod vzero;
pub mod xstate;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};

/// Where execution goes on after a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At the next instruction; the caller advances `env.rip`. Nothing that code is translated for has changed.
    Fallthrough,
    /// At the next instruction; the caller advances `env.rip`. Mode, privilege, paging or interrupt state may have
    /// changed: leave the block and look again.
    EndBlock,
    /// At `env.rip`, which the helper has set.
    Jumped,
    /// The same instruction again, after interrupts had their chance (an unfinished string instruction).
    Repeat,
    /// HLT: the caller advances `env.rip` and halts.
    Halt,
    /// Shutdown state: triple fault.
    Shutdown,
}

/// Executes `insn`, which is at `env.rip`. On an exception nothing of it has taken effect.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Exec<Next> {
    if let Some(result) = system::execute_system(cpu, insn) {
        return result;
    }
    if let Some(result) = data::execute_data(cpu, insn) {
        return result;
    }
    if let Some(result) = near::execute_near(cpu, insn) {
        return result;
    }
    Err(Exception::UD)
}
