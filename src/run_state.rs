//! What has been asked of the machine: by devices, by CPUs, by the user. The main loop acts on it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use accel::{CpuEvent, CpuHandle, CpuObserver};
use devices::system::{SystemControl, SystemRequest};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const LOCK: &str = "nothing panics under the lock of the run state";

/// Something for the main loop to act on.
#[derive(Debug)]
pub enum Occurrence {
    /// A device's request.
    System(SystemRequest),
    /// A CPU cannot go on.
    Cpu(usize, CpuEvent),
    /// The user wants the program to end.
    Quit,
}

/// Files requests from any thread and wakes the main loop.
pub struct RunState {
    pending: Mutex<VecDeque<Occurrence>>,
    wakeup: EventFd,
}

impl RunState {
    /// Nothing has happened.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let wakeup = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self { pending: Mutex::default(), wakeup }))
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
        // The CPU that asked must not get far: what follows a power-off in a guest is a loop or worse.
        if let Some(cpu) = CpuHandle::current() {
            cpu.hold();
        }
        self.file(Occurrence::System(request));
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
