//! The synchronisation primitives of the lifecycle: std's, or loom's under `cfg(loom)` so that the protocol itself,
//! not a copy of it, is model-checked.

#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{ThreadId, current},
    thread_local,
};

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{ThreadId, current},
    thread_local,
};
