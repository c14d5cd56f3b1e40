//! The any-thread face of the local APICs: routes messages (IPIs, MSIs, the I/O APIC's) to the CPUs that they name.
//! SDM vol. 3A, *Determining IPI Destination* and *Message Signalled Interrupts*.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use super::local_apic::LocalApic;
use crate::interrupt::MsiMessage;

/// How a message acts on its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at every CPU named.
    Fixed,
    /// The vector, at the CPU with the lowest priority of those named.
    LowestPriority,
    /// System management interrupt: there is no SMM, so nothing happens.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    StartUp,
    /// The vector comes from the PIC.
    ExtInt,
}

impl DeliveryMode {
    /// From the three-bit field. `None` for the reserved value.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Trigger mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Edge.
    Edge,
    /// Level: its EOI is broadcast to the I/O APIC.
    Level,
}

/// The CPUs that a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The destination field.
    pub id: u32,
    /// Logical, not physical.
    pub is_logical: bool,
    /// All ones in the field's width names every CPU.
    pub is_broadcast: bool,
}

impl Destination {
    /// From an 8-bit field: an xAPIC's IPI, an MSI, the I/O APIC.
    pub fn narrow(id: u8, is_logical: bool) -> Self {
        Self { id: u32::from(id), is_logical, is_broadcast: id == u8::MAX }
    }

    /// From the 32-bit field of an x2APIC's IPI.
    pub fn wide(id: u32, is_logical: bool) -> Self {
        Self { id, is_logical, is_broadcast: id == u32::MAX }
    }
}

/// A message on the APICs' bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// To whom.
    pub destination: Destination,
    /// How.
    pub mode: DeliveryMode,
    /// The vector, or the start-up IPI's page.
    pub vector: u8,
    /// Trigger mode.
    pub trigger: Trigger,
}

/// Fields of a message-signalled interrupt.
mod msi {
    pub const DESTINATION_SHIFT: u32 = 12;
    pub const REDIRECTION_HINT: u64 = 1 << 3;
    pub const LOGICAL: u64 = 1 << 2;
    pub const DELIVERY_SHIFT: u32 = 8;
    pub const TRIGGER_LEVEL: u32 = 1 << 15;
}

impl ApicMessage {
    /// What a store of `message` means. `None` outside the APIC's address range, or if its mode is reserved.
    pub fn from_msi(message: MsiMessage) -> Option<Self> {
        if !message.is_interrupt() {
            return None;
        }
        let is_logical = message.address & msi::LOGICAL != 0;
        let mut mode = DeliveryMode::from_bits((message.data >> msi::DELIVERY_SHIFT) as u8 & 7)?;
        if message.address & msi::REDIRECTION_HINT != 0 && is_logical && mode == DeliveryMode::Fixed {
            mode = DeliveryMode::LowestPriority;
        }
        Some(Self {
            destination: Destination::narrow((message.address >> msi::DESTINATION_SHIFT) as u8, is_logical),
            mode,
            vector: message.data as u8,
            trigger: if message.data & msi::TRIGGER_LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
        })
    }
}

/// All local APICs of the machine.
#[derive(Default)]
pub struct LocalApicSet {
    apics: RwLock<Vec<Arc<LocalApic>>>,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
}

impl LocalApicSet {
    pub(super) fn push(&self, apic: Arc<LocalApic>) {
        self.apics.write().expect("no holder of the APIC set's lock panics").push(apic);
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<LocalApic>>> {
        self.apics.read().expect("no holder of the APIC set's lock panics")
    }

    /// Delivers `message`. True if a CPU took it. Any thread; takes no lock of an APIC.
    pub fn deliver(&self, message: &ApicMessage) -> bool {
        let apics = self.read();
        let destination = &message.destination;
        if message.mode == DeliveryMode::LowestPriority {
            return self.deliver_lowest(&apics, message);
        }
        // Nearly always CPU n has APIC ID n.
        if !destination.is_logical
            && !destination.is_broadcast
            && let Some(apic) = apics.get(destination.id as usize)
            && apic.apic_id() == destination.id
        {
            return apic.accept(message.mode, message.vector, message.trigger);
        }
        let mut accepted = false;
        for apic in apics.iter().filter(|apic| apic.matches(destination)) {
            accepted |= apic.accept(message.mode, message.vector, message.trigger);
        }
        accepted
    }

    fn deliver_lowest(&self, apics: &[Arc<LocalApic>], message: &ApicMessage) -> bool {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = (0..apics.len())
            .map(|i| &apics[(start.wrapping_add(i)) % apics.len()])
            .filter(|apic| apic.is_software_enabled() && apic.matches(&message.destination))
            .min_by_key(|apic| apic.processor_priority());
        chosen.is_some_and(|apic| apic.accept(DeliveryMode::Fixed, message.vector, message.trigger))
    }

    /// Delivers to every CPU but `except`: the IPI shorthands.
    pub(super) fn deliver_all(&self, except: Option<u32>, message: &ApicMessage) {
        for apic in self.read().iter().filter(|apic| Some(apic.apic_id()) != except) {
            apic.accept(message.mode, message.vector, message.trigger);
        }
    }
}
