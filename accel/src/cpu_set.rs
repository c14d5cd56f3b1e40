//! All CPUs of a machine: creation, pause, resume, reset, throttle, removal, exit (DESIGN.md, *The lifecycle*).
//!
//! Only a CPU that is bound to its thread is in the set, so whoever iterates meets no half-made one. A set is born
//! paused. Pauses are counted: CPUs run while nobody holds them paused, so of two callers neither can take away the
//! other's pause, and one that waits for its pause to take effect need not fear that a third resumes meanwhile.
//!
//! The set does the CPUs. Their place among the machine's parts is [`MachineLifecycle`](crate::MachineLifecycle)'s.

use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use crate::contract::{Accelerator, CpuIo, CpuTime, MachineCheck, Threading, VcpuError, VcpuSeed};
use crate::cpu_handle::{CpuHandle, InjectError};
use crate::cpu_thread::{Arrival, CpuThread, Hosted, Shared};
use crate::exclusive::{Exclusive, ExclusiveSection};
use crate::mailbox::Mailbox;
use crate::observer::CpuObserver;
use crate::throttle::{Throttle, ThrottleError};
use crate::work::RunOnError;

const LOCK: &str = "no foreign code runs under the lock of the CPU set";

/// Why a CPU could not be added.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The accelerator could not bind it to its thread.
    #[error("CPU {index} could not be created")]
    Vcpu {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: VcpuError,
    },
    /// The host gave no thread.
    #[error("no thread for CPU {index}")]
    Thread {
        /// Which.
        index: usize,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// Its thread ended before it was created.
    #[error("the thread of CPU {0} died")]
    Died(usize),
}

/// Why CPUs could not be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a CPU's own thread cannot wait for the CPUs to pause")]
pub struct OnCpuThread;

/// Why a CPU could not be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// It would wait for itself, or for a CPU that waits for it.
    #[error("a CPU's own thread cannot wait for a CPU to leave")]
    OnCpuThread,
    /// It is not in the set (any more).
    #[error("CPU {0} is not there")]
    Gone(usize),
}

/// Why CPUs could not be reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// They run.
    #[error("CPUs are reset while paused")]
    NotPaused,
    /// One cannot be reached.
    #[error("CPU {index} could not be reset")]
    RunOn {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: RunOnError,
    },
    /// The engine failed.
    #[error("CPU {index} could not be reset")]
    Vcpu {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: VcpuError,
    },
}

struct Inner {
    cpus: Vec<CpuHandle>,
    /// Each with its mailbox, which tells whose it is.
    threads: Vec<(Arc<Mailbox>, JoinHandle<()>)>,
    /// The mailbox of the thread that hosts all CPUs, if one does.
    round_robin: Option<Arc<Mailbox>>,
    /// How many hold the CPUs paused.
    pauses: usize,
    /// How many times CPUs were set going.
    generation: u64,
}

/// All CPUs of a machine.
pub struct CpuSet {
    accelerator: &'static str,
    threading: Threading,
    time: Option<Arc<dyn CpuTime>>,
    shared: Shared,
    inner: Arc<Mutex<Inner>>,
    /// Held while a CPU comes or goes: one at a time.
    turn: Mutex<()>,
    throttle: Throttle,
}

impl CpuSet {
    /// An empty set of CPUs of `accelerator`, paused once: the first [`Self::resume_all`] sets it going. `observer`
    /// hears of all its CPUs.
    pub fn new(accelerator: &dyn Accelerator, observer: Arc<dyn CpuObserver>) -> Self {
        Self {
            accelerator: accelerator.name(),
            threading: accelerator.threading(),
            time: accelerator.cpu_time(),
            shared: Shared { exclusive: Exclusive::new(), observer },
            inner: Arc::new(Mutex::new(Inner {
                cpus: Vec::new(),
                threads: Vec::new(),
                round_robin: None,
                pauses: 1,
                generation: 0,
            })),
            turn: Mutex::new(()),
            throttle: Throttle::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(LOCK)
    }

    /// A handle to the CPU `index`, which is to be added to this set.
    pub fn new_cpu(&self, index: usize) -> CpuHandle {
        match self.threading {
            Threading::PerCpu => CpuHandle::new(index),
            Threading::RoundRobin => {
                let mut inner = self.lock();
                let mailbox = inner.round_robin.get_or_insert_with(|| Arc::new(Mailbox::new(0)));
                CpuHandle::in_mailbox(index, Arc::clone(mailbox), mailbox.add_slot())
            }
        }
    }

    /// Adds the CPU that `seed` ([`Accelerator::new_vcpu`]) grows into, behind the handle `cpu` ([`CpuSet::new_cpu`]; its
    /// interrupt controller may have it already), and returns once it is bound to its thread. It is in the power-on
    /// state, stopped, or, when the set runs, about to run.
    pub fn spawn(
        &self,
        seed: Box<dyn VcpuSeed>,
        cpu: CpuHandle,
        io: Arc<dyn CpuIo>,
    ) -> Result<(), SpawnError> {
        let index = cpu.index();
        let _turn = self.turn.lock().expect(LOCK);
        cpu.set_kicker(seed.kicker());
        let (created, creation) = mpsc::sync_channel(1);
        let arrival = arrival(seed, cpu.clone(), io, self.shared.clone(), created);
        let hosted_elsewhere = self.threading == Threading::RoundRobin && !self.lock().threads.is_empty();
        let thread = if hosted_elsewhere {
            if !cpu.mailbox().post_arrival(arrival) {
                return Err(SpawnError::Died(index));
            }
            None
        } else {
            Some(self.start_thread(&cpu, arrival)?)
        };
        match creation.recv() {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(SpawnError::Vcpu { index, source }),
            Err(mpsc::RecvError) => return Err(SpawnError::Died(index)),
        }
        let mut inner = self.lock();
        inner.cpus.push(cpu.clone());
        inner.threads.extend(thread.map(|thread| (Arc::clone(cpu.mailbox()), thread)));
        // Until now it was held: `release` sets those going that are in the set.
        let paused = inner.pauses > 0;
        cpu.mailbox().post(cpu.slot(), |slot| {
            slot.enlisted = true;
            slot.stop = paused || slot.unplug;
        });
        // The thread may be executing another one.
        cpu.request_exit();
        Ok(())
    }

    fn start_thread(&self, cpu: &CpuHandle, arrival: Arrival) -> Result<JoinHandle<()>, SpawnError> {
        let index = cpu.index();
        let name = match self.threading {
            Threading::PerCpu => format!("CPU {index}/{}", self.accelerator),
            Threading::RoundRobin => format!("CPUs/{}", self.accelerator),
        };
        let (mailbox, time) = (Arc::clone(cpu.mailbox()), self.time.clone());
        mailbox.post_arrival(arrival);
        let run = move || {
            CpuThread::new(mailbox, time).run();
            // Handles must not outlive the thread's CPUs in a thread-local.
            CpuHandle::set_current(None);
        };
        std::thread::Builder::new().name(name).spawn(run).map_err(|source| {
            cpu.mailbox().end();
            SpawnError::Thread { index, source }
        })
    }

    /// Stops `cpu` for good, in whatever state the others are, and returns when it is gone: its engine's part has been
    /// dropped, and, unless it hosts others, its thread has ended. What was queued for it before is done, what comes after is
    /// refused. Its index may be used again. The machine sees to it that the guest has let go of the CPU.
    pub fn remove(&self, cpu: &CpuHandle) -> Result<(), RemoveError> {
        if CpuHandle::current().is_some() {
            return Err(RemoveError::OnCpuThread);
        }
        let _turn = self.turn.lock().expect(LOCK);
        if !self.lock().cpus.iter().any(|other| other.same_cpu(cpu)) {
            return Err(RemoveError::Gone(cpu.index()));
        }
        unplug(cpu);
        // In the set until it is gone: who pauses meanwhile waits for it, too.
        cpu.mailbox().wait_ack(cpu.slot(), |slot| slot.is_gone());
        let thread = {
            let mut inner = self.lock();
            inner.cpus.retain(|other| !other.same_cpu(cpu));
            if inner.cpus.is_empty() {
                // Its thread ends: CPUs that come later get another one.
                inner.round_robin = None;
            }
            // A thread that hosts others is not waited for.
            let hosts_others = inner.cpus.iter().any(|other| Arc::ptr_eq(other.mailbox(), cpu.mailbox()));
            let thread =
                inner.threads.iter().position(|(its, _)| !hosts_others && Arc::ptr_eq(its, cpu.mailbox()));
            thread.map(|at| inner.threads.swap_remove(at).1)
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(target: "cpu", "a CPU thread panicked");
        }
        Ok(())
    }

    /// The CPUs that exist, in the order they were added. Some may leave, and others come, while the caller goes through
    /// them: what is asked of one that has left is refused.
    pub fn cpus(&self) -> Vec<CpuHandle> {
        self.lock().cpus.clone()
    }

    /// The CPU `index`, if it exists.
    pub fn cpu(&self, index: usize) -> Option<CpuHandle> {
        self.lock().cpus.iter().find(|cpu| cpu.index() == index).cloned()
    }

    /// How many times the CPUs were set going: unchanged between two looks, nothing ran in between that was not
    /// running at the first.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Whether somebody holds the CPUs paused. They may be still on their way.
    pub fn is_paused(&self) -> bool {
        self.lock().pauses > 0
    }

    /// Stops all CPUs and returns when they are `Stopped`, each at an instruction boundary. They stay so until as many
    /// [`Self::resume_all`] as there were pauses. Not for a CPU's thread: it uses [`CpuHandle::hold`] and has
    /// another one pause.
    pub fn pause_all(&self) -> Result<(), OnCpuThread> {
        if CpuHandle::current().is_some() {
            return Err(OnCpuThread);
        }
        let cpus = {
            let mut inner = self.lock();
            inner.pauses += 1;
            // Under the set's lock, as in `resume_all`: requests reach the CPUs in the order of the count.
            inner.cpus.iter().for_each(CpuHandle::hold_thread);
            inner.cpus.clone()
        };
        for cpu in cpus {
            cpu.mailbox().wait_ack(cpu.slot(), |slot| slot.is_parked());
        }
        Ok(())
    }

    /// Takes back one pause. When it was the last, all CPUs run, also those that stopped on their own. Does not wait.
    ///
    /// Panics if the CPUs are not paused: somebody took back another's pause.
    pub fn resume_all(&self) {
        let mut inner = self.lock();
        assert!(inner.pauses > 0, "resume without pause");
        inner.pauses -= 1;
        if inner.pauses == 0 {
            inner.generation += 1;
            inner.cpus.iter().for_each(release);
        }
    }

    /// Power-on state for all CPUs, each on its own thread; pending requests are forgotten. The caller holds the CPUs
    /// paused and has reset devices and interrupt controllers before.
    pub fn reset_all(&self) -> Result<(), ResetError> {
        if !self.is_paused() {
            return Err(ResetError::NotPaused);
        }
        for cpu in self.cpus() {
            let index = cpu.index();
            let reset = cpu.run_on(|cpu| {
                cpu.cpu().clear_interrupt(u32::MAX);
                cpu.backend.reset()
            });
            match reset {
                // On its way out of the set: nobody will miss its reset.
                Err(RunOnError::Gone) if cpu.mailbox().peek(cpu.slot(), |slot| slot.unplug) => {}
                Err(source) => return Err(ResetError::RunOn { index, source }),
                Ok(Err(source)) => return Err(ResetError::Vcpu { index, source }),
                Ok(Ok(())) => {}
            }
        }
        Ok(())
    }

    /// A machine check happens to the CPU `index` and, at the same time, to all others, as between Intel's CPUs (QEMU's `mce -b`):
    /// those find in their bank 1 that an error was elsewhere. One that waits for its start-up IPI cannot take it, and shuts
    /// down. Not for a CPU's thread.
    pub fn broadcast_machine_check(&self, index: usize, check: MachineCheck) -> Result<(), InjectError> {
        let cpu = self.cpu(index).ok_or(RunOnError::Gone)?;
        // None goes on before all have it: they wait for each other in their handlers, and not for long.
        self.pause_all().map_err(|OnCpuThread| RunOnError::OnCpuThread)?;
        let done = cpu.inject_machine_check(check).and_then(|()| {
            let mut others = self.cpus().into_iter().filter(|other| !other.same_cpu(&cpu));
            others.try_for_each(|other| other.inject_machine_check(MachineCheck::ELSEWHERE))
        });
        self.resume_all();
        done
    }

    /// Has CPUs execute `100 - percent` percent of the host's time at most (QEMU's `cpu_throttle`); 0 lets them run. At any
    /// time, from any thread.
    pub fn set_throttle(&self, percent: u8) -> Result<(), ThrottleError> {
        let inner = Arc::clone(&self.inner);
        let cpus = move || {
            let inner = inner.lock().expect(LOCK);
            (inner.cpus.clone(), inner.pauses == 0)
        };
        self.throttle.set(percent, Box::new(cpus))
    }

    /// Percent of the host's time that CPUs do not execute.
    pub fn throttle(&self) -> u8 {
        self.throttle.percent()
    }

    /// Waits until no CPU executes guest code, and keeps it so until the section is dropped.
    pub fn start_exclusive(&self) -> ExclusiveSection<'_> {
        self.shared.exclusive.start()
    }

    /// Stops all CPUs for good and waits for their threads. The set is empty afterwards.
    pub fn exit_all(&self) {
        self.throttle.end();
        let (cpus, threads) = {
            let mut inner = self.lock();
            inner.round_robin = None;
            (std::mem::take(&mut inner.cpus), std::mem::take(&mut inner.threads))
        };
        cpus.iter().for_each(unplug);
        let me = std::thread::current().id();
        for (_, thread) in threads {
            // The last owner of the set may be a CPU's thread; it ends by itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!(target: "cpu", "a CPU thread panicked");
            }
        }
    }
}

impl Drop for CpuSet {
    fn drop(&mut self) {
        self.exit_all();
    }
}

fn unplug(cpu: &CpuHandle) {
    cpu.mailbox().post(cpu.slot(), |slot| {
        slot.stop = true;
        slot.unplug = true;
    });
    cpu.request_exit();
}

/// Sets the CPU going, and with it the others of its thread.
fn release(cpu: &CpuHandle) {
    cpu.mailbox().post_all(|slot| {
        if slot.enlisted {
            slot.stop = slot.unplug;
        }
    });
    // Time may pass again: a thread whose CPUs are idle moves it.
    cpu.mailbox().ring();
}

/// Binds a CPU on the thread that runs this, and tells `created` how that went.
fn arrival(
    seed: Box<dyn VcpuSeed>,
    cpu: CpuHandle,
    io: Arc<dyn CpuIo>,
    shared: Shared,
    created: mpsc::SyncSender<Result<(), VcpuError>>,
) -> Arrival {
    Box::new(move || {
        CpuHandle::set_current(Some(cpu.clone()));
        let answer = "spawn waits for the answer";
        match seed.bind(cpu.clone()) {
            Ok(backend) => {
                let hosted = Hosted::new(cpu, io, backend, shared);
                created.send(Ok(())).expect(answer);
                Some(hosted)
            }
            Err(error) => {
                created.send(Err(error)).expect(answer);
                None
            }
        }
    })
}
