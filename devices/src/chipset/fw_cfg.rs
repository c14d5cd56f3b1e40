//! The firmware configuration device: what the machine tells firmware and operating systems of itself, and files for them
//! (QEMU, *QEMU Firmware Configuration (fw_cfg) Device*).

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::device::Device;
use crate::dma::DmaMemory;
use crate::lock_rank::device::{Mutex, MutexGuard};

mod items;
pub mod spec;
#[cfg(test)]
mod tests;

pub use items::{Content, FileError, Items};

use spec::{dma, key};

/// How much is copied at a time.
const CHUNK: u32 = 64 << 10;

struct State {
    /// What is selected; `None`: no item.
    key: Option<u16>,
    offset: u32,
    /// The upper half of the DMA address register.
    dma_high: u32,
    items: BTreeMap<u16, Content>,
}

/// The device. An access by DMA is over when the store to the address register is.
pub struct FwCfg {
    state: Mutex<State>,
    /// What is writable, as it is after a reset.
    initial: BTreeMap<u16, Vec<u8>>,
    memory: DmaMemory,
}

/// A DMA access as the guest wrote it.
#[derive(Clone, Copy, Debug)]
struct Access {
    control: u32,
    len: u32,
    address: u64,
}

impl Access {
    fn of(bytes: [u8; dma::ACCESS_BYTES]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { control: word(0), len: word(4), address: u64::from(word(8)) << 32 | u64::from(word(12)) }
    }
}

/// An access did not come to its end.
struct Failed;

impl State {
    fn select(&mut self, selector: u16) {
        let selector = selector & !key::WRITE_CHANNEL;
        self.key = self.items.contains_key(&selector).then_some(selector);
        self.offset = 0;
    }

    /// The item that is selected and how much is left of it; none behind its end.
    fn rest(&mut self) -> Option<(&mut Content, u32)> {
        let content = self.items.get_mut(&self.key?)?;
        let left = content.len().checked_sub(self.offset).filter(|&left| left > 0)?;
        Some((content, left))
    }

    /// Fills `buffer` from the item, and with zeros behind its end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Failed> {
        buffer.fill(0);
        let offset = self.offset;
        let Some((content, left)) = self.rest() else { return Ok(()) };
        let count = u32::try_from(buffer.len()).unwrap_or(u32::MAX).min(left);
        let here = usize::try_from(count).expect("a 64-bit host");
        let result = content.read(offset, &mut buffer[..here]);
        self.offset += count;
        result.map_err(|error| {
            tracing::warn!(target: "fw_cfg", key = self.key, %error, "an item cannot be read");
            Failed
        })
    }

    /// Memory gets the item; what was written is counted in `done`.
    fn read_to(&mut self, memory: &DmaMemory, access: Access, done: &mut u64) -> Result<(), Failed> {
        let mut buffer = vec![0; access.len.min(CHUNK) as usize];
        let mut left = access.len;
        while left > 0 {
            let here = left.min(CHUNK);
            let chunk = &mut buffer[..here as usize];
            self.read(chunk)?;
            let address = access.address.checked_add(*done).ok_or(Failed)?;
            memory.write_slice(chunk, GuestAddress(address)).map_err(|_| Failed)?;
            *done += u64::from(here);
            left -= here;
        }
        Ok(())
    }

    /// The item gets what is in memory, all or nothing.
    fn write_from(&mut self, memory: &DmaMemory, access: Access) -> Result<(), Failed> {
        if access.len == 0 {
            return Ok(());
        }
        let offset = self.offset;
        let (content, left) = self.rest().ok_or(Failed)?;
        let Content::Writable(bytes) = content else { return Err(Failed) };
        if access.len > left {
            return Err(Failed);
        }
        let bytes = &mut bytes[offset as usize..][..access.len as usize];
        let mut new = vec![0; bytes.len()];
        memory.read_slice(&mut new, GuestAddress(access.address)).map_err(|_| Failed)?;
        bytes.copy_from_slice(&new);
        self.offset += access.len;
        Ok(())
    }
}

impl FwCfg {
    /// A device that holds `items`; a guest gets at `memory` through it.
    pub fn new(items: Items, memory: DmaMemory) -> Arc<Self> {
        let items = items.finish();
        let initial = items.iter().filter_map(|(&key, content)| match content {
            Content::Writable(bytes) => Some((key, bytes.clone())),
            Content::Bytes(_) | Content::File { .. } => None,
        });
        let initial = initial.collect();
        let state = State { key: Some(key::SIGNATURE), offset: 0, dma_high: 0, items };
        Arc::new(Self { state: Mutex::new(state), initial, memory })
    }

    /// The content of a new `etc/vmcoreinfo`.
    pub fn vmcoreinfo() -> Content {
        let mut bytes = vec![0; spec::vmcoreinfo::BYTES];
        bytes[..2].copy_from_slice(&spec::vmcoreinfo::FORMAT_ELF.to_le_bytes());
        Content::Writable(bytes)
    }

    /// Selector and data register, [`spec::PORTS`] ports.
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ports(Arc::clone(self)))
    }

    /// The DMA address register, [`spec::DMA_PORTS`] ports.
    pub fn dma_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(DmaPorts(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock of fw_cfg panics")
    }

    /// Does the access whose structure is at `at`. The memory's observer is told when no lock is held.
    fn access(&self, at: u64) {
        let mut bytes = [0; dma::ACCESS_BYTES];
        let result = match self.memory.read_slice(&mut bytes, GuestAddress(at)) {
            Ok(()) => self.transfer(Access::of(bytes)),
            Err(_) => Err(Failed),
        };
        let control = if result.is_ok() { 0 } else { dma::ERROR };
        // A guest whose structure is not in memory cannot be told.
        if self.memory.write_slice(&control.to_be_bytes(), GuestAddress(at)).is_ok() {
            self.memory.written(GuestAddress(at), 4);
        }
    }

    fn transfer(&self, access: Access) -> Result<(), Failed> {
        let mut state = self.lock();
        if access.control & dma::SELECT != 0 {
            state.select((access.control >> dma::KEY_SHIFT) as u16);
        }
        if access.control & dma::READ != 0 {
            let mut done = 0;
            let result = state.read_to(&self.memory, access, &mut done);
            drop(state);
            self.memory.written(GuestAddress(access.address), done);
            result
        } else if access.control & dma::WRITE != 0 {
            state.write_from(&self.memory, access)
        } else {
            if access.control & dma::SKIP != 0 {
                let left = state.rest().map_or(0, |(_, left)| left);
                state.offset += access.len.min(left);
            }
            Ok(())
        }
    }
}

struct Ports(Arc<FwCfg>);

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.0.lock();
        for (offset, byte) in (offset..).zip(data) {
            // The selector cannot be read.
            *byte = 0;
            if offset == spec::DATA && state.read(std::slice::from_mut(byte)).is_err() {
                *byte = 0;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The selector takes 16 bits at once; the data register takes nothing.
        if let (0, &[low, high]) = (offset, data) {
            self.0.lock().select(u16::from_le_bytes([low, high]));
        }
    }
}

struct DmaPorts(Arc<FwCfg>);

impl BusDevice for DmaPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = spec::DMA_SIGNATURE.get(from.saturating_add(index)).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = match (offset, data) {
            (0, &[a, b, c, d]) => {
                self.0.lock().dma_high = u32::from_be_bytes([a, b, c, d]);
                return;
            }
            (4, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.0.lock().dma_high);
                u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d]))
            }
            (0, &[a, b, c, d, e, f, g, h]) => {
                self.0.lock().dma_high = 0;
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            _ => return,
        };
        self.0.access(address);
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.select(key::SIGNATURE);
        state.dma_high = 0;
        for (&key, bytes) in &self.initial {
            state.items.insert(key, Content::Writable(bytes.clone()));
        }
    }
}
