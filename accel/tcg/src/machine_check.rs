//! A CPU's banks of hardware errors and #MC (SDM vol. 3B, *Machine-Check Architecture*).
//!
//! No hardware error ever happens here by itself: they are injected ([`accel::CpuHandle::inject_machine_check`]). The banks are
//! QEMU's: ten, all enabled after RESET, with recovery by software (IA32_MCG_CAP.MCG_SER_P) and without corrected
//! machine-check interrupts. What becomes of an injected error is what KVM's kernel makes of it.

use accel::{MachineCheck, VcpuError};

use crate::cpu::Cpu;
use crate::exception::{Exception, Exec};
use crate::msr::spec::{IA32_MC0_CTL, IA32_MCG_CAP, IA32_MCG_CTL, IA32_MCG_STATUS};

/// How many.
const BANKS: usize = 10;
/// The last register of the last bank.
pub const LAST: u32 = IA32_MC0_CTL + 4 * BANKS as u32 - 1;

/// IA32_MCG_CAP: the count, IA32_MCG_CTL is there, recovery by software.
const MCG_CAP: u64 = BANKS as u64 | 1 << 8 | 1 << 24;
/// IA32_MCG_STATUS: a machine check is in progress.
const MCG_STATUS_MCIP: u64 = 1 << 2;
/// IA32_MCi_STATUS: the bank holds an error.
const STATUS_VAL: u64 = 1 << 63;
/// IA32_MCi_STATUS: there was another one before it was read.
const STATUS_OVER: u64 = 1 << 62;
/// IA32_MCi_STATUS: the error was not corrected.
const STATUS_UC: u64 = 1 << 61;
/// CR4.MCE.
const CR4_MCE: u64 = 1 << 6;

const ALL: u64 = u64::MAX;
const GP: Exception = Exception::gp(0);

/// IA32_MCi_CTL, IA32_MCi_STATUS, IA32_MCi_ADDR, IA32_MCi_MISC.
type Bank = [u64; 4];
const CTL: usize = 0;
const STATUS: usize = 1;
const ADDR: usize = 2;
const MISC: usize = 3;

/// What the CPU is going to do about an error, before its next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// #MC.
    Exception,
    /// It shuts down: it could not take #MC when the error happened.
    Shutdown,
}

/// The registers, and what is to be done.
pub struct Banks {
    status: u64,
    control: u64,
    banks: [Bank; BANKS],
    /// For the CPU's loop.
    pub pending: Option<Pending>,
}

impl Default for Banks {
    /// As RESET leaves them.
    fn default() -> Self {
        Self { status: 0, control: ALL, banks: [[ALL, 0, 0, 0]; BANKS], pending: None }
    }
}

impl Banks {
    /// The register `index`, if it can be stored to.
    fn slot(&mut self, index: u32) -> Option<&mut u64> {
        match index {
            IA32_MCG_STATUS => Some(&mut self.status),
            IA32_MCG_CTL => Some(&mut self.control),
            IA32_MC0_CTL..=LAST => {
                let place = (index - IA32_MC0_CTL) as usize;
                Some(&mut self.banks[place / 4][place % 4])
            }
            _ => None,
        }
    }

    /// RDMSR of one of these registers.
    pub fn read(&mut self, index: u32) -> Exec<u64> {
        if index == IA32_MCG_CAP { Ok(MCG_CAP) } else { self.slot(index).copied().ok_or(GP) }
    }

    /// WRMSR of one of these registers. Errors can be cleared, not made.
    pub fn write(&mut self, index: u32, value: u64) -> Exec<()> {
        let allowed = match index {
            IA32_MCG_STATUS => value & !7 == 0,
            IA32_MCG_CTL => matches!(value, 0 | ALL),
            IA32_MC0_CTL..=LAST if (index - IA32_MC0_CTL) as usize % 4 == CTL => true,
            _ => value == 0,
        };
        let slot = self.slot(index).filter(|_| allowed).ok_or(GP)?;
        *slot = value;
        Ok(())
    }

    /// The registers that can be stored to, ascending by index.
    pub fn indices() -> impl Iterator<Item = u32> {
        [IA32_MCG_STATUS, IA32_MCG_CTL].into_iter().chain(IA32_MC0_CTL..=LAST)
    }

    /// Sets a register without WRMSR's checks. Whether there is such a one.
    pub fn restore(&mut self, index: u32, value: u64) -> bool {
        self.slot(index).map(|slot| *slot = value).is_some()
    }
}

impl Cpu {
    /// An error happens: it is filed in its bank. An uncorrected one is #MC, if its bank is enabled; a CPU that cannot take that,
    /// because it is at one already or has CR4.MCE clear, shuts down.
    pub fn machine_check(&mut self, check: &MachineCheck) -> Result<(), VcpuError> {
        let banks = &mut self.machine_checks;
        if check.status & STATUS_VAL == 0 {
            return Err(VcpuError::Unsupported("a machine check whose status is not valid"));
        }
        let Some(bank) = banks.banks.get_mut(usize::from(check.bank)) else {
            return Err(VcpuError::Unsupported("a machine check in a bank above 9"));
        };
        let valid = bank[STATUS] & STATUS_VAL != 0;
        let overflow = if valid { STATUS_OVER } else { 0 };
        if check.status & STATUS_UC != 0 {
            if banks.control != ALL || bank[CTL] != ALL {
                return Ok(());
            }
            if banks.status & MCG_STATUS_MCIP != 0 || self.env.cr4 & CR4_MCE == 0 {
                banks.pending = Some(Pending::Shutdown);
                return Ok(());
            }
            banks.status = check.mcg_status;
            banks.pending = Some(Pending::Exception);
        } else if valid && bank[STATUS] & STATUS_UC != 0 {
            // The worse one stays.
            bank[STATUS] |= STATUS_OVER;
            return Ok(());
        }
        bank[STATUS] = check.status | overflow;
        bank[ADDR] = check.address;
        bank[MISC] = check.misc;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
