//! Cases that do much at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::control::spin;
use super::rig::{CODE, OUT_PORT, Rig};
use crate::arch_state::seg;

/// `out OUT_PORT, al; jmp` back: counts.
pub(super) const COUNT: &[u8] = &[0xe6, OUT_PORT, 0xeb, 0xfc];

/// All CPUs count.
pub(super) fn count(rig: &Rig) {
    rig.load(CODE, COUNT);
    for index in 0..rig.cpus.len() {
        rig.start_at(index, CODE, 0);
    }
}

/// Kicks from two threads, work in between: nothing is lost, and the guest is where it was.
pub(super) fn kick_storm(rig: Rig) {
    spin(&rig);
    let executes = rig.state(0);
    rig.set.resume_all();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..3000 {
                    for cpu in &rig.cpus {
                        cpu.request_exit();
                        if round % 60 == 0 {
                            assert_eq!(cpu.run_on(|cpu| cpu.cpu().index()), Ok(cpu.index()));
                        }
                    }
                }
            });
        }
    });
    rig.pause();
    let state = rig.state(0);
    assert_eq!((state.segments[seg::CS].base, state.rip), (executes.segments[seg::CS].base, executes.rip));
}

/// Two callers pause and resume; what each pauses stays paused until it resumes.
pub(super) fn pause_resume_storm(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..300 {
                    rig.pause();
                    let generation = rig.set.generation();
                    if round % 10 == 0 {
                        std::thread::yield_now();
                    }
                    assert_eq!(rig.set.generation(), generation, "resumed under a pause");
                    rig.set.resume_all();
                }
            });
        }
    });
    assert!(!rig.set.is_paused());
    assert_eq!(rig.cpus[0].run_on(|cpu| cpu.cpu().index()), Ok(0));
}

/// The same, seen by the guests.
pub(super) fn counting_stands_still_while_paused(rig: Rig) {
    count(&rig);
    rig.set.resume_all();
    let outs = || rig.ports.iter().map(|port| port.outs()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..100 {
                    rig.pause();
                    let before = outs();
                    std::thread::yield_now();
                    assert_eq!(outs(), before, "a paused guest counts");
                    rig.set.resume_all();
                }
            });
        }
    });
    for index in 0..rig.cpus.len() {
        rig.wait_outs(index, 10);
    }
}

/// In an exclusive section no guest moves, whoever started it: CPU or not.
pub(super) fn exclusive_sections_exclude(rig: Rig) {
    count(&rig);
    let inside = Arc::new(AtomicBool::new(false));
    let violations = Arc::new(AtomicU64::new(0));
    for port in &rig.ports {
        let (inside, violations) = (Arc::clone(&inside), Arc::clone(&violations));
        let check = move |_: &crate::CpuHandle| {
            if inside.load(Ordering::SeqCst) {
                violations.fetch_add(1, Ordering::SeqCst);
            }
        };
        *port.on_access.lock().expect("no hook panics") = Some(Box::new(check));
    }
    let alone = move |inside: &AtomicBool| {
        assert!(!inside.swap(true, Ordering::SeqCst), "two sections at once");
        for _ in 0..20 {
            std::thread::yield_now();
        }
        inside.store(false, Ordering::SeqCst);
    };
    rig.set.resume_all();
    for _ in 0..100 {
        for cpu in &rig.cpus {
            let inside = Arc::clone(&inside);
            cpu.post_exclusive(move |_| alone(&inside)).expect("the CPU is there");
        }
        let section = rig.set.start_exclusive();
        let nested = rig.set.start_exclusive();
        alone(&inside);
        drop(nested);
        drop(section);
    }
    for (index, cpu) in rig.cpus.iter().enumerate() {
        cpu.run_on(|_| ()).expect("the CPU is there");
        rig.wait_outs(index, 1);
    }
    assert_eq!(violations.load(Ordering::SeqCst), 0, "guests moved in an exclusive section");
}

/// A guest that sleeps, and reports each interrupt 0x21.
pub(super) fn load_interrupt_guest(rig: &Rig) {
    // sti; hlt; jmp to the hlt. Vector 0x21: out; iret.
    rig.load(CODE, &[0xfb, 0xf4, 0xeb, 0xfd]);
    rig.load(0x1100, &[0xe6, OUT_PORT, 0xcf]);
    rig.load(0x21 * 4, &[0x00, 0x11, 0x00, 0x00]);
}

/// So many interrupts at CPU `index`, each when the one before has been reported.
pub(super) fn interrupt_rounds(rig: &Rig, index: usize, rounds: u32) {
    for round in 0..rounds {
        // Sometimes it sleeps already, sometimes it is on its way.
        if round % 3 == 0 {
            std::thread::yield_now();
        }
        let before = rig.ports[index].outs();
        rig.interrupt(index, 0x21);
        while rig.ports[index].outs() == before {
            std::thread::yield_now();
        }
    }
}

/// Each interrupt of a guest that sleeps in between arrives: none sleeps on with one pending.
pub(super) fn interrupt_storm(rig: Rig) {
    load_interrupt_guest(&rig);
    rig.start_at(0, CODE, 0);
    rig.set.resume_all();
    interrupt_rounds(&rig, 0, 3000);
}
