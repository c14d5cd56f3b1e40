//! What CPUs are asked when a run ends.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use accel::{CpuContext, CpuHandle, VcpuBackend};

use crate::machine::Machine;

/// How long a CPU has to answer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What `question` finds out on the thread of `cpu`. `None`: the CPU is stuck in its engine, or gone.
pub fn ask<R: Send + 'static>(
    cpu: &CpuHandle,
    question: impl FnOnce(&mut dyn VcpuBackend) -> R + Send + 'static,
) -> Option<R> {
    let (sender, receiver) = mpsc::sync_channel(1);
    put(cpu, |cpu| question(cpu.backend), sender);
    receiver.recv_timeout(LAST_WORDS).ok()
}

/// The same of all `cpus` at once: they share the time to answer.
pub fn ask_all<R: Send + 'static>(
    cpus: &[CpuHandle],
    question: impl FnOnce(&mut CpuContext<'_>) -> R + Send + Clone + 'static,
) -> Vec<Option<R>> {
    let ears: Vec<_> = cpus
        .iter()
        .map(|cpu| {
            let (sender, receiver) = mpsc::sync_channel(1);
            put(cpu, question.clone(), sender);
            receiver
        })
        .collect();
    let end = Instant::now() + LAST_WORDS;
    let left = || end.saturating_duration_since(Instant::now());
    ears.into_iter().map(|receiver| receiver.recv_timeout(left()).ok()).collect()
}

fn put<R: Send + 'static>(
    cpu: &CpuHandle,
    question: impl FnOnce(&mut CpuContext<'_>) -> R + Send + 'static,
    answer: mpsc::SyncSender<R>,
) {
    let posted = cpu.post(move |cpu| {
        // Nobody may be listening any more.
        let _ = answer.send(question(cpu));
    });
    if posted.is_err() {
        tracing::debug!(target: "cpu", "the CPU is gone");
    }
}

/// Writes how many instructions were executed to the log, where they are counted.
pub fn log_icount(machine: &Machine) {
    // A CPU that asked for the machine's end is on its way out of the guest.
    for cpu in machine.lifecycle().cpus().cpus() {
        if ask(&cpu, |_| ()).is_none() {
            tracing::trace!(target: "icount", "CPU {} does not answer", cpu.index());
        }
    }
    match machine.accelerator().cpu_time() {
        Some(time) => tracing::trace!(target: "icount", "{}", time.summary()),
        None => tracing::trace!(target: "icount", "instructions are counted under -icount only"),
    }
}

/// Writes what each CPU's engine has counted to the log.
pub fn log_statistics(machine: &Machine) {
    for cpu in machine.lifecycle().cpus().cpus() {
        match ask(&cpu, |backend| backend.statistics()) {
            Some(lines) => {
                for line in lines {
                    tracing::trace!(target: "jit", "{line}");
                }
            }
            None => tracing::trace!(target: "jit", "CPU {} does not answer", cpu.index()),
        }
    }
}
