//! Guest time from the host's CLOCK_MONOTONIC, less the pauses.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::queue::{TimerQueue, Wakeup};
use super::{Clock, Timer, TimerCallback};

/// [`GuestTime::state`]: guest time stands still at the value of the other bits.
const PAUSED: u64 = 1 << 63;
/// [`GuestTime::state`]: a pause or resume is between its two steps, a few instructions long.
const CHANGING: u64 = u64::MAX;

/// Guest time as one word: how far it is behind the host's time, or, with [`PAUSED`], where it stands.
struct GuestTime {
    origin: Instant,
    state: AtomicU64,
}

impl GuestTime {
    fn host_ns(&self) -> u64 {
        // 2^63 ns are 292 years of uptime.
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX) & !PAUSED
    }

    fn now_ns(&self) -> u64 {
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state == CHANGING {
                std::hint::spin_loop();
                continue;
            }
            if state & PAUSED != 0 {
                return state & !PAUSED;
            }
            let now_ns = self.host_ns() - state;
            // The same state before and after: a pause that has read the host's time in between would have been
            // seen, so nobody reads a time later than the one at which a pause stops the clock.
            if self.state.load(Ordering::SeqCst) == state {
                return now_ns;
            }
        }
    }

    fn is_paused(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state != CHANGING && state & PAUSED != 0
    }
}

struct TimerFdWakeup {
    time: Arc<GuestTime>,
    fd: Arc<Mutex<Armed>>,
}

struct Armed {
    timer: TimerFd,
    /// When the descriptor becomes readable, in guest time.
    deadline_ns: Option<u64>,
}

impl Armed {
    fn set(&mut self, deadline_ns: Option<u64>, now_ns: u64) {
        let result = match deadline_ns {
            // A zero duration would disarm.
            Some(deadline_ns) => {
                self.timer.reset(Duration::from_nanos(deadline_ns.saturating_sub(now_ns).max(1)), None)
            }
            None => self.timer.clear(),
        };
        // The kernel refuses only values out of range and bad descriptors.
        result.expect("a timerfd takes any duration");
        self.deadline_ns = deadline_ns;
    }
}

impl Wakeup for TimerFdWakeup {
    fn earliest(&self, deadline_ns: u64) {
        if self.time.is_paused() {
            return;
        }
        let mut armed = self.fd.lock().expect("no holder of the timerfd's lock panics");
        if armed.deadline_ns.is_none_or(|at| deadline_ns < at) {
            armed.set(Some(deadline_ns), self.time.now_ns());
        }
    }
}

/// The host's monotonic clock, less the time spent paused.
///
/// The main loop polls [`Clock::wakeup_fd`] and calls [`Clock::run_expired`]. The timerfd behind it is armed again
/// only when a deadline earlier than the one it is armed for comes up, so most armings are no system call.
pub struct HostClock {
    time: Arc<GuestTime>,
    fd: Arc<Mutex<Armed>>,
    queue: Arc<TimerQueue>,
    /// Serialises pause and resume.
    changing: Mutex<()>,
}

impl HostClock {
    /// A clock that starts at zero, running. Fails where the host has no timerfd left to give.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let time = Arc::new(GuestTime { origin: Instant::now(), state: AtomicU64::new(0) });
        let timer = TimerFd::new().map_err(std::io::Error::from)?;
        let fd = Arc::new(Mutex::new(Armed { timer, deadline_ns: None }));
        let queue = TimerQueue::new(Box::new(TimerFdWakeup { time: Arc::clone(&time), fd: Arc::clone(&fd) }));
        Ok(Arc::new(Self { time, fd, queue, changing: Mutex::new(()) }))
    }

    /// Arms the descriptor for the earliest deadline, or disarms it.
    fn rearm(&self) {
        self.queue.with_earliest(|earliest| {
            let earliest = earliest.filter(|_| !self.time.is_paused());
            let mut armed = self.fd.lock().expect("no holder of the timerfd's lock panics");
            armed.set(earliest, self.time.now_ns());
        });
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        self.time.now_ns()
    }

    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer> {
        self.queue.new_timer(label, callback)
    }

    fn pause(&self) {
        let _changing = self.changing.lock().expect("no holder of the clock's lock panics");
        if self.time.is_paused() {
            return;
        }
        let behind_ns = self.time.state.swap(CHANGING, Ordering::SeqCst);
        let now_ns = self.time.host_ns() - behind_ns;
        self.time.state.store(PAUSED | now_ns, Ordering::SeqCst);
        self.rearm();
    }

    fn resume(&self) {
        let _changing = self.changing.lock().expect("no holder of the clock's lock panics");
        if !self.time.is_paused() {
            return;
        }
        let now_ns = self.time.state.swap(CHANGING, Ordering::SeqCst) & !PAUSED;
        let behind_ns = self.time.host_ns() - now_ns;
        self.time.state.store(behind_ns, Ordering::SeqCst);
        self.rearm();
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.queue.earliest()
    }

    fn run_expired(&self) {
        if !self.time.is_paused() {
            self.queue.fire_until(self.time.now_ns());
        }
        self.rearm();
    }

    fn wakeup_fd(&self) -> Option<RawFd> {
        Some(self.fd.lock().expect("no holder of the timerfd's lock panics").timer.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn readable(fd: RawFd, timeout_ms: i32) -> bool {
        use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
        let mut events = [EpollEvent::default()];
        epoll.wait(timeout_ms, &mut events).unwrap() == 1
    }

    #[test]
    fn time_stands_still_while_paused() {
        let clock = HostClock::new().unwrap();
        clock.pause();
        let stopped = clock.now_ns();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.now_ns(), stopped);
        clock.pause();
        clock.resume();
        clock.resume();
        let resumed = clock.now_ns();
        assert!(resumed >= stopped && resumed - stopped < 5_000_000, "{stopped} {resumed}");
    }

    #[test]
    fn the_descriptor_follows_the_earliest_deadline() {
        let clock = HostClock::new().unwrap();
        let fd = clock.wakeup_fd().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let fired = Arc::clone(&count);
        let timer = clock.new_timer("test", Arc::new(move || _ = fired.fetch_add(1, Ordering::SeqCst)));
        assert!(!readable(fd, 0));
        timer.arm(clock.now_ns() + 3_600_000_000_000);
        assert!(!readable(fd, 1));
        timer.arm(clock.now_ns() + 1_000_000);
        assert!(readable(fd, 10_000));
        clock.run_expired();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(!readable(fd, 2));
        assert_eq!(clock.next_deadline_ns(), None);

        timer.arm(0);
        clock.pause();
        assert!(!readable(fd, 2));
        clock.run_expired();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        clock.resume();
        assert!(readable(fd, 10_000));
        clock.run_expired();
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn armed_from_another_thread_and_from_callbacks() {
        let clock = HostClock::new().unwrap();
        let fd = clock.wakeup_fd().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let slot: Arc<Mutex<Option<Box<dyn Timer>>>> = Arc::default();
        let (fired, own) = (Arc::clone(&count), Arc::downgrade(&slot));
        let timer = clock.new_timer(
            "again",
            Arc::new(move || {
                if fired.fetch_add(1, Ordering::SeqCst) < 9
                    && let Some(slot) = own.upgrade()
                    && let Some(timer) = &*slot.lock().unwrap()
                {
                    timer.arm(0);
                }
            }),
        );
        *slot.lock().unwrap() = Some(timer);
        let arming = Arc::clone(&slot);
        std::thread::spawn(move || arming.lock().unwrap().as_ref().unwrap().arm(1)).join().unwrap();
        while count.load(Ordering::SeqCst) < 10 {
            assert!(readable(fd, 10_000));
            clock.run_expired();
        }
        assert!(!readable(fd, 1));
        slot.lock().unwrap().take();
    }
}
