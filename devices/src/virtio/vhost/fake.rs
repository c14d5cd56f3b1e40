//! A kernel for the tests, of other hands: it works on rings by virtio-queue, and answers a request with its bytes in capitals. What
//! the kernel would refuse it refuses.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::back_end::{KernelDevice, Ring};
use super::relay::Wires;
use crate::virtio::feature;

struct FakeRing {
    memory: GuestMemoryMmap,
    queue: Queue,
    wires: Wires,
    errors: Arc<EventFd>,
    broken: bool,
}

type Rings = BTreeMap<usize, FakeRing>;

/// What was heard, and what works: how it is ended, and the thread.
#[derive(Default)]
struct State {
    features: u64,
    memory: Option<GuestMemoryMmap>,
    rings: Rings,
    worker: Option<(Arc<AtomicBool>, JoinHandle<Rings>)>,
}

/// The kernel's device.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
    /// It does not begin.
    pub fails: AtomicBool,
    /// It leaves requests where they are.
    pub idle: Arc<AtomicBool>,
}

fn refused(errno: i32) -> vhost::Error {
    vhost::Error::IoctlError(io::Error::from_raw_os_error(errno))
}

impl Fake {
    pub fn is_running(&self) -> bool {
        self.state.lock().unwrap().worker.is_some()
    }

    pub fn features(&self) -> u64 {
        self.state.lock().unwrap().features
    }

    /// Changes what it does not while it runs.
    fn set<R>(&self, change: impl FnOnce(&mut State) -> R) -> Result<R, vhost::Error> {
        let mut state = self.state.lock().unwrap();
        if state.worker.is_some() {
            return Err(refused(libc::EBUSY));
        }
        Ok(change(&mut state))
    }
}

impl KernelDevice for Arc<Fake> {
    fn set_features(&self, features: u64) -> Result<(), vhost::Error> {
        self.set(|state| state.features = features)
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), vhost::Error> {
        self.set(|state| state.memory = Some(memory.clone()))
    }

    fn set_ring(&self, memory: &GuestMemoryMmap, ring: &Ring) -> Result<(), vhost::Error> {
        let mut queue = Queue::new(1024).unwrap();
        queue.set_size(ring.size);
        let [descriptors, available, used] = ring.places;
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_avail_ring_address(available).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.set_ready(true);
        let (memory, wires, errors) = (memory.clone(), ring.wires.clone(), Arc::clone(&ring.errors));
        let ring_of_fake = FakeRing { memory, queue, wires, errors, broken: false };
        self.set(|state| drop(state.rings.insert(ring.index, ring_of_fake)))
    }

    fn base(&self, ring: usize) -> Result<u16, vhost::Error> {
        self.set(|state| state.rings[&ring].queue.next_avail())
    }

    fn set_base(&self, ring: usize, base: u16) -> Result<(), vhost::Error> {
        self.set(|state| state.rings.get_mut(&ring).unwrap().queue.set_next_avail(base))
    }

    fn run(&self, rings: &[usize]) -> Result<(), vhost::Error> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(refused(libc::EFAULT));
        }
        let idle = Arc::clone(&self.idle);
        self.set(|state| {
            assert!(rings.iter().copied().eq(state.rings.keys().copied()));
            let memory = state.memory.clone().ok_or(refused(libc::EFAULT))?;
            let (mut taken, features) = (std::mem::take(&mut state.rings), state.features);
            // A kick is not remembered by who does not run, and rings are not looked at without.
            taken.values().for_each(|ring| _ = ring.wires.kick.read());
            let ended = Arc::new(AtomicBool::new(false));
            let end = Arc::clone(&ended);
            let worker = std::thread::spawn(move || {
                for ring in taken.values_mut() {
                    ring.queue.set_event_idx(features & feature::RING_EVENT_IDX != 0);
                    // What was used before is in the ring itself.
                    let next = ring.queue.used_idx(&ring.memory, Ordering::SeqCst).unwrap();
                    ring.queue.set_next_used(next.0);
                }
                while !end.load(Ordering::SeqCst) {
                    for ring in taken.values_mut() {
                        if !idle.load(Ordering::SeqCst) && ring.wires.kick.read().is_ok() {
                            ring.work(&memory);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                taken
            });
            state.worker = Some((ended, worker));
            Ok(())
        })?
    }

    fn halt(&self, _rings: &[usize]) -> Result<(), vhost::Error> {
        let mut state = self.state.lock().unwrap();
        if let Some((end, worker)) = state.worker.take() {
            end.store(true, Ordering::SeqCst);
            state.rings = worker.join().unwrap();
        }
        Ok(())
    }
}

impl FakeRing {
    fn work(&mut self, memory: &GuestMemoryMmap) {
        let Self { memory: rings, queue, .. } = self;
        while !self.broken
            && let Some(chain) = queue.pop_descriptor_chain(&*rings)
        {
            let (head, mut text, mut written) = (chain.head_index(), Vec::new(), 0);
            for buffer in chain {
                let mut bytes = vec![0; buffer.len() as usize];
                if memory.get_slice(buffer.addr(), bytes.len()).is_err() {
                    self.broken = true;
                    self.errors.write(1).unwrap();
                    return;
                }
                if buffer.is_write_only() {
                    let rest = text.split_off(bytes.len().min(text.len()));
                    memory.write_slice(&text, buffer.addr()).unwrap();
                    written += text.len();
                    text = rest;
                } else {
                    memory.read_slice(&mut bytes, buffer.addr()).unwrap();
                    text.extend(bytes.to_ascii_uppercase());
                }
            }
            queue.add_used(&*rings, head, written as u32).unwrap();
            self.wires.call.write(1).unwrap();
        }
    }
}
