//! The accelerator contract and the one CPU-thread lifecycle under every accelerator.
//!
//! QEMU had a vCPU-thread protocol per accelerator for twenty years, and its bugs are known. Why they cannot happen here
//! (names of tests: the [conformance] suite's, which run on every engine, loom's models and unit tests):
//!
//! | | What went wrong there | Why not here |
//! |---|---|---|
//! | H1 | a stop or a work item lost: the exit request cleared after the look, or read in the wrong order | `kick`: *clear, then look*; `loom_a_request_to_a_running_cpu_is_not_lost`, `kick_storm` |
//! | H2 | kicked, but without an exit request: the CPU looks, sees nothing, re-enters | whoever leaves mail calls [`CpuHandle::request_exit`]; a bare kick is not public; `kick_before_run_is_sticky` |
//! | H3 | round robin kicked only the next CPU; a hang while timers stood still | a thread has one mailbox and one exit request, and a request kicks all its CPUs; turns end on the host's time; the suite runs under round robin |
//! | H4 | two callers of pause and resume: one waits for ever | pauses are counted; `pause_resume_storm`, `paused_guests_do_not_change` |
//! | H5 | a half-made CPU is resumed | a CPU is held until it is bound and in the [`CpuSet`]; `a_cpu_comes_and_goes` |
//! | H6 | a half-made CPU is met in the list | only bound CPUs are in the set; `created_is_acknowledged`, `cpus_come_and_go_in_a_storm` |
//! | H7 | an exclusive section started with a lock that a CPU in the guest waits for | no big lock; `devices::lock_rank`, asserted before each entry to the guest; `exclusive_sections_exclude` |
//! | H8 | two CPUs wait for each other's work | a waiter does its own; `two_cpus_run_on_each_other`; CPUs of one thread are refused |
//! | H9 | waiting drops a lock and breaks the caller's invariants | no wait here releases anything of the caller's |
//! | H10 | an exclusive section, or a lock, left behind by a long jump | guards; engines return, nobody jumps; `loom_two_sections_and_two_guests` |
//! | H11 | queued taken for done | [`CpuHandle::post`] says queued, [`CpuHandle::run_on`] waits; `work_is_done_in_order` |
//! | H12 | another CPU's translations flushed without waiting for it | the translator waits until the other has forgotten, or is outside (`accel_tcg::peers`); a guest's own shootdowns are interrupts that it waits for; `rewritten_code_is_executed`, `work_reaches_all_cpus` |
//! | H13 | all CPUs' write entries searched, under a lock, for each page of new code | each CPU forgets for itself, and only those are asked that may have an entry (`accel_tcg::peers`) |
//! | H14 | a CPU in chained code keeps what is read there from being freed | every loop of generated code polls, and who frees kicks; `rewritten_code_is_executed` with guests that never leave on their own |
//! | H15 | requests before the first CPU exists | a set without CPUs pauses and resumes (`a_cpu_that_cannot_be_bound_is_not_in_the_set`); work for a CPU that is not there is refused (`a_handle_without_a_cpu_says_so`) |
//! | H16 | a spurious wake-up taken for a wake-up | every wait is in a loop that looks |
//! | H17 | a tick of the throttle lost, because the one before was still at work | ticks add to a debt; `debts_add_up_to_a_limit`, `a_throttled_guest_is_slower`, `loom_mail_ends_a_throttled_sleep` |
//! | H18 | all CPUs idle under icount, and nobody arms the timer that wakes them | the CPUs' thread moves time itself, before it sleeps ([`contract::CpuTime`]) |
//! | H19 | a CPU of a shared thread is joined | threads are joined, not CPUs; a shared one ends with its last CPU; `a_cpu_comes_and_goes` under round robin |
//! | H20 | a pending access forgotten, because an exit was requested | `complete_exit` before anything else is done on the CPU; `reset_with_pending_access` |
//! | H21 | a kick at a thread not yet there, or gone | a kicker is valid from the seed on and for ever; `exit_from_every_state`, `a_cpu_comes_and_goes` |
//! | | an interrupt just before the CPU sleeps | `mailbox`: announced sleep, two fences; `loom_an_interrupt_wakes_a_halted_cpu`, `interrupt_storm`, `interrupts_reach_all_cpus` |

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
pub mod throttle;
mod turns;
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
