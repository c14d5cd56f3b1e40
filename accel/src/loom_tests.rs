//! The lifecycle's protocols under loom: every interleaving, and every outcome of the memory orders, within bounds.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p accel --release --lib loom_`. A lost wake-up shows as a deadlock.

use std::sync::Arc;

use devices::cpu_interrupts::{InterruptKind, InterruptTarget};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use crate::contract::Kick;
use crate::cpu_handle::{CpuHandle, request};
use crate::cpu_state::CpuState;
use crate::exclusive::Exclusive;
use crate::mailbox::Slot;
use crate::work::{Work, answer};

fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Bugs of such protocols need few switches at the wrong place; three keep each model within seconds.
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// The word that an engine polls while in the guest: sticky until cleared. A lock orders what the engine's own atomics
/// would; the wait stands for the polling, which loom cannot bound.
struct Word {
    kicked: Mutex<bool>,
    polled: Condvar,
}

impl Kick for Word {
    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.polled.notify_one();
    }
}

fn cpu(index: usize) -> (CpuHandle, Arc<Word>) {
    let handle = CpuHandle::new(index);
    let word = Arc::new(Word { kicked: Mutex::new(false), polled: Condvar::new() });
    handle.set_kicker(Arc::clone(&word) as Arc<dyn Kick>);
    (handle, word)
}

/// A CPU in HLT: asleep until an interrupt is pending. As in `process_events`.
fn sleep_until_interrupt(cpu: &CpuHandle) {
    let mailbox = cpu.mailbox();
    loop {
        cpu.take_exit_request();
        mailbox.prepare_sleep();
        if cpu.interrupt_request() != 0 {
            mailbox.cancel_sleep();
            return;
        }
        mailbox.sleep(None);
    }
}

#[test]
fn loom_an_interrupt_wakes_a_halted_cpu() {
    model(|| {
        let (cpu, _) = cpu(0);
        cpu.mailbox().post(0, |slot| slot.stop = false);
        cpu.mailbox().become_state(0, CpuState::Stopped);
        cpu.mailbox().become_state(0, CpuState::Running);
        let raiser = cpu.clone();
        let thread = thread::spawn(move || raiser.raise(InterruptKind::Hard));
        sleep_until_interrupt(&cpu);
        thread.join().unwrap();
        assert_eq!(cpu.interrupt_request(), request::HARD);
    });
}

#[test]
fn loom_two_interrupts_wake_twice() {
    model(|| {
        let (cpu, _) = cpu(0);
        cpu.mailbox().post(0, |slot| slot.stop = false);
        cpu.mailbox().become_state(0, CpuState::Stopped);
        cpu.mailbox().become_state(0, CpuState::Running);
        let threads = [InterruptKind::Hard, InterruptKind::Nmi].map(|kind| {
            let raiser = cpu.clone();
            thread::spawn(move || raiser.raise(kind))
        });
        let mut seen = 0;
        while seen != request::HARD | request::NMI {
            sleep_until_interrupt(&cpu);
            let bits = cpu.interrupt_request();
            cpu.clear_interrupt(bits);
            seen |= bits;
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// As in `process_events`: a throttled CPU sleeps its debt, unless there is mail. Loom's clock stands still, so that it is
/// mail that ends the sleep here, or nothing.
#[test]
fn loom_mail_ends_a_throttled_sleep() {
    model(|| {
        let (cpu, _) = cpu(0);
        let mailbox = cpu.mailbox();
        mailbox.post(0, |slot| slot.stop = false);
        mailbox.become_state(0, CpuState::Stopped);
        mailbox.become_state(0, CpuState::Running);
        let hour = std::time::Duration::from_secs(3600);
        mailbox.owe(hour, hour);
        let other = cpu.clone();
        let thread = thread::spawn(move || other.hold());
        loop {
            cpu.take_exit_request();
            if mailbox.peek(0, |slot| slot.stop) {
                break;
            }
            assert!(mailbox.pay(), "it owes");
        }
        thread.join().unwrap();
    });
}

/// Guest execution: clears the word, then looks; out on an exit request.
fn in_guest(cpu: &CpuHandle, word: &Word) {
    loop {
        {
            let mut kicked = word.kicked.lock().unwrap();
            while !*kicked {
                kicked = word.polled.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        if cpu.exit_requested() {
            return;
        }
    }
}

#[test]
fn loom_a_request_to_a_running_cpu_is_not_lost() {
    model(|| {
        let (cpu, word) = cpu(0);
        let mail = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let (asker, payload) = (cpu.clone(), Arc::clone(&mail));
        let thread = thread::spawn(move || {
            for payload in payload.iter() {
                payload.store(1, Ordering::Relaxed);
                asker.request_exit();
            }
        });
        let mut seen = [0; 2];
        while seen != [1, 1] {
            // Clear, then look; a wrong order would miss the mail and wait in the guest for ever.
            cpu.take_exit_request();
            seen = [mail[0].load(Ordering::Relaxed), mail[1].load(Ordering::Relaxed)];
            if seen != [1, 1] {
                in_guest(&cpu, &word);
            }
        }
        thread.join().unwrap();
    });
}

/// What a CPU thread does with stop requests, until it has stopped `stops` times.
fn follow_stops(cpu: &CpuHandle, stops: usize) {
    let mailbox = cpu.mailbox();
    let mut stopped = 0;
    loop {
        cpu.take_exit_request();
        let (state, stop) = mailbox.peek(0, |slot| (slot.state(), slot.stop));
        match (state, stop) {
            (CpuState::Stopped, false) => mailbox.become_state(0, CpuState::Running),
            (CpuState::Running, true) => {
                mailbox.become_state(0, CpuState::Stopped);
                stopped += 1;
            }
            _ if stopped == stops => return,
            // Halted: nothing but mail wakes it.
            _ => {
                mailbox.prepare_sleep();
                mailbox.sleep(None);
            }
        }
    }
}

#[test]
fn loom_a_halted_cpu_stops_and_goes_on() {
    model(|| {
        let (cpu, _) = cpu(0);
        cpu.mailbox().become_state(0, CpuState::Stopped);
        let other = cpu.clone();
        let thread = thread::spawn(move || {
            other.mailbox().post(0, |slot| slot.stop = false);
            other.mailbox().wait_ack(0, |slot| slot.state() == CpuState::Running);
            other.hold();
            other.mailbox().wait_ack(0, |slot| slot.is_parked());
        });
        follow_stops(&cpu, 1);
        thread.join().unwrap();
        assert_eq!(cpu.state(), CpuState::Stopped);
    });
}

/// Work, then the request to leave: a CPU that is stopped does the one before the other. As in `Hosted::deliver`.
#[test]
fn loom_work_queued_before_the_exit_is_done() {
    model(|| {
        let (cpu, _) = cpu(0);
        cpu.mailbox().become_state(0, CpuState::Stopped);
        let other = cpu.clone();
        let thread = thread::spawn(move || {
            let work = Work { exclusive: false, run: Box::new(|_| ()) };
            assert!(other.mailbox().post_work(0, work).is_ok());
            other.mailbox().post(0, |slot| slot.unplug = true);
        });
        let mailbox = cpu.mailbox();
        let mut taken = 0;
        loop {
            while mailbox.take_work(0).is_some() {
                taken += 1;
            }
            if mailbox.peek(0, Slot::is_to_leave) {
                break;
            }
            mailbox.sleep(None);
        }
        thread.join().unwrap();
        assert_eq!(taken, 1);
    });
}

#[test]
fn loom_an_answer_reaches_a_cpu_that_waits_or_works() {
    model(|| {
        let (cpu, _) = cpu(0);
        let mailbox = Arc::clone(cpu.mailbox());
        let (answerer, answer) = answer(Some(Arc::clone(&mailbox)));
        let thread = thread::spawn(move || answerer.done(5));
        let ringer = cpu.clone();
        // Somebody else wakes the waiter meanwhile.
        let noise = thread::spawn(move || ringer.raise(InterruptKind::Hard));
        let result = loop {
            if let Some(result) = answer.poll() {
                break result;
            }
            mailbox.sleep_for_work();
        };
        assert_eq!(result, Ok(5));
        thread.join().unwrap();
        noise.join().unwrap();
    });
}

/// Who is where: guests may be together, a section is alone.
struct Crossing {
    guests: AtomicUsize,
    alone: AtomicUsize,
    /// Not atomic in effect: written in sections only, read in the guest; orders come from the protocol.
    published: AtomicUsize,
}

impl Crossing {
    fn new() -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Self { guests: zero(), alone: zero(), published: zero() })
    }

    fn guest(&self) {
        self.guests.fetch_add(1, Ordering::SeqCst);
        assert_eq!(self.alone.load(Ordering::SeqCst), 0, "a guest in a section");
        self.guests.fetch_sub(1, Ordering::SeqCst);
    }

    fn section(&self) {
        assert_eq!(self.alone.fetch_add(1, Ordering::SeqCst), 0, "two sections");
        assert_eq!(self.guests.load(Ordering::SeqCst), 0, "a guest in a section");
        let before = self.published.load(Ordering::Relaxed);
        self.published.store(before + 1, Ordering::Relaxed);
        self.alone.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn loom_a_section_excludes_a_guest() {
    model(|| {
        let exclusive = Exclusive::new();
        let crossing = Crossing::new();
        let (cpu, _) = cpu(0);
        exclusive.add(cpu.clone());
        let (e, c) = (Arc::clone(&exclusive), Arc::clone(&crossing));
        let thread = thread::spawn(move || {
            for _ in 0..2 {
                let _in_guest = e.exec_start(&cpu);
                c.guest();
            }
        });
        {
            let _section = exclusive.start();
            crossing.section();
        }
        thread.join().unwrap();
        assert_eq!(crossing.published.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_a_guest_that_only_leaves_when_asked_is_asked() {
    model(|| {
        let exclusive = Exclusive::new();
        let crossing = Crossing::new();
        let (cpu, word) = cpu(0);
        exclusive.add(cpu.clone());
        let (e, c) = (Arc::clone(&exclusive), Arc::clone(&crossing));
        let thread = thread::spawn(move || {
            cpu.take_exit_request();
            {
                let _in_guest = e.exec_start(&cpu);
                if c.published.load(Ordering::Relaxed) == 0 {
                    // The section has not been: it will ask.
                    in_guest(&cpu, &word);
                }
            }
            cpu.take_exit_request();
            let _in_guest = e.exec_start(&cpu);
            assert_eq!(c.published.load(Ordering::Relaxed), 1, "what the section wrote is visible after it");
        });
        {
            let _section = exclusive.start();
            crossing.section();
        }
        thread.join().unwrap();
    });
}

#[test]
fn loom_two_sections_and_two_guests() {
    model(|| {
        let exclusive = Exclusive::new();
        let crossing = Crossing::new();
        let handles = [cpu(0).0, cpu(1).0];
        for cpu in &handles {
            exclusive.add(cpu.clone());
        }
        let [first, second] = handles;
        let (e, c) = (Arc::clone(&exclusive), Arc::clone(&crossing));
        let thread = thread::spawn(move || {
            {
                let _in_guest = e.exec_start(&first);
                c.guest();
            }
            let _section = e.start();
            c.section();
        });
        {
            let _section = exclusive.start();
            crossing.section();
        }
        {
            let _in_guest = exclusive.exec_start(&second);
            crossing.guest();
        }
        thread.join().unwrap();
        assert_eq!(crossing.published.load(Ordering::Relaxed), 2);
    });
}
