//! The thread that works on one queue.
//!
//! It sleeps on the queue's doorbell, so that a CPU that notifies goes on at once. On a machine whose time is what was executed
//! (icount), where every run is to be the same, there is no thread: the doorbell sets a timer, and the work is done when
//! guest time has come there.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::Doorbell;
use crate::clock::{Clock, Timer};

const LOCK: &str = "no holder of a worker's lock panics";

/// How long a device takes to answer where guest time does not pass by itself: about what a fast disk takes.
const LATENCY_NS: u64 = 50_000;

/// What drives the devices' work.
#[derive(Clone)]
pub enum Pace {
    /// Threads, as the host runs them.
    Threads,
    /// Guest time.
    Clock(Arc<dyn Clock>),
}

/// Works on a queue.
pub trait QueueWork: Send {
    /// The driver has notified, or may have. Called with no lock held that a CPU wants.
    fn notified(&mut self);
}

type Work = Box<dyn QueueWork>;

#[derive(Default)]
struct State {
    /// Work that has been given and not been begun.
    next: Option<Work>,
    /// To be forgotten.
    stale: bool,
    paused: bool,
    busy: bool,
    /// A notification came while paused (where there is no thread).
    missed: bool,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while it is at work; never waited for by a CPU.
    work: Mutex<Option<Work>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// Takes over new work; false: there is none at all, or the end has come.
    fn begin(&self, state: &mut State) -> bool {
        let mut work = self.work.lock().expect(LOCK);
        if std::mem::take(&mut state.stale) {
            *work = None;
        }
        if let Some(next) = state.next.take() {
            *work = Some(next);
        }
        state.busy = work.is_some();
        state.busy
    }

    fn work(&self) {
        if let Some(work) = &mut *self.work.lock().expect(LOCK) {
            work.notified();
        }
        self.lock().busy = false;
        self.changed.notify_all();
    }

    /// The thread, until the worker is dropped.
    fn run(&self, doorbell: &Doorbell, also: Option<&Epoll>) {
        let Doorbell::Event(event) = doorbell else { return };
        loop {
            if let Err(error) = wait(event, also)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(target: "virtio", %error, "a doorbell cannot be read");
                return;
            }
            let mut state = self.lock();
            while state.paused && !state.ended {
                state = self.changed.wait(state).expect(LOCK);
            }
            if state.ended {
                return;
            }
            let busy = self.begin(&mut state);
            drop(state);
            if busy {
                self.work();
            }
        }
    }

    /// Guest time has come.
    fn timer_expired(&self) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        if state.paused {
            state.missed = true;
            return;
        }
        let busy = self.begin(&mut state);
        drop(state);
        if busy {
            self.work();
        }
    }
}

/// The doorbell's place in a set of descriptors.
const DOORBELL: u64 = 0;
const OTHER: u64 = 1;

/// Waits until the doorbell has been rung, or another descriptor has something new.
fn wait(event: &EventFd, also: Option<&Epoll>) -> std::io::Result<()> {
    if let Some(epoll) = also {
        let mut events = [EpollEvent::default(); 2];
        let count = epoll.wait(-1, &mut events)?;
        if events[..count].iter().all(|event| event.data() != DOORBELL) {
            return Ok(());
        }
    }
    event.read().map(|_| ())
}

/// The doorbell `event` and `fd`, to be waited for together.
fn watch(event: &EventFd, fd: RawFd) -> std::io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd, set, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, token));
    add(event.as_raw_fd(), EventSet::IN, DOORBELL)?;
    // Edge-triggered: what nobody works on now, because of a reset or a pause, must not keep the thread awake.
    add(fd, EventSet::IN | EventSet::EDGE_TRIGGERED, OTHER)?;
    Ok(epoll)
}

/// One queue's thread, or timer, and doorbell.
pub struct Worker {
    doorbell: Arc<Doorbell>,
    shared: Arc<Shared>,
}

impl Worker {
    /// A worker without work. `label` names its thread.
    pub fn new(label: &'static str, pace: &Pace) -> std::io::Result<Self> {
        Self::make(label, pace, None)
    }

    /// One that also works when `fd` becomes readable, as often as it does so anew. Where there is no thread, it does not.
    pub fn watching(label: &'static str, pace: &Pace, fd: RawFd) -> std::io::Result<Self> {
        Self::make(label, pace, Some(fd))
    }

    fn make(label: &'static str, pace: &Pace, also: Option<RawFd>) -> std::io::Result<Self> {
        let shared =
            Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), work: Mutex::new(None) });
        let doorbell = match pace {
            Pace::Threads => Doorbell::Event(EventFd::new(EFD_CLOEXEC)?),
            Pace::Clock(clock) => {
                let at_work = Arc::clone(&shared);
                let timer = clock.new_timer(label, Arc::new(move || at_work.timer_expired()));
                Doorbell::Call(soon(Arc::clone(clock), timer))
            }
        };
        let doorbell = Arc::new(doorbell);
        if let Doorbell::Event(event) = &*doorbell {
            let also = also.map(|fd| watch(event, fd)).transpose()?;
            // At once, while there is somebody to tell that the host has none left.
            let (shared, doorbell) = (Arc::clone(&shared), Arc::clone(&doorbell));
            let thread = std::thread::Builder::new().name(label.into());
            thread.spawn(move || shared.run(&doorbell, also.as_ref()))?;
        }
        Ok(Self { doorbell, shared })
    }

    /// What wakes it.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// From now on it does `work`, to begin with as if it had been notified.
    pub fn start(&self, work: Work) {
        self.shared.lock().next = Some(work);
        self.doorbell.ring();
    }

    /// Forgets its work, which finds out by its session that it is over. Does not wait.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.next = None;
        state.stale = true;
    }

    /// Returns when it is idle, and it stays so.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        state.paused = true;
        while state.busy {
            state = self.shared.changed.wait(state).expect(LOCK);
        }
    }

    /// Undoes [`Worker::pause`].
    pub fn resume(&self) {
        let mut state = self.shared.lock();
        state.paused = false;
        let missed = std::mem::take(&mut state.missed);
        drop(state);
        self.shared.changed.notify_all();
        if missed {
            self.doorbell.ring();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let next = {
            let mut state = self.shared.lock();
            state.ended = true;
            state.next.take()
        };
        drop(next);
        self.shared.changed.notify_all();
        match &*self.doorbell {
            Doorbell::Event(_) => self.doorbell.ring(),
            // Work that holds the doorbell holds the timer, and with it itself.
            Doorbell::Call(_) => {
                let work = self.shared.work.try_lock().ok().and_then(|mut work| work.take());
                drop(work);
            }
        }
    }
}

/// Sets `timer` a little ahead of now.
fn soon(clock: Arc<dyn Clock>, timer: Box<dyn Timer>) -> Box<dyn Fn() + Send + Sync> {
    Box::new(move || timer.arm(clock.now_ns().saturating_add(LATENCY_NS)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    struct Teller(mpsc::Sender<()>);
    impl QueueWork for Teller {
        fn notified(&mut self) {
            self.0.send(()).unwrap();
        }
    }

    const SOON: Duration = Duration::from_secs(20);
    const NEVER: Duration = Duration::from_millis(20);

    #[test]
    fn a_thread_works_unless_paused() {
        let worker = Worker::new("test", &Pace::Threads).unwrap();
        let (teller, told) = mpsc::channel();
        worker.doorbell().ring();
        worker.start(Box::new(Teller(teller)));
        told.recv_timeout(SOON).unwrap();
        worker.pause();
        while told.try_recv().is_ok() {}
        worker.doorbell().ring();
        assert!(told.recv_timeout(NEVER).is_err());
        worker.resume();
        told.recv_timeout(SOON).unwrap();
        worker.stop();
        worker.doorbell().ring();
        // Its end of the channel goes with the work.
        while told.recv_timeout(SOON) != Err(mpsc::RecvTimeoutError::Disconnected) {}
    }

    /// Work that rings its own doorbell, as that of a device with several queues does.
    struct Ringer(Arc<Doorbell>, mpsc::Sender<()>);
    impl QueueWork for Ringer {
        fn notified(&mut self) {
            self.0.ring();
            self.1.send(()).unwrap();
        }
    }

    #[test]
    fn work_ends_with_its_worker() {
        for advance in [0, LATENCY_NS] {
            let clock = Arc::new(ManualClock::default());
            let worker = Worker::new("test", &Pace::Clock(clock.clone())).unwrap();
            let (teller, told) = mpsc::channel();
            worker.start(Box::new(Ringer(Arc::clone(worker.doorbell()), teller)));
            clock.advance(advance);
            drop(worker);
            clock.advance(LATENCY_NS);
            assert_eq!(told.try_iter().count() as u64, advance / LATENCY_NS);
            assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        }
    }

    #[test]
    fn guest_time_works_where_there_are_no_threads() {
        let clock = Arc::new(ManualClock::default());
        let worker = Worker::new("test", &Pace::Clock(clock.clone())).unwrap();
        let (teller, told) = mpsc::channel();
        worker.start(Box::new(Teller(teller)));
        assert!(told.try_recv().is_err());
        clock.advance(LATENCY_NS);
        told.try_recv().unwrap();
        worker.pause();
        worker.doorbell().ring();
        clock.advance(LATENCY_NS);
        assert!(told.try_recv().is_err());
        worker.resume();
        clock.advance(LATENCY_NS);
        told.try_recv().unwrap();
    }
}
