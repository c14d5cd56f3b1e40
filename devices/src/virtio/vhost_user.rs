//! Devices whose work another process does, the *back end* (QEMU, *Vhost-user Protocol*): file systems by virtiofsd.
//!
//! The back end has guest memory mapped and works on rings of its own, the *shadow rings*, not on the guest's. A thread
//! of each queue moves chains from the guest's ring to the shadow ring and, when they were used, back ([`super::vhost`]). So the
//! guest's interrupts, its resets and its mistakes are what they are with every other device, a back end sees no ring that makes no
//! sense, and what it has written to memory is told ([`crate::dma`]) before the guest hears of it, which a translator needs. The
//! data itself is not copied.

pub mod back_end;
pub mod fs;

pub use back_end::{BackEnd, BackEndError};

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
