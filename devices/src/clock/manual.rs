//! A clock that moves only when told to: for tests and for the accelerator without CPUs.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::queue::{TimerQueue, Wakeup};
use super::{Clock, Timer, TimerCallback};

struct NoWakeup;
impl Wakeup for NoWakeup {
    fn earliest(&self, _deadline_ns: u64) {}
}

/// Guest time under the caller's hand.
pub struct ManualClock {
    now_ns: AtomicU64,
    paused: AtomicBool,
    queue: Arc<TimerQueue>,
    advancing: Mutex<()>,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self {
            now_ns: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            queue: TimerQueue::new(Box::new(NoWakeup)),
            advancing: Mutex::new(()),
        }
    }
}

impl ManualClock {
    /// A clock at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Moves time forward by `ns`, stopping at each deadline on the way to run its timer, so that a callback sees
    /// exactly its deadline as the present. Does nothing while paused. Not to be called from a callback.
    pub fn advance(&self, ns: u64) {
        let _advancing = self.advancing.lock().expect("timer callbacks do not panic");
        if self.paused.load(Ordering::SeqCst) {
            return;
        }
        let end_ns = self.now_ns().saturating_add(ns);
        while let Some(deadline_ns) = self.queue.earliest().filter(|&deadline_ns| deadline_ns <= end_ns) {
            self.now_ns.fetch_max(deadline_ns, Ordering::SeqCst);
            self.queue.fire_until(self.now_ns());
        }
        self.now_ns.store(end_ns, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::SeqCst)
    }

    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer> {
        self.queue.new_timer(label, callback)
    }

    fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.queue.earliest()
    }

    fn run_expired(&self) {
        if !self.paused.load(Ordering::SeqCst) {
            self.queue.fire_until(self.now_ns());
        }
    }

    fn wakeup_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_at_their_deadline() {
        let clock = ManualClock::new();
        let log: Arc<Mutex<Vec<(u32, u64)>>> = Arc::default();
        let timer = |id: u32| {
            let (log, clock) = (Arc::clone(&log), Arc::downgrade(&clock));
            let callback = move || log.lock().unwrap().push((id, clock.upgrade().unwrap().now_ns()));
            (id, callback)
        };
        let make = |(_, callback): (u32, _)| clock.new_timer("test", Arc::new(callback));
        let (a, b, c) = (make(timer(1)), make(timer(2)), make(timer(3)));
        a.arm(200);
        b.arm(100);
        c.arm(150);
        c.cancel();
        assert_eq!(clock.next_deadline_ns(), Some(100));
        clock.advance(99);
        assert_eq!(*log.lock().unwrap(), []);
        clock.advance(1000);
        assert_eq!(*log.lock().unwrap(), [(2, 100), (1, 200)]);
        assert_eq!(clock.now_ns(), 1099);
        a.arm(1200);
        drop(a);
        clock.pause();
        clock.advance(1000);
        clock.resume();
        clock.advance(1000);
        assert_eq!(log.lock().unwrap().len(), 2);
    }
}
