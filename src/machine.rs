//! The machine.
pub mod cpu_io;
pub mod memory;
