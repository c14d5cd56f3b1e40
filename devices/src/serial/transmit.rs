//! The way out of a UART: bytes gathered so that the host sees a write per line, not per byte.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};

use crate::backend::CharBackend;
use crate::clock::{Clock, Timer};

/// How long a byte waits for more to go with it: a prompt has no newline, and its reader must not notice.
const MAX_DELAY_NS: u64 = 1_000_000;
/// How long until a reader that was not ready is looked at again.
const RETRY_NS: u64 = 20_000_000;
/// Bytes at which the buffer goes out, newline or not.
const FULL_BYTES: usize = 512;

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    is_timer_armed: bool,
}

pub(super) struct Transmitter {
    pending: Mutex<Pending>,
    /// Held while the host's write runs: writers stay in order, and pushing a byte does not wait for the host.
    writing: Mutex<Vec<u8>>,
    backend: Arc<dyn CharBackend>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
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
                writing: Mutex::default(),
                backend,
                clock: Arc::clone(clock),
                timer: clock.new_timer("serial output", Arc::new(due)),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder of the transmit buffer's lock panics")
    }

    pub(super) fn backend(&self) -> &dyn CharBackend {
        &*self.backend
    }

    /// Takes a byte. True if the caller should flush now, with no lock of the UART's held.
    pub(super) fn push(&self, byte: u8) -> bool {
        let mut pending = self.lock();
        pending.bytes.push(byte);
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

    /// Writes all bytes taken so far if the host takes them at once. False if it does not.
    pub(super) fn flush_if_ready(&self) -> bool {
        let writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::WouldBlock) => return false,
            Err(TryLockError::Poisoned(poisoned)) => {
                panic!("no holder of the transmit lock panics: {poisoned}")
            }
        };
        if !self.backend.can_write() {
            return false;
        }
        self.write_pending(writing);
        true
    }

    /// Writes all bytes taken so far.
    pub(super) fn flush(&self) {
        self.write_pending(self.writing.lock().expect("no holder of the transmit lock panics"));
    }

    fn write_pending(&self, mut writing: MutexGuard<'_, Vec<u8>>) {
        std::mem::swap(&mut *writing, &mut self.lock().bytes);
        if !writing.is_empty() {
            self.backend.write(&writing);
            writing.clear();
        }
        self.backend.flush();
    }
}
