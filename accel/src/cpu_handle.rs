//! A CPU as everybody but its own thread sees it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use devices::cpu_interrupts::{InterruptKind, InterruptTarget};

use crate::contract::Kick;

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

struct Shared {
    index: usize,
    interrupt_request: AtomicU32,
    exit_request: AtomicBool,
    kicker: OnceLock<Arc<dyn Kick>>,
}

/// A cloneable handle to one CPU.
#[derive(Clone)]
pub struct CpuHandle(Arc<Shared>);

impl CpuHandle {
    /// A handle to the CPU `index`, not yet bound to a thread.
    pub fn new(index: usize) -> Self {
        Self(Arc::new(Shared {
            index,
            interrupt_request: AtomicU32::new(0),
            exit_request: AtomicBool::new(false),
            kicker: OnceLock::new(),
        }))
    }

    /// Says how to get the CPU out of the guest. Once, before its thread starts.
    pub fn set_kicker(&self, kicker: Arc<dyn Kick>) {
        assert!(self.0.kicker.set(kicker).is_ok(), "a CPU has one kicker");
    }

    /// 0 for the bootstrap CPU.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Pending requests, bits of [`request`].
    pub fn interrupt_request(&self) -> u32 {
        self.0.interrupt_request.load(Ordering::Acquire)
    }

    /// Clears bits of [`request`]; the CPU's own thread, before it looks at what they announce.
    pub fn clear_interrupt(&self, bits: u32) {
        self.0.interrupt_request.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Whether the CPU is wanted outside the guest: `run` returns `Kicked`. Cleared by the lifecycle only.
    pub fn exit_requested(&self) -> bool {
        self.0.exit_request.load(Ordering::Acquire)
    }

    fn kick(&self) {
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
        self.0.interrupt_request.fetch_or(bit, Ordering::AcqRel);
        self.kick();
    }

    fn lower_hard(&self) {
        self.clear_interrupt(request::HARD);
    }
}
