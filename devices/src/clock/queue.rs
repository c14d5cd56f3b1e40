//! The timers of one clock, ordered by deadline.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Timer, TimerCallback};

type TimerId = u64;

/// Told under the queue's lock when the earliest deadline may have become earlier. Must not block, nor come back
/// to the queue.
pub(super) trait Wakeup: Send + Sync {
    /// The earliest deadline is now `deadline_ns`.
    fn earliest(&self, deadline_ns: u64);
}

struct Entry {
    label: &'static str,
    callback: TimerCallback,
    deadline_ns: Option<u64>,
}

#[derive(Default)]
struct Timers {
    next_id: TimerId,
    entries: HashMap<TimerId, Entry>,
    by_deadline: BTreeMap<(u64, TimerId), ()>,
}

impl Timers {
    fn disarm(&mut self, id: TimerId) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Some(deadline_ns) = entry.deadline_ns.take()
        {
            self.by_deadline.remove(&(deadline_ns, id));
        }
    }

    fn earliest(&self) -> Option<u64> {
        self.by_deadline.first_key_value().map(|(&(deadline_ns, _), ())| deadline_ns)
    }
}

/// A queue of timers, shared by its clock and the timers themselves.
pub(super) struct TimerQueue {
    timers: Mutex<Timers>,
    wakeup: Box<dyn Wakeup>,
}

impl TimerQueue {
    pub(super) fn new(wakeup: Box<dyn Wakeup>) -> Arc<Self> {
        Arc::new(Self { timers: Mutex::default(), wakeup })
    }

    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().expect("no holder of the timer queue's lock panics")
    }

    pub(super) fn new_timer(
        self: &Arc<Self>,
        label: &'static str,
        callback: TimerCallback,
    ) -> Box<dyn Timer> {
        let mut timers = self.lock();
        let id = timers.next_id;
        timers.next_id += 1;
        timers.entries.insert(id, Entry { label, callback, deadline_ns: None });
        Box::new(QueuedTimer { id, queue: Arc::clone(self) })
    }

    pub(super) fn earliest(&self) -> Option<u64> {
        self.lock().earliest()
    }

    /// Tells `f` the earliest deadline under the queue's lock, so that no arming slips in between.
    pub(super) fn with_earliest(&self, f: impl FnOnce(Option<u64>)) {
        let timers = self.lock();
        f(timers.earliest());
    }

    /// Fires every timer whose deadline is at or before `now_ns`, once each: one that its callback arms again in
    /// the past waits for the next call, so that a late periodic timer cannot keep the caller here.
    pub(super) fn fire_until(&self, now_ns: u64) {
        let due: Vec<(u64, TimerId)> =
            self.lock().by_deadline.range(..=(now_ns, TimerId::MAX)).map(|(&key, ())| key).collect();
        for (deadline_ns, id) in due {
            let callback = {
                let mut timers = self.lock();
                // An earlier callback or another thread may have cancelled or moved it meanwhile.
                if timers.by_deadline.remove(&(deadline_ns, id)).is_none() {
                    continue;
                }
                let entry = timers.entries.get_mut(&id).expect("an armed timer has an entry");
                entry.deadline_ns = None;
                tracing::trace!(target: "clock", label = entry.label, deadline_ns, now_ns, "timer");
                Arc::clone(&entry.callback)
            };
            callback();
        }
    }
}

struct QueuedTimer {
    id: TimerId,
    queue: Arc<TimerQueue>,
}

impl Timer for QueuedTimer {
    fn arm(&self, deadline_ns: u64) {
        let mut timers = self.queue.lock();
        timers.disarm(self.id);
        let first = timers.earliest().is_none_or(|earliest| deadline_ns < earliest);
        timers.entries.get_mut(&self.id).expect("a timer has an entry until it drops").deadline_ns =
            Some(deadline_ns);
        timers.by_deadline.insert((deadline_ns, self.id), ());
        if first {
            self.queue.wakeup.earliest(deadline_ns);
        }
    }

    fn cancel(&self) {
        // Whoever waits for the earliest deadline wakes once for nothing: cheaper than telling it each time.
        self.queue.lock().disarm(self.id);
    }
}

impl Drop for QueuedTimer {
    fn drop(&mut self) {
        let entry = {
            let mut timers = self.queue.lock();
            timers.disarm(self.id);
            timers.entries.remove(&self.id)
        };
        // The callback may own the last reference to a device whose timers drop in turn: not under the lock.
        drop(entry);
    }
}
