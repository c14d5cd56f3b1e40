//! The MMIO transport's interrupt: one level-triggered line for all causes.

use std::sync::Arc;

use super::spec::isr;
use crate::interrupt::IrqLine;
use crate::lock_rank::device;
use crate::virtio::VirtioInterrupt;
use crate::virtio::transport::TransportInterrupt;

const LOCK: &str = "no holder of an interrupt's lock panics";

#[derive(Default)]
struct State {
    /// Causes that were not acknowledged.
    status: u32,
    needs_reset: bool,
    generation: u32,
}

/// The line, up while a cause has not been acknowledged.
pub struct MmioInterrupt {
    line: IrqLine,
    state: device::Mutex<State>,
}

impl MmioInterrupt {
    /// Low, without a cause.
    pub fn new(line: IrqLine) -> Arc<Self> {
        Arc::new(Self { line, state: device::Mutex::default() })
    }

    /// Changes the state; the line follows, under the lock, so that it ends where the last change left it.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().expect(LOCK);
        let result = change(&mut state);
        self.line.set_level(state.status != 0);
        result
    }

    /// The causes that were not acknowledged.
    pub fn status(&self) -> u32 {
        self.state.lock().expect(LOCK).status
    }

    /// The driver has seen these causes.
    pub fn acknowledge(&self, causes: u32) {
        self.change(|state| state.status &= !causes);
    }

    /// Another value whenever the configuration space has changed.
    pub fn generation(&self) -> u32 {
        self.state.lock().expect(LOCK).generation
    }
}

impl TransportInterrupt for MmioInterrupt {
    fn reset_is_needed(&self) -> bool {
        self.state.lock().expect(LOCK).needs_reset
    }

    /// The generation goes on.
    fn reset(&self) {
        self.change(|state| (state.status, state.needs_reset) = (0, false));
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn queue_used(&self, _queue: u16) {
        self.change(|state| state.status |= isr::USED_BUFFER);
    }

    fn config_changed(&self) {
        self.change(|state| {
            state.generation = state.generation.wrapping_add(1);
            state.status |= isr::CONFIG_CHANGE;
        });
    }

    fn needs_reset(&self) {
        self.change(|state| {
            state.needs_reset = true;
            state.status |= isr::CONFIG_CHANGE;
        });
    }
}
