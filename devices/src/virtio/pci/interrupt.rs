//! The PCI transport's interrupt: a vector for each queue and one for the configuration, or INTx with the ISR status (Virtio
//! 1.2, *ISR Status Capability*, *Used Buffer Notifications*).
//!
//! No lock but for events, which move with their queues' vectors: INTx is driven with what the ISR status is, asked under the lock of
//! whoever drives it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::spec::NO_VECTOR;
use crate::pci::FunctionInterrupts;
use crate::virtio::VirtioInterrupt;
use crate::virtio::registers::isr;
use crate::virtio::transport::TransportInterrupt;

/// A source's vector, as the driver chose it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// Changes of the configuration.
    Config,
    /// Used buffers of a queue.
    Queue(u32),
}

/// How a function's driver is told.
pub(super) struct PciInterrupt {
    function: Arc<FunctionInterrupts>,
    vectors: u16,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    /// What tells of used buffers, by queue, if that is an event.
    events: Mutex<Vec<Option<Arc<EventFd>>>>,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl PciInterrupt {
    /// No vector chosen, no cause.
    pub(super) fn new(function: Arc<FunctionInterrupts>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            vectors: function.vectors(),
            function,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            events: Mutex::new(vec![None; queues]),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    pub(super) fn function(&self) -> &Arc<FunctionInterrupts> {
        &self.function
    }

    fn source(&self, source: Source) -> Option<&AtomicU16> {
        match source {
            Source::Config => Some(&self.config),
            Source::Queue(queue) => self.queues.get(usize::try_from(queue).ok()?),
        }
    }

    pub(super) fn vector(&self, source: Source) -> u16 {
        self.source(source).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// The driver chooses a vector; one that is not there becomes none, which it sees.
    pub(super) fn set_vector(&self, source: Source, vector: u16) {
        if let Some(chosen) = self.source(source) {
            let vector = if vector < self.vectors { vector } else { NO_VECTOR };
            let events = self.events();
            let before = chosen.swap(vector, Ordering::SeqCst);
            if let Source::Queue(queue) = source
                && let Some(event) = &events[queue as usize]
            {
                self.function.detach(before, event);
                self.function.attach(vector, event);
            }
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        self.events.lock().expect("no holder of a function's events panics")
    }

    /// The ISR status, whose causes the driver has seen then.
    pub(super) fn take_isr(&self) -> u8 {
        let causes = self.isr.swap(0, Ordering::SeqCst);
        self.drive_pin();
        causes
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    fn drive_pin(&self) {
        self.function.update_intx(|| self.isr.load(Ordering::SeqCst) != 0);
    }

    fn tell(&self, source: Source, cause: u32) {
        if self.function.is_msix_enabled() {
            self.function.trigger(self.vector(source));
        } else {
            self.isr.fetch_or(cause as u8, Ordering::SeqCst);
            self.drive_pin();
        }
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn queue_used(&self, queue: u16) {
        self.tell(Source::Queue(queue.into()), isr::USED_BUFFER);
    }

    fn used_by_event(&self, queue: u16, event: &Arc<EventFd>) {
        let mut events = self.events();
        let vector = self.vector(Source::Queue(queue.into()));
        if let Some(before) = events[usize::from(queue)].replace(Arc::clone(event)) {
            self.function.detach(vector, &before);
        }
        self.function.attach(vector, event);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.tell(Source::Config, isr::CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.tell(Source::Config, isr::CONFIG_CHANGE);
    }
}

impl TransportInterrupt for PciInterrupt {
    fn reset_is_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The generation goes on.
    fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        for (vector, event) in self.queues.iter().zip(&mut *self.events()) {
            if let Some(event) = event.take() {
                self.function.detach(vector.load(Ordering::SeqCst), &event);
            }
        }
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.drive_pin();
    }
}
