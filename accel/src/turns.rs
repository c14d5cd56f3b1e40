//! The kick timer of a thread that hosts several CPUs: it ends a CPU's turn, so that one that never halts does not keep the
//! others from running (DESIGN.md, *The lifecycle*: round robin).
//!
//! It runs while one of the CPUs does, on the host's time: a guest whose time stands still is scheduled, too. Whoever has
//! the CPUs work in short bursts pays nothing for it: the timer notices at its next tick that all have gone idle, and must
//! be woken only after that.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::mailbox::Mailbox;

/// How long a turn is at most. A CPU that waits for another executes PAUSE, which ends its turn.
const TURN: Duration = Duration::from_millis(4);

const LOCK: &str = "no foreign code runs under the lock of the kick timer";

#[derive(Default)]
struct State {
    /// Some CPU of the thread executes.
    busy: bool,
    /// The timer has found that none does, and waits to be woken.
    parked: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The timer of one thread. Ends when dropped.
pub(crate) struct KickTimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl KickTimer {
    /// A timer for the thread of `mailbox`. Fails where the host gives no thread.
    pub(crate) fn start(mailbox: &Arc<Mailbox>) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (its, mailbox) = (Arc::clone(&shared), Arc::clone(mailbox));
        let thread = std::thread::Builder::new().name("CPU turns".into()).spawn(move || its.run(&mailbox))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// A CPU is going to execute.
    pub(crate) fn busy(&self) {
        let mut state = self.shared.state.lock().expect(LOCK);
        state.busy = true;
        if std::mem::take(&mut state.parked) {
            self.shared.changed.notify_one();
        }
    }

    /// The thread goes to sleep.
    pub(crate) fn idle(&self) {
        self.shared.state.lock().expect(LOCK).busy = false;
    }
}

impl Shared {
    fn run(&self, mailbox: &Mailbox) {
        let mut state = self.state.lock().expect(LOCK);
        while !state.ended {
            if !state.busy {
                state.parked = true;
                state = self.changed.wait(state).expect(LOCK);
                continue;
            }
            let (woken, timeout) = self.changed.wait_timeout(state, TURN).expect(LOCK);
            state = woken;
            if timeout.timed_out() && state.busy && !state.ended {
                drop(state);
                mailbox.end_turn();
                state = self.state.lock().expect(LOCK);
            }
        }
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        self.shared.state.lock().expect(LOCK).ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}
