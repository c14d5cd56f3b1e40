//! A function on the bus: its configuration space, its BARs and interrupts, with a device behind them.

use std::sync::Arc;

use super::bar::{Bar, BarKind};
use super::config::{Capability, ConfigSpace, Identity};
use super::interrupts::FunctionInterrupts;
use super::msix;
use super::spec::{BARS, CONFIG_BYTES, command, register, status};
use crate::bus::BusDevice;
use crate::device::Device;
use crate::lock_rank::device::{Mutex, MutexGuard};

/// What a device shows in its configuration space.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Who it is.
    pub identity: Identity,
    /// Its base address registers.
    pub bars: Vec<(usize, Bar)>,
    /// Its capabilities, in their order; MSI-X is not one of them.
    pub capabilities: Vec<Capability>,
    /// The pin that it drives for want of MSI-X, 1 (INTA) to 4.
    pub interrupt_pin: Option<u8>,
    /// The BAR that MSI-X's table and pending bits get, if the device's interrupts have vectors.
    pub msix_bar: usize,
    /// Further registers as they are at power-on: offset, bytes, and the bits that software can write.
    pub registers: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

impl Layout {
    /// A device that is there and no more.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            bars: Vec::new(),
            capabilities: Vec::new(),
            interrupt_pin: None,
            msix_bar: 1,
            registers: Vec::new(),
        }
    }
}

/// A device behind a function. Called with no ranked lock held.
///
/// What a guest does wrong is a value: `data.len()` is 1 to 8, an access never leaves its BAR, and there is nothing else to
/// rely on.
pub trait PciDevice: Device {
    /// What it shows. Asked once.
    fn layout(&self) -> Layout;
    /// How it interrupts; `None`: not at all.
    fn interrupts(&self) -> Option<&Arc<FunctionInterrupts>> {
        None
    }
    /// Reads BAR `bar` at `offset` from its start.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }
    /// Writes BAR `bar` at `offset` from its start.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }
    /// Software reads configuration registers at `offset`: `data` is what they hold, for the device to change. `space` is all of
    /// them.
    fn read_config(&self, offset: usize, data: &mut [u8], space: &[u8; CONFIG_BYTES]) {
        let _ = (offset, data, space);
    }
    /// Software has written `len` configuration registers at `offset`; `space` is all of them since. One write after the other.
    fn wrote_config(&self, offset: usize, len: usize, space: &[u8; CONFIG_BYTES]) {
        let _ = (offset, len, space);
    }
    /// Whether the function may reach memory (Bus Master Enable) has changed.
    fn set_bus_master(&self, enabled: bool) {
        let _ = enabled;
    }
    /// BAR `bar` answers at `base` now, where nothing hides any of it; `None`: it is not decoded, or hidden.
    fn moved(&self, bar: usize, base: Option<u64>) {
        let _ = (bar, base);
    }
}

/// A function of the bus.
pub(super) struct Function {
    device: Arc<dyn PciDevice>,
    config: Mutex<ConfigSpace>,
    msix_bar: Option<usize>,
}

impl Function {
    pub(super) fn new(device: Arc<dyn PciDevice>) -> Arc<Self> {
        let layout = device.layout();
        let mut config = ConfigSpace::new(&layout.identity);
        for &(index, bar) in &layout.bars {
            config.add_bar(index, bar);
        }
        for capability in &layout.capabilities {
            config.add_capability(capability);
        }
        for (offset, bytes, writable) in &layout.registers {
            config.set(*offset, bytes);
            config.allow(*offset, writable);
        }
        if let Some(pin) = layout.interrupt_pin {
            config.set_interrupt_pin(pin);
        }
        let vectors = device.interrupts().map_or(0, |interrupts| interrupts.vectors());
        let msix_bar = (vectors > 0).then_some(layout.msix_bar);
        if let Some(index) = msix_bar {
            config.add_bar(index, Bar::new(BarKind::Memory32, msix::bar_bytes(vectors)));
            let pending = u32::try_from(msix::pending_offset(vectors)).expect("32 KiB at most");
            config.add_msix(vectors, index, 0, pending);
        }
        Arc::new(Self { device, config: Mutex::new(config), msix_bar })
    }

    pub(super) fn device(&self) -> &Arc<dyn PciDevice> {
        &self.device
    }

    pub(super) fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().expect("no holder of a configuration space panics")
    }

    /// Reads configuration registers.
    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) {
        let space = {
            let config = self.config();
            config.read(offset, data);
            *config.bytes()
        };
        if self.device.interrupts().is_some_and(|interrupts| interrupts.is_intx_wanted())
            && let Some(low) = register::STATUS.checked_sub(offset).and_then(|at| data.get_mut(at))
        {
            *low |= status::INTERRUPT as u8;
        }
        self.device.read_config(offset, data, &space);
    }

    /// Writes configuration registers; whether BARs have to be placed anew. The caller lets one write be after the other.
    pub(super) fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        let (before, after, space, message_control) = {
            let mut config = self.config();
            let before = (config.command(), self.decoded(&config));
            config.write(offset, data);
            let after = (config.command(), self.decoded(&config));
            (before, after, *config.bytes(), config.msix_control())
        };
        if let Some(interrupts) = self.device.interrupts() {
            interrupts.configure(after.0, message_control);
        }
        if (before.0 ^ after.0) & command::BUS_MASTER != 0 {
            self.device.set_bus_master(after.0 & command::BUS_MASTER != 0);
        }
        self.device.wrote_config(offset, data.len(), &space);
        before.1 != after.1
    }

    fn decoded(&self, config: &ConfigSpace) -> [Option<u64>; BARS] {
        std::array::from_fn(|index| config.decoded(index))
    }

    /// Power-on state.
    pub(super) fn reset(&self) {
        self.config().reset();
        if let Some(interrupts) = self.device.interrupts() {
            interrupts.reset();
        }
        self.device.set_bus_master(false);
        self.device.reset();
    }
}

/// A BAR's window.
pub(super) struct BarWindow {
    pub(super) function: Arc<Function>,
    pub(super) index: usize,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (self.function.msix_bar, self.function.device.interrupts()) {
            (Some(bar), Some(interrupts)) if bar == self.index => interrupts.read_msix(offset, data),
            _ => self.function.device.read_bar(self.index, offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (self.function.msix_bar, self.function.device.interrupts()) {
            (Some(bar), Some(interrupts)) if bar == self.index => interrupts.write_msix(offset, data),
            _ => self.function.device.write_bar(self.index, offset, data),
        }
    }
}
