//! Cases that watch a guest: halt, hold, reset, state, shutdown, debugging, interrupts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control::SPIN;
use super::rig::{CODE, IN_PORT, OUT_PORT, Rig, real_mode, wait_for};
use super::storms::COUNT;
use crate::arch_state::{CpuArchState, RunMode, SegmentState, reg, seg};
use crate::contract::{DebugControl, Shutdown, VcpuExit};
use crate::cpu_state::CpuState;
use crate::observer::CpuEvent;
use crate::work::RunOnError;

/// `out OUT_PORT, al; hlt; jmp` to the hlt: reports once, then halts for ever.
const REPORT_AND_HALT: &[u8] = &[0xe6, OUT_PORT, 0xf4, 0xeb, 0xfd];

fn pc(state: &CpuArchState) -> u64 {
    state.segments[seg::CS].base + state.rip
}

/// Time for a CPU to do what it should not.
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(5));
}

/// A halted CPU pauses and resumes; it halts on.
pub(super) fn pause_in_hlt(rig: Rig) {
    rig.load(CODE, REPORT_AND_HALT);
    rig.start_at(0, CODE, 7);
    rig.set.resume_all();
    rig.wait_outs_since_start(0, 1);
    for _ in 0..20 {
        wait_a_little();
        rig.pause();
        let state = rig.state(0);
        assert_eq!((pc(&state), state.run_mode), (u64::from(CODE) + 3, RunMode::Halted));
        rig.set.resume_all();
    }
    assert_eq!((rig.ports[0].outs(), rig.ports[0].output()), (1, 7));
}

/// Work for a halted CPU is done; it halts on.
pub(super) fn work_in_hlt_does_not_wake(rig: Rig) {
    rig.load(CODE, REPORT_AND_HALT);
    rig.start_at(0, CODE, 0);
    rig.set.resume_all();
    rig.wait_outs_since_start(0, 1);
    wait_a_little();
    for number in 0..100 {
        assert_eq!(rig.cpus[0].run_on(move |_| number), Ok(number));
    }
    let state = rig.state(0);
    assert_eq!((pc(&state), state.run_mode), (u64::from(CODE) + 3, RunMode::Halted));
    // Work that gives the CPU another state wakes it.
    rig.load(0x1200, COUNT);
    rig.start_at(0, 0x1200, 0);
    rig.wait_outs(0, 3);
}

/// A device holds the CPU that accesses it: the guest does not get far.
pub(super) fn a_held_cpu_stops_soon(rig: Rig) {
    rig.load(CODE, COUNT);
    rig.start_at(0, CODE, 0);
    *rig.ports[0].on_access.lock().expect("no hook panics") = Some(Box::new(|cpu| cpu.hold()));
    for _ in 0..20 {
        let before = rig.ports[0].outs();
        rig.set.resume_all();
        wait_for("the guest to reach the device", || rig.ports[0].outs() > before);
        wait_for("the CPU to stop", || rig.cpus[0].state() == CpuState::Stopped);
        let more = rig.ports[0].outs() - before;
        assert!(more <= 2, "{more} accesses before it stopped");
        rig.pause();
    }
}

/// A reset during an access wins: nothing of the access arrives in the new life.
pub(super) fn reset_with_pending_access(rig: Rig) {
    // in al, IN_PORT; out OUT_PORT, al; hlt
    rig.load(CODE, &[0xe4, IN_PORT, 0xe6, OUT_PORT, 0xf4]);
    rig.ports[0].input.store(0x55, Ordering::SeqCst);
    *rig.ports[0].on_access.lock().expect("no hook panics") = Some(Box::new(|cpu| cpu.hold()));
    let run_until_held = || {
        let before = rig.ports[0].accesses();
        rig.set.resume_all();
        wait_for("the CPU to access its port", || rig.ports[0].accesses() > before);
        wait_for("the CPU to stop in its access", || rig.cpus[0].state() == CpuState::Stopped);
        rig.pause();
    };
    for round in 0..20 {
        rig.start_at(0, CODE, 0x11);
        run_until_held();
        // The access is complete: a state between two instructions. The engine may have gone a little further.
        let state = rig.state(0);
        let offset = pc(&state) - u64::from(CODE);
        assert!([2, 4, 5].contains(&offset), "round {round}: at {offset}");
        assert_eq!(state.gpr[reg::RAX], 0x55, "round {round}");
        rig.ports[0].clear_output();
        rig.set.reset_all().expect("CPUs are paused");
        let state = rig.state(0);
        let reset = CpuArchState::power_on();
        assert_eq!((pc(&state), state.rflags, state.cr0), (0xffff_fff0, reset.rflags, reset.cr0));
        assert_eq!(state.run_mode, RunMode::Running);
        // In the new life AL is what it is given, not what the device said.
        rig.load(0x1200, &[0xe6, OUT_PORT, 0xf4]);
        rig.start_at(0, 0x1200, 0x22);
        run_until_held();
        assert_eq!(rig.ports[0].output(), 0x22, "round {round}");
    }
}

/// The engine's clocks go on between two looks.
pub(super) fn without_time(mut state: CpuArchState) -> CpuArchState {
    const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
    const IA32_TSC_DEADLINE: u32 = 0x6e0;
    state.msrs.retain(|(index, _)| ![IA32_TIME_STAMP_COUNTER, IA32_TSC_DEADLINE].contains(index));
    state
}

/// What is set is what is read, and setting what was read changes nothing.
pub(super) fn state_is_identity(rig: Rig) {
    let before = without_time(rig.state(0));
    let same = rig.cpus[0].run_on(|cpu| {
        let state = cpu.backend.state()?;
        cpu.backend.set_state(&state)?;
        cpu.backend.state()
    });
    let same = without_time(same.expect("the CPU is there").expect("the CPU tells its state"));
    assert_eq!(same, before);
    let other = rig.cpus[0].run_on(|cpu| {
        let mut state = cpu.backend.state()?;
        real_mode(&mut state, 0x1234, 0);
        for (number, gpr) in state.gpr.iter_mut().enumerate() {
            *gpr = 0x0123_4567_89ab_cdef_u64.rotate_left(4 * u32::try_from(number).expect("below 16"));
        }
        // CF, PF, AF, ZF, SF, DF, OF, and IF.
        state.rflags = 0xed7;
        state.cr2 = 0xdead_b000;
        state.segments[seg::FS].selector = 0x1234;
        state.segments[seg::FS].base = 0x1_2340;
        state.dr[0] = 0x4444;
        cpu.backend.set_state(&state)?;
        Ok::<_, crate::VcpuError>((state, cpu.backend.state()?))
    });
    let (set, read) = other.expect("the CPU is there").expect("the CPU takes its state");
    assert_eq!(without_time(read), without_time(set));
}

/// State read in the middle of a run, and set again, lets the run go on as if nothing had happened.
pub(super) fn state_survives_running(rig: Rig) {
    rig.load(CODE, COUNT);
    rig.start_at(0, CODE, 0x3c);
    rig.set.resume_all();
    for _ in 0..100 {
        rig.wait_outs(0, 1);
        let state = rig.cpus[0].run_on(|cpu| {
            let state = cpu.backend.state()?;
            cpu.backend.set_state(&state)?;
            Ok::<_, crate::VcpuError>(state)
        });
        let state = state.expect("the CPU is there").expect("the CPU tells its state");
        assert!(
            [0, 2].contains(&(pc(&state) - u64::from(CODE))),
            "between instructions, not at {:#x}",
            pc(&state)
        );
        assert_eq!(state.gpr[reg::RAX] & 0xff, 0x3c);
    }
    assert_eq!(rig.ports[0].output(), 0x3c);
}

/// `state` becomes that of 32-bit code with flat segments, about to execute at `ip`.
fn flat_protected_mode(state: &mut CpuArchState, ip: u16) {
    real_mode(state, ip, 0);
    let data = SegmentState { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    state.segments = [data; 6];
    state.segments[seg::CS] = SegmentState { selector: 8, access: 0xc09b, ..data };
    state.cr0 |= 1;
}

/// A triple fault is told, with the state, and stops the CPU; a reset starts it anew.
pub(super) fn triple_fault_is_reported(rig: Rig) {
    // ud2, in protected mode without an interrupt table: #UD, #DF, shutdown. (In real mode a KVM that emulates does
    // not look at the table's limit.)
    rig.load(CODE, &[0x0f, 0x0b]);
    let no_table = rig.cpus[0].run_on(|cpu| {
        let mut state = cpu.backend.state()?;
        flat_protected_mode(&mut state, CODE);
        state.idt.limit = 0;
        cpu.backend.set_state(&state)
    });
    no_table.expect("the CPU is there").expect("the CPU takes its state");
    rig.set.resume_all();
    let (index, event) = rig.wait_event();
    assert_eq!(index, 0);
    let CpuEvent::Shutdown { reason, state, .. } = event else { panic!("{event:?}") };
    assert_eq!(reason, Shutdown::TripleFault);
    assert!(state.is_some(), "no state");
    wait_for("the CPU to stop", || rig.cpus[0].state() == CpuState::Stopped);
    rig.pause();
    rig.set.reset_all().expect("CPUs are paused");
    rig.load(CODE, COUNT);
    rig.start_at(0, CODE, 0);
    rig.set.resume_all();
    rig.wait_outs(0, 2);
}

/// `step` executes one instruction, kicked or not.
pub(super) fn step_is_one_instruction(rig: Rig) {
    // nop; mov al, 5; out OUT_PORT, al; jmp $
    rig.load(CODE, &[0x90, 0xb0, 5, 0xe6, OUT_PORT, 0xeb, 0xfe]);
    rig.start_at(0, CODE, 0);
    for (offset, outs) in [(1, 0), (3, 0), (5, 1), (5, 1)] {
        let state = rig.cpus[0].run_on(|cpu| {
            cpu.cpu().request_exit();
            assert_eq!(cpu.backend.step(cpu.io)?, VcpuExit::Kicked);
            cpu.backend.complete_exit(cpu.io)?;
            cpu.backend.state()
        });
        let state = state.expect("the CPU is there").expect("the CPU steps");
        assert_eq!(pc(&state), u64::from(CODE) + offset);
        assert_eq!(rig.ports[0].outs(), outs);
    }
    assert_eq!(rig.ports[0].output(), 5);
}

/// The debugger's conditions stop the CPU before the instruction, and going on goes on.
pub(super) fn breakpoint_and_single_step(rig: Rig) {
    rig.load(CODE, &[0x90, 0x90, 0x90, 0xe6, OUT_PORT, 0xeb, 0xf9]);
    rig.start_at(0, CODE, 0);
    let debug = |debug: DebugControl| {
        let set = rig.cpus[0].run_on(move |cpu| cpu.backend.set_debug(&debug));
        set.expect("the CPU is there").expect("the CPU can be debugged");
    };
    let expect_debug = |at: u64| {
        rig.set.resume_all();
        let (_, event) = rig.wait_event();
        let CpuEvent::Debug { pc } = event else { panic!("{event:?}") };
        assert_eq!(pc, at);
        rig.pause();
        assert_eq!(self::pc(&rig.state(0)), at);
    };
    let code = u64::from(CODE);
    debug(DebugControl { single_step: false, breakpoints: vec![code + 2] });
    expect_debug(code + 2);
    assert_eq!(rig.ports[0].outs(), 0);
    // Round the loop, to the same place.
    expect_debug(code + 2);
    assert_eq!(rig.ports[0].outs(), 1);
    debug(DebugControl { single_step: true, breakpoints: Vec::new() });
    for offset in [3, 5, 0, 1] {
        expect_debug(code + offset);
    }
    debug(DebugControl::default());
    rig.set.resume_all();
    rig.wait_outs(0, 3);
}

/// An NMI from any thread reaches a CPU that halts with interrupts off, and one that runs; each is taken once.
pub(super) fn nmi_reaches_the_guest(rig: Rig) {
    const NMIS: u64 = 50;
    // Vector 2: out OUT_PORT, al; iret.
    rig.load(0x1100, &[0xe6, OUT_PORT, 0xcf]);
    rig.load(2 * 4, &[0x00, 0x11, 0x00, 0x00]);
    // hlt; jmp to the hlt. jmp to itself.
    for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
        rig.load(CODE, code);
        rig.start_at(0, CODE, 0);
        rig.set.resume_all();
        let before = rig.ports[0].outs();
        for taken in 1..=NMIS {
            rig.nmi(0);
            wait_for("the NMI's handler", || rig.ports[0].outs() >= before + taken);
        }
        wait_a_little();
        rig.pause();
        assert_eq!(rig.ports[0].outs(), before + NMIS);
    }
}

/// After a reset the first CPU runs, and the others wait for their start-up IPI, whatever they were at.
pub(super) fn a_reset_ap_waits(rig: Rig) {
    rig.load(CODE, COUNT);
    for round in 0..20 {
        rig.start_at(0, CODE, 0);
        rig.start_at(1, CODE, 0);
        rig.set.resume_all();
        rig.wait_outs(0, 3);
        rig.wait_outs(1, 3);
        rig.pause();
        rig.set.reset_all().expect("CPUs are paused");
        let modes = [0, 1].map(|index| rig.state(index).run_mode);
        assert_eq!(modes, [RunMode::Running, RunMode::WaitForSipi], "round {round}");
        let outs = rig.ports[1].outs();
        rig.start_at(0, CODE, 0);
        rig.set.resume_all();
        rig.wait_outs(0, 20);
        rig.pause();
        assert_eq!(rig.ports[1].outs(), outs, "round {round}");
    }
}

/// An interrupt wakes a halted CPU, but not one that has interrupts off.
pub(super) fn interrupt_wakes_from_hlt(rig: Rig) {
    // sti; hlt; out OUT_PORT, al; cli; hlt; jmp to the hlt. Vector 0x30: mov al, 0x77; iret.
    rig.load(CODE, &[0xfb, 0xf4, 0xe6, OUT_PORT, 0xfa, 0xf4, 0xeb, 0xfd]);
    rig.load(0x1100, &[0xb0, 0x77, 0xcf]);
    rig.load(0x30 * 4, &[0x00, 0x11, 0x00, 0x00]);
    rig.start_at(0, CODE, 0);
    rig.set.resume_all();
    wait_for("the CPU to halt", || rig.cpus[0].state() == CpuState::Halted);
    assert_eq!(rig.ports[0].outs(), 0);
    rig.interrupt(0, 0x30);
    wait_for("the guest's report", || rig.ports[0].outs() == 1);
    assert_eq!(rig.ports[0].output(), 0x77);
    wait_for("the CPU to halt", || rig.cpus[0].state() == CpuState::Halted);
    rig.interrupt(0, 0x30);
    wait_a_little();
    rig.pause();
    let state = rig.state(0);
    assert_eq!((pc(&state), state.run_mode), (u64::from(CODE) + 6, RunMode::Halted));
    assert_eq!(rig.ports[0].outs(), 1);
}

/// An NMI comes through, to a CPU that halts with interrupts off and to one that runs, and to no other.
pub(super) fn an_injected_nmi_is_taken(rig: Rig) {
    // cli; hlt; jmp to the hlt. NMI: mov al, 0x66; out OUT_PORT, al; iret.
    rig.load(CODE, &[0xfa, 0xf4, 0xeb, 0xfd]);
    rig.load(0x1100, &[0xb0, 0x66, 0xe6, OUT_PORT, 0xcf]);
    rig.load(2 * 4, &[0x00, 0x11, 0x00, 0x00]);
    rig.load(0x1200, SPIN);
    rig.start_at(0, CODE, 0);
    rig.start_at(1, 0x1200, 0);
    rig.set.resume_all();
    for round in 1..=20 {
        for index in 0..2 {
            rig.cpus[index].inject_nmi().expect("the CPU is there");
            wait_for("the NMI's handler", || rig.ports[index].outs() == round);
            assert_eq!(rig.ports[index].output(), 0x66);
        }
    }
    // One for a paused CPU waits for it.
    rig.pause();
    rig.cpus[0].inject_nmi().expect("the CPU is there");
    wait_a_little();
    assert_eq!(rig.ports[0].outs(), 20);
    rig.set.resume_all();
    wait_for("the NMI's handler", || rig.ports[0].outs() == 21);
    rig.set.exit_all();
    assert_eq!(rig.cpus[0].inject_nmi(), Err(RunOnError::Gone));
}

/// An application processor waits, through pauses, for INIT and SIPI, and starts where the SIPI says.
pub(super) fn start_up_ipi_starts_an_ap(rig: Rig) {
    rig.load(CODE, REPORT_AND_HALT);
    rig.load(0x3000, COUNT);
    rig.start_at(0, CODE, 0);
    rig.set.resume_all();
    wait_for("the AP to wait", || rig.cpus[1].state() == CpuState::Halted);
    rig.pause();
    assert_eq!(rig.state(1).run_mode, RunMode::WaitForSipi);
    rig.set.resume_all();
    assert_eq!(rig.ports[1].outs(), 0);
    rig.start_up(1, 3);
    rig.wait_outs_since_start(1, 3);
    // INIT again: it waits again.
    rig.init(1);
    wait_for("the AP to wait", || rig.cpus[1].state() == CpuState::Halted);
    let outs = rig.ports[1].outs();
    wait_a_little();
    assert_eq!(rig.ports[1].outs(), outs);
    rig.start_up(1, 3);
    rig.wait_outs(1, 3);
}
