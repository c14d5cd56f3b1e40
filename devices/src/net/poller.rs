//! What wakes a network: readiness of its sockets, and its earliest deadline; one descriptor for both.
//!
//! Sockets are watched edge-triggered, once, for everything: a change is reported and remembered by the flow it concerns.
//! So the descriptor falls silent while a guest has no room, however much waits on the host.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

/// Time since the poller was made.
pub(in crate::net) type Time = Duration;

/// What a socket reported.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct Readiness {
    pub(in crate::net) readable: bool,
    pub(in crate::net) writable: bool,
    /// The peer has sent its last byte, or the socket is broken: reads go on to the end.
    pub(in crate::net) hung_up: bool,
}

impl Readiness {
    /// What was reported, and what is reported now.
    pub(in crate::net) fn and(self, other: Self) -> Self {
        Self {
            readable: self.readable || other.readable,
            writable: self.writable || other.writable,
            hung_up: self.hung_up || other.hung_up,
        }
    }
}

/// The token that is no socket's.
const TIMER: u64 = u64::MAX;
const EVENTS: usize = 256;

pub(in crate::net) struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer goes off, if it is set.
    alarm: Option<Time>,
    start: Instant,
    /// A buffer for [`Poller::poll`], kept.
    pub(in crate::net) reports: Vec<(u64, Readiness)>,
    #[cfg(test)]
    pub(in crate::net) skipped: Duration,
}

impl Poller {
    pub(in crate::net) fn new() -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        epoll.ctl(ControlOperation::Add, timer.as_raw_fd(), EpollEvent::new(EventSet::IN, TIMER))?;
        Ok(Self {
            epoll,
            timer,
            alarm: None,
            start: Instant::now(),
            reports: Vec::new(),
            #[cfg(test)]
            skipped: Duration::ZERO,
        })
    }

    pub(in crate::net) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(in crate::net) fn now(&self) -> Time {
        #[cfg(test)]
        return self.start.elapsed() + self.skipped;
        #[cfg(not(test))]
        self.start.elapsed()
    }

    /// Watches a socket until it is closed.
    pub(in crate::net) fn watch(&self, socket: &impl AsRawFd, token: u64) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(events, token))
    }

    /// Everything that was reported since the last call, by token.
    pub(in crate::net) fn poll(&mut self, reports: &mut Vec<(u64, Readiness)>) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(target: "net", %error, "a network's sockets cannot be polled");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() == TIMER {
                    // One-shot; reading makes it unreadable.
                    let _ = self.timer.wait();
                    self.alarm = None;
                    continue;
                }
                let set = event.event_set();
                let broken = set.intersects(EventSet::ERROR | EventSet::HANG_UP);
                let hung_up = broken || set.contains(EventSet::READ_HANG_UP);
                let readiness = Readiness {
                    readable: hung_up || set.contains(EventSet::IN),
                    writable: broken || set.contains(EventSet::OUT),
                    hung_up,
                };
                reports.push((event.data(), readiness));
            }
            if count < EVENTS {
                return;
            }
        }
    }

    /// Wakes up at `deadline` at the latest.
    pub(in crate::net) fn wake_at(&mut self, deadline: Option<Time>) {
        let Some(deadline) = deadline else { return };
        // An alarm that is too early wakes for nothing, once; setting it each time costs more.
        if self.alarm.is_some_and(|alarm| alarm <= deadline) {
            return;
        }
        let delay = deadline.saturating_sub(self.now()).max(Duration::from_micros(1));
        match self.timer.reset(delay, None) {
            Ok(()) => self.alarm = Some(deadline),
            Err(error) => tracing::warn!(target: "net", %error, "a network's timer cannot be set"),
        }
    }
}
