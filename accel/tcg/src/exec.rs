//! Running generated code: the loop around it, the helpers it calls, the host faults in it.

pub mod blocks;
pub mod counters;
pub mod helpers;
mod icount;
pub mod signals;
pub mod sites;
pub mod trace;
pub mod vcpu;
pub mod windows;

#[cfg(test)]
mod tests;

pub use vcpu::Vcpu;
