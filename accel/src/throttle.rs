//! The CPU throttle: a share of the host's time that CPUs do not execute (QEMU's `cpu_throttle`), so that a guest that is
//! too fast for something (a migration of its memory, a host that is too warm) is slowed down and not stopped.
//!
//! A CPU thread *owes* sleep. A ticker adds to the debt of each thread; the thread pays before it executes on, wherever
//! it looks for mail, and what it sleeps because its CPUs are idle counts. The debt is a level in the mailbox, as all that
//! others want of a CPU is:
//!
//! - A tick that comes while a thread still pays adds to what it owes; none is dropped, and none is queued twice. What the
//!   ticker missed on a busy host it adds with its next tick: it goes by the time that has passed.
//! - A thread owes, not a CPU: one that hosts them all (round robin) sleeps once.
//! - Mail ends the sleep at once: who stops, resets or asks a CPU does not wait for it. What is left stays owed.
//! - Interrupts do not end it: a guest's timer would undo the throttle.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cpu_handle::CpuHandle;

/// How long a thread executes between two sleeps, about: a guest's tick or two, as in QEMU.
const RUN: Duration = Duration::from_millis(10);

/// A thread owes the sleep of so many ticks at most: one that could not pay for long is not to stand still for long.
const MOST_TICKS: u32 = 2;

/// The most that can be asked for, in percent: a CPU that never executes is a stopped one.
pub const MAX_PERCENT: u8 = 99;

const LOCK: &str = "no foreign code runs under the lock of the throttle";

/// Why CPUs could not be throttled.
#[derive(Debug, thiserror::Error)]
pub enum ThrottleError {
    /// Not a share that leaves something.
    #[error("CPUs can be throttled by 0 to {MAX_PERCENT} percent, not by {0}")]
    Percent(u8),
    /// The host gave no thread.
    #[error("no thread for the CPU throttle")]
    Thread(#[source] std::io::Error),
}

/// The CPUs that are to be slowed, and whether they are to run at all now.
type Cpus = Box<dyn Fn() -> (Vec<CpuHandle>, bool) + Send>;

#[derive(Default)]
struct State {
    percent: u8,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The throttle of a CPU set; off at first. Its ticker is there while it is on.
#[derive(Default)]
pub(crate) struct Throttle {
    shared: Arc<Shared>,
    ticker: Mutex<Option<JoinHandle<()>>>,
}

impl Throttle {
    /// Percent of the time that CPUs do not execute.
    pub(crate) fn percent(&self) -> u8 {
        self.shared.state.lock().expect(LOCK).percent
    }

    /// Changes it; takes effect within a tick. `cpus` is asked at each.
    pub(crate) fn set(&self, percent: u8, cpus: Cpus) -> Result<(), ThrottleError> {
        if percent > MAX_PERCENT {
            return Err(ThrottleError::Percent(percent));
        }
        let mut ticker = self.ticker.lock().expect(LOCK);
        if percent > 0 && ticker.is_none() {
            self.shared.state.lock().expect(LOCK).ended = false;
            let shared = Arc::clone(&self.shared);
            let thread =
                std::thread::Builder::new().name("CPU throttle".into()).spawn(move || shared.tick(&cpus));
            *ticker = Some(thread.map_err(ThrottleError::Thread)?);
        }
        self.shared.change(|state| state.percent = percent);
        if percent == 0 {
            self.stop(&mut ticker);
        }
        Ok(())
    }

    /// Ends the ticker.
    pub(crate) fn end(&self) {
        self.stop(&mut self.ticker.lock().expect(LOCK));
    }

    fn stop(&self, ticker: &mut Option<JoinHandle<()>>) {
        self.shared.change(|state| state.ended = true);
        if let Some(thread) = ticker.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

/// The sleep that belongs to so much time of execution.
fn sleep_for(run: Duration, percent: u8) -> Duration {
    run * u32::from(percent) / u32::from(100 - percent)
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect(LOCK));
        self.changed.notify_all();
    }

    fn tick(&self, cpus: &Cpus) {
        let (mut last, mut asked) = (Instant::now(), Duration::ZERO);
        let mut state = self.state.lock().expect(LOCK);
        while !state.ended {
            let percent = state.percent;
            let left = (RUN + asked).saturating_sub(last.elapsed());
            if !left.is_zero() {
                state = self.changed.wait_timeout(state, left).expect(LOCK).0;
                if state.percent != percent {
                    // What was asked for under the old share is forgiven, not paid under the new one.
                    (last, asked) = (Instant::now(), Duration::ZERO);
                    drop(state);
                    forgive(&cpus().0);
                    state = self.state.lock().expect(LOCK);
                }
                continue;
            }
            drop(state);
            let (those, run_now) = cpus();
            let run = last.elapsed().saturating_sub(asked);
            // Nothing is owed for a time in which the CPUs were paused.
            let sleep = if run_now { sleep_for(run, percent) } else { Duration::ZERO };
            (last, asked) = (Instant::now(), sleep);
            owe(&those, sleep, sleep_for(RUN, percent) * MOST_TICKS);
            state = self.state.lock().expect(LOCK);
        }
        drop(state);
        forgive(&cpus().0);
    }
}

/// Each thread of `cpus` owes `sleep` more, `most` at most.
fn owe(cpus: &[CpuHandle], sleep: Duration, most: Duration) {
    for (index, cpu) in cpus.iter().enumerate() {
        if !cpus[..index].iter().any(|other| Arc::ptr_eq(other.mailbox(), cpu.mailbox())) {
            cpu.mailbox().owe(sleep, most);
            cpu.request_exit();
        }
    }
}

fn forgive(cpus: &[CpuHandle]) {
    cpus.iter().for_each(|cpu| cpu.mailbox().forgive());
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::cpu_state::CpuState;
    use crate::mailbox::Mailbox;

    fn running_mailbox() -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::new(1));
        mailbox.post(0, |slot| slot.stop = false);
        mailbox.become_state(0, CpuState::Stopped);
        mailbox.become_state(0, CpuState::Running);
        mailbox
    }

    #[test]
    fn the_sleep_is_the_share_of_the_whole() {
        assert_eq!(sleep_for(RUN, 0), Duration::ZERO);
        assert_eq!(sleep_for(RUN, 50), RUN);
        assert_eq!(sleep_for(RUN, 99), RUN * 99);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let throttle = Throttle::default();
        let error = throttle.set(100, Box::new(|| (Vec::new(), true))).unwrap_err();
        assert_eq!(error.to_string(), "CPUs can be throttled by 0 to 99 percent, not by 100");
        assert_eq!(throttle.percent(), 0);
    }

    /// A tick that finds the last one unpaid is not lost, and many do not pile up.
    #[test]
    fn debts_add_up_to_a_limit() {
        let mailbox = running_mailbox();
        let ms = Duration::from_millis;
        assert!(!mailbox.pay(), "nothing is owed at first");
        for _ in 0..3 {
            mailbox.owe(ms(15), ms(40));
        }
        let start = Instant::now();
        while mailbox.pay() {}
        assert!((ms(40)..ms(5000)).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    /// Mail ends the sleep, and the rest of it stays owed.
    #[test]
    fn mail_ends_the_sleep() {
        let mailbox = running_mailbox();
        let hour = Duration::from_secs(3600);
        mailbox.owe(hour, hour);
        let start = Instant::now();
        let poster = Arc::clone(&mailbox);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            poster.post(0, |slot| slot.stop = true);
        });
        assert!(mailbox.pay());
        assert!(start.elapsed() < hour / 60);
        thread.join().unwrap();
        mailbox.become_state(0, CpuState::Stopped);
        mailbox.post(0, |slot| slot.stop = false);
        assert!(mailbox.pay(), "it still owes");
        mailbox.forgive();
        assert!(!mailbox.pay());
    }

    #[test]
    fn the_ticker_is_there_while_it_is_needed() {
        let throttle = Throttle::default();
        for percent in [0, 50, 99, 0, 20] {
            throttle.set(percent, Box::new(|| (Vec::new(), true))).unwrap();
            assert_eq!(throttle.percent(), percent);
            assert_eq!(throttle.ticker.lock().unwrap().is_some(), percent > 0);
        }
        throttle.end();
        assert!(throttle.ticker.lock().unwrap().is_none());
    }
}
