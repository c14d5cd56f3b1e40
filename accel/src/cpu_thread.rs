//! The CPU thread: one loop for every accelerator (DESIGN.md, *The lifecycle*).
//!
//! ```text
//!   forever
//!     process_events   clear exit_request, then look: stop, work, exit; sleep while no CPU here can run
//!     exec             exec_start, run, exec_end; then act on why it came out
//! ```
//!
//! A thread hosts one CPU, or all of them (round robin); the loop knows only "the CPUs of this thread", sleeps when
//! none of them can run and goes round those that can. What others want of a CPU is *levels* (shall it be stopped?
//! shall it leave?) and a queue, both in its [mailbox](crate::mailbox), read after `exit_request` is cleared.
//!
//! A CPU is at an instruction boundary whenever others can get at it: before the first thing done for anybody else
//! after `run`, [`VcpuBackend::complete_exit`] finishes the access that the guest had begun.
//!
//! "Halted" is the engine's knowledge, not ours. `run` says `Halted`; we sleep until `has_work`, or until work was
//! done on the CPU, which may have changed anything: then `run` is asked again, and says `Halted` again if it still is.

use std::sync::Arc;

use devices::lock_rank;

use crate::contract::{CpuIo, VcpuBackend, VcpuError, VcpuExit};
use crate::cpu_handle::CpuHandle;
use crate::cpu_state::CpuState;
use crate::exclusive::Exclusive;
use crate::mailbox::Mailbox;
use crate::observer::{CpuEvent, CpuObserver};
use crate::work::CpuContext;

/// What all CPUs of a machine share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) exclusive: Arc<Exclusive>,
    pub(crate) observer: Arc<dyn CpuObserver>,
}

/// A CPU on its thread. Dropping it tells all who wait for it that it is gone, also when its thread panics.
pub(crate) struct Hosted {
    cpu: CpuHandle,
    io: Arc<dyn CpuIo>,
    backend: Box<dyn VcpuBackend>,
    shared: Shared,
    /// `run` said so, and nobody has touched the CPU since.
    halted: bool,
    /// `run` has been called since the last `complete_exit`.
    in_flight: bool,
}

/// The CPUs of one thread.
pub(crate) struct CpuThread {
    mailbox: Arc<Mailbox>,
    hosted: Vec<Hosted>,
}

impl CpuThread {
    /// The thread that hosts `first`; the CPUs of one thread share its mailbox.
    pub(crate) fn new(first: Hosted) -> Self {
        Self { mailbox: Arc::clone(first.cpu.mailbox()), hosted: vec![first] }
    }

    /// Runs the thread's CPUs until all of them have exited.
    pub(crate) fn run(mut self) {
        loop {
            self.process_events();
            if self.hosted.is_empty() {
                return;
            }
            for cpu in &mut self.hosted {
                if cpu.wake() {
                    cpu.exec();
                }
            }
        }
    }

    /// Does what others want of this thread's CPUs; returns when one of them can run, or none is left.
    fn process_events(&mut self) {
        loop {
            // Clear, then look.
            for cpu in &self.hosted {
                cpu.cpu.take_exit_request();
            }
            self.hosted.retain_mut(|cpu| cpu.deliver());
            if self.hosted.is_empty() || self.hosted.iter_mut().any(Hosted::wake) {
                return;
            }
            self.mailbox.prepare_sleep();
            // Look again, now that an interrupt rings.
            if self.hosted.iter_mut().any(Hosted::wake) {
                self.mailbox.cancel_sleep();
                return;
            }
            self.mailbox.sleep();
        }
    }
}

impl Hosted {
    /// `backend` has just been bound to this thread.
    pub(crate) fn new(
        cpu: CpuHandle,
        io: Arc<dyn CpuIo>,
        backend: Box<dyn VcpuBackend>,
        shared: Shared,
    ) -> Self {
        shared.exclusive.add(cpu.clone());
        let hosted = Self { cpu, io, backend, shared, halted: false, in_flight: false };
        hosted.become_state(CpuState::Stopped);
        hosted
    }

    fn become_state(&self, next: CpuState) {
        self.cpu.mailbox().become_state(self.cpu.slot(), next);
    }

    /// Whether the CPU can run now; wakes it from its halt if so, lets it go to sleep if not.
    fn wake(&mut self) -> bool {
        match self.cpu.state() {
            CpuState::Running if !self.halted => true,
            state @ (CpuState::Running | CpuState::Halted) => {
                let wake = !self.halted || self.backend.has_work(&*self.io);
                self.halted = !wake;
                match (state, wake) {
                    (CpuState::Halted, true) => self.become_state(CpuState::Running),
                    (CpuState::Running, false) => self.become_state(CpuState::Halted),
                    _ => {}
                }
                wake
            }
            _ => false,
        }
    }

    /// Does the queued work and follows the stop and exit requests. False once the CPU has exited.
    fn deliver(&mut self) -> bool {
        CpuHandle::set_current(Some(self.cpu.clone()));
        let (mailbox, slot) = (Arc::clone(self.cpu.mailbox()), self.cpu.slot());
        loop {
            while let Some(work) = mailbox.take_work(slot) {
                self.settle();
                self.halted = false;
                let exclusive = &*self.shared.exclusive;
                let (backend, io) = (&mut *self.backend, &*self.io);
                CpuContext { backend, io, cpu: &self.cpu, exclusive }.perform(work);
            }
            let (state, stop, unplug) = mailbox.peek(slot, |slot| (slot.state(), slot.stop, slot.unplug));
            match state {
                CpuState::Stopped if unplug => {
                    self.become_state(CpuState::Exited);
                    return false;
                }
                CpuState::Stopped if !stop => self.become_state(CpuState::Running),
                CpuState::Running if stop => {
                    self.settle();
                    self.become_state(CpuState::Stopped);
                }
                CpuState::Halted if stop => self.become_state(CpuState::Running),
                _ => return true,
            }
        }
    }

    /// Brings the CPU to an instruction boundary.
    fn settle(&mut self) {
        if std::mem::take(&mut self.in_flight)
            && let Err(error) = self.backend.complete_exit(&*self.io)
        {
            self.fail(error);
        }
    }

    fn exec(&mut self) {
        CpuHandle::set_current(Some(self.cpu.clone()));
        let exclusive = Arc::clone(&self.shared.exclusive);
        self.in_flight = true;
        lock_rank::assert_none_held();
        let mut result = {
            let _in_guest = exclusive.exec_start(&self.cpu);
            self.backend.run(&*self.io)
        };
        if let Ok(VcpuExit::NeedsExclusive) = result {
            let _section = exclusive.start();
            result = self.backend.step(&*self.io);
        }
        match result {
            Ok(VcpuExit::Kicked) => {}
            Ok(VcpuExit::Halted) => self.halted = true,
            Ok(VcpuExit::Debug { pc }) => self.report(CpuEvent::Debug { pc }),
            Ok(VcpuExit::Shutdown(reason)) => {
                let state = self.backend.state().ok().map(Box::new);
                let description = self.backend.describe();
                self.report(CpuEvent::Shutdown { reason, state, description });
            }
            Ok(VcpuExit::NeedsExclusive) => {
                self.fail(VcpuError::Unsupported(
                    "an instruction that does not complete in an exclusive step",
                ));
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: VcpuError) {
        let description = self.backend.describe();
        self.report(CpuEvent::Error { error, description });
    }

    fn report(&self, event: CpuEvent) {
        // Held before it is told, so that a resume in answer to the event lets the CPU go.
        self.cpu.hold();
        self.shared.observer.cpu_event(self.cpu.index(), event);
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.shared.exclusive.remove(&self.cpu);
        drop(self.cpu.mailbox().close(self.cpu.slot()));
    }
}
