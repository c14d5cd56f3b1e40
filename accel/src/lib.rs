//! The accelerator contract and the one CPU-thread lifecycle under every accelerator.

#![deny(missing_docs)]

pub mod arch_state;
pub mod conformance;
pub mod contract;
pub mod cpu_handle;
pub mod cpu_model;
pub mod cpu_set;
pub mod cpu_state;
mod cpu_thread;
pub mod exclusive;
mod kick;
#[cfg(all(test, loom))]
mod loom_tests;
pub mod machine_lifecycle;
mod mailbox;
pub mod observer;
pub mod qtest;
mod sync;
pub mod work;

pub use arch_state::CpuArchState;
pub use contract::*;
pub use cpu_handle::CpuHandle;
pub use cpu_model::CpuModel;
pub use cpu_set::CpuSet;
pub use cpu_state::CpuState;
pub use machine_lifecycle::MachineLifecycle;
pub use observer::{CpuEvent, CpuObserver};
pub use work::{CpuContext, RunOnError};
