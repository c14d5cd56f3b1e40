//! The CPU thread: one loop for every accelerator (DESIGN.md, *The lifecycle*).
//!
//! ```text
//!   forever
//!     process_events   clear exit_request, then look: stop, work, exit; sleep while no CPU here can run
//!     exec             exec_start, run, exec_end; then act on why it came out
//! ```
//!
//! A thread hosts one CPU, or all of them (round robin); the loop knows only "the CPUs of this thread", sleeps when
//! none of them can run and goes round those that can. A turn ends when its CPU halts or yields, when the engine says so
//! (icount), or by the [kick timer](crate::turns); a CPU that was called out for another's sake goes on with its turn.
//! Between two calls of `run` all of the thread's mail is read, whoever it is for. What others want of a CPU is *levels* (shall it be stopped?
//! shall it leave?) and a queue, both in its [mailbox](crate::mailbox), read after `exit_request` is cleared.
//!
//! A CPU is at an instruction boundary whenever others can get at it: before the first thing done for anybody else
//! after `run`, [`VcpuBackend::complete_exit`] finishes the access that the guest had begun.
//!
//! "Halted" is the engine's knowledge, not ours. `run` says `Halted`; we sleep until `has_work`, or until work was
//! done on the CPU, which may have changed anything: then `run` is asked again, and says `Halted` again if it still is.

use std::sync::Arc;

use devices::lock_rank;

use crate::contract::{CpuIo, CpuTime, VcpuBackend, VcpuError, VcpuExit, Wait};
use crate::cpu_handle::CpuHandle;
use crate::cpu_state::CpuState;
use crate::exclusive::Exclusive;
use crate::mailbox::Mailbox;
use crate::observer::{CpuEvent, CpuObserver};
use crate::turns::KickTimer;
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

/// Binds a CPU on the thread that is to host it. `None`: that failed, and was told.
pub(crate) type Arrival = Box<dyn FnOnce() -> Option<Hosted> + Send>;

/// The CPUs of one thread.
pub(crate) struct CpuThread {
    mailbox: Arc<Mailbox>,
    hosted: Vec<Hosted>,
    /// Whose turn is next.
    next: usize,
    /// Guest time, where this thread drives it. Its engine ends the turns then.
    time: Option<Arc<dyn CpuTime>>,
    /// Ends turns; there with the second CPU.
    kick_timer: Option<KickTimer>,
}

impl CpuThread {
    /// The thread of `mailbox`, which hosts whoever arrives there.
    pub(crate) fn new(mailbox: Arc<Mailbox>, time: Option<Arc<dyn CpuTime>>) -> Self {
        Self { mailbox, hosted: Vec::new(), next: 0, time, kick_timer: None }
    }

    /// Runs the thread's CPUs until all of them have exited.
    pub(crate) fn run(mut self) {
        loop {
            self.process_events();
            if self.hosted.is_empty() {
                return;
            }
            self.turn();
        }
    }

    /// The turn of the next CPU that can run.
    fn turn(&mut self) {
        if self.time.is_some() && self.mailbox.has_changes() {
            // All of them stop, or go on, before one executes: whose turn it is does not depend on when that was asked for.
            return;
        }
        let count = self.hosted.len();
        let mut order = (self.next..count).chain(0..self.next.min(count));
        let Some(index) = order.find(|&index| self.hosted[index].wake()) else { return };
        if let Some(most) = self.time.as_ref().and_then(|time| time.ahead()) {
            self.mailbox.sleep(Some(most));
            self.next = index;
            return;
        }
        if let Some(timer) = &self.kick_timer {
            timer.busy();
        }
        let done = self.hosted[index].exec();
        let over = self.mailbox.take_turn_over();
        // A CPU that was called out for something else has not had its turn.
        self.next = if done || over { index + 1 } else { index };
    }

    /// Hosts those who have arrived.
    fn admit(&mut self) {
        while let Some(arrival) = self.mailbox.take_arrival() {
            self.hosted.extend(arrival());
        }
        if self.hosted.len() > 1 && self.kick_timer.is_none() && self.time.is_none() {
            // Without it turns end by themselves only: slow, and worth a word.
            match KickTimer::start(&self.mailbox) {
                Ok(timer) => self.kick_timer = Some(timer),
                Err(error) => tracing::warn!(target: "cpu", %error, "no thread for the CPUs' kick timer"),
            }
        }
    }

    /// Does what others want of this thread's CPUs; returns when one of them can run, or none is left.
    fn process_events(&mut self) {
        loop {
            // Clear, then look.
            self.mailbox.exit.take();
            self.admit();
            self.hosted.retain_mut(|cpu| cpu.deliver());
            if self.hosted.is_empty() {
                return;
            }
            if self.hosted.iter_mut().any(Hosted::wake) {
                // Throttled: mail may have come meanwhile.
                if self.mailbox.pay() {
                    continue;
                }
                return;
            }
            let most = match self.idle() {
                Wait::Not => continue,
                Wait::For(most) => Some(most),
                Wait::ForMail => None,
            };
            self.mailbox.prepare_sleep();
            // Look again, now that an interrupt rings.
            if self.hosted.iter_mut().any(Hosted::wake) {
                self.mailbox.cancel_sleep();
            } else {
                self.mailbox.sleep(most);
            }
            if let Some(time) = &self.time {
                time.waited();
            }
        }
    }

    /// No CPU can run.
    fn idle(&self) -> Wait {
        if let Some(timer) = &self.kick_timer {
            timer.idle();
        }
        match &self.time {
            Some(time) if self.hosted.iter().any(|cpu| cpu.cpu.state() == CpuState::Halted) => time.idle(),
            _ => Wait::ForMail,
        }
    }
}

impl Drop for CpuThread {
    fn drop(&mut self) {
        self.mailbox.end();
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
            // Read at once: what was queued before the exit was asked for is seen with it.
            let (state, stop, leave) =
                mailbox.peek(slot, |slot| (slot.state(), slot.stop, slot.is_to_leave()));
            match state {
                CpuState::Stopped if leave => {
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

    /// Executes. Whether the CPU's turn is over by itself.
    fn exec(&mut self) -> bool {
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
        let over = !matches!(result, Ok(VcpuExit::Kicked));
        match result {
            Ok(VcpuExit::Kicked | VcpuExit::Yielded) => {}
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
        over
    }

    fn fail(&mut self, error: VcpuError) {
        let description = self.backend.describe();
        self.report(CpuEvent::Error { error, description });
    }

    fn report(&self, event: CpuEvent) {
        // Held before it is told, so that a resume in answer to the event lets the CPU go. The others of its thread, too: how far
        // they get must not depend on when the event is acted on.
        self.cpu.hold_thread();
        self.shared.observer.cpu_event(self.cpu.index(), event);
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.shared.exclusive.remove(&self.cpu);
        drop(self.cpu.mailbox().close(self.cpu.slot()));
    }
}
