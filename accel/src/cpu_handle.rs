//! A CPU as everybody but its own thread sees it.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use devices::cpu_interrupts::{InterruptKind, InterruptTarget};

use crate::contract::{Kick, MachineCheck, VcpuError};
use crate::cpu_state::CpuState;
use crate::exclusive::ExecSlot;
use crate::kick::Requests;
use crate::mailbox::Mailbox;
use crate::sync::thread_local;
use crate::work::{Answer, CpuContext, RunOnError, Work, answer};

/// Bits of [`CpuHandle::interrupt_request`].
pub mod request {
    /// A maskable interrupt.
    pub const HARD: u32 = 1 << 0;
    /// NMI.
    pub const NMI: u32 = 1 << 1;
    /// INIT.
    pub const INIT: u32 = 1 << 2;
    /// Start-up IPI.
    pub const SIPI: u32 = 1 << 3;
}

/// Why an error could not be injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The CPU cannot be reached.
    #[error(transparent)]
    RunOn(#[from] RunOnError),
    /// Its engine refuses.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

struct Shared {
    index: usize,
    requests: Requests,
    kicker: OnceLock<Arc<dyn Kick>>,
    mailbox: Arc<Mailbox>,
    slot: usize,
    exec: ExecSlot,
}

/// A cloneable handle to one CPU.
#[derive(Clone)]
pub struct CpuHandle(Arc<Shared>);

thread_local! {
    static CURRENT: RefCell<Option<CpuHandle>> = no_cpu();
}

/// Not in place: loom's `thread_local` takes no const block, clippy wants one.
fn no_cpu() -> RefCell<Option<CpuHandle>> {
    RefCell::new(None)
}

impl CpuHandle {
    /// A handle to the CPU `index`, not yet bound to a thread.
    pub fn new(index: usize) -> Self {
        Self::in_mailbox(index, Arc::new(Mailbox::new(1)), 0)
    }

    /// A handle to the CPU `index`, whose requests go to `slot` of its thread's mailbox.
    pub(crate) fn in_mailbox(index: usize, mailbox: Arc<Mailbox>, slot: usize) -> Self {
        Self(Arc::new(Shared {
            index,
            requests: Requests::new(),
            kicker: OnceLock::new(),
            mailbox,
            slot,
            exec: ExecSlot::new(),
        }))
    }

    /// Says how to get the CPU out of the guest. Once, before its thread starts.
    pub fn set_kicker(&self, kicker: Arc<dyn Kick>) {
        self.0.mailbox.add_kicker(Arc::clone(&kicker));
        assert!(self.0.kicker.set(kicker).is_ok(), "a CPU has one kicker");
    }

    /// 0 for the bootstrap CPU.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Whether one thread hosts both CPUs.
    pub(crate) fn same_thread(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.mailbox, &other.0.mailbox)
    }

    /// Whether both are handles to one CPU.
    pub fn same_cpu(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The CPU that the calling thread executes; `None` on other threads.
    pub fn current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
    }

    pub(crate) fn set_current(cpu: Option<Self>) {
        CURRENT.with(|current| *current.borrow_mut() = cpu);
    }

    /// Where the CPU is. It may be elsewhere by the time the caller looks, unless the caller has paused it.
    pub fn state(&self) -> CpuState {
        self.0.mailbox.state(self.0.slot)
    }

    /// Where the CPU is and what is wanted of it, on a line: for whoever finds that it hangs. Asks nothing of the CPU.
    pub fn diagnosis(&self) -> String {
        let mailbox = self.0.mailbox.diagnosis(self.0.slot);
        let exit = if self.exit_requested() { ", exit requested" } else { "" };
        let (exec, requests) = (self.0.exec.diagnosis(), self.interrupt_request());
        format!("CPU {}: {mailbox}, {exec}{exit}, interrupt requests {requests:#x}", self.0.index)
    }

    /// Pending requests, bits of [`request`].
    pub fn interrupt_request(&self) -> u32 {
        self.0.requests.interrupts()
    }

    /// Clears bits of [`request`]; the CPU's own thread, before it looks at what they announce.
    pub fn clear_interrupt(&self, bits: u32) {
        self.0.requests.clear_interrupt(bits);
    }

    /// Whether the CPU, or another one of its thread, is wanted outside the guest: `run` returns `Kicked`. Cleared by the
    /// lifecycle only.
    pub fn exit_requested(&self) -> bool {
        self.0.mailbox.exit.is_set()
    }

    /// Clears the request of [`Self::exit_requested`] and says whether there was one. For the loop that calls
    /// `run`, before it looks at what it was called out for: the lifecycle's, or a test's that stands in for it.
    pub fn take_exit_request(&self) -> bool {
        self.0.mailbox.exit.take()
    }

    /// Gets the CPU out of the guest to look at its mailbox (QEMU's `cpu_exit`). What it shall find has been stored.
    /// Any thread; sticky.
    pub fn request_exit(&self) {
        self.0.mailbox.exit.publish();
        self.0.mailbox.ring_if_asleep();
        self.0.mailbox.kick();
    }

    /// Stops the CPU before it executes much further; it stays so until the next
    /// [`resume_all`](crate::CpuSet::resume_all). Does not wait: for its own thread (a device that was asked to switch
    /// the machine off), which cannot.
    pub fn hold(&self) {
        self.0.mailbox.post(self.0.slot, |slot| slot.stop = true);
        self.request_exit();
    }

    /// As [`Self::hold`], for all CPUs of its thread at once: none executes further than this one.
    pub fn hold_thread(&self) {
        self.0.mailbox.post_all(|slot| slot.stop = true);
        self.request_exit();
    }

    /// Runs `work` on the CPU's thread and waits for its result, whatever state the CPU is in. For threads that are
    /// no CPU's; a work item uses [`CpuContext::run_on`].
    pub fn run_on<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut CpuContext<'_>) -> R + Send + 'static,
    ) -> Result<R, RunOnError> {
        if Self::current().is_some() {
            return Err(RunOnError::OnCpuThread);
        }
        self.queue_with_answer(work, None)?.wait()
    }

    /// Has `work` run on the CPU's thread, after all that was posted before it, and does not wait: when this returns
    /// the work is queued, no more.
    pub fn post(&self, work: impl FnOnce(&mut CpuContext<'_>) + Send + 'static) -> Result<(), RunOnError> {
        self.queue(Work { exclusive: false, run: Box::new(work) })
    }

    /// Like [`Self::post`]; no CPU executes guest code while `work` runs.
    pub fn post_exclusive(
        &self,
        work: impl FnOnce(&mut CpuContext<'_>) + Send + 'static,
    ) -> Result<(), RunOnError> {
        self.queue(Work { exclusive: true, run: Box::new(work) })
    }

    /// The CPU gets an NMI (QEMU's `nmi`), after the work that was queued before.
    pub fn inject_nmi(&self) -> Result<(), RunOnError> {
        self.post(|cpu| cpu.cpu().raise(InterruptKind::Nmi))
    }

    /// A machine check happens to the CPU (QEMU's `mce`): the answer is its engine's. For threads that are no CPU's.
    pub fn inject_machine_check(&self, check: MachineCheck) -> Result<(), InjectError> {
        Ok(self.run_on(move |cpu| cpu.backend.machine_check(&check))??)
    }

    fn queue(&self, work: Work) -> Result<(), RunOnError> {
        self.0.mailbox.post_work(self.0.slot, work).map_err(|_| RunOnError::Gone)?;
        self.request_exit();
        Ok(())
    }

    pub(crate) fn queue_with_answer<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut CpuContext<'_>) -> R + Send + 'static,
        waiter: Option<Arc<Mailbox>>,
    ) -> Result<Answer<R>, RunOnError> {
        let (answerer, answer) = answer(waiter);
        self.queue(Work { exclusive: false, run: Box::new(move |cpu| answerer.done(work(cpu))) })?;
        Ok(answer)
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.0.mailbox
    }

    pub(crate) fn slot(&self) -> usize {
        self.0.slot
    }

    pub(crate) fn exec_slot(&self) -> &ExecSlot {
        &self.0.exec
    }

    /// The request has been published. Costs a running CPU's raiser a fence, a load and the engine's kick.
    fn wake_and_kick(&self) {
        self.0.mailbox.ring_if_asleep();
        if let Some(kicker) = self.0.kicker.get() {
            kicker.kick();
        }
    }
}

impl InterruptTarget for CpuHandle {
    fn raise(&self, kind: InterruptKind) {
        let bit = match kind {
            InterruptKind::Hard => request::HARD,
            InterruptKind::Nmi => request::NMI,
            InterruptKind::Init => request::INIT,
            InterruptKind::Sipi => request::SIPI,
        };
        self.0.requests.publish_interrupt(bit);
        self.wake_and_kick();
    }

    fn lower_hard(&self) {
        self.clear_interrupt(request::HARD);
    }
}

impl std::fmt::Debug for CpuHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuHandle({})", self.0.index)
    }
}
