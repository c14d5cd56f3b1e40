//! The way out of a UART: bytes gathered so that the host sees a write per line, not per byte, and kept while it takes none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};

use crate::backend::CharBackend;
use crate::clock::{Clock, Timer};

/// How long a byte waits for more to go with it: a prompt has no newline, and its reader must not notice.
const MAX_DELAY_NS: u64 = 1_000_000;
/// How long until a reader that was not ready is looked at again.
const RETRY_NS: u64 = 20_000_000;
/// Bytes at which the buffer goes out, newline or not.
const FULL_BYTES: usize = 512;
/// Bytes that the host has not taken, at which the transmitter says that it is full.
const BACKLOG_BYTES: usize = 4 << 10;
/// What a guest that does not look sends beyond this, to a host that takes nothing, is lost.
const MOST_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    is_timer_armed: bool,
    /// The host has not taken all that it was given, and says when it takes more.
    is_stuck: bool,
    /// What was lost, for one line about it.
    lost_bytes: u64,
}

impl Pending {
    fn is_full(&self) -> bool {
        self.is_stuck && self.bytes.len() >= BACKLOG_BYTES
    }
}

pub(super) struct Transmitter {
    pending: Mutex<Pending>,
    /// Copy of [`Pending::is_full`], for guests that poll.
    is_full: AtomicBool,
    /// Held while the host's write runs: writers stay in order, and pushing a byte does not wait for the host.
    writing: Mutex<Vec<u8>>,
    backend: Arc<dyn CharBackend>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
    /// The CPU waits for a slow reader: its time does not pass meanwhile, and what it sees must not depend on the host.
    waits: bool,
}

impl Transmitter {
    pub(super) fn new(backend: Arc<dyn CharBackend>, clock: &Arc<dyn Clock>) -> Arc<Self> {
        Arc::new_cyclic(|own: &Weak<Self>| {
            let own = Weak::clone(own);
            let due = move || {
                if let Some(own) = own.upgrade() {
                    own.due();
                }
            };
            Self {
                pending: Mutex::default(),
                is_full: AtomicBool::new(false),
                writing: Mutex::default(),
                backend,
                clock: Arc::clone(clock),
                timer: clock.new_timer("serial output", Arc::new(due)),
                waits: clock.wakeup_fd().is_none(),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder of the transmit buffer's lock panics")
    }

    pub(super) fn backend(&self) -> &dyn CharBackend {
        &*self.backend
    }

    /// Whether the guest should not send more now.
    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    /// Takes a byte. True if the caller should send now, with no lock of the UART's held.
    pub(super) fn push(&self, byte: u8) -> bool {
        let mut pending = self.lock();
        if pending.is_stuck && pending.bytes.len() >= MOST_BYTES {
            pending.lost_bytes += 1;
            return false;
        }
        pending.bytes.push(byte);
        if pending.is_stuck {
            self.is_full.store(pending.is_full(), Ordering::SeqCst);
            return false;
        }
        if byte == b'\n' || pending.bytes.len() >= FULL_BYTES {
            return true;
        }
        if !pending.is_timer_armed {
            pending.is_timer_armed = true;
            self.timer.arm(self.clock.now_ns().saturating_add(MAX_DELAY_NS));
        }
        false
    }

    /// The timer fired: what has waited long enough goes out, unless that would make the clock's thread wait for a
    /// reader that does not read.
    fn due(&self) {
        self.lock().is_timer_armed = false;
        if !self.flush_if_ready() {
            let mut pending = self.lock();
            pending.is_timer_armed = true;
            self.timer.arm(self.clock.now_ns().saturating_add(RETRY_NS));
        }
    }

    /// Writes all bytes taken so far if the host takes them at once. False if somebody else is at it, or should try again.
    pub(super) fn flush_if_ready(&self) -> bool {
        let writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::WouldBlock) => return false,
            Err(TryLockError::Poisoned(poisoned)) => {
                panic!("no holder of the transmit lock panics: {poisoned}")
            }
        };
        if self.waits && !self.backend.can_write() {
            return false;
        }
        self.write_pending(writing, self.waits);
        true
    }

    /// The host takes more. True if the transmitter was full and is not any more.
    pub(super) fn resume(&self) -> bool {
        let was_full = self.is_full();
        self.write_pending(self.writing.lock().expect("no holder of the transmit lock panics"), self.waits);
        was_full && !self.is_full()
    }

    /// Sends all bytes taken so far, as far as the host takes them.
    pub(super) fn send(&self) {
        self.write_pending(self.writing.lock().expect("no holder of the transmit lock panics"), self.waits);
    }

    /// Writes all bytes taken so far, and waits for a slow reader.
    pub(super) fn flush(&self) {
        self.write_pending(self.writing.lock().expect("no holder of the transmit lock panics"), true);
    }

    fn write_pending(&self, mut writing: MutexGuard<'_, Vec<u8>>, wait: bool) {
        loop {
            std::mem::swap(&mut *writing, &mut self.lock().bytes);
            let mut taken = writing.len();
            if wait && taken > 0 {
                self.backend.write(&writing);
            } else if taken > 0 {
                taken = self.backend.try_write(&writing);
            }
            let mut pending = self.lock();
            let was_stuck = std::mem::replace(&mut pending.is_stuck, taken < writing.len());
            pending.bytes.splice(..0, writing.drain(taken..));
            writing.clear();
            self.is_full.store(pending.is_full(), Ordering::SeqCst);
            if pending.is_stuck || !was_stuck {
                break;
            }
            let lost = std::mem::take(&mut pending.lost_bytes);
            if lost > 0 {
                tracing::warn!(target: "serial", lost, "bytes for a reader that did not read were lost");
            }
            // Nobody else sends what came meanwhile.
        }
        self.backend.flush();
    }
}
