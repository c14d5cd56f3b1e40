//! The device contract (bus, interrupt wires, clock, requests to the machine) and the devices.
//!
//! A device knows its registers and the wires it was given. It cannot name an accelerator, a CPU or an
//! interrupt number; the machine (the root crate) introduces the parts to each other.

#![deny(missing_docs)]

pub mod backend;
pub mod bus;
pub mod chipset;
pub mod clock;
pub mod cpu_interrupts;
mod descriptors;
pub mod device;
pub mod dma;
pub mod interrupt;
pub mod irqchip;
pub mod lock_rank;
pub mod net;
pub mod p9;
pub mod pci;
pub mod serial;
mod sync;
pub mod system;
#[cfg(test)]
mod testing;
pub mod virtio;
