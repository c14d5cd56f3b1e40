//! How a function interrupts: by its INTx pin, or by the messages of its MSI-X table (PCI Local Bus Specification 3.0, *MSI-X
//! Capability and Table Structure*, *Interrupt Disable*).

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::msix::Msix;
use super::spec::{command, msix};
use crate::interrupt::{InterruptSink, IrqLine};
use crate::lock_rank::device::{Mutex, MutexGuard};

struct State {
    /// The command register's Interrupt Disable.
    intx_disabled: bool,
    /// What the device would drive INTx with.
    intx: bool,
    msix: Msix,
}

/// The interrupts of one function. Any thread, with no lock of a device's rank held.
pub struct FunctionInterrupts {
    line: IrqLine,
    sink: Arc<dyn InterruptSink>,
    state: Mutex<State>,
}

impl FunctionInterrupts {
    /// Interrupts by `line`, or by messages of `vectors` (up to 2048; none: there is no MSI-X) through `sink`.
    pub fn new(line: IrqLine, sink: Arc<dyn InterruptSink>, vectors: u16) -> Arc<Self> {
        let state = State { intx_disabled: false, intx: false, msix: Msix::new(vectors) };
        Arc::new(Self { line, sink, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of a function's interrupts panics")
    }

    /// The line follows, under the lock, so that it ends where the last change left it.
    fn update_line(&self, state: &State) {
        self.line.set_level(state.intx && !state.intx_disabled && !state.msix.is_enabled());
    }

    /// How many vectors there are; none without MSI-X.
    pub fn vectors(&self) -> u16 {
        self.lock().msix.vectors()
    }

    /// Whether messages are sent, and INTx is not driven.
    pub fn is_msix_enabled(&self) -> bool {
        self.lock().msix.is_enabled()
    }

    /// Drives INTx. `level` is asked while nobody else drives it, so that the last change counts.
    pub fn update_intx(&self, level: impl FnOnce() -> bool) {
        let mut state = self.lock();
        state.intx = level();
        self.update_line(&state);
    }

    /// Whether the device wants INTx driven (the status register's Interrupt Status).
    pub fn is_intx_wanted(&self) -> bool {
        self.lock().intx
    }

    /// Sends the message of `vector`, or remembers that it is to be sent once nothing masks it. A vector that is not there,
    /// and any while MSI-X is disabled, is none.
    pub fn trigger(&self, vector: u16) {
        self.lock().msix.trigger(vector, &*self.sink);
    }

    /// From now on writes of `event` send the message of `vector`, with nobody of ours between, as long as nothing masks it and the
    /// accelerator can. Otherwise the event stays to be read, and whoever reads it triggers the vector.
    pub fn attach(&self, vector: u16, event: &Arc<EventFd>) {
        self.lock().msix.add_event(vector, event, &*self.sink);
    }

    /// Undoes [`FunctionInterrupts::attach`].
    pub fn detach(&self, vector: u16, event: &Arc<EventFd>) {
        self.lock().msix.remove_event(vector, event);
    }

    /// Software has written the command register or MSI-X's Message Control.
    pub(super) fn configure(&self, command: u16, message_control: u16) {
        let mut state = self.lock();
        state.intx_disabled = command & command::INTERRUPT_DISABLE != 0;
        let enabled = message_control & msix::ENABLE != 0;
        let masked = message_control & msix::FUNCTION_MASK != 0 || command & command::BUS_MASTER == 0;
        state.msix.configure(enabled, masked, &*self.sink);
        self.update_line(&state);
    }

    /// Reads the MSI-X BAR.
    pub(super) fn read_msix(&self, offset: u64, data: &mut [u8]) {
        self.lock().msix.read(offset, data);
    }

    /// Writes the MSI-X BAR.
    pub(super) fn write_msix(&self, offset: u64, data: &[u8]) {
        self.lock().msix.write(offset, data, &*self.sink);
    }

    /// Power-on state; the line is low.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.msix.configure(false, false, &*self.sink);
        state.msix = Msix::new(state.msix.vectors());
        (state.intx, state.intx_disabled) = (false, false);
        self.update_line(&state);
    }
}
