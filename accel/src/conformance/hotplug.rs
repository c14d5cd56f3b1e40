//! Cases of CPUs that come and go while the machine runs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::control::spin;
use super::rig::{CODE, Rig, start};
use super::storms::count;
use crate::arch_state::{RunMode, seg};
use crate::cpu_set::RemoveError;
use crate::cpu_state::CpuState;
use crate::work::RunOnError;

/// CPU 1 comes, runs and goes again and again, at a running and at a paused machine; each time it is a new one.
pub(super) fn a_cpu_comes_and_goes(rig: Rig) {
    count(&rig);
    rig.set.resume_all();
    for round in 0..12 {
        let paused = round % 2 == 1;
        if paused {
            rig.pause();
        }
        let (cpu, port) = rig.add(1);
        assert_eq!(rig.set.cpus().len(), 2, "round {round}");
        let state = cpu.run_on(|cpu| cpu.backend.state()).expect("it is there").expect("its state");
        assert_eq!((state.segments[seg::CS].base, state.rip), (0xffff_0000, 0xfff0), "round {round}");
        assert_eq!(state.run_mode, RunMode::WaitForSipi, "round {round}");
        start(&cpu, CODE, 0);
        if paused {
            assert_eq!((cpu.state(), port.outs()), (CpuState::Stopped, 0), "it came to a paused machine");
            rig.set.resume_all();
        }
        super::rig::wait_for("the new CPU's output", || port.outs() >= 3);
        // It takes part in what concerns all.
        rig.pause();
        assert_eq!(cpu.state(), CpuState::Stopped);
        let outs = port.outs();
        rig.set.resume_all();
        super::rig::wait_for("the new CPU's output", || port.outs() > outs);
        if round % 3 == 0 {
            rig.pause();
        }
        assert_eq!(rig.set.remove(&cpu), Ok(()));
        let outs = port.outs();
        assert_eq!((rig.set.cpus().len(), cpu.state()), (1, CpuState::Exited));
        assert_eq!(rig.set.remove(&cpu), Err(RemoveError::Gone(1)));
        assert_eq!(cpu.run_on(|_| ()), Err(RunOnError::Gone));
        // Kicks at a CPU that is gone do nothing.
        cpu.request_exit();
        if round % 3 == 0 {
            rig.set.resume_all();
        }
        rig.wait_outs(0, 2);
        assert_eq!(port.outs(), outs, "a CPU that is gone executes");
    }
    let other = rig.cpus[0].clone();
    let set = std::sync::Arc::clone(&rig.set);
    let refused = rig.cpus[0].run_on(move |_| set.remove(&other));
    assert_eq!(refused, Ok(Err(RemoveError::OnCpuThread)));
}

/// CPUs come and go while others pause, resume, reset and go through the list: nobody meets half a CPU, nobody waits for one
/// that has left.
pub(super) fn cpus_come_and_go_in_a_storm(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    let done = AtomicBool::new(false);
    let until_done = |mut work: Box<dyn FnMut() + '_>| {
        while !done.load(Ordering::Relaxed) {
            work();
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until_done(Box::new(|| {
                rig.set.pause_all().expect("not a CPU's thread");
                for cpu in rig.set.cpus() {
                    assert!(
                        matches!(cpu.state(), CpuState::Stopped | CpuState::Exited),
                        "{}",
                        cpu.diagnosis()
                    );
                }
                rig.set.resume_all();
            }));
        });
        scope.spawn(|| {
            until_done(Box::new(|| {
                rig.set.pause_all().expect("not a CPU's thread");
                rig.set.reset_all().expect("CPUs are paused");
                spin(&rig);
                rig.set.resume_all();
            }));
        });
        scope.spawn(|| {
            until_done(Box::new(|| {
                for cpu in rig.set.cpus() {
                    let index = cpu.index();
                    let answer = cpu.run_on(|cpu| cpu.cpu().index());
                    assert!([Ok(index), Err(RunOnError::Gone)].contains(&answer), "{answer:?}");
                }
                drop(rig.set.start_exclusive());
            }));
        });
        let _end = super::several::AtEnd(|| done.store(true, Ordering::Relaxed));
        for round in 0..15 {
            let (two, _) = rig.add(2);
            let (three, _) = rig.add(3);
            assert_eq!(rig.set.cpu(3).map(|cpu| cpu.index()), Some(3));
            let (first, second) = if round % 2 == 0 { (&two, &three) } else { (&three, &two) };
            assert_eq!(rig.set.remove(first), Ok(()));
            assert_eq!(rig.set.remove(second), Ok(()));
        }
    });
    let left: Vec<_> = rig.set.cpus().iter().map(|cpu| cpu.index()).collect();
    assert_eq!(left, [0, 1]);
}
