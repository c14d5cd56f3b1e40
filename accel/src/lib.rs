//! The accelerator contract and the one CPU-thread lifecycle under every accelerator.
//!
//! QEMU had a vCPU-thread protocol per accelerator for twenty years, and its bugs are known. Why they cannot happen here:
//!
//! | What went wrong there | Why not here |
//! |---|---|
//! | a stop or a work item lost: the exit request cleared after the look, or read in the wrong order | `kick`: *clear, then look*; loom model |
//! | kicked, but without an exit request: the CPU looks, sees nothing, re-enters | whoever leaves mail calls [`CpuHandle::request_exit`]; a bare kick is not public |
//! | an interrupt just before the CPU sleeps | `mailbox`: announced sleep, two fences; loom model, `interrupt_storm` |
//! | round robin kicked only the next CPU; a hang while timers stood still | a thread has one mailbox and one exit request, and a request kicks all its CPUs; turns end on the host's time |
//! | all CPUs idle under icount, and nobody arms the timer that wakes them | the CPUs' thread moves time itself, before it sleeps ([`contract::CpuTime`]) |
//! | two callers of pause and resume: one waits for ever | pauses are counted; `pause_resume_storm` |
//! | a half-made CPU is resumed, or iterated | only bound CPUs are in the [`CpuSet`]; `created_is_acknowledged` |
//! | an exclusive section started with a lock that a CPU in the guest waits for | no big lock; `devices::lock_rank` |
//! | two CPUs wait for each other's work | a waiter does its own; `two_cpus_run_on_each_other`; CPUs of one thread are refused |
//! | waiting drops a lock and breaks the caller's invariants | no wait here releases anything of the caller's |
//! | an exclusive section, or a lock, left behind by a long jump | guards; engines return, nobody jumps |
//! | queued taken for done | [`CpuHandle::post`] says queued, [`CpuHandle::run_on`] waits |
//! | requests before the first CPU exists | a set without CPUs pauses and resumes; work for a CPU that is not there is refused |
//! | a spurious wake-up taken for a wake-up | every wait is in a loop that looks |
//! | a pending access forgotten, because an exit was requested | `complete_exit` before anything else is done on the CPU; `reset_with_pending_access` |
//! | a CPU of a shared thread is joined | threads are joined, not CPUs; a shared one ends with its last CPU |
//! | a kick at a thread not yet there, or gone | a kicker is valid from the seed on and for ever; `exit_from_every_state` |

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
mod turns;
pub mod work;

pub use arch_state::CpuArchState;
pub use contract::*;
pub use cpu_handle::CpuHandle;
pub mod throttle;
pub use cpu_model::CpuModel;
pub use cpu_set::CpuSet;
pub use cpu_state::CpuState;
pub use machine_lifecycle::MachineLifecycle;
pub use observer::{CpuEvent, CpuObserver};
pub use work::{CpuContext, RunOnError};
