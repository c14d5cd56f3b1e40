//! Cases that need no guest code: creation, kicks, work, exit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::rig::{CODE, Rig, wait_for};
use crate::arch_state::{RunMode, seg};
use crate::contract::VcpuExit;
use crate::cpu_set::OnCpuThread;
use crate::cpu_state::CpuState;
use crate::work::{CpuContext, RunOnError};

/// `jmp $`: never leaves by itself.
pub(super) const SPIN: &[u8] = &[0xeb, 0xfe];

/// All CPUs spin. CPUs that execute nothing ignore it.
pub(super) fn spin(rig: &Rig) {
    rig.load(CODE, SPIN);
    for index in 0..rig.cpus.len() {
        rig.start_at(index, CODE, 0);
    }
}

/// `spawn` returns with the CPU bound, in the power-on state, stopped, in the set; the others wait for start-up IPIs.
pub(super) fn created_is_acknowledged(rig: Rig) {
    assert_eq!(rig.set.cpus().len(), rig.cpus.len());
    for (index, cpu) in rig.cpus.iter().enumerate() {
        assert_eq!(cpu.state(), CpuState::Stopped);
        let state = rig.state(index);
        assert_eq!((state.segments[seg::CS].base, state.rip), (0xffff_0000, 0xfff0));
        let run_mode = if index == 0 { RunMode::Running } else { RunMode::WaitForSipi };
        assert_eq!(state.run_mode, run_mode, "CPU {index}");
    }
}

/// A request and a kick that come before `run` make it return, and so do those that come during it.
pub(super) fn kick_before_run_is_sticky(rig: Rig) {
    spin(&rig);
    let run = |cpu: &mut CpuContext<'_>| {
        let exit = cpu.backend.run(cpu.io);
        assert!(cpu.cpu().take_exit_request(), "nobody but the lifecycle clears the request");
        cpu.backend.complete_exit(cpu.io)?;
        exit
    };
    for _ in 0..100 {
        let exit = rig.cpus[0].run_on(move |cpu| {
            cpu.cpu().request_exit();
            run(cpu)
        });
        assert_eq!(exit.expect("the CPU is there").expect("the CPU runs"), VcpuExit::Kicked);
    }
    for pause_us in [0, 20, 200, 2000] {
        let (entering, entered) = mpsc::channel();
        let handle = rig.cpus[0].clone();
        let kicker = std::thread::spawn(move || {
            entered.recv().expect("the CPU is about to run");
            std::thread::sleep(Duration::from_micros(pause_us));
            handle.request_exit();
        });
        let exit = rig.cpus[0].run_on(move |cpu| {
            // This item's own request has been consumed or will end the run; either way one is standing or coming.
            entering.send(()).expect("the kicker listens");
            run(cpu)
        });
        assert_eq!(exit.expect("the CPU is there").expect("the CPU runs"), VcpuExit::Kicked);
        kicker.join().expect("the kicker does not panic");
    }
}

/// Work is done first come, first served, exclusive or not, and all that came before a `run_on`.
pub(super) fn work_is_done_in_order(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    let done = Arc::new(Mutex::new(Vec::new()));
    for number in 0..1000 {
        let done = Arc::clone(&done);
        let work = move |_: &mut CpuContext<'_>| done.lock().expect("no work panics").push(number);
        let cpu = &rig.cpus[0];
        let posted = if number % 7 == 0 { cpu.post_exclusive(work) } else { cpu.post(work) };
        posted.expect("the CPU is there");
    }
    let seen = Arc::clone(&done);
    let count = rig.cpus[0].run_on(move |_| seen.lock().expect("no work panics").len());
    assert_eq!(count, Ok(1000));
    assert!(done.lock().expect("no work panics").is_sorted());
}

/// Stopped, running, resumed meanwhile: work is done.
pub(super) fn work_is_done_whatever_the_state(rig: Rig) {
    spin(&rig);
    assert_eq!(rig.cpus[0].run_on(|cpu| cpu.cpu().state()), Ok(CpuState::Stopped));
    rig.set.resume_all();
    wait_for("the CPU to run", || rig.cpus[0].state() == CpuState::Running);
    assert_eq!(rig.cpus[0].run_on(|cpu| cpu.cpu().index()), Ok(0));
    for _ in 0..50 {
        rig.pause();
        let handle = rig.cpus[0].clone();
        let asker = std::thread::spawn(move || handle.run_on(|_| 7));
        rig.set.resume_all();
        assert_eq!(asker.join().expect("run_on does not panic"), Ok(7));
    }
}

/// Each CPU waits for the other, again and again, and does the other's work meanwhile.
pub(super) fn two_cpus_run_on_each_other(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    let rounds = Arc::new(AtomicUsize::new(0));
    let (finished, both) = mpsc::channel();
    for (index, cpu) in rig.cpus.iter().enumerate() {
        let other = rig.cpus[1 - index].clone();
        let (rounds, finished) = (Arc::clone(&rounds), finished.clone());
        cpu.post(move |cpu| {
            for _ in 0..200 {
                let rounds = Arc::clone(&rounds);
                let on = cpu.run_on(&other, move |there| {
                    rounds.fetch_add(1, Ordering::SeqCst);
                    there.cpu().index()
                });
                assert_eq!(on, Ok(1 - index));
            }
            assert_eq!(cpu.run_on(&cpu.cpu().clone(), |_| ()), Ok(()), "at itself: at once");
            finished.send(()).expect("the test listens");
        })
        .expect("the CPU is there");
    }
    for _ in &rig.cpus {
        both.recv().expect("no work panics");
    }
    assert_eq!(rounds.load(Ordering::SeqCst), 400);
}

/// CPUs leave when asked, running or stopped, do the work queued before, and refuse what comes after.
pub(super) fn exit_from_every_state(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    wait_for("the CPU to run", || rig.cpus[0].state() == CpuState::Running);
    // One stops on its own, the other runs.
    rig.cpus[1].hold();
    wait_for("the CPU to stop", || rig.cpus[1].state() == CpuState::Stopped);
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    rig.cpus[1].post(move |_| seen.store(true, Ordering::SeqCst)).expect("the CPU is there");
    rig.set.exit_all();
    assert!(done.load(Ordering::SeqCst), "work queued before the exit is done");
    for cpu in &rig.cpus {
        assert_eq!(cpu.state(), CpuState::Exited);
        assert_eq!(cpu.run_on(|_| ()), Err(RunOnError::Gone));
        // Kicks at a CPU that is gone do nothing.
        cpu.request_exit();
    }
}

/// What would wait for itself says so instead.
pub(super) fn a_cpu_cannot_wait_for_itself(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    let Rig { set, cpus, .. } = &rig;
    let other = cpus[1].clone();
    let handle = other.clone();
    assert_eq!(cpus[0].run_on(move |_| handle.run_on(|_| ())), Ok(Err(RunOnError::OnCpuThread)));
    let handle = other.clone();
    let (answer, answered) = mpsc::channel();
    let work = move |cpu: &mut CpuContext<'_>| {
        answer.send(cpu.run_on(&handle, |_| ())).expect("the test listens");
    };
    cpus[0].post_exclusive(work).expect("the CPU is there");
    assert_eq!(answered.recv(), Ok(Err(RunOnError::InExclusive)));
    let set = Arc::clone(set);
    assert_eq!(cpus[0].run_on(move |_| set.pause_all()), Ok(Err(OnCpuThread)));
    assert!(!rig.set.is_paused());
}
