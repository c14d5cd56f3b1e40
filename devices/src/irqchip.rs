//! The interrupt controllers, for accelerators that have none: 8259A pair, I/O APIC, local APICs.
//!
//! A wire or message goes one way, each step under at most its own lock: device, then PIC or I/O APIC, then the local
//! APIC (which has none), then [`InterruptTarget::raise`](crate::cpu_interrupts::InterruptTarget::raise). A CPU's EOI
//! comes back to the I/O APIC holding nothing.

pub mod apic_set;
pub mod ioapic;
pub mod local_apic;
pub mod pic8259;
mod userspace;

pub use local_apic::LocalApic;
pub use userspace::{TIMER_PIN, UserspaceIrqchip};
