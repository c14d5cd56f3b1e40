//! What every transport does: it negotiates, gives the device its queues when the driver is ready, and takes them away at a
//! reset (Virtio 1.2, *Device Status Field*, *Device Initialization*).
//!
//! Two locks, of which `transition` alone is held while the device is called: one status change after the other. `registers`
//! is what the driver writes. A thread of the device never takes the first.

use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};

use super::registers::{Registers, status};
use super::{Activation, ActiveQueue, Session, VirtioDevice, VirtioInterrupt, feature};
use crate::dma::DmaMemory;
use crate::lock_rank::device;

const LOCK: &str = "no holder of a transport's lock panics";

/// A transport's interrupt, as the transport needs it besides.
pub(super) trait TransportInterrupt: VirtioInterrupt {
    /// Whether the device has found the driver's rings wanting.
    fn reset_is_needed(&self) -> bool;
    /// No causes any more.
    fn reset(&self);
}

struct Transition {
    /// The time since the driver became ready, if it is.
    session: Option<Arc<Session>>,
    /// Whether the device may reach memory.
    has_memory: bool,
}

/// A device and what its driver has told it.
pub(super) struct Transport<I> {
    device: Arc<dyn VirtioDevice>,
    dma: DmaMemory,
    features: u64,
    interrupt: Arc<I>,
    /// Held for a whole change of the status.
    transition: Mutex<Transition>,
    registers: device::Mutex<Registers>,
}

impl<I: TransportInterrupt + 'static> Transport<I> {
    /// `device`, telling its driver by `interrupt` and reaching `dma`: at once, or (`has_memory` is false) when it may.
    pub fn new(device: Arc<dyn VirtioDevice>, interrupt: Arc<I>, dma: DmaMemory, has_memory: bool) -> Self {
        let rings = feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;
        let features = device.features() | rings;
        let registers = device::Mutex::new(Registers::new(&*device));
        let transition = Mutex::new(Transition { session: None, has_memory });
        Self { device, dma, features, interrupt, transition, registers }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// How its driver is told.
    pub fn interrupt(&self) -> &Arc<I> {
        &self.interrupt
    }

    /// All that is offered.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Looks at what the driver has written, or changes it. No device is called meanwhile.
    pub fn with<R>(&self, act: impl FnOnce(&mut Registers) -> R) -> R {
        act(&mut self.registers.lock().expect(LOCK))
    }

    /// The driver notifies of `queue`. One that is not there is ignored.
    pub fn notify(&self, queue: u64) {
        let doorbells = self.device.doorbells();
        if let Some(bell) = usize::try_from(queue).ok().and_then(|queue| doorbells.get(queue)) {
            bell.ring();
        }
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.reset_is_needed() { status::DEVICE_NEEDS_RESET } else { 0 };
        self.with(|registers| registers.status) | needs_reset
    }

    /// The driver writes the status. Zero is a reset; bits are not cleared otherwise.
    pub fn set_status(&self, value: u32) {
        let mut transition = self.transition.lock().expect(LOCK);
        if value == 0 {
            self.reset_device(&mut transition);
            return;
        }
        let is_ready = self.with(|registers| {
            let mut new = value & status::OF_DRIVER & !registers.status;
            if new & status::FEATURES_OK != 0 && !self.acceptable(registers.driver_features) {
                new &= !status::FEATURES_OK;
            }
            // A device of Virtio 1.0 and later is not used before the features are agreed on.
            if (registers.status | new) & status::FEATURES_OK == 0 {
                new &= !status::DRIVER_OK;
            }
            registers.status |= new;
            new & status::DRIVER_OK != 0
        });
        if is_ready {
            self.activate(&mut transition);
        }
    }

    fn acceptable(&self, features: u64) -> bool {
        features & !self.features == 0 && features & feature::VERSION_1 != 0
    }

    /// The device may reach memory from now on, or may not. A device that is told to stop in its work does, and its driver
    /// has to begin anew; one that was ready before it could begins now.
    pub fn set_memory(&self, has_memory: bool) {
        let mut transition = self.transition.lock().expect(LOCK);
        if std::mem::replace(&mut transition.has_memory, has_memory) == has_memory {
            return;
        }
        if has_memory {
            if self.with(|registers| registers.status & status::DRIVER_OK != 0) {
                self.activate(&mut transition);
            }
        } else if let Some(session) = transition.session.take() {
            session.end();
            self.device.reset();
            self.with(|registers| registers.status &= !status::DRIVER_OK);
        }
    }

    fn activate(&self, transition: &mut Transition) {
        if !transition.has_memory || transition.session.is_some() {
            return;
        }
        let memory = self.dma.memory();
        let interrupt = Arc::clone(&self.interrupt) as Arc<dyn VirtioInterrupt>;
        let new = Arc::new(Session::new());
        let mut valid = true;
        let (features, queues) = self.with(|registers| {
            let features = registers.driver_features;
            let mut activate = |(index, queue): (u16, &mut Queue)| {
                if !queue.ready() {
                    return None;
                }
                queue.set_event_idx(features & feature::RING_EVENT_IDX != 0);
                valid &= queue.is_valid(memory);
                // The driver's registers stay behind, for it to read; the device's copy has the indices.
                let copy = Queue::try_from(queue.state()).ok()?;
                let (dma, session, interrupt) = (self.dma.clone(), Arc::clone(&new), Arc::clone(&interrupt));
                Some(ActiveQueue::new(index, copy, dma, session, interrupt))
            };
            (features, (0..).zip(&mut registers.queues).map(&mut activate).collect())
        });
        if !valid {
            interrupt.needs_reset();
            return;
        }
        transition.session = Some(Arc::clone(&new));
        self.device.activate(Activation { queues, features, session: new, interrupt });
    }

    fn reset_device(&self, transition: &mut Transition) {
        if let Some(session) = transition.session.take() {
            session.end();
        }
        self.device.reset();
        self.with(|registers| *registers = Registers::new(&*self.device));
        self.interrupt.reset();
    }

    /// Power-on state, as the driver's reset makes it.
    pub fn reset(&self) {
        self.reset_device(&mut self.transition.lock().expect(LOCK));
    }
}
