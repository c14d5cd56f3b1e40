//! The mailbox of a CPU thread: one mutex, one condvar to sleep on, one work queue per CPU (DESIGN.md, *The lifecycle*).
//!
//! A thread that hosts several CPUs (round robin) has one mailbox with a slot for each; otherwise there is one slot. What
//! gets the thread out of the guest is the thread's, too: one exit request, and a kick for whichever CPU it executes.
//!
//! Two kinds of things wake a sleeper. **Mail** (stop, exit, work) is stored under the lock and looked for under the
//! lock before each wait: the textbook condvar. **Interrupts** must be cheap to raise at a running CPU and are looked
//! for by code that may take an interrupt controller's locks, which rank below this one; so they are looked for
//! *without* the lock, between [`Mailbox::prepare_sleep`] and [`Mailbox::sleep`], as with an eventcount:
//!
//! ```text
//!   sleeper                               raiser
//!   asleep = true                         interrupt_request |= bit
//!   fence(SeqCst)                         fence(SeqCst)
//!   interrupt pending? then do not sleep  asleep? then lock, rung = true, notify
//!   lock, wait until rung or mail
//! ```
//!
//! The two fences are totally ordered. If the sleeper's is first, the raiser sees `asleep` and rings; `rung` is set
//! under the lock and stays, so it does not matter whether the sleeper waits already. If the raiser's is first, the
//! sleeper sees the bit. A ring that comes too late costs one spurious wake.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::lock_rank::{self, Held, Rank};

use crate::contract::Kick;
use crate::cpu_state::CpuState;
use crate::cpu_thread::Arrival;
use crate::kick::ExitRequest;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, fence};
use crate::work::Work;

const LOCK: &str = "no foreign code runs under the mailbox lock";

/// What others want of one CPU, and where it is.
pub(crate) struct Slot {
    /// Written by the CPU's own thread only.
    state: CpuState,
    /// The CPU shall be stopped. A level, not an event: resume clears it.
    pub(crate) stop: bool,
    /// The CPU shall leave for good.
    pub(crate) unplug: bool,
    /// Whether the queue takes work: from the creation's end until the exit.
    open: bool,
    /// Its thread has ended, orderly or by a panic.
    gone: bool,
    /// It is in the set, whose pauses and resumptions are its own from then on.
    pub(crate) enlisted: bool,
    work: VecDeque<Work>,
}

impl Slot {
    fn new() -> Self {
        Self {
            state: CpuState::Creating,
            stop: true,
            unplug: false,
            open: false,
            gone: false,
            enlisted: false,
            work: VecDeque::new(),
        }
    }

    pub(crate) fn state(&self) -> CpuState {
        self.state
    }

    /// Whether nobody needs to wait for this CPU to stop.
    pub(crate) fn is_parked(&self) -> bool {
        self.gone || matches!(self.state, CpuState::Stopped | CpuState::Exited)
    }

    /// Whether the CPU shall leave now: work that was queued before comes first.
    pub(crate) fn is_to_leave(&self) -> bool {
        self.unplug && self.work.is_empty()
    }

    /// Whether nothing of this CPU is left on its thread.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// For whoever finds that the CPU hangs.
    fn diagnosis(&self) -> String {
        let mut text = format!("{:?}", self.state);
        for (holds, what) in
            [(self.stop, "to stop"), (self.unplug, "to leave"), (self.gone, "its thread is gone")]
        {
            if holds {
                text += &format!(", {what}");
            }
        }
        format!("{text}, {} work items", self.work.len())
    }

    fn has_mail(&self) -> bool {
        self.is_there() && (!self.work.is_empty() || self.unplug || self.is_to_change())
    }

    fn is_there(&self) -> bool {
        !matches!(self.state, CpuState::Creating | CpuState::Exited)
    }

    fn is_to_change(&self) -> bool {
        self.stop != (self.state == CpuState::Stopped)
    }
}

struct Inner {
    slots: Vec<Slot>,
    /// CPUs that the thread is to host, too.
    arrivals: VecDeque<Arrival>,
    /// The thread hosts no more.
    ended: bool,
    rung: bool,
    /// How many wait on `ack_cond`: waking nobody is a system call all the same, and a CPU halts and wakes often.
    ack_waiters: usize,
    /// What the thread owes the [throttle](crate::throttle).
    debt: Duration,
}

impl Inner {
    fn has_mail(&self) -> bool {
        !self.arrivals.is_empty() || self.slots.iter().any(Slot::has_mail)
    }

    /// Now, if it matters how long the thread sleeps.
    fn now_if_it_owes(&self) -> Option<Instant> {
        (!self.debt.is_zero()).then(Instant::now)
    }

    /// The thread has slept since then.
    fn paid(&mut self, asleep: Option<Instant>) {
        if let Some(asleep) = asleep {
            self.debt = self.debt.saturating_sub(asleep.elapsed());
        }
    }
}

/// The lock, with its rank.
struct Locked<'a> {
    inner: MutexGuard<'a, Inner>,
    held: Held,
}

impl Locked<'_> {
    /// Waits on `cond`. The rank stays with the thread: it takes no other lock meanwhile.
    fn wait(self, cond: &Condvar) -> Self {
        Self { inner: cond.wait(self.inner).expect(LOCK), held: self.held }
    }

    /// As [`Locked::wait`], `most` at most.
    fn wait_for(self, cond: &Condvar, most: Duration) -> Self {
        Self { inner: cond.wait_timeout(self.inner, most).expect(LOCK).0, held: self.held }
    }
}

impl Deref for Locked<'_> {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

/// The mailbox of one CPU thread.
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    halt_cond: Condvar,
    /// For those who wait for an answer: created, stopped, exited.
    ack_cond: Condvar,
    asleep: AtomicBool,
    /// Something is wanted of a CPU of this thread.
    pub(crate) exit: ExitRequest,
    /// The CPU that executes has had its turn.
    turn_over: AtomicBool,
    /// Of each CPU. A leaf: nothing else is locked under it.
    kickers: Mutex<Vec<Arc<dyn Kick>>>,
}

impl Mailbox {
    /// An empty mailbox for `cpus` CPUs.
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                slots: (0..cpus).map(|_| Slot::new()).collect(),
                arrivals: VecDeque::new(),
                ended: false,
                rung: false,
                ack_waiters: 0,
                debt: Duration::ZERO,
            }),
            halt_cond: Condvar::new(),
            ack_cond: Condvar::new(),
            asleep: AtomicBool::new(false),
            exit: ExitRequest::new(),
            turn_over: AtomicBool::new(false),
            kickers: Mutex::new(Vec::new()),
        }
    }

    fn lock(&self) -> Locked<'_> {
        let held = lock_rank::hold(Rank::Mailbox);
        Locked { inner: self.inner.lock().expect(LOCK), held }
    }

    // Any thread.

    /// Room for one more CPU; its slot.
    pub(crate) fn add_slot(&self) -> usize {
        let mut inner = self.lock();
        inner.slots.push(Slot::new());
        inner.slots.len() - 1
    }

    /// One of the thread's CPUs is kicked so.
    pub(crate) fn add_kicker(&self, kicker: Arc<dyn Kick>) {
        self.kickers.lock().expect(LOCK).push(kicker);
    }

    /// Gets the thread out of the guest, whichever CPU it executes.
    pub(crate) fn kick(&self) {
        self.kickers.lock().expect(LOCK).iter().for_each(|kicker| kicker.kick());
    }

    /// Has the thread host another CPU. False: it has ended.
    pub(crate) fn post_arrival(&self, arrival: Arrival) -> bool {
        let mut inner = self.lock();
        if inner.ended {
            return false;
        }
        inner.arrivals.push_back(arrival);
        self.halt_cond.notify_all();
        drop(inner);
        self.exit.publish();
        self.kick();
        true
    }

    /// The CPU that executes has had its turn.
    pub(crate) fn end_turn(&self) {
        self.turn_over.store(true, Ordering::Relaxed);
        self.exit.publish();
        self.kick();
    }

    /// Leaves a request. The caller then publishes an exit request and kicks.
    pub(crate) fn post<R>(&self, slot: usize, change: impl FnOnce(&mut Slot) -> R) -> R {
        let mut inner = self.lock();
        let result = change(&mut inner.slots[slot]);
        // Under the lock: the model checker, and a reader, need not consider a wake between unlock and notify.
        self.halt_cond.notify_all();
        result
    }

    /// As [`Self::post`], for all CPUs of the thread that exist, and at once.
    pub(crate) fn post_all(&self, change: impl FnMut(&mut Slot)) {
        let mut inner = self.lock();
        inner.slots.iter_mut().filter(|slot| slot.state != CpuState::Creating).for_each(change);
        self.halt_cond.notify_all();
    }

    /// Queues `work`; gives it back if the CPU is not there (yet, or any more).
    pub(crate) fn post_work(&self, slot: usize, work: Work) -> Result<(), Work> {
        self.post(slot, |slot| {
            if !slot.open {
                return Err(work);
            }
            slot.work.push_back(work);
            Ok(())
        })
    }

    /// Wakes the thread if it sleeps. The caller has published what it shall find.
    pub(crate) fn ring_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.ring();
        }
    }

    /// Wakes the thread from its present or next sleep.
    pub(crate) fn ring(&self) {
        self.lock().rung = true;
        self.halt_cond.notify_all();
    }

    /// The thread owes so much more sleep, `most` at most. The caller then gets it out of the guest.
    pub(crate) fn owe(&self, sleep: Duration, most: Duration) {
        let mut inner = self.lock();
        inner.debt = (inner.debt + sleep).min(most);
    }

    /// The thread owes nothing.
    pub(crate) fn forgive(&self) {
        self.lock().debt = Duration::ZERO;
        self.halt_cond.notify_all();
    }

    /// Where the CPU is. By the time the caller looks, it may be elsewhere unless the caller holds it stopped.
    pub(crate) fn state(&self, slot: usize) -> CpuState {
        self.lock().slots[slot].state
    }

    /// What there is to say of the CPU and its thread when it hangs.
    pub(crate) fn diagnosis(&self, slot: usize) -> String {
        let asleep = if self.asleep.load(Ordering::Relaxed) { ", thread asleep" } else { "" };
        let inner = self.lock();
        let rung = if inner.rung { ", rung" } else { "" };
        format!("{}{asleep}{rung}", inner.slots[slot].diagnosis())
    }

    /// Waits until `done` holds for the CPU.
    pub(crate) fn wait_ack(&self, slot: usize, done: impl Fn(&Slot) -> bool) {
        let mut inner = self.lock();
        inner.ack_waiters += 1;
        while !done(&inner.slots[slot]) {
            inner = inner.wait(&self.ack_cond);
        }
        inner.ack_waiters -= 1;
    }

    // The owning thread.

    /// Whether the turn of the CPU that executed last was ended.
    pub(crate) fn take_turn_over(&self) -> bool {
        self.turn_over.swap(false, Ordering::Relaxed)
    }

    /// The oldest CPU that is to be hosted.
    pub(crate) fn take_arrival(&self) -> Option<Arrival> {
        self.lock().arrivals.pop_front()
    }

    /// The thread ends, orderly or by a panic: it hosts nobody any more.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        let arrivals = std::mem::take(&mut inner.arrivals);
        drop(inner);
        // Who waits for one of them hears of it.
        drop(arrivals);
    }

    /// Reads a slot.
    pub(crate) fn peek<R>(&self, slot: usize, look: impl FnOnce(&Slot) -> R) -> R {
        look(&self.lock().slots[slot])
    }

    /// The CPU goes to `next`; those who wait for it hear of it.
    pub(crate) fn become_state(&self, slot: usize, next: CpuState) {
        let mut inner = self.lock();
        let slot = &mut inner.slots[slot];
        assert!(slot.state.can_become(next), "no transition {:?} -> {next:?}", slot.state);
        tracing::trace!(target: "cpu", from = ?slot.state, to = ?next);
        slot.state = next;
        slot.open = next != CpuState::Exited;
        self.acknowledge(&inner);
    }

    /// Wakes those who wait for something of `inner`, the lock of which is held.
    fn acknowledge(&self, inner: &Inner) {
        if inner.ack_waiters > 0 {
            self.ack_cond.notify_all();
        }
    }

    /// Whether some CPU of the thread is to be stopped or set going.
    pub(crate) fn has_changes(&self) -> bool {
        self.lock().slots.iter().any(|slot| slot.is_there() && slot.is_to_change())
    }

    /// The oldest work item.
    pub(crate) fn take_work(&self, slot: usize) -> Option<Work> {
        self.lock().slots[slot].work.pop_front()
    }

    /// The thread ends: whatever happened, nobody waits for this CPU any more. Returns the work left behind, which is
    /// dropped (and so answered) by the caller, outside the lock.
    #[must_use]
    pub(crate) fn close(&self, slot: usize) -> VecDeque<Work> {
        let mut inner = self.lock();
        let slot = &mut inner.slots[slot];
        slot.open = false;
        slot.gone = true;
        let work = std::mem::take(&mut slot.work);
        self.acknowledge(&inner);
        work
    }

    /// Announces a sleep. From here on a raised interrupt rings; look for one now, then [`Self::sleep`] or
    /// [`Self::cancel_sleep`].
    pub(crate) fn prepare_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// There was something: no sleep.
    pub(crate) fn cancel_sleep(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Sleeps what the thread owes, unless there is mail. False: it owes nothing.
    pub(crate) fn pay(&self) -> bool {
        let mut inner = self.lock();
        let owes = !inner.debt.is_zero();
        while !inner.debt.is_zero() && !inner.has_mail() {
            let (asleep, debt) = (Instant::now(), inner.debt);
            inner = inner.wait_for(&self.halt_cond, debt);
            inner.paid(Some(asleep));
        }
        owes
    }

    /// Sleeps until there is mail or a ring, `most` at most. What the thread owes is paid with it.
    pub(crate) fn sleep(&self, most: Option<Duration>) {
        let Some(most) = most else { return self.sleep_until(Inner::has_mail) };
        let mut inner = self.lock();
        let asleep = inner.now_if_it_owes();
        if !inner.rung && !inner.has_mail() {
            // A wake-up for nothing is no harm: the caller looks again.
            inner = inner.wait_for(&self.halt_cond, most);
        }
        inner.paid(asleep);
        inner.rung = false;
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Sleeps until there is work in some slot, or a ring. For a CPU thread that waits for another CPU.
    pub(crate) fn sleep_for_work(&self) {
        self.sleep_until(|inner| inner.slots.iter().any(|slot| !slot.work.is_empty()));
    }

    fn sleep_until(&self, mail: impl Fn(&Inner) -> bool) {
        let mut inner = self.lock();
        let asleep = inner.now_if_it_owes();
        while !inner.rung && !mail(&inner) {
            inner = inner.wait(&self.halt_cond);
        }
        inner.paid(asleep);
        inner.rung = false;
        self.asleep.store(false, Ordering::Relaxed);
    }
}
