//! Cases of hardware errors (SDM vol. 3B, *Machine-Check Architecture*).

use std::time::Duration;

use super::control::SPIN;
use super::rig::{CODE, OUT_PORT, Rig, wait_for};
use crate::contract::{MachineCheck, Shutdown};
use crate::cpu_handle::InjectError;
use crate::observer::CpuEvent;

/// #MC's handler, and its place in the table of vectors.
const HANDLER: u16 = 0x1100;
const VECTOR: u16 = 18 * 4;
/// Where CPU 1 begins.
const OTHER: u16 = 0x1200;

/// Takes machine checks, says so and goes on with what follows: `mov eax, cr4; or eax, CR4.MCE; mov cr4, eax; out OUT_PORT, al`.
const ENABLE: &[u8] = &[0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x40, 0x0f, 0x22, 0xe0, 0xe6, OUT_PORT];

const IA32_MC3_STATUS: u32 = 0x40d;
/// VAL, UC, EN.
const UNCORRECTED: u64 = 0b1011 << 60;
/// VAL, EN.
const CORRECTED: u64 = 0b1001 << 60;

fn check(code: u8) -> MachineCheck {
    // MCIP, EIPV, RIPV.
    MachineCheck {
        bank: 3,
        status: UNCORRECTED | u64::from(code),
        mcg_status: 0b111,
        ..MachineCheck::default()
    }
}

/// CPU 0 halts with interrupts off, the others spin; all take machine checks.
fn start(rig: &Rig) {
    rig.load(VECTOR, &[HANDLER as u8, (HANDLER >> 8) as u8, 0, 0]);
    // cli; hlt; jmp to the hlt
    rig.load(CODE, &[ENABLE, &[0xfa, 0xf4, 0xeb, 0xfd]].concat());
    rig.load(OTHER, &[ENABLE, SPIN].concat());
    for index in 0..rig.cpus.len() {
        rig.start_at(index, if index == 0 { CODE } else { OTHER }, 0);
    }
    rig.set.resume_all();
    for port in &rig.ports {
        wait_for("the guest to take machine checks", || port.outs() == 1);
    }
}

/// An uncorrected error is in its bank and raises #MC, at a CPU that halts with interrupts off and at one that runs, and at no
/// other unless it is broadcast; a corrected one raises nothing.
pub(super) fn a_machine_check_is_taken(rig: Rig) {
    // Says what IA32_MC3_STATUS begins with, once it and IA32_MCG_STATUS are cleared.
    #[rustfmt::skip]
    rig.load(HANDLER, &[
        0x66, 0xb9, 0x0d, 0x04, 0, 0, 0x0f, 0x32,             // mov ecx, IA32_MC3_STATUS; rdmsr
        0x88, 0xc3, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2,       // mov bl, al; xor eax, eax; xor edx, edx
        0x0f, 0x30,                                           // wrmsr
        0x66, 0xb9, 0x7a, 0x01, 0, 0, 0x0f, 0x30,             // mov ecx, IA32_MCG_STATUS; wrmsr
        0x88, 0xd8, 0xe6, OUT_PORT, 0xcf,                     // mov al, bl; out OUT_PORT, al; iret
    ]);
    start(&rig);
    let said = |index: usize, outs: u64, code: u8| {
        wait_for("#MC's handler", || rig.ports[index].outs() == outs);
        assert_eq!(rig.ports[index].output(), code, "CPU {index}, {outs}");
    };
    for round in 1..=10 {
        for index in 0..2 {
            rig.cpus[index].inject_machine_check(check(round)).expect("it has such a bank");
            said(index, 1 + u64::from(round), round);
        }
    }
    // One for a paused CPU waits for it.
    rig.pause();
    rig.cpus[0].inject_machine_check(check(0x20)).expect("it has such a bank");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.ports[0].outs(), 11);
    rig.set.resume_all();
    said(0, 12, 0x20);
    rig.set.broadcast_machine_check(1, check(0x21)).expect("it has such a bank");
    said(1, 12, 0x21);
    said(0, 13, 0);

    rig.pause();
    let corrected = MachineCheck { status: CORRECTED | 5, ..check(0) };
    rig.cpus[0].inject_machine_check(corrected).expect("it has such a bank");
    let msrs = rig.state(0).msrs;
    assert!(msrs.contains(&(IA32_MC3_STATUS, CORRECTED | 5)), "{msrs:x?}");
    let wrong = [MachineCheck { bank: 255, ..check(1) }, MachineCheck { status: 1, ..check(1) }];
    for wrong in wrong {
        let refused = rig.cpus[0].inject_machine_check(wrong);
        assert!(matches!(refused, Err(InjectError::Vcpu(_))), "{wrong:?}: {refused:?}");
    }
    let refused = rig.set.broadcast_machine_check(0, wrong[0]);
    assert!(matches!(refused, Err(InjectError::Vcpu(_))), "{refused:?}");
    let refused = rig.set.broadcast_machine_check(7, check(1));
    assert!(matches!(refused, Err(InjectError::RunOn(_))), "{refused:?}");
    rig.set.resume_all();
    std::thread::sleep(Duration::from_millis(5));
    rig.pause();
    assert_eq!([0, 1].map(|index| rig.ports[index].outs()), [13, 12]);
    // Power-on forgets it.
    rig.set.reset_all().expect("CPUs are paused");
    let msrs = rig.state(0).msrs;
    assert!(msrs.contains(&(IA32_MC3_STATUS, 0)), "{msrs:x?}");
}

/// A second one before the handler of the first has cleared MCIP.
pub(super) fn a_machine_check_that_cannot_be_taken_ends_the_cpu(rig: Rig) {
    // out OUT_PORT, al; jmp $
    rig.load(HANDLER, &[0xe6, OUT_PORT, 0xeb, 0xfe]);
    start(&rig);
    rig.cpus[0].inject_machine_check(check(1)).expect("it has such a bank");
    wait_for("#MC's handler", || rig.ports[0].outs() == 2);
    rig.cpus[0].inject_machine_check(check(2)).expect("it has such a bank");
    match rig.wait_event() {
        (0, CpuEvent::Shutdown { reason: Shutdown::TripleFault, .. }) => {}
        other => panic!("{other:?}"),
    }
}
