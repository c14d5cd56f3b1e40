//! The windows that functions decode, in memory or in port space: software places them, over each other too.
//!
//! What is wired to an address (an interrupt controller, the ECAM window, RAM) hides what software has placed there. Where
//! BARs lie over each other, the one of the lowest function and register answers.

use std::sync::{Arc, RwLock};

use crate::bus::{Background, Bus, BusDevice};

const LOCK: &str = "no holder of an address space's lock panics";

/// Whose window: the function's number on the bus, and the register.
pub type Owner = (u8, usize);

/// A decoded window.
struct Window {
    owner: Owner,
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

impl Window {
    fn overlaps(&self, base: u64, last: u64) -> bool {
        self.base <= last && base <= self.last
    }
}

/// One space.
#[derive(Default)]
pub struct AddressSpace {
    /// By their owners.
    windows: RwLock<Vec<Window>>,
}

impl AddressSpace {
    /// Places the window of `owner` at `base`, with `bytes`, or takes it away.
    pub fn place(&self, owner: Owner, at: Option<(u64, u64)>, device: &Arc<dyn BusDevice>) {
        let mut windows = self.windows.write().expect(LOCK);
        windows.retain(|window| window.owner != owner);
        if let Some((base, bytes)) = at {
            // A BAR's base is a multiple of its size, which is a power of two: the sum does not wrap.
            let last = base | (bytes - 1);
            let index = windows.partition_point(|window| window.owner < owner);
            windows.insert(index, Window { owner, base, last, device: Arc::clone(device) });
        }
    }

    /// Where the window of `owner` is, if all of it answers: nothing on `bus` and no other window hides a part.
    pub fn visible(&self, owner: Owner, bus: &Bus) -> Option<u64> {
        let windows = self.windows.read().expect(LOCK);
        let index = windows.iter().position(|window| window.owner == owner)?;
        let Window { base, last, .. } = windows[index];
        let hidden = windows[..index].iter().any(|window| window.overlaps(base, last));
        (!hidden && !bus.has_window_in(base, last)).then_some(base)
    }

    fn find(&self, address: u64, size: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let last = address.checked_add(u64::try_from(size).ok()?.checked_sub(1)?)?;
        let windows = self.windows.read().expect(LOCK);
        let window = windows.iter().find(|window| window.base <= address && last <= window.last)?;
        Some((address - window.base, Arc::clone(&window.device)))
    }
}

impl Background for AddressSpace {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let found = self.find(address, data.len());
        found.map(|(offset, device)| device.read(offset, data)).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len());
        found.map(|(offset, device)| device.write(offset, data)).is_some()
    }
}
