//! VZEROALL and VZEROUPPER outside 64-bit mode: they leave the registers alone that 32-bit code cannot name
//! (SDM vol. 2C, *VZEROALL*, *VZEROUPPER*).

use iced_x86::{Instruction, Mnemonic};

use crate::complex::Next;
use crate::complex::xstate::require_vector;
use crate::cpu::Cpu;
use crate::exception::Exec;

const XCR0_AVX: u64 = 0x6;
/// Vector registers of 32-bit code.
const REGISTERS: usize = 8;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let kept = match insn.mnemonic() {
        Mnemonic::Vzeroall => 0,
        Mnemonic::Vzeroupper => 16,
        _ => return None,
    };
    Some(require_vector(cpu, XCR0_AVX).map(|()| {
        for register in 0..REGISTERS {
            let mut value = cpu.env.xsave.vector(register);
            value[kept..].fill(0);
            cpu.env.xsave.set_vector(register, &value, 64);
        }
        Next::Fallthrough
    }))
}
