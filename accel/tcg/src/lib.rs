//! The translator: x86-64 guests on x86-64 hosts without hardware virtualisation.

#![allow(clippy::useless_conversion, reason = "`dynasm!` converts register numbers that are bytes already")]

pub mod arch;
pub mod backend;
pub mod code;
pub mod complex;
pub mod cpu;
pub mod cpuid;
pub mod debug;
pub mod engine;
pub mod env;
pub mod exception;
pub mod exec;
pub mod huge_pages;
pub mod icount;
pub mod interrupt;
pub mod machine_check;
pub mod mmu;
pub mod msr;
pub mod operand;
pub mod peers;
pub mod ram;
pub mod segment;
pub mod stack;
pub mod stress;
pub mod task;
pub mod translate;
pub mod windows;

pub use backend::{Tcg, TcgError, TcgOptions};
pub use stress::Stress;
