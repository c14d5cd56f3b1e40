//! A card for the tests of networks.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{FrameInfo, FrameSink, NetBackend, Offloads};

/// A starved host makes tests slow, never wrong.
const LIMIT: Duration = Duration::from_secs(60);

/// A receive queue.
#[derive(Default)]
pub(in crate::net) struct Inbox {
    pub(in crate::net) frames: Vec<(FrameInfo, Vec<u8>)>,
    /// Frames that still fit.
    pub(in crate::net) room: usize,
    pub(in crate::net) offloads: Offloads,
}

impl FrameSink for Inbox {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn push(&mut self, info: &FrameInfo, pieces: &[&[u8]]) -> bool {
        if self.room > 0 {
            self.room -= 1;
            self.frames.push((*info, pieces.concat()));
            return true;
        }
        false
    }
}

/// A card that does what the worker does: waits for the network's edges.
pub(in crate::net) struct Card<N> {
    pub(in crate::net) network: N,
    pub(in crate::net) inbox: Inbox,
    epoll: Epoll,
}

impl<N: NetBackend> Card<N> {
    pub(in crate::net) fn new(network: N) -> Self {
        let epoll = watch(network.wakeup_fd());
        Self { network, inbox: Inbox { room: usize::MAX, ..Inbox::default() }, epoll }
    }

    /// What the card does when it is woken.
    pub(in crate::net) fn pump(&mut self) {
        while self.network.receive(&mut self.inbox) {}
    }

    /// Pumps when woken until `done`.
    #[track_caller]
    pub(in crate::net) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        self.pump();
        while !done(self) {
            assert!(begun.elapsed() < LIMIT, "waited for: {what}");
            if self.epoll.wait(50, &mut [EpollEvent::default()]).unwrap_or(0) > 0 {
                self.pump();
            }
        }
    }

    /// The next frame.
    #[track_caller]
    pub(in crate::net) fn next(&mut self) -> Vec<u8> {
        self.until("a frame", |card| !card.inbox.frames.is_empty());
        self.inbox.frames.remove(0).1
    }

    pub(in crate::net) fn send(&mut self, frame: &[u8]) {
        self.network.send(&FrameInfo::default(), frame);
    }
}

fn watch(fd: RawFd) -> Epoll {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
    epoll.ctl(ControlOperation::Add, fd, event).unwrap();
    epoll
}
