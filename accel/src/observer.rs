//! What the machine hears of its CPUs.

use crate::arch_state::CpuArchState;
use crate::contract::{Shutdown, VcpuError};

/// Something that the CPU's thread cannot decide alone. The CPU that reports it is on its way to `Stopped` and stays
/// there until the next [`resume_all`](crate::CpuSet::resume_all).
#[derive(Debug)]
pub enum CpuEvent {
    /// The guest brought the CPU to a state from which only a reset leads out, or the engine gave up.
    Shutdown {
        /// Why.
        reason: Shutdown,
        /// Where it was, so far as the engine can say.
        state: Option<Box<CpuArchState>>,
        /// The engine's diagnosis; may be empty.
        description: String,
    },
    /// The host or the VMM failed the CPU.
    Error {
        /// How.
        error: VcpuError,
        /// The engine's diagnosis; may be empty.
        description: String,
    },
    /// The debugger's condition was met.
    Debug {
        /// Linear address of the instruction not yet executed.
        pc: u64,
    },
}

/// Takes the events of all CPUs: the machine's main loop.
pub trait CpuObserver: Send + Sync {
    /// CPU `index` reports `event`. On the CPU's thread, no lock held. Must not wait for a CPU: files the event and
    /// wakes whoever acts on it.
    fn cpu_event(&self, index: usize, event: CpuEvent);
}
