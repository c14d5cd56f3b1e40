//! The accelerator contract and the one CPU-thread lifecycle under every accelerator.

#![deny(missing_docs)]

pub mod arch_state;
pub mod contract;
pub mod cpu_handle;
pub mod cpu_model;

pub use arch_state::CpuArchState;
pub use contract::*;
pub use cpu_handle::CpuHandle;
