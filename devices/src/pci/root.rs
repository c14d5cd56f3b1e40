//! The root complex: the functions of bus 0, and the ways to their configuration spaces, ECAM (PCI Express Base Specification,
//! *PCI Express Enhanced Configuration Access Mechanism*) and ports 0xcf8 to 0xcff (PCI Local Bus Specification 3.0,
//! *Configuration Space Access Mechanism #1*).
//!
//! `changes` is held for a whole write to configuration registers and what follows from it, so that BARs end where the last
//! write placed them. It is taken before any lock of a device; a device's thread never takes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use super::address_space::AddressSpace;
use super::bar::BarKind;
use super::function::{BarWindow, Function, PciDevice};
use super::spec::{BARS, CONFIG_BYTES, ECAM_BUS_BYTES, ECAM_FUNCTION_BYTES, FUNCTIONS, SLOTS, ports};
use crate::bus::{Bus, BusDevice};
use crate::device::Device;

const LOCK: &str = "no holder of a root complex's lock panics";

/// Where a function is on its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    slot: u8,
    function: u8,
}

impl Address {
    /// Function `function` (0 to 7) of slot `slot` (0 to 31).
    pub const fn new(slot: u8, function: u8) -> Option<Self> {
        if slot < SLOTS && function < FUNCTIONS { Some(Self { slot, function }) } else { None }
    }

    /// The slot.
    pub const fn slot(self) -> u8 {
        self.slot
    }

    /// The function in the slot.
    pub const fn function(self) -> u8 {
        self.function
    }

    fn number(self) -> u8 {
        self.slot * FUNCTIONS + self.function
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}.{}", self.slot, self.function)
    }
}

/// Why a function cannot be there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("PCI {0} is taken")]
pub struct Taken(pub Address);

/// A function, and the windows of its BARs.
struct Placed {
    function: Arc<Function>,
    windows: [Option<(BarKind, Arc<dyn BusDevice>)>; BARS],
    /// Where memory BARs answer, as the device was told.
    told: Mutex<[Option<u64>; BARS]>,
}

/// The root complex with its bus.
pub struct PciRoot {
    functions: RwLock<BTreeMap<u8, Arc<Placed>>>,
    changes: Mutex<()>,
    memory: Arc<AddressSpace>,
    io: Arc<AddressSpace>,
    /// Which holds this, by its windows.
    memory_bus: Weak<Bus>,
    /// CONFIG_ADDRESS.
    address: AtomicU32,
}

impl PciRoot {
    /// An empty bus, whose BARs are decoded where nothing else is on `memory_bus` and `io_bus`.
    pub fn new(memory_bus: &Arc<Bus>, io_bus: &Bus) -> Arc<Self> {
        let (memory, io) = (Arc::new(AddressSpace::default()), Arc::new(AddressSpace::default()));
        memory_bus.set_background(Arc::clone(&memory) as _);
        io_bus.set_background(Arc::clone(&io) as _);
        Arc::new(Self {
            functions: RwLock::default(),
            changes: Mutex::default(),
            memory,
            io,
            memory_bus: Arc::downgrade(memory_bus),
            address: AtomicU32::new(0),
        })
    }

    /// Puts `device` at `address`.
    pub fn add(&self, address: Address, device: Arc<dyn PciDevice>) -> Result<(), Taken> {
        let function = Function::new(device);
        let window = |index: usize| {
            let bar = function.config().bar(index)?;
            let window = BarWindow { function: Arc::clone(&function), index };
            Some((bar.kind(), Arc::new(window) as Arc<dyn BusDevice>))
        };
        let windows = std::array::from_fn(window);
        let mut functions = self.functions.write().expect(LOCK);
        if functions.contains_key(&address.number()) {
            return Err(Taken(address));
        }
        let placed = Placed { function, windows, told: Mutex::default() };
        functions.insert(address.number(), Arc::new(placed));
        let first = address.slot * FUNCTIONS;
        let mut of_slot = functions.range(first..=first + (FUNCTIONS - 1)).map(|(_, placed)| placed);
        if of_slot.clone().count() > 1
            && let Some(placed) = of_slot.next()
        {
            placed.function.config().set_multi_function();
        }
        Ok(())
    }

    /// The lowest slot from `first` on in which there is nothing.
    pub fn free_slot(&self, first: u8) -> Option<Address> {
        let functions = self.functions.read().expect(LOCK);
        let is_free = |slot: &u8| {
            functions.range(slot * FUNCTIONS..=slot * FUNCTIONS + (FUNCTIONS - 1)).next().is_none()
        };
        (first..SLOTS).find(is_free).and_then(|slot| Address::new(slot, 0))
    }

    /// Whether there is a function at `address`.
    pub fn has(&self, address: Address) -> bool {
        self.functions.read().expect(LOCK).contains_key(&address.number())
    }

    /// The ECAM window of `buses` buses from 0 on, each of [`ECAM_BUS_BYTES`].
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// Ports 0xcf8 to 0xcfb. `beside` has what is not an access of 32 bits to all of them: on a PC, the reset register of
    /// port 0xcf9.
    pub fn address_port(self: &Arc<Self>, beside: Option<(u64, Arc<dyn BusDevice>)>) -> Arc<dyn BusDevice> {
        Arc::new(AddressPort { root: Arc::clone(self), beside })
    }

    /// Ports 0xcfc to 0xcff.
    pub fn data_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(DataPort(Arc::clone(self)))
    }

    fn placed(&self, number: u8) -> Option<Arc<Placed>> {
        self.functions.read().expect(LOCK).get(&number).cloned()
    }

    /// Reads a register of function `number`. Where there is none, all bits are ones.
    fn read_config(&self, number: u8, offset: usize, data: &mut [u8]) {
        match self.placed(number) {
            Some(placed) => placed.function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, number: u8, offset: usize, data: &[u8]) {
        let Some(placed) = self.placed(number) else { return };
        let _changes = self.changes.lock().expect(LOCK);
        if placed.function.write_config(offset, data) {
            self.place(number, &placed);
            self.tell();
        }
    }

    /// Brings the windows of one function's BARs in line with its registers.
    fn place(&self, number: u8, placed: &Placed) {
        for (index, window) in placed.windows.iter().enumerate() {
            let Some((kind, window)) = window else { continue };
            let at = {
                let config = placed.function.config();
                config.decoded(index).zip(config.bar(index).map(super::bar::Bar::bytes))
            };
            let space = if *kind == BarKind::Io { &self.io } else { &self.memory };
            space.place((number, index), at, window);
        }
    }

    /// Tells devices where their memory BARs answer now: a window that moves hides or uncovers others'.
    fn tell(&self) {
        let Some(memory_bus) = self.memory_bus.upgrade() else { return };
        let functions: Vec<_> = {
            let functions = self.functions.read().expect(LOCK);
            functions.iter().map(|(&number, placed)| (number, Arc::clone(placed))).collect()
        };
        let now: Vec<[Option<u64>; BARS]> = functions
            .iter()
            .map(|(number, _)| {
                std::array::from_fn(|index| self.memory.visible((*number, index), &memory_bus))
            })
            .collect();
        // First what is gone: something else may be there next.
        for going in [true, false] {
            for ((_, placed), now) in functions.iter().zip(&now) {
                let mut told = placed.told.lock().expect(LOCK);
                for (index, (told, now)) in told.iter_mut().zip(now).enumerate() {
                    if told != now && (going || now.is_some()) {
                        *told = if going { None } else { *now };
                        placed.function.device().moved(index, *told);
                    }
                }
            }
        }
    }

    fn each(&self, mut act: impl FnMut(u8, &Placed)) {
        let functions = self.functions.read().expect(LOCK).clone();
        functions.iter().for_each(|(&number, placed)| act(number, placed));
    }
}

impl Device for PciRoot {
    fn name(&self) -> &'static str {
        "PCI"
    }

    fn reset(&self) {
        let _changes = self.changes.lock().expect(LOCK);
        self.address.store(0, Ordering::SeqCst);
        self.each(|number, placed| {
            placed.function.reset();
            self.place(number, placed);
        });
        self.tell();
    }

    fn pause(&self) {
        self.each(|_, placed| placed.function.device().pause());
    }

    fn resume(&self) {
        self.each(|_, placed| placed.function.device().resume());
    }
}

struct Ecam(Arc<PciRoot>);

/// The function and the register that an ECAM offset means; `None` on another bus than 0.
fn ecam_register(offset: u64) -> Option<(u8, usize)> {
    let number = u8::try_from(offset / ECAM_FUNCTION_BYTES).ok()?;
    Some((number, usize::try_from(offset % ECAM_FUNCTION_BYTES).ok()?))
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match ecam_register(offset) {
            Some((number, register)) => self.0.read_config(number, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((number, register)) = ecam_register(offset) {
            self.0.write_config(number, register, data);
        }
    }
}

struct AddressPort {
    root: Arc<PciRoot>,
    beside: Option<(u64, Arc<dyn BusDevice>)>,
}

impl AddressPort {
    /// What an access of one byte at `offset` is for.
    fn beside(&self, offset: u64, len: usize) -> Option<&Arc<dyn BusDevice>> {
        self.beside.as_ref().filter(|(at, _)| *at == offset && len == 1).map(|(_, device)| device)
    }
}

impl BusDevice for AddressPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            *data = self.root.address.load(Ordering::SeqCst).to_le_bytes();
        } else if let Some(device) = self.beside(offset, data.len()) {
            device.read(0, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(&data) = <&[u8; 4]>::try_from(data) {
            self.root.address.store(u32::from_le_bytes(data) & !0x7f00_0003, Ordering::SeqCst);
        } else if let Some(device) = self.beside(offset, data.len()) {
            device.write(0, data);
        }
    }
}

struct DataPort(Arc<PciRoot>);

impl DataPort {
    /// The function and the register that CONFIG_ADDRESS means; `None` if it means none, or another bus than 0.
    fn register(&self, offset: u64) -> Option<(u8, usize)> {
        let address = self.0.address.load(Ordering::SeqCst);
        if address & ports::ENABLE == 0 || address >> 16 & 0xff != 0 {
            return None;
        }
        let register = usize::try_from(address).ok()? % CONFIG_BYTES;
        Some(((address >> 8) as u8, register + usize::try_from(offset).ok()?))
    }
}

impl BusDevice for DataPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.register(offset) {
            Some((number, register)) => self.0.read_config(number, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((number, register)) = self.register(offset) {
            self.0.write_config(number, register, data);
        }
    }
}

/// Bytes of the ECAM window of this many buses.
pub const fn ecam_bytes(buses: u64) -> u64 {
    buses * ECAM_BUS_BYTES
}

#[cfg(test)]
mod tests;
