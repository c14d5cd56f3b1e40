//! The translator: x86-64 guests on x86-64 hosts without hardware virtualisation.

pub mod complex;
pub mod cpu;
pub mod debug;
pub mod env;
pub mod exception;
pub mod mmu;
pub mod operand;
pub mod ram;
