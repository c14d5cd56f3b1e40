//! Address-decoded buses: the port I/O space and the MMIO holes of the physical address space.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, RwLock};

/// A register window on a bus.
///
/// Accesses arrive on any vCPU thread; a device locks itself. `data.len()` is 1, 2, 4 or 8 and the access
/// never leaves the window. What a guest does wrong is not an error: a device ignores or floats (all ones).
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset` bytes from the window's start.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` at `offset` bytes from the window's start.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What answers where no window does: windows that software moves.
pub trait Background: Send + Sync {
    /// Reads at `address`. False, and `data` untouched, where nobody answers to the whole access.
    fn read(&self, address: u64, data: &mut [u8]) -> bool;
    /// Writes at `address`. False where nobody answers to the whole access.
    fn write(&self, address: u64, data: &[u8]) -> bool;
}

/// Why a window cannot be placed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The window is empty or wraps the address space.
    #[error("bus window at {base:#x} of {len:#x} bytes is empty or wraps")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another window is there.
    #[error("bus window at {base:#x} of {len:#x} bytes overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// The window in the way.
        other: u64,
    },
}

struct Window {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// A map of address windows to devices.
///
/// The lock is dropped before a device is called, so a device may reach the bus again.
#[derive(Default)]
pub struct Bus {
    windows: RwLock<BTreeMap<u64, Window>>,
    background: OnceLock<Arc<dyn Background>>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `base..base + len`.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        if len == 0 || base.checked_add(len - 1).is_none() {
            return Err(BusError::BadRange { base, len });
        }
        let mut windows = self.windows.write().expect("no holder of the bus lock panics");
        let last = base + (len - 1);
        if let Some((&other, window)) = windows.range(..=last).next_back()
            && other + (window.len - 1) >= base
        {
            return Err(BusError::Overlap { base, len, other });
        }
        windows.insert(base, Window { len, device });
        Ok(())
    }

    /// Has `background` answer where no window does. Once.
    pub fn set_background(&self, background: Arc<dyn Background>) {
        let is_first = self.background.set(background).is_ok();
        assert!(is_first, "a bus has one background");
    }

    /// Whether some window reaches into `base..=last`.
    pub fn has_window_in(&self, base: u64, last: u64) -> bool {
        let windows = self.windows.read().expect("no holder of the bus lock panics");
        let below = windows.range(..=last).next_back();
        below.is_some_and(|(&start, window)| start + (window.len - 1) >= base)
    }

    fn find(&self, address: u64, size: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let windows = self.windows.read().expect("no holder of the bus lock panics");
        let (base, window) = windows.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(size as u64)?;
        (end <= window.len).then(|| (offset, Arc::clone(&window.device)))
    }

    /// Reads from the device at `address`, or from the background. False, and `data` untouched, where neither holds the access.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => self.background.get().is_some_and(|background| background.read(address, data)),
        }
    }

    /// Writes to the device at `address`, or to the background. False where neither holds the access.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => self.background.get().is_some_and(|background| background.write(address, data)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn windows_do_not_overlap() {
        let bus = Bus::new();
        bus.insert(0x60, 4, Arc::new(Echo)).unwrap();
        assert_eq!(
            bus.insert(0x63, 1, Arc::new(Echo)),
            Err(BusError::Overlap { base: 0x63, len: 1, other: 0x60 })
        );
        assert_eq!(
            bus.insert(0x50, 0x11, Arc::new(Echo)),
            Err(BusError::Overlap { base: 0x50, len: 0x11, other: 0x60 })
        );
        bus.insert(0x64, 1, Arc::new(Echo)).unwrap();
        assert_eq!(bus.insert(0, 0, Arc::new(Echo)), Err(BusError::BadRange { base: 0, len: 0 }));
        assert!(bus.insert(u64::MAX, 2, Arc::new(Echo)).is_err());
        bus.insert(u64::MAX, 1, Arc::new(Echo)).unwrap();
    }

    #[test]
    fn accesses_stay_in_their_window() {
        let bus = Bus::new();
        bus.insert(0x60, 4, Arc::new(Echo)).unwrap();
        let mut data = [0xaa; 2];
        assert!(bus.read(0x62, &mut data));
        assert_eq!(data, [2, 2]);
        assert!(!bus.read(0x63, &mut data));
        assert!(!bus.write(0x5f, &data));
    }
}
