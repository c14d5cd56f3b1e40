//! Storms on several CPUs at once, with guests, while others pause, resume and kick them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::control::spin;
use super::guest::without_time;
use super::rig::{CODE, OUT_PORT, Rig, wait_for};
use super::storms::{count, interrupt_rounds, load_interrupt_guest};
use crate::arch_state::CpuArchState;

/// Runs when it goes out of scope, on a panic, too.
pub(super) struct AtEnd<F: FnMut()>(pub(super) F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Does `work` while two threads pause, resume and kick all CPUs.
fn disturbed(rig: &Rig, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for between_us in [300, 700] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    rig.pause();
                    std::thread::yield_now();
                    rig.set.resume_all();
                    rig.cpus.iter().for_each(crate::CpuHandle::request_exit);
                    std::thread::sleep(Duration::from_micros(between_us));
                }
            });
        }
        let _end = AtEnd(|| done.store(true, Ordering::Relaxed));
        work();
    });
}

/// Two callers pause and resume CPUs that count: while paused nothing of them changes, and none is left behind.
pub(super) fn paused_guests_do_not_change(rig: Rig) {
    count(&rig);
    rig.set.resume_all();
    let all =
        || -> Vec<CpuArchState> { (0..rig.cpus.len()).map(|index| without_time(rig.state(index))).collect() };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..100 {
                    rig.pause();
                    let before = (round % 10 == 0).then(&all);
                    let outs: Vec<_> = rig.ports.iter().map(|port| port.outs()).collect();
                    std::thread::sleep(Duration::from_micros(100));
                    assert!(rig.ports.iter().map(|port| port.outs()).eq(outs), "a paused guest counts");
                    if let Some(before) = before {
                        assert!(all() == before, "a paused CPU has changed");
                    }
                    rig.set.resume_all();
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
    });
    for index in 0..rig.cpus.len() {
        rig.wait_outs(index, 3);
    }
}

/// One interrupt goes round the CPUs, each passing it on from its handler: it never gets lost.
pub(super) fn an_interrupt_goes_round(rig: Rig) {
    load_interrupt_guest(&rig);
    let cpus = rig.cpus.len();
    for index in 0..cpus {
        rig.start_at(index, CODE, 0);
        let next = Arc::clone(&rig.ports[(index + 1) % cpus]);
        *rig.ports[index].on_access.lock().expect("no hook panics") =
            Some(Box::new(move |_| next.interrupt(0x21)));
    }
    rig.set.resume_all();
    disturbed(&rig, || {
        rig.interrupt(0, 0x21);
        let passed = || rig.ports.iter().map(|port| port.outs()).sum::<u64>();
        wait_for("an interrupt to go round", || passed() >= 1200);
    });
    rig.pause();
    for port in &rig.ports {
        assert!(port.outs() >= 100, "it went past a CPU");
        *port.on_access.lock().expect("no hook panics") = None;
    }
}

/// A timer's worth of interrupts at each CPU at once, each of which must arrive.
pub(super) fn interrupts_reach_all_cpus(rig: Rig) {
    load_interrupt_guest(&rig);
    (0..rig.cpus.len()).for_each(|index| rig.start_at(index, CODE, 0));
    rig.set.resume_all();
    disturbed(&rig, || {
        std::thread::scope(|scope| {
            for index in 0..rig.cpus.len() {
                let rig = &rig;
                scope.spawn(move || interrupt_rounds(rig, index, 300));
            }
        });
    });
}

/// As a TLB shootdown: a CPU has work done on all others, and each of them does it once.
pub(super) fn work_reaches_all_cpus(rig: Rig) {
    spin(&rig);
    rig.set.resume_all();
    disturbed(&rig, || {
        for round in 0..150 {
            let done = Arc::new(AtomicUsize::new(0));
            let initiator = &rig.cpus[round % rig.cpus.len()];
            let (others, answers) = (rig.cpus.clone(), Arc::clone(&done));
            let posted = initiator.post(move |cpu| {
                for other in others.iter().filter(|other| !other.same_cpu(cpu.cpu())) {
                    let done = Arc::clone(&answers);
                    let work = move |_: &mut crate::CpuContext<'_>| {
                        done.fetch_add(1, Ordering::SeqCst);
                    };
                    let posted = if round % 5 == 0 { other.post_exclusive(work) } else { other.post(work) };
                    posted.expect("the CPU is there");
                }
            });
            posted.expect("the CPU is there");
            wait_for("all CPUs to answer", || done.load(Ordering::SeqCst) == rig.cpus.len() - 1);
        }
    });
}

/// A CPU rewrites the code that others execute, and they execute what it wrote last.
pub(super) fn rewritten_code_is_executed(rig: Rig) {
    const VALUE: u16 = CODE + 1;
    const WRITER: u16 = 0x2000;
    // mov al, VALUE; out OUT_PORT, al; jmp back.
    rig.load(CODE, &[0xb0, 0, 0xe6, OUT_PORT, 0xeb, 0xfa]);
    // inc byte [VALUE]; out OUT_PORT, al; jmp back.
    let [low, high] = VALUE.to_le_bytes();
    rig.load(WRITER, &[0xfe, 0x06, low, high, 0xe6, OUT_PORT, 0xeb, 0xf8]);
    // hlt; jmp back.
    rig.load(0x2100, &[0xf4, 0xeb, 0xfd]);
    rig.start_at(0, 0x2100, 0);
    (1..rig.cpus.len()).for_each(|index| rig.start_at(index, CODE, 0));
    rig.set.resume_all();
    disturbed(&rig, || {
        for round in 0..12 {
            rig.start_at(0, WRITER, 0);
            rig.wait_outs(0, 20);
            rig.start_at(0, 0x2100, 0);
            let written = rig.read(VALUE);
            for index in 1..rig.cpus.len() {
                // The second one from now has begun after the last write.
                rig.wait_outs(index, 2);
                assert_eq!(rig.ports[index].output(), written, "round {round}, CPU {index}");
            }
        }
    });
}
