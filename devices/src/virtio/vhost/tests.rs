//! The queues between a driver and a kernel, both of the tests: on the driver's own rings and on shadow rings.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::back_end::{BackEnd, VhostError};
use super::fake::Fake;
use super::ioctl::VhostFile;
use super::queues::KernelQueues;
use crate::virtio::mmio::spec::{register, status};
use crate::virtio::testing::{DATA, Driver, MEMORY, QUEUE_SIZE, readable, writable};
use crate::virtio::worker::{Pace, Worker};
use crate::virtio::{Activation, Doorbell, VirtioDevice, feature};

/// A busy host makes it slow.
const LIMIT: Duration = Duration::from_secs(100);

const RINGS: u64 = feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Three queues, of which two are the kernel's.
struct Device(KernelQueues);

impl VirtioDevice for Device {
    fn name(&self) -> &'static str {
        "test"
    }
    fn device_id(&self) -> u32 {
        19
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &[128; 3]
    }
    fn doorbells(&self) -> &[Arc<Doorbell>] {
        self.0.doorbells()
    }
    fn workers(&self) -> &[Worker] {
        self.0.workers()
    }
    fn activate(&self, activation: Activation) {
        let features = activation.features & RINGS;
        self.0.activate(activation, features);
    }
    fn reset(&self) {
        self.0.reset();
    }
    fn pause(&self) {
        self.0.pause();
    }
    fn resume(&self) {
        self.0.resume();
    }
}

struct Rig {
    driver: Driver,
    kernel: Arc<Fake>,
}

impl Rig {
    fn new(observed: bool) -> Self {
        let kernel = Arc::new(Fake::default());
        let back_end = BackEnd::new("test", Box::new(Arc::clone(&kernel)), RINGS).unwrap();
        let queues = KernelQueues::new(back_end, 3, 2, observed, &Pace::Threads).unwrap();
        Self { driver: Driver::new(|_| Arc::new(Device(queues))), kernel }
    }

    /// Makes `text` available, half in one buffer and half in another, with two for the answer; and notifies.
    fn send(&mut self, queue: u16, text: &[u8]) {
        let len = text.len() as u32;
        self.driver.memory.write_slice(text, GuestAddress(DATA)).unwrap();
        let buffers = [
            readable(DATA, len / 2),
            readable(DATA + u64::from(len / 2), len - len / 2),
            writable(DATA + 0x1000, 3),
            writable(DATA + 0x2000, len + 100),
        ];
        self.driver.add(queue, 0, &buffers);
        self.driver.notify(queue);
    }

    /// Waits for the answer to what was sent as the `n`th.
    fn answer(&self, queue: u16, n: u16, len: usize) -> Vec<u8> {
        until(|| self.driver.used_index(queue) != n);
        assert_eq!(self.driver.used(queue, n), (0, len as u32));
        let mut answer = vec![0; len];
        self.driver.memory.read_slice(&mut answer[..3], GuestAddress(DATA + 0x1000)).unwrap();
        self.driver.memory.read_slice(&mut answer[3..], GuestAddress(DATA + 0x2000)).unwrap();
        answer
    }

    fn ask(&mut self, queue: u16, text: &[u8]) -> Vec<u8> {
        let before = self.driver.used_index(queue);
        self.send(queue, text);
        self.answer(queue, before, text.len())
    }
}

#[test]
fn the_kernel_works_on_what_the_driver_asks() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        rig.driver.start();
        for round in 0..3 * QUEUE_SIZE {
            let text = format!("request number {round}");
            assert_eq!(rig.ask(round % 2, text.as_bytes()), text.to_uppercase().as_bytes());
        }
        until(|| rig.driver.interrupted());
        // What was written was told, where somebody has to hear of it.
        let told = rig.driver.written.0.lock().unwrap().contains(&(DATA + 0x1000, 3));
        assert_eq!(told, observed);
        // Event indices are the guest's and the kernel's, or between us and the guest.
        let features = rig.driver.offered();
        rig.driver.start_with(features);
        assert_eq!(rig.ask(1, b"again"), b"AGAIN");
        assert_eq!(rig.kernel.features() & feature::RING_EVENT_IDX != 0, !observed);
    }
}

#[test]
fn a_reset_ends_what_the_kernel_is_at() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        rig.driver.start();
        assert_eq!(rig.ask(1, b"before"), b"BEFORE");
        rig.kernel.idle.store(true, Ordering::SeqCst);
        rig.send(1, b"lost");
        rig.driver.transport.device().reset();
        assert!(!rig.kernel.is_running());
        rig.kernel.idle.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            rig.driver.start();
            assert_eq!(rig.ask(1, b"and after"), b"AND AFTER");
            assert_eq!(rig.ask(0, b"both"), b"BOTH");
        }
        assert!(!rig.driver.needs_reset());
    }
}

#[test]
fn a_pause_loses_nothing() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        let device = Arc::clone(rig.driver.transport.device());
        // Before there is a driver.
        device.pause();
        device.resume();
        rig.driver.start();
        for round in 0..20 {
            assert_eq!(rig.ask(0, b"before"), b"BEFORE");
            device.pause();
            assert!(!rig.kernel.is_running());
            let n = rig.driver.used_index(1);
            rig.send(1, b"meanwhile");
            assert_eq!(rig.driver.used_index(1), n, "round {round}");
            device.resume();
            assert_eq!(rig.answer(1, n, 9), b"MEANWHILE");
        }
        // A machine is paused when it is reset.
        device.pause();
        device.reset();
        device.resume();
        assert!(!rig.kernel.is_running());
        rig.driver.start();
        assert_eq!(rig.ask(0, b"after"), b"AFTER");
        assert!(!rig.driver.needs_reset());
    }
}

/// As when the function may reach memory only later.
#[test]
fn what_waits_when_the_kernel_begins_is_done() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        rig.driver.negotiate(rig.driver.offered());
        (0..2).for_each(|queue| rig.driver.set_queue(queue));
        rig.send(1, b"early");
        rig.driver.set(register::STATUS, rig.driver.status() | status::DRIVER_OK);
        assert_eq!(rig.answer(1, 0, 5), b"EARLY");
    }
}

#[test]
fn what_a_driver_does_wrong_is_its_own_matter() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        rig.driver.start();
        rig.driver.add(1, 0, &[readable(MEMORY - 4, 8), writable(DATA, 8)]);
        rig.driver.notify(1);
        until(|| rig.driver.needs_reset());
        rig.driver.start();
        assert!(!rig.driver.needs_reset());
        assert_eq!(rig.ask(1, b"again"), b"AGAIN");
    }
}

#[test]
fn a_kernel_that_does_not_begin() {
    for observed in [false, true] {
        let mut rig = Rig::new(observed);
        rig.kernel.fails.store(true, Ordering::SeqCst);
        rig.driver.start();
        assert!(rig.driver.needs_reset());
        rig.kernel.fails.store(false, Ordering::SeqCst);
        rig.driver.start();
        assert_eq!(rig.ask(0, b"now"), b"NOW");
        // Nor after a pause.
        let device = Arc::clone(rig.driver.transport.device());
        device.pause();
        rig.kernel.fails.store(true, Ordering::SeqCst);
        device.resume();
        assert!(rig.driver.needs_reset());
        rig.kernel.fails.store(false, Ordering::SeqCst);
        rig.driver.start();
        assert_eq!(rig.ask(0, b"again"), b"AGAIN");
    }
}

#[test]
fn what_is_no_kernel_of_ours() {
    let old = BackEnd::new("test", Box::new(Arc::new(Fake::default())), feature::VERSION_1);
    assert_eq!(
        old.err().map(|error| error.to_string()).as_deref(),
        Some("the kernel's vhost lacks indirect descriptors")
    );
    let missing = VhostFile::open("/dev/there-is-none").err();
    assert!(matches!(missing, Some(VhostError::Open { path: "/dev/there-is-none", .. })));
    let other = VhostFile::inherited(File::open("/dev/null").unwrap().into(), 7).err();
    assert_eq!(other.map(|error| error.to_string()).as_deref(), Some("descriptor 7 is no new vhost device"));
}
