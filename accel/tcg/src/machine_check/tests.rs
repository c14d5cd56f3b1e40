//! The banks' registers and what an error does to them.

use super::*;
use crate::complex::testing::Machine;
use crate::msr;

const BANK_2: u32 = IA32_MC0_CTL + 8;

fn read(cpu: &mut Cpu, index: u32) -> u64 {
    msr::read(cpu, index).expect("there is such a register")
}

fn error(status: u64) -> MachineCheck {
    MachineCheck { bank: 2, status: STATUS_VAL | status, mcg_status: 5, address: 0x1000, misc: 0x8c }
}

#[test]
fn registers_can_be_cleared_and_not_set() {
    let mut machine = Machine::new();
    let cpu = &mut machine.cpu;
    assert_eq!(read(cpu, IA32_MCG_CAP), 0x100_010a);
    assert_eq!([IA32_MCG_CTL, BANK_2].map(|index| read(cpu, index)), [ALL; 2]);
    for (index, value, allowed) in [
        (IA32_MCG_CAP, 0, false),
        (IA32_MCG_STATUS, 7, true),
        (IA32_MCG_STATUS, 8, false),
        (IA32_MCG_CTL, 1, false),
        (IA32_MCG_CTL, 0, true),
        (BANK_2, 0x55, true),
        (BANK_2 + 1, 1, false),
        (BANK_2 + 1, 0, true),
        (BANK_2 + 2, 1, false),
        (BANK_2 + 3, 1, false),
        (LAST, 0, true),
        (LAST + 1, 0, false),
    ] {
        let written = msr::write(cpu, index, value);
        assert_eq!(written.is_ok(), allowed, "{index:#x} = {value:#x}");
        if allowed {
            assert_eq!(read(cpu, index), value);
        }
    }
    assert_eq!(msr::read(cpu, LAST + 1), Err(GP));
}

#[test]
fn state_is_saved_and_restored() {
    let mut machine = Machine::new();
    machine.cpu.machine_check(&error(7)).unwrap();
    let saved = msr::save(&mut machine.cpu);
    assert!(saved.is_sorted_by_key(|&(index, _)| index));
    msr::power_on(&mut machine.cpu);
    assert_eq!(read(&mut machine.cpu, BANK_2 + 1), 0);
    for &(index, value) in &saved {
        msr::restore(&mut machine.cpu, index, value);
    }
    assert_eq!([1, 2, 3].map(|place| read(&mut machine.cpu, BANK_2 + place)), [STATUS_VAL | 7, 0x1000, 0x8c]);
}

/// A corrected error says nothing, and does not hide an uncorrected one.
#[test]
fn the_worse_error_stays() {
    let mut machine = Machine::new();
    let cpu = &mut machine.cpu;
    cpu.machine_check(&error(1)).unwrap();
    cpu.machine_check(&error(2)).unwrap();
    assert_eq!(read(cpu, BANK_2 + 1), STATUS_VAL | STATUS_OVER | 2);
    assert_eq!((cpu.machine_checks.pending, read(cpu, IA32_MCG_STATUS)), (None, 0));
    cpu.env.cr4 |= CR4_MCE;
    cpu.machine_check(&error(STATUS_UC | 3)).unwrap();
    assert_eq!(cpu.machine_checks.pending, Some(Pending::Exception));
    assert_eq!(read(cpu, IA32_MCG_STATUS), 5);
    cpu.machine_check(&error(4)).unwrap();
    assert_eq!(read(cpu, BANK_2 + 1), STATUS_VAL | STATUS_OVER | STATUS_UC | 3);
}

#[test]
fn what_the_guest_has_not_enabled_does_not_happen() {
    for disabled in [BANK_2, IA32_MCG_CTL] {
        let mut machine = Machine::new();
        let cpu = &mut machine.cpu;
        msr::write(cpu, disabled, 0).unwrap();
        cpu.machine_check(&error(STATUS_UC)).unwrap();
        assert_eq!((cpu.machine_checks.pending, read(cpu, BANK_2 + 1)), (None, 0));
    }
}

#[test]
fn a_cpu_without_mce_shuts_down() {
    let mut machine = Machine::new();
    machine.cpu.machine_check(&error(STATUS_UC)).unwrap();
    assert_eq!(machine.cpu.machine_checks.pending, Some(Pending::Shutdown));
    // RESET ends that.
    msr::power_on(&mut machine.cpu);
    assert_eq!(machine.cpu.machine_checks.pending, None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut machine = Machine::new();
    for wrong in [MachineCheck { bank: 10, ..error(0) }, MachineCheck { status: STATUS_UC, ..error(0) }] {
        assert!(machine.cpu.machine_check(&wrong).is_err());
    }
}
