//! PCI: functions with their configuration spaces, BARs and interrupts, on the bus of a PCI Express root complex (PCI Local Bus
//! Specification 3.0; PCI Express Base Specification).
//!
//! A device ([`PciDevice`]) says what its configuration space shows and answers for its BARs; the bus does the rest: where
//! software places the BARs, the MSI-X table, who may reach memory. There is one bus, and no bridge to another.

mod address_space;
mod bar;
mod bridges;
mod config;
mod function;
mod interrupts;
mod msix;
mod root;
pub mod spec;
#[cfg(test)]
pub(crate) mod testing;

pub use bar::{Bar, BarKind};
pub use bridges::{HostBridge, HostBridgeModel, IsaBridge};
pub use config::{Capability, Identity};
pub use function::{Layout, PciDevice};
pub use interrupts::FunctionInterrupts;
pub use root::{Address, PciRoot, Taken, ecam_bytes};

/// Interrupts that the pins of all slots share.
pub const INTERRUPTS: u8 = 8;

/// Which of [`INTERRUPTS`] the pin (1 to 4, INTA to INTD) of a slot is wired to: neighbours to different ones.
pub fn interrupt_of(slot: u8, pin: u8) -> u8 {
    (slot + (pin - 1)) % INTERRUPTS
}
