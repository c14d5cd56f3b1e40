//! Guest time: the host's, with the kernel's paravirtual clock standing still along with it (Linux,
//! Documentation/virt/kvm/api.rst, *KVM_SET_CLOCK*, *KVM_KVMCLOCK_CTRL*).

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::clock::{Clock, HostClock, Timer, TimerCallback};
use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{Cap, VmFd};

/// The clock of one VM.
pub(crate) struct KvmClock {
    host: Arc<HostClock>,
    vm: Arc<VmFd>,
    /// Whether the kernel lets its clock be set.
    adjustable: bool,
    /// The kernel's clock where it stopped, in nanoseconds; `None` while time passes.
    stopped_at: Mutex<Option<u64>>,
    /// How often time has gone on after a pause.
    resumptions: AtomicU64,
}

impl KvmClock {
    pub(crate) fn new(vm: Arc<VmFd>) -> std::io::Result<Self> {
        let adjustable = vm.check_extension(Cap::AdjustClock);
        let (host, stopped_at) = (HostClock::new()?, Mutex::default());
        Ok(Self { host, vm, adjustable, stopped_at, resumptions: AtomicU64::new(0) })
    }

    /// How often time has gone on after a pause: a CPU that sees a new number tells its guest that it was stopped, so
    /// that the guest's watchdogs do not take the pause for a lock-up.
    pub(crate) fn resumptions(&self) -> u64 {
        self.resumptions.load(Ordering::Acquire)
    }

    fn kernel_time(&self) -> Option<u64> {
        self.adjustable.then(|| self.vm.get_clock().ok()).flatten().map(|data| data.clock)
    }
}

impl Clock for KvmClock {
    fn now_ns(&self) -> u64 {
        self.host.now_ns()
    }

    fn new_timer(&self, label: &'static str, callback: TimerCallback) -> Box<dyn Timer> {
        self.host.new_timer(label, callback)
    }

    fn pause(&self) {
        let mut stopped_at = self.stopped_at.lock().expect("no holder of the clock's lock panics");
        self.host.pause();
        if stopped_at.is_none() {
            *stopped_at = self.kernel_time();
        }
    }

    fn resume(&self) {
        let mut stopped_at = self.stopped_at.lock().expect("no holder of the clock's lock panics");
        if let Some(clock) = stopped_at.take() {
            // No flags: the time is what it is said to be, however long the pause was.
            if let Err(error) = self.vm.set_clock(&kvm_clock_data { clock, ..Default::default() }) {
                tracing::warn!(target: "cpu", %error, "KVM_SET_CLOCK failed");
            }
            self.resumptions.fetch_add(1, Ordering::Release);
        }
        self.host.resume();
    }

    fn next_deadline_ns(&self) -> Option<u64> {
        self.host.next_deadline_ns()
    }

    fn run_expired(&self) {
        self.host.run_expired();
    }

    fn wakeup_fd(&self) -> Option<RawFd> {
        self.host.wakeup_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelIrqchip;
    use crate::testing::open;
    use std::time::Duration;

    #[test]
    fn the_kernels_clock_stands_still_while_paused() {
        let Some(kvm) = open("the_kernels_clock_stands_still_while_paused", KernelIrqchip::Off) else {
            return;
        };
        let clock = &kvm.shared.clock;
        if !clock.adjustable {
            eprintln!("skipped: the_kernels_clock_stands_still_while_paused: KVM_CAP_ADJUST_CLOCK is absent");
            return;
        }
        const PAUSE: Duration = Duration::from_millis(300);
        let (kernel, host) = (clock.kernel_time().unwrap(), clock.now_ns());
        clock.pause();
        std::thread::sleep(PAUSE);
        clock.pause();
        assert_eq!(clock.resumptions(), 0);
        clock.resume();
        clock.resume();
        assert_eq!(clock.resumptions(), 1);
        let (kernel, host) = (clock.kernel_time().unwrap() - kernel, clock.now_ns() - host);
        // A busy host may take its time between two lines of this test, hence not zero.
        assert!(kernel < 200_000_000 && host < 200_000_000, "{kernel} {host}");
    }
}
