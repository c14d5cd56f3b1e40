//! Encodings that do nothing on a CPU without their extension, and FWAIT (SDM vol. 2, *NOP*, *WAIT/FWAIT*).

use iced_x86::{Instruction, Mnemonic};

use crate::complex::Next;
use crate::complex::xstate::require_x87;
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec, vector};

/// CR0.MP, CR0.TS, CR0.NE.
const CR0_MP: u64 = 1 << 1;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
/// FSW.ES.
const ES: u16 = 1 << 7;

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    use Mnemonic as M;
    let done = match insn.mnemonic() {
        // Shadow stacks: unwinders execute RDSSP without a look at CPUID and keep what the register held.
        M::Rdsspd | M::Rdsspq => Ok(()),
        M::Cldemote | M::Prefetchit0 | M::Prefetchit1 => Ok(()),
        // Bounds registers (MPX).
        M::Bndcl | M::Bndcn | M::Bndcu | M::Bndldx | M::Bndmk | M::Bndmov | M::Bndstx => Ok(()),
        // Of coprocessors that had these.
        M::Fnsetpm | M::Fsetpm | M::Fndisi | M::Fdisi | M::Fneni | M::Feni => require_x87(cpu),
        M::Wait => wait(cpu),
        _ => return None,
    };
    Some(done.map(|()| Next::Fallthrough))
}

fn wait(cpu: &mut Cpu) -> Exec<()> {
    if cpu.env.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        return Err(Exception::NM);
    }
    if cpu.env.xsave.fsw() & ES != 0 && cpu.env.cr0 & CR0_NE != 0 {
        return Err(Exception::plain(vector::MF));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::complex::testing::Machine;

    #[test]
    fn rdssp_leaves_its_register() {
        let mut machine = Machine::new();
        machine.cpu.env.gpr[0] = 0x1234_5678_9abc_def0;
        assert_eq!(machine.execute(&[0xf3, 0x48, 0x0f, 0x1e, 0xc8]), Ok(Next::Fallthrough));
        assert_eq!(machine.cpu.env.gpr[0], 0x1234_5678_9abc_def0);
    }

    #[test]
    fn wait_meets_what_is_pending() {
        let mut machine = Machine::new();
        assert_eq!(machine.execute(&[0x9b]), Ok(Next::Fallthrough));
        // A division by zero, unmasked.
        machine.cpu.env.xsave.set_x87_environment(0x37b, 4, 0);
        assert_eq!(machine.execute(&[0x9b]), Err(Exception::plain(vector::MF)));
        machine.cpu.env.cr0 |= CR0_TS;
        assert_eq!(machine.execute(&[0x9b]), Err(Exception::NM));
    }
}
