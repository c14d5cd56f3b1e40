//! The configuration space of a function (PCI Local Bus Specification 3.0, *Configuration Space Organization*).

use super::bar::{Bar, BarKind};
use super::spec::{BARS, CONFIG_BYTES, MULTI_FUNCTION, bar, capability, command, msix, register, status};

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface, the base class in bits 23:16.
    pub class: u32,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

/// A capability: what follows its ID and pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Its bytes from the third on.
    pub body: Vec<u8>,
    /// The bits of them that software can write; what is not there cannot be written.
    pub writable: Vec<u8>,
}

impl Capability {
    /// One that software only reads.
    pub fn read_only(id: u8, body: Vec<u8>) -> Self {
        Self { id, body, writable: Vec::new() }
    }
}

/// The registers of one function. Offsets and lengths are any: what is not there reads as all ones.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    power_on: [u8; CONFIG_BYTES],
    bars: [Option<Bar>; BARS],
    msix: Option<usize>,
    /// The end of what is in use.
    end: usize,
    /// Where the next capability's offset goes.
    link: usize,
}

impl ConfigSpace {
    /// A function of this identity, without BARs and capabilities yet.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            power_on: [0; CONFIG_BYTES],
            bars: [None; BARS],
            msix: None,
            end: register::DEVICE_SPECIFIC,
            link: register::CAPABILITIES_POINTER,
        };
        space.set(register::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(register::DEVICE_ID, &identity.device.to_le_bytes());
        space.set(register::REVISION_ID, &[identity.revision]);
        space.set(register::CLASS_CODE, &identity.class.to_le_bytes()[..3]);
        space.set(register::SUBSYSTEM_VENDOR_ID, &identity.subsystem.0.to_le_bytes());
        space.set(register::SUBSYSTEM_ID, &identity.subsystem.1.to_le_bytes());
        space.allow(register::COMMAND, &command::WRITABLE.to_le_bytes());
        space.allow(register::CACHE_LINE_SIZE, &[0xff]);
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets registers to what they are at power-on.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.power_on[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets software write these bits.
    pub fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..][..bits.len()].copy_from_slice(bits);
    }

    /// The function drives INTx by this pin, 1 (INTA) to 4.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.set(register::INTERRUPT_PIN, &[pin]);
    }

    /// The slot has more than one function.
    pub fn set_multi_function(&mut self) {
        self.set(register::HEADER_TYPE, &[MULTI_FUNCTION]);
    }

    /// Adds base address register `index`.
    ///
    /// Panics if there is one already, or no place for its upper half.
    pub fn add_bar(&mut self, index: usize, new: Bar) {
        let is_wide = matches!(new.kind(), BarKind::Memory64 { .. });
        let width = if is_wide { 2 } else { 1 };
        let is_free = self.bars[index..][..width].iter().all(Option::is_none);
        let below = index.checked_sub(1).and_then(|below| self.bars[below]);
        assert!(is_free && !below.is_some_and(|bar| bar.is_wide()), "BAR {index} is taken");
        let at = register::BAR0 + 4 * index;
        let flags = match new.kind() {
            BarKind::Io => bar::IO,
            BarKind::Memory32 => 0,
            BarKind::Memory64 { prefetchable } => {
                bar::MEMORY_64 | if prefetchable { bar::PREFETCHABLE } else { 0 }
            }
        };
        self.set(at, &flags.to_le_bytes());
        self.allow(at, &new.address_mask().to_le_bytes()[..4 * width]);
        self.bars[index] = Some(new);
    }

    /// Adds a capability to the end of the list; its offset.
    ///
    /// Panics if there is no room: that is for whoever designs a device to see.
    pub fn add_capability(&mut self, new: &Capability) -> usize {
        let at = self.end.next_multiple_of(4);
        self.end = at + 2 + new.body.len();
        assert!(self.end <= CONFIG_BYTES, "no room for capability {:#x}", new.id);
        self.set(at, &[new.id, 0]);
        self.set(at + 2, &new.body);
        self.allow(at + 2, &new.writable);
        self.set(self.link, &[at as u8]);
        self.link = at + 1;
        self.set(register::STATUS, &status::CAPABILITIES_LIST.to_le_bytes());
        at
    }

    /// Adds the MSI-X capability: table and pending bits of `vectors` (1 to 2048) are in BAR `bar` at these offsets.
    pub fn add_msix(&mut self, vectors: u16, bar: usize, table: u32, pending: u32) {
        let indicator = u32::try_from(bar).expect("one of six");
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table | indicator).to_le_bytes());
        body.extend((pending | indicator).to_le_bytes());
        let writable = (msix::FUNCTION_MASK | msix::ENABLE).to_le_bytes().to_vec();
        self.msix = Some(self.add_capability(&Capability { id: capability::MSIX, body, writable }));
    }

    /// Reads registers. Beyond the space there is nothing.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(offset).copied().unwrap_or(0xff);
        }
    }

    /// Writes those bits that can be written.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (offset, &byte) in (offset..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(offset), self.writable.get(offset)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// Power-on state.
    pub fn reset(&mut self) {
        self.bytes = self.power_on;
    }

    fn half(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from(self.half(offset)) | u32::from(self.half(offset + 2)) << 16
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.half(register::COMMAND)
    }

    /// The Message Control register of MSI-X; zero where there is none.
    pub fn msix_control(&self) -> u16 {
        self.msix.map_or(0, |at| self.half(at + msix::MESSAGE_CONTROL))
    }

    /// BAR `index`, if there is one.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Where BAR `index` is decoded now: `None` where it is not, for want of an address too.
    pub fn decoded(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let enabled = if bar.kind() == BarKind::Io { command::IO_SPACE } else { command::MEMORY_SPACE };
        if self.command() & enabled == 0 {
            return None;
        }
        let at = register::BAR0 + 4 * index;
        let high = if bar.is_wide() { self.word(at + 4) } else { 0 };
        let address = (u64::from(self.word(at)) | u64::from(high) << 32) & bar.address_mask();
        (address != 0).then_some(address)
    }

    /// The registers as they are.
    pub fn bytes(&self) -> &[u8; CONFIG_BYTES] {
        &self.bytes
    }
}
