//! Work that one thread asks a CPU's thread to do (DESIGN.md, *The lifecycle*: queued work).

use std::sync::Arc;

use crate::contract::{CpuIo, VcpuBackend};
use crate::cpu_handle::CpuHandle;
use crate::exclusive::Exclusive;
use crate::mailbox::Mailbox;
use crate::sync::{Condvar, Mutex};

/// A CPU as a work item, on the CPU's own thread, has it. The CPU is at an instruction boundary.
pub struct CpuContext<'a> {
    /// The engine's CPU.
    pub backend: &'a mut dyn VcpuBackend,
    /// Its way out.
    pub io: &'a dyn CpuIo,
    pub(crate) cpu: &'a CpuHandle,
    pub(crate) exclusive: &'a Exclusive,
}

/// Why work could not be done on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunOnError {
    /// The CPU has not been created, or has exited.
    #[error("the CPU is not there")]
    Gone,
    /// A CPU's thread may wait for another CPU only through [`CpuContext::run_on`]: it must be able to do the work
    /// that others have for it meanwhile, and inside `run` it is not.
    #[error("a CPU's thread cannot wait for another CPU here")]
    OnCpuThread,
    /// CPUs of one thread (round robin) take turns: one that waits for another waits for ever. It posts the work.
    #[error("a CPU cannot wait for another CPU of its own thread")]
    SameThread,
    /// The target may be waiting for this exclusive section to end.
    #[error("a CPU cannot be waited for in an exclusive section")]
    InExclusive,
}

pub(crate) struct Work {
    /// To be run while no CPU executes guest code.
    pub(crate) exclusive: bool,
    pub(crate) run: Box<dyn FnOnce(&mut CpuContext<'_>) + Send>,
}

impl CpuContext<'_> {
    /// This CPU.
    pub fn cpu(&self) -> &CpuHandle {
        self.cpu
    }

    /// Runs `work` on `target`'s thread and waits for its result. Meanwhile this CPU does the work that others have
    /// for it, so two CPUs may do this at each other. Not for CPUs of one thread.
    pub fn run_on<R: Send + 'static>(
        &mut self,
        target: &CpuHandle,
        work: impl FnOnce(&mut CpuContext<'_>) -> R + Send + 'static,
    ) -> Result<R, RunOnError> {
        if target.same_cpu(self.cpu) {
            return Ok(work(self));
        }
        if self.exclusive.is_mine() {
            return Err(RunOnError::InExclusive);
        }
        if target.same_thread(self.cpu) {
            return Err(RunOnError::SameThread);
        }
        let mailbox = Arc::clone(self.cpu.mailbox());
        let answer = target.queue_with_answer(work, Some(Arc::clone(&mailbox)))?;
        loop {
            if let Some(result) = answer.poll() {
                return result;
            }
            match mailbox.take_work(self.cpu.slot()) {
                Some(work) => self.perform(work),
                // The answer rings this mailbox after it is stored, so a ring is either seen here or has been
                // followed by a poll above.
                None => mailbox.sleep_for_work(),
            }
        }
    }

    pub(crate) fn perform(&mut self, work: Work) {
        let _section = work.exclusive.then(|| self.exclusive.start());
        (work.run)(self);
    }
}

enum Outcome<R> {
    Pending,
    Done(R),
    Dropped,
}

struct Shared<R> {
    outcome: Mutex<Outcome<R>>,
    done: Condvar,
    /// The CPU thread that waits, if it is one.
    waiter: Option<Arc<Mailbox>>,
}

const LOCK: &str = "no foreign code runs under the lock of an answer";

/// The asker's end.
pub(crate) struct Answer<R>(Arc<Shared<R>>);

/// The worker's end. Dropped without an answer (the CPU went away), it says so.
pub(crate) struct Answerer<R> {
    shared: Arc<Shared<R>>,
    answered: bool,
}

pub(crate) fn answer<R>(waiter: Option<Arc<Mailbox>>) -> (Answerer<R>, Answer<R>) {
    let shared = Arc::new(Shared { outcome: Mutex::new(Outcome::Pending), done: Condvar::new(), waiter });
    (Answerer { shared: Arc::clone(&shared), answered: false }, Answer(shared))
}

impl<R> Answer<R> {
    pub(crate) fn poll(&self) -> Option<Result<R, RunOnError>> {
        match std::mem::replace(&mut *self.0.outcome.lock().expect(LOCK), Outcome::Pending) {
            Outcome::Pending => None,
            Outcome::Done(result) => Some(Ok(result)),
            Outcome::Dropped => Some(Err(RunOnError::Gone)),
        }
    }

    pub(crate) fn wait(self) -> Result<R, RunOnError> {
        let mut outcome = self.0.outcome.lock().expect(LOCK);
        loop {
            match std::mem::replace(&mut *outcome, Outcome::Pending) {
                Outcome::Pending => outcome = self.0.done.wait(outcome).expect(LOCK),
                Outcome::Done(result) => return Ok(result),
                Outcome::Dropped => return Err(RunOnError::Gone),
            }
        }
    }
}

impl<R> Answerer<R> {
    pub(crate) fn done(mut self, result: R) {
        self.answered = true;
        self.set(Outcome::Done(result));
    }

    fn set(&self, outcome: Outcome<R>) {
        *self.shared.outcome.lock().expect(LOCK) = outcome;
        self.shared.done.notify_all();
        if let Some(waiter) = &self.shared.waiter {
            waiter.ring();
        }
    }
}

impl<R> Drop for Answerer<R> {
    fn drop(&mut self) {
        if !self.answered {
            self.set(Outcome::Dropped);
        }
    }
}
