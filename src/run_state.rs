//! What the machine is doing, and what has been asked of it: by devices, by CPUs, by the user. The main loop acts on it.

mod phase;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use accel::{CpuEvent, CpuHandle, CpuObserver};
use devices::system::{SystemControl, SystemRequest};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use phase::Phase;

const LOCK: &str = "nothing panics under the lock of the run state";

/// Something for the main loop to act on.
#[derive(Debug)]
pub enum Occurrence {
    /// A device's request.
    System(SystemRequest),
    /// The kernel has panicked on this CPU.
    Panicked(usize),
    /// A CPU cannot go on.
    Cpu(usize, CpuEvent),
    /// The user wants the program to end.
    Quit,
}

/// The machine's phase. Files requests from any thread and wakes the main loop.
pub struct RunState {
    phase: Mutex<Phase>,
    pending: Mutex<VecDeque<Occurrence>>,
    wakeup: EventFd,
}

impl RunState {
    /// A machine before its start, of which nothing has been asked.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let wakeup = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self { phase: Mutex::new(Phase::Prelaunch), pending: Mutex::default(), wakeup }))
    }

    /// What the machine is doing.
    pub fn phase(&self) -> Phase {
        *self.phase.lock().expect(LOCK)
    }

    /// The machine now does this. For the main loop.
    ///
    /// Panics if the machine cannot come there from where it is.
    pub fn enter(&self, next: Phase) {
        let before = std::mem::replace(&mut *self.phase.lock().expect(LOCK), next);
        assert!(before.can_become(next), "a machine does not go from {before:?} to {next:?}");
        tracing::debug!(target: "cpu", from = before.name(), to = next.name(), "run state");
    }

    fn file(&self, occurrence: Occurrence) {
        self.pending.lock().expect(LOCK).push_back(occurrence);
        // A full counter wakes as well.
        let _ = self.wakeup.write(1);
    }

    /// The user wants the program to end.
    pub fn quit(&self) {
        self.file(Occurrence::Quit);
    }

    /// The oldest thing that has not been taken.
    pub fn take(&self) -> Option<Occurrence> {
        let _ = self.wakeup.read();
        self.pending.lock().expect(LOCK).pop_front()
    }

    /// What was asked of a machine that has been reset since does not count any more; what the user asked does.
    pub fn forget_guest(&self) {
        self.pending.lock().expect(LOCK).retain(|occurrence| matches!(occurrence, Occurrence::Quit));
    }

    /// Readable when there is something to take.
    pub fn wakeup_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }
}

impl SystemControl for RunState {
    fn request(&self, request: SystemRequest) {
        let current = CpuHandle::current();
        // A crash kernel goes on; a watchdog's time ends on no CPU, or on any.
        if matches!(request, SystemRequest::CrashLoaded | SystemRequest::Watchdog) {
            return self.file(Occurrence::System(request));
        }
        // The CPU that asked must not get far: what follows a power-off in a guest is a loop or worse. Nor the others of its
        // thread, so that what was executed before the end is the same in every run.
        if let Some(cpu) = &current {
            cpu.hold_thread();
        }
        self.file(match request {
            SystemRequest::Panicked => Occurrence::Panicked(current.map_or(0, |cpu| cpu.index())),
            _ => Occurrence::System(request),
        });
    }
}

impl CpuObserver for RunState {
    fn cpu_event(&self, index: usize, event: CpuEvent) {
        self.file(Occurrence::Cpu(index, event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_starts_runs_and_ends() {
        let state = RunState::new().unwrap();
        assert_eq!(state.phase(), Phase::Prelaunch);
        for next in [Phase::Running, Phase::Paused, Phase::Running, Phase::Shutdown, Phase::Prelaunch] {
            state.enter(next);
            assert_eq!(state.phase(), next);
        }
    }

    #[test]
    #[should_panic(expected = "from Shutdown to Running")]
    fn a_machine_that_is_off_does_not_go_on() {
        let state = RunState::new().unwrap();
        [Phase::Running, Phase::Shutdown, Phase::Running].into_iter().for_each(|next| state.enter(next));
    }

    #[test]
    fn the_first_request_comes_first() {
        let state = RunState::new().unwrap();
        assert!(state.take().is_none());
        state.request(SystemRequest::Exit(3));
        state.request(SystemRequest::Reset);
        assert!(matches!(state.take(), Some(Occurrence::System(SystemRequest::Exit(3)))));
        state.quit();
        state.forget_guest();
        assert!(matches!(state.take(), Some(Occurrence::Quit)));
        assert!(state.take().is_none());
    }
}
