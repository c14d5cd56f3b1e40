//! Interrupt wires as devices see them, and the sink they end in.
//!
//! A device owns an [`IrqLine`] and never knows its number. Lines that share a GSI are OR-ed. A message-signalled
//! interrupt goes through a [`MsiRoute`]. Both end in the [`InterruptSink`] of whoever models the interrupt
//! controllers: the kernel's (KVM) or our own (`irqchip`).

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::lock_rank::{line, pin};

/// Global system interrupt: the number of an interrupt controller input pin (ACPI, *Global System Interrupts*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// A message-signalled interrupt: a store of `data` to `address` (SDM vol. 3A, *Message Signalled Interrupts*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Target address, `0xfee0_0000` range on x86.
    pub address: u64,
    /// Vector and delivery mode.
    pub data: u32,
}

impl MsiMessage {
    /// Whether a store to this address is an interrupt: those to the CPUs' window are.
    pub fn is_interrupt(&self) -> bool {
        const WINDOW: u64 = 0xfee0_0000;
        self.address & !0xf_ffff == WINDOW
    }
}

/// Why a message route cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// All GSIs that can carry messages are taken.
    #[error("no free interrupt route")]
    Exhausted,
    /// The host refused.
    #[error("interrupt route")]
    Host(#[source] std::io::Error),
}

/// Where interrupts end. Callable from any thread; never blocks on a device.
pub trait InterruptSink: Send + Sync {
    /// Drives input pin `gsi`.
    fn set_gsi(&self, gsi: Gsi, level: bool);
    /// Delivers a message.
    fn send_msi(&self, message: MsiMessage);
    /// Reserves a route for one message source.
    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError>;
}

/// One message source's way to the CPUs. Freed on drop.
pub trait MsiRoute: Send + Sync {
    /// Sets the message; `None` masks the route.
    fn set(&self, message: Option<MsiMessage>) -> Result<(), RouteError>;
    /// Sends the message if unmasked.
    fn trigger(&self);
    /// The eventfd behind the route, where another thread or the kernel may trigger it.
    fn eventfd(&self) -> Option<&EventFd>;
    /// From now on a write of `event` triggers the route, too, as far as nobody reads it before; false if that cannot be.
    fn attach(&self, _event: &Arc<EventFd>) -> bool {
        false
    }
    /// Undoes [`MsiRoute::attach`].
    fn detach(&self, _event: &Arc<EventFd>) {}
}

/// The state of one shared pin: asserted while any of its lines is.
struct Pin {
    gsi: Gsi,
    sink: Arc<dyn InterruptSink>,
    asserted: pin::Mutex<usize>,
}

/// Hands out lines to one pin.
#[derive(Clone)]
pub struct IrqPin(Arc<Pin>);

impl IrqPin {
    /// The pin `gsi` of `sink`. Make one per GSI: lines of two `IrqPin`s of one GSI are not OR-ed.
    pub fn new(gsi: Gsi, sink: Arc<dyn InterruptSink>) -> Self {
        Self(Arc::new(Pin { gsi, sink, asserted: pin::Mutex::new(0) }))
    }

    /// A new line to this pin, low. `label` names its device in diagnostics.
    pub fn line(&self, label: &'static str) -> IrqLine {
        IrqLine { label, pin: Some(Arc::clone(&self.0)), level: line::Mutex::new(false) }
    }
}

/// A wire from one device to an interrupt pin; lowers itself on drop.
pub struct IrqLine {
    label: &'static str,
    pin: Option<Arc<Pin>>,
    level: line::Mutex<bool>,
}

impl IrqLine {
    /// A wire that ends nowhere: for tests, and for devices whose interrupt the machine does not connect.
    pub fn detached(label: &'static str) -> Self {
        Self { label, pin: None, level: line::Mutex::new(false) }
    }

    /// The device's name.
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// What this line drives (not what its pin is at: another line may hold that up).
    pub fn level(&self) -> bool {
        *self.level.lock().expect("no holder of a line's lock panics")
    }

    /// Drives the wire. The pin follows the OR of its lines.
    pub fn set_level(&self, level: bool) {
        let mut own = self.level.lock().expect("no holder of a line's lock panics");
        if *own == level {
            return;
        }
        *own = level;
        let Some(pin) = &self.pin else { return };
        let mut asserted = pin.asserted.lock().expect("no holder of a pin's lock panics");
        *asserted = if level { *asserted + 1 } else { *asserted - 1 };
        // Told under the pin's lock: two devices' changes must reach the sink in the order they were counted in.
        if *asserted == usize::from(level) {
            pin.sink.set_gsi(pin.gsi, level);
        }
    }

    /// A rising edge: high, then low.
    pub fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set_level(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine({}={})", self.label, u8::from(self.level()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u32, bool)>>);
    impl InterruptSink for Recorder {
        fn set_gsi(&self, gsi: Gsi, level: bool) {
            self.0.lock().unwrap().push((gsi.0, level));
        }
        fn send_msi(&self, _message: MsiMessage) {}
        fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
            Err(RouteError::Exhausted)
        }
    }

    #[test]
    fn shared_lines_are_ored_and_lower_on_drop() {
        let sink = Arc::new(Recorder::default());
        let pin = IrqPin::new(Gsi(4), sink.clone());
        let (a, b) = (pin.line("a"), pin.line("b"));
        a.set_level(true);
        a.set_level(true);
        b.set_level(true);
        a.set_level(false);
        assert_eq!(*sink.0.lock().unwrap(), [(4, true)]);
        drop(b);
        assert_eq!(*sink.0.lock().unwrap(), [(4, true), (4, false)]);
        a.pulse();
        assert_eq!(sink.0.lock().unwrap().len(), 4);
    }
}
