//! The words by which other threads tell a running CPU that something waits for it (DESIGN.md, *The lifecycle*: kick).
//!
//! Three laws hold between the thread that wants something (left) and the CPU's thread (right):
//!
//! ```text
//!   1  store the payload: mail, IRR bit                 c  leave the guest (the engine saw its kick)
//!   2  store interrupt_request / exit_request           b  clear exit_request (RMW), read interrupt_request
//!   3  wake halt_cond if the CPU sleeps; kick           a  look at the payload
//! ```
//!
//! *Publish, then kick*: 1 before 2 before 3. *A kick is sticky*: the engine's kick, like the words here, stays until
//! the CPU's thread clears it, so one that lands before `run` still makes `run` return. *Clear, then look*: `b` before
//! `a`. A clear that wipes a newer request read it (it is a read-modify-write, acquiring), so the payload behind it
//! is seen in `a`; a clear that came first leaves the request standing for the next pass. Nothing is lost either way.

use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// The word for interrupts, one for each CPU.
pub(crate) struct Requests {
    interrupt_request: AtomicU32,
}

/// The word for all else, one for each thread: whatever is wanted of a CPU, its thread has to come out of the guest,
/// whichever of its CPUs it executes.
pub(crate) struct ExitRequest(AtomicBool);

impl Requests {
    pub(crate) fn new() -> Self {
        Self { interrupt_request: AtomicU32::new(0) }
    }

    pub(crate) fn interrupts(&self) -> u32 {
        self.interrupt_request.load(Ordering::Acquire)
    }

    pub(crate) fn publish_interrupt(&self, bits: u32) {
        self.interrupt_request.fetch_or(bits, Ordering::AcqRel);
    }

    pub(crate) fn clear_interrupt(&self, bits: u32) {
        self.interrupt_request.fetch_and(!bits, Ordering::AcqRel);
    }
}

impl ExitRequest {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn publish(&self) {
        // An RMW like the clear: whichever comes second has seen the other's past.
        self.0.swap(true, Ordering::AcqRel);
    }

    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}
