//! Whether a KVM can run Linux: a tiny 64-bit guest, judged by its results and its pace.
//!
//! Some kernels offer a `/dev/kvm` without VMX or SVM behind it. Such a KVM opens, reports every capability, and runs a
//! guest in the kernel's instruction emulator: some hundred times slower than hardware, until it meets an instruction
//! that the emulator lacks. Linux dies there in early boot.
//!
//! No false alarms: a busy host takes the CPU away for milliseconds at any moment, and under emulated SVM each exit
//! costs tens of microseconds while loops run at full pace. So a turn of the loop is timed over a thousand of them,
//! against a run of one turn, the best of several, by the thread's CPU time where that is less than the time that
//! passed; and a KVM passes as soon as one measurement says so.

#![expect(
    unsafe_code,
    reason = "hands the guest's memory to the kernel, tells the kick signal where the page is"
)]

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SHUTDOWN, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::accelerator::Shared;
use crate::kick::{self, Alarm, Entry};

mod guest;

use guest::Step;

/// Turns of the loop in one measurement: a microsecond or so on any hardware, a millisecond where each is emulated.
const TURNS: u64 = 1000;
/// What a turn (two instructions) may take. Hardware needs 1 ns, an emulating KVM 400 to 1200.
const LIMIT_NS: u64 = 40;
/// Measurements before the pace is believed to be bad.
const MIN_ROUNDS: u32 = 3;
const MAX_ROUNDS: u32 = 12;
/// No further measurement is begun after as much of the thread's CPU time.
const BUDGET: Duration = Duration::from_millis(4);
/// A guest that has not ended a piece by then (CPU time) gets nowhere. Where KVM itself runs on an emulated CPU, the
/// first entry alone was seen to take 17 ms.
const STUCK: Duration = Duration::from_millis(250);
/// The same in time that passes, for one that waits without using the CPU.
const STUCK_WALL: Duration = Duration::from_secs(2);
const ALARM_NS: i64 = 5_000_000;

/// Why a KVM that opens cannot run Linux: each message is a clause that fits behind "KVM is not usable here: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// The kernel's emulator gave up.
    #[error("it emulates instructions instead of running them (emulation failed at {0})")]
    EmulationFailed(&'static str),
    /// The kernel's emulator is at work.
    #[error("it emulates instructions instead of running them ({0} ns a turn of an empty loop)")]
    Slow(u64),
    /// The guest crashed.
    #[error("a guest crashes at {0}")]
    Crashed(&'static str),
    /// The guest computed something else than a CPU does.
    #[error("it gets {0} wrong")]
    WrongResult(&'static str),
    /// The guest neither ends nor fails.
    #[error("a small guest gets nowhere")]
    Stuck,
    /// The guest ended in a way that it should not.
    #[error("a small guest ends at {step} with KVM exit {reason}")]
    UnexpectedExit {
        /// The KVM_EXIT_ number.
        reason: u32,
        /// Where.
        step: &'static str,
    },
    /// The kernel refuses a second machine.
    #[error("{what} (errno {errno})")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        errno: i32,
    },
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeFailure {
    move |error| ProbeFailure::Refused { what, errno: error.errno() }
}

fn refused_io(what: &'static str) -> impl Fn(io::Error) -> ProbeFailure {
    move |error| ProbeFailure::Refused { what, errno: error.raw_os_error().unwrap_or(0) }
}

/// Runs the probe on the calling thread.
pub(crate) fn run(shared: &Shared) -> Result<(), ProbeFailure> {
    kick::prepare_thread().map_err(refused_io("the kick signal cannot be prepared"))?;
    let mut guest = Guest::new(shared)?;
    let _alarm = Alarm::every(ALARM_NS).map_err(refused_io("timer_create failed"))?;
    let verdict = guest.check_instructions().and_then(|()| guest.check_pace());
    guest.retire();
    verdict
}

/// The thread's CPU time.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is live; the clock exists for every thread.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// The probe's machine: no interrupt controllers, one CPU in long mode.
struct Guest {
    fd: VcpuFd,
    features: u64,
    memory: GuestMemoryMmap,
    // Last: the vCPU goes before its machine.
    _vm: VmFd,
}

impl Guest {
    fn new(shared: &Shared) -> Result<Self, ProbeFailure> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), guest::RAM)]).map_err(|_| {
            ProbeFailure::Refused { what: "no memory for a small guest", errno: libc::ENOMEM }
        })?;
        guest::load(&memory);
        let vm = shared.kvm.create_vm().map_err(refused("KVM_CREATE_VM failed"))?;
        let region = kvm_userspace_memory_region {
            memory_size: guest::RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).map_or(0, |host| host.addr() as u64),
            ..Default::default()
        };
        // SAFETY: the range is the mapping in `memory`, which lives in `Guest` beside the VM; the guest runs in
        // `Guest`'s methods only.
        unsafe { vm.set_user_memory_region(region) }.map_err(refused("KVM_SET_USER_MEMORY_REGION failed"))?;
        let fd = vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU failed"))?;
        let entries = shared
            .supported_cpuid()
            .map_err(|_| ProbeFailure::Refused { what: "KVM_GET_SUPPORTED_CPUID failed", errno: 0 })?;
        let cpuid = CpuId::from_entries(entries)
            .map_err(|_| ProbeFailure::Refused { what: "KVM_SET_CPUID2 has no room", errno: libc::E2BIG })?;
        fd.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2 failed"))?;
        let features = guest::features(entries);
        let mut sregs = fd.get_sregs().map_err(refused("KVM_GET_SREGS failed"))?;
        enter_long_mode(&mut sregs, features);
        fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS failed"))?;
        Ok(Self { fd, features, memory, _vm: vm })
    }

    /// Runs from `rip` to HLT; what it took.
    fn run(&mut self, rip: u64, turns: u64) -> Result<Duration, ProbeFailure> {
        let regs =
            kvm_regs { rip, rflags: 2, rsi: guest::DATA, r8: turns, r9: self.features, ..Default::default() };
        self.fd.set_regs(&regs).map_err(refused("KVM_SET_REGS failed"))?;
        let flag = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the page stays mapped while `self.fd` is open, and that outlives this call.
        let _entry = unsafe { Entry::new(flag) };
        let (wall, cpu) = (Instant::now(), cpu_time());
        loop {
            match self.fd.run().map(drop) {
                Ok(()) => break,
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    if cpu_time() - cpu > STUCK || wall.elapsed() > STUCK_WALL {
                        return Err(ProbeFailure::Stuck);
                    }
                    self.fd.set_kvm_immediate_exit(0);
                }
                Err(error) => return Err(refused("KVM_RUN failed")(error)),
            }
        }
        let took = wall.elapsed().min(cpu_time() - cpu);
        match self.fd.get_kvm_run().exit_reason {
            KVM_EXIT_HLT => Ok(took),
            KVM_EXIT_INTERNAL_ERROR => Err(ProbeFailure::EmulationFailed(self.step().name())),
            KVM_EXIT_SHUTDOWN => Err(ProbeFailure::Crashed(self.step().name())),
            reason => Err(ProbeFailure::UnexpectedExit { reason, step: self.step().name() }),
        }
    }

    /// Where the guest is.
    fn step(&self) -> Step {
        self.fd.get_regs().map_or(Step::Begin, |regs| Step::from_register(regs.rdi))
    }

    /// Closes the machine elsewhere: the kernel takes up to some ten milliseconds for it.
    fn retire(self) {
        // Without a thread to be had it is closed here: the closure is dropped.
        let _ = std::thread::Builder::new().name("kvm-probe-end".to_owned()).spawn(move || drop(self));
    }

    fn check_instructions(&mut self) -> Result<(), ProbeFailure> {
        self.run(guest::INSTRUCTIONS, 0)?;
        let mut data = [0; guest::DATA_BYTES];
        self.memory
            .read_slice(&mut data, GuestAddress(guest::DATA))
            .expect("the guest's data lie in its RAM");
        match guest::wrong_result(&data, self.features) {
            Some(step) => Err(ProbeFailure::WrongResult(step.name())),
            None => Ok(()),
        }
    }

    fn check_pace(&mut self) -> Result<(), ProbeFailure> {
        let (mut exit, mut slice) = (Duration::MAX, Duration::MAX);
        let begin = cpu_time();
        for round in 1.. {
            exit = exit.min(self.run(guest::LOOP, 1)?);
            slice = slice.min(self.run(guest::LOOP, TURNS)?);
            let turn_ns = turn_ns(exit, slice);
            if turn_ns <= LIMIT_NS {
                break;
            }
            if round >= MAX_ROUNDS || (round >= MIN_ROUNDS && cpu_time() - begin > BUDGET) {
                return Err(ProbeFailure::Slow(turn_ns));
            }
        }
        Ok(())
    }
}

/// What a turn takes, without what it costs to enter and leave the guest.
fn turn_ns(exit: Duration, slice: Duration) -> u64 {
    u64::try_from(slice.saturating_sub(exit).as_nanos()).unwrap_or(u64::MAX) / TURNS
}

/// 64-bit mode with flat segments, paging on, SSE on.
fn enter_long_mode(sregs: &mut kvm_sregs, features: u64) {
    const CR0: u64 = 0x8000_0033;
    const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 1 << 5 | 1 << 9 | 1 << 10;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 0xb, l: 1, ..flat };
    sregs.ds = kvm_segment { selector: 0x10, type_: 3, db: 1, ..flat };
    (sregs.es, sregs.ss, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds, sregs.ds);
    (sregs.gdt.limit, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0;
    sregs.cr3 = guest::PML4;
    sregs.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT | if features & guest::XSAVE != 0 { CR4_OSXSAVE } else { 0 };
    sregs.efer = EFER_LME_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelIrqchip;
    use crate::testing::open;

    #[test]
    fn the_cost_of_an_exit_does_not_count() {
        let us = Duration::from_micros;
        assert_eq!(turn_ns(us(40), us(42)), 2);
        assert_eq!(turn_ns(us(40), us(40 + 440)), 440);
        assert_eq!(turn_ns(us(50), us(40)), 0);
    }

    #[test]
    fn reasons_are_short_clauses() {
        assert_eq!(
            ProbeFailure::EmulationFailed(Step::Cmpxchg16b.name()).to_string(),
            "it emulates instructions instead of running them (emulation failed at lock cmpxchg16b)"
        );
        for failure in
            [ProbeFailure::Slow(440), ProbeFailure::Stuck, ProbeFailure::Crashed(Step::Xsave.name())]
        {
            let text = failure.to_string();
            assert!(!text.contains('\n') && text.len() < 100, "{text}");
        }
    }

    #[test]
    fn a_verdict_takes_milliseconds_and_stays() {
        let Some(kvm) = open("a_verdict_takes_milliseconds_and_stays", KernelIrqchip::Off) else { return };
        let begin = cpu_time();
        let verdict = kvm.probe();
        let took = cpu_time() - begin;
        eprintln!("this host's KVM: {verdict:?} in {took:?} of CPU time");
        // Milliseconds where the CPU is real; on an emulated one a hundred.
        assert!(took < Duration::from_secs(1), "{took:?}");
        // The measured pace varies, the kind of verdict does not.
        let again = kvm.probe();
        match (&verdict, &again) {
            (Err(first), Err(second)) => {
                assert_eq!(std::mem::discriminant(first), std::mem::discriminant(second))
            }
            _ => assert_eq!(verdict, again),
        }
    }
}
