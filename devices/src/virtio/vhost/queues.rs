//! The queues of a device that the kernel works on: the guest's own rings or shadow rings, and how all three wake each other.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::back_end::{BackEnd, Ring};
use super::relay::{Relay, RingUser, Wires};
use super::shadow::{SIZE, ShadowMemory};
use crate::virtio::worker::{Pace, QueueWork, Worker};
use crate::virtio::{Activation, ActiveQueue, Doorbell, Session, VirtioInterrupt, feature};

/// The queues of one device, of which the first ones are the kernel's and nobody works on the others.
pub(super) struct KernelQueues {
    back_end: Arc<BackEnd>,
    /// The rings that the kernel works on; `None`: the guest's own.
    shadow: Option<ShadowMemory>,
    /// Of the kernel's queues.
    wires: Vec<Wires>,
    errors: Arc<EventFd>,
    /// One for each of the kernel's queues, and one for errors.
    workers: Vec<Worker>,
    doorbells: Vec<Arc<Doorbell>>,
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

impl KernelQueues {
    /// `queues` queues, of which the first `served` are `back_end`'s. `observed`: somebody has to hear of what is written to
    /// guest memory.
    pub fn new(
        back_end: Arc<BackEnd>,
        queues: usize,
        served: usize,
        observed: bool,
        pace: &Pace,
    ) -> io::Result<Self> {
        let wires = (0..served).map(|_| Wires::new()).collect::<io::Result<Vec<_>>>()?;
        let errors = Arc::new(event()?);
        let mut watched: Vec<_> = wires.iter().map(|wires| wires.call.as_raw_fd()).collect();
        watched.push(errors.as_raw_fd());
        let worker = |fd| Worker::watching(back_end.name(), pace, fd);
        let workers = watched.into_iter().map(worker).collect::<io::Result<Vec<_>>>()?;
        let doorbell = |index: usize| match wires.get(index) {
            Some(_) if observed => Ok(Arc::clone(workers[index].doorbell())),
            // What the guest rings kicks the kernel.
            Some(wires) => Ok(Arc::new(Doorbell::Event(wires.kick.try_clone()?))),
            None => Ok(Arc::new(Doorbell::Event(event()?))),
        };
        let doorbells = (0..queues).map(doorbell).collect::<io::Result<Vec<_>>>()?;
        let shadow = observed.then(|| ShadowMemory::new(served)).transpose()?;
        Ok(Self { back_end, shadow, wires, errors, workers, doorbells })
    }

    /// One for each queue.
    pub fn doorbells(&self) -> &[Arc<Doorbell>] {
        &self.doorbells
    }

    /// All threads.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The driver is ready: the kernel works, with those of `features` that its rings and packets have.
    pub fn activate(&self, activation: Activation, features: u64) {
        let Activation { queues, session, interrupt, .. } = activation;
        let kernels = queues.into_iter().take(self.wires.len()).collect::<Option<Vec<_>>>();
        // A driver that does without one of them does without the device.
        let Some(queues) = kernels.filter(|queues| queues.len() == self.wires.len()) else { return };
        // What was said to a driver before.
        for event in self.wires.iter().map(|wires| &wires.call).chain([&self.errors]) {
            let _ = event.read();
        }
        let last = self.workers.last().expect("there is one for errors");
        last.start(Box::new(Watch {
            name: self.back_end.name(),
            errors: Arc::clone(&self.errors),
            session: Arc::clone(&session),
            interrupt: Arc::clone(&interrupt),
        }));
        let listener = (Arc::clone(&session), Arc::clone(&interrupt));
        if let Err(error) = self.begin(queues, features, listener) {
            self.back_end.give_up(&format!("does not begin: {error}"));
        }
    }

    fn begin(
        &self,
        queues: Vec<ActiveQueue>,
        features: u64,
        listener: (Arc<Session>, Arc<dyn VirtioInterrupt>),
    ) -> Result<(), vhost::Error> {
        let Some(memory) = queues.first().and_then(|queue| queue.access(Clone::clone)) else { return Ok(()) };
        let ring = |index: usize, size, places| {
            let (wires, errors) = (self.wires[index].clone(), Arc::clone(&self.errors));
            Ring { index, size, places, wires, errors }
        };
        match &self.shadow {
            None => {
                let rings = queues.iter().enumerate();
                let rings: Vec<_> =
                    rings.map(|(index, queue)| ring(index, queue.size(), queue.places())).collect();
                let (session, interrupt) = listener.clone();
                self.back_end.start(&memory, &memory, features, &rings, listener)?;
                for (queue, worker) in (0..).zip(&self.workers[..self.wires.len()]) {
                    let call = Arc::clone(&self.wires[usize::from(queue)].call);
                    let (session, interrupt) = (Arc::clone(&session), Arc::clone(&interrupt));
                    interrupt.used_by_event(queue, &call);
                    worker.start(Box::new(Call { queue, call, session, interrupt }));
                }
                self.kick();
            }
            Some(shadow) => {
                self.back_end.stop();
                shadow.clear();
                let shadows: Vec<_> = (0..queues.len()).map(|index| shadow.ring(index)).collect();
                let rings = shadows.iter().enumerate();
                let rings: Vec<_> = rings.map(|(index, shadow)| ring(index, SIZE, shadow.places())).collect();
                // Our driver of the shadow rings does without.
                let features = features & !(feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX);
                self.back_end.start(&memory, shadow.memory(), features, &rings, listener)?;
                for (index, (queue, ring)) in queues.into_iter().zip(shadows).enumerate() {
                    let user = Arc::clone(&self.back_end) as Arc<dyn RingUser>;
                    let relay = Relay::new(queue, ring, user, self.wires[index].clone());
                    self.workers[index].start(Box::new(relay));
                }
            }
        }
        Ok(())
    }

    /// The kernel looks at all rings: what it was kicked for while it did not run it has forgotten, and when it begins to run it
    /// does not look at all of them by itself.
    fn kick(&self) {
        // Full only after 2^64 - 2 kicks that nobody took.
        self.wires.iter().for_each(|wires| _ = wires.kick.write(1));
    }

    /// Nobody works for the driver any more.
    pub fn reset(&self) {
        self.workers.iter().for_each(Worker::stop);
        self.back_end.stop();
    }

    /// Nobody works until [`KernelQueues::resume`].
    pub fn pause(&self) {
        self.workers.iter().for_each(Worker::pause);
        self.back_end.pause();
    }

    pub fn resume(&self) {
        self.back_end.resume();
        self.kick();
        self.workers.iter().for_each(Worker::resume);
    }
}

/// Makes an interrupt of the kernel's call for one queue.
struct Call {
    queue: u16,
    call: Arc<EventFd>,
    session: Arc<Session>,
    interrupt: Arc<dyn VirtioInterrupt>,
}

impl QueueWork for Call {
    fn notified(&mut self) {
        // Whoever takes it tells: it may have been an interrupt already.
        if self.call.read().is_ok() {
            self.session.run(|| self.interrupt.queue_used(self.queue));
        }
    }
}

/// Hears of rings that make no sense.
struct Watch {
    name: &'static str,
    errors: Arc<EventFd>,
    session: Arc<Session>,
    interrupt: Arc<dyn VirtioInterrupt>,
}

impl QueueWork for Watch {
    fn notified(&mut self) {
        if self.errors.read().is_ok() {
            self.session.run(|| {
                tracing::warn!(target: "virtio", "{}: the driver's rings make no sense to the kernel", self.name);
                self.interrupt.needs_reset();
            });
        }
    }
}
