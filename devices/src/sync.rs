//! The atomics of the local APIC: std's, or loom's under `cfg(loom)` so that the protocol itself, not a copy of it, is
//! model-checked.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
